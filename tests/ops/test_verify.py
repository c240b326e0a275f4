"""What `verify` finds, whom it says damage harms, and that nothing gives wrong bytes."""

import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from xxhash import xxh3_64_intdigest

from mstore.bulkindex import as_ids, merge
from mstore.chunkreader import ChunkReader, MemorySink, Wanted
from mstore.chunkstore import Session, store_index
from mstore.database import Database
from mstore.dtypes import BY_NAME
from mstore.errors import CorruptDataError, MstoreError, StorageError
from mstore.ids import Kind, identify
from mstore.index import ROW_SIZE, Index, assemble
from mstore.ingest import FileToStore
from mstore.layout import Strided, Tensor, View, cover, extents
from mstore.objects import Commit, FileEntry, Manifest, SegmentChunks, Snapshot
from mstore.ops import gc
from mstore.ops.commit import Content, Description, Target, record
from mstore.ops.history import log
from mstore.ops.refs import create_tag, delete_branch
from mstore.ops.stats import stats
from mstore.ops.verify import verify
from mstore.pack import RECORD_HEADER_SIZE, Record, pack_key, scan
from mstore.root import Refs
from mstore.rootlog import root_key
from mstore.sources import BufferSource
from mstore.storage.local import LocalStorage
from mstore.storage.memory import MemoryStorage

F32 = BY_NAME["f32"]
CHUNK = 256


class Broken(MemoryStorage):
    """A storage whose objects can be altered behind its back."""

    def copy(self) -> "Broken":
        other = Broken()
        other._objects = dict(self._objects)
        return other

    def names(self, prefix: str = "") -> list[str]:
        return sorted(key for key in self._objects if key.startswith(prefix))

    def alter(self, key: str, change: Callable[[bytes], bytes]) -> None:
        self._objects[key] = change(self._objects[key])

    def flip(self, key: str, position: int, mask: int = 1) -> None:
        data = bytearray(self._objects[key])
        data[position] ^= mask
        self._objects[key] = bytes(data)


def weights(seed: int, count: int = 150) -> bytes:
    return np.random.default_rng(seed).normal(size=count).astype("<f4").tobytes()


