"""What a sweep's result says about its target, short enough to be kept in the repository, and the page made of it.

One file has one campaign of one target: docs/explanation/call-findings/TARGET/CAMPAIGN.json. It names no path of the
machine that made it, and a thing that is called otherwise in each run has N in the place of what varies: a sweep that
finds the same writes the same.
"""

import os
import re
import shlex
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path, PurePath
from typing import NamedTuple

import msgspec

from leakcheck.campaigns import Result
from leakcheck.campaigns.compare import Comparison
from leakcheck.campaigns.explained import functions, said
from leakcheck.campaigns.findings import replay_line
from leakcheck.campaigns.result import Example, Finding
from leakcheck.targets import load
from leakcheck.trials.explanation import Explanation, Life
from leakcheck.trials.outcome import FAILING, OUTCOMES, Outcome
from leakcheck.trials.similarity import alike, fixed

ROOT = Path(__file__).resolve().parent.parent
CAMPAIGNS = {
    "crash": ["crash"],
    "timeouts": ["crash", "--ending", "timeout"],
    "faults": ["faults"],
    "waits": ["faults", "--syscalls", "wait"],
    "lies": ["faults", "--mode", "lie"],
}
TITLES = {
    "crash": "kills",
    "timeouts": "kills of a run that reaches its time limit",
    "faults": "failing steps",
    "waits": "failing waits",
}
# A process that stays keeps these.
GOES = ("reclaimable", "bounded")
KEPT = ("fd", "key", "lock", "mount", "namespace", "net")
PLACES = 8
LONGEST = 150
_INSTALLED = [*filter(None, [os.environ.get("LEAKCHECK_TARGETS")]), str(ROOT / ".targets")]
_CONTAINER = re.compile(r"\b(leakcheck-[a-z-]+-)\d+(?:(-)[0-9a-f]{12})?\b")
# Paths, but not those of installed programs, and what is drawn elsewhere.
_DRAWN = re.compile(
    r"(?<![\w.])(?P<path>/(?!usr/|s?bin/|lib|etc/)[\w.@:+-]+(?:/[\w.@:+-]*)*)|\b(?=[a-f]*\d)[0-9a-f]{12,}\b"
)
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d+)?(?:Z|[+-]\d\d:?\d\d)")
_PID = re.compile(r"^process \d+ ")

Explain = Callable[[str], Explanation | None]


class Thing(msgspec.Struct, kw_only=True):
    """One thing that trials of a target left: its kind and its place, and a plan that leaves it.

    What a kill leaves and what a failing step leaves have two causes, so that they are two. Without a kind, it is how a
    run or a recovery hung, or which status was wrong. `trials` has how many trials of which campaign left it, `life`
    which call made it and which one would have removed it (`made`: they are known), `functions` those at the fault,
    `cleanup` what the target's own clean-up command said, `replay` the command that shows it again.
    """

    killed: bool
    kind: str
    label: str
    places: list[str]
    classes: list[str]
    outcomes: dict[Outcome, int]
    trials: dict[str, int]
    replay: str
    made: bool = False
    life: str = ""
    functions: list[str] = []
    cleanup: str = ""

    @property
    def outcome(self) -> Outcome:
        """The outcome of most of its trials, of which others may be worse by what else they left."""
        return max((one for one in FAILING if one in self.outcomes), key=lambda one: self.outcomes[one])

    @property
    def told(self) -> tuple[bool, bool, bool]:
        """How much of its explanation is known: the more, the better an example."""
        return self.made, bool(self.life), bool(self.functions)

    @property
    def always(self) -> bool:
        """Whether a run without a fault leaves it, too."""
        return "no call of a run without the fault" in self.life

    def same(self, other: "Thing") -> bool:
        """Return whether they are the same thing, whatever left it."""
        return self.kind == other.kind and any(alike(one, two) for one in self.places for two in other.places)

    def take(self, other: "Thing") -> None:
        """Add what other trials say about the same thing."""
        self.places = sorted({*self.places, *other.places})[:PLACES]
        self.classes = sorted({*self.classes, *other.classes})
        self.outcomes = dict(sorted((Counter(self.outcomes) + Counter(other.outcomes)).items()))
        self.trials = dict(Counter(self.trials) + Counter(other.trials))
        if other.told > self.told:
            self.replay, self.made, self.life = other.replay, other.made, other.life
            self.functions, self.cleanup = other.functions, other.cleanup


