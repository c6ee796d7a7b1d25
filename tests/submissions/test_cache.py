"""The compile cache: what is there is used, what is broken is made again, and two at once make one."""

import multiprocessing
import os
import stat
import threading
from pathlib import Path

import pytest

from leakcheck.errors import CompileError, UsageError
from leakcheck.submissions import LANGUAGES, build, cache_directory, spec
from leakcheck.submissions.cache import compiled, run_compiler

PYTHON = spec("python", "hello")


def tell(path: Path, text: str = "made") -> None:
    (path / "program").write_text(text)
    (path / "deep").mkdir()
    (path / "deep/data").write_text("data")


def test_the_second_time_nothing_is_made(tmp_path: Path) -> None:
    made = []

    def once(path: Path) -> None:
        made.append(path)
        tell(path)

    first = compiled("x", [b"a", b"bc"], once, tmp_path)
    assert compiled("x", [b"a", b"bc"], once, tmp_path) == first
    assert len(made) == 1
    # What belongs to which part counts.
    assert compiled("x", [b"ab", b"c"], once, tmp_path) != first
    assert sorted(path.name for path in first.iterdir()) == ["deep", "manifest.json", "program"]


def test_everyone_may_read_and_enter_it_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        entry = compiled("x", [b"a"], tell, tmp_path / "new")
    finally:
        os.umask(before)
    for path in (entry, *entry.rglob("*")):
        wanted = 0o755 if path.is_dir() else 0o644
        assert stat.S_IMODE(path.stat().st_mode) == wanted, path
    for directory in (tmp_path / "new", entry):
        assert directory.stat().st_mode & 0o055 == 0o055, directory


@pytest.mark.parametrize("damage", ["gone", "truncated", "more", "mode", "no manifest", "bad manifest"])
def test_what_is_broken_is_made_again(tmp_path: Path, damage: str) -> None:
    entry = compiled("x", [b"a"], tell, tmp_path)
    program = entry / "program"
    match damage:
        case "gone":
            program.unlink()
        case "truncated":
            program.write_text("m")
        case "more":
            (entry / "other").write_text("x")
        case "mode":
            program.chmod(0o600)
        case "no manifest":
            (entry / "manifest.json").unlink()
        case _:
            (entry / "manifest.json").write_text("[")
    assert compiled("x", [b"a"], tell, tmp_path) == entry
    assert program.read_text() == "made"
    assert not (entry / "other").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == [entry.name, f"{entry.name}.lock"]


def test_what_a_killed_compiler_left_is_no_hindrance(tmp_path: Path) -> None:
    entry = compiled("x", [b"a"], tell, tmp_path)
    entry.rename(entry.with_name(f"{entry.name}.unfinished"))
    (entry.with_name(f"{entry.name}.unfinished") / "half").write_text("x")
    entry.with_name(f"{entry.name}.broken").mkdir()
    assert compiled("x", [b"a"], tell, tmp_path) == entry
    assert sorted(path.name for path in tmp_path.iterdir()) == [entry.name, f"{entry.name}.lock"]


def test_a_failure_leaves_nothing_but_the_lock(tmp_path: Path) -> None:
    def fail(path: Path) -> None:
        tell(path)
        raise CompileError("no")

    with pytest.raises(CompileError, match="no"):
        compiled("x", [b"a"], fail, tmp_path)
    (left,) = tmp_path.iterdir()
    assert left.suffix == ".lock"


def test_two_threads_make_one(tmp_path: Path) -> None:
    made = []
    start = threading.Barrier(8)

    def slowly(path: Path) -> None:
        made.append(path)
        tell(path)

    def one() -> None:
        start.wait()
        compiled("x", [b"a"], slowly, tmp_path)

    threads = [threading.Thread(target=one) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1


def _make(cache: Path) -> str:
    return build(spec("c", "hello"), cache).bundle


@pytest.mark.skipif(not LANGUAGES["c"].available().ready, reason="no gcc")
def test_processes_that_compile_at_once_get_the_same(tmp_path: Path) -> None:
    with multiprocessing.get_context("spawn").Pool(3) as pool:
        bundles = set(pool.map(_make, [tmp_path] * 3))
    assert len(bundles) == 1
    (bundle,) = bundles
    assert os.access(f"{bundle}/suite", os.X_OK)
    assert sorted(path.name for path in tmp_path.iterdir()) == [Path(bundle).name, f"{Path(bundle).name}.lock"]


@pytest.mark.skipif(not LANGUAGES["c"].available().ready, reason="no gcc")
def test_a_source_that_does_not_compile_is_told_in_the_compilers_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "suite.c").write_text("int main(void) { return nonsense; }\n")
    monkeypatch.setattr("leakcheck.submissions.languages._SOURCES", tmp_path)
    with pytest.raises(CompileError) as caught:
        build(spec("c", "hello"), tmp_path / "cache")
    said = str(caught.value)
    assert said.startswith(f"compile c, {tmp_path}/suite.c: ")
    assert "ended with 1:" in said
    assert "nonsense" in said


def test_a_compiler_that_is_not_there_or_not_one_is_told(tmp_path: Path) -> None:
    with pytest.raises(CompileError, match="run /nonexistent: no such file or directory"):
        run_compiler(["/nonexistent"], tmp_path)


def test_a_missing_toolchain_is_told_with_the_way_to_install_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("PATH", "HOME", "CARGO_HOME"):
        monkeypatch.setenv(name, str(tmp_path))
    with pytest.raises(UsageError, match=r"language cpp: no g\+\+ on PATH; install it: apt-get install g\+\+"):
        build(spec("cpp", "hello"), tmp_path / "cache")
    assert not LANGUAGES["java"].available().ready


def test_a_full_cache_may_be_read_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = build(PYTHON, tmp_path).bundle

    def refuse(*_: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(os, "open", refuse)
    monkeypatch.setattr(Path, "mkdir", refuse)
    assert build(PYTHON, tmp_path).bundle == bundle


def test_a_place_that_cannot_be_written_to_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(
        UsageError, match=r"keep compiled submissions in .*/file/cache: .*; set XDG_CACHE_HOME elsewhere"
    ):
        build(PYTHON, tmp_path / "file/cache")


@pytest.mark.parametrize(
    ("uid", "environment", "directory"),
    [
        (0, {}, "/var/cache"),
        (0, {"HOME": "/root"}, "/var/cache"),
        (0, {"XDG_CACHE_HOME": "/x/./y"}, "/x/y"),
        (0, {"XDG_CACHE_HOME": "relative"}, "/var/cache"),
        (1000, {"HOME": "/home/a"}, "/home/a/.cache"),
        (1000, {"HOME": "/home/a", "XDG_CACHE_HOME": "/c"}, "/c"),
    ],
)
def test_where_it_is(monkeypatch: pytest.MonkeyPatch, uid: int, environment: dict[str, str], directory: str) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: uid)
    assert cache_directory(environment) == Path(directory, "leakcheck/submissions")


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({}, "HOME is not set; set XDG_CACHE_HOME"),
        ({"HOME": ""}, "HOME is not set"),
        ({"HOME": "/home/a b"}, "cache directory '/home/a b/.cache': a path to bind may have only letters"),
        ({"XDG_CACHE_HOME": "/a:b"}, "cache directory '/a:b': a path to bind may have only letters"),
    ],
)
def test_where_it_cannot_be_is_told(monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], said: str) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(UsageError) as caught:
        cache_directory(environment)
    assert said in str(caught.value)
