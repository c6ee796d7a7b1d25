"""One trial: a place, a warm-up run, a baseline, a run under an ending, and what it left at each stage after it."""

import contextlib
import os
import select
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Generator, Sequence
from pathlib import Path

import msgspec

from leakcheck.campaigns.ending import Ending
from leakcheck.campaigns.place import ArenaPlace, HostPlace, Place, Running, kill
from leakcheck.campaigns.result import Outcome
from leakcheck.report import Leak, Report
from leakcheck.submissions import BUILTIN, Submission
from leakcheck.supervise import TargetError
from leakcheck.targets import Box, Target

__all__ = ["Left", "Trial", "bare_rate", "first_run", "probe", "run_length", "run_trial"]

# Beyond a submission's wall limit: start and teardown of the slowest target on a machine under load.
_GRACE = 30.0
_NEXT = BUILTIN["ok"]


class Left(msgspec.Struct, frozen=True):
    """One thing that a trial left, with the class that the later stages gave it; `by` is what took it away."""

    kind: str
    class_: str
    label: str
    by: str = ""


class Trial(msgspec.Struct, frozen=True, kw_only=True):
    """What one trial showed; times in milliseconds. What nothing ties to it is `untied`, and counts for nothing."""

    ending: Ending
    outcome: Outcome
    left: list[Left] = []
    detail: str = ""
    phases_ms: dict[str, float] = {}
    settled_ms: float | None = None
    gaps: dict[str, str] = {}
    untied: list[Left] = []


class _Stages:
    """Runs a target's commands in one place, and times what it does."""

    def __init__(self, target: Target, place: Place, number: int) -> None:
        self.target = target
        self.place = place
        self.box = Box(number=number, work=place.work)
        self.phases: dict[str, float] = {}

    @contextlib.contextmanager
    def phase(self, name: str) -> Generator[None, None, None]:
        began = time.monotonic()
        try:
            yield
        finally:
            self.phases[name] = self.phases.get(name, 0) + (time.monotonic() - began) * 1000

    def commands(self, commands: Sequence[Sequence[str]]) -> None:
        """Run `commands` in order; raise `TargetError` for one that fails, with its last words."""
        for argv in commands:
            with _output() as output:
                code = self._wait(self.place.start(argv, self.target.env(self.box), output), _GRACE, argv[0])
                if code != 0:
                    raise TargetError(f"{Path(argv[0]).name} ended with {code}: {_last_words(output)}")

    def prepare(self, submission: Submission) -> list[str]:
        """Make the box ready, and return the command line that runs `submission` in it."""
        self.commands(self.target.prepare_commands(self.box))
        launch = self.target.launch(submission, self.box)
        for path, text in launch.files.items():
            outside = self.place.path(Path(path))
            outside.parent.mkdir(parents=True, exist_ok=True)
            outside.write_text(text, encoding="utf-8")
        return launch.argv

    def run(self, argv: Sequence[str], submission: Submission) -> str:
        """Run to the end; return what was wrong with the status, empty if nothing."""
        with _output() as output:
            code = self._wait(self.start(argv, output), submission.wall + _GRACE, argv[0])
            got = self.target.status(code, self.box, self.place.path)
            wrong = got.verdict != submission.expect
            return f"status {got.verdict}, not {submission.expect}: {_last_words(output)}" if wrong else ""

    def start(self, argv: Sequence[str], output: int) -> Running:
        return self.place.start(argv, self.target.env(self.box), output)

    def force(self, argv: Sequence[str], ending: Ending) -> None:
        """Run, and kill at the ending's instant if it has not ended by then."""
        with _output() as output:
            began = time.monotonic()
            supervisor = self.start(argv, output)
            ended = select.poll()
            ended.register(supervisor.pidfd, select.POLLIN)
            left = began + ending.after_ms / 1000 - time.monotonic()
            # poll() counts whole milliseconds; the rest is slept.
            if not ended.poll(max(0, int(left * 1000))):
                time.sleep(max(0.0, began + ending.after_ms / 1000 - time.monotonic()))
                kill(self.place, supervisor, ending.kill or "supervisor")
            self._wait(supervisor, _GRACE, argv[0])

    def again(self) -> str:
        """Run the next submission in the box; return what was wrong with it."""
        try:
            return self.run(self.prepare(_NEXT), _NEXT)
        except TargetError as error:
            return str(error)

    def recover(self) -> str:
        """Run the target's recovery; return what was wrong with it."""
        try:
            self.commands(self.target.recover_commands(self.box))
        except TargetError as error:
            return str(error)
        return ""

    def _wait(self, process: Running, limit: float, name: str) -> int:
        try:
            return process.wait(limit)
        except subprocess.TimeoutExpired:
            kill(self.place, process, "tree")
            process.wait(_GRACE)
            raise TargetError(f"{name} still ran after {limit:.0f} s, and was killed") from None


