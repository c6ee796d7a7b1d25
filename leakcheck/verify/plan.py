"""What the plan asks, and how much of it each profile tries.

The requirements are R1 to R8 of QA-REL-001, "stress and crash reliability".
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import msgspec

from leakcheck.errors import UsageError

Profile = Literal["quick", "full", "release"]
_SECONDS = 40
"""How long a sweep of the quick profile tries points; those of refbox and bubblewrap take less."""


def part_name(requirement: str, campaign: str, label: str) -> str:
    """Return the name of a part of the requirement of this id."""
    return " ".join(filter(None, (requirement, campaign, label)))


class Part(msgspec.Struct, frozen=True):
    """One campaign of a requirement, and its options. `label` tells several of one requirement apart."""

    campaign: str
    options: Mapping[str, Any]
    label: str = ""

    def name_in(self, requirement: str) -> str:
        """Return its name in a requirement of this id, such as ``R3 crash timeout``."""
        return part_name(requirement, self.campaign, self.label)


class Requirement(msgspec.Struct, frozen=True, kw_only=True):
    """One requirement of the plan, such as ``R3``, and what is run for it."""

    id: str
    title: str
    parts: Sequence[Part]


def plan_of(profile: Profile) -> list[Requirement]:
    """Return the requirements of the plan, with as much of each as `profile` asks for.

    ``quick`` draws from each within minutes; ``full`` visits every crash point, call, damage and limit; ``release`` has
    the numbers of the document besides: 10,000 submissions, a minute of 100 at a time, 1,000 runs of each ending.
    """
    quick, release = profile == "quick", profile == "release"
    some = {"profile": "quick" if quick else "full"}
    within = {"within": _SECONDS} if quick else {}
    endings = ["normal"] if quick else ["normal", "timeout", "crash"]
    load = {"submissions": 10_000 if release else 200 if quick else 2000} | ({"duration": 60} if quick else {})
    crowd: dict[str, Any] = {"concurrency": 100} | (
        {"duration": 60} if release else {"submissions": 200 if quick else 1500}
    )
    crash = [
        Part("crash", {"ending": ending, "schedule": "immediate" if quick else "both"} | within, ending)
        for ending in endings
    ]
    modes = ["fail"] if quick else ["fail", "after", "delay"] if release else ["fail", "after"]
    faults = [Part("faults", {"mode": mode} | within, mode) for mode in modes]
    return [
        Requirement(id="R1", title="long run", parts=[Part("stress", load)]),
        Requirement(id="R2", title="concurrency", parts=[Part("stress", crowd)]),
        Requirement(id="R3", title="crash points", parts=crash),
        Requirement(id="R4", title="clean-up faults", parts=faults),
        Requirement(id="R5", title="exhaustion", parts=[Part("exhaust", some)]),
        Requirement(
            id="R6",
            title="leaks",
            parts=[Part("leaks", {"iterations": 4000 if release else 60 if quick else 1000})],
        ),
        Requirement(id="R7", title="locks", parts=[Part("locks", some)]),
        Requirement(id="R8", title="state", parts=[Part("state", some)]),
    ]


def select(plan: Sequence[Requirement], only: Sequence[str], skip: Sequence[str]) -> list[Requirement]:
    """Return the requirements that `only` names, or all, without those that `skip` names.

    Each is an id or the name of a campaign. Raises `UsageError` for one that is neither, and if nothing is left.
    """
    known = [*(one.id for one in plan), *dict.fromkeys(part.campaign for one in plan for part in one.parts)]
    for option, words in (("--only", only), ("--skip", skip)):
        if unknown := [word for word in words if word not in known]:
            raise UsageError(f"{option} {unknown[0]!r}: one of {', '.join(known)}")

    def named(one: Requirement, words: Sequence[str]) -> bool:
        return one.id in words or any(part.campaign in words for part in one.parts)

    left = [one for one in plan if (not only or named(one, only)) and not named(one, skip)]
    if not left:
        raise UsageError(f"--skip {','.join(skip)}: nothing is left of --only {','.join(only)}; omit one of the two")
    return left
