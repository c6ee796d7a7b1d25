"""The judge of examples/judge keeps its promises."""

import base64
import hashlib
import itertools
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import psutil
import pytest
from judging import TUS, Judge, judge, wait_until

NAMES = ["http://localhost/", "http://127.1/", "http://2130706433/", "http://0x7f000001/", "http://0177.0.0.01/"]
ADDRESSES = [
    "http://[::1]/",
    "http://[::ffff:127.0.0.1]/",
    "http://[64:ff9b::7f00:1]/",
    "http://169.254.169.254/latest",
]
OTHERS = ["http://10.0.0.1/", "http://0.0.0.0/", "ftp://example.org/", "http://user@example.org/", "file:///etc/passwd"]


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Judge]:
    """A judge for the tests that leave it as it was; the mark of one test must not be that of all."""
    data = tmp_path_factory.mktemp("judge") / "data"
    with judge(data, "serve", "worker", JUDGE_WALL="60", LEAKCHECK_OWN_TEST="module") as made:
        yield made


def test_a_job_runs_and_its_result_is_behind_a_signed_url_that_is_new_each_time(running: Judge) -> None:
    with running.client() as alice:
        job = alice.ends(alice.made("echo hello"))
        assert (job["state"], job["reason"], job["progress"]) == ("completed", None, 1)
        result = httpx.get(running.url + job["result_url"]).raise_for_status().json()
        assert (result["status"], result["stdout"]) == ("OK", "hello\n")
        urls = {alice.job(job["id"])["result_url"] for _ in range(5)}
        assert len(urls) == 5 and job["result_url"] not in urls


def test_a_result_is_not_given_for_a_tampered_url(running: Judge) -> None:
    with running.client() as alice:
        url = running.url + alice.ends(alice.made())["result_url"]
        assert httpx.get(url).status_code == 200
        later = httpx.URL(url).copy_set_param("expires", str(int(time.time()) + 1000))
        other = httpx.URL(url).copy_set_param("signature", "é" * 64)
        assert [httpx.get(tampered).status_code for tampered in (later, other)] == [403, 403]


def test_a_failed_submission_has_its_reason(tmp_path: Path) -> None:
    wanted = {"exit 3": "RE: exit code 3", "sleep 9": "TLE: more than 1 s of wall-clock time"}
    short = {"JUDGE_WALL": "1", "JUDGE_URL_LIFETIME": "1"}
    with judge(tmp_path / "data", "serve", "worker", **short) as made, made.client() as alice:
        ended = {source: alice.ends(alice.made(source)) for source in wanted}
        assert {source: job["reason"] for source, job in ended.items()} == wanted
        assert {job["state"] for job in ended.values()} == {"failed"}
        url = ended["exit 3"]["result_url"]
        wait_until("its URL has expired", lambda: "expired" in alice.get(url).text)
        assert alice.get(url).status_code == 403


def test_requests_without_a_right_key_tenant_or_body_are_refused(running: Judge) -> None:
    with running.client() as alice:
        body = {"workflow": "run"}
        assert httpx.get(running.url + "/v1/jobs", headers={"X-User-ID": "alice"}).status_code == 401
        assert alice.get("/v1/jobs", headers={"X-API-Key": "wrong"}).status_code == 401
        assert httpx.get(running.url + "/v1/jobs", headers={"X-API-Key": "alice-key"}).status_code == 400
        assert alice.get("/v1/jobs", headers={"X-User-ID": "bob"}).status_code == 403
        assert alice.post("/v1/jobs", json=body | {"user_id": "bob"}).status_code == 403
        bad = [{}, {"workflow": ""}, {"workflow": None}, body | {"unknown": 1}, body | {"language": "perl"}]
        assert [alice.post("/v1/jobs", json=one).status_code for one in bad] == [422] * 5
        assert alice.post("/v1/jobs", content=b'{"workflow": "run", "source": "\\ud800"}').status_code == 422
        assert alice.post("/v1/jobs", content=b"x" * (2 << 20)).status_code == 413
        assert alice.create(upload="nothing").status_code == 409
        assert httpx.get(running.url + "/health").json() == {"status": "ok"}