class Lied(msgspec.Struct, kw_only=True):
    """How many lies were told, how many of them changed the state in which a run ends, and which share was reported."""

    told: int
    changed: int
    reported: float


class Swept(msgspec.Struct, kw_only=True):
    """One campaign of one target: of its `plans` the first `tried` ones, in the order that `seed` draws if not all.

    `calls` is the number of points; `lied` is None but for lies.
    """

    campaign: str
    target: str
    version: str
    seed: int
    calls: int
    plans: int
    tried: int
    outcomes: dict[Outcome, int]
    things: list[Thing] = []
    lied: Lied | None = None


class Change(msgspec.Struct, kw_only=True):
    """A finding of one of two versions (`word`: new, still open, gone)."""

    word: str
    outcome: Outcome
    kinds: list[str]
    trials: int
    plan: str
    detail: str = ""


class Versions(msgspec.Struct, kw_only=True):
    """What `leakcheck diff` says about one campaign of two versions of a sandbox."""

    campaign: str
    before: str
    after: str
    trials: list[int]
    changes: list[Change]


def swept(campaign: str, result: Result, explain: Explain | None = None) -> Swept:
    """Return what is kept of a result; `explain` is asked for plans that it does not explain."""
    points = {"seen": 0, "plans": result.trials, "tried": result.trials} | result.points
    found: list[Thing] = []
    for finding in result.findings if campaign in TITLES else ():
        # What its replays did not show is none.
        if finding.outcome in FAILING and not finding.chance:
            own: list[tuple[Thing, dict[str, int]]] = []
            for left in _left(finding):
                thing = _thing(campaign, result.target, finding, left, explain)
                same = next(((one, endings) for one, endings in own if one.same(thing)), None)
                if same is None:
                    own.append((thing, dict(left.endings)))
                    continue
                one, endings = same
                # The same trials may have left both.
                endings |= {name: max(count, endings.get(name, 0)) for name, count in left.endings.items()}
                one.take(thing)
                one.trials = {campaign: sum(endings.values())}
                one.outcomes = _outcomes(finding, endings)
            merge(found, [one for one, _ in own])
    return Swept(
        campaign=campaign,
        target=result.target,
        version=result.version,
        seed=result.seed,
        calls=points["seen"],
        plans=points["plans"],
        tried=points["tried"],
        outcomes={one: result.outcomes[one] for one in sorted(OUTCOMES) if result.outcomes.get(one)},
        things=found,
        lied=_lied(result) if campaign == "lies" else None,
    )


def merge(found: list[Thing], others: Sequence[Thing]) -> None:
    """Add things to those that were found: each once, whatever ended the run."""
    for other in others:
        same = (one for one in found if one.killed == other.killed and one.same(other))
        if (one := next(same, None)) is not None:
            one.take(other)
        else:
            found.append(other)


def _lied(result: Result) -> Lied:
    told = next(one.measured for one in result.criteria if one.name.startswith("share of lies"))
    return Lied(told=told["lies"], changed=told["another end state"], reported=told["share"])


class _Left(NamedTuple):
    """What a finding left: `endings` has how many trials of which plan."""

    kind: str
    places: set[str]
    class_: str
    example: Example | None
    endings: dict[str, int]


