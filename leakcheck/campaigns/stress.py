"""The campaign ``stress``: many submissions in parallel; is every status right, and does nothing stay?"""

import itertools
import statistics
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

import msgspec

from leakcheck import _native
from leakcheck.campaigns.campaign import Campaign, Check, Made
from leakcheck.campaigns.criteria import UNSEEN, at_most, leak_rate, no_slower, stated
from leakcheck.campaigns.findings import clusters, residue, worst_first
from leakcheck.campaigns.result import LEAKS_OF, Finding, Residue
from leakcheck.campaigns.stress_findings import left_findings, pace, samples, status_findings
from leakcheck.campaigns.stress_options import StressOptions, submissions
from leakcheck.campaigns.stress_rounds import Rounds, left_so_far, seen_so_far
from leakcheck.stats.bounds import spread
from leakcheck.stats.degradation import LIMIT, Sample
from leakcheck.submissions import Submission
from leakcheck.targets import Target
from leakcheck.trials.attribution import SharedRemnant
from leakcheck.trials.case import Case
from leakcheck.trials.culprits import isolate
from leakcheck.trials.executor import Ui
from leakcheck.trials.record import Record, with_left
from leakcheck.trials.remnant import Remnant
from leakcheck.trials.runner import Stop
from leakcheck.trials.shared import Shared
from leakcheck.trials.similarity import place_of

_INTERNAL = 0.0001
"""R14 of the requirements: the rate of internal errors."""


_Options = TypeVar("_Options", bound=StressOptions)


class _Facts(msgspec.Struct):
    """The submissions; and, after the last one, what is left and how throughput developed.

    `before` is what was seen before the campaign was cut off.
    """

    submissions: Iterator[Submission]
    before: Rounds = msgspec.field(default_factory=Rounds)
    left: list[SharedRemnant] = []
    samples: list[Sample] = []
    settled_ms: dict[int, float] = {}


