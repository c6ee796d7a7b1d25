"""The command of each campaign, built from its options: progress on stderr, the result printed and saved."""

import contextlib
import functools
import inspect
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, get_args, get_type_hints

import msgspec
import typer
from rich.console import Console
from rich.text import Text

from leakcheck.atomic_write import Output
from leakcheck.campaigns import Campaign, Result
from leakcheck.campaigns.campaign import Option, Options
from leakcheck.campaigns.criteria import UNSEEN
from leakcheck.campaigns.engine import run
from leakcheck.campaigns.recording import Recording
from leakcheck.commands import EXIT_OF, INTERRUPTED, LEAKED
from leakcheck.commands.defaults import from_file, given_of
from leakcheck.commands.metered import UNWATCHED, Metered, Watch
from leakcheck.commands.progress import Progress
from leakcheck.deliver import check_apart, deliver, notify, output_to, show_progress
from leakcheck.errors import StoppedError, UsageError
from leakcheck.renamed import notify_renamed
from leakcheck.render import print_lines
from leakcheck.reports.figures import Curves
from leakcheck.reports.files import Reports
from leakcheck.reports.of_campaign import of_campaign
from leakcheck.subprocesses import Interrupts, in_background
from leakcheck.targets import Target, load
from leakcheck.warden import shutdown

_REPLAY = ("plan", "explain", "specs", "specs_was")
"""Options of replay lines."""
_PATIENCE = 50
"""Extra seconds, beyond a single command's, that running trials have to end after we were asked to end."""


def command_of(campaign: Campaign[Any, Any], **common: tuple[Any, Any]) -> Callable[..., None]:
    """Return the command that runs `campaign`, for typer; `common` are kind and default of the others."""
    fields = dict(_fields(campaign.options))
    defaults = {field.name: field.default for field in msgspec.structs.fields(campaign.options)}
    parameters = {"target": common["target"]}
    for name, (inner, option) in fields.items():
        kind = (list[str] | None if option.repeated else str | None) if option.parse else inner
        info = typer.Option(option.name or f"--{name.replace('_', '-')}", metavar=option.metavar, help=option.help)
        # A default that is a list of words is given, and shown, as on the command line.
        default = _shown(defaults[name]) if option.parse else defaults[name]
        parameters[name] = Annotated[kind, info], default
        if option.was:
            parameters[f"{name}_was"] = Annotated[str | None, typer.Option(option.was, hidden=True)], None
    parameters |= {name: one for name, one in common.items() if name != "target"}

    def command(
        context: typer.Context,
        target: str,
        json: bool,
        output: Path | None,
        report: Sequence[Path] | None = None,
        store: Path | None = None,
        resume: bool = False,
        **given: Any,
    ) -> None:
        chosen = {}
        # A replay line says all that it needs.
        unused = from_file(context) if given_of(context, _REPLAY) else set()
        for name, (_, option) in fields.items():
            value = None if name in unused else given[name]
            if option.was and (old := given[f"{name}_was"]) is not None:
                notify_renamed(campaign.name, option.was, option.name)
                value = [*(value or []), old]
            if value is not None:
                chosen[name] = option.parse(value) if option.parse else value
        watch = Watch(given["metrics"], given["metrics_file"], given["metrics_prefix"])
        options = campaign.options(**chosen)
        code = run_campaign(
            campaign,
            load(target),
            options,
            output,
            report or [],
            watch=watch,
            as_json=json,
            store=store,
            resume=resume,
            cluster=given.get("cluster"),
        )
        raise typer.Exit(code)

    command.__name__, command.__doc__ = campaign.name, campaign.question
    parameters = {"context": (typer.Context, inspect.Parameter.empty)} | parameters
    command.__annotations__ = {name: kind for name, (kind, _) in parameters.items()} | {"return": None}
    command.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=kind)
            for name, (kind, default) in parameters.items()
        ]
    )
    return command


def _shown(default: Any) -> str | None:
    """Return a default as on the command line; None if its help says it."""
    return ",".join(default) or None if isinstance(default, (list, tuple)) else None


def _fields(options: type[Options]) -> Iterator[tuple[str, tuple[Any, Option]]]:
    """Yield the fields that are command line options, with their types; the campaign's own come first."""
    hints = get_type_hints(options, include_extras=True)
    for owner in options.__mro__:
        for name in inspect.get_annotations(owner):
            for extra in getattr(hints.get(name), "__metadata__", ()):
                if isinstance(extra, Option):
                    yield name, (get_args(hints[name])[0], extra)


