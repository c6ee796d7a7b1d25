"""What `leakcheck crash` says of what cannot be, and what an end in the middle of a sweep keeps and leaves."""

import contextlib
import json
import os
import re
import signal
import subprocess
from collections.abc import Generator
from pathlib import Path

import psutil
import pytest
from made import LEAKCHECK, target
from waiting import PATIENCE, wait_for_runs, wait_until

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="arenas of root; run as root")

MAKES = 'mkdir /var/lib/input-made; "$@"; code=$?; rmdir /var/lib/input-made; exit $code'
POINT = "launch:0.1/mkdir(/var/lib/input-made)#1:before:SIGKILL"


def crash(made: Path, *words: str) -> tuple[int, str]:
    command = [*LEAKCHECK, "crash", "--target", made, *words]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    return done.returncode, done.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--plan", "launch:0/mkdri(/x)#1:before:SIGKILL"], "'mkdri' is no operation; there are acct, add_key,"),
        (["--plan", "launch:0/mkdir#1:before:SIGKILL,"], "unexpected end at character 33"),
        (["--plan", "launch:mkdir#1:before:SIGKILL"], "'mkdir#1' is no point"),
        (["--plan", "normal"], "--plan normal: no crash plan, STAGE:POINT…; `leakcheck leaks` tries such plans"),
        (["--plan", POINT, "--phase", "setup"], "--phase --plan: a plan says all of that itself; give one of the two"),
        (["--plan", POINT, "--kill", "tree"], "--kill --plan: a plan says all of that itself"),
        (["--points", "some"], "Invalid value for '--points': 'some' is not one of 'changes', 'all'"),
        (["--signal", "SIGUSR1"], "Invalid value for '--signal': 'SIGUSR1' is not one of 'SIGKILL', 'SIGTERM'"),
    ],
)
def test_bad_input_is_exit_2_and_one_line_that_names_the_wrong_part(
    words: list[str], said: str, tmp_path: Path
) -> None:
    code, text = crash(target(tmp_path, MAKES).path, *words)
    assert code == 2
    assert said in text
    assert re.fullmatch(r"leakcheck: .*\n", text), "one line"


def test_a_point_that_never_comes_is_exit_1_with_the_points_that_are_like_it(tmp_path: Path) -> None:
    made = target(tmp_path, MAKES).path
    code, text = crash(made, "--plan", POINT.replace("made", "maid"), "--iterations", "1")
    assert code == 1
    assert "1 not-reached" in text
    assert "launch:0.1/mkdir(/var/lib/input-maid)#1 is no point of made; launch has " in text
    assert "such as 0.1/mkdir(/var/lib/input-made)#1, " in text


def test_a_target_that_ends_before_any_point_is_exit_4_and_told(tmp_path: Path) -> None:
    def adapter(launch: str) -> Path:
        path = tmp_path / "bare.toml"
        path.write_text(f"name = 'bare'\nsummary = 'x'\nlaunch = [{launch}]\nprobe = {{ none = 'is none' }}\n")
        return path

    for launch, said in (
        ("'{program}'", "leakcheck: bare has no crash point: it changes nothing outside before its payload runs\n"),
        ("'/bin/false', '{program}'", "leakcheck: bare: warm-up run: status RE, not OK: it printed nothing\n"),
        ("'/no/such', '{program}'", "leakcheck: bare: warm-up run: start /no/such: no such file or directory\n"),
    ):
        code, text = crash(adapter(launch))
        assert (code, text.splitlines(keepends=True)[-1]) == (4, said)


@contextlib.contextmanager
def sweep(tmp_path: Path) -> Generator[subprocess.Popen[bytes], None, None]:
    """Start a sweep whose result goes to ``out``, and return once it has made some trials."""
    # A run that lasts is seen.
    made = target(tmp_path, f"sleep 0.1; {MAKES}")
    command = [*LEAKCHECK, "crash", "--target", made.path, "--jobs", "2", "--json"]
    with (
        (tmp_path / "out").open("wb") as out,
        (tmp_path / "err").open("wb") as err,
        subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=err) as running,
    ):
        wait_until("the points", lambda: "crash points" in (tmp_path / "err").read_text())
        wait_for_runs(running.pid, "sleep", 10)
        yield running


def test_ctrl_c_in_a_sweep_keeps_the_result_so_far(tmp_path: Path) -> None:
    with sweep(tmp_path) as running:
        running.send_signal(signal.SIGINT)
        assert running.wait(PATIENCE) == 130, (tmp_path / "err").read_text()
    result = json.loads((tmp_path / "out").read_text())
    assert result["interrupted"] is True
    assert 0 < result["trials"] < result["wanted"]
    assert sum(result["outcomes"].values()) == result["trials"]
    assert 0 < result["points"]["hit"] < result["points"]["seen"]


def cgroups_of(pid: int) -> set[Path]:
    """Return the arena's cgroups of a process that are there, in every hierarchy."""
    found = set()
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            above, name, _ = path.partition("leakcheck-arena-")
            arena = f"{above}{name}{path[len(above + name) :].partition('/')[0]}".lstrip("/")
            places = [Path("/sys/fs/cgroup", top, arena) for top in (controllers.removeprefix("name="), "unified", "")]
            found |= {place for place in places if name and place.is_dir()}
    return found


def test_sigkill_in_the_middle_of_a_sweep_leaves_nothing(tmp_path: Path) -> None:
    with sweep(tmp_path) as running:
        below = psutil.Process(running.pid).children(recursive=True)
        cgroups = {cgroup for process in below for cgroup in cgroups_of(process.pid)}
        running.kill()
    assert len(below) > 2
    assert cgroups
    # A process that was stopped at a point when its tracer ended would stay.
    wait_until("the end of all that it had started", lambda: not any(process.is_running() for process in below))
    wait_until("the end of its cgroups", lambda: not any(cgroup.exists() for cgroup in cgroups))
