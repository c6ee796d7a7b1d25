"""Result files are whole or absent."""

import os
import stat
import threading
from pathlib import Path

import pytest

from leakcheck import UsageError
from leakcheck.atomic_write import Output


def names(directory: Path) -> list[str]:
    return [entry.name for entry in directory.iterdir()]


def save(path: Path, text: str) -> None:
    with Output(path) as output:
        output.save(text)


def test_a_new_file_gets_the_text_and_the_usual_mode(tmp_path: Path) -> None:
    save(tmp_path / "out.json", "{}")
    assert (tmp_path / "out.json").read_text() == "{}\n"
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE((tmp_path / "out.json").stat().st_mode) == 0o666 & ~umask
    assert names(tmp_path) == ["out.json"]


def test_an_old_file_is_replaced_and_not_written_into(tmp_path: Path) -> None:
    path = tmp_path / "out.json"
    path.write_text("old")
    with path.open() as reader:
        save(path, "new")
        assert reader.read() == "old"
    assert path.read_text() == "new\n"
    assert names(tmp_path) == ["out.json"]


def test_where_files_without_a_name_are_not_supported_the_result_is_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.open

    def no_tmpfile(path: str, flags: int, *rest: int, **named: int) -> int:
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(95, "Operation not supported")
        return real(path, flags, *rest, **named)

    monkeypatch.setattr(os, "open", no_tmpfile)
    save(tmp_path / "out.json", "1")
    save(tmp_path / "out.json", "2")
    assert (tmp_path / "out.json").read_text() == "2\n"
    assert names(tmp_path) == ["out.json"]


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "out.json"
    path.write_text("old")

    def full(_file: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UsageError, match=f"write {path}: no space left on device"):
        save(path, "new")
    assert path.read_text() == "old"
    assert names(tmp_path) == ["out.json"]


def test_the_target_of_a_symbolic_link_is_replaced_and_the_link_stays(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("real")
    save(tmp_path / "link", "x")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_text() == "x\n"


def test_a_fifo_is_written_to_and_stays_one(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    read: list[str] = []
    reader = threading.Thread(target=lambda: read.append((tmp_path / "fifo").read_text()))
    reader.start()
    save(tmp_path / "fifo", "x")
    reader.join()
    assert read == ["x\n"]
    assert stat.S_ISFIFO((tmp_path / "fifo").stat().st_mode)


@pytest.mark.parametrize(
    ("where", "why"), [(".", "is a directory"), ("missing/out", "no directory"), ("file/out", "no directory")]
)
def test_a_bad_place_is_told_before_anything_is_run(tmp_path: Path, where: str, why: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match=why):
        Output(tmp_path / where)
    assert names(tmp_path) == ["file"]


def test_a_directory_that_takes_no_new_files_is_told_before_anything_is_run() -> None:
    with pytest.raises(UsageError, match=r"write /proc/x: cannot make a file in /proc"):
        Output(Path("/proc/x"))


@pytest.mark.parametrize("unnamed", [True, False])
def test_looking_whether_a_place_is_writable_leaves_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unnamed: bool
) -> None:
    if not unnamed:
        monkeypatch.setattr(os, "O_TMPFILE", os.O_DIRECTORY)  # what NFS makes of it: EISDIR
    Output(tmp_path / "out.json").close()
    assert names(tmp_path) == []
