"""The SQLite file of a store: opened with care, and every failure of it as one clear error."""

import contextlib
import os
import sqlite3
import stat
import struct
import threading
from collections.abc import Generator, Iterable, Sequence
from fcntl import fcntl
from pathlib import Path
from typing import Any

from leakcheck.deliver import BESIDE
from leakcheck.errors import UsageError
from leakcheck.evidence.schema import APPLICATION, TABLES, VERSION

_WAIT_S = 5.0
"""How long another writer may keep the file locked."""
# fcntl.h of Linux: a lock of an open file description (fcntl_locking(2), Linux 3.15).
_F_OFD_SETLK = 37
_F_WRLCK = 1


class Database:
    """The file at `path`, made if `create`; with `read_only` nothing of it is changed.

    Commits survive a kill at any instant; a loss of power may take the last of them, and damages nothing (write-ahead
    log with ``synchronous=NORMAL``, sqlite.org).

    Raises:
        UsageError: it cannot be opened, is no store, of another version, or not safe to use; the message says which.
    """

    def __init__(self, path: Path, *, create: bool = False, read_only: bool = False) -> None:
        self.path = path
        self._guard = threading.Lock()
        self._locks = -1
        _check(path, create=create, read_only=read_only)
        # Whoever closes it last removes the files beside it, if it may write.
        may_write = not read_only or (_is_safe(path) and os.access(path, os.W_OK) and os.access(path.parent, os.W_OK))
        mode = "mode=rwc" if create else "mode=rw" if may_write else "mode=ro"
        with self.naming(), contextlib.ExitStack() as made:
            if not read_only:
                _make_first(path, made)
            try:
                self._open(mode, create=create, read_only=read_only)
                made.pop_all()
            except sqlite3.OperationalError:
                # Even a reader makes files beside it, unless the store is at rest.
                if not read_only or Path(f"{path}-wal").exists():
                    raise
                self._open("immutable=1", create=False, read_only=True)

    def _open(self, how: str, *, create: bool, read_only: bool) -> None:
        where = f"{self.path.absolute().as_uri()}?{how}"
        self._connection = sqlite3.connect(
            where, uri=True, timeout=_WAIT_S, isolation_level=None, check_same_thread=False
        )
        try:
            self._set_up(create=create, read_only=read_only)
        except BaseException:
            self._connection.close()
            raise

    def _set_up(self, *, create: bool, read_only: bool) -> None:
        run = self._connection.execute
        run("PRAGMA foreign_keys=ON")
        if create and not run("SELECT 1 FROM sqlite_schema").fetchall():
            run("PRAGMA journal_mode=WAL")
            with self.transaction():
                # Another program may have made them meanwhile.
                if not run("SELECT 1 FROM sqlite_schema").fetchall():
                    for table in filter(str.strip, TABLES.split(";")):
                        run(table)
                    run(f"PRAGMA application_id={APPLICATION}")
                    run(f"PRAGMA user_version={VERSION}")
        (kind,), (version,) = run("PRAGMA application_id").fetchone(), run("PRAGMA user_version").fetchone()
        if kind != APPLICATION:
            raise UsageError(f"{self.path}: is an SQLite file, but no store of leakcheck; name another file")
        if version != VERSION:
            raise UsageError(
                f"{self.path}: is a store of version {version}; this leakcheck reads version {VERSION}: "
                "use the leakcheck that made it, or name another file"
            )
        if read_only:
            run("PRAGMA query_only=ON")
        else:
            run("PRAGMA journal_mode=WAL")
            run("PRAGMA synchronous=NORMAL")

    def close(self) -> None:
        """Close the file, and give up the locks of runs."""
        with contextlib.suppress(sqlite3.Error):
            self._connection.close()
        if self._locks >= 0:
            os.close(self._locks)
            self._locks = -1

    def rows(self, query: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """Return all rows of a query."""
        with self._guard, self.naming():
            return self._connection.execute(query, values).fetchall()

    def change(self, *statements: tuple[str, Sequence[Any]]) -> int:
        """Make these changes, all or none; return the id of the row that the last one inserted."""
        with self._guard, self.naming(), self.transaction():
            for text, values in statements:
                done = self._connection.execute(text, values)
            return done.lastrowid or 0

    def replace(
        self, statements: Sequence[tuple[str, Sequence[Any]]], *many: tuple[str, Iterable[Sequence[Any]]]
    ) -> None:
        """Make these changes, and then each text of `many` with each of its rows: all or none."""
        with self._guard, self.naming(), self.transaction():
            for statement, values in statements:
                self._connection.execute(statement, values)
            for text, rows in many:
                self._connection.executemany(text, rows)

    @contextlib.contextmanager
    def transaction(self) -> Generator[None, None, None]:
        """Commit what is done until the end, or undo it."""
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            # After some errors SQLite has rolled back itself.
            with contextlib.suppress(sqlite3.Error):
                self._connection.execute("ROLLBACK")
            raise
        self._connection.execute("COMMIT")

    def lock(self, number: int) -> bool:
        """Lock run `number` until this process ends; return whether no other process has it.

        The lock is in a file of its own: SQLite's locks of this process would go with any descriptor of the store.
        """
        with self.naming():
            if self._locks < 0:
                flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
                self._locks = os.open(f"{self.path}-lock", flags, 0o666)
            one = struct.pack("hhqqi4x", _F_WRLCK, os.SEEK_SET, number, 1, 0)
            try:
                fcntl(self._locks, _F_OFD_SETLK, one)
            except BlockingIOError:
                return False
            return True

    @contextlib.contextmanager
    def naming(self) -> Generator[None, None, None]:
        """Turn an error of the file into a `UsageError` that names it."""
        try:
            yield
        except sqlite3.Error as error:
            raise UsageError(f"store {self.path}: {_why(error)}") from error
        except OSError as error:
            raise UsageError(f"store {self.path}: {(error.strerror or str(error)).lower()}") from error


def _why(error: sqlite3.Error) -> str:
    name = getattr(error, "sqlite_errorname", "")
    known = {
        "SQLITE_FULL": "no space is left on its disk; what was recorded before is kept",
        "SQLITE_BUSY": f"another program has kept it locked for {_WAIT_S:.0f} s",
        "SQLITE_READONLY": "it cannot be written",
        "SQLITE_NOTADB": "is no SQLite file; name another one",
        "SQLITE_CORRUPT": "it is damaged; restore it from a copy, or name another file",
        "SQLITE_CANTOPEN": "it cannot be opened",
    }
    found = next((words for start, words in known.items() if name.startswith(start)), "")
    return f"{found} ({error})" if found else str(error)


def _make_first(path: Path, made: contextlib.ExitStack) -> None:
    """Make what SQLite would take from anybody, if others can make files there; `made` removes it again.

    SQLite puts what is in a log of changes into the store, whoever made the log.
    """
    if not path.absolute().parent.stat().st_mode & stat.S_IWOTH:
        return
    for end in ("-wal", "-shm"):
        beside = f"{path}{end}"
        flags = os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC
        with contextlib.suppress(FileExistsError):
            os.close(os.open(beside, flags, 0o666))
            made.callback(Path(beside).unlink, missing_ok=True)
    _check(path, create=True, read_only=False)


def _is_safe(path: Path) -> bool:
    """Return whether the store may be written to."""
    try:
        _check(path, create=False, read_only=False)
    except UsageError:
        return False
    return True


def _check(path: Path, *, create: bool, read_only: bool) -> None:
    """Refuse what is no regular file; and, to write to, one that somebody else made or can replace.

    Its content decides what is not tried again.
    """
    parent = path.absolute().parent
    try:
        directory = parent.stat()
    except OSError as error:
        raise UsageError(f"store {path}: no directory {parent}; create it first") from error
    if not stat.S_ISDIR(directory.st_mode):
        raise UsageError(f"store {path}: {parent} is no directory")
    mine = (0, os.geteuid())
    others = directory.st_mode & (stat.S_IWGRP | stat.S_IWOTH) and not directory.st_mode & stat.S_ISVTX
    if not read_only and (directory.st_uid not in mine or others):
        raise UsageError(f"store {path}: others can replace files in {parent}; name one in a directory of your own")
    for name in (path.name, *(f"{path.name}{end}" for end in BESIDE)):
        try:
            found = (parent / name).lstat()
        except OSError as error:
            if name == path.name and not create:
                raise UsageError(f"store {path}: {(error.strerror or str(error)).lower()}") from error
            continue
        if not stat.S_ISREG(found.st_mode):
            raise UsageError(f"store {path}: {name} is no regular file; name another one")
        if not read_only and (found.st_uid not in mine or found.st_nlink > 1):
            raise UsageError(
                f"store {path}: {name} is of uid {found.st_uid}, or has another name as well; name another"
            )
