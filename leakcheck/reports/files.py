"""The report files of a run: opened before it, written at its end, without hiding its exit code."""

import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Self

from leakcheck.atomic_write import Output
from leakcheck.deliver import NOT_DELIVERED, notify, save
from leakcheck.reports import format_of
from leakcheck.reports.github import GitHub
from leakcheck.reports.rows import Report

__all__ = ["Reports"]


class Reports:
    """The reports that a run is to write, and, unless `github` is false, what GitHub Actions shows of it there.

    Raises:
        UsageError: a path has an unknown suffix, or cannot be written.
    """

    def __init__(self, paths: Sequence[Path], *, github: bool = True) -> None:
        self._formats = [format_of(path) for path in paths]
        self._github: GitHub | None = None
        with contextlib.ExitStack() as stack:
            self._outputs = [stack.enter_context(Output(path)) for path in paths]
            if github:
                self._github = stack.enter_context(GitHub())
            self._stack = stack.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close what was opened."""
        self._stack.close()

    def write(self, code: int, found: Callable[[], Report]) -> int:
        """Write `found` in each format; return `code`, but `NOT_DELIVERED` instead of 0 if one cannot be written."""
        told = self._github is not None and self._github.wanted
        if not self._outputs and not told:
            return code
        try:
            report = found()
            texts = [written(report) for written in self._formats]
            if self._github is not None:
                self._github.tell(report)
        except Exception as error:  # noqa: BLE001 - a report that cannot be made never hides the verdict
            notify(f"no report: {type(error).__name__}: {error}")
            return code or NOT_DELIVERED
        for text, output in zip(texts, self._outputs, strict=True):
            code = save(code, text, output)
        return code
