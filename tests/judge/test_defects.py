"""Each planted defect shows; without it, the same probe shows nothing."""

import base64
import hashlib
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import psutil
import pytest
from judging import JUDGE, TUS, Client, Judge, judge, wait_until

sys.path.insert(0, str(JUDGE))
from judge.defects import DEFECTS

sys.path.remove(str(JUDGE))

Probe = Callable[[Judge, Client], bool]
PROBES: dict[str, Probe] = {}
"""By the defect's name: whether it shows in a judge of the API alone, to which a probe adds what it needs."""


def stays(holds: Callable[[], object]) -> bool:
    """Whether it holds for ten seconds; without the defect it ends at once, on a busy machine in some seconds."""
    end = time.monotonic() + 10
    while time.monotonic() < end:
        if not holds():
            return False
        time.sleep(0.05)
    return True


def probe(function: Probe) -> Probe:
    PROBES[function.__name__.replace("_", "-")] = function
    return function


@probe
def cap_ignored(made: Judge, alice: Client) -> bool:
    for _ in range(2):
        made.start("worker")
    jobs = [alice.made("sleep 1") for _ in range(2)]
    (_, ended), (started, _) = sorted((job["started"], job["ended"]) for job in map(alice.ends, jobs))
    return bool(started < ended)


@probe
def checksum_ignored(_: Judge, alice: Client) -> bool:
    path = alice.upload(b"", 4)
    wrong = base64.b64encode(hashlib.sha256(b"other").digest()).decode()
    return alice.chunk(path, 0, b"some", **{"Upload-Checksum": f"sha256 {wrong}"}).status_code == 204


@probe
def chunk_twice(_: Judge, alice: Client) -> bool:
    path = alice.upload(b"some", 8)
    alice.chunk(path, 0, b"some")
    return alice.offset(path) == 8


@probe
def clean_active(made: Judge, alice: Client) -> bool:
    job = alice.made()
    made.run("clean-old", JUDGE_KEEP="0")
    return alice.get(f"/v1/jobs/{job}").status_code == 404


@probe
def existence_told(made: Judge, alice: Client) -> bool:
    job = alice.made()
    with made.client("bob") as bob:
        return bob.get(f"/v1/jobs/{job}").content != bob.get("/v1/jobs/nothing").content


@probe
def expired_url(made: Judge, alice: Client) -> bool:
    made.start("worker")
    url = alice.ends(alice.made())["result_url"]
    time.sleep(max(0, int(httpx.URL(url).params["expires"]) - time.time()) + 0.1)
    return alice.get(url).status_code == 200


@probe
def fd_left(made: Judge, alice: Client) -> bool:
    alice.made()
    before = psutil.Process(made.parts["serve"].pid).num_fds()
    for _ in range(3):
        alice.made()
    return psutil.Process(made.parts["serve"].pid).num_fds() >= before + 3


@probe
def foreign_job(made: Judge, alice: Client) -> bool:
    with made.client("bob") as bob:
        return bob.get(f"/v1/jobs/{alice.made()}").status_code == 200


@probe
def ghost_run(made: Judge, alice: Client) -> bool:
    made.start("web")
    page = f"http://127.0.0.1:{made.web_port}/jobs/{alice.made()}"
    for _ in range(2):
        httpx.get(page).raise_for_status()
    return len(alice.jobs()) > 1


@probe
def idempotency_ignored(_: Judge, alice: Client) -> bool:
    return len({alice.create(key="key").json()["id"] for _ in range(2)}) == 2


@probe
def lost_cancel(made: Judge, alice: Client) -> bool:
    made.start("worker")
    alice.ends(alice.made())
    for number in range(40):
        job = alice.made("sleep 1")
        time.sleep(0.005 * number)
        alice.delete(f"/v1/jobs/{job}")
        time.sleep(0.2)
        if alice.job(job)["state"] != "cancelled":
            return True
    return False


