"""What is known of a target's locks before they are tried: its crash points, and what its lock files contain."""

from pathlib import Path

import msgspec

from injectors import injector_for
from injectors.crash import crash_once_payload_runs
from injectors.damages import Found
from injectors.locks import lock_plan
from leakcheck.errors import TargetError
from leakcheck.submissions import BUILTIN
from leakcheck.targets import Target
from leakcheck.targets.adapter import Locks
from leakcheck.trials import open_host
from leakcheck.trials.contender_program import HOLDER, PROGRAMS
from leakcheck.trials.contest import run_contest
from leakcheck.trials.crash_points import Recorded, record_twice
from leakcheck.trials.lock_state import locks_on_disk
from leakcheck.trials.payload import SLEEPING
from leakcheck.trials.rootfs import find
from leakcheck.trials.runner import Stop
from leakcheck.trials.session import Session
from leakcheck.trials.state_files import found_at

# What the class of a point on a lock has in it, if its operation is no lock itself.
_WORD = "lock"


class LockFacts(msgspec.Struct, frozen=True):
    """The crash points of a run, and of a recovery, in order, and the content of each lock file by its adapter's name.

    `lasting` are the files that are there while nobody has the box, too. `queues`: there is a launch that waits for it.
    `disk`: some files are there after the next boot.
    """

    points: list[Recorded] = []
    recovery: list[Recorded] = []
    contents: dict[str, Found] = {}
    lasting: frozenset[str] = frozenset()
    queues: bool = False
    disk: bool = False

    def chosen(self, locks: int, others: int) -> list[Recorded]:
        """Return at most so many points of a run on locks, and so many others, from the first to the last."""
        return _chosen(self.points, locks, others)

    def of_recovery(self, locks: int, others: int) -> list[Recorded]:
        """Return those of the recovery, chosen in the same way."""
        return _chosen(self.recovery, locks, others)


def _chosen(points: list[Recorded], locks: int, others: int) -> list[Recorded]:
    on_locks = [at for at, one in enumerate(points) if _is_lock(one)]
    rest = [at for at in range(len(points)) if at not in on_locks]
    return [points[at] for at in sorted({*_spread(on_locks, locks), *_spread(rest, others)})]


def _spread(places: list[int], most: int) -> list[int]:
    count = min(most, len(places))
    return [places[at * (len(places) - 1) // max(1, count - 1)] for at in range(count)]


def _is_lock(one: Recorded) -> bool:
    return one.point.operation == "lock" or _WORD in one.point.class_


def _of_contender(one: Recorded) -> Recorded:
    """Return the point of a contender's run: its payload's program is another one."""
    if one.point.operation != "execve" or (one.phase, one.after) != ("setup", "execution"):
        return one
    point = msgspec.structs.replace(one.point, class_=f"{PROGRAMS}/N", ordinal=1)
    return msgspec.structs.replace(one, point=point)


def record_locks(target: Target, stop: Stop) -> LockFacts:
    """Record them; raise `TargetError` if the run is not right, or none of the declared lock files is there."""
    recorded = record_twice(target, BUILTIN["ok"], recovery=False, stop=stop).points
    points = [_of_contender(one) for one in recorded if one.point.stage in ("launch", "finish") and not one.notified]
    recovery = []
    if target.adapter.recover:
        recovered = record_twice(target, BUILTIN["ok"], recovery=True, stop=stop).points
        recovery = [one for one in recovered if one.point.stage == "recover" and not one.notified]
    locks = target.adapter.locks or Locks()
    with open_host(target, 0, live=False) as host:
        session = Session(target, host, stop=stop)
        if wrong := session.again():
            raise TargetError(f"{target.name}: warm-up run: {wrong}")
        lasting = frozenset(one for one in locks.files if [*find(host.root, target.filled(one, session.box))])
        # Whether the payload can be seen at all.
        session.renew()
        run_contest(session, injector_for(lock_plan("contend=2")), session.prepare(HOLDER))
        session.renew()
        with session.tracing(lambda stage, _, payload: crash_once_payload_runs(payload) if stage == "launch" else None):
            session.run_crashed(session.prepare(SLEEPING), SLEEPING)
        found = {one: [*find(host.root, target.filled(one, session.box))] for one in locks.files}
        contents = {
            one: found_at(host, Path(paths[0]), directories="*" not in one) for one, paths in found.items() if paths
        }
        disk = bool(locks_on_disk(session, locks))
    if absent := [one for one in locks.files if one not in contents]:
        hint = f"mend locks.files in {target.path}"
        raise TargetError(f"{target.name}: while its payload runs there is no {absent[0]}; {hint}")
    return LockFacts(points, recovery, contents, lasting, queues=bool(locks.waiting), disk=disk)
