"""A store keeps each trial at once; a campaign that was killed goes on from there, and ends as one that was not."""

import json
import os
import random
import shlex
import shutil
import sqlite3
import subprocess
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import pytest
from made import LEAKCHECK, cut_off, target
from waiting import wait_until

from leakcheck.campaigns import Leaks, LeaksOptions, Result, Stress, StressOptions, run
from leakcheck.errors import UsageError
from leakcheck.evidence import Store, database, merge
from leakcheck.evidence.resources import Sampled, resource_curves
from leakcheck.submissions import parse_specs
from leakcheck.targets import Target
from leakcheck.trials.record import Record

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="arenas of root; run as root")
needs_bwrap = pytest.mark.skipif(shutil.which("bwrap") is None, reason="no bwrap; install the package bubblewrap")
LITTERS = 'mktemp /var/lib/kept-XXXXXX >/dev/null; exec "$@"'
CLEAN = 'exec "$@"'
NORMAL = ["--endings", "normal", "--settle", "0.1"]


def command(*words: Any, timeout: float = 120) -> "subprocess.CompletedProcess[str]":
    """Run leakcheck."""
    return subprocess.run(
        [*LEAKCHECK, *map(str, words)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def kill_once_made(words: Sequence[Any], store: Path, trials: int, later: float) -> bool:
    """Start leakcheck, and kill it `later` seconds after so many trials; return whether it had ended before."""
    process = subprocess.Popen(
        [*LEAKCHECK, *map(str, words)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    wait_until(f"{trials} trials", lambda: made_trials(store) >= trials or process.poll() is not None)
    time.sleep(later)
    process.kill()
    return process.wait() >= 0


def query(store: Path, text: str) -> list[tuple[Any, ...]]:
    connection = sqlite3.connect(f"{store.as_uri()}?mode=rw", uri=True)
    try:
        return connection.execute(text).fetchall()
    finally:
        connection.close()


def made_trials(store: Path) -> int:
    try:
        return int(query(store, "SELECT count(*) FROM trials")[0][0])
    except sqlite3.OperationalError:
        # It is not there, or has no tables yet.
        return 0


@as_root
@pytest.mark.parametrize(
    "kills",
    [2, pytest.param(20, marks=pytest.mark.slow)],  # each kill costs a start
)
def test_a_campaign_killed_again_and_again_loses_no_trial_and_ends_as_one_that_was_not(
    tmp_path: Path, kills: int
) -> None:
    made, store, generator = target(tmp_path, LITTERS), tmp_path / "s.db", random.Random(3)
    # Several may end between a trial and its kill.
    wanted = 20 * kills
    words = ["leaks", "--target", made.path, "--iterations", wanted, *NORMAL, "--store", store, "--resume"]
    counts = [0]
    while len(counts) <= kills:
        # At any instant of the writes: some milliseconds after one.
        over = kill_once_made(words, store, counts[-1] + 1, generator.uniform(0, 0.02))
        counts.append(made_trials(store))
        assert not over
    assert counts == sorted({*counts})
    assert query(store, "PRAGMA integrity_check") == [("ok",)]
    done = command(*words, "--json")
    assert done.returncode == 1, done.stderr
    found = Result.from_json(done.stdout)
    assert (found.wanted, found.trials, found.outcomes, found.complete) == (wanted, wanted, {"leaked": wanted}, True)
    with Store(store) as opened:
        # All kills were of one run.
        (one,) = opened.runs()
        assert (one.state, one.trials, one.verdict) == ("ended", wanted, "leaked")
        assert opened.result(one) == found
    assert query(store, "SELECT count(*) FROM samples")[0][0] >= 1
    again = command(*words, "--json")
    assert "nothing to resume" in again.stderr
    assert len(query(store, "SELECT id FROM runs")) == 2


@as_root
def test_submissions_of_rounds_that_were_not_observed_are_made_again_and_what_others_left_is_kept(
    tmp_path: Path,
) -> None:
    made, store = target(tmp_path, LITTERS), tmp_path / "s.db"
    options = StressOptions(specs=parse_specs("python/hello"), submissions=260, concurrency=2, settle=0.1)
    with Store(store, create=True) as opened, opened.record(Stress(), made, options, resume=False) as first:
        seen = cut_off(first, 230)
        run(Stress(), made, options, recording=first)
        cut = opened.run(first.run.id)
        assert (cut.state, cut.trials) == ("running", 230)
        observed = set(json.loads(opened.text(cut, "kept"))["observed"])
        assert observed
    with Store(store) as opened, opened.record(Stress(), made, options, resume=True) as second:
        assert second.run.id == cut.id
        again: list[int] = []
        keep = second.add
        second.add = lambda trial, kept: (again.append(trial.id), keep(trial, kept))[1]  # type: ignore[method-assign]
        result = run(Stress(), made, options, recording=second)
        assert sorted({one.id for one in seen[:230] if one.round in observed} | {*again}) == [*range(260)]
        assert len(again) < 260
        assert (result.trials, result.outcomes) == (260, {"leaked": 260})
        assert len({one.id for one in result.records}) == 260
        assert opened.result(opened.run(cut.id)) == result


@as_root
def test_what_is_tested_must_be_the_same_to_go_on(tmp_path: Path) -> None:
    made, store = target(tmp_path, CLEAN), tmp_path / "s.db"
    options = LeaksOptions(iterations=4, endings=("normal",), settle=0.1, jobs=1)
    with Store(store, create=True) as opened, opened.record(Leaks(), made, options, resume=False) as recording:
        run(
            Leaks(),
            made,
            options,
            recording=recording,
            stop=lambda: len(recording.run.uid) > 0 and made_trials(store) > 0,
        )
        assert opened.run(recording.run.id).state == "interrupted"
    other = target(tmp_path, ': ; exec "$@"')
    with Store(store) as opened, pytest.raises(UsageError, match=r"run 1 cannot go on: what is tested .* \(adapter\)"):
        opened.record(Leaks(), other, options, resume=True)
    # Other options are another campaign.
    more = msgspec.structs.replace(options, iterations=5)
    with Store(store) as opened, opened.record(Leaks(), target(tmp_path, CLEAN), more, resume=True) as recording:
        assert recording.run.id == 2
        assert recording.trials == []


@as_root
def test_a_run_that_still_runs_is_not_gone_on_with(tmp_path: Path) -> None:
    made, store = target(tmp_path, CLEAN), tmp_path / "s.db"
    options = LeaksOptions(iterations=4, endings=("normal",), settle=0.1, jobs=1)
    with (
        Store(store, create=True) as first,
        first.record(Leaks(), made, options, resume=False),
        Store(store) as second,
        pytest.raises(UsageError, match="run 1 is still running in another process"),
    ):
        second.record(Leaks(), made, options, resume=True)


@as_root
def test_a_run_that_fails_before_its_first_trial_is_forgotten(tmp_path: Path) -> None:
    made, store = target(tmp_path, "exit 9"), tmp_path / "s.db"
    done = command("leaks", "--target", made.path, "--iterations", "2", *NORMAL, "--store", store)
    assert done.returncode == 4, done.stderr
    assert query(store, "SELECT * FROM runs") == []


@as_root
@needs_bwrap
def test_shards_put_together_are_judged_as_the_whole_sweep_is(tmp_path: Path) -> None:
    sweep = ["crash", "--target", "bwrap", "--schedule", "immediate", "--phase", "verdict"]
    for number in (1, 2):
        done = command(*sweep, "--shard", f"{number}/2", "--store", tmp_path / f"{number}.db")
        assert done.returncode in (0, 1), done.stderr
    one = command("merge", tmp_path / "1.db", "--store", tmp_path / "all.db")
    # Half of a sweep is not clean.
    assert (one.returncode in (1, 3), "shards 2/2 are missing" in one.stderr) == (True, True), one.stderr
    for _ in range(2):
        both = command("merge", tmp_path / "1.db", tmp_path / "2.db", "--store", tmp_path / "all.db")
        assert both.returncode in (0, 1), both.stdout + both.stderr
    whole = Result.from_json(command(*sweep, "--json").stdout)
    with Store(tmp_path / "all.db") as opened:
        assert [run.options["shard"] for run in opened.runs()] == ["1/2", "2/2", "1/1"]
        joined = opened.result(opened.runs()[-1])
    assert joined is not None
    assert (joined.verdict, joined.complete, joined.points["plans"]) == (whole.verdict, True, whole.points["plans"])
    assert joined.points["tried"] == joined.points["plans"]
    assert [(one.name, one.passed) for one in joined.criteria] == [(one.name, one.passed) for one in whole.criteria]
    query_and_commit(tmp_path / "2.db", "UPDATE runs SET tested = replace(tested, 'version\":\"', 'version\":\"x')")
    (tmp_path / "all.db").unlink()
    other = command("merge", tmp_path / "1.db", tmp_path / "2.db", "--store", tmp_path / "all.db")
    assert other.returncode == 2
    assert "are of different targets: version is" in other.stderr


def query_and_commit(store: Path, text: str) -> None:
    connection = sqlite3.connect(store)
    connection.execute(text)
    connection.commit()
    connection.close()


@as_root
def test_the_commands_list_show_compare_and_export_what_was_recorded(tmp_path: Path) -> None:
    store = tmp_path / "s.db"
    for script in (CLEAN, LITTERS):
        words = ["leaks", "--target", target(tmp_path, script).path, "--iterations", "3", *NORMAL]
        done = command(*words, "--store", store, "-o", tmp_path / "result.json")
        assert done.returncode in (0, 1), done.stderr
    at = ["--store", store]
    listed = command("runs", *at)
    assert listed.returncode == 0
    # Nothing stays beside it.
    assert sorted(one.name for one in tmp_path.glob("s.db*")) == ["s.db", "s.db-lock"]
    assert [line.split()[-1] for line in listed.stdout.splitlines()] == ["clean", "leaked"]
    assert [one["trials"] for one in json.loads(command("runs", *at, "--json").stdout)] == [3, 3]
    exported = command("export", "2", *at, "-o", tmp_path / "exported.json")
    assert exported.returncode == 0, exported.stderr
    assert (tmp_path / "exported.json").read_text() == (tmp_path / "result.json").read_text()
    assert "leaked, made, 3 trials" in command("show", "2", *at).stdout
    assert json.loads(command("show", "2", *at, "--format", "json").stdout)["verdict"] == "leaked"
    (finding,) = json.loads((tmp_path / "result.json").read_text())["findings"]
    shown = command("show", finding["id"], *at)
    assert f"finding {finding['id']}: leaked" in shown.stdout
    assert "in run 2;" in shown.stdout
    assert finding["replay"] in " ".join(shown.stdout.split())
    report = command("show", finding["id"], *at, "--format", "markdown").stdout
    assert report.startswith("# `made`: file left (leaked)")
    worse, better = command("compare", "1", "2", *at), command("compare", "2", "1", *at)
    assert (worse.returncode, better.returncode) == (1, 0), worse.stderr + better.stderr
    assert "1 new finding" in worse.stderr
    for words, why in (
        (["show", "9"], "has no run 9"),
        (["show", "zzz"], "has no run and no finding 'zzz'"),
        (["compare", "1", "9"], "has no run 9"),
    ):
        wrong = command(*words, *at)
        assert (wrong.returncode, why in wrong.stderr) == (2, True), wrong.stderr


def test_a_report_of_a_recorded_run_has_what_leakcheck_itself_used(tmp_path: Path) -> None:
    path, made = tmp_path / "s.db", target(tmp_path, CLEAN)
    options = StressOptions(submissions=20)
    records = [record(number) for number in range(20)]
    with Store(path, create=True) as opened, opened.record(Stress(), made, options, resume=False) as recording:
        recording.end(records, result(made, records), b"{}", 40.0)
        samples = [
            (f"({recording.run.id}, {at}, {102_400 + at}, {9 + at % 2}, {at / 2}, 1.5)") for at in range(0, 60, 5)
        ]
        opened.database.change((f"INSERT INTO samples VALUES {', '.join(samples)}", []))
        curves = {one.title: one.lines[0].points for one in resource_curves(opened.samples(recording.run))}
    assert curves["Descriptors of leakcheck"][:2] == [(0.0, 9.0), (5.0, 10.0)]
    assert curves["Memory of leakcheck"][0] == (0.0, 100.0)
    assert curves["Processors that leakcheck used"][0] == (5.0, 0.5)
    done = command("export", "1", "--store", path, "--report", tmp_path / "page.html")
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "page.html").read_text()
    assert all(title in page for title in curves)


def test_samples_in_memory_are_no_more_however_long_it_runs_and_are_of_all_of_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    sampled = Sampled()
    for now in map(float, range(20_000)):  # noqa: B007 - it is the clock
        sampled.add(None, bytes)
    times = [one.at_s for one in sampled.samples()]
    assert 500 <= len(times) <= 1000
    assert times == sorted(times)
    assert times[-1] > 19_900
    assert max(later - one for one, later in pairwise(times)) <= 64


@as_root
def test_a_report_of_a_campaign_without_a_store_has_what_leakcheck_itself_used(tmp_path: Path) -> None:
    made = target(tmp_path, 'sleep 0.4; exec "$@"')
    words = ["leaks", "--target", made.path, "--iterations", "12", "--jobs", "1", *NORMAL]
    done = command(*words, "--report", tmp_path / "page.html")
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "page.html").read_text()
    assert all(title in page for title in ("Memory of leakcheck", "Descriptors of leakcheck", "Load average"))


@as_root
def test_a_verify_goes_on_with_the_campaign_in_which_it_was_killed(tmp_path: Path) -> None:
    made, store, generator = target(tmp_path, CLEAN), tmp_path / "s.db", random.Random(5)
    words = ["verify", "--target", made.path, "--only", "R6,R7,R8", "--store", store, "--resume"]
    counts = [0]
    for _ in range(3):
        assert not kill_once_made(words, store, counts[-1] + 1, generator.uniform(0, 0.1))
        counts.append(made_trials(store))
    assert counts == sorted({*counts})
    done = command(*words, "--json", timeout=300)
    assert done.returncode in (0, 1), done.stderr
    with Store(store) as opened:
        assert [(one.command, one.part) for one in opened.runs()] == [("verify", ""), ("leaks", "R6 leaks")]
    (found,) = json.loads(done.stdout)["targets"]
    assert [one["status"] for one in found["requirements"]][1:] == ["not applicable", "not applicable"]
    (part,) = found["requirements"][0]["parts"]
    assert part["result"]["trials"] >= 60
    exported = json.loads(command("export", "1", "--store", store).stdout)
    assert exported["targets"] == [found]


@as_root
def test_a_verify_of_two_targets_goes_on_with_the_second_and_keeps_the_first(tmp_path: Path) -> None:
    one, two = (target(tmp_path, CLEAN, name=name) for name in ("one", "two"))
    store = tmp_path / "s.db"
    words = ["verify", "--target", one.path, "--target", two.path, "--only", "R6", "--store", store, "--resume"]
    ended = "SELECT count(*) FROM runs WHERE state = 'ended' AND parent IS NULL"
    process = subprocess.Popen(
        [*LEAKCHECK, *map(str, words)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    wait_until("the end of the first", lambda: made_trials(store) and query(store, ended) == [(1,)])
    process.kill()
    process.wait()
    before = query(store, "SELECT id, began, ended FROM runs WHERE target = 'one' AND parent IS NOT NULL")
    done = command(*words, "--json", timeout=300)
    # On a busy machine a killed payload may outlive the settle time.
    assert done.returncode in (0, 1), done.stderr
    assert [found["target"] for found in json.loads(done.stdout)["targets"]] == ["one", "two"]
    assert query(store, "SELECT id, began, ended FROM runs WHERE target = 'one' AND parent IS NOT NULL") == before
    assert query(store, "SELECT target, state FROM runs WHERE parent IS NULL ORDER BY id") == [
        ("one", "ended"),
        ("two", "ended"),
    ]
    again = command(*words, "--json", timeout=300)
    assert "nothing to resume" in again.stderr
    assert query(store, "SELECT count(*) FROM runs WHERE parent IS NULL") == [(4,)]


@as_root
def test_a_full_disk_stops_the_campaign_with_what_it_has(tmp_path: Path) -> None:
    made = target(tmp_path, CLEAN)
    full = tmp_path / "full"
    full.mkdir()
    words = ["leaks", "--target", made.path, "--iterations", 4000, *NORMAL, "--store", full / "s.db", "--json"]
    script = f"""mount -t tmpfs -o size=256k none {full} || exit 99
        {shlex.join([*LEAKCHECK, *map(str, words)])} >{tmp_path}/out 2>{tmp_path}/err
        code=$?; {shlex.join([*LEAKCHECK, "runs", "--store", str(full / "s.db")])} >{tmp_path}/runs; exit $code"""
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", script],
        stdin=subprocess.DEVNULL,
        timeout=120,
        check=False,
    )
    errors = (tmp_path / "err").read_text()
    assert done.returncode == 3, errors
    result = Result.from_json((tmp_path / "out").read_text())
    assert "no space is left on its disk" in result.error
    assert (result.verdict, result.complete) == ("unknown", False)
    assert 0 < result.trials < 4000
    assert (tmp_path / "runs").read_text().count("leaks") == 1


def test_a_store_that_cannot_be_used_is_told_in_one_line_and_stays_as_it_is(tmp_path: Path) -> None:
    cases: dict[str, tuple[Path, str]] = {}

    def case(name: str, why: str) -> Path:
        path = tmp_path / f"{name}.db"
        cases[name] = (path, why)
        return path

    case("text", "is no SQLite file").write_bytes(b"notes of mine, not a database\n" * 400)
    query_and_commit(case("foreign", "but no store of leakcheck"), "CREATE TABLE mine (x)")
    with Store(case("version", "is a store of version 99"), create=True):
        pass
    query_and_commit(tmp_path / "version.db", "PRAGMA user_version = 99")
    with Store(case("damaged", "it is damaged"), create=True):
        pass
    whole = (tmp_path / "damaged.db").read_bytes()
    (tmp_path / "damaged.db").write_bytes(whole[:4096] + b"\xff" * (len(whole) - 4096))
    case("link", "is no regular file").symlink_to(tmp_path / "elsewhere")
    os.mkfifo(case("fifo", "is no regular file"))
    case("directory", "is no regular file").mkdir()
    (tmp_path / "file").touch()
    os.link(tmp_path / "file", case("hard", "has another name as well"))
    for name, (path, why) in cases.items():
        before = path.read_bytes() if name in ("text", "foreign", "damaged", "version") else b""
        done = command("leaks", "--target", "bwrap", "--iterations", "1", "--store", path)
        assert (done.returncode, why in done.stderr) == (2, True), (name, done.stderr)
        assert len(done.stderr.splitlines()) == 1, done.stderr
        assert not before or path.read_bytes() == before, name
    missing = command("runs", "--store", tmp_path / "missing.db")
    assert (missing.returncode, "no such file" in missing.stderr) == (2, True), missing.stderr
    assert not (tmp_path / "missing.db").exists()
    nowhere = command("leaks", "--iterations", "1", "--store", tmp_path / "no" / "s.db")
    assert (nowhere.returncode, "no directory" in nowhere.stderr) == (2, True), nowhere.stderr
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared").chmod(0o777)
    shared = command("leaks", "--iterations", "1", "--store", tmp_path / "shared" / "s.db")
    assert (shared.returncode, "others can replace files in" in shared.stderr) == (2, True), shared.stderr
    alone = command("leaks", "--iterations", "1", "--resume")
    assert (alone.returncode, "--resume: goes on with a run of a store" in alone.stderr) == (2, True), alone.stderr


def test_no_result_report_or_metrics_take_the_place_of_the_store(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    with Store(path, create=True):
        pass
    before = path.read_bytes()
    campaign = ["leaks", "--target", target(tmp_path, CLEAN).path, "--iterations", "1", "--store", path]
    for words in (
        [*campaign, "-o", path],
        [*campaign, "-o", tmp_path / "s.db-wal"],
        [*campaign, "--metrics-file", path],
        ["verify", "--target", "bwrap", "--store", path, "-o", tmp_path / "." / "s.db"],
        ["export", "1", "--store", path, "-o", path],
        ["compare", "1", "1", "--store", path, "-o", path],
        [*campaign, "-o", tmp_path / "r.md", "--report", tmp_path / "r.md"],
    ):
        done = command(*words)
        assert (done.returncode, "name another" in done.stderr) == (2, True), (words, done.stderr)
        assert path.read_bytes() == before
    assert sorted(one.name for one in tmp_path.iterdir()) == ["made.toml", "s.db"]


def test_a_store_that_another_program_keeps_locked_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "s.db"
    with Store(path, create=True):
        pass
    monkeypatch.setattr(database, "_WAIT_S", 0.1)
    holder = sqlite3.connect(path, isolation_level=None)
    holder.execute("BEGIN EXCLUSIVE")
    with Store(path) as opened, pytest.raises(UsageError, match="another program has kept it locked"):
        opened.database.change(("DELETE FROM runs", []))
    holder.close()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file to another user; run as root")
def test_a_store_that_somebody_else_made_is_read_but_not_written_to(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    with Store(path, create=True):
        pass
    os.chown(path, 65534, 65534)
    with pytest.raises(UsageError, match="of uid 65534"):
        Store(path, create=True)
    with Store(path, read_only=True) as opened:
        assert opened.runs() == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file to another user; run as root")
def test_in_a_directory_of_all_nobody_can_put_changes_into_a_store(tmp_path: Path) -> None:
    tmp_path.chmod(0o1777)
    path = tmp_path / "s.db"
    with Store(path, create=True):
        # Nobody else can make them now.
        assert {one.stat().st_uid for one in tmp_path.iterdir()} == {0}
        assert (tmp_path / "s.db-wal").exists()
    assert [one.name for one in tmp_path.iterdir()] == ["s.db"]
    for end in ("-wal", "-journal", "-shm", "-lock"):
        planted = tmp_path / f"s.db{end}"
        planted.touch()
        os.chown(planted, 65534, 65534)
        with pytest.raises(UsageError, match=f"s.db{end} is of uid 65534"):
            Store(path, create=True)
        planted.unlink()
    (tmp_path / "text.db").write_text("no store, but notes\n" * 100)
    with pytest.raises(UsageError, match="no SQLite file"):
        Store(tmp_path / "text.db", create=True)
    assert sorted(one.name for one in tmp_path.iterdir()) == ["s.db", "text.db"]


def test_ten_thousand_submissions_take_less_than_twenty_megabytes(tmp_path: Path) -> None:
    path, made = tmp_path / "s.db", target(tmp_path, CLEAN)
    options = StressOptions(submissions=10_000)
    records = [record(number) for number in range(10_000)]
    with Store(path, create=True) as opened, opened.record(Stress(), made, options, resume=False) as recording:
        recording.begin(10_000, [])
        for one in records:
            recording.add(one, lambda: b"{}")
        recording.end(records, result(made, records), b"{}", 40.0)
        assert opened.result(opened.run(recording.run.id)) == result(made, records)
    assert path.stat().st_size < 20_000_000


def record(number: int) -> Record:
    return Record(
        id=number,
        spec=f"python/spin@cpu=1,wall=2,seed={number}",
        expect="TLE",
        status="TLE",
        right=True,
        wall_ms=1034.125,
        cpu_ms=998.25,
        queued_ms=12.375,
        ended_s=time.monotonic(),
        box=number % 4,
        round=number // 100,
    )


def result(made: Target, records: list[Record]) -> Result:
    return Result(
        campaign="stress",
        target=made.name,
        version="",
        seed=0,
        wanted=len(records),
        trials=len(records),
        verdict="clean",
        outcomes={"clean": len(records)},
        criteria=[],
        findings=[],
        unit="submissions",
        records=records,
    )


@as_root
def test_a_copy_that_went_on_takes_the_place_of_one_that_was_cut_off(tmp_path: Path) -> None:
    made, options = target(tmp_path, CLEAN), LeaksOptions(iterations=4, endings=("normal",), settle=0.1, jobs=1)
    old, new = tmp_path / "old.db", tmp_path / "new.db"
    with Store(old, create=True) as opened, opened.record(Leaks(), made, options, resume=False) as recording:
        run(Leaks(), made, options, recording=recording, stop=lambda: made_trials(old) > 0)
        query(old, "PRAGMA wal_checkpoint(TRUNCATE)")
        shutil.copy(old, new)
    with Store(new) as opened, opened.record(Leaks(), made, options, resume=True) as recording:
        run(Leaks(), made, options, recording=recording)
    with Store(old) as opened:
        assert merge([new], opened, print).whole == []
        (one,) = opened.runs()
        assert (one.state, one.trials, one.verdict) == ("ended", 4, "clean")
    with Store(new) as opened:
        merge([old], opened, print)
        assert len(opened.runs()) == 1