class Stress(Campaign[_Options, Record]):
    """Puts a target under load."""

    name = "stress"
    question = "Is every status right under load, and does nothing stay?"
    unit = "submissions"
    options: type[_Options] = StressOptions  # type: ignore[assignment]

    def prepare(self, target: Target, options: _Options, ui: Ui, stop: Stop) -> _Facts:
        """Draw the submissions, and compile their suites before the load starts."""
        del ui, stop
        return _Facts(submissions(target, options))

    def executor(self, target: Target, options: _Options, ui: Ui, stop: Stop) -> Shared:
        """Return their executor, which runs many in one arena."""
        return self.shared(target, options, ui, stop, duration=options.duration, interval=0)

    def shared(
        self, target: Target, options: _Options, ui: Ui, stop: Stop, *, duration: float | None, interval: float
    ) -> Shared:
        """Return the executor, which ends after `duration` seconds and starts a submission every `interval` seconds."""
        return Shared(
            target,
            ui,
            stop,
            concurrency=options.concurrency,
            settle=options.settle,
            queue_size=options.queue,
            duration=duration,
            interval=interval,
            observe=options.observe,
        )

    def slowest(self) -> float:
        """Return how much slower late may be than early."""
        return LIMIT

    def paced(self) -> bool:
        """Return whether as many submissions a minute as possible are wanted."""
        return True

    def cases(self, target: Target, options: _Options, facts: _Facts) -> Iterator[Case]:
        """Yield the submissions, without a fault."""
        del target
        return map(Case, itertools.islice(facts.submissions, options.wanted))

    def kept(self, made: Made[_Options, Record]) -> bytes:
        """Return what was seen of the arenas: they are gone when the campaign goes on."""
        return msgspec.json.encode(seen_so_far(made))

    def go_on(self, made: Made[_Options, Record], kept: bytes) -> None:
        """Add what was seen before, and number the rounds from there on."""
        before = made.facts.before = msgspec.json.decode(kept, type=Rounds)
        executor = made.executor
        executor.rounds_before, executor.deepest = before.begun, before.deepest
        executor.cleanup_failures += before.cleanup_failures
        executor.sick += before.sick
        executor.stalls += before.stalls

    def still_valid(self, made: Made[_Options, Record], trials: Sequence[Record]) -> list[Record]:
        """Return the submissions after which their arena was observed, and those with a wrong status."""
        observed = made.facts.before.observed
        valid = [one for one in trials if not (made.options.observe and one.right) or one.round in observed]
        if made.options.observe and (unseen := sum(one.round not in observed for one in valid)):
            # Their statuses are not forgotten, so that they are not made again.
            made.facts.before.gaps["submissions"] = (
                f"what {unseen} of them with a wrong status left: the campaign was cut off before their round was over"
            )
        made.executor.done = {one.id for one in valid}
        # Their clock may be that of another boot.
        shift = time.monotonic() - max((one.ended_s for one in valid), default=0.0)
        return [msgspec.structs.replace(one, ended_s=one.ended_s + shift) for one in valid]

    def finish(self, made: Made[_Options, Record], ui: Ui) -> None:
        """Attribute the residue, and record it with the submissions."""
        made.facts.left = left_so_far(made)
        isolate(
            made.target,
            made.facts.left,
            {record.id: record.spec for record in made.trials},
            frozenset(record.id for record in made.trials if record.late),
            settle=made.options.settle,
            log=ui.log,
            stop=made.executor.over,
        )
        _record(made)

    def so_far(self, made: Made[_Options, Record]) -> Made[_Options, Record]:
        """Record the residue of the rounds so far, attributed as far as evidence ties it."""
        made.facts = _Facts(made.facts.submissions, made.facts.before, left_so_far(made))
        _record(made)
        return made

    def criteria(self, options: _Options) -> Sequence[Check]:
        """Return the criteria that the submissions must meet."""
        about_left: list[Check] = []
        counted: list[Check] = []
        if options.observe:
            about_left = [
                *(at_most(f"{LEAKS_OF}{kind}", _staying(kind), 0, "leaked") for kind in _native.KINDS),
                at_most("things damaged that were there before", _damaged, 0, "leaked"),
                at_most(f"kinds {UNSEEN}", lambda made: len(made.coverage), 0, "unknown"),
            ]
            counted = [
                stated("submissions that left something", lambda made: _leaking(made)[0]),
                stated("at most so many others, of those that may have", lambda made: _leaking(made)[1]),
                leak_rate(lambda made: min(sum(_leaking(made)), len(made.trials))),
                stated("recovered residue", lambda made: sum(one.gone is not None for one in made.facts.left)),
                stated("bounded residue", lambda made: sum(one.bounded for one in made.facts.left)),
            ]
        return [
            *about_left,
            at_most("boxes out of service", lambda made: len(made.executor.sick), 0),
            at_most("clean-up failures", lambda made: len(made.executor.cleanup_failures), 0),
            at_most("wrong statuses", lambda made: sum(not record.right for record in made.trials), 0),
            at_most("rate of internal errors", _internal, _INTERNAL),
            at_most("queue depth", lambda made: made.executor.deepest, options.queue or 2 * options.concurrency),
            at_most("deadlocks and hangs", lambda made: len(made.executor.stalls), 0, "unknown"),
            *([pace] if self.paced() else []),
            no_slower(
                lambda made: made.facts.samples,
                lambda made: made.executor.host_load,
                options.seed,
                self.slowest(),
                scheduled=not self.paced(),
            ),
            *counted,
        ]

    def findings(self, made: Made[_Options, Record]) -> list[Finding]:
        """Return the residue, grouped by its possible causes, and the wrong statuses."""
        left = left_findings(made.target, made.options, made.trials, made.facts.left)
        return sorted([*left, *status_findings(made.target, made.options, made.trials)], key=worst_first)

    def details(self, made: Made[_Options, Record]) -> dict[str, Any]:
        """Return the records and times."""
        records, executor = made.trials, made.executor
        by_status = dict(sorted(clusters(records, lambda record: record.expect).items()))
        seen = seen_so_far(made)
        untied = Counter(seen.untied)
        times = [ms for arena in executor.arenas for ms in arena.observation_ms]
        return {
            "endings": {status: dict(Counter(one.outcome for one in alike)) for status, alike in by_status.items()},
            "first_run": residue([[Remnant.of(leak) for leak in seen.first_run]]),
            "untied": [
                Residue(kind=kind, class_="unattributed", labels=[kind], count=count) for kind, count in untied.items()
            ],
            "run_ms": round(statistics.median(record.wall_ms for record in records), 3),
            "timing_ms": {"look": round(statistics.median(times), 3) if times else 0.0},
            "settle_ms": spread(sorted(made.facts.settled_ms.values())),
            "latency_ms": {status: spread(sorted(one.wall_ms for one in alike)) for status, alike in by_status.items()},
            "records": [] if self.streams else records,
            "stalls": executor.stalls,
        }


def _record(made: Made[_Options, Record]) -> None:
    """Complete the records and facts with what is left."""
    facts = made.facts
    facts.samples = samples(made.trials)
    seen = seen_so_far(made)
    facts.settled_ms = seen.settled_ms
    made.trials = with_left(made.trials, facts.left, facts.settled_ms)
    made.coverage = seen.gaps


def _staying(kind: str) -> Any:
    return lambda made: sum(one.stays and one.leak.kind == kind for one in made.facts.left)


def _damaged(made: Made[_Options, Record]) -> int:
    found = {(one.leak.kind, place_of(one.leak)) for one in made.facts.left if one.damaged}
    first = [leak for leak in seen_so_far(made).first_run if leak.class_ == "damaged"]
    return len(found | {(leak.kind, place_of(leak)) for leak in first})


def _internal(made: Made[_Options, Record]) -> float:
    failed = sum(record.status == "IE" and record.expect != "IE" for record in made.trials)
    return round(failed / len(made.trials), 6)


def _leaking(made: Made[_Options, Record]) -> tuple[int, int]:
    """Return how many submissions certainly left something, and at most how many others may have."""
    sure = {record.id for record in made.trials if record.left}
    may = {record.id for record in made.trials if record.may_have_left} - sure
    # Each item belongs to exactly one submission.
    things = sum(one.stays and not one.each and len(one.runs) != 1 for one in made.facts.left)
    return len(sure), min(len(may), things)
