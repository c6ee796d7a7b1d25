"""The library, in this very process."""

import asyncio
import contextlib
import gc
import mmap
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Generator
from pathlib import Path

import msgspec
import pytest

import leakcheck
from leakcheck import AllowRule, CoverageError, LeakcheckWarning, LeakError, UsageError, guard, verify_none
from leakcheck._guard import Run
from leakcheck.report import Coverage, Report

# This process's descriptors: quick, and the same for every user.
FD = {"kinds": "fd", "settle": 0.05}


def opened() -> object:
    return Path("/etc/passwd").open()


@pytest.fixture
def kept() -> Generator[list[object], None, None]:
    """Yield a list in which descriptors outlive their guard, and close them in the end."""
    things: list[object] = []
    yield things
    for thing in things:
        thing.close() if hasattr(thing, "close") else os.close(thing)  # type: ignore[func-returns-value, arg-type]


class TestGuard:
    def test_clean_code_passes_and_the_report_is_there(self) -> None:
        with guard(**FD) as guarded:
            assert guarded.report is None
            with Path("/etc/passwd").open():
                pass
        assert guarded.report is not None
        assert guarded.report.verdict == "clean"

    def test_a_descriptor_left_open_raises_with_what_and_where(self, kept: list[object]) -> None:
        with pytest.raises(LeakError, match="/etc/passwd") as caught, guard(**FD):
            kept.append(opened())
        (leak,) = caught.value.report.leaks
        assert (leak.kind, leak.attribution) == ("fd", "own")
        assert isinstance(caught.value, AssertionError)

    def test_garbage_is_no_leak(self) -> None:
        with guard(**FD):
            loop: list[object] = [open("/etc/passwd")]  # noqa: SIM115, PTH123
            loop.append(loop)
            del loop

    def test_a_child_process_left_behind_is_named(self) -> None:
        child = None
        try:
            with pytest.raises(LeakError, match="process") as caught, guard(kinds=["process"], settle=0.05):
                child = subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
            assert "cat" in str(caught.value)
        finally:
            assert child is not None
            child.communicate()

    def test_children_inherit_the_run_token_and_the_environment_is_restored(self) -> None:
        before = dict(os.environ)
        with guard(**FD):
            outer = subprocess.run(["printenv", "LEAKCHECK_RUN"], capture_output=True, check=True).stdout
            with guard(**FD):
                inner = subprocess.run(["printenv", "LEAKCHECK_RUN"], capture_output=True, check=True).stdout
            again = subprocess.run(["printenv", "LEAKCHECK_RUN"], capture_output=True, check=True).stdout
        assert outer == again != inner
        assert dict(os.environ) == before

    def test_the_bodys_own_exception_is_not_hidden_and_carries_the_leak_as_a_note(self, kept: list[object]) -> None:
        with pytest.raises(ZeroDivisionError) as caught, guard(**FD):
            kept.append(opened())
            raise ZeroDivisionError("its own")
        (note,) = caught.value.__notes__
        assert note.startswith("leakcheck: leaked")
        assert "/etc/passwd" in note

    def test_an_exception_without_a_leak_gets_no_note(self) -> None:
        with pytest.raises(ZeroDivisionError) as caught, guard(**FD):
            raise ZeroDivisionError
        assert not hasattr(caught.value, "__notes__")

    def test_a_failure_of_the_check_itself_does_not_hide_the_bodys_exception(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def end(self: Run) -> Report:
            self.abandon()
            raise leakcheck.NativeError("read /proc: no")

        monkeypatch.setattr(Run, "end", end)
        with pytest.raises(ZeroDivisionError) as caught, guard(**FD):
            raise ZeroDivisionError
        assert caught.value.__notes__ == ["leakcheck: unknown, the check itself failed: read /proc: no"]
        with pytest.raises(leakcheck.NativeError, match="read /proc: no"), guard(**FD):
            pass

    def test_an_allow_rule_lets_pass(self, kept: list[object]) -> None:
        with guard(**FD, allow=AllowRule("fd", {"target": "/etc/pass*"}, reason="kept")) as guarded:
            kept.append(opened())
        assert guarded.report is not None
        assert [allowed.reason for allowed in guarded.report.allowed] == ["kept"]

    def test_what_goes_away_while_settling_is_transient(self) -> None:
        with guard(kinds="process", settle=60) as guarded:
            # Long enough for a first look on a busy machine; settling ends with it.
            child = subprocess.Popen(["sleep", "2"])
            threading.Thread(target=child.wait).start()
        assert guarded.report is not None
        assert [(gone.kind, gone.gone_after_ms > 0) for gone in guarded.report.transient] == [("process", True)]

    @pytest.mark.parametrize(
        "wrong",
        [{"kinds": "nonsense"}, {"scope": "nonsense"}, {"settle": -1}, {"settle": float("nan")}, {"allow": "missing"}],
    )
    def test_wrong_options_are_usage_errors(self, wrong: dict[str, object]) -> None:
        with pytest.raises(UsageError), guard(**wrong):  # type: ignore[arg-type]
            pass

    def test_entered_twice_is_an_error_of_the_caller(self) -> None:
        guarded = guard(**FD)
        with guarded, pytest.raises(RuntimeError, match="already entered"), guarded:
            pass


class TestUnknown:
    @pytest.fixture(autouse=True)
    def gap(self, monkeypatch: pytest.MonkeyPatch) -> None:
        real = Run.end

        def end(self: Run) -> Report:
            coverage = {"net": Coverage(level="none", reason="no permission")}
            return msgspec.structs.replace(real(self), verdict="unknown", coverage=coverage)

        monkeypatch.setattr(Run, "end", end)

    def test_raises_by_default(self) -> None:
        with pytest.raises(CoverageError, match="net: none, no permission"), guard(**FD):
            pass

    def test_warns_if_told_to(self) -> None:
        with pytest.warns(LeakcheckWarning, match="unknown"), guard(**FD, on_unknown="warn"):
            pass

    def test_is_ignored_if_told_to_but_never_called_clean(self) -> None:
        with guard(**FD, on_unknown="ignore") as guarded:
            pass
        assert guarded.report is not None
        assert guarded.report.verdict == "unknown"


class TestDecorator:
    def test_guards_every_call_and_keeps_name_and_result(self, kept: list[object]) -> None:
        @guard(**FD)
        def double(number: int, *, leak: bool = False) -> int:
            """Doc."""
            if leak:
                kept.append(opened())
            return 2 * number

        assert (double(2), double(3)) == (4, 6)
        assert (double.__name__, double.__doc__) == ("double", "Doc.")
        with pytest.raises(LeakError):
            double(1, leak=True)
        assert double(4) == 8

    def test_guards_recursion(self) -> None:
        @guard(**FD)
        def factorial(n: int) -> int:
            return n * factorial(n - 1) if n else 1

        assert factorial(3) == 6

    def test_guards_a_coroutine_function_to_its_end(self, kept: list[object]) -> None:
        @guard(**FD)
        async def work(*, leak: bool) -> str:
            await asyncio.sleep(0)
            if leak:
                kept.append(opened())
            return "done"

        assert asyncio.run(work(leak=False)) == "done"
        with pytest.raises(LeakError):
            asyncio.run(work(leak=True))

    def test_guards_a_generator_from_its_first_to_its_last_step(self, kept: list[object]) -> None:
        @guard(**FD)
        def count(*, leak: bool) -> Generator[int, str, str]:
            answer = yield 1
            if leak:
                kept.append(opened())
            yield 2
            return answer

        def drive(*, leak: bool) -> str:
            steps = count(leak=leak)
            assert (next(steps), steps.send("sent")) == (1, 2)
            with pytest.raises(StopIteration) as stop:
                next(steps)
            return str(stop.value.value)

        assert drive(leak=False) == "sent"
        with pytest.raises(LeakError):
            drive(leak=True)

    def test_refuses_what_it_cannot_guard(self) -> None:
        async def stream():  # type: ignore[no-untyped-def]
            yield 1

        with pytest.raises(TypeError, match="asynchronous generators"):
            guard(**FD)(stream)


class TestAsyncio:
    def test_the_loop_runs_on_while_settling_so_that_closing_transports_are_no_leak(self) -> None:
        async def main() -> None:
            here, there = socket.socketpair()
            async with guard(kinds="fd", settle=5):
                _, writer = await asyncio.open_connection(sock=here)
                writer.write(b"x")
                # Not waited for: the transport closes its socket in a later iteration of the loop.
                writer.close()
            there.close()

        asyncio.run(main())

    def test_what_a_thread_holds_that_ends_while_the_residue_settles_is_no_leak(self) -> None:
        class Held:
            pass

        collected = threading.Event()

        def told(phase: str, info: dict[str, int]) -> None:
            if phase == "stop" and info["generation"] == 2:
                collected.set()

        def hold(_held: Held) -> None:
            collected.wait()
            gc.callbacks.remove(told)

        async def main() -> None:
            async with guard(kinds="fd", settle=20):
                held = Held()
                held.itself, held.file = held, opened()  # type: ignore[attr-defined]
                gc.collect()
                gc.callbacks.append(told)
                threading.Thread(target=hold, args=[held]).start()
                del held

        asyncio.run(main())

    def test_a_leak_raises(self, kept: list[object]) -> None:
        async def main() -> None:
            async with guard(**FD):
                kept.append(opened())

        with pytest.raises(LeakError):
            asyncio.run(main())


class TestSnapshots:
    def test_verify_none_passes_when_nothing_came_and_raises_when_something_did(self, kept: list[object]) -> None:
        # Without a guard nothing is known of who opened what: other work on this machine would count.
        before = leakcheck.snapshot(kinds="fd", scope=f"tree:{os.getpid()}")
        assert verify_none(before, settle=0.05).verdict == "clean"
        kept.append(opened())
        with pytest.raises(LeakError, match="/etc/passwd"):
            verify_none(before, settle=0.05)

    def test_diff_tells_a_new_file(self, tmp_path: Path) -> None:
        before = leakcheck.snapshot(kinds="file", roots=[tmp_path])
        (tmp_path / "new").touch()
        after = leakcheck.snapshot(kinds="file", roots=[tmp_path])
        assert [leak.evidence["resource"]["path"] for leak in leakcheck.diff(before, after).leaks] == [
            f"{tmp_path}/new"
        ]
        assert leakcheck.diff(before, before).verdict == "clean"

    def test_snapshots_of_other_kinds_are_refused(self) -> None:
        first, second = leakcheck.snapshot(kinds="mount"), leakcheck.snapshot(kinds="process")
        with pytest.raises(UsageError):
            leakcheck.diff(first, second)

    def test_the_gil_is_released_meanwhile(self) -> None:
        ticks: list[float] = []
        over = threading.Event()

        def tick() -> None:
            while not over.is_set():
                ticks.append(time.monotonic())
                time.sleep(0.001)

        thread = threading.Thread(target=tick)
        thread.start()
        try:
            with guard(kinds="process", settle=0.5, on_unknown="ignore", allow=AllowRule("process", reason="kept")):
                child = subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
                began = time.monotonic()
            ended = time.monotonic()
        finally:
            over.set()
            thread.join()
            child.communicate()
        # It took half a second at least, in which the other thread has its turns on a busy machine too.
        assert len([t for t in ticks if began + 0.1 < t < ended - 0.1]) >= 3


def test_the_package_is_typed() -> None:
    assert Path(leakcheck.__file__).with_name("py.typed").exists()


def test_a_guard_leaves_no_descriptor_and_no_thread_of_its_own(tmp_path: Path) -> None:
    script = """if True:
        import os, time, leakcheck
        def look():
            return sorted(os.listdir("/proc/self/fd")), os.listdir("/proc/self/task")
        leakcheck.guard(kinds="fd", settle=0.01)(lambda: None)()
        # A watch's thread is joined, but the kernel lists it until it has let go of fanotify: some 30 ms.
        until = time.monotonic() + 60
        while len(look()[1]) > 1 and time.monotonic() < until:
            os.sched_yield()
        before = look()
        for _ in range(20):
            with leakcheck.guard(kinds="fd,process,mount,cgroup,file", roots=["."], settle=0.01, on_unknown="ignore"):
                pass
        until = time.monotonic() + 60
        while look() != before and time.monotonic() < until:
            os.sched_yield()
        assert look() == before, (before, look())
    """
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, check=True, timeout=120)


