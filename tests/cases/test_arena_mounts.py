"""Whatever the host has mounted, and wherever, arenas come up and say what they do not show."""

import os
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="arenas of root; run as root")

GUARD = "leakcheck guard --arena --settle 0.1 -- "


@pytest.fixture
def beside(case: Callable[..., Any]) -> Callable[[str], Any]:
    """Run a script in mount and pid namespaces of its own, where /srv is its own too."""

    def run(script: str) -> Any:
        own = ["--mount", "--pid", "--fork", "--mount-proc", "--kill-child"]
        return case("unshare", *own, "sh", "-ec", "mount -t tmpfs none /srv; cd /srv\n" + script, timeout=40)

    return run


def test_a_mount_point_may_have_any_name(beside: Callable[[str], Any]) -> None:
    names = [r"\377x", "a b", r"a\nb", r"a\\b", r"\\040", r"a\tb", "-", r"\033[31m"]
    # The shell takes line feeds from the end of what it substitutes, but no name ends in one.
    made = 'n="$(printf -- "$name")"; mkdir "./$n"; mount -t tmpfs none "/srv/$n"; echo here > "./$n/file"'
    script = f"for name in {' '.join(map(shlex.quote, names))}; do {made}; done\n{GUARD} sh -c 'cat /srv/*/file'"
    seen = beside(script)
    assert seen.code == 0, seen.text
    assert seen.text.startswith("here\n" * len(names))


def test_mounts_over_mounts_and_those_that_nobody_reaches_are_no_gap(beside: Callable[[str], Any]) -> None:
    script = f"""mkdir a; mount -t tmpfs none a; mkdir a/below; mount -t tmpfs none a/below; touch a/below/hidden
        mount -t tmpfs none a; echo above > a/file; mkdir b; mount -t tmpfs none b; touch b/hidden
        mount -t tmpfs none b
        mkdir a/later; touch f g; mount --bind f g; {GUARD} sh -c 'cat /srv/a/file; ls /srv/a /srv/b; cat /srv/g'"""
    seen = beside(script)
    assert seen.code == 0, seen.text
    assert seen.text.split()[:5] == ["above", "/srv/a:", "file", "later", "/srv/b:"]
    assert "hidden" not in seen.text


def test_a_tree_that_only_the_directory_of_a_thread_keeps_is_leaked(case: Callable[..., Any]) -> None:
    inputs = Path(__file__).parent / "inputs"
    guard = ["leakcheck", "guard", "--arena", "--settle", "0.1", "--kinds", "mount", "--bind", f"{inputs}:/mnt:ro"]
    outcome = case(*guard, "--", "python3", "/mnt/thread_cwd.py", "/srv", "30")
    assert outcome.code == 1, outcome.text
    assert "1 leak " in outcome.text and re.search(r"^  mount .*cwd of \d+", outcome.text, re.M), outcome.text


def test_a_file_system_that_never_answers_holds_nothing_up(
    beside: Callable[[str], Any],
) -> None:
    hang = Path(__file__).parent / "inputs" / "fuse_hang.py"
    seen = beside(
        f"""mkdir m; python3 {hang} m hang & sleep 0.5; grep -q ' /srv/m .* fuse' /proc/self/mountinfo || exit 77
        {GUARD} true"""
    )
    if seen.code == 77:
        pytest.skip("no FUSE here")
    assert seen.code == 0, seen.text
