"""The options of the commands that can be watched with Prometheus."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from leakcheck.deliver import notify
from leakcheck.errors import UsageError
from leakcheck.trials.executor import Ui

if TYPE_CHECKING:
    from leakcheck.campaigns.result import Result


class Metered(Protocol):
    """Counts what a campaign makes."""

    def ui(self, inner: Ui, target: str, campaign: str) -> Ui:
        """Return what counts each trial of this campaign on this target, and passes everything to `inner`."""

    def result(self, target: str, campaign: str, result: "Result", *, final: bool) -> None:
        """Count what the result so far, or at the end, says of trials that were not judged before."""


class _Nothing(Metered):
    def ui(self, inner: Ui, target: str, campaign: str) -> Ui:
        del target, campaign
        return inner

    def result(self, target: str, campaign: str, result: "Result", *, final: bool) -> None:
        pass


@dataclass(frozen=True)
class Watch:
    """Where the metrics of a command are to be had; nowhere by default."""

    address: str | None = None
    file: Path | None = None
    prefix: str = "leakcheck"

    @property
    def watched(self) -> bool:
        """Whether they are to be had at all."""
        return self.address is not None or self.file is not None

    @contextlib.contextmanager
    def open(self) -> Iterator[Metered]:
        """Serve the metrics while it is open; raise `UsageError` if that cannot be."""
        if not self.watched:
            if self.prefix != Watch.prefix:
                raise UsageError("--metrics-prefix: is for --metrics and --metrics-file; give one of them, too")
            yield _Nothing()
            return
        try:
            from leakcheck.metrics import Metrics
        except ModuleNotFoundError as error:
            if error.name is None or not error.name.startswith("prometheus_client"):
                raise
            what = "needs the package prometheus_client: pip install 'sandbox-leakcheck[metrics]'"
            raise UsageError(f"{'--metrics-file' if self.address is None else '--metrics'}: {what}") from error
        with Metrics(self.address, self.file, self.prefix, notify) as metrics:
            yield metrics


UNWATCHED = Watch()
