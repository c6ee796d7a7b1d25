"""Coverage is true, and is about what the run could have made."""

import json
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from leakcheck._bin import helper

sys.path.insert(0, str(Path(__file__).parent))
from places import CHECKOUT, Place, as_nobody, in_container

__all__ = ["as_nobody", "in_container"]

PYTHON = shlex.quote(sys.executable)
SILENT = "</dev/null >/dev/null 2>&1"
# What another user does to a directory during the run.
CLOSES = f"{{ until [ -e /tmp/d/file ]; do sleep 0.01; done; chmod 700 /tmp/d; }} {SILENT} &"
OPENS = f"{{ until [ -e /tmp/go ]; do sleep 0.01; done; chmod 777 /tmp/d; }} {SILENT} &"


@pytest.fixture(params=["as_nobody", "in_container"])
def place(request: pytest.FixtureRequest) -> Place:
    """Each of the two places."""
    found: Place = request.getfixturevalue(request.param)
    return found


def may_trace() -> bool:
    """Whether this process has CAP_SYS_PTRACE, which is the 19th."""
    status = Path("/proc/self/status").read_text()
    return bool(int(status.partition("\nCapEff:")[2].split()[0], 16) >> 19 & 1)


def judged(done: "subprocess.CompletedProcess[str]") -> dict[str, Any]:
    """The report that a guard printed."""
    assert done.stdout, done.stderr
    report: dict[str, Any] = json.loads(done.stdout)
    return report


def is_machine_wide(leak: dict[str, Any]) -> bool:
    """Whether a leak may be of another suite of leakcheck's: its cgroups carry our name."""
    return leak["kind"] in ("sysctl", "key", "loop") or (leak["kind"] == "cgroup" and "/leakcheck-" in leak["label"])


class TestAScopeOfWhichNothingCanBeRead:
    @pytest.mark.skipif(not may_trace(), reason="who has not the right may trace its equals all the same")
    def test_is_unknown_without_the_right_to_trace(self, case: Callable[..., Any]) -> None:
        outcome = case("bash", "{unreadable_scope.sh}")
        # Each leakcheck tells the command's exit as well.
        assert outcome.exits[1::2] == [1, 3, 3], outcome.text

    def test_is_not_full_in_the_snapshot_itself(self, as_nobody: Place) -> None:
        script = "leakcheck snapshot --json --scope tree:$(cat /tmp/pid) --kinds fd,mount,process"
        done = as_nobody("sh", "-c", script, before=f"sleep 20 {SILENT} & echo $! >/tmp/pid")
        levels = {kind: coverage["level"] for kind, coverage in json.loads(done.stdout)["coverage"].items()}
        assert levels == {"fd": "partial", "mount": "partial", "process": "full"}, done.stdout + done.stderr

    def test_makes_a_comparison_unknown(self, as_nobody: Place) -> None:
        look = "leakcheck snapshot --scope tree:$(cat /tmp/pid) --kinds fd -o /tmp/{}.json >/dev/null"
        script = f"{look.format('a')}; {look.format('b')}; leakcheck diff /tmp/a.json /tmp/b.json"
        done = as_nobody("sh", "-c", script, before=f"sleep 20 {SILENT} & echo $! >/tmp/pid")
        assert done.returncode == 3, done.stdout + done.stderr


