"""A result is written where it was asked for, over nothing that is somebody else's, and its loss loses no exit code."""

import fcntl
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import pytest

from leakcheck import UsageError
from leakcheck.atomic_write import Output

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can act as another user")
GUARD = (sys.executable, "-m", "leakcheck", "guard", "--kinds", "process", "--settle", "0.05")


def guard(*arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [*GUARD, *map(str, arguments)]
    options = {"stdin": subprocess.DEVNULL, "capture_output": True, **options}
    return subprocess.run(command, text=True, timeout=60, check=False, **options)


@pytest.fixture
def victim(tmp_path: Path) -> Generator[Path, None, None]:
    """Return a file that nobody may change."""
    path = tmp_path / "victim"
    path.write_text("precious")
    yield path
    assert path.read_text() == "precious"


def test_the_case_of_a_planted_link_and_fifo(case: Callable[..., Any]) -> None:
    if os.geteuid() != 0:
        pytest.skip("it acts as root and as nobody")
    done = case("sh", "{outfile.sh}")
    assert "\nprecious\nright: precious" in done.text
    assert "a symbolic link of uid 65534 appeared there since" in done.text
    assert "a FIFO of uid 65534 appeared there since" in done.text
    assert "exit 124" not in done.text
    assert "exit 137" not in done.text


@as_root
@pytest.mark.parametrize("plant", ["ln -s {victim} {out}", "ln {mine} {out}", "mkfifo {out}", "mkdir {out}"])
def test_what_another_user_puts_there_meanwhile_stays(tmp_path: Path, victim: Path, plant: str) -> None:
    tmp_path.chmod(0o1777)
    mine = tmp_path / "mine"
    mine.write_text("theirs")
    os.chown(mine, 65534, 65534)
    out = tmp_path / "out.json"
    with Output(out) as output:
        subprocess.run(plant.format(victim=victim, mine=mine, out=out), shell=True, check=True)
        if not mine.samefile(out):
            os.lchown(out, 65534, 65534)
        with pytest.raises(UsageError, match="of uid 65534 appeared there since; it stays"):
            output.save("{}")
    assert mine.read_text() == "theirs"


@as_root
def test_a_link_of_another_user_is_not_followed_at_any_level(tmp_path: Path, victim: Path) -> None:
    for name, target in (("file", victim), ("directory", tmp_path)):
        (tmp_path / name).symlink_to(target)
        os.lchown(tmp_path / name, 65534, 65534)
    for path in (tmp_path / "file", tmp_path / "directory" / "victim"):
        with pytest.raises(UsageError, match="is a symbolic link of uid 65534: not followed"):
            Output(path)


@as_root
def test_a_file_of_another_user_in_a_shared_directory_is_refused_before_the_run(tmp_path: Path) -> None:
    theirs = tmp_path / "out.json"
    theirs.write_text("theirs")
    os.chown(theirs, 65534, 65534)
    Output(theirs).close()
    tmp_path.chmod(0o1777)
    done = guard("-o", theirs, "--", "touch", tmp_path / "ran")
    assert done.returncode == 2
    assert "is a file of uid 65534, in a directory that others can write" in done.stderr
    assert not (tmp_path / "ran").exists()


def test_an_old_result_is_replaced_and_so_is_one_that_appears_meanwhile(tmp_path: Path) -> None:
    for name in ("old", "new"):
        if name == "old":
            (tmp_path / name).write_text("old")
        with Output(tmp_path / name) as output:
            (tmp_path / name).write_text("meanwhile")
            output.save("1")
        assert (tmp_path / name).read_text() == "1\n"
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["new", "old"]


def test_the_directory_that_was_opened_gets_the_result_whatever_has_its_name_then(tmp_path: Path) -> None:
    place, elsewhere = tmp_path / "place", tmp_path / "elsewhere"
    place.mkdir()
    elsewhere.mkdir()
    with Output(place / "out") as output:
        place.rename(tmp_path / "moved")
        place.symlink_to(elsewhere)
        with pytest.raises(UsageError, match=r"moved or replaced during the run; the result is in .*/moved"):
            output.save("1")
    assert (tmp_path / "moved" / "out").read_text() == "1\n"
    assert not list(elsewhere.iterdir())


def test_a_directory_that_was_removed_meanwhile_is_told(tmp_path: Path) -> None:
    (tmp_path / "place").mkdir()
    with Output(tmp_path / "place" / "out") as output:
        (tmp_path / "place").rmdir()
        with pytest.raises(UsageError, match="its directory was removed during the run"):
            output.save("1")


def test_a_fifo_that_nobody_reads_is_no_hang(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("leakcheck.atomic_write._PATIENCE", 0.1)
    os.mkfifo(tmp_path / "fifo")
    with Output(tmp_path / "fifo") as output, pytest.raises(UsageError, match="no reader opened it"):
        output.save("1")
    reader = os.open(tmp_path / "fifo", os.O_RDONLY | os.O_NONBLOCK)
    try:
        with Output(tmp_path / "fifo") as output, pytest.raises(UsageError, match="no reader read from it"):
            output.save("x" * (1 << 20))
    finally:
        os.close(reader)


@pytest.mark.parametrize("name", ["/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"])
def test_a_descriptor_of_ours_is_written_to(name: str, tmp_path: Path) -> None:
    done = guard("-o", name, "--", "true")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["verdict"] == "clean"
    with (tmp_path / "log").open("w+") as log:
        log.write("before\n")
        log.flush()
        assert guard("-o", name, "--", "true", stdout=log, capture_output=False).returncode == 0
        log.seek(0)
        first, report = log.read().splitlines()
    assert first == "before"
    assert json.loads(report)["verdict"] == "clean"


def test_a_device_is_written_to_and_a_large_result_fits_a_pipe_that_is_read(tmp_path: Path) -> None:
    assert guard("-o", "/dev/null", "--", "true").returncode == 0
    read, write = os.pipe()
    fcntl.fcntl(write, fcntl.F_SETPIPE_SZ, 4096)
    with subprocess.Popen(["wc", "-c"], stdin=read, stdout=subprocess.PIPE) as counter:
        os.close(read)
        with Output(Path(f"/dev/fd/{write}")) as output:
            output.save("x" * 100_000)
        os.close(write)
        assert counter.communicate()[0].strip() == b"100001"
    assert not list(tmp_path.iterdir())


def test_a_descriptor_that_is_not_open_for_writing_is_refused_before_the_run() -> None:
    with Path(__file__).open() as source:
        done = guard("-o", "/dev/fd/0", "--", "false", stdin=source)
    assert done.returncode == 2
    assert "is not open for writing" in done.stderr


@pytest.mark.parametrize(("command", "code"), [("true", 3), ("sleep 60 </dev/null >/dev/null 2>&1 & echo $!", 1)])
def test_a_full_disk_is_told_in_one_line_and_a_leak_stays_one(command: str, code: int) -> None:
    done = guard("-o", "/dev/full", "--", "sh", "-c", command)
    if done.stdout:
        os.kill(int(done.stdout), 9)
    assert done.returncode == code
    assert done.stderr.splitlines()[0] == "leakcheck: write /dev/full: no space left on device"
    assert done.stderr.splitlines()[1].startswith("leakcheck: clean" if code == 3 else "leakcheck: leaked")


@as_root
def test_a_tmpfs_that_fills_up_in_the_run_leaves_no_half_result(tmp_path: Path) -> None:
    script = (
        f"mount -t tmpfs -o size=16k x {tmp_path}; {shlex.join(GUARD)} -o {tmp_path}/out --"
        f" sh -c 'cat /dev/zero >{tmp_path}/fill 2>/dev/null; true'; echo exit $?; rm {tmp_path}/fill; ls -A {tmp_path}"
    )
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", script], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stdout == "exit 3\n", done.stderr
    assert "no space left on device" in done.stderr


def test_a_directory_that_may_not_be_written_is_told_before_the_run(tmp_path: Path) -> None:
    done = guard("-o", "/proc/report.json", "--", "touch", tmp_path / "ran")
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert not list(tmp_path.iterdir())
