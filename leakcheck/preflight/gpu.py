"""A GPU of NVIDIA: the driver answers, and the runtime (PyTorch) was built for it and can allocate."""

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from leakcheck.preflight.outcome import Outcome, State, ran

_DEVICES = (Path("/dev/nvidiactl"), Path("/proc/driver/nvidia/version"))
_QUERY = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
_RUNTIME = """
import json, torch
told = {"torch": torch.__version__, "cuda": torch.version.cuda, "available": torch.cuda.is_available(), "error": ""}
if told["available"]:
    try:
        told["sum"] = float(torch.ones(1024, device="cuda").sum())
    except RuntimeError as error:
        told["error"] = str(error).splitlines()[0]
print(json.dumps(told))
"""


def check(directory: Path) -> Iterator[Outcome]:
    """Yield what is found of a GPU; without one it is skipped."""
    tool = shutil.which("nvidia-smi")
    present = any(path.exists() for path in _DEVICES)
    if tool is None:
        if not present:
            yield _outcome("driver", "skip", "no NVIDIA GPU here")
            return
        yield _outcome(
            "driver",
            "fail",
            "the kernel has the driver, but there is no nvidia-smi",
            "on the host, install the driver's programs: apt-get install nvidia-smi",
            "in a container, run it with the NVIDIA container toolkit: docker run --gpus all",
        )
        return
    told = ran(_QUERY, directory)
    if told.code != 0 or not told.stdout.strip():
        if not present:
            yield _outcome("driver", "skip", f"nvidia-smi is installed, but no GPU is here: {told.why}")
            return
        yield _outcome(
            "driver",
            "fail",
            f"nvidia-smi: {told.why}",
            "after an update of the driver: reboot, or reload its modules, so that kernel and library have one version",
            "compare /proc/driver/nvidia/version with the installed driver, and reinstall it if they differ",
        )
        return
    yield _outcome("driver", "pass", told.stdout.strip().replace("\n", "; "))
    yield _runtime(directory)


def _runtime(directory: Path) -> Outcome:
    done = ran([sys.executable, "-c", _RUNTIME], directory, 60)
    if done.code != 0:
        if "No module named 'torch'" in done.stderr:
            return _outcome("runtime", "skip", "PyTorch is not installed", "pip install torch, if your jobs need it")
        return _outcome("runtime", "fail", f"PyTorch cannot be loaded: {done.why}", "reinstall it: pip install torch")
    found = json.loads(done.stdout.splitlines()[-1])
    built = f"PyTorch {found['torch']} for CUDA {found['cuda']}"
    if found["cuda"] is None:
        return _outcome(
            "runtime", "fail", f"{built}: a build for the CPU", "install one for CUDA: pytorch.org/get-started"
        )
    if not found["available"]:
        return _outcome(
            "runtime",
            "fail",
            f"{built} sees no GPU, although nvidia-smi does",
            "compare that CUDA version with the highest of the driver, in the header of nvidia-smi",
            "install the PyTorch of an older CUDA, or a newer driver",
            "check CUDA_VISIBLE_DEVICES, and in a container its CUDA libraries (LD_LIBRARY_PATH)",
        )
    if found["error"] or found.get("sum") != 1024:
        error = found["error"] or "wrong sum"
        return _outcome("runtime", "fail", f"{built}: {error}", "see in nvidia-smi who uses its memory")
    return _outcome("runtime", "pass", f"{built} allocates and computes")


def _outcome(step: str, state: State, found: str, *fix: str) -> Outcome:
    return Outcome("gpu", step, state, found, [*fix])
