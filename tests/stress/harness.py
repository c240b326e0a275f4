"""What the stress tests share: known contents, a storage with a hook, and the final reckoning."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from threading import RLock

import numpy as np
import pytest

from mstore import chunkreader, chunkstore
from mstore.database import Database
from mstore.ids import Buffer
from mstore.ops import gc as gc_module
from mstore.repository import Repository
from mstore.rootlog import RootLog
from mstore.storage.base import ObjectInfo, Storage
from mstore.storage.memory import MemoryStorage

CHUNK = 1024
"""Bytes; small, so that small arrays have many chunks."""

Arrays = dict[str, np.ndarray]


def arrays(*seeds: int, size: int = 256) -> Arrays:
    """One array of `size` random float64 for each seed; the same seed gives the same bits."""
    return {f"w{seed}": np.random.default_rng(seed).standard_normal(size) for seed in seeds}


def small_packs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make packs small, so that an operation stores several and gc has many to rewrite."""
    monkeypatch.setattr(chunkstore, "PACK_SIZE", 5 * CHUNK)
    monkeypatch.setattr(chunkstore, "_ENTRIES_PER_INDEX", 8)
    monkeypatch.setattr(gc_module, "_SMALL_PACK", 2 * CHUNK)
    monkeypatch.setattr(gc_module, "_MANY_SMALL_PACKS", 6)


def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Read with one thread: for so little data, starting more takes most of the time."""
    monkeypatch.setattr(chunkreader, "default_threads", lambda: 1)


def commit(
    repo: Repository, content: object, message: str = "", *, branch: str = "main", **more: object
) -> str:
    """Commit with small chunks and one thread; returns the id."""
    return repo.commit(
        content, message, branch=branch, author="ada", threads=1, chunk_size=CHUNK, **more
    ).id


def same(loaded: Mapping[str, np.ndarray], expected: Arrays) -> bool:
    """Whether both are the same arrays, bit for bit."""
    return loaded.keys() == expected.keys() and all(
        loaded[name].dtype == expected[name].dtype
        and loaded[name].tobytes() == expected[name].tobytes()
        for name in expected
    )


def check_whole(storage: Storage, acknowledged: Mapping[str, Arrays]) -> Repository:
    """Open the repository anew; every acknowledged commit must be there, bit for bit.

    Also: full verify is clean, what the root names exists, and the log has no gap.
    """
    repo = Repository(Database.open(storage))
    for identifier, expected in acknowledged.items():
        assert same(repo[identifier].load(), expected), f"commit {identifier[:12]} has changed"
    report = repo.verify()
    assert report.ok, report.damages
    check_log(storage)
    return repo


def copy_of(storage: MemoryStorage) -> MemoryStorage:
    """Another storage with the same objects."""
    copy = MemoryStorage()
    for folder in ("packs/", "indexes/", "roots/"):
        for info in storage.list(folder):
            copy.put(info.key, [storage.get(info.key)])
    return copy


def check_log(storage: Storage) -> None:
    """The kept roots are a chain without a gap, and what the newest names is not on its way out."""
    log = RootLog(storage)
    numbers = log.numbers()
    assert numbers == list(range(numbers[0], numbers[-1] + 1)), "the root log has a gap"
    root = log.newest()
    listed = {ref.key for ref in root.all_indexes()}
    packs = {
        f"packs/{name}"
        for index in Database(storage, root).opened(root.all_indexes())
        for name in index.packs
    }
    for key in listed | packs:
        assert storage.head(key) is not None, f"{key} is gone"
        assert key not in root.doomed | root.condemned, f"{key} is on its way out"


def check_no_garbage(repo: Repository) -> None:
    """After one gc there is nothing more to collect, nor anything besides what is listed."""
    repo.gc()
    report = repo.gc()
    assert (report.deleted, report.rewritten, report.indexes, report.leftovers) == (0, 0, 0, 0)
    root = repo.database.refresh()
    assert not root.condemned
    assert not root.doomed
    indexes = repo.database.opened(root.all_indexes())
    wanted = {ref.key for ref in root.all_indexes()}
    wanted |= {f"packs/{name}" for index in indexes for name in index.packs}
    storage = repo.database.storage
    there = {info.key for prefix in ("packs/", "indexes/") for info in storage.list(prefix)}
    assert there == wanted


class HookedStorage(Storage):
    """Passes everything on to `inner`, calling `hook(step, method, key)` in front of each call.

    Steps are counted from 0. While the hook runs, other threads that use this storage wait.
    """

    def __init__(self, inner: Storage) -> None:
        self.inner = inner
        self.steps = 0
        self.log: list[str] = []
        self.hook: Callable[[int, str, str], None] | None = None
        self._lock = RLock()

    @property
    def location(self) -> str:
        return self.inner.location

    @contextmanager
    def hooked(self, hook: Callable[[int, str, str], None]) -> Iterator[None]:
        """Count the steps in the block from 0 and call `hook` in front of each."""
        self.steps, self.log, self.hook = 0, [], hook
        try:
            yield
        finally:
            self.hook = None

    def _step(self, method: str, key: str) -> None:
        with self._lock:
            if (hook := self.hook) is None:
                return
            self.log.append(f"{method} {key}")
            step, self.steps = self.steps, self.steps + 1
            hook(step, method, key)

    def get(self, key: str, start: int = 0, length: int | None = None) -> bytes:
        self._step("get", key)
        return self.inner.get(key, start, length)

    def view(self, key: str) -> memoryview:
        self._step("view", key)
        return self.inner.view(key)

    def head(self, key: str) -> ObjectInfo | None:
        self._step("head", key)
        return self.inner.head(key)

    def put(self, key: str, parts: Sequence[Buffer]) -> bool:
        self._step("put", key)
        return self.inner.put(key, parts)

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        self._step("list", prefix)
        return self.inner.list(prefix)

    def delete(self, key: str) -> None:
        self._step("delete", key)
        self.inner.delete(key)

    def sweep(self) -> int:
        self._step("sweep", "")
        return self.inner.sweep()
