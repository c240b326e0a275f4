"""Sketches: what they are made of, and the objects that keep them."""

from dataclasses import replace

import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from mstore.database import Database
from mstore.dtypes import BY_NAME
from mstore.errors import CorruptDataError, MstoreError, UnsupportedVersionError
from mstore.layout import Tensor
from mstore.root import SketchRef, decode
from mstore.root import encode as encode_root
from mstore.sketches import (
    HEAD,
    PLACES,
    REACH,
    ROW_DTYPE,
    SAMPLES,
    Files,
    Rows,
    Sketches,
    class_of,
    encode,
    file_row,
    joined,
    merge_sketches,
    spread_of,
    store_sketches,
    values_of,
)
from mstore.storage.memory import MemoryStorage


def made(*rows: tuple[int, int, int, float], seed: int = 0) -> Rows:
    """Rows of (class, file, segment, spread), with any values."""
    made = np.zeros(len(rows), ROW_DTYPE)
    for number, (key, file, segment, spread) in enumerate(rows):
        made[number]["class"], made[number]["file"] = key, file
        made[number]["segment"], made[number]["spread"] = segment, spread
    made["samples"] = np.random.default_rng(seed).integers(0, 1 << 16, (len(rows), SAMPLES))
    return made


def files(count: int) -> Files:
    return np.concatenate([file_row(bytes([n]) * 32, "m", f"f{n}") for n in range(count)])


def opened(all_files: Files, rows: Rows) -> Sketches:
    return Sketches("x", memoryview(b"".join(encode(all_files, rows))))


def content(sketches: Sketches) -> set[tuple[object, ...]]:
    """Everything a row says, whatever the order."""
    rows = sketches.table()
    return {
        (
            int(row["class"]),
            sketches.files[row["file"]]["manifest"].tobytes(),
            int(row["segment"]),
            float(row["spread"]),
            row["samples"].tobytes(),
        )
        for row in rows
    }


