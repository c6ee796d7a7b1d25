"""The report as typed, frozen data; its JSON is the contract ``leakcheck.report/1``."""

from typing import Any, Literal, TypeAlias

import msgspec

from leakcheck.errors import UsageError

SCHEMA = "leakcheck.report/1"

Verdict: TypeAlias = Literal["clean", "leaked", "unknown"]
Level: TypeAlias = Literal["full", "partial", "none"]
Status: TypeAlias = Literal["pass", "fail", "inconclusive", "not applicable"]
"""What came of a requirement, or of a criterion."""


class Leak(msgspec.Struct, frozen=True, kw_only=True):
    r"""Residue that no allow rule explains.

    `label` is a printable phrase for the resource; bytes of hostile names are escaped as ``\xNN``. `key` is
    the identity within one boot: equal if and only if two observations saw the same resource. `evidence` holds
    ``resource`` (the whole record), ``who`` (who made or holds it), ``since`` (ISO 8601), ``inspect`` (a shell command)
    and details by kind.
    """

    kind: str
    class_: str = msgspec.field(name="class")
    label: str
    attribution: str = "none"
    key: str = ""
    evidence: dict[str, Any] = {}

    @property
    def who(self) -> str | None:
        """Who made or holds the resource, as a phrase; None if unknown."""
        return _text(self.evidence.get("who"))

    @property
    def since(self) -> str | None:
        """When it was created, ISO 8601 in UTC; None if the kernel keeps no time."""
        return _text(self.evidence.get("since"))

    @property
    def made_at(self) -> str | None:
        """File and line of the test suite that made it, ``tests/test_x.py:12``; None if not noted."""
        return _text(self.evidence.get("made_at"))

    @property
    def inspect(self) -> str | None:
        """A shell command that shows more of it."""
        return _text(self.evidence.get("inspect", self.evidence.get("look")))

    @property
    def replaces(self) -> bool:
        """Whether it only replaces what existed before the run: the host's own resource is damaged."""
        return self.class_ != "damaged" and self.evidence.get("replaces") is True


class Transient(msgspec.Struct, frozen=True, kw_only=True):
    """Residue that went away while settling, `gone_after_ms` milliseconds after the run's end."""

    kind: str
    label: str
    key: str = ""
    gone_after_ms: float = 0


class Allowed(msgspec.Struct, frozen=True, kw_only=True):
    """Residue that an allow rule explains, with the rule's reason."""

    kind: str
    label: str
    key: str = ""
    reason: str = ""


class UnusedRule(msgspec.Struct, frozen=True, kw_only=True):
    """An allow rule that matched nothing: the leak that it allowed may be fixed."""

    kind: str
    reason: str = ""


class Vanished(msgspec.Struct, frozen=True, kw_only=True):
    """What the baseline had and the last observation did not."""

    kind: str
    label: str
    key: str = ""


class Other(msgspec.Struct, frozen=True, kw_only=True):
    """A process outside the run that existed before it and made some of the noise, itself or through its children.

    A daemon may have made it for the run. `comm` is empty if the process has ended; `listens` is whether it has a
    listening socket, None if sockets were not observed; `made` counts differences by kind.
    """

    pid: int
    comm: str = ""
    listens: bool | None = None
    made: dict[str, int] = {}


class Coverage(msgspec.Struct, frozen=True, kw_only=True):
    """How completely a kind was observed; anything but ``full`` has a reason."""

    level: Level
    reason: str = ""


class Command(msgspec.Struct, frozen=True, kw_only=True):
    """The guarded or the recover command.

    `exit` is negative for a signal (-9: SIGKILL) and None if its end was not observed. `output` are the last words of
    a command of a trial.
    """

    argv: list[str]
    exit: int | None = None
    output: str = ""


class Settle(msgspec.Struct, frozen=True, kw_only=True):
    """How long the residue was observed: `looks` observations in `ms` milliseconds."""

    looks: int = 0
    ms: float = 0
    extended: bool = False


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """What a run left behind, and what was not observed.

    `verdict` is ``clean`` only if every requested kind was observed in full. `noise` counts residue that certainly
    belongs to others; `others` are its makers, as far as the residue may stay. `unattributed` is residue that nothing
    ties to the run, listed separately if only attributed leaks were requested. `baseline_ns` is the start of the
    baseline, in nanoseconds since the epoch. `gauges` are numbers that are not resources (dying cgroups), before and
    after; `timing_ms` is by step.
    """

    verdict: Verdict
    schema: str = SCHEMA
    boot_id: str = ""
    baseline_ns: int = 0
    leaks: list[Leak] = []
    transient: list[Transient] = []
    allowed: list[Allowed] = []
    unused_rules: list[UnusedRule] = []
    noise: int = 0
    others: list[Other] = []
    unattributed: list[Leak] = []
    coverage: dict[str, Coverage] = {}
    unreadable: list[Any] = []
    command: Command | None = None
    recover: Command | None = None
    settle: Settle | None = None
    timing_ms: dict[str, float] = {}
    vanished: list[Vanished] = []
    gauges: dict[str, tuple[int, int]] = {}

    @classmethod
    def from_json(cls, text: str | bytes) -> "Report":
        """Decode a report, without unknown fields; raise `UsageError` if it is none, or of another schema version."""
        try:
            version = msgspec.json.decode(text, type=_Versioned).schema
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise UsageError(f"not a leakcheck report: {error}; give a file that guard -o or diff -o wrote") from error
        if version != SCHEMA:
            why = f"this leakcheck reads {SCHEMA}: create it again with this version"
            raise UsageError(f"report of schema {version!r}, {why}")
        try:
            return msgspec.json.decode(text, type=cls)
        except (msgspec.MsgspecError, RecursionError) as error:
            raise UsageError(f"damaged leakcheck report: {error}; create it again") from error

    def to_json(self) -> str:
        """Encode as one line of JSON, which `from_json` reads back."""
        return msgspec.json.encode(self).decode()

    @property
    def gaps(self) -> dict[str, Coverage]:
        """The kinds that were not observed in full."""
        return {kind: coverage for kind, coverage in self.coverage.items() if coverage.level != "full"}


class _Versioned(msgspec.Struct):
    schema: str


def _text(value: object) -> str | None:
    return value if isinstance(value, str) and value else None
