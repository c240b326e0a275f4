"""The figures of `stats`, against what a plain walk over small repositories counts."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from xxhash import xxh3_64_intdigest

from mstore.chunkstore import Session
from mstore.database import Database
from mstore.dtypes import BY_NAME
from mstore.errors import CorruptDataError, NotFoundError
from mstore.ids import Kind, identify
from mstore.ingest import FileToStore
from mstore.layout import Tensor, cover
from mstore.objects import Commit, FileEntry, Manifest, SegmentChunks, Snapshot
from mstore.ops import gc
from mstore.ops.commit import Content, Description, Target, record
from mstore.ops.refs import create_branch, create_tag, delete_branch
from mstore.ops.stats import stats
from mstore.pack import Entry, Payload, Record, pack_key
from mstore.root import Refs
from mstore.sources import BufferSource
from mstore.storage.memory import MemoryStorage

F32 = BY_NAME["f32"]
CHUNK = 256


def weights(seed: int) -> bytes:
    return np.random.default_rng(seed).normal(size=100).astype("<f4").tobytes()


def commit(db: Database, files: dict[str, tuple[int, ...]], branch="main", model="default"):
    """Commit files whose tensors are those of the given seeds, 400 bytes each."""

    def opened():
        for path, seeds in files.items():
            tensors = [(400 * n, Tensor(str(n), F32, (100,))) for n in range(len(seeds))]
            source = BufferSource([memoryview(weights(seed)) for seed in seeds])
            yield FileToStore(path, source, cover("test", source.size, tensors))

    tip = db.refresh().refs(model).branches.get(branch)
    target = Target(model, branch, tip, (tip,) if tip else ())
    return record(
        db, target, Content(opened, {}), Description("me"), threads=1, chunk_size=CHUNK
    ).id


@pytest.fixture
def db() -> Database:
    return Database.create(MemoryStorage(), "me")


def size_of(db: Database, prefix: str) -> int:
    return sum(info.size for info in db.storage.list(prefix))


def plain(db: Database, tips) -> dict[bytes, set[bytes]]:
    """The chunks of every commit reachable from `tips`, by the obvious walk."""
    return {
        identifier: {
            chunk
            for entry in db.snapshot(one.snapshot).files.values()
            for chunk, _ in db.manifest(entry.manifest).chunks()
        }
        for identifier, one in db.ancestry(tips)
    }


def stored(db: Database, chunks) -> int:
    return sum(db.find(Kind.CHUNK, chunk).record_size for chunk in chunks)


def test_nothing(db):
    found = stats(db)
    assert (found.models, found.commits, found.chunks, found.packs) == (0, 0, 0, 0)
    assert (found.logical, found.unique, found.encoded, found.dead) == (0, 0, 0, 0)
    assert (found.dedup_share, found.compression_share) == (0.0, 0.0)
    assert found.stored.total == size_of(db, "roots/")
    assert found.versions == ()


def test_figures(db):
    first = commit(db, {"a": (1, 2), "b": (1,)})
    second = commit(db, {"a": (1, 3), "b": (1,)})
    third = commit(db, {"a": (1, 3), "c": (1,)}, model="other")
    create_tag(db, "default", "v1", first, author="me")
    create_branch(db, "default", "dev", second, author="me")
    found = stats(db)
    assert (found.models, found.branches, found.tags, found.commits) == (2, 3, 1, 3)
    # (1, 2), (1,) and (1, 3); each tensor is two chunks, of 256 and 144 bytes.
    assert (found.files, found.tensors, found.chunks) == (3, 5, 6)
    assert found.packs == len(list(db.storage.list("packs/")))
    assert found.logical == 3 * 1200
    assert found.unique == 3 * 400
    assert found.dedup_share == pytest.approx(2 / 3)
    all_chunks = set().union(*plain(db, [second, third]).values())
    assert found.encoded == stored(db, all_chunks)
    assert found.compression_share == pytest.approx(1 - found.encoded / 1200)
    assert found.dead == 0
    assert found.stored.data_packs == size_of(db, "packs/") - found.stored.metadata_packs
    assert found.stored.metadata_packs == sum(
        info.size for info in db.storage.list("packs/") if info.key.startswith("packs/m")
    )
    assert found.stored.indexes == size_of(db, "indexes/")
    assert found.stored.roots == size_of(db, "roots/")
    assert [version.id for version in found.versions] == [third, second, first]
    assert {version.logical for version in found.versions} == {1200}
    alone = {version.id: version.alone for version in found.versions}
    only = plain(db, [second])[first] - plain(db, [third])[third] - plain(db, [second])[second]
    assert alone == {first: stored(db, only), second: 0, third: 0}


def test_one_model(db):
    first = commit(db, {"a": (1, 2)})
    other = commit(db, {"a": (1, 3), "b": (4,)}, model="other")
    found = stats(db, model="other")
    assert (found.models, found.branches, found.tags, found.commits) == (1, 1, 0, 1)
    assert (found.files, found.tensors, found.chunks) == (2, 3, 6)
    assert (found.logical, found.unique) == (1200, 1200)
    (version,) = found.versions
    # What the other model shares is not this one's alone.
    assert version.alone == stored(db, plain(db, [other])[other] - plain(db, [first])[first])
    assert found.stored == stats(db).stored
    assert found.dead == 0
    with pytest.raises(NotFoundError, match="'no'"):
        stats(db, model="no")


def test_dead_bytes_are_what_gc_frees_in_packs(db):
    commit(db, {"a": (1,)})
    for seed in range(10, 14):
        commit(db, {"a": (1, seed)}, branch="dead")
    db.storage.put("packs/d" + "0" * 32, [b"left by a killed writer"])
    delete_branch(db, "default", "dead", author="me")
    found = stats(db)
    before = size_of(db, "packs/")
    gc.collect(db, author="me")
    assert found.dead == before - size_of(db, "packs/") > 4 * 400
    assert stats(db).dead == 0


def test_dead_bytes_inside_a_living_pack(db):
    raws = [b"alive" * 9, b"dead" * 9]
    ids = [identify(Kind.CHUNK, raw) for raw in raws]
    with Session(db) as session:
        for identifier, raw in zip(ids, raws, strict=True):
            checksum = xxh3_64_intdigest(raw)
            session.append(Record(identifier, Kind.CHUNK, 0, len(raw), checksum, raw))
        publish(session, [SegmentChunks(45, ids[0], lengths=(45,))])
    assert stats(db).dead == db.find(Kind.CHUNK, ids[1]).record_size


def publish(session: Session, segments) -> None:
    size = sum(segment.length for segment in segments)
    manifest = session.add_object(Manifest("test", size, tuple(segments)))
    snapshot = session.add_object(Snapshot({"f": FileEntry(manifest, size)}))
    made = session.add_object(Commit(snapshot, (), "me", 0, 0, "", {}))
    session.publish(
        lambda root: root.with_refs("m", Refs({"main": made})), action="test", author="me"
    )


@given(
    st.lists(
        st.dictionaries(
            st.sampled_from("abc"), st.lists(st.integers(0, 5), max_size=3).map(tuple), max_size=3
        ),
        min_size=1,
        max_size=6,
    )
)
def test_what_each_version_has_alone(versions):
    db = Database.create(MemoryStorage(), "me")
    for number, files in enumerate(versions):
        commit(db, files, branch=f"b{number % 2}")
    chunks = plain(db, db.root.tips())
    found = stats(db)
    everything = set().union(*chunks.values())
    assert found.commits == len(chunks)
    assert found.chunks == len(everything)
    assert found.encoded == stored(db, everything)
    assert found.dead == 0
    for version in found.versions:
        others = [chunks[other] for other in chunks if other != version.id]
        assert version.alone == stored(db, chunks[version.id].difference(*others))


def test_a_base_belongs_to_those_coded_against_it(db):
    """Three chunks in a chain of bases, of which the version names only the last."""
    raws = [b"first", b"second", b"third", b"unused"]
    ids = [identify(Kind.CHUNK, raw) for raw in raws]
    with Session(db) as session:
        for number, raw in enumerate(raws):
            depth = number if number < 3 else 0
            base = ids[number - 1] if depth else None
            entry = Entry(ids[number], Kind.CHUNK, "", 0, len(raw), len(raw), 0, 0, depth, base)
            session.append_stored(Payload(entry, xxh3_64_intdigest(raw), memoryview(raw)))
        publish(session, [SegmentChunks(5, ids[2], lengths=(5,))])
    found = stats(db)
    (version,) = found.versions
    assert found.chunks == 3
    assert version.alone == found.encoded == stored(db, ids[:3])
    assert found.dead == stored(db, ids[3:])


def test_many_commits_of_few_files_read_each_once(db, monkeypatch):
    """A thousand versions that share two snapshots."""
    tips = [commit(db, {"a": (1, 2)}), commit(db, {"a": (1, 3)})]
    snapshots = [db.commit(tip).snapshot for tip in tips]
    with Session(db) as session:
        parent = tips[1]
        for number in range(1000):
            one = Commit(snapshots[number % 2], (parent,), "me", number, 0, "", {})
            parent = session.add_object(one)
        session.publish(
            lambda root: root.with_refs("default", Refs({"main": parent})), action="", author=""
        )
    reads = []
    original = Database.read_metadata

    def read_metadata(self, kind, identifier):
        reads.append(kind)
        return original(self, kind, identifier)

    monkeypatch.setattr(Database, "read_metadata", read_metadata)
    found = stats(Database.open(db.storage))
    assert found.commits == 1002
    assert found.logical == 1002 * 800
    assert reads.count(Kind.SNAPSHOT) == reads.count(Kind.MANIFEST) == 2
    assert {version.alone for version in found.versions} == {0}


def test_history_that_gc_cut(db):
    for seed in range(4):
        commit(db, {"a": (seed,)})
    gc.collect(db, author="me", keep_last=2)
    found = stats(db)
    assert found.commits == 2
    assert found.chunks == 4


def test_damage_is_an_error(db):
    made = commit(db, {"a": (1,)})
    manifest = db.snapshot(db.commit(made).snapshot).files["a"].manifest
    key = pack_key(db.find(Kind.MANIFEST, manifest).pack)
    kept = db.storage.get(key)
    db.storage.delete(key)
    with pytest.raises(CorruptDataError):
        stats(Database.open(db.storage))
    db.storage.put(key, [kept])
    assert stats(Database.open(db.storage)).commits == 1
    none = replace(db.root, indexes=())
    db.publish(lambda _: none, action="test", author="me")
    with pytest.raises(CorruptDataError, match="missing"):
        stats(Database.open(db.storage))
