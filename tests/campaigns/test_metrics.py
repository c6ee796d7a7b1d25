"""Metrics of a campaign: the series of QA-REL-001, where they are to be had, and that they never disturb a campaign."""

import contextlib
import errno
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import urllib.parse
import urllib.request
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
from made import LEAKCHECK, target
from prometheus_client.parser import text_string_to_metric_families
from waiting import wait_until

from injectors import parse
from leakcheck.campaigns import CAMPAIGNS, LeaksOptions, Result, run
from leakcheck.errors import UsageError
from leakcheck.metrics import Metrics, seen_in
from leakcheck.trials.case import case_of
from leakcheck.trials.executor import Ui
from leakcheck.trials.record import Record
from leakcheck.trials.trial import Trial

ROOT = Path(__file__).parents[2]
MONITORING = ROOT / "examples/monitoring"
# As the document has them.
QUERIES = {
    "cleanup": 'rate(rustbox_cleanup_total{outcome="success"}[5m]) / rate(rustbox_cleanup_total[5m])',
    "health": 'rustbox_worker_health{status="healthy"}',
    "rate": "rate(rustbox_executions_total[5m])",
    "errors": 'rate(rustbox_executions_by_status{status="IE"}[5m]) / rate(rustbox_executions_total[5m])',
    "latency": "histogram_quantile(0.95, rate(rustbox_execution_duration_seconds_bucket[5m]))",
}
LABELS = ("made", "stress")


def record(**given: Any) -> Record:
    usual = {
        "id": 1,
        "spec": "cpp/ok",
        "expect": "OK",
        "status": "OK",
        "right": True,
        "wall_ms": 40.0,
        "queued_ms": 0.0,
    }
    return Record(**usual | {"ended_s": 1.0, "box": 1, "round": 1} | given)  # type: ignore[arg-type]


def result_of(records: list[Record]) -> Result:
    usual = {"campaign": "stress", "target": "made", "version": "", "seed": 0, "wanted": 9, "trials": len(records)}
    rest = {"verdict": "clean", "outcomes": {}, "criteria": [], "findings": [], "records": records}
    return Result(**usual | rest)  # type: ignore[arg-type]


def values(text: str) -> dict[tuple[str, ...], float]:
    """Return the samples: name and label values, but target and campaign → value."""
    return {
        (one.name, *(v for k, v in one.labels.items() if k not in ("target", "campaign"))): one.value
        for family in text_string_to_metric_families(text)
        for one in family.samples
    }


@pytest.fixture
def metrics() -> Generator[Metrics, None, None]:
    with Metrics("127.0.0.1:0", None, "rustbox", lambda _: None) as found:
        yield found


