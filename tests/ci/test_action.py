"""The action and the workflow: valid, and each shell step does what it says."""

import os
import re
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

ROOT = Path(__file__).parents[2]
ACTION = ROOT / "action.yml"
WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))
EXPRESSION = re.compile(r"\$\{\{ *([\w.-]+) *\}\}")


def load(file: Path) -> Any:
    return YAML(typ="safe").load(file.read_text())


@pytest.mark.parametrize(
    ("schema", "file"), [("github-actions", ACTION), *(("github-workflows", file) for file in WORKFLOWS)], ids=str
)
def test_it_fits_the_public_schema(schema: str, file: Path) -> None:
    # The schemas come with the package.
    words = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", f"vendor.{schema}", str(file)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout


def test_no_input_is_pasted_into_a_script() -> None:
    # Whoever chooses an input would choose what runs.
    scripts = [step["run"] for step in load(ACTION)["runs"]["steps"] if "run" in step]
    assert scripts
    assert [script for script in scripts if "${{" in script] == []


def test_the_workflow_gives_the_action_inputs_that_it_has_and_parts_the_whole_plan() -> None:
    job = load(ROOT / ".github/workflows/reliability.yml")["jobs"]["verify"]
    (given,) = [step["with"] for step in job["steps"] if step.get("uses") == "./"]
    assert set(given) <= set(load(ACTION)["inputs"])
    shards = [one for shard in job["strategy"]["matrix"]["include"] for one in shard["only"].split(",")]
    assert sorted(shards) == [f"R{number}" for number in range(1, 9)]


class Runner:
    """Runs the shell steps of the action, one after the other, as a runner does."""

    def __init__(self, directory: Path, path: Path, **inputs: str) -> None:
        self.directory = directory
        self._path = path
        self.action = load(ACTION)
        given = {name: one.get("default", "") for name, one in self.action["inputs"].items()}
        assert set(inputs) <= {name.replace("-", "_") for name in given}
        self.known = {f"inputs.{name}": inputs.get(name.replace("-", "_"), value) for name, value in given.items()}
        self.known |= {"github.action_path": str(ROOT), "runner.temp": str(directory)}
        self.printed = ""

    def run(self) -> int:
        """Return the exit code of the first step that fails, or 0."""
        for step in self.action["runs"]["steps"]:
            if "run" in step and (code := self._step(step)):
                return code
        return 0

    @property
    def outputs(self) -> Mapping[str, str]:
        return {name: self._filled(one["value"]) for name, one in self.action["outputs"].items()}

    @property
    def summary(self) -> str:
        return (self.directory / "summary").read_text()

    def _step(self, step: Mapping[str, Any]) -> int:
        assert step["shell"] == "bash"
        output = self.directory / "output"
        output.write_text("")
        (self.directory / "summary").touch()
        environment = {name: self._filled(value) for name, value in step["env"].items()}
        done = subprocess.run(
            # As a runner runs the shell `bash`.
            ["bash", "--noprofile", "--norc", "-e", "-o", "pipefail", "-c", step["run"]],
            cwd=self.directory,
            env={
                **os.environ,
                **environment,
                "PATH": f"{self._path}:{os.environ['PATH']}",
                "GITHUB_OUTPUT": str(output),
                "GITHUB_STEP_SUMMARY": str(self.directory / "summary"),
            },
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=300,
            check=False,
        )
        self.printed += done.stdout
        for line in output.read_text().splitlines():
            name, _, value = line.partition("=")
            self.known[f"steps.{step['id']}.outputs.{name}"] = value
        return done.returncode

    def _filled(self, text: str) -> str:
        return EXPRESSION.sub(lambda match: self.known[match[1]], text)


@pytest.fixture
def here(tmp_path: Path) -> Path:
    (tmp_path / ".git").mkdir()
    return tmp_path


