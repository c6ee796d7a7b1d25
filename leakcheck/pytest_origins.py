"""Where a test makes what it leaves: file and line, noted by an audit hook (PEP 578) while a guarded test runs.

The line is that of the innermost frame outside the standard library and the installed packages. A hook cannot be
removed, so there is one for the process, and it does nothing while no test is guarded. The same holds for the functions
of `os` that raise no audit event.

A wrong line is worse than none. The hook is called before the kernel is, so a note holds only once the thread's next
event finds the new file there, with its inode. What several lines may have made has no line.
"""

import contextlib
import functools
import os
import re
import site
import stat
import subprocess
import sys
import sysconfig
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import _pytest.runner
import msgspec

from leakcheck.report import Leak, Report

MOST = 10_000
"""How many notes of each sort a test has at most: the oldest are dropped."""

OFTEN = 32
"""How often a test's calls that may make one path are looked at. To look takes two system calls without the GIL, which
costs most where many threads wait for it: those that try to take a lock file in a loop."""

_Line: TypeAlias = tuple[str, int]
_Seen: TypeAlias = tuple[int, int]
"""The inode of a new file, and when it was seen, in ns since the epoch. Whoever makes the file again may get the inode,
and later birth."""
_T = TypeVar("_T")

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
        self._made: dict[str, tuple[_Line, _Seen | None]] = {}
        # How many calls may have made a path.
        self._tries: dict[str, int] = {}
        self._opened: dict[str, _Line | None] = {}
        self._forked: dict[int, _Line | None] = {}
        self._spawned: dict[str, _Line | None] = {}
        self._pipes: dict[str, _Line | None] = {}
        self._objects: deque[tuple[weakref.ref[Any], _Line]] = deque(maxlen=MOST)
        # By thread: what its last event was about to make.
        self._pending: dict[int, Callable[[], None]] = {}
        self._children: dict[int, set[bytes]] = {}

    def begin(self) -> None:
        """Note from now on."""
        global _noting, _installed
        if not _installed:
            _installed = True
            sys.addaudithook(_hook)
            os.register_at_fork(before=_forking, after_in_parent=_forked)
            _wrap("pipe", Origins.made_pipe)
            _wrap("pipe2", Origins.made_pipe)
            _wrap("mkfifo", Origins.made_node)
            _wrap("mknod", Origins.made_node)
        _noting = self

    def end(self) -> None:
        """Note no more."""
        global _noting
        if _noting is self:
            _noting = None
        for thread in list(self._pending):
            self.settle(thread)

    def settle(self, thread: int) -> None:
        """Look for what the thread's last event was about to make: it is there, or was not made."""
        if (look := self._pending.pop(thread, None)) is not None:
            look()

    def tell(self, report: Report, root: str) -> Report:
        """Return `report` with ``made_at`` in the evidence of each leak with a note; paths are relative to `root`.

        Residue that nothing else attributes is the test's if this process noted that it made it.
        """
        if not report.leaks and not report.unattributed:
            return report
        pids, inodes = self._living()
        made, opened = _resolved(self._made), _resolved(self._opened)
        own = os.getpid()

        def place(leak: Leak) -> tuple[_Line | None, bool]:
            fields = leak.evidence.get("resource", {})
            match leak.kind:
                case "file":
                    line, seen = made.get(str(fields.get("path"))) or (None, None)
                    # An SQLite database is made when it is first written.
                    mine = line is not None and (seen is None or _is_that(seen, fields))
                    return line if mine else None, mine
                case "process" if fields.get("ppid") == own:
                    pid = fields.get("pid")
                    line = pids[pid] if pid in pids else self._spawned.get(_words(leak.evidence))
                    return line, line is not None
                case "net":
                    line = inodes.get(f"socket:[{fields.get('number')}]")
                    return line, line is not None
                case "fd" if fields.get("pid") == own:
                    target = str(fields.get("target"))
                    return inodes.get(target) or opened.get(target.removesuffix(" (deleted)")), False
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

    def _living(self) -> tuple[dict[int, _Line | None], dict[str, _Line | None]]:
        """Return the lines of children by pid, and those of sockets and pipes by what a descriptor's link shows."""
        pids, inodes = dict(self._forked), dict(self._pipes)
        for reference, line in list(self._objects):
            made = reference()
            if isinstance(made, subprocess.Popen):
                if made.returncode is None:
                    _set(pids, made.pid, line)
                continue
            # It may be closed, and its class may be the test's own.
            with contextlib.suppress(Exception):
                if (link := _link(made.fileno())) is not None:  # type: ignore[union-attr]
                    _set(inodes, link, line)
        return pids, inodes

    def made(self, path: object, relative_to: object = -1) -> None:
        """Note what a call is about to make at `path`, unless something is there."""
        text = _text(path, relative_to)
        if text is not None and self._is_absent(text) and (line := _line()) is not None:
            self._make(text, line)

    def _is_absent(self, path: str) -> bool:
        """Whether nothing is at `path`. After `OFTEN` calls for it that is not asked: what they make has no line."""
        tries = self._tries.get(path, 0)
        if tries >= OFTEN:
            return False
        _bound(self._tries)
        self._tries[path] = tries + 1
        return not os.path.lexists(path)

    def _make(self, path: str, line: _Line) -> None:
        """Note what the call makes at `path` once it is there."""

        def look() -> None:
            with contextlib.suppress(OSError):
                self.made_file(path, line, _seen(path))

        self._wait(look)

    def made_file(self, path: str, line: _Line, seen: _Seen | None) -> None:
        """Note a new file; without `seen` as long as it is not there."""
        _bound(self._made)
        self._made[path] = line, seen

    def made_pipe(self, made: object, *_arguments: object) -> None:
        """Note a pipe."""
        if isinstance(made, tuple) and (link := _link(made[0])) is not None:
            _note(self._pipes, link)

    def made_node(self, _made: object, path: object, *_rest: object, dir_fd: object = None, **_more: object) -> None:
        """Note a FIFO or a device."""
        text, line = _text(path, -1 if dir_fd is None else dir_fd), _line()
        if text is not None and line is not None:
            self.made_file(text, line, _seen(text))

    def _wait(self, look: Callable[[], None]) -> None:
        """Call `look` at this thread's next event: nothing here may raise one afterwards, such as `sys._getframe`."""
        self._pending[threading.get_ident()] = look

    def opened(self, path: object, _mode: object = None, flags: object = 0) -> None:
        """Note an open(2)."""
        if not isinstance(flags, int) or (text := _text(path)) is None or (line := _line()) is None:
            return
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            before = _unnamed()

            def look() -> None:
                # Another thread may have made one as well.
                if len(new := _unnamed() - before) == 1:
                    _set(self._opened, new.pop(), line)

            self._wait(look)
            return
        _set(self._opened, text, line)
        if flags & os.O_CREAT and self._is_absent(text):
            self._make(text, line)

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
            self._made.pop(text, None)

    def removed_tree(self, path: object, relative_to: object = -1) -> None:
        """Forget a tree, whose single paths are removed relative to a descriptor."""
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
        """Note the file of an SQLite database, which is made when it is first written."""
        if (text := _text(path)) is not None and path != ":memory:" and (line := _line()) is not None:
            _note(self._opened, text)
            if not os.path.lexists(text):
                self.made_file(text, line, None)

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
            _note(self._spawned, "\0".join(os.fsdecode(one) for one in argv))

    def forking(self) -> None:
        """Note the children that this thread has before it forks."""
        self._children[threading.get_ident()] = _children()

    def forked(self) -> None:
        """Note the child that this thread has now: another one may have ended already."""
        new = _children() - self._children.pop(threading.get_ident(), set())
        if len(new) == 1:
            _note(self._forked, int(new.pop()))


