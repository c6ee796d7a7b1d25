"""How a trial ends: by itself, by its wall limit, by a crash of the program, or by a forced kill of the supervisor.

An ending is written as a plan, which parses back: ``normal``, ``timeout``, ``crash:signal``, ``crash:exit``, and
``forced:WHO@MS[,sleeping]``, where WHO is killed MS milliseconds after the supervisor's start.
"""

import random
import re
from collections.abc import Iterator, Sequence
from typing import Literal, TypeAlias, get_args

import msgspec

from leakcheck.errors import UsageError
from leakcheck.submissions import BUILTIN, Submission

__all__ = ["ENDINGS", "KILLS", "Ending", "Kill", "parse", "schedule"]

ENDINGS = ("normal", "timeout", "crash", "forced")

Kill: TypeAlias = Literal["supervisor", "tree", "freeze"]
"""Who is killed: the launched process alone; all that runs, one after the other; all, stopped first."""
KILLS: tuple[Kill, ...] = get_args(Kill)

# Its payload outlives the kill, however long one waits for it, and is short of the campaign's patience.
_SLEEPING = Submission(name="sleeping", program=("/bin/sh", "-c", "sleep 600; exit 0"), wall=60)
_LATEST_MS = 3_600_000
_FORCED = re.compile(r"forced:([a-z]+)@(\d+(?:\.\d+)?)ms(,sleeping)?")


class Ending(msgspec.Struct, frozen=True):
    """One ending. `kill`, `after_ms` and `sleeping` are of a forced one: who, when, and whether the payload sleeps."""

    name: str
    kill: Kill | None = None
    after_ms: float = 0
    sleeping: bool = False

    @property
    def group(self) -> str:
        """Which of `ENDINGS` it is."""
        return self.name.partition(":")[0]

    @property
    def plan(self) -> str:
        """The text that `parse` reads back."""
        if self.kill is None:
            return self.name
        return f"forced:{self.kill}@{self.after_ms:.3f}ms" + (",sleeping" if self.sleeping else "")

    def submission(self, shortest_wall: float) -> Submission:
        """Return what is run; for a timeout its wall limit is `shortest_wall` seconds."""
        if self.group == "forced":
            return _SLEEPING if self.sleeping else BUILTIN["ok"]
        if self.group == "timeout":
            return msgspec.structs.replace(BUILTIN["timeout"], wall=shortest_wall)
        return BUILTIN[{"normal": "ok", "crash:signal": "crash_signal", "crash:exit": "crash_exit"}[self.name]]


def parse(plan: str) -> Ending:
    """Return the ending that `plan` describes.

    Raises:
        UsageError: it describes none.
    """
    if plan in ("normal", "timeout", "crash:signal", "crash:exit"):
        return Ending(plan)
    found = _FORCED.fullmatch(plan)
    if found is None or (kill := next((known for known in KILLS if known == found[1]), None)) is None:
        raise UsageError(
            f"plan {plan!r}: give normal, timeout, crash:signal, crash:exit or forced:WHO@MSms[,sleeping], "
            f"WHO being one of {', '.join(KILLS)}"
        )
    if float(found[2]) > _LATEST_MS:
        raise UsageError(f"plan {plan!r}: the kill comes after an hour at most, {_LATEST_MS} ms")
    return Ending("forced", kill, float(found[2]), sleeping=found[3] is not None)


def schedule(
    endings: Sequence[str], kills: Sequence[Kill], count: int, run_ms: float, generator: random.Random
) -> Iterator[Ending]:
    """Yield `count` endings, the wanted ones by rotation.

    The forced ones fall evenly over a run of `run_ms` milliseconds: one instant is drawn from each of as many equal
    stretches as there are forced endings of a kind. With every second one the payload sleeps instead of ending.
    """
    forced = count // len(endings) + ("forced" in endings[: count % len(endings)]) if "forced" in endings else 0
    # A kind is (who, sleeping or not); each sweeps the whole run by itself.
    kinds = [(kill, sleeping) for kill in kills for sleeping in (False, True)]
    instants: list[Ending] = []
    for number, (kill, sleeping) in enumerate(kinds):
        share = len(range(number, forced, len(kinds)))
        for stretch in range(share):
            # Past the median end by a quarter, as runs vary.
            at = (stretch + generator.random()) / share * run_ms * 1.25
            instants.append(Ending("forced", kill, round(at, 3), sleeping))
    generator.shuffle(instants)
    for number in range(count):
        ending = endings[number % len(endings)]
        if ending == "forced":
            yield instants.pop()
        elif ending == "crash":
            yield Ending("crash:signal" if number // len(endings) % 2 == 0 else "crash:exit")
        else:
            yield Ending(ending)
