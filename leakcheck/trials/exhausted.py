"""A run while a resource of its arena is exhausted: what it reported, and whether it ran against the limit at all."""

import contextlib
import errno
import re
import signal
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from injectors import Checked, Evidence, Exhausts
from injectors.cgroup_limits import Memory
from injectors.exhaustion import ERRORS
from leakcheck.errors import LateError, TargetError
from leakcheck.submissions import Submission
from leakcheck.trials.kills import kills_itself
from leakcheck.trials.output import ends, last_words, memory
from leakcheck.trials.payload import COUNTED, ObservedRun, printed, shared_namespace

if TYPE_CHECKING:
    from leakcheck.trials.session import Session

# What a runtime prints that has given up: Rust, Python, Go, C++, glibc, the shell.
_CRASHED = re.compile(
    r"panicked at|Traceback \(most recent call last\)|^goroutine \d+ |terminate called|stack smashing detected"
    r"|Assertion .* failed|Segmentation fault|core dumped",
    re.MULTILINE,
)
# A process that gets one of these has a bug; the kernel or itself sent it (signal(7)).
_BUGS = {
    signal.SIGSEGV,
    signal.SIGBUS,
    signal.SIGABRT,
    signal.SIGILL,
    signal.SIGFPE,
    signal.SIGSYS,
    signal.SIGTRAP,
}
__all__ = ["Exhausted", "heard", "lift", "run_exhausted", "status_text"]

# Of a status of wait(2): there is a core (core(5)).
_DUMPED = 0x80
_REASON = re.compile(r"^(?:runtime|panic|fatal error): |.*panicked at", re.MULTILINE)
_LONGEST = 160
_MOST_CALLS = 4
_UNSURE = "its command was killed, by the kernel for lack of memory or by the target's own SIGKILL: nothing tells which"
_PRESSURE = {"memory": "memory", "cpu": "cpu", "disk": "io"}


