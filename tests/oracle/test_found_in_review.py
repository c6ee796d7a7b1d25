"""What once made the oracle blind, crash or cry wolf; each test fails without its fix."""

import json
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from leakcheck import _native

root_only = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: cgroups and mounts")


def guarded(run: list[str], **options: object) -> dict:
    guard = _native.Guard(settle_ms=200, **options)
    subprocess.run(run, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True)
    return json.loads(guard.end())


@pytest.fixture
def own_cgroup() -> Iterator[Path]:
    unified = next(
        (p for p in map(Path, ("/sys/fs/cgroup/unified", "/sys/fs/cgroup")) if (p / "cgroup.stat").exists()), None
    )
    if unified is None:
        pytest.skip("no cgroup v2 hierarchy is mounted")
    own = next(
        line.split("::")[1] for line in Path("/proc/self/cgroup").read_text().splitlines() if line.startswith("0::")
    )
    made = unified / own.strip("/") / f"leakcheck-test-{os.getpid()}"
    try:
        made.mkdir()
    except OSError as error:
        pytest.skip(f"no cgroup can be made here: {error}")
    yield made
    for path in sorted(made.rglob("*"), reverse=True):
        if path.is_dir():
            path.rmdir()
    if made.exists():
        made.rmdir()


def test_a_file_that_an_orphan_writes_as_its_last_act_is_found(tmp_path: Path) -> None:
    # The more processes there are to read, the later the walk of the files must come.
    crowd = [subprocess.Popen(["sleep", "60"], stdin=subprocess.DEVNULL) for _ in range(150)]
    try:
        for number in range(4):
            late = tmp_path / f"late-{number}"
            script = f"(sleep 0.003; touch {late}) >/dev/null 2>&1 &"
            report = guarded(["sh", "-c", script], kinds="process,fd,file", roots=[str(tmp_path)])
            # Init may take its time with the zombie.
            assert "file" in {leak["kind"] for leak in report["leaks"]}, report["verdict"]
    finally:
        for process in crowd:
            process.kill()
        for process in crowd:
            process.wait()


def test_a_very_deep_directory_is_a_gap_and_no_crash(tmp_path: Path) -> None:
    top = os.open(tmp_path, os.O_RDONLY)
    here = os.dup(top)
    try:
        for _ in range(400):
            os.mkdir("d", dir_fd=here)
            below = os.open("d", os.O_RDONLY, dir_fd=here)
            os.close(here)
            here = below
        coverage = _native.snapshot(kinds="file", roots=[str(tmp_path)]).coverage
        assert coverage["file"][0] == "partial" and "200 levels" in coverage["file"][1]
    finally:
        os.close(here)
        os.close(top)
        subprocess.run(["rm", "-rf", str(tmp_path / "d")], check=True)


def test_a_descriptor_on_an_overlong_path_is_seen(tmp_path: Path) -> None:
    before = _native.snapshot(scope=f"tree:{os.getpid()}", kinds="fd", include_self=True)
    here = os.open(tmp_path, os.O_RDONLY)
    for _ in range(22):
        os.mkdir("x" * 200, dir_fd=here)
        below = os.open("x" * 200, os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    try:
        after = _native.snapshot(scope=f"tree:{os.getpid()}", kinds="fd", include_self=True)
        assert [leak["evidence"]["resource"]["fd"] for leak in json.loads(_native.diff(before, after))["leaks"]] == [
            here
        ]
    finally:
        os.close(here)
        subprocess.run(["rm", "-rf", str(tmp_path / ("x" * 200))], check=True)


def test_without_descriptors_left_a_look_fails_and_is_never_clean() -> None:
    script = (
        "import os, resource\n"
        "from leakcheck import _native, errors\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))\n"
        "held = []\n"
        "while True:\n"
        "    try: held.append(os.open('/dev/null', os.O_RDONLY))\n"
        "    except OSError: break\n"
        "os.close(held.pop())\n"
        "try: _native.snapshot(kinds='process')\n"
        "except errors.NativeError as error: print(error)\n"
    )
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] >= 64
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "oo many open files" in done.stdout, done.stdout


