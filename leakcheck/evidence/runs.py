"""A run in a store, as typed data."""

from typing import Any, Literal

import msgspec

from leakcheck.campaigns import CAMPAIGNS, Result
from leakcheck.report import Verdict
from leakcheck.trials.record import Record
from leakcheck.trials.trial import Trial

State = Literal["running", "interrupted", "ended"]
VERIFY = "verify"
"""The command of a run that consists of others."""


class Run(msgspec.Struct, frozen=True, kw_only=True):
    """One campaign for one target, or one ``verify``, whose campaigns have it as `parent` and a name as its `part`.

    `uid` is the same in each store that it is copied to. `tested` is what was tested, `machine` where. `began` and
    `ended` are seconds since 1970, `took` the seconds of its trials, of which `trials` were made and `wanted` planned.
    It is ``running`` unless it has a result; one whose process is gone was cut off.
    """

    id: int
    uid: str
    parent: int | None
    part: str
    command: str
    target: str
    version: str
    options: dict[str, Any]
    tested: dict[str, Any]
    machine: dict[str, Any]
    began: float
    ended: float | None = None
    took: float = 0
    trials: int = 0
    wanted: int | None = None
    state: State = "running"
    verdict: Verdict | None = None


def kind_of(command: str) -> type[Any]:
    """Return the type of the trials of a campaign."""
    return Record if CAMPAIGNS[command].unit == "submissions" else Trial


def with_records(result: Result, trials: list[Any]) -> Result:
    """Return `result` with the records of its submissions, which a store keeps once only."""
    submitted = CAMPAIGNS[result.campaign].unit == "submissions"
    return msgspec.structs.replace(result, records=trials) if submitted else result
