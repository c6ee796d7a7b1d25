"""Builds the helper programs; as a program, before maturin is there."""

import json
import os
import shutil
import subprocess
from pathlib import Path

__all__ = ["HELPERS", "build_helpers"]

# Package and program.
HELPERS = (("mkleak", "mkleak"), ("leakcheck-refbox", "refbox"), ("leakcheck-warden", "warden"))
ROOT = Path(__file__).resolve().parent.parent


def build_helpers():
    """Build the helpers, and copy them to ``leakcheck/_bin``."""
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


if __name__ == "__main__":
    build_helpers()
