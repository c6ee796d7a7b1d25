"""Metrics of a campaign while it runs, for Prometheus: an HTTP endpoint, a text file for the node exporter, or both.

The series are those of QA-REL-001, "metrics to monitor". A failure here never changes a verdict: it is reported once.
"""

import contextlib
import math
import re
import socket
import socketserver
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any, Literal, Self

import msgspec
from prometheus_client import CollectorRegistry, MetricsHandler, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
    UnknownMetricFamily,
)
from prometheus_client.registry import Collector

from leakcheck.atomic_write import Output
from leakcheck.campaigns.result import Result
from leakcheck.errors import UsageError, reason
from leakcheck.trials.executor import Ui
from leakcheck.trials.outcome import FAILING, Outcome
from leakcheck.trials.record import Record
from leakcheck.trials.trial import Trial

BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
"""Upper bounds of the histogram's buckets, in seconds."""
LABELS = ("target", "campaign")
_ENDS = ("none", "normal", "timeout", "crash")
"""Plans whose run ends as its submission says."""
_PREFIX = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]*")
_EVERY = 2.0
"""Seconds between two writes of the file."""
_CLIENTS = 8
_PATIENCE = 10
"""Seconds that a client may take."""


class Seen(msgspec.Struct, frozen=True):
    """What one trial adds: the status of its run, how its clean-up ended, whether the worker is healthy after it.

    `cleanup` is empty if that is not known yet.
    """

    status: str
    cleanup: str
    healthy: bool
    outcome: Outcome | Literal[""]
    seconds: float | None


def seen_in(trial: Any) -> Seen | None:
    """Return what `trial` adds; None for something that is no trial of a campaign."""
    if isinstance(trial, Record):
        # What it left is observed once its round is over.
        return Seen(trial.status, "", not trial.late, "", trial.wall_ms / 1000)
    if not isinstance(trial, Trial):
        return None
    status = "wrong" if trial.wrong else trial.case.submission.expect if trial.case.plan.kind in _ENDS else "faulted"
    bad = trial.outcomes & (set(FAILING) - {"false-status"})
    unsure = trial.outcomes & {"unknown", "not-reached"}
    cleanup = "failure" if bad else "unknown" if unsure else "recovered" if "recovered" in trial.outcomes else "success"
    run = trial.timing_ms.get("run")
    return Seen(status, cleanup, not bad, trial.outcome, None if run is None else run / 1000)


def cleaned_in(records: Sequence[Record], *, final: bool) -> tuple[dict[str, int], dict[str, int], bool]:
    """Return how the clean-ups ended, the outcomes, and whether the last round left nothing, as far as that is known.

    Two arenas take turns: a round is observed by the time that the second one after it begins.
    """
    last = max((record.round for record in records), default=0) - (0 if final else 2)
    known = [record for record in records if record.round <= last]
    bad = [record for record in known if record.left or record.status == "none"]
    unsure = sum(record.may_have_left != [] and not (record.left or record.status == "none") for record in known)
    cleanups = {"failure": len(bad), "unknown": unsure, "success": len(known) - len(bad) - unsure}
    return cleanups, Counter(record.outcome for record in known), not any(record.round == last for record in bad)


