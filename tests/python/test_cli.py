"""The command: every exit code, and every bad input as one clear line."""

import contextlib
import json
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest

PYTHON = shlex.quote(sys.executable)
# What only looks at processes, or at one small directory, is quick.
QUICK = ("--kinds", "process", "--settle", "0.05")


def leakcheck(*arguments: str | Path, **options: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "leakcheck", *map(str, arguments)]
    return subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120, check=False, **options
    )  # type: ignore[call-overload, no-any-return]


def in_roots(directory: Path) -> tuple[str, ...]:
    return ("--kinds", "file", "--settle", "0.05", "--roots", str(directory))


class TestGuard:
    def test_a_clean_command_gives_0_and_its_own_output_is_untouched(self) -> None:
        done = leakcheck("guard", *QUICK, "--", "sh", "-c", "printf 'out'; printf 'err' >&2")
        assert done.returncode == 0, done.stderr
        assert done.stdout == "out"
        assert done.stderr.startswith("errleakcheck: clean after sh -c")

    def test_a_leak_gives_1_and_is_named(self, tmp_path: Path) -> None:
        done = leakcheck("guard", *in_roots(tmp_path), "--", "touch", tmp_path / "left")
        assert done.returncode == 1
        assert "leaked, 1 leak" in done.stderr
        assert str(tmp_path / "left") in done.stderr

    def test_the_exit_code_is_leakchecks_own_unless_asked_for(self) -> None:
        assert leakcheck("guard", *QUICK, "--", "sh", "-c", "exit 7").returncode == 0
        assert leakcheck("guard", *QUICK, "--exit-code", "command", "--", "sh", "-c", "exit 7").returncode == 7

    def test_a_command_killed_by_a_signal_is_minus_n_in_the_report_and_128_plus_n_as_exit_code(self) -> None:
        done = leakcheck("guard", *QUICK, "--json", "--exit-code", "command", "--", "sh", "-c", "kill -KILL $$")
        assert done.returncode == 128 + 9
        assert json.loads(done.stdout)["command"] == {"argv": ["sh", "-c", "kill -KILL $$"], "exit": -9}

    def test_a_leak_outweighs_the_commands_own_code(self, tmp_path: Path) -> None:
        done = leakcheck(
            "guard", *in_roots(tmp_path), "--exit-code", "command", "--", "sh", "-c", f"touch {tmp_path}/left; exit 7"
        )
        assert done.returncode == 1

    def test_json_goes_to_stdout_as_one_line_and_nothing_to_stderr(self) -> None:
        done = leakcheck("guard", *QUICK, "--json", "--", "true")
        assert done.stderr == ""
        (line,) = done.stdout.splitlines()
        assert json.loads(line)["schema"] == "leakcheck.report/1"

    def test_with_json_the_commands_own_output_goes_to_stderr_in_an_arena_too(self) -> None:
        for arena in ((), ("--arena",)) if os.geteuid() == 0 else ((),):
            done = leakcheck("guard", *QUICK, *arena, "--json", "--", "sh", "-c", "echo out; echo err >&2")
            assert json.loads(done.stdout)["command"]["exit"] == 0, arena
            assert done.stderr == "out\nerr\n"

    def test_o_saves_the_report_and_leaves_nothing_else(self, tmp_path: Path) -> None:
        done = leakcheck("guard", *QUICK, "-o", tmp_path / "report.json", "--", "true")
        assert done.returncode == 0
        assert [file.name for file in tmp_path.iterdir()] == ["report.json"]
        assert json.loads((tmp_path / "report.json").read_text())["verdict"] == "clean"

    def test_options_after_the_commands_name_are_the_commands_own(self) -> None:
        done = leakcheck("guard", *QUICK, "echo", "--json", "-o", "x", "--", "y")
        assert (done.returncode, done.stdout) == (0, "--json -o x -- y\n")

    def test_the_command_inherits_open_descriptors_and_the_run_token(self) -> None:
        read, write = os.pipe()
        try:
            done = leakcheck(
                "guard", *QUICK, "--", "sh", "-c", f"echo $LEAKCHECK_RUN >/proc/self/fd/{write}", pass_fds=[write]
            )
        finally:
            os.close(write)
        with os.fdopen(read) as stream:
            assert len(stream.read().strip()) == 32
        assert done.returncode == 0

    def test_an_allowed_leak_is_clean_and_told_with_its_reason(self, tmp_path: Path) -> None:
        watched = tmp_path / "watched"
        watched.mkdir()
        (tmp_path / "allow.toml").write_text(
            f'[[allow]]\nkind = "file"\nreason = "it stays"\nmatch = {{ path = "{watched}/*" }}\n'
            '[[allow]]\nkind = "net"\nreason = "never"\n'
        )
        done = leakcheck(
            "guard", *in_roots(watched), "--allow", tmp_path / "allow.toml", "--", "touch", watched / "left"
        )
        assert done.returncode == 0
        assert "reason: it stays" in done.stderr
        assert "unused rule net  reason: never" in done.stderr

    def test_what_the_recover_command_removes_is_reclaimable_and_the_rest_stays(self, tmp_path: Path) -> None:
        make = f"touch {tmp_path}/removed {tmp_path}/kept"
        recover = f"echo recovering; rm {tmp_path}/removed"
        done = leakcheck("guard", *in_roots(tmp_path), "--json", "--recover", recover, "--", "sh", "-c", make)
        assert done.returncode == 1
        assert done.stderr == "recovering\n"
        assert json.loads(done.stdout)["recover"] == {"argv": ["/bin/sh", "-c", recover], "exit": 0}
        classes = {leak["evidence"]["resource"]["path"]: leak["class"] for leak in json.loads(done.stdout)["leaks"]}
        assert classes == {f"{tmp_path}/removed": "reclaimable", f"{tmp_path}/kept": "orphaned"}

    def test_a_recover_command_that_removes_all_makes_the_run_clean(self, tmp_path: Path) -> None:
        done = leakcheck(
            "guard", *in_roots(tmp_path), "--recover", f"rm {tmp_path}/left; exit 3", "--", "touch", tmp_path / "left"
        )
        assert done.returncode == 0
        assert "recover command" in done.stderr
        assert "exited with 3" in done.stderr

    def test_hostile_names_are_escaped_and_no_markup(self, tmp_path: Path) -> None:
        name = os.fsencode(tmp_path) + b"/[bold red]x[:skull:]\x1b[31m\n\xff<b>"
        done = leakcheck("guard", *in_roots(tmp_path), "--", "touch", os.fsdecode(name))
        assert done.returncode == 1
        leaks = [line for line in done.stderr.splitlines() if line.startswith("  file")]
        assert len(leaks) == 1
        assert "/[bold red]x[:skull:]\\x1b[31m\\n\\xff<b>" in leaks[0]