_HANDLERS: dict[str, Callable[..., None]] = {
    "open": Origins.opened,
    "os.mkdir": lambda notes, path, _mode, at: notes.made(path, at),
    "os.rename": Origins.renamed,
    "os.link": Origins.linked,
    "os.symlink": Origins.linked,
    "os.remove": Origins.removed,
    "os.rmdir": Origins.removed,
    "shutil.rmtree": Origins.removed_tree,
    "os.posix_spawn": Origins.spawned,
    "socket.__new__": Origins.made_object,
    "socket.bind": Origins.bound,
    "sqlite3.connect": Origins.opened_database,
    "subprocess.Popen": Origins.started,
}
_noting: Origins | None = None
_installed = False


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    notes = _noting
    if notes is None:
        return
    # An exception here would become the test's own; without a note, the report only has no line. Some suites raise a
    # million events, and contextlib.suppress would take half of the time of most of them.
    try:
        if notes._pending:
            notes.settle(threading.get_ident())
        if (handler := _HANDLERS.get(event)) is not None:
            handler(notes, *arguments)
    except Exception:  # noqa: BLE001, S110
        pass


def _forking() -> None:
    if _noting is not None:
        with contextlib.suppress(Exception):
            _noting.forking()


def _forked() -> None:
    if _noting is not None:
        with contextlib.suppress(Exception):
            _noting.forked()