def test_another_tenants_job_is_answered_as_one_that_does_not_exist(running: Judge) -> None:
    with running.client() as alice, running.client("bob") as bob:
        job = alice.made()
        answers = [(bob.get(path), bob.delete(path)) for path in (f"/v1/jobs/{job}", "/v1/jobs/nothing")]
        assert {(a.status_code, a.content) for pair in answers for a in pair} == {(404, answers[1][0].content)}
        assert job not in {one["id"] for one in bob.jobs()}
        alice.ends(job)


@pytest.mark.parametrize("url", NAMES + ADDRESSES + OTHERS)
def test_an_input_that_is_not_of_the_public_internet_is_refused(running: Judge, url: str) -> None:
    with running.client() as alice:
        assert alice.create(input_url=url).status_code == 400


def test_an_idempotency_key_makes_one_job(running: Judge) -> None:
    with running.client() as alice:
        with ThreadPoolExecutor(8) as pool:
            ids = {answer.json()["id"] for answer in pool.map(lambda _: alice.create("true", key="one"), range(8))}
        assert len(ids) == 1
        assert alice.create("false", key="one").status_code == 409
        alice.ends(ids.pop())


def test_a_burst_of_a_tenant_gets_as_many_jobs_as_its_limit(tmp_path: Path) -> None:
    with judge(tmp_path / "data", "serve") as made, made.client() as alice, made.client("bob") as bob:
        with ThreadPoolExecutor(50) as pool:
            answers = list(pool.map(lambda _: alice.create().status_code, range(50)))
        assert sorted(answers) == [201] * 5 + [429] * 45
        assert bob.create().status_code == 201


@pytest.mark.parametrize("delay", [0, 0.05, 0.2])
def test_a_cancelled_job_stays_cancelled_and_its_submission_ends(running: Judge, delay: float) -> None:
    with running.client() as alice:
        job = alice.made("sleep 50")
        time.sleep(delay)
        cancelled = alice.delete(f"/v1/jobs/{job}").json()
        assert cancelled["state"] == "cancelled"
        wait_until("nothing works any more", lambda: not running.files("work"))
        # The next job runs at once, so that the box is empty.
        began = time.monotonic()
        alice.ends(alice.made())
        assert time.monotonic() - began < 40
        assert (
            alice.job(job)
            == alice.delete(f"/v1/jobs/{job}").json()
            == cancelled | {"progress": alice.job(job)["progress"]}
        )


def test_a_finished_job_cannot_be_cancelled(running: Judge) -> None:
    with running.client() as alice:
        job = alice.ends(alice.made())
        assert alice.delete(f"/v1/jobs/{job['id']}").json()["state"] == "completed"


@pytest.mark.slow  # the campaign `service` does the same
def test_never_more_jobs_run_than_the_global_limit(tmp_path: Path) -> None:
    with (
        judge(tmp_path / "data", "serve", "worker", "worker") as made,
        made.client() as alice,
        made.client("bob") as bob,
    ):
        jobs = [(client, client.made("sleep 0.2")) for client in (alice, bob) for _ in range(3)]
        spans = sorted((one["started"], one["ended"]) for one in (client.ends(job) for client, job in jobs))
        assert all(before[1] <= after[0] for before, after in itertools.pairwise(spans)), spans


