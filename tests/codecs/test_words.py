import ctypes
import ctypes.util
import itertools
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mstore.codecs.words import (
    Words,
    WordType,
    cast,
    comparable,
    exponents,
    mantissas,
    mirror,
    ulps,
    unzigzag,
    word_type,
    zigzag,
)
from mstore.dtypes import BY_NAME

FLOATS = ["f16", "bf16", "f32", "f64"]
PAIRS = list(itertools.permutations(FLOATS, 2))
NUMPY = {"f16": np.float16, "bf16": ml_dtypes.bfloat16, "f32": np.float32, "f64": np.float64}
EXPONENT_BITS = {"f16": 5, "bf16": 8, "f32": 8, "f64": 11}


def kind_of(name: str) -> WordType:
    return word_type(BY_NAME[name])


def special_words(name: str) -> list[int]:
    """The words next to all bounds: of zero, denormals, each exponent, infinity and NaNs."""
    kind = kind_of(name)
    top = (1 << EXPONENT_BITS[name]) - 1
    bounds = [exponent << kind.mantissa for exponent in range(top + 1)]
    # Halfway between two numbers of each narrower type, and just beside it.
    halves = [
        bound + offset
        for bound in bounds
        for narrower in (7, 10, 23)
        if narrower < kind.mantissa
        for last in (0, 1 << (kind.mantissa - narrower))
        for offset in [last + (1 << (kind.mantissa - narrower - 1))]
    ]
    quiet = bounds[-1] | 1 << (kind.mantissa - 1)
    near = {word + step for word in bounds + halves + [quiet] for step in (-1, 0, 1)}
    sign = 1 << (8 * kind.size - 1)
    return sorted({word | extra for word in near if 0 <= word < sign for extra in (0, sign)})


def words_of(name: str) -> Words:
    """All words of a short type; special and random ones, of all magnitudes, of a long one."""
    kind = kind_of(name)
    if kind.size == 2:
        return np.arange(1 << 16, dtype=np.uint16)
    rng = np.random.default_rng(7)
    magnitudes = rng.normal(0, 1, 100_000) * 2.0 ** rng.uniform(-160, 130, 100_000)
    # Multiples of half the smallest number of f32 and of f16, and their neighbours.
    halves = np.arange(-4097, 4098) * np.array([[2.0**-150], [2.0**-25]])
    with np.errstate(over="ignore"):
        numbers = np.append(magnitudes, halves).astype(NUMPY[name]).view(kind.native)
    anything = np.frombuffer(rng.bytes(100_000 * kind.size), kind.native)
    nans = anything[:3000] | kind.native.type(((1 << EXPONENT_BITS[name]) - 1) << kind.mantissa)
    special = np.array(special_words(name), kind.native)
    return np.concatenate([special, anything, nans, numbers, numbers - 1, numbers + 1])


def nan_as_documented(word: int, source: str, target: str) -> int:
    """A NaN of `source` as one of `target`, by way of f32 as the documentation has it."""
    for wide, narrow in ((source, "f32"), ("f32", target)):
        one, other = kind_of(wide), kind_of(narrow)
        sign = word >> (8 * one.size - 1)
        mantissa = word & ((1 << one.mantissa) - 1)
        if other.mantissa >= one.mantissa:
            mantissa <<= other.mantissa - one.mantissa
        else:
            mantissa = mantissa >> (one.mantissa - other.mantissa) | 1 << (other.mantissa - 1)
        exponent = (1 << EXPONENT_BITS[narrow]) - 1
        word = (sign << EXPONENT_BITS[narrow] | exponent) << other.mantissa | mantissa
    return word


def is_nan(words: Words, name: str) -> np.ndarray:
    infinity = ((1 << EXPONENT_BITS[name]) - 1) << kind_of(name).mantissa
    return (words & words.dtype.type((1 << (8 * words.itemsize - 1)) - 1)) > infinity


def cast_by_numpy(words: Words, source: str, target: str) -> Words:
    with np.errstate(all="ignore"):
        singles = words.view(NUMPY[source]).astype(np.float32)
        return singles.astype(NUMPY[target]).view(kind_of(target).native)


@pytest.mark.parametrize(("source", "target"), PAIRS)
def test_casts_are_those_of_numpy_and_keep_nans_as_documented(source: str, target: str) -> None:
    words = words_of(source)
    before = words.copy()
    found = cast(words, kind_of(source), kind_of(target))
    assert found.dtype == kind_of(target).native
    np.testing.assert_array_equal(words, before)
    nan = is_nan(words, source)
    assert 100 < np.count_nonzero(nan) < len(words)
    np.testing.assert_array_equal(found[~nan], cast_by_numpy(words[~nan], source, target))
    some = np.flatnonzero(nan)[:5000]
    expected = [nan_as_documented(int(word), source, target) for word in words[some]]
    assert found[some].tolist() == expected
    assert is_nan(found[nan], target).all()


