"""Suites that show whether something keeps a contract of mstore; for authors of plug-ins too.

For a storage, with pytest or any runner that calls the methods named test_…:

    class TestMyStorage(StorageContract):
        def make_storage(self) -> Storage:
            return MyStorage(...)   # empty, and another one each time
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Barrier, Thread

from mstore.errors import InvalidInputError, MstoreError, NotFoundError
from mstore.storage.base import ObjectInfo, Storage

_MIB = 1 << 20


class StorageContract(ABC):
    """What every `Storage` must do. Each test takes a fresh, empty one from `make_storage`."""

    @abstractmethod
    def make_storage(self) -> Storage:
        """An empty storage that shares nothing with those made before."""

    # Writing

    def test_what_is_put_can_be_read(self) -> None:
        """The parts come back joined."""
        storage = self.make_storage()
        assert storage.put("data/a", [b"one", b"two"]) is True
        assert storage.get("data/a") == b"onetwo"

    def test_every_kind_of_buffer_can_be_put(self) -> None:
        """Bytes, bytearrays and memoryviews, also those over other items than bytes."""
        storage = self.make_storage()
        words = memoryview(b"\1\2\3\4").cast("H")
        storage.put("data/a", [b"a", bytearray(b"b"), memoryview(b"xcx")[1:2], words])
        assert storage.get("data/a") == b"abc\1\2\3\4"

    def test_no_parts_and_empty_parts(self) -> None:
        """An empty object is an object; empty parts leave no trace."""
        storage = self.make_storage()
        assert storage.put("data/none", []) is True
        assert storage.put("data/empty", [b"", memoryview(b"")]) is True
        assert storage.put("data/mixed", [b"", b"a", bytearray(), b"b", b""]) is True
        assert storage.get("data/none") == storage.get("data/empty") == b""
        assert storage.head("data/none") == ObjectInfo("data/none", 0)
        assert storage.get("data/mixed") == b"ab"

    def test_many_parts(self) -> None:
        """More parts than one system call takes."""
        storage = self.make_storage()
        parts = [index.to_bytes(3, "big") for index in range(5000)]
        storage.put("data/a", parts)
        assert storage.get("data/a") == b"".join(parts)

    def test_large_object(self) -> None:
        """Nine MiB in uneven parts, read back whole and by ranges."""
        storage = self.make_storage()
        data = b"".join(index.to_bytes(4, "big") for index in range(9 * _MIB // 4))
        storage.put("data/a", [data[:1], data[1 : 7 * _MIB + 5], data[7 * _MIB + 5 :]])
        assert storage.head("data/a") == ObjectInfo("data/a", 9 * _MIB)
        assert storage.get("data/a") == data
        assert storage.get("data/a", 7 * _MIB - 3, _MIB) == data[7 * _MIB - 3 : 8 * _MIB - 3]
        assert storage.view("data/a") == data

    def test_an_object_is_never_altered(self) -> None:
        """A second put is refused and changes nothing, whatever its length."""
        storage = self.make_storage()
        assert storage.put("roots/1", [b"first"]) is True
        for second in (b"other", b"", b"something longer", b"first"):
            assert storage.put("roots/1", [second]) is False
        assert storage.get("roots/1") == b"first"

    def test_the_callers_buffer_is_not_kept(self) -> None:
        """Reusing a buffer after put does not change what was stored."""
        storage = self.make_storage()
        buffer = bytearray(b"before")
        storage.put("data/a", [buffer])
        buffer[:] = b"after!"
        assert storage.get("data/a") == b"before"

    def test_of_concurrent_creators_exactly_one_wins(self) -> None:
        """Threads that create the same key at once: one True, and its bytes are there."""
        storage = self.make_storage()
        count = 8
        for number in range(10):
            barrier = Barrier(count)
            won: list[int] = []

            def create(
                writer: int,
                key: str = f"roots/{number}",
                barrier: Barrier = barrier,
                won: list[int] = won,
            ) -> None:
                barrier.wait()
                if storage.put(key, [bytes([writer]) * 1000]):
                    won.append(writer)

            threads = [Thread(target=create, args=(writer,)) for writer in range(count)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert len(won) == 1, f"{len(won)} of {count} writers were told that they had won"
            assert storage.get(f"roots/{number}") == bytes(won) * 1000

    # Reading

    def test_ranges(self) -> None:
        """Ranges inside, across and beyond the end."""
        storage = self.make_storage()
        data = bytes(range(100))
        storage.put("data/a", [data])
        for start in (0, 1, 50, 99, 100, 101, 1 << 50, 1 << 64):
            assert storage.get("data/a", start) == data[start:]
            for length in (0, 1, 49, 50, 99, 100, 101, 1 << 50, 1 << 64):
                got = storage.get("data/a", start, length)
                assert got == data[start : start + length], f"range {start}, {length}"

    def test_impossible_ranges_are_refused(self) -> None:
        """Nothing lies before the start."""
        storage = self.make_storage()
        storage.put("data/a", [b"abc"])
        with _raises(InvalidInputError):
            storage.get("data/a", -1)
        with _raises(InvalidInputError):
            storage.get("data/a", 0, -1)

    def test_a_missing_object_is_not_found(self) -> None:
        """Also when other objects are there; head says None."""
        storage = self.make_storage()
        for key in ("data/a", "data/ab", "roots/1"):
            with _raises(NotFoundError):
                storage.get(key)
            with _raises(NotFoundError):
                storage.get(key, 5, 0)
            with _raises(NotFoundError):
                storage.view(key)
            assert storage.head(key) is None
            storage.put("data/abc", [b"x"])

    def test_head(self) -> None:
        """Key and size."""
        storage = self.make_storage()
        storage.put("data/a", [b"12", b"345"])
        assert storage.head("data/a") == ObjectInfo("data/a", 5)

    def test_view(self) -> None:
        """All bytes, read-only; empty objects too."""
        storage = self.make_storage()
        storage.put("data/a", [b"abc"])
        storage.put("data/empty", [])
        view = storage.view("data/a")
        assert isinstance(view, memoryview)
        assert view.readonly
        assert view.nbytes == 3
        assert view.tobytes() == b"abc"
        assert storage.view("data/empty").nbytes == 0

    def test_a_view_outlives_its_object(self) -> None:
        """Deleting the object, and creating another of that name, leaves the view as it was."""
        storage = self.make_storage()
        data = bytes(range(256)) * 1000
        storage.put("data/a", [data])
        view = storage.view("data/a")
        storage.delete("data/a")
        storage.put("data/a", [bytes(len(data))])
        assert view.tobytes() == data

    # Listing and deleting

    def test_list_is_sorted_and_keeps_to_its_folder(self) -> None:
        """By key as text, sub-folders included, neighbours of similar name not."""
        storage = self.make_storage()
        inside = ["data/10", "data/2", "data/a-b", "data/a.b", "data/a/b", "data/a/b2", "data/a0"]
        outside = ["data-2/a", "data2/a", "dat/a", "database", "roots/data/a"]
        for number, key in enumerate([*reversed(inside), *outside]):
            storage.put(key, [bytes(number)])
        listed = list(storage.list("data/"))
        assert [info.key for info in listed] == sorted(inside)
        assert [info.size for info in listed] == list(range(len(inside)))[::-1]
        assert [info.key for info in storage.list("data/a/")] == ["data/a/b", "data/a/b2"]

    def test_list_of_nothing(self) -> None:
        """A folder nobody wrote to is empty."""
        storage = self.make_storage()
        assert list(storage.list("data/")) == []
        storage.put("data/a", [])
        assert list(storage.list("roots/")) == []
        storage.delete("data/a")
        assert list(storage.list("data/")) == []

    def test_list_of_many(self) -> None:
        """More objects than one page of an object store's listing holds."""
        storage = self.make_storage()
        keys = [f"roots/{number:05}" for number in range(1100)]
        for key in keys:
            storage.put(key, [])
        assert [info.key for info in storage.list("roots/")] == keys

    def test_delete(self) -> None:
        """Gone, and only it; deleting again is no error; the name may be used again."""
        storage = self.make_storage()
        storage.put("data/a", [b"old"])
        storage.put("data/ab", [b"neighbour"])
        storage.delete("data/a")
        storage.delete("data/a")
        storage.delete("nothing/here")
        assert storage.head("data/a") is None
        assert [info.key for info in storage.list("data/")] == ["data/ab"]
        assert storage.put("data/a", [b"new"]) is True
        assert storage.get("data/a") == b"new"

    def test_sweep_takes_no_object(self) -> None:
        """With no interrupted write there is nothing to free."""
        storage = self.make_storage()
        assert storage.sweep() == 0
        storage.put("data/a", [b"abc"])
        assert storage.sweep() == 0
        assert storage.get("data/a") == b"abc"

    # Names

    def test_bad_keys_are_refused(self) -> None:
        """Whatever the operation, before anything is touched."""
        storage = self.make_storage()
        bad = ["", "/", "/etc/passwd", "a/", "a//b", "../a", "a/../b", "a/.", ".a", "A", "a b", "ä"]
        for key in [*bad, "a\0b", "a\n", "a\\b", "-a", "tmp/a", "a" * 129, "a/" * 8 + "a"]:
            with _raises(InvalidInputError):
                storage.put(key, [b"x"])
            with _raises(InvalidInputError):
                storage.get(key)
            with _raises(InvalidInputError):
                storage.view(key)
            with _raises(InvalidInputError):
                storage.head(key)
            with _raises(InvalidInputError):
                storage.delete(key)

    def test_bad_folders_are_refused(self) -> None:
        """A prefix is a whole folder."""
        storage = self.make_storage()
        for prefix in ("", "/", "data", "../", "data//", "tmp/", "/data/", "DATA/"):
            with _raises(InvalidInputError):
                list(storage.list(prefix))

    def test_location_is_a_text(self) -> None:
        """For messages."""
        assert isinstance(self.make_storage().location, str)
        assert self.make_storage().location


@contextmanager
def _raises(kind: type[MstoreError]) -> Iterator[None]:
    """Check that the block raises `kind`; pytest is not needed to import this module."""
    try:
        yield
    except kind:
        return
    raise AssertionError(f"{kind.__name__} was not raised")
