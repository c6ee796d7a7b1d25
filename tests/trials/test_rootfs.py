"""Files below another root are reached through its own links, and never through them from ours."""

import os
from collections.abc import Generator
from pathlib import Path

import pytest

from leakcheck.trials.rootfs import make_directory, read_file, write_file


@pytest.fixture
def root(tmp_path: Path) -> Generator[int, None, None]:
    fd = os.open(tmp_path, os.O_PATH | os.O_DIRECTORY)
    yield fd
    os.close(fd)


@pytest.mark.parametrize("link", ["/inner", "/../../../inner", "../../../inner", "../inner"])
def test_a_link_leads_to_what_is_below_the_root(root: int, tmp_path: Path, link: str) -> None:
    (tmp_path / "inner").mkdir()
    (tmp_path / "var").mkdir()
    (tmp_path / "var/run").symlink_to(link)
    write_file(root, Path("/var/run/deep/file"), b"content")
    assert (tmp_path / "inner/deep/file").read_bytes() == b"content"
    assert read_file(root, Path("/var/run/deep/file")) == b"content"


def test_a_file_that_is_a_link_to_one_of_ours_is_another(root: int, tmp_path: Path) -> None:
    (tmp_path / "meta").symlink_to("/etc/hostname")
    with pytest.raises(FileNotFoundError):
        read_file(root, Path("/meta"))
    (tmp_path / "exe").symlink_to(f"/proc/{os.getpid()}/exe")
    with pytest.raises(FileNotFoundError):
        read_file(root, Path("/exe"))


def test_a_shorter_text_takes_the_place_of_a_longer_one(root: int) -> None:
    write_file(root, Path("/a"), b"longer")
    write_file(root, Path("/a"), b"short")
    assert read_file(root, Path("/a")) == b"short"


def test_a_fifo_is_refused_and_not_waited_for(root: int, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(OSError, match="not a regular file"):
        read_file(root, Path("/fifo"))
    with pytest.raises(OSError, match="fifo"):
        write_file(root, Path("/fifo"), b"")


def test_a_directory_that_cannot_be_made_is_an_error_with_its_path(root: int, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="/file"):
        make_directory(root, Path("/file/below"))
    (tmp_path / "dangling").symlink_to("/nowhere")
    with pytest.raises(FileNotFoundError, match="/dangling"):
        write_file(root, Path("/dangling/file"), b"")
