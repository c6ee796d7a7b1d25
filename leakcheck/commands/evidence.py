"""The commands that read a store: `runs`, `show`, `compare`, `export`, `merge`."""

import datetime
import functools
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import msgspec
from rich.console import Console
from rich.text import Text

from leakcheck.campaigns import CAMPAIGNS, Result, explained
from leakcheck.campaigns.compare import Comparison
from leakcheck.campaigns.compare import lines as compared_lines
from leakcheck.campaigns.render import lines
from leakcheck.commands import EXIT_OF
from leakcheck.deliver import check_apart, deliver, notify, output_to, print_json
from leakcheck.errors import UsageError
from leakcheck.evidence import Run, Store, merge, verification
from leakcheck.evidence.resources import resource_curves
from leakcheck.evidence.runs import VERIFY, with_records
from leakcheck.render import VERDICT_STYLE, line, print_lines
from leakcheck.reports import markdown
from leakcheck.reports.files import Reports
from leakcheck.reports.of_campaign import of_campaign
from leakcheck.reports.of_verify import of_verify
from leakcheck.verify import Verifications
from leakcheck.verify.compare import compared
from leakcheck.verify.compare import lines as verify_lines
from leakcheck.verify.render import page

Format = Literal["text", "markdown", "json"]


def list_runs(store: Path, *, as_json: bool) -> int:
    """Print the runs of a store, one a line; campaigns of a ``verify`` are below it."""
    with Store(store, read_only=True) as opened:
        found = opened.runs()
    if as_json:
        print_json(msgspec.json.encode(found).decode())
    else:
        print_lines(_table(found), Console())
    return 0


def _table(runs: Sequence[Run]) -> Iterator[Text]:
    width = max((len(f"{run.command} {run.part}") for run in runs), default=0) + 2
    for run in runs:
        began = datetime.datetime.fromtimestamp(run.began).astimezone().strftime("%Y-%m-%d %H:%M:%S")
        name = f"  {run.part}" if run.parent is not None else run.command
        made = "" if run.command == VERIFY else f"{run.trials}/{run.wanted or '?'} {CAMPAIGNS[run.command].unit}"
        verdict = run.verdict or "no result"
        style = VERDICT_STYLE.get(verdict, "yellow")
        state = "" if run.state == "ended" else f", {_WORDS[run.state]}"
        yield line(
            f"{run.id:>5}  {began}  ",
            (f"{name:<{width}}", "bold"),
            f"{run.target} {run.version}  {made:<22}  ",
            (verdict, style),
            state,
        )


_WORDS = {"running": "running or cut off", "interrupted": "interrupted"}


def show(store: Path, name: str, form: Format) -> int:
    """Print a run, or a finding with all runs that have it. The exit code is 0 whatever the verdict of then."""
    with Store(store, read_only=True) as opened:
        if not name.isdecimal():
            return _show_finding(opened, name, form)
        run = opened.run(int(name))
        if run.command == VERIFY:
            found = Verifications(targets=[verification(opened, run)])
            if form == "json":
                print_json(found.to_json())
            elif form == "markdown":
                print(markdown(of_verify(found)))
            else:
                print_lines(page(found.targets[0]), Console())
            return 0
        result = _result(opened, run)
        if form == "json":
            print_json(result.to_json())
        elif form == "markdown":
            print(explained.markdown(result, _kernel(run)))
        else:
            print_lines(lines(result), Console())
    return 0


def _show_finding(store: Store, name: str, form: Format) -> int:
    runs = store.with_finding(name)
    if not runs:
        raise UsageError(f"store {store.path}: has no run and no finding {name!r}; `leakcheck runs` lists the runs")
    results = [(run, result) for run in runs if (result := store.result(run)) is not None]
    if not results:
        ids = ", ".join(f"run {run.id}" for run in runs)
        raise UsageError(f"store {store.path}: {ids} with {name} went on, and has no result yet; --resume it")
    last, result = results[-1]
    only = msgspec.structs.replace(result, findings=[one for one in result.findings if one.id == name])
    if form == "json":
        print_json(msgspec.json.encode({"runs": [run for run, _ in results], "finding": only.findings[0]}).decode())
    elif form == "markdown":
        print(explained.markdown(only, _kernel(last)))
    else:
        seen = line("  ", f"in {', '.join(f'run {run.id}' for run, _ in results)}; the last of them:")
        print_lines(itertools.chain([seen], explained.text(only, _kernel(last))), Console())
    return 0


def _result(store: Store, run: Run) -> Result:
    if (found := store.result(run)) is None:
        raise UsageError(
            f"store {store.path}: run {run.id} has no result, it was cut off; go on with it by --resume, "
            f"or see its {run.trials} trials with sqlite3"
        )
    return found


def _kernel(run: Run) -> str:
    return f"Linux {run.machine['kernel']}"


def compare(store: Path, before: int, after: int, output: Path | None, *, as_json: bool) -> int:
    """Compare two runs, as ``leakcheck diff`` compares their files; the exit code is 1 if the later one is worse."""
    check_apart(store, output)
    with output_to(output) as place, Store(store, read_only=True) as opened:
        old, new = opened.run(before), opened.run(after)
        if (old.command == VERIFY) != (new.command == VERIFY):
            raise UsageError(f"compare: run {before} is of {old.command}, run {after} of {new.command}; give two alike")
        if old.command == VERIFY:
            both = compared(*(Verifications(targets=[verification(opened, run)]) for run in (old, new)))
            verdict, text, shown = both.verdict, msgspec.json.encode(both), verify_lines(both)
        else:
            one = Comparison.of(_result(opened, old), _result(opened, new))
            verdict, text, shown = one.verdict, msgspec.json.encode(one), compared_lines(one)
        show = None if as_json else lambda: print_lines(shown, Console(stderr=True))
        return deliver(EXIT_OF[verdict], text.decode(), place, show)


def export(store: Path, number: int, output: Path | None, reports: Sequence[Path]) -> int:
    """Write the JSON of a run, as the option -o of its command does, and reports of it.

    With reports alone, no JSON is printed.
    """
    check_apart(store, output, reports)
    with output_to(output) as place, Reports(reports, github=False) as written, Store(store, read_only=True) as opened:
        run = opened.run(number)
        if run.command == VERIFY:
            whole = Verifications(targets=[verification(opened, run)])
            text, report = whole.to_json(), functools.partial(of_verify, whole)
        else:
            result = _result(opened, run)
            # The submissions of a soak are in the store only.
            shown = with_records(result, opened.trials(run)) if reports else result
            more = [*resource_curves(opened.samples(run))]
            text, report = result.to_json(), functools.partial(of_campaign, shown, run.took, more)
        if place is not None:
            place.save(text)
        elif not reports:
            print_json(text)
        return written.write(0, report)


def merge_stores(stores: Sequence[Path], into: Path) -> int:
    """Copy the runs of `stores` to `into`, and put shards together; the exit code is that of their worst sweep."""
    for path in stores:
        # Before anything is made.
        with Store(path, read_only=True):
            pass
    with Store(into, create=True) as opened:
        merged = merge(stores, opened, notify)
    if merged.whole:
        print_lines(_table(merged.whole), Console())
    return EXIT_OF[merged.verdict]
