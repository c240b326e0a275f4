"""Repacking: what becomes smaller or shallower, that nothing else changes, and being interrupted."""

from pathlib import Path
from threading import Event, Thread

import numpy as np
import pytest

from mstore import chunkstore
from mstore.bulkindex import as_ids, columns
from mstore.database import Database
from mstore.errors import CorruptDataError, StorageError
from mstore.ids import Id, Kind, identify
from mstore.index import Index, encode_entries
from mstore.ops import repack as repack_module
from mstore.ops import republish
from mstore.ops.repack import is_fair
from mstore.ops.replan import Plan
from mstore.ops.republish import Choice, stored_sizes
from mstore.ops.rewrite import Limits, Shelf
from mstore.ops.table import Table
from mstore.pack import PackWriter, Record
from mstore.repository import Repository
from mstore.snapshot import Snapshot
from mstore.storage.memory import MemoryStorage

Weights = dict[str, np.ndarray]

CHUNK = 64 << 10


def weights(seed: int = 0, rows: int = 50) -> Weights:
    random = np.random.default_rng(seed)
    return {
        name: (random.standard_normal((rows, 300)) * 0.02).astype(np.float32) for name in ("a", "b")
    }


def trained(before: Weights, seed: int, step: float = 1e-5) -> Weights:
    """The weights after some steps of training."""
    random = np.random.default_rng(seed)
    return {
        name: (array + step * random.standard_normal(array.shape)).astype(np.float32)
        for name, array in before.items()
    }


class History:
    """A repository and what was committed to it."""

    def __init__(self, repo: Repository, chunk_size: int = CHUNK) -> None:
        self.repo = repo
        self.chunk_size = chunk_size
        self.versions: dict[str, Weights] = {}

    def commit(self, content: Weights, branch: str = "main", parent: str | None = None) -> Snapshot:
        number = len(self.versions)
        made = self.repo.commit(
            content,
            f"n{number}",
            branch=branch,
            parent=parent,
            threads=1,
            chunk_size=self.chunk_size,
        )
        self.versions[made.id] = content
        return made

    def line(self, count: int) -> "History":
        content = weights()
        for number in range(count):
            self.commit(content)
            content = trained(content, number + 1)
        return self

    def check(self) -> None:
        """Every version is as it was committed, and nothing is damaged."""
        repo = Repository(Database.open(self.repo.database.storage))
        for identifier, content in self.versions.items():
            found = repo[identifier].load()
            assert all(found[name].tobytes() == content[name].tobytes() for name in content)
        report = repo.verify()
        assert report.ok, report.damages


@pytest.fixture
def history(repo: Repository) -> History:
    return History(repo)


def objects(repo: Repository) -> dict[str, int]:
    storage = repo.database.storage
    folders = ("packs/", "indexes/", "roots/")
    return {info.key: info.size for folder in folders for info in storage.list(folder)}


def size(repo: Repository) -> int:
    return sum(size for key, size in objects(repo).items() if not key.startswith("roots/"))


def depths(repo: Repository, version: str) -> set[int]:
    """The depths of the records of a version's tensors."""
    db = repo.database
    db.refresh()
    table = Table(db.chunk_indexes())
    snapshot = db.snapshot(db.commit(bytes.fromhex(repo[version].id)).snapshot)
    found: set[int] = set()
    for file in snapshot.files.values():
        for _, segment in db.manifest(file.manifest).tensors():
            found.update(table.depth[table.find(as_ids(segment.ids))].tolist())
    return found


def bases_of(repo: Repository, version: str) -> list[Id | None]:
    """What the chunks of a version's tensors are coded against."""
    db = repo.database
    db.refresh()
    table = Table(db.chunk_indexes())
    snapshot = db.snapshot(db.commit(bytes.fromhex(repo[version].id)).snapshot)
    ids = b"".join(db.manifest(file.manifest).chunk_ids() for file in snapshot.files.values())
    return [table.entry(row).base for row in table.find(as_ids(ids)).tolist()]


