"""Sandboxes of an ordinary user: their adapters are checked, and campaigns run, in arenas of that user."""

import json

import pytest

from tests.cases.places import Place, as_nobody

__all__ = ["as_nobody"]


@pytest.fixture
def user(as_nobody: Place) -> Place:
    if as_nobody("unshare", "-U", "true").returncode != 0:
        pytest.skip("an ordinary user can make no user namespace here")
    return as_nobody


def test_an_ordinary_user_checks_a_sandbox(user: Place) -> None:
    done = user("leakcheck", "check", "bwrap")
    assert done.returncode == 0, done.stdout + done.stderr


def test_an_ordinary_user_s_campaign_finds_what_a_run_leaves_and_calls_no_directory_of_the_arena_damaged(
    user: Place,
) -> None:
    adapter = """
        name = "litter"
        summary = "leaves a directory for each program"
        launch = ["/bin/sh", "-c", 'mktemp -d /var/tmp/litter-XXXXXX >/dev/null; exec "$@"', "sh", "{program}"]
        probe = { none = "isolates nothing" }
    """
    write = f"cat >/tmp/litter.toml <<'TOML'\n{adapter}\nTOML"
    words = ["leaks", "--target", "/tmp/litter.toml", "--endings", "normal", "--iterations", "2", "--json"]
    done = user("leakcheck", *words, before=write)
    assert done.returncode == 1, done.stdout + done.stderr
    result = json.loads(done.stdout)
    (finding,) = [one for one in result["findings"] if one["outcome"] == "leaked"]
    assert finding["plan"] == "normal"
    assert all("/var/tmp/litter-" in label for leak in finding["leaks"] for label in leak["labels"]), finding
    damaged = [one for one in result["criteria"] if "first run" in one["name"]]
    assert [one["measured"] for one in damaged] == [0]