class TestSeries:
    def test_each_series_of_the_document_is_there_with_what_was_counted(self, metrics: Metrics) -> None:
        ui = metrics.ui(Ui(), *LABELS)
        ui.expect(4)
        ui.made(record(), 1)
        ui.made(record(status="IE", right=False, wall_ms=3000.0), 2)
        ui.made(record(expect="TLE", status="TLE"), 3)
        found = values(metrics.text())
        assert found["rustbox_executions_total",] == 3
        assert {key[1]: n for key, n in found.items() if key[0] == "rustbox_executions_by_status" and n} == {
            "OK": 1,
            "IE": 1,
            "TLE": 1,
        }
        assert found["rustbox_worker_health", "healthy"] == 1
        assert found["rustbox_worker_health", "unhealthy"] == 0
        assert found["rustbox_execution_duration_seconds_bucket", "0.05"] == 2
        assert found["rustbox_execution_duration_seconds_bucket", "2.5"] == 2
        assert found["rustbox_execution_duration_seconds_bucket", "5.0"] == 3
        assert found["rustbox_execution_duration_seconds_bucket", "+Inf"] == 3
        assert found["rustbox_execution_duration_seconds_count",] == 3
        assert found["rustbox_execution_duration_seconds_sum",] == pytest.approx(3.08)
        assert found["rustbox_trials_wanted",] == 4
        ui.made(record(late=True), 4)
        assert values(metrics.text())["rustbox_worker_health", "healthy"] == 0

    def test_a_submission_that_shares_an_arena_is_no_success_before_its_round_was_observed(
        self, metrics: Metrics
    ) -> None:
        def cleanups() -> dict[str, float]:
            found = values(metrics.text())
            return {key[1]: n for key, n in found.items() if key[0] == "rustbox_cleanup_total" and n}

        ui = metrics.ui(Ui(), *LABELS)
        ui.expect(None)
        records = [record(id=number, round=number) for number in (1, 2, 3)]
        for number, one in enumerate(records, 1):
            ui.made(one, number)
        assert cleanups() == {}
        metrics.result(*LABELS, result_of(records), final=False)
        assert cleanups() == {"success": 1}
        records = [record(id=1, round=1), record(id=2, round=2, left=["a file"]), record(id=3, round=3, status="none")]
        metrics.result(*LABELS, result_of(records), final=True)
        assert cleanups() == {"success": 1, "failure": 2}
        assert values(metrics.text())["rustbox_worker_health", "unhealthy"] == 1
        assert values(metrics.text())["rustbox_outcomes_total", "leaked"] == 1
        # A second campaign of the same kind, as verify runs for R1 and R2.
        ui.expect(None)
        metrics.result(*LABELS, result_of([record(), record(id=2, may_have_left=["x"])]), final=True)
        assert cleanups() == {"success": 2, "failure": 2, "unknown": 1}
        # A counter never falls.
        metrics.result(*LABELS, result_of([record()]), final=True)
        assert cleanups() == {"success": 2, "failure": 2, "unknown": 1}

    def test_all_of_them_exist_before_the_first_trial(self, metrics: Metrics) -> None:
        # A counter that first appears with 1 has no increase that Prometheus could see.
        metrics.ui(Ui(), *LABELS).expect(None)
        found = values(metrics.text())
        assert found["rustbox_cleanup_total", "failure"] == 0
        assert found["rustbox_executions_by_status", "IE"] == 0
        assert found["rustbox_execution_duration_seconds_count",] == 0

    @pytest.mark.parametrize(
        ("plan", "outcomes", "wrong", "status", "cleanup"),
        [
            ("timeout", [], "", "TLE", "success"),
            ("timeout", ["false-status"], "OK", "wrong", "success"),
            ("launch:0/mkdir(dev)#1:before:SIGKILL", ["recovered"], "", "faulted", "recovered"),
            ("launch:0/mkdir(dev)#1:before:SIGKILL", ["not-reached"], "", "faulted", "unknown"),
            ("launch:0/mkdir(dev)#1:before:SIGKILL", ["leaked", "unknown"], "", "faulted", "failure"),
        ],
    )
    def test_a_trial_under_a_fault_counts_as_what_is_known_of_it(
        self, plan: str, outcomes: list[Any], wrong: str, status: str, cleanup: str
    ) -> None:
        trial = Trial(case=case_of(parse(plan)), outcomes=frozenset(outcomes), wrong=wrong, timing_ms={"run": 20.0})
        seen = seen_in(trial)
        assert seen is not None
        assert (seen.status, seen.cleanup, seen.healthy, seen.seconds) == (status, cleanup, cleanup != "failure", 0.02)

    def test_a_target_of_a_hostile_name_makes_no_other_series(self, metrics: Metrics) -> None:
        ui = metrics.ui(Ui(), 'x"} 1\nrustbox_executions_total{a="\\', "stress")
        ui.expect(1)
        ui.made(record(), 1)
        families = [family.name for family in text_string_to_metric_families(metrics.text())]
        assert len(families) == len(set(families)) == 8

    @pytest.mark.parametrize("prefix", ["", "1a", "a-b", "a b", "a\n"])
    def test_a_prefix_that_no_series_can_have_is_refused(self, prefix: str) -> None:
        with pytest.raises(UsageError, match="--metrics-prefix"):
            Metrics(None, None, prefix, lambda _: None)


