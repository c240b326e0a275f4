import json
import math
import tracemalloc

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from mstore.database import Database
from mstore.dtypes import BY_NAME
from mstore.errors import ConflictError, CorruptDataError, NotFoundError
from mstore.ingest import FileToStore
from mstore.layout import Tensor, cover, opaque
from mstore.numpy_dtypes import dtype_of
from mstore.objects import FileEntry, Snapshot, encode_object
from mstore.ops.changes import Change
from mstore.ops.commit import Content, Description, Target, record
from mstore.ops.compare import compare
from mstore.ops.describing import describe_file
from mstore.ops.diff import diff_sides
from mstore.ops.sides import FileSide, StoredSide
from mstore.sources import BufferSource
from mstore.storage.memory import MemoryStorage

F32 = BY_NAME["f32"]
HEAD = b"some header here"


def diff_snapshots(db, before, after, **options):
    """What changed between two versions."""
    return diff_sides(db, StoredSide(db, before), StoredSide(db, after), **options)


class Counting(MemoryStorage):
    """Remembers what was read of packs of chunks."""

    def __init__(self):
        super().__init__("test")
        self.reads = []

    def get(self, key, start=0, length=None):
        data = super().get(key, start, length)
        if key.startswith("packs/d"):
            self.reads.append(len(data))
        return data


def tensor_of(name, value):
    """A `Tensor` and its bytes, of an array or of a (dtype, shape, order, bytes)."""
    if isinstance(value, tuple):
        dtype, shape, order, raw = value
        return Tensor(name, BY_NAME[dtype], shape, order), raw
    return Tensor(name, dtype_of(value.dtype), value.shape), value.tobytes()


def file_of(content):
    """Source and layout of a file: of tensors by name, or of opaque bytes."""
    if isinstance(content, bytes):
        return BufferSource([memoryview(content)]), opaque(len(content))
    whole, placed = HEAD, []
    for name, value in content.items():
        tensor, raw = tensor_of(name, value)
        placed.append((len(whole), tensor))
        whole += raw
    return BufferSource([memoryview(whole)]), cover("test", len(whole), placed)


class Repo:
    def __init__(self):
        self.storage = Counting()
        self.db = Database.create(self.storage, "me")
        self.tip = None

    def commit(self, files, *, executable=(), chunk_size=1 << 10):
        def open_files():
            return [FileToStore(path, *file_of(content)) for path, content in files.items()]

        parents = (self.tip,) if self.tip else ()
        done = record(
            self.db,
            Target("default", "main", self.tip, parents),
            Content(open_files, {}, frozenset(executable)),
            Description("me"),
            threads=1,
            chunk_size=chunk_size,
        )
        self.tip = done.id
        self.storage.reads.clear()
        return done.snapshot

    def diff(self, before, after, **options):
        """Of two contents; names of files default to `m`."""
        one, other = self.commit(before), self.commit(after)
        return diff_snapshots(self.db, one, other, **options)


def diff(before, after, **options):
    """The diff of two contents of files."""
    return Repo().diff(before, after, **options)


def only(changes):
    (change,) = changes
    return change


def numbers_of(before, after, **options):
    """The numbers of a change of the only tensor of a file."""
    return only(diff({"m": {"w": before}}, {"m": {"w": after}}, **options).tensors).numbers


def random(seed, shape=1000, dtype=np.float32):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def assert_like_numpy(numbers, before, after, rel=1e-5):
    """The numbers against the formulas; `rel` because energies are stored as float32."""
    with np.errstate(all="ignore"):
        one, other = before.astype(np.float64).ravel(), after.astype(np.float64).ravel()
        fine = np.isfinite(one) & np.isfinite(other)
        bits = [np.frombuffer(x.tobytes(), f"V{x.itemsize}") for x in (before, after)]
        assert numbers.changed == sum(x != y for x, y in zip(*map(list, bits), strict=True))
        assert numbers.nonfinite_before == np.count_nonzero(~np.isfinite(one))
        assert numbers.nonfinite_after == np.count_nonzero(~np.isfinite(other))
        one, other = one[fine], other[fine]
        moved = float(np.sqrt(((other - one) ** 2).sum()))
        norms = [float(np.sqrt((x**2).sum())) for x in (one, other)]
    assert numbers.elements == before.size
    assert numbers.fraction == numbers.changed / before.size
    assert numbers.norm_change == pytest.approx(moved, rel=1e-9)
    assert numbers.largest == np.abs(other - one).max(initial=0)
    assert numbers.norm_before == pytest.approx(norms[0], rel=rel)
    if moved and norms[0]:
        assert numbers.relative == pytest.approx(moved / norms[0], rel=rel)
    if norms[0] and norms[1]:
        cosine = float((one * other).sum()) / norms[0] / norms[1]
        assert numbers.cosine == pytest.approx(cosine, abs=rel)


