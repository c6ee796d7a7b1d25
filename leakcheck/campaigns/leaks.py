"""The campaign ``leaks``: does a target leave anything behind, however its runs end?"""

import hashlib
import os
import random
import shlex
import statistics
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait

import msgspec

from leakcheck import _native
from leakcheck.campaigns.result import Campaign, Criterion, Finding, Residue
from leakcheck.campaigns.settings import Settings
from leakcheck.campaigns.summary import named, shape, spread
from leakcheck.errors import StoppedError, TargetError, UsageError
from leakcheck.report import Verdict
from leakcheck.stats.bounds import upper_bound
from leakcheck.targets import Target
from leakcheck.trials.aftermath import Remnant
from leakcheck.trials.ending import ENDINGS, KILLS, Ending, Kill, schedule
from leakcheck.trials.outcome import OUTCOMES
from leakcheck.trials.preflight import FIRST, bare_rate, first_run, probe, run_length
from leakcheck.trials.session import Stop, never
from leakcheck.trials.trial import Trial, run_trial

__all__ = ["LeaksOptions", "leaks"]

_LABELS = 8


class LeaksOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What to try.

    Args:
        iterations: how many trials, scheduled by turns to the endings.
        endings: which of ``normal``, ``timeout``, ``crash`` and ``forced``.
        kills: whom a forced ending kills: ``supervisor``, ``tree``, ``freeze`` (the tree, stopped first).
        plan: one ending that every trial has instead, such as a replay line gives.
        jobs: trials at the same time; 0 is one for each CPU.
        seed: of the instants of the forced endings.
        host: run on the host instead of in arenas, where only what is tied to the run counts.
        settle: seconds that asynchronous teardown may take.
    """

    iterations: int = 100
    endings: Sequence[str] = ENDINGS
    kills: Sequence[Kill] = KILLS
    plan: Ending | None = None
    jobs: int = 0
    seed: int = 0
    host: bool = False
    settle: float = 0.25

    def check(self) -> None:
        """Raise `UsageError` for what cannot be."""
        if self.iterations < 1:
            raise UsageError(f"--iterations {self.iterations}: give at least 1")
        if not 0 <= self.jobs <= 256:
            raise UsageError(f"--jobs {self.jobs}: give 1 to 256, or 0 for one a CPU")
        if not 0 <= self.settle <= 60:
            raise UsageError(f"--settle {self.settle}: give seconds from 0 to 60")
        for option, given, known in (("--endings", self.endings, ENDINGS), ("--kill", self.kills, KILLS)):
            if not given:
                raise UsageError(f"{option}: names none of {', '.join(known)}")
            if unknown := [one for one in given if one not in known]:
                raise UsageError(f"{option} {unknown[0]!r}: one of {', '.join(known)}")
            if twice := [one for one, times in Counter(given).items() if times > 1]:
                raise UsageError(f"{option}: names {twice[0]} twice")
            if self.plan is not None and tuple(given) != tuple(known):
                raise UsageError(f"{option} --plan: a plan is the ending of every trial; give one of the two")
        if self.host and self.jobs > 1:
            raise UsageError("--host --jobs: on the host trials see each other, so make one at a time")


def leaks(
    target: Target,
    options: LeaksOptions,
    *,
    progress: Callable[[Trial, int], None] | None = None,
    finishing: Callable[[int], None] | None = None,
    stop: Stop = never,
) -> Campaign:
    """Run the campaign.

    `progress` is told of every trial with how many were made; once `stop` returns true no further one is begun,
    `finishing` is told how many are being made, and the result is that of those made.

    Raises:
        UsageError: an option cannot be.
        StoppedError: `stop` returned true before the first trial.
        TargetError: the target cannot be run here, or its isolation is not on.
    """
    options.check()
    target.check_ready()
    settings = Settings()
    if not options.host:
        return settings.judge(_campaign(target, options, progress, finishing, stop))
    # What all runs of the campaign leave on the host, the warm-up runs too: for `leakcheck reap`.
    whole = _native.Guard(settle_ms=500, attributed_only=True)
    try:
        campaign = settings.judge(_campaign(target, options, progress, finishing, stop))
        return msgspec.structs.replace(campaign, report=msgspec.Raw(whole.end().encode()))
    finally:
        whole.abandon()


def _campaign(
    target: Target,
    options: LeaksOptions,
    progress: Callable[[Trial, int], None] | None,
    finishing: Callable[[int], None] | None,
    stop: Stop,
) -> Campaign:
    if gaps := probe(target, live=options.host, stop=stop):
        raise TargetError(f"{target.name}: its isolation is not on: {'; '.join(gaps)}")
    jobs = 1 if options.host else options.jobs or os.cpu_count() or 1
    # As many at a time as later on, lest all kills come early in runs that then take longer.
    with ThreadPoolExecutor(jobs) as pool:
        run_ms = statistics.median(pool.map(lambda _: run_length(target, live=options.host, stop=stop), range(jobs)))
    first = [] if options.host else first_run(target, live=options.host, stop=stop, settle=options.settle)
    began = time.monotonic()
    trials: list[Trial] = []
    failure: TargetError | None = None
    try:
        for trial in _made(target, options, _endings(options, run_ms), jobs, finishing, stop):
            trials.append(trial)
            if progress is not None:
                progress(trial, len(trials))
    except TargetError as error:
        failure = error
    if not trials:
        raise failure or StoppedError(f"{target.name}: interrupted before the first trial")
    took = time.monotonic() - began
    return _judged(target, options, trials, first, run_ms, took, jobs, failure)


def _endings(options: LeaksOptions, run_ms: float) -> Iterable[Ending]:
    if options.plan is not None:
        return [options.plan] * options.iterations
    generator = random.Random(options.seed)  # noqa: S311 - a repeatable plan, no secret
    return schedule(options.endings, options.kills, options.iterations, run_ms, generator)


def _made(
    target: Target,
    options: LeaksOptions,
    endings: Iterable[Ending],
    jobs: int,
    finishing: Callable[[int], None] | None,
    stop: Stop,
) -> Iterator[Trial]:
    """Yield trials as they are made, `jobs` at a time."""
    rest = iter(endings)
    with ThreadPoolExecutor(jobs, thread_name_prefix="leakcheck") as pool:
        running: set[Future[Trial]] = set()
        numbers = iter(range(options.iterations))

        def begin() -> None:
            if not stop() and (ending := next(rest, None)) is not None:
                work = pool.submit(
                    run_trial, target, ending, next(numbers) % 100, live=options.host, settle=options.settle
                )
                running.add(work)

        for _ in range(jobs):
            begin()
        while running:
            # With a timeout, so that a signal's handler gets its turn.
            done, _ = wait(running, timeout=0.2, return_when=FIRST_COMPLETED)
            if finishing is not None and stop():
                finishing(len(running))
                finishing = None
            for one in done:
                running.discard(one)
                yield one.result()
                begin()


def _judged(
    target: Target,
    options: LeaksOptions,
    trials: Sequence[Trial],
    first: Sequence[Remnant],
    run_ms: float,
    took: float,
    jobs: int,
    failure: TargetError | None,
) -> Campaign:
    outcomes = Counter(str(trial.outcome) for trial in trials)
    endings: dict[str, Counter[str]] = defaultdict(Counter)
    for trial in trials:
        endings[trial.ending.group][trial.outcome] += 1
    held: Counter[str] = Counter(outcome for trial in trials for outcome in trial.outcomes)
    # One that is wedged need not have left anything that can be seen.
    leaked = held["leaked"]
    damaging = sum(any(one.class_ == "damaged" for one in trial.left) for trial in trials)
    damaged_first = [one for one in first if one.class_ == "damaged"]
    verdict = _verdict(held, failure, damaged=bool(damaging or damaged_first))
    bound = upper_bound(leaked, len(trials))
    criteria = [
        Criterion(name="trials that left something for good", passed=leaked == 0, measured=leaked, limit=0),
        Criterion(name="trials that damaged what was there before", passed=damaging == 0, measured=damaging, limit=0),
        Criterion(
            name="things that a first run damaged", passed=not damaged_first, measured=len(damaged_first), limit=0
        ),
        Criterion(
            name="recoveries that reported success and left something",
            passed=held["silent"] == 0,
            measured=held["silent"],
            limit=0,
        ),
        Criterion(
            name="recoveries or next submissions that failed",
            passed=held["wedged"] == 0,
            measured=held["wedged"],
            limit=0,
        ),
        Criterion(name="wrong statuses", passed=held["false-status"] == 0, measured=held["false-status"], limit=0),
        Criterion(name="trials not fully seen", passed=held["unknown"] == 0, measured=held["unknown"], limit=0),
        Criterion(name="trials whose residue is bounded", passed=None, measured=held["bounded"], limit=None),
        Criterion(name="95 % upper bound of the leak rate", passed=None, measured=round(bound, 6), limit=None),
    ]
    settled = sorted(trial.settled_ms for trial in trials if trial.settled_ms is not None)
    steps = sorted({name for trial in trials for name in trial.timing_ms})
    return Campaign(
        campaign="leaks",
        target=target.name,
        version=target.version(),
        seed=options.seed,
        wanted=options.iterations,
        trials=len(trials),
        verdict=verdict,
        outcomes=dict(outcomes),
        endings={ending: dict(count) for ending, count in endings.items()},
        criteria=criteria,
        findings=[*_first_findings(target, options, damaged_first), *_findings(target, options, trials)],
        first_run=_summed([first]),
        untied=_summed([trial.untied for trial in trials]),
        coverage={kind: reason for trial in trials for kind, reason in trial.gaps.items()},
        run_ms=round(run_ms, 3),
        rate=round(len(trials) / took, 2),
        bare_rate=round(bare_rate(run_ms, jobs), 2),
        timing_ms={name: _median(t.timing_ms[name] for t in trials if name in t.timing_ms) for name in steps},
        settle_ms=spread(settled),
        interrupted=len(trials) < options.iterations and failure is None,
        error="" if failure is None else str(failure),
    )


def _verdict(outcomes: Counter[str], failure: TargetError | None, *, damaged: bool) -> Verdict:
    if damaged or outcomes["leaked"] or outcomes["silent"] or outcomes["wedged"]:
        return "leaked"
    return "unknown" if outcomes["unknown"] or outcomes["false-status"] or failure else "clean"


def _findings(target: Target, options: LeaksOptions, trials: Sequence[Trial]) -> list[Finding]:
    """Group trials that ended alike and left the same kinds of thing; the most first."""
    groups: dict[tuple[object, ...], list[Trial]] = defaultdict(list)
    settled = options.settle != LeaksOptions().settle
    for trial in trials:
        if trial.outcome != "clean":
            who = trial.ending.kill or trial.ending.name
            kinds = tuple(sorted({(one.kind, one.class_, one.by, one.stage) for one in trial.left}))
            groups[trial.ending.group, who, trial.outcome, kinds, shape(trial.detail)].append(trial)
    findings = []
    for what, alike in groups.items():
        first = alike[0]
        plan = first.ending.plan
        words = ["leakcheck", "leaks", "--target", named(target)]
        words += ["--plan", plan, "--iterations", "20" if first.ending.kill else "1"] + ["--host"] * options.host
        words += ["--settle", f"{options.settle:g}"] * settled
        replay = shlex.join(words)
        left = _summed([trial.left for trial in alike])
        # Of nothing that differs from campaign to campaign: no counts, no labels.
        name = hashlib.sha256(repr((target.name, what)).encode())
        findings.append(
            Finding(
                id=name.hexdigest()[:8],
                ending=first.ending.group,
                plan=plan,
                outcome=first.outcome,
                leaks=left,
                trials=len(alike),
                replay=replay,
                detail=first.detail,
            )
        )
    return sorted(findings, key=lambda one: (not _damaging(one), -OUTCOMES.index(one.outcome), -one.trials))


def _damaging(finding: Finding) -> bool:
    return any(left.class_ == "damaged" for left in finding.leaks)


def _first_findings(target: Target, options: LeaksOptions, damaged: Sequence[Remnant]) -> list[Finding]:
    """Return the damage that is done before any trial: by the preparation of a box, or the first run in it."""
    if not damaged:
        return []
    words = ["leakcheck", "leaks", "--target", named(target), "--plan", "normal", "--iterations", "1"]
    kinds = sorted({one.kind for one in damaged})
    return [
        Finding(
            id=hashlib.sha256(repr((target.name, FIRST, kinds)).encode()).hexdigest()[:8],
            ending=FIRST,
            plan="normal",
            outcome="leaked",
            leaks=_summed([damaged]),
            trials=1,
            replay=shlex.join(words + ["--settle", f"{options.settle:g}"] * (options.settle != LeaksOptions().settle)),
        )
    ]


def _summed(lists: Sequence[Sequence[Remnant]]) -> list[Residue]:
    """Return what is in the lists, one a trial, summed by kind, class and stage; damage first."""
    groups: dict[tuple[str, str, str, str], list[tuple[int, str]]] = defaultdict(list)
    for number, left in enumerate(lists):
        for one in left:
            groups[one.kind, one.class_, one.by, one.stage].append((number, one.label))
    residue = []
    for (kind, class_, by, stage), found in sorted(groups.items(), key=lambda item: (item[0][1] != "damaged", item[0])):
        labels: dict[str, str] = {}
        for _, label in found:
            labels.setdefault(shape(label), label)
        residue.append(
            Residue(
                kind=kind,
                class_=class_,
                by=by,
                stage=stage,
                labels=list(labels.values())[:_LABELS],
                count=len(found),
                trials=len({number for number, _ in found}),
            )
        )
    return residue


def _median(values: Iterable[float]) -> float:
    return round(statistics.median(values), 3)
