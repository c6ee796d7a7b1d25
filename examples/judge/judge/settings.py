"""The configuration: environment variables, read once."""

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path


class UnusableError(Exception):
    """The configuration or the machine does not allow to start; the message says what to do."""


@dataclasses.dataclass(frozen=True)
class Settings:
    data: Path
    port: int
    web_port: int
    keys: Mapping[str, str]
    """API key → tenant."""
    max_active: int
    """Jobs of one tenant that wait or run."""
    concurrency: int
    """Jobs that run at the same time, of all tenants."""
    max_upload: int
    """Bytes."""
    redis: str
    """URL; empty for none."""
    stall: float
    """Seconds without a sign of life after which a job is stalled; after four times as many it fails."""
    wall: float
    """Seconds that a submission may run."""
    max_output: int
    """Bytes that a submission may write to stdout and stderr."""
    url_lifetime: float
    """Seconds that the URL of a result is valid."""
    keep: float
    """Seconds that clean-old keeps a finished job."""
    upload_lifetime: float
    """Seconds without a chunk after which an upload is removed."""

    @property
    def work(self) -> Path:
        """Directories of runs."""
        return self.data / "work"

    @property
    def uploads(self) -> Path:
        return self.data / "uploads"

    @property
    def results(self) -> Path:
        return self.data / "results"

    @property
    def workers(self) -> Path:
        """Lock files of the workers' slots."""
        return self.data / "workers"

    def __post_init__(self) -> None:
        for directory in (self.work, self.uploads, self.results, self.workers):
            directory.mkdir(mode=0o755, parents=True, exist_ok=True)


def from_environment(environment: Mapping[str, str] = os.environ) -> Settings:
    """Return the settings; raise `UnusableError` for a value that is missing or wrong."""

    def number(name: str, default: str, least: float = 1) -> float:
        text = environment.get(name, "") or default
        try:
            value = float(text)
        except ValueError:
            raise UnusableError(f"{name}={text}: write a number") from None
        if not least <= value < 2**53:
            raise UnusableError(f"{name}={text}: at least {least:g}")
        return value

    if not environment.get("JUDGE_DATA"):
        raise UnusableError("JUDGE_DATA is not set: name the directory of the data")
    return Settings(
        data=Path(environment["JUDGE_DATA"]).absolute(),
        port=int(number("JUDGE_PORT", "8801")),
        web_port=int(number("JUDGE_WEB_PORT", "8802")),
        keys=_keys(environment.get("JUDGE_KEYS", "")),
        max_active=int(number("JUDGE_MAX_ACTIVE", "5")),
        concurrency=int(number("JUDGE_CONCURRENCY", "1")),
        max_upload=int(number("JUDGE_MAX_UPLOAD", str(16 << 20))),
        redis=environment.get("JUDGE_REDIS", ""),
        stall=number("JUDGE_STALL", "30", 0.1),
        wall=number("JUDGE_WALL", "10", 0.1),
        max_output=int(number("JUDGE_MAX_OUTPUT", str(16 << 20))),
        url_lifetime=number("JUDGE_URL_LIFETIME", "300"),
        keep=number("JUDGE_KEEP", str(7 * 86400), 0),
        upload_lifetime=number("JUDGE_UPLOAD_LIFETIME", "3600"),
    )


def _keys(text: str) -> Mapping[str, str]:
    if text and "=" not in text:
        try:
            text = Path(text).read_text()
        except OSError as error:
            raise UnusableError(f"JUDGE_KEYS: {error}") from error
    pairs = [pair.strip().partition("=") for pair in text.replace("\n", ",").split(",") if pair.strip()]
    if not pairs or not all(key and tenant for key, _, tenant in pairs):
        raise UnusableError("JUDGE_KEYS: write key=tenant,… or the path of a file with one key=tenant per line")
    return {key: tenant for key, _, tenant in pairs}
