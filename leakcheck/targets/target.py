"""A target: a sandbox under test with its adapter, and the interpretation of its runs."""

import contextlib
import fnmatch
import json
import math
import os
import re
import signal as signals
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import msgspec

from leakcheck.errors import TargetError, UsageError, reason
from leakcheck.submissions import Status, Submission
from leakcheck.targets.adapter import Adapter, Values, fill, fill_argv, fill_json, load_json, read_adapter
from leakcheck.targets.executables import find

_MIB = 1 << 20
_SIGNALS = signals.valid_signals()
# Bound if there is nothing to bind: it always exists, and no adapter binds it itself.
_NO_BUNDLE = "/usr/share"
PROBE_RAN = "probe ran"
"""The last line of the probe."""
# One line per namespace link, then whether the path in $1 exists and can be read, its seccomp mode and number of
# filters (proc(5)), and the kernel version.
_PROBE = f"""\
for n in cgroup ipc mnt net pid time user uts; do echo "ns $n $(readlink /proc/self/ns/$n)"; done
[ -e "$1" ] && echo "seen marker"
(: <"$1") 2>/dev/null && echo "read marker"
while read -r key value; do
  case $key in Seccomp*) echo "$key $value" ;; esac
done </proc/self/status
echo "kernel $(uname -v)"
echo "{PROBE_RAN}"
"""


class Box(msgspec.Struct, frozen=True):
    """The box of a run.

    Args:
        number: number of the box, from 0; parallel runs have different numbers.
        work: an empty directory, only for this box.
        name: unique on the machine if the target has a registry there; default: derived from the number.
        run: what makes ``{unique}`` differ from that of any other run.
    """

    number: int
    work: Path
    name: str = ""
    run: str = ""


class Availability(msgspec.Struct, frozen=True):
    """Whether a target can run here; `reason` and `hint` are empty if it is ready."""

    state: Literal["ready", "missing", "unable"]
    reason: str = ""
    hint: str = ""


class Launch(msgspec.Struct, frozen=True):
    """What to run: `files` (path → content) are written first, then `argv` with `env` added to the environment."""

    argv: list[str]
    env: dict[str, str]
    files: dict[str, str]


class Reply(msgspec.Struct, frozen=True):
    """The target's report on a submission."""

    status: Status
    exit_code: int | None = None
    signal: int | None = None


