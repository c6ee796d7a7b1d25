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


@pytest.mark.parametrize("how", ["", ",notified"], ids=["traced", "notified"])
def test_an_ordinary_user_s_sandbox_is_killed_at_a_crash_point(user: Place, how: str) -> None:
    adapter = """
        name = "litter"
        summary = "removes a directory before its program runs"
        launch = ["/bin/sh", "-c", 'mkdir /var/tmp/litter; rmdir /var/tmp/litter; exec "$@"', "sh", "{program}"]
        probe = { none = "isolates nothing" }
    """
    write = f"cat >/tmp/litter.toml <<'TOML'\n{adapter}\nTOML"
    plan = f"launch:0/clone#2:before:SIGKILL{how}"
    words = ["crash", "--target", "/tmp/litter.toml", "--plan", plan, "--iterations", "1", "--json"]
    done = user("leakcheck", *words, before=write)
    assert done.returncode == 1, done.stdout + done.stderr
    (finding,) = [one for one in json.loads(done.stdout)["findings"] if one["outcome"] in ("leaked", "wedged")]
    assert finding["plan"] == plan
    assert any("/var/tmp/litter" in label for leak in finding["leaks"] for label in leak["labels"]), finding


def test_a_sweep_that_finds_nothing_but_does_not_see_everything_is_no_failure(user: Place) -> None:
    adapter = """
        name = "tidy"
        summary = "changes nothing before its first process"
        launch = ["/bin/sh", "-c", '(:); exec "$@"', "sh", "{program}"]
        probe = { none = "isolates nothing" }
    """
    write = f"cat >/tmp/tidy.toml <<'TOML'\n{adapter}\nTOML"
    plan = "launch:0/clone#1:before:SIGKILL"
    words = ["crash", "--target", "/tmp/tidy.toml", "--plan", plan, "--iterations", "1", "--json"]
    done = user("leakcheck", *words, before=write)
    assert (done.returncode, json.loads(done.stdout)["outcomes"]) == (3, {"unknown": 1}), done.stdout + done.stderr


def test_an_ordinary_user_s_failing_clean_up_is_found_and_explained(user: Place) -> None:
    adapter = """
        name = "litter"
        summary = "does not look whether its directory is gone"
        launch = ["/bin/sh", "-c", 'mkdir /var/tmp/litter; "$@"; code=$?; rmdir /var/tmp/litter; exit $code', "sh",
            "/usr/bin/timeout", "{wall}", "{program}"]
        status = { timeout = [124] }
        probe = { none = "isolates nothing" }
    """
    write = f"cat >/tmp/litter.toml <<'TOML'\n{adapter}\nTOML"
    words = ["faults", "--target", "/tmp/litter.toml", "--explain", "launch:0.3/rmdir(/var/tmp/litter)#1:EBUSY"]
    done = user("leakcheck", *words, "--format", "json", before=write)
    assert done.returncode == 1, done.stdout + done.stderr
    (finding,) = json.loads(done.stdout)["findings"]
    assert finding["outcome"] == "silent", finding
    (life,) = [one for one in finding["explanation"]["lives"] if one["label"].startswith("dir ")]
    assert life["created"] == "launch:0.1/mkdir(/var/tmp/litter)#1", finding
    assert life["released"] == "launch:0.3/rmdir(/var/tmp/litter)#1", finding
    assert life["how"] == "under the fault that call returned EBUSY"
    assert finding["explanation"]["stack"], finding
