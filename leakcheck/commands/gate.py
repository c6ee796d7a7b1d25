"""``leakcheck gate``: everything of a project's configuration that this machine can run, and one page of it.

Each step is a command of its own process, so that none can take another down; its exit code decides.
"""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal, TypeAlias

import msgspec
from rich.console import Console
from rich.text import Text

from leakcheck.commands import CLEAN, INTERRUPTED, LEAKED, UNKNOWN
from leakcheck.config import CAMPAIGNS, Config
from leakcheck.deliver import deliver, notify, output_to, show_progress
from leakcheck.errors import GivenUp, LeakcheckError, UsageError
from leakcheck.render import line, print_lines
from leakcheck.service.contract import load_contract
from leakcheck.subprocesses import Interrupts
from leakcheck.targets import load

State: TypeAlias = Literal["pass", "fail", "unknown", "skip"]
_STYLE = {"pass": "green", "fail": "bold red", "unknown": "yellow", "skip": "yellow"}
_STATES: dict[int, State] = {0: "pass", 3: "unknown"}
"""What exit codes mean; all others fail the gate."""
_NO_TESTS = 5
"""pytest's exit code if it collected nothing."""
_DEFAULT_TARGET, _FEW = "refbox", ("--iterations", "20")
_OWN = "leakcheck: "


class Step(msgspec.Struct, frozen=True):
    """A step: its name, its command, and why it is skipped, if it is."""

    name: str
    argv: list[str]
    skip: str = ""


class Ended(msgspec.Struct, frozen=True):
    """How a step ended: the line of it that tells most, the last lines if it did not pass, and how long it took."""

    name: str
    state: State
    said: str
    seconds: float
    argv: list[str]
    output: list[str] = []


def gate(
    config: Config, only: Sequence[str], skip: Sequence[str], limit: float, output: Path | None, *, as_json: bool
) -> int:
    """Run the steps of `config`, each for at most `limit` seconds; 1 if one fails, 3 if one is unknown or none passed.

    `only` and `skip` have names of steps, or the first words of some.
    """
    steps = _selected([*_steps(config)], only, skip)
    ended: list[Ended] = []
    with output_to(output) as place, Interrupts() as interrupts:
        for number, step in enumerate(steps, 1):
            if interrupts.seen():
                break
            show_progress(f"gate: {step.name}, {number} of {len(steps)}")
            ended.append(_run(step, limit, interrupts))
        show_progress("")
        states = {one.state for one in ended}
        code = LEAKED if "fail" in states else UNKNOWN if "unknown" in states or "pass" not in states else CLEAN
        where = str(config.path or "")
        text = msgspec.json.encode({"schema": "leakcheck.gate/1", "configuration": where, "steps": ended}).decode()
        show = None if as_json else lambda: print_lines(_page(ended, where), Console(stderr=True))
        code = deliver(code, text, place, show)
        return INTERRUPTED if interrupts.seen() else code


def _steps(config: Config) -> Iterator[Step]:
    """Yield the steps.

    They are the check of the configuration; the preflight checks that ``[doctor]`` names; the conformance of each
    target; each campaign and verify that has a table, or a few trials of `leaks` if none has; the job service
    if there is a table ``[service]``; and the pytest suite if there is one ``[pytest]``.
    """
    above = [sys.executable, "-m", "leakcheck"]
    above += ["--config", str(config.path)] if config.path is not None else ["--no-config"]
    above += ["--profile", config.profile] if config.profile else []
    yield Step("configuration", [*above, "config"])
    if (checks := config.settings("doctor").get("preflight")) is not None:
        names = checks.value if isinstance(checks.value, str) else ",".join(checks.value)
        yield Step("preflight", [*above, "doctor", "--preflight", names])
    chosen = str(config.table.get("target", _DEFAULT_TARGET))
    missing = {name: _why_not(config, name) for name in dict.fromkeys([*config.targets, chosen])}
    for name, why in missing.items():
        yield Step(f"check {name}", [*above, "check", name], why)
    tables = [name for name in (*CAMPAIGNS, "verify") if _has_table(config, name)]
    for name in tables or ["leaks"]:
        setting = config.settings(name).get("target")
        # verify may have several targets.
        targets = [] if setting is None else [setting.value] if isinstance(setting.value, str) else setting.value
        reasons = [missing.get(one) or _why_not(config, one) for one in targets or [chosen]]
        why = reasons[0] if all(reasons) else ""
        yield Step(name, [*above, name, *([] if tables else _FEW)], why)
    if _has_table(config, "service"):
        yield Step("service", [*above, "service"], _why_no_service(config))
    if "pytest" in config.table:
        yield Step("pytest", [sys.executable, "-m", "pytest", "-q", "--leakcheck="])


