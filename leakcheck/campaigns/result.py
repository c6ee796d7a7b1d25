"""What a campaign found, as typed data; its JSON is the contract ``leakcheck.campaign/1``."""

from typing import Any, Literal, TypeAlias

import msgspec

from leakcheck.report import Verdict

__all__ = ["SCHEMA", "Campaign", "Criterion", "Finding", "Outcome", "Residue"]

SCHEMA = "leakcheck.campaign/1"

Outcome: TypeAlias = Literal["clean", "reclaimed", "bounded", "leaked", "wedged", "wrong", "unknown"]
"""Of one trial: nothing left; all that was left its own clean-up or next run took away; what stays is never more than
one run leaves; something stays; the recovery or the next submission in that box failed; the target said another status
than it must; not all could be looked at."""


class Residue(msgspec.Struct, frozen=True, kw_only=True):
    """What trials left, of one kind and class; `count` is how many in how many `trials`.

    `labels` has the first of each shape, numbers apart, eight at most. `by` says what took away that which is
    reclaimable: ``recovery``, ``next run``, or ``time`` where the target has no recovery and it just took longer.
    """

    kind: str
    class_: str = msgspec.field(name="class")
    labels: list[str]
    by: str = ""
    count: int = 1
    trials: int = 1


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """Trials of one ending that left the same kinds of thing: how many, one of them, and how to see it again."""

    id: str
    ending: str
    plan: str
    outcome: Outcome
    leaks: list[Residue]
    trials: int
    replay: str
    detail: str = ""


class Criterion(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that was asked; `passed` is None when the trials do not tell."""

    name: str
    passed: bool | None = msgspec.field(name="pass")
    measured: Any
    limit: Any


class Campaign(msgspec.Struct, frozen=True, kw_only=True):
    """The whole result.

    `first_run` is what the very first run left for good, `untied` what came up meanwhile on the machine and nothing
    ties to a trial. `endings` gives outcome counts by ending, `phases_ms` the median time of a trial's phases,
    `settle_ms` the median, 95th percentile and maximum until residue was gone, of those trials in which it went.
    `error` is why no further trial could be made. `report` is that of the whole campaign where it ran on the host,
    which ``leakcheck reap`` reads; null otherwise.
    """

    campaign: str
    target: str
    version: str
    seed: int
    wanted: int
    trials: int
    verdict: Verdict
    outcomes: dict[str, int]
    endings: dict[str, dict[str, int]]
    criteria: list[Criterion]
    findings: list[Finding]
    first_run: list[Residue] = []
    untied: list[Residue] = []
    report: msgspec.Raw = msgspec.Raw(b"null")
    coverage: dict[str, str] = {}
    run_ms: float = 0
    rate: float = 0
    bare_rate: float = 0
    phases_ms: dict[str, float] = {}
    settle_ms: dict[str, float] = {}
    interrupted: bool = False
    error: str = ""
    schema: str = SCHEMA

    def to_json(self) -> str:
        """Encode as one line of JSON."""
        return msgspec.json.encode(self).decode()