class TestTarget:
    @pytest.mark.parametrize(
        ("make", "why"),
        [
            (None, "no such file"),
            (0o644, "not executable"),
            (0o755, "nor a script with a #! line"),
        ],
    )
    def test_a_file_that_cannot_be_run_gives_4_and_one_line(self, tmp_path: Path, make: int | None, why: str) -> None:
        program = tmp_path / "program"
        if make is not None:
            program.write_bytes(b"\x00\x01")
            program.chmod(make)
        done = leakcheck("guard", *QUICK, "-o", tmp_path / "report.json", "--", program)
        assert (done.returncode, done.stdout) == (4, "")
        assert done.stderr.startswith(f"leakcheck: run {program}: ")
        assert why in done.stderr
        assert len(done.stderr.splitlines()) == 1
        assert not (tmp_path / "report.json").exists()

    def test_a_command_that_is_not_on_path_gives_4(self) -> None:
        done = leakcheck("guard", *QUICK, "--", "no-such-command")
        assert (done.returncode, done.stderr) == (4, "leakcheck: run no-such-command: no such command on PATH\n")

    def test_a_missing_interpreter_and_a_directory_are_told_apart(self, tmp_path: Path) -> None:
        script = tmp_path / "script"
        script.write_text("#!/no/such/interpreter\n")
        script.chmod(0o755)
        assert "interpreter in its first line" in leakcheck("guard", *QUICK, "--", script).stderr
        assert "is a directory" in leakcheck("guard", *QUICK, "--", tmp_path).stderr


