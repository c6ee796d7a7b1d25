"""A campaign's result as typed data; its JSON is the contract ``leakcheck.campaign/1``."""

from typing import Any, Self

import msgspec

from leakcheck.errors import UsageError
from leakcheck.renamed import notify_renamed, with_new_names
from leakcheck.report import Command, Verdict
from leakcheck.trials.explanation import Explanation
from leakcheck.trials.outcome import Outcome
from leakcheck.trials.record import Record

SCHEMA = "leakcheck.campaign/1"
_OLD_OUTCOMES = {"reclaimed": "recovered", "wrong": "false-status"}
LEAKS_OF = "leaks of kind "
"""Prefix of the names of those criteria of ``stress`` that allow no leak of a kind."""


class Example(msgspec.Struct, frozen=True, kw_only=True):
    """One item of the residue: `endings` has how many trials of which ending left one like it.

    `evidence` is that of a report, such as ``args``, ``uid``, ``parent``, ``cgroup`` and ``inspect``.
    """

    label: str
    endings: dict[str, int] = {}
    evidence: dict[str, Any] = {}


class Residue(msgspec.Struct, frozen=True, kw_only=True):
    """Residue of trials, of one kind and class: `count` items in `trials` trials, by ending in `endings`.

    `labels` has one label of each shape (labels that differ only in numbers and random names), those of at most 16
    places, and `examples` one item for each label. A cgroup of several hierarchies counts once. `by` is what removed
    reclaimable residue: ``recovery``, ``next run``, or ``time`` if the target has no recovery and the residue only
    took longer. `stage` is what left it: the ``run``, the ``recovery``, the ``next run``, or the ``first run`` on a
    host, including its preparation.
    """

    kind: str
    class_: str = msgspec.field(name="class")
    labels: list[str]
    by: str = ""
    stage: str = ""
    count: int = 1
    trials: int = 1
    endings: dict[str, int] = {}
    examples: list[Example] = []


class Occurrence(msgspec.Struct, frozen=True, kw_only=True):
    """The trials of one `ending` that have a finding: `trials` of the `tried` ones, the worst with `outcome`.

    An ending is a fault plan without its instant, such as ``normal`` or ``forced:tree,sigterm``. `plan` is an example;
    for a timed kill, the kill at a crash point that shows the same every time, if one was found.
    `chance` is a sentence that says so if a replay need not show the finding.
    """

    ending: str
    outcome: Outcome
    trials: int
    tried: int
    plan: str
    replay: str
    chance: str = ""


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """Trials that left the same: how many, in which endings, an example, and how to reproduce it.

    `id` is the same in every campaign. `endings` are those that showed it, the surest replay first; `ending`, `plan`,
    `replay` and `chance` are of that one. `outcome` is the worst. ``stress`` has no plan; there, `specs` are the
    submissions that can have caused it, one per kind. `tried` is the number of trials that ended in one of these ways,
    with any result (0: not counted). `recovery` are the commands of an example's recovery, and how they ended.
    `explanation` is what explains it, if it was explained.
    """

    id: str
    ending: str
    outcome: Outcome
    leaks: list[Residue]
    trials: int
    replay: str
    detail: str = ""
    plan: str = ""
    tried: int = 0
    chance: str = ""
    specs: list[str] = []
    endings: list[Occurrence] = []
    recovery: list[Command] = []
    explanation: Explanation | None = None


