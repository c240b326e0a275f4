import math

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mstore.codecs.energy import sum_of_squares
from mstore.dtypes import BY_NAME, DType

WHOLE_BYTES = sorted(name for name, dtype in BY_NAME.items() if dtype.bits >= 8)


def array_type(dtype: DType) -> np.dtype[np.generic]:
    return np.dtype(getattr(ml_dtypes, dtype.numpy, dtype.numpy))


def raw_bytes(values: npt.NDArray[np.generic], dtype: DType) -> memoryview:
    words = values.view(f"u{dtype.word}")
    return memoryview((words.byteswap() if dtype.big_endian else words).tobytes())


@pytest.mark.parametrize("name", WHOLE_BYTES)
@pytest.mark.parametrize("count", [1, 7, 1000, 150_001])
def test_it_is_the_sum_of_squares_in_double_precision(name: str, count: int) -> None:
    dtype = BY_NAME[name]
    values = np.random.default_rng(count).normal(0, 3, count)
    if dtype.family in ("uint", "bool") or name == "f8_e8m0":
        values = np.abs(values)
    typed = values.astype(array_type(dtype))
    if dtype.family == "complex":
        typed = typed * np.array(1 + 2j, typed.dtype)
    wide = typed.astype(np.complex128 if dtype.family == "complex" else np.float64)
    expected = float((np.abs(wide) ** 2).sum())
    assert sum_of_squares(raw_bytes(typed, dtype), dtype) == pytest.approx(
        expected, rel=1e-6, abs=0
    )


@pytest.mark.parametrize("name", [n for n in WHOLE_BYTES if n.startswith("f8")])
def test_any_byte_of_a_type_of_one(name: str) -> None:
    """ml_dtypes knows the values too."""
    dtype = BY_NAME[name]
    values = np.arange(256, dtype=np.uint8).view(array_type(dtype)).astype(np.float64)
    found = [sum_of_squares(memoryview(bytes([byte])), dtype) for byte in range(256)]
    expected = np.where(np.isfinite(values), np.square(values), np.nan)
    # The square of the largest power of two, 2^254, and some more are no float32.
    expected[expected > np.finfo(np.float32).max] = np.nan
    np.testing.assert_array_equal(found, expected)


@given(st.binary(max_size=64).map(lambda raw: raw[: len(raw) // 2 * 2]))
def test_any_bfloat16_bits(raw: bytes) -> None:
    with np.errstate(invalid="ignore"):
        values = np.frombuffer(raw, ml_dtypes.bfloat16).astype(np.float64)
    total = float(np.square(values).sum())
    expected = total if total <= float(np.finfo(np.float32).max) else math.nan
    found = sum_of_squares(memoryview(raw), BY_NAME["bf16"])
    assert found == pytest.approx(expected, rel=1e-6, abs=0, nan_ok=True)


@pytest.mark.parametrize("name", WHOLE_BYTES)
def test_a_tensor_without_elements_has_none(name: str) -> None:
    assert sum_of_squares(memoryview(b""), BY_NAME[name]) == 0


@given(st.binary(max_size=64).map(lambda raw: raw[: len(raw) // 2 * 2]))
def test_any_float16_bits(raw: bytes) -> None:
    values = np.frombuffer(raw, np.float16).astype(np.float64)
    expected = float(np.square(values).sum()) if np.isfinite(values).all() else math.nan
    found = sum_of_squares(memoryview(raw), BY_NAME["f16"])
    assert found == pytest.approx(expected, rel=1e-6, abs=0, nan_ok=True)


@pytest.mark.parametrize(
    "name", [n for n in WHOLE_BYTES if n.lstrip(">")[0] in "fbc" and n != "bool"]
)
@pytest.mark.parametrize("special", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_has_no_energy(name: str, special: float) -> None:
    dtype = BY_NAME[name]
    values = np.ones(100_000, np.float64)
    values[-1] = special
    with np.errstate(invalid="ignore"):
        typed = values.astype(array_type(dtype))
    if np.isfinite(typed.astype(np.complex128)).all():
        pytest.skip("the type has no such value")
    assert math.isnan(sum_of_squares(raw_bytes(typed, dtype), dtype))


@pytest.mark.parametrize("value", [1e20, -3e38])
def test_what_float32_cannot_hold_is_not_a_number(value: float) -> None:
    assert math.isnan(sum_of_squares(memoryview(np.full(9, value).tobytes()), BY_NAME["f64"]))
    assert math.isnan(
        sum_of_squares(memoryview(np.full(9, value, np.float32).tobytes()), BY_NAME["f32"])
    )


def test_overflow_of_double_precision_is_not_a_number() -> None:
    assert math.isnan(sum_of_squares(memoryview(np.full(9, 1e300).tobytes()), BY_NAME["f64"]))


def test_small_values_do_not_vanish() -> None:
    """As in the second moments of an optimizer, whose squares are below the smallest float32."""
    raw = memoryview(np.full(100_000, 1e-20, np.float32).tobytes())
    assert sum_of_squares(raw, BY_NAME["f32"]) == pytest.approx(1e-35, rel=1e-6, abs=0)


@pytest.mark.parametrize("name", [None, "f4", "f6_e2m3", "f6_e3m2"])
def test_opaque_bytes_and_types_below_a_byte_have_no_energy(name: str | None) -> None:
    assert math.isnan(sum_of_squares(memoryview(bytes(12)), BY_NAME[name] if name else None))


def test_broken_elements_have_no_energy() -> None:
    assert math.isnan(sum_of_squares(memoryview(bytes(7)), BY_NAME["f32"]))


def test_unaligned_memory_is_read() -> None:
    raw = memoryview(b"\0" + np.arange(10, dtype=np.float32).tobytes())[1:]
    assert sum_of_squares(raw, BY_NAME["f32"]) == 285
