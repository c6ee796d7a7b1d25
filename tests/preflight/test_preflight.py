"""What `leakcheck doctor --preflight` says of a machine: each state has a reason, and what fails has a fix."""

import json
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from leakcheck.preflight import CHECKS, Outcome, cache, disk, gpu

FFMPEG = pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="no ffmpeg: apt-get install ffmpeg")


def asked(name: str, **environment: str) -> tuple[int, dict[str, Outcome]]:
    """Run the command; return its exit code, and the outcomes by their step."""
    done = subprocess.run(
        [sys.executable, "-m", "leakcheck", "doctor", "--preflight", name, "--json"],
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.stderr == "" and done.returncode in (0, 1), done
    return done.returncode, {one["step"]: Outcome(**one) for one in json.loads(done.stdout)["outcomes"]}


def program(directory: Path, name: str, script: str) -> None:
    """Put a shell script on a PATH of its own."""
    path = directory / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


@FFMPEG
def test_a_full_ffmpeg_passes_with_tiny_samples_that_are_removed(tmp_path: Path) -> None:
    code, steps = asked("ffmpeg", TMPDIR=str(tmp_path))
    assert code == 0 and [*tmp_path.iterdir()] == []
    states = {step: one.state for step, one in steps.items()}
    assert states | {"unusual codec": ""} == dict.fromkeys(steps, "pass") | {"unusual codec": ""}
    assert "30 ms" in steps["variable frame rate"].found
    assert "does not contain any stream" in steps["no audio"].found


def test_without_ffmpeg_it_is_skipped_with_the_way_to_install_it(tmp_path: Path) -> None:
    code, steps = asked("ffmpeg", PATH=str(tmp_path))
    assert code == 0 and [one.state for one in steps.values()] == ["skip"]
    assert "apt-get install ffmpeg" in steps["tools"].fix[0]


def test_an_ffmpeg_without_encoders_fails_with_a_fix(tmp_path: Path) -> None:
    for name in ("ffmpeg", "ffprobe"):
        program(tmp_path, name, "echo 'ffmpeg version 0'; echo ' V....D rawvideo raw'")
    code, steps = asked("ffmpeg", PATH=str(tmp_path))
    assert (code, steps["encoders"].state) == (1, "fail")
    assert "libx264" in steps["encoders"].found and steps["encoders"].fix


@FFMPEG
@pytest.mark.slow  # makes all samples each time
@pytest.mark.parametrize(
    ("script", "step"),
    [
        ('case "$*" in *vfr.wav*) exit 1;; esac; exec {real} "$@"', "variable frame rate"),
        (
            'case "$*" in *vfr.wav*) exec {real} -f lavfi -i sine=duration=3 vfr.wav;; esac; exec {real} "$@"',
            "variable frame rate",
        ),
        ('case "$*" in *silent.wav*) exit 0;; esac; exec {real} "$@"', "no audio"),
        ('case "$*" in *odd.webm*) exit 1;; esac; exec {real} "$@"', "unusual codec"),
    ],
)
def test_an_ffmpeg_that_works_wrongly_fails_in_its_step(tmp_path: Path, script: str, step: str) -> None:
    program(tmp_path, "ffmpeg", script.format(real=shutil.which("ffmpeg")))
    code, steps = asked("ffmpeg", PATH=f"{tmp_path}:{os.environ['PATH']}")
    assert code == 1
    assert [name for name, one in steps.items() if one.state == "fail"] == [step]
    assert steps[step].fix


def test_without_a_gpu_it_is_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(gpu, "_DEVICES", (tmp_path / "none",))
    assert [(one.state, one.step) for one in gpu.check(tmp_path)] == [("skip", "driver")]


def test_a_gpu_without_a_working_driver_fails_with_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program(tmp_path, "nvidia-smi", "echo Failed to initialize NVML: Driver/library version mismatch; exit 18")
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin")
    monkeypatch.setattr(gpu, "_DEVICES", (tmp_path,))
    (outcome,) = gpu.check(tmp_path)
    assert outcome.state == "fail" and "version mismatch" in outcome.found and "reboot" in outcome.fix[0]


@pytest.mark.parametrize(
    ("module", "state", "found"),
    [
        ("raise ModuleNotFoundError(\"No module named 'torch'\")", "skip", "not installed"),
        ("raise ImportError('libcudart.so.12: no such file')", "fail", "libcudart"),
        (
            "__version__ = '2'\nclass version: cuda = None\nclass cuda: is_available = lambda: False",
            "fail",
            "for the CPU",
        ),
        (
            "__version__ = '2'\nclass version: cuda = '9'\nclass cuda: is_available = lambda: False",
            "fail",
            "sees no GPU",
        ),
        (
            "__version__ = '2'\nclass version: cuda = '9'\nclass cuda: is_available = lambda: True\n"
            "def ones(number, device): raise RuntimeError('out of memory')",
            "fail",
            "out of memory",
        ),
        (
            "__version__ = '2'\nclass version: cuda = '9'\nclass cuda: is_available = lambda: True\n"
            "class ones:\n  def __init__(self, number, device): self.sum = lambda: number",
            "pass",
            "computes",
        ),
    ],
)
def test_the_runtime_of_a_gpu_is_tried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str, state: str, found: str
) -> None:
    # No GPU is here: a driver and a PyTorch that answer as real ones do.
    program(tmp_path, "nvidia-smi", "echo 'Tesla T4, 550.54, 15360 MiB'")
    modules = tmp_path / "modules"
    modules.mkdir()
    (modules / "torch.py").write_text(module)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    monkeypatch.setenv("PYTHONPATH", str(modules))
    driver, runtime = gpu.check(tmp_path)
    assert driver.state == "pass" and "Tesla T4" in driver.found
    assert runtime.state == state and found in runtime.found
    assert bool(runtime.fix) == (state != "pass")


