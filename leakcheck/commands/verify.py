"""The command `verify`: the plan for one target, or for several one after the other."""

import contextlib
import functools
import itertools
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path

from rich.console import Console
from rich.text import Text

from leakcheck.campaigns import CAMPAIGNS
from leakcheck.commands import EXIT_OF, INTERRUPTED
from leakcheck.commands.metered import UNWATCHED, Metered, Watch
from leakcheck.commands.progress import Progress
from leakcheck.deliver import check_apart, deliver, notify, output_to, show_progress
from leakcheck.errors import UsageError
from leakcheck.render import print_lines
from leakcheck.report import Verdict
from leakcheck.reports.files import Reports
from leakcheck.reports.of_verify import of_verify
from leakcheck.subprocesses import Interrupts, in_background
from leakcheck.targets import Target, load
from leakcheck.trials.executor import Ui
from leakcheck.verify import Part, Profile, Requirement, Verification, Verifications, plan_of, select, verify
from leakcheck.verify.recording import VerifyRecording
from leakcheck.verify.render import comparison, page
from leakcheck.warden import shutdown

_PATIENCE = 50
"""Extra seconds, beyond a single command's, that running trials have to end after we were asked to end."""
_ORDER: tuple[Verdict, ...] = ("clean", "unknown", "leaked")


def run_verify(
    names: Sequence[str],
    profile: Profile,
    only: Sequence[str],
    skip: Sequence[str],
    output: Path | None,
    reports: Sequence[Path],
    *,
    seed: int,
    compare: bool,
    as_json: bool,
    watch: Watch = UNWATCHED,
    store: Path | None = None,
    resume: bool = False,
) -> int:
    """Run the plan for each target; the exit code is that of the worst verdict, 130 if interrupted.

    `only` and `skip` name requirements or campaigns. Everything is recorded in `store`; if `resume`, what was cut off
    there goes on. After each requirement, what there is goes to `output`, and at the
    end to each of the `reports`, in the format that its suffix names.
    """
    if resume and store is None:
        raise UsageError("--resume: goes on with a run of a store; name it by --store FILE")
    check_apart(store, output, reports, watch.file)
    targets = _targets(names, compare=compare)
    requirements = select(plan_of(profile), only, skip)
    with contextlib.ExitStack() as stack:
        metered = stack.enter_context(watch.open())
        place = stack.enter_context(output_to(output))
        written = stack.enter_context(Reports(reports))
        recorded = stack.enter_context(_recorder(store, targets, profile, requirements, seed, resume=resume))
        interrupts = stack.enter_context(Interrupts())
        found: list[Verification] = []

        def keep(one: Verification) -> None:
            # Those of earlier requirements are counted.
            for result in [*one.results][-1:]:
                metered.result(one.target, result.campaign, result, final=True)
            if place is None or not place.replaceable:
                return
            try:
                place.save(Verifications(targets=[*found, one]).to_json())
            except UsageError as error:
                notify(f"the result so far is not kept: {error}")

        def work() -> None:
            for target in targets:
                if not interrupts.seen():
                    ui = functools.partial(_progress, target, metered)
                    run = functools.partial(verify, target, profile, requirements, seed=seed, ui=ui, keep=keep)
                    with recorded(target) as recording:
                        found.append(run(stop=interrupts.seen, record=recording.record))
                        recording.found = found[-1]

        try:
            in_background(work, interrupts, _PATIENCE)
        finally:
            show_progress("")
        shutdown()
        code = EXIT_OF[max((one.verdict for one in found), key=_ORDER.index)]
        shown = itertools.chain.from_iterable(map(page, found))
        if compare and len(found) == len(targets):
            shown = itertools.chain(shown, comparison(found))
        everything = Verifications(targets=found)
        show = None if as_json else functools.partial(_show, shown)
        code = deliver(code, everything.to_json(), place, show)
        code = written.write(code, lambda: of_verify(everything))
        return INTERRUPTED if interrupts.seen() else code


@contextlib.contextmanager
def _recorder(
    path: Path | None,
    targets: Sequence[Target],
    profile: Profile,
    requirements: Sequence[Requirement],
    seed: int,
    *,
    resume: bool,
) -> Generator[Callable[[Target], contextlib.AbstractContextManager[VerifyRecording]], None, None]:
    """Yield what returns the recording of a target."""
    if path is None:
        yield lambda _: contextlib.nullcontext(VerifyRecording())
        return
    # Imported here: most are not recorded.
    from leakcheck.evidence import Store, verify_recordings

    with (
        Store(path, create=True) as store,
        verify_recordings(store, targets, profile, requirements, seed, resume=resume, log=notify) as recorded,
    ):
        yield recorded


def _targets(names: Sequence[str], *, compare: bool) -> list[Target]:
    """Return the targets, each of which is ready."""
    if compare and len(names) < 2:
        raise UsageError("--compare: give two targets at least, each with a --target of its own")
    targets = [load(name) for name in names]
    called = [target.name for target in targets]
    if twice := [name for number, name in enumerate(called) if name in called[:number]]:
        raise UsageError(f"--target: two of them have the name {twice[0]!r}; their results are told apart by it")
    for target in targets:
        target.check_ready()
    return targets


def _progress(target: Target, metered: Metered, name: str, part: Part) -> Ui:
    limit = part.options.get("within") or part.options.get("duration")
    shown = Progress(f"{target.name} {name}", CAMPAIGNS[part.campaign].unit, limit)
    shown.log("begins")
    return metered.ui(shown, target.name, part.campaign)


def _show(shown: Iterator[Text]) -> None:
    print_lines(shown, Console(stderr=True))
