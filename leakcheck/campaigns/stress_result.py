"""What a stress campaign's records and looks come to: outcomes, findings, criteria."""

import hashlib
import os
import shlex
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence

import msgspec

from leakcheck.campaigns.result import LEAKS_OF, Campaign, Criterion, Finding, Record, Residue
from leakcheck.campaigns.source import StressOptions
from leakcheck.campaigns.summary import named, shape, spread
from leakcheck.report import Leak, Verdict
from leakcheck.stats.bounds import upper_bound
from leakcheck.stats.degradation import LIMIT, Sample, changes
from leakcheck.stats.host_load import HostLoad
from leakcheck.submissions import parse_spec
from leakcheck.targets import Target
from leakcheck.trials.outcome import Outcome, worst
from leakcheck.trials.shared import SharedArena, SharedRemnant
from leakcheck.trials.similarity import grouped, place_of, same

__all__ = ["Totals", "judged"]

_LABELS = 8
_REPLAYED = 20
_SUSPECTS = 10
# R2 and R14 of the requirements: submissions a minute, and the rate of internal errors.
_PER_MINUTE = 1000
# Of fewer submissions, such as a replay line's one at a time, no pace is asked; as with the slowdown.
_PACED = 300
# Languages whose programs start in a millisecond or so.
_NATIVE = {"c", "cpp", "rust", "go"}
_INTERNAL = 0.0001


class Totals(msgspec.Struct, frozen=True, kw_only=True):
    """What is of the whole campaign.

    Seconds and rounds, the queue's depth and bound, others' use of the processors, stalls, failures of clean-up,
    complaints of the health check.
    """

    took: float
    rounds: int
    deepest: int
    queue: int
    host_load: HostLoad
    first_run: list[Leak]
    stalls: list[str]
    cleanup_failures: list[str]
    sick: list[str]
    interrupted: bool
    error: str


def judged(
    target: Target, options: StressOptions, records: Sequence[Record], arenas: Sequence[SharedArena], totals: Totals
) -> Campaign:
    """Return the campaign's result."""
    left = [one for arena in arenas for one in arena.left.values()]
    slowdowns = _slowdowns(options, records, totals.host_load)
    settled = {number: ms for arena in arenas for number, ms in arena.settled_ms.items()}
    records = _with_left(records, left, settled)
    gaps = {kind: reason for arena in arenas for kind, reason in arena.gaps.items()}
    criteria = _criteria(options, records, left, gaps, totals, slowdowns)
    outcomes: Counter[str] = Counter()
    statuses: dict[str, Counter[str]] = defaultdict(Counter)
    for record in records:
        outcome = worst(_outcomes(record))
        outcomes[outcome] += 1
        statuses[record.expect][outcome] += 1
    return Campaign(
        campaign="stress",
        target=target.name,
        version=target.version(),
        seed=options.seed,
        wanted=options.wanted or len(records),
        trials=len(records),
        verdict=_verdict(criteria, gaps, totals),
        outcomes=dict(outcomes),
        endings={status: dict(count) for status, count in sorted(statuses.items())},
        criteria=criteria,
        findings=[*_left_findings(target, options, records, left), *_wrong_findings(target, options, records)],
        first_run=_summed(totals.first_run),
        untied=_residue("unattributed", [leak.kind for arena in arenas for leak in arena.untied.values()]),
        coverage=gaps,
        run_ms=round(statistics.median(record.wall_ms for record in records), 3),
        rate=round(len(records) / totals.took, 2),
        timing_ms={"look": _median([ms for arena in arenas for ms in arena.looks_ms])},
        settle_ms=spread(sorted(settled.values())),
        latency_ms=_latencies(records),
        records=list(records),
        stalls=totals.stalls,
        interrupted=totals.interrupted,
        error=totals.error,
    )


def _outcomes(record: Record) -> Iterator[Outcome]:
    if record.left:
        yield "leaked"
    if record.may_have_left:
        yield "unknown"
    if not record.right:
        yield "false-status"


