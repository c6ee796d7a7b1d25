"""Reports as a page of HTML, JUnit XML, SARIF and Markdown, of whatever ran.

`leakcheck.reports.rows` is what they all render. The modules `of_…` build it: from a result of `verify`, of a campaign,
of a guarded command, of a suite of tests.
"""

from collections.abc import Callable
from pathlib import Path

from leakcheck.errors import UsageError
from leakcheck.reports.junit import junit
from leakcheck.reports.markdown import markdown
from leakcheck.reports.page import page
from leakcheck.reports.rows import Report
from leakcheck.reports.sarif import sarif

__all__ = ["format_of", "junit", "markdown", "page", "sarif"]

_FORMATS: dict[str, Callable[[Report], str]] = {
    ".html": page,
    ".xml": junit,
    ".sarif": sarif,
    ".md": markdown,
}


def format_of(path: Path) -> Callable[[Report], str]:
    """Return what writes the format of a report's path, by its suffix; raise a `UsageError` for an unknown one."""
    if (found := _FORMATS.get(path.suffix.lower())) is None:
        raise UsageError(f"--report {path}: end it in .html, .xml (JUnit), .sarif or .md (Markdown)")
    return found