BAD = [
    ([], "no command given"),
    (["nonsense"], "nonsense"),
    (["--nonsense"], "--nonsense"),
    (["guard"], "no command to guard"),
    (["guard", "--kinds", "process,nonsense", "--", "true"], "unknown kind"),
    (["guard", "--kinds", "", "--", "true"], "no kind given"),
    (["guard", "--scope", "nonsense", "--", "true"], "unknown scope"),
    (["guard", "--scope", "tree:999999999", "--", "true"], "no such process"),
    (["guard", "--scope", "tree:x", "--", "true"], "process id"),
    (["guard", "--scope", "cgroup:/no/such/cgroup", "--", "true"], "/no/such/cgroup"),
    (["guard", "--roots", "", "--", "true"], "--roots '': names no path"),
    (["guard", "--roots", ",", "--", "true"], "names no path"),
    (["guard", "--lock-files", "", "--", "true"], "--lock-files '': names no path"),
    (["guard", "--roots", "/tmp,/no/such/root", "--", "true"], "--roots /no/such/root: no such directory"),
    (["guard", "--roots", "/etc/passwd", "--", "true"], "--roots /etc/passwd: not a directory"),
    (["snapshot", "--roots", "/no/such/root"], "--roots /no/such/root: no such directory"),
    (["guard", "--settle", "soon", "--", "true"], "--settle"),
    (["guard", "--settle", "-1", "--", "true"], "seconds from 0 to 3600"),
    (["guard", "--settle", "nan", "--", "true"], "seconds from 0 to 3600"),
    (["guard", "--exit-code", "nobody", "--", "true"], "--exit-code"),
    (["guard", "--allow", "missing.toml", "--", "true"], "missing.toml"),
    (["guard", "--allow", ".", "--", "true"], "is a directory"),
    (["guard", "-o", ".", "--", "true"], "is a directory"),
    (["guard", "-o", "missing/report.json", "--", "true"], "no directory missing"),
    (["guard", "--demo-leak", "nonsense"], "demo leak 'nonsense'"),
    (["guard", "--demo-leak", "file", "--", "true"], "takes no command"),
    (["--demo-leak", "file", "snapshot"], "--demo-leak file"),
    (["snapshot", "-o", "missing/snapshot.json"], "no directory missing"),
    (["snapshot", "--kinds", "nonsense"], "unknown kind"),
    (["diff", "missing.json", "missing.json"], "missing.json"),
    (["diff", ".", "."], "."),
    (["diff", "one.json"], "Missing argument 'B'"),
    (["reap", "--diff", "missing.json"], "missing.json"),
    (["reap"], "--diff"),
    (["doctor", "--scope", "nonsense"], "unknown scope"),
]


