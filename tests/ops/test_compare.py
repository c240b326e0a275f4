import math
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from mstore.dtypes import BY_NAME, DType
from mstore.numpy_dtypes import array_from_bytes, numpy_dtype
from mstore.ops.compare import Numbers, Sums, compare, sums_of_same

ALL = sorted(BY_NAME)
FEW = settings(max_examples=15)
RUN = 3 * 16  # bytes that are whole elements of every type


def raw(array):
    return memoryview(np.ascontiguousarray(array).reshape(-1).view(np.uint8))


def elements(data, dtype: DType):
    return len(data) * 8 // dtype.bits


def plain(before, after, old, new):
    """The sums by numpy, straightforwardly, element by element."""
    count = elements(before, old)
    one = array_from_bytes(bytes(before), old, (count,))
    other = array_from_bytes(bytes(after), new, (count,))
    if old == new:
        width = one.dtype.itemsize
        bits = one.view(np.uint8).reshape(count, width), other.view(np.uint8).reshape(count, width)
        changed = int((bits[0] != bits[1]).any(axis=1).sum())
    with np.errstate(all="ignore"):
        if old.family == "bool":
            one = np.frombuffer(before, np.uint8) != 0
        if new.family == "bool":
            other = np.frombuffer(after, np.uint8) != 0
        a, b = one.astype(np.complex128), other.astype(np.complex128)
        if old != new:
            parts = [np.stack((x.real, x.imag)) for x in (a, b)]
            equal = (parts[0] == parts[1]) | (np.isnan(parts[0]) & np.isnan(parts[1]))
            changed = int((~equal.all(axis=0)).sum())
        fine = [np.isfinite(x.real) & np.isfinite(x.imag) for x in (a, b)]
        both = fine[0] & fine[1]
        a, b = a[both], b[both]
        distance = np.abs(a - b)
        if old == new and old.bits == 64 and old.family in ("int", "uint"):
            pairs = zip(one[both].tolist(), other[both].tolist(), strict=True)
            distance = np.array([float(abs(x - y)) for x, y in pairs])
        return Sums(
            changed,
            float((np.abs(a) ** 2).sum()),
            float((np.abs(b) ** 2).sum()),
            float((distance**2).sum()),
            float((a * b.conj()).real.sum()),
            float(distance.max(initial=0.0)),
            int((~fine[0]).sum()),
            int((~fine[1]).sum()),
        )


def assert_close(found: Sums, expected: Sums):
    assert found.changed == expected.changed
    assert found.nonfinite_before == expected.nonfinite_before
    assert found.nonfinite_after == expected.nonfinite_after
    for name in ("before", "after", "change", "largest"):
        assert getattr(found, name) == pytest.approx(getattr(expected, name), rel=1e-9), name
    slack = 1e-9 * math.sqrt(expected.before) * math.sqrt(expected.after)
    assert found.product == pytest.approx(expected.product, rel=1e-9, abs=slack)


def runs(size=RUN):
    """Any bytes, with the odd ones (all bits set, sign only, an infinity's) seen often."""
    byte = st.one_of(st.integers(0, 255), st.sampled_from([0x00, 0x7F, 0x80, 0xFF, 0x7C, 0xF8]))
    return hnp.arrays(np.uint8, size, elements=byte)


class TestLikeTypes:
    @pytest.mark.parametrize("name", ALL)
    @FEW
    @given(before=runs(), after=runs(), same=hnp.arrays(np.bool_, RUN))
    def test_as_plain_numpy(self, name, before, after, same):
        after = np.where(same, before, after)
        found = compare(raw(before), raw(after), BY_NAME[name], BY_NAME[name])
        expected = plain(before.tobytes(), after.tobytes(), BY_NAME[name], BY_NAME[name])
        if not math.isfinite(expected.before + expected.after + expected.change):
            assert found.changed == expected.changed
            return
        assert_close(found, expected)

    @pytest.mark.parametrize("name", ALL)
    @FEW
    @given(data=runs())
    def test_the_same_on_both_sides(self, name, data):
        dtype = BY_NAME[name]
        found = sums_of_same(raw(data), dtype)
        assert found == compare(raw(data), raw(data), dtype, dtype)
        assert found.changed == found.change == found.largest == 0
        expected = plain(data.tobytes(), data.tobytes(), dtype, dtype)
        if math.isfinite(expected.before):
            assert_close(found, expected)

    @pytest.mark.parametrize("name", ["f32", "bf16", "f16", ">f32", "f64", "c64", "f8_e5m2", "i64"])
    def test_many_blocks(self, name):
        rng = np.random.default_rng(1)
        dtype = BY_NAME[name]
        count = 150_001
        if name == "f8_e5m2":
            before = rng.integers(0, 0x60, count, np.uint8)
            after = before ^ (rng.random(count) < 0.1)
        else:
            values = rng.standard_normal(count) * 100
            before = values.astype(numpy_dtype(dtype))
            after = before.copy()
            after[70_000:140_000:3] += 1
        found = compare(raw(before), raw(after), dtype, dtype)
        assert found.changed > 10_000
        assert_close(found, plain(raw(before), raw(after), dtype, dtype))

    def test_changed_is_by_bits(self):
        nan = np.array([0x7FC00000, 0x7FC00001, 0x80000000], np.uint32)
        other = np.array([0x7FC00000, 0x7FC00002, 0x00000000], np.uint32)
        found = compare(raw(nan), raw(other), BY_NAME["f32"], BY_NAME["f32"])
        assert found == Sums(changed=2, nonfinite_before=2, nonfinite_after=2)

    def test_an_infinity_spoils_only_itself(self):
        before = np.array([3, np.inf, 1, 0], np.float32)
        after = np.array([0, 5, np.nan, 4], np.float32)
        found = compare(raw(before), raw(after), BY_NAME["f32"], BY_NAME["f32"])
        assert found == Sums(4, 9, 16, 25, 0, 4, nonfinite_before=1, nonfinite_after=1)

    def test_large_integers_are_subtracted_exactly(self):
        before = np.array([2**62, -(2**63), 0], np.int64)
        after = np.array([2**62 + 1, 2**63 - 1, 0], np.int64)
        found = compare(raw(before[:1]), raw(after[:1]), BY_NAME["i64"], BY_NAME["i64"])
        assert (found.change, found.largest) == (1, 1)
        found = compare(raw(before), raw(after), BY_NAME["i64"], BY_NAME["i64"])
        assert found.largest == 2.0**64

    def test_memory_does_not_grow_with_the_run(self):
        data = np.ones(1 << 22, np.float32)
        other = data + np.float32(1)
        tracemalloc.start()
        compare(raw(data), raw(other), BY_NAME["f32"], BY_NAME["f32"])
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 4 << 20