class Target:
    """A sandbox that leakcheck can run, recover and interpret. Made from the adapter file at `path`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.adapter: Adapter = read_adapter(path)
        # Cache of the programs' paths, once all are found: searching $PATH takes longer than the rest of a launch.
        self._found: Values | None = None
        files = [*(file.path for file in self.adapter.files), self.adapter.status.file, self.adapter.output]
        own = [*self.adapter.state, *(path for path in files if path.startswith("/"))]
        self._places = [_places(text, "*", f"leakcheck-{self.name}-*") for text in own]
        self._of_boxes = [
            text for text in self.adapter.state if any(f"{{{one}}}" in text for one in ("box", "name", "unique"))
        ]
        self._json = {file.path: load_json(path, file) for file in self.adapter.files if file.json is not None}

    def __repr__(self) -> str:
        return f"Target({str(self.path)!r})"

    @property
    def name(self) -> str:
        """The target's name."""
        return self.adapter.name

    def found(self) -> dict[str, str | None]:
        """Return each program that the target needs, with its path if found."""
        return {name: find(name) for name in self.adapter.needs.binaries}

    def programs(self) -> list[str]:
        """Return the paths of those that are found."""
        if self._found is not None:
            return [str(path) for path in self._found.values()]
        return [path for path in self.found().values() if path]

    def identities(self) -> dict[str, tuple[int, ...]]:
        """Return which file each of its programs is at this moment: another one, or another content, differs."""
        found: dict[str, tuple[int, ...]] = {}
        for path in self.programs():
            with contextlib.suppress(OSError):
                st = Path(path).stat()
                found[path] = (st.st_dev, st.st_ino, st.st_size, st.st_mtime_ns)
        return found

    def availability(self) -> Availability:
        """Return whether its programs exist and the user may run it; `leakcheck.conformance.tried` also tries it."""
        missing = [name for name, path in self.found().items() if path is None]
        if missing:
            return Availability("missing", _absent(missing), self.adapter.needs.install)
        if self.adapter.needs.root and os.geteuid() != 0:
            return Availability("unable", "only root can run it", "run leakcheck with sudo")
        return Availability("ready")

    def check_ready(self) -> None:
        """Raise `TargetError` if it is not ready; the message says why and what to do."""
        state = self.availability()
        if state.state != "ready":
            hint = f"; {state.hint}" if state.hint else ""
            raise TargetError(f"{self.name}: {state.state}: {state.reason}{hint}")

    def owns(self, path: str, box: Box | None = None) -> bool:
        """Return whether `path` is one of the target's own paths or below one; with `box`, one that only that box owns.

        Its own paths are those of the adapter's `state`, and files that the adapter names outside ``{work}``.
        """
        if box is None:
            return any(place.match(path) for place in self._places)
        return any(_places(text, str(box.number), self._name(box)).match(path) for text in self._of_boxes)

    def keeps(self, path: str, box: Box) -> bool:
        """Return whether `path` is where it keeps a state file of `box` that it does not trust, or its lock file."""
        kept = [*self.adapter.damage.keeps, *(self.adapter.locks.files if self.adapter.locks else ())]
        return any(_places(text, str(box.number), self._name(box), str(box.work)).match(path) for text in kept)

    def names_box(self, path: str, box: Box) -> bool:
        """Return whether `path` contains the full name of `box`, not only as the start of a longer word."""
        return re.search(rf"(?<!\w){re.escape(self._name(box))}(?!\w)", path) is not None

    def name_of(self, number: int) -> str:
        """Return the name of a box."""
        return f"leakcheck-{self.name}-{number}"

    def _name(self, box: Box) -> str:
        return box.name or self.name_of(box.number)

    def version(self) -> str:
        """Return the version as the program prints it, on one line; empty if it has none or does not respond."""
        if not self.adapter.version:
            return ""
        null, pipe = subprocess.DEVNULL, subprocess.PIPE
        try:
            argv = fill_argv(self.adapter.version, self._programs())
            done = subprocess.run(
                argv, stdin=null, stdout=pipe, stderr=pipe, text=True, errors="replace", timeout=20, check=False
            )
        except (TargetError, OSError, subprocess.TimeoutExpired):
            return ""
        # proot's version is the last word of a banner.
        lines = [line.strip(" |_/\\") for line in (done.stdout or done.stderr).splitlines()]
        return next((line for line in lines if any(c.isdigit() for c in line)), "")

    def prepare_commands(self, box: Box, submission: Submission | None = None) -> list[list[str]]:
        """Return the commands before a launch of `submission` in `box`, in order; None: a submission with no bundle."""
        values = self._values(box) | {"bundle": _bundle(submission)}
        return [fill_argv(argv, values) for argv in self.adapter.prepare]

    def finish_commands(self, box: Box) -> list[list[str]]:
        """Return the commands after a normal end in `box`, in order."""
        return [fill_argv(argv, self._values(box)) for argv in self.adapter.finish]

    def recover_commands(self, box: Box) -> list[list[str]]:
        """Return the commands after a crash in `box`, in order. They also succeed if there is nothing to do."""
        return [fill_argv(argv, self._values(box)) for argv in self.adapter.recover]

    def health_command(self, box: Box) -> list[str]:
        """Return the command that succeeds if the target considers all its boxes healthy; empty if there is none."""
        return fill_argv(self.adapter.health, self._values(box))

    def env(self, box: Box) -> dict[str, str]:
        """Return the additional environment of its commands."""
        return {name: fill(text, self._values(box)) for name, text in self.adapter.env.items()}

    def launch(self, submission: Submission, box: Box, *, waiting: bool = False) -> Launch:
        """Return the launch of `submission` in `box`; raise `TargetError` if a program that it needs is missing.

        With `waiting`, it waits for a box that is in use, if the target has such a launch.
        """
        argv = self.adapter.launch
        if waiting and self.adapter.locks is not None and self.adapter.locks.waiting:
            argv = self.adapter.locks.waiting
        values = self._values(box) | {
            "program": submission.program,
            # Some accept only whole seconds, and fail on 10.0.
            "wall": _decimal(submission.wall),
            "cpu": max(1, math.ceil(submission.cpu)),
            "cpu_exact": _decimal(submission.cpu),
            "memory": submission.memory,
            "memory_kib": max(1, submission.memory // 1024),
            "memory_mib": max(1, submission.memory // _MIB),
            "processes": submission.processes,
            "file_size": submission.file_size,
            "output": submission.output,
            "bundle": _bundle(submission),
        }
        files = {file.path: fill(file.text, values) for file in self.adapter.files if file.text is not None}
        files |= {path: json.dumps(fill_json(value, values), indent=1) for path, value in self._json.items()}
        return Launch(
            argv=fill_argv(argv, values),
            env=self.env(box),
            files={fill(path, values): content for path, content in files.items()},
        )

    def filled(self, path: str, box: Box) -> str:
        """Return a path of the adapter as that of `box`."""
        return fill(path, self._values(box))

    def cwd(self, box: Box) -> str:
        """Return the directory in which its commands start."""
        return self.filled(self.adapter.cwd, box)

    def output_file(self, box: Box) -> Path | None:
        """Return the file with what the payload prints; None if that is the launch's stdout."""
        return Path(fill(self.adapter.output, self._values(box))) if self.adapter.output else None

    def status_file(self, box: Box) -> Path | None:
        """Return the path of the target's status file; None if it only has an exit code."""
        return Path(fill(self.adapter.status.file, self._values(box))) if self.adapter.status.file else None

    def status(self, returncode: int, box: Box, read: Callable[[Path], bytes] = Path.read_bytes) -> Reply:
        """Return the target's report after a launch in `box` that exited with `returncode`, negative for a signal.

        If the target ran under another root, `read` returns the content of a file there. It raises `TargetError` if the
        status file is missing or not readable.
        """
        path = self.status_file(box)
        if path is None:
            return self._from_exit(returncode)
        try:
            if not (content := read(path)):
                raise ValueError(f"empty; the target ended with {returncode} before it had written it")
            return self._from_fields(self._fields(content))
        except OSError as error:
            why = f"{reason(error)}; the target ended with {returncode} before it had written one"
            raise TargetError(f"{self.name}: status file {path}: {why}") from error
        except ValueError as error:
            raise TargetError(f"{self.name}: status file {path}: {error}") from error

    def _from_exit(self, returncode: int) -> Reply:
        status = self.adapter.status
        if returncode in status.internal:
            return Reply("IE", exit_code=returncode)
        if returncode in status.timeout:
            return Reply("TLE", exit_code=returncode)
        # The shell's convention, which most sandboxes follow: 128 plus the signal.
        number = -returncode if returncode < 0 else returncode - 128
        if number in _SIGNALS:
            return Reply("RE", signal=number)
        return Reply("RE" if returncode else "OK", exit_code=returncode)

    def _fields(self, content: bytes) -> dict[str, object]:
        """Return the fields of the status file; raise `ValueError`."""
        try:
            text = content.decode()
        except UnicodeDecodeError as error:
            raise ValueError(f"not UTF-8 at byte {error.start}") from error
        if self.adapter.status.source == "json":
            try:
                found = json.loads(text)
            except ValueError as error:
                raise ValueError(f"not JSON: {error}") from error
            if not isinstance(found, dict):
                raise ValueError("not a JSON object")
            return found
        fields: dict[str, object] = {}
        for number, line in enumerate(text.splitlines(), 1):
            key, colon, value = line.partition(":")
            if not colon:
                raise ValueError(f"line {number} is not key:value: {line[:80]!r}")
            fields[key.strip()] = value.strip()
        return fields

    def _from_fields(self, fields: dict[str, object]) -> Reply:
        """Return the report in the fields of the status file; raise `ValueError`."""
        status = self.adapter.status

        def number(key: str) -> int | None:
            value = fields.get(key) if key else None
            try:
                return None if value is None else int(str(value))
            except ValueError as error:
                raise ValueError(f"{key} is not a number: {value!r}") from error

        exit_code, signal = number(status.exit_code), number(status.signal) or None
        word = fields.get(status.status) if status.status else None
        if word is not None:
            if str(word) not in status.statuses:
                raise ValueError(f"unknown {status.status} {word!r}, not of {', '.join(status.statuses)}")
            meant = status.statuses[str(word)]
            if meant == "OK" and exit_code is None:
                exit_code = 0
            return Reply(meant, exit_code=exit_code, signal=signal)
        if status.status and status.absent is None:
            raise ValueError(f"has no {status.status}")
        if signal:
            return Reply("RE", signal=signal)
        if exit_code:
            return Reply("RE", exit_code=exit_code)
        return Reply(status.absent or "OK", exit_code=exit_code)

    def probe(self, marker: Path) -> Submission:
        """Return the submission whose output `isolation_gaps` reads; `marker` is a file outside `{work}`."""
        return Submission(name="probe", program=("/bin/sh", "-c", _PROBE, "probe", str(marker)))

    def isolation_gaps(self, inside: str, outside: str) -> list[str]:
        """Return the parts that are not isolated, according to what the probe prints inside, and outside of it."""
        declared = self.adapter.probe
        lines = inside.splitlines()
        if PROBE_RAN not in lines:
            return ["the probe did not finish, or its output does not come back"]
        own, other = _links(inside), _links(outside)
        gaps = []
        for kind in declared.namespaces:
            if not own.get(kind):
                gaps.append(f"the payload could not read its {kind} namespace")
            elif own[kind] == other.get(kind):
                gaps.append(f"the payload is in the outside's {kind} namespace, {own[kind]}")
        if declared.hidden and "seen marker" in lines:
            gaps.append("the payload sees a file of the outside that the target should hide")
        if declared.unreadable and "read marker" in lines:
            gaps.append("the payload reads a file of the outside that the target should keep from it")
        if declared.seccomp and _filters(inside) <= _filters(outside):
            gaps.append("the payload has no seccomp filter that the outside does not have")
        same = [line for line in outside.splitlines() if line.startswith("kernel ") and line in lines]
        if declared.kernel and same:
            gaps.append(f"the payload runs on our {same[0].replace(' ', ', ', 1)}")
        return gaps

    @staticmethod
    def what_differs(inside: str, outside: str) -> str:
        """Return the ``probe`` of an adapter that holds, according to what the probe prints; empty if none does."""
        own, other = _links(inside), _links(outside)
        kinds = [kind for kind, link in own.items() if link and link != other.get(kind)]
        fields = [f"namespaces = {json.dumps(kinds)}"] if kinds else []
        lines, others = inside.splitlines(), outside.splitlines()
        for field, holds in (
            ("hidden", "seen marker" not in lines),
            ("unreadable", "seen marker" in lines and "read marker" not in lines),
            ("seccomp", _filters(inside) > _filters(outside)),
            ("kernel", any(line.startswith("kernel ") and line not in others for line in lines)),
        ):
            fields += [f"{field} = true"] if holds else []
        return f"probe = {{ {', '.join(fields)} }}" if fields else ""

    def _programs(self) -> Values:
        if self._found is None:
            found = self.found()
            if missing := [name for name, path in found.items() if path is None]:
                hint = f"; install it: {self.adapter.needs.install}" if self.adapter.needs.install else ""
                raise TargetError(f"{self.name}: {_absent(missing)}{hint}")
            self._found = {f"exe:{name}": path for name, path in found.items() if path is not None}
        return self._found

    def _values(self, box: Box) -> Values:
        if not box.work.is_absolute():
            raise UsageError(f"{self.name}: work directory {box.work} is not absolute")
        name = self._name(box)
        return self._programs() | {
            "box": box.number,
            "work": str(box.work),
            "name": name,
            "unique": f"{name}-{box.run}" if box.run else name,
        }


def _places(text: str, box: str, name: str, work: str = "*") -> re.Pattern[str]:
    """Return a regular expression for the paths of the `state` pattern `text`, and everything below them."""
    whole = fnmatch.translate(fill(text.rstrip("/"), {"box": box, "name": name, "unique": f"{name}*", "work": work}))
    return re.compile(whole.replace(r"\Z", r"(?:/|\Z)"))


def _links(output: str) -> dict[str, str]:
    """Return the link of each namespace type in the probe's output."""
    found = [line.split(" ") for line in output.splitlines()]
    return {words[1]: words[2] for words in found if words[0] == "ns" and len(words) == 3}


def _filters(output: str) -> int:
    """Return the number of seccomp filters in the probe's output; of a kernel before 5.9, the mode."""
    found = dict(re.findall(r"^(Seccomp\w*): (\d+)$", output, re.MULTILINE))
    return int(found.get("Seccomp_filters") or found.get("Seccomp") or 0)


def _bundle(submission: Submission | None) -> str:
    return (submission.bundle if submission else "") or _NO_BUNDLE


def _decimal(seconds: float) -> int | float:
    return int(seconds) if seconds == int(seconds) else seconds


def _absent(programs: list[str]) -> str:
    return f"no {' and no '.join(programs)} in $LEAKCHECK_TARGETS/bin, .targets/bin, $PATH, /usr/sbin or /sbin"
