"""PEP 517 and PEP 660 backend: maturin's hooks, after cargo has built the helper programs.

maturin packs one pyo3 module and no second binary (its issue 368). So the helpers are built first and copied to
``leakcheck/_bin``, from where the ``include`` list of pyproject.toml takes them into a wheel and an editable install
sees them in place.
"""

import json
import os
import shutil
import subprocess
from pathlib import Path

import maturin
from maturin import (
    build_sdist,
    get_requires_for_build_editable,
    get_requires_for_build_sdist,
    get_requires_for_build_wheel,
    prepare_metadata_for_build_editable,
    prepare_metadata_for_build_wheel,
)

__all__ = [
    "build_editable",
    "build_sdist",
    "build_wheel",
    "get_requires_for_build_editable",
    "get_requires_for_build_sdist",
    "get_requires_for_build_wheel",
    "prepare_metadata_for_build_editable",
    "prepare_metadata_for_build_wheel",
]

# Without Rust, maturin would fetch its own for the binding; the helpers would still find no cargo.
os.environ.setdefault("MATURIN_NO_INSTALL_RUST", "1")

# Package and program.
HELPERS = (("mkleak", "mkleak"), ("leakcheck-refbox", "refbox"), ("leakcheck-warden", "warden"))
ROOT = Path(__file__).resolve().parent.parent


def build_wheel(wheel_directory, config_settings=None, metadata_directory=None):
    """Build the helpers, then the wheel (PEP 517)."""
    _build_helpers()
    return maturin.build_wheel(wheel_directory, config_settings, metadata_directory)


def build_editable(wheel_directory, config_settings=None, metadata_directory=None):
    """Build the helpers, then the editable wheel (PEP 660)."""
    _build_helpers()
    return maturin.build_editable(wheel_directory, config_settings, metadata_directory)


def _build_helpers():
    if shutil.which("cargo") is None:
        raise SystemExit(
            "build leakcheck: no cargo on PATH; install Rust 1.88 or newer, or install a wheel, which does not need it"
        )
    # All at once: their features differ, and cargo would compile what they share for each of them.
    command = ["cargo", "build", "--release", "--locked", "--message-format=json-render-diagnostics"]
    for package, program in HELPERS:
        command += ["--package", package, "--bin", program]
    # For a named target, the flags do not hold for build scripts and macros, which cannot be static.
    if "CARGO_BUILD_TARGET" not in os.environ:
        command += ["--target", _output(["rustc", "--print", "host-tuple"]).strip()]
    # They map no library, so they run in any root, whatever C library it has. An arena shows the warden's processes,
    # and the files that they map can be opened there.
    flags = f"{os.environ.get('RUSTFLAGS', '')} -C target-feature=+crt-static -C strip=symbols"
    directory = ROOT / "leakcheck" / "_bin"
    for program in _programs(command, {**os.environ, "RUSTFLAGS": flags}):
        fresh = directory / f".{program.name}.new"
        shutil.copy2(program, fresh)
        # A running program cannot be written (ETXTBSY, open(2)), but a new file can take its name.
        fresh.replace(directory / program.name)


def _output(command, env=None):
    """Run a command in the checkout and return what it prints."""
    return subprocess.run(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, check=True, text=True).stdout


def _programs(command, env):
    """Run cargo and return the paths of the programs that it built."""
    # Where cargo puts a program depends on CARGO_TARGET_DIR, CARGO_BUILD_TARGET and its configuration: ask it.
    messages = map(json.loads, _output(command, env).splitlines())
    return [Path(message["executable"]) for message in messages if message.get("executable")]
