"""What a trial left, with what is the same of it in every trial."""

import re
from collections.abc import Iterable
from typing import Any

import msgspec

from leakcheck.report import Leak
from leakcheck.submissions import Submission
from leakcheck.trials.similarity import place_of

# Characters of a hostile process's arguments.
_ARGUMENTS = 32_768


class Remnant(msgspec.Struct, frozen=True):
    """One item that a trial left in a `stage`, with the class that later stages gave it; `by` is what removed it.

    `place` is what it is in every trial: its location, or the program of a process (``payload`` for the submission's);
    `inner` is whether it only exists below something else that was left, such as a process's child. `evidence` is
    that of the report.
    """

    kind: str
    class_: str
    label: str
    by: str = ""
    stage: str = ""
    place: str = ""
    inner: bool = False
    evidence: msgspec.Raw = msgspec.Raw(b"{}")

    @classmethod
    def of(cls, leak: Leak, class_: str = "", by: str = "", stage: str = "", **more: Any) -> "Remnant":
        """Return the remnant of a report's leak."""
        fields = {"place": place_of(leak), "evidence": evidence_of(leak)} | more
        return cls(leak.kind, class_ or leak.class_, leak.label, by, stage, **fields)


def evidence_of(leak: Leak) -> msgspec.Raw:
    """Return its evidence as JSON, in which only very long arguments of a process are cut."""
    evidence = leak.evidence
    if isinstance(args := evidence.get("args"), list) and len(str(evidence.get("argv"))) > _ARGUMENTS:
        size, kept = 0, []
        for arg in args:
            if (size := size + len(arg)) > _ARGUMENTS:
                break
            kept.append(arg)
        cut = {"args": kept, "args_cut": len(args) - len(kept), "argv": " ".join(kept)}
        evidence = evidence | cut
    return msgspec.Raw(msgspec.json.encode(evidence))


def program_of(leak: Leak, submissions: Iterable[Submission]) -> str:
    """Return what a process is in every trial: ``payload``, or the name of its program."""
    args = leak.evidence.get("args")
    if leak.class_ == "respawning":
        # An observation reports any such chain as one.
        return leak.class_
    if isinstance(args, list) and args:
        for program in (list(one.program) for one in submissions):
            # The submissions are scripts for a shell, which may have ended before what it started.
            if args == program or (len(args) > 1 and " ".join(args) in program[-1]):
                return "payload"
    state = leak.evidence.get("resource", {}).get("state")
    # Some programs write into their name how far they are: runc:[2:INIT].
    name = re.split(r"[^\w.-]", str(leak.evidence.get("resource", {}).get("comm", "")).strip("()"))[0]
    return f"zombie {name}" if state == "Z" else name


def runs(leak: Leak) -> bool:
    """Return whether it is a process that still runs, not a zombie."""
    return leak.kind == "process" and leak.evidence.get("resource", {}).get("state") not in ("Z", "X")