@root_only
def test_a_process_in_a_threaded_cgroup_is_in_its_scope(own_cgroup: Path) -> None:
    (own_cgroup / "cgroup.type").write_text("threaded")
    sleeper = subprocess.Popen(["sleep", "60"], stdin=subprocess.DEVNULL)
    try:
        # Only threads of one thread group's domain may share it; the parent is the domain.
        (own_cgroup / "cgroup.threads").write_text(str(sleeper.pid))
        found = _native.snapshot(scope=f"cgroup:{own_cgroup}", kinds="process").resources("process")
        assert [process["pid"] for process in found] == [sleeper.pid]
    except OSError as error:
        pytest.skip(f"the hierarchy takes no threaded cgroup here: {error}")
    finally:
        sleeper.kill()
        sleeper.wait()


@root_only
def test_a_scope_that_is_gone_after_the_run_is_clean(own_cgroup: Path) -> None:
    inner = own_cgroup / "inner"
    inner.mkdir()
    report = guarded(["rmdir", str(inner)], scope=f"cgroup:{inner}")
    assert (report["verdict"], report["leaks"]) == ("clean", [])


@root_only
def test_settling_waits_between_looks_at_a_cgroup(own_cgroup: Path) -> None:
    report = guarded(["mkdir", str(own_cgroup / "left")], kinds="cgroup")
    (own_cgroup / "left").rmdir()
    assert report["verdict"] == "leaked" and report["settle"]["looks"] < 40, report["settle"]


def test_two_snapshots_by_the_command_do_not_see_one_another(tmp_path: Path) -> None:
    scope = f"tree:{os.getpid()}"
    for name in ("a", "b"):
        command = [sys.executable, "-m", "leakcheck", "snapshot", "--scope", scope, "--kinds", "process", "-o", name]
        subprocess.run(command, cwd=tmp_path, stdin=subprocess.DEVNULL, check=True)
    both = [_native.Snapshot.load(str(tmp_path / name)) for name in ("a", "b")]
    assert json.loads(_native.diff(*both))["leaks"] == []


@root_only
def test_a_lock_on_another_device_with_the_same_inode_holds_nothing(tmp_path: Path) -> None:
    script = """
    set -e
    for d in one two; do mkdir $d && mount -t tmpfs none $d && : >$d/box.lock; done
    test "$(stat -c %i one/box.lock)" = "$(stat -c %i two/box.lock)"
    exec flock two/box.lock "$0" -c '
from leakcheck import _native
found = _native.snapshot(kinds="lockfile", lock_files=["one", "two"]).resources("lockfile")
print(*(f["path"].rsplit("/", 2)[-2] + ":" + f["state"] for f in found))'
    """
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", script, sys.executable],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == ["one:free", "two:held"]


@root_only
def test_a_zombie_in_a_cgroup_is_found_though_the_cgroup_lists_none(own_cgroup: Path) -> None:
    supervisor = """import os, sys
if not (pid := os.fork()):
    open(sys.argv[1], "w").write("0")
    os._exit(0)
os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
print(pid, flush=True)
input()"""
    argv = [sys.executable, "-c", supervisor, str(own_cgroup / "cgroup.procs")]
    guard = _native.Guard(settle_ms=100, scope=f"cgroup:{own_cgroup}")
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        report = json.loads(guard.end())
        parent.communicate(b"\n")
    assert [leak["kind"] for leak in report["leaks"]] == ["process"], report
    assert f"zombie {child}" in report["leaks"][0]["label"]


def test_a_look_at_a_leased_lock_file_does_not_break_the_lease(tmp_path: Path) -> None:
    # SIGIO, which tells the holder that its lease is being broken, ends a process that does not expect it (fcntl(2)).
    script = """
import fcntl, os, sys
fd = os.open("box.lock", os.O_RDWR | os.O_CREAT)
fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_WRLCK)
print("leased", flush=True)
sys.stdin.read()
"""
    command = [sys.executable, "-c", script]
    with subprocess.Popen(command, cwd=tmp_path, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout
        assert holder.stdout.readline() == "leased\n"
        found = _native.snapshot(kinds="lockfile", lock_files=[str(tmp_path)]).resources("lockfile")
        holder.communicate()
    assert holder.returncode == 0
    assert [Path(f["path"]).name + ":" + f["state"] for f in found] == ["box.lock:held"]