class Series(Collector):
    """The series, by target and campaign."""

    def __init__(self, prefix: str) -> None:
        if not _PREFIX.fullmatch(prefix):
            raise UsageError(f"--metrics-prefix {prefix!r}: give letters, digits and underscores, no digit first")
        self._prefix = prefix
        self._lock = threading.Lock()
        self._executions: Counter[tuple[str, str]] = Counter()
        self._statuses: Counter[tuple[str, str, str]] = Counter()
        self._cleanups: Counter[tuple[str, str, str]] = Counter()
        self._outcomes: Counter[tuple[str, str, str]] = Counter()
        self._healthy: dict[tuple[str, str], bool] = {}
        self._tidy: dict[tuple[str, str], bool] = {}
        self._before: dict[tuple[str, str, str], int] = {}
        self._wanted: dict[tuple[str, str], int] = {}
        self._last: dict[tuple[str, str], float] = {}
        self._buckets: defaultdict[tuple[str, str], list[int]] = defaultdict(lambda: [0] * (len(BUCKETS) + 1))
        self._seconds: Counter[tuple[str, str]] = Counter()

    def begin(self, labels: tuple[str, str], wanted: int | None) -> None:
        """Begin a campaign of `wanted` trials; its series exist from now on, so that a first increase is seen."""
        with self._lock:
            self._executions[labels] += 0
            self._healthy.setdefault(labels, True)
            for cleanup in ("success", "recovered", "failure", "unknown"):
                self._cleanups[(*labels, cleanup)] += 0
            for status in ("OK", "TLE", "MLE", "RE", "OLE", "CE", "IE"):
                self._statuses[(*labels, status)] += 0
            _ = self._buckets[labels]
            self._tidy[labels] = True
            self._before |= {key: n for key, n in (self._cleanups | self._outcomes).items() if key[:2] == labels}
            if wanted is not None:
                self._wanted[labels] = wanted

    def add(self, labels: tuple[str, str], seen: Seen) -> None:
        """Count one trial."""
        with self._lock:
            self._executions[labels] += 1
            self._statuses[(*labels, seen.status)] += 1
            if seen.cleanup and seen.outcome:
                self._cleanups[(*labels, seen.cleanup)] += 1
                self._outcomes[(*labels, seen.outcome)] += 1
            self._healthy[labels] = seen.healthy
            self._last[labels] = time.time()
            if seen.seconds is not None:
                self._buckets[labels][next((n for n, most in enumerate(BUCKETS) if seen.seconds <= most), -1)] += 1
                self._seconds[labels] += seen.seconds  # type: ignore[assignment]

    def judge(self, labels: tuple[str, str], records: Sequence[Record], *, final: bool) -> None:
        """Count the clean-ups of the campaign that began last, all of whose records so far are given."""
        cleanups, outcomes, self._tidy[labels] = cleaned_in(records, final=final)
        with self._lock:
            for counts, counted in ((self._cleanups, cleanups), (self._outcomes, outcomes)):
                for name, number in counted.items():
                    key = (*labels, name)
                    # What turns out to be recovered later has been counted: a counter never falls.
                    counts[key] = max(counts[key], self._before.get(key, 0) + number)

    def collect(self) -> Iterator[Metric]:
        """Yield the series as they are now."""
        with self._lock:
            yield from list(self._collected())

    def _collected(self) -> Iterator[Metric]:
        named = [
            (CounterMetricFamily, "executions", "Runs of the sandbox under test.", LABELS, self._executions),
            # The document's name lacks the suffix of a counter.
            (UnknownMetricFamily, "executions_by_status", "The same, by status.", (*LABELS, "status"), self._statuses),
            (CounterMetricFamily, "cleanup", "Clean-ups, by how they ended.", (*LABELS, "outcome"), self._cleanups),
            (CounterMetricFamily, "outcomes", "Trials, by outcome.", (*LABELS, "outcome"), self._outcomes),
            (GaugeMetricFamily, "trials_wanted", "Trials that the campaign is to make.", LABELS, self._wanted),
            (GaugeMetricFamily, "last_execution_timestamp_seconds", "When the last run ended.", LABELS, self._last),
        ]
        for family, name, text, labels, values in named:
            metric: Any = family(f"{self._prefix}_{name}", text, labels=labels)
            for key, value in values.items():  # type: ignore[attr-defined]
                metric.add_metric(key, value)
            yield metric
        health = GaugeMetricFamily(
            f"{self._prefix}_worker_health", "1 for the state after the last run, else 0.", labels=(*LABELS, "status")
        )
        for labels, ended in self._healthy.items():
            healthy = ended and self._tidy.get(labels, True)
            health.add_metric((*labels, "healthy"), float(healthy))
            health.add_metric((*labels, "unhealthy"), float(not healthy))
        yield health
        times = HistogramMetricFamily(f"{self._prefix}_execution_duration_seconds", "Time of a run.", labels=LABELS)
        for labels, counts in self._buckets.items():
            up_to = [sum(counts[: number + 1]) for number in range(len(counts))]
            bounds = [*(str(bound) for bound in BUCKETS), "+Inf"]
            times.add_metric(labels, [*zip(bounds, map(float, up_to), strict=True)], self._seconds[labels])
        yield times


class _Server(ThreadingHTTPServer):
    """Serves the metrics to a few clients at a time."""

    allow_reuse_port = False
    daemon_threads = True

    def __init__(self, address: tuple[str, int], family: socket.AddressFamily, registry: CollectorRegistry) -> None:
        self.address_family = family
        self._room = threading.BoundedSemaphore(_CLIENTS)
        handler = MetricsHandler.factory(registry)
        handler.timeout = _PATIENCE  # type: ignore[attr-defined]
        super().__init__(address, handler)

    def server_bind(self) -> None:
        """Bind, without asking for the name of the address, which may take long."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = self.server_address[:2]  # type: ignore[assignment]

    def process_request(self, request: Any, client_address: Any) -> None:
        """Answer in a thread, or not at all if there are many."""
        if self._room.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Answer."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._room.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: a client that goes away is no concern of the campaign."""