def _with_left(records: Sequence[Record], left: Sequence[SharedRemnant], settled: Mapping[int, float]) -> list[Record]:
    """Return the records in the order of their submissions, each with what it left for sure and how long it settled."""
    of: dict[int, list[str]] = defaultdict(list)
    may: dict[int, list[str]] = defaultdict(list)
    told: set[tuple[str, tuple[int, ...]]] = set()
    for one in left:
        runs = tuple(one.runs)
        group = (one.leak.kind, runs)
        if not one.stays or (one.each and group in told):
            continue
        told.add(group)
        for run in runs:
            if len(runs) == 1:
                of[run].append(one.leak.label)
            elif one.each:
                of[run].append(f"{one.leak.label}, or one like it of {len(runs)} submissions")
            else:
                may[run].append(one.leak.label)
    first = min(record.ended_s - record.wall_ms / 1000 for record in records)
    return sorted(
        (
            msgspec.structs.replace(
                record,
                left=of.get(record.id, []),
                may_have_left=may.get(record.id, [])[:_LABELS],
                settle_ms=settled.get(record.round, 0.0),
                ended_s=round(record.ended_s - first, 4),
            )
            for record in records
        ),
        key=lambda record: record.id,
    )


def _criteria(
    options: StressOptions,
    records: Sequence[Record],
    left: Sequence[SharedRemnant],
    gaps: dict[str, str],
    totals: Totals,
    slowdowns: Sequence[Criterion],
) -> list[Criterion]:
    stayed = Counter(one.leak.kind for one in left if one.stays)
    wrong = [record for record in records if not record.right]
    internal = sum(record.status == "IE" and record.expect != "IE" for record in records)
    criteria = []
    if options.looks:
        criteria = [_zero(f"{LEAKS_OF}{kind}", stayed[kind]) for kind in _KINDS]
        damaged = {(one.leak.kind, place_of(one.leak)) for one in left if one.damaged}
        damaged |= {(leak.kind, place_of(leak)) for leak in totals.first_run if leak.class_ == "damaged"}
        criteria.append(_zero(_DAMAGED, len(damaged)))
        criteria.append(_zero("kinds not fully seen", len(gaps)))
    criteria += [
        _zero("boxes out of service", len(totals.sick)),
        _zero("clean-up failures", len(totals.cleanup_failures)),
        _zero("wrong statuses", len(wrong)),
        Criterion(
            name="rate of internal errors",
            passed=internal / len(records) <= _INTERNAL,
            measured=round(internal / len(records), 6),
            limit=_INTERNAL,
        ),
        Criterion(
            name="queue depth", passed=totals.deepest <= totals.queue, measured=totals.deepest, limit=totals.queue
        ),
        _zero("deadlocks and hangs", len(totals.stalls)),
        _rate(options, records, totals.took),
    ]
    criteria += slowdowns
    if options.looks:
        sure, unsure = _leaking(records, left)
        bound = upper_bound(min(sure + unsure, len(records)), len(records))
        criteria.append(Criterion(name="submissions that left something", passed=None, measured=sure, limit=None))
        criteria.append(
            Criterion(name="at most so many others, of those that may have", passed=None, measured=unsure, limit=None)
        )
        criteria.append(
            Criterion(name="95 % upper bound of the leak rate", passed=None, measured=round(bound, 6), limit=None)
        )
        recovered = sum(one.gone is not None for one in left)
        criteria.append(Criterion(name="recovered residue", passed=None, measured=recovered, limit=None))
        bounded = sum(one.bounded for one in left)
        criteria.append(Criterion(name="bounded residue", passed=None, measured=bounded, limit=None))
    return criteria


def _slowdowns(options: StressOptions, records: Sequence[Record], host_load: HostLoad) -> list[Criterion]:
    """Return the criteria of the pace; `ended_s` of the records is still by the monotonic clock."""
    records = sorted(records, key=lambda record: record.ended_s)
    samples = [
        Sample(
            ended=record.ended_s,
            took=record.wall_ms / 1000,
            group=_group(record),
            timed=record.expect != "TLE",
        )
        for record in records
    ]
    found = []
    for name, seen in changes(samples, options.seed).items():
        change = host_load.discount(seen, records)
        measured = {"late/early": change.ratio, "from": change.low, "to": change.high}
        numbers = {key: value for key, value in measured.items() if value is not None}
        found.append(
            Criterion(
                name=f"slowdown, {name}",
                passed=change.passed,
                measured=numbers | ({"why": change.why} if change.why else {}),
                limit=LIMIT,
            )
        )
    return found


