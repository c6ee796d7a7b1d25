"""The configuration file: which one is used and which is refused, what it sets, and what the command says of it."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Protocol

import pytest

from leakcheck import UsageError
from leakcheck.campaigns import CAMPAIGNS
from leakcheck.cli import _command
from leakcheck.commands.process import run
from leakcheck.config import CAMPAIGNS as NAMES
from leakcheck.config import COMMANDS
from leakcheck.config_file import find, read

NOBODY = 65534
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="gives files to another user, which needs root")
RULE = '[[allow]]\nkind = "file"\nmatch = { path = "*left-by-test*" }\nreason = "known"\n'


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """A repository, so that nothing above it is looked at."""
    (tmp_path / ".git").mkdir()
    return tmp_path


def leakcheck(*words: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "leakcheck", *words],
        cwd=cwd,
        env={name: value for name, value in os.environ.items() if name != "SUDO_UID"} | environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


class Inside(Protocol):
    def __call__(self, *words: str) -> tuple[int, str, str]: ...


@pytest.fixture
def inside(here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Inside:
    """Runs the command in this process, which takes a tenth of the time; returns exit code, stdout and stderr."""
    monkeypatch.chdir(here)

    def of(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["leakcheck", *words])
        code = run(_command)
        return code, *capsys.readouterr()

    return of


def options(inside: Inside, *words: str) -> dict[str, dict[str, object]]:
    code, out, err = inside("config", "--json", *words)
    assert code == 0, err
    found: dict[str, dict[str, object]] = json.loads(out)["options"]
    return found


def test_each_campaign_has_a_table() -> None:
    assert set(NAMES) == set(CAMPAIGNS)
    assert set(NAMES) < set(COMMANDS)


class TestWhichFile:
    def test_there_is_none(self, here: Path) -> None:
        assert find(here).path is None

    def test_the_nearest_one_upwards_is_used_and_alone(self, here: Path) -> None:
        inner = here / "a" / "b"
        inner.mkdir(parents=True)
        (here / "leakcheck.toml").write_text('target = "runc"\n[guard]\nsettle = 3\n')
        assert find(inner).path == here / "leakcheck.toml"
        (here / "a" / "pyproject.toml").write_text("[tool.leakcheck.guard]\nsettle = 2\n")
        assert find(inner).path == here / "a" / "pyproject.toml"
        assert [*find(inner).settings("leaks")] == []

    def test_a_pyproject_without_the_table_is_passed_over(self, here: Path) -> None:
        (here / "a").mkdir()
        (here / "leakcheck.toml").write_text("")
        for text in ("[project]\nname = 'x'\n", "[tool.ruff]\n# leakcheck\n", "no TOML at all"):
            (here / "a" / "pyproject.toml").write_text(text)
            assert find(here / "a").path == here / "leakcheck.toml"

    def test_of_one_directory_its_own_file_comes_before_pyproject(self, here: Path) -> None:
        (here / "pyproject.toml").write_text("[tool.leakcheck]\ntarget = 'a'\n")
        (here / "leakcheck.toml").write_text("target = 'b'\n")
        assert find(here).table == {"target": "b"}

    def test_nothing_above_the_root_of_the_repository_is_used(self, tmp_path: Path) -> None:
        (tmp_path / "leakcheck.toml").write_text("")
        (tmp_path / "repository" / ".git").mkdir(parents=True)
        assert find(tmp_path / "repository").path is None

    def test_without_a_working_directory_there_is_none(self, here: Path) -> None:
        (here / "gone").mkdir()
        code = "from leakcheck.config_file import find; import os; os.rmdir(os.getcwd()); print(find().path)"
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=here / "gone", capture_output=True, text=True, check=True
        )
        assert done.stdout == "None\n"

    def test_who_renames_a_directory_above_chooses_no_other_file(
        self, here: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (here / "strange" / "work").mkdir(parents=True)
        (here / "chosen").mkdir()
        (here / "chosen" / "leakcheck.toml").write_text(RULE)
        (here / "chosen" / "work").mkdir()
        monkeypatch.chdir(here / "strange" / "work")
        opened = os.open

        def swapped(path: object, *words: object, **given: object) -> int:
            # Once the working directory was asked for.
            if (here / "strange").is_dir() and not (here / "strange").is_symlink():
                (here / "strange").rename(here / "away")
                (here / "strange").symlink_to(here / "chosen")
            return opened(path, *words, **given)  # type: ignore[arg-type]

        monkeypatch.setattr(os, "open", swapped)
        assert find().path is None


class TestWhoseFile:
    """An allow rule of a stranger hides a leak."""

    @as_root
    def test_a_file_of_another_user_is_refused(self, here: Path) -> None:
        (here / "leakcheck.toml").write_text(RULE)
        os.chown(here / "leakcheck.toml", NOBODY, -1)
        with pytest.raises(UsageError, match=r"not used: it belongs to another user, nobody"):
            find(here)

    @as_root
    def test_a_file_in_a_directory_of_another_user_is_refused(self, here: Path) -> None:
        (here / "inner").mkdir()
        (here / "inner" / "leakcheck.toml").write_text(RULE)
        os.chown(here / "inner", NOBODY, -1)
        with pytest.raises(UsageError, match="its directory belongs to another user"):
            find(here / "inner")

    @pytest.mark.parametrize("mode", [0o777, 0o1777, 0o757])
    def test_a_file_in_a_directory_that_others_can_write_is_refused(self, here: Path, mode: int) -> None:
        (here / "tmp" / "work").mkdir(parents=True)
        (here / "tmp" / "leakcheck.toml").write_text(RULE)
        (here / "tmp").chmod(mode)
        with pytest.raises(UsageError, match="others can write to its directory"):
            find(here / "tmp" / "work")

    def test_a_file_that_others_can_write_is_refused(self, here: Path) -> None:
        (here / "leakcheck.toml").write_text(RULE)
        (here / "leakcheck.toml").chmod(0o666)
        with pytest.raises(UsageError, match="others can write to it"):
            find(here)

    @as_root
    def test_a_group_with_other_members_is_others(self, here: Path) -> None:
        file = here / "leakcheck.toml"
        file.write_text(RULE)
        file.chmod(0o664)
        # root's own group has no other member on any system that this is tried on.
        assert find(here).path == file
        os.chown(file, -1, NOBODY)
        with pytest.raises(UsageError, match="others can write to it"):
            find(here)

    @as_root
    def test_a_group_that_an_access_list_gives_to_more_users_is_others(self, here: Path) -> None:
        file = here / "leakcheck.toml"
        file.write_text(RULE)
        # Version 2; user::rw-, user:nobody:rw-, group::r--, mask::rw-, other::r-- (acl(5), linux/posix_acl_xattr.h).
        every = 0xFFFFFFFF
        entries = [(1, 6, every), (2, 6, NOBODY), (4, 4, every), (0x10, 6, every), (0x20, 4, every)]
        packed = (2).to_bytes(4, "little") + b"".join(
            tag.to_bytes(2, "little") + right.to_bytes(2, "little") + who.to_bytes(4, "little")
            for tag, right, who in entries
        )
        try:
            os.setxattr(file, "system.posix_acl_access", packed)
        except OSError as error:
            pytest.skip(f"no access lists on this file system: {error}")
        with pytest.raises(UsageError, match="others can write to it"):
            find(here)

    def test_a_link_is_refused_also_to_an_own_file(self, here: Path) -> None:
        (here / "real.toml").write_text(RULE)
        (here / "leakcheck.toml").symlink_to("real.toml")
        with pytest.raises(UsageError, match="it is a link"):
            find(here)

    def test_a_pyproject_that_is_a_link_is_refused_only_if_it_is_for_us(self, here: Path) -> None:
        (here / "real.toml").write_text("[project]\nname = 'leakcheck'\n")
        (here / "pyproject.toml").symlink_to("real.toml")
        assert find(here).path is None
        (here / "real.toml").write_text(f"[tool.leakcheck]\n{RULE.replace('allow', 'tool.leakcheck.allow')}")
        with pytest.raises(UsageError, match="it is a link"):
            find(here)

    @as_root
    def test_a_strangers_pyproject_matters_only_if_it_is_for_us(self, here: Path) -> None:
        file = here / "pyproject.toml"
        for text in ("[project]\nname = 'leakcheck'\n", "leakcheck: no TOML"):
            file.write_text(text)
            os.chown(file, NOBODY, -1)
            assert find(here).path is None
        file.write_text("[tool.leakcheck]\n")
        with pytest.raises(UsageError, match="belongs to another user"):
            find(here)

    def test_a_fifo_is_refused_and_not_waited_for(self, here: Path) -> None:
        os.mkfifo(here / "leakcheck.toml")
        with pytest.raises(UsageError, match="no regular file"):
            find(here)

    @as_root
    def test_through_sudo_the_file_of_the_user_who_called_it_is_used(
        self, here: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (here / "leakcheck.toml").write_text(RULE)
        os.chown(here / "leakcheck.toml", NOBODY, -1)
        monkeypatch.setenv("SUDO_UID", str(NOBODY))
        assert find(here).path == here / "leakcheck.toml"
        monkeypatch.setenv("SUDO_UID", "1")
        with pytest.raises(UsageError, match="belongs to another user"):
            find(here)

    @as_root
    def test_a_file_that_is_named_is_used_whoever_wrote_it(self, here: Path) -> None:
        (here / "leakcheck.toml").write_text(RULE)
        os.chown(here / "leakcheck.toml", NOBODY, -1)
        assert len(read(here / "leakcheck.toml").rules) == 1

    @as_root
    def test_a_strangers_rule_hides_no_leak_of_root(self, here: Path) -> None:
        (here / "leakcheck.toml").write_text(RULE)
        os.chown(here / "leakcheck.toml", NOBODY, -1)
        guard = ("guard", "--kinds", "file", "--roots", str(here), "--settle", "0.05", "--", "touch", "left-by-test")
        refused = leakcheck(*guard, cwd=here)
        assert refused.returncode == 2
        assert f"leakcheck --config {here}/leakcheck.toml" in refused.stderr
        assert not (here / "left-by-test").exists()
        assert leakcheck("--no-config", *guard, cwd=here).returncode == 1
        (here / "left-by-test").unlink()
        assert leakcheck("--config", "leakcheck.toml", *guard, cwd=here).returncode == 0


class TestWhatItSets:
    def test_the_command_line_comes_before_the_profile_before_the_table_before_the_default(
        self, here: Path, inside: Inside
    ) -> None:
        (here / "leakcheck.toml").write_text(
            "[guard]\nsettle = 2\nkinds = ['process', 'fd']\n\n[profiles.ci.guard]\nsettle = 3.5\n"
        )
        found = options(inside)["guard"]
        assert found["settle"] == {"value": 2.0, "from": "file", "table": "[guard]", "line": 2}
        assert found["kinds"] == {"value": "process,fd", "from": "file", "table": "[guard]", "line": 3}
        assert found["scope"] == {"value": "host", "from": "default"}
        _, out, _ = inside("--profile", "ci", "config", "--json", "guard", "--scope", "tree:1")
        found = json.loads(out)["options"]["guard"]
        assert found["settle"] == {"value": 3.5, "from": "file", "table": "[profiles.ci.guard]", "line": 6}
        assert found["scope"] == {"value": "tree:1", "from": "command line"}
        assert options(inside, "guard", "--settle", "1")["guard"]["settle"] == {"value": 1.0, "from": "command line"}

    def test_the_table_in_pyproject_means_the_same(self, here: Path, inside: Inside) -> None:
        (here / "pyproject.toml").write_text(
            "[project]\nname = 'x'\nkeywords = [\n'a',\n]\n[tool.leakcheck.guard]\nsettle = 2\n[tool.x]\n"
        )
        wanted = {"value": 2.0, "from": "file", "table": "[tool.leakcheck.guard]", "line": 7}
        assert options(inside)["guard"]["settle"] == wanted

    def test_a_named_target_is_an_adapter_beside_the_file(
        self, here: Path, inside: Inside, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (here / "adapters").mkdir()
        (here / "inner").mkdir()
        (here / "leakcheck.toml").write_text('target = "mine"\n[targets]\nmine = "adapters/mine.toml"\n')
        monkeypatch.chdir(here / "inner")
        found = options(inside)
        assert found["stress"]["target"]["value"] == str(here / "adapters/mine.toml")
        assert found["verify"]["target"]["value"] == [str(here / "adapters/mine.toml")]
        done = leakcheck("check", "mine", cwd=here / "inner")
        assert done.returncode == 2
        assert f"{here}/adapters/mine.toml: No such file" in done.stderr or "adapters/mine.toml" in done.stderr
        done = leakcheck("leaks", "--target", "mien", cwd=here)
        assert "unknown target 'mien'; did you mean mine?" in done.stderr

    def test_an_allow_rule_of_the_file_is_shown_with_its_place(self, here: Path) -> None:
        (here / "leakcheck.toml").write_text(f"# a comment\n\n{RULE}\n[guard]\nkinds = 'file'\nsettle = 0.05\n")
        guard = ("guard", "--roots", str(here), "--json", "--", "touch", "left-by-test")
        done = leakcheck(*guard, cwd=here)
        assert done.returncode == 0, done.stderr
        (allowed,) = json.loads(done.stdout)["allowed"]
        assert allowed["reason"] == f"known (rule of {here}/leakcheck.toml, line 3)"
        assert f"leakcheck: configuration: {here}/leakcheck.toml" in done.stderr
        (here / "left-by-test").unlink()
        (here / "other.toml").write_text("")
        assert leakcheck(*guard[:1], "--allow", "other.toml", *guard[1:], cwd=here).returncode == 1

    def test_a_directory_whose_name_is_no_unicode_and_has_escapes_is_shown_escaped(self, here: Path) -> None:
        odd = Path(os.fsdecode(os.fsencode(here) + b"/\xff\n\x1b[31m"))
        odd.mkdir()
        (odd / "leakcheck.toml").write_text(f"{RULE}[guard]\nkinds = 'file'\nsettle = 0.05\n")
        done = leakcheck("guard", "--roots", str(here), "--json", "--", "touch", "left-by-test", cwd=odd)
        assert done.returncode == 0, done.stderr
        assert "\x1b" not in done.stderr
        assert json.loads(done.stdout)["allowed"][0]["reason"].startswith("known (rule of ")
        done = leakcheck("config", cwd=odd)
        assert (done.returncode, "\x1b" in done.stdout) == (0, False)
        assert leakcheck("config", "--json", cwd=odd).returncode == 0

    @as_root
    def test_a_named_target_is_listed_with_the_others(
        self, here: Path, inside: Inside, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (here / "leakcheck.toml").write_text('[targets]\nmine = "mine.toml"\n')
        (here / "mine.toml").write_text(
            'name = "mysandbox"\nsummary = "mine"\nlaunch = ["{program}"]\nprobe = { none = "isolates nothing" }\n'
        )
        monkeypatch.setattr("leakcheck.commands.targets.builtin", list)
        code, out, err = inside("targets", "--json")
        assert code == 0, err
        assert [one["name"] for one in json.loads(out)["targets"]] == ["mysandbox"]

    def test_a_replay_line_is_not_changed_by_the_file(self, here: Path) -> None:
        (here / "leakcheck.toml").write_text("[crash]\nphase = 'setup'\nsettle = 61\n")
        (here / "mine.toml").write_text("")
        refused = leakcheck("crash", "--target", "./mine.toml", cwd=here)
        assert "adapter mine.toml" in refused.stderr
        plan = leakcheck(
            "crash", "--target", "refbox", "--plan", "launch:0/mkdir(dev)#1:before:SIGKILL", "--jobs", "999", cwd=here
        )
        assert "--jobs 999" in plan.stderr
        assert "--phase" not in plan.stderr
        assert "--settle" in leakcheck("crash", "--target", "refbox", cwd=here).stderr

    def test_the_pytest_plugin_reads_it_too(self, here: Path) -> None:
        (here / "leakcheck.toml").write_text(f"[pytest]\nkinds = ['file']\nsettle = 0.02\n{RULE}")
        (here / "test_it.py").write_text(
            "from pathlib import Path\n"
            f"def test_known(): Path('/tmp/left-by-test-{os.getpid()}').touch()\n"
            f"def test_leak(): Path('/tmp/unknown-{os.getpid()}').touch()\n"
        )
        words = [sys.executable, "-m", "pytest", "--leakcheck", "-p", "no:cacheprovider", "-rA", "test_it.py"]
        try:
            done = subprocess.run(words, cwd=here, capture_output=True, text=True, timeout=120, check=False)
        finally:
            Path(f"/tmp/left-by-test-{os.getpid()}").unlink(missing_ok=True)
            Path(f"/tmp/unknown-{os.getpid()}").unlink(missing_ok=True)
        assert f"leakcheck: configuration: {here}/leakcheck.toml" in done.stdout
        assert "1 passed" in done.stdout, done.stdout
        assert "1 leaked" in done.stdout

    @as_root
    def test_a_suite_that_is_not_guarded_does_not_fail_for_a_strangers_file(self, here: Path) -> None:
        (here / "leakcheck.toml").write_text(RULE)
        os.chown(here / "leakcheck.toml", NOBODY, -1)
        (here / "test_it.py").write_text("def test_one(): pass\ndef test_two(leakcheck): pass\n")
        words = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "test_it.py"]
        done = subprocess.run(words, cwd=here, capture_output=True, text=True, timeout=120, check=False)
        assert "1 passed, 1 error" in done.stdout
        assert "belongs to another user" in done.stdout
        done = subprocess.run(
            [*words, "--leakcheck"], cwd=here, capture_output=True, text=True, timeout=120, check=False
        )
        assert done.returncode == 4
        assert "belongs to another user" in done.stderr


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[gaurd]\nsettle = 1\n", "line 1: gaurd: unknown key; did you mean guard?"),
        ("[guard]\n\nsetle = 1\n", "line 3: [guard] setle: unknown option; did you mean settle?"),
        ("[guard]\nsettle = 'x'\n", "line 2: [guard] settle: give a number"),
        ("[guard]\nsettle = true\n", "line 2: [guard] settle: give a number"),
        ("[guard]\narena = 1\n", "line 2: [guard] arena: write true or false"),
        ("[guard]\nroots = 1\n", "line 2: [guard] roots: give a string, or a list of them"),
        ("[guard]\noutput = 'x'\n", "line 2: [guard] output: is for the command line only"),
        ("[verify]\nprofile = 'quik'\n", "line 2: [verify] profile:"),
        ("[leaks]\niterations = 1.5\n", "line 2: [leaks] iterations: give a whole number"),
        ("[profiles.ci.guard]\nsetle = 1\n", "line 2: [profiles.ci.guard] setle: unknown option; did you mean settle?"),
        ("[profiles.ci.leak]\n", "line 1: profiles.ci.leak: unknown key; did you mean leaks?"),
        ("profiles = 1\n", "line 1: profiles: write a table [profiles]"),
        ("guard = 1\n", "line 1: guard: write a table [guard]"),
        ("target = 1\n", "line 1: target: give the name of a target"),
        ("[targets]\nrefbox = 'x.toml'\n", "line 2: targets.refbox: a built-in target has this name"),
        ("[targets]\nmine = 1\n", "line 2: targets.mine: give the path of an adapter"),
        ("[targets]\n'a/b' = 'x'\n", "targets.a/b: a name has letters"),
        ("\n[[allow]]\nkind = 'fd'\n", "line 2: allow[0].reason: missing"),
        ("\n[[allow]]\nkind = 'df'\nreason = 'x'\n", "rule at line 2: unknown kind"),
        (
            "[[allow]]\nkind = 'fd'\nreason = 'x'\nmach = {}\n",
            "line 4: allow[0].mach: unknown key; did you mean match?",
        ),
        ("[[allow]]\nkind = 'fd'\nreason = 'x'\nexpires = 2020-01-01\n", "rule at line 1: expired on 2020-01-01"),
        ("allow = 1\n", "line 1: allow: write tables [[allow]]"),
        ("[guard]\nsettle = nan\n", "line 2: [guard] settle: give a number"),
        ("[profiles.ci]\nguard = 1\n", "line 2: profiles.ci.guard: write a table"),
        ("[[allow]]\nkind = 'fd'\nreason = 'x'\nmatch = { path = 1 }\n", "allow[0].match: write a table of patterns"),
        ("[[allow]]\nkind = 'fd'\nreason = ' '\n", "allow[0].reason: missing"),
        ("a = " + "[" * 5000, "nested too deeply"),
        ("[pytest]\nunknown = 'no'\n", "line 2: [pytest] unknown: write warn or fail"),
        ("[guard\n", "(at line 1, column 7)"),
    ],
)
def test_a_wrong_file_is_told_with_line_and_suggestion(here: Path, inside: Inside, text: str, message: str) -> None:
    (here / "leakcheck.toml").write_text(text)
    code, out, err = inside("config")
    assert (code, out) == (2, "")
    assert err.startswith(f"leakcheck: {here}/leakcheck.toml: ")
    assert message in err
    assert err.count("\n") == 1


def test_a_profile_that_is_not_there_is_told(here: Path) -> None:
    (here / "leakcheck.toml").write_text("[profiles.nightly.guard]\n")
    done = leakcheck("--profile", "nigthly", "guard", "true", cwd=here)
    assert done.returncode == 2
    assert "has no such profile; did you mean nightly?" in done.stderr
    assert leakcheck("--no-config", "--profile", "nightly", "guard", "true", cwd=here).returncode == 2


def test_the_help_and_what_needs_no_file_do_not_read_it(here: Path) -> None:
    (here / "leakcheck.toml").write_text("no TOML")
    for words in (["guard", "--help"], ["stress", "--help"], ["--version"], ["targets", "--help"]):
        assert leakcheck(*words, cwd=here).returncode == 0
    assert leakcheck("guard", "true", cwd=here).returncode == 2
