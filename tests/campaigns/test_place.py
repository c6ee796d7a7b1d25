"""What a place does for a trial: kills that leave nobody out."""

import psutil
import pytest

from leakcheck.campaigns.place import HostPlace, kill
from leakcheck.campaigns.stages import ended, memory
from leakcheck.errors import TargetError
from leakcheck.targets import load

TREE = "sleep 300 & (sleep 300 & sleep 300; exit) & sh -c 'sleep 300; exit' & wait"


@pytest.mark.parametrize("how", ["tree", "freeze"])
def test_a_tree_that_is_killed_on_the_host_leaves_no_orphan(how: str) -> None:
    with HostPlace(load("command"), 0) as place, memory() as output:
        supervisor = place.start(["/bin/sh", "-c", TREE], {"PATH": "/usr/bin:/bin"}, output)
        tree: set[psutil.Process] = set()
        for _ in range(500):
            tree = place.tree(supervisor)
            if len(tree) == 7 or ended(supervisor, 10):
                break
        assert len(tree) == 7
        kill(place, supervisor, how)
        supervisor.wait(10)
        _, alive = psutil.wait_procs(tree, timeout=5)
        for orphan in alive:
            orphan.kill()
        assert alive == []


def test_a_program_that_is_not_there_is_told_on_the_host_too() -> None:
    with (
        HostPlace(load("command"), 0) as place,
        pytest.raises(TargetError, match="run /nonexistent/tool: no such file"),
    ):
        place.start(["/nonexistent/tool"], {}, 1)


def test_a_file_gets_its_directories() -> None:
    with HostPlace(load("command"), 0) as place:
        place.write(place.work / "a/b", b"content")
        assert place.read(place.work / "a/b") == b"content"