def test_the_newest_version_becomes_the_shallow_one(history: History) -> None:
    history.line(5)
    repo = history.repo
    log = [one.id for one in repo.log()]
    assert (depths(repo, "main"), depths(repo, "main~4")) == ({1}, {0}) or depths(repo, "main") > {
        0
    }
    before = size(repo)
    report = repo.repack()
    assert (report.depth_after, report.worthwhile, report.estimated) == (0, True, False)
    assert depths(repo, "main") == {0}
    assert min(depths(repo, "main~4")) > 0
    assert report.after == size(repo) < 1.01 * before
    assert report.shallower >= 1
    assert report.deeper >= 1
    assert [one.id for one in repo.log()] == log
    history.check()


def test_again_there_is_nothing_to_gain(history: History) -> None:
    history.line(4)
    history.repo.repack()
    before = objects(history.repo)
    report = history.repo.repack()
    assert not report.worthwhile
    assert (report.gained, report.packs, report.recoded) == (0, 0, 0)
    assert objects(history.repo) == before


def test_an_empty_repository(repo: Repository) -> None:
    report = repo.repack()
    assert (report.worthwhile, report.newest, report.versions) == (False, None, 0)


def test_a_dry_run_writes_nothing(history: History) -> None:
    history.line(4)
    before = objects(history.repo)
    planned = history.repo.repack(dry_run=True)
    assert objects(history.repo) == before
    assert planned.estimated
    assert planned.worthwhile
    done = history.repo.repack()
    assert (planned.depth_before, planned.depth_after) == (done.depth_before, done.depth_after)
    assert (planned.shallower, planned.deeper) == (done.shallower, done.deeper)
    assert abs(planned.after - done.after) < 0.02 * done.before


