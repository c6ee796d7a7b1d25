"""Guards that share a watch as an ordinary user and in a container: each finds what its own run leaves."""

import sys

import pytest

from tests.cases.places import CHECKOUT, Place, as_nobody, in_container

__all__ = ["as_nobody", "in_container"]

# What can be made there without more rights, each with how it is undone; `gate` ends what reads from it.
LEAKS = f"""
import os, sys
sys.path.insert(0, {str(CHECKOUT / "tests/python")!r})
from test_kept_watch import *
from leakcheck import _native
import fcntl, mmap, socket, tempfile, time
libc = ctypes.CDLL(None, use_errno=True)
place = tempfile.mkdtemp(dir="/tmp")
kept = []

def thread(make):
    one = threading.Thread(target=make)
    one.start()
    one.join()

def daemon(script, gate):
    ready = f"{{place}}/ready"
    inside = f"{{script}}; touch {{ready}}; exec cat >/dev/null"
    subprocess.run(["setsid", "-f", "sh", "-c", inside], check=True, stdin=gate)
    late = time.monotonic() + 30
    while not os.path.exists(ready):
        assert time.monotonic() < late, script
        os.sched_yield()
    os.unlink(ready)

def shared_memory():
    number = libc.shmget(0, 4096, 0o1600)
    assert number >= 0
    return lambda: libc.shmctl(number, 0, None)

def locked():
    kept.append(open(f"{{place}}/locked", "w"))
    fcntl.flock(kept[-1], fcntl.LOCK_EX)

def listening():
    kept.append(socket.socket(socket.AF_UNIX))
    kept[-1].bind("\\0leakcheck-test")
    kept[-1].listen()

def mapped():
    path = f"{{place}}/mapped"
    with open(path, "w+b") as file:
        file.truncate(4096)
        kept.append(mmap.mmap(file.fileno(), 4096))
    os.unlink(path)

MADE = {{
    "file of a thread": lambda gate: thread(Path(place, "file").touch),
    "descriptor of a thread": lambda gate: thread(lambda: kept.append(open("/dev/null"))),
    "pipe": lambda gate: kept.extend(open(end, "wb" if at else "rb") for at, end in enumerate(os.pipe())),
    "lock": lambda gate: locked(),
    "socket": lambda gate: listening(),
    "mapping": lambda gate: mapped(),
    "shared memory": lambda gate: kept.append(shared_memory()),
    "file in memory": lambda gate: Path("/dev/shm/leak").touch(),
    "daemon": lambda gate: daemon(":", gate),
    "file of a daemon": lambda gate: daemon(f"touch {{place}}/daemon", gate),
    "file of an orphan that is gone": lambda gate: subprocess.run(
        ["sh", "-c", f"(touch {{place}}/orphan) & wait"], check=True, stdin=subprocess.DEVNULL),
    "namespaces": lambda gate: subprocess.run(["unshare", "-U", "true"], check=False).returncode == 0
        and daemon(f"exec unshare -U sh -c 'touch {{place}}/ready; exec cat >/dev/null'", gate),
}}

def undo():
    for one in kept:
        one() if callable(one) else one.close()
    kept.clear()
    for path in (*Path(place).iterdir(), Path("/dev/shm/leak")):
        path.unlink(missing_ok=True)

def found(session, make):
    gate, end = os.pipe()
    run = guard(session, settle_ms=40)
    made = make(gate)
    report = json.loads(run.end())
    run.abandon()
    os.close(end)
    os.close(gate)
    undo()
    return report["verdict"], [leak["label"] for leak in report["leaks"]], made

def child_uses(session):
    child = os.fork()
    if child == 0:
        code = 1
        try:
            run = guard(session, settle_ms=40)
            os.pipe()
            code = 0 if json.loads(run.end())["verdict"] != "clean" else 2
            run.abandon()
            session.close()
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0

BETWEEN = {{
    "nothing": lambda session: None,
    "a fork with its own guard": child_uses,
    "all closed": lambda session: os.closerange(3, 4096),
    "all closed and reused": lambda session: (os.closerange(3, 4096),
        [os.open("/dev/null", os.O_RDONLY) for _ in range(16)]),
}}
"""

PAIRS = """
wrong = []
for before in BETWEEN:
    for name, make in MADE.items():
        if name not in SOME:
            continue
        session = _native.Remembered()
        found(session, lambda gate: None)
        BETWEEN[before](session)
        verdict, labels, made = found(session, make)
        if made is not False and (verdict == "clean" or verdict == "leaked" and not labels):
            wrong.append((before, name, verdict))
        verdict, labels, _ = found(session, lambda gate: None)
        if verdict == "leaked":
            wrong.append((before, name, "then nothing", labels))
        session.close()
assert not wrong, wrong
"""

WITHIN = """
# The run itself closes all, and then leaves something.
wrong = []
session = _native.Remembered()
for name, make in MADE.items():
    if "daemon" in name or name == "namespaces":
        continue
    run = guard(session, settle_ms=40)
    os.closerange(3, 4096)
    make(None)
    report = json.loads(run.end())
    run.abandon()
    undo()
    if report["verdict"] == "clean":
        wrong.append(name)
assert not wrong, wrong
"""


READ = """
run = guard(_native.Remembered(), settle_ms=40)
os.closerange(3, 4096)
pipes = [os.pipe() for _ in range(8)]
for _, end in pipes:
    os.write(end, b"data of the test")
run.end()
run.abandon()
for end, _ in pipes:
    os.set_blocking(end, False)
assert [os.read(end, 64) for end, _ in pipes] == [b"data of the test"] * 8
"""


FEW = 'SOME = ["file of a thread", "file of a daemon"]\n'


@pytest.mark.parametrize(
    "code",
    [
        pytest.param(FEW + PAIRS, id="between the guards"),
        # What the first shows for a few.
        pytest.param(f"SOME = [*MADE]\n{PAIRS}", id="between the guards, of all kinds", marks=pytest.mark.slow),
        pytest.param(WITHIN, id="within a guard"),
        pytest.param(READ, id="pipes"),
    ],
)
@pytest.mark.parametrize("rights", ["as_nobody", "in_container"])
def test_no_leak_is_called_clean_and_no_pipe_is_read_whatever_happened_to_the_watch(
    request: pytest.FixtureRequest, rights: str, code: str
) -> None:
    place: Place = request.getfixturevalue(rights)
    done = place(sys.executable, "-c", LEAKS + code, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