def run_trial(target: Target, ending: Ending, number: int, *, host: bool, settle: float) -> Trial:
    """Make one trial of `target` from start to end; `settle` in seconds.

    Raises:
        TargetError: no place could be made, or the box could not be made ready in it.
    """
    began = time.monotonic()
    place: Place = HostPlace(target, settle) if host else ArenaPlace(target, settle)
    with contextlib.ExitStack() as stack:
        stack.enter_context(place)
        stages = _Stages(target, place, number)
        stages.phases["up"] = (time.monotonic() - began) * 1000
        trial = _stages(stages, ending)
        down = time.monotonic()
    stages.phases["down"] = (time.monotonic() - down) * 1000
    return msgspec.structs.replace(trial, phases_ms=stages.phases)


def _stages(stages: _Stages, ending: Ending) -> Trial:
    submission = ending.submission(stages.target.adapter.shortest_wall)
    with stages.phase("warm-up"):
        if wrong := stages.again():
            return Trial(ending=ending, outcome="wrong", detail=f"warm-up run: {wrong}")
    with stages.phase("prepare"):
        argv = stages.prepare(submission)
    with stages.phase("baseline"):
        stages.place.begin()
    wrong = ""
    with stages.phase("run"):
        if ending.kill is not None:
            stages.force(argv, ending)
        else:
            try:
                wrong = stages.run(argv, submission)
            except TargetError as error:
                wrong = str(error)
    with stages.phase("settle"):
        first = stages.place.look()
    settled = max((gone.gone_after_ms for gone in first.transient), default=None)
    gaps = {kind: gap.reason for kind, gap in first.gaps.items()}
    left, outcome, detail = _after(stages, ending, argv, first)
    if outcome == "clean" and wrong:
        outcome, detail = "wrong", wrong
    elif outcome == "clean" and gaps:
        outcome, detail = "unknown", "; ".join(f"{kind}: {reason}" for kind, reason in gaps.items())
    untied = [Left(leak.kind, leak.class_, leak.label) for leak in first.unattributed]
    return Trial(ending=ending, outcome=outcome, left=left, detail=detail, settled_ms=settled, gaps=gaps, untied=untied)


def _after(stages: _Stages, ending: Ending, argv: Sequence[str], first: Report) -> tuple[list[Left], Outcome, str]:
    """Recover, run the next submission, and say of each thing that was left what became of it."""
    if not first.leaks and ending.kill is None:
        return [], "clean", ""
    report = first
    left: list[Left] = []
    stay = {leak.key: leak for leak in first.leaks}
    failures = []

    def looked_again(after: str) -> None:
        nonlocal report, stay
        report = stages.place.look()
        now = {leak.key for leak in report.leaks}
        left.extend(Left(leak.kind, "reclaimable", leak.label, after) for key, leak in stay.items() if key not in now)
        stay = {key: leak for key, leak in stay.items() if key in now}

    with stages.phase("recover"):
        if wrong := stages.recover():
            failures.append(f"recovery: {wrong}")
        if stay:
            looked_again("recovery" if stages.target.adapter.recover else "time")
    with stages.phase("next"):
        if wrong := stages.again():
            failures.append(f"next submission: {wrong}")
        if stay:
            before_next = stay
            looked_again("next run")
            _mark_replaced(left, before_next, stay, report)
        if stay:
            left.extend(_grown(stages, ending, argv, stay))
    if failures:
        return left, "wedged", "; ".join(failures)
    if stay or any(one.class_ == "bounded" for one in left):
        return left, "leaked", ""
    return left, "reclaimed" if left else "clean", ""


def _mark_replaced(left: list[Left], before: dict[str, Leak], stay: dict[str, Leak], report: Report) -> None:
    """What the next run took away and put another in the place of is bounded: one is there, whatever is run."""
    labels = {(leak.kind, _place_of(leak)) for leak in report.leaks}
    for key, leak in before.items():
        if key not in stay and (leak.kind, _place_of(leak)) in labels:
            left.remove(Left(leak.kind, "reclaimable", leak.label, "next run"))
            left.append(Left(leak.kind, "bounded", leak.label))


