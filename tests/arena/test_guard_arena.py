"""`leakcheck guard --arena` and its options, as a user meets them."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
from shown import SHOWN
from waiting import PATIENCE, wait_until

from leakcheck.arena import Arena

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="arenas of root; run as root")

LEAKCHECK = [sys.executable, "-m", "leakcheck"]


def guard(*arguments: str | Path, cwd: str = "/") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*LEAKCHECK, "guard", *arguments],
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )


def report(*arguments: str | Path) -> dict[str, Any]:
    done = guard("--json", *arguments)
    assert done.stdout, done.stderr
    return dict(json.loads(done.stdout))


def test_a_command_that_leaves_nothing_is_clean_and_its_output_comes_through() -> None:
    done = guard("--arena", "--", "sh", "-c", "echo out; echo err >&2; mkdir /opt/x; rmdir /opt/x")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "out\n"
    assert "err\n" in done.stderr
    assert "leakcheck: clean" in done.stderr


def test_whatever_is_written_anywhere_is_found_and_not_on_the_host() -> None:
    script = "mkdir /srv/made; echo x >> /etc/hosts; rm /etc/hostname; sleep 600 >/dev/null 2>&1 &"
    # On a busy machine, a shell's child is for some time not yet what it executes.
    script += " until [ $(cat /proc/$!/comm) = sleep ]; do :; done"
    found = report("--arena", "--settle", "0.1", "--", "sh", "-c", script)
    labels = " ".join(leak["label"] for leak in found["leaks"])
    for wanted in ("dir /srv/made", "changed file /etc/hosts", "deleted file /etc/hostname", "(sleep)"):
        assert wanted in labels
    assert {leak["attribution"] for leak in found["leaks"]} == {"scope"}
    assert not Path("/srv/made").exists()


def test_what_is_made_beneath_the_mounts_of_an_arena_is_found(tmp_path: Path) -> None:
    cgroups = next(Path("/sys/fs/cgroup").glob("*/cgroup.procs"), None)
    tree = f"umount -l {cgroups.parent} && mkdir {cgroups.parent}/beneath && " if cgroups else ""
    # It unmounts in a mount namespace of its own, which ends with it. PID 1's mounts stay, and cover what it made.
    script = f"umount /dev/shm && echo x > /dev/shm/beneath && {tree} umount /tmp/bound && echo x > /tmp/bound/beneath"
    bind = f"{tmp_path}:/tmp/bound:ro"
    found = report("--arena", "--settle", "0.1", "--bind", bind, "--", "unshare", "--mount", "sh", "-c", script)
    labels = {leak["label"] for leak in found["leaks"]}
    wanted = {"file /dev/shm/beneath", "file /tmp/bound/beneath"}
    assert labels == wanted | ({f"dir {cgroups.parent}/beneath"} if cgroups else set())
    assert found["verdict"] == "leaked"


def test_a_submount_of_the_host_cannot_be_made_writable() -> None:
    prepare = "mkdir -p $0/place && mount -t tmpfs -o nosuid,mode=0710 host $0/place && echo mine > $0/place/file"
    inside = (
        "stat -c %a $0/place; cat $0/place/file; mount -o remount,bind,rw,nosuid $0/place; echo yours > $0/place/file; "
        "mount -o remount,bind,ro,nosuid $0/place"
    )
    checked = f'{prepare} && {{ "$@"; cat $0/place/file; }}'
    place = Path("/srv") / f"leakcheck-test-{os.getpid()}"
    command = [*LEAKCHECK, "guard", "--arena", "--settle", "0.1", "--", "sh", "-c", inside, place]
    try:
        ran = subprocess.run(
            ["unshare", "--mount", "sh", "-c", checked, place, *command], capture_output=True, text=True, check=False
        )
    finally:
        (place / "place").rmdir()
        place.rmdir()
    assert ran.stdout.splitlines() == ["710", "mine", "mine"], ran.stderr
    assert "Read-only file system" in ran.stderr
    assert "leakcheck: clean" in ran.stderr


def test_what_is_made_beneath_the_last_of_many_mounts_is_found(tmp_path: Path) -> None:
    # More than a packet has descriptors (SCM_MAX_FD).
    binds = []
    for number in range(280):
        (made := tmp_path / str(number)).mkdir()
        binds += ["--bind", f"{made}:/tmp/many-{number}:ro"]
    for script, labels in (("true", []), ("umount /tmp/many-279; : > /tmp/many-279/x", ["file /tmp/many-279/x"])):
        found = report("--arena", "--settle", "0.1", *binds, "--", "unshare", "--mount", "sh", "-c", script)
        assert [leak["label"] for leak in found["leaks"]] == labels


def test_a_leaked_process_that_holds_our_output_is_one_leak_and_no_detached_mount(tmp_path: Path) -> None:
    with (tmp_path / "out").open("wb") as out:
        command = [*LEAKCHECK, "guard", "--arena", "-o", tmp_path / "report", "--settle", "0.1", "--"]
        done = subprocess.run(
            [*command, "sh", "-c", "sleep 600 &"],
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.DEVNULL,
            check=False,
        )
    assert done.returncode == 1
    assert [leak["kind"] for leak in json.loads((tmp_path / "report").read_text())["leaks"]] == ["process"]


def test_the_recovery_runs_in_the_arena_too() -> None:
    done = guard("--arena", "--settle", "0.1", "--recover", "rm /srv/x", "--", "touch", "/srv/x")
    assert done.returncode == 0, done.stderr
    assert "1 reclaimable" in done.stderr


def test_exit_codes_are_those_of_any_guard() -> None:
    assert guard("--arena", "--exit-code", "command", "--", "sh", "-c", "exit 5").returncode == 5
    missing = guard("--arena", "--", "/no/such")
    assert missing.returncode == 4
    assert "start /no/such: no such file" in missing.stderr


def test_the_error_for_a_working_directory_that_an_arena_replaces_has_a_hint(tmp_path: Path) -> None:
    hidden = guard("--arena", "--", "true", cwd=str(tmp_path))
    assert hidden.returncode == 4
    assert "an arena has its own /tmp, /run, /var/tmp, /dev" in hidden.stderr
    shown = guard("--arena", "--bind", str(tmp_path), "--", "touch", "x", cwd=str(tmp_path))
    assert shown.returncode == 1, shown.stderr
    assert f"file {tmp_path}/x" in shown.stderr
    assert (tmp_path / "x").exists(), "what is bound is the host's"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--keep", "--", "true"], "need --arena"),
        (["--arena", "--scope", "tree:1", "--", "true"], "--arena: the whole arena is observed"),
        (["--arena", "--size", "much", "--", "true"], "--size 'much': give a number of bytes"),
        (["--arena", "--network", "none", "--", "true"], "network 'none': give 'own' or 'host'"),
        (["--arena", "--bind", "/etc:x", "--", "true"], "--bind '/etc:x': give SRC"),
        (["--arena", "--bind", "/nosuch", "--", "true"], "bind /nosuch: no such file"),
        (["--arena", "--limit", "pids.max", "--", "true"], "--limit 'pids.max': give FILE=VALUE"),
    ],
)
def test_bad_options_are_told(arguments: list[str], message: str) -> None:
    done = guard(*arguments)
    assert done.returncode == 2
    assert message in done.stderr


def test_options_reach_the_arena() -> None:
    script = "readlink /proc/self/ns/net; cat /sys/fs/cgroup/pids/pids.max; dd if=/dev/zero of=/big bs=1M count=9"
    options = ["--limit", "pids.max=5", "--network", "host", "--size", "1M"]
    done = guard("--arena", *options, "--", "sh", "-c", script)
    assert done.stdout.split() == [str(Path("/proc/self/ns/net").readlink()), "5"]
    assert "No space left" in done.stderr


def test_a_kept_arena_stays_up_until_its_warden_is_told_to_end_it() -> None:
    done = guard("--arena", "--keep", "--settle", "0.1", "--", "touch", "/srv/x")
    assert done.returncode == 1
    found = re.search(r"nsenter -t (\d+) -a -r; end it: kill -TERM (\d+)", done.stderr)
    assert found, done.stderr
    init, warden = int(found[1]), int(found[2])
    inside = subprocess.run(["nsenter", "-t", str(init), "-a", "-r", "ls", "/srv/x"], capture_output=True, check=False)
    assert inside.returncode == 0, inside.stderr
    assert psutil.Process(warden).name() == "warden"
    pidfd = os.pidfd_open(init)
    psutil.Process(warden).send_signal(signal.SIGTERM)
    try:
        wait_until("the warden ends", lambda: not psutil.pid_exists(warden))
        with pytest.raises(ProcessLookupError):
            signal.pidfd_send_signal(pidfd, 0)
    finally:
        os.close(pidfd)


def test_ctrl_c_reaches_the_command_in_the_arena(tmp_path: Path) -> None:
    output = tmp_path / "out"
    script = "trap 'echo interrupted; exit 0' INT; echo ready; while :; do sleep 0.1; done"
    with output.open("wb") as out:
        process = subprocess.Popen(
            [*LEAKCHECK, "guard", "--arena", "--", "sh", "-c", script],
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.DEVNULL,
        )
        wait_until("the command runs", lambda: "ready" in output.read_text())
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE) == 130
    assert output.read_text() == "ready\ninterrupted\n"


def test_without_write_access_to_cgroups_an_arena_is_refused_with_the_reason(tmp_path: Path) -> None:
    script = (
        "for m in $(awk '$3 ~ /^cgroup/ {print $2}' /proc/mounts); do mount -o remount,bind,ro $m; done; "
        'exec "$@" guard --arena -- true'
    )
    with Arena(binds=SHOWN) as arena, (tmp_path / "err").open("wb") as err:
        env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        assert arena.run(["/bin/sh", "-c", script, "sh", *LEAKCHECK], env=env, stderr=err.fileno()) == 4
    said = (tmp_path / "err").read_text()
    assert re.search(r"arena: make cgroup /sys/fs/cgroup/\S+: read-only file system", said), said


def test_a_writable_layer_too_small_to_come_up_in_is_refused_and_nothing_stays() -> None:
    done = guard("--arena", "--size", "64K", "--", "true")
    assert done.returncode in (0, 4)
    if done.returncode == 4:
        assert re.search(r"at step \"[a-z ]+\"", done.stderr)


def test_an_ordinary_user_gets_an_arena_of_a_user_namespace_and_is_told_why_it_needs_no_cgroup(tmp_path: Path) -> None:
    with Arena() as arena:
        nobody = ["/usr/bin/setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
        if arena.run([*nobody, "/usr/bin/unshare", "--user", "/bin/true"]) != 0:
            pytest.skip("an ordinary user can make no user namespace here: a chroot, or forbidden")
    # Within an arena everything can be made readable without a trace.
    script = (
        "chmod a+rx /root; exec setpriv --reuid=65534 --regid=65534 --clear-groups "
        '"$@" guard --json --arena --settle 0.1 -- sh -c "id -u; echo x > /home/litter; $0"'
    )
    with Arena(binds=SHOWN) as arena, (tmp_path / "out").open("wb") as out, (tmp_path / "err").open("wb") as err:
        env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "HOME": "/"}
        beneath = "unshare --mount sh -c 'umount /dev/shm && echo x > /dev/shm/beneath'"
        argv = ["/bin/sh", "-c", script, beneath, *LEAKCHECK]
        code = arena.run(argv, env=env, stdout=out.fileno(), stderr=err.fileno())
    assert code == 1, (tmp_path / "err").read_text()
    assert "0" in (tmp_path / "err").read_text().splitlines(), "root of its own namespace"
    found = json.loads((tmp_path / "out").read_text())
    labels = [leak["label"].partition(" ·")[0] for leak in found["leaks"]]
    assert {"file /home/litter", "file /dev/shm/beneath"} <= set(labels)
    assert {kind: gap for kind, gap in found["coverage"].items() if gap["level"] != "full"} == {}
    assert "its user cannot create any: no cgroup is writable" in found["coverage"]["cgroup"]["reason"]


def test_a_real_time_process_has_an_arena_or_is_told_how_to_get_one() -> None:
    # Whether the kernel lets it into a new cgroup depends on its configuration (CONFIG_RT_GROUP_SCHED).
    if subprocess.run(["chrt", "--fifo", "1", "true"], stderr=subprocess.DEVNULL, check=False).returncode:
        pytest.skip("this process may not be a real-time one: it lacks CAP_SYS_NICE, or its cgroup has no share")
    done = subprocess.run(
        ["chrt", "--fifo", "1", *LEAKCHECK, "guard", "--arena", "--", "true"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    told = "start leakcheck without chrt" in done.stderr
    assert (done.returncode, told) in [(0, False), (4, True)], done.stderr
