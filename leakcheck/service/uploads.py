"""Scenarios of uploads: maximal ones, and resumable ones by the tus protocol (tus.io, 1.0.0)."""

import base64
import functools
import hashlib
import os
import time
from collections import Counter
from typing import Any
from urllib.parse import urlsplit

from leakcheck.service.client import Answer, Client
from leakcheck.service.scenario import Failed, NotApplicable, check, scenario
from leakcheck.service.security import url_of
from leakcheck.service.stage import Stage, answered

__all__: list[str] = []

_BUSY = (409, 413, 429, 503, 507)
_VERSION = {"Tus-Resumable": "1.0.0"}
_CHUNK = {**_VERSION, "Content-Type": "application/offset+octet-stream"}
_AT_ONCE = 5
"""As the document says."""
_SMALL = 300_000
_BLOCK = 64 << 10
_TRIES = 60


class _Upload:
    """An upload of `data`, by whichever client asks; `name` is what a job names it by."""

    def __init__(self, client: Client, data: bytes) -> None:
        self.data, self.path = data, ""
        answer = client.request("POST", _path(client), headers={**_VERSION, "Upload-Length": str(len(data))})
        self.answer = answer
        if answer.status == 201:
            self.path = urlsplit(answer.headers.get("location", "")).path
            check(self.path, f"create an upload: {answer}, without a Location")

    @property
    def name(self) -> str:
        return self.path.rpartition("/")[2]

    def offset(self, client: Client) -> int:
        """Return how many bytes the service has."""
        answer = client.request("HEAD", self.path, headers=_VERSION)
        told = answer.headers.get("upload-offset", "")
        check(answer.status in (200, 204) and told.isdigit(), f"HEAD of an upload: {answer}, Upload-Offset {told!r}")
        return int(told)

    def send(self, client: Client, begin: int, end: int, checksum: bytes | None = None) -> Answer:
        """Send the bytes from `begin` to `end`; `checksum` is what is said of them, the right one by default."""
        chunk = self.data[begin:end]
        digest = hashlib.sha1(chunk).digest() if checksum is None else checksum  # noqa: S324 - the protocol's
        headers = {**_CHUNK, "Upload-Offset": str(begin)}
        headers["Upload-Checksum"] = f"sha1 {base64.b64encode(digest).decode()}"
        return client.request("PATCH", self.path, body=chunk, headers=headers, timeout=60)

    def finish(self, client: Client) -> int:
        """Send the rest in one chunk; return the offset then."""
        begin = self.offset(client)
        answered(self.send(client, begin, len(self.data)), (204, 200), "the rest of an upload")
        return self.offset(client)

    def end(self, client: Client) -> None:
        """Remove it from the service."""
        answered(client.request("DELETE", self.path, headers=_VERSION), (204, 200, 404, 410), "end an upload")


def _path(client: Client) -> str:
    uploads = client.contract.uploads
    if uploads is None:
        raise NotApplicable("the contract has no uploads")
    return uploads.path


def _tus(stage: Stage) -> Client:
    client = stage.client()
    _path(client)
    if client.contract.uploads is not None and client.contract.uploads.protocol != "tus":
        raise NotApplicable("the contract's uploads are not resumable")
    return client


def _begun(client: Client, data: bytes) -> _Upload:
    upload = _Upload(client, data)
    answered(upload.answer, (201,), "create an upload")
    return upload


def _data(stage: Stage, size: int) -> bytes:
    return stage.random.randbytes(size)