def test_an_upload_is_resumed_by_another_client_and_becomes_the_stdin_of_a_job(running: Judge) -> None:
    content = bytes(range(256)) * 4096
    with running.client() as first:
        path = first.upload(content[:300_000], len(content))
    with running.client() as alice:
        assert alice.offset(path) == 300_000
        sums = [hashlib.sha1(content[300_000:]), hashlib.sha256(content[300_000:])]
        checksum = [f"{one.name} {base64.b64encode(one.digest()).decode()}" for one in sums]
        assert alice.create(upload=path.rpartition("/")[2]).status_code == 409  # it is not complete
        wrong = alice.chunk(path, 300_000, content[300_000:-1] + b"x", **{"Upload-Checksum": checksum[0]})
        assert (wrong.status_code, alice.offset(path)) == (460, 300_000)
        assert alice.chunk(path, 300_000, content[300_000:], **{"Upload-Checksum": checksum[1]}).status_code == 204
        again = alice.chunk(path, 300_000, content[300_000:])
        assert (again.status_code, again.headers["Upload-Offset"]) == (409, str(len(content)))
        job = alice.ends(alice.made("sha256sum", upload=path.rpartition("/")[2]))
        stdout = httpx.get(running.url + job["result_url"]).json()["stdout"]
        assert stdout.split()[0] == hashlib.sha256(content).hexdigest()
        wait_until("what was uploaded is removed", lambda: not running.files("uploads"))


def test_a_chunk_counts_once_however_many_send_it_at_once(running: Judge) -> None:
    content = b"0123456789" * 10_000
    with running.client() as alice:
        path = alice.upload(b"", len(content) * 2)
        with ThreadPoolExecutor(6) as pool:
            answers = list(pool.map(lambda _: alice.chunk(path, 0, content).status_code, range(6)))
        assert sorted(answers) == [204] + [409] * 5
        assert alice.offset(path) == len(content)
        assert (running.data / "uploads" / path.rpartition("/")[2]).read_bytes() == content
        assert alice.delete(path, headers=TUS).status_code == 204
        assert not running.files("uploads")


def test_wrong_uploads_are_refused(running: Judge) -> None:
    with running.client() as alice, running.client("bob") as bob:
        assert alice.post("/v1/uploads", headers=TUS | {"Upload-Length": str(1 << 30)}).status_code == 413
        assert alice.post("/v1/uploads", headers=TUS | {"Upload-Length": "-1"}).status_code == 400
        assert alice.post("/v1/uploads", headers={"Upload-Length": "1"}).status_code == 412
        path = alice.upload(b"", 10)
        assert alice.chunk(path, 0, b"x" * 11).status_code == 413
        assert alice.chunk(path, 5, b"x").status_code == 409
        assert alice.chunk(path, 0, b"x", **{"Upload-Checksum": "md5 eA=="}).status_code == 400
        assert bob.chunk(path, 0, b"x").status_code == bob.delete(path, headers=TUS).status_code == 404
        assert alice.offset(path) == 0
        alice.delete(path, headers=TUS)


def test_what_arrived_of_a_broken_connection_counts(running: Judge) -> None:
    with running.client() as alice:
        path = alice.upload(b"", 1_000_000)

        def broken() -> Iterator[bytes]:
            yield b"x" * 100_000
            time.sleep(0.2)
            raise ConnectionError

        with pytest.raises(ConnectionError):
            alice.chunk(path, 0, broken())  # type: ignore[arg-type]
        wait_until("something arrived", lambda: alice.offset(path) == 100_000)
        alice.delete(path, headers=TUS)


def test_an_upload_that_is_ended_while_a_chunk_of_it_arrives_leaves_no_file(running: Judge) -> None:
    with running.client() as alice, running.client() as other:
        path = alice.upload(b"", 1_000)

        def ended() -> Iterator[bytes]:
            yield b"x" * 100
            time.sleep(0.2)
            assert other.delete(path, headers=TUS).status_code == 204
            yield b"x" * 100

        assert alice.chunk(path, 0, ended()).status_code == 404  # type: ignore[arg-type]
        assert not running.files("uploads")


