"""Fault plans read back; a timed kill says whether it happened."""

import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from injectors import Plan, injector_for, parse, timed
from injectors.timed import KILLS, SIGNALS, kill_plan
from leakcheck.errors import UsageError
from leakcheck.trials.live_host import _Process

forced = st.builds(
    kill_plan, st.sampled_from(["supervisor", "tree"]), st.floats(0, 1e5), sig=st.sampled_from(["", *SIGNALS])
) | st.builds(kill_plan, st.sampled_from(KILLS), st.floats(0, 1e5), sleeping=st.just(True), payload=st.booleans())
plain = st.sampled_from(["normal", "timeout", "crash:signal", "crash:exit"]).map(Plan.read)


@given(forced | plain)
def test_a_plan_reads_back(plan: Plan) -> None:
    assert parse(str(plan)) == plan


def test_a_kill_that_nobody_would_wait_for_is_refused() -> None:
    with pytest.raises(UsageError, match="the kill must come within an hour"):
        parse("forced:supervisor@99999999999ms")
    assert str(parse("forced:supervisor@3600000ms")) == "forced:supervisor@3600000ms"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("", "give KIND"),
        ("normal ", "give KIND"),
        ("a b", "give KIND"),
        ("odd", "no injector for 'odd'; there are cpu, crash, disk, fd, finish, forced, launch, lock, "),
        ("forced", "'nothing' names nobody; give forced:WHO@MSms"),
        ("forced:me@1ms", "'me' names nobody; .*WHO one of supervisor, tree, freeze"),
        ("forced:tree", "'nothing' is no instant; give forced:WHO@MSms"),
        ("forced:tree@ms", "'ms' is no instant; give forced:WHO@MSms"),
        ("forced:tree@1s", "'1s' is no instant; give forced:WHO@MSms"),
        ("forced:tree@1ms,dancing", "'dancing' is no flag at this place; give forced:WHO@MSms"),
        ("forced:tree@1ms,sigusr", "'sigusr' is no flag at this place; .*SIGNAL one of sigterm, sigint, sighup"),
        ("forced:tree@1ms,sleeping,sigterm", "'sigterm' is no flag at this place; give forced:WHO@MSms"),
        ("forced:freeze@1ms,sigterm", "a stopped tree acts on SIGKILL alone; omit sigterm"),
        ("forced:tree@payload[+]1ms", "only a payload that sleeps is waited for; add ,sleeping"),
        ("crash", "give one of normal, timeout, crash:signal, crash:exit"),
        ("normal,sleeping", "give one of normal"),
    ],
)
def test_what_is_no_plan_is_refused_with_those_that_are(line: str, said: str) -> None:
    with pytest.raises(UsageError, match=f"plan {line!r}: .*{said}"):
        parse(line.replace("[+]", "+"))


class Run:
    """A run of a command on this host."""

    starts_ms = 0.0

    def __init__(self, *argv: str) -> None:
        self.supervisor: Any = _Process(argv, {"PATH": "/usr/bin:/bin"}, subprocess.DEVNULL, "/")
        self._began = time.monotonic()

    @property
    def elapsed_ms(self) -> float:
        return (time.monotonic() - self._began) * 1000

    def tree(self) -> set[psutil.Process]:
        return {psutil.Process(self.supervisor.pid)}

    def payload_runs(self) -> bool:
        return self.elapsed_ms >= self.starts_ms

    def code(self) -> int:
        code: int = self.supervisor.wait(30)
        self.supervisor.close()
        return code


@pytest.mark.parametrize("who", KILLS)
def test_a_kill_fires_at_its_instant(who: Any) -> None:
    run = Run("sleep", "60")
    evidence = injector_for(kill_plan(who, 50)).apply(run)
    assert run.code() == -9
    assert evidence.fired
    assert evidence.when_ms is not None
    assert evidence.when_ms >= 50


def test_a_tree_is_killed_from_its_root_so_that_no_one_acts_on_the_end_of_its_child(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = Run("sh", "-c", "for i in 1 2 3 4 5 6; do sleep 60 & done; wait")
    order: list[int] = []
    send = signal.pidfd_send_signal

    def noted(pidfd: int, number: int) -> None:
        order.append(int(Path(f"/proc/self/fdinfo/{pidfd}").read_text().rpartition("Pid:")[2].split()[0]))
        send(pidfd, number)

    monkeypatch.setattr(signal, "pidfd_send_signal", noted)
    supervisor = psutil.Process(run.supervisor.pid)
    while len(supervisor.children()) < 6:
        time.sleep(0.001)
    timed.kill(run.supervisor, lambda: {supervisor, *supervisor.children(recursive=True)}, "tree")
    assert run.code() == -9
    assert (len(order), order) == (7, sorted(order))


@pytest.mark.parametrize("name", SIGNALS)
@pytest.mark.parametrize("who", ["supervisor", "tree"])
def test_a_named_signal_is_the_one_that_is_sent(who: Any, name: str) -> None:
    run = Run("sleep", "60")
    evidence = injector_for(kill_plan(who, 50, sig=name)).apply(run)
    assert (run.code(), evidence.fired) == (-SIGNALS[name], True)


def test_who_ignores_the_signal_is_killed_at_last(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timed, "PATIENCE", 0.5)
    run = Run("sh", "-c", "trap '' TERM; sleep 60")
    evidence = injector_for(kill_plan("supervisor", 300, sig="sigterm")).apply(run)
    assert (run.code(), evidence.fired) == (-9, True)


def test_a_kill_of_a_payload_waits_for_it_however_long_its_start_takes() -> None:
    run = Run("sleep", "60")
    run.starts_ms = 400
    evidence = injector_for(kill_plan("tree", 50, sleeping=True, payload=True)).apply(run)
    assert run.code() == -9
    assert evidence.when_ms is not None
    assert evidence.when_ms >= 450


def test_a_payload_that_never_came_is_not_reached() -> None:
    run = Run("true")
    run.starts_ms = 1e9
    injector = injector_for(kill_plan("tree", 50, sleeping=True, payload=True))
    assert not injector.apply(run).fired
    assert not injector.may_miss
    run.code()


def test_a_kill_after_the_end_did_not_fire() -> None:
    run = Run("true")
    evidence = injector_for(kill_plan("supervisor", 20_000)).apply(run)
    assert (run.code(), evidence.fired, evidence.when_ms) == (0, False, None)


def test_an_injector_is_applied_once() -> None:
    run = Run("true")
    injector = injector_for(Plan("normal"))
    injector.apply(run)
    with pytest.raises(AssertionError, match="applied twice"):
        injector.apply(run)
    run.code()