class TestFiles:
    def test_nothing_changed(self):
        content = {"a": {"w": random(1)}, "b": b"text"}
        found = diff(content, content)
        assert not found
        assert (found.files, found.tensors) == ((), ())
        assert found.totals.unchanged_files == 2

    def test_added_removed_modified(self):
        old = {"gone": b"g" * 100, "same": b"s", "text": b"t" * 50}
        new = {"new": b"n" * 200, "same": b"s", "text": b"u" * 60}
        found = diff(old, new)
        assert [(c.kind, c.path, c.bytes_removed, c.bytes_added) for c in found.files] == [
            (Change.REMOVED, "gone", 100, 0),
            (Change.ADDED, "new", 0, 200),
            (Change.MODIFIED, "text", 50, 60),
        ]
        assert found.files[0].after is None
        assert found.files[1].before is None
        assert found.files[2].before.size == 50
        assert found.totals.files == {Change.ADDED: 1, Change.REMOVED: 1, Change.MODIFIED: 1}
        assert (found.totals.bytes_removed, found.totals.bytes_added) == (150, 260)
        assert found.totals.unchanged_files == 1

    def test_renamed_files_are_not_opened(self, monkeypatch):
        repo = Repo()
        one = repo.commit({"a/model": {"w": random(1)}, "x": b"x"})
        other = repo.commit({"b/model": {"w": random(1)}, "y": b"x"})
        monkeypatch.setattr(Database, "manifest", None)
        found = diff_snapshots(repo.db, one, other)
        assert [(c.kind, c.old_path, c.path) for c in found.files] == [
            (Change.RENAMED, "a/model", "b/model"),
            (Change.RENAMED, "x", "y"),
        ]
        assert found.tensors == ()
        assert (found.totals.bytes_removed, found.totals.bytes_added) == (0, 0)

    def test_files_of_equal_content_keep_their_names(self):
        """Of two that could be meant, the one called alike."""
        found = diff({"1/a": b"same", "1/b": b"same"}, {"2/b": b"same", "2/c": b"same"})
        assert {(c.old_path, c.path) for c in found.files} == {("1/b", "2/b"), ("1/a", "2/c")}

    def test_empty_files_are_not_renamed(self):
        found = diff({"a": b""}, {"b": b""})
        assert [c.kind for c in found.files] == [Change.REMOVED, Change.ADDED]

    def test_renamed_and_modified(self):
        parts = {f"w{n}": random(n) for n in range(4)}
        found = diff({"old": parts}, {"new": {**parts, "w2": random(9)}})
        change = only(found.files)
        assert (change.kind, change.old_path, change.path) == (Change.RENAMED, "old", "new")
        assert change.bytes_added == change.bytes_removed == 4000
        moved = only(found.tensors)  # the other tensors did not change file
        assert (moved.kind, moved.name) == (Change.MODIFIED, "w2")
        assert (moved.before.path, moved.after.path) == ("old", "new")

    def test_less_than_half_in_common_is_another_file(self):
        old = {"a": random(1), "b": random(2), "c": random(3)}
        found = diff({"old": old}, {"new": {"a": random(1), "d": random(5), "e": random(6)}})
        assert [c.kind for c in found.files] == [Change.ADDED, Change.REMOVED]

    def test_a_chunk_in_common_counts_as_often_as_both_have_it(self):
        old = {"w": np.zeros(1024, np.float32)}
        new = {"v": random(1, 768), "w": np.zeros(256, np.float32)}
        found = diff({"old": old}, {"new": new})
        assert [c.kind for c in found.files] == [Change.ADDED, Change.REMOVED]

    def test_of_similar_files_the_most_alike(self):
        parts = {f"w{n}": random(n) for n in range(4)}
        old = {"x": parts, "y": {**parts, "w0": random(7)}}
        new = {"u": {**parts, "w0": random(7), "w1": random(8)}, "v": {**parts, "w3": random(9)}}
        found = diff(old, new)
        assert {(c.old_path, c.path) for c in found.files} == {("y", "u"), ("x", "v")}

    def test_opaque_bytes_changed(self):
        old = np.random.default_rng(0).integers(0, 256, 3_000_000, np.uint8).tobytes()
        new = old[:1_000_000] + b"inserted" + old[1_000_000:]
        change = only(diff({"f": old}, {"f": new}).files)
        assert 8 < change.bytes_added <= 512 << 10
        assert change.bytes_added - change.bytes_removed == 8

    def test_repeated_chunks_count_as_often_as_they_are(self):
        old = {"z": {"w": np.zeros(1000, np.float32)}}
        new = {"z": {"w": np.zeros(2024, np.float32)}}
        change = only(diff(old, new).files)
        # 1000 elements are 3 whole chunks of 1 KiB and one of 928 bytes; 2024 are 7 and 928.
        assert (change.bytes_removed, change.bytes_added) == (0, 4096)

    def test_executable_bit(self):
        repo = Repo()
        one = repo.commit({"run": b"#!"})
        other = repo.commit({"run": b"#!"}, executable=["run"])
        change = only(diff_snapshots(repo.db, one, other).files)
        assert change.kind is Change.MODIFIED
        assert (change.bytes_removed, change.bytes_added) == (0, 0)
        assert (change.before.executable, change.after.executable) == (False, True)

    def test_in_natural_order(self):
        found = diff({}, {f"model-{n}": b"x" * n for n in (10, 9, 1)})
        assert [c.path for c in found.files] == ["model-1", "model-9", "model-10"]


