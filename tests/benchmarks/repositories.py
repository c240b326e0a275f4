"""Repositories of a size that would take long to fill with real weights."""

import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from mstore.bulkindex import ROW_DTYPE
from mstore.chunkstore import Session, store_index
from mstore.database import Database
from mstore.dtypes import BY_NAME
from mstore.ids import ID_SIZE, Id, Kind
from mstore.index import IndexRef, assemble
from mstore.layout import Tensor
from mstore.objects import Commit, FileEntry, Manifest, SegmentChunks, Snapshot
from mstore.pack import new_pack_name, pack_key
from mstore.repository import Repository
from mstore.root import Refs
from mstore.storage.files import Files, OpenFile
from mstore.storage.local import LocalStorage

AUTHOR = "benchmark"
CHUNK = 1 << 20
STORED = 860 << 10
"""Bytes of an encoded float32 chunk, about."""
CHUNKS_PER_PACK = 38
SHARED_CHUNKS = 10_000
NEW_CHUNKS = 10_000
UNUSED_SHARE = 10


class _Unsynced(Files):
    """Never waits for the disk: these repositories need not outlive a power loss."""

    def fsync(self, file: OpenFile) -> None:
        """Do nothing."""

    def fsync_dir(self, path: Path) -> None:
        """Do nothing."""


def create(directory: Path) -> Repository:
    """A new, empty, bare repository in `directory`, which is written without waiting."""
    return Repository(Database.create(LocalStorage(directory, _Unsynced()), AUTHOR))


def add_commits(repo: Repository, count: int) -> float:
    """Commit `count` small versions one by one; returns the seconds each took on average."""
    array = np.zeros(256, np.float32)
    start = time.perf_counter()
    for number in range(count):
        array[number % 256] += 1
        repo.commit(
            {"w": array}, f"step {number}", metadata={"step": number, "loss": 1 / (1 + number)}
        )
    return (time.perf_counter() - start) / count


def add_index(repo: Repository, count: int) -> None:
    """List an index of `count` chunks that no version uses and no pack holds."""
    _publish_index(repo.database, _random_ids(count))


def add_versions(repo: Repository, chunks: int) -> None:
    """Make a history of large models that have `chunks` chunks together.

    Every version shares half of its chunks with all others. One in ten belongs to no branch, so
    that gc finds something to delete. The packs are files of the right size without content.
    """
    db = repo.database
    ids = _random_ids(chunks)
    for name in _publish_index(db, ids):
        path = Path(db.storage.location) / pack_key(name)
        path.parent.mkdir(exist_ok=True)
        with path.open("wb") as file:
            file.truncate(CHUNKS_PER_PACK * STORED)
    shared, rest = ids[:SHARED_CHUNKS], ids[SHARED_CHUNKS:]
    tip: Id | None = None
    with Session(db) as session:
        for number, start in enumerate(range(0, len(rest), NEW_CHUNKS)):
            if number % UNUSED_SHARE == UNUSED_SHARE - 1:
                continue
            own = np.concatenate((shared, rest[start : start + NEW_CHUNKS]))
            tip = _add_version(session, own.tobytes(), tip, number)
        assert tip is not None
        refs = Refs({"main": tip})
        session.publish(lambda root: root.with_refs("default", refs), action="build", author=AUTHOR)


def _add_version(session: Session, ids: bytes, parent: Id | None, number: int) -> Id:
    tensor_chunks = 50
    step = tensor_chunks * ID_SIZE
    segments = tuple(
        SegmentChunks(
            len(part) // ID_SIZE * CHUNK,
            part,
            Tensor(f"layers.{at}.weight", BY_NAME["f32"], (len(part) // ID_SIZE * CHUNK // 4,)),
            CHUNK,
        )
        for at, part in enumerate(ids[start : start + step] for start in range(0, len(ids), step))
    )
    size = sum(segment.length for segment in segments)
    manifest = session.add_object(Manifest("safetensors", size, segments))
    snapshot = session.add_object(Snapshot({"model.safetensors": FileEntry(manifest, size)}))
    parents = (parent,) if parent else ()
    return session.add_object(Commit(snapshot, parents, AUTHOR, number, 0, f"version {number}", {}))


def _random_ids(count: int) -> npt.NDArray[np.uint64]:
    """Ids as four numbers each, shape (count, 4): big-endian the first, as stored the others."""
    return np.random.default_rng(0).integers(0, 1 << 64, (count, ID_SIZE // 8), np.uint64)


def _publish_index(db: Database, ids: npt.NDArray[np.uint64]) -> list[str]:
    """List an index of these chunks, stored one after the other; returns the packs' names."""
    keys = ids[:, 0].byteswap()
    order = np.argsort(keys)
    place = np.arange(len(ids))[order]
    rows = np.zeros(len(ids), ROW_DTYPE)
    for column in range(3):
        rows[f"tail{column}"] = ids[order, column + 1]
    rows["offset"] = place % CHUNKS_PER_PACK * STORED
    rows["pack"] = place // CHUNKS_PER_PACK
    rows["stored"], rows["raw"], rows["kind"] = STORED, CHUNK, Kind.CHUNK
    rows["dtype"] = BY_NAME["f32"].code
    packs = [new_pack_name(Kind.CHUNK) for _ in range(-(-len(ids) // CHUNKS_PER_PACK))]
    sorted_keys = np.ascontiguousarray(keys[order])
    parts = assemble(packs, len(ids), sorted_keys.data.cast("B"), rows.view(np.uint8).data, b"")
    ref: IndexRef = store_index(db.storage, parts)
    db.publish(
        lambda root: replace(root, indexes=(*root.indexes, ref)), action="build", author=AUTHOR
    )
    return packs
