"""A leak names the line of the suite that made it; only what pytest and Python write is excused."""

import getpass
import os
import re
import sys
import timeit
from pathlib import Path

import pytest

from leakcheck.pytest_origins import OFTEN, Origins
from leakcheck.report import Leak, Report

pytest_plugins = ["pytester"]

HEAD = """
import multiprocessing, os, pathlib, pytest, signal, socket, sqlite3, subprocess, sys, tempfile, threading, time
HERE = pathlib.Path(os.environ["PLACE"])
kept = []
all_kept = []
"""


@pytest.fixture(autouse=True)
def place(pytester: pytest.Pytester, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory that the suite under test leaves its files in; no rule covers it."""
    pytester.makeini("[pytest]\nleakcheck_settle = 0.05\n")
    monkeypatch.setenv("PYTEST_ADDOPTS", "-p no:hypothesispytest")
    place = tmp_path_factory.mktemp("place")
    monkeypatch.setenv("PLACE", str(place))
    # Else pytest's own base, which has a rule, would be the place's parent.
    monkeypatch.setenv("PYTEST_DEBUG_TEMPROOT", str(tmp_path_factory.mktemp("root")))
    return place


def told_each(pytester: pytest.Pytester, place: Path, bodies: list[str], *options: str) -> list[str]:
    """As `told`, for one test a body in one session; return what is said of each, the empty string if nothing is."""
    text = HEAD
    numbers = []
    for which, body in enumerate(bodies):
        (place / str(which)).mkdir()
        head = f"\ndef test_{which}():\n    HERE = pathlib.Path(os.environ['PLACE'], '{which}')\n"
        head += "    kept = []\n    all_kept.append(kept)\n"
        lines = [f"    {line}" for line in body.strip().splitlines()]
        here = next((n for n, line in enumerate(lines, 1) if line.endswith("# here")), 0)
        numbers.append((text + head).count("\n") + here)
        text += head + "\n".join(lines) + "\n"
    pytester.path.joinpath("test_it.py").write_text(text)
    output = pytester.runpytest_subprocess("-p", "no:cacheprovider", *options, timeout=120).stdout.str()
    sections = dict(re.findall(r"^LEAKED test_it\.py::test_(\d+).*\n((?:  .*\n)*)", output, re.MULTILINE))
    return [
        sections.get(str(which), "").replace(f"made at test_it.py:{number} ", "MADE-HERE ")
        for which, number in enumerate(numbers)
    ]


def told(pytester: pytest.Pytester, body: str, *options: str) -> str:
    """Run one test with `body`, of which the line with the comment ``here`` makes the leak; return the output."""
    indented = "".join(f"    {line}\n" for line in body.strip().splitlines())
    (file,) = [pytester.makepyfile(test_it=f"{HEAD}\ndef test_it():\n{indented}")]
    result = pytester.runpytest_subprocess("-p", "no:cacheprovider", *options, timeout=120)
    number = next((n for n, line in enumerate(file.read_text().splitlines(), 1) if line.endswith("# here")), 0)
    return result.stdout.str().replace(f"made at test_it.py:{number} ", "MADE-HERE ")


# Kinds that are observed, what a test does, and what is said of it.
CERTAIN = [
    ("fd", "kept.append(os.pipe())  # here", "fd .*pipe.* · MADE-HERE"),
    ("fd", "kept.append(os.dup(os.pipe()[0]))  # here", "fd .*pipe.* · MADE-HERE"),
    ("fd", "kept.append(tempfile.TemporaryFile(dir=HERE))  # here", "fd .*deleted.* · MADE-HERE"),
    ("file", "os.mkfifo(HERE / 'q')  # here", "/q · MADE-HERE"),
    ("process", "kept.append(os.pipe())\nif os.fork() == 0:  # here\n    os.close(kept[0][1])\n"
     "    os.read(kept[0][0], 1)\n    os._exit(0)", "process .* · MADE-HERE"),
    ("process", "kept.append(os.pipe())\nworks = []\ndef work():\n"
     "    works.append(subprocess.Popen(['cat'], stdin=kept[0][0], stdout=-3))  # here\n"
     "t = threading.Thread(target=work)\nt.start()\nt.join()\nkept.append(works)", "process .*cat.* · MADE-HERE"),
    ("file", "exec('(HERE / \"f\").touch()')  # here", "file .*/f · MADE-HERE"),
    ("file", "def make():\n    yield (HERE / 'f').touch()  # here\nlist(make())", "file .*/f · MADE-HERE"),
    ("file", "import asyncio\nasync def make():\n    await asyncio.sleep(0)\n    (HERE / 'f').touch()  # here\n"
     "asyncio.run(make())", "file .*/f · MADE-HERE"),
    ("file", "sys.addaudithook(lambda *_: None)\n(HERE / 'f').touch()  # here", "file .*/f · MADE-HERE"),
    ("file", "(HERE / 'a').touch()  # here\nos.rename(HERE / 'a', HERE / 'b')\nos.link(HERE / 'b', HERE / 'c')\n"
     "(HERE / 'b').unlink()", "file .*/c"),
    ("file", "(HERE / 'f').write_text('x')  # here", "file .*/f · MADE-HERE"),
    ("file", "tempfile.mkstemp(dir=HERE)  # here", "file .*/tmp.* · MADE-HERE"),
    ("file", "tempfile.mkdtemp(dir=HERE)  # here", "dir .*/tmp.* · MADE-HERE"),
    ("file", "os.chdir(HERE)\nopen('f', 'w').close()  # here", "file .*/f · MADE-HERE"),
    ("file", "os.symlink('x', HERE / 'l')  # here", "symlink .*/l · MADE-HERE"),
    ("file", "kept.append(sqlite3.connect(HERE / 'd'))  # here\nkept[0].execute('create table t(x)')", "MADE-HERE"),
    ("file", "os.mkdir(HERE / 'a')\nopen(HERE / 'a/f', 'w')  # here\nos.rename(HERE / 'a', HERE / 'b')",
     "file .*/b/f · MADE-HERE"),
    ("file", "kept.append(socket.socket(socket.AF_UNIX))\nkept[0].bind(str(HERE / 's'))  # here",
     "socket .*/s · MADE-HERE"),
    ("file", "os.symlink(HERE, HERE / 'l')\nopen(HERE / 'l/f', 'w').close()  # here", "file .*/f · MADE-HERE"),
    ("fd", "kept.append(open('/etc/passwd'))  # here", "/etc/passwd · MADE-HERE"),
    ("fd", "kept.append(socket.socket())  # here", "fd .* · MADE-HERE"),
    ("fd", "a, b = socket.socketpair()\nb.close()\nkept.append(a.dup())  # here", "fd .* · MADE-HERE"),
    ("net", "kept.append(socket.create_server(('127.0.0.1', 0)))  # here", "tcp 127.0.0.1:.* · MADE-HERE"),
    ("process,fd", "kept.append(subprocess.Popen(['cat'], stdin=-1, stdout=-3))  # here",
     "process .*cat.* · MADE-HERE.*\n.*fd .*pipe.* · MADE-HERE"),
    ("process", "import gc\nkept.append(os.pipe())\n"
     "subprocess.Popen(['cat'], stdin=kept[0][0], stdout=-3)  # here\ngc.collect()", "process .*cat.* · MADE-HERE"),
    ("process", "kept.append(os.pipe())\nkept.append(multiprocessing.get_context('fork').Process(\n"
     "    target=os.read, args=(kept[0][0], 1)))\n"
     "kept[1].daemon = True\nkept[1].start()  # here", "process .* · MADE-HERE"),
    ("process", "kept.append(os.pipe())\nos.set_inheritable(kept[0][0], True)\n"
     "os.posix_spawn('/bin/sh', ['sh', '-c', f'exec sleep 20 <&{kept[0][0]}'], {})  # here",
     "process .* · parent"),
    ("file", "for _ in range(100):\n    open(HERE / 'f', 'a').close()  # here", "file .*/f · MADE-HERE"),
    ("fd", "for _ in range(100): kept.append(open('/etc/passwd'))  # here", "/etc/passwd · MADE-HERE"),
    ("file", "def work():\n    open(HERE / 'f', 'w').close()  # here\nt = threading.Thread(target=work)\n"
     "t.start()\nt.join()", "file .*/f · MADE-HERE"),
]  # fmt: skip


@pytest.mark.parametrize("kinds", sorted({kinds for kinds, _, _ in CERTAIN}))
def test_a_leak_names_the_line_that_made_it(pytester: pytest.Pytester, place: Path, kinds: str) -> None:
    cases = [(body, shown) for observed, body, shown in CERTAIN if observed == kinds]
    said = told_each(pytester, place, [body for body, _ in cases], f"--leakcheck={kinds}")
    missing = [(body, said) for (body, shown), said in zip(cases, said, strict=True) if not re.search(shown, said)]
    assert not missing


UNCERTAIN = [
    # The first of two that opened the same file stays open.
    ("fd", "kept.append(open('/etc/passwd'))\nopen('/etc/passwd').close()"),
    # A child makes what this process could not.
    ("file", "try: open(HERE / 'd/f', 'w')\nexcept OSError: pass\n"
     "subprocess.run(['sh', '-c', 'mkdir d; touch d/f'], cwd=HERE)"),
    ("file", "try: os.rename(HERE / 'no', HERE / 'f')\nexcept OSError: pass\n"
     "subprocess.run(['touch', HERE / 'f'])"),
    # A child makes again what this process made, and what a child removed.
    ("file", "(HERE / 'f').touch()\nsubprocess.run(['sh', '-c', 'touch g; mv g f'], cwd=HERE)"),
    # After so many calls for one path, what is there is not asked.
    ("file", "for _ in range(40):\n    (HERE / 'f').touch()\n    (HERE / 'f').unlink()\n(HERE / 'f').touch()"),
    ("process", "kept.append(os.pipe())\nos.set_inheritable(kept[0][0], True)\nfor n in (0, 1):\n"
     "    words = ['cat', f'/dev/fd/{kept[0][0]}']\n"
     "    if n: os.posix_spawn('/bin/cat', words, os.environ)\n"
     "    else: os.posix_spawn('/bin/cat', words, os.environ)"),
    # A short-lived child, which nobody waits for, after one that stays.
    ("process", "import ctypes\nkept.append(os.pipe())\npid = ctypes.CDLL(None).fork()\n"
     "if pid == 0: os.close(kept[0][1]); os.read(kept[0][0], 1); os._exit(0)\n"
     "signal.signal(signal.SIGCHLD, signal.SIG_IGN)\nfor _ in range(20):\n    if os.fork() == 0: os._exit(0)\n"
     "signal.signal(signal.SIGCHLD, signal.SIG_DFL)"),
    ("fd", "a, b = os.pipe()\nos.close(a)\nos.close(b)\nimport ctypes\n"
     "ctypes.CDLL(None).pipe((ctypes.c_int * 2)())"),
]  # fmt: skip


@pytest.mark.parametrize("kinds", sorted({kinds for kinds, _ in UNCERTAIN}))
def test_where_the_line_is_not_certain_there_is_none(pytester: pytest.Pytester, place: Path, kinds: str) -> None:
    bodies = [body for observed, body in UNCERTAIN if observed == kinds]
    for body, said in zip(bodies, told_each(pytester, place, bodies, f"--leakcheck={kinds}"), strict=True):
        # Of the children that ended, the line is certain.
        lines = [line for line in said.splitlines() if "zombie" not in line]
        assert lines, body
        assert all(" · made at " not in line for line in lines), (body, said)


def test_a_line_of_a_helper_outside_the_suite_s_packages_is_named_and_not_that_of_a_library(
    pytester: pytest.Pytester,
) -> None:
    pytester.makepyfile(helper="def make(path):\n    import shutil\n    shutil.copy('/etc/passwd', path)\n")
    output = told(pytester, "import helper\nhelper.make(HERE / 'f')", "--leakcheck=file")
    assert "/f · made at helper.py:3" in output


def test_a_living_child_of_the_suite_is_held_and_one_whose_parent_died_is_orphaned(pytester: pytest.Pytester) -> None:
    # Both end with this process: their input is a pipe that only it holds open.
    body = """
kept.append(subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL))
read, write = os.pipe()
kept.append(write)
subprocess.run("exec 3<&0; tail -f /dev/null --pid=$PPID >/dev/null 2>&1 &", shell=True, stdin=read, stdout=-3)
os.close(read)
"""
    output = told(pytester, body, "--leakcheck=process")
    assert re.search(r"process +held +.*cat", output), output
    assert re.search(r"process +orphaned +.*tail", output), output


def test_a_name_that_another_process_uses_again_has_no_line(tmp_path: Path) -> None:
    notes, path = Origins(), tmp_path / "lock"
    notes.begin()
    try:
        path.touch()
        leak = Leak(kind="file", class_="orphaned", label="", evidence=evidence(path))
        report = Report(verdict="clean", unattributed=[leak])
        sys.audit("any event after it was made")
        assert notes.tell(report, str(tmp_path)).verdict == "leaked"
        path.unlink()
    finally:
        notes.end()
    assert notes.tell(report, str(tmp_path)) == report
    (tmp_path / "later").touch()
    assert not notes._made, "noted after the end"


def test_a_file_that_another_process_made_later_has_no_line_though_it_got_the_inode(tmp_path: Path) -> None:
    notes, path = Origins(), tmp_path / "f"
    notes.begin()
    try:
        path.touch()
    finally:
        notes.end()
    (_, seen) = notes._made[str(path)]
    assert seen is not None

    def leaks(birth: int | None) -> list[Leak]:
        fields = {"resource": {"kind": "file", "path": str(path), "ino": path.stat().st_ino, "birth": birth}}
        leak = Leak(kind="file", class_="orphaned", label="", evidence=fields)
        return notes.tell(Report(verdict="clean", unattributed=[leak]), "/").leaks

    assert leaks(seen[1]) and leaks(None)
    assert not leaks(seen[1] + 1)


def test_threads_that_try_one_path_in_a_loop_are_not_looked_at_each_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[object] = []

    def lexists(path: object) -> bool:
        asked.append(path)
        return False

    monkeypatch.setattr("os.path.lexists", lexists)
    notes, path = Origins(), str(tmp_path / "lock")
    notes.begin()
    try:
        for _ in range(1000):
            with open(path, "w"):  # noqa: PTH123
                pass
            os.unlink(path)  # noqa: PTH108
    finally:
        notes.end()
    assert len(asked) == OFTEN
    assert not notes._made


def evidence(path: Path) -> dict[str, object]:
    return {"resource": {"kind": "file", "path": str(path), "ino": path.stat().st_ino}}


def test_what_a_child_made_is_not_this_process_s(tmp_path: Path) -> None:
    import subprocess

    notes, path = Origins(), tmp_path / "child's"
    notes.begin()
    try:
        subprocess.run(["touch", path], check=True)
        with path.open("a"):
            pass
    finally:
        notes.end()
    leak = Leak(kind="file", class_="orphaned", label="", evidence=evidence(path))
    assert notes.tell(Report(verdict="clean", unattributed=[leak]), "/").leaks == []


def test_the_notes_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("leakcheck.pytest_origins.MOST", 20)
    notes = Origins()
    notes.begin()
    try:
        for n in range(30):
            (tmp_path / str(n)).write_text("")
    finally:
        notes.end()
    assert len(notes._made) == len(notes._opened) == 20
    assert str(tmp_path / "29") in notes._made
    assert not notes._pending


def test_an_event_costs_microseconds_while_a_test_is_guarded_and_next_to_nothing_otherwise() -> None:
    def cost() -> float:
        return min(timeit.repeat(lambda: sys.audit("open", "/etc/passwd", "r", 0), number=2000, repeat=5)) / 2000

    notes = Origins()
    notes.begin()
    try:
        guarded = cost()
    finally:
        notes.end()
    idle = cost()
    print(f"{guarded * 1e6:.2f} µs guarded, {idle * 1e6:.2f} µs idle")
    assert guarded < 50e-6
    assert idle < 5e-6


def test_what_python_compiles_is_named_and_the_same_name_elsewhere_is_a_leak(
    pytester: pytest.Pytester, place: Path
) -> None:
    pytester.mkdir("package").joinpath("module.py").write_text("")
    body = """
    sys.dont_write_bytecode = False
    import package.module
    subprocess.run([sys.executable, "-c", "import compileall, sys; compileall.compile_dir(sys.argv[1])", HERE])
    (pathlib.Path(__file__).parent / "package/__pycache__/note.txt").write_text("not compiled")
    """
    (place / "elsewhere.py").write_text("")
    body = "\n".join(line[4:] for line in body.splitlines())
    output = told(pytester, body, "--leakcheck=file")
    leaks, _, rest = output.partition("left something behind")[2].partition("written by pytest and tools")
    assert f"{place}/__pycache__/elsewhere." in leaks
    assert "package/__pycache__/note.txt" in leaks
    assert "package/__pycache__/module." not in leaks
    assert "(python: compiled modules)" in rest


def test_what_pytest_writes_is_named_in_the_summary_and_a_name_that_only_looks_like_it_is_a_leak(
    pytester: pytest.Pytester,
) -> None:
    body = """for name in (".pytest_cache-of-mine", ".pytest_cache/mine", ".coverage.d/f", "__pycache__/it.pyc.secret"):
        (pathlib.Path(__file__).parent / name).parent.mkdir(exist_ok=True)
        (pathlib.Path(__file__).parent / name).touch()"""
    pytester.makepyfile(coverage="", conftest="import coverage")
    more = "def test_more(tmp_path): (tmp_path / 'f').touch()"
    pytester.makepyfile(test_it=f"{HEAD}\ndef test_it():\n    {body}\n", test_more=more)
    output = pytester.runpytest_subprocess("--leakcheck=file", timeout=120).stdout.str()
    leaks = output.partition("LEAKED test_it.py::test_it\n")[2]
    for name in (".pytest_cache-of-mine", ".pytest_cache/mine", ".coverage.d/f", "__pycache__/it.pyc.secret"):
        assert f"/{name} " in leaks, output
    assert "(pytest: tmp_path, of which it keeps the last three)" in output
    assert "LEAKED test_more" not in output


def test_what_a_session_beside_this_one_keeps_is_no_leak(
    pytester: pytest.Pytester, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(place))
    body = f"""usual = HERE / "pytest-of-{getpass.getuser()}"
