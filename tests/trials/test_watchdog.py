"""Where nothing goes on any more: who is told, and what of."""

import os
import threading

from leakcheck.trials.watchdog import driver_stacks, process_stacks, watchdog


def test_the_watchdog_tells_once_of_a_driver_that_stands_still() -> None:
    told: list[float] = []
    event = threading.Event()
    with watchdog(lambda: 9.0, lambda: 5.0, lambda idle: (told.append(idle), event.set())[0]):
        assert event.wait(10)
    assert told == [9.0]


def test_stacks_show_where_threads_and_processes_stand() -> None:
    release = threading.Event()
    thread = threading.Thread(target=release.wait, name="waits-for-it")
    thread.start()
    try:
        assert "waits-for-it" in driver_stacks()
    finally:
        release.set()
        thread.join()
    text = process_stacks([os.getpid(), 2**22 - 1])
    assert text.startswith(f"process {os.getpid()} (")
    assert "state R" in text
    assert text.count("process ") == 1