def _leaking(records: Sequence[Record], left: Sequence[SharedRemnant]) -> tuple[int, int]:
    """Return how many submissions left something for sure, and how many others may have, at most."""
    sure = {record.id for record in records if record.left}
    may = {record.id for record in records if record.may_have_left} - sure
    # Each thing is of one submission alone.
    things = sum(one.stays and not one.each and len(one.runs) != 1 for one in left)
    return len(sure), min(len(may), things)


_DAMAGED = "things damaged that were there before"
# The order of the report.
_KINDS = (
    "process", "fd", "mount", "cgroup", "lock", "lockfile", "file", "ipc", "namespace", "net", "loop", "key", "bpf",
    "sysctl",
)  # fmt: skip


def _zero(name: str, measured: int) -> Criterion:
    return Criterion(name=name, passed=measured == 0, measured=measured, limit=0)


def _group(record: Record) -> str:
    """Return what submissions of like length have in common: language and behaviour, and a time limit's length."""
    word, _, limits = record.spec.partition("@")
    return f"{word}@{limits}" if record.expect == "TLE" else word


def _rate(options: StressOptions, records: Sequence[Record], took: float) -> Criterion:
    """Submissions a minute; a limit only where there are enough and the mix could be run that fast on this machine."""
    rate = 60 * len(records) / took
    languages = {record.spec.partition("/")[0] for record in records}
    native = languages <= _NATIVE
    waiting = sum(parse_spec(record.spec).limits.wall for record in records if record.expect == "TLE")
    processor = sum(record.cpu_ms or 0 for record in records) / 1000
    least = max(waiting / options.concurrency, processor / (os.cpu_count() or 1))
    enough = len(records) >= _PACED
    possible = enough and native and 60 * len(records) > _PER_MINUTE * least
    passed = True if rate >= _PER_MINUTE else False if possible else None
    return Criterion(name="submissions a minute", passed=passed, measured=round(rate, 1), limit=_PER_MINUTE)


def _verdict(criteria: Sequence[Criterion], gaps: dict[str, str], totals: Totals) -> Verdict:
    failed = {criterion.name for criterion in criteria if criterion.passed is False}
    if _DAMAGED in failed or any(name.startswith(LEAKS_OF) for name in failed):
        return "leaked"
    return "unknown" if gaps or totals.error or "deadlocks and hangs" in failed else "clean"


def _left_findings(
    target: Target, options: StressOptions, records: Sequence[Record], left: Sequence[SharedRemnant]
) -> list[Finding]:
    """Put together what is of the same and has the same fate; each with the submissions that it can be of."""
    specs = {record.id: record.spec for record in records}
    findings = []
    for alike in grouped(
        [one for one in left if not one.late],
        lambda one, other: _fate(one) == _fate(other) and same(one.leak, other.leak),
    ):
        kind, fate = alike[0].leak.kind, _fate(alike[0])
        # The one of which there is the least doubt.
        surest = min(
            alike, key=lambda one: (len({_word(specs[run]) for run in one.runs}) or len(records), len(one.runs))
        )
        words = {_word(specs[run]): specs[run] for run in reversed(surest.runs)}
        suspects = [*words.values()]
        class_ = {"leaked": surest.leak.class_, "bounded": "bounded", "recovered": "reclaimable"}[fate]
        detail = f"of {_count(len(suspects))}, by {surest.tied}{_which(surest)}" if suspects else "of the last look"
        findings.append(
            Finding(
                id=_id(target, kind, fate, *sorted(words)),
                ending="stress",
                specs=suspects[:_REPLAYED],
                outcome=fate,
                leaks=[
                    Residue(
                        kind=kind,
                        class_=class_,
                        by="next run" if fate == "recovered" else "",
                        labels=[one.leak.label for one in alike][:_LABELS],
                        count=len(alike),
                        trials=len({tuple(one.runs) for one in alike}),
                    )
                ],
                trials=len(alike),
                replay=_replay(target, options, suspects),
                detail=detail,
            )
        )
    return sorted(findings, key=lambda one: (one.leaks[0].class_ != "damaged", one.outcome != "leaked", -one.trials))


