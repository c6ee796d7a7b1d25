"""Directories where programs keep models and other downloads: they can be written, and offline they are not empty."""

import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from leakcheck.errors import reason
from leakcheck.preflight.outcome import Outcome, State

_OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE")
_FALSE = ("", "0", "false", "no", "off")


def check(_: Path) -> Iterator[Outcome]:
    """Yield whether each directory can be used, and whether the offline mode has what it needs."""
    places = _places(os.environ)
    for name, path in places.items():
        yield _usable(name, path)
    yield _offline(os.environ, {name: path for name, path in places.items() if name != "cache"})


def _places(environment: Mapping[str, str]) -> dict[str, Path]:
    """Return the directories, by what uses them: that of everything, of Hugging Face's models, and of PyTorch's."""
    base = Path(environment.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    hugging = Path(environment.get("HF_HOME") or base / "huggingface")
    return {
        "cache": base,
        "huggingface": Path(environment.get("HF_HUB_CACHE") or hugging / "hub"),
        "torch": Path(environment.get("TORCH_HOME") or base / "torch"),
    }


def _usable(name: str, path: Path) -> Outcome:
    """Whether the directory is there, or can be made, and a file can be written to it; nothing of that stays."""
    there = path
    while not there.exists() and there != there.parent:
        there = there.parent
    try:
        with tempfile.TemporaryDirectory(prefix=".leakcheck-preflight-", dir=there) as inside:
            (Path(inside) / "file").write_bytes(b"x" * 4096)
    except OSError as error:
        yours = f"make it yours: chown -R {os.geteuid()} {there}"
        volume = "in a container, mount a volume there that this user can write; or name another directory"
        return _outcome(name, "fail", f"{there} cannot be written: {reason(error)}", yours, volume)
    if there != path:
        return _outcome(name, "pass", f"{path} can be made")
    return _outcome(name, "pass", f"{path} can be written")


def _offline(environment: Mapping[str, str], places: Mapping[str, Path]) -> Outcome:
    chosen = [name for name in _OFFLINE if environment.get(name, "").lower() not in _FALSE]
    if not chosen:
        return _outcome("offline", "skip", "no offline mode is set; what is missing would be downloaded")
    filled = [f"{name} ({path})" for name, path in places.items() if _has_files(path)]
    if not filled:
        return _outcome(
            "offline",
            "fail",
            f"{', '.join(chosen)} is set, but no model is in {', '.join(map(str, places.values()))}",
            f"download the models once without {' and '.join(chosen)}",
            "or mount a directory that has them, and name it by HF_HOME or TORCH_HOME",
        )
    return _outcome("offline", "pass", f"{', '.join(chosen)} is set; models are in {', '.join(filled)}")


def _has_files(path: Path) -> bool:
    return any(files for _, _, files in os.walk(path))


def _outcome(step: str, state: State, found: str, *fix: str) -> Outcome:
    return Outcome("cache", step, state, found, [*fix])
