"""What a session may publish when its chunks are coded against others."""

from collections.abc import Callable, Sequence

import numpy as np
import pytest

from mstore.chunkreader import ChunkReader
from mstore.chunkstore import Session, StaleSessionError
from mstore.database import Database
from mstore.ids import Kind, identify
from mstore.objects import Commit, FileEntry, Manifest, SegmentChunks, Snapshot
from mstore.ops import gc
from mstore.ops.verify import verify
from mstore.pack import Record, pack_key
from mstore.root import Refs
from mstore.storage.base import Storage
from mstore.storage.memory import MemoryStorage

Coded = Callable[..., Record]

A, B, C, D = (np.random.default_rng(number).bytes(50) for number in range(4))


@pytest.fixture
def storage() -> Storage:
    db = Database.create(MemoryStorage(), "me")
    return db.storage


def begin(storage: Storage) -> Session:
    """A writer that sees the repository as it is now."""
    return Session(Database.open(storage))


def publish(session: Session, branch: str, raws: Sequence[bytes]) -> None:
    """Publish a version of one file that consists of these chunks."""
    ids = b"".join(identify(Kind.CHUNK, raw) for raw in raws)
    lengths = tuple(map(len, raws))
    size = sum(lengths)
    segments = (SegmentChunks(size, ids, lengths=lengths),) if raws else ()
    manifest = session.add_object(Manifest("opaque", size, segments))
    snapshot = session.add_object(Snapshot({"f": FileEntry(manifest, size, False)}))
    commit = session.add_object(Commit(snapshot, (), "me", 0, 0, branch, {}))

    def change(root):
        branches = dict(root.refs("default").branches) | {branch: commit}
        return root.with_refs("default", Refs(branches))

    with session:
        session.publish(change, action="test", author="me")


def depths(storage: Storage) -> dict[bytes, int]:
    """The depth of the record that counts of each chunk."""
    db = Database.open(storage)
    found = {}
    for raw in (A, B, C, D):
        if (entry := db.find(Kind.CHUNK, identify(Kind.CHUNK, raw))) is not None:
            found[raw] = entry.depth
    return found


def check(storage: Storage, *raws: bytes) -> None:
    db = Database.open(storage)
    report = verify(db, quick=False)
    assert report.ok, report.damages
    for raw in raws:
        assert ChunkReader(db, 1).read_one(identify(Kind.CHUNK, raw)) == raw


def test_three_writers_make_no_circle(storage: Storage, coded: Coded) -> None:
    """Were the newest record to count, A would be read by way of B and B by way of A."""
    first = begin(storage)
    second = begin(storage)
    first.append(coded(A))
    publish(first, "first", [A])
    third = begin(storage)
    second.append(coded(B))
    second.append(coded(A, B, 1))
    publish(second, "second", [A, B])
    third.append(coded(B, A, 1))
    publish(third, "third", [B])
    assert depths(storage) == {A: 0, B: 0}
    check(storage, A, B)
    report = gc.collect(Database.open(storage), author="gc")
    assert report.lost == ()
    check(storage, A, B)
    assert sum(len(index) for index in Database.open(storage).chunk_indexes()) == 2


def test_a_base_that_has_become_deeper_makes_a_session_stale(
    storage: Storage, coded: Coded
) -> None:
    """gc takes the base away, and another writer stores it anew against something else."""
    one = begin(storage)
    one.append(coded(B))
    publish(one, "main", [B])
    late = begin(storage)
    late.append(coded(A, B, 1))
    publish(begin(storage), "main", [])
    gc.collect(Database.open(storage), author="gc")
    other = begin(storage)
    other.append(coded(C))
    other.append(coded(B, C, 1))
    publish(other, "main", [B])
    with pytest.raises(StaleSessionError):
        publish(late, "late", [A])
    again = begin(storage)
    again.append(coded(A, B, 2))
    publish(again, "late", [A])
    assert depths(storage) == {A: 2, B: 1, C: 0}
    check(storage, A, B, C)


@pytest.mark.parametrize("further", [False, True])
def test_a_base_that_is_gone_makes_a_session_stale(
    storage: Storage, coded: Coded, further: bool
) -> None:
    one = begin(storage)
    one.append(coded(B))
    publish(one, "main", [B])
    late = begin(storage)
    late.append(coded(A, B, 1))
    if further:
        late.append(coded(C, A, 2))
    publish(begin(storage), "main", [])
    gc.collect(Database.open(storage), author="gc")
    with pytest.raises(StaleSessionError):
        publish(late, "late", [C if further else A])
    check(storage)


def test_own_records_are_checked_too(storage: Storage, coded: Coded) -> None:
    """A chain whose first step is wrong is stale, not damaged."""
    one = begin(storage)
    one.append(coded(A))
    one.append(coded(B, A, 1))
    publish(one, "main", [B])
    late = begin(storage)
    late.append(coded(C, B, 1))
    late.append(coded(D, C, 2))
    with pytest.raises(StaleSessionError):
        publish(late, "late", [D])


def test_a_base_may_become_less_deep(storage: Storage, coded: Coded) -> None:
    """The deeper record is no longer read, and gc drops it."""
    one = begin(storage)
    one.append(coded(A))
    one.append(coded(B, A, 1))
    publish(one, "one", [B])
    third = begin(storage)
    third.append(coded(C, B, 2))
    other = begin(storage)
    other.append(coded(B))
    publish(other, "other", [B])
    publish(third, "third", [C])
    assert depths(storage) == {A: 0, B: 0, C: 2}
    check(storage, A, B, C)
    gc.collect(Database.open(storage), author="gc")
    assert depths(storage) == {B: 0, C: 2}
    check(storage, B, C)


def test_the_pack_of_a_base_must_be_there(storage: Storage, coded: Coded) -> None:
    """Of what is relied on, and of what that is coded against."""
    one = begin(storage)
    one.append(coded(A))
    publish(one, "one", [A])
    two = begin(storage)
    two.append(coded(B, A, 1))
    publish(two, "two", [B])
    relying, coding = begin(storage), begin(storage)
    assert relying.claim([identify(Kind.CHUNK, B)]) == [False]
    coding.append(coded(C, B, 2))
    found = Database.open(storage).find(Kind.CHUNK, identify(Kind.CHUNK, A))
    assert found is not None
    storage.delete(pack_key(found.pack))
    for session, raw in ((relying, B), (coding, C)):
        with pytest.raises(StaleSessionError):
            publish(session, "late", [raw])


def test_merging_indexes_keeps_what_counts(storage: Storage, coded: Coded) -> None:
    """Many sessions, so that indexes are merged on the way."""
    raws = [np.random.default_rng(number).bytes(50) for number in range(24)]
    for number, raw in enumerate(raws):
        session = begin(storage)
        depth = number % 6
        session.append(coded(raw, raws[number - 1], depth) if depth else coded(raw))
        if number % 5 == 4:
            session.append(coded(raws[number - 2]))
        publish(session, f"b{number}", [raw])
    db = Database.open(storage)
    assert len(db.root.indexes) < 8
    again = [number - 2 for number in range(24) if number % 5 == 4]
    for number, raw in enumerate(raws):
        entry = db.find(Kind.CHUNK, identify(Kind.CHUNK, raw))
        assert entry is not None
        assert entry.depth == (0 if number in again else number % 6)
    check(storage, *raws)
