"""Findings with their explanations: a few lines, the whole as text, or as a bug report in Markdown.

Everything that a target names is hostile: it stands in code only, where Markdown and HTML mean nothing.
"""

import platform
import re
import shlex
from collections.abc import Iterator, Sequence

from rich.text import Text

from leakcheck.campaigns.result import Finding, Result
from leakcheck.printable import printable
from leakcheck.render import line
from leakcheck.report import Command
from leakcheck.trials.explanation import Explanation, Frame, Life, Step

__all__ = ["functions", "markdown", "said", "short", "text"]

# Functions that only pass a call on to the kernel, by which no cause is known.
_PASSING = re.compile(
    r"<*(?:runtime[./]|syscall\.|internal/|os\.|io/|golang\.org/x/sys/|core::|std::|alloc::|rustix::|nix::|libc::|__)"
)
_LIBRARIES = re.compile(r"/(libc|ld-linux[^/]*|ld|libpthread|linux-vdso)[.-][^/]*$")
_NAMED = 3
_LIVES = 8
_MISSED = "the fault did not happen, so that nothing was tested"
_MEANS = {
    "leaked": "Nothing that the sandbox offers removes it",
    "silent": "The clean-up reported success, so nobody looks for what it left",
    "wedged": "The run or its clean-up failed or hung, or the next run in that place did: somebody has to step in",
    "false-status": "The status of the run is wrong, so its caller takes it for something that it was not",
}


def short(explanation: Explanation) -> Iterator[str]:
    """Yield one to three lines: the life of the first thing left, the functions at the fault, what the recovery did."""
    if explanation.lives:
        life = explanation.lives[0]
        more = len(explanation.lives) - 1
        yield f"{life.kind}: {life}{f' ({more} more: see --explain)' if more else ''}"
    if named := functions(explanation.stack):
        yield f"in {', called by '.join(named)}"
    yield from said(explanation)[:1]


def functions(stack: Sequence[Frame]) -> list[str]:
    """Return the innermost functions of the program's own."""
    own = [
        one.function
        for one in stack
        if one.function and not _PASSING.match(one.function) and not _LIBRARIES.search(one.program)
    ]
    return own[:_NAMED]


def said(explanation: Explanation) -> list[str]:
    """Return how each command of the recovery ended, what it printed, and what it did about what is left."""
    return [_ended(command, explanation.lives) for command in explanation.recovery]


def _ended(command: Command, lives: Sequence[Life]) -> str:
    how = "did not end" if command.exit is None else f"exit {command.exit}"
    output = f"said: {command.output}" if command.output else "printed nothing"
    tried = [call for life in lives for call in life.tried]
    called = f"called {'; '.join(tried[:_NAMED])}" if tried else "made no recorded call about what is left"
    return f"clean-up {shlex.join(command.argv)}: {how}, {output}, {called}"


def this_kernel() -> str:
    """Return the name and release of this machine's kernel."""
    return f"{platform.system()} {platform.release()}"


def text(result: Result, kernel: str = "") -> Iterator[Text]:
    """Yield the lines of all findings with their explanations; `kernel` is where they were found, by default here."""
    yield line("leakcheck: ", f"{result.verdict}, {_title(result)}")
    for finding in result.findings:
        for number, (heading, body) in enumerate(_parts(result, finding, kernel)):
            yield line(("  " if number else "", ""), (heading, "bold"))
            for one in body:
                yield line("    ", one)
    for note in [result.error] if result.error else []:
        yield line("  ", ("stopped ", "yellow"), note)
    if not result.findings:
        yield line("  ", "nothing is left, so there is nothing to explain")


def markdown(result: Result, kernel: str = "") -> str:
    """Return a bug report for each finding; `kernel` is where they were found, by default here."""
    return "\n\n".join(_report(result, finding, kernel) for finding in result.findings) or (
        f"{_span(_title(result))}: nothing is left, so there is nothing to report."
    )


def _report(result: Result, finding: Finding, kernel: str) -> str:
    kinds = ", ".join(sorted({one.kind for one in finding.leaks if one.class_ not in ("reclaimable", "bounded")}))
    lines = [f"# {_span(result.target)}: {kinds or finding.outcome} left ({finding.outcome})"]
    for number, (heading, body) in enumerate(_parts(result, finding, kernel)):
        if number:
            lines += ["", f"## {heading}"]
        lines += ["", _block(body)] if heading not in _PROSE else ["", *body]
    return "\n".join(lines)


_PROSE = ("Why it matters",)


def _parts(result: Result, finding: Finding, kernel: str) -> Iterator[tuple[str, list[str]]]:
    """Yield the parts of a report: heading and lines."""
    yield f"finding {finding.id}: {finding.outcome}", [f"{_title(result)}, on {kernel or this_kernel()}"]
    stays = [one for one in finding.leaks if one.class_ not in ("reclaimable", "bounded")] or finding.leaks
    left = [f"{label} ({one.class_})" for one in stays for label in one.labels[:_LIVES]]
    reached = "the outcome is about the status, or the next run" if finding.outcome != "not-reached" else _MISSED
    yield "What is left", left or [f"nothing; {reached}"]
    yield "How to reproduce it", [finding.replay, *filter(None, [finding.chance])]
    if (told := finding.explanation) is not None:
        yield from _explained(told)
    if finding.detail:
        yield "What was reported", [finding.detail]
    if finding.outcome in _MEANS:
        more = ": each such instant leaves more of it" if any(one.class_ == "growing" for one in stays) else ""
        yield "Why it matters", [f"{_MEANS[finding.outcome]}{more}."]


def _explained(told: Explanation) -> Iterator[tuple[str, list[str]]]:
    if told.at is not None:
        instant = f"{_call(told.at)}    <- {told.plan}"
        after = [f"{_call(told.following)}    <- what follows without the fault"] if told.following else []
        yield "The last calls of the process at the fault", [*map(_call, told.last), instant, *after]
    if told.lives:
        alike: dict[str, list[str]] = {}
        for one in told.lives:
            alike.setdefault(str(one), []).append(one.label)
        more = len(alike) - _LIVES
        rest = [f"and {more} more: see --json"] if more > 0 else []
        shown = [f"{'; '.join(labels)}: {how}" for how, labels in list(alike.items())[:_LIVES]]
        yield "The life of what is left", shown + rest
    if told.stack:
        yield "The call stack at the fault, innermost first", [_frame(one) for one in told.stack]
    if told.recovery:
        yield "What the clean-up did", said(told)
    if told.notes:
        yield "What is not known", told.notes


def _title(result: Result) -> str:
    return f"{result.target} ({result.version})" if result.version else result.target


def _call(step: Step) -> str:
    return f"{step.call} = {step.result}" if step.result else f"{step.call} does not return"


def _frame(one: Frame) -> str:
    place = f"{one.program or 'unknown'}+{one.address:#x}"
    return f"{one.function} ({place})" if one.function else place


def _span(content: str) -> str:
    """Return it as code within a line: its fence is longer than any that it contains."""
    content = printable(content)
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", content)), default=0))
    return f"{fence} {content} {fence}" if len(fence) > 1 else f"{fence}{content}{fence}"


def _block(lines: Sequence[str]) -> str:
    """Return lines of code: their fence is longer than any that they contain."""
    shown = [printable(one) for one in lines]
    fence = "`" * max(3, 1 + max((len(run) for one in shown for run in re.findall("`+", one)), default=0))
    return "\n".join([f"{fence}text", *shown, fence])
