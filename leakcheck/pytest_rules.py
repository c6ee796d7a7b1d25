"""The named default rules: what pytest, Python and common tools beside them keep on purpose.

What a Python process keeps until it exits is allowed by evidence, never by a name alone: the modules themselves hold
the process ids, descriptors and paths, which are this process's own children and files.
"""

import contextlib
import getpass
import glob
import os
import subprocess
import sys
import tempfile
from collections.abc import Generator, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from leakcheck import _native
from leakcheck.allow import AllowRule
from leakcheck.pytest_garbage import descriptors

_TRACKER = "python: multiprocessing's resource tracker, kept for the life of the process"
_FORK_SERVER = "python: multiprocessing's fork server, kept for the life of the process"
_TEMP = "python: multiprocessing's directory for sockets, removed when the process ends"
_UNREAPED = "python: an ended child that subprocess reaps when it starts the next one"
_LOOP = "pytest-asyncio: the event loop that it sets again after each test, kept for the life of the process"

_TMP_PATH = "pytest: tmp_path, of which it keeps the last three"
_CACHE = "pytest: cache directory"
_EXAMPLES = "hypothesis: database of examples"
_COVERAGE = "coverage: data file"
_BYTECODE = "python: compiled modules"

NAMES = frozenset({_TRACKER, _FORK_SERVER, _TEMP, _UNREAPED, _LOOP})
"""Reasons of the rules for what this process keeps, which not every test needs."""
OF_TOOLS = frozenset({_TMP_PATH, _CACHE, _EXAMPLES, _COVERAGE, _BYTECODE})
"""Reasons of the rules for what pytest and tools beside it write."""


def of_session(config: pytest.Config) -> list[AllowRule]:
    """Return rules for what pytest and common tools leave on purpose, and remove or reuse in later runs."""
    try:
        user = getpass.getuser()
    except (ImportError, OSError, KeyError):
        user = "unknown"
    usual = (Path(tempfile.gettempdir()) / f"pytest-of-{user}").resolve()
    root = os.environ.get("PYTEST_DEBUG_TEMPROOT")
    own = Path(config.getoption("basetemp", None) or (Path(root) / usual.name if root else usual)).resolve()
    # Sessions of the same user beside this one are there, and nothing ties an ordinary user's files to their maker. A
    # suite that is there itself is a test's.
    beside = [] if config.rootpath.is_relative_to(usual) else [usual]
    rules: dict[str, str] = {}
    for base in (glob.escape(str(place)) for place in (own, *beside)):
        rules[base] = rules[f"{base}/*"] = _TMP_PATH
    files: dict[str, str] = {}
    if config.pluginmanager.has_plugin("cacheprovider"):
        cache = glob.escape(str(config.rootpath / config.getini("cache_dir")))
        rules[cache] = rules[f"{cache}/[vd]"] = rules[f"{cache}/[vd]/*"] = _CACHE
        files |= {f"{cache}/{name}": _CACHE for name in ("README.md", ".gitignore", "CACHEDIR.TAG")}
    for place in {str(config.rootpath), str(config.invocation_params.dir)}:
        here = glob.escape(place)
        if "hypothesis" in sys.modules:
            rules[f"{here}/.hypothesis"] = rules[f"{here}/.hypothesis/*"] = _EXAMPLES
        if "coverage" in sys.modules:
            files |= {f"{here}/.coverage": _COVERAGE, f"{here}/.coverage.*": _COVERAGE}
    of_any = [AllowRule("file", {"path": path}, reason=reason) for path, reason in rules.items()]
    # A pattern's * matches a slash too, and nothing is below a file.
    of_files = [AllowRule("file", {"path": path, "class": "file"}, reason=reason) for path, reason in files.items()]
    return [*of_any, *of_files]


def compiled(config: pytest.Config) -> Iterator[AllowRule]:
    """Yield rules for compiled modules, where this process imports from now and nowhere else."""
    places = {str(config.rootpath), str(config.invocation_params.dir), *sys.path}
    for place in {os.path.realpath(place) for place in places}:
        if not any(f"{place}/".startswith(f"{root}/") for root in _native.DEFAULT_ROOTS):
            continue
        here = glob.escape(place)
        # Everybody's directories are below a root itself.
        below = [] if place in _native.DEFAULT_ROOTS else [f"{here}/*/__pycache__"]
        for cache in (f"{here}/__pycache__", *below):
            yield AllowRule("file", {"path": cache, "class": "dir"}, reason=_BYTECODE)
            # Python writes PATH.NUMBER first and renames it.
            for name in ("*.pyc", "*.pyc.[0-9]*[0-9]"):
                yield AllowRule("file", {"path": f"{cache}/{name}", "class": "file"}, reason=_BYTECODE)


