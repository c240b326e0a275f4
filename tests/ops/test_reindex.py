"""All indexes can be made anew from packs alone."""

import numpy as np
import pytest

from mstore import chunkstore
from mstore.database import Database
from mstore.errors import CorruptDataError, MstoreError
from mstore.ops import reindex as module
from mstore.ops.reindex import reindex
from mstore.repository import Repository
from mstore.storage.base import Storage


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