class TestEndpoint:
    @pytest.mark.parametrize(("host", "shown"), [("127.0.0.1", "127.0.0.1"), ("[::1]", "[::1]"), ("localhost", "")])
    def test_it_listens_where_it_was_told_to_and_nowhere_else(self, host: str, shown: str) -> None:
        told: list[str] = []
        try:
            opened = Metrics(f"{host}:0", None, "leakcheck", told.append)
        except UsageError as error:
            assert "::1" in host, error
            pytest.skip(f"no IPv6 here: {error}")
        with opened:
            (line,) = told
            url = line.removeprefix("metrics: ")
            assert shown in url
            with urllib.request.urlopen(url, timeout=10) as answer:
                assert "leakcheck_executions" in answer.read().decode()
            port = urllib.parse.urlsplit(url).port
            inodes = _sockets()
            listening = [
                line.split()
                for family in ("tcp", "tcp6")
                for line in Path(f"/proc/net/{family}").read_text().splitlines()[1:]
            ]
            own = [words[1] for words in listening if words[3] == "0A" and int(words[9]) in inodes]
            assert [address.rpartition(":")[2] for address in own] == [f"{port:04X}"]
            assert own[0].rpartition(":")[0] in ("0100007F", "00000000000000000000000001000000")
        with pytest.raises(OSError, match="refused"):
            urllib.request.urlopen(url, timeout=10)

    def test_a_port_in_use_is_refused(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            address = f"127.0.0.1:{taken.getsockname()[1]}"
            with pytest.raises(UsageError, match=f"--metrics {address}: address already in use"):
                Metrics(address, None, "leakcheck", lambda _: None)

    @pytest.mark.parametrize(
        ("address", "why"),
        [
            ("9464", "give HOST:PORT"),
            (":9464", "give HOST:PORT"),
            ("127.0.0.1:", "give HOST:PORT"),
            ("127.0.0.1:65536", "give HOST:PORT"),
            ("127.0.0.1:²", "give HOST:PORT"),
            ("192.0.2.1:0", "cannot assign requested address"),
            ("no host:0", "--metrics no host:0: "),
            (f"{'a' * 70}.invalid:0", "--metrics a"),
        ],
    )
    def test_a_wrong_address_is_refused(self, address: str, why: str) -> None:
        with pytest.raises(UsageError) as refused:
            Metrics(address, None, "leakcheck", lambda _: None)
        assert why in str(refused.value)

    def test_clients_that_say_nothing_or_go_away_disturb_nobody(self, capfd: pytest.CaptureFixture[str]) -> None:
        told: list[str] = []
        with Metrics("127.0.0.1:0", None, "leakcheck", told.append):
            url = urllib.parse.urlsplit(told[0].removeprefix("metrics: "))
            silent = [socket.create_connection(("127.0.0.1", url.port or 0)) for _ in range(20)]
            for one in silent:
                one.sendall(b"GET /metr")
                one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
                one.close()

            def answers() -> bool:
                try:
                    return urllib.request.urlopen(url.geturl(), timeout=10).status == 200
                except OSError:
                    return False

            wait_until("it answers again", answers)
        assert capfd.readouterr() == ("", "")


class TestFile:
    def test_it_is_replaced_as_a_whole_and_has_the_end(self, tmp_path: Path) -> None:
        file = tmp_path / "leakcheck.prom"
        with Metrics(None, file, "leakcheck", lambda _: None) as metrics:
            before = metrics.text()
            reader = file.open()
            ui = metrics.ui(Ui(), *LABELS)
            ui.expect(2)
            ui.made(record(), 1)
            ui.made(record(), 2)
        with reader:
            assert reader.read() == before
        assert values(file.read_text())["leakcheck_executions_total",] == 2
        assert [*tmp_path.iterdir()] == [file]

    @pytest.mark.parametrize("place", ["missing/x.prom", ".", "file/x.prom", "/dev/null"])
    def test_a_path_that_cannot_be_written_is_refused(self, tmp_path: Path, place: str) -> None:
        (tmp_path / "file").touch()
        with pytest.raises(UsageError, match=re.escape(str(tmp_path / place))):
            Metrics(None, tmp_path / place, "leakcheck", lambda _: None)


class TestCampaign:
    def test_a_failure_in_the_middle_is_told_once_and_changes_nothing(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        told: list[str] = []
        passed: list[int] = []

        class Counting(Ui):
            def made(self, _trial: Any, count: int) -> None:
                passed.append(count)

        def full(*_: object) -> None:
            raise OSError(errno.ENOSPC, "no space")

        with Metrics(None, tmp_path / "x.prom", "leakcheck", told.append) as metrics:
            monkeypatch.setattr("leakcheck.metrics._EVERY", 0.0)
            monkeypatch.setattr("leakcheck.atomic_write.Output.save", full)
            made = target(tmp_path, 'exec "$@"')
            options = LeaksOptions(iterations=3, endings=("normal",), jobs=1)
            result = run(CAMPAIGNS["leaks"], made, options, metrics.ui(Counting(), "made", "leaks"))
        assert (result.verdict, result.trials, passed) == ("clean", 3, [1, 2, 3])
        assert told == ["metrics: [Errno 28] no space"]
        assert values(metrics.text())["leakcheck_executions_total",] == 3

    def test_the_command_serves_while_it_runs_and_keeps_the_file_at_its_end(self, tmp_path: Path) -> None:
        file, errors = tmp_path / "x.prom", tmp_path / "errors"
        made = target(tmp_path, 'exec "$@"')
        words = ["leaks", "--target", str(made.path), "--iterations", "100000", "--endings", "normal"]
        words += ["--metrics", "127.0.0.1:0", "--metrics-file", str(file), "--metrics-prefix", "rustbox"]
        with errors.open("w") as told:
            process = subprocess.Popen([*LEAKCHECK, *words], cwd=tmp_path, stderr=told, stdin=subprocess.DEVNULL)
        try:
            wait_until("the address is told", lambda: re.search(r"metrics: (http://\S+)", errors.read_text()))
            (url,) = re.findall(r"metrics: (http://\S+)", errors.read_text())

            def runs() -> float:
                with urllib.request.urlopen(url, timeout=10) as answer:
                    return values(answer.read().decode()).get(("rustbox_executions_total",), 0)

            wait_until("trials are counted", lambda: runs() >= 3)
            process.send_signal(signal.SIGINT)
            assert process.wait(timeout=120) == 130
        finally:
            process.kill()
            process.wait()
        end = values(file.read_text())
        assert end["rustbox_executions_total",] == end["rustbox_executions_by_status", "OK"] >= 3
        assert end["rustbox_trials_wanted",] == 100000

    @pytest.mark.parametrize(
        "name",
        ["stress", pytest.param("verify", marks=pytest.mark.slow)],  # half a minute; it counts what campaigns count
    )
    @pytest.mark.skipif(os.geteuid() != 0, reason="arenas of root; run as root")
    def test_what_submissions_leave_is_no_success_at_the_end(self, tmp_path: Path, name: str) -> None:
        file = tmp_path / "x.prom"
        made = target(tmp_path, ': >/var/lib/left-$$; exec "$@"')
        words = ["stress", "--submissions", "12", "--languages", "python", "--mix", "OK=1"]
        words = words if name == "stress" else ["verify", "--only", "R6"]
        words += ["--target", str(made.path), "--metrics-file", str(file)]
        done = subprocess.run(
            [*LEAKCHECK, *words], cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False
        )
        assert done.returncode == 1, done.stderr
        end = values(file.read_text())
        assert end["leakcheck_cleanup_total", "failure"] == end["leakcheck_executions_total",]
        assert end["leakcheck_cleanup_total", "success"] == 0
        assert end["leakcheck_worker_health", "unhealthy"] == 1

    @pytest.mark.parametrize("name", ["leaks", "verify"])
    def test_what_cannot_be_is_told_before_anything_runs(self, tmp_path: Path, name: str) -> None:
        words = [*LEAKCHECK, name, "--target", "refbox", "--metrics", "192.0.2.1:9", "-o", str(tmp_path / "out.json")]
        done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr == "leakcheck: --metrics 192.0.2.1:9: cannot assign requested address\n"
        assert not (tmp_path / "out.json").exists()


def _sockets() -> set[int]:
    """Return the inodes of this process's sockets."""
    links = []
    for entry in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            links.append(str(entry.readlink()))
    return {int(link[8:-1]) for link in links if link.startswith("socket:[")}


class TestPrometheus:
    """A real Prometheus; both its programs come with Debian's package."""

    pytestmark = pytest.mark.slow  # It needs the package, and half a minute of a campaign.

    def test_the_alert_rules_and_the_configuration_are_valid(self) -> None:
        promtool = _needed("promtool")
        for words in (["check", "rules", "alerts.yml"], ["check", "config", "--syntax-only", "prometheus.yml"]):
            done = subprocess.run(
                [promtool, *words], cwd=MONITORING, capture_output=True, text=True, timeout=60, check=False
            )
            assert done.returncode == 0, done.stdout + done.stderr

    def test_the_text_passes_the_linter_but_for_the_documents_own_name(self, metrics: Metrics) -> None:
        metrics.ui(Ui(), *LABELS).expect(1)
        words = [_needed("promtool"), "check", "metrics"]
        done = subprocess.run(words, input=metrics.text(), capture_output=True, text=True, timeout=60, check=False)
        assert done.stdout + done.stderr == ""

    @pytest.mark.skipif(os.geteuid() != 0, reason="arenas of root; run as root")
    def test_the_documents_queries_and_those_of_the_dashboard_have_answers(self, tmp_path: Path) -> None:
        with _free_port() as port:
            pass
        watching = _needed("prometheus")
        errors = tmp_path / "errors"
        made = target(tmp_path, 'exec "$@"')
        words = ["stress", "--target", str(made.path), "--duration", "300", "--submissions", "100000"]
        words += [
            "--languages",
            "python",
            "--mix",
            "OK=9,RE=1",
            "--metrics",
            "127.0.0.1:0",
            "--metrics-prefix",
            "rustbox",
        ]
        with errors.open("w") as told:
            campaign = subprocess.Popen([*LEAKCHECK, *words], cwd=tmp_path, stderr=told, stdin=subprocess.DEVNULL)
        prometheus = None
        try:
            wait_until("the address is told", lambda: re.search(r"metrics: http://(\S+)/metrics", errors.read_text()))
            (address,) = re.findall(r"metrics: http://(\S+)/metrics", errors.read_text())
            (tmp_path / "prometheus.yml").write_text(
                json.dumps(
                    {
                        "global": {"scrape_interval": "1s"},
                        "scrape_configs": [{"job_name": "leakcheck", "static_configs": [{"targets": [address]}]}],
                    }
                )
            )
            with (tmp_path / "log").open("w") as log:
                prometheus = subprocess.Popen(
                    [
                        *LEAKCHECK[:4],
                        watching,
                        f"--config.file={tmp_path}/prometheus.yml",
                        f"--storage.tsdb.path={tmp_path}/data",
                        f"--web.listen-address=127.0.0.1:{port}",
                    ],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                )

            def ask(query: str) -> list[dict[str, Any]]:
                url = f"http://127.0.0.1:{port}/api/v1/query?{urllib.parse.urlencode({'query': query})}"
                try:
                    with urllib.request.urlopen(url, timeout=10) as answer:
                        found: list[dict[str, Any]] = json.load(answer)["data"]["result"]
                        return found
                except OSError:
                    return []

            def number(query: str) -> float:
                (one,) = ask(query)
                return float(one["value"][1])

            wait_until("there is a rate", lambda: (found := ask(QUERIES["rate"])) and float(found[0]["value"][1]) > 0)
            wait_until("a round was observed", lambda: number("sum(rate(rustbox_cleanup_total[5m]))") > 0)
            assert ask(QUERIES["health"])[0]["value"][1] == "1"
            assert number(QUERIES["rate"]) > 0
            assert 0 < number(QUERIES["latency"]) < 60
            # PromQL divides by the series with the same labels: the document's quotient is that of success by itself.
            assert number(QUERIES["cleanup"]) == 1
            shares = "sum(rate(rustbox_cleanup_total{outcome='success'}[5m])) / sum(rate(rustbox_cleanup_total[5m]))"
            assert 0.9 < number(shares) <= 1
            # No series of all executions has the label status, so this one has no answer until it is told to ignore it.
            assert ask(QUERIES["errors"]) == []
            assert number(QUERIES["errors"].replace(" / ", " / ignoring(status) ")) == 0
            dashboard = json.loads((MONITORING / "dashboard.json").read_text())
            asked = [one["expr"] for panel in dashboard["panels"] for one in panel["targets"]]
            rules = re.findall(r"leakcheck_\w+", (MONITORING / "alerts.yml").read_text())
            for query in (*asked, *rules):
                text = query.replace("leakcheck_", "rustbox_").replace("$target", ".*")
                assert ask(text), text
        finally:
            for process in (campaign, prometheus):
                if process is not None:
                    process.kill()
                    process.wait()


def _needed(program: str) -> str:
    unpacked = ROOT / ".targets/prometheus/usr/bin"
    found = shutil.which(program, path=f"{os.environ['PATH']}:{unpacked}")
    if found is None:
        pytest.skip(f"no {program}: scripts/setup full unpacks Debian's package prometheus")
    return found


def _free_port() -> Any:
    taken = socket.create_server(("127.0.0.1", 0))

    class Port:
        def __enter__(self) -> int:
            return int(taken.getsockname()[1])

        def __exit__(self, *_: object) -> None:
            taken.close()

    return Port()
