"""What GitHub Actions shows of a run: annotations of its failures, and a summary of the job.

The runner reads annotations from the output of a step (workflow commands), and the summary from the file that
``GITHUB_STEP_SUMMARY`` names, of at most 1 MiB. It shows ten errors of a step.
"""

import contextlib
import errno
import os
import stat
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Self

from leakcheck.answers import answering
from leakcheck.atomic_write import held_directory
from leakcheck.deliver import notify
from leakcheck.errors import UsageError
from leakcheck.printable import printable
from leakcheck.reports.markdown import markdown
from leakcheck.reports.rows import Report, cut

__all__ = ["GitHub", "annotations"]

VARIABLE = "GITHUB_STEP_SUMMARY"
_LIMIT = 1 << 20
_ANNOTATIONS = 10
_TITLE = 120
_MESSAGE = 2_000


class GitHub:
    """What a run tells to GitHub Actions, if it runs there; nothing of it decides anything.

    The summary's file is opened before the run, and only appended to: it has to be a regular file of one name, and no
    link of another user leads to it. Otherwise a line says why there is no summary.
    """

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        self._annotates = environment.get("GITHUB_ACTIONS") == "true"
        self._file = -1
        if path := environment.get(VARIABLE):
            try:
                self._file = _opened(answering(path))
            except (OSError, ValueError, UsageError) as error:
                notify(f"{VARIABLE}: {getattr(error, 'strerror', None) or error}: there is no summary of the job")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    @property
    def wanted(self) -> bool:
        """Whether anything is to be told."""
        return self._annotates or self._file >= 0

    def tell(self, found: Report) -> None:
        """Append the summary, and print the annotations on stderr; a failure is one line."""
        if self._file >= 0:
            try:
                _append(self._file, markdown(found))
            except OSError as error:
                notify(f"{VARIABLE}: {error.strerror}: there is no summary of the job")
        if self._annotates:
            with contextlib.suppress(OSError):
                for line in annotations(found):
                    print(line, file=sys.stderr)
                sys.stderr.flush()


def annotations(found: Report) -> Iterator[str]:
    """Yield a workflow command for each of the first failures; no name in it begins another one, or ends it early."""
    failures = [(subject, part, one) for subject in found.subjects for part, one in subject.failures]
    shown = failures if len(failures) <= _ANNOTATIONS else failures[: _ANNOTATIONS - 1]
    for subject, part, failure in shown:
        properties = {"title": cut(f"{subject.name} {part.name}: {failure.outcome}", _TITLE)}
        if failure.file:
            properties = {"file": failure.file, "line": str(failure.line or 1)} | properties
        named = ",".join(f"{name}={_property(value)}" for name, value in properties.items())
        yield f"::error {named}::{_message(cut(failure.text, _MESSAGE))}"
    if more := len(failures) - len(shown):
        yield f"::error title=leakcheck::and {more} more failures"


def _message(text: str) -> str:
    """Return a text as the message of a command; a line feed is one within it."""
    escaped = (printable(line).replace("%", "%25") for line in text.split("\n"))
    return "%0A".join(escaped)


def _property(text: str) -> str:
    return printable(text).replace("%", "%25").replace(":", "%3A").replace(",", "%2C")


def _opened(path: Path) -> int:
    with held_directory(path) as (directory, name):
        flags = os.O_WRONLY | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
        file = os.open(name, flags, dir_fd=directory)
    found = os.fstat(file)
    if not stat.S_ISREG(found.st_mode) or found.st_nlink != 1:
        os.close(file)
        raise ValueError("it is no regular file of one name")
    return file


def _append(file: int, text: str) -> None:
    now = os.fstat(file)
    if now.st_nlink != 1:
        raise FileNotFoundError(errno.ENOENT, "it was removed or linked during the run")
    room = _LIMIT - now.st_size
    data = f"{text.rstrip()}\n\n".encode("utf-8", "backslashreplace")
    if len(data) > room:
        note = b"\n\n... the rest did not fit into the summary of this step\n"
        # A text that ends within a fence would take what follows for code.
        data = data[: max(0, room - len(note) - 8)].rsplit(b"\n", 1)[0]
        data += (b"\n````" if data.count(b"\n````") % 2 else b"") + note if data else b""
    view = memoryview(data)
    while view:
        view = view[os.write(file, view) :]