class TestTensorKinds:
    def kinds(self, before, after, **options):
        found = diff(before, after, **options)
        return {(c.kind.value, c.name) for c in found.tensors}

    def test_added_and_removed(self):
        found = diff(
            {"m": {"a": random(1), "k": random(0)}}, {"m": {"b": random(2, (2, 5)), "k": random(0)}}
        )
        gone, new = found.tensors
        assert (gone.kind, gone.name, gone.after, gone.numbers) == (Change.REMOVED, "a", None, None)
        assert (gone.chunks, gone.changed_chunks, gone.changed_bytes) == (4, 4, 4000)
        assert (new.kind, new.name, new.before, new.changed_bytes) == (Change.ADDED, "b", None, 40)
        assert new.after.tensor == Tensor("b", F32, (2, 5))
        assert found.totals.tensors == {Change.ADDED: 1, Change.REMOVED: 1}
        assert found.totals.numbers is None

    def test_renamed(self):
        found = diff({"m": {"a": random(1)}}, {"m": {"b": random(1)}})
        change = only(found.tensors)
        assert (change.kind, change.name) == (Change.RENAMED, "b")
        assert change.before.tensor.name == "a"
        assert (change.changed_chunks, change.changed_bytes, change.numbers) == (0, 0, None)

    def test_renamed_in_natural_order_when_all_are_alike(self):
        zeros = np.zeros(4, np.float32)
        old = {f"h.{n}.bias": zeros for n in (0, 1, 2, 10)}
        new = {f"layers.{n}.b": zeros for n in (10, 2, 1, 0)}
        found = diff({"m": old}, {"m": new})
        pairs = {(c.before.tensor.name, c.after.tensor.name) for c in found.tensors}
        assert pairs == {(f"h.{n}.bias", f"layers.{n}.b") for n in (0, 1, 2, 10)}

    def test_only_the_same_type_and_shape_is_a_renaming(self):
        old, new = {"a": random(1, 8)}, {"b": random(1, (2, 4))}
        assert self.kinds({"m": old}, {"m": new}) == {("removed", "a"), ("added", "b")}

    def test_resharded(self):
        parts = {f"w{n}": random(n) for n in range(6)}
        old = {"1-of-2": dict(list(parts.items())[:3]), "2-of-2": dict(list(parts.items())[3:])}
        changed = {**parts, "w5": random(99)}
        new = {f"{n + 1}-of-3": dict(list(changed.items())[2 * n : 2 * n + 2]) for n in range(3)}
        found = diff(old, new)
        # 1-of-2 became 1-of-3, which has two thirds of it; so w0 and w1 are where they were.
        assert [(c.kind, c.name) for c in found.tensors] == [
            (Change.MODIFIED, "w5"),
            (Change.MOVED, "w2"),
            (Change.MOVED, "w3"),
            (Change.MOVED, "w4"),
        ]
        modified = found.tensors[0]
        assert (modified.before.path, modified.after.path) == ("2-of-2", "3-of-3")
        assert_like_numpy(modified.numbers, parts["w5"], changed["w5"])

    def test_names_found_twice_are_not_guessed(self):
        old = {"a": {"w": random(1)}, "b": {"w": random(2)}}
        new = {"c": {"w": random(3)}, "d": {"w": random(2)}}
        found = diff(old, new)
        # "b" became "d", by content; "w" is then left once on either side.
        assert [(c.kind, c.before.path, c.after.path) for c in found.tensors] == [
            (Change.MODIFIED, "a", "c")
        ]
        old["e"], new["f"] = {"w": random(4)}, {"w": random(5)}
        assert self.kinds(old, new) == {("removed", "w"), ("added", "w")}

    def test_files_with_one_unnamed_tensor(self):
        assert self.kinds({"a": {"": random(1)}}, {"b": {"": random(2)}}) == {
            ("removed", ""),
            ("added", ""),
        }
        assert self.kinds({"a": {"": random(1)}}, {"a": {"": random(2)}}) == {("modified", "")}

    def test_reshaped(self):
        change = only(
            diff({"m": {"w": random(1, (10, 6))}}, {"m": {"w": random(1, (6, 10))}}).tensors
        )
        assert change.kind is Change.RESHAPED
        assert (change.changed_chunks, change.changed_bytes, change.numbers) == (0, 0, None)

    def test_reshaped_and_modified(self):
        old, new = random(1, (10, 60)), random(1, (60, 10))
        new[59, 9] += 1
        change = only(diff({"m": {"w": old}}, {"m": {"w": new}}).tensors)
        assert (change.kind, change.chunks, change.changed_chunks) == (Change.RESHAPED, 3, 1)
        assert_like_numpy(change.numbers, old.ravel(), new.ravel())

    def test_grown(self):
        old, new = random(1, (10, 100)), random(1, (12, 100))
        new[:10] = old
        change = only(diff({"m": {"w": old}}, {"m": {"w": new}}).tensors)
        # Three chunks are the same, the fourth was cut short, the fifth is new.
        assert (change.kind, change.chunks, change.changed_chunks) == (Change.RESHAPED, 5, 2)
        assert change.changed_bytes == 4800 - 3 * 1024
        assert change.numbers is None

    def test_order_of_elements(self):
        raw = random(1, 12).tobytes()
        old, new = ("f32", (3, 4), "C", raw), ("f32", (3, 4), "F", raw)
        change = only(diff({"m": {"w": old}}, {"m": {"w": new}}).tensors)
        assert change.kind == Change.MODIFIED
        one = np.frombuffer(raw, "f4").reshape(3, 4)
        turned = np.frombuffer(raw, "f4").reshape(4, 3).T
        assert_like_numpy(change.numbers, one, turned)
        same = ("f32", (3, 4), "F", one.T.tobytes())
        change = only(diff({"m": {"w": old}}, {"m": {"w": same}}).tensors)
        assert (change.kind, change.numbers) == (Change.REORDERED, None)
        (change,) = diff({"m": {"w": old}}, {"m": {"w": same}}, numbers=False).tensors
        assert change.kind == Change.MODIFIED
        other = ("f32", (3, 4), "F", random(2, 12).tobytes())
        assert numbers_of(new, other).changed == 12

    def test_order_of_bytes(self):
        old = random(1, 600)
        old[5] = np.nan
        same = (">f32", (600,), "C", old.astype(">f4").tobytes())
        change = only(diff({"m": {"w": old}}, {"m": {"w": same}}).tensors)
        assert (change.kind, change.numbers) == (Change.REORDERED, None)
        new = old.copy()
        new[7] += 1
        change = only(diff({"m": {"w": new}}, {"m": {"w": same}}).tensors)
        assert (change.kind, change.numbers.changed) == (Change.MODIFIED, 1)

    def test_order_of_what_has_another_name(self):
        old = random(1, (30, 40))
        same = ("f32", (30, 40), "F", old.T.tobytes())
        change = only(diff({"m": {"v": old}}, {"m": {"w": same}}).tensors)
        assert (change.kind, change.name) == (Change.RENAMED, "w")
        found = diff({"m": {"v": old}}, {"m": {"w": same}}, numbers=False).tensors
        assert {change.kind for change in found} == {Change.ADDED, Change.REMOVED}

    def test_order_of_a_vector_means_nothing(self):
        raw = random(1, 12).tobytes()
        old, new = ("f32", (1, 12), "C", raw), ("f32", (1, 12), "F", raw)
        assert diff({"m": {"w": old}}, {"m": {"w": new}}).tensors == ()

    def test_dtype(self):
        old = random(1, (20, 30))
        new = old.astype(ml_dtypes.bfloat16)
        change = only(diff({"m": {"w": old}}, {"m": {"w": new}}).tensors)
        assert (change.kind, change.chunks, change.changed_chunks) == (Change.DTYPE, 3, 3)
        assert change.changed_bytes == 2400
        wide = new.astype(np.float32)
        assert change.numbers.changed == np.count_nonzero(wide != old)
        assert change.numbers.largest == np.abs(wide.astype(np.float64) - old).max()
        assert change.numbers.relative == pytest.approx(
            np.linalg.norm(wide.astype(np.float64) - old) / np.linalg.norm(old)
        )

    def test_dtype_and_shape(self):
        old, new = random(1, 12), random(1, (3, 4), np.float16)
        change = only(diff({"m": {"w": old}}, {"m": {"w": new}}).tensors)
        assert (change.kind, change.numbers) == (Change.DTYPE, None)

    def test_the_same_bytes_as_another_dtype(self):
        old = np.arange(1, 700, dtype=np.int32)
        change = only(diff({"m": {"w": old}}, {"m": {"w": old.view(np.float32)}}).tensors)
        assert (change.kind, change.changed_chunks) == (Change.DTYPE, 3)
        assert change.numbers.changed == 699

    def test_empty_tensors(self):
        empty = np.zeros((0, 4), np.float32)
        assert diff({"m": {"w": empty}}, {"m": {"w": empty, "v": random(1)}}).totals.tensors == {
            Change.ADDED: 1
        }
        assert self.kinds({"m": {"w": empty}}, {"m": {"w": empty.reshape(4, 0)}}) == {
            ("reshaped", "w")
        }
        found = diff({"m": {"w": empty}}, {"m": {"w": empty.astype(np.float16)}})
        assert only(found.tensors).numbers.elements == 0
        json.dumps(found.to_json(), allow_nan=False)

    def test_only_cut_into_other_pieces(self):
        repo = Repo()
        content = {"m": {"w": random(1), "v": random(2)}}
        one = repo.commit(content)
        other = repo.commit({"m": {**content["m"], "v": random(3)}}, chunk_size=777)
        found = diff_snapshots(repo.db, one, other)
        assert [(c.kind, c.name) for c in found.tensors] == [(Change.MODIFIED, "v")]
        assert_like_numpy(found.tensors[0].numbers, random(2), random(3))

    def test_glob(self):
        old = {"a.w": random(1), "b.w": random(2), "b.x": random(3), "old": random(4)}
        new = {"a.w": random(5), "b.w": random(6), "b.x": random(7), "new": random(4)}
        assert self.kinds({"m": old}, {"m": new}, tensor="*.w") == {
            ("modified", "a.w"),
            ("modified", "b.w"),
        }
        assert self.kinds({"m": old}, {"m": new}, tensor="old") == {("renamed", "new")}
        assert self.kinds({"m": old}, {"m": new}, tensor="m:a.*") == {("modified", "a.w")}

    def test_glob_that_means_only_what_is_the_same(self):
        kept, other = {"a.w": random(1)}, {"b.w": random(2)}
        found = diff({"m": {**kept, "x": random(3)}}, {"m": {**kept, "x": random(4)}}, tensor="a.*")
        assert (found.tensors, found.totals.unchanged_tensors, len(found.files)) == ((), 1, 1)
        # In a file that is not looked into.
        found = diff({"m": kept, "n": other}, {"m": kept}, tensor="a.w")
        assert (found.tensors, found.totals.unchanged_tensors, len(found.files)) == ((), 0, 1)

    @pytest.mark.parametrize("pattern", ["b.*", "a", "M:a.w", "[a"])
    def test_glob_that_means_nothing(self, pattern):
        old, new = {"m": {"a.w": random(1)}}, {"m": {"a.w": random(2)}}
        for one, other in ((old, new), (old, old), (old, {}), ({}, new)):
            with pytest.raises(NotFoundError) as raised:
                diff(one, other, tensor=pattern)
            message = f"there is no tensor {pattern!r} in either of the two"
            assert raised.value.message == message
        assert diff(old, {}, tensor="a.?").totals.tensors == {Change.REMOVED: 1}

    def test_what_is_nearest_to_a_glob_that_means_nothing(self):
        old, new = {"m": {"encoder.weight": random(1)}}, {"n": {"encoder.bias": random(2)}}
        with pytest.raises(NotFoundError) as raised:
            diff(old, new, tensor="encoder.wieght")
        assert raised.value.hint == "nearest names: encoder.weight, encoder.bias"
        with pytest.raises(NotFoundError) as raised:
            diff(old, new, tensor="qqq")
        assert raised.value.hint == "see: mstore show REV --tensors"

    def test_names_that_are_special_in_a_glob(self):
        old, new = {"m": {"w[0]": random(1)}}, {"m": {"w[0]": random(2)}}
        assert self.kinds(old, new, tensor="w[0]") == {("modified", "w[0]")}

    def test_arrays_without_names_are_called_as_their_files(self):
        old, new = {"m.npy": {"": random(1)}}, {"m.npy": {"": random(2)}}
        assert len(diff(old, new, tensor="m.npy").tensors) == 1

    def test_without_numbers_nothing_is_read(self):
        repo = Repo()
        found = repo.diff({"m": {"w": random(1)}}, {"m": {"w": random(2)}}, numbers=False)
        change = only(found.tensors)
        assert (change.kind, change.changed_chunks, change.numbers) == (Change.MODIFIED, 4, None)
        assert repo.storage.reads == []


class TestNumbers:
    @settings(max_examples=25, deadline=None)
    @given(st.data())
    def test_like_numpy(self, data):
        kinds = [np.float32, np.float16, ml_dtypes.bfloat16, ">f4", np.int16, np.uint8, ">f8"]
        dtype = np.dtype(data.draw(st.sampled_from(kinds)))
        count = data.draw(st.integers(1, 2000))
        bits = data.draw(hnp.arrays(np.uint8, count, fill=st.nothing()))
        scale = 1 if dtype.kind in "iu" else 1 / 16
        before = (bits.astype(np.float64) * scale).astype(dtype)
        places = data.draw(st.lists(st.integers(0, count - 1), min_size=1, max_size=5))
        after = before.copy()
        after[places] = np.asarray(100, np.uint8).astype(dtype)
        if before.tobytes() != after.tobytes():
            assert_like_numpy(numbers_of(before, after), before, after)

    @pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16, np.dtype(">f2")])
    def test_not_finite(self, dtype):
        before = random(1, 2000, dtype)
        before[[3, 600, 1500]] = np.nan  # three chunks; the energy of none is known
        before[700] = np.inf
        after = before.copy()
        after[[5, 1501]] = np.inf
        after[3] = 1
        assert_like_numpy(numbers_of(before, after), before, after)
        after = before.copy()
        after[5] = 2
        found = numbers_of(before, after)
        assert (found.changed, found.nonfinite_before, found.nonfinite_after) == (1, 4, 4)
        assert_like_numpy(found, before, after)

    def test_four_bit_elements(self):
        before = ("f4", (4000,), "C", bytes(range(250)) * 8)
        raw = bytearray(before[3])
        raw[1500] ^= 0x10
        numbers = numbers_of(before, ("f4", (4000,), "C", bytes(raw)))
        assert (numbers.elements, numbers.changed) == (4000, 1)
        values = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, 0, 0.5, 1, 1.5, 2, 3, 4, 6])
        codes = np.frombuffer(before[3], np.uint8)
        energy = (values[codes & 15] ** 2).sum() + (values[codes >> 4] ** 2).sum()
        assert numbers.norm_before == pytest.approx(math.sqrt(energy))

    def test_types_with_pieces_that_do_not_fit_each_other(self):
        raw = np.random.default_rng(1).integers(0, 256, 6003, np.uint8).tobytes()
        old = ("f6_e2m3", (8004,), "C", raw)
        new = random(2, 8004, np.float64)
        numbers = numbers_of(old, new)
        assert numbers.elements == 8004
        assert numbers.norm_after == pytest.approx(np.linalg.norm(new), rel=1e-12)
        again = numbers_of(new, old)
        assert again.norm_after == pytest.approx(numbers.norm_before, rel=1e-12)
        assert again.norm_change == pytest.approx(numbers.norm_change, rel=1e-12)

    def test_packed_types_stay_on_whole_bytes(self):
        """Pieces of 2002 elements each of which takes half a byte, and of 1332 of 6 bits."""
        raw = [np.random.default_rng(n).integers(0, 256, 3003, np.uint8).tobytes() for n in (1, 2)]
        old = ("f4", (4004,), "C", raw[0][:2002])
        new = ("f6_e3m2", (4004,), "C", raw[1])
        repo = Repo()
        one, other = (repo.commit({"m": {"w": x}}, chunk_size=1001) for x in (old, new))
        found = only(diff_snapshots(repo.db, one, other).tensors).numbers.sums
        views = memoryview(old[3]), memoryview(new[3])
        expected = compare(*views, BY_NAME["f4"], BY_NAME["f6_e3m2"])
        assert found.changed == expected.changed
        assert (found.before, found.after) == pytest.approx((expected.before, expected.after))
        assert (found.change, found.largest) == pytest.approx((expected.change, expected.largest))

    def test_squares_too_small_for_the_index(self):
        before = np.full(1000, 1e-23, np.float32)
        after = before.copy()
        after[0] = 2e-23
        numbers = numbers_of(before, after)
        assert numbers.relative == pytest.approx(1 / math.sqrt(1000), rel=1e-6)

    def test_threads_change_nothing(self):
        repo = Repo()
        old = {f"w{n}": random(n, 300_000) for n in range(8)}
        new = {name: value + np.float32(0.5) for name, value in old.items()}
        one = repo.commit({"m": old}, chunk_size=1 << 16)
        other = repo.commit({"m": new}, chunk_size=1 << 16)
        found = [diff_snapshots(repo.db, one, other, threads=n) for n in (1, 2, 5)]
        assert found[0] == found[1] == found[2]

    def test_progress(self):
        told = []
        diff({"m": {"w": random(1)}}, {"m": {"w": random(2)}}, progress=told.append)
        assert sum(told) == 8000


