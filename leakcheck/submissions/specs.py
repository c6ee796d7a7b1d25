"""A submission before it is compiled, as one word: ``cpp/spin@wall=0.5,cpu=1,memory=64M,processes=16``."""

import re
from pathlib import Path

import msgspec

from leakcheck.errors import UsageError
from leakcheck.submissions.behaviours import BEHAVIOURS, Behaviour
from leakcheck.submissions.languages import LANGUAGES, Language
from leakcheck.submissions.limits import Limits
from leakcheck.submissions.submission import Submission

_TIMES = ("wall", "cpu")
_SIZES = ("memory", "file_size", "output")
_UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_SECONDS = re.compile(r"\d+(\.\d+)?(e[-+]?\d+)?", re.ASCII)
_WHOLE = re.compile(r"(\d{1,15})([KMGT]?)", re.ASCII)


class Spec(msgspec.Struct, frozen=True):
    """The specification of a submission: language, behaviour and limits. `spec` fills in the default limits.

    Raises:
        UsageError: unknown language or behaviour, or the limits make the behaviour's status impossible.
    """

    language: str
    behaviour: str
    limits: Limits

    def __post_init__(self) -> None:
        language, behaviour = _known(self.language, self.behaviour)
        for name, least in (("memory", language.least_memory), ("processes", language.least_processes)):
            if (value := getattr(self.limits, name)) < least:
                why = f"{name}={_number(name, value)}: {self.language} needs {_number(name, least)} at least"
                raise UsageError(f"{self.language}/{self.behaviour}: {why}")
        if why := behaviour.impossible(self.limits):
            raise UsageError(f"{self.language}/{self.behaviour}: {why}")

    def __repr__(self) -> str:
        return f"parse_spec({self.word!r})"

    @property
    def about(self) -> Behaviour:
        """Its behaviour, including the status that it must get."""
        return BEHAVIOURS[self.behaviour]

    @property
    def word(self) -> str:
        """The word that `parse_spec` parses back; default limits are omitted."""
        usual = _usual(self.language, self.behaviour)
        given = [
            f"{name}={_number(name, getattr(self.limits, name))}"
            for name in Limits.__struct_fields__
            if getattr(self.limits, name) != getattr(usual, name)
        ]
        return f"{self.language}/{self.behaviour}" + ("@" + ",".join(given) if given else "")


def spec(language: str, behaviour: str, **limits: float) -> Spec:
    """Return the spec with the given limits, and the behaviour's default for the others; raises as `Spec` does."""
    if unknown := set(limits) - set(Limits.__struct_fields__):
        raise UsageError(f"unknown limit {min(unknown)!r}: one of {', '.join(Limits.__struct_fields__)}")
    usual = msgspec.structs.asdict(_usual(language, behaviour))
    return Spec(language, behaviour, Limits(**{**usual, **limits}))


def parse_spec(text: str) -> Spec:
    """Return the spec that `text` describes; a `UsageError` says which part is wrong and what is allowed there."""
    what, at, rest = text.partition("@")
    language, slash, behaviour = what.partition("/")
    if not slash or any(character.isspace() for character in text):
        raise UsageError(f"submission {text!r}: give LANGUAGE/BEHAVIOUR[@LIMIT=VALUE,…], such as cpp/spin@wall=0.5")
    limits: dict[str, float] = {}
    for part in rest.split(",") if at else ():
        name, equals, value = part.partition("=")
        if not equals or name not in Limits.__struct_fields__:
            known = ", ".join(Limits.__struct_fields__)
            raise UsageError(f"submission {text!r}: {part!r} is not a limit; give one of {known} as NAME=VALUE")
        if name in limits:
            raise UsageError(f"submission {text!r}: {name} is given twice")
        limits[name] = _value(text, name, value)
    try:
        return spec(language, behaviour, **limits)
    except UsageError as error:
        raise UsageError(f"submission {text!r}: {error}") from error


def parse_specs(text: str) -> list[Spec]:
    """Return the specs of words separated by spaces; raise `UsageError` if one is wrong or there is none."""
    if not (words := text.split()):
        raise UsageError("has no submission; give specs such as cpp/spin@wall=0.5 python/hello")
    return [parse_spec(word) for word in words]


def build(wanted: Spec, cache: Path | None = None) -> Submission:
    """Return the compiled submission; its suite comes from `cache`, by default `cache_directory`, if it is there.

    Raises:
        UsageError: its toolchain is missing, or the cache cannot be written to.
        CompileError: the compiler failed.
    """
    language, behaviour = _known(wanted.language, wanted.behaviour)
    bundle = language.bundle(cache)
    return Submission(
        name=wanted.word,
        program=(*language.argv(bundle, wanted.limits), behaviour.name, str(behaviour.number(wanted.limits))),
        expect=behaviour.expect,
        expect_exit=behaviour.expect_exit,
        expect_signal=behaviour.expect_signal,
        bundle=str(bundle),
        **msgspec.structs.asdict(wanted.limits),
    )


def _known(language: str, behaviour: str) -> tuple[Language, Behaviour]:
    if language not in LANGUAGES:
        raise UsageError(f"unknown language {language!r}: one of {', '.join(LANGUAGES)}")
    if behaviour not in BEHAVIOURS:
        raise UsageError(f"unknown behaviour {behaviour!r}: one of {', '.join(BEHAVIOURS)}")
    if language not in BEHAVIOURS[behaviour].languages:
        raise UsageError(f"no {behaviour} in {language}: it exists in {', '.join(BEHAVIOURS[behaviour].languages)}")
    return LANGUAGES[language], BEHAVIOURS[behaviour]


def _usual(language: str, behaviour: str) -> Limits:
    known, does = _known(language, behaviour)
    memory = max(does.limits.memory, known.least_memory)
    processes = max(does.limits.processes, known.least_processes)
    return msgspec.structs.replace(does.limits, memory=memory, processes=processes)


def _number(name: str, value: float) -> str:
    if name in _TIMES:
        return str(int(value)) if value == int(value) else repr(float(value))
    whole = int(value)
    for unit in "TGMK" if name in _SIZES else "":
        if whole % _UNITS[unit] == 0:
            return f"{whole // _UNITS[unit]}{unit}"
    return str(whole)


def _value(text: str, name: str, value: str) -> float:
    if name in _TIMES:
        if not _SECONDS.fullmatch(value):
            raise UsageError(f"submission {text!r}: {name}={value}: give seconds, such as 0.5")
        return float(value)
    found = _WHOLE.fullmatch(value)
    if found is None or (found[2] and name not in _SIZES):
        form = "bytes, such as 64M (K, M, G, T)" if name in _SIZES else "a whole number"
        raise UsageError(f"submission {text!r}: {name}={value}: give {form}")
    return int(found[1]) * _UNITS.get(found[2], 1)
