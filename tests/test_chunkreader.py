"""Reading chunks that are coded against others: every order, every place, each record once."""

from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mstore import chunkreader, readplan
from mstore.bulkindex import as_ids
from mstore.chunkreader import ChunkReader, ManySink, MemorySink, Sink, Wanted
from mstore.chunkstore import Session
from mstore.codecs.choose import Decoder
from mstore.database import Database
from mstore.errors import CorruptDataError
from mstore.ids import Kind, identify
from mstore.objects import Commit, FileEntry, Manifest, SegmentChunks, Snapshot
from mstore.ops import gc
from mstore.pack import Record, pack_key
from mstore.root import Refs
from mstore.storage.memory import MemoryStorage

Coded = Callable[..., Record]


class Storage(MemoryStorage):
    """Counts the bytes read of each place, and can be damaged."""

    def __init__(self) -> None:
        super().__init__()
        self.read: Counter[tuple[str, int]] = Counter()

    def get(self, key: str, start: int = 0, length: int | None = None) -> bytes:
        data = super().get(key, start, length)
        if key.startswith("packs/d"):
            self.read.update((key, at) for at in range(start, start + len(data)))
        return data

    def flip(self, key: str, position: int) -> None:
        data = bytearray(self._objects[key])
        data[position] ^= 1
        self._objects[key] = bytes(data)


class Puts(Sink):
    """Has no memory to decode into."""

    def __init__(self, size: int) -> None:
        self.out = bytearray(size)

    def put(self, position: int, raw: memoryview) -> None:
        self.out[position : position + len(raw)] = raw


def content(number: int, size: int = 40) -> bytes:
    return np.random.default_rng(number).bytes(size)


def store(db: Database, records: Sequence[Record]) -> None:
    with Session(db) as session:
        for record in records:
            session.append(record)
        session.publish(lambda root: root, action="test", author="me")


def wanted(raws: Sequence[bytes]) -> Wanted:
    lengths = np.array([len(raw) for raw in raws], np.int64)
    ids = as_ids(b"".join(identify(Kind.CHUNK, raw) for raw in raws))
    return Wanted(ids, np.cumsum(lengths) - lengths, lengths)


def read(db: Database, raws: Sequence[bytes], threads: int = 1) -> bytes:
    out = bytearray(sum(map(len, raws)))
    ChunkReader(db, threads).read(wanted(raws), MemorySink(memoryview(out)))
    return bytes(out)


@pytest.fixture
def decoded(coded: Coded, monkeypatch: pytest.MonkeyPatch) -> Counter[bytes]:
    """How often each chunk was decoded, by its raw bytes."""
    counts: Counter[bytes] = Counter()
    make = chunkreader.Decoder

    class Counting(Decoder):
        def __init__(self) -> None:
            self.inner = make()

        def decode(
            self, codec: int, payload: memoryview, out: memoryview, base: memoryview | None = None
        ) -> None:
            self.inner.decode(codec, payload, out, base)
            counts[bytes(out)] += 1

    monkeypatch.setattr(chunkreader, "Decoder", Counting)
    return counts


Forest = tuple[list[int], list[int], list[int], list[int]]


