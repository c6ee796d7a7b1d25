"""The traced commands of a trial, and what the tracer reported of them."""

import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec

from leakcheck.arena import Trace

Request = Callable[[str, int, Sequence[str]], Mapping[str, Any] | None]
"""Returns how a command is traced, by its stage, its number in it, and the payload's arguments; None: not at all."""

# More of a report is not read: a run of 50,000 points has less.
_MOST = 1 << 25
_PART = 1 << 20


class Tracing:
    """Traces the first pass of each stage as `request` says.

    Each trial's commands and their tracer have one CPU: a wake-up of another one takes five times as long.
    """

    def __init__(self, request: Request, number: int) -> None:
        self._request = request
        cpus = sorted(os.sched_getaffinity(0))
        self._cpu = cpus[number % len(cpus)]
        self._passes: Counter[str] = Counter()
        self._logs: dict[str, list[int]] = {}
        self._releases: list[tuple[int, int]] = []

    def of(self, stage: str, number: int, payload: Sequence[str]) -> Trace | None:
        """Return how the `number`-th command of `stage` is traced; None if it is not."""
        self._passes[stage] += number == 0
        request = self._request(stage, number, payload) if self._passes[stage] == 1 else None
        if request is None:
            return None
        log = os.memfd_create("leakcheck-trace")
        self._logs.setdefault(stage, []).append(log)
        if request.get("hold"):
            self._releases.append(os.pipe2(os.O_CLOEXEC))
        release = self._releases[-1][0] if request.get("hold") else None
        return Trace({**request, "cpu": self._cpu}, log, release)

    def held(self, instant: str) -> int:
        """Return the process that waits, or has waited, at an `instant` of a request; 0 if there is none."""
        # As the tracer spells it; to read each line would take the time of a busy machine.
        said = f'"held":"{instant}"'.encode()
        lines = (line for log in self.logs() for line in _text(log).splitlines(keepends=True) if said in line)
        return next((int(_line(line)["pid"]) for line in lines if line.endswith(b"\n")), 0)

    def release(self) -> None:
        """Let the command go on that waits."""
        for _, end in self._releases:
            os.write(end, b"\0")

    def reports(self, stage: str) -> list[dict[str, Any]]:
        """Return what the tracer reported of the commands of `stage` so far, in order."""
        return [line for log in self._logs.get(stage, []) for line in self.lines(log)]

    def all_reports(self) -> dict[str, list[dict[str, Any]]]:
        """Return the reports of all stages."""
        return {stage: self.reports(stage) for stage in self._logs}

    def lines(self, log: int) -> list[dict[str, Any]]:
        """Return the lines of one report."""
        # The last line may not be whole yet.
        lines = [line for line in _text(log).splitlines(keepends=True) if line.endswith(b"\n")]
        return list(map(_line, lines))

    def fired(self, stage: str | None = None) -> str:
        """Return the phase in which a fault happened, in any stage or in `stage`; empty if it did not."""
        stages = self._logs if stage is None else [stage]
        return next((line["fired"] for one in stages for line in self.reports(one) if "fired" in line), "")

    def hits(self, stage: str) -> int:
        """Return how many faults of `stage` happened, a kill among them."""
        lines = self.reports(stage)
        return len({line["fault"] for line in lines if "injected" in line}) + any("fired" in line for line in lines)

    def notes(self) -> list[str]:
        """Return what the tracer could not see, by stage."""
        return [f"{stage}: {line['note']}" for stage in self._logs for line in self.reports(stage) if "note" in line]

    def failing(self) -> set[str]:
        """Return the stages that use ptrace themselves, which fails while they are traced by ptrace."""
        return {note.partition(":")[0] for note in self.notes() if "calls ptrace itself" in note}

    def logs(self, stage: str | None = None) -> list[int]:
        """Return the descriptors of all reports, or of those of `stage`; the bytes they name are behind the text."""
        return [log for name, logs in self._logs.items() if stage in (None, name) for log in logs]

    def close(self) -> None:
        """Forget the reports."""
        for log in self.logs():
            os.close(log)
        self._logs.clear()
        for one in (end for ends in self._releases for end in ends):
            os.close(one)
        self._releases.clear()


def _line(line: bytes) -> dict[str, Any]:
    return msgspec.json.decode(line, type=dict[str, Any])


def _text(log: int) -> bytes:
    parts = []
    for at in range(0, _MOST, _PART):
        text, end, _ = (part := os.pread(log, _PART, at)).partition(b"\0")
        parts.append(text)
        if end or len(part) < _PART:
            break
    return b"".join(parts)
