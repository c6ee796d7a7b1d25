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


def test_the_error_of_a_set_user_id_sandbox_in_an_ordinary_user_s_arena_says_what_to_do(user: Place) -> None:
    adapter = """
        name = "powerless"
        summary = "fails without the rights of root"
        launch = ["/bin/sh", "-c", "exit 1", "sh", "{program}"]
        probe = { namespaces = ["mnt"] }
        needs = { binaries = ["su"] }
    """
    write = f"cat >/tmp/powerless.toml <<'TOML'\n{adapter}\nTOML"
    done = user("leakcheck", "leaks", "--target", "/tmp/powerless.toml", "--iterations", "1", before=write)
    assert done.returncode == 4, done.stdout + done.stderr
    assert "/su is set-user-ID" in done.stderr, done.stderr
    assert "--host" in done.stderr, done.stderr


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


TIDY = """cat >/tmp/tidy.toml <<'TOML'
name = "tidy"
summary = "changes nothing before its first process"
launch = ["/bin/sh", "-c", '(:); exec "$@"', "sh", "{program}"]
probe = { none = "isolates nothing" }
TOML"""
# A mount below a directory of the root. What has a comma in its name is no option of an overlay.
BESIDE = "mount -t tmpfs tmpfs /media; mkdir {0}; mount -t tmpfs -o mode=1777 tmpfs {0}; echo x >{0}/here"


def test_an_ordinary_user_s_tidy_sandbox_is_clean(user: Place) -> None:
    words = ["leaks", "--target", "/tmp/tidy.toml", "--endings", "normal", "--iterations", "2", "--json"]
    done = user("leakcheck", *words, before=f"{BESIDE.format('/media/disk')}\n{TIDY}")
    assert (done.returncode, json.loads(done.stdout)["outcomes"]) == (0, {"clean": 2}), done.stdout + done.stderr


def test_an_ordinary_user_s_plan_has_a_status_for_each_requirement(user: Place) -> None:
    words = ["verify", "--target", "/tmp/tidy.toml", "--only", "R3,R4,R7", "--report", "/tmp/page.html", "--json"]
    done = user("leakcheck", *words, before=TIDY)
    (found,) = json.loads(done.stdout)["targets"]
    statuses = {one["id"]: one["status"] for one in found["requirements"]}
    # It makes no call of a clean-up, and has no locks.
    assert statuses == {"R3": "pass", "R4": "inconclusive", "R7": "not applicable"}, done.stdout + done.stderr
    assert done.returncode == 3


def test_an_ordinary_user_s_arena_shows_what_is_made_in_each_place_of_it(user: Place) -> None:
    made = [
        *("touch /litter", "mkdir /media/litter", "touch /media/disk/litter", "rm /media/disk/here"),
        *("ipcmk --shmem 4096", ":>/dev/mqueue/litter"),
        *("ip address add 192.0.2.1/32 dev lo", "unshare --net sleep 60 &"),
    ]
    guard = ["leakcheck", "guard", "--arena", "--json", "--settle", "0.3", "--", "sh", "-c", "\n".join(made)]
    done = user(*guard, before=BESIDE.format("/media/disk"))
    assert done.returncode == 1, done.stdout + done.stderr
    report = json.loads(done.stdout)
    labels = [leak["label"] for leak in report["leaks"]]
    for what in (
        "file /litter",
        "/media/litter",
        "/media/disk/litter",
        "/media/disk/here",
        "192.0.2.1",
        "/dev/mqueue/litter",
    ):
        assert [label for label in labels if what in label], (what, labels, done.stderr)
    assert {"process", "file", "ipc", "net", "namespace"} <= {leak["kind"] for leak in report["leaks"]}, labels
    assert {kind: gap for kind, gap in report["coverage"].items() if gap["level"] != "full"} == {}