def test_a_declared_root_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    root = tmp_path / "root"
    guarded = guard(kinds="file", roots=[root], settle=0.01, on_unknown="ignore")
    for observe in (guarded.__enter__, lambda: leakcheck.snapshot(kinds="file", roots=[root])):
        with pytest.raises(UsageError, match=f"roots {root}: no such directory"):
            observe()
    root.mkdir()
    with guarded:
        pass


MAPPER = """
import mmap, os, sys
sys.stdin.readline()
with open(sys.argv[1], "w+b") as file:
    file.truncate(4096)
    mapped = mmap.mmap(file.fileno(), 4096)
os.unlink(sys.argv[1])
print("mapped", flush=True)
sys.stdin.readline()
"""


def mapper(path: Path) -> subprocess.Popen[bytes]:
    argv = [sys.executable, "-c", MAPPER, str(path)]
    return subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE)


def map_now(process: subprocess.Popen[bytes]) -> None:
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(b"\n")
    process.stdin.flush()
    assert process.stdout.readline() == b"mapped\n"


def test_deleted_files_that_the_run_has_mapped_are_found_and_those_of_a_process_before_it_are_not(
    tmp_path: Path,
) -> None:
    names = {name: tmp_path / name for name in ("before", "child", "own")}
    with mapper(names["before"]) as before, contextlib.ExitStack() as stack:
        with pytest.raises(LeakError) as caught, guard(kinds="file", settle=0.1):
            map_now(before)
            child = stack.enter_context(mapper(names["child"]))
            map_now(child)
            with names["own"].open("w+b") as file:
                file.truncate(4096)
                own = mmap.mmap(file.fileno(), 4096)
            names["own"].unlink()
        own.close()
        for process in (before, child):
            process.communicate(b"\n")
    labels = [leak.label for leak in caught.value.report.leaks if "still mapped" in leak.label]
    found = {name for name, path in names.items() if any(str(path) in label for label in labels)}
    assert found == {"child", "own"}, labels
