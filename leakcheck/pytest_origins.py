"""Where a test makes what it leaves: file and line, noted by an audit hook (PEP 578) while a guarded test runs.

The line is that of the innermost frame outside the standard library and the installed packages. A hook cannot be
removed, so there is one for the process, and it does nothing while no test is guarded.
"""

import contextlib
import os
import site
import subprocess
import sys
import sysconfig
import threading
import weakref
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import _pytest.runner
import msgspec

from leakcheck.report import Leak, Report

MOST = 10_000
"""How many notes of each sort a test has at most: the oldest are dropped."""

_Line: TypeAlias = tuple[str, int]

# A test's code runs below this one's frames.
_RUNNER = _pytest.runner.__file__
_ROOTS = {sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")}
_ROOTS |= {site.getusersitepackages(), *site.getsitepackages(), str(Path(__file__).parent)}
# Code without a file is called <string> or <frozen …>.
_INSTALLED = ("<", *(f"{root}/" for root in _ROOTS))
_outside: dict[str, bool] = {}


class Origins:
    """The notes of one test."""

    def __init__(self) -> None:
        self._made: dict[str, _Line] = {}
        self._opened: dict[str, _Line] = {}
        self._forked: dict[int, _Line] = {}
        self._spawned: dict[str, _Line] = {}
        self._objects: deque[tuple[weakref.ref[Any], _Line]] = deque(maxlen=MOST)

    def begin(self) -> None:
        """Note from now on."""
        global _noting, _installed
        if not _installed:
            _installed = True
            sys.addaudithook(_hook)
            os.register_at_fork(after_in_parent=_forked)
        _noting = self

    def end(self) -> None:
        """Note no more."""
        global _noting
        if _noting is self:
            _noting = None

    def tell(self, report: Report, root: str) -> Report:
        """Return `report` with ``made_at`` in the evidence of each leak with a note; paths are relative to `root`.

        Residue that nothing else attributes is the test's if this process noted that it made it.
        """
        if not report.leaks and not report.unattributed:
            return report
        pids, inodes = self._living()
        made, opened = _resolved(self._made), _resolved(self._opened)

        def place(leak: Leak) -> tuple[_Line | None, bool]:
            fields = leak.evidence.get("resource", {})
            match leak.kind:
                case "file":
                    line = made.get(str(fields.get("path")))
                    return line, line is not None
                case "process" if fields.get("ppid") == os.getpid():
                    line = pids.get(fields.get("pid")) or self._spawned.get(str(leak.evidence.get("argv")))
                    return line, line is not None
                case "net":
                    line = inodes.get(f"socket:[{fields.get('number')}]")
                    return line, line is not None
                case "fd" if fields.get("pid") == os.getpid():
                    target = str(fields.get("target"))
                    path = target.removesuffix(" (deleted)")
                    return inodes.get(target) or opened.get(path) or made.get(path), False
            return None, False

        leaks: list[Leak] = []
        unattributed: list[Leak] = []
        for found, rest in ((report.leaks, leaks), (report.unattributed, unattributed)):
            for leak in found:
                line, mine = place(leak)
                changes: dict[str, Any] = {}
                if line is not None:
                    changes["evidence"] = {**leak.evidence, "made_at": _shown(line, root)}
                if mine and leak.attribution == "none":
                    changes["attribution"] = "creator"
                (leaks if mine else rest).append(msgspec.structs.replace(leak, **changes))
        verdict = "leaked" if leaks else report.verdict
        return msgspec.structs.replace(report, leaks=leaks, unattributed=unattributed, verdict=verdict)

    def _living(self) -> tuple[dict[int, _Line], dict[str, _Line]]:
        """Return the lines of children by pid, and those of sockets and pipes by what a descriptor's link shows."""
        pids, inodes = dict(self._forked), {}
        for reference, line in list(self._objects):
            made = reference()
            if isinstance(made, subprocess.Popen):
                pids[made.pid] = line
            files = (made.stdin, made.stdout, made.stderr) if isinstance(made, subprocess.Popen) else (made,)
            for file in filter(None, files):
                # It may be closed, and its class may be the test's own.
                with contextlib.suppress(Exception):
                    number = os.fstat(file.fileno()).st_ino
                    inodes[f"pipe:[{number}]"] = inodes[f"socket:[{number}]"] = line
        return pids, inodes

    def made(self, path: object, relative_to: object = -1) -> None:
        """Note what a call is about to make at `path`, unless something is there."""
        if (text := _text(path, relative_to)) is not None and not os.path.lexists(text):
            _note(self._made, text)

    def opened(self, path: object, _mode: object = None, flags: object = 0) -> None:
        """Note an open(2)."""
        if isinstance(flags, int) and flags & os.O_CREAT:
            self.made(path)
        if (text := _text(path)) is not None:
            _note(self._opened, text)

    def renamed(self, source: object, target: object, *relative_to: object) -> None:
        """Note that what this test made, with what is below it, gets another name."""
        if len(relative_to) != 2:
            return
        old, new = _text(source, relative_to[0]), _text(target, relative_to[1])
        if old is None or new is None:
            return
        for path in self._below(old):
            self._made[new + path.removeprefix(old)] = self._made.pop(path)

    def removed(self, path: object, relative_to: object = -1) -> None:
        """Forget what is removed: another process may use the name again."""
        if (text := _text(path, relative_to)) is not None:
            for gone in self._below(text):
                del self._made[gone]

    def _below(self, path: str) -> list[str]:
        """Return `path` and what is below it, as far as the test made it."""
        below = [one for one in self._made if one.startswith(f"{path}/")] if Path(path).is_dir() else []
        return [path, *below] if path in self._made else below

    def linked(self, _source: object, target: object, *relative_to: object) -> None:
        """Note a link or a symbolic link."""
        self.made(target, relative_to[-1] if relative_to else -1)

    def bound(self, _socket: object, address: object) -> None:
        """Note the file of a Unix socket."""
        if isinstance(address, (str, bytes)) and address[:1] not in ("", b"", "\0", b"\0"):
            self.made(address)

    def opened_database(self, path: object) -> None:
        """Note the file of an SQLite database."""
        if path != ":memory:":
            self.made(path)

    def made_object(self, made: object, *_rest: object) -> None:
        """Note a socket or a `Popen`, which tells its number later."""
        if (line := _line()) is not None:
            self._objects.append((weakref.ref(made), line))

    def started(self, *_arguments: object) -> None:
        """Note a `subprocess.Popen`, which is a local variable of the method that calls the hook."""
        frame: Any = sys._getframe()
        while frame is not None and frame.f_code.co_name != "_execute_child":
            frame = frame.f_back
        if frame is not None and (popen := frame.f_locals.get("self")) is not None:
            self.made_object(popen)

    def spawned(self, _path: object, argv: object, *_rest: object) -> None:
        """Note a posix_spawn(3) by its arguments: the hook is called before there is a pid."""
        if isinstance(argv, (list, tuple)):
            _note(self._spawned, " ".join(os.fsdecode(one) for one in argv))

    def forked(self) -> None:
        """Note the newest child of this thread: the kernel lists children in the order of their birth."""
        children = Path(f"/proc/self/task/{threading.get_native_id()}/children").read_bytes().split()
        if children:
            _note(self._forked, int(children[-1]))


_HANDLERS: dict[str, Callable[..., None]] = {
    "open": Origins.opened,
    "os.mkdir": lambda notes, path, _mode, at: notes.made(path, at),
    "os.rename": Origins.renamed,
    "os.link": Origins.linked,
    "os.symlink": Origins.linked,
    "os.remove": Origins.removed,
    "os.rmdir": Origins.removed,
    "shutil.rmtree": Origins.removed,
    "os.posix_spawn": Origins.spawned,
    "socket.__new__": Origins.made_object,
    "socket.bind": Origins.bound,
    "sqlite3.connect": Origins.opened_database,
    "subprocess.Popen": Origins.started,
}
_noting: Origins | None = None
_installed = False


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if _noting is None or (handler := _HANDLERS.get(event)) is None:
        return
    # An exception here would become the test's own; without a note, the report only has no line.
    with contextlib.suppress(Exception):
        handler(_noting, *arguments)


def _forked() -> None:
    if _noting is not None:
        with contextlib.suppress(Exception):
            _noting.forked()


def _note(notes: dict[Any, _Line], key: object) -> None:
    if (line := _line()) is None:
        return
    if len(notes) >= MOST:
        del notes[next(iter(notes))]
    notes[key] = line


def _line() -> _Line | None:
    """Return the innermost line that belongs to neither Python, an installed package nor leakcheck."""
    frame: Any = sys._getframe(1)
    while frame is not None:
        file = frame.f_code.co_filename
        outside = _outside.get(file)
        if outside is None:
            outside = _outside[file] = not file.startswith(_INSTALLED)
        if outside:
            return file, frame.f_lineno
        if file == _RUNNER:
            return None
        frame = frame.f_back
    return None


def _text(path: object, relative_to: object = -1) -> str | None:
    """Return `path` as absolute text; None for a descriptor, or a path relative to one."""
    if isinstance(path, int) or not isinstance(path, (str, bytes, os.PathLike)):
        return None
    text = os.fsdecode(path)
    if text.startswith("/"):
        return text
    return f"{Path.cwd()}/{text}" if relative_to == -1 else None


def _resolved(notes: dict[str, _Line]) -> dict[str, _Line]:
    """Return the notes by the path that the kernel shows: without links in the directory part."""
    directories: dict[str, str] = {}
    out = {}
    for path, line in list(notes.items()):
        directory, name = os.path.split(path.rstrip("/"))
        if directory not in directories:
            directories[directory] = os.path.realpath(directory)
        out[f"{directories[directory].rstrip('/')}/{name}"] = line
    return out


def _shown(line: _Line, root: str) -> str:
    file, number = line
    inside = file.startswith(f"{root}/")
    return f"{os.path.relpath(file, root) if inside else file}:{number}"
