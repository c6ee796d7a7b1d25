"""How the commands of a stage are traced that are to be recorded."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from injectors.crash import crash_once_payload_runs, recording
from leakcheck.trials.tracing import Request

__all__ = ["crashing", "explaining", "notifying", "recording_of"]


def recording_of(every: bool = False, watched: bool = False) -> Request:
    """Return the request to record any command, as `record` has it."""

    def request(stage: str, number: int, payload: Sequence[str]) -> Mapping[str, Any]:
        del stage
        return recording(number, payload, every=every, watched=watched)

    return request


def crashing(every: bool, watched: bool) -> Request:
    """Return the request to crash a run once its payload runs, and to record its recovery."""

    def request(stage: str, number: int, payload: Sequence[str]) -> Mapping[str, Any] | None:
        if stage == "recover":
            return recording(number, payload, every=every, watched=watched)
        return crash_once_payload_runs(payload) if stage == "launch" else None

    return request


def explaining(requests: Request) -> Request:
    """Return `requests`, by which all commands are recorded with their calls."""

    def request(stage: str, number: int, payload: Sequence[str]) -> Mapping[str, Any]:
        asked = requests(stage, number, payload)
        return {**(recording(number, payload) if asked is None else asked), "explain": True}

    return request


def notifying(requests: Request, stages: Collection[str]) -> Request:
    """Return `requests`, in which seccomp reports the calls of `stages`."""

    def request(stage: str, number: int, payload: Sequence[str]) -> Mapping[str, Any] | None:
        asked = requests(stage, number, payload)
        return None if asked is None else {**asked, "notified": stage in stages}

    return request
