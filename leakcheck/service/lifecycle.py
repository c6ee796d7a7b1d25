"""The processes of a service in an arena: started, killed, stopped, asked for health."""

import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Self
from urllib.parse import urlsplit

import msgspec

from leakcheck.arena import Arena
from leakcheck.arena import Process as Started
from leakcheck.errors import StoppedError, TargetError
from leakcheck.printable import printable
from leakcheck.service.client import Answer
from leakcheck.service.contract import DATA, Contract, Process, Role, filled
from leakcheck.service.network import Network
from leakcheck.service.scenario import Failed, NotApplicable
from leakcheck.trials.host import ENV as _ENV
from leakcheck.trials.rootfs import make_directory

__all__ = ["Processes"]

_STOP = 10.0
"""Seconds that a process has to end after SIGKILL."""
# Code that Python compiles is nothing that a job leaves.
ENV = _ENV | {"PYTHONDONTWRITEBYTECODE": "1", "PYTHONUNBUFFERED": "1"}
_LOG = 4000
_POLL = 0.03


class Processes:
    """The processes of `contract`, of the file at `path`, in `arena`. Leaving kills what is still there.

    `health` asks whether the service is ready; `stop` is whether the user wants to end; `backend_ended` is called when
    a backend is killed or stopped.
    """

    def __init__(
        self,
        contract: Contract,
        path: Path,
        arena: Arena,
        network: Network,
        health: Callable[[], Answer],
        stop: Callable[[], bool],
        backend_ended: Callable[[], object],
    ) -> None:
        self._contract, self._path, self._arena, self._network = contract, path, arena, network
        self._health, self._stop, self._backend_ended = health, stop, backend_ended
        self._values = contract.values(path)
        self.running: dict[str, Started] = {}
        self._processes = dict(contract.processes)
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - closed on leaving

    def __enter__(self) -> Self:
        root = os.open(f"/proc/{self._arena.init}/root", os.O_PATH | os.O_DIRECTORY)
        try:
            make_directory(root, Path(DATA))
        finally:
            os.close(root)
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.running.values():
            process.kill()
            process.close()
        self.running = {}
        self._log.close()

    def add(self, name: str, start: list[str], env: dict[str, str]) -> None:
        """Add a process that starts before the others, all of which have `env` added."""
        others = {
            other: msgspec.structs.replace(process, env=process.env | env) for other, process in self._processes.items()
        }
        self._processes = {name: Process(start=start, role="other")} | others

    def start_all(self) -> None:
        """Start all, and wait until the service is ready; raise `TargetError` with its last words if it is not."""
        for url in {self._contract.base_url, self._contract.web.url if self._contract.web else self._contract.base_url}:
            self._check_free(url)
        for name in self._processes:
            self.start(name)
        self.wait_ready()

    def start(self, name: str) -> None:
        """Start one process; raise `TargetError`."""
        process = self._processes[name]
        env = ENV | {key: str(filled(text, self._values)) for key, text in process.env.items()}
        argv, here = filled(process.start, self._values), self._values["contract_dir"]
        log = self._log.fileno()
        self.running[name] = self._arena.popen(argv, env=env, cwd=here, stdout=log, stderr=log)

    def command(self, argv: Sequence[str], *, timeout: float = 30) -> tuple[int, str]:
        """Run an operator's command, with the environment of the backend; return exit code and output."""
        env = dict(ENV)
        for name in self.named("backend") or [*self._processes][:1]:
            env |= {key: str(filled(text, self._values)) for key, text in self._processes[name].env.items()}
        with tempfile.TemporaryFile() as output:
            to = output.fileno()
            try:
                code = self._arena.run(
                    filled([*argv], self._values),
                    env=env,
                    cwd=self._values["contract_dir"],
                    stdout=to,
                    stderr=to,
                    timeout=timeout,
                )
            except subprocess.TimeoutExpired:
                raise Failed(f"{' '.join(argv)}: did not end within {timeout:g} s") from None
            output.seek(0)
            return code, output.read(_LOG).decode(errors="replace")

    def named(self, role: Role) -> list[str]:
        """Return the names of the processes with this role."""
        return [name for name, process in self._processes.items() if process.role == role]

    def needed(self, role: Role) -> list[str]:
        """Return the names of the processes with this role; raise `NotApplicable` if there are none."""
        if not (names := self.named(role)):
            raise NotApplicable(f"the contract has no process with the role {role}")
        return names

    def kill(self, name: str) -> None:
        """Kill one process, as a crash does, and wait until it is gone."""
        process = self._taken(name)
        process.kill()
        try:
            process.wait(_STOP)
        except subprocess.TimeoutExpired:
            raise Failed(f"{name}: still there {_STOP:g} s after SIGKILL") from None
        finally:
            process.close()

    def stop(self, name: str) -> None:
        """Stop one process by SIGTERM; raise `Failed` if it has not ended some seconds later."""
        process, limit = self._taken(name), self._contract.limits.stop
        try:
            process.send_signal(15)
            process.wait(limit)
        except subprocess.TimeoutExpired:
            process.kill()
            raise Failed(f"{name}: still runs {limit:g} s after SIGTERM") from None
        finally:
            process.close()

    def _taken(self, name: str) -> Started:
        """Return one process, which is about to end, and is not one that runs any more."""
        if self._processes[name].role == "backend":
            self._backend_ended()
        return self.running.pop(name)

    def stop_all(self) -> list[str]:
        """Stop all, the last started first; return what did not stop."""
        late = []
        for name in reversed([*self.running]):
            try:
                self.stop(name)
            except Failed as failed:
                late.append(str(failed))
        return late

    def wait_ready(self, seconds: float | None = None) -> None:
        """Wait until the service is healthy; raise `TargetError` if it is not in time or a process of it has ended."""
        limit = self._contract.health.timeout if seconds is None else seconds
        until, answer = time.monotonic() + limit, Answer(0)
        while True:
            if self._stop():
                raise StoppedError(f"{self._contract.name}: interrupted")
            for name, process in self.running.items():
                if (code := process.poll()) is not None:
                    raise TargetError(f"{self._contract.name}: {name} ended with {code}{self.last_words()}")
            answer = self._health()
            if answer.status == self._contract.health.status and self._web_listens():
                return
            if time.monotonic() > until:
                why = f"health {self._contract.health.path}: {answer}"
                raise TargetError(f"{self._contract.name}: not ready after {limit:g} s: {why}{self.last_words()}")
            time.sleep(_POLL)

    def _web_listens(self) -> bool:
        web = self._contract.web
        return (
            web is None or not any(name in self.running for name in self.named("frontend")) or (self._listens(web.url))
        )

    def _listens(self, url: str) -> bool:
        parts = urlsplit(url)
        host = "127.0.0.1" if parts.hostname == "localhost" else parts.hostname or ""
        try:
            self._network.connect(host, parts.port or 80, 1).close()
        except OSError:
            return False
        return True

    def ended(self) -> list[str]:
        """Return which of its processes have ended by themselves, with their exit codes."""
        return [f"{name} ended with {code}" for name, one in self.running.items() if (code := one.poll()) is not None]

    def last_words(self) -> str:
        """Return the end of what its processes printed, for a message."""
        size = os.fstat(self._log.fileno()).st_size
        text = os.pread(self._log.fileno(), _LOG, max(0, size - _LOG)).decode(errors="replace")
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        return f"; it printed: {printable(' | '.join(lines[-4:]))}" if lines else "; it printed nothing"

    def _check_free(self, url: str) -> None:
        if self._listens(url):
            raise TargetError(f"{self._contract.name}: {url} is in use before it was started")
