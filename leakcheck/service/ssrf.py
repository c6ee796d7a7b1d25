"""The scenario of requests that a service makes for a client: none may reach an inner address."""

import os
import shutil
import time
from pathlib import Path
from typing import Any

from leakcheck.service.canary import CANARY, FLIPPING, INNER, METADATA, PUBLIC, PUBLIC_PORT, Listeners
from leakcheck.service.client import Client
from leakcheck.service.scenario import NotApplicable, check, scenario
from leakcheck.service.stage import Stage
from leakcheck.trials.rootfs import write_file

__all__: list[str] = []

_SPELLINGS = {
    "localhost": "localhost",
    "a final dot": "localhost.",
    "capitals": "LOCALHOST",
    "dotted": "127.0.0.1",
    "another of the loopback": "127.8.9.10",
    "short": "127.1",
    "decimal": "2130706433",
    "hexadecimal": "0x7f000001",
    "octal": "017700000001",
    "dotted octal": "0177.0.0.1",
    "dotted hexadecimal": "0x7f.0.0.1",
    "this host": "0.0.0.0",  # noqa: S104 - nothing is bound
    "zero": "0",
    "IPv6": "[::1]",
    "IPv6 unspecified": "[::]",
    "IPv6-mapped": "[::ffff:127.0.0.1]",
    "IPv6-mapped hexadecimal": "[::ffff:7f00:1]",
    "metadata": METADATA,
    "metadata, decimal": "2852039166",
    "full-width digits": "①②⑦.⓪.⓪.①",
    "a user before it": f"{PUBLIC}@127.0.0.1",
    "an inner name": INNER,
    "a name that changes": FLIPPING,
}
_LATE = 0.5
_OTHERS = {
    "a file": "file:///etc/passwd",
    "gopher": f"gopher://127.0.0.1:{CANARY}/_GET%20/",
    "redirect": f"http://{PUBLIC}:{PUBLIC_PORT}/to/127.0.0.1:{CANARY}",
    "redirect to decimal": f"http://{PUBLIC}:{PUBLIC_PORT}/to/2130706433:{CANARY}",
    "redirect to a redirect": f"http://{PUBLIC}:{PUBLIC_PORT}/to/{PUBLIC}:{PUBLIC_PORT}/to/127.0.0.1:{CANARY}",
}


def _prepare(stage: Stage) -> None:
    """Give the arena a public address and that of the metadata, and our resolver of names."""
    if stage.contract.ssrf is None or not stage.contract.local:
        return
    if (program := shutil.which("ip", path="/usr/sbin:/sbin:/usr/bin:/bin")) is None:
        raise NotApplicable("no ip(8) on this machine: install iproute2")
    for address in (PUBLIC, METADATA):
        stage.arena.run([program, "address", "add", f"{address}/32", "dev", "lo"], timeout=10)
    root = os.open(f"/proc/{stage.arena.init}/root", os.O_PATH | os.O_DIRECTORY)
    try:
        write_file(root, Path("/etc/resolv.conf"), b"nameserver 127.0.0.1\noptions timeout:1 attempts:1\n")
    finally:
        os.close(root)
    stage.listeners = stage.stack.enter_context(Listeners(stage.network))


@scenario(
    "S3.3",
    "requests to inner addresses: in no spelling, by no redirect and by no name do they arrive",
    prepare=_prepare,
)
def ssrf(stage: Stage) -> Any:
    """Create jobs that fetch from inner addresses; a canary listens at all of them."""
    rules, listeners = stage.contract.ssrf, stage.listeners
    if rules is None or listeners is None:
        raise NotApplicable("the contract has no ssrf")
    client, refused, failed = stage.client(), 0, 0
    urls = {what: f"http://{host}:{CANARY}/" for what, host in _SPELLINGS.items()} | _OTHERS
    wrong = []
    for what, url in urls.items():
        before = len(listeners.reached)
        end = _fetched(client, rules.field, url)
        refused, failed = refused + (end == "refused"), failed + (end == "failed")
        if len(listeners.reached) > before:
            wrong.append(f"{what} ({url}) reached the canary")
        elif end not in ("refused", "failed"):
            wrong.append(f"{what} ({url}): {end}")
    # Some fetch after the job has ended.
    time.sleep(_LATE)
    reached = listeners.reached
    check(not wrong and not reached, "; ".join(wrong) or f"{len(reached)} requests reached the canary")
    public = len(listeners.public)
    control = _fetched(client, rules.field, f"http://{PUBLIC}:{PUBLIC_PORT}/")
    if len(listeners.public) == public:
        stage.unseen["ssrf"] = f"a public URL was {control}, and not fetched: nothing tells whether any would be"
    return {"urls": len(urls), "refused": refused, "failed": failed, "reached the canary": len(reached)}


def _fetched(client: Client, field: str, url: str) -> str:
    """Return whether a job that fetches `url` was refused, or how it ended."""
    answer, job = client.create("short", client.payload("short") | {field: url})
    if not job:
        # 429 and 409 say nothing of the address.
        refused = 400 <= answer.status < 500 and answer.status not in (409, 429)
        return "refused" if refused else f"answered by {answer}"
    return client.wait(job).place