def _grown(stages: _Stages, ending: Ending, argv: Sequence[str], stay: dict[str, Leak]) -> list[Left]:
    """Repeat the ending in the same box: what there is more of then is growing, and bounded what there is not."""
    before = stages.place.look()
    with contextlib.suppress(TargetError):
        argv = stages.prepare(ending.submission(stages.target.adapter.shortest_wall))
        if ending.kill is not None:
            stages.force(argv, ending)
        else:
            stages.run(argv, ending.submission(stages.target.adapter.shortest_wall))
    stages.recover()
    after = stages.place.look()

    def count(report: Report, kind: str) -> int:
        return sum(leak.kind == kind for leak in report.leaks)

    def class_of(leak: Leak) -> str:
        more = count(after, leak.kind) > count(before, leak.kind)
        # Killed elsewhere in the run, the second one need not leave what the first left.
        return "growing" if more else leak.class_ if ending.kill is not None else "bounded"

    return [Left(leak.kind, class_of(leak), leak.label) for leak in stay.values()]


def _place_of(leak: Leak) -> str:
    resource = leak.evidence.get("resource", {})
    for field in ("path", "target", "name"):
        if isinstance(value := resource.get(field), str) and value:
            return value
    return leak.label


def first_run(target: Target, *, host: bool, settle: float) -> list[Left]:
    """Return what the very first run in a place leaves for good, which a trial's warm-up hides from it.

    It is bounded if a second and a third run leave no more of it, growing if they do.
    """
    left: list[Left] = []

    def look(stages: _Stages) -> None:
        argv = stages.prepare(_NEXT)
        stages.place.begin()
        stages.run(argv, _NEXT)
        first = stages.place.look()
        if not first.leaks:
            return
        # Making the box ready again replaces files of its own, so what counts is from the second run to the third.
        counts = []
        for _ in range(2):
            stages.again()
            counts.append(Counter(leak.kind for leak in stages.place.look().leaks))
        second, third = counts
        left.extend(
            Left(leak.kind, "growing" if third[leak.kind] > second[leak.kind] else "bounded", leak.label)
            for leak in first.leaks
        )

    _in_a_place(target, host, look, settle)
    return left


def _in_a_place(target: Target, host: bool, work: Callable[[_Stages], object], settle: float = 0) -> None:
    place: Place = HostPlace(target, settle) if host else ArenaPlace(target, settle)
    with place:
        work(_Stages(target, place, 0))


def probe(target: Target, *, host: bool) -> list[str]:
    """Return what of the target's isolation is not on where trials take place; empty if all is."""
    gaps: list[str] = []

    def look(stages: _Stages) -> None:
        marker = stages.place.work.parent / "marker"
        stages.place.path(marker).touch()
        submission = target.probe(marker)
        argv = stages.prepare(submission)
        with _output() as output:
            outside = _namespaces(stages, output)
            stages._wait(stages.start(argv, output), submission.wall + _GRACE, argv[0])
            said = _text(output)
        gaps.extend(target.isolation_gaps(said, outside, os.uname().version))
        if gaps:
            gaps.append(said[-300:].strip())

    if not target.adapter.probe.none:
        _in_a_place(target, host, look)
    return gaps


def _namespaces(stages: _Stages, output: int) -> dict[str, str]:
    script = "for n in cgroup ipc mnt net pid time user uts; do echo $n $(readlink /proc/self/ns/$n); done"
    argv = ["/bin/sh", "-c", script]
    stages._wait(stages.start(argv, output), _GRACE, argv[0])
    links = dict(line.split(" ", 1) for line in _text(output).splitlines())
    os.ftruncate(output, 0)
    return links


def run_length(target: Target, *, host: bool, runs: int = 5) -> float:
    """Return the median length of a normal run in milliseconds, the first one left out.

    Raises:
        TargetError: it does not work.
    """
    lengths: list[float] = []

    def measure(stages: _Stages) -> None:
        for number in range(runs + 1):
            argv = stages.prepare(_NEXT)
            began = time.monotonic()
            if wrong := stages.run(argv, _NEXT):
                raise TargetError(f"{target.name}: {wrong}")
            if number:
                lengths.append((time.monotonic() - began) * 1000)

    _in_a_place(target, host, measure)
    return sorted(lengths)[len(lengths) // 2]


def bare_rate(run_ms: float, jobs: int) -> float:
    """Return runs a second of the same command without any verification."""
    return jobs * 1000 / run_ms if run_ms else 0.0


@contextlib.contextmanager
def _output() -> Generator[int, None, None]:
    # Memory and no pipe: an orphan that held a pipe would be waited for.
    output = os.memfd_create("leakcheck-output")
    try:
        yield output
    finally:
        os.close(output)


def _text(output: int) -> str:
    return os.pread(output, 1 << 16, 0).decode(errors="replace")


def _last_words(output: int) -> str:
    size = os.fstat(output).st_size
    text = os.pread(output, 400, max(0, size - 400)).decode(errors="replace")
    return " | ".join(line.strip() for line in text.splitlines()[-3:] if line.strip()) or "it printed nothing"