def test_what_a_sample_promises_is_about_what_comes(
    history: History, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = weights(rows=600)
    for number in range(4):
        history.repo.commit(content, chunk_size=8192)
        content = trained(content, number, 1e-4)
    sampled = history.repo.repack(dry_run=True)
    monkeypatch.setattr(repack_module, "_SAMPLE", 1 << 30)
    exact = history.repo.repack(dry_run=True)
    assert sampled.after != exact.after
    assert abs(sampled.after - exact.after) < 0.02 * exact.before
    assert abs(exact.after - history.repo.repack().after) < 0.01 * exact.before


def test_bases_that_come_later_make_it_smaller(repo: Repository) -> None:
    """Two models of one origin, which is committed last and under another name."""
    origin = weights()
    one, two = trained(origin, 1), trained(origin, 2)
    for name, content in (("one", one), ("two", two), ("origin", origin)):
        random = np.random.default_rng(len(name))
        noise = {"c": (random.standard_normal(9) * 0.02).astype(np.float32)}
        repo.model(name).commit(content | noise, chunk_size=CHUNK)
    before = size(repo)
    report = repo.repack()
    assert report.after == size(repo) <= 1.01 * before
    for name, content in (("one", one), ("two", two), ("origin", origin)):
        np.testing.assert_array_equal(repo.model(name)["main"].load()["a"], content["a"])


def test_two_fine_tunes_keep_their_base(history: History) -> None:
    """The second is not stored on its own, and both together take no more than before."""
    base = weights()
    first = history.commit(base)
    for branch in ("one", "two", "three"):
        history.commit(trained(base, len(branch), 1e-4), branch, first.id)
    before, old = size(history.repo), bases_of(history.repo, "one")
    report = history.repo.repack()
    assert report.after < 1.01 * before
    assert bases_of(history.repo, "one") == old
    shallow = [branch for branch in ("one", "two", "three") if 0 in depths(history.repo, branch)]
    assert shallow == ["three"]
    history.check()


def test_relatives_of_other_names_keep_their_base(repo: Repository) -> None:
    """Nothing but what they are coded against tells that they belong together."""
    origin = weights(rows=400)
    repo.model("origin").commit(origin)
    for model in ("one", "two", "three"):
        tuned = trained(origin, len(model), 1e-4)
        repo.model(model).commit({f"{model}.{name}": array for name, array in tuned.items()})
        assert depths(repo.model(model), "main") == {1}
    before = size(repo)
    report = repo.repack()
    assert report.after < 1.01 * before
    assert depths(repo.model("three"), "main") == {0}
    assert depths(repo.model("one"), "main") == depths(repo.model("two"), "main") == {2}
    assert depths(repo.model("origin"), "main") == {1}
    assert repo.verify().ok


def test_what_was_widened_again_keeps_the_narrower_one_as_its_base(
    repo: Repository, tmp_path: Path
) -> None:
    """The original, of its own type and planned first, is further away."""
    first = weights(rows=2000)["a"]
    half = first.astype(np.float16)
    # By its name the wide copy comes before the narrower one.
    files = {"a.npz": first, "half.npz": half, "b-upcast.npz": half.astype(np.float32)}
    for name, array in files.items():
        np.savez(tmp_path / name, w=array)
        repo.commit(tmp_path)
    before = size(repo)
    repo.repack()
    assert size(repo) <= before
    assert repo["main"].files["b-upcast.npz"].tensors["w"].depth == 2


def test_small_packs_are_merged(history: History) -> None:
    history.line(4)
    history.repo.repack()
    history.repo.commit({"x": np.arange(5000)}, branch="other")
    history.repo.commit({"y": np.arange(6000)}, branch="third")
    report = history.repo.repack()
    assert report.worthwhile
    assert not report.replans
    packs = [key for key in objects(history.repo) if key.startswith("packs/")]
    assert len(packs) == 2
    history.check()


def test_what_is_copied_may_be_small_itself_and_is_merged_at_once(repo: Repository) -> None:
    """Else there would be two small packs afterwards, and another repack would merge these."""
    random = np.random.default_rng(0)
    for rows in (9000, 1000):
        repo.commit({str(rows): random.standard_normal((rows, 64)).astype("f4")})
    index = Table(repo.database.chunk_indexes()).index
    sizes = stored_sizes(repo.database)
    limits = Limits(0.9, 1_000_000, 2)
    everything = np.ones(len(index), np.bool_)
    assert not Shelf.plan((), [index], [everything], sizes, limits).rewrite
    large = columns(index)[1]["pack"] == np.bincount(columns(index)[1]["pack"]).argmax()
    some_dead = everything.copy()
    some_dead[np.flatnonzero(large)[:2]] = False
    assert Shelf.plan((), [index], [some_dead], sizes, limits).rewrite == set(index.packs)


def test_what_no_branch_reaches_stays_for_undo(history: History) -> None:
    history.line(2)
    lost = history.commit(trained(weights(), 9), "side")
    history.repo.delete_branch("side")
    history.repo.repack()
    history.repo.undo()
    assert history.repo["side"].id == lost.id
    history.check()


class Sizes:
    """In place of a table: two chunks of 500 bytes."""

    size = np.array([500, 500])

    def __len__(self) -> int:
        return 2


@pytest.mark.parametrize(
    ("newest", "other", "fair"),
    [(40, 0, True), (60, 0, False), (0, 40, False), (0, 5, True), (60, -65, True)],
)
def test_what_a_plan_may_cost(newest: int, other: int, fair: bool) -> None:
    """No more than the newest version does, a hundredth aside, and no more than a twentieth."""
    plan = Plan(Sizes())
    plan.depth[:] = 0
    plan.size[:] = 500 + newest, 500 + other
    plan.newest[0] = True
    assert is_fair(plan) is fair


def test_deep_takes_less(repo: Repository) -> None:
    """Where steps depend on weights; after that neither kind of repack finds anything to gain."""
    history = History(repo, 1 << 18)
    base = {name: array * 1.5 for name, array in weights(rows=150).items()}
    first = history.commit(base)
    for number in range(4):
        random = np.random.default_rng(number)
        steps = {name: random.standard_normal(array.shape) for name, array in base.items()}
        tuned = {n: (w + 1e5 * w**7 * steps[n]).astype("f4") for n, w in base.items()}
        history.commit(tuned, f"b{number}", first.id)
    history.repo.repack()
    before = size(history.repo)
    report = history.repo.repack(deep=True)
    assert report.after == size(history.repo) < 0.99 * before
    assert report.recoded > 0
    assert not history.repo.repack(deep=True).worthwhile
    assert not history.repo.repack().worthwhile
    history.check()


def test_a_damaged_chunk_stops_it(history: History) -> None:
    first = history.line(3)
    repo = history.repo
    storage = repo.database.storage
    table = Table(repo.database.chunk_indexes())
    entry = table.entry(int(np.argmax(table.size)))
    key = f"packs/{entry.pack}"
    data = bytearray(storage.get(key))
    data[entry.offset + 200] ^= 1
    storage.delete(key)
    storage.put(key, [data])
    before = objects(repo)
    with pytest.raises(CorruptDataError):
        Repository(Database.open(storage)).repack()
    assert {k: s for k, s in objects(repo).items() if k in before} == before
    assert repo.database.refresh().action.startswith("commit")
    assert first is history


class StoppingStorage(MemoryStorage):
    """Fails from the nth write or deletion on, like a killed process or a full disk."""

    left = 10**9
    failure: BaseException = KeyboardInterrupt()

    def _count(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise self.failure

    def put(self, key: str, parts: object) -> bool:  # type: ignore[override]
        self._count()
        return super().put(key, parts)  # type: ignore[arg-type]

    def delete(self, key: str) -> None:
        self._count()
        super().delete(key)


@pytest.mark.parametrize("steps", range(18))
@pytest.mark.parametrize("failure", [KeyboardInterrupt(), StorageError("no space left")])
def test_stopped_at_any_step(
    steps: int, failure: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chunkstore, "PACK_SIZE", 60_000)
    storage = StoppingStorage()
    history = History(Repository(Database.create(storage, "Ada"))).line(3)
    storage.left, storage.failure = steps, failure
    try:
        history.repo.repack()
    except type(failure):
        assert storage.left < 0
    storage.left = 10**9
    history.check()
    again = Repository(Database.open(storage))
    again.commit({"more": np.arange(100)})
    again.repack()
    again.gc()
    root = again.database.refresh()
    assert (root.condemned, root.doomed) == (frozenset(), frozenset())
    assert not again.repack().worthwhile
    history.check()


def interfere(monkeypatch: pytest.MonkeyPatch, act: object) -> list[int]:
    """Let `act` happen once, between the planning of a repack and its publication."""
    settle, done = republish.Republisher._settle, []

    def settled(self: republish.Republisher) -> object:
        found = settle(self)
        if not done:
            done.append(1)
            act()  # type: ignore[operator]
        return found

    monkeypatch.setattr(republish.Republisher, "_settle", settled)
    return done


def test_a_commit_meanwhile_is_taken_over(
    history: History, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also one that is coded against a chunk of which repack makes a deeper one."""
    history.line(4)
    other = History(Repository(Database.open(history.repo.database.storage)))

    def act() -> None:
        oldest = other.repo["main~3"].id
        other.commit(trained(history.versions[oldest], 77), "late", oldest)
        assert 1 in depths(other.repo, "late")

    done = interfere(monkeypatch, act)
    report = history.repo.repack()
    assert done
    assert report.depth_after == 0
    assert depths(history.repo, "main") == {0}
    history.check()
    other.check()
    assert len(list(history.repo.log())) == 5


def test_a_gc_meanwhile(history: History, monkeypatch: pytest.MonkeyPatch) -> None:
    history.line(4)
    history.commit(trained(weights(), 5, 1e-4), "side", history.repo["main~3"].id)
    lost = history.repo.delete_branch("side")
    del history.versions[lost]
    other = Repository(Database.open(history.repo.database.storage))
    interfere(monkeypatch, lambda: other.gc(keep_last=2))
    history.repo.repack()
    kept = {one.id for one in history.repo.log()}
    assert len(kept) == 2
    history.versions = {i: c for i, c in history.versions.items() if i in kept}
    history.check()


def record_of(name: str, depth: int = 0, base: str | None = None) -> Record:
    return Record(
        *(identify(Kind.CHUNK, name.encode()), Kind.CHUNK, 0, 1, 0, b"x"),
        depth=depth,
        base=identify(Kind.CHUNK, base.encode()) if base else None,
    )


def index_of(*records: Record) -> Index:
    pack = PackWriter(Kind.CHUNK)
    for record in records:
        pack.append(record)
    return Index(pack.name, memoryview(b"".join(encode_entries(pack.entries))))


def chosen(choice: Choice) -> dict[Id, int]:
    """By id the depth of what counts."""
    return {choice.table.entry(row).id: int(choice.depth[row]) for row in range(len(choice.table))}


def named(**depths: int) -> dict[Id, int]:
    return {identify(Kind.CHUNK, name.encode()): depth for name, depth in depths.items()}


def test_new_records_count_before_listed_ones() -> None:
    table = Table([index_of(record_of("a"), record_of("b", 1, "a"), record_of("c", 2, "b"))])
    stored = [index_of(record_of("a", 1, "b"), record_of("b")), index_of(record_of("gone"))]
    choice = Choice(table, stored)
    assert chosen(choice) == named(a=1, b=0, c=2)
    assert choice.listed().sum() == 1
    assert not choice.unfit()


def test_a_new_record_whose_base_was_moved_by_others_gives_way() -> None:
    """And so do those that rely on it, one after the other."""
    # Stored when b had depth 0 and d was there; by now they have not.
    table = Table([index_of(record_of("a"), record_of("b", 1, "a"), record_of("c", 2, "b"))])
    stored = [index_of(record_of("a", 1, "b"), record_of("c", 1, "d"))]
    choice = Choice(table, stored)
    assert chosen(choice) == named(a=0, b=1, c=2)
    assert choice.listed().all()
    assert not choice.unfit()


def test_a_listed_record_whose_base_became_deeper_is_unfit() -> None:
    """It may be coded against the bases of its base, but becomes no deeper."""
    table = Table([index_of(record_of("a"), record_of("b"), record_of("c", 1, "a"))])
    choice = Choice(table, [index_of(record_of("a", 1, "b"))])
    (task,) = choice.unfit()
    assert table.entry(task.row).id == identify(Kind.CHUNK, b"c")
    assert [(table.entry(row).id, depth) for row, depth in task.bases] == [
        (identify(Kind.CHUNK, b"b"), 0)
    ]


def test_unfit_records_that_lead_to_each_other() -> None:
    """What b's new record and c's were coded against is gone: c is to be coded by itself."""
    table = Table([index_of(record_of("b"), record_of("c", 1, "b"))])
    stored = [index_of(record_of("d"), record_of("c", 1, "d"), record_of("b", 2, "c"))]
    choice = Choice(table, stored)
    assert chosen(choice) == named(b=2, c=1)
    (task,) = choice.unfit()
    assert (table.entry(task.row).id, task.bases) == (identify(Kind.CHUNK, b"c"), ())


def test_records_that_do_not_count_are_not_listed_any_more(
    repo: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their packs go; a later merger of the indexes would make the records count."""
    storage = repo.database.storage
    publish = chunkstore.Session.publish
    done: list[int] = []

    def late(session: chunkstore.Session, *words: object, **named: object) -> object:
        if not done:
            done.append(1)
            # Two writers at once store the same chunks.
            other = Repository(Database.open(storage))
            other.commit(weights(), "other", branch="side", threads=1)
        return publish(session, *words, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(chunkstore.Session, "publish", late)
    repo.commit(weights(), "one", threads=1)
    listed = [ref.count for ref in repo.database.refresh().indexes]
    repo.repack()
    (ref,) = repo.database.root.indexes
    assert sum(listed) == 2 * ref.count
    assert repo.verify().ok


def test_two_repacks_at_once(history: History, monkeypatch: pytest.MonkeyPatch) -> None:
    history.line(5)
    other = Repository(Database.open(history.repo.database.storage))
    interfere(monkeypatch, lambda: other.repack())
    history.repo.repack()
    history.check()
    history.repo.gc()
    history.check()


def test_beside_a_writer(history: History) -> None:
    history.line(3)
    writer = History(Repository(Database.open(history.repo.database.storage)))
    stop = Event()

    def write() -> None:
        content = weights(5)
        while not stop.is_set() and len(writer.versions) < 15:
            content = trained(content, len(writer.versions))
            writer.commit(content, "busy")

    thread = Thread(target=write)
    thread.start()
    try:
        for _ in range(3):
            history.repo.repack()
    finally:
        stop.set()
        thread.join()
    history.check()
    writer.check()
    assert len(list(writer.repo.log("busy"))) == len(writer.versions)