@scenario(
    "S1.1", "five uploads of maximal size at once and in a row: accepted or cleanly refused; one byte more is refused"
)
def maximal(stage: Stage) -> Any:
    """Upload the largest allowed size by several clients at once, then one after the other."""
    client, limit = stage.client(), stage.contract.limits.upload_bytes
    path = _path(client)
    if limit is None:
        raise NotApplicable("the contract has no limits.upload_bytes")
    data = _data(stage, limit)
    found: Counter[str] = Counter()

    def one() -> str:
        if client.contract.uploads is not None and client.contract.uploads.protocol == "plain":
            return _word(client.request("POST", path, body=data, timeout=120))
        upload = _Upload(client, data)
        if upload.answer.status != 201:
            return _word(upload.answer)
        word = _word(upload.send(client, 0, len(data)))
        if word == "accepted":
            check(upload.offset(client) == limit, "an upload of maximal size is not whole")
        upload.end(client)
        return word

    found.update(stage.at_once([one] * _AT_ONCE))
    found.update(one() for _ in range(_AT_ONCE))
    _gone(stage, client, path, data)
    check(found["accepted"], "no upload of maximal size was accepted")
    wrong = {word for word in found if word not in ("accepted", "busy")}
    check(not wrong, f"an upload of maximal size: {', '.join(sorted(wrong))}")
    more = _too_large(client, path, data)
    check(more.status in _BUSY or more.status == 400, f"one byte more than allowed: {more}; expected to be refused")
    return {"accepted": found["accepted"], "busy": found["busy"], "bytes": limit}


def _word(answer: Answer) -> str:
    if answer.status in (200, 201, 204):
        return "accepted"
    return "busy" if answer.status in _BUSY else str(answer)


def _gone(stage: Stage, client: Client, path: str, data: bytes) -> None:
    """Begin uploads whose client goes in the middle."""
    uploads = client.contract.uploads
    for _ in range(3):
        if uploads is not None and uploads.protocol == "plain":
            stage.break_off(client, "POST", path, data, {})
        elif (upload := _Upload(client, data)).path:
            stage.break_off(client, "PATCH", upload.path, data[:_BLOCK], {**_CHUNK, "Upload-Offset": "0"})
            upload.end(client)


def _too_large(client: Client, path: str, data: bytes) -> Answer:
    if client.contract.uploads is not None and client.contract.uploads.protocol == "plain":
        return client.request("POST", path, body=data + b"x", timeout=120)
    upload = _Upload(client, data + b"x")
    if upload.answer.status != 201:
        return upload.answer
    answer = upload.send(client, 0, len(data) + 1)
    upload.end(client)
    return answer


@scenario("S2.2", "upload interrupted, and resumed by another client: whole, with the right SHA-256")
def resumed(stage: Stage) -> Any:
    """Break the connection in the middle of a chunk, and go on from what the service says that it has."""
    client = _tus(stage)
    upload, breaks = _begun(client, _data(stage, _SMALL)), 3
    for _ in range(breaks):
        begin = upload.offset(client)
        _broken(stage, client, upload, begin)
        time.sleep(0.1)
        # Another client knows only the address.
        now = upload.offset(client)
        check(begin <= now <= len(upload.data), f"{begin} bytes had arrived, and later {now}")
        answered(upload.send(client, now, min(now + _BLOCK, len(upload.data))), (204, 200), "a chunk after a break")
    _whole(client, upload)
    return {"breaks": breaks, "bytes": len(upload.data)}


def _broken(stage: Stage, client: Client, upload: _Upload, begin: int) -> None:
    """Send the head of a chunk and half of it, and let the connection go."""
    chunk = upload.data[begin : begin + _BLOCK]
    stage.break_off(client, "PATCH", upload.path, chunk, {**_CHUNK, "Upload-Offset": str(begin)})


def _whole(client: Client, upload: _Upload) -> None:
    """Finish it, and let a job tell its checksum if there is such a job; otherwise count its bytes."""
    if upload.offset(client) < len(upload.data):
        upload.finish(client)
    now = upload.offset(client)
    check(now == len(upload.data), f"the upload has {now} bytes of {len(upload.data)}")
    if "upload" not in client.contract.jobs.payload or client.contract.results is None:
        upload.end(client)
        return
    job = client.created("upload", client.payload("upload", upload=upload.name))
    end = client.wait(job)
    check(end.place == "succeeded", f"the job with the upload ended as {end.state}{client.reason(job)}")
    result = client.request("GET", url_of(client, job), auth=False)
    right = hashlib.sha256(upload.data).hexdigest()
    check(right.encode() in result.body, f"the result has not the SHA-256 of what was sent: {result}")


