"""What we publish installs and works where there is no Rust."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent

pytestmark = pytest.mark.packaging


def run(*command: str | Path, env: dict[str, str] | None = None, cwd: Path = ROOT) -> str:
    done = subprocess.run(
        command, cwd=cwd, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert done.returncode == 0, f"{command} exited with {done.returncode}:\n{done.stdout}"
    return done.stdout


def build_env() -> dict[str, str]:
    # Third-party crates are compiled once for the checkout, the sdist and the tests.
    target = os.environ.get("CARGO_TARGET_DIR", str(ROOT / "target"))
    return os.environ | {"PATH": f"{BIN}:{os.environ['PATH']}", "CARGO_TARGET_DIR": target}


# `make setup` has built the checkout already, in place.
BUILT_OF = [pytest.param("the checkout", marks=pytest.mark.slow), "the sdist"]


@pytest.fixture(scope="module", params=BUILT_OF)
def wheel(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("dist")
    source = ROOT
    if request.param == "the sdist":
        if not (ROOT / ".git").exists():
            pytest.skip("an sdist is made of the files that git tracks, and this is no git checkout")
        hook = "import sys, leakcheck_build; print(leakcheck_build.build_sdist(sys.argv[1]))"
        run(sys.executable, "-c", hook, directory, env=build_env() | {"PYTHONPATH": str(ROOT / "build_backend")})
        (source,) = directory.glob("*.tar.gz")
    pip_wheel = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", directory]
    run(*pip_wheel, source, env=build_env())
    (built,) = directory.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def python_without_rust(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """Install the wheel into an empty environment; return its interpreter and the environment to use it in."""
    home = tmp_path_factory.mktemp("home")
    venv = home / "venv"
    run(sys.executable, "-m", "venv", venv)
    env = {name: value for name, value in os.environ.items() if not name.startswith(("CARGO", "RUST", "PYTHON"))}
    env |= {"PATH": str(venv / "bin"), "HOME": str(home)}
    assert not any(shutil.which(tool, path=env["PATH"]) for tool in ("cargo", "rustc", "rustup", "cc"))
    run(venv / "bin" / "python", "-m", "pip", "install", "--quiet", "--only-binary", ":all:", wheel, env=env, cwd=home)
    return venv / "bin" / "python", env


def test_one_wheel_serves_every_python_from_3_11(wheel: Path) -> None:
    assert "-cp311-abi3-linux_" in wheel.name


@pytest.mark.slow
def test_the_wheel_for_an_index_runs_with_glibc_2_28_and_names_no_path_of_its_builder(tmp_path: Path) -> None:
    copy = tmp_path / "leakcheck"
    run("git", "clone", "--quiet", ROOT, copy)
    shown = run("make", "wheel", cwd=copy, env=build_env())
    assert "manylinux_2_28_x86_64" in shown, shown
    (built,) = (copy / "dist").glob("*.whl")
    assert built.name.endswith("-cp311-abi3-manylinux_2_28_x86_64.whl")
    with zipfile.ZipFile(built) as archive:
        paths = [str(copy), os.environ.get("CARGO_HOME", str(Path.home() / ".cargo"))]
        named = [(file, path) for file in archive.namelist() for path in paths if path.encode() in archive.read(file)]
    assert not named


def test_the_wheel_holds_the_packages_and_nothing_of_the_tests(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        top = {name.split("/")[0] for name in archive.namelist()}
    assert {name for name in top if not name.endswith((".dist-info", ".data"))} == {"leakcheck", "injectors"}


def test_the_wheel_installs_the_manual_page(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        data = [name.partition(".data/")[2] for name in archive.namelist() if ".data/" in name]
    assert data == ["data/share/man/man1/leakcheck.1"]


def test_the_wheel_holds_every_adapter(wheel: Path) -> None:
    directory = "leakcheck/targets/adapters"
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if name.startswith(directory)}
    assert packed == {f"{directory}/{path.name}" for path in (ROOT / directory).iterdir()}


def test_the_native_module_is_the_installed_one_and_works_without_rust(
    python_without_rust: tuple[Path, dict[str, str]],
) -> None:
    python, env = python_without_rust
    code = "import leakcheck._native as n; print(n.__version__, n.__file__)"
    version, file = run(python, "-I", "-c", code, env=env, cwd=python.parent).split()
    assert version
    assert Path(file).is_relative_to(python.parent.parent)


def test_the_helper_programs_travel_with_the_wheel_and_run(python_without_rust: tuple[Path, dict[str, str]]) -> None:
    python, env = python_without_rust
    code = (
        "import subprocess; from leakcheck._bin import helper;"
        "print(helper('mkleak')); subprocess.run([helper('mkleak'), '--list'], check=True)"
    )
    path, *plants = run(python, "-I", "-u", "-c", code, env=env, cwd=python.parent).splitlines()
    assert Path(path).is_relative_to(python.parent.parent)
    assert plants


def test_the_command_is_installed(python_without_rust: tuple[Path, dict[str, str]]) -> None:
    python, env = python_without_rust
    assert "leakcheck" in run(python.with_name("leakcheck"), "--help", env=env, cwd=python.parent)


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="arenas of root; run as root")
@pytest.mark.parametrize("version", ["3.11", "3.12", "3.13", "3.14"])
def test_the_wheel_works_under_every_python_that_it_names(wheel: Path, version: str, tmp_path: Path) -> None:
    python = shutil.which(f"python{version}")
    # A shim of pyenv may be there without its Python.
    if python is None or subprocess.run([python, "-c", ""], capture_output=True, check=False).returncode != 0:
        pytest.skip(f"no python{version} on PATH")
    run(python, "-m", "venv", tmp_path / "venv")
    env = {"PATH": f"{tmp_path / 'venv/bin'}:/usr/sbin:/usr/bin:/sbin:/bin", "HOME": str(tmp_path)}
    env |= {name: value for name, value in os.environ.items() if name.startswith("PIP_")}
    run(tmp_path / "venv/bin/pip", "install", "--quiet", "--only-binary", ":all:", wheel, env=env, cwd=tmp_path)
    for words in (["--version"], ["guard", "--", "true"], ["guard", "--arena", "--", "true"]):
        run(tmp_path / "venv/bin/leakcheck", *words, env=env, cwd=Path("/"))  # an arena has a /tmp of its own


@pytest.mark.skipif(os.geteuid() != 0, reason="arenas of root; run as root")
def test_the_wheel_has_a_target_that_works_without_rust(python_without_rust: tuple[Path, dict[str, str]]) -> None:
    python, env = python_without_rust
    words = ["stress", "--submission", "python/hello python/exit", "--submissions", "4", "--json"]
    *_progress, told = run(python.with_name("leakcheck"), *words, env=env, cwd=python.parent).splitlines()
    result = json.loads(told)
    assert (result["target"], result["verdict"], result["outcomes"]) == ("refbox", "clean", {"clean": 4})
