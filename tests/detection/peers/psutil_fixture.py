"""A leak fixture as people write it with psutil: what the test's process tree has, before and after."""

from collections.abc import Iterator
from typing import Any

import psutil
import pytest


def usage() -> dict[str, Any]:
    """Look at this process and everything below it: children, open files, connections, count of descriptors."""
    me = psutil.Process()
    tree = {}
    for process in [me, *me.children(recursive=True)]:
        try:
            with process.oneshot():
                zombie = process.status() == psutil.STATUS_ZOMBIE
                tree[process.pid, process.create_time()] = {
                    "zombie": zombie,
                    "files": sorted((file.fd, file.path) for file in ([] if zombie else process.open_files())),
                    "connections": [] if zombie else sorted(map(str, process.net_connections(kind="all"))),
                    "num_fds": 0 if zombie else process.num_fds(),
                }
        except psutil.NoSuchProcess:
            continue
    return tree


@pytest.fixture
def no_leaks() -> Iterator[None]:
    before = usage()
    yield
    assert usage() == before