@pytest.mark.parametrize(
    ("source", "target"),
    [("f16", "f32"), ("f16", "f64"), ("bf16", "f32"), ("bf16", "f64"), ("f32", "f64")],
)
def test_casting_to_a_type_that_holds_all_numbers_and_back_changes_none(
    source: str, target: str
) -> None:
    one, other = kind_of(source), kind_of(target)
    words = words_of(source)
    words = words[~is_nan(words, source)]
    np.testing.assert_array_equal(cast(cast(words, one, other), other, one), words)


def test_words_of_the_same_type_are_not_cast() -> None:
    words = np.arange(9, dtype=np.uint32)
    assert cast(words, kind_of("f32"), kind_of(">f32")) is words
    assert cast(words, kind_of("f32"), kind_of("c64")) is words


def test_an_unaligned_view_is_cast() -> None:
    for source, target in PAIRS:
        words = words_of(source)[:999]
        moved = np.frombuffer(b"\0" + words.tobytes(), words.dtype, offset=1)
        assert not moved.flags.aligned
        np.testing.assert_array_equal(
            cast(moved, kind_of(source), kind_of(target)),
            cast(words, kind_of(source), kind_of(target)),
        )


# Bits of MXCSR: denormals as zeros and results flushed to zero; rounding up, and towards zero.
MODES = {"denormals are zeros": 0x8040, "up": 0x4000, "towards zero": 0x6000}


@contextmanager
def processor_in(mode: str) -> Iterator[None]:
    """Set bits in this thread's MXCSR, which glibc keeps at byte 28 of fenv_t."""
    if platform.machine() != "x86_64" or not sys.platform.startswith("linux"):
        pytest.skip("the layout of fenv_t is only known for glibc on x86-64")
    libm = ctypes.CDLL(ctypes.util.find_library("m") or "libm.so.6")
    before = (ctypes.c_uint32 * 8)()
    changed = (ctypes.c_uint32 * 8)()
    assert libm.fegetenv(before) == libm.fegetenv(changed) == 0
    changed[7] |= MODES[mode]
    try:
        assert libm.fesetenv(changed) == 0
        yield
    finally:
        libm.fesetenv(before)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("source", "target"), PAIRS)
def test_casts_do_not_depend_on_the_mode_of_the_processor(
    source: str, target: str, mode: str
) -> None:
    words = words_of(source)
    expected = cast(words, kind_of(source), kind_of(target))
    with processor_in(mode):
        found = cast(words, kind_of(source), kind_of(target))
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("mode", MODES)
def test_the_modes_of_the_test_above_do_change_what_numpy_computes(mode: str) -> None:
    words = words_of("f64")
    expected = cast_by_numpy(words, "f64", "f32")
    with processor_in(mode):
        found = cast_by_numpy(words, "f64", "f32")
    assert (found != expected).any()


@pytest.mark.parametrize("name", ["f16", "bf16", "f32", "f64", "f8_e5m2", "f8_e4m3"])
def test_ulps_are_in_the_order_of_the_numbers(name: str) -> None:
    kind = kind_of(name)
    words = np.arange(256, dtype=np.uint8) if kind.size == 1 else words_of(name)
    numpy_type = np.dtype(getattr(ml_dtypes, BY_NAME[name].numpy, None) or BY_NAME[name].numpy)
    with np.errstate(invalid="ignore"):
        numbers = words.view(numpy_type).astype(np.float64)
    words, numbers = words[~np.isnan(numbers)], numbers[~np.isnan(numbers)]
    found = np.empty_like(words)
    ulps(words, kind, found)
    by_ulps = np.argsort(found.view(f"i{kind.size}"), kind="stable")
    assert (np.diff(numbers[by_ulps][np.isfinite(numbers[by_ulps])]) >= 0).all()
    # Numbers of both signs, with -0.0 just before 0.0.
    signed = found.view(f"i{kind.size}")
    assert signed[words == 0].tolist() == [0] * int((words == 0).sum())
    assert set(signed[words == 1 << (8 * kind.size - 1)].tolist()) == {-1}
    back = np.empty_like(words)
    ulps(found, kind, back)
    np.testing.assert_array_equal(back, words)


@pytest.mark.parametrize("name", ["i32", "u8", "u64", "bool", "f4", "f8_e8m0"])
def test_integers_are_their_own_ulps(name: str) -> None:
    kind = kind_of(name)
    words = np.frombuffer(bytes(range(100, 228)), kind.native).copy()
    found = np.empty_like(words)
    ulps(words, kind, found)
    np.testing.assert_array_equal(found, words)