class TestReading:
    def test_only_changed_chunks_are_read(self):
        repo = Repo()
        before = random(1, 100_000)
        after = before.copy()
        after[77_777] = 12
        found = repo.diff({"m": {"w": before, "v": before}}, {"m": {"w": after, "v": before}})
        assert len(repo.storage.reads) == 2
        assert sum(repo.storage.reads) < 2 * (1024 + 200)
        change = only(found.tensors)
        assert (change.chunks, change.changed_chunks, change.changed_bytes) == (391, 1, 1024)
        assert_like_numpy(change.numbers, before, after)

    def test_unchanged_chunks_of_unknown_energy_are_read_once(self):
        repo = Repo()
        before = random(1, 4 << 15)
        before[40_000] = np.nan
        after = before.copy()
        after[-1] = 5
        # Chunks so large that what lies between two is not read along with them.
        one, other = (repo.commit({"m": {"w": x}}, chunk_size=4 << 15) for x in (before, after))
        found = diff_snapshots(repo.db, one, other)
        # Of four: number 1 for its NaN, and number 3 of both versions.
        assert len(repo.storage.reads) == 3
        assert sum(repo.storage.reads) < 3 * (4 << 15)
        assert_like_numpy(only(found.tensors).numbers, before, after)

    def test_energy_of_another_dtype_is_not_used(self):
        repo = Repo()
        words = np.arange(1, 1025, dtype=np.int32) << 18
        repo.commit({"other": {"w": words}})
        before = words.view(np.float32)
        after = before.copy()
        after[1000] = 5
        found = repo.diff({"m": {"w": before}}, {"m": {"w": after}})
        assert_like_numpy(only(found.tensors).numbers, before, after)

    def test_memory_is_bounded(self):
        """Tensors of 48 MiB each way; zeros, so that packs are small."""
        repo = Repo()
        before = np.zeros((3 << 10, 4 << 10), np.float32)
        after = before + np.float32(1)
        one = repo.commit({"m": {"w": before}}, chunk_size=1 << 18)
        other = repo.commit({"m": {"w": after}}, chunk_size=1 << 18)
        third = repo.commit({"m": {"w": after.astype(np.float16)}}, chunk_size=1 << 18)
        for pair in ((one, other), (one, third)):
            tracemalloc.start()
            found = diff_snapshots(repo.db, *pair, threads=2)
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
            assert only(found.tensors).numbers.changed == before.size
            assert peak < 36 << 20

    def test_damage_is_told(self):
        repo = Repo()
        one = repo.commit({"m": {"w": random(1)}})
        other = repo.commit({"m": {"w": random(2)}})
        for info in list(repo.storage.list("packs/")):
            data = bytearray(repo.storage.get(info.key))
            data[300] ^= 1
            if info.key.startswith("packs/d"):
                repo.storage.delete(info.key)
                repo.storage.put(info.key, [bytes(data)])
        with pytest.raises(CorruptDataError):
            diff_snapshots(repo.db, one, other)


class TestWorkingDirectory:
    """The later side is files that are not in the repository."""

    def side(self, repo, contents, base=None):
        files = {path: file_of(content) for path, content in contents.items()}
        hashed = {
            path: describe_file(*file, chunk_size=1 << 10, threads=2)
            for path, file in files.items()
        }
        entries = dict(base.files) if base else {}
        for path, manifest in hashed.items():
            entries[path] = FileEntry(encode_object(manifest)[1], manifest.size)
        return FileSide(repo.db, Snapshot(entries), hashed, lambda path: files[path][0])

    def test_like_committed(self):
        repo = Repo()
        old = {"m": {"w": random(1, 3000), "v": random(2)}, "n": {"u": random(3)}, "t": b"text"}
        new = {"m": {"w": random(1, 3000), "v": random(4)}, "n": {"u": random(5)}, "t": b"texts"}
        new["m"]["w"][2000] = 3
        one = repo.commit(old)
        side = self.side(repo, new)
        found = diff_sides(repo.db, StoredSide(repo.db, one), side)
        assert found == diff_snapshots(repo.db, one, repo.commit(new))
        assert len(found.tensors) == 3
        assert found.tensors[0].numbers is not None

    def test_unmodified_files_come_from_the_repository(self):
        repo = Repo()
        old = {"m": {"w": random(1)}, "k": {"w": random(2)}}
        one = repo.commit(old)
        two = repo.commit({"m": {"w": random(3)}, "k": {"w": random(4)}})
        side = self.side(repo, {"m": {"w": random(5)}}, base=two)
        found = diff_sides(repo.db, StoredSide(repo.db, one), side)
        numbers = {change.path: change.numbers for change in found.tensors}
        assert_like_numpy(numbers["m"], random(1), random(5))
        assert_like_numpy(numbers["k"], random(2), random(4))

    def test_two_working_directories(self):
        """Not in the repository at all, so that no energy is known."""
        repo = Repo()
        before, after = random(1), random(1)
        after[1] = 7
        sides = [self.side(repo, {"m": {"w": value}}) for value in (before, after)]
        found = diff_sides(repo.db, *sides)
        assert_like_numpy(only(found.tensors).numbers, before, after, rel=1e-12)

    def test_a_file_that_changed_since_it_was_hashed(self):
        repo = Repo()
        one = repo.commit({"m": {"w": random(1)}})
        side = self.side(repo, {"m": {"w": random(2)}})
        for other in (random(3), random(2, 999)):
            side._open_source = lambda path, other=other: file_of({"w": other})[0]
            with pytest.raises(ConflictError, match="m changed"):
                diff_sides(repo.db, StoredSide(repo.db, one), side)