def _left(finding: Finding) -> Iterator[_Left]:
    """Yield what a finding left for good, without what a process keeps and what is inside something else."""
    stays = [(one, example) for one in finding.leaks for example in one.examples if one.class_ not in GOES]
    processes = [(one, example) for one, example in stays if one.kind == "process"]
    for one, first in processes[:1]:
        # One tree, of which not every trial has the same part.
        endings: dict[str, int] = {}
        for _, example in processes:
            endings |= {name: max(count, endings.get(name, 0)) for name, count in example.endings.items()}
        yield _Left("process", {_place(example) for _, example in processes}, one.class_, first, endings)
    apart = ("process", *KEPT * bool(processes))
    rest = [(one, example, _place(example)) for one, example in stays if one.kind not in apart]
    for one, example, place in rest:
        others = [other for leak, _, other in rest if leak.kind == one.kind]
        if not any(alike(str(up), other) for up in PurePath(place).parents for other in others):
            # A file is no directory, whatever random names they have.
            places = {example.label if one.kind == "file" else place}
            yield _Left(one.kind, places, one.class_, example, example.endings)
    if not stays:
        yield _Left("", {finding.detail}, "", None, {at.ending: at.trials for at in finding.endings})


def _outcomes(finding: Finding, endings: Mapping[str, int]) -> dict[Outcome, int]:
    outcomes: Counter[Outcome] = Counter()
    for at in finding.endings:
        outcomes[at.outcome] += endings.get(at.ending, 0)
    return {one: count for one, count in sorted(outcomes.items()) if count}


def _place(example: Example) -> str:
    resource = example.evidence.get("resource", {})
    names = [resource.get(name) for name in ("comm", "path", "target", "name")]
    return next((name for name in names if isinstance(name, str) and name), example.label)


def _thing(campaign: str, target: str, finding: Finding, left: _Left, explain: Explain | None) -> Thing:
    plans = [at.plan for at in finding.endings if at.ending in left.endings]
    told = finding.explanation
    life = _life(told, left)
    if told is not None and life is None and told.plan not in plans:
        # It explains another thing, which other plans leave.
        told = None
    if explain is not None and (told is None or (left.kind and not (life and life.created))):
        told = explain(plans[0]) or told
        life = _life(told, left)
    plan = told.plan if told is not None else plans[0]
    thing = Thing(
        killed=CAMPAIGNS[campaign][0] == "crash",
        kind=left.kind,
        label=steady(finding.detail if left.example is None else left.example.label),
        places=sorted({*map(fixed, left.places)})[:PLACES],
        classes=[left.class_] if left.class_ else [],
        outcomes=_outcomes(finding, left.endings),
        trials={campaign: sum(left.endings.values())},
        replay=replay_line(CAMPAIGNS[campaign][0], load(target), "--plan", plan, "--iterations", 1),
    )
    if told is not None:
        _tell(thing, told, life)
    return thing


def _tell(thing: Thing, told: Explanation, life: Life | None) -> None:
    thing.made = life is not None and bool(life.created)
    thing.life = steady(str(life)) if life is not None else ""
    thing.functions = functions(told.stack)
    for command, line in zip(told.recovery[:1], said(told), strict=False):
        thing.cleanup = cut(steady(line.removeprefix(f"clean-up {shlex.join(command.argv)}: ")), 2 * LONGEST)


def renew(thing: Thing, explain: Explain) -> bool:
    """Explain a thing once more by its own plan, if its explanation lacks something; return whether more is known."""
    words = shlex.split(thing.replay)
    released = "released at" in thing.life
    if thing.kind == "" or (thing.told == (True, True, True) and released):
        return False
    told = explain(words[words.index("--plan") + 1])
    lives = [one for one in told.lives if one.kind == thing.kind] if told is not None else []
    same = [one for one in lives if thing.kind == "process" or alike(steady(one.label), thing.label)]
    life = next((one for one in same if one.created), None)
    if told is None or life is None:
        return False
    if (True, True, bool(functions(told.stack)), bool(life.released)) <= (*thing.told, released):
        return False
    _tell(thing, told, life)
    return True


