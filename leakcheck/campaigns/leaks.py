"""The campaign ``leaks``: does a target leave anything behind, however its runs end?"""

import itertools
import random
import statistics
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, Any

import msgspec
from msgspec.structs import replace

from injectors import NORMAL, Plan
from injectors.timed import KILLS, SIGNALS, Kill, kill_plan
from leakcheck.campaigns.campaign import Check, Made, Option, TrialOptions
from leakcheck.campaigns.criteria import at_most, count, leak_rate, reached, stated, zero
from leakcheck.campaigns.explain import explanations
from leakcheck.campaigns.findings import Exact, finding_id, replay_line, replay_words, residue, trial_findings
from leakcheck.campaigns.pinpoint import Pinpoint
from leakcheck.campaigns.result import Finding
from leakcheck.campaigns.trial_campaign import TrialCampaign
from leakcheck.errors import UsageError
from leakcheck.targets import Target
from leakcheck.trials.case import Case, case_of
from leakcheck.trials.executor import Ui
from leakcheck.trials.isolated import job_count
from leakcheck.trials.preflight import FIRST, first_run, run_length
from leakcheck.trials.remnant import Remnant
from leakcheck.trials.runner import Stop
from leakcheck.trials.trial import Trial

ENDINGS = ("normal", "timeout", "crash", "forced")


def _words(text: str) -> list[str]:
    return [word for word in text.split(",") if word]


class LeaksOptions(TrialOptions, frozen=True, kw_only=True):
    """What to try; a `plan` replaces `endings` and `kills`."""

    endings: Annotated[Sequence[str], Option("How runs end; used in rotation.", "ENDING,…", parse=_words)] = ENDINGS
    kills: Annotated[
        Sequence[Kill],
        Option("Whom forced endings kill, in rotation; freeze: stop the tree first.", "WHO,…", "--kill", parse=_words),
    ] = KILLS

    def check(self) -> None:
        """Raise `UsageError` for what cannot be."""
        super().check()
        for option, given, known in (("--endings", self.endings, ENDINGS), ("--kill", self.kills, KILLS)):
            if not given:
                raise UsageError(f"{option}: names none of {', '.join(known)}")
            if unknown := [one for one in given if one not in known]:
                raise UsageError(f"{option} {unknown[0]!r}: one of {', '.join(known)}")
            if twice := [one for one, times in Counter(given).items() if times > 1]:
                raise UsageError(f"{option}: names {twice[0]} twice")
            if self.plan is not None and tuple(given) != tuple(known):
                raise UsageError(f"{option} --plan: a plan sets the ending of every trial; give one of the two")


class _Measured(msgspec.Struct, frozen=True):
    run_ms: float
    first_run: list[Remnant]


class _Facts(_Measured, frozen=True):
    stop: Stop
    exact: Exact