@pytest.mark.parametrize("name", ["u8", "u16", "u32", "u64"])
def test_zigzag_puts_small_differences_of_both_signs_first(name: str) -> None:
    native = kind_of(name).native
    differences = np.array([0, -1, 1, -2, 2, -3], f"i{native.itemsize}").view(native)
    zigzag(differences, np.empty_like(differences))
    assert differences.tolist() == [0, 1, 2, 3, 4, 5]


@given(st.lists(st.integers(0, (1 << 64) - 1)), st.sampled_from([1, 2, 4, 8]))
def test_unzigzag_is_the_inverse_of_zigzag(numbers: list[int], size: int) -> None:
    words = np.array([number % (1 << 8 * size) for number in numbers], f"u{size}")
    before, scratch = words.copy(), np.empty_like(words)
    zigzag(words, scratch)
    for small, number in zip(words.tolist(), before.view(f"i{size}").tolist(), strict=True):
        assert small == (2 * number if number >= 0 else -2 * number - 1)
    unzigzag(words, scratch)
    np.testing.assert_array_equal(words, before)


@pytest.mark.parametrize(
    ("name", "word", "exponent"),
    [
        ("f32", 0xC1800000, 0x83),
        ("f32", 0x007FFFFF, 0),
        ("bf16", 0xFF80, 0xFF),
        ("f16", 0xC000, 0x10),
        ("f16", 0xFFFF, 0x1F),
        ("f64", 0xC00123456789ABCD, 0x00),
        ("f64", 0x7FF0000000000000, 0xFF),
        ("f64", 0x3FE0000000000000, 0xFE),
        ("c64", 0x3F800000, 0x7F),
        ("f8_e4m3", 0xB8, 7),
        ("f8_e5m2", 0xBC, 15),
    ],
)
def test_exponents_are_the_low_bits_of_the_exponent_field(
    name: str, word: int, exponent: int
) -> None:
    out = np.empty(3, np.uint8)
    exponents(np.full(3, word, kind_of(name).native), kind_of(name), out)
    assert out.tolist() == [exponent] * 3


def test_a_base_is_of_the_same_number_type_or_a_float_that_can_be_cast() -> None:
    def of(one: str, other: str) -> bool:
        assert comparable(kind_of(one), kind_of(other)) == comparable(kind_of(other), kind_of(one))
        return comparable(kind_of(one), kind_of(other))

    for one, other in PAIRS:
        assert of(one, f">{other}")
    for one, other in [("f32", "c64"), ("c128", "f64"), ("i8", "u8"), ("bool", "f4")]:
        assert of(one, other)
    for one, other in [
        ("f32", "i32"), ("c64", "f16"), ("c64", "c128"), ("f8_e4m3", "f8_e5m2"),
        ("i16", "i8"), ("f8_e5m2", "f16"), ("u8", "f8_e4m3"),
    ]:  # fmt: skip
        assert not of(one, other)


@pytest.mark.parametrize("name", sorted(BY_NAME))
def test_word_types_are_those_of_the_elements(name: str) -> None:
    kind = kind_of(name)
    assert (kind.name, kind.size) == (name.removeprefix(">"), BY_NAME[name].word)
    assert kind.stored.itemsize == kind.native.itemsize == kind.size
    assert kind.native.isnative
    assert np.array([1], kind.stored).tobytes()[-1] == (
        1 if name[0] == ">" or kind.size == 1 else 0
    )
    if kind.name in FLOATS:
        assert 8 * kind.size == 1 + EXPONENT_BITS[kind.name] + kind.mantissa


@pytest.mark.parametrize("name", ["f8_e5m2", "bf16", "f32", "f64"])
def test_what_moves_towards_zero_is_mirrored_to_one_sign(name: str) -> None:
    kind = kind_of(name)
    signed, top = f"i{kind.size}", 1 << 8 * kind.size - 1
    against = np.array([5, top | 5, 5, top | 5, top | 5, top | 5], kind.native)
    differences = np.array([-3, 3, 3, -3, 0, -top], signed).view(kind.native)
    before, scratch = differences.tolist(), np.empty_like(differences)
    mirror(differences, against, scratch)
    assert differences.view(signed).tolist() == [-3, -3, 3, 3, 0, -top]
    mirror(differences, against, scratch)
    assert differences.tolist() == before


def test_mantissas_are_their_upper_bits() -> None:
    for name, word, expected in [
        ("f32", 0x3FC00000, 0x80), ("f32", 0xBF808000, 0x01), ("f32", 0x7FFFFFFF, 0xFF),
        ("bf16", 0xBFC1, 0x82), ("f16", 0x3E04, 0x81), ("f8_e4m3", 0xFD, 0xA0),
        ("f8_e5m2", 0x7D, 0x40), ("f64", 0x3FF8100000000000, 0x81),
    ]:  # fmt: skip
        kind = kind_of(name)
        out = np.empty(1, np.uint8)
        mantissas(np.array([word], kind.native), kind, out)
        assert out[0] == expected, name