def file(path: str, *tensors: tuple[str, bytes], head: bytes = b"header") -> FileToStore:
    """A file of a header and tensors, one after the other."""
    content, placed = bytearray(head), []
    for name, raw in tensors:
        placed.append((len(content), Tensor(name, F32, (len(raw) // 4,))))
        content += raw
    source = BufferSource([memoryview(bytes(content))])
    return FileToStore(path, source, cover("test", len(content), placed))


def commit(db: Database, branch: str, files: list[FileToStore], model: str = "default") -> bytes:
    tip = db.refresh().refs(model).branches.get(branch)
    target = Target(model, branch, tip, (tip,) if tip else ())
    content = Content(lambda: files, {})
    metadata = {"loss": 0.5}
    said = Description("me", "", metadata=metadata)
    return record(db, target, content, said, threads=1, chunk_size=CHUNK).id


def read_file(db: Database, entry) -> bytes:
    manifest = db.manifest(entry.manifest)
    out = bytearray(manifest.size)
    lengths = np.array([length for _, length in manifest.chunks()], np.int64)
    wanted = Wanted(as_ids(manifest.chunk_ids()), np.cumsum(lengths) - lengths, lengths)
    ChunkReader(db, threads=1).read(wanted, MemorySink(memoryview(out)))
    return bytes(out)


def contents(db: Database) -> dict[tuple[bytes, str], bytes]:
    """Every file of every commit that refs reach."""
    return {
        (identifier, path): read_file(db, entry)
        for identifier, one in db.ancestry(db.root.tips())
        for path, entry in db.snapshot(one.snapshot).files.items()
    }


@pytest.fixture(scope="module")
def whole():
    """A repository of two models; it is copied before it is damaged."""
    storage = Broken()
    db = Database.create(storage, "me")
    same = ("same", weights(0))
    for version in range(3):
        commit(
            db,
            "main",
            [
                file("a/model.st", same, ("new", weights(version + 1))),
                file("b.bin", head=b"B" * 99),
            ],
        )
    commit(db, "main", [file("c.st", same, head=b"other")], model="second")
    create_tag(db, "default", "v1", db.root.refs("default").branches["main"], author="me")
    return storage, contents(db)


def reached(db: Database) -> set[bytes]:
    """The commits that refs still lead to."""
    found, waiting = set(), list(db.root.tips())
    while waiting:
        found.add(identifier := waiting.pop())
        with suppress(MstoreError):
            waiting.extend(set(db.commit(identifier).parents) - found)
    return found


def readable(storage: Broken, expected) -> dict[tuple[bytes, str], bytes | None]:
    """The files as they are read now; None where that raises one of our errors."""
    db = Database.open(storage)
    found = {}
    for identifier, path in expected:
        try:
            entry = db.snapshot(db.commit(identifier).snapshot).files[path]
            found[identifier, path] = read_file(db, entry)
        except MstoreError:
            found[identifier, path] = None
    return found


def check_report(storage: Broken, expected, report) -> None:
    """What the report names is what cannot be read, and all else is right."""
    lost = {commit for d in report.damages if d.file is None for commit in d.commits}
    harmed = {(commit, d.file) for d in report.damages if d.file for commit in d.commits}
    blind = any(d.what.startswith("index") for d in report.damages)
    still = reached(Database.open(storage))
    for (identifier, path), raw in readable(storage, expected).items():
        if raw is None:
            named = identifier in lost or (identifier, path) in harmed
            assert named or blind or identifier not in still
        else:
            assert raw == expected[identifier, path]
            # A wrong figure in an index need not keep a reader from what it is about.
            assert (identifier, path) not in harmed or blind
    assert set(report.reached_by) == lost | {identifier for identifier, _ in harmed}


def run_all(storage: Broken, expected):
    """Every reading operation: only our own errors. The full report, or None if nothing opens."""
    for operation in (
        lambda db: verify(db, quick=True, threads=1),
        lambda db: list(log(db, db.root.tips(), sort="size")),
        stats,
        lambda db: gc.collect(db, author="me", dry_run=True),
    ):
        try:
            operation(Database.open(storage))
        except MstoreError:
            continue
    try:
        report = verify(Database.open(storage), quick=False, threads=1)
    except MstoreError:
        return None
    check_report(storage, expected, report)
    return report


def positions(storage: Broken, prefix: str, step: int):
    """Every `step`th byte of all objects, another start for each; and the first of each."""
    start = 0
    for key in storage.names(prefix):
        size = len(storage.get(key))
        for position in range(start % step, size, step):
            yield key, position
        start += 7


def unused(storage: Broken) -> set[str]:
    """Indexes that the newest root does not name."""
    live = {ref.key for ref in Database.open(storage).root.all_indexes()}
    return set(storage.names("indexes/")) - live


def is_harmless(storage: Broken, key: str, position: int) -> bool:
    """Whether nothing at all depends on this byte, or only how a payload is written.

    Some bits of compressed data mean nothing: the payload decodes to what its hash stands for.
    """
    if key in unused(storage):
        return True
    records = scan(storage, key.removeprefix("packs/")) if key.startswith("packs/") else ()
    return any(
        found.entry.offset + RECORD_HEADER_SIZE
        <= position
        < found.entry.offset + found.entry.record_size
        for found in records
    )


def test_a_whole_repository_is_clean(whole):
    storage, expected = whole
    for quick in (True, False):
        report = verify(Database.open(storage), quick=quick)
        assert report.ok
        assert report.reached_by == {}
        assert (report.quick, report.root) == (quick, 6)
        assert (report.commits, report.files, report.tensors) == (4, 5, 7)
        assert report.packs == len(storage.names("packs/"))
        assert set(readable(storage, expected).values()) == set(expected.values())


@pytest.mark.parametrize(("prefix", "step"), [("roots/", 29), ("packs/", 53), ("indexes/", 31)])
def test_a_flipped_bit_is_found_or_harmless(whole, prefix, step):
    storage, expected = whole
    for number, (key, position) in enumerate(positions(storage, prefix, step)):
        broken = storage.copy()
        broken.flip(key, position, 1 << number % 8)
        report = run_all(broken, expected)
        found = report is None or not report.ok
        assert found or is_harmless(storage, key, position), (key, position)


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data[: len(data) // 2],
        lambda data: data[:-1],
        lambda data: b"",
        lambda data: bytes(len(data)),
        lambda data: data[:30] + bytes(20) + data[50:],
        lambda data: data + b"more",
        lambda data: data[1:],
    ],
    ids=["half", "one short", "empty", "zeros", "zeros inside", "longer", "shifted"],
)
def test_a_mangled_object_is_found_or_harmless(whole, change):
    storage, expected = whole
    harmless = unused(storage)
    for key in storage.names():
        broken = storage.copy()
        broken.alter(key, change)
        report = run_all(broken, expected)
        if report is not None and report.ok and key not in harmless:
            assert key.startswith("packs/")  # what follows the last record is never read
            assert len(broken.get(key)) > len(storage.get(key))
            assert readable(broken, expected) == expected


def test_a_missing_object_is_found_or_harmless(whole):
    storage, expected = whole
    for key in storage.names():
        broken = storage.copy()
        broken.delete(key)
        report = run_all(broken, expected)
        # Without the newest root the one before it counts, whole and with a version less.
        assert not report.ok or key in unused(storage) or key == root_key(6)


def test_swapped_objects_are_found(whole):
    storage, expected = whole
    for prefix in ("roots/", "packs/d", "packs/m", "indexes/"):
        keys = storage.names(prefix)
        for one, other in pairwise(keys):
            broken = storage.copy()
            first, second = storage.get(one), storage.get(other)
            broken.alter(one, lambda _, new=second: new)
            broken.alter(other, lambda _, new=first: new)
            report = run_all(broken, expected)
            if report is not None and report.ok:  # two indexes of one kind and one size
                assert prefix == "indexes/"
                assert readable(broken, expected) == expected


def chunk_at(db: Database, commit_id: bytes, path: str, number: int):
    """Where chunk `number` of a file lies."""
    entry = db.snapshot(db.commit(commit_id).snapshot).files[path]
    return db.find(Kind.CHUNK, db.manifest(entry.manifest).chunk_ids()[number * 32 :][:32])


def branch(db: Database, name: str = "main", model: str = "default") -> bytes:
    return db.root.refs(model).branches[name]


def named(report):
    """What is harmed: for each thing the files and tensors, with the number of versions."""
    return [(d.what.split()[0], d.file, d.tensor, len(d.commits)) for d in report.damages]


def test_damage_is_told_by_version_file_and_tensor(whole):
    broken = whole[0].copy()
    db = Database.open(broken)
    shared = chunk_at(db, branch(db), "a/model.st", 1)
    single = chunk_at(db, branch(db), "a/model.st", 4)
    header = chunk_at(db, branch(db), "a/model.st", 0)
    for entry in (shared, single, header):
        broken.flip(pack_key(entry.pack), entry.offset + entry.record_size - 1)
    assert verify(db, quick=True).ok
    report = verify(db, quick=False)
    found = {(d.what, d.file, d.tensor): d.commits for d in report.damages}
    main = [entry.id for entry in log(db, [branch(db)])]
    second = branch(db, model="second")
    assert found == {
        (f"chunk {shared.id.hex()[:12]}", "a/model.st", "same"): tuple(main),
        (f"chunk {shared.id.hex()[:12]}", "c.st", "same"): (second,),
        (f"chunk {single.id.hex()[:12]}", "a/model.st", "new"): (main[0],),
        (f"chunk {header.id.hex()[:12]}", "a/model.st", None): tuple(main),
    }
    wheres = {d.where for d in report.damages if d.what.endswith(shared.id.hex()[:12])}
    assert wheres == {f"{pack_key(shared.pack)} at byte {shared.offset}"}
    assert {d.problem for d in report.damages} == {"is damaged"}
    assert report.reached_by[second] == "second/main"
    assert {report.reached_by[one] for one in main} <= {"default/main", "default/v1"}


def test_damage_is_told_by_the_views_it_harms():
    broken = Broken()
    raw = np.random.default_rng(0).bytes(4 * CHUNK)
    views = [
        View(Tensor("front", F32, (8,)), Strided(0, (4,))),
        View(Tensor("across", F32, (2, 8)), Strided(CHUNK - 8, (16, 4))),
        View(Tensor("back", F32, (8,)), Strided(3 * CHUNK, (4,))),
    ]
    storage = (0, Tensor("storage", F32, (CHUNK,)))
    layout = cover("test", len(raw), [storage], hidden=["storage"], views=views)
    commit(
        Database.create(broken, "Ada"),
        "main",
        [FileToStore("f", BufferSource([memoryview(raw)]), layout)],
    )
    db = Database.open(broken)
    for number, harmed in enumerate([{"front", "across"}, {"across"}, {None}, {"back"}]):
        place = chunk_at(db, branch(db), "f", number)
        broken.flip(pack_key(place.pack), place.offset + place.record_size - 1)
        report = verify(db, quick=False)
        assert {damage.tensor for damage in report.damages} == harmed
        assert report.tensors == 3
        broken.flip(pack_key(place.pack), place.offset + place.record_size - 1)


def test_views_that_lie_across_each_other_are_told_whatever_their_order(monkeypatch):
    rng = np.random.default_rng(0)
    raw = rng.bytes(64 * CHUNK)
    views, holds = [], []
    for number in range(200):
        # Here and there a long one, so that those before and after it lie inside of it.
        count = int(rng.integers(1, 4000 if number % 20 == 0 else 200))
        start = int(rng.integers(0, len(raw) - 4 * count))
        views.append(View(Tensor(f"v{number}", F32, (count,)), Strided(start, (4,))))
        holds.append((start, start + 4 * count))
    storage = (0, Tensor("storage", F32, (len(raw) // 4,)))
    layout = cover("test", len(raw), [storage], hidden=["storage"], views=views)
    broken = Broken()
    source = BufferSource([memoryview(raw)])
    db = Database.create(broken, "Ada")
    commit(db, "main", [FileToStore("f", source, layout)])
    asked = []
    monkeypatch.setattr(
        "mstore.ops.contents.extents", lambda view: asked.append(view) or extents(view)
    )
    harmed: set[str] = set()
    for number in range(0, 64, 5):
        place = chunk_at(db, branch(db), "f", number)
        broken.flip(pack_key(place.pack), place.offset + place.record_size - 1)
        chunk = number * CHUNK
        harmed |= {
            f"v{view}"
            for view, (start, end) in enumerate(holds)
            if start < chunk + CHUNK and chunk < end
        }
        asked.clear()
        report = verify(db, quick=False)
        assert {damage.tensor for damage in report.damages} == harmed
        # However many chunks are damaged, each view is looked at once.
        assert len(asked) == len(views)


def test_damage_shared_by_many_versions_is_one_entry():
    storage = Broken()
    db = Database.create(storage, "me")
    files = [file("m", ("w", weights(1)))]
    ids = [commit(db, "main", [*files, file("n", head=b"%d" % number)]) for number in range(40)]
    entry = chunk_at(db, ids[0], "m", 1)
    storage.flip(pack_key(entry.pack), entry.offset + 50)
    (damage,) = verify(db, quick=False).damages
    assert damage.commits == tuple(reversed(ids))
    assert (damage.file, damage.tensor) == ("m", "w")


def test_records_behind_damage_are_checked_too(whole):
    """Damage does not hide what lies behind it in the same pack."""
    broken = whole[0].copy()
    db = Database.open(broken)
    first = chunk_at(db, branch(db), "a/model.st", 4)
    last = chunk_at(db, branch(db), "a/model.st", 6)
    assert first.pack == last.pack
    broken.flip(pack_key(first.pack), first.offset + 8)  # its length
    broken.flip(pack_key(last.pack), last.offset + 70)
    found = {d.what for d in verify(db, quick=False).damages}
    assert found == {f"chunk {entry.id.hex()[:12]}" for entry in (first, last)}


def test_a_missing_pack_is_one_thing(whole):
    broken = whole[0].copy()
    db = Database.open(broken)
    entry = chunk_at(db, branch(db), "a/model.st", 4)
    broken.delete(pack_key(entry.pack))
    for quick in (True, False):
        report = verify(db, quick=quick)
        assert named(report) == [("pack", "a/model.st", "new", 1)]
        assert report.damages[0].problem == "is missing"
        assert report.damages[0].where == pack_key(entry.pack)


def test_a_pack_cut_short_harms_what_lay_behind_the_cut(whole):
    broken = whole[0].copy()
    db = Database.open(broken)
    entry = chunk_at(db, branch(db), "a/model.st", 1)
    broken.alter(pack_key(entry.pack), lambda data: data[: entry.offset + 10])
    report = verify(db, quick=True)
    assert {d.problem for d in report.damages} == {"is cut short"}
    assert ("pack", "a/model.st", "same", 3) in named(report)
    assert ("pack", "a/model.st", None, 3) not in named(report)  # the header lies before it


def test_missing_metadata_is_told_by_what_needs_it(whole):
    storage = whole[0]
    db = Database.open(storage)
    newest, middle, oldest = (entry.id for entry in log(db, [branch(db)]))
    snapshot = db.commit(middle).snapshot
    manifest = db.snapshot(snapshot).files["a/model.st"].manifest
    for kind, identifier, file_name, commits in (
        (Kind.COMMIT, middle, None, (newest, middle)),
        (Kind.SNAPSHOT, snapshot, None, (middle,)),
        (Kind.MANIFEST, manifest, "a/model.st", (middle,)),
    ):
        broken = storage.copy()
        entry = db.find(kind, identifier)
        broken.flip(pack_key(entry.pack), entry.offset + 60)
        for quick in (True, False):
            (damage,) = verify(Database.open(broken), quick=quick).damages
            assert damage.what == f"{kind.name.lower()} {identifier.hex()[:12]}"
            assert damage.where == f"{pack_key(entry.pack)} at byte {entry.offset}"
            assert set(damage.commits) == set(commits)
            assert (damage.file, damage.tensor) == (file_name, None)
        assert oldest not in damage.commits


def test_a_lost_commit_cuts_the_history_of_all_after_it(whole):
    broken = whole[0].copy()
    db = Database.open(broken)
    main = [entry.id for entry in log(db, [branch(db)])]
    entry = db.find(Kind.COMMIT, main[2])
    broken.flip(pack_key(entry.pack), entry.offset + 60)
    report = verify(Database.open(broken), quick=True)
    assert [d.commits for d in report.damages] == [tuple(main)]
    assert report.notes == verify(db, quick=True).notes


def test_what_lay_behind_a_lost_commit_can_be_found_again(whole):
    broken = whole[0].copy()
    db = Database.open(broken)
    main = [entry.id for entry in log(db, [branch(db)])]
    entry = db.find(Kind.COMMIT, main[0])
    broken.flip(pack_key(entry.pack), entry.offset + 60)
    report = verify(Database.open(broken), quick=True)
    stranded = [note for note in report.notes if "which no ref reaches" in note]
    (note,) = stranded
    assert note.endswith(f"mstore branch NAME {main[1].hex()[:12]}")


def test_history_that_gc_cut_is_whole():
    storage = Broken()
    db = Database.create(storage, "me")
    for seed in range(4):
        commit(db, "main", [file("f", ("w", weights(seed)))])
    gc.collect(db, author="me", keep_last=2)
    report = verify(db, quick=False)
    assert report.ok
    assert report.commits == 2


def test_of_two_copies_the_one_that_is_read_counts():
    """Two writers at once may both store a chunk; the index listed last is looked at first."""
    forge = Forge()
    identifier = identify(Kind.CHUNK, b"content")
    record = forge.chunk(identifier, b"content")
    with Session(Database.open(forge.storage)) as slow:
        slow.append(record)
        made = forge.publish([record], [opaque((identifier, 7))])
        slow.publish(lambda root: root, action="", author="")
    old, new = (
        index.find(identifier) for index in reversed(Database.open(forge.storage).chunk_indexes())
    )
    for entry, harmed in ((old, ()), (new, (made,))):
        whole = forge.storage
        forge.storage = whole.copy()
        forge.storage.flip(pack_key(entry.pack), entry.offset + entry.record_size - 1)
        (damage,) = forge.verify(quick=False).damages
        assert damage.where == f"{pack_key(entry.pack)} at byte {entry.offset}"
        assert damage.commits == harmed
        forge.storage = whole


def test_records_that_changed_places_are_told():
    """Each is sound in itself, but not the one that the index says is there."""
    forge = Forge()
    raws = [b"one", b"two"]
    ids = [identify(Kind.CHUNK, raw) for raw in raws]
    records = [forge.chunk(one, raw) for one, raw in zip(ids, raws, strict=True)]
    forge.publish(records, [opaque((ids[0], 3), (ids[1], 3))])
    entry = forge.db.find(Kind.CHUNK, ids[0])
    start, size = entry.offset, entry.record_size
    forge.storage.alter(
        pack_key(entry.pack),
        lambda data: data[:start] + data[start + size :] + data[start : start + size],
    )
    assert {d.what for d in forge.verify(quick=False).damages} == {
        f"chunk {one.hex()[:12]}" for one in ids
    }


def test_a_record_of_another_kind_is_told():
    forge = Forge()
    raw = b"\x80"
    identifier = identify(Kind.SNAPSHOT, raw)
    forged = Record(identifier, Kind.SNAPSHOT, 0, 1, xxh3_64_intdigest(raw), raw)
    forge.publish([forged], [])
    (damage,) = forge.verify(quick=False).damages
    assert damage.what == f"snapshot {identifier.hex()[:12]}"
    assert "kind 3" in damage.problem


def test_a_missing_index_is_told_with_what_cannot_be_found(whole):
    broken = whole[0].copy()
    db = Database.open(broken)
    lost = db.root.indexes[-1]
    broken.delete(lost.key)
    report = verify(db, quick=True)
    assert report.damages[0].what == f"index {lost.name}"
    assert report.damages[0].commits == ()
    assert {d.where for d in report.damages[1:]} == {"indexes/"}
    assert all(d.commits and d.file for d in report.damages[1:])
    assert report.notes == ()  # nobody knows which packs the lost index named


def test_roots(whole):
    storage = whole[0]
    broken = storage.copy()
    broken.delete(root_key(3))
    broken.flip(root_key(2), 30)
    report = verify(Database.open(broken), quick=True)
    assert [(d.what, d.where) for d in report.damages] == [
        ("root 2", root_key(2)),
        ("root 3", root_key(3)),
    ]
    assert report.commits == 4


def test_a_root_that_another_took_the_place_of(whole):
    """It is sound in itself, but not the one that its successor follows on."""
    other = Broken()
    db = Database.create(other, "somebody else")
    create_root = other.get(root_key(1))
    assert db.root.number == 1
    broken = whole[0].copy()
    broken.alter(root_key(1), lambda _: create_root)
    (damage,) = verify(Database.open(broken), quick=True).damages
    assert damage.what == "root 2"


def test_only_a_damaged_newest_root_raises(whole):
    broken = whole[0].copy()
    db = Database.open(broken)
    broken.flip(root_key(6), 40)
    with pytest.raises(MstoreError, match="root 6"):
        verify(db, quick=True)


def test_notes_are_harmless(whole):
    storage, _ = whole
    copy = storage.copy()
    copy.put("packs/d" + "0" * 32, [b"left by a killed writer"])
    copy.put("indexes/" + "0" * 32, [b"so was this"])
    report = verify(Database.open(copy), quick=False)
    assert report.ok
    assert report.notes[0] == "1 packs that no index names (23 bytes), left for gc to remove"
    assert len(report.notes) == 2
    assert str(11 + sum(len(copy.get(key)) for key in unused(storage))) in report.notes[1]


def test_progress_counts_what_is_read(whole):
    storage, _ = whole
    for quick in (True, False):
        done: list[int] = []
        report = verify(Database.open(storage), quick=quick, progress=done.append)
        assert sum(done) == report.bytes
        assert all(count >= 0 for count in done)
    assert report.bytes > sum(len(storage.get(key)) for key in storage.names("packs/d"))


def test_gc_and_merging_refuse_a_damaged_index(whole):
    """A flipped bit there would cost sound packs, or get a checksum that is right."""
    broken = whole[0].copy()
    db = Database.open(broken)
    ref = db.root.indexes[0]
    broken.flip(ref.key, ref.size - 30)
    before = broken.names("packs/")
    with pytest.raises(CorruptDataError, match=ref.name):
        gc.collect(db, author="me")
    assert broken.names("packs/") == before
    indexes = db.chunk_indexes()
    with pytest.raises(CorruptDataError, match=ref.name):
        merge(indexes, [None] * len(indexes))


class Forge:
    """Writes what no sound program would: each record with its checksums right."""

    def __init__(self) -> None:
        self.storage = Broken()
        self.db = Database.create(self.storage, "me")

    def chunk(self, identifier: bytes, raw: bytes, codec: int = 0) -> Record:
        return Record(identifier, Kind.CHUNK, codec, len(raw), xxh3_64_intdigest(raw), raw)

    def publish(self, records, segments, *, size: int | None = None) -> bytes:
        """A commit of one file "f" of these segments; its id."""
        with Session(self.db) as session:
            for record in records:
                session.append(record)
            manifest = Manifest("test", sum(s.length for s in segments), tuple(segments))
            entry = FileEntry(session.add_object(manifest), manifest.size if size is None else size)
            snapshot = session.add_object(Snapshot({"f": entry}))
            made = session.add_object(Commit(snapshot, (), "me", 0, 0, "", {}))
            refs = Refs({"main": made})
            session.publish(lambda root: root.with_refs("m", refs), action="", author="")
        return made

    def verify(self, *, quick: bool):
        return verify(Database.open(self.storage), quick=quick, threads=1)


def opaque(*chunks: tuple[bytes, int]) -> SegmentChunks:
    lengths = tuple(length for _, length in chunks)
    return SegmentChunks(sum(lengths), b"".join(i for i, _ in chunks), lengths=lengths)


def test_content_under_a_wrong_name_is_found_by_hashing():
    forge = Forge()
    wrong = identify(Kind.CHUNK, b"something else")
    made = forge.publish([forge.chunk(wrong, b"content")], [opaque((wrong, 7))])
    assert forge.verify(quick=True).ok
    (damage,) = forge.verify(quick=False).damages
    assert (damage.file, damage.commits) == ("f", (made,))
    assert "id" in damage.problem


def test_metadata_under_a_wrong_name_is_found_by_the_quick_check_too():
    forge = Forge()
    right = Manifest("test", 0, ()).encode()
    identifier = identify(Kind.MANIFEST, b"something else")
    checksum = xxh3_64_intdigest(right)
    forged = Record(identifier, Kind.MANIFEST, 0, len(right), checksum, right)
    with Session(forge.db) as session:
        session._metadata.full().append(forged)
        snapshot = session.add_object(Snapshot({"f": FileEntry(identifier, 0)}))
        made = session.add_object(Commit(snapshot, (), "me", 0, 0, "", {}))
        session.publish(
            lambda root: root.with_refs("m", Refs({}, {"v": made})), action="", author=""
        )
    for quick in (True, False):
        report = forge.verify(quick=quick)
        (damage,) = report.damages
        assert (damage.what.split()[0], damage.file) == ("manifest", "f")
        assert report.reached_by == {made: "m/v"}


def test_an_unknown_codec_is_told():
    forge = Forge()
    identifier = identify(Kind.CHUNK, b"content")
    forge.publish([forge.chunk(identifier, b"content", codec=99)], [opaque((identifier, 7))])
    assert forge.verify(quick=True).ok
    (damage,) = forge.verify(quick=False).damages
    assert "codec 99" in damage.problem


def test_lengths_that_do_not_agree():
    forge = Forge()
    identifier = identify(Kind.CHUNK, b"content")
    forge.publish([forge.chunk(identifier, b"content")], [opaque((identifier, 8))])
    (damage,) = forge.verify(quick=True).damages
    assert damage.what == f"chunk {identifier.hex()[:12]}"
    assert damage.problem == "has not the length that the file needs"

    forge = Forge()
    forge.publish([forge.chunk(identifier, b"content")], [opaque((identifier, 7))], size=8)
    (damage,) = forge.verify(quick=True).damages
    assert damage.what.startswith("manifest")
    assert "7 bytes where 8" in damage.problem


def test_chunks_in_no_index_are_told_together():
    forge = Forge()
    ids = [identify(Kind.CHUNK, b"%d" % number) for number in range(3)]
    forge.publish([], [opaque(*((one, 9) for one in ids))])
    (damage,) = forge.verify(quick=True).damages
    assert damage.what == f"chunk {ids[0].hex()[:12]} and 2 more"
    assert damage.problem == "is in no index"


def test_a_chunk_whose_base_is_damaged_missing_or_too_deep(coded, monkeypatch):
    """What harms a base harms what is coded against it, and so on."""
    monkeypatch.setattr(Session, "_check_relied", lambda *_: None)
    forge = Forge()
    raws = [b"base", b"one!", b"two!", b"lost", b"orphan", b"here", b"there"]
    base, one, two, lost, orphan, here, there = raws
    records = [
        coded(base),
        coded(one, base, 1),
        coded(two, one, 2),
        coded(orphan[:4], lost, 1),
        coded(here, there[:4], 2),
        coded(there[:4], here, 2),
    ]
    ids = [record.id for record in records]
    forge.publish(records, [opaque((ids[number], 4)) for number in (2, 3, 4)])
    names = [f"chunk {one.hex()[:12]}" for one in ids]
    known = {
        names[3]: "the chunk that it is coded against is missing",
        names[4]: "the chunk that it is coded against is coded against others at least as deep",
        names[5]: "the chunk that it is coded against is coded against others at least as deep",
    }
    for quick in (True, False):
        damages = forge.verify(quick=quick).damages
        assert {d.what: d.problem for d in damages} == known
        assert {d.what for d in damages if d.file == "f"} == {names[3], names[4]}
    (index,) = forge.db.chunk_indexes()
    found = index.find(ids[0])
    forge.storage.flip(pack_key(found.pack), found.offset + found.record_size - 1)
    damages = forge.verify(quick=False).damages
    assert {d.what for d in damages if d.file == "f"} == {names[0], names[3], names[4]}
    assert {d.what for d in damages} == {names[0], *known}
    forge.storage.flip(pack_key(found.pack), found.offset + found.record_size - 1)
    found = index.find(ids[1])
    forge.storage.flip(pack_key(found.pack), found.offset + found.record_size - 1)
    damages = forge.verify(quick=False).damages
    assert {d.what for d in damages if d.file == "f"} == {names[1], names[3], names[4]}


def test_rows_that_point_nowhere():
    """An index that is wrong in itself, under a checksum that is right."""
    forge = Forge()
    raws = [b"one", b"two"]
    ids = [identify(Kind.CHUNK, raw) for raw in raws]
    made = forge.publish(
        [forge.chunk(one, raw) for one, raw in zip(ids, raws, strict=True)],
        [opaque((ids[0], 3)), opaque((ids[1], 3))],
    )
    (index,) = forge.db.chunk_indexes()
    for field, position in (("pack", 32), ("base", 44)):
        rows = bytearray(index.rows)
        rows[position] = 9
        parts = assemble(index.packs, len(index), index.keys.cast("B"), rows, index.bases)
        bad = store_index(forge.storage, parts)
        root = forge.db.publish(
            lambda root, ref=bad: replace(root, indexes=(ref,)), action=field, author="me"
        )
        assert root.indexes == (bad,)
        for quick in (True, False):
            damages = forge.verify(quick=quick).damages
            assert {d.what for d in damages} == {f"index {bad.name}"}
            assert [d.commits for d in damages if d.file == "f"] == [(made,)]
        with pytest.raises(MstoreError):
            stats(Database.open(forge.storage))


class Failing(Broken):
    """Reads that touch one byte of one object fail, as on a dying disk."""

    def __init__(self, whole: Broken, key: str, position: int) -> None:
        super().__init__()
        self._objects = dict(whole._objects)
        self.bad = (key, position)

    def get(self, key: str, start: int = 0, length: int | None = None) -> bytes:
        stop = start + length if length is not None else len(self._objects[key])
        if key == self.bad[0] and start <= self.bad[1] < stop:
            raise StorageError(f"cannot read {key}: input/output error")
        return super().get(key, start, length)


def test_a_place_that_cannot_be_read_condemns_one_record(whole):
    db = Database.open(whole[0])
    entry = chunk_at(db, branch(db), "a/model.st", 1)
    failing = Failing(whole[0], pack_key(entry.pack), entry.offset + 80)
    (one, other) = verify(Database.open(failing), quick=False).damages
    assert one.what == other.what == f"chunk {entry.id.hex()[:12]}"
    assert "input/output error" in one.problem


def test_a_gc_meanwhile_is_no_damage():
    """The first look finds what gc has just removed; the second goes by the newer root."""

    class Meanwhile(Broken):
        armed = False

        def list(self, prefix):
            if self.armed and prefix == "packs/":
                self.armed = False
                gc.collect(Database.open(self), author="gc")
            return super().list(prefix)

    storage = Meanwhile()
    db = Database.create(storage, "me")
    commit(db, "main", [file("f", ("w", weights(1)))])
    commit(db, "dead", [file("f", ("w", weights(2)))])
    delete_branch(db, "default", "dead", author="me")
    before = set(storage.names())
    storage.armed = True
    report = verify(db, quick=False)
    assert report.ok
    assert before - set(storage.names())
    assert report.root == db.log.newest().number


@pytest.mark.parametrize("what", ["directory", "link", "pipe"])
def test_something_else_in_the_place_of_an_object(tmp_path, what):
    db = Database.create(LocalStorage(tmp_path), "me")
    made = commit(db, "main", [file("f", ("w", weights(1)))])
    whole = verify(db, quick=False)
    assert whole.ok
    for key in (pack_key(chunk_at(db, made, "f", 0).pack), db.root.metadata_indexes[0].key):
        path = tmp_path / key
        kept = path.read_bytes()
        path.unlink()
        if what == "directory":
            path.mkdir()
        elif what == "link":
            path.symlink_to("/etc/passwd")
        else:
            os.mkfifo(path)
        report = verify(Database.open(LocalStorage(tmp_path)), quick=False)
        assert {commit for d in report.damages for commit in d.commits} == {made}
        path.rmdir() if what == "directory" else path.unlink()
        path.write_bytes(kept)


def test_a_directory_is_checked_like_memory(whole, tmp_path):
    """The same flips, through files and mapped indexes."""
    storage, expected = whole
    for key in storage.names():
        (tmp_path / key).parent.mkdir(exist_ok=True)
        (tmp_path / key).write_bytes(storage.get(key))
    for key, position in positions(storage, "", 331):
        kept = storage.get(key)
        data = bytearray(kept)
        data[position] ^= 0xFF
        (tmp_path / key).write_bytes(data)
        report = run_all(LocalStorage(tmp_path), expected)
        found = report is None or not report.ok
        assert found or is_harmless(storage, key, position), (key, position)
        (tmp_path / key).write_bytes(kept)


def test_many_threads_find_the_same(whole):
    broken = whole[0].copy()
    for number, key in enumerate(broken.names("packs/")):
        broken.flip(key, 40 + number)
    reports = [verify(Database.open(broken), quick=False, threads=n) for n in (1, 4)]
    assert reports[0] == reports[1]
    assert len(reports[0].damages) >= len(broken.names("packs/"))


def test_an_offset_out_of_this_world_is_found(whole):
    """The highest bit of an offset, which makes it greater than any signed number."""
    storage, expected = whole
    for key in storage.names("indexes/"):
        index = Index(key, memoryview(storage.get(key)))
        start = len(storage.get(key)) - len(index.bases) - len(index.rows)
        for row in range(index.count):
            broken = storage.copy()
            broken.flip(key, start + row * ROW_SIZE + 31, 1 << 7)
            report = run_all(broken, expected)
            assert report is None or not report.ok or is_harmless(storage, key, start)