def test_a_mount_over_a_directory_that_an_arena_made_again_deletes_nothing_in_it(user: Place) -> None:
    # With a mount below /media/disk, the arena makes /media and /media/disk again.
    before = "mount -t tmpfs tmpfs /media; mkdir -p /media/disk/below; mount -t tmpfs tmpfs /media/disk/below"
    made = "touch /litter; mount -t tmpfs tmpfs /media"
    done = user("leakcheck", "guard", "--arena", "--json", "--settle", "0.1", "--", "sh", "-c", made, before=before)
    assert done.returncode == 1, done.stdout + done.stderr
    leaks = [(leak["kind"], leak["class"], leak["evidence"]["resource"]) for leak in json.loads(done.stdout)["leaks"]]
    shown = sorted((kind, class_, what.get("target") or what["path"]) for kind, class_, what in leaks)
    assert shown == [("file", "orphaned", "/litter"), ("mount", "orphaned", "/media")]


def test_a_cgroup_that_an_ordinary_user_may_write_to_is_a_gap_of_an_arena_without_one(user: Place) -> None:
    # Nothing is a cgroup there, but a look cannot know whether it is one of those that may be mounted elsewhere.
    before = "mount -t tmpfs tmpfs /sys/fs/cgroup"
    done = user("leakcheck", "guard", "--arena", "--json", "--kinds", "cgroup", "--", "true", before=before)
    assert done.returncode == 3, done.stdout + done.stderr
    assert "no cgroup of its own, but" in json.loads(done.stdout)["coverage"]["cgroup"]["reason"]


def test_a_sweep_that_finds_nothing_but_does_not_see_everything_is_no_failure(user: Place) -> None:
    write = f"{BESIDE.format('/media/a,b')}\n{TIDY}"
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


MINE = """
name = "mine"
summary = "has a lock, and a state file while it runs"
launch = ["/bin/sh", "-c", '''
mkdir -p /tmp/m; echo 7 > /tmp/m/s; flock -n -o -E 9 /tmp/m/l "$@"; c=$?; rm -f /tmp/m/s; exit $c''', "sh", "{program}"]
recover = [["/bin/sh", "-c", "rm -rf /tmp/m"]]
probe = { none = "isolates nothing" }
state = ["/tmp/m"]
state_files = ["/tmp/m/s"]
locks = { files = ["/tmp/m/l"], busy = [9] }
"""


def test_an_ordinary_user_cannot_hold_starts_so_that_contenders_for_a_lock_are_unknown(user: Place) -> None:
    words = ["--plan", "lock:contend=2", "--iterations", "1"]
    done = user("leakcheck", "locks", "--target", "/tmp/mine.toml", *words, before=f"cat > /tmp/mine.toml <<'E'{MINE}E")
    assert done.returncode == 3, done.stdout + done.stderr
    assert "starts of payloads cannot be held here: operation not permitted" in done.stdout + done.stderr


def test_an_ordinary_user_s_state_is_what_a_power_cut_leaves(user: Place) -> None:
    words = ["--plan", "state:/tmp/m/s:cut=posix.4.1", "--iterations", "1"]
    done = user("leakcheck", "state", "--target", "/tmp/mine.toml", *words, before=f"cat > /tmp/mine.toml <<'E'{MINE}E")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("plan", "code", "said"),
    [
        ("fd:limit=4", 0, "trials that ran against their limit: 1"),
        ("pids:limit=0", 3, "no pids limit can be set: the arena has no cgroup with pids.max; run as root"),
        ("disk:full@0", 3, "cannot be performed here: operation not permitted; run as root"),
    ],
)
def test_what_an_ordinary_user_cannot_exhaust_is_unknown_and_the_rest_is_judged(
    user: Place, plan: str, code: int, said: str
) -> None:
    words = ["exhaust", "--target", "/tmp/mine.toml", "--plan", plan]
    done = user("leakcheck", *words, before=f"cat > /tmp/mine.toml <<'E'{MINE}E")
    assert (done.returncode, said in " ".join(f"{done.stdout} {done.stderr}".split())) == (code, True), done