def test_a_worker_that_is_killed_leaves_nothing_and_its_job_runs_again(tmp_path: Path) -> None:
    with judge(tmp_path / "data", "serve") as made, made.client() as alice:
        worker = made.start("worker")
        job = alice.made("sleep 2; echo done")
        alice.comes_to(job, "running")
        below = wait_until("the submission runs", lambda: psutil.Process(worker.pid).children(recursive=True)[1:])
        made.kill(worker)
        waiting = alice.comes_to(job, "queued")
        assert waiting["reason"] == "recovered after restart"
        psutil.wait_procs(below, timeout=60)
        assert not [process for process in below if process.is_running()]
        made.start("worker")
        assert alice.ends(job)["state"] == "completed"
        assert not made.files("work")


@pytest.mark.slow  # three workers one after the other
def test_a_job_that_kills_its_workers_fails_in_the_end(tmp_path: Path) -> None:
    with judge(tmp_path / "data", "serve") as made, made.client() as alice:
        job = alice.made("sleep 9")
        for _ in range(3):
            worker = made.start("worker")
            alice.comes_to(job, "running")
            made.kill(worker)
            alice.comes_to(job, "queued", "failed")
        assert alice.job(job)["reason"] == "its worker died 3 times"


def test_a_worker_that_is_told_to_stop_gives_its_job_back(tmp_path: Path) -> None:
    with judge(tmp_path / "data", "serve") as made, made.client() as alice:
        worker = made.start("worker")
        job = alice.made("sleep 9")
        alice.comes_to(job, "running")
        worker.send_signal(signal.SIGTERM)
        assert worker.wait(60) == 0
        found = alice.job(job)
        assert (found["state"], found["reason"]) == ("queued", "its worker was stopped")


@pytest.mark.slow  # waits for a stall and for its end
def test_a_silent_worker_stalls_its_job_which_fails_and_does_not_come_back(tmp_path: Path) -> None:
    with judge(tmp_path / "data", "serve", JUDGE_STALL="1.5") as made, made.client() as alice:
        worker = made.start("worker")
        job = alice.made("sleep 9")
        alice.comes_to(job, "running")
        worker.send_signal(signal.SIGSTOP)
        alice.comes_to(job, "stalled")
        failed = alice.ends(job)
        assert failed["reason"] == "stalled: no sign of life from its worker"
        worker.send_signal(signal.SIGCONT)
        assert alice.ends(alice.made())["state"] == "completed"
        assert alice.job(job) == failed


@pytest.mark.slow  # waits for a stall and for its end
def test_a_stalled_job_goes_on_when_its_worker_does(tmp_path: Path) -> None:
    with judge(tmp_path / "data", "serve", JUDGE_STALL="3") as made, made.client() as alice:
        worker = made.start("worker")
        job = alice.made("sleep 3")
        alice.comes_to(job, "running")
        worker.send_signal(signal.SIGSTOP)
        alice.comes_to(job, "stalled")
        worker.send_signal(signal.SIGCONT)
        alice.comes_to(job, "running", "completed")
        assert alice.ends(job)["state"] == "completed"


@pytest.mark.slow  # test_kills.py kills it many times
def test_what_is_accepted_survives_a_kill_of_the_api(tmp_path: Path) -> None:
    with judge(tmp_path / "data") as made:
        api = made.start("serve")
        with made.client() as alice:
            jobs = [alice.made() for _ in range(5)]
            path = alice.upload(b"some", 8)
        made.kill(api)
        made.start("serve")
        made.start("worker")
        with made.client() as alice:
            assert [alice.ends(job)["state"] for job in jobs] == ["completed"] * 5
            assert alice.chunk(path, 4, b"more").status_code == 204


