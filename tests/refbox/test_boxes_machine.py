"""refbox's boxes do what a model of them says, whatever is run, killed, recovered and spoilt, in whatever order."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from leakcheck import _native
from leakcheck._bin import helper
from leakcheck.arena import Arena, Process
from leakcheck.report import Report
from leakcheck.targets.executables import binds
from leakcheck.trials.rootfs import read_file, write_file

BOXES = st.integers(0, 2)
STATE = Path("/run/refbox")
RESULT = Path("/tmp/result.json")
# Program, and what the result must say of it.
PROGRAMS: dict[str, tuple[list[str], str, int | None]] = {
    "ok": (["/bin/true"], "OK", 0),
    "exit": (["/bin/sh", "-c", "exit 3"], "RE", 3),
    "timeout": (["/bin/sleep", "600"], "TLE", None),
    "litter": (["/bin/sh", "-c", "sleep 600 & echo x >/tmp/x; echo x >/dev/shm/x; exit 0"], "OK", 0),
}
SPOILT = {
    "empty": lambda _: b"",
    "cut short": lambda text: text[: len(text) // 2],
    "garbage": lambda _: b"\xff\x00garbage",
    "changed": lambda text: text.replace(b"execution", b"verdict").replace(b"cleanup", b"setup"),
}
# Until a payload runs, however busy the machine is.
PATIENCE = 120.0


class Boxes(RuleBasedStateMachine):
    """The model: what each box is, and whether its state file can be trusted."""

    def __init__(self) -> None:
        super().__init__()
        self.arena = Arena(binds=binds([helper("refbox")])).up()
        self.root = os.open(f"/proc/{self.arena.init}/root", os.O_PATH | os.O_DIRECTORY)
        self.boxes: dict[int, str] = {}
        self.untrusted: set[int] = set()
        self.held: dict[int, Process] = {}
        self.set_aside = 0

    @initialize()
    def warm_up(self) -> None:
        for box in range(3):
            assert self.refbox("run", "--box", str(box), "--result", str(RESULT), "--", "/bin/true")[0] == 0
            self.boxes[box] = "idle"
        self.before = _native.snapshot(arena=self.arena.view)

    # What is done.

    @rule(box=BOXES, name=st.sampled_from(sorted(PROGRAMS)))
    def run(self, box: int, name: str) -> None:
        program, status, exit_code = PROGRAMS[name]
        code, _, errors = self.refbox(
            "run",
            "--box",
            str(box),
            "--wall",
            "0.2" if status == "TLE" else "60",
            "--result",
            str(RESULT),
            "--",
            *program,
        )
        if self.boxes[box] == "busy":
            assert (code, "is in use by pid" in errors) == (3, True), errors
        elif self.boxes[box] == "quarantined" and box not in self.untrusted:
            assert (code, f"refbox recover --box {box}" in errors) == (4, True), errors
        else:
            assert code == 0, errors
            result = json.loads(read_file(self.root, RESULT))
            assert (result["status"], result["exit_code"]) == (status, exit_code), result
            self.fit(box)

    @rule(box=BOXES)
    def hold(self, box: int) -> None:
        if self.boxes[box] == "busy" or (self.boxes[box] == "quarantined" and box not in self.untrusted):
            return
        # A crashed box has a state already, of its last supervisor.
        before = self.state(box)
        process = self.arena.popen(
            [helper("refbox"), *f"run --box {box} --wall 300 --result /tmp/held-{box}.json -- /bin/sleep 600".split()],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        until = time.monotonic() + PATIENCE
        while (now := self.state(box)) == before or now.get("phase") != "execution":
            assert process.poll() is None
            assert time.monotonic() < until, "the payload does not start"
            time.sleep(0.002)
        self.fit(box)
        self.boxes[box], self.held[box] = "busy", process

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def kill_the_supervisor(self, data: st.DataObject) -> None:
        box = data.draw(st.sampled_from(sorted(self.held)))
        with self.held.pop(box) as process:
            process.kill()
            assert process.wait(PATIENCE) == -9
        self.boxes[box] = "crashed"

    @precondition(lambda self: self.held)
    @rule(data=st.data(), foreign=st.booleans())
    def end_the_supervisor(self, data: st.DataObject, foreign: bool) -> None:
        """By SIGTERM; its clean-up fails where somebody has put something `foreign` into the box's cgroup."""
        box = data.draw(st.sampled_from(sorted(self.held)))
        if foreign:
            find = f"find /sys/fs/cgroup -type d -name 'refbox-*-{box}' | head -n 1"
            cgroup = self.said(["/bin/sh", "-c", find])[1].strip()
            assert self.said(["mkdir", f"{cgroup}/foreign"])[0] == 0
        with self.held.pop(box) as process:
            process.send_signal(signal.SIGTERM)
            assert process.wait(PATIENCE) == 1
        result = json.loads(read_file(self.root, Path(f"/tmp/held-{box}.json")))
        assert result["status"] == "IE", "a fault of the supervisor is no fault of the program"
        self.boxes[box] = "quarantined" if foreign else "idle"

    @rule(box=BOXES | st.none())
    def recover(self, box: int | None) -> None:
        code, _, errors = self.refbox("recover", *([] if box is None else ["--box", str(box)]))
        if box is not None and self.boxes[box] == "busy":
            assert code == 3, errors
            return
        assert code == 0, errors
        for one in self.boxes if box is None else [box]:
            if self.boxes[one] != "busy":
                self.fit(one)

    @rule(box=BOXES)
    def clean(self, box: int) -> None:
        code, _, errors = self.refbox("clean", "--box", str(box))
        if self.boxes[box] == "busy":
            assert code == 3, errors
        else:
            assert code == 0, errors
            self.fit(box)

    @rule(box=BOXES, how=st.sampled_from(sorted(SPOILT)))
    def spoil_the_state(self, box: int, how: str) -> None:
        if self.boxes[box] not in ("crashed", "quarantined") or box in self.untrusted:
            return
        path = STATE / f"box-{box}.json"
        text = read_file(self.root, path)
        spoilt = SPOILT[how](text)
        if spoilt == text:
            return
        write_file(self.root, path, spoilt)
        self.untrusted.add(box)

    # What must hold whatever was done.

    @invariant()
    def health_is_as_the_model_says(self) -> None:
        if not self.boxes:
            return
        code, told, _ = self.refbox("health")
        summary = json.loads(told)
        for one in summary["boxes"]:
            model = self.boxes[one["box"]]
            wanted = "corrupt" if one["box"] in self.untrusted else {"crashed": "stale"}.get(model, model)
            assert one["status"] == wanted, (one, self.boxes)
        states = {self.boxes[box] for box in self.boxes if box not in self.untrusted}
        worst = (
            "quarantined"
            if "quarantined" in states
            else "degraded"
            if "crashed" in states or self.untrusted
            else "healthy"
        )
        assert (summary["status"], code) == (worst, 0 if worst == "healthy" else 1), summary

    @invariant()
    def only_boxes_in_use_or_out_of_service_have_cgroups(self) -> None:
        names = {Path(line).name for line in self.said(["find", "/sys/fs/cgroup", "-name", "refbox-*"])[1].splitlines()}
        having = {int(name.rpartition("-")[2]) for name in names}
        allowed = {box for box, state in self.boxes.items() if state != "idle"}
        assert having <= allowed, (having, self.boxes)

    @invariant()
    def what_was_set_aside_is_in_the_audit(self) -> None:
        lines = self.audit()
        assert sum(line["event"] == "state-set-aside" for line in lines) == self.set_aside, lines

    def teardown(self) -> None:
        try:
            for box in self.held:
                self.held[box].kill()
                self.held[box].wait(PATIENCE)
                self.boxes[box] = "crashed"
            self.held.clear()
            self.recover(None)
            report = Report.from_json(_native.settle(self.before, settle_ms=300))
            # Its records of what happened, and the results that it was asked for.
            records = ("file /run/refbox/", "file /tmp/", "dir /run/refbox/quarantine")
            # What nothing ties to the arena, such as a key, may be a neighbour's.
            tied = [leak for leak in report.leaks if leak.attribution != "none"]
            assert [leak for leak in tied if not leak.label.startswith(records)] == []
        finally:
            os.close(self.root)
            self.arena.down()

    # How it is done.

    def fit(self, box: int) -> None:
        """Note that the box was recovered, by itself or by a run."""
        self.set_aside += box in self.untrusted
        self.untrusted.discard(box)
        self.boxes[box] = "idle"

    def refbox(self, *arguments: str) -> tuple[int, str, str]:
        return self.said([str(helper("refbox")), *arguments])

    def said(self, argv: list[str]) -> tuple[int, str, str]:
        streams = [os.memfd_create("said"), os.memfd_create("said")]
        try:
            code = self.arena.run(argv, timeout=PATIENCE, stdout=streams[0], stderr=streams[1])
            return code, *(os.pread(fd, 1 << 20, 0).decode() for fd in streams)  # type: ignore[return-value]
        finally:
            for fd in streams:
                os.close(fd)

    def state(self, box: int) -> dict[str, Any]:
        try:
            return dict(json.loads(read_file(self.root, STATE / f"box-{box}.json"))["state"])
        except (OSError, ValueError, KeyError):
            return {}

    def audit(self) -> list[dict[str, Any]]:
        try:
            return [json.loads(line) for line in read_file(self.root, STATE / "audit.jsonl").splitlines()]
        except FileNotFoundError:
            return []


@pytest.mark.skipif(os.geteuid() != 0, reason="arenas of root; run as root")
def test_boxes_do_what_the_model_says() -> None:
    run_state_machine_as_test(
        Boxes,
        settings=settings(
            max_examples=12, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )
