"""Models whose parents nobody names: what they were made from is found, or nothing is lost."""

import io
import tempfile
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from threading import Semaphore
from unittest import mock

import ml_dtypes
import numpy as np
import pytest

from mstore.arrayfile import pack_arrays
from mstore.basefinder import BaseFinder
from mstore.chunking import DEFAULT_CHUNK_SIZE
from mstore.codecs.base import DELTA
from mstore.database import Database
from mstore.dtypes import BY_NAME
from mstore.errors import StorageError
from mstore.ids import Kind
from mstore.layout import Layout, Tensor, cover
from mstore.numpy_dtypes import numpy_dtype
from mstore.ops.reindex import reindex
from mstore.relatives import _nearest_place
from mstore.repository import Repository
from mstore.root import SketchRef
from mstore.similar import NEAR, nearest, sketch
from mstore.sketches import (
    REACH,
    ROW_DTYPE,
    SAMPLES,
    Sketches,
    file_row,
    spread_of,
    store_sketches,
    values_of,
)
from mstore.sources import BufferSource
from mstore.storage.memory import MemoryStorage

Model = dict[str, np.ndarray]

SHAPES = {"query": (160, 128), "key": (160, 128), "up": (320, 128), "down": (128, 320)}
SMALL = {"bias": (128,), "norm": (3, 40)}


def new_model(seed: int, layers: int = 2) -> Model:
    """Weights of no relation to those of another seed."""
    random = np.random.default_rng(seed)
    model = {
        f"layers.{layer}.{name}": (random.standard_normal(shape) * 0.02).astype(np.float32)
        for layer in range(layers)
        for name, shape in (SHAPES | SMALL).items()
    }
    return model | {"embed": (random.standard_normal((700, 128)) * 0.02).astype(np.float32)}


def tuned(model: Model, seed: int, step: float = 1e-3) -> Model:
    """All weights a little off."""
    random = np.random.default_rng(1000 + seed)
    return {
        name: (array + step * random.standard_normal(array.shape)).astype(array.dtype)
        for name, array in model.items()
    }


def renamed(model: Model) -> Model:
    """Other names, in which the tensors stand in another order too."""
    new = {"layers": "h", "query": "w1", "key": "a0", "up": "fc", "down": "b", "embed": "tok"}
    found = {}
    for name, array in model.items():
        found[".".join(new.get(part, part) for part in name.split("."))] = array
    return found


def bfloat16(model: Model) -> Model:
    return {name: array.astype(ml_dtypes.bfloat16) for name, array in model.items()}


def extended(model: Model) -> Model:
    more = new_model(99)["embed"][:50]
    return model | {"embed": np.concatenate([model["embed"], more])}


def stored(repo: Repository) -> int:
    """Bytes of everything but the log."""
    folders = ("packs/", "indexes/", "sketches/")
    return sum(info.size for folder in folders for info in repo.database.storage.list(folder))


def fresh() -> Repository:
    return Repository(Database.create(MemoryStorage(), "Ada"))


def as_model(repo: Repository, name: str) -> Repository:
    return Repository(repo.database, name)


def added(repo: Repository, model: Mapping[str, np.ndarray], **options: str) -> int:
    """Bytes that a commit of `model` adds."""
    before = stored(repo)
    repo.commit(dict(model), **options)
    return stored(repo) - before


def rows(repo: Repository) -> int:
    """How many sketches there are."""
    return sum(ref.count for ref in repo.database.refresh().sketches)


BASE = new_model(0)


@pytest.mark.parametrize("change", [dict, renamed, bfloat16, extended])
def test_a_fine_tune_of_no_known_parent_is_as_small_as_with_it(change):
    model = change(tuned(BASE, 1))
    named, found = fresh(), fresh()
    for repo in (named, found):
        repo.commit(BASE)
    with_parent = added(
        named, model if change is not renamed else tuned(BASE, 1), branch="b", parent="main"
    )
    without = added(as_model(found, "other"), model)
    alone = added(fresh(), model)
    assert without < 1.05 * with_parent < 0.95 * alone
    loaded = as_model(found, "other")["main"].load()
    for name, array in model.items():
        np.testing.assert_array_equal(loaded[name].view(np.uint8), array.view(np.uint8))
    assert found.verify().ok


def test_unrelated_models_find_nothing_and_cost_a_row_for_each_large_tensor():
    first, second = fresh(), fresh()
    first.commit(BASE)
    model = new_model(5)
    beside, alone = added(as_model(first, "other"), model), added(second, model)
    assert rows(first) == 2 * rows(second) == 2 * (2 * len(SHAPES) + 1)
    # The header of the file, with the names, is there already.
    assert alone - 1000 < beside < alone
    assert beside < 1.005 * sum(array.nbytes for array in model.values())


def test_what_a_parent_names_gets_no_sketch():
    repo = fresh()
    repo.commit(BASE)
    before = rows(repo)
    for seed in range(3):
        repo.commit(tuned(BASE, seed))
    assert rows(repo) == before
    repo.commit(tuned(BASE, 4) | {"head": new_model(7)["embed"]})
    assert rows(repo) == before + 1


def test_relatives_get_few_sketches_and_copies_none():
    repo = fresh()
    repo.commit(BASE)
    before = rows(repo)
    as_model(repo, "tuned").commit(tuned(BASE, 1))
    assert rows(repo) == before + 8
    as_model(repo, "copy").commit(BASE | {"layers.0.bias": BASE["layers.1.bias"]})
    assert rows(repo) == before + 8


def test_the_best_version_of_a_line_is_chosen():
    """Only the first has sketches; the newest is nearest."""
    line = [BASE]
    for seed in range(3):
        line.append(tuned(line[-1], seed, 3e-3))
    named, found = fresh(), fresh()
    for repo in (named, found):
        for model in line:
            repo.commit(model)
    last = tuned(line[-1], 9, 1e-4)
    with_parent = added(named, last, branch="b", parent="main")
    without = added(as_model(found, "other"), last)
    assert without < 1.05 * with_parent


def test_the_nearest_of_several_models_is_chosen():
    models = [BASE]
    for seed in range(3):
        models.append(tuned(models[-1], seed, 3e-3))
    named, found = fresh(), fresh()
    for number, model in enumerate(models):
        as_model(named, f"m{number}").commit(model)
        as_model(found, f"m{number}").commit(model)
    last = tuned(models[-1], 9, 1e-4)
    with_parent = added(as_model(named, "m3"), last, branch="b", parent="main")
    without = added(as_model(found, "other"), last)
    assert without < 1.05 * with_parent


def test_a_model_made_of_two_finds_both():
    other = {f"vision.{name}": array for name, array in new_model(3).items()}
    repo = fresh()
    repo.commit(BASE)
    as_model(repo, "vision").commit(other)
    joined = tuned(BASE | other, 1)
    assert added(as_model(repo, "both"), joined) < 0.95 * added(fresh(), joined)
    large, in_differences = chunks(as_model(repo, "both"))
    assert large == in_differences


def test_a_model_made_of_many_finds_all():
    repo = fresh()
    parts = [
        {f"part{n}.{name}": array for name, array in new_model(n, 1).items()} for n in range(7)
    ]
    for number, part in enumerate(parts):
        as_model(repo, f"m{number}").commit(part)
    joined = {name: array for part in parts for name, array in part.items()}
    as_model(repo, "all").commit(tuned(joined, 1))
    large, in_differences = chunks(as_model(repo, "all"))
    assert large == in_differences == 7 * (len(SHAPES) + 1)


def test_small_tensors_follow_their_neighbours():
    """None of these names is known, and several small tensors have one shape."""
    repo = fresh()
    model = new_model(0, layers=4)
    repo.commit(model)
    new = renamed(tuned(model, 1))
    names = dict(zip(new, model, strict=True))
    packed = pack_arrays(new, {})
    source = BufferSource([memoryview(packed.header), *packed.buffers])
    found = BaseFinder(repo.database, []).find("m", source, packed.layout, DEFAULT_CHUNK_SIZE)
    for segment, bases in zip(packed.layout.segments, found, strict=True):
        if segment.tensor is not None:
            assert [base.tensor.name for base in bases] == [names[segment.tensor.name]]


def chunks(repo: Repository) -> tuple[int, int]:
    """How many chunks of large tensors `main` has, and how many of them are differences."""
    db = repo.database
    ids = [
        segment.chunk_id(number)
        for entry in repo["main"].record.files.values()
        for tensor, segment in db.manifest(entry.manifest).tensors()
        if tensor.nbytes >= 4 * REACH
        for number in range(segment.count)
    ]
    entries = [db.find(Kind.CHUNK, identifier) for identifier in ids]
    return len(ids), sum(entry is not None and entry.codec == DELTA for entry in entries)


def test_a_file_without_names_is_found():
    repo = fresh()
    buffer = io.BytesIO()
    np.save(buffer, BASE["embed"])
    paths = {"a": buffer.getvalue()}
    np.save(buffer := io.BytesIO(), tuned(BASE, 1)["embed"])
    paths["b"] = buffer.getvalue()
    with tempfile.TemporaryDirectory() as directory:
        for name, content in paths.items():
            path = Path(directory) / f"{name}.npy"
            path.write_bytes(content)
            as_model(repo, name).commit(path)
    assert chunks(as_model(repo, "b")) == (1, 1)


class TestObjects:
    """What becomes of the objects that sketches are kept in."""

    def test_many_commits_leave_few(self):
        repo = fresh()
        models = [new_model(seed, layers=1) for seed in range(10)]
        for seed, model in enumerate(models):
            as_model(repo, f"m{seed}").commit(model)
        assert len(repo.database.refresh().sketches) <= 4
        assert rows(repo) == 10 * (len(SHAPES) + 1)
        assert repo.verify().ok
        as_model(repo, "other").commit(tuned(models[0], 1))
        large, in_differences = chunks(as_model(repo, "other"))
        assert large == in_differences

    def test_gc_drops_those_of_lost_versions_only(self):
        repo = fresh()
        repo.commit(BASE)
        kept = repo.database.root.sketches
        as_model(repo, "lost").commit(new_model(5))
        as_model(repo, "lost").delete_branch("main")
        report = repo.gc()
        assert repo.database.refresh().sketches == kept
        assert report.kept == stored(repo)
        assert {info.key for info in repo.database.storage.list("sketches/")} == {kept[0].key}
        assert repo.gc().freed == 0

    def test_gc_splits_an_object(self):
        repo = fresh()
        for seed in range(4):
            as_model(repo, f"m{seed}").commit(new_model(seed, layers=1))
        (before,) = repo.database.refresh().sketches
        as_model(repo, "m1").delete_branch("main")
        repo.gc()
        (after,) = repo.database.refresh().sketches
        assert (before.count, after.count) == (20, 15)
        assert repo.verify().ok
        assert not list(repo.verify().notes)
        as_model(repo, "other").commit(tuned(new_model(2, layers=1), 1))
        assert chunks(as_model(repo, "other"))[1]

    def test_reindex_keeps_them(self):
        repo = fresh()
        repo.commit(BASE)
        before = repo.database.root.sketches
        reindex(repo.database, author="Ada")
        assert repo.database.refresh().sketches == before

    def test_stats_count_them(self):
        repo = fresh()
        repo.commit(BASE)
        found = repo.stats().stored
        assert found.sketches == sum(ref.size for ref in repo.database.root.sketches) > 0
        assert found.total > found.sketches + found.data_packs

    @pytest.mark.parametrize("how", ["flipped", "header", "short", "gone"])
    def test_damage_harms_nothing_and_gc_removes_it(self, how):
        repo = fresh()
        repo.commit(BASE)
        (ref,) = repo.database.root.sketches
        damage(repo, ref, how)
        assert added(as_model(repo, "other"), tuned(BASE, 1)) > 0
        other = as_model(repo, "other")["main"].load()
        np.testing.assert_array_equal(other["embed"], tuned(BASE, 1)["embed"])
        found = repo.verify()
        assert [(one.where, one.commits) for one in found.damages] == [(ref.key, ())]
        repo.gc()
        assert repo.verify().ok
        assert ref not in repo.database.refresh().sketches

    def test_a_damaged_row_leads_nowhere(self):
        """The header is whole, and what is behind it points at nothing."""
        repo = fresh()
        repo.commit(BASE)
        (ref,) = repo.database.root.sketches
        original = repo.database.storage.get(ref.key)
        whole = Sketches("whole", memoryview(original))
        for column in ("file", "segment", "manifest"):
            data = bytearray(original)
            start = original.index(
                (whole.files if column == "manifest" else whole.origins).tobytes()
            )
            for row in range(1 if column == "manifest" else ref.count):
                at = start + 8 * row + 4 * (column == "segment")
                data[at : at + 4] = b"\xff\xff\xff\x7f"
            repo.database.storage.delete(ref.key)
            repo.database.storage.put(ref.key, [data])
            as_model(repo, column).commit(tuned(BASE, 1))

    def test_mergers_drop_what_is_damaged(self):
        repo = fresh()
        for seed in range(4):
            if seed == 3:
                damage(repo, repo.database.refresh().sketches[1], "flipped")
            as_model(repo, f"m{seed}").commit(new_model(seed, layers=1))
        assert rows(repo) == 15
        assert repo.verify().ok

    def test_two_writers_at_once_both_add_theirs(self):
        storage = MemoryStorage()
        first = Repository(Database.create(storage, "Ada"), "first")
        second = Repository(Database.open(storage), "second")
        second.database.refresh()

        class Between(BaseFinder):
            def sketches(self, path):
                if self.db is second.database and not first.database.refresh().sketches:
                    first.commit(BASE)
                return super().sketches(path)

        with mock.patch("mstore.ops.commit.BaseFinder", Between):
            second.commit(new_model(5))
        assert rows(first) == 2 * (2 * len(SHAPES) + 1)
        assert first.verify().ok

    def test_what_gc_condemns_meanwhile_is_rescued(self):
        class Storage(MemoryStorage):
            def put(self, key, parts):
                if key.startswith("sketches/"):
                    Database.open(self).publish(
                        lambda root: replace(root, condemned=frozenset({key})),
                        action="gc",
                        author="Ada",
                    )
                return super().put(key, parts)

        repo = Repository(Database.create(Storage(), "Ada"))
        repo.commit(BASE)
        root = repo.database.refresh()
        assert (len(root.sketches), root.condemned) == (1, frozenset())

    def test_a_commit_waits_for_its_sketches(self):
        indexes = Semaphore(0)

        class Storage(MemoryStorage):
            def put(self, key, parts):
                if key.startswith("sketches/"):
                    assert all(indexes.acquire(timeout=10) for _ in range(2))
                    time.sleep(0.05)
                elif key.startswith("indexes/"):
                    indexes.release()
                return super().put(key, parts)

        repo = Repository(Database.create(Storage(), "Ada"))
        repo.commit(BASE)
        assert rows(repo) > 0

    @pytest.mark.parametrize("fails", ["doomed", "refused"])
    def test_a_commit_goes_on_without_its_sketches(self, fails):
        class Storage(MemoryStorage):
            def put(self, key, parts):
                if key.startswith("sketches/"):
                    if fails == "refused":
                        raise StorageError("no room for that")
                    doomed = frozenset({key})
                    Database.open(self).publish(
                        lambda root: replace(root, doomed=doomed), action="gc", author="Ada"
                    )
                return super().put(key, parts)

        repo = Repository(Database.create(Storage(), "Ada"))
        repo.commit(BASE)
        assert repo.database.refresh().sketches == ()
        assert repo.verify().ok


def damage(repo: Repository, ref: SketchRef, how: str) -> None:
    storage = repo.database.storage
    data = bytearray(storage.get(ref.key))
    storage.delete(ref.key)
    if how == "gone":
        return
    if how == "short":
        del data[-100:]
    else:
        data[-1 if how == "flipped" else 20] ^= 4
    storage.put(ref.key, [data])


def layout_of(*arrays: tuple[str, np.ndarray]) -> tuple[BufferSource, Layout]:
    """A file of arrays of these element types, one after the other."""
    tensors, at = [], 0
    for number, (dtype, array) in enumerate(arrays):
        tensors.append((at, Tensor(f"t{number}", BY_NAME[dtype], array.shape)))
        at += array.nbytes
    source = BufferSource([memoryview(array).cast("B") for _, array in arrays])
    return source, cover("test", at, tensors)


class TestSketching:
    def weights(self, seed: int = 0) -> np.ndarray:
        random = np.random.default_rng(seed)
        return (random.standard_normal((200, 128)) * 0.02).astype(np.float32)

    def test_copies_in_other_types_are_near(self):
        values = self.weights()
        bits = values.astype(ml_dtypes.bfloat16).view(np.uint16)
        source, layout = layout_of(
            ("f32", values),
            ("f16", values.astype(np.float16)),
            ("bf16", bits),
            ("f64", values.astype(np.float64)),
            (">f32", values.astype(">f4").view(np.uint32)),
        )
        found = values_of(sketch(source, layout, range(5))["samples"])
        np.testing.assert_allclose(found, np.broadcast_to(found[:1], found.shape), rtol=0.01)

    @pytest.mark.parametrize("dtype", sorted(BY_NAME))
    def test_every_type_has_sketches(self, dtype):
        tensor = Tensor("w", BY_NAME[dtype], (1 << 17,))
        values = np.random.default_rng(0).standard_normal(1 << 17) * 20
        values[values < 0] *= dtype != "bool"
        with np.errstate(all="ignore"):
            raw = values.astype(numpy_dtype(tensor.dtype)).tobytes()[: tensor.nbytes]
        layout = cover("test", tensor.nbytes, [(0, tensor)])
        (row,) = sketch(BufferSource([memoryview(raw)]), layout, [0])
        values = values_of(row["samples"])
        assert np.isfinite(values).all()
        assert 0 < row["spread"] < np.inf
        np.testing.assert_allclose(row["spread"], spread_of(values[None])[0])

    def test_what_is_no_number_counts_as_zero(self):
        values = self.weights()
        values[::2] = np.nan
        values[1::4] = np.inf
        (row,) = sketch(*layout_of(("f32", values)), [0])
        assert np.isfinite(values_of(row["samples"])).all()

    def test_one_value_over_and_over_has_none(self):
        constant = np.full((200, 128), 3, np.float32)
        assert len(sketch(*layout_of(("f32", constant)), [0])) == 0

    def test_integers_are_their_values(self):
        values = (np.arange(1 << 15) % 200 - 100).astype(np.int8)
        (row,) = sketch(*layout_of(("i8", values)), [0])
        assert set(values_of(row["samples"]).tolist()) <= set(range(-100, 100))


class TestNearest:
    """The search against comparing everything with everything."""

    @pytest.mark.parametrize("scale", [1e-30, 1e-3, 1, 1e30])
    @pytest.mark.parametrize("mean", [0, 20])
    def test_it_finds_what_is_near_and_nothing_else(self, scale, mean):
        random = np.random.default_rng(0)
        values = (random.standard_normal((400, SAMPLES)) + mean).astype(np.float32)
        noise = random.uniform(0, 0.6, (400, 1)) * random.standard_normal((400, SAMPLES))
        stored_rows = self.rows((values + noise) * scale)
        queries = self.rows(values[:60] * scale)
        storage = MemoryStorage()
        everything = np.concatenate(
            [file_row(bytes([n % 256, n // 256] * 16), "m", "p") for n in range(400)]
        )
        stored_rows["file"] = np.arange(400)
        ref = store_sketches(storage, everything, stored_rows)
        found = nearest(storage, [ref], queries)
        a, b = (values_of(rows["samples"]).astype(np.float64) for rows in (queries, stored_rows))
        apart = ((a[:, None] - b[None]) ** 2).sum(axis=2) / queries["spread"].astype(np.float64)[
            :, None
        ] ** 2
        for number, likes in enumerate(found):
            expected = np.flatnonzero(apart[number] < NEAR * 0.999)
            names = {everything[at]["manifest"].tobytes() for at in expected}
            assert names <= {like.manifest for like in likes}
            for like in likes:
                at = int(
                    np.flatnonzero(
                        (everything["manifest"] == np.frombuffer(like.manifest, np.uint8)).all(
                            axis=1
                        )
                    )[0]
                )
                np.testing.assert_allclose(like.distance, apart[number, at], rtol=1e-3, atol=1e-6)
        assert 10 < sum(map(len, found)) < 60

    def rows(self, values: np.ndarray) -> np.ndarray:
        made = np.zeros(len(values), ROW_DTYPE)
        with np.errstate(over="ignore"):
            made["samples"] = values.astype(ml_dtypes.bfloat16).view(np.uint16)
        made["class"] = 1
        made["spread"] = spread_of(values_of(made["samples"]))
        return made[np.isfinite(made["spread"]) & (made["spread"] > 0)]


@pytest.mark.parametrize(
    ("places", "place", "nearest_at"),
    [([], 3, None), ([4], 9, 0), ([1, 5, 9], 6, 1), ([1, 5], 0, 0)],
)
def test_nearest_place(places, place, nearest_at):
    assert _nearest_place(places, place) == nearest_at