@st.composite
def stored_forests(draw: st.DrawFn) -> Forest:
    """For chunks: base (-1: none), size, and the session that stores each; and what is wanted."""
    count = draw(st.integers(1, 16))
    bases: list[int] = []
    depths: list[int] = []
    for number in range(count):
        shallow = [other for other in range(number) if depths[other] < 6]
        bases.append(draw(st.sampled_from([-1, *shallow])))
        depths.append(depths[bases[-1]] + 1 if bases[-1] >= 0 else 0)
    sizes = sorted((draw(st.integers(1, 60)) for _ in range(count)), reverse=True)
    sessions = sorted(draw(st.integers(0, 3)) for _ in range(count))
    asked = draw(st.lists(st.integers(0, count - 1), min_size=1, max_size=20))
    return bases, sizes, sessions, asked


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(stored_forests(), st.sampled_from([1, 3]), st.booleans(), st.integers(100, 2000))
def test_random_forests(
    coded: Coded,
    decoded: Counter[bytes],
    monkeypatch: pytest.MonkeyPatch,
    forest: Forest,
    threads: int,
    in_memory: bool,
    portion: int,
) -> None:
    """Bases wanted or not, shared, in several packs and indexes: all is read and decoded once."""
    monkeypatch.setattr(readplan, "READ_SIZE", portion)
    monkeypatch.setattr(readplan, "_MAX_GAP", 0)
    bases, sizes, sessions, asked = forest
    raws = [content(number, size) for number, size in enumerate(sizes)]
    depths: list[int] = []
    for base in bases:
        depths.append(depths[base] + 1 if base >= 0 else 0)
    records = [
        coded(raw, raws[base], depth) if base >= 0 else coded(raw)
        for raw, base, depth in zip(raws, bases, depths, strict=True)
    ]
    db = Database.create(storage := Storage(), "me")
    for number in range(4):
        store(db, [one for one, at in zip(records, sessions, strict=True) if at == number])
    needed = set()
    for number in asked:
        at = number
        while at >= 0:
            needed.add(at)
            at = bases[at]
    chosen = [raws[number] for number in asked]
    size = sum(map(len, chosen))
    sink = MemorySink(memoryview(bytearray(size))) if in_memory else Puts(size)
    told: list[int] = []
    storage.read.clear()
    decoded.clear()
    ChunkReader(db, threads).read(wanted(chosen), sink, told.append)
    assert bytes(sink.out) == b"".join(chosen)
    assert sum(told) == size
    assert decoded == Counter(raws[number] for number in needed)
    for number in needed:
        entry = db.find(Kind.CHUNK, identify(Kind.CHUNK, raws[number]))
        assert entry is not None
        key = pack_key(entry.pack)
        assert {storage.read[key, entry.offset + at] for at in range(entry.record_size)} == {1}


def chain(coded: Coded, length: int) -> tuple[list[bytes], list[Record]]:
    """Chunks each coded against the one before it, and their records."""
    raws = [content(number) for number in range(length)]
    records = [coded(raws[0])]
    records += [coded(raws[n], raws[n - 1], n) for n in range(1, length)]
    return raws, records


def test_bases_are_read_together(coded: Coded, decoded: Counter[bytes]) -> None:
    """A version, the one it is coded against, and the one behind that: one read for each."""
    storage = Storage()
    db = Database.create(storage, "me")
    first, second, third = ([content(10 * n + k) for k in range(8)] for n in range(3))
    store(db, [coded(raw) for raw in first])
    store(db, [coded(raw, base, 1) for raw, base in zip(second, first, strict=True)])
    store(db, [coded(raw, base, 2) for raw, base in zip(third, second, strict=True)])
    gets: list[str] = []
    get = storage.get
    storage.get = lambda key, *rest: gets.append(key) or get(key, *rest)  # type: ignore
    assert read(db, third) == b"".join(third)
    assert len(gets) == len(set(gets)) == 3


