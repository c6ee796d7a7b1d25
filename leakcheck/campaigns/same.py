"""Which trials show the same: one leak is one finding, in however many endings it comes."""

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence

from msgspec.structs import replace

from injectors import injector_for
from leakcheck.trials.remnant import Remnant
from leakcheck.trials.similarity import RANDOM, alike, fixed
from leakcheck.trials.trial import Trial

# A process that stays keeps these, so they are parts of its leak.
_KEPT_BY_PROCESS = {"cgroup", "fd", "lock", "mount", "namespace", "net"}
# The kinds by which a leak is known, the first of them that it has; then any other.
_KNOWN_BY = ("process", "mount", "file", "cgroup")
_GOES = {"reclaimable", "bounded"}
# Places of one trial, or of one form, that are compared.
_MOST = 64
_WORD = re.compile(r"\w+")

_Parts = tuple[tuple[str, str, bool], ...]


def groups(trials: Iterable[Trial]) -> Iterator[tuple[tuple[Hashable, ...], list[Trial]]]:
    """Yield trials that show the same, with what that is: the same in every campaign. A trial may show several things.

    It is the same if independent leaks of the same kinds stay, left by the same stages, and the trials share a place,
    or a program, of the first kind: then it is one leak, whatever ended the run and whether the recovery said that it
    succeeded. What does not stay, and what stays in no place that another ending shares, is another finding.
    """
    shown = [one for trial in trials for one in _shown(trial)]
    names: dict[str, dict[str, str]] = defaultdict(dict)
    for kind, places in _places_of(left for what, trial, _ in shown for left in _lasting(what, trial)).items():
        names[kind] = _names(places)
    steady = {
        (*_part(one), names[one.kind][one.place])
        for what, trial, _ in shown
        if what == "stays" and injector_for(trial.case.plan).harmless
        for one in _lasting(what, trial)
    }
    found: dict[tuple[str, _Parts, str], list[tuple[Trial, list[str]]]] = defaultdict(list)
    for what, trial, detail in shown:
        for view in _apart(trial, lambda one: (*_part(one), names[one.kind][one.place]) in steady, what):
            left = _lasting(what, view)
            parts = _parts(left)
            found[what, parts, detail].append((view, [names[one.kind][one.place] for one in _first(left, parts)]))
    for (what, parts, detail), some in found.items():
        for place, same in _connected(some):
            yield (what, parts, detail, place), same


def _lasting(what: str, trial: Trial) -> list[Remnant]:
    """Return what is compared: beside what stays, the rest is noise."""
    return [one for one in trial.left if what != "stays" or one.class_ not in _GOES]


def _apart(trial: Trial, steady: Callable[[Remnant], bool], what: str) -> Iterator[Trial]:
    """Yield what a fault left apart from what runs without one leave, which is a finding of theirs."""
    if what != "stays" or injector_for(trial.case.plan).harmless:
        yield trial
        return
    left = _lasting(what, trial)
    independent = {kind for kind, _, _ in _parts(left)}
    also = [one for one in left if one.kind in independent and steady(one)]
    rest = [one for one in trial.left if one not in also]
    if also and any(one.kind in independent and not one.inner for one in _lasting(what, replace(trial, left=rest))):
        yield replace(trial, left=also, outcomes=frozenset({"leaked"}), detail="")
        yield replace(trial, left=rest)
    else:
        yield trial


def _shown(trial: Trial) -> Iterator[tuple[str, Trial, str]]:
    """Yield what a trial shows: an outcome, the trial as far as it is about that, and a message that belongs to it."""
    if trial.outcome == "clean":
        return
    if not any(one.class_ not in _GOES for one in trial.left):
        # If something is left, that is why the next submission fails, with one message or another.
        yield trial.outcome, trial, "" if trial.left and trial.outcome == "wedged" else fixed(trial.detail)
        return
    if trial.wrong:
        alone = replace(trial, outcomes=frozenset({"false-status"}), left=[], detail=trial.wrong)
        yield "false-status", alone, fixed(trial.wrong)
        detail = trial.detail.removesuffix(trial.wrong).removesuffix("; ")
        trial = replace(trial, outcomes=trial.outcomes - alone.outcomes, detail=detail)
    yield "stays", trial, ""


def _part(one: Remnant) -> tuple[str, str, bool]:
    """Return kind, stage, and whether it is damage."""
    # The next run is a normal one.
    return one.kind, "run" if one.stage == "next run" else one.stage, one.class_ == "damaged"


def _parts(left: Sequence[Remnant]) -> _Parts:
    """Return those of the independent leaks."""
    kinds = {_part(one) for one in left}
    processes = {stage for kind, stage, _ in kinds if kind == "process"}

    def kept(kind: str, stage: str, damage: bool) -> bool:
        return kind in _KEPT_BY_PROCESS and stage in processes and not damage

    return tuple(sorted(one for one in kinds if not kept(*one)))


def _first(left: Sequence[Remnant], parts: _Parts) -> list[Remnant]:
    """Return the leaks of the first kind, without those that are inside another one."""
    kinds = {kind for kind, _, _ in parts}
    first = next((kind for kind in (*_KNOWN_BY, *sorted(kinds)) if kind in kinds), None)
    known = [one for one in left if one.kind == first]
    return ([one for one in known if not one.inner] or known)[:_MOST]


def _places_of(left: Iterable[Remnant]) -> dict[str, set[str]]:
    places: dict[str, set[str]] = defaultdict(set)
    for one in left:
        places[one.kind].add(one.place)
    return places


def _connected(some: Sequence[tuple[Trial, list[str]]]) -> Iterator[tuple[str, list[Trial]]]:
    """Yield the trials that share a place, directly or by others, with the name of what they share."""
    group_of: dict[str, str] = {}

    def top(name: str) -> str:
        while (up := group_of.setdefault(name, name)) != name:
            name = up
        return name

    named = [(trial, sorted(set(names)) or [""]) for trial, names in some]
    for _, names in named:
        for name in names:
            group_of[top(name)] = top(names[0])
    groups: dict[str, list[tuple[Trial, list[str]]]] = defaultdict(list)
    for trial, names in named:
        groups[top(names[0])].append((trial, names))
    for same in groups.values():
        counts = Counter(name for _, names in same for name in names)
        most = max(counts.values())
        # Not just the most frequent one: of two that come together, either may be in one trial more.
        yield min(name for name, count in counts.items() if 2 * count >= most), [trial for trial, _ in same]


def _names(places: Iterable[str]) -> dict[str, str]:
    """Return the name of each place without numbers and random names: one for all that are alike."""
    first_of: dict[str, str] = {}
    for place in sorted(places):
        first_of.setdefault(fixed(place), place)
    # Those of which most is known to vary come first. Only they can be the same as others, which have such a form.
    varying: dict[str, list[str]] = defaultdict(list)
    same: dict[str, str] = {}
    for name in sorted(first_of, key=lambda name: (-_varying(name), name)):
        first = first_of[name]
        known = varying[
            _WORD.sub(lambda word: "*" if len(word[0]) >= RANDOM or "N" in fixed(word[0]) else word[0], first)
        ]
        same[name] = next((one for one in known if alike(first_of[one], first)), name)
        if same[name] == name != first and len(known) < _MOST:
            known.append(name)
    return {place: same[fixed(place)] for place in places}


def _form(word: re.Match[str]) -> str:
    return "*" if len(word[0]) >= RANDOM or "N" in fixed(word[0]) else word[0]


def _varying(name: str) -> int:
    return sum(word == "N" for word in re.split(r"\W", name))