class Criterion(msgspec.Struct, frozen=True, kw_only=True):
    """One criterion; `passed` is None if it only reports a number, or if there are too few trials."""

    name: str
    passed: bool | None = msgspec.field(name="pass")
    measured: Any
    limit: Any


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """The whole result.

    `unit` is the campaign's word for a trial. `first_run` is what the very first run left permanently; `untied` is what
    appeared on the machine during the campaign and nothing ties to a trial. `endings` has outcome counts by ending
    (``stress``: by expected status), `timing_ms` the median time of a trial's steps, `settle_ms` the median, 95th
    percentile and maximum until residue was gone, over the trials in which it went away. `error` is why no further
    trial could be made. A result is `complete` unless the campaign was interrupted or failed, or had not ended when
    the result was written. `records` are the submissions of ``stress``, `latency_ms` the median, 95th percentile and
    maximum of their times by status, `stalls` the stacks of what hung.
    `points` has, for ``crash`` and ``faults``, how many points were `seen` and `hit`, the plans that were
    `not_reached`, and `notes` of what the tracer could not see; after a sweep also the `map` of all points, of type
    `leakcheck.campaigns.visited.Visited`, and `lives`, `leakcheck.trials.spans.Spans` of a run without a fault. For
    ``state``, it has `notes` of what was not tried, and why.
    `exhaustion` has, for ``exhaust``, the levels at which the target ran against a limit (`hit`), its `statuses` there,
    `host_latency_ms`, by how much a process outside of the arenas woke up late, and `pressure_ms`, how long tasks of
    the machine waited (null: this kernel does not say).
    `report` is the report of the whole campaign if it ran on the live host, for ``leakcheck reap``; null otherwise.
    """

    campaign: str
    target: str
    version: str
    seed: int
    wanted: int
    trials: int
    verdict: Verdict
    outcomes: dict[str, int]
    criteria: list[Criterion]
    findings: list[Finding]
    endings: dict[str, dict[str, int]] = {}
    unit: str = "trials"
    first_run: list[Residue] = []
    untied: list[Residue] = []
    report: msgspec.Raw = msgspec.field(default_factory=lambda: msgspec.Raw(b"null"))
    coverage: dict[str, str] = {}
    run_ms: float = 0
    rate: float = 0
    bare_rate: float = 0
    timing_ms: dict[str, float] = {}
    settle_ms: dict[str, float] = {}
    records: list[Record] = []
    latency_ms: dict[str, dict[str, float]] = {}
    stalls: list[str] = []
    points: dict[str, Any] = {}
    exhaustion: dict[str, Any] = {}
    interrupted: bool = False
    error: str = ""
    complete: bool = True
    schema: str = SCHEMA

    @property
    def failed(self) -> list[str]:
        """The names of the criteria that were not met."""
        return [criterion.name for criterion in self.criteria if criterion.passed is False]

    @property
    def unfinished(self) -> str:
        """Why it is not complete; empty if it is."""
        if self.interrupted or self.error:
            return self.error or "interrupted"
        return "" if self.complete else "it had not ended when this result was written"

    @classmethod
    def from_json(cls, text: str | bytes, where: str = "campaign") -> Self:
        """Decode a result. Old field names are accepted, with a warning for each; `where` names the result in messages.

        It raises `UsageError` if it is not a campaign's result, or of another schema version.
        """
        try:
            found = msgspec.json.decode(text, type=dict[str, Any])
            if (schema := found.get("schema")) != SCHEMA:
                raise UsageError(f"{where}: schema is {schema!r}, not {SCHEMA}")
            return msgspec.convert(_with_new_words(found, where), type=cls)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, KeyError, TypeError, AttributeError) as error:
            raise UsageError(f"{where}: not a campaign's result: {error}") from error

    def to_json(self) -> str:
        """Encode as one line of JSON."""
        return msgspec.json.encode(self).decode()


def _with_new_words(found: dict[str, Any], where: str) -> dict[str, Any]:
    found = with_new_names(found, {"phases_ms": "timing_ms"}, where)
    found["outcomes"] = with_new_names(found["outcomes"], _OLD_OUTCOMES, f"{where}: outcomes")
    found["endings"] = {
        ending: with_new_names(counts, _OLD_OUTCOMES, f"{where}: endings")
        for ending, counts in found.get("endings", {}).items()
    }
    for finding in found["findings"]:
        if (new := _OLD_OUTCOMES.get(old := finding["outcome"])) is not None:
            notify_renamed(f"{where}: findings", old, new)
            finding["outcome"] = new
    found["records"] = [
        with_new_names(record, {"plan": "spec"}, f"{where}: records") for record in found.get("records", [])
    ]
    # The report is for `leakcheck reap`; its field names are its own.
    found["report"] = msgspec.Raw(msgspec.json.encode(found.get("report")))
    return found
