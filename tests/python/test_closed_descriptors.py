"""A program that closes leakcheck's descriptors, or forks with them: nothing of its own is hidden, read or closed."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.python.test_kept_watch import run_alone

START = f"""
import os, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_kept_watch import *
from leakcheck import _native

EVERY = KINDS + ",key,loop,bpf"

def numbers():
    # Without that of the listing, which is closed by now.
    return {{int(one.name) for one in list(Path("/proc/self/fd").iterdir()) if one.is_symlink()}}

def seen(run):
    found = [leak["evidence"]["resource"] for leak in leaks(run) if leak["kind"] == "fd"]
    return {{one["fd"] for one in found if one["pid"] == os.getpid()}}
"""


def in_pid_namespace(code: str) -> None:
    """Run it as number 1 of a pid namespace."""
    argv = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child", sys.executable, "-c", START + code]
    done = subprocess.run(
        argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=120
    )
    assert done.returncode == 0, done.stdout


def test_what_gets_the_numbers_of_any_of_leakchecks_descriptors_is_a_leak_and_stays_open() -> None:
    run_alone(
        START
        + """
run = _native.Guard(include_self=True, kinds=EVERY, settle_ms=50)
links = own_descriptors()
# Root of the machine records who makes keys, BPF objects and loop devices.
if os.geteuid() == 0 and os.readlink("/proc/self/ns/pid") == "pid:[4026531836]":
    assert {"anon_inode:bpf-map", "anon_inode:bpf-prog"} <= links, links
os.closerange(3, 4096)
kept = [os.open("/etc/passwd", os.O_RDONLY) for _ in range(24)]
assert seen(run) == set(kept)
assert {os.lseek(number, 0, os.SEEK_CUR) for number in kept} == {0}
# Another one works, and closes only its own.
again = _native.Guard(include_self=True, kinds=EVERY, settle_ms=50)
kept.append(os.open("/etc/passwd", os.O_RDONLY))
assert seen(again) == {kept[-1]}
assert {os.readlink(f"/proc/self/fd/{number}") for number in kept} == {"/etc/passwd"}
"""
    )


def test_after_all_descriptors_are_closed_the_thread_of_the_watch_ends() -> None:
    run_alone(
        START
        + """
import time
before = watchers()
run = guard(_native.Remembered())
os.closerange(3, 4096)
run.end()
run.abandon()
late = time.monotonic() + 60
while watchers() - before:
    assert time.monotonic() < late
    time.sleep(0.05)
"""
    )


def test_after_one_of_leakchecks_descriptors_is_closed_the_others_are_no_leaks() -> None:
    run_alone(
        START
        + """
before, closed = own_descriptors(), 0
known = numbers()
while True:
    run = _native.Guard(include_self=True, kinds=EVERY, settle_ms=50)
    own = sorted(numbers() - known)
    if closed >= len(own):
        break
    os.close(own[closed])
    assert seen(run) == set(), (closed, own)
    # Nothing stays open but what the next guards have too.
    left = {link for link in own_descriptors() - before if "bpf" not in link}
    assert left == set(), (closed, own, left)
    closed += 1
assert closed >= 2
"""
    )


def test_bpf_maps_of_the_program_with_the_numbers_of_the_recorders_keep_their_elements() -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root, to make maps")
    run_alone(
        START
        + """
import struct
libc = ctypes.CDLL(None, use_errno=True)

def bpf(command, attribute):
    buffer = ctypes.create_string_buffer(attribute.ljust(72, b"\\0"))
    return libc.syscall(321, command, buffer, 72)

def element(command, number, key):
    text, value = ctypes.create_string_buffer(key), ctypes.create_string_buffer(8)
    at = struct.pack("=IIQQQ", number, 0, ctypes.addressof(text), ctypes.addressof(value), 0)
    return bpf(command, at)

# As the recorder's: of lost records, and of calls.
keys = {8: bytes(8), 16: bytes(16)}
before = numbers()
run = _native.Guard(include_self=True, kinds=EVERY, settle_ms=50)
own = [one for one in sorted(numbers() - before) if os.readlink(f"/proc/self/fd/{one}") == "anon_inode:bpf-map"]
if own:
    for number, size in zip(own, keys, strict=True):
        made = bpf(0, struct.pack("=IIIII", 1, size, 8, 4, 0))
        assert made >= 0 and element(2, made, keys[size]) == 0
        os.dup2(made, number)
    run.end()
    run.abandon()
    assert [element(1, number, key) for number, key in zip(own, keys.values(), strict=True)] == [0, 0]
