"""The tracer's look at the files of a directory: each change once its call has returned, and what was synced."""

import os
import tempfile
from collections.abc import Sequence
from typing import Any

import msgspec
import pytest

from injectors.crash import recording
from injectors.history import history_of
from leakcheck.arena import Arena, Trace

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="arenas of root; run as root")

CALLS = """
import os
fd = os.open("/run/s/a", os.O_WRONLY | os.O_CREAT)
os.pwrite(fd, b"0123456789", 0)
os.writev(fd, [b"ab", b"cd"])
os.ftruncate(fd, 3)
os.fsync(fd)
source = os.open("/run/source", os.O_RDONLY)
os.copy_file_range(source, fd, 2, offset_src=0, offset_dst=4)
os.rename("/run/s/a", "/run/s/b")
os.fsync(os.open("/run/s", os.O_RDONLY))
os.link("/run/s/b", "/run/s/c")
os.close(os.open("/run/s/c", os.O_WRONLY | os.O_TRUNC))
os.unlink("/run/s/b")
os.write(os.open("/run/s/d", os.O_WRONLY | os.O_CREAT | os.O_DSYNC), b"x")
open("/run/elsewhere", "w").write("x")
"""


def report(argv: Sequence[str], setup: str) -> list[dict[str, Any]]:
    with tempfile.TemporaryFile() as log, Arena() as arena:
        assert arena.popen(["/bin/sh", "-c", setup]).wait(20) == 0
        asked = {**recording(0, [], every=True), "files": ["/run/s"]}
        assert arena.popen(argv, trace=Trace(asked, log.fileno())).wait(30) == 0
        log.seek(0)
        return [msgspec.json.decode(line) for line in log.read().splitlines()]


def test_each_call_that_changes_a_file_is_one_change_with_the_content_after_it() -> None:
    lines = report(["/usr/bin/python3", "-c", CALLS], "mkdir /run/s; printf XYZ > /run/source")
    history = history_of(lines, "/run/s")
    assert history is not None
    top = history.before["/run/s"].inode
    steps = []
    for event in history.events:
        files = {path.rpartition("/")[2]: one.content for path, one in event.files.items() if path != "/run/s"}
        if event.change:
            steps.append(files)
        elif event.synced:
            steps.append({"synced": b"directory" if event.synced == top else b"file"})
    assert steps == [
        {"a": b""},
        {"a": b"0123456789"},
        {"a": b"abcd456789"},
        {"a": b"abc"},
        {"synced": b"file"},
        {"a": b"abc\0XY"},
        {"b": b"abc\0XY"},
        {"synced": b"directory"},
        {"b": b"abc\0XY", "c": b"abc\0XY"},
        {"b": b"", "c": b""},
        {"c": b""},
        {"c": b"", "d": b""},
        {"c": b"", "d": b"x"},
        {"synced": b"file"},
    ]


def test_a_fifo_and_a_large_file_are_seen_and_neither_is_waited_for_nor_read() -> None:
    setup = "mkdir /run/s; mkfifo /run/s/fifo; truncate -s 3G /run/s/large; ln -s /etc/passwd /run/s/link"
    history = history_of(report(["/bin/sh", "-c", ": > /run/s/new"], setup))
    assert history is not None
    kinds = {path: (one.kind, one.content) for path, one in history.before.items() if path != "/run/s"}
    assert kinds == {
        "/run/s/fifo": ("other", None),
        "/run/s/large": ("file", None),
        "/run/s/link": ("link", b"/etc/passwd"),
    }
    assert [event.change for event in history.events if event.change] == [1]