def kept_for_life() -> Iterator[AllowRule]:
    """Yield rules for what the modules of this process keep now, by their own records."""
    tracker = _module("multiprocessing.resource_tracker", "_resource_tracker")
    argv = "*from multiprocessing.resource_tracker import main*"
    yield from _helper(_TRACKER, argv, getattr(tracker, "_pid", None), getattr(tracker, "_fd", None))
    server = _module("multiprocessing.forkserver", "_forkserver")
    argv = "*from multiprocessing.forkserver import main*"
    alive = getattr(server, "_forkserver_alive_fd", None)
    yield from _helper(_FORK_SERVER, argv, getattr(server, "_forkserver_pid", None), alive)
    address = getattr(server, "_forkserver_address", None)
    if isinstance(address, str) and address.startswith("/"):
        path = glob.escape(os.path.realpath(address))
        yield AllowRule("file", {"path": path, "class": "socket"}, reason=_FORK_SERVER)
        yield AllowRule("net", {"name": f"unix * {glob.escape(address)}"}, reason=_FORK_SERVER)
    process = sys.modules.get("multiprocessing.process")
    config: Mapping[str, Any] = getattr(process.current_process(), "_config", {}) if process is not None else {}
    temp = config.get("tempdir")
    if isinstance(temp, str):
        yield AllowRule("file", {"path": glob.escape(os.path.realpath(temp)), "class": "dir"}, reason=_TEMP)
    for child in getattr(subprocess, "_active", None) or ():
        # A child that still runs is a leak of the code that dropped it.
        yield AllowRule("process", {"pid": str(child.pid), "ppid": str(os.getpid()), "state": "Z"}, reason=_UNREAPED)
        if _has_ended(child.pid):
            # The next start of a child closes them too. Whoever sees the end of a child's output sees it before the
            # kernel ends the child, so a `Popen` may be dropped in between.
            for pipe in (child.stdin, child.stdout, child.stderr):
                yield from _pipe(_UNREAPED, pipe)
    yield from _event_loop()


@contextlib.contextmanager
def noting_loop(fixture: pytest.FixtureDef[Any]) -> Generator[None, None, None]:
    """Note which sockets appear while `fixture`, if it is pytest-asyncio's, makes asyncio's first event loop."""
    loop, _ = _loop_and_sockets() if fixture.func.__module__ == "pytest_asyncio.plugin" else (True, [])
    before = {} if loop else descriptors()
    yield
    if not loop:
        _of_first_loop.update(set(descriptors().values()) - set(before.values()))


_of_first_loop: set[str] = set()


def _event_loop() -> Iterator[AllowRule]:
    """Yield rules for the event loop that pytest-asyncio found none before, made, and has set again."""
    loop, sockets = _loop_and_sockets()
    if not sockets or not _of_first_loop:
        return
    now = descriptors()
    if all(now.get(one.fileno()) in _of_first_loop for one in sockets):
        for part in (*sockets, loop._selector):
            match = {"pid": str(os.getpid()), "fd": str(part.fileno()), "target": glob.escape(now[part.fileno()])}
            yield AllowRule("fd", match, reason=_LOOP)


def _loop_and_sockets() -> tuple[Any, list[Any]]:
    """Return this thread's event loop without making one, and what it wakes itself up by; uvloop shows none."""
    events = sys.modules.get("asyncio.events")
    loop = getattr(getattr(getattr(events, "_event_loop_policy", None), "_local", None), "_loop", None)
    sockets = [getattr(loop, name, None) for name in ("_ssock", "_csock")]
    return loop, sockets if all(sockets) else []


def _has_ended(pid: int) -> bool:
    try:
        return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    except ChildProcessError:  # Somebody else has reaped it.
        return True


def _pipe(reason: str, file: Any) -> Iterator[AllowRule]:
    """Yield a rule for a pipe that a file object of this process holds."""
    # It may be closed or detached.
    with contextlib.suppress(AttributeError, OSError, ValueError):
        number = file.fileno()
        if (link := descriptors().get(number, "")).startswith("pipe:["):
            yield AllowRule(
                "fd", {"pid": str(os.getpid()), "fd": str(number), "target": glob.escape(link)}, reason=reason
            )


def _module(name: str, attribute: str) -> object:
    return getattr(sys.modules.get(name), attribute, None)


def _helper(reason: str, argv: str, pid: object, fd: object) -> Iterator[AllowRule]:
    """Yield rules for a child of this process, and for the descriptor that keeps it."""
    if isinstance(pid, int):
        # A child that is not reaped keeps its id.
        yield AllowRule("process", {"pid": str(pid), "ppid": str(os.getpid()), "argv": argv}, reason=reason)
        yield AllowRule("fd", {"pid": str(pid)}, reason=reason)
    if isinstance(pid, int) and isinstance(fd, int):
        try:
            ino = os.fstat(fd).st_ino
        except OSError:
            return
        match = {"pid": str(os.getpid()), "fd": str(fd), "target": glob.escape(f"pipe:[{ino}]")}
        yield AllowRule("fd", match, reason=reason)
