"""An adapter: the description of a third-party sandbox, as a TOML file.

Strings may hold placeholders: ``{program}`` (a separate element; the submission's argv replaces it), ``{box}``,
``{name}``, ``{unique}`` (a name that no run uses twice), ``{work}``, ``{wall}`` (seconds), ``{cpu}`` (whole seconds,
rounded up), ``{cpu_exact}`` (decimal seconds), ``{memory}`` (bytes), ``{memory_kib}``, ``{memory_mib}``,
``{processes}``, ``{file_size}`` and ``{output}`` (bytes),
``{bundle}`` (the directory of the submission's program, which must exist read-only at the same path inside; one below
/usr if the submission needs none) and ``{exe:NAME}`` (the path of a program). ``{{`` and ``}}`` are braces.
"""

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias

import msgspec

from injectors.exhaustion import RESOURCES
from leakcheck._native import read_input
from leakcheck.errors import UsageError
from leakcheck.renamed import with_new_names
from leakcheck.submissions import BEHAVIOURS, LANGUAGES, Status
from leakcheck.targets.faults import describe, faults_of_types
from leakcheck.toml_lines import lines_of

Argv: TypeAlias = list[str]
Values: TypeAlias = dict[str, Any]
"""Placeholder → what replaces it: text, a number, or the argv of the program."""

_PLACEHOLDER = re.compile(r"\{\{|\}\}|\{([^{}]*)\}")
_STATIC = {"box", "name", "unique", "work"}
_LIMITS = {"wall", "cpu", "cpu_exact", "memory", "memory_kib", "memory_mib", "processes", "file_size", "output"}
_LONGEST_WALL = 3600
_OLD_NAMES = {"verdict": "status", "verdicts": "statuses"}
# Replaces a required field with a fault, so that the others are checked too.
_ASSUMED: dict[str, Any] = {"name": "x", "summary": "", "launch": ["{program}"], "probe": {"none": "x"}}
_NAMES = ("cgroup", "ipc", "mnt", "net", "pid", "time", "user", "uts")


