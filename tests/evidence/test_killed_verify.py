"""A `verify` that is killed again and again ends as one that was not, and leaves nothing behind."""

import os
import random
import sqlite3
import subprocess
from pathlib import Path
from typing import Any

import pytest
from made import LEAKCHECK
from offspring import Offspring

from leakcheck.evidence import Store
from leakcheck.verify.result import Verification, Verifications

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="arenas of root; run as root")
WORDS = ("verify", "--target", "refbox", "--only", "R6,R7,R8", "--resume", "--json", "--store")
# The first trials of a campaign come some seconds after its start.
LATEST_S = 6.0
KILLS = 20


def start(store: Path) -> "subprocess.Popen[bytes]":
    with store.with_suffix(".json").open("wb") as out, store.with_suffix(".log").open("ab") as log:
        return subprocess.Popen([*LEAKCHECK, *WORDS, store], stdin=subprocess.DEVNULL, stdout=out, stderr=log)


def page_of(store: Path) -> Verification:
    (found,) = Verifications.from_json(store.with_suffix(".json").read_bytes()).targets
    return found


def shown(page: Verification) -> Any:
    return page.verdict, [(one.id, one.status, [part.status for part in one.parts]) for one in page.requirements]


def trials(store: Path) -> dict[int, int]:
    """Return the number of trials of each run that has not ended, of a store that is whole."""
    connection = sqlite3.connect(store)
    assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    connection.close()
    with Store(store, read_only=True) as opened:
        return {run.id: run.trials for run in opened.runs() if run.state == "running"}


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What comes of it undisturbed."""
    alone = tmp_path_factory.mktemp("alone") / "alone.db"
    assert start(alone).wait(600) == 0
    return shown(page_of(alone))


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.slow  # twenty minutes in all
def test_a_verify_killed_at_twenty_random_instants_ends_as_an_undisturbed_one(
    tmp_path: Path, expected: Any, seed: int
) -> None:
    generator, made, number = random.Random(seed), 0, 0
    while made < KILLS:
        number += 1
        store, before = tmp_path / f"{number}.db", dict[int, int]()
        while True:
            process = start(store)
            try:
                code = process.wait(generator.uniform(0, LATEST_S) if made < KILLS else 600)
            except subprocess.TimeoutExpired:
                offspring = Offspring(process.pid)
                process.kill()
                process.wait()
                made += 1
                offspring.wait_until_gone()
                if store.exists() and store.stat().st_size:
                    now = trials(store)
                    assert all(now[run] >= count for run, count in before.items() if run in now)
                    before = now
                continue
            assert code == 0, store.with_suffix(".log").read_text()
            assert shown(page_of(store)) == expected
            break
