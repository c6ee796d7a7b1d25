"""The command of each campaign, built from its options: progress on stderr, the result printed and saved."""

import functools
import inspect
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
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
from leakcheck.commands import EXIT_OF, INTERRUPTED, LEAKED
from leakcheck.deliver import deliver, notify, output_to, show_progress
from leakcheck.errors import StoppedError
from leakcheck.printable import printable
from leakcheck.renamed import notify_renamed
from leakcheck.render import print_lines
from leakcheck.subprocesses import Interrupts, in_background
from leakcheck.targets import Target, load
from leakcheck.trials.executor import Ui
from leakcheck.trials.record import Record
from leakcheck.warden import shutdown

_PATIENCE = 50
"""Extra seconds, beyond a single command's, that running trials have to end after we were asked to end."""


def command_of(campaign: Campaign[Any, Any], **common: tuple[Any, Any]) -> Callable[..., None]:
    """Return the command that runs `campaign`, for typer; `common` are kind and default of target, json and output."""
    fields = dict(_fields(campaign.options))
    defaults = {field.name: field.default for field in msgspec.structs.fields(campaign.options)}
    parameters = {"target": common["target"]}
    for name, (inner, option) in fields.items():
        kind = (list[str] | None if option.repeated else str | None) if option.parse else inner
        info = typer.Option(option.name or f"--{name.replace('_', '-')}", metavar=option.metavar, help=option.help)
        # A default that is a list of words is given, and shown, as on the command line.
        default = ",".join(defaults[name] or ()) or None if option.parse else defaults[name]
        parameters[name] = Annotated[kind, info], default
        if option.was:
            parameters[f"{name}_was"] = Annotated[str | None, typer.Option(option.was, hidden=True)], None
    parameters |= {"json": common["json"], "output": common["output"]}

    def command(target: str, json: bool, output: Path | None, **given: Any) -> None:
        chosen = {}
        for name, (_, option) in fields.items():
            value = given[name]
            if option.was and (old := given[f"{name}_was"]) is not None:
                notify_renamed(campaign.name, option.was, option.name)
                value = [*(value or []), old]
            if value is not None:
                chosen[name] = option.parse(value) if option.parse else value
        raise typer.Exit(run_campaign(campaign, load(target), campaign.options(**chosen), output, as_json=json))

    command.__name__, command.__doc__ = campaign.name, campaign.question
    command.__annotations__ = {name: kind for name, (kind, _) in parameters.items()} | {"return": None}
    command.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=kind)
            for name, (kind, default) in parameters.items()
        ]
    )
    return command


def _fields(options: type[Options]) -> Iterator[tuple[str, tuple[Any, Option]]]:
    """Yield the fields that are command line options, with their types; the campaign's own come first."""
    hints = get_type_hints(options, include_extras=True)
    for owner in options.__mro__:
        for name in inspect.get_annotations(owner):
            for extra in getattr(hints.get(name), "__metadata__", ()):
                if isinstance(extra, Option):
                    yield name, (get_args(hints[name])[0], extra)


def run_campaign(
    campaign: Campaign[Any, Any], target: Target, options: Options, output: Path | None, *, as_json: bool
) -> int:
    """Run the campaign; the exit code is the verdict's, 1 if a `strict` campaign failed, 130 if interrupted.

    What was not fully seen is no failure.
    """
    options.check()
    progress = _Progress(target.name, campaign.unit, options)
    with output_to(output) as place, Interrupts() as interrupts:
        try:
            keep = None if place is None or not place.replaceable else _keeping(place)
            work = functools.partial(run, campaign, target, options, progress, stop=interrupts.seen, keep=keep)
            result = in_background(work, interrupts, _PATIENCE)
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
        return INTERRUPTED if interrupts.seen() else code


def _keeping(place: Output) -> Callable[[Result], None]:
    return lambda result: place.save(result.to_json())


def _show(shown: Iterator[Text] | str) -> None:
    if isinstance(shown, str):
        print(shown, flush=True)
    else:
        print_lines(shown, Console(stderr=True))


class _Progress(Ui):
    """A progress line: rewritten in place on a terminal, a new line every ten seconds elsewhere."""

    def __init__(self, name: str, unit: str, options: Options) -> None:
        self._name, self._unit = name, unit
        self._wanted: int | None = None
        self._duration = options.limit_s
        self._outcomes: Counter[str] = Counter()
        self._terminal = sys.stderr.isatty()
        self._began = self._reported = time.monotonic()
        if self._terminal:
            self._write("checking the target …")

    def expect(self, trials: int | None) -> None:
        """Know how many there will be."""
        self._wanted = trials

    def made(self, trial: Any, count: int) -> None:
        """Count one more, the `count`-th."""
        right = isinstance(trial, Record) and trial.right
        self._outcomes[trial.status if right else trial.outcome] += 1
        now = time.monotonic()
        if count == 1:
            self._first = now
        if now - self._reported < (0.1 if self._terminal else 10) and count != self._wanted:
            return
        self._reported = now
        rate = (count - 1) / (now - self._first) if count > 1 and now > self._first else 0
        ends = [(self._wanted - count) / rate] if self._wanted and rate else []
        ends += [max(0.0, self._first + self._duration - now)] if self._duration else []
        left = f", {_duration(min(ends))} left" if ends else ""
        counts = ", ".join(f"{number} {outcome}" for outcome, number in self._outcomes.items())
        self._write(f"{count}{f'/{self._wanted}' if self._wanted else ''}{left}: {counts}")

    def finishing(self, running: int) -> None:
        """Show that the campaign waits for `running` more."""
        self._write(f"interrupted: waiting for {running} running {self._unit}; press Ctrl-C again to quit now")

    def log(self, text: str) -> None:
        """Show what is being done."""
        self._write(text)

    def _write(self, text: str) -> None:
        begin, end = ("\r\x1b[2K", "") if self._terminal else ("", "\n")
        try:
            print(f"{begin}leakcheck: {printable(f'{self._name}: {text}')}", end=end, file=sys.stderr, flush=True)
        except OSError as error:
            # If stderr is closed or full, the result goes elsewhere, or printing it fails with a message.
            if isinstance(error, BrokenPipeError):
                raise


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"