def test_a_tree_larger_than_a_window(coded: Coded, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is read piece by piece while its bases are kept."""
    monkeypatch.setattr(readplan, "READ_SIZE", 300)
    db = Database.create(storage := Storage(), "me")
    raws, records = chain(coded, 3)
    leaves = [content(100 + number) for number in range(40)]
    store(db, records + [coded(leaf, raws[2 - n % 3], 3 - n % 3) for n, leaf in enumerate(leaves)])
    storage.read.clear()
    assert read(db, leaves, threads=3) == b"".join(leaves)
    assert set(storage.read.values()) == {1}


def test_one_chunk(coded: Coded) -> None:
    db = Database.create(MemoryStorage(), "me")
    raws, records = chain(coded, 4)
    store(db, records)
    reader = ChunkReader(db, 1)
    for raw in raws:
        assert reader.read_one(identify(Kind.CHUNK, raw)) == raw
    with pytest.raises(CorruptDataError, match="missing"):
        reader.read_one(bytes(32))


def test_threads_share_a_reader(coded: Coded) -> None:
    """As the threads of a writer do: each reads a few bases, with no threads started for it."""
    db = Database.create(MemoryStorage(), "me")
    raws, records = chain(coded, 6)
    store(db, records)
    reader = ChunkReader(db, 1)

    def read_some(number: int) -> bool:
        chosen = [raws[(number + step) % 6] for step in range(1 + number % 4)]
        outs = [bytearray(len(raw)) for raw in chosen]
        reader.read(wanted(chosen), ManySink([memoryview(out) for out in outs]))
        return outs == chosen

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(read_some, range(200)))


def test_a_damaged_base_is_named(coded: Coded) -> None:
    db = Database.create(storage := Storage(), "me")
    raws, records = chain(coded, 3)
    store(db, records)
    entry = db.find(Kind.CHUNK, records[1].id)
    assert entry is not None
    storage.flip(pack_key(entry.pack), entry.offset + entry.record_size - 1)
    assert read(db, raws[:1]) == raws[0]
    for raw in raws[1:]:
        with pytest.raises(CorruptDataError, match=f"chunk {entry.id.hex()[:12]}.*damaged"):
            read(db, [raw])


def test_another_base_than_the_index_says(coded: Coded) -> None:
    """The index was told of another base (of the same bytes, so that only the id differs)."""
    db = Database.create(MemoryStorage(), "me")
    raws, records = chain(coded, 3)
    with Session(db) as session:
        for record in records:
            session.append(record)
        pack = session._chunks.pack
        pack.entries[2] = pack.entries[2]._replace(base=records[0].id)
        session.publish(lambda root: root, action="test", author="me")
    with pytest.raises(CorruptDataError, match="another record"):
        read(db, raws[2:])


def test_circles_are_refused(coded: Coded) -> None:
    """Two chunks that are coded against each other, by rows that all look right alone."""
    db = Database.create(MemoryStorage(), "me")
    one, other = content(1), content(2)
    with Session(db) as session:
        session.append(coded(one, other, 1))
        session.append(coded(other, one, 1))
        chunks, _ = session.store()
        refs = tuple(chunks)
    db.publish(lambda root: replace(root, indexes=refs), action="test", author="me")
    with pytest.raises(CorruptDataError, match="circle"):
        read(db, [one])


@pytest.mark.parametrize("threads", [1, 3])
def test_gc_moves_packs_while_they_are_read(
    coded: Coded, monkeypatch: pytest.MonkeyPatch, threads: int
) -> None:
    """After the look-up every pack is rewritten, and one chunk's record has another base."""
    monkeypatch.setattr(readplan, "READ_SIZE", 300)
    db = Database.create(MemoryStorage(), "me")
    raws, records = chain(coded, 8)
    dead = [coded(content(50 + number, 4000)) for number in range(8)]
    for record, unused in zip(records, dead, strict=True):
        with Session(db) as session:
            session.append(record)
            session.append(unused)
            keep(session, raws)
    reader, other = ChunkReader(db, threads), Database.open(db.storage)
    plan = reader._plan

    def plan_and_collect(what: Wanted) -> object:
        made = plan(what)
        monkeypatch.setattr(reader, "_plan", plan)
        with Session(other) as session:
            session.append(coded(raws[5], raws[0], 1))
            keep(session, raws)
        assert gc.collect(other, author="gc").rewritten == 7
        return made

    monkeypatch.setattr(reader, "_plan", plan_and_collect)
    out = bytearray(sum(map(len, raws)))
    told: list[int] = []
    reader.read(wanted(raws), MemorySink(memoryview(out)), told.append)
    assert out == b"".join(raws)
    assert sum(told) == len(out)


def keep(session: Session, raws: Sequence[bytes]) -> None:
    """Publish a version whose file holds those of the chunks that are stored."""
    stored = {one.id for index in session.db.chunk_indexes() for one in index}
    session.store()
    stored |= {one.id for index in session._chunks.indexes for one in index}
    kept = [raw for raw in raws if identify(Kind.CHUNK, raw) in stored]
    ids = b"".join(identify(Kind.CHUNK, raw) for raw in kept)
    lengths = tuple(map(len, kept))
    segment = SegmentChunks(sum(lengths), ids, lengths=lengths)
    manifest = session.add_object(Manifest("opaque", sum(lengths), (segment,)))
    files = {"f": FileEntry(manifest, sum(lengths), False)}
    snapshot = session.add_object(Snapshot(files))
    commit = session.add_object(Commit(snapshot, (), "me", len(kept), 0, "", {}))
    session.publish(
        lambda root: root.with_refs("default", Refs({"main": commit})), action="", author="me"
    )


def test_a_pack_that_is_gone_for_good(coded: Coded) -> None:
    db = Database.create(MemoryStorage(), "me")
    raws, records = chain(coded, 2)
    for record in records:
        store(db, [record])
    entry = db.find(Kind.CHUNK, records[0].id)
    assert entry is not None
    db.storage.delete(pack_key(entry.pack))
    with pytest.raises(CorruptDataError, match=entry.pack):
        read(db, raws[1:])
