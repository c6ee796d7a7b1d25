"""A target's commands in one box of a host, each with a time limit."""

import secrets
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from injectors import Checked, Evidence, Exhausts
from leakcheck.errors import LateError, TargetError, reason
from leakcheck.report import Command
from leakcheck.submissions import BUILTIN, Submission
from leakcheck.targets import Box, Reply, Target
from leakcheck.trials.exhausted import Exhausted, run_exhausted
from leakcheck.trials.host import Host, Running
from leakcheck.trials.output import last_words, memory, text
from leakcheck.trials.payload import ObservedRun, install, lacking, printed
from leakcheck.trials.runner import Runner, Stop, never

NEXT = BUILTIN["ok"]
"""The next submission in a box, to check that the box still works."""

# Distance between the numbers in successive names of one box; the numbers of boxes are lower.
_APART = 10_000


class Done(msgspec.Struct, frozen=True):
    """The result of a run: the target's reply, exit code, last output, and processor time in seconds."""

    reply: Reply
    code: int
    words: str
    cpu: float | None = None


class Session(Runner):
    """Runs a target's commands in one box of a host, and times what it does. `env` is added to their environment."""

    def __init__(
        self,
        target: Target,
        host: Host,
        number: int = 0,
        *,
        work: Path | None = None,
        stop: Stop = never,
        late: Callable[[Running], None] | None = None,
    ) -> None:
        super().__init__(target.name, host, number, stop=stop, late=late)
        self.target = target
        self.box = Box(number=number, work=work or host.work)
        self.waits = False
        """Whether launches wait for a box that is in use."""
        self.token = ""
        """What ``{unique}`` has in each run; empty: another one in each."""
        self.env: dict[str, str] = {}
        self.prepared = True
        """Whether the last preparation may have changed something."""
        self.succeeded = False
        """Whether the last run under a fault, and what follows a normal one, reported nothing but success."""
        self.exhausted: Exhausted | None = None
        """What is known of the last run under an exhausted resource."""
        self.limit: Exhausts | None = None
        """What exhausts a resource now."""
        self.last_words = ""
        self.commands: list[Command] = []
        """The last commands of a recovery or the like, and how they ended."""
        self._names = 0

    def environment(self) -> tuple[dict[str, str], str]:
        """Return the environment of the target's commands, and the directory in which they start."""
        return self.target.env(self.box) | self.env, self.target.cwd(self.box)

    def filled(self, path: str) -> str:
        """Return a path, as the adapter names it, as that of this box."""
        return self.target.filled(path, self.box)

    def renew(self) -> None:
        """Give the box a new name, if boxes are not reused."""
        if self.target.adapter.fresh:
            self._names += 1
            name = self.target.name_of(self.box.number + self._names * _APART)
            self.box = msgspec.structs.replace(self.box, name=name)

    def prepare(self, submission: Submission) -> list[str]:
        """Prepare the box, and return the command line that runs `submission` in it."""
        self.box = msgspec.structs.replace(self.box, run=self.token or secrets.token_hex(6))
        install(self.host, submission)
        commands = self.target.prepare_commands(self.box, submission)
        self._commands("prepare", commands)
        launch = self.target.launch(submission, self.box, waiting=self.waits)
        self.prepared = bool(commands or launch.files)
        for path, content in launch.files.items():
            try:
                self.host.write(Path(path), content.encode())
            except OSError as error:
                raise TargetError(f"write {path}: {reason(error)}") from error
        for stale in (self.target.status_file(self.box), self.target.output_file(self.box)):
            if stale is not None:
                self._empty(stale)
        return launch.argv

    def _empty(self, path: Path) -> None:
        """Empty the last run's status or output: it must not be read as that of a run that wrote none."""
        try:
            if self.host.read(path):
                self.prepared = True
                self.host.write(path, b"")
        except FileNotFoundError:
            return
        except OSError as error:
            raise TargetError(f"empty {path}: {reason(error)}") from error

    def output_of(self, argv: Sequence[str], limit: float = 0) -> str:
        """Run a command for at most `limit` seconds plus grace; return its output."""
        with memory() as output:
            self.wait(self.start(argv, output), limit, argv[0])
            return text(output)

    def payload_output(self, argv: Sequence[str], submission: Submission) -> tuple[str, int, str]:
        """Run `submission` to its end, whatever its status; return what it printed, the exit code and last words."""
        with memory() as output:
            code = self.wait(self.start(argv, output), submission.wall, argv[0])
            shown = printed(self, output), code, last_words(output)
        self.finish()
        return shown

    def run_crashed(self, argv: Sequence[str], submission: Submission) -> None:
        """Run `submission` under a tracer that kills it, whatever the target reports."""
        with memory() as output:
            process = self.start(argv, output, stage="launch", payload=submission.program)
            self.wait(process, submission.wall, argv[0])

    def finish(self) -> None:
        """Run the commands that follow a normal end."""
        self._commands("finish", self.target.finish_commands(self.box))

    def submit(self, argv: Sequence[str], submission: Submission) -> Done:
        """Run `submission` to its end, and the commands that follow a normal one."""
        with memory() as output:
            process = self.start(argv, output, stage="launch", payload=submission.program)
            done = self._finished(process, submission, argv, output)
        self.finish()
        return done

    def _finished(self, process: Running, submission: Submission, argv: Sequence[str], output: int) -> Done:
        code = self.wait(process, submission.wall, argv[0])
        words = last_words(output)
        try:
            reply = self.target.status(code, self.box, self.host.read)
        except TargetError as error:
            raise TargetError(f"{error}: {words}") from error
        return Done(reply, code, words, process.cpu)

    def run(self, argv: Sequence[str], submission: Submission) -> str:
        """Run `submission` to its end; return what is wrong with the status, empty if nothing."""
        done = self.submit(argv, submission)
        return _wrong(done, submission.expect) if done.reply.status != submission.expect else ""

    def prepare_under(self, injector: Checked, submission: Submission) -> tuple[Evidence, str]:
        """Prepare the box under a fault. If that reports success all the same, `run_under` follows."""
        try:
            argv = self.prepare(submission)
        except LateError:
            raise
        except TargetError as error:
            hit = bool(self.fired("prepare") or self.hits("prepare"))
            return Evidence(fired=hit), "" if hit else str(error)
        if injector.stage == "prepare" and (self.fired("prepare") or not self.hits("prepare")):
            return Evidence(fired=False), ""
        return self.run_under(injector, argv, submission)

    def run_under(self, injector: Checked, argv: Sequence[str], submission: Submission) -> tuple[Evidence, str]:
        """Run `submission` under a fault to its end; return whether the fault happened, and the error in the status.

        A run hit by the fault may have any status, except OK if it would not be OK without the fault. If it does not
        end, it raises `LateError`.
        """
        if injector.exhausts is not None:
            return run_exhausted(self, injector, injector.exhausts, argv, submission)
        self.succeeded = False
        with memory() as output:
            process = self.start(argv, output, injector.launch_env, stage="launch", payload=submission.program)
            run = ObservedRun(self, process, output)
            evidence = injector.apply(run)
            ordinary = injector.continues or not evidence.fired
            wrong = ""
            try:
                done = self._finished(process, submission, argv, output)
                status, self.last_words = done.reply.status, done.words
                if status == "OK" == submission.expect and (lacks := lacking(self, injector, submission, output)):
                    wrong = f"status OK of a run whose payload {lacks}: {done.words}"
                elif (status == "OK" or injector.harmless) and status != submission.expect:
                    wrong = _wrong(done, submission.expect)
                if ordinary:
                    self.finish()
                    self.succeeded = status == submission.expect and self._hit() and not self.fired()
            except LateError:
                raise
            except TargetError as error:
                wrong = str(error) if ordinary and not self._hit() else ""
            return msgspec.structs.replace(evidence, fired=injector.between(run) and evidence.fired), wrong

    def _hit(self) -> bool:
        """Return whether a traced fault happened before the recovery."""
        return any(map(self.hits, ("prepare", "launch", "finish")))

    def again(self, submission: Submission = NEXT) -> str:
        """Run the next submission in the box; return what is wrong with it."""
        try:
            return self.run(self.prepare(submission), submission)
        except TargetError as error:
            return str(error)

    def recover(self, *, again: bool = True) -> str:
        """Run the target's recovery; return what is wrong with it. One that a fault interrupted is run `again`.

        So is one that reported a fault; one that did not end stays wrong.
        """
        wrong = self._complaint("recover", *self.target.recover_commands(self.box))
        if again and (self.fired("recover") or (wrong and self.hits("recover") and not self.late)):
            wrong = self._complaint("recover", *self.target.recover_commands(self.box))
        return wrong

    def health(self) -> str:
        """Run the target's health check; return what is wrong, empty if nothing or if the target has none."""
        return self._complaint("health", *filter(None, [self.target.health_command(self.box)]))

    def _complaint(self, what: str, *commands: Sequence[str]) -> str:
        try:
            self._commands(what, commands)
        except TargetError as error:
            return str(error)
        return ""

    def _commands(self, what: str, commands: Sequence[Sequence[str]]) -> None:
        self.commands = done = []
        for number, argv in enumerate(commands):
            with memory() as output:
                done.append(Command(argv=[*argv]))
                code = self.wait(self.start(argv, output, stage=what, number=number), 0, argv[0])
                done[-1] = Command(argv=[*argv], exit=code, output=last_words(output, ""))
                if code != 0:
                    raise TargetError(f"{what}: {Path(argv[0]).name} ended with {code}: {last_words(output)}")


def _wrong(done: Done, expect: str) -> str:
    return f"status {done.reply.status}, not {expect}: {done.words}"
