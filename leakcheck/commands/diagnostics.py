"""``leakcheck diagnostics``: what a maintainer asks for after a failure, in one file, without secrets."""

import contextlib
import importlib.metadata
import io
import os
import platform
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from leakcheck import __version__, _native
from leakcheck.config import Config
from leakcheck.deliver import deliver, notify, output_to
from leakcheck.errors import LeakcheckError
from leakcheck.preflight import CHECKS, preflight
from leakcheck.redact import Redactor
from leakcheck.targets.registry import builtin

DEFAULT = "leakcheck-diagnostics.json"
_SHOWN = ("PATH", "LANG", "TERM", "SHELL", "TMPDIR", "CI", "PWD", "VIRTUAL_ENV")
_SHOWN_FROM = ("LC_", "LEAKCHECK_", "PYTHON", "XDG_", "REFBOX_")
"""Variables whose values help, and hold no secrets; of all others only the name is told."""
_MOST = 200_000
"""Bytes of a file that are taken."""
_FILES = (
    "/proc/version",
    "/etc/os-release",
    "/proc/self/cgroup",
    "/proc/self/mountinfo",
    "/proc/meminfo",
    "/proc/cmdline",
)


def diagnostics(config: Callable[[], Config], output: Path | None, store: Path | None) -> int:
    """Collect everything, save it, and print what is in it; returns 0 if it was saved.

    `config` reads the configuration; `store` is a store whose runs are listed.
    """
    path = output or Path(DEFAULT)
    redactor = Redactor(os.environ, Path.home())
    parts: dict[str, Callable[[], Any]] = {
        "leakcheck": _leakcheck,
        "machine": _machine,
        "environment": _environment,
        "doctor": lambda: msgspec.json.decode(_native.doctor(scope="host", kinds=None, roots=None)),
        "preflight": lambda: msgspec.to_builtins([*preflight([*CHECKS])]),
        "targets": _targets,
        "configuration": lambda: _configuration(config()),
        "runs": lambda: _runs(store),
    }
    with output_to(path) as place:
        collected: dict[str, Any] = {"schema": "leakcheck.diagnostics/1"}
        for name, collect in parts.items():
            collected[name] = redactor.clean(_collected(collect))
        text = msgspec.json.format(msgspec.json.encode(collected)).decode()

        def show() -> None:
            notify(f"{path}: {', '.join(parts)}; {redactor.count} values redacted")
            notify("read it before you send it: it names files, processes and mounts of this machine")

        return deliver(0, text, place, show)


def _collected(collect: Callable[[], Any]) -> Any:
    """Return a part, or why it could not be had: the others are wanted all the same."""
    try:
        return collect()
    except (LeakcheckError, OSError, ValueError) as error:
        return {"error": f"{type(error).__name__}: {error}"}


def _leakcheck() -> dict[str, Any]:
    packages = sorted(
        f"{one.metadata['Name']} {one.version}" for one in importlib.metadata.distributions() if one.metadata["Name"]
    )
    return {
        "version": __version__,
        "python": sys.version,
        "executable": sys.executable,
        "package": str(Path(__file__).parents[1]),
        "packages": packages,
    }


def _machine() -> dict[str, Any]:
    files = {}
    for name in _FILES:
        with contextlib.suppress(OSError), Path(name).open("rb") as file:
            files[name] = file.read(_MOST).decode(errors="replace").splitlines()
    free = os.statvfs(".")
    return {
        "uname": " ".join((platform.system(), platform.release(), platform.version(), platform.machine())),
        "cpus": os.cpu_count(),
        "load": os.getloadavg(),
        "uid": os.geteuid(),
        "free_bytes_here": free.f_bavail * free.f_frsize,
        "files": files,
    }


def _environment() -> dict[str, Any]:
    shown = {name for name in os.environ if name in _SHOWN or name.startswith(_SHOWN_FROM)}
    return {
        "values": {name: os.environ[name] for name in sorted(shown)},
        "only_names": sorted(os.environ.keys() - shown),
    }


def _targets() -> list[dict[str, str]]:
    states = [(target.name, target.availability()) for target in builtin()]
    return [{"name": name, "state": one.state, "reason": one.reason} for name, one in states]


def _configuration(config: Config) -> dict[str, Any]:
    if config.path is None:
        return {"file": None}
    own = config.text if config.path.name != "pyproject.toml" else "only [tool.leakcheck] of it is in table"
    return {"file": str(config.path), "text": own.splitlines(), "table": msgspec.to_builtins(config.table)}


def _runs(store: Path | None) -> Any:
    from leakcheck.commands.evidence import list_runs

    if store is None or not store.exists():
        return {"store": None}
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        list_runs(store, as_json=True)
    return msgspec.json.decode(printed.getvalue())
