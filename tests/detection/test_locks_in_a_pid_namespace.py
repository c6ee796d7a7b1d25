"""`/proc/locks` of a pid namespace leaves out the lock that a child inherited from a parent whose pid is free again."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

INSIDE = """
import fcntl, os, sys
from leakcheck import _native

directory = sys.argv[1]
path = os.path.join(directory, "locked")
open(path, "w").close()
ready, tell = os.pipe()
wait, go = os.pipe()
before = _native.snapshot(kinds="lock", roots=None)
parent = os.fork()
if parent == 0:
    fcntl.flock(os.open(path, os.O_RDONLY), fcntl.LOCK_EX)
    if os.fork() == 0:
        os.close(go)
        os.write(tell, b".")
        os.read(wait, 1)
    os._exit(0)
os.waitpid(parent, 0)
os.read(ready, 1)
assert str(os.stat(path).st_ino) not in open("/proc/locks").read(), "the kernel shows it by now"
print(_native.diff(before, _native.snapshot(kinds="lock", roots=None)))
"""


def test_a_lock_that_proc_locks_hides_is_found_at_its_holder(tmp_path: Path) -> None:
    user = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    # A shell as PID 1: it reaps the orphan when the test ends, and the test's process has other children.
    command = ["unshare", *user, "--pid", "--fork", "--mount-proc", "--kill-child", "sh", "-c", '"$@"; exit $?', "sh"]
    done = subprocess.run(
        [*command, sys.executable, "-c", INSIDE, tmp_path], capture_output=True, text=True, timeout=60, check=False
    )
    if "unshare failed" in done.stderr:
        pytest.skip(f"no namespaces may be made here: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    [leak] = report["leaks"]
    inode = (tmp_path / "locked").stat().st_ino
    resource = leak["evidence"]["resource"]
    assert (resource["class"], resource["ino"], resource["pid"]) == ("flock", inode, 0)
    assert leak["evidence"]["who"] == "taken by a process outside this pid namespace"