@pytest.mark.parametrize(
    ("arguments", "complaint"), BAD, ids=lambda part: " ".join(part) if isinstance(part, list) else ""
)
def test_bad_input_gives_2_and_one_clear_line(tmp_path: Path, arguments: list[str], complaint: str) -> None:
    done = leakcheck(*arguments, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("leakcheck: ")
    assert complaint in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "content", [b"", b"{", b"\xff\xfe", b"[]", b"{}", b'{"schema": "leakcheck.snapshot/9"}', b"\x00" * 100]
)
@pytest.mark.parametrize(
    "command", [["diff", "bad.json", "bad.json"], ["reap", "--diff", "bad.json"]], ids=["diff", "reap"]
)
def test_a_damaged_file_gives_2_and_is_named(tmp_path: Path, command: list[str], content: bytes) -> None:
    (tmp_path / "bad.json").write_bytes(content)
    done = leakcheck(*command, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert len(done.stderr.splitlines()) == 1
    assert "bad.json" in done.stderr


class TestSnapshotAndDiff:
    def test_a_file_that_came_between_is_a_leak_and_one_that_went_is_not(self, tmp_path: Path) -> None:
        watched = tmp_path / "watched"
        watched.mkdir()
        (watched / "old").touch()
        roots = ("--kinds", "file", "--roots", str(watched))
        assert leakcheck("snapshot", *roots, "-o", tmp_path / "a").returncode == 0
        (watched / "new").touch()
        (watched / "old").unlink()
        assert leakcheck("snapshot", *roots, "-o", tmp_path / "b").returncode == 0
        done = leakcheck("diff", tmp_path / "a", tmp_path / "b", "--json", "-o", tmp_path / "report")
        assert done.returncode == 1
        report = json.loads(done.stdout)
        assert [leak["evidence"]["resource"]["path"] for leak in report["leaks"]] == [str(watched / "new")]
        assert len(report["vanished"]) == 1
        assert json.loads((tmp_path / "report").read_text()) == report
        assert leakcheck("diff", tmp_path / "b", tmp_path / "b").returncode == 0

    def test_the_saved_snapshots_themselves_are_no_leak_even_in_a_root(self, tmp_path: Path) -> None:
        roots = ("--kinds", "file", "--roots", str(tmp_path))
        for name in ("a [1].json", "b.json"):
            assert leakcheck("snapshot", *roots, "-o", tmp_path / name).returncode == 0
        done = leakcheck("diff", tmp_path / "a [1].json", tmp_path / "b.json", "--json")
        # An ordinary user cannot read the mappings of others: that is unknown, not a leak.
        assert done.returncode == (3 if os.geteuid() else 0), done.stderr
        assert json.loads(done.stdout)["leaks"] == []

    def test_without_a_file_the_counts_are_shown(self) -> None:
        done = leakcheck("snapshot", "--kinds", "process,mount")
        assert done.returncode == 0
        assert [line.split()[0] for line in done.stdout.splitlines()[1:3]] == ["process", "mount"]

    def test_json_is_a_snapshot_that_diff_reads(self, tmp_path: Path) -> None:
        (tmp_path / "a").write_text(leakcheck("snapshot", "--kinds", "mount", "--json").stdout)
        assert leakcheck("diff", tmp_path / "a", tmp_path / "a").returncode == 0

    def test_a_snapshot_of_another_boot_is_refused(self, tmp_path: Path) -> None:
        saved = json.loads(leakcheck("snapshot", "--kinds", "mount", "--json").stdout)
        (tmp_path / "a").write_text(json.dumps(saved))
        saved["boot_id"] = "00000000-0000-4000-8000-000000000000"
        (tmp_path / "b").write_text(json.dumps(saved))
        done = leakcheck("diff", tmp_path / "a", tmp_path / "b")
        assert done.returncode == 2
        assert "boot" in done.stderr
        assert len(done.stderr.splitlines()) == 1


class TestReap:
    def test_a_dry_run_removes_nothing_and_yes_removes_what_is_the_runs(self, tmp_path: Path) -> None:
        capabilities = Path("/proc/self/status").read_text().partition("\nCapEff:")[2].split()[0]
        if not int(capabilities, 16) >> 21 & 1:
            pytest.skip("who made a file is known to root only: fanotify wants CAP_SYS_ADMIN")
        left, report = tmp_path / "left", tmp_path / "report.json"
        assert leakcheck("guard", *in_roots(tmp_path), "-o", report, "--", "touch", left).returncode == 1
        dry = leakcheck("reap", "--diff", report)
        assert dry.returncode == 0
        assert left.exists()
        assert "would" in dry.stdout
        assert "--yes" in dry.stdout
        done = leakcheck("reap", "--diff", report, "--yes", "--json")
        assert done.returncode == 0
        assert not left.exists()
        assert [action["status"] for action in json.loads(done.stdout)] == ["done"]


def test_doctor_says_what_can_be_seen() -> None:
    done = leakcheck("doctor", "--kinds", "process,mount")
    assert done.returncode == 0, done.stderr
    assert "best verdict of a guard here" in done.stdout
    examination = json.loads(leakcheck("doctor", "--kinds", "process,mount", "--json").stdout)
    assert list(examination["kinds"]) == ["process", "mount"]


class TestDemo:
    @pytest.mark.parametrize("name", ["process", "file", "fd", "fd-memfd", "lockfile", "lockfile-corrupt"])
    def test_a_planted_leak_is_reported_and_taken_away_again(self, name: str) -> None:
        done = leakcheck("--demo-leak", name)
        assert done.returncode == 1, done.stderr
        assert "leaked" in done.stderr
        assert "removed its leak" in done.stderr.splitlines()[-1]

    def test_a_plant_goes_when_leakcheck_is_killed(self, tmp_path: Path) -> None:
        command = [sys.executable, "-m", "leakcheck", "guard", "--demo-leak", "file-temp", "--settle", "600"]
        process = subprocess.Popen([*command, "--roots", tmp_path], stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        pidfd = os.pidfd_open(process.pid)
        try:
            mkleak = _child_of(process.pid)
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            process.wait()
            # The end of its stdin is its order to clean up; its pidfd is readable when it has ended.
            assert _ends(mkleak)
        finally:
            os.close(pidfd)


def _child_of(pid: int) -> int:
    children = Path(f"/proc/{pid}/task/{pid}/children")
    for _ in range(3000):
        for child in children.read_text().split():
            # One that was waited for meanwhile is not it.
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                if Path(f"/proc/{child}/comm").read_text().strip() == "mkleak" and "--list" not in _argv(child):
                    return os.pidfd_open(int(child))
        signal.sigtimedwait([], 0.01)
    raise AssertionError("leakcheck started no mkleak within 30 s")


def _argv(pid: str) -> list[str]:
    return Path(f"/proc/{pid}/cmdline").read_text().split("\0")


def _ends(pidfd: int) -> bool:
    import select

    ended = select.poll()
    ended.register(pidfd, select.POLLIN)
    try:
        return bool(ended.poll(30_000))
    finally:
        os.close(pidfd)


class TestCrashes:
    def test_a_crash_of_ours_is_unknown_and_never_clean(self, tmp_path: Path) -> None:
        (tmp_path / "sitecustomize.py").write_text(
            "import leakcheck.commands.guard\n"
            "def boom(*_): raise ZeroDivisionError('boom')\n"
            "leakcheck.commands.guard.print_lines = boom\n"
        )
        environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
        done = leakcheck("guard", *QUICK, "--", "true", env=environment)
        assert done.returncode == 3
        assert (
            done.stderr
            == "leakcheck: unknown: internal error, ZeroDivisionError: boom; set LEAKCHECK_DEBUG=1 for a traceback\n"
        )
        told = leakcheck("guard", *QUICK, "--", "true", env={**environment, "LEAKCHECK_DEBUG": "1"})
        assert told.returncode == 3
        assert "Traceback" in told.stderr

    def test_what_the_user_may_not_see_makes_the_verdict_unknown(self) -> None:
        if os.geteuid() != 0:
            pytest.skip("drops from root to nobody")
        # Modules that are read lazily may lie where nobody cannot read, so it becomes nobody after a first run.
        script = """if True:
            import os, sys
            from leakcheck import cli
            from leakcheck.commands import process
            arguments = ["guard", "--kinds", "fd,process", "--settle", "0.05", "--", "true"]
            sys.argv = ["leakcheck", *arguments]
            process.run(cli._command)
            # Its parent is root's.
            sys.argv[2:2] = ["--scope", f"tree:{os.getppid()}"]
            os.setgroups([]); os.setresgid(65534, 65534, 65534); os.setresuid(65534, 65534, 65534)
            cli.main()
        """
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
        last = done.stderr[done.stderr.rindex("leakcheck: ") :]
        assert done.returncode == 3, done.stderr
        assert last.startswith("leakcheck: unknown, no leak seen, but not everything was observed")
        assert "not fully seen" in last

    @pytest.mark.parametrize(
        "arguments",
        [
            "snapshot --kinds process",
            "snapshot --kinds process --json",
            "guard --kinds process --settle 0.05 --json -- true",
            "doctor --kinds process",
            "--version",
        ],
    )
    def test_a_reader_that_went_away_gives_3_and_no_traceback(self, arguments: str) -> None:
        read, write = os.pipe()
        os.close(read)
        command = [sys.executable, "-m", "leakcheck", *arguments.split()]
        done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True, timeout=60, check=False)
        os.close(write)
        assert done.returncode == 3
        assert done.stderr.startswith("leakcheck: unknown: ")
        assert len(done.stderr.splitlines()) == 1

    @pytest.mark.parametrize("redirected", ["2>/dev/full", "2>&-", ">&- 2>&-", "<&- 2>&-", "--json >/dev/full"])
    def test_a_clean_verdict_that_could_not_be_printed_gives_3_and_no_traceback(self, redirected: str) -> None:
        done = shell(f"{PYTHON} -m leakcheck guard --kinds process --settle 0.05 {redirected} -- true")
        assert done.returncode == 3
        assert "Traceback" not in done.stderr
        assert "Exception" not in done.stderr

    def test_a_failure_that_could_not_be_printed_keeps_its_code(self) -> None:
        for redirection in ("2>/dev/full", "2>&-"):
            assert shell(f"{PYTHON} -m leakcheck guard -- no-such-command {redirection}").returncode == 4
            assert shell(f"{PYTHON} -m leakcheck nonsense {redirection}").returncode == 2

    def test_a_closed_stdout_that_nothing_is_printed_to_is_no_failure_and_the_command_gets_it_closed(self) -> None:
        script = "test ! -e /proc/self/fd/1 && exit 7"
        guard = "guard --kinds process --settle 0.05 --exit-code command"
        done = shell(f"{PYTHON} -m leakcheck {guard} -- sh -c '{script}' >&-")
        assert done.returncode == 7, done.stderr
        assert shell(f"{PYTHON} -m leakcheck guard --kinds process --json -- true >&-").returncode == 3


def shell(command: str, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["sh", "-c", command], capture_output=True, text=True, timeout=60, check=False, **options)  # type: ignore[call-overload, no-any-return]


def test_version_and_help_give_0() -> None:
    from leakcheck import __version__

    assert leakcheck("--version").stdout == f"leakcheck {__version__}\n"
    for arguments in (["--help"], ["guard", "--help"], ["-h"]):
        done = leakcheck(*arguments)
        assert done.returncode == 0
        assert "Usage: leakcheck" in done.stdout


def test_no_line_of_the_help_is_cut_and_each_campaign_is_there_with_its_question() -> None:
    from leakcheck.campaigns import CAMPAIGNS

    done = leakcheck("--help")
    assert "..." not in done.stdout.partition("Options:")[2]
    shown = " ".join(done.stdout.split())
    assert "and test which of them can run here." in shown
    for campaign in CAMPAIGNS.values():
        assert f" {campaign.name} {campaign.question}" in shown


class TestCompletion:
    @pytest.mark.parametrize(
        ("line", "offered"),
        [
            ("leakcheck s", ["snapshot", "service", "show", "state", "stress", "soak"]),
            ("leakcheck guard --ar", ["--arena"]),
            ("leakcheck leaks --en", ["--endings", "--enough"]),
            ("leakcheck leaks --target ru", ["runc", "runc-new", "runsc"]),
            ("leakcheck check ./mine", []),
        ],
    )
    def test_each_shell_is_offered_commands_options_and_targets(self, line: str, offered: list[str]) -> None:
        words = {"COMP_WORDS": line, "COMP_CWORD": str(len(line.split()) - 1), "_TYPER_COMPLETE_ARGS": line}
        words["_TYPER_COMPLETE_FISH_ACTION"] = "get-args"
        for shell in ("bash", "zsh", "fish"):
            done = leakcheck(env={**os.environ, **words, "_LEAKCHECK_COMPLETE": f"complete_{shell}"})
            assert (done.returncode, done.stderr) == (0, "")
            if shell == "zsh":
                assert [text for text in offered if f'"{text}"' not in done.stdout] == []
                assert offered or done.stdout == "_files\n"
            else:
                assert [text.partition("\t")[0] for text in done.stdout.split("\n") if text] == offered

    def test_bash_completes_with_the_script_that_is_shown(self) -> None:
        source = leakcheck(env={**os.environ, "_LEAKCHECK_COMPLETE": "source_bash"}).stdout
        directory = Path(sys.executable).parent
        script = f"PATH={shlex.quote(str(directory))}:$PATH\n{source}\nCOMP_WORDS=(leakcheck ta) COMP_CWORD=1\n"
        done = subprocess.run(
            ["bash", "-c", f"{script}_leakcheck_completion leakcheck; echo ${{COMPREPLY[@]}}"],
            capture_output=True, text=True, check=False, timeout=60,
        )  # fmt: skip
        assert (done.stdout, done.stderr) == ("targets\n", "")

    def test_a_shell_that_is_not_known_is_a_wrong_usage_and_no_leak(self) -> None:
        environment = {**os.environ, "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}
        assert leakcheck("--show-completion", "tcsh", env=environment).returncode == 2