class TestPlaces:
    def test_they_are_distinct_and_within_reach(self):
        assert len(set(PLACES.tolist())) == SAMPLES
        assert (PLACES.min() >= 0, PLACES.max() < REACH) == (True, True)

    def test_the_head_is_from_all_over(self):
        stretches = np.sort(PLACES[:HEAD] // (REACH // HEAD))
        assert stretches.tolist() == list(range(HEAD))

    def test_they_never_change(self):
        """Sketches that are stored mean these words."""
        assert PLACES[:5].tolist() == [0, 548, 1096, 1644, 2064]
        assert PLACES[-3:].tolist() == [15343, 15763, 16311]


class TestClasses:
    @pytest.mark.parametrize("dtype", ["f16", "bf16", "f32", "f64", ">f32"])
    def test_casts_of_a_tensor_are_in_one(self, dtype):
        tensor = Tensor("w", BY_NAME[dtype], (128, 128))
        assert class_of(tensor) == class_of(Tensor("w", BY_NAME["f32"], (128, 128))) is not None

    def test_rows_added_make_no_difference(self):
        one, other = (Tensor("w", BY_NAME["f32"], (n, 64, 2)) for n in (200, 5000))
        assert class_of(one) == class_of(other)

    @pytest.mark.parametrize(
        "other",
        [
            Tensor("w", BY_NAME["f32"], (128, 256)),
            Tensor("w", BY_NAME["i32"], (256, 128)),
            Tensor("w", BY_NAME["f32"], (256, 128), "F"),
            Tensor("w", BY_NAME["f8_e4m3"], (256, 128)),
        ],
    )
    def test_what_cannot_be_compared_is_apart(self, other):
        assert class_of(Tensor("w", BY_NAME["f32"], (256, 128))) != class_of(other)

    def test_column_major_rows_are_columns(self):
        one, other = (Tensor("w", BY_NAME["f32"], (64, n), "F") for n in (300, 400))
        assert class_of(one) == class_of(other) != class_of(Tensor("w", BY_NAME["f32"], (400, 64)))

    def test_short_tensors_have_none(self):
        assert class_of(Tensor("w", BY_NAME["f32"], (REACH - 1,))) is None
        assert class_of(Tensor("w", BY_NAME["f32"], (REACH,))) is not None
        assert class_of(Tensor("w", BY_NAME["f32"], (0, 1 << 20))) is None

    @given(st.sampled_from(list(BY_NAME.values())), st.lists(st.integers(1, 4096), max_size=4))
    def test_any_tensor_has_a_class_of_64_bits(self, dtype, shape):
        key = class_of(Tensor("w", dtype, (*shape, 4)))
        assert key is None or 0 <= key < 1 << 64


class TestObjects:
    def test_rows_come_back_by_class_and_spread(self):
        rows = made((7, 0, 1, 3.0), (5, 1, 2, 9.0), (7, 1, 3, 1.0), (5, 0, 4, 2.0))
        sketches = opened(files(2), rows)
        sketches.check()
        assert (sketches.rows_of(5), sketches.rows_of(7)) == (slice(0, 2), slice(2, 4))
        assert sketches.rows_of(6) == sketches.rows_of(8) == slice(0, 0)
        assert sketches.spreads.tolist() == [2, 9, 1, 3]
        assert sketches.origins["segment"].tolist() == [4, 2, 3, 1]
        np.testing.assert_array_equal(sketches.heads[1], rows[1]["samples"][:HEAD])
        np.testing.assert_array_equal(sketches.tails[1], rows[1]["samples"][HEAD:])

    def test_each_tensor_and_each_file_is_kept_once(self):
        twice = joined([(files(2), made((1, 0, 0, 1.0), (1, 1, 0, 2.0))) for _ in range(2)])
        unused = (files(4)[3:], made())
        sketches = opened(*joined([twice, unused]))
        assert (sketches.count, len(sketches.files)) == (2, 2)

    def test_an_empty_one(self):
        sketches = opened(files(1), made())
        sketches.check()
        assert (sketches.count, len(sketches.table()), sketches.rows_of(1)) == (0, 0, slice(0, 0))

    @given(
        st.lists(
            st.tuples(
                st.integers(0, 3), st.integers(0, 3), st.integers(0, 50), st.floats(0, 10, width=32)
            ),
            unique_by=lambda row: row[1:3],
            max_size=30,
        ),
        st.integers(0, 30),
    )
    @settings(max_examples=60)
    def test_merging_loses_nothing(self, rows, cut):
        storage = MemoryStorage()
        every = made(*rows)
        refs = [store_sketches(storage, files(4), part) for part in (every[:cut], every[cut:])]
        merged = opened(*merge_sketches(storage, refs))
        merged.check()
        assert content(merged) == content(opened(files(4), every))
        assert merged.count == len(rows)

    def test_stored_ones_are_found_by_their_ref(self):
        storage = MemoryStorage()
        ref = store_sketches(storage, files(1), made((1, 0, 0, 1.0)))
        assert (ref.count, ref.size) == (1, len(storage.get(ref.key)))
        assert Sketches.open(storage, ref).count == 1
        with pytest.raises(CorruptDataError, match="listed"):
            Sketches.open(storage, SketchRef(ref.name, 2, ref.size))


class TestDamage:
    stored = b"".join(encode(files(2), made((5, 0, 1, 3.0), (7, 1, 2, 9.0))))

    @given(st.integers(0, len(stored) - 1), st.integers(1, 255))
    @settings(max_examples=200)
    def test_no_flipped_byte_passes(self, at, flip):
        damaged = bytearray(self.stored)
        damaged[at] ^= flip
        with pytest.raises((CorruptDataError, UnsupportedVersionError)):
            Sketches("x", memoryview(bytes(damaged))).check()

    @given(st.integers(0, len(stored) - 1))
    def test_none_that_is_cut_short_is_opened(self, length):
        with pytest.raises(CorruptDataError):
            Sketches("x", memoryview(self.stored[:length]))

    @given(st.binary(max_size=200))
    def test_anything_else_is_refused(self, data):
        with pytest.raises(MstoreError):
            Sketches("x", memoryview(b"MSTORESK" + data))

    def test_mergers_leave_it_out(self):
        storage = MemoryStorage()
        refs = [store_sketches(storage, files(2), made((5, n, 1, 3.0))) for n in range(2)]
        storage.put("sketches/bad", [self.stored[:-1] + bytes([self.stored[-1] ^ 1])])
        gone = SketchRef("gone", 1, 1)
        bad = SketchRef("bad", 2, len(self.stored))
        assert len(merge_sketches(storage, [refs[0], bad, gone, refs[1]])[1]) == 2


class TestRoot:
    def test_it_lists_them(self):
        root = Database.create(MemoryStorage(), "Ada").root
        listed = replace(root, sketches=(SketchRef("a", 3, 900), SketchRef("b", 1, 500)))
        assert decode(encode_root(listed), 1) == listed

    def test_without_any_it_is_as_before_there_were_any(self):
        root = Database.create(MemoryStorage(), "Ada").root
        stored = zstandard.ZstdDecompressor().decompress(encode_root(root)[20:])
        assert b"sketches" not in stored
        assert decode(encode_root(root), 1).sketches == ()


def test_values_are_bfloat16():
    words = np.array([0x3F80, 0xC000, 0x0000], np.uint16)
    assert values_of(words).tolist() == [1, -2, 0]


def test_spread_is_the_norm_without_the_mean():
    values = np.array([[1, 3, 5, 7], [9, 9, 9, 9]], np.float32)
    np.testing.assert_allclose(spread_of(values), [np.sqrt(20), 0])