class TestCleanIsSayable:
    def test_without_options(self, place: Place) -> None:
        done = place("leakcheck", "guard", "--settle", "0.1", "--json", "--", "true", home=False)
        report = judged(done)
        assert {coverage["level"] for coverage in report["coverage"].values()} == {"full"}, report["coverage"]
        # What another suite on this machine does to what no namespace parts counts here too.
        others = [leak for leak in report["leaks"] if leak["attribution"] == "none" and is_machine_wide(leak)]
        assert (report["leaks"], done.returncode) == (others, int(bool(others))), done.stdout

    def test_beside_closed_directories_of_others(self, as_nobody: Place) -> None:
        kinds = ["--kinds", "process,fd,file"]
        closed = "mkdir -m 700 /tmp/root /run/root; mkdir -m 711 /tmp/passable; touch /tmp/root/x"
        done = as_nobody("leakcheck", "guard", "--settle", "0.1", "--json", *kinds, "--", "true", before=closed)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "can neither write to" in str(judged(done)["coverage"])

    def test_beside_one_who_makes_and_removes_closed_directories(self, as_nobody: Place) -> None:
        acts = "mkdir -m 700 /tmp/new; touch /tmp/new/x; rm -r /tmp/old; touch /tmp/done"
        other = f"mkdir -m 700 /tmp/old; {{ until [ -e /tmp/go ]; do sleep 0.01; done; {acts}; }} {SILENT} &"
        command = "touch /tmp/go; until [ -e /tmp/done ]; do sleep 0.01; done; rm /tmp/go"
        guard = ["leakcheck", "guard", "--settle", "0.1", "--json", "--kinds", "process,fd,file"]
        done = as_nobody(*guard, "--", "sh", "-c", command, before=other)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "can neither write to" in str(judged(done)["coverage"])

    @pytest.mark.parametrize(
        ("before", "command"),
        [
            ("mkdir -m 711 /tmp/d; mkdir -m 777 /tmp/d/open", "touch /tmp/d/open/file"),
            ("mkdir -m 733 /tmp/d", "touch /tmp/d/file"),
            ("mkdir -m 700 /tmp/d; mkdir -m 777 /tmp/d/open; cd /tmp/d/open", "touch file"),
            ("mkdir -m 000 /tmp/d; chown 65534 /tmp/d", "chmod 700 /tmp/d; touch /tmp/d/file; chmod 000 /tmp/d"),
            (f"mkdir -m 777 /tmp/d; {CLOSES}", "touch /tmp/d/file; while [ -x /tmp/d ]; do sleep 0.01; done"),
            (f"mkdir -m 700 /tmp/d; {OPENS}", "touch /tmp/go; until touch /tmp/d/x; do sleep 0.01; done; rm /tmp/go"),
        ],
        ids=[
            *("in a directory below", "by a name of chance", "from the working directory", "by its owner"),
            *("before it is closed", "after it was opened"),
        ],
    )
    def test_but_not_where_the_run_can_get_in(self, as_nobody: Place, before: str, command: str) -> None:
        guard = ["leakcheck", "guard", "--settle", "0.1", "--kinds", "file"]
        done = as_nobody(*guard, "--", "sh", "-c", command, before=before)
        assert done.returncode in (1, 3), done.stdout + done.stderr

    def test_but_not_after_a_set_user_id_program_ran(self, as_nobody: Place) -> None:
        before = "cp /bin/cp /tmp/elevated; chmod 4755 /tmp/elevated; mkdir -m 700 /tmp/closed"
        guard = ["leakcheck", "guard", "--settle", "0.1", "--kinds", "file"]
        done = as_nobody(*guard, "--", "/tmp/elevated", "/etc/hostname", "/tmp/closed/left", before=before)
        assert done.returncode == 3 and "a process opened /tmp/elevated" in done.stderr, done.stdout + done.stderr
        done = as_nobody(
            "setpriv", "--no-new-privs", *guard, "--", "/tmp/elevated", "/etc/hostname", "/dev/null", before=before
        )
        assert done.returncode == 0, done.stdout + done.stderr


class TestWhatCanBeMadeThereIsFound:
    PLANTS = ("zombie", "lock-flock", "file-temp", "shm-sysv", "shm-posix", "mqueue", "key-user", "net-abstract-unix")

    @pytest.mark.parametrize("plant", PLANTS)
    def test_each_of_its_kind(self, place: Place, plant: str) -> None:
        listed = subprocess.run([helper("mkleak"), "--list", "--json"], capture_output=True, check=True)
        kind = next(p["kind"] for p in json.loads(listed.stdout) if p["name"] == plant)
        # It waits on its standard input, and takes the leak away when that ends.
        wait = "until grep -q . /tmp/out; do sleep 0.02; done; grep -q READY /tmp/out"
        run = f"{shlex.quote(str(helper('mkleak')))} {plant} </tmp/in >/tmp/out 2>&1 & {wait}"
        guard = f"leakcheck guard --json --settle 0.05 --kinds {kind} -- sh -c {shlex.quote(run)}"
        # What it planted may outlive the place, such as a key: it takes that away before the place goes.
        gone = "kill $keeper; until grep -q CLEAN /tmp/out; do sleep 0.02; done"
        script = f"mkfifo /tmp/in; sleep 30 3<>/tmp/in & keeper=$!; {guard}; status=$?; {gone}; exit $status"
        done = place("sh", "-c", script)
        report = judged(done)
        assert report["command"]["exit"] == 0, done.stdout
        assert done.returncode == 1 and {leak["kind"] for leak in report["leaks"]} == {kind}, done.stdout

    @pytest.mark.parametrize("before", ["umount /dev/mqueue", "unshare --ipc mount -t mqueue mqueue /dev/mqueue"])
    def test_a_message_queue_of_another_user_that_nothing_lists_is_unknown(
        self, in_container: Place, before: str
    ) -> None:
        queue = "import ctypes, os; os.setuid(65534); ctypes.CDLL('librt.so.1').mq_open(b'/left', 0o102, 0o600, None)"
        guard = ["leakcheck", "guard", "--settle", "0.05", "--kinds", "ipc", "--", sys.executable, "-c", queue]
        assert in_container(*guard).returncode == 1
        done = in_container(*guard, before=before)
        assert done.returncode == 3 and "message queues" in done.stderr, done.stdout + done.stderr

    def test_a_process_that_may_not_be_read_is_unknown_at_least(self, as_nobody: Place) -> None:
        # PR_SET_DUMPABLE
        hide = "import ctypes, os, time; ctypes.CDLL(None).prctl(4, 0); "
        hide += "open('/tmp/pid', 'w').write(f'{os.getpid()}'); time.sleep(600)"
        command = f'{PYTHON} -c "{hide}" {SILENT} & until [ -s /tmp/pid ]; do sleep 0.05; done'
        done = as_nobody("leakcheck", "guard", "--settle", "0.05", "--kinds", "fd", "--", "sh", "-c", command)
        assert done.returncode == 3, done.stdout + done.stderr


