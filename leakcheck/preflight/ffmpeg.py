"""ffmpeg: its encoders, a sample of variable frame rate, one without audio, and one of an unusual codec."""

import itertools
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

from leakcheck.preflight.outcome import Outcome, Ran, State, ran

_INSTALL = "install it: apt-get install ffmpeg"
_FULL_BUILD = "install a full build: apt-get install ffmpeg (a minimal or self-built one lacks encoders)"
_NEEDED = {"video": ("libx264", "mpeg4"), "audio": ("aac", "libmp3lame")}
"""One of each is needed."""
_ODD = "libvpx-vp9"
_VIDEO = ("-f", "lavfi", "-i", "testsrc=duration=1:rate=30:size=64x64")
_AUDIO = ("-f", "lavfi", "-i", "sine=duration=1")
# The first half second has all frames, the second every third.
_VARIABLE = ("-vf", "select='lt(n,15)+not(mod(n,3))'", "-vsync", "vfr")


def check(directory: Path) -> Iterator[Outcome]:
    """Yield what this ffmpeg can do."""
    missing = [name for name in ("ffmpeg", "ffprobe") if shutil.which(name) is None]
    if missing:
        yield _outcome("tools", "skip", f"not installed: {', '.join(missing)}", _INSTALL)
        return
    version = ran(["ffmpeg", "-hide_banner", "-version"], directory)
    listed = ran(["ffmpeg", "-hide_banner", "-encoders"], directory)
    if version.code != 0 or listed.code != 0:
        yield _outcome("tools", "fail", f"ffmpeg does not start: {_bad(version, listed).why}", _INSTALL)
        return
    yield _outcome("tools", "pass", version.stdout.splitlines()[0].partition(" Copyright")[0])
    encoders = {line.split()[1] for line in listed.stdout.splitlines() if len(line.split()) > 1}
    chosen = {kind: next((one for one in some if one in encoders), None) for kind, some in _NEEDED.items()}
    video, audio = chosen["video"], chosen["audio"]
    if video is None or audio is None:
        lacking = [f"none of {', '.join(_NEEDED[kind])}" for kind, one in chosen.items() if one is None]
        yield _outcome("encoders", "fail", "; ".join(lacking), _FULL_BUILD)
        return
    yield _outcome("encoders", "pass", f"{video}, {audio}")
    yield _variable(directory, video, audio)
    yield _silent(directory, video)
    yield _odd(directory, encoders)


def _variable(directory: Path, video: str, audio: str) -> Outcome:
    """A recording of variable frame rate: its streams are read, and its audio is extracted whole."""
    made = _made(directory, "vfr.mkv", *_VIDEO, *_AUDIO, *_VARIABLE, "-c:v", video, "-c:a", audio)
    if made.code != 0:
        return _outcome("variable frame rate", "fail", f"the sample cannot be made: {made.why}", _FULL_BUILD)
    streams, why = _streams(directory, "vfr.mkv")
    if {"video", "audio"} - streams.keys():
        return _outcome("variable frame rate", "fail", f"ffprobe: {why or 'a stream is missing'}", _FULL_BUILD)
    got = _made(directory, "vfr.wav", "-i", "vfr.mkv", "-vn", "-c:a", "pcm_s16le")
    seconds = _seconds(directory, "vfr.wav")
    if got.code != 0 or not 0.9 < seconds < 1.2:
        found = f"1 s of audio became {seconds:.2f} s" if got.code == 0 else f"no audio from it: {got.why}"
        return _outcome("variable frame rate", "fail", found, "update ffmpeg", "or convert input first: -vsync cfr")
    gaps = _gaps(directory, "vfr.mkv")
    if len(gaps) < 2:
        return _outcome("variable frame rate", "fail", "the sample came out with a constant rate", "update ffmpeg")
    shown = " and ".join(f"{gap} ms" for gap in sorted(gaps)[:2])
    return _outcome("variable frame rate", "pass", f"frames {shown} apart are read, and all of the audio is extracted")


def _silent(directory: Path, video: str) -> Outcome:
    """A recording without audio: that it has none is seen before it is worked on, and ffmpeg says so by an error."""
    made = _made(directory, "silent.mkv", *_VIDEO, "-c:v", video)
    if made.code != 0:
        return _outcome("no audio", "fail", f"the sample cannot be made: {made.why}", _FULL_BUILD)
    streams, why = _streams(directory, "silent.mkv")
    got = _made(directory, "silent.wav", "-i", "silent.mkv", "-vn", "-c:a", "pcm_s16le")
    if why or "audio" in streams or got.code == 0:
        found = why or "ffmpeg extracts audio from a recording that has none"
        return _outcome("no audio", "fail", found, "update ffmpeg")
    return _outcome("no audio", "pass", f"detected: {got.why}")


def _odd(directory: Path, encoders: set[str]) -> Outcome:
    if _ODD not in encoders:
        return _outcome("unusual codec", "skip", f"this ffmpeg has no encoder {_ODD}", _FULL_BUILD)
    made = _made(directory, "odd.webm", *_VIDEO, "-c:v", _ODD, "-deadline", "realtime")
    streams, why = _streams(directory, "odd.webm") if made.code == 0 else ({}, made.why)
    if why or streams.get("video", {}).get("codec_name") != "vp9":
        return _outcome("unusual codec", "fail", f"{_ODD}: {why or 'not read back'}", _FULL_BUILD)
    return _outcome("unusual codec", "pass", f"{_ODD} written and read back")


def _made(directory: Path, name: str, *arguments: str) -> Ran:
    return ran(["ffmpeg", "-hide_banner", "-loglevel", "error", "-nostdin", "-y", *arguments, name], directory)


def _streams(directory: Path, name: str) -> tuple[dict[str, dict[str, object]], str]:
    """Return the streams by their type, and why there are none."""
    probed = ran(["ffprobe", "-v", "error", "-show_streams", "-of", "json", name], directory)
    if probed.code != 0:
        return {}, probed.why
    return {one["codec_type"]: one for one in json.loads(probed.stdout)["streams"]}, ""


def _gaps(directory: Path, name: str) -> set[int]:
    """Return the milliseconds between frames that occur, without those that rounding makes."""
    probed = ran(
        ["ffprobe", "-v", "error", "-select_streams", "v", "-show_entries", "packet=pts_time", "-of", "csv=p=0", name],
        directory,
    )
    times = sorted(float(word.strip(",")) for word in probed.stdout.split() if word.strip(",") != "N/A")
    return {round((after - before) * 100) * 10 for before, after in itertools.pairwise(times)}


def _seconds(directory: Path, name: str) -> float:
    probed = ran(["ffprobe", "-v", "error", "-show_entries", "format=duration", "-of", "csv=p=0", name], directory)
    try:
        return float(probed.stdout)
    except ValueError:
        return 0.0


def _bad(*several: Ran) -> Ran:
    return next(one for one in several if one.code != 0)


def _outcome(step: str, state: State, found: str, *fix: str) -> Outcome:
    return Outcome("ffmpeg", step, state, found, [*fix])
