"""Options that several commands have."""

from pathlib import Path
from typing import Annotated

import typer

from leakcheck.answers import answering

Json = Annotated[bool, typer.Option("--json", help="Print JSON on stdout instead of a report on stderr.")]
Output = Annotated[
    Path | None,
    typer.Option("--output", "-o", metavar="FILE", help="Save the JSON to FILE, atomically.", parser=answering),
]
Store = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Record everything in this SQLite file as it happens.", parser=answering),
]
Resume = Annotated[
    bool, typer.Option("--resume", help="Go on with the same command of the store that was cut off, if there is one.")
]
Cluster = Annotated[
    str | None,
    typer.Option(
        metavar="ADDRESS",
        help="Divide the sweep among workers: local:N of this machine, or tcp://HOST:PORT of a Dask scheduler.",
    ),
]
Reports = Annotated[
    list[Path] | None,
    typer.Option(
        "--report",
        metavar="FILE",
        help="Save a report: .html, .xml (JUnit), .sarif or .md (Markdown); may be repeated.",
        parser=answering,
    ),
]
MetricsAt = Annotated[
    str | None, typer.Option("--metrics", metavar="HOST:PORT", help="Serve metrics for Prometheus there while it runs.")
]
MetricsFile = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Keep the metrics in FILE, for the node exporter.", parser=answering),
]
MetricsPrefix = Annotated[str, typer.Option(metavar="NAME", help="The first word of each metric's name.")]
