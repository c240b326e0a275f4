"""The stat cache believes only what cannot have changed unseen."""

import os
import time
from pathlib import Path

import pytest

from mstore.errors import StorageError
from mstore.statcache import StatCache, read_time
from mstore.storage.files import Files

MANIFEST = b"m" * 32


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A file last written a while ago; its ctime is now, so tests read it a little later."""
    made = tmp_path / "weights"
    made.write_bytes(b"data")
    os.utime(made, ns=(1_500_000_000_123_456_789,) * 2)
    time.sleep(0.03)
    return made


def test_an_untouched_file_is_known(file: Path, tmp_path: Path) -> None:
    cache = StatCache(tmp_path / "cache")
    assert cache.manifest("weights", file.stat()) is None
    cache.note("weights", file.stat(), MANIFEST, read_time())
    cache.save()
    again = StatCache(tmp_path / "cache")
    assert again.manifest("weights", file.stat()) == MANIFEST
    assert again.manifest("other", file.stat()) is None


@pytest.mark.parametrize("change", ["write", "times", "replace", "append"])
def test_a_touched_file_is_not(file: Path, tmp_path: Path, change: str) -> None:
    cache = StatCache(tmp_path / "cache")
    cache.note("weights", file.stat(), MANIFEST, read_time())
    info = file.stat()
    if change == "write":
        file.write_bytes(b"DATA")
        os.utime(file, ns=(info.st_atime_ns, info.st_mtime_ns))
    elif change == "times":
        os.utime(file, ns=(1, 1))
    elif change == "append":
        with file.open("ab") as opened:
            opened.write(b"more")
    else:
        (tmp_path / "new").write_bytes(b"data")
        os.utime(tmp_path / "new", ns=(info.st_atime_ns, info.st_mtime_ns))
        (tmp_path / "new").replace(file)
    assert cache.manifest("weights", file.stat()) is None


def test_a_file_written_just_before_it_was_read_is_not_believed(tmp_path: Path) -> None:
    cache = StatCache(tmp_path / "cache")
    (tmp_path / "weights").write_bytes(b"data")
    info = (tmp_path / "weights").stat()
    cache.note("weights", info, MANIFEST, info.st_mtime_ns + 1_000_000)
    assert cache.manifest("weights", info) is None
    cache.note("weights", info, MANIFEST, info.st_mtime_ns + 3_000_000_000)
    assert cache.manifest("weights", info) == MANIFEST
    cache.note("weights", info, MANIFEST, info.st_mtime_ns + 1_000_000)
    assert cache.manifest("weights", info) is None


def test_coarse_time_stamps_need_a_longer_time(file: Path, tmp_path: Path) -> None:
    os.utime(file, ns=(1_500_000_000_000_000_000,) * 2)
    info = file.stat()
    cache = StatCache(tmp_path / "cache")
    cache.note("weights", info, MANIFEST, info.st_ctime_ns + 1_000_000_000)
    assert cache.manifest("weights", info) is None
    cache.note("weights", info, MANIFEST, info.st_ctime_ns + 2_500_000_000)
    assert cache.manifest("weights", info) == MANIFEST


def test_forgetting_paths(file: Path, tmp_path: Path) -> None:
    cache = StatCache(tmp_path / "cache")
    for name in "abc":
        cache.note_written(name, file.stat(), MANIFEST)
    cache.keep_only(["b", "x"])
    assert list(cache.entries) == ["b"]


def test_every_damaged_byte_gives_an_empty_cache(file: Path, tmp_path: Path) -> None:
    cache = StatCache(tmp_path / "cache")
    cache.note_written("weights", file.stat(), MANIFEST)
    cache.save()
    data = (tmp_path / "cache").read_bytes()
    for position in range(len(data)):
        changed = bytearray(data)
        changed[position] ^= 0x20
        (tmp_path / "cache").write_bytes(changed)
        assert StatCache(tmp_path / "cache").entries == {}
    (tmp_path / "cache").write_bytes(data)
    assert StatCache(tmp_path / "cache").entries == cache.entries


def test_a_cache_that_cannot_be_written_is_no_error(file: Path, tmp_path: Path) -> None:
    class ReadOnly(Files):
        def replace_file(self, path: Path, data: object) -> None:
            raise StorageError("read-only")

    cache = StatCache(tmp_path / "cache", ReadOnly())
    cache.note_written("weights", file.stat(), MANIFEST)
    cache.save()
    assert not (tmp_path / "cache").exists()


def test_an_unchanged_cache_is_not_written(file: Path, tmp_path: Path) -> None:
    cache = StatCache(tmp_path / "cache")
    cache.note_written("weights", file.stat(), MANIFEST)
    cache.save()
    before = (tmp_path / "cache").stat().st_ino
    StatCache(tmp_path / "cache").save()
    assert (tmp_path / "cache").stat().st_ino == before
