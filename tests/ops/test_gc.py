"""Garbage collection: what goes, what stays, and what it costs to be interrupted."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest

from mstore import chunkstore
from mstore.chunkstore import Session
from mstore.database import Database
from mstore.errors import ConflictError, CorruptDataError, InvalidInputError, NotFoundError
from mstore.ids import Kind, identify
from mstore.objects import Commit, FileEntry, Manifest, SegmentChunks, Snapshot
from mstore.ops import gc
from mstore.pack import Entry, Record
from mstore.repository import Repository
from mstore.root import Refs
from mstore.storage.memory import MemoryStorage


def noise(size: int, seed: int) -> np.ndarray:
    return np.frombuffer(np.random.default_rng(seed).bytes(size), np.uint8)


def keys(repo: Repository) -> set[str]:
    storage = repo.database.storage
    return {info.key for prefix in ("packs/", "indexes/") for info in storage.list(prefix)}


def size(repo: Repository) -> int:
    storage = repo.database.storage
    folders = ("packs/", "indexes/", "sketches/")
    return sum(info.size for folder in folders for info in storage.list(folder))


def test_nothing_to_do(repo: Repository) -> None:
    repo.commit({"a": noise(1000, 1)})
    before, number = keys(repo), repo.database.root.number
    report = repo.gc()
    assert keys(repo) == before
    assert (report.deleted, report.freed, report.lost, report.commits) == (0, 0, (), 1)
    assert repo.database.refresh().number == number


def test_an_empty_repository(repo: Repository) -> None:
    assert repo.gc().commits == 0


def test_what_no_ref_reaches_goes(repo: Repository) -> None:
    kept = repo.commit({"a": noise(100_000, 1)})
    repo.create_branch("side")
    lost = repo.commit({"b": noise(200_000, 2)}, "lost work", branch="side")
    repo.delete_branch("side")
    planned = repo.gc(dry_run=True)
    assert size(repo) > 300_000
    report = repo.gc()
    assert [one.id.hex() for one in report.lost] == [lost.id]
    assert report.lost[0].message == "lost work"
    assert planned.lost == report.lost
    assert abs(planned.freed - report.freed) < 2000
    assert report.kept == size(repo)
    assert size(repo) < 110_000
    assert repo["main"].id == kept.id
    np.testing.assert_array_equal(repo["main"].tensors["a"], noise(100_000, 1))
    assert repo.verify().ok
    with pytest.raises(NotFoundError):
        repo[lost.id[:12]]
    assert repo.gc().deleted == 0


def test_a_dry_run_changes_nothing(repo: Repository) -> None:
    repo.commit({"a": noise(1000, 1)})
    repo.delete_branch("main")
    before, number = keys(repo), repo.database.root.number
    report = repo.gc(dry_run=True)
    assert report.deleted == 2
    assert (keys(repo), repo.database.refresh().number) == (before, number)


def test_unindexed_objects_go(repo: Repository) -> None:
    repo.commit({"a": noise(1000, 1)})
    storage = repo.database.storage
    storage.put("packs/d" + "0" * 32, [b"half a commit that was killed"])
    storage.put("indexes/" + "1" * 32, [b"its index"])
    report = repo.gc()
    assert (report.deleted, report.indexes) == (1, 1)
    assert repo.verify().ok


def test_live_records_move_out_of_mostly_dead_packs(
    repo: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = noise(50_000, 1)
    repo.commit({"big": noise(400_000, 2), "shared": shared}, branch="old")
    repo.commit({"shared": shared})
    repo.delete_branch("old")
    report = repo.gc()
    assert report.rewritten == 1
    assert size(repo) < 60_000
    np.testing.assert_array_equal(repo["main"].tensors["shared"], shared)
    assert repo.verify().ok


def test_many_small_packs_become_few(repo: Repository) -> None:
    for number in range(20):
        repo.commit({"a": noise(500, number)})
    assert len(keys(repo)) > 40
    repo.gc()
    assert len(keys(repo)) <= 4
    assert len(list(repo.log())) == 20
    assert repo.verify().ok
    repo.gc()
    for number, snapshot in enumerate(reversed(list(repo.log()))):
        np.testing.assert_array_equal(snapshot.tensors["a"], noise(500, number))


def test_keep_last_forgets_older_versions(repo: Repository) -> None:
    made = [repo.commit({"a": noise(5000, number)}, f"n{number}") for number in range(6)]
    repo.create_tag("v1", made[1].id)
    report = repo.gc(keep_last=2)
    assert {one.id.hex() for one in report.lost} == {made[n].id for n in (0, 2, 3)}
    assert {one.message for one in repo.log()} == {"n5", "n4", "n1"}
    assert [one.message for one in repo.log("main")] == ["n5", "n4"]
    assert repo["v1"].id == made[1].id
    with pytest.raises(NotFoundError, match="further than the history"):
        repo["main~2"]
    assert repo.verify().ok
    repo.commit({"a": noise(5000, 9)}, "n9")
    assert [one.message for one in repo.log("main")] == ["n9", "n5", "n4"]
    repo.gc()
    assert repo.verify().ok
    with pytest.raises(ConflictError, match="no longer whole"):
        repo.undo(to=4)


def test_keep_last_must_keep_something(repo: Repository) -> None:
    with pytest.raises(InvalidInputError):
        repo.gc(keep_last=0)


class StoppingStorage(MemoryStorage):
    """Fails like a killed process from the nth write or deletion on."""

    left = 10**9

    def _count(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt

    def put(self, key: str, parts: object) -> bool:  # type: ignore[override]
        self._count()
        return super().put(key, parts)  # type: ignore[arg-type]

    def delete(self, key: str) -> None:
        self._count()
        super().delete(key)


@pytest.mark.parametrize("steps", range(14))
def test_killed_at_any_step_the_next_gc_finishes(steps: int) -> None:
    storage = StoppingStorage()
    repo = Repository(Database.create(storage, "Ada"))
    shared = noise(50_000, 1)
    repo.commit({"big": noise(400_000, 2), "shared": shared}, branch="old")
    repo.commit({"shared": shared})
    repo.delete_branch("old")
    storage.left = steps
    try:
        repo.gc()
    except KeyboardInterrupt:
        assert storage.left < 0
    storage.left = 10**9
    again = Repository(Database.open(storage))
    np.testing.assert_array_equal(again["main"].tensors["shared"], shared)
    assert again.verify().ok
    again.commit({"more": noise(1000, 3)})
    again.gc()
    root = again.database.refresh()
    assert (root.condemned, root.doomed) == (frozenset(), frozenset())
    assert size(again) < 70_000
    assert again.verify().ok


def test_two_collectors_at_once() -> None:
    storage = MemoryStorage()
    repo = Repository(Database.create(storage, "Ada"))
    repo.commit({"a": noise(50_000, 1)})
    repo.commit({"b": noise(50_000, 2)}, branch="side")
    repo.delete_branch("side")
    other = Repository(Database.open(storage))
    plan = gc._plan

    def interleaved(db: Database, *rest: object) -> object:
        made = plan(db, *rest)  # type: ignore[arg-type]
        if db is repo.database and not other_ran:
            other_ran.append(other.gc())
        return made

    other_ran: list[gc.Report] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gc, "_plan", interleaved)
        repo.gc()
    assert other_ran
    assert repo.verify().ok
    assert size(repo) < 60_000


def test_a_damaged_index_stops_gc(repo: Repository) -> None:
    repo.commit({"a": noise(1000, 1)})
    storage = repo.database.storage
    (ref,) = repo.database.root.indexes
    data = bytearray(storage.get(ref.key))
    data[-20] ^= 1
    storage.delete(ref.key)
    storage.put(ref.key, [data])
    before = keys(repo)
    with pytest.raises(CorruptDataError):
        Repository(Database.open(storage)).gc()
    assert keys(repo) == before


def test_something_missing_stops_gc(repo: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunkstore, "PACK_SIZE", 100)
    repo.commit({"a": noise(1000, 1)})
    repo.commit({"b": noise(1000, 2)})
    root = repo.database.root
    repo.database.publish(
        lambda newest: __import__("dataclasses").replace(newest, indexes=root.indexes[:1]),
        action="lose an index", author="Mallory",
    )  # fmt: skip
    before = keys(repo)
    with pytest.raises(CorruptDataError, match="missing"):
        repo.gc()
    assert keys(repo) == before


def test_a_reader_with_an_old_root_finds_moved_chunks(repo: Repository) -> None:
    shared = noise(50_000, 1)
    repo.commit({"big": noise(400_000, 2), "shared": shared}, branch="old")
    repo.commit({"shared": shared})
    repo.delete_branch("old")
    reader = Repository(Database.open(repo.database.storage))
    snapshot = reader["main"]
    repo.gc()
    np.testing.assert_array_equal(snapshot.tensors["shared"], shared)
    assert reader["main"].message == ""


def test_a_damaged_dead_commit_does_not_keep_the_garbage(repo: Repository) -> None:
    repo.commit({"a": noise(1000, 1)})
    lost = repo.commit({"b": noise(1000, 2)}, branch="side")
    repo.delete_branch("side")
    storage = repo.database.storage
    entry = repo.database.find(Kind.COMMIT, bytes.fromhex(lost.id))
    assert entry is not None
    data = bytearray(storage.get(f"packs/{entry.pack}"))
    data[entry.offset + 70] ^= 0xFF
    storage.delete(f"packs/{entry.pack}")
    storage.put(f"packs/{entry.pack}", [data])
    again = Repository(Database.open(storage))
    (one,) = again.gc().lost
    assert (one.id.hex(), one.message) == (lost.id, "(unreadable)")
    assert again.verify().ok


def test_gc_gives_up_when_others_never_pause(
    repo: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    repo.commit({"a": noise(1000, 1)})
    repo.commit({"b": noise(1000, 2)}, branch="side")
    repo.delete_branch("side")
    other = Repository(Database.open(repo.database.storage))
    plan, plans = gc._plan, []

    def busy(db: Database, *rest: object) -> object:
        made = plan(db, *rest)  # type: ignore[arg-type]
        plans.append(other.commit({"a": float(len(plans))}))
        return made

    monkeypatch.setattr(gc, "_plan", busy)
    with pytest.raises(ConflictError, match="nothing was deleted"):
        repo.gc()
    assert len(plans) == gc._ATTEMPTS
    monkeypatch.undo()
    assert repo.verify().ok
    repo.gc()
    assert len(list(repo.log("main"))) == gc._ATTEMPTS + 1


def test_keep_last_is_for_one_model(repo: Repository) -> None:
    other = repo.model("bert")
    for number in range(3):
        repo.commit({"a": noise(1000, number)}, f"d{number}")
        other.commit({"a": noise(1000, 10 + number)}, f"b{number}")
    report = repo.gc(keep_last=1)
    assert {one.message for one in report.lost} == {"d0", "d1"}
    assert [one.message for one in other.log()] == ["b2", "b1", "b0"]
    assert [one.message for one in repo.log()] == ["d2"]
    assert repo.verify().ok


def publish(db: Database, branch: str, records: Sequence[Record], raws: Sequence[bytes]) -> None:
    """Store records, and a version of one file that consists of the chunks `raws`."""
    ids = b"".join(identify(Kind.CHUNK, raw) for raw in raws)
    lengths = tuple(map(len, raws))
    segments = (SegmentChunks(sum(lengths), ids, lengths=lengths),)
    with Session(db) as session:
        for record in records:
            session.append(record)
        manifest = session.add_object(Manifest("opaque", sum(lengths), segments))
        snapshot = session.add_object(Snapshot({"f": FileEntry(manifest, sum(lengths), False)}))
        commit = session.add_object(Commit(snapshot, (), "me", 0, 0, branch, {}))
        session.publish(
            lambda root: root.with_refs(
                "default", Refs(dict(root.refs("default").branches) | {branch: commit})
            ),
            action="test",
            author="me",
        )


def entries(repo: Repository) -> dict[bytes, Entry]:
    """By id the only record of each chunk."""
    listed = [entry for index in repo.database.chunk_indexes() for entry in index]
    found = {entry.id: entry for entry in listed}
    assert len(found) == len(listed)
    return found


def chunk_ids(raws: Sequence[bytes]) -> set[bytes]:
    return {identify(Kind.CHUNK, raw) for raw in raws}


def test_bases_of_deleted_versions_stay(repo: Repository, coded: Callable[..., Record]) -> None:
    """Four versions in a chain of bases; only the third stays, with the two behind it."""
    db = repo.database
    raws = [[noise(100, 10 * version + n).tobytes() for n in range(5)] for version in range(4)]
    for version, chunks in enumerate(raws):
        bases = raws[version - 1]
        records = [
            coded(raw, base, version) if version else coded(raw)
            for raw, base in zip(chunks, bases, strict=True)
        ]
        publish(db, f"v{version}", records, chunks)
    for version in (0, 1, 3):
        repo.delete_branch(f"v{version}")
    report = repo.stats()
    assert report.chunks == 15
    dead = report.dead
    collected = repo.gc()
    assert repo["v2"].files["f"].read() == b"".join(raws[2])
    found = entries(repo)
    assert found.keys() == chunk_ids([*raws[0], *raws[1], *raws[2]])
    for version, chunks in enumerate(raws[:3]):
        for identifier in chunk_ids(chunks):
            assert found[identifier].depth == version
    verified = repo.verify()
    assert verified.ok
    assert verified.chunks == 15
    assert repo.stats().dead == 0 < dead
    assert repo.gc().deleted == 0 < collected.deleted


def test_records_with_bases_move_out_of_mostly_dead_packs(
    repo: Repository, coded: Callable[..., Record]
) -> None:
    """They keep base and depth, be they copied alone, with their base, or without it."""
    db = repo.database
    base, one, two, three = (noise(3000, number).tobytes() for number in range(4))
    waste = [coded(noise(40_000, 10 + number).tobytes()) for number in range(4)]
    publish(db, "a", [coded(base), coded(one, base, 1), waste[0]], [one])
    publish(db, "b", [coded(two, one, 2), waste[1]], [two])
    publish(db, "c", [coded(three, base, 1)], [three])
    before = entries(repo)
    assert repo.gc().rewritten == 2
    after = entries(repo)
    assert after.keys() == chunk_ids([base, one, two, three])
    for identifier, entry in after.items():
        old = before[identifier]
        assert (entry.depth, entry.base, entry.codec) == (old.depth, old.base, old.codec)
    alone = identify(Kind.CHUNK, three)
    assert after[alone].pack == before[alone].pack
    for branch, raw in (("a", one), ("b", two), ("c", three)):
        assert repo[branch].files["f"].read() == raw
    assert repo.verify().ok


def test_records_that_do_not_count_are_dead(repo: Repository, coded: Callable[..., Record]) -> None:
    """A chunk recorded anew with no base: the old record goes, and so does its base."""
    db = repo.database
    raw, base = noise(500, 1).tobytes(), noise(500, 2).tobytes()
    publish(db, "a", [coded(base), coded(raw, base, 1)], [raw])
    assert (repo.stats().chunks, repo.stats().dead) == (2, 0)
    publish(db, "b", [coded(raw)], [raw])
    stats = repo.stats()
    assert stats.chunks == 1
    assert stats.dead > 1000
    repo.gc()
    assert entries(repo).keys() == chunk_ids([raw])
    assert repo.stats().dead == 0
    assert repo["a"].files["f"].read() == repo["b"].files["f"].read() == raw
    assert repo.verify().ok


def test_a_missing_base_stops_gc(repo: Repository, coded: Callable[..., Record]) -> None:
    """As any other missing thing that is reached: nothing is deleted."""
    db = repo.database
    raw, base = noise(500, 1).tobytes(), noise(500, 2).tobytes()
    publish(db, "a", [coded(base)], [base])
    publish(db, "b", [coded(raw, base, 1)], [raw])
    db.publish(lambda root: replace(root, indexes=root.indexes[1:]), action="test", author="me")
    before = keys(repo)
    with pytest.raises(CorruptDataError, match=f"{identify(Kind.CHUNK, base).hex()[:12]}.*missing"):
        repo.gc()
    assert keys(repo) == before
