"""What each native function converts, and what it raises: `UsageError`, or Python's own error for a wrong type."""

import json
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from leakcheck import _native
from leakcheck.errors import LeakcheckError, NativeError, UsageError


@pytest.fixture(scope="module")
def snapshot() -> _native.Snapshot:
    return _native.snapshot(scope=f"tree:{os.getpid()}", kinds="fd,process", include_self=True)


def test_constants_are_what_they_are_in_rust() -> None:
    assert {"process", "fd", "mount", "cgroup", "file"} <= set(_native.KINDS)
    assert len(set(_native.KINDS)) == len(_native.KINDS)
    assert all(root.startswith("/") for root in _native.DEFAULT_ROOTS)
    assert _native.__version__.count(".") == 2


def test_a_snapshot_gives_its_fields_as_python_objects(snapshot: _native.Snapshot) -> None:
    assert snapshot.scope == f"tree:{os.getpid()}"
    assert sorted(snapshot.kinds) == ["fd", "process"]
    assert snapshot.boot_id == Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    assert snapshot.taken_ns > 0
    assert snapshot.took_ns > 0
    assert snapshot.coverage == {"process": ("full", ""), "fd": ("full", "")}
    assert all(isinstance(value, int) for value in snapshot.gauges.values())
    assert len(snapshot) == snapshot.count("fd") + snapshot.count("process") == len(snapshot.resources())
    (own,) = (one for one in snapshot.resources("process") if one["pid"] == os.getpid())
    assert (type(own["start"]), type(own["comm"])) == (int, str)


def test_a_snapshot_survives_json_and_file(snapshot: _native.Snapshot, tmp_path: Path) -> None:
    snapshot.save(str(tmp_path / "saved"))
    for again in (_native.Snapshot.from_json(snapshot.to_json()), _native.Snapshot.load(str(tmp_path / "saved"))):
        assert again.resources() == snapshot.resources()
        assert json.loads(again.to_json()) == json.loads(snapshot.to_json())


def test_a_diff_and_a_settling_name_what_is_more(snapshot: _native.Snapshot) -> None:
    one, other = socket.socketpair()
    with one, other:
        later = _native.snapshot(scope=snapshot.scope, kinds="fd,process", include_self=True)
        report = json.loads(_native.diff(snapshot, later))
        settled = json.loads(_native.settle(snapshot, settle_ms=0, include_self=True))
        allowed = json.loads(_native.diff(snapshot, later, allow='[[allow]]\nkind = "fd"\nreason = "ours"\n'))
    assert report["verdict"] == settled["verdict"] == "leaked"
    assert {leak["evidence"]["resource"]["fd"] for leak in report["leaks"]} >= {one.fileno(), other.fileno()} - {-1}
    assert (allowed["verdict"], len(allowed["allowed"])) == ("clean", len(report["leaks"]))


def test_a_guard_gives_one_report_with_the_command() -> None:
    guard = _native.Guard(scope=f"tree:{os.getpid()}", kinds="fd", settle_ms=0, include_self=True)
    name, value = guard.token
    assert (name.isidentifier(), bool(value)) == (True, True)
    guard.allow('[[allow]]\nkind = "fd"\nreason = "none of them"\n')
    report = json.loads(guard.end(["true"], 0))
    assert (report["verdict"], report["command"]) == ("clean", {"argv": ["true"], "exit": 0})
    assert json.loads(guard.recovered())["verdict"] == "clean"


def test_an_abandoned_guard_refuses_all() -> None:
    guard = _native.Guard(scope=f"tree:{os.getpid()}", kinds="fd", settle_ms=0)
    guard.abandon()
    guard.abandon()
    for call in (guard.end, guard.recovered, lambda: guard.allow(""), lambda: guard.token):
        with pytest.raises(UsageError, match="this guard was abandoned: start a new one"):
            call()


@pytest.mark.parametrize("make", [_native.snapshot, _native.Guard, _native.doctor])
@pytest.mark.parametrize(
    ("options", "said"),
    [({"scope": "moon"}, "moon"), ({"kinds": "fd,moon"}, "moon"), ({"scope": "tree:0"}, "0")],
)
def test_a_wrong_scope_or_kind_is_named(make: Callable[..., Any], options: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        make(**options)


def test_a_wrong_kind_of_a_snapshot_is_named(snapshot: _native.Snapshot) -> None:
    for ask in (snapshot.count, snapshot.resources):
        with pytest.raises(UsageError, match="moon"):
            ask("moon")


def test_allow_rules_are_counted_or_refused_with_their_file(snapshot: _native.Snapshot) -> None:
    rule = '[[allow]]\nkind = "fd"\nreason = "ours"\n'
    assert (_native.check_allow("", "none"), _native.check_allow(rule * 2, "two")) == (0, 2)
    with pytest.raises(UsageError, match=r"their-rules\.toml"):
        _native.check_allow("[[allow]]\nkind = 1", "their-rules.toml")
    with pytest.raises(UsageError, match="allow rules"):
        _native.diff(snapshot, snapshot, allow="[[allow")


def test_a_saved_snapshot_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "odd").write_text("{}")
    with pytest.raises(UsageError, match="odd"):
        _native.Snapshot.load(str(tmp_path / "odd"))
    with pytest.raises(LeakcheckError, match="absent"):
        _native.Snapshot.load(str(tmp_path / "absent"))
    with pytest.raises(UsageError, match="snapshot"):
        _native.Snapshot.from_json("[")


def test_a_snapshot_that_cannot_be_written_names_its_path(snapshot: _native.Snapshot, tmp_path: Path) -> None:
    with pytest.raises(NativeError, match="absent"):
        snapshot.save(str(tmp_path / "absent" / "saved"))


def test_input_is_read_up_to_its_limit(tmp_path: Path) -> None:
    (tmp_path / "rules").write_text("é" * 10)
    assert _native.read_input("rules", tmp_path / "rules") == "é" * 10
    with pytest.raises(UsageError, match=r"read rules .*/rules: "):
        _native.read_input("rules", tmp_path / "rules", most=19)
    with pytest.raises(UsageError, match=r"read rules .*/absent: "):
        _native.read_input("rules", tmp_path / "absent")


def test_paths_are_told_apart(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    kinds = [_native.path_class(str(tmp_path / name)) for name in ("", "file", "absent")]
    assert kinds == ["directory", "other", "nothing"]


def test_commands_of_a_ci_runner_become_harmless() -> None:
    assert _native.harmless("plain") == "plain"
    assert not _native.harmless("::error::gone").startswith("::")


def test_the_doctor_answers_in_json() -> None:
    assert isinstance(json.loads(_native.doctor(kinds="fd")), dict)


def test_reap_takes_reports_only() -> None:
    with pytest.raises(UsageError, match="odd"):
        _native.reap("{}", "odd")


@pytest.mark.parametrize(
    "call",
    [
        lambda: _native.parse_plan(b"normal"),  # type: ignore[arg-type]
        lambda: _native.snapshot(scope=1),  # type: ignore[arg-type]
        lambda: _native.check_allow(None, "path"),  # type: ignore[arg-type]
        lambda: _native.ArenaView("1", [], [], []),  # type: ignore[arg-type]
        lambda: _native.diff(None, None),  # type: ignore[arg-type]
    ],
)
def test_a_wrong_type_is_pythons_own_error(call: Callable[[], object]) -> None:
    with pytest.raises(TypeError):
        call()