def _wrap(name: str, note: Callable[..., None]) -> None:
    """Let a function of `os` note what it made."""
    function = getattr(os, name)

    @functools.wraps(function)
    def noted(*arguments: Any, **named: Any) -> Any:
        made = function(*arguments, **named)
        if _noting is not None:
            with contextlib.suppress(Exception):
                note(_noting, made, *arguments, **named)
        return made

    setattr(os, name, noted)


def _note(notes: dict[Any, _Line | None], key: object) -> None:
    if (line := _line()) is not None:
        _set(notes, key, line)


def _set(notes: dict[Any, _Line | None], key: object, line: _Line) -> None:
    """Note a line, or that it may be either of two."""
    _bound(notes)
    notes[key] = line if notes.get(key, line) == line else None


def _bound(notes: dict[Any, Any]) -> None:
    if len(notes) >= MOST:
        del notes[next(iter(notes))]


def _seen(path: str) -> _Seen:
    return os.lstat(path).st_ino, time.time_ns()


def _is_that(seen: _Seen, fields: Mapping[str, Any]) -> bool:
    inode, when = seen
    birth = fields.get("birth")
    return inode == fields.get("ino") and (not isinstance(birth, int) or birth <= when)


def _link(number: int) -> str | None:
    """Return what the link of a pipe's or a socket's descriptor shows."""
    found = os.fstat(number)
    kind = "pipe" if stat.S_ISFIFO(found.st_mode) else "socket" if stat.S_ISSOCK(found.st_mode) else None
    return kind and f"{kind}:[{found.st_ino}]"


def _unnamed() -> set[str]:
    """Return the open files that never had a name: O_TMPFILE of open(2)."""
    found = set()
    for entry in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            link = str(entry.readlink())
            if re.search(r"/#\d+ \(deleted\)$", link):
                found.add(link.removesuffix(" (deleted)"))
    return found


def _children() -> set[bytes]:
    return set(Path(f"/proc/self/task/{threading.get_native_id()}/children").read_bytes().split())


def _words(evidence: dict[str, Any]) -> str:
    args = evidence.get("args")
    return "\0".join(map(str, args)) if isinstance(args, list) else ""


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
    if type(path) is str:
        text = path
    elif isinstance(path, (str, bytes, os.PathLike)):
        text = os.fsdecode(path)
    else:
        return None
    if text[:1] == "/":
        return text
    return f"{Path.cwd()}/{text}" if relative_to == -1 else None


def _resolved(notes: dict[str, _T]) -> dict[str, _T]:
    """Return the notes by the path that the kernel shows: without links in the directory part."""
    directories: dict[str, str] = {}
    out: dict[str, _T] = {}
    for path, note in list(notes.items()):
        directory, name = os.path.split(path.rstrip("/"))
        if directory not in directories:
            directories[directory] = os.path.realpath(directory)
        out[f"{directories[directory].rstrip('/')}/{name}"] = note
    return out


def _shown(line: _Line, root: str) -> str:
    file, number = line
    inside = file.startswith(f"{root}/")
    return f"{os.path.relpath(file, root) if inside else file}:{number}"