def _has_table(config: Config, name: str) -> bool:
    profile = config.table.get("profiles", {}).get(config.profile, {})
    return name in config.table or name in profile


def _why_not(config: Config, name: str) -> str:
    """Return why a target cannot run here; nothing if it can, or if its own command is to say what is wrong with it."""
    try:
        state = load(config.targets.get(name, name)).availability()
    except LeakcheckError:
        return ""
    if state.state == "ready":
        return ""
    return f"{state.reason}{f'; {state.hint}' if state.hint else ''}"


def _why_no_service(config: Config) -> str:
    setting = config.settings("service").get("contract")
    if setting is None or not isinstance(setting.value, str):
        return ""
    try:
        path = Path(config.beside(setting.value))
        missing = load_contract(path).missing(path)
    except LeakcheckError:
        return ""
    return f"the service needs {', '.join(missing)}" if missing else ""


def _selected(steps: list[Step], only: Sequence[str], skip: Sequence[str]) -> list[Step]:
    def named(step: Step, words: Sequence[str]) -> bool:
        return step.name in words or step.name.split()[0] in words

    names = [step.name for step in steps]
    for word in (*only, *skip):
        if not any(named(step, [word]) for step in steps):
            raise UsageError(f"gate {word!r}: there is no such step; the configuration gives {', '.join(names)}")
    return [step for step in steps if (not only or named(step, only)) and not named(step, skip)]


def _run(step: Step, limit: float, interrupts: Interrupts) -> Ended:
    if step.skip:
        return Ended(step.name, "skip", step.skip, 0, step.argv)
    began = time.monotonic()
    with tempfile.TemporaryFile() as written:
        code = _code(step.argv, written.fileno(), began + limit, interrupts)
        written.seek(0)
        lines = [text.rstrip() for text in written.read().decode(errors="replace").splitlines() if text.strip()]
    seconds = round(time.monotonic() - began, 2)
    if code is None:
        return Ended(step.name, "fail", f"did not end in {limit:g} s, and was killed", seconds, step.argv, lines[-15:])
    if step.name == "pytest" and code == _NO_TESTS:
        return Ended(step.name, "skip", "there are no tests from here on", seconds, step.argv)
    state = "unknown" if code == INTERRUPTED and interrupts.seen() else _STATES.get(code, "fail")
    if state == "pass" and step.name == "configuration":
        lines = ["every option of it is right"]
    elif state == "pass" and step.name.startswith("check "):
        lines = [f"all {len(lines)} checks of the adapter"]
    return Ended(step.name, state, _said(lines, code), seconds, step.argv, [] if state == "pass" else lines[-15:])


def _code(argv: Sequence[str], written: int, end: float, interrupts: Interrupts) -> int | None:
    """Run a command and return its exit code; None if it had to be killed at its time limit."""
    # Its own process group: Ctrl-C of the terminal comes once, through us.
    null = subprocess.DEVNULL
    process = subprocess.Popen(argv, stdin=null, stdout=written, stderr=written, process_group=0)
    pidfd = os.pidfd_open(process.pid)
    try:
        with interrupts.reaching(lambda number: signal.pidfd_send_signal(pidfd, number)):
            in_time = interrupts.wait(pidfd, stuck=lambda: time.monotonic() > end)
        if in_time:
            return process.wait()
        return None
    except GivenUp:
        notify(f"interrupted: {argv[-1]} was killed")
        raise
    finally:
        if process.poll() is None:
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            process.wait()
        os.close(pidfd)


def _said(lines: Sequence[str], code: int) -> str:
    """Return our own last verdict among the lines, or the last line of all."""
    own = [text.removeprefix(_OWN) for text in lines if text.startswith(_OWN)]
    verdicts = [text for text in own if text.startswith(("clean", "leaked", "unknown"))]
    said = (verdicts or [text for text in own if not text.startswith("configuration:")] or lines or [""])[-1]
    return said.strip() or f"exit {code}"


def _page(ended: Sequence[Ended], configuration: str) -> Iterator[Text]:
    yield line(("gate ", "bold"), configuration or "without a configuration file")
    width = max((len(one.name) for one in ended), default=0)
    for one in ended:
        took = "" if one.state == "skip" else f"  {one.seconds:.1f} s"
        yield line("  ", (f"{one.state:<8}", _STYLE[one.state]), f"{one.name:<{width}}  {one.said}", (took, "dim"))
        if one.state in ("fail", "unknown"):
            yield from (line("      | ", (text, "dim")) for text in one.output)
    states = [one.state for one in ended]
    yield line(
        ("  summary ", "bold"), ", ".join(f"{states.count(state)} {state}" for state in _STYLE if state in states)
    )
