"""A check that fails says why, and what the adapter may lack."""

import os
from pathlib import Path

import pytest

from leakcheck.conformance import Finding, check
from leakcheck.errors import UsageError
from leakcheck.targets import load

# The checks here run as root, in arenas.
pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

TIMED = '"/usr/bin/timeout", "--kill-after=1", "{wall}", "{program}"]'
SHELL = 'launch = ["/bin/sh", "-c", '


def findings(directory: Path, fields: str, *only: str) -> dict[str, Finding]:
    probe = "" if "probe =" in fields else 'probe = { none = "x" }'
    path = directory / "wrong.toml"
    path.write_text(f'name = "wrong"\nsummary = "x"\n{probe}\n{fields}\n')
    return {finding.check: finding for finding in check(load(path), *[only] if only else [])}


@pytest.mark.parametrize(
    ("fields", "failing", "words"),
    [
        ('launch = ["DIR/run", ' + TIMED, "ok", "start DIR/run: no such file or directory; an arena has its own"),
        ('launch = ["DIR/run", ' + TIMED, "ok", "an adapter: binds"),
        (
            'launch = ["/bin/sh", "DIR/run", ' + TIMED,
            "ok",
            "the arena does not show DIR/run; name it, or its directory",
        ),
        (SHELL + '". DIR/run", "sh", ' + TIMED, "recovery", "the arena does not show DIR/run"),
        ('cwd = "DIR"\nlaunch = [' + TIMED, "ok", "enter working directory DIR: no such file or directory; an arena"),
        (SHELL + '"echo no cgroup >&2; exit 42", "sh", ' + TIMED, "probe", "the launch exited with 42: no cgroup"),
        (SHELL + '"echo no cgroup >&2; exit 42", "sh", ' + TIMED, "recovery", "the launch exited with 42: no cgroup"),
        (SHELL + '"exec \\"$@\\" >/dev/null", "sh", ' + TIMED, "probe", 'such as output = "{work}/out"'),
        ('output = "{work}/out"\nlaunch = [' + TIMED, "probe", "box/out, which the adapter names as output, lacks it"),
        (SHELL + '"\\"$@\\" || exit 9", "sh", ' + TIMED, "timeout", "status = { timeout = [9] }"),
        (SHELL + '"\\"$@\\" || exit 9", "sh", ' + TIMED, "crash_signal", "say so: may_lack_signal = true"),
        (SHELL + '"\\"$@\\" || exit 0", "sh", ' + TIMED, "timeout", "write it to one: status = { source ="),
        (
            'status = { source = "json", file = "{work}/s", status = "s", exit_code = "c", statuses.no = "RE", '
            'statuses.yes = "OK" }\n'
            + SHELL
            + """'"$@"; c=$?; [ $c = 0 ] && s=yes || s=no; echo "{{\\"s\\":\\"$s\\",\\"c\\":$c}}" >{work}/s', "sh", """
            + TIMED,
            "crash_signal",
            "no signal instead of 11; it exited with 0: Segmentation fault; if it never reports a death by signal, say",
        ),
        ("probe = { hidden = true }\nlaunch = [" + TIMED, "probe", "nothing that leakcheck can check differs inside"),
    ],
)
def test_a_check_that_fails_says_why_and_what_the_adapter_may_lack(
    tmp_path: Path, fields: str, failing: str, words: str
) -> None:
    hidden = tmp_path / "hidden"
    hidden.mkdir()
    (hidden / "run").write_text('exec "$@"\n')
    (hidden / "run").chmod(0o755)
    if "DIR" in fields and not str(tmp_path).startswith(("/tmp/", "/var/tmp/", "/run/")):
        pytest.skip("an arena shows the directory of the tests")
    found = findings(tmp_path, fields.replace("DIR", str(hidden)), "probe", "ok", failing)
    assert words.replace("DIR", str(hidden)) in found[failing].detail