def test_the_commands_of_an_operator(tmp_path: Path) -> None:
    with judge(tmp_path / "data", "serve", JUDGE_STALL="300") as made, made.client() as alice:
        assert made.run("verify-setup").startswith("0 ok  data")
        assert "FAIL  sandbox: refbox does not" in made.run("verify-setup", JUDGE_REFBOX="/bin/false")
        assert made.run("worker", JUDGE_REFBOX="/bin/false").startswith("4 judge worker: refbox does not work here")
        assert made.run("verify-setup", JUDGE_KEYS="").startswith("4 judge verify-setup: JUDGE_KEYS")
        assert "unknown lost-cancle" in made.run("verify-setup", JUDGE_DEFECT="lost-cancle")
        worker = made.start("worker")
        done, job = alice.ends(alice.made()), alice.made("sleep 9")
        alice.comes_to(job, "running")
        worker.send_signal(signal.SIGSTOP)
        assert made.run("fail-stale") == "0 failed 0 stale jobs\n"
        assert made.run("fail-stale", JUDGE_STALL="0.1") == "0 failed 1 stale jobs\n"
        assert alice.job(job)["state"] == "failed"
        assert (
            made.run("clean-old") == "0 removed 0 jobs, 0 uploads, 1 files without a job\n"
        )  # of the worker that hangs
        waiting = alice.made()
        assert made.run("clean-old", JUDGE_KEEP="0").startswith("0 removed 2 jobs")
        assert [one["id"] for one in alice.jobs()] == [waiting]
        assert alice.get(done["result_url"]).status_code == 404 and not made.files("results")


def test_the_page_submits_once_shows_and_cancels(tmp_path: Path) -> None:
    with judge(tmp_path / "data", "web") as made:
        page = httpx.Client(base_url=f"http://127.0.0.1:{made.web_port}", follow_redirects=True)
        with page, made.client() as alice:
            assert (page.get("/").status_code, "does not answer" in page.get("/").text) == (503, True)
            made.start("serve")
            token = page.get("/").text.partition('name="token" value="')[2].partition('"')[0]
            form = {"token": token, "language": "sh", "source": "echo '<b>'; sleep 1"}
            shown = [page.post("/submit", data=form).url for _ in range(3)]
            assert len(set(shown)) == len(alice.jobs()) == 1
            assert 'data-state="queued"' in page.get(shown[0]).text
            made.start("worker")
            alice.ends(alice.jobs()[0]["id"])
            text = page.get(shown[0]).text
            assert 'data-state="completed"' in text and "&lt;b&gt;" in text and "refresh" not in text
            job = alice.made("sleep 9")
            assert page.post(f"/jobs/{job}/cancel", headers={"Sec-Fetch-Site": "cross-site"}).status_code == 403
            assert 'data-state="cancelled"' in page.post(f"/jobs/{job}/cancel").text
            assert len(alice.jobs()) == 2


def test_a_redirect_to_a_private_address_is_not_followed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "examples/judge"))
    import socket

    from judge import urls

    reached = []

    def serve(listener: socket.socket, answer: bytes) -> None:
        with listener:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection:
                    reached.append(connection.recv(4096))
                    connection.sendall(answer)

    canary = socket.create_server(("127.0.0.1", 0))
    first = socket.create_server(("127.0.0.1", 0))
    to = f"http://127.0.0.1:{canary.getsockname()[1]}/"
    answers = {
        canary: "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi",
        first: f"HTTP/1.1 302 F\r\nLocation: {to}\r\n\r\n",
    }
    threads = [threading.Thread(target=serve, args=(at, text.encode())) for at, text in answers.items()]
    for thread in threads:
        thread.start()
    try:
        # The first server stands for one of the internet: only its port is public.
        port = first.getsockname()[1]
        real = urls.addresses
        monkeypatch.setattr(urls, "addresses", lambda host, to: ["127.0.0.1"] if to == port else real(host, to))
        with pytest.raises(urls.ForbiddenError, match="not a public address"):
            urls.fetch(f"http://public.example:{port}/", tmp_path / "input", 100)
        assert len(reached) == 1
    finally:
        for at in answers:
            at.shutdown(socket.SHUT_RDWR)
        for thread in threads:
            thread.join()
