"""The scenario of what an OpenAPI document allows: requests drawn from it, by schemathesis."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from leakcheck.service.client import Client
from leakcheck.service.lifecycle import ENV
from leakcheck.service.scenario import Failed, NotApplicable, check, scenario
from leakcheck.service.stage import Stage

__all__: list[str] = []

_HOME = "/tmp/leakcheck-openapi"  # noqa: S108 - the arena's own
_PATIENCE = 120.0
_CASES = re.compile(r"(\d+) (?:generated|passed|test cases?)")


@scenario("S3.2", "OpenAPI: no request that is drawn from the document makes the service fall over")
def openapi(stage: Stage) -> Any:
    """Run schemathesis in the arena, with the headers of a user."""
    if stage.contract.openapi is None:
        raise NotApplicable("the contract has no openapi")
    if importlib.util.find_spec("schemathesis") is None:
        raise NotApplicable("schemathesis is not installed on this machine (extra fuzz)")
    client = stage.client()
    url = stage.contract.base_url + stage.contract.openapi.path
    argv = [sys.executable, "-m", "schemathesis.cli", "run", url, "--no-color", "--checks", "not_a_server_error"]
    argv += ["--seed", str(stage.seed), "--max-examples", "40" if stage.full else "8", "--generation-database", "none"]
    argv += [
        "--max-time",
        "60" if stage.full else "12",
        "--request-timeout",
        "20",
        "--phases",
        "examples,coverage,fuzzing",
    ]
    for name, value in client.headers.items():
        argv += ["--header", f"{name}:{value}"]
    home = Path(f"/proc/{stage.arena.init}/root{_HOME}")
    home.mkdir()
    try:
        with tempfile.TemporaryFile() as output:
            env, to = ENV | {"HOME": _HOME, "TMPDIR": _HOME}, output.fileno()
            try:
                code = stage.arena.run(argv, env=env, cwd=_HOME, stdout=to, stderr=to, timeout=_PATIENCE)
            except subprocess.TimeoutExpired:
                raise Failed(f"schemathesis did not end within {_PATIENCE:g} s") from None
            text = os.pread(to, 1 << 20, 0).decode(errors="replace")
    finally:
        shutil.rmtree(home, ignore_errors=True)
    _adopt(stage, client)
    words = " ".join(text.split())
    if "Server error" in text:
        start = words.find("Server error")
        raise Failed(f"a drawn request made a server error: {words[start : start + 400]}")
    check(code in (0, 1) and "Schema Loading Error" not in text, f"schemathesis ended with {code}: {words[-300:]}")
    if code == 1:
        raise Failed(f"schemathesis: {words[-400:]}")
    cases = max((int(number) for number in _CASES.findall(text)), default=0)
    check(cases, f"schemathesis made no request: {words[-300:]}")
    return {"requests": cases}


def _adopt(stage: Stage, client: Client) -> None:
    """Take over the jobs that the drawn requests made, so that they are ended too."""
    if stage.contract.jobs.list is not None:
        client.own = sorted({*client.own, *(one.job for one in client.list())})
