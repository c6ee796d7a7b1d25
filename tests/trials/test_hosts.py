"""What a place does for a trial: kills that leave nobody out."""

import psutil
import pytest

from injectors.timed import Kill, ended, kill
from leakcheck.errors import TargetError
from leakcheck.trials.live_host import LiveHost
from leakcheck.trials.output import memory

TREE = "sleep 300 & (sleep 300 & sleep 300; exit) & sh -c 'sleep 300; exit' & wait"


@pytest.mark.parametrize("how", ["tree", "freeze"])
def test_a_tree_that_is_killed_on_the_host_leaves_no_orphan(how: Kill) -> None:
    with LiveHost(0) as host, memory() as output:
        supervisor = host.start(["/bin/sh", "-c", TREE], {"PATH": "/usr/bin:/bin"}, output)
        tree: set[psutil.Process] = set()
        for _ in range(500):
            tree = host.tree(supervisor)
            if len(tree) == 7 or ended(supervisor, 10):
                break
        assert len(tree) == 7
        kill(supervisor, lambda: host.tree(supervisor), how)
        supervisor.wait(10)
        _, alive = psutil.wait_procs(tree, timeout=60)
        for orphan in alive:
            orphan.kill()
        assert alive == []


def test_a_program_that_is_not_there_is_told_on_the_host_too() -> None:
    with (
        LiveHost(0) as host,
        pytest.raises(TargetError, match="run /nonexistent/tool: no such file"),
    ):
        host.start(["/nonexistent/tool"], {}, 1)


def test_a_file_gets_its_directories() -> None:
    with LiveHost(0) as host:
        host.write(host.work / "a/b", b"content")
        assert host.read(host.work / "a/b") == b"content"