(usual / "pytest-700007").mkdir(parents=True)
os.mkfifo(usual / "pytest-700007/fifo")
(HERE / "mine").touch()"""
    output = told(pytester, body, "--leakcheck=file")
    leaks, _, rest = output.partition("left something behind")[2].partition("written by pytest and tools")
    assert f"{place}/mine " in leaks
    assert "pytest-700007" not in leaks
    assert "pytest-700007/fifo (pytest: tmp_path" in rest


PYTEST_ASYNCIO = """
import asyncio, pytest

@pytest.fixture
def _function_scoped_runner():
    before = asyncio.get_event_loop()
    with asyncio.Runner() as runner:
        runner.run(asyncio.sleep(0))
        yield runner
    asyncio.set_event_loop(before)
"""


@pytest.mark.skipif(sys.version_info >= (3, 14), reason="asyncio makes no event loop there unless it is told to")
def test_the_event_loop_that_pytest_asyncio_sets_again_is_named_and_one_that_a_test_sets_is_a_leak(
    pytester: pytest.Pytester,
) -> None:
    (pytester.mkpydir("pytest_asyncio") / "plugin.py").write_text(PYTEST_ASYNCIO)
    pytester.makepyfile(
        test_asked="def test_asked(_function_scoped_runner): pass",
        test_set="""
        import asyncio
        def test_set(_function_scoped_runner): pass
        def test_sets():
            asyncio.get_event_loop().close()
            asyncio.set_event_loop(asyncio.new_event_loop())
        """,
        test_in_fixture="""
        import asyncio, pytest
        @pytest.fixture
        def other():
            asyncio.set_event_loop(asyncio.new_event_loop())
        def test_fixture(other, _function_scoped_runner): pass
        """,
    )
    asked, sets, fixture = (
        pytester.runpytest_subprocess("-p", "pytest_asyncio.plugin", "--leakcheck=fd", f"test_{name}.py", timeout=120)
        for name in ("asked", "set", "in_fixture")
    )
    asked.assert_outcomes(passed=1)
    asked.stdout.fnmatch_lines(["*kept by Python itself*", "*eventpoll*(pytest-asyncio: the event loop*"])
    sets.stdout.fnmatch_lines(["LEAKED *::test_sets", "*unix stream*", "*1 passed, 1 leaked*"])
    fixture.stdout.fnmatch_lines(["LEAKED *::test_fixture", "*eventpoll*", "*1 leaked*"])


def test_the_pipes_of_an_ended_child_that_nobody_waited_for_are_kept_by_subprocess_and_those_of_a_living_one_leak(
    pytester: pytest.Pytester,
) -> None:
    pytester.makeini("[pytest]\nleakcheck_settle = 1\n")
    pytester.makepyfile(
        """
        import os, subprocess

        def dropped(command):
            started = subprocess.Popen(["sh", "-c", command], stdin=-1, stdout=-1)
            return started.pid

        def test_ended():
            pid = dropped("read line")
            subprocess._active[-1].stdin.write(b"x\\n")
            subprocess._active[-1].stdin.flush()
            os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)

        def test_ends_while_the_rest_settles():
            dropped("exec >&-; sleep 0.3")

        def test_lives():
            dropped("read line")
        """
    )
    result = pytester.runpytest_subprocess("--leakcheck=process,fd", "-p", "no:cacheprovider", timeout=120)
    result.stdout.fnmatch_lines(["*kept by Python itself*", "*zombie*subprocess reaps when it starts the next one)"])
    leaked = re.findall(r"^LEAKED .*::(\w+)\n((?:  .*\n)*)", result.stdout.str(), re.MULTILINE)
    assert [name for name, _ in leaked] == ["test_lives"], result.stdout.str()
    assert len(re.findall(r"^  fd .*pipe:", leaked[0][1], re.MULTILINE)) == 2
