"""Findings of the campaign ``stress``: residue by its possible causes, wrong statuses, throughput."""

import os
from collections import Counter
from collections.abc import Iterator, Sequence

from leakcheck.campaigns.campaign import Judged, Made
from leakcheck.campaigns.findings import clusters, finding_id, replay_line, residue
from leakcheck.campaigns.result import Criterion, Finding
from leakcheck.campaigns.stress_options import StressOptions
from leakcheck.stats.degradation import Sample
from leakcheck.submissions import parse_spec
from leakcheck.targets import Target
from leakcheck.trials.attribution import SharedRemnant
from leakcheck.trials.outcome import Outcome
from leakcheck.trials.record import Record, behaviour_of
from leakcheck.trials.remnant import Remnant
from leakcheck.trials.similarity import fixed, grouped, place_of, same

_REPLAYED = 20
_NAMED = 10
# R2 of the requirements: submissions a minute.
_PER_MINUTE = 1000
# With fewer submissions, such as a replay line's, there is no throughput criterion, and no slowdown criterion either.
_PACED = 300
# Languages whose programs start in a millisecond or so.
_NATIVE = {"c", "cpp", "rust", "go"}


def left_findings(
    target: Target, options: StressOptions, records: Sequence[Record], left: Sequence[SharedRemnant]
) -> list[Finding]:
    """Group residue with the same possible causes and the same fate; each finding lists the possible submissions."""
    specs = {record.id: record.spec for record in records}

    def certainty(one: SharedRemnant) -> tuple[int, int]:
        return len({behaviour_of(specs[run]) for run in one.runs}) or len(records), len(one.runs)

    findings = []
    counted = [one for one in left if not one.late]
    for alike in grouped(counted, lambda one, other: _fate(one) == _fate(other) and same(one.leak, other.leak)):
        kind, fate = alike[0].leak.kind, _fate(alike[0])
        # A random name may happen to look like any other word.
        ((place, _),) = Counter(fixed(place_of(one.leak)) for one in alike).most_common(1)
        surest = min(alike, key=certainty)
        words = {behaviour_of(specs[run]): specs[run] for run in reversed(surest.runs)}
        possible = [*words.values()]
        class_ = {"leaked": surest.leak.class_, "bounded": "bounded", "recovered": "reclaimable"}[fate]
        one_of = "one submission's kind" if len(possible) == 1 else f"one of {len(possible)} kinds of submission"
        detail = f"of {one_of}, by {surest.tied}; {_which(surest)}" if possible else "of the last look"
        by = "next run" if fate == "recovered" else ""
        lists = clusters(alike, lambda one: (one.round, *one.runs)).values()
        (left_over,) = residue([[Remnant.of(one.leak, class_, by) for one in some] for some in lists])
        findings.append(
            Finding(
                id=finding_id(kind, fate, class_ == "damaged", place),
                ending="stress",
                specs=possible[:_REPLAYED],
                outcome=fate,
                leaks=[left_over],
                trials=left_over.count,
                replay=_replay(target, options, possible),
                detail=detail,
            )
        )
    return findings


def status_findings(target: Target, options: StressOptions, records: Sequence[Record]) -> list[Finding]:
    """Group wrong statuses of one behaviour that got the same status."""
    wrong_ones = [record for record in records if not record.right]
    groups = clusters(wrong_ones, lambda one: (one.expect, behaviour_of(one.spec), fixed(one.detail)))
    made = Counter(behaviour_of(record.spec) for record in records)
    wrong = Counter(behaviour_of(record.spec) for record in wrong_ones)
    findings = []
    for what, alike in sorted(groups.items(), key=lambda item: -len(item[1])):
        first, word = alike[0], what[1]
        findings.append(
            Finding(
                id=finding_id(first.expect, word, fixed(first.detail)),
                ending=first.expect,
                specs=[first.spec],
                outcome="false-status",
                leaks=[],
                trials=len(alike),
                replay=_replay(target, options, [first.spec], made[word] if made[word] > wrong[word] else 0),
                detail=first.detail,
            )
        )
    return findings


def _fate(one: SharedRemnant) -> Outcome:
    return "leaked" if one.stays else "recovered" if one.gone is not None else "bounded"


def _which(one: SharedRemnant) -> str:
    """Return the submissions that can have caused it, in words."""
    runs = sorted(one.runs)
    if len(runs) == 1:
        return f"submission {runs[0]}"
    shown = ", ".join(map(str, runs[:_NAMED])) + (", …" if len(runs) > _NAMED else "")
    return f"{'each' if one.each else 'one'} of these submissions: {shown}"


def _replay(target: Target, options: StressOptions, specs: Sequence[str], repeated: int = 0) -> str:
    """Return the command that reproduces it; with `repeated`, that takes about so many submissions, and the load."""
    words: list[str] = []
    if 0 < len(specs) <= _REPLAYED:
        words += ["--submission", " ".join(specs)]
        words += ["--submissions", str(repeated)] if repeated else []
        at_once = options.concurrency if repeated or len(specs) > 1 else 1
        return replay_line("stress", target, *words, "--concurrency", at_once)
    # Replay the whole campaign: there are too many possible submissions for one line.
    words += [] if options.wanted is None else ["--submissions", str(options.wanted)]
    words += [] if options.duration is None else ["--duration", f"{options.duration:g}"]
    words += ["--seed", str(options.seed)]
    words += [] if options.mix is None else ["--mix", str(options.mix)]
    if options.languages:
        words += ["--languages", ",".join(options.languages)]
    if options.specs:
        words += ["--submission", " ".join(spec.word for spec in options.specs)]
    words += ["--hostile"] * options.hostile + ["--concurrency", str(options.concurrency)]
    return replay_line("stress", target, *words)


def samples(records: Sequence[Record]) -> list[Sample]:
    """Return how long each submission took; submissions of the same language and behaviour are comparable."""
    return [
        Sample(
            ended=record.ended_s,
            took=record.wall_ms / 1000,
            # For a time limit, its length is part of the group.
            group=record.spec if record.expect == "TLE" else behaviour_of(record.spec),
            timed=record.expect != "TLE",
            cpu=(record.cpu_ms or 0) / 1000,
        )
        for record in records
    ]


def pace(made: Made[StressOptions, Record]) -> Iterator[Judged]:
    """Require enough submissions per minute, if there are many and this machine can run the mix that fast."""
    records = made.trials
    rate = 60 * len(records) / made.took
    native = {record.spec.partition("/")[0] for record in records} <= _NATIVE
    waiting = sum(parse_spec(record.spec).limits.wall for record in records if record.expect == "TLE")
    processor = sum(record.cpu_ms or 0 for record in records) / 1000
    least = max(waiting / made.options.concurrency, processor / (os.cpu_count() or 1))
    possible = len(records) >= _PACED and native and 60 * len(records) > _PER_MINUTE * least
    passed = True if rate >= _PER_MINUTE else False if possible else None
    yield Criterion(name="submissions a minute", passed=passed, measured=round(rate, 1), limit=_PER_MINUTE), "clean"
