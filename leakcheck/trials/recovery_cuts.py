"""Power cuts during the recovery that follows a power cut: what its own writes leave, if they are lost or cut short."""

from collections.abc import Sequence

import msgspec

from injectors import Plan
from injectors.crash import recording
from injectors.damages import model_of
from injectors.history import History, history_of, watched
from injectors.state import state_plan
from leakcheck.errors import StoppedError, TargetError, UnavailableError
from leakcheck.targets import Target
from leakcheck.trials import open_host
from leakcheck.trials.boot import warm_up_after_boot
from leakcheck.trials.disk import disks
from leakcheck.trials.power import Cut, on_disk, write_disk
from leakcheck.trials.runner import Stop
from leakcheck.trials.session import Session

__all__ = ["recovery_cuts"]


def recovery_cuts(target: Target, plan: Plan, cut: Cut, stop: Stop) -> tuple[dict[Plan, Cut], str]:
    """Return what power cuts leave during the recovery after the power cut of `plan`, by plan; and why none is known.

    That is empty if the recovery was recorded, also if it changes nothing.
    """
    declared, _, damage = plan.argument.rpartition(":")
    try:
        history = _record(target, declared, cut, stop)
    except StoppedError:
        raise
    except (TargetError, UnavailableError) as error:
        return {}, f"no power cut was tried during the recovery after {plan}: {error}"
    if not any(event.change for event in history.events):
        return {}, ""
    history = on_disk(target, history)
    paths = cut.paths | history.paths()
    model = model_of(damage)
    return {
        state_plan(declared, f"{damage}{place.removeprefix(model)}"): msgspec.structs.replace(
            cut, paths=paths, disk=disk
        )
        for place, disk in disks(history, model).items()
    }, ""


def _record(target: Target, declared: str, cut: Cut, stop: Stop) -> History:
    """Return what that recovery does; raise `TargetError` or `UnavailableError` if it fails or is not seen."""
    directories = [watched(declared)]

    def request(stage: str, number: int, payload: Sequence[str]) -> dict[str, object] | None:
        return {**recording(number, payload, every=True), "files": directories} if stage == "recover" else None

    with open_host(target, 0, live=False) as host:
        session = Session(target, host, cut.box.number, stop=stop)
        if wrong := warm_up_after_boot(session):
            raise TargetError(f"warm-up run: {wrong}")
        session.box = msgspec.structs.replace(session.box, name=cut.box.name, run=cut.box.run)
        write_disk(host.root, cut)
        with session.tracing(request) as tracing:
            wrong = session.recover()
            if tracing.failing():
                raise TargetError("it uses ptrace itself: its writes are not seen")
            if wrong:
                # The trial without the second power cut finds it.
                raise TargetError(wrong)
            history = history_of(tracing.reports("recover"), target.filled(directories[0], session.box))
            if history is None:
                raise TargetError("its writes were not seen")
            return history