def _life(told: Explanation | None, left: _Left) -> Life | None:
    if told is None or (example := left.example) is None:
        return None
    lives = [one for one in told.lives if one.kind == left.kind]
    same = [one for one in lives if left.kind == "process" or alike(one.label, example.label)]
    return next((one for one in same if one.created), same[0] if same else None)


def steady(text: str) -> str:
    """Return text without this machine's paths, and with N for what is another in each run: pids and drawn names."""
    for place in _INSTALLED:
        text = text.replace(place, ".targets")
    text = _TIME.sub("TIME", _PID.sub("process N ", text))
    text = _CONTAINER.sub(lambda found: found[1] + ("N-N" if found[2] else "N"), text)
    text = _DRAWN.sub(lambda found: fixed(found["path"]) if found["path"] else "N", text)
    return cut(" ".join(text.split()), 4 * LONGEST)


def cut(text: str, most: int) -> str:
    """Return at most so many characters."""
    return text if len(text) <= most else text[: most - 1] + "…"


def versions(campaign: str, before: Result, after: Result) -> Versions:
    """Return what is kept of a comparison."""
    diff = Comparison.of(before, after)
    changes = []
    for word, some in (("new", diff.new), ("still open", diff.open), ("gone", diff.gone)):
        for one in some:
            # What its replays did not show is none.
            if one.outcome in FAILING and not one.chance:
                kinds = sorted({leak.kind for leak in one.leaks if leak.class_ not in GOES})
                detail = cut(steady(one.detail), 2 * LONGEST)
                changes.append(
                    Change(word=word, outcome=one.outcome, kinds=kinds, trials=one.trials, plan=one.plan, detail=detail)
                )
    named = [f"{one.target} ({one.version})" for one in (before, after)]
    return Versions(
        campaign=campaign, before=named[0], after=named[1], trials=[before.trials, after.trials], changes=changes
    )


def page(kept: Sequence[Swept], compared: Sequence[Versions]) -> list[str]:
    """Return the lines of the page."""
    found: dict[str, dict[str, Swept]] = {}
    for one in sorted(kept, key=lambda one: (one.target, [*CAMPAIGNS].index(one.campaign))):
        found.setdefault(one.target, {})[one.campaign] = one
    things = {target: _things(by_campaign) for target, by_campaign in found.items()}
    count, sandboxes = sum(map(len, things.values())), sum(map(bool, things.values()))
    apart = sum(map(_distinct, things.values()))
    lines = [f"**{count} findings in {sandboxes} of {len(found)} targets**; {apart}, if what a kill leaves and what a"]
    lines += ["failing step leaves counts as one where it is the same thing.", "", *_summary(found, things)]
    lines += [
        "",
        "## Lies",
        "",
        *_lies(found),
        "",
        "## Versions",
        *(line for one in compared for line in _versions(one)),
    ]
    for target, some in things.items():
        if some:
            lines += ["", f"## {target}", "", *(line for one in some for line in _details(one))]
    return lines


def _things(by_campaign: Mapping[str, Swept]) -> list[Thing]:
    """Return what trials of one target left, the worst first."""
    found: list[Thing] = []
    for campaign in TITLES:
        if campaign in by_campaign:
            merge(found, msgspec.json.decode(msgspec.json.encode(by_campaign[campaign].things), type=list[Thing]))
    # What every run leaves has no other cause.
    for one in [one for one in found if not one.killed and one.always]:
        if (killed := next((other for other in found if other.killed and other.same(one)), None)) is not None:
            killed.trials |= one.trials
            found.remove(one)
    return sorted(found, key=lambda one: (-FAILING.index(one.outcome), -sum(one.trials.values())))


def _distinct(some: Sequence[Thing]) -> int:
    """Return how many things these are, whatever the cause."""
    return sum(not any(map(one.same, some[:at])) for at, one in enumerate(some))


