"""The part of the command line that reads a store: `runs`, `show`, `compare`, `export`, `merge`."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from leakcheck.answers import answering
from leakcheck.cli_options import Json, Output, Reports

_STORE = "leakcheck.db"
_StoreToRead = Annotated[Path, typer.Option("--store", metavar="FILE", help="The store.", parser=answering)]
_RunId = Annotated[int, typer.Argument(metavar="RUN", help="The number of a run, as in runs.", min=1)]


def register(app: typer.Typer) -> None:
    """Add the commands to `app`."""
    for command in (runs, show, compare, export, merge):
        app.command()(command)


def runs(store: _StoreToRead = Path(_STORE), json: Json = False) -> None:
    """List the runs of a store: what was tried, how much of it, and what came of it."""
    from leakcheck.commands.evidence import list_runs

    raise typer.Exit(list_runs(store, as_json=json))


def show(
    name: Annotated[str, typer.Argument(metavar="RUN|FINDING", help="The number of a run, or the id of a finding.")],
    store: _StoreToRead = Path(_STORE),
    form: Annotated[Literal["text", "markdown", "json"], typer.Option("--format", help="How to print it.")] = "text",
) -> None:
    """Show a run of a store, or a finding with its explanation and replay line."""
    from leakcheck.commands.evidence import show as show_it

    raise typer.Exit(show_it(store, name, form))


def compare(
    before: Annotated[int, typer.Argument(metavar="A", help="The number of the earlier run.", min=1)],
    after: Annotated[int, typer.Argument(metavar="B", help="That of the later one.", min=1)],
    store: _StoreToRead = Path(_STORE),
    output: Output = None,
    json: Json = False,
) -> None:
    """Compare two runs of a store: new, gone and still open findings (exit 1: the later one is worse)."""
    from leakcheck.commands.evidence import compare as compare_them

    raise typer.Exit(compare_them(store, before, after, output, as_json=json))


def export(run: _RunId, store: _StoreToRead = Path(_STORE), report: Reports = None, output: Output = None) -> None:
    """Write the JSON of a run, as its command would have, or reports of it."""
    from leakcheck.commands.evidence import export as export_it

    raise typer.Exit(export_it(store, run, output, report or []))


def merge(
    stores: Annotated[list[Path], typer.Argument(metavar="FILE…", help="The stores to read.", parser=answering)],
    store: Annotated[
        Path, typer.Option("--store", metavar="FILE", help="The store to merge into; it may be new.", parser=answering)
    ] = Path(_STORE),
) -> None:
    """Merge stores into one, and put the shards of a sweep together (exit: the worst verdict of their sweeps)."""
    from leakcheck.commands.evidence import merge_stores

    raise typer.Exit(merge_stores(stores, store))