def _word(spec: str) -> str:
    """Return language and behaviour."""
    return spec.partition("@")[0]


def _fate(one: SharedRemnant) -> Outcome:
    return "leaked" if one.stays else "recovered" if one.gone is not None else "bounded"


def _count(suspects: int) -> str:
    return "one submission's kind" if suspects == 1 else f"one of {suspects} kinds of submission"


def _which(one: SharedRemnant) -> str:
    """Return which submissions it can be of."""
    runs = sorted(one.runs)
    shown = ", ".join(map(str, runs[:_SUSPECTS])) + (", …" if len(runs) > _SUSPECTS else "")
    return (
        f"; submission {shown}"
        if len(runs) == 1
        else f"; {'each' if one.each else 'one'} of these submissions: {shown}"
    )


def _wrong_findings(target: Target, options: StressOptions, records: Sequence[Record]) -> list[Finding]:
    groups: dict[tuple[str, str, str], list[Record]] = defaultdict(list)
    for record in records:
        if not record.right:
            groups[record.expect, _word(record.spec), shape(record.detail)].append(record)
    made = Counter(_word(record.spec) for record in records)
    wrong = Counter(_word(record.spec) for record in records if not record.right)
    findings = []
    for what, alike in sorted(groups.items(), key=lambda item: -len(item[1])):
        outcome: Outcome = "false-status"
        word = _word(alike[0].spec)
        findings.append(
            Finding(
                id=_id(target, *what),
                ending=alike[0].expect,
                specs=[alike[0].spec],
                outcome=outcome,
                leaks=[],
                trials=len(alike),
                replay=_replay(target, options, [alike[0].spec], made[word] if made[word] > wrong[word] else 0),
                detail=alike[0].detail,
            )
        )
    return findings


def _replay(target: Target, options: StressOptions, specs: Sequence[str], repeated: int = 0) -> str:
    """Return the command that shows it again; with `repeated` it takes about so many, and the load, to do so."""
    words = ["leakcheck", "stress", "--target", named(target)]
    if 0 < len(specs) <= _REPLAYED:
        words += ["--submission", " ".join(specs)]
        words += ["--submissions", str(repeated)] if repeated else []
        at_once = options.concurrency if repeated or len(specs) > 1 else 1
        return shlex.join([*words, "--concurrency", str(at_once)])
    # The whole campaign: the suspects are too many for a line.
    words += [] if options.wanted is None else ["--submissions", str(options.wanted)]
    words += [] if options.duration is None else ["--duration", f"{options.duration:g}"]
    words += ["--seed", str(options.seed)]
    words += [] if options.mix is None else ["--mix", str(options.mix)]
    if options.languages:
        words += ["--languages", ",".join(options.languages)]
    if options.specs:
        words += ["--submission", " ".join(spec.word for spec in options.specs)]
    words += ["--hostile"] * options.hostile + ["--concurrency", str(options.concurrency)]
    return shlex.join(words)


def _id(target: Target, *what: object) -> str:
    return hashlib.sha256(repr((target.name, what)).encode()).hexdigest()[:8]


def _summed(leaks: Sequence[Leak]) -> list[Residue]:
    """Return what the warm-up of an arena left, by kind and class."""
    groups: dict[tuple[str, str], list[str]] = defaultdict(list)
    for leak in leaks:
        groups[leak.kind, leak.class_].append(leak.label)
    return [
        Residue(kind=kind, class_=class_, labels=labels[:_LABELS], count=len(labels))
        for (kind, class_), labels in sorted(groups.items())
    ]


def _residue(class_: str, kinds: Sequence[str]) -> list[Residue]:
    return [Residue(kind=kind, class_=class_, labels=[kind], count=count) for kind, count in Counter(kinds).items()]


def _latencies(records: Sequence[Record]) -> dict[str, dict[str, float]]:
    times: dict[str, list[float]] = defaultdict(list)
    for record in records:
        times[record.expect].append(record.wall_ms)
    return {status: spread(sorted(all_of_it)) for status, all_of_it in sorted(times.items())}


def _median(values: Sequence[float]) -> float:
    return round(statistics.median(values), 3) if values else 0.0