def _summary(found: Mapping[str, Mapping[str, Swept]], things: Mapping[str, list[Thing]]) -> Iterator[str]:
    yield "| target | campaign | calls | tried | outcomes | findings |"
    yield "|---|---|---|---|---|---|"
    for target, by_campaign in found.items():
        first = next(iter(by_campaign.values()))
        name = f"{target} ({first.version})" if first.version else target
        for campaign, title in TITLES.items():
            if (one := by_campaign.get(campaign)) is not None:
                outcomes = ", ".join(f"{count} {outcome}" for outcome, count in one.outcomes.items())
                own = sum(campaign in thing.trials for thing in things[target])
                yield f"| {name} | {title} | {one.calls} | {_tried(one)} | {outcomes or '—'} | {own} |"
                name = ""


def _tried(one: Swept) -> str:
    return f"all {one.plans}" if one.tried >= one.plans else f"{one.tried} of {one.plans}, seed {one.seed}"


def _lies(found: Mapping[str, Mapping[str, Swept]]) -> Iterator[str]:
    yield "| target | tried | lies told | with another end state | of these, reported |"
    yield "|---|---|---|---|---|"
    for target, by_campaign in found.items():
        if (one := by_campaign.get("lies")) is not None and (lied := one.lied) is not None:
            share = lied.reported if lied.changed else "—"
            yield f"| {target} | {_tried(one)} | {lied.told} | {lied.changed} | {share} |"


def _details(one: Thing) -> Iterator[str]:
    what = f"{one.kind} ({', '.join(one.classes)}) {code(one.label)}" if one.kind else code(one.label)
    trials = ", ".join(
        f"{one.trials[campaign]} {title}" for campaign, title in TITLES.items() if campaign in one.trials
    )
    yield f"- **{one.outcome}**: {what}; {trials}"
    if one.life:
        yield f"  - {code(one.life, 4 * LONGEST)}"
    if one.functions:
        yield f"  - in {', called by '.join(code(name) for name in one.functions)}"
    if one.cleanup:
        yield f"  - its clean-up command: {code(one.cleanup, 2 * LONGEST)}"
    yield f"  - {code(one.replay, 1000)}"


def _versions(one: Versions) -> Iterator[str]:
    trials = f"{TITLES[one.campaign]}, {one.trials[0]} and {one.trials[1]} trials"
    end = [":", ""] if one.changes else [": no finding in either."]
    yield from ("", f"`leakcheck diff` from {one.before} to {one.after}, {trials}{end[0]}", *end[1:])
    for change in one.changes:
        kinds = " and ".join(change.kinds) or "nothing"
        what = f"{change.outcome}, {kinds} left in {change.trials} trials"
        yield f"- {change.word}: {what}, as after {code(change.plan, 1000)}"
        yield from [f"  - {code(change.detail, 2 * LONGEST)}"] if change.detail else []


def code(text: str, most: int = LONGEST) -> str:
    """Return it as code within a line."""
    return f"`{cut(text.replace('`', chr(39)), most)}`"


def to_json(one: Swept | Versions) -> str:
    """Encode it, with a line for each field."""
    return msgspec.json.format(msgspec.json.encode(one, order="deterministic"), indent=1).decode() + "\n"


def kept(file: Path) -> Swept:
    """Return what a file keeps."""
    return msgspec.json.decode(file.read_bytes(), type=Swept)


def read(directory: Path) -> tuple[list[Swept], list[Versions]]:
    """Return what a directory keeps."""
    swept: list[Swept] = []
    compared: list[Versions] = []
    for file in sorted(directory.glob("*/*.json")):
        if file.parent.name == "versions":
            compared.append(msgspec.json.decode(file.read_bytes(), type=Versions))
        else:
            swept.append(msgspec.json.decode(file.read_bytes(), type=Swept))
    return swept, compared