class TestUnlikeTypes:
    @pytest.mark.parametrize("old", ["f32", "bf16", ">f64", "i16", "bool", "f8_e4m3", "c64", "f4"])
    @pytest.mark.parametrize("new", ["f16", ">f32", "u8", "c128", "f6_e2m3", "f8_e8m0"])
    @FEW
    @given(data=st.data())
    def test_as_plain_numpy(self, old, new, data):
        count = 16
        before = data.draw(runs(count * BY_NAME[old].bits // 8))
        after = data.draw(runs(count * BY_NAME[new].bits // 8))
        found = compare(raw(before), raw(after), BY_NAME[old], BY_NAME[new])
        expected = plain(before.tobytes(), after.tobytes(), BY_NAME[old], BY_NAME[new])
        if math.isfinite(expected.before + expected.after + expected.change):
            assert_close(found, expected)

    def test_a_cast_without_loss_changes_nothing(self):
        before = np.array([1, -2.5, np.nan, np.inf], np.float32)
        found = compare(raw(before), raw(before.astype(">f8")), BY_NAME["f32"], BY_NAME[">f64"])
        assert found == Sums(0, 7.25, 7.25, 0, 7.25, nonfinite_before=2, nonfinite_after=2)

    def test_runs_of_other_lengths_are_refused(self):
        with pytest.raises(ValueError, match="numbers of elements"):
            compare(memoryview(bytes(8)), memoryview(bytes(8)), BY_NAME["f32"], BY_NAME["f64"])


class TestNumbers:
    @given(
        hnp.arrays(np.float64, 20, elements=st.floats(-1e6, 1e6, width=32)),
        hnp.arrays(np.float64, 20, elements=st.floats(-1e6, 1e6, width=32)),
    )
    def test_ratios(self, before, after):
        sums = compare(raw(before), raw(after), BY_NAME["f64"], BY_NAME["f64"])
        numbers = Numbers(20, sums)
        norms = np.linalg.norm(before), np.linalg.norm(after)
        moved = np.linalg.norm(after - before)
        assert numbers.norm_before == pytest.approx(norms[0])
        assert numbers.norm_after == pytest.approx(norms[1])
        assert numbers.norm_change == pytest.approx(moved)
        assert numbers.fraction == numbers.changed / 20
        if norms[0] > 1e-100 and moved > 1e-100:
            assert numbers.relative == pytest.approx(moved / norms[0])
        if norms[0] > 1e-100 and norms[1] > 1e-100:
            cosine = float((before * after).sum() / norms[0] / norms[1])
            assert numbers.cosine == pytest.approx(cosine, abs=1e-12)

    def test_from_zero(self):
        numbers = Numbers(2, Sums(changed=1, after=4.0, change=4.0, largest=2.0))
        assert numbers.relative is None
        assert numbers.cosine is None
        assert Numbers(2, Sums(changed=1)).relative == 0  # 0.0 became -0.0

    def test_of_nothing(self):
        numbers = Numbers(0, Sums())
        assert (numbers.fraction, numbers.relative, numbers.cosine) == (0, 0, None)

    def test_beyond_float64_there_is_no_number(self):
        huge = np.array([1e300, 1.0])
        numbers = Numbers(2, compare(raw(huge), raw(-huge), BY_NAME["f64"], BY_NAME["f64"]))
        assert numbers.relative is None
        assert numbers.cosine is None
        assert numbers.largest == 2e300
        told = numbers.to_json()
        assert told["norm_before"] is None
        assert told["nonfinite_after"] == 0

    def test_they_add_up(self):
        one = Numbers(2, Sums(1, 2.0, 3.0, 4.0, 5.0, 6.0, 7, 8))
        other = Numbers(3, Sums(10, 20.0, 30.0, 40.0, 50.0, 0.5, 70, 80))
        assert one + other == Numbers(5, Sums(11, 22.0, 33.0, 44.0, 55.0, 6.0, 77, 88))
