"""Scenarios with a real browser: Chromium in the service's arena, driven by Playwright."""

import contextlib
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator
from pathlib import Path
from typing import IO, Any

import leakcheck
from leakcheck.service.client import Client
from leakcheck.service.history import AT_WORK
from leakcheck.service.lifecycle import ENV
from leakcheck.service.scenario import Failed, NotApplicable, check, scenario
from leakcheck.service.stage import Stage

__all__: list[str] = []

_HOME = "/tmp/leakcheck-browser"  # noqa: S108 - the arena's own
_FONTS = f"<fontconfig><dir>/usr/share/fonts</dir><cachedir>{_HOME}/fonts</cachedir></fontconfig>"
"""Otherwise the browser of root writes into the cache of the whole machine (fonts-conf(5))."""
_REFRESHES = 5
_PATIENCE = 90.0
_CHECKOUT = Path(leakcheck.__file__).resolve().parents[1]


def _needed(stage: Stage) -> tuple[str, Client]:
    """Return the browser's path and a client; raise `NotApplicable` if something is missing."""
    web = stage.contract.web
    if web is None or not web.job_path or not web.state:
        raise NotApplicable("the contract has no web.job_path and web.state")
    if importlib.util.find_spec("playwright") is None:
        raise NotApplicable("playwright is not installed on this machine (extra browser)")
    if (program := shutil.which("chromium") or shutil.which("chromium-browser")) is None:
        raise NotApplicable("no chromium on this machine: apt-get install chromium")
    return program, stage.client()


@contextlib.contextmanager
def _opened(
    stage: Stage, program: str, job: str, times: int, *, stay: bool = False
) -> Generator[tuple[Any, IO[bytes]], None, None]:
    """Start a browser that opens the page of a job; yield it and what it prints. It leaves nothing in the end."""
    web = stage.contract.web
    assert web is not None  # noqa: S101 - `_needed` was called
    asked = {"url": web.url + web.job_path.replace("{id}", job), "selector": web.state, "times": times}
    words = json.dumps(asked | {"program": program, "stay": stay})
    root = Path(f"/proc/{stage.arena.init}/root")
    home = root / _HOME.lstrip("/")
    home.mkdir()
    (home / "fonts.conf").write_text(_FONTS)
    before, files = stage.arena.pids(), _names(root)
    env = ENV | {
        "HOME": _HOME,
        "TMPDIR": _HOME,
        "XDG_CONFIG_HOME": _HOME,
        "FONTCONFIG_FILE": f"{_HOME}/fonts.conf",
        "PYTHONPATH": str(_CHECKOUT),
    }
    with tempfile.TemporaryFile() as output:
        argv = [sys.executable, "-m", "leakcheck.service.browser_program", words]
        process = stage.arena.popen(argv, env=env, stdout=output.fileno(), stderr=output.fileno())
        try:
            yield process, output
        finally:
            process.close()
            _kill(stage, before)
            shutil.rmtree(home, ignore_errors=True)
            for path in _names(root) - files:
                # What it puts beside its directory is not the service's.
                if "chromium" in path.name.lower():
                    shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)


def _names(root: Path) -> set[Path]:
    return {path for at in ("tmp", "dev/shm") for path in (root / at).iterdir()}


def _kill(stage: Stage, before: set[int]) -> None:
    """Kill what the browser started, as the end of its user's session does, and wait until it is gone."""
    until = time.monotonic() + 10
    while (rest := _browsers(stage, before)) and time.monotonic() < until:
        for pid in rest:
            with contextlib.suppress(ProcessLookupError):
                pidfd = os.pidfd_open(pid)
                try:
                    if pid in _browsers(stage, before):
                        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
                finally:
                    os.close(pidfd)
        time.sleep(0.05)


def _browsers(stage: Stage, before: set[int]) -> set[int]:
    """Return which new processes are of the browser: their home is its."""
    found = set()
    for pid in stage.arena.pids() - before:
        with contextlib.suppress(OSError):
            if f"HOME={_HOME}".encode() in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
                found.add(pid)
    return found


def _shown(output: IO[bytes]) -> list[dict[str, Any]]:
    text = os.pread(output.fileno(), 1 << 20, 0).decode(errors="replace")
    found = []
    for line in text.splitlines():
        with contextlib.suppress(ValueError):
            if isinstance(one := json.loads(line), dict):
                found.append(one)
    return found


def _words(output: IO[bytes]) -> str:
    return " ".join(os.pread(output.fileno(), 1 << 16, 0).decode(errors="replace").split())[-300:]


@scenario("S1.7", "browser killed mid-run: the run goes on, and the page that is opened again shows it", slow=True)
def browser_killed(stage: Stage) -> Any:
    """Open the page of a run in Chromium, kill Chromium, and open it again."""
    program, client = _needed(stage)
    job = client.created("long")
    client.wait(job, AT_WORK)
    with _opened(stage, program, job, 1, stay=True) as (process, output):
        until = time.monotonic() + _PATIENCE
        while not _shown(output):
            check(process.poll() is None and time.monotonic() < until, f"the browser shows nothing: {_words(output)}")
            time.sleep(0.05)
    seen = client.get(job)
    check(seen.place in AT_WORK, f"after its browser was killed the run was {seen.state}")
    shown = _all(stage, program, job, 1)
    check(shown[0]["state"] == client.get(job).state, f"the page shows {shown[0]['state']}, the run is {seen.state}")
    client.cancel(job)
    client.wait(job)
    return {"status": shown[0]["status"]}


@scenario("S1.8", "refresh torture in a browser: one state each time, no error, and no ghost run", slow=True)
def browser_refresh(stage: Stage) -> Any:
    """Reload the pages of a run and of a failed job in Chromium."""
    program, client = _needed(stage)
    times, done = (2 * _REFRESHES if stage.full else _REFRESHES), []
    for kind, place in (("long", "running"), ("fails", "failed")):
        if kind not in stage.contract.jobs.payload:
            continue
        job = client.created(kind)
        client.wait(job, AT_WORK if place == "running" else (place,))
        before = {one.job for one in client.list()} if stage.contract.jobs.list is not None else set()
        shown = _all(stage, program, job, times)
        right = {
            state for state, where in stage.contract.place_of_state.items() if where == place or place == "running"
        }
        wrong = [one for one in shown if one["status"] != 200 or one["state"] not in right or one["errors"]]
        check(not wrong, f"a page of a run that was {place}: {wrong[:1]}")
        if stage.contract.jobs.list is not None:
            ghosts = {one.job for one in client.list()} - before
            check(not ghosts, f"reloading the page started {len(ghosts)} ghost runs")
        if place == "running":
            client.cancel(job)
            client.wait(job)
        done.append(place)
    if not done:
        raise NotApplicable("the contract has neither jobs.payload.long nor jobs.payload.fails")
    return {"reloads": times, "why": ", ".join(done)}


def _all(stage: Stage, program: str, job: str, times: int) -> list[dict[str, Any]]:
    with _opened(stage, program, job, times) as (process, output):
        try:
            code = process.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            raise Failed(f"the browser did not end within {_PATIENCE:g} s: {_words(output)}") from None
        shown = _shown(output)
        check(code == 0 and len(shown) == times, f"the browser ended with {code}: {_words(output)}")
        return shown