def run_campaign(
    campaign: Campaign[Any, Any],
    target: Target,
    options: Options,
    output: Path | None,
    reports: Sequence[Path] = (),
    *,
    watch: Watch = UNWATCHED,
    as_json: bool,
    store: Path | None = None,
    resume: bool = False,
    cluster: str | None = None,
) -> int:
    """Run the campaign; the exit code is the verdict's, 1 if a `strict` campaign failed, 130 if interrupted.

    What was not fully seen is no failure. The result goes to `output`, and to each of the `reports`, in the format that
    its suffix names. The campaign is recorded in `store`; if `resume`, one that was cut off there goes on. With
    `cluster`, its workers run it.
    """
    options.check()
    if campaign.streams and store is None:
        raise UsageError(f"{campaign.name}: its submissions are too many for the memory; name a store by --store FILE")
    if resume and store is None:
        raise UsageError("--resume: goes on with a run of a store; name it by --store FILE")
    if cluster is not None and store is None:
        raise UsageError("--cluster: the shards are kept in a store; name it by --store FILE")
    check_apart(store, output, reports, watch.file)
    if cluster is None:
        target.check_ready()
    progress = Progress(target.name, campaign.unit, options.limit_s)
    with contextlib.ExitStack() as stack:
        metered, place = stack.enter_context(watch.open()), stack.enter_context(output_to(output))
        written = stack.enter_context(Reports(reports))
        recording = Recording()
        if cluster is None:
            recording = stack.enter_context(
                _recorded(campaign, target, options, store, resume=resume, sampled=bool(reports))
            )
        interrupts = stack.enter_context(Interrupts())
        began = time.monotonic()
        try:
            kept = [_counting(metered, target, campaign)] if watch.watched else []
            kept += [] if place is None or not place.replaceable else [_keeping(place)]
            keep = functools.partial(_each, kept) if kept else None
            ui = metered.ui(progress, target.name, campaign.name)
            work = functools.partial(
                run, campaign, target, options, ui, stop=interrupts.seen, recording=recording, keep=keep
            )
            if cluster is not None and store is not None:
                # Imported here: Dask takes as long as all the rest.
                from leakcheck.cluster import run_on_cluster

                work = functools.partial(
                    run_on_cluster, cluster, campaign, target, options, store, ui, stop=interrupts.seen, resume=resume
                )
            result = in_background(work, interrupts, _PATIENCE)
            metered.result(target.name, campaign.name, result, final=True)
        except StoppedError as stopped:
            show_progress("")
            shutdown()
            notify(f"{stopped}: no result")
            return INTERRUPTED
        finally:
            show_progress("")
        shutdown()
        failed = [name for name in result.failed if not name.endswith(UNSEEN)]
        code = LEAKED if campaign.strict and failed else EXIT_OF[result.verdict]
        shown = None if as_json else campaign.shown(options, result)
        code = deliver(code, result.to_json(), place, None if shown is None else functools.partial(_show, shown))
        took = time.monotonic() - began
        code = written.write(code, lambda: of_campaign(result, took, _curves(recording)))
        return INTERRUPTED if interrupts.seen() else code


def _each(kept: Sequence[Callable[[Result], None]], result: Result) -> None:
    for keep in kept:
        keep(result)


def _counting(metered: Metered, target: Target, campaign: Campaign[Any, Any]) -> Callable[[Result], None]:
    return lambda result: metered.result(target.name, campaign.name, result, final=False)


@contextlib.contextmanager
def _recorded(
    campaign: Campaign[Any, Any], target: Target, options: Options, path: Path | None, *, resume: bool, sampled: bool
) -> Generator[Recording, None, None]:
    if path is None and not sampled:
        yield Recording()
        return
    # Imported here: most campaigns are not recorded.
    from leakcheck.evidence import Store
    from leakcheck.evidence.resources import Sampled

    if path is None:
        yield Sampled()
        return

    with (
        Store(path, create=True) as store,
        store.record(campaign, target, options, resume=resume, log=notify) as recording,
    ):
        yield recording


def _curves(recording: Recording) -> Iterator[Curves]:
    """Yield the curves of what leakcheck used, if it was sampled."""
    if samples := recording.samples():
        from leakcheck.evidence.resources import resource_curves

        yield from resource_curves(samples)


def _keeping(place: Output) -> Callable[[Result], None]:
    return lambda result: place.save(result.to_json())


def _show(shown: Iterator[Text] | str) -> None:
    if isinstance(shown, str):
        print(shown, flush=True)
    else:
        print_lines(shown, Console(stderr=True))