"""
    )


def test_while_a_forked_child_keeps_leakchecks_descriptors_the_program_s_pipes_are_not_read_and_not_kept_open() -> None:
    run_alone(
        START
        + """
run = guard(_native.Remembered())
child = os.fork()
if child == 0:
    signal.pause()
    os._exit(0)
try:
    os.closerange(3, 4096)
    pipes = [os.pipe() for _ in range(8)]
    for _, end in pipes:
        os.write(end, b"data of the test")
    # The child's copies tell of each.
    for _ in range(20):
        subprocess.run(["true"], stdin=subprocess.DEVNULL, check=True)
    for end, _ in pipes:
        os.set_blocking(end, False)
    assert [os.read(end, 64) for end, _ in pipes] == [b"data of the test"] * 8
    for _, end in pipes:
        os.close(end)
    # Nobody else has the end for writing.
    assert [os.read(end, 64) for end, _ in pipes] == [b""] * 8
    # What others make meanwhile nobody can tell from it.
    assert {leak["kind"] for leak in leaks(run)} >= {"process", "fd"}
finally:
    pidfd = os.pidfd_open(child)
    signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    os.waitpid(child, 0)
"""
    )


def test_a_watch_with_the_numbers_of_one_that_was_closed_sees_everything() -> None:
    run_alone(
        START
        + """
import tempfile
with tempfile.TemporaryDirectory(dir="/tmp") as place:
    alone = _native.Guard(include_self=True, kinds=KINDS, settle_ms=50)
    Path(place, "first").touch()
    (usual,) = [leak["attribution"] for leak in leaks(alone) if place in leak["label"]]
    outer = _native.Guard(include_self=True, kinds=KINDS, settle_ms=50)
    os.closerange(3, 4096)
    inner = _native.Guard(include_self=True, kinds=KINDS, settle_ms=50)
    outer.end()
    outer.abandon()
    Path(place, "left").touch()
    assert [leak["attribution"] for leak in leaks(inner) if place in leak["label"]] == [usual]
"""
    )


def test_a_child_that_is_number_1_as_its_parent_is_leaves_the_parent_s_watch_alone() -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root, to make pid namespaces")
    in_pid_namespace(
        """
import tempfile
libc = ctypes.CDLL(None, use_errno=True)
assert os.getpid() == 1
session = _native.Remembered()
assert leaks(guard(session)) == []

def rung():
    infos = [Path(f"/proc/self/fdinfo/{number}").read_text() for number in numbers()]
    return {line for info in infos for line in info.splitlines() if line.startswith("eventfd-count")}

before = rung()
assert before
own = os.open("/proc/self/ns/pid", os.O_RDONLY)
assert libc.unshare(0x20000000) == 0
child = os.fork()
if child == 0:
    code = 1
    try:
        assert os.getpid() == 1
        # It has its own, and closes both.
        run = guard(session)
        os.pipe()
        code = 0 if leaks(run) else 2
        session.close()
    finally:
        os._exit(code)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
# It could not make a thread.
assert libc.setns(own, 0x20000000) == 0
assert rung() == before
assert is_kept(session)
with tempfile.TemporaryDirectory(dir="/tmp") as place:
    run = guard(session)
    Path(place, "left").touch()
    found = [leak for leak in leaks(run) if place in leak["label"]]
    assert [leak["attribution"] for leak in found] == ["creator"], found
"""
    )


def test_a_procfs_that_an_arena_has_kept_open_is_not_looked_through_once_it_is_closed() -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root, for an arena")
    run_alone(
        START
        + """
import leakcheck
from leakcheck.arena import Arena
with Arena() as arena:
    with leakcheck.guard(arena=arena):
        pass
    most = max(numbers())
    os.closerange(3, 4096)
    # Each a directory without processes, where that of the processes was.
    while os.open("/usr", os.O_RDONLY | os.O_DIRECTORY) <= most:
        pass
    run = guard(_native.Remembered())
    kept = os.open("/etc/passwd", os.O_RDONLY)
    assert kept in seen(run)
    # What the arena closes would be the program's.
    os._exit(0)
"""
    )
