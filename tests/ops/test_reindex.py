"""All indexes can be made anew from packs alone."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mstore import chunkstore
from mstore.chunkreader import ChunkReader
from mstore.chunkstore import Session
from mstore.database import Database
from mstore.errors import CorruptDataError, MstoreError
from mstore.ids import Kind, identify
from mstore.ops import reindex as module
from mstore.ops.reindex import reindex
from mstore.pack import PackWriter, Record, pack_key
from mstore.repository import Repository
from mstore.storage.base import Storage
from mstore.storage.memory import MemoryStorage


def noise(seed: int, size: int = 5000) -> np.ndarray:
    return np.frombuffer(np.random.default_rng(seed).bytes(size), np.uint8)


@pytest.fixture
def filled(repo: Repository, monkeypatch: pytest.MonkeyPatch) -> Repository:
    monkeypatch.setattr(chunkstore, "PACK_SIZE", 4000)
    for number in range(6):
        repo.commit({"a": noise(number), "b": noise(100 + number)}, f"n{number}", chunk_size=1000)
    return repo


def check(storage: Storage, count: int = 6) -> Repository:
    again = Repository(Database.open(storage))
    assert again.verify().ok
    for number in range(count):
        np.testing.assert_array_equal(
            again[f"main~{count - 1 - number}"].tensors["a"], noise(number)
        )
    return again


def replace_object(storage: Storage, key: str, data: bytes) -> None:
    storage.delete(key)
    storage.put(key, [data])


@pytest.mark.parametrize("lost", ["deleted", "damaged"])
def test_indexes_come_back(filled: Repository, lost: str) -> None:
    storage = filled.database.storage
    for ref in filled.database.root.all_indexes():
        data = bytearray(storage.get(ref.key))
        data[3] ^= 1
        storage.delete(ref.key)
        if lost == "damaged":
            storage.put(ref.key, [data])
    broken = Repository(Database.open(storage))
    with pytest.raises(CorruptDataError):
        broken["main"].load()
    report = reindex(broken.database, author="Ada")
    assert report.damaged == ()
    assert report.records == sum(ref.count for ref in broken.database.root.all_indexes())
    again = check(storage)
    again.gc()
    check(storage)
    again.commit({"a": noise(6)})
    check(storage, 7)


def test_a_whole_repository_stays_as_it_is(filled: Repository) -> None:
    before = {repr(e) for i in filled.database.chunk_indexes() for e in i}
    reindex(filled.database, author="Ada")
    assert {repr(e) for i in filled.database.chunk_indexes() for e in i} == before
    check(filled.database.storage)


def test_many_entries_are_merged(filled: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_ENTRIES_PER_INDEX", 7)
    reindex(filled.database, author="Ada")
    assert len(filled.database.root.indexes) == 1
    check(filled.database.storage)


def test_records_behind_damage_stay_known(filled: Repository) -> None:
    storage = filled.database.storage
    known = {e.id for i in filled.database.chunk_indexes() for e in i}
    key = next(info.key for info in storage.list("packs/") if "/d" in info.key)
    data = bytearray(storage.get(key))
    data[16] ^= 0xFF
    replace_object(storage, key, bytes(data))
    report = reindex(filled.database, author="Ada")
    assert len(report.damaged) == 1
    assert {e.id for i in filled.database.chunk_indexes() for e in i} == known
    assert not Repository(Database.open(storage)).verify().ok


def test_packs_on_their_way_out_stay_out(filled: Repository) -> None:
    from dataclasses import replace

    storage = filled.database.storage
    dead = "packs/d" + "0" * 32
    storage.put(dead, [storage.get(next(i.key for i in storage.list("packs/") if "/d" in i.key))])
    filled.database.publish(
        lambda root: replace(root, doomed=frozenset({dead})), action="x", author="Ada"
    )
    reindex(filled.database, author="Ada")
    assert all(dead[6:] not in index.packs for index in filled.database.chunk_indexes())


def test_a_writer_at_the_same_time(filled: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    other = Repository(Database.open(filled.database.storage))
    rounds: list[int] = []
    packs = module._packs

    def with_a_commit(*arguments: object) -> object:
        found = packs(*arguments)  # type: ignore[arg-type]
        if not rounds:
            other.commit({"a": noise(6)})
        rounds.append(1)
        return list(found)

    monkeypatch.setattr(module, "_packs", with_a_commit)
    reindex(filled.database, author="Ada")
    assert len(rounds) == 2
    check(filled.database.storage, 7)


def test_a_damaged_root_is_no_index(filled: Repository) -> None:
    storage = filled.database.storage
    key = f"roots/{filled.database.root.number:020}"
    replace_object(storage, key, storage.get(key)[:-1])
    with pytest.raises(MstoreError):
        Database.open(storage)


def chunk(number: int) -> bytes:
    return np.random.default_rng(number).bytes(50)


def store(db: Database, *packs: list[Record]) -> None:
    """Each list in a pack of its own, listed by nothing."""
    for records in packs:
        writer = PackWriter(Kind.CHUNK)
        for record in records:
            writer.append(record)
        db.storage.put(pack_key(writer.name), writer.parts)


def depths(db: Database) -> dict[bytes, int]:
    (index,) = db.chunk_indexes()
    return {entry.id: entry.depth for entry in index}


def expected_depths(records: list[Record]) -> dict[bytes, int]:
    """The plain way: whatever can be taken is, until nothing more can be."""
    taken: dict[bytes, int] = {}
    for depth in range(256):
        for one in records:
            if one.depth == depth and (one.base is None or taken.get(one.base, 999) < depth):
                taken.setdefault(one.id, depth)
    return taken


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(
    st.lists(
        st.tuples(st.integers(0, 6), st.integers(0, 6), st.integers(0, 3), st.integers(0, 2)),
        min_size=1,
        max_size=14,
    ),
    st.integers(1, 20),
)
def test_only_what_can_be_decoded_is_listed(
    coded: Callable[..., Record],
    monkeypatch: pytest.MonkeyPatch,
    made: list[tuple[int, int, int, int]],
    at_once: int,
) -> None:
    """Any records of any depths against any bases, in any packs: circles, too deep, missing."""
    monkeypatch.setattr(module, "_ENTRIES_PER_INDEX", at_once)
    db = Database.create(MemoryStorage(), "me")
    packs: list[list[Record]] = [[], [], []]
    for number, base, depth, pack in made:
        record = coded(chunk(number), chunk(base), depth) if depth else coded(chunk(number))
        packs[pack].append(record)
    store(db, *packs)
    reindex(db, author="me")
    expected = expected_depths([record for pack in packs for record in pack])
    assert (depths(db) if db.root.indexes else {}) == expected
    assert all(db.storage.head(ref.key) is not None for ref in db.root.all_indexes())
    reader = ChunkReader(db, 1)
    for number in range(7):
        if (identifier := identify(Kind.CHUNK, chunk(number))) in expected:
            assert reader.read_one(identifier) == chunk(number)


def test_a_chunk_whose_base_is_gone_can_be_stored_anew(
    coded: Callable[..., Record], repo: Repository
) -> None:
    db = repo.database
    raw, base = noise(1, 50).tobytes(), chunk(2)
    with Session(db) as session:
        session.append(coded(base))
        session.publish(lambda root: root, action="test", author="me")
    with Session(db) as session:
        session.append(coded(raw, base, 1))
        session.publish(lambda root: root, action="test", author="me")
    repo.commit({"a": noise(1, 50)})
    identifier, base_id = (identify(Kind.CHUNK, one) for one in (raw, base))
    assert depths_of(db, identifier) == [1]
    found = db.find(Kind.CHUNK, base_id)
    assert found is not None
    db.storage.delete(pack_key(found.pack))
    assert not repo.verify().ok
    reindex(db, author="me")
    assert not repo.verify().ok
    assert db.find(Kind.CHUNK, identifier) is None
    repo.commit({"a": noise(1, 50), "b": noise(3)}, "again")
    assert depths_of(db, identifier) == [0]
    assert repo.verify().ok


def depths_of(db: Database, identifier: bytes) -> list[int]:
    return [one.depth for index in db.chunk_indexes() for one in index if one.id == identifier]