def test_a_status_file_that_has_no_exit_code_if_the_run_is_ok_means_0(tmp_path: Path) -> None:
    fields = """
        status = { source = "json", file = "{work}/s", status = "s", exit_code = "c", statuses = { y = "OK" } }
        launch = ["/bin/sh", "-c", '"$@" && echo "{{\\"s\\":\\"y\\"}}" >{work}/s', "sh", "{program}"]
    """
    assert findings(tmp_path, fields, "ok")["ok"].passed


def test_a_check_that_only_an_earlier_run_makes_fail_says_so(tmp_path: Path) -> None:
    # The timeout leaves what makes the next launch fail.
    script = '[ ! -e {work}/left ] || exit 9; "$@"; code=$?; [ $code != 124 ] || : >{work}/left; exit $code'
    fields = f"""
        status = {{ timeout = [124] }}
        launch = ["/bin/sh", "-c", '{script}', "sh", {TIMED}
    """
    found = findings(tmp_path, fields, "ok", "timeout", "crash_exit")
    assert found["timeout"].passed
    assert "exit code 9 instead of 3" in found["crash_exit"].detail
    assert found["crash_exit"].detail.endswith("left something in its way, which leakcheck leaks finds")


def test_no_hint_is_given_where_the_payload_does_not_even_start(tmp_path: Path) -> None:
    found = findings(tmp_path, f'{SHELL}"exit 5", "sh", {TIMED}')
    assert [one.check for one in found.values() if one.passed or "; if " in one.detail] == []


def test_a_path_in_binds_that_is_not_there_is_refused_by_its_field(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"wrong\.toml: binds: /none: no such file or directory"):
        findings(tmp_path, f'binds = ["/none"]\nlaunch = [{TIMED}', "ok")


LANDLOCK = """
import ctypes, os, struct, sys
libc = ctypes.CDLL(None, use_errno=True)
READ = 1 << 0 | 1 << 2 | 1 << 3
rules = libc.syscall(444, struct.pack("<Q", READ), 8, 0)
if rules < 0:
    sys.exit("no Landlock")
for place in ("/usr", "/lib", "/lib64", "/etc", "/bin", "/proc", "/dev"):
    if os.path.exists(place):
        assert libc.syscall(445, rules, 1, struct.pack("<Qi", READ, os.open(place, os.O_PATH)), 0) == 0
libc.prctl(38, 1, 0, 0, 0)
assert libc.syscall(446, rules, 0) == 0
os.execv(sys.argv[1], sys.argv[1:])
"""
SECCOMP = """
import ctypes, os, struct, sys
libc = ctypes.CDLL(None, use_errno=True)
allow = ctypes.create_string_buffer(struct.pack("<HBBI", 6, 0, 0, 0x7FFF0000))
program = ctypes.create_string_buffer(struct.pack("<HxxxxxxQ", 1, ctypes.addressof(allow)))
libc.prctl(38, 1, 0, 0, 0)
assert libc.prctl(22, 2, program, 0, 0) == 0
os.execv(sys.argv[1], sys.argv[1:])
"""


@pytest.mark.parametrize(
    ("script", "holds"), [(LANDLOCK, "unreadable"), (SECCOMP, "seccomp")], ids=["landlock", "seccomp"]
)
def test_a_sandbox_of_landlock_or_seccomp_alone_is_told_which_probe_fits_and_then_passes(
    tmp_path: Path, script: str, holds: str
) -> None:
    launch = f"launch = ['/usr/bin/env', 'python3', '-c', '''{script}''', {TIMED}"
    wrong = findings(tmp_path, f'{launch}\nprobe = {{ namespaces = ["pid"] }}', "probe")["probe"]
    if "no Landlock" in wrong.detail:
        pytest.skip("this kernel has no Landlock")
    assert wrong.detail.endswith(f"what holds here: probe = {{ {holds} = true }}")
    assert findings(tmp_path, f"{launch}\nprobe = {{ {holds} = true }}", "probe")["probe"].passed