@scenario("S2.3", "a chunk that is sent again, also at the same time: it counts once")
def repeated(stage: Stage) -> Any:
    """Send chunks twice, one after the other and at once."""
    client = _tus(stage)
    upload = _begun(client, _data(stage, _SMALL))
    statuses: Counter[int] = Counter()
    for begin in range(0, len(upload.data), _BLOCK):
        end = min(begin + _BLOCK, len(upload.data))
        send = functools.partial(upload.send, client, begin, end)
        answers = [*stage.at_once([send, send]), send()]
        statuses.update(answer.status for answer in answers)
        check(any(answer.status in (200, 204) for answer in answers), f"a chunk: {answers[0]}; {answers[1]}")
        wrong = [str(one) for one in answers if one.status not in (200, 204, 409, 423)]
        check(not wrong, f"a chunk that was sent again: {'; '.join(wrong)}")
        now = upload.offset(client)
        check(now == end, f"a chunk was sent three times: the offset is {now}, not {end}")
    _whole(client, upload)
    return {f"answered {status}": count for status, count in sorted(statuses.items())}


@scenario("S2.4", "chunks out of order or with a wrong checksum: refused, and nothing of them counts")
def wrong_chunks(stage: Stage) -> Any:
    """Send a chunk beyond the offset, one before it, and one whose checksum is of something else."""
    client, statuses = _tus(stage), {}
    upload = _begun(client, _data(stage, _SMALL))
    answered(upload.send(client, 0, _BLOCK), (204, 200), "the first chunk")
    tries = {
        "beyond the offset": functools.partial(upload.send, client, 2 * _BLOCK, 3 * _BLOCK),
        "before the offset": functools.partial(upload.send, client, 0, 100),
        "wrong checksum": functools.partial(upload.send, client, _BLOCK, 2 * _BLOCK, os.urandom(20)),
    }
    for what, send in tries.items():
        answer = send()
        check(400 <= answer.status < 500, f"{what}: {answer}; expected to be refused")
        now = upload.offset(client)
        check(now == _BLOCK, f"{what}: the offset is {now} then, not {_BLOCK}")
        statuses[what] = answer.status
    _whole(client, upload)
    return statuses


@scenario("S2.5", "upload over a poor network: lost answers and slow, broken connections, and whole in the end")
def poor_network(stage: Stage) -> Any:
    """Upload while packets are lost and late, where the kernel can do that, and while connections break."""
    client = _tus(stage)
    netem = _netem(stage)
    upload, breaks = _begun(client, _data(stage, _SMALL)), 0
    for _ in range(_TRIES):
        begin = upload.offset(client)
        if begin == len(upload.data):
            break
        drawn = stage.random.random()
        if drawn < 0.3:
            _broken(stage, client, upload, begin)
        elif drawn < 0.5:
            # The chunk arrives, and its answer does not.
            upload.send(client, begin, min(begin + _BLOCK // 2, len(upload.data)))
            upload.send(client, begin, min(begin + _BLOCK // 2, len(upload.data)))
        else:
            answer = upload.send(client, begin, min(begin + _BLOCK // 2, len(upload.data)))
            check(answer.status in (0, 200, 204, 409, 423), f"a chunk: {answer}")
            continue
        breaks += 1
    else:
        raise Failed(f"the upload is not whole after {_TRIES} chunks")
    _whole(client, upload)
    return {"broken or repeated": breaks, "why": netem}


def _netem(stage: Stage) -> str:
    """Let the arena's network lose and delay packets; return why not, empty if it does."""
    try:
        from pyroute2 import NetNS
        from pyroute2.netlink.exceptions import NetlinkError
    except ImportError:
        return "without packet loss: pyroute2 is not installed (extra service)"
    try:
        with NetNS(f"/proc/{stage.arena.init}/ns/net", flags=0) as net:
            net.tc("add", "netem", index=1, handle="1:", loss=5, delay=20_000)
    except (NetlinkError, OSError) as error:
        return f"without packet loss: this kernel has no netem ({error})"

    def remove() -> None:
        with NetNS(f"/proc/{stage.arena.init}/ns/net", flags=0) as net:
            net.tc("del", "netem", index=1, handle="1:")

    stage.undo = remove
    return ""