class TestResult:
    def test_what_matters_comes_first(self):
        base = {name: random(1) for name in ("little", "much", "zero", "broken", "cast", "shape")}
        base |= {"zero": np.zeros(5, np.float32), "gone": random(2), "called": random(3)}
        new = {
            "little": base["little"] * np.float32(1.001),
            "much": base["much"] * np.float32(2),
            "zero": np.ones(5, np.float32),
            "broken": base["broken"].copy(),
            "cast": base["cast"].astype(np.float16),
            "shape": base["shape"].reshape(10, 100),
            "named": base["called"],
            "new": random(9, 10),
        }
        new["broken"][1] = np.nan
        names = [change.name for change in diff({"m": base}, {"m": new}).tensors]
        expected = ["broken", "cast", "shape", "gone", "new", "zero", "much", "little", "named"]
        assert names == expected

    def test_totals(self):
        old = {"a": random(1), "b": random(2, 500), "step": np.array([10**6])}
        new = {"a": random(3), "b": random(4, 500), "step": np.array([2 * 10**6])}
        totals = diff({"m": old}, {"m": new}).totals
        assert totals.tensors == {Change.MODIFIED: 3}
        assert (totals.elements, totals.changed_elements) == (1501, 1501)
        # The counter is not part of the norms.
        one, other = (np.concatenate((x["a"], x["b"])) for x in (old, new))
        assert_like_numpy(totals.numbers, one, other)
        assert totals.changed_bytes == 6008
        assert totals.changed_chunks == 4 + 2 + 1

    def test_json(self):
        old = {"m": {"a": random(1), "b": np.zeros(3, np.float32), "c": random(4)}, "t\udcff": b"1"}
        new = {"m": {"a": random(2), "b": np.full(3, np.inf, np.float32)}, "u": b"22"}
        found = diff(old, new)
        told = json.loads(json.dumps(found.to_json(), allow_nan=False))
        assert [file["kind"] for file in told["files"]] == ["modified", "removed", "added"]
        assert told["files"][1]["path"] == "t\udcff"
        by_name = {one["name"]: one for one in told["tensors"]}
        assert by_name["a"]["before"]["dtype"] == "f32"
        assert by_name["a"]["after"]["shape"] == [1000]
        assert by_name["a"]["numbers"]["fraction_changed"] == 1
        assert by_name["b"]["numbers"]["relative_change"] == 0
        assert by_name["b"]["numbers"]["nonfinite_after"] == 3
        assert by_name["c"]["after"] is None
        assert told["totals"]["tensors"] == {"removed": 1, "modified": 2}