class Metrics:
    """The metrics of one command: an endpoint at `address` (``HOST:PORT``), a `file`, or both.

    `log` receives where the endpoint is, and a first failure.

    Raises:
        UsageError: the address or the prefix is wrong, the port is in use, or the file cannot be written.
    """

    def __init__(self, address: str | None, file: Path | None, prefix: str, log: Callable[[str], None]) -> None:
        self._log, self._failed, self._due = log, False, 0.0
        self._series = Series(prefix)
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self._series)
        self._stack = contextlib.ExitStack()
        self._output: Output | None = None
        try:
            if file is not None:
                self._output = self._stack.enter_context(Output(file))
                if not self._output.replaceable:
                    raise UsageError(f"--metrics-file {file}: is no file that can be replaced")
                self._output.save(self.text())
            if address is not None:
                self._serve(address)
        except BaseException:
            self._stack.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with self._stack:
            self._write(now=True)

    def text(self) -> str:
        """Return all series in the text format of Prometheus."""
        return generate_latest(self._registry).decode()

    def ui(self, inner: Ui, target: str, campaign: str) -> Ui:
        """Return an `Ui` that counts each trial, and passes everything to `inner`."""
        return _Counting(self, inner, (target, campaign))

    def begin(self, labels: tuple[str, str], wanted: int | None) -> None:
        """Begin a campaign."""
        with self._reporting():
            self._series.begin(labels, wanted)
            self._write()

    def made(self, labels: tuple[str, str], trial: Any) -> None:
        """Count a trial."""
        with self._reporting():
            if (seen := seen_in(trial)) is not None:
                self._series.add(labels, seen)
                self._write()

    def result(self, target: str, campaign: str, result: Result, *, final: bool) -> None:
        """Take from the result so far, or at the end, what is not known of each trial when it is made."""
        with self._reporting():
            if result.records:
                self._series.judge((target, campaign), result.records, final=final)
                self._write()

    def _write(self, *, now: bool = False) -> None:
        began = time.monotonic()
        if self._output is not None and (now or began >= self._due):
            self._due = math.inf
            with self._reporting():
                self._output.save(self.text())
            self._due = began + _EVERY

    @contextlib.contextmanager
    def _reporting(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # noqa: BLE001 - the campaign continues, whatever the cause
            if not self._failed:
                self._failed = True
                self._log(f"metrics: {error}")

    def _serve(self, address: str) -> None:
        host, port = _host_and_port(address)
        try:
            family, _, _, _, where = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
            server = _Server((str(where[0]), port), family, self._registry)
        except (OSError, UnicodeError) as error:
            why = reason(error) if isinstance(error, OSError) else "no host name"
            raise UsageError(f"--metrics {address}: {why}") from error
        thread = threading.Thread(target=server.serve_forever, args=(0.1,), name="metrics", daemon=True)
        thread.start()
        self._stack.callback(server.server_close)
        self._stack.callback(server.shutdown)
        shown = f"[{where[0]}]" if family == socket.AF_INET6 else where[0]
        self._log(f"metrics: http://{shown}:{server.server_address[1]}/metrics")


class _Counting(Ui):
    """Counts the trials that it passes on."""

    def __init__(self, metrics: Metrics, inner: Ui, labels: tuple[str, str]) -> None:
        self._metrics, self._inner, self._labels = metrics, inner, labels

    def expect(self, trials: int | None) -> None:
        self._metrics.begin(self._labels, trials)
        self._inner.expect(trials)

    def made(self, trial: Any, count: int) -> None:
        self._metrics.made(self._labels, trial)
        self._inner.made(trial, count)

    def finishing(self, running: int) -> None:
        self._inner.finishing(running)

    def log(self, text: str) -> None:
        self._inner.log(text)


def _host_and_port(address: str) -> tuple[str, int]:
    host, colon, port = address.rpartition(":")
    host = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    if not colon or not host or not port.isascii() or not port.isdecimal() or int(port) > 65535:
        raise UsageError(f"--metrics {address}: give HOST:PORT, such as 127.0.0.1:9464, with a port up to 65535")
    return host, int(port)