class Leaks(TrialCampaign[LeaksOptions]):
    """Ends runs in every way."""

    name = "leaks"
    question = "Does a target leave anything behind, however its runs end?"
    strict = False
    options = LeaksOptions

    def prepare(self, target: Target, options: LeaksOptions, ui: Ui, stop: Stop) -> _Facts:
        """Measure how long a run takes, and what the very first run leaves."""
        del ui
        jobs = job_count(options.jobs, live=options.host)
        # As many at a time as later; otherwise runs would take longer later, and all kills would come early in them.
        with ThreadPoolExecutor(jobs) as pool:
            lengths = pool.map(lambda _: run_length(target, live=options.host, stop=stop), range(jobs))
            run_ms = statistics.median(lengths)
        first = [] if options.host else first_run(target, live=False, stop=stop, settle=options.settle)
        return _Facts(run_ms, first, stop, {})

    def kept(self, made: Made[LeaksOptions, Trial]) -> bytes:
        """Return the length of a run, from which the plans are drawn, and what the first one left."""
        return msgspec.json.encode(_Measured(made.facts.run_ms, made.facts.first_run))

    def go_on(self, made: Made[LeaksOptions, Trial], kept: bytes) -> None:
        """Draw the same plans again; what this first run left counts as well."""
        before = msgspec.json.decode(kept, type=_Measured)
        known = [(one.kind, one.class_, one.place) for one in before.first_run]
        more = [one for one in made.facts.first_run if (one.kind, one.class_, one.place) not in known]
        made.facts = replace(made.facts, run_ms=before.run_ms, first_run=[*before.first_run, *more])

    def cases(self, target: Target, options: LeaksOptions, facts: _Facts) -> Iterator[Case]:
        """Yield the plan repeatedly, or the endings in rotation."""
        if options.plan is not None:
            plans = iter([options.plan] * options.iterations)
        else:
            generator = random.Random(options.seed)  # noqa: S311 - a repeatable plan, no secret
            plans = schedule(options.endings, options.kills, options.iterations, facts.run_ms, generator)
        return (case_of(plan, target.adapter.shortest_wall) for plan in plans)

    def criteria(self, options: LeaksOptions) -> Sequence[Check]:
        """Return what is asked of the trials."""
        del options
        return [
            zero("leaked"),
            at_most("trials that damaged what was there before", _damaging, 0, "leaked"),
            at_most("things that a first run damaged", lambda made: len(_damaged_first(made)), 0, "leaked"),
            zero("silent"),
            zero("wedged"),
            zero("false-status"),
            zero("unknown"),
            reached(),
            stated("trials whose residue is bounded", lambda made: count(made, "bounded")),
            leak_rate(),
        ]

    def finish(self, made: Made[LeaksOptions, Trial], ui: Ui) -> None:
        """Trace timed kills that found something back to a crash point, where a kill shows it in every run."""
        super().finish(made, ui)
        if not (made.options.live or made.facts.stop()):
            search = Pinpoint(made, made.facts.run_ms, ui, made.facts.stop)
            search.search()
            made.facts.exact.update(search.exact)
            made.explanations = explanations(self.name, made, ui, made.facts.stop, search.exact)

    def findings(self, made: Made[LeaksOptions, Trial]) -> list[Finding]:
        """Return the damage done before any trial, by preparing a box or by its first run; and the other residue."""
        found = [
            replace(one, explanation=made.explanations.get(one.plan))
            for one in trial_findings(self.name, made, made.facts.exact)
        ]
        if damaged := _damaged_first(made):
            kinds = sorted({one.kind for one in damaged})
            words = ["--plan", NORMAL, "--iterations", 1, *replay_words(made.options)]
            first = Finding(
                id=finding_id(FIRST, kinds),
                ending=FIRST,
                plan=str(NORMAL),
                outcome="leaked",
                leaks=residue([damaged]),
                trials=1,
                replay=replay_line(self.name, made.target, *words),
            )
            found.insert(0, first)
        return found

    def details(self, made: Made[LeaksOptions, Trial]) -> dict[str, Any]:
        """Return the length of a run, and what the first one left, too."""
        facts = made.facts
        jobs = job_count(made.options.jobs, live=made.options.host)
        return super().details(made) | {
            "first_run": residue([facts.first_run]),
            "run_ms": round(facts.run_ms, 3),
            "bare_rate": round(jobs * 1000 / facts.run_ms, 2) if facts.run_ms else 0,
        }


def _damaging(made: Made[LeaksOptions, Trial]) -> int:
    return sum(any(one.class_ == "damaged" for one in trial.left) for trial in made.trials)


def _damaged_first(made: Made[LeaksOptions, Trial]) -> list[Remnant]:
    return [one for one in made.facts.first_run if one.class_ == "damaged"]


def schedule(
    endings: Sequence[str], kills: Sequence[Kill], total: int, run_ms: float, generator: random.Random
) -> Iterator[Plan]:
    """Yield the plans of `total` endings, the requested ones in rotation.

    Forced endings are spread evenly over a run of `run_ms` milliseconds: the run is divided into as many equal
    intervals as there are forced endings of a kind, and one instant is drawn from each. In every second one the
    payload sleeps instead of ending; every other of these, the first included, comes once the payload runs, whatever
    the start-up takes. Every second signal to a supervisor or a tree is SIGTERM, SIGINT or SIGHUP, in rotation.
    """
    forced = total // len(endings) + ("forced" in endings[: total % len(endings)]) if "forced" in endings else 0
    # A kind is (who, sleeping or not); each kind covers the whole run.
    kinds = [(kill, sleeping) for sleeping in (True, False) for kill in kills]
    others = itertools.cycle(SIGNALS)
    instants: list[Plan] = []
    for number, (kill, sleeping) in enumerate(kinds):
        share = len(range(number, forced, len(kinds)))
        for stretch in range(share):
            # A quarter beyond the median end, because runs vary.
            at = (stretch + generator.random()) / share * run_ms * 1.25
            payload = sleeping and stretch % 2 == 0
            other = kill != "freeze" and (stretch // 2 + number) % 2 == 1
            sig = next(others) if other else ""
            # Once the payload runs, its start-up is over: what follows is as long as a run at most.
            instants.append(kill_plan(kill, at, sleeping=sleeping, payload=payload, sig=sig))
    generator.shuffle(instants)
    for number in range(total):
        ending = endings[number % len(endings)]
        if ending == "forced":
            yield instants.pop()
        elif ending == "crash":
            yield Plan("crash", "signal" if number // len(endings) % 2 == 0 else "exit")
        else:
            yield Plan(ending)
