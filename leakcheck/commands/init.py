"""``leakcheck init``: write an adapter to start from."""

import json
import os
import re
import shlex
from collections.abc import Sequence
from pathlib import Path

from leakcheck.commands import CLEAN
from leakcheck.errors import UsageError, reason
from leakcheck.subprocesses import why_not_run
from leakcheck.targets.adapter import parse_adapter
from leakcheck.targets.executables import binds, find
from leakcheck.targets.registry import load, names

_TIMEOUT = ["/usr/bin/timeout", "--kill-after=1", "{wall}"]

_TEMPLATE = """\
# This describes the sandbox {name} for leakcheck. After each change: leakcheck check {path}
# The other fields are in docs/how-to/adapter.md.

name = "{name}"
# One line: what it is, and who enforces its wall limit.
summary = {summary}

# Runs one submission. {{program}} becomes the submission's argv, {{wall}} its wall limit in seconds, {{work}} a
# directory of this box alone, {{name}} a name that no other box has. Its commands start in /, so paths are absolute.
{launch}
{binds}
# Prints the version: a report then says which one leaked.
# version = [{first}, "--version"]

# After a normal run, as in create, run, delete.
# finish = [[{first}, "delete", "{{name}}"]]

# After a crash: removes what a killed run left. It succeeds if there is nothing to do.
# recover = [[{first}, "delete", "--force", "{{name}}"]]

# Each run has a new {{name}}, as containers have it. If the sandbox uses its boxes again: box = "reused", and {{box}},
# a number, instead of {{name}}.

# Paths of the machine that the sandbox owns: it may change there what existed before.
# state = ["/var/lib/{name}"]

# How two runs are kept out of one box, if boxes are used again: lock files, and the exit code of a launch that finds
# its box in use. leakcheck locks lets runs contend for one.
# locks = {{ files = ["/run/{name}/{{box}}.lock"], busy = [3] }}

# What its errors say when the machine lacks something, for leakcheck exhaust.
# exhaustion = {{ words = {{ disk = ["no space left"], fd = ["too many open files"] }} }}

# The payload checks that the isolation is on, and leakcheck check says what holds here. namespaces: types whose link
# in /proc/self/ns differs inside. hidden = true: it does not find a file in the outside's /tmp. unreadable = true: it
# cannot read that file (Landlock). seccomp = true: it has a seccomp filter.
probe = {{ namespaces = ["mnt", "pid"] }}

# The exit code is the status: 0 is OK, 128+N a death by signal N; these mean TLE, and a fault of the sandbox itself.
# If it writes a status file, read that instead: source = "json" or "meta".
{status}

[needs]
# Whether only root can run it.
root = false
# Programs that it needs; {{exe:NAME}} in a command is the path of one.
binaries = {binaries}
"""


def init(target: str, command: Sequence[str]) -> int:
    """Write the adapter `target` (a name or a path), which runs `command`; print what to do next."""
    path = Path(target if target.endswith(".toml") or os.sep in target else f"{target}.toml")
    name = path.stem
    if path.suffix != ".toml" or not re.fullmatch(r"[a-z0-9][a-z0-9-]*", name):
        raise UsageError(f"{target!r}: give a name of lower-case letters, digits and dashes, or a path NAME.toml")
    if name in names():
        built_in = load(name).path
        raise UsageError(
            f"{name} is built in: run leakcheck check {name}; to change it, copy {built_in} to another name"
        )
    text = _adapter(name, path, command)
    parse_adapter(text, path)
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise UsageError(f"{path} exists, and is not overwritten: give another name, or remove it first") from None
    except OSError as error:
        raise UsageError(f"write {path}: {reason(error)}") from error
    shown = path if path.is_absolute() or os.sep in str(path) else f"./{path}"
    if not command:
        print(f"wrote {path}; put your sandbox's command line in its launch")
    else:
        print(f"wrote {path}")
    print(f"next: leakcheck check {shlex.quote(str(shown))}")
    return CLEAN


def _adapter(name: str, path: Path, command: Sequence[str]) -> str:
    launch, binaries, shown = _launch(command)
    limited = any("{wall}" in word for word in command)
    if "{program}" not in launch:
        launch += [*([] if limited else _TIMEOUT), "{program}"]
    elif not limited:
        at = launch.index("{program}")
        launch[at:at] = _TIMEOUT
    note = "# To do: put the command line of your sandbox first.\n" if not command else ""
    if not limited:
        binaries = [*binaries, "timeout"]
        note += (
            "# timeout runs inside the sandbox: around it, a crash test would kill timeout instead of the sandbox.\n"
        )
    status = "status = { timeout = [], internal = [] }"
    of_timeout = "status = { timeout = [124, 137], internal = [125, 126, 127] }"
    who = "who enforces its wall limit: to do" if limited else "timeout inside it has the wall limit"
    binds_line = ""
    if shown:
        binds_line = (
            f"# An arena has its own /tmp, /run, /var/tmp and /dev: it shows these, too.\nbinds = {_array(shown)}\n"
        )
    return _TEMPLATE.format(
        name=name,
        path=shlex.quote(str(path)),
        summary=_quoted(f"{name}; {who}"),
        launch=f"{note}launch = {_array(launch)}",
        binds=binds_line,
        first=_quoted(launch[0]),
        status=status if limited else of_timeout,
        binaries=_array(binaries),
    )


def _launch(command: Sequence[str]) -> tuple[list[str], list[str], list[str]]:
    """Return the launch, the programs, and the paths that an arena must be told to show.

    Commands of an adapter start in /, so a relative path of a file becomes absolute.
    """
    if not command:
        return [], [], []
    program, *rest = command
    if os.sep in program:
        binary = str(Path(program).absolute())
        if not os.access(binary, os.X_OK) or Path(binary).is_dir():
            error = FileNotFoundError(2, "") if not Path(binary).exists() else PermissionError(13, "")
            raise UsageError(f"run {program}: {why_not_run(binary, error)}")
        first = _literal(binary)
    else:
        if find(program) is None:
            raise UsageError(f"run {program}: no such command on PATH; give its path, such as ./{program}")
        first, binary = f"{{exe:{program}}}", program
    # A word without a slash or a dot is rather a subcommand than the file of that name.
    files = {word: str(Path(word).absolute()) for word in rest if re.search(r"[/.]", word) and Path(word).exists()}
    shown = [source for source, _, _ in binds(files.values()) if not source.startswith("/dev/")]
    return [first, *(_literal(files[word]) if word in files else word for word in rest)], [binary], shown


def _literal(path: str) -> str:
    """Return `path` for a command of an adapter, in which braces are placeholders."""
    return path.replace("{", "{{").replace("}", "}}")


def _quoted(text: str) -> str:
    """Return `text` as a TOML string, which is a JSON string without DEL (TOML 1.0, String)."""
    text.encode()
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _array(words: Sequence[str]) -> str:
    return f"[{', '.join(map(_quoted, words))}]"
