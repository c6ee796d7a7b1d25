"""``leakcheck --demo-leak``: a real leak, planted by mkleak, reported and removed."""

import contextlib
import json
import os
import select
import subprocess
import tempfile
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import replace

from leakcheck._bin import helper
from leakcheck._native import KINDS
from leakcheck.arena import Arena, Process
from leakcheck.commands.guard import GuardOptions, guarded
from leakcheck.deliver import notify
from leakcheck.errors import TargetError, UsageError
from leakcheck.subprocesses import Interrupts

# mkleak's exit code for "this plant cannot exist here"; the reason is on stderr.
_NOT_HERE = 77
_READY_SECONDS = 30.0
# The plants that show their kind best; the other plants of the kind are tried after them.
_FIRST = (
    "orphan",
    "file-temp",
    "mount-tmpfs",
    "cgroup-v2",
    "lock-flock",
    "shm-sysv",
    "net-named-netns",
    "lockfile-stale",
)


def demo(name: str, options: GuardOptions) -> int:
    """Plant a leak of the kind or plant called `name`, report it like a guarded command's leak, and remove it."""
    kind, plants = _demo_of(name)
    observe = dict(options.observe)
    if observe["kinds"] is None:
        # The report folds a leaked process's descriptors into it, so a demo of descriptors observes only these.
        observe["kinds"] = kind if kind in ("fd", "lockfile", "process") else f"process,{kind}"

    with contextlib.ExitStack() as stack:
        directory = None
        if kind == "lockfile":
            # Lock files are checked only at declared paths, and mkleak puts its own pid into the name.
            directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="leakcheck-demo-"))
            observe["lock_files"] = [*observe["lock_files"], directory]

        @contextlib.contextmanager
        def plant(env: Mapping[str, str], _: Interrupts) -> Generator[tuple[list[str], int | None], None, None]:
            with _planted(plants, env, directory, options.arena) as plant:
                yield ["mkleak", plant], None
            notify(f"demo over: mkleak removed its leak ({plant})")

        return guarded(plant, replace(options, observe=observe))


def _demo_of(name: str) -> tuple[str, Sequence[str]]:
    """Return the kind and the plants of `name`, a kind or one of mkleak's plants; raise `UsageError` if it is none."""
    try:
        listed = subprocess.run(
            [helper("mkleak"), "--list", "--json"], stdin=subprocess.DEVNULL, capture_output=True, check=True
        )
        plants = {plant["name"]: plant["kind"] for plant in json.loads(listed.stdout)}
    except (OSError, subprocess.CalledProcessError, ValueError) as error:
        raise TargetError(f"list plants: {error}") from error
    if name in plants:
        return plants[name], [name]
    of_kind = sorted((plant for plant, kind in plants.items() if kind == name), key=lambda plant: plant not in _FIRST)
    if not of_kind:
        raise UsageError(f"demo leak {name!r}: give a kind ({', '.join(KINDS)}) or a plant (mkleak --list)")
    return name, of_kind


@contextlib.contextmanager
def _planted(
    plants: Sequence[str], env: Mapping[str, str], directory: str | None, arena: Arena | None
) -> Generator[str, None, None]:
    """Plant the first leak that can exist, in `directory` if it is a file; yield its name; remove it afterwards.

    mkleak cleans up at end of file on stdin, so the leak is removed even when this process is killed. If none of the
    plants can exist on this machine, or one fails, it raises `TargetError`.
    """
    for plant in plants:
        with _mkleak(plant, env, directory, arena) as (mkleak, answer):
            if answer.startswith("READY"):
                yield plant
                return
        if mkleak.returncode != _NOT_HERE:
            break
    raise TargetError(f"plant {plant}: {answer or f'mkleak ended with {mkleak.returncode}'}")


@contextlib.contextmanager
def _mkleak(
    plant: str, env: Mapping[str, str], directory: str | None, arena: Arena | None
) -> Generator[tuple[subprocess.Popen[bytes] | Process, str], None, None]:
    """Yield mkleak and its first line of output: READY, or the reason why not."""
    stdin, orders = os.pipe2(os.O_CLOEXEC)
    answers, stdout = os.pipe2(os.O_CLOEXEC)
    try:
        try:
            command = [str(helper("mkleak")), plant, *(["--dir", directory] if directory is not None else [])]
            start: Callable[..., subprocess.Popen[bytes] | Process] = arena.popen if arena else subprocess.Popen
            mkleak = start(command, env=env, stdin=stdin, stdout=stdout, stderr=stdout)
        finally:
            os.close(stdin)
            os.close(stdout)
        try:
            yield mkleak, _first_line(answers)
        finally:
            # End of file on its stdin tells mkleak to clean up.
            os.close(orders)
            mkleak.wait()
    finally:
        os.close(answers)


def _first_line(answers: int) -> str:
    # Do not read to the end of the pipe: a planted process may hold it open.
    said = b""
    readable = select.poll()
    readable.register(answers, select.POLLIN)
    while b"\n" not in said:
        if not readable.poll(_READY_SECONDS * 1000):
            raise TargetError(f"plant a leak: no output from mkleak for {_READY_SECONDS:.0f} s")
        if not (chunk := os.read(answers, 65536)):
            break
        said += chunk
    return said.decode(errors="backslashreplace").partition("\n")[0]
