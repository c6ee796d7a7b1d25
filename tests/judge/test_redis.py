"""A real Redis may die, hang and come back: no job is lost or runs twice, and requests are answered in time."""

import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from judging import Judge, free_port, judge, wait_until

pytestmark = pytest.mark.skipif(
    shutil.which("redis-server") is None, reason="no redis-server: apt-get install redis-server"
)


class Redis:
    """A server of one's own, without files."""

    def __init__(self, directory: Path) -> None:
        self.port, self._directory = free_port(), directory
        self.client = redis.Redis(port=self.port)
        self.start()

    def start(self) -> None:
        """Start it and wait until it answers."""
        command = ["redis-server", "--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
        self.process = subprocess.Popen(
            command, cwd=self._directory, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        wait_until("redis answers", self._answers)

    def _answers(self) -> bool:
        try:
            return bool(self.client.ping())
        except redis.RedisError:
            return False

    def kill(self) -> None:
        """Kill it; what it had is lost."""
        self.process.kill()
        self.process.wait()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Redis]:
    started = Redis(tmp_path)
    yield started
    started.client.close()
    started.kill()


@pytest.fixture
def made(tmp_path: Path, server: Redis) -> Iterator[Judge]:
    with judge(tmp_path / "data", "serve", "worker", JUDGE_REDIS=f"redis://127.0.0.1:{server.port}/0") as running:
        yield running


def test_jobs_run_once_while_redis_is_killed_and_comes_back(made: Judge, server: Redis) -> None:
    with made.client() as alice:
        jobs = [alice.made("sleep 0.3") for _ in range(2)]
        server.kill()  # with the id of the second job
        began = time.monotonic()
        jobs += [alice.made() for _ in range(3)]
        assert time.monotonic() - began < 30
        ended = [alice.ends(job) for job in jobs]
        server.start()
        jobs.append(alice.made())
        ended.append(alice.ends(jobs[-1]))
        wait_until("no id is left in Redis", lambda: server.client.llen("judge:pending") == 0)
        assert [job["state"] for job in ended] == ["completed"] * 6
        assert [alice.job(job) | {"result_url": ""} for job in jobs] == [job | {"result_url": ""} for job in ended]


@pytest.mark.slow  # a Redis that hangs makes each of its clients wait a second
def test_jobs_run_once_while_redis_hangs(made: Judge, server: Redis) -> None:
    with made.client() as alice:
        server.process.send_signal(signal.SIGSTOP)
        try:
            jobs = [alice.made() for _ in range(3)]
            ended = [alice.ends(job) for job in jobs]
        finally:
            server.process.send_signal(signal.SIGCONT)
        jobs.append(alice.made())
        ended.append(alice.ends(jobs[-1]))
        wait_until("no id is left in Redis", lambda: server.client.llen("judge:pending") == 0)
        assert [alice.job(job) | {"result_url": ""} for job in jobs] == [job | {"result_url": ""} for job in ended]


@pytest.mark.slow  # it is about a Redis that others write to
def test_an_id_that_comes_twice_or_names_nothing_runs_nothing(made: Judge, server: Redis) -> None:
    with made.client() as alice:
        ended = alice.ends(alice.made())
        server.client.lpush("judge:pending", ended["id"], "nothing", b"\xff\xfe")
        wait_until("no id is left in Redis", lambda: server.client.llen("judge:pending") == 0)
        assert alice.ends(alice.made())["state"] == "completed"
        assert alice.job(ended["id"]) | {"result_url": ""} == ended | {"result_url": ""}


@pytest.mark.slow  # the campaign `service` finds them too
@pytest.mark.parametrize("planted", ["redis-drop", "redis-double"])
def test_a_planted_defect_of_the_queue_shows_after_redis_came_back(tmp_path: Path, server: Redis, planted: str) -> None:
    url = f"redis://127.0.0.1:{server.port}/0"
    with (
        judge(tmp_path / "data", "serve", "worker", JUDGE_REDIS=url, JUDGE_DEFECT=planted) as made,
        made.client() as alice,
    ):
        server.kill()
        job = alice.made()
        if planted == "redis-double":
            before = alice.ends(job)
        server.start()
        time.sleep(1.5)  # until it is asked again
        alice.ends(alice.made())
        if planted == "redis-drop":
            time.sleep(2)
            assert alice.job(job)["state"] == "queued"
        else:
            wait_until("it runs again", lambda: alice.job(job)["started"] != before["started"])
