"""Recording versions: dedup, what is stored, conflicts, files that change, gc beside it."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from mstore import chunkstore
from mstore.chunkstore import choose_merge
from mstore.database import Database
from mstore.errors import ConflictError, InvalidInputError, StorageError
from mstore.ids import Id, Kind
from mstore.index import IndexRef
from mstore.ingest import FileToStore
from mstore.layout import opaque
from mstore.ops import gc
from mstore.ops.commit import Content, Description, Recorded, Target, record
from mstore.ops.reindex import reindex
from mstore.ops.verify import verify
from mstore.pack import pack_key
from mstore.repository import Repository
from mstore.sources import BufferSource, Source
from mstore.storage.memory import MemoryStorage

Arrays = Callable[..., dict[str, np.ndarray]]


def file_of(path: str, data: bytes) -> FileToStore:
    source = BufferSource([memoryview(data)])
    return FileToStore(path, source, opaque(len(data)))


def commit(
    db: Database, files: dict[str, bytes], tip: Id | None = None, **options: object
) -> Recorded:
    target = Target("default", "main", tip, (tip,) if tip else ())
    content = Content(lambda: [file_of(path, data) for path, data in files.items()], {})
    return record(db, target, content, Description("Ada", "said"), **options)  # type: ignore[arg-type]


def noise(size: int, seed: int = 0) -> bytes:
    return np.random.default_rng(seed).bytes(size)


@pytest.fixture
def db() -> Database:
    return Database.create(MemoryStorage(), "Ada")


def test_the_same_bytes_are_stored_once(db: Database) -> None:
    data = noise(2 << 20)
    first = commit(db, {"a": data})
    second = commit(db, {"a": data, "b": data, "c": data[: 1 << 20] + b"tail"}, first.id)
    assert first.stored > len(data)
    assert second.stored < 400_000
    assert second.logical > 2 * len(data)


def test_repeated_chunks_in_one_commit_are_stored_once(db: Database) -> None:
    data = noise(1 << 20)
    recorded = commit(db, {f"f{n}": data for n in range(8)}, threads=4)
    assert recorded.stored < 1.1 * len(data)


def test_nothing_to_commit(db: Database) -> None:
    first = commit(db, {"a": b"one"})
    again = commit(db, {"a": b"one"}, first.id)
    assert (again.created, again.id, again.stored) == (False, first.id, 0)
    assert db.log.numbers() == [1, 2]


def test_committing_again_restores_what_was_lost(db: Database) -> None:
    data = noise(100_000)
    first = commit(db, {"a": data})
    (pack,) = {entry.pack for entry in db.chunk_indexes()[0]}
    db.storage.delete(pack_key(pack))
    reindex(db, author="Ada")
    assert not verify(db, quick=False).ok
    again = commit(db, {"a": data}, first.id)
    assert (again.id, again.created) == (first.id, False)
    assert verify(db, quick=False).ok
    last = db.root.number
    commit(db, {"a": data}, first.id)
    assert db.refresh().number == last


@pytest.mark.parametrize("kind", [Kind.MANIFEST, Kind.SNAPSHOT])
def test_a_damaged_version_before_hinders_nothing(
    repo: Repository, arrays: Arrays, kind: Kind
) -> None:
    """Only what its tensors are coded against is looked for there."""
    first = repo.commit(arrays(), "first")
    db = repo.database
    (row,) = (entry for entry in db.metadata_indexes()[0] if entry.kind == kind)
    stored = bytearray(db.storage.get(key := pack_key(row.pack)))
    stored[row.offset + row.record_size - 1] ^= 1
    db.storage.delete(key)
    db.storage.put(key, [stored])
    again = Repository(Database.open(db.storage))
    second = again.commit(wanted := arrays(seed=1), "second", parent=first.id)
    assert all(second.load()[name].tobytes() == wanted[name].tobytes() for name in wanted)


def test_new_metadata_is_something_to_commit(db: Database) -> None:
    first = commit(db, {"a": b"one"})
    target = Target("default", "main", first.id, (first.id,))
    content = Content(lambda: [file_of("a", b"one")], {})
    second = record(db, target, content, Description("Ada", metadata={"loss": 0.5}))
    assert second.created
    third = record(
        db, Target("default", "main", second.id, (second.id,)), content,
        Description("Ada", metadata={"loss": 0.5}),
    )  # fmt: skip
    assert not third.created


def test_the_branch_moved_meanwhile(db: Database) -> None:
    first = commit(db, {"a": b"one"})
    second = commit(db, {"a": b"two"}, first.id)
    with pytest.raises(ConflictError, match="moved"):
        commit(db, {"a": b"three"}, first.id)
    with pytest.raises(ConflictError, match="exists already"):
        commit(db, {"a": b"three"}, None)
    assert db.refresh().refs("default").branches["main"] == second.id


class ChangingSource(BufferSource):
    def finish(self) -> None:
        raise ConflictError("it changed")


def test_a_file_that_changes_is_not_recorded(db: Database) -> None:
    def files() -> Iterator[FileToStore]:
        source: Source = ChangingSource([memoryview(b"data")])
        yield FileToStore("a", source, opaque(4))

    with pytest.raises(ConflictError, match="it changed"):
        record(db, Target("default", "main", None, ()), Content(files, {}), Description("Ada"))
    assert db.refresh().models == {}


def test_metadata_that_cannot_be_recorded_stops_the_commit(db: Database) -> None:
    with pytest.raises(InvalidInputError):
        record(
            db, Target("default", "main", None, ()), Content(list, {}),
            Description("Ada", metadata={"x": object()}),  # type: ignore[dict-item]
        )  # fmt: skip
    assert db.refresh().number == 1


class GcStorage(MemoryStorage):
    """Runs a callback at the first object of a kind that is put."""

    prefix = ""
    callback = staticmethod(lambda: None)

    def put(self, key: str, parts: object) -> bool:  # type: ignore[override]
        if self.prefix and key.startswith(self.prefix):
            self.prefix = ""
            self.callback()
        return super().put(key, parts)  # type: ignore[arg-type]


@pytest.mark.parametrize("prefix", ["packs/", "indexes/", "roots/"])
@pytest.mark.parametrize("times", [1, 2])
def test_gc_in_the_middle_of_a_commit(prefix: str, times: int) -> None:
    """What the commit relies on, or has stored already, goes; the commit must store it again."""
    storage = GcStorage()
    db = Database.create(storage, "Ada")
    data = noise(1 << 20)
    old = commit(db, {"old": data})
    other = Database.open(storage)

    def collect() -> None:
        other.refresh()
        refs = other.root.refs("default")
        other.publish(
            lambda root: root.with_refs("default", refs.with_branch("main", None)),
            action="delete", author="Bob",
        )  # fmt: skip
        for _ in range(times):
            gc.collect(other, author="Bob")

    storage.prefix, storage.callback = prefix, collect  # type: ignore[method-assign]
    target = Target("default", "side", None, ())
    content = Content(lambda: [file_of("new", data + b"more")], {})
    recorded = record(db, target, content, Description("Ada"))
    fresh = Repository(Database.open(storage))
    assert fresh[recorded.id.hex()].files["new"].read() == data + b"more"
    assert fresh.verify().ok
    with pytest.raises(Exception, match="unknown revision"):
        fresh[old.id.hex()]


def test_a_storage_that_fails_leaves_nothing_recorded(
    db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> bool:
        raise StorageError("disk full")

    with monkeypatch.context() as broken:
        broken.setattr(db.storage, "put", fail)
        with pytest.raises(StorageError, match="disk full"):
            commit(db, {"a": noise(1 << 20)})
    assert db.refresh().number == 1
    assert commit(db, {"a": b"x"}).created


def test_many_packs_and_indexes(db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunkstore, "PACK_SIZE", 100_000)
    monkeypatch.setattr(chunkstore, "_ENTRIES_PER_INDEX", 8)
    data = noise(3 << 20)
    recorded = commit(db, {"a": data, "b": data})
    assert len(list(db.storage.list("packs/"))) > 10
    assert Repository(db)[recorded.id.hex()].files["b"].read() == data
    assert commit(db, {"a": data, "b": data}, recorded.id).created is False


def test_indexes_stay_few(db: Database) -> None:
    tip = None
    for number in range(60):
        tip = commit(db, {"a": noise(200, number)}, tip).id
    root = db.refresh()
    assert len(root.indexes) <= 9
    assert len(root.metadata_indexes) <= 12
    assert sum(ref.count for ref in root.indexes) == 60
    assert sum(ref.count for ref in root.metadata_indexes) == 180


def test_choose_merge() -> None:
    def refs(*counts: int) -> list[IndexRef]:
        return [IndexRef(str(n), count, 1) for n, count in enumerate(counts)]

    assert choose_merge(refs()) == []
    assert choose_merge(refs(1, 2, 3)) == []
    assert choose_merge(refs(1, 2, 3, 1)) == refs(1, 2, 3, 1)
    assert choose_merge(refs(4000, 1, 2, 3, 1)) == refs(4000, 1, 2, 3, 1)[1:]
    assert len(choose_merge(refs(1, 1, 1, 1, 4, 5, 6))) == 7


def test_named_files_keep_their_executable_bit(db: Database) -> None:
    target = Target("default", "main", None, ())
    content = Content(lambda: [file_of("run", b"#!"), file_of("b", b"")], {}, frozenset({"run"}))
    snapshot = record(db, target, content, Description("Ada")).snapshot
    assert [snapshot.files[path].executable for path in ("run", "b")] == [True, False]


def test_progress_counts_every_byte(db: Database) -> None:
    done: list[int] = []
    commit(db, {"a": noise(3 << 20), "b": b"", "c": b"x"}, progress=done.append)
    assert sum(done) == (3 << 20) + 1


def test_a_file_on_disk_that_is_written_to(db: Database, tmp_path: Path) -> None:
    from mstore.formats.detect import describe
    from mstore.sources import FileSource

    path = tmp_path / "w.bin"
    path.write_bytes(noise(1 << 20))

    def files() -> Iterator[FileToStore]:
        source = FileSource(path)
        layout, _ = describe(source)
        path.write_bytes(noise(1 << 20, 1))
        yield FileToStore("w.bin", source, layout)

    with pytest.raises(ConflictError, match="changed while it was read"):
        record(db, Target("default", "main", None, ()), Content(files, {}), Description("Ada"))


def test_an_array_that_changes_while_it_is_committed_spoils_no_chunk(
    db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is stored under an id must be what the id was made of, whoever writes to the array."""
    from mstore import ingest

    data = bytearray(noise(1 << 20))
    before = bytes(data)
    identify = ingest.identify

    def identify_then_change(kind: object, raw: memoryview) -> Id:
        identifier = identify(kind, raw)  # type: ignore[arg-type]
        data[:100] = bytes(100)
        return identifier

    monkeypatch.setattr(ingest, "identify", identify_then_change)
    first = commit(db, {"live": data})  # type: ignore[dict-item]
    monkeypatch.undo()
    assert Repository(db).verify().ok
    second = commit(db, {"again": before}, first.id)
    assert Repository(db)[second.id.hex()].files["again"].read() == before


def test_no_file_stays_open_after_an_error(db: Database, tmp_path: Path) -> None:
    from mstore.ops.opening import open_files
    from mstore.ops.scan import Scan

    for number in range(4):
        (tmp_path / f"f{number}").write_bytes(noise(600_000, number))
    found = Scan(tmp_path).files()

    def interrupted(done: int) -> None:
        raise KeyboardInterrupt

    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        with pytest.raises(KeyboardInterrupt):
            record(
                db, Target("default", "main", None, ()),
                Content(lambda: open_files(tmp_path, found, []), {}), Description("Ada"),
                progress=interrupted,
            )  # fmt: skip
    assert len(os.listdir("/proc/self/fd")) == before


def test_chunks_that_are_too_large_are_refused(repo: Repository) -> None:
    for size in (1 << 40, 1 << 63):
        with pytest.raises(InvalidInputError, match="too large"):
            repo.commit({"w": np.zeros(4)}, chunk_size=size)
    assert repo.commit({"w": np.zeros(4)}, chunk_size=64 << 20).load()