class Exhausted(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of a run under an exhausted resource.

    `proof` is what proves that it ran against the limit, empty if nothing does. `status` is what the target reported,
    empty if nothing; `ran` whether the payload was executed, `crash` how a process of the target's crashed, `killed`
    whether the kernel killed one for lack of memory, `unsure` why that is not known. `heard` are the adapter's words,
    for this resource or another, that stand in an error; None if there was none. `met` are all resources for lack of
    which a call failed, `calls` the first calls that failed for lack of this one, `words` the last of the target's
    output. `pressure_us` is how long tasks of the machine waited for it meanwhile, in microseconds; None if this kernel
    does not say. `refused` is why it could not be exhausted here: then all else is unknown.
    """

    proof: str = ""
    status: str = ""
    ran: bool = False
    crash: str = ""
    killed: bool = False
    unsure: str = ""
    heard: list[str] | None = None
    met: list[str] = []
    calls: list[str] = []
    words: str = ""
    pressure_us: int | None = None
    refused: str = ""

    @property
    def blames(self) -> bool:
        """Whether the status blames a program that never ran."""
        return bool(self.proof) and not self.ran and self.status not in ("", "OK", "IE")


def run_exhausted(
    session: "Session", injector: Checked, inner: Exhausts, argv: Sequence[str], submission: Submission
) -> tuple[Evidence, str]:
    """Run `submission` under an exhausted resource; return whether it ran against the limit, and what status is wrong.

    What is known of it is then in `session.exhausted`. A run that does not end raises `LateError`.
    """
    session.succeeded, session.exhausted, session.limit = False, None, inner
    resource = injector.plan.kind
    with memory() as output, contextlib.ExitStack() as stack:
        process = session.start(argv, output, stage="launch", payload=submission.program)
        run = ObservedRun(session, process, output)
        stack.callback(lift, session)
        before = _pressure(resource)
        evidence = injector.apply(run)
        status, complaint, code = "", "", 0
        try:
            code = session.wait(process, submission.wall, argv[0])
            status = session.target.status(code, session.box, session.host.read).status
        except LateError:
            raise
        except TargetError as error:
            complaint = str(error)
        session.last_words = last_words(output)
        room = run.room
        calls = list(_failed(session.reports(), inner.limit.errors))
        # Of a limit that the run has changed nothing is proof.
        held = evidence.fired and inner.limit.holds(room)
        proof = (held and (inner.limit.proof(room) or (calls[:1] or [""])[0])) or ""
        if held and not proof and status != submission.expect:
            proof = f"the run ended with {status or 'no status'} while the limit was in force"
        killed, unsure = _by_kernel(session, inner, code, process.inside, proven=bool(proof))
        if not inner.limit.lasts:
            lift(session)
        finished = complaint or _finish(session)
        after = _pressure(resource)
        ran = any("payload" in line for line in session.reports().get("launch", []))
        # A program that ran may fail in its own words.
        fails = status in ("", "IE") or not ran
        said = "\n".join([ends(output), finished, status_text(session)])
        session.exhausted = Exhausted(
            proof=str(proof),
            status=status,
            ran=ran,
            crash=_crash(code, said, session.reports(), killed=killed or bool(unsure)),
            killed=killed,
            unsure=unsure,
            heard=heard(session, said) if proof and fails else None,
            met=[name for name, errors in ERRORS.items() if any(_failed(session.reports(), errors))],
            calls=calls[:_MOST_CALLS],
            words=session.last_words,
            pressure_us=None if before is None or after is None else after - before,
        )
        wrong = ""
        if status == "OK" and (lacks := _lacks(session, inner, output, ran=ran)):
            wrong = f"status OK of a run whose payload {lacks}: {session.last_words}"
        session.succeeded = status == submission.expect and bool(proof) and not finished
        if inner.under:
            # The recovery comes before the release.
            stack.pop_all()
    return msgspec.structs.replace(evidence, fired=bool(proof)), wrong


def _lacks(session: "Session", inner: Exhausts, output: int, *, ran: bool) -> str:
    """Return what a run that is to be OK lacks; empty if nothing."""
    if not ran:
        return "did not run"
    if (times := printed(session, output).count(COUNTED)) != 1:
        return f"printed all {times} times" if times else "did not print all"
    lines = session.reports().get("launch", [])
    payload = next((line["payload"] for line in lines if "payload" in line), None)
    if any(line.get("ended") == payload and line["status"] for line in lines):
        return "ended otherwise"
    return shared_namespace(session, inner.namespaces)


def lift(session: "Session") -> bool:
    """Release what is exhausted; return whether something was."""
    limit, session.limit = session.limit, None
    if limit is not None:
        limit.limit.lift(session.host.room())
    return limit is not None


def _finish(session: "Session") -> str:
    try:
        session.finish()
    except LateError:
        raise
    except TargetError as error:
        return str(error)
    return ""


def _by_kernel(session: "Session", inner: Exhausts, code: int, inside: int, *, proven: bool) -> tuple[bool, str]:
    """Return whether the kernel killed a process for lack of memory, and why that is not known; empty if it is."""
    if not isinstance(inner.limit, Memory) or inner.limit.killed:
        return isinstance(inner.limit, Memory), ""
    # The run may have removed the cgroup that counts.
    if not proven or code != -signal.SIGKILL:
        return False, ""
    itself = kills_itself(session.reports().get("launch", []), inside)
    return itself is False, _UNSURE if itself is None else ""


def _failed(reports: Mapping[str, Sequence[Mapping[str, Any]]], errors: Sequence[str]) -> Iterator[str]:
    """Yield the calls of the target that failed with one of the `errors`."""
    for lines in reports.values():
        begun = {line["number"]: line for line in lines if "call" in line}
        for line in lines:
            name = errno.errorcode.get(-line["value"], "") if line.get("value", 0) < 0 and "returned" in line else ""
            point = begun.get(line.get("returned", -1))
            if point is not None and name in errors and (name != "EAGAIN" or point["operation"] == "clone"):
                class_ = f"({point['class']})" if point["class"] else ""
                yield f"{point['role']}/{point['operation']}{class_}#{point['ordinal']}: {name}"


def _crash(code: int, said: str, reports: Mapping[str, Sequence[Mapping[str, Any]]], *, killed: bool) -> str:
    lines = reports.get("launch", [])
    payload = next((line["payload"] for line in lines if "payload" in line), None)
    for line in lines:
        if "ended" in line and line["ended"] != payload and (number := line["status"] & 0x7F) in _BUGS:
            core = f", and the kernel dumped its core by {_core_pattern()}" if line["status"] & _DUMPED else ""
            return f"process {line['ended']} was ended by {signal.Signals(number).name}{core}"
    if code < 0 and not (killed and -code == signal.SIGKILL):
        return f"it was ended by {signal.Signals(-code).name}"
    if (found := _CRASHED.search(said)) is None:
        return ""
    # The reason stands before the stacks.
    why = _REASON.search(said) or found
    return f"it printed {said[why.start() :].splitlines()[0][:_LONGEST]!r}"


def _core_pattern() -> str:
    try:
        return Path("/proc/sys/kernel/core_pattern").read_text().strip()
    except OSError:
        return "core_pattern"


def heard(session: "Session", said: str) -> list[str]:
    """Return the adapter's words for a lack, of any resource, that stand in what a run said."""
    words = sorted({word for some in session.target.adapter.exhaustion.words.values() for word in some})
    return [word for word in words if word.lower() in said.lower()]


def status_text(session: "Session") -> str:
    """Return what is in the target's status file; empty if it has none."""
    path = session.target.status_file(session.box)
    try:
        return session.host.read(path).decode(errors="replace") if path is not None else ""
    except OSError:
        return ""


def _pressure(resource: str) -> int | None:
    """Return for how many microseconds some task waited for a resource so far (Documentation/accounting/psi.rst)."""
    if resource not in _PRESSURE:
        return None
    try:
        words = Path(f"/proc/pressure/{_PRESSURE[resource]}").read_text().split()
    except OSError:
        return None
    return next((int(word.removeprefix("total=")) for word in words if word.startswith("total=")), None)