@probe
def orphan_after_cancel(made: Judge, alice: Client) -> bool:
    worker = made.start("worker")
    job = alice.made("sleep 50")
    alice.comes_to(job, "running")
    wait_until("it runs", lambda: psutil.Process(worker.pid).children(recursive=True)[2:])
    alice.delete(f"/v1/jobs/{job}")
    return stays(lambda: psutil.Process(worker.pid).children())


@probe
def quota_race(_: Judge, alice: Client) -> bool:
    with ThreadPoolExecutor(16) as pool:
        answers = [answer.status_code for answer in pool.map(lambda _: alice.create(), range(32))]
    return answers.count(201) > 5


@probe
def rerun_finished(made: Judge, alice: Client) -> bool:
    worker = made.start("worker")
    job = alice.ends(alice.made())
    made.kill(worker)
    made.kill(made.parts["serve"])
    made.start("serve")
    return bool(alice.job(job["id"])["state"] != "completed")


@probe
def signature_ignored(made: Judge, alice: Client) -> bool:
    made.start("worker")
    url = httpx.URL(alice.ends(alice.made())["result_url"])
    return alice.get(url.copy_set_param("signature", "0" * 64)).status_code == 200


@probe
def ssrf_decimal(_: Judge, alice: Client) -> bool:
    return alice.create(input_url="http://2130706433/").status_code == 201


@probe
def stuck_running(made: Judge, alice: Client) -> bool:
    worker = made.start("worker")
    job = alice.made("sleep 50")
    alice.comes_to(job, "running")
    made.kill(worker)
    return stays(lambda: alice.job(job)["state"] == "running")


@probe
def tenant_mismatch(_: Judge, alice: Client) -> bool:
    return alice.create(user_id="bob").status_code == 201


@probe
def terminal_overwritten(made: Judge, alice: Client) -> bool:
    made.start("worker")
    job = alice.ends(alice.made())
    return bool(alice.delete(f"/v1/jobs/{job['id']}").json()["state"] == "cancelled")


@probe
def upload_left(made: Judge, alice: Client) -> bool:
    alice.delete(alice.upload(b"some", 8), headers=TUS)
    return bool(made.files("uploads"))


@probe
def upload_unlimited(_: Judge, alice: Client) -> bool:
    return alice.post("/v1/uploads", headers=TUS | {"Upload-Length": str(1 << 30)}).status_code == 201


@probe
def url_reused(made: Judge, alice: Client) -> bool:
    made.start("worker")
    job = alice.ends(alice.made())
    return bool(alice.job(job["id"])["result_url"] == alice.job(job["id"])["result_url"])


@probe
def work_left(made: Judge, alice: Client) -> bool:
    made.start("worker")
    job = alice.made("sleep 50")
    alice.comes_to(job, "running")
    alice.delete(f"/v1/jobs/{job}")
    return stays(lambda: made.files("work"))


ELSEWHERE = {
    "redis-double": "needs a Redis that comes back: test_redis.py",
    "redis-drop": "needs a Redis that comes back: test_redis.py",
    "ssrf-redirect": "needs a public address that redirects: test_a_redirect_to_a_private_address_is_not_followed",
}


def test_every_defect_has_its_probe() -> None:
    assert PROBES.keys() | ELSEWHERE.keys() == DEFECTS.keys()


@pytest.mark.slow  # two judges for each; the campaign `service` finds them too
@pytest.mark.parametrize("name", PROBES)
def test_a_planted_defect_shows_and_is_not_there_without(tmp_path: Path, name: str) -> None:
    shown = []
    for planted in (name, ""):
        data = tmp_path / (planted or "none")
        environment = {"JUDGE_DEFECT": planted, "JUDGE_URL_LIFETIME": "1", "JUDGE_WALL": "60"}
        with judge(data, "serve", **environment) as made, made.client() as alice:
            shown.append(PROBES[name](made, alice))
    assert shown == [True, False]
