"""Sources: any range of bytes, and files that change, shrink or vanish while they are read."""

import os
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mstore.errors import ConflictError, NotFoundError, StorageError, UnsafeInputError
from mstore.sources import BufferSource, FileSource, Folder, FolderOf

LARGE = 400_000


@given(st.lists(st.binary(max_size=20), max_size=6), st.integers(0, 130), st.integers(0, 130))
def test_buffers_read_like_one_file(parts: list[bytes], offset: int, length: int) -> None:
    source, whole = BufferSource([memoryview(part) for part in parts]), b"".join(parts)
    assert source.size == len(whole)
    assert source.read(offset, length) == whole[offset : offset + length]
    if offset + length <= len(whole):
        view = source.view(offset, length, memoryview(bytearray(length)))
        assert bytes(view) == whole[offset : offset + length]
    source.finish()


def test_a_view_does_not_change_with_the_buffer() -> None:
    data = bytearray(b"0123456789")
    view = BufferSource([memoryview(b"ab"), memoryview(data)]).view(3, 4, memoryview(bytearray(4)))
    data[1:5] = b"xxxx"
    assert bytes(view) == b"1234"


@pytest.fixture(params=[10, LARGE])
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    made = tmp_path / "file"
    made.write_bytes(os.urandom(request.param))
    return made


def test_a_file_that_stays(path: Path) -> None:
    data = path.read_bytes()
    source = FileSource(path)
    assert (source.size, source.read(3, 5)) == (len(data), data[3:8])
    assert source.read(len(data) - 2, 99) == data[-2:]
    assert bytes(source.view(1, 4, memoryview(bytearray(9)))) == data[1:5]
    source.finish()
    source.finish()
    source.close()


@pytest.mark.parametrize("change", ["write", "same bytes", "shrink", "grow", "replace", "remove"])
def test_a_file_that_changes_is_found_out(tmp_path: Path, change: str) -> None:
    path = tmp_path / "file"
    data = os.urandom(LARGE)
    path.write_bytes(data)
    source = FileSource(path)
    source.read(0, 100)
    if change == "replace":
        (tmp_path / "other").write_bytes(data)
        (tmp_path / "other").replace(path)
    elif change == "remove":
        path.unlink()
    elif change == "shrink":
        os.truncate(path, 1000)
        with pytest.raises(ConflictError, match="changed while"):
            source.read(0, LARGE)
    else:
        with path.open("r+b") as file:
            file.seek(LARGE if change == "grow" else 5)
            file.write(b"x" if change == "grow" else data[5:6] if change == "same bytes" else b"?")
    with pytest.raises(ConflictError, match="changed while"):
        source.finish()


def test_a_write_just_before_is_not_mixed_up_with_one_just_after(tmp_path: Path) -> None:
    """The clock of file times ticks; a source waits until the tick of the last write is over."""
    path = tmp_path / "file"
    path.write_bytes(bytes(LARGE))
    source = FileSource(path)
    assert time.time_ns() - path.stat().st_mtime_ns >= 20_000_000
    source.close()


def test_what_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for place in (tmp_path, tmp_path / "pipe"):
        with pytest.raises(UnsafeInputError, match="not a regular file"):
            FileSource(place)
    with pytest.raises(NotFoundError):
        FileSource(tmp_path / "nothing")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(StorageError):
        FileSource(tmp_path / "loop")


def test_a_link_is_its_target(path: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(path)
    source = FileSource(tmp_path / "link")
    assert source.read(0, source.size) == path.read_bytes()
    source.finish()


def test_no_file_descriptor_is_lost(tmp_path: Path) -> None:
    (tmp_path / "large").write_bytes(bytes(LARGE))
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        FileSource(tmp_path / "large").finish()
        with pytest.raises(UnsafeInputError):
            FileSource(tmp_path)
    assert len(os.listdir("/proc/self/fd")) == before


def test_which_files_of_a_folder_are_links(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    (folder / "sub" / "deep").mkdir(parents=True)
    for name in ("plain", "once", "sub/plain", "sub/deep/plain"):
        (folder / name).write_bytes(b"x")
    (folder / "twice").hardlink_to(folder / "once")
    (folder / "link").symlink_to("plain")
    (folder / "to nothing").symlink_to("nothing")
    (folder / "to sub").symlink_to("sub")
    (folder / "sub" / "up").symlink_to(tmp_path)
    os.mkfifo(folder / "pipe")
    beside = FolderOf(Folder(folder), "any")
    places = ["once", "twice", "link", "to nothing", "to sub", "to sub/plain", "to sub/deep/plain"]
    for path in [*places, "to sub/nothing", "sub/up", "sub/up/folder/plain"]:
        assert beside.is_link(path), path
    plain = ["plain", "sub", "sub/plain", "sub/deep/plain", "nothing", "sub/nothing/plain", "pipe"]
    for path in [*plain, "", "plain/inside", "x" * 300, "a/" * 3000, "no\0name", "no \ud800 name"]:
        assert not beside.is_link(path), path
    (tmp_path / "other way").symlink_to(folder)  # how the folder is reached does not count
    assert not FolderOf(Folder(tmp_path / "other way"), "any").is_link("sub/plain")
