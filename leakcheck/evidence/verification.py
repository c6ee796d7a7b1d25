"""A run of ``verify`` in a store: its campaigns are runs of their own."""

import contextlib
import time
from collections.abc import Callable, Generator, Sequence
from typing import Any, Self

import msgspec

from leakcheck.campaigns import Campaign
from leakcheck.campaigns.campaign import Options
from leakcheck.campaigns.recording import Recording
from leakcheck.errors import UsageError
from leakcheck.evidence.runs import VERIFY, Run
from leakcheck.evidence.store import Store
from leakcheck.targets import Target
from leakcheck.verify.plan import Profile, Requirement
from leakcheck.verify.recording import VerifyRecording
from leakcheck.verify.result import Verification, without_pace


@contextlib.contextmanager
def verify_recordings(
    store: Store,
    targets: Sequence[Target],
    profile: Profile,
    requirements: Sequence[Requirement],
    seed: int,
    *,
    resume: bool,
    log: Callable[[str], None],
) -> Generator[Callable[[Target], "StoreVerifyRecording"], None, None]:
    """Yield what returns the recording of one of `targets`; if `resume`, of a ``verify`` that was cut off.

    All of them begin now: those that had ended when another one was cut off are not made again.
    """
    asked: dict[str, Any] = {"profile": profile, "requirements": [one.id for one in requirements], "seed": seed}
    if len(targets) > 1:
        asked["targets"] = [target.name for target in targets]
    options = msgspec.json.encode(asked)
    goes_on = resume and any(store.is_cut_off(VERIFY, target, options) for target in targets)
    if resume and not goes_on:
        log(f"nothing to resume in {store.path}: begins anew")
    runs = [store.begin(VERIFY, target, options, resume=goes_on, ended=True) for target in targets]
    made = {
        target.name: StoreVerifyRecording(store, target, run, resume=goes_on)
        for target, run in zip(targets, runs, strict=True)
    }
    try:
        yield lambda target: made[target.name]
    finally:
        for run in runs:
            if store.run(run.id).state == "running" and not store.parts(run):
                store.forget(run)


class StoreVerifyRecording(VerifyRecording):
    """Records the ``verify`` of one target in `run`."""

    def __init__(self, store: Store, target: Target, run: Run, *, resume: bool) -> None:
        self._store, self._target, self.run, self._resume = store, target, run, resume

    def record(
        self, part: str, campaign: Campaign[Any, Any], options: Options
    ) -> contextlib.AbstractContextManager[Recording]:
        """Return the recording of the campaign of a part."""
        return self._store.record(campaign, self._target, options, resume=self._resume, parent=self.run.id, part=part)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Record what was found; the results of its campaigns are in the store already."""
        if (found := self.found) is None:
            return
        text = "UPDATE runs SET state = ?, verdict = ?, result = ?, ended = ? WHERE id = ?"
        state = "ended" if found.complete else "interrupted"
        self._store.database.change((text, [state, found.verdict, _bare(found), time.time(), self.run.id]))


def verification(store: Store, run: Run) -> Verification:
    """Return what came of a ``verify``, with the results of its campaigns.

    Raises:
        UsageError: it was cut off before it had a result.
    """
    text = store.text(run, "result")
    if not text:
        raise UsageError(f"store {store.path}: run {run.id} was cut off; go on with it by --resume")
    try:
        found = msgspec.json.decode(text, type=Verification)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise UsageError(f"store {store.path}: run {run.id} cannot be read: {error}") from error
    results = {one.part: result for one in store.parts(run) if (result := store.result(one)) is not None}
    if found.profile == "quick":
        results = {part: without_pace(result) for part, result in results.items()}
    return _each_part(found, lambda name, part: msgspec.structs.replace(part, result=results.get(name)))


def _bare(found: Verification) -> str:
    return msgspec.json.encode(_each_part(found, lambda _, part: msgspec.structs.replace(part, result=None))).decode()


def _each_part(found: Verification, change: Callable[[str, Any], Any]) -> Verification:
    requirements = [
        msgspec.structs.replace(one, parts=[change(part.name_in(one.id), part) for part in one.parts])
        for one in found.requirements
    ]
    return msgspec.structs.replace(found, requirements=requirements)
