"""What still runs in an arena gets nothing of the host when the next command is born there."""

import os
import stat
import subprocess
import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import pytest
from waiting import PATIENCE

from leakcheck._bin import helper
from leakcheck.arena import Arena
from leakcheck.errors import TargetError
from tests.cases.conftest import CASE

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="arenas of root; run as root")

MARKER, ESCAPED = Path(f"/tmp/{CASE}-marker"), Path(f"/tmp/{CASE}-escaped")


@pytest.fixture
def marker() -> Generator[None, None, None]:
    """A file of the host, where an arena has a directory of its own."""
    ESCAPED.unlink(missing_ok=True)
    MARKER.write_text("the host's\n")
    yield
    MARKER.unlink()
    ESCAPED.unlink(missing_ok=True)


def host_devices() -> set[str]:
    """The file systems where the host could be harmed: of the root, of devices and of the warden's own program."""
    devices = {Path(path).stat().st_dev for path in ("/", "/dev", "/tmp", helper("warden"))}
    return {f"{os.major(device)}:{os.minor(device)}" for device in devices}


@pytest.mark.usefixtures("marker")
def test_a_survivor_writes_nothing_on_the_host_when_the_recovery_starts(case: Callable[..., Any]) -> None:
    guard = ["leakcheck", "guard", "--arena", "--bind", "{raceroot.py}:/mnt/raceroot.py:ro", "--settle", "0.2"]
    seen = case(*guard, "--recover", "true", "--", "python3", "/mnt/raceroot.py")
    assert seen.code == 1, seen.text
    assert not ESCAPED.exists()
    assert MARKER.read_text() == "the host's\n"


def looked_at(arena: Arena, *, starts: int, racers: int, as_uid: int | None = None, until: str = "") -> list[list[str]]:
    """Start commands while racers look at each, on and on until these saw something; return what they saw."""
    output = "/tmp/seen"
    assert arena.run(["/bin/sh", "-c", f"umask 0; : > {output}"]) == 0
    become = [] if as_uid is None else ["/usr/bin/setpriv", f"--reuid={as_uid}", "--clear-groups"]
    assert (
        arena.run(
            [*become, "/mnt/racer", str(racers), "600", output], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        == 0
    )
    end = time.monotonic() + PATIENCE
    while True:
        for _ in range(starts):
            # A stream of ours would lead to where the tests write, as it may.
            assert arena.run(["/bin/true"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) == 0
        if until in (text := content(arena, output)):
            return [line.split(" ", 2) for line in text.splitlines()]
        assert time.monotonic() < end, f"no racer was early enough: {text}"


def content(arena: Arena, path: str) -> str:
    reading, writing = os.pipe()
    try:
        copier = arena.popen(["/bin/cat", path], stdout=writing, stderr=subprocess.DEVNULL)
        os.close(writing)
        with os.fdopen(reading, "rb") as stream:
            text = stream.read().decode()
        assert copier.wait(PATIENCE) == 0
    finally:
        copier.close()
    return text


@pytest.mark.usefixtures("marker")
@pytest.mark.parametrize(("racers", "uid"), [(1, None), (3, None), (2, 65534)])
def test_whatever_a_newborn_command_leads_to_is_the_arenas(
    racers: int, uid: int | None, compiled: Callable[[str], Path]
) -> None:
    racer = compiled("racenewborn.c")
    with Arena(binds=[(racer, "/mnt/racer", True)]) as arena:
        # An ordinary user cannot see the program of root's newborn process.
        until = " /memfd:warden" if uid is None else ""
        seen = looked_at(arena, starts=60, racers=racers, as_uid=uid, until=until)
    hosts = host_devices()
    # The racer's own program is bound from the host: every racer is seen by the others.
    wrong = [parts for parts in seen if parts[0] == "marker" or (parts[1] in hosts and parts[2] != "/mnt/racer")]
    assert not wrong
    namespaces = {parts[0]: parts[2] for parts in seen if parts[0].startswith("ns/")}
    ours = {
        f"ns/{name}": str(Path(f"/proc/self/ns/{name}").readlink())
        for name in ("mnt", "pid", "net", "ipc", "uts", "cgroup")
    }
    assert not set(ours.items()) & set(namespaces.items())


@pytest.mark.usefixtures("marker")
def test_a_newborn_command_has_no_descriptor_but_its_streams(compiled: Callable[[str], Path]) -> None:
    racer = compiled("racenewborn.c")
    with Arena(binds=[(racer, "/mnt/racer", True)]) as arena:
        seen = looked_at(arena, starts=40, racers=2)
    # A racer has its output as a fourth; `cat` has what it reads.
    links = {parts[2] for parts in seen if parts[0].startswith("fd/") and not parts[0].endswith(("/0", "/1", "/2"))}
    # Once it is executed it reads its libraries, as the arena has them.
    own = ("/proc/", "/tmp/seen", "/etc/ld.so", "/lib", "/usr/lib")
    assert not {link for link in links if not link.startswith(own)}


def test_the_mode_of_the_hosts_null_device_cannot_be_changed_through_a_stream_or_pid_1() -> None:
    device = Path(os.devnull)
    before = stat.S_IMODE(device.stat().st_mode)
    try:
        with Arena() as arena, device.open("rb+", buffering=0) as null:
            for stream in ("self/fd/0", "self/fd/1", "self/fd/2", "1/fd/0", "1/fd/1", "1/fd/2"):
                arena.run(["/bin/chmod", "600", f"/proc/{stream}"], stdout=null.fileno(), stderr=null.fileno())
                assert stat.S_IMODE(device.stat().st_mode) == before, stream
    finally:
        device.chmod(before)


def test_pid_1_leads_to_no_file_of_the_host() -> None:
    with Arena() as arena:
        init = Path(f"/proc/{arena.init}")
        places = [init / "exe", init / "cwd", init / "root", *init.joinpath("fd").iterdir()]
        places += init.joinpath("map_files").iterdir()
        hosts = host_devices()
        devices = {place: place.stat().st_dev for place in places}
    assert not {place for place, dev in devices.items() if f"{os.major(dev)}:{os.minor(dev)}" in hosts}


@pytest.mark.slow
def test_a_survivor_that_stops_every_newborn_does_not_hold_us_up_for_ever() -> None:
    stopper = (
        "import os,signal\nwhile True:\n for p in os.listdir('/proc'):\n"
        "  if p.isdigit() and int(p) not in (1, os.getpid()): os.kill(int(p), signal.SIGSTOP)"
    )
    with Arena() as arena, arena.popen(["/usr/bin/python3", "-c", stopper]):
        time.sleep(0.5)
        begun = time.monotonic()
        for _ in range(20):
            try:
                arena.run(["/bin/true"], timeout=0.2)
            except TargetError as error:
                assert "delayed it for 30 s" in str(error)
                break
            except subprocess.TimeoutExpired:
                pass
        assert time.monotonic() - begun < 40