def test_a_cache_that_can_be_written_passes_and_stays_as_it_was(tmp_path: Path) -> None:
    code, steps = asked("cache", XDG_CACHE_HOME=str(tmp_path), HF_HOME=str(tmp_path / "a/b"), HF_HUB_OFFLINE="0")
    assert code == 0 and steps["offline"].state == "skip"
    assert [*tmp_path.iterdir()] == []


def test_a_cache_that_cannot_be_written_fails_with_a_fix(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    code, steps = asked("cache", XDG_CACHE_HOME="/proc/self", TORCH_HOME=str(tmp_path / "file/below"))
    assert code == 1 and {"cache", "torch"} <= {step for step, one in steps.items() if one.state == "fail"}
    assert "chown" in steps["cache"].fix[0]


def test_the_offline_mode_needs_models(tmp_path: Path) -> None:
    environment = {"HF_HUB_OFFLINE": "1", "XDG_CACHE_HOME": str(tmp_path)}
    code, steps = asked("cache", **environment)
    assert (code, steps["offline"].state) == (1, "fail") and "HF_HUB_OFFLINE" in steps["offline"].found
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch/model.pt").write_text("weights")
    code, steps = asked("cache", **environment)
    assert (code, steps["offline"].state) == (0, "pass")


def test_a_disk_is_written_and_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "inside").mkdir()
    (outcome,) = disk.check(tmp_path / "inside")
    assert outcome.state in ("pass", "fail") and "GiB free" in outcome.found
    monkeypatch.setattr(disk, "_LEAST_BYTES", 1 << 60)
    (full,) = disk.check(tmp_path / "inside")
    assert full.state == "fail" and full.fix
    monkeypatch.setattr(disk, "_LEAST_BYTES", 0)
    monkeypatch.setattr(disk, "_LEAST_INODES", 1 << 60)
    (inodes,) = disk.check(tmp_path / "inside")
    assert os.statvfs(tmp_path).f_files == 0 or (inodes.state == "fail" and "inodes" in inodes.found)
    assert [path.name for path in tmp_path.iterdir()] == ["inside"]


def test_a_redis_that_is_named_must_answer_and_its_password_is_not_shown() -> None:
    code, steps = asked("redis", REDIS_URL="redis://user:hidden@127.0.0.1:1/0")
    assert (code, steps["server"].state) == (1, "fail")
    assert steps["server"].fix and "hidden" not in f"{steps}"
    code, steps = asked("redis", REDIS_URL="nonsense://x")
    assert (code, steps["server"].state) == (1, "fail")


@pytest.mark.skipif(shutil.which("redis-server") is None, reason="no redis-server: apt-get install redis-server")
def test_a_redis_is_used_and_left_as_it_was(tmp_path: Path) -> None:
    import redis

    place = tmp_path / "socket"
    policy = ["--maxmemory", "100mb", "--maxmemory-policy", "allkeys-lru"]
    server = subprocess.Popen(
        ["redis-server", "--port", "0", "--unixsocket", str(place), "--save", "", *policy],
        cwd=tmp_path,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )
    try:
        with redis.Redis(unix_socket_path=str(place)) as client:
            while not place.exists():
                assert server.poll() is None
            code, steps = asked("redis", REDIS_URL=f"unix://{place}")
            assert (code, steps["use"].state, steps["eviction"].state) == (1, "pass", "fail")
            client.config_set("maxmemory-policy", "noeviction")
            assert asked("redis", REDIS_URL=f"unix://{place}")[0] == 0
            assert client.keys() == []
    finally:
        server.terminate()
        server.wait()


def test_an_unknown_check_is_named_before_any_runs() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "leakcheck", "doctor", "--preflight", "disk,fmpeg"], capture_output=True, text=True
    )
    assert done.returncode == 2 and done.stdout == ""
    assert all(name in done.stderr for name in ("fmpeg", *CHECKS))


def test_a_program_that_hangs_is_ended(tmp_path: Path) -> None:
    from leakcheck.preflight import outcome

    ended = outcome.ran(["sleep", "60"], tmp_path, 0.1)
    assert ended.code is None and ended.why == "no end in 0.1 s"
    assert outcome.ran([str(tmp_path / "none")], tmp_path).code is None


def test_places_of_caches_follow_their_variables() -> None:
    places = cache._places({"XDG_CACHE_HOME": "/c", "HF_HOME": "/h", "TORCH_HOME": "/t"})
    assert {name: str(path) for name, path in places.items()} == {"cache": "/c", "huggingface": "/h/hub", "torch": "/t"}