class _Table(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    pass


class Needs(_Table, frozen=True):
    """The requirements of the target.

    Args:
        root: whether only root can run it.
        binaries: programs, found as `leakcheck.targets.executables.find` does; ``{exe:NAME}`` may name these.
        install: the command that installs it, shown if it is missing.
    """

    root: bool = False
    binaries: list[str] = []
    install: str = ""


class File(_Table, frozen=True):
    """A file to write before each launch: `text`, or `json`, a JSON file beside the adapter.

    In JSON, placeholders are filled value by value, so that no argument needs quoting, and the string
    ``{number:LIMIT}`` becomes a number.
    """

    path: str
    text: str | None = None
    json: str | None = None


class StatusReading(_Table, frozen=True):
    """How the status is read.

    Args:
        source: ``exit`` reads only the exit code; ``meta`` a file of ``key:value`` lines, as isolate writes;
            ``json`` a JSON object.
        file: that file.
        timeout: exit codes that mean TLE.
        internal: exit codes that mean IE, because the target itself uses them.
        status: key of the status in `file`.
        statuses: the target's word → status; a word that is not listed is an error.
        absent: the status if `file` lacks that key.
        exit_code: key of the exit code in `file`.
        signal: key of the signal in `file`.
    """

    source: Literal["exit", "meta", "json"] = "exit"
    file: str = ""
    timeout: list[int] = []
    internal: list[int] = []
    status: str = ""
    statuses: dict[str, Status] = {}
    absent: Status | None = None
    exit_code: str = ""
    signal: str = ""


class Probe(_Table, frozen=True):
    """How a payload can check that the isolation is on.

    Args:
        namespaces: types whose link in /proc/self/ns must differ from the link outside.
        hidden: whether a file in ``/tmp`` outside must be hidden inside.
        unreadable: whether opening that file to read it must fail inside, as by Landlock, which hides no name.
        seccomp: whether the payload must have more seccomp filters than the outside.
        kernel: whether the payload must see another kernel than ours (``uname -v``).
        none: why nothing can be checked; only for a target that isolates nothing.
    """

    namespaces: list[str] = []
    hidden: bool = False
    unreadable: bool = False
    seccomp: bool = False
    kernel: bool = False
    none: str = ""

    @property
    def checks(self) -> bool:
        """Whether it checks anything."""
        return bool(self.namespaces or self.hidden or self.unreadable or self.seccomp or self.kernel)


class Damage(_Table, frozen=True):
    """What the target does about a damaged state file.

    Args:
        log: the file to which it adds a line about it; empty if it has none.
        words: words of which one stands in that line.
        keeps: where it keeps state files that it does not trust, never more of them than there are boxes.
        disk: whether its state is to survive a power cut: what it names is made only once it is on the disk. Then power
            cuts are tried even if this adapter has the state below ``/run``, as if that was a disk.
    """

    log: str = ""
    words: list[str] = []
    keeps: list[str] = []
    disk: bool = False


class Exhaustion(_Table, frozen=True):
    """What the target says when the machine lacks something.

    Args:
        words: resource (``disk``, ``fd``, ``memory``, ``cpu``, ``pids``) → words of which one stands in its error or
            in its status file, in upper or lower case.
        within: seconds within which the next submission has to be done once nothing is exhausted any more.
    """

    words: dict[str, list[str]] = {}
    within: float = 10


class Locks(_Table, frozen=True):
    """How the target keeps two runs out of one box.

    Args:
        files: its lock files; ``*`` stands for a part of a name. None if it excludes by other means, as by a name.
        busy: exit codes of a launch, or of a preparation, that was refused because the box is in use.
        words: words of which one stands in the output of such a command. Without either, a launch waits for the box.
        waiting: the launch that waits for the box instead; empty if there is none.
        shared: paths in ``{work}`` that those who use a box at the same time share, such as a registry of names.
        forces: whether the recovery ends whoever has the box, as ``delete --force`` does.
        within: seconds within which a box is free again after its holder died, including the recovery.
    """

    files: list[str] = []
    busy: list[int] = []
    words: list[str] = []
    waiting: Argv = []
    shared: list[str] = []
    forces: bool = False
    within: float = 10


class Adapter(_Table, frozen=True):
    """One target as data; `leakcheck.targets.target.Target` runs it.

    Args:
        name: lower case, unique.
        summary: one line: what it is, and who enforces its wall limit.
        version: prints its version on stdout; empty if it has none.
        launch: runs one submission; contains ``{program}``, unless a file contains it.
        env: added to the environment of every command.
        prepare: run in order before each launch; must be repeatable. With ``{bundle}`` it creates the bundle's mount
            point, which the target would otherwise create, and leave, itself.
        finish: run in order after a run that no fault ended, as in create, run, delete; each must succeed.
        recover: run in order after a crash; must be repeatable and succeed if there is nothing to do.
        health: succeeds if the target considers all its boxes healthy; empty if there is no such command.
        files: written before each launch, after `prepare`.
        box: whether later runs reuse a box, with its number and name (``"reused"``), or each run has a new one, like a
            container (``"fresh"``). With fresh boxes, residue that only a later run in the same box would remove stays.
            Default: reused if a command contains ``{box}``, otherwise fresh.
        cwd: the directory in which all its commands start; it must exist before the first of them.
        output: the file with what the payload prints, if that is not the launch's stdout or stderr.
        binds: paths of the host that an arena shows read-only, too: it has its own /tmp, /run, /var/tmp and /dev.
        arena_only: whether it must not run on the live host.
        state: paths of the machine that the target owns, each with everything below it; ``*`` stands for any
            characters, and a path with ``{box}`` or ``{name}`` belongs to that box only. Changing a file that existed
            before is damage at any other path.
        state_files: the files in which the target keeps what it knows of a box that is in use; ``*`` stands for a part
            of a name. `leakcheck state` damages them.
        damage: what it does about a damaged one.
        exhaustion: what it says when the machine lacks something.
        locks: how it keeps two runs out of one box; `leakcheck locks` lets runs contend. None if it does not.
        shortest_wall: the shortest wall limit that it accepts, in seconds.
        may_lack_signal: whether it may report a death by signal as a plain exit code.
        reports: the statuses that it can report; every target may report IE.
        time_limits: the time limits that it reports as TLE; a CPU limit set by setrlimit(2) ends in a signal, which
            reads as RE.
        languages_not: a language of `leakcheck.submissions` that cannot run in it → why.
        behaviours_not: a behaviour whose status it does not report correctly → why.
    """

    name: str
    summary: str
    launch: Argv
    probe: Probe
    version: Argv = []
    env: dict[str, str] = {}
    prepare: list[Argv] = []
    finish: list[Argv] = []
    recover: list[Argv] = []
    health: Argv = []
    files: list[File] = []
    needs: Needs = Needs()
    status: StatusReading = StatusReading()
    box: Literal["fresh", "reused"] | None = None
    cwd: str = "/"
    output: str = ""
    binds: list[str] = []
    arena_only: bool = False
    state: list[str] = []
    state_files: list[str] = []
    damage: Damage = Damage()
    exhaustion: Exhaustion = Exhaustion()
    locks: Locks | None = None
    shortest_wall: float = 0.1
    may_lack_signal: bool = False
    reports: tuple[Status, ...] = ("OK", "TLE", "RE")
    time_limits: tuple[Literal["wall", "cpu"], ...] = ("wall",)
    languages_not: dict[str, str] = {}
    behaviours_not: dict[str, str] = {}

    @property
    def fresh(self) -> bool:
        """Whether each run has its own box."""
        commands = [self.launch, *self.prepare, *self.finish, *self.recover]
        numbered = any("{box}" in text for command in commands for text in command)
        return not numbered if self.box is None else self.box == "fresh"


def read_adapter(path: Path) -> Adapter:
    """Return the checked adapter in the TOML file at `path`.

    Raises:
        UsageError: it cannot be read, is not TOML, or fields are unknown, missing or wrong; the message names all of
            them, each with its line and what to do.
    """
    return parse_adapter(read_input("adapter", path, most=1 << 20), path)


def parse_adapter(text: str, path: Path) -> Adapter:
    """Return the checked adapter in the TOML `text` of the file at `path`; raise `UsageError` as `read_adapter`."""
    try:
        table = msgspec.toml.decode(text)
        if isinstance(status := table.get("status"), dict):
            table["status"] = with_new_names(status, _OLD_NAMES, f"adapter {path}: status")
        faults = faults_of_types(Adapter, table)
        wrong = {re.split(r"[.\[]", field)[0] for field in faults}
        rest = {field: value for field, value in table.items() if field not in wrong}
        assumed = {field: value for field, value in _ASSUMED.items() if field in wrong}
        adapter = msgspec.convert(rest | assumed, type=Adapter)
    except (msgspec.DecodeError, ValueError) as error:
        raise UsageError(f"adapter {path}: {error}") from error
    except RecursionError as error:
        raise UsageError(f"adapter {path}: nested too deeply") from error
    for field, problem in _problems(adapter, path, wrong):
        faults.setdefault(field, []).append(problem)
    if faults:
        raise UsageError(f"adapter {path}: {describe(faults, lines_of(text))}")
    return adapter


def load_json(path: Path, file: File) -> Any:
    """Return the JSON template of `file`, which lies beside the adapter at `path`; raise `UsageError`."""
    template = path.parent / (file.json or "")
    try:
        return json.loads(read_input("template", template, most=1 << 20))
    except UsageError as error:
        raise UsageError(f"adapter {path}: files: json: {error}") from error
    except RecursionError as error:
        raise UsageError(f"adapter {path}: files: json: {template} is nested too deeply") from error
    except ValueError as error:
        raise UsageError(f"adapter {path}: files: json: {template} is not JSON: {error}") from error


def _problems(adapter: Adapter, path: Path, wrong: set[str]) -> Iterator[tuple[str, str]]:
    """Yield each contradiction of `adapter`, read from `path`: the field, and what is wrong.

    Fields of `wrong` have another fault already, and a value that the file does not give.
    """
    if not re.fullmatch(r"[a-z0-9][a-z0-9-]*", adapter.name):
        yield "name", f"{adapter.name!r} must be lower-case letters, digits and dashes"
    if not adapter.launch:
        yield "launch", "is empty; give the argv that runs {program}"
    for field, commands in (("prepare", adapter.prepare), ("finish", adapter.finish), ("recover", adapter.recover)):
        if [] in commands:
            yield field, "has an empty command; remove it"
    unread = dict(_unread(adapter, path))
    yield from ((f"files[{number}]", why) for number, why in unread.items())
    if unread:
        files = [file for number, file in enumerate(adapter.files) if number not in unread]
        adapter, wrong = msgspec.structs.replace(adapter, files=files), wrong | {"files"}
    yield from _problems_of_placeholders(adapter, path, wrong)
    yield from _problems_of_paths(adapter)
    yield from _problems_of_values(adapter)
    yield from _problems_of_status(adapter.status)
    for name in adapter.probe.namespaces:
        if name not in _NAMES:
            yield "probe.namespaces", f"unknown type {name!r}; one of {', '.join(_NAMES)}"
    if adapter.probe.checks and adapter.probe.none:
        yield "probe", "none says that nothing can be checked, and the other fields what is: remove one of the two"
    if not adapter.probe.checks and not adapter.probe.none:
        what = "give namespaces, hidden, unreadable (fits Landlock), seccomp or kernel"
        yield "probe", f"{what}, or none with the reason why nothing can be checked"


def _unread(adapter: Adapter, path: Path) -> Iterator[tuple[int, str]]:
    """Yield the number of each file without a content that can be read, and why."""
    for number, file in enumerate(adapter.files):
        if (file.text is None) == (file.json is None):
            yield number, f"{file.path}: give either text or json"
        elif file.json is not None:
            try:
                load_json(path, file)
            except UsageError as error:
                yield number, str(error).removeprefix(f"adapter {path}: files: ")


def _problems_of_placeholders(adapter: Adapter, path: Path, wrong: set[str]) -> Iterator[tuple[str, str]]:
    uses_program = bool(wrong & {"files", "launch"})
    for field, text, allowed in _texts(adapter, path):
        for match in _PLACEHOLDER.finditer(text):
            name = match[1]
            # With a wrong `needs` its programs are not known.
            if name is None or field.split(".")[0] in wrong or (name.startswith("exe:") and "needs" in wrong):
                continue
            if name not in allowed:
                known = ", ".join(f"{{{one}}}" for one in sorted(allowed))
                hint = (
                    "list it in needs.binaries"
                    if name.startswith("exe:")
                    else f"allowed here: {known}; {{{{ is a brace"
                )
                yield field, f"unknown placeholder {{{name}}}; {hint}"
            if name.startswith(("program", "number:")) and match[0] != text:
                yield field, f"{text!r}: {match[0]} must be an element of its own"
            uses_program = uses_program or name == "program"
    if not uses_program:
        yield "launch", "has no {program}, so nothing would run; put it where the submission's argv goes"


def _texts(adapter: Adapter, path: Path) -> Iterator[tuple[str, str, set[str]]]:
    """Yield every string that may hold placeholders, with its field and the allowed placeholders."""
    programs = {f"exe:{name}" for name in adapter.needs.binaries}
    fixed = _STATIC | programs
    limited = fixed | _LIMITS | {"bundle"}
    yield from (("launch", text, limited | {"program"}) for text in adapter.launch)
    locks = adapter.locks or Locks()
    yield from (("locks.waiting", text, limited | {"program"}) for text in locks.waiting)
    yield from (("locks.files", text, _STATIC) for text in locks.files)
    yield from (("locks.shared", text, _STATIC) for text in locks.shared)
    yield from (("version", text, programs) for text in adapter.version)
    yield from (("env", text, fixed) for text in adapter.env.values())
    yield from (("health", text, fixed) for text in adapter.health)
    yield from (("prepare", text, fixed | {"bundle"}) for command in adapter.prepare for text in command)
    yield from (("finish", text, fixed) for command in adapter.finish for text in command)
    yield from (("recover", text, fixed) for command in adapter.recover for text in command)
    in_json = limited | {f"number:{name}" for name in _LIMITS} | {"program"}
    for number, file in enumerate(adapter.files):
        yield f"files[{number}].path", file.path, _STATIC
        if file.text is not None:
            yield f"files[{number}].text", file.text, limited
        else:
            yield from ((f"files[{number}].json", text, in_json) for text in _strings(load_json(path, file)))
    for field, text in (("status.file", adapter.status.file), ("output", adapter.output), ("cwd", adapter.cwd)):
        yield field, text, _STATIC
    yield from (("state", text, {"box", "name", "unique"}) for text in adapter.state)
    yield from (("state_files", text, _STATIC) for text in adapter.state_files)
    yield "damage.log", adapter.damage.log, _STATIC
    yield from (("damage.keeps", text, {"box", "name", "unique"}) for text in adapter.damage.keeps)


def _problems_of_paths(adapter: Adapter) -> Iterator[tuple[str, str]]:
    paths = [(f"files[{number}].path", file.path) for number, file in enumerate(adapter.files)]
    paths += [("status.file", adapter.status.file), ("output", adapter.output), ("cwd", f"{adapter.cwd}/")]
    paths += [("state_files", path) for path in adapter.state_files]
    paths += [("damage.log", adapter.damage.log)]
    paths += [("locks.files", path) for path in (adapter.locks or Locks()).files]
    for field, text in paths:
        if text and not text.startswith(("/", "{work}/")):
            yield field, f"{text!r} is not absolute; start it with {{work}}/ or /"
    for field, places in (("binds", adapter.binds), ("state", adapter.state), ("damage.keeps", adapter.damage.keeps)):
        for place in places:
            if not place.startswith("/") or not place.strip("/*?"):
                yield field, f"{place!r}: give an absolute path below /"
    if bool(adapter.damage.log) != bool(adapter.damage.words):
        yield "damage", "log and words go together: where the line is, and how it is known"
    if adapter.locks is not None:
        yield from _problems_of_locks(adapter.locks)
    named = [("state_files", adapter.state_files), ("locks.files", (adapter.locks or Locks()).files)]
    for field, path in ((field, path) for field, files in named for path in files):
        # It stands in fault plans.
        if wrong := re.search(r"[\s,:]", path):
            yield field, f"{path!r}: {wrong[0]!r} cannot stand in it; put * in its place"


def _problems_of_locks(locks: Locks) -> Iterator[tuple[str, str]]:
    if wrong := [code for code in locks.busy if not 0 < code < 256]:
        yield "locks.busy", f"{wrong[0]}: give exit codes from 1 to 255"
    if "" in locks.words:
        yield "locks.words", "an empty word is in every output; remove it"
    if locks.waiting and "{program}" not in locks.waiting:
        yield "locks.waiting", "has no {program}, so nothing would run; put it where the submission's argv goes"
    for path in locks.shared:
        if not path.startswith("{work}/") or ".." in path.split("/"):
            yield "locks.shared", f"{path!r}: give a path below {{work}}/"
    # It may be nan.
    if not 0 < locks.within <= _LONGEST_WALL:
        yield "locks.within", f"{locks.within}: give seconds above 0, at most {_LONGEST_WALL}"


def _problems_of_values(adapter: Adapter) -> Iterator[tuple[str, str]]:
    for resource, words in adapter.exhaustion.words.items():
        if resource not in RESOURCES:
            yield "exhaustion.words", f"unknown resource {resource!r}; one of {', '.join(RESOURCES)}"
        if not all(word.strip() for word in words) or not words:
            yield "exhaustion.words", f"{resource}: give words that its error has; an empty one would be in each"
    # It may be nan.
    if not 0 < adapter.exhaustion.within <= _LONGEST_WALL:
        yield "exhaustion.within", f"{adapter.exhaustion.within}: give seconds above 0, at most {_LONGEST_WALL}"
    # It may be nan.
    if not 0 < adapter.shortest_wall <= _LONGEST_WALL:
        yield "shortest_wall", f"{adapter.shortest_wall}: give seconds above 0, at most {_LONGEST_WALL}"
    if "OK" not in adapter.reports:
        yield "reports", "lacks OK; without it there is nothing to run"
    if not adapter.time_limits:
        yield "time_limits", "is empty; give wall, cpu or both"
    for field, unfit, known in (
        ("languages_not", adapter.languages_not, set(LANGUAGES)),
        ("behaviours_not", adapter.behaviours_not, set(BEHAVIOURS)),
    ):
        for name, why in unfit.items():
            if name not in known:
                yield field, f"unknown name {name!r}; one of {', '.join(sorted(known))}"
            if not why.strip():
                yield field, f"{name}: give the reason"


def _problems_of_status(status: StatusReading) -> Iterator[tuple[str, str]]:
    if status.source == "exit":
        if status.file or status.status or status.statuses or status.exit_code or status.signal:
            yield "status", 'source is "exit", which reads no file; set it to "meta" or "json"'
        return
    if not status.file:
        yield "status.file", f'missing; source "{status.source}" reads one'
    if bool(status.status) != bool(status.statuses):
        yield "status", "status (the key) and statuses (its values) go together"


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, (dict, list)):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _strings(inner)


def fill(text: str, values: Values) -> str:
    """Return `text` with its placeholders filled from `values`."""

    def one(match: re.Match[str]) -> str:
        return match[0][0] if match[1] is None else str(values[match[1]])

    return _PLACEHOLDER.sub(one, text)


def fill_argv(argv: Sequence[str], values: Values) -> list[str]:
    """Return `argv` filled; the element ``{program}`` expands to the program's argv."""
    filled: list[str] = []
    for text in argv:
        filled.extend(values["program"] if text == "{program}" else [fill(text, values)])
    return filled


def fill_json(value: Any, values: Values) -> Any:
    """Return the JSON `value` with every string filled; ``{number:LIMIT}`` becomes a number."""
    if isinstance(value, str):
        whole = _PLACEHOLDER.fullmatch(value)
        if whole and whole[1] is not None and whole[1].startswith("number:"):
            return values[whole[1].removeprefix("number:")]
        return fill(value, values)
    if isinstance(value, dict):
        return {key: fill_json(inner, values) for key, inner in value.items()}
    if isinstance(value, list):
        filled: list[Any] = []
        for inner in value:
            filled.extend(values["program"] if inner == "{program}" else [fill_json(inner, values)])
        return filled
    return value