@pytest.fixture
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a `leakcheck` that this Python runs."""
    found = tmp_path_factory.mktemp("path")
    (found / "leakcheck").write_text(f'#!/bin/sh\nexec {sys.executable} -m leakcheck "$@"\n')
    (found / "leakcheck").chmod(0o755)
    return found


def test_a_command_that_leaves_nothing_passes(here: Path, path: Path) -> None:
    (here / "leakcheck.toml").write_text("[guard]\nkinds = 'process'\nsettle = 0.05\n")
    runner = Runner(here, path, version="installed", command="true && printf 'it ran'")
    assert runner.run() == 0, runner.printed
    assert "it ran" in runner.printed
    assert runner.outputs == {"exit-code": "0", "report": "leakcheck-report"}
    found = {file.suffix for file in (here / "leakcheck-report").iterdir()}
    assert found == {".html", ".xml", ".sarif", ".md", ".json"}
    assert "clean" in runner.summary


def test_a_command_that_leaves_something_fails_and_one_that_fails_keeps_its_code(here: Path, path: Path) -> None:
    (here / "other.toml").write_text(f"[guard]\nkinds = 'file'\nroots = {str(here)!r}\nsettle = 0.05\n")
    leaking = Runner(here, path, version="installed", config="other.toml", command="touch 'a leak'; exit 7")
    assert leaking.run() == 1, leaking.printed
    assert "::error::leakcheck: something was left behind" in leaking.printed
    assert leaking.outputs["exit-code"] == "1"
    failing = Runner(here, path, version="installed", config="other.toml", command="false | true")
    assert failing.run() == 1
    failing = Runner(here, path, version="installed", config="other.toml", command="exit 7")
    assert failing.run() == 7


def test_a_target_is_verified_with_all_reports_and_a_summary(here: Path, path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("verify needs root")
    runner = Runner(here, path, version="installed", target="refbox", only="R6")
    assert runner.run() == 0, runner.printed
    found = {file.suffix for file in (here / "leakcheck-report").iterdir()}
    assert found == {".html", ".xml", ".sarif", ".md", ".json"}
    (title,) = [line for line in runner.summary.splitlines() if line.startswith(("# ", "## "))][:1]
    assert runner.summary.count(title) == 1
    assert "R6" in runner.summary


def test_unknown_passes_only_if_that_is_asked_for(here: Path, path: Path) -> None:
    # A guard that may not see other users' processes.
    stub = path / "leakcheck"
    stub.write_text('#!/bin/sh\n[ "$1" = --version ] || exit 3\n')
    runner = Runner(here, path, version="installed", command="true")
    assert runner.run() == 3
    assert Runner(here, path, version="installed", command="true", allow_unknown="true").run() == 0


def test_a_command_whose_own_code_is_that_of_unknown_does_not_pass(here: Path, path: Path) -> None:
    (here / "leakcheck.toml").write_text("[guard]\nkinds = 'process'\nsettle = 0.05\n")
    runner = Runner(here, path, version="installed", command="exit 3", allow_unknown="true")
    assert runner.run() == 3, runner.printed
    assert "::error::the command ended with exit 3" in runner.printed


def test_wrong_inputs_are_told(here: Path, path: Path) -> None:
    both = Runner(here, path, version="installed", command="true", target="refbox")
    assert both.run() == 2
    assert "::error::target and command: give one of the two" in both.printed
    unknown = Runner(here, path, version="installed", target="x; touch pwned")
    assert unknown.run() == 2
    assert not (here / "pwned").exists()
    assert "unknown target" in unknown.printed


def test_an_ordinary_user_runs_the_command_without_sudo(here: Path, path: Path) -> None:
    (path / "sudo").write_text("#!/bin/sh\nexit 1\n")
    (path / "sudo").chmod(0o755)
    (path / "id").write_text("#!/bin/sh\necho 1000\n")
    (path / "id").chmod(0o755)
    (here / "leakcheck.toml").write_text("[guard]\nkinds = 'process'\nsettle = 0.05\n")
    runner = Runner(here, path, version="installed", command="true")
    assert runner.run() == 0, runner.printed


def test_as_an_ordinary_user_it_runs_as_root_where_sudo_asks_for_no_password(here: Path, path: Path) -> None:
    for name, script in {
        "sudo": 'echo "sudo $*" >>log; shift; [ "$1" != -E ] || shift; exec "$@"',
        "id": "echo 1000",
    }.items():
        (path / name).write_text(f"#!/bin/sh\n{script}\n")
        (path / name).chmod(0o755)
    (here / "leakcheck.toml").write_text("[guard]\nkinds = 'process'\nsettle = 0.05\n")
    (path / "chown").write_text("#!/bin/sh\n")
    (path / "chown").chmod(0o755)
    runner = Runner(here, path, version="installed", command="true")
    assert runner.run() == 0, runner.printed
    log = (here / "log").read_text()
    assert "env PATH=" in log
    assert "sudo -n chown -R 1000:1000 leakcheck-report" in log
    never = Runner(here, path, version="installed", command="true", sudo="never")
    (here / "log").unlink()
    assert never.run() == 0
    assert not (here / "log").exists()


@pytest.mark.slow  # It installs what leakcheck needs into a new environment.
def test_a_wheel_that_the_input_names_is_installed_and_used(
    here: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    wheel = packed(tmp_path_factory.mktemp("wheels"))
    (here / "leakcheck.toml").write_text("[guard]\nkinds = 'process'\nsettle = 0.05\n")
    runner = Runner(here, tmp_path_factory.mktemp("path"), version=str(wheel), command="true")
    assert runner.run() == 0, runner.printed
    assert str(here / "leakcheck-venv/bin/leakcheck") == runner.known["steps.install.outputs.path"]


def packed(directory: Path) -> Path:
    """Return a wheel of this checkout as it is built (PEP 427); tests/packaging builds one from nothing."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    files = [one for top in ("leakcheck", "injectors") for one in (ROOT / top).rglob("*") if one.is_file()]
    about = "sandbox_leakcheck-0.dist-info"
    requires = "".join(f"Requires-Dist: {one}\n" for one in project["dependencies"])
    written = {
        "METADATA": f"Metadata-Version: 2.1\nName: sandbox-leakcheck\nVersion: 0\n{requires}",
        "WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        "entry_points.txt": f"[console_scripts]\nleakcheck = {project['scripts']['leakcheck']}\n",
    }
    wheel = directory / "sandbox_leakcheck-0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        names = [str(one.relative_to(ROOT)) for one in files]
        for file, name in zip(files, names, strict=True):
            archive.write(file, name)
        for name, text in written.items():
            archive.writestr(f"{about}/{name}", text)
        record = [*names, *(f"{about}/{name}" for name in written), f"{about}/RECORD"]
        archive.writestr(f"{about}/RECORD", "".join(f"{name},,\n" for name in record))
    return wheel
