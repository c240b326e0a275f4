import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mstore.codecs.decay import KEYS, usual_steps, with_steps, without_steps
from mstore.codecs.words import Words, WordType, mantissas, ulps, word_type, zigzag
from mstore.dtypes import BY_NAME

FLOATS = ["f16", "bf16", "f32", "f64", "f8_e4m3", "f8_e5m2"]


def numbers_of(old: Words, new: Words, kind: WordType) -> Words:
    """What a delta codes."""
    found, against = np.empty_like(old), np.empty_like(old)
    ulps(new, kind, found)
    ulps(old, kind, against)
    found -= against
    zigzag(found, against)
    return found


def decayed(count: int, rate: float, steps: int) -> tuple[Words, Words]:
    """Weights in f32, and what they become when each step takes `rate` of them."""
    old = np.random.default_rng(0).normal(0, 0.02, count).astype(np.float32)
    new = old
    for _ in range(steps):
        new = new * np.float32(1 - rate)
    return old.view(np.uint32), new.view(np.uint32)


@pytest.mark.parametrize(("rate", "steps"), [(2e-7, 1), (2e-7, 50), (1e-6, 300), (1e-3, 3)])
def test_steps_tell_all_of_a_decay(rate: float, steps: int) -> None:
    """But for a key within which the rounding changes."""
    old, new = decayed(100_000, rate, steps)
    kind = word_type(BY_NAME["f32"])
    numbers = numbers_of(old, new, kind)
    usual = usual_steps(numbers, old, kind)
    assert len(usual) == KEYS
    without_steps(numbers, old, kind, usual)
    spread = 2 + rate * steps * 2**24 / KEYS
    assert np.count_nonzero(numbers > 2 * spread) < 0.02 * len(numbers)


@pytest.mark.parametrize("name", FLOATS)
@given(
    count=st.sampled_from([1, 3, 300, 5000]),
    seed=st.integers(0, 1 << 30),
    own_steps=st.booleans(),
)
def test_any_numbers_come_back(name: str, count: int, seed: int, own_steps: bool) -> None:
    kind, rng = word_type(BY_NAME[name]), np.random.default_rng(seed)
    against, numbers, steps = (
        np.frombuffer(rng.bytes(length * kind.size), kind.native).copy()
        for length in (count, count, KEYS)
    )
    if own_steps:
        steps = usual_steps(numbers, against, kind)
    before, words = numbers.copy(), against.copy()
    without_steps(numbers, against, kind, steps)
    with_steps(numbers, against, kind, steps)
    np.testing.assert_array_equal(numbers, before)
    np.testing.assert_array_equal(against, words)


def test_a_step_is_the_median_of_what_has_its_key() -> None:
    kind = word_type(BY_NAME["f32"])
    against = np.random.default_rng(0).normal(0, 1, 16_000).astype(np.float32).view(np.uint32)
    keys = np.empty(len(against), np.uint8)
    mantissas(against, kind, keys)
    negative = against >> 31
    # Differences of one to 256, up where a word is positive and down where it is negative.
    differences = (keys.astype(np.int32) + 1) * np.where(negative, -1, 1)
    numbers = differences.astype(np.int32).view(np.uint32).copy()
    zigzag(numbers, np.empty_like(numbers))
    numbers[::50] = (1 << 32) - 1
    assert usual_steps(numbers, against, kind).tolist() == [2 * (key + 1) for key in range(KEYS)]


def test_what_has_no_number_has_no_step() -> None:
    kind = word_type(BY_NAME["bf16"])
    against = np.full(1000, 0x3F80, np.uint16)
    steps = usual_steps(np.full(1000, 7, np.uint16), against, kind)
    assert steps.tolist() == [7] + [0] * (KEYS - 1)