class TestAnObservationThatWasCutShort:
    def test_by_the_limit_of_descriptors_blames_nothing_that_was_there_before(self, tmp_path: Path) -> None:
        deep = tmp_path.joinpath(*"abcdefghijklmnopqrstuvwxyz")
        deep.mkdir(parents=True)
        guard = f"{PYTHON} -m leakcheck guard --settle 0.05 --kinds file --roots {tmp_path} -- true"
        command = f"ulimit -n 16; exec {guard}"
        done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False, cwd=CHECKOUT)
        assert done.returncode == 3, done.stdout + done.stderr
        assert "too many open files" in done.stderr.lower(), done.stderr

    def test_by_a_closed_directory_blames_nothing_that_was_in_it(self, as_nobody: Place) -> None:
        before = "mkdir -m 000 /tmp/d; touch /tmp/d/old; chown -R 65534 /tmp/d"
        guard = ["leakcheck", "guard", "--json", "--settle", "0.05", "--kinds", "file"]
        done = as_nobody(*guard, "--", "chmod", "755", "/tmp/d", before=before)
        assert (done.returncode, judged(done)["leaks"]) == (3, []), done.stdout


def test_processes_that_procfs_hides_make_unknown(as_nobody: Place) -> None:
    if Path("/proc/1").stat().st_uid != 0:
        pytest.skip("process 1 is not root's")
    done = as_nobody(
        "leakcheck",
        "guard",
        "--settle",
        "0.05",
        "--kinds",
        "process",
        "--",
        "true",
        before="mount -t proc -o hidepid=2 proc /proc",
    )
    assert done.returncode == 3 and "hidepid" in done.stderr, done.stdout + done.stderr


MOVES = {
    "moved away": "mv $0 $1",
    "replaced": "mv $0 $1; mkdir $0",
    "exchanged by its link": "ln -sfn $1 $0",
}


@pytest.mark.parametrize("move", MOVES)
def test_a_root_that_is_no_longer_the_same_directory_is_not_fully_seen(move: str, tmp_path: Path) -> None:
    root, other, real = tmp_path / "root", tmp_path / "other", tmp_path / "real"
    real.mkdir()
    if "link" in move:
        other.mkdir()
        root.symlink_to(real)
    else:
        real.rename(root)
    guard = [sys.executable, "-m", "leakcheck", "guard", "--kinds", "file", "--roots", root, "--json"]
    command = ["sh", "-c", f"touch $0/left; {MOVES[move]}", root, other]
    done = subprocess.run([*guard, "--", *command], capture_output=True, text=True, check=False, timeout=60)
    report = judged(done)
    assert (report["verdict"], report["coverage"]["file"]["level"]) == ("unknown", "partial"), done.stderr


def test_root_without_the_capabilities_for_an_arena_is_told_how_to_get_them(in_container: Place) -> None:
    done = in_container("leakcheck", "guard", "--arena", "--", "true")
    assert done.returncode == 4, done.stderr
    for word in (
        "CAP_SYS_ADMIN",
        "--cap-add SYS_ADMIN --cap-add NET_ADMIN",
        "--privileged",
        "leakcheck guard",
        "--host",
    ):
        assert word in done.stderr


@pytest.mark.parametrize("campaign", ["exhaust", "locks", "state"])
def test_a_campaign_without_the_capabilities_for_an_arena_is_no_verdict(in_container: Place, campaign: str) -> None:
    done = in_container("leakcheck", campaign, "--target", "refbox", "--json")
    assert (done.returncode, done.stdout) == (4, ""), done
    assert "CAP_SYS_ADMIN" in done.stderr
