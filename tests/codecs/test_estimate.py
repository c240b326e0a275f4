import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mstore.codecs.delta import Delta
from mstore.codecs.entropy import entropies, entropy, lengths, sample
from mstore.codecs.estimate import best_order, delta_share, own_share
from mstore.codecs.order import BY_EXPONENT, DECAYED, UNORDERED
from mstore.codecs.planes import Planes
from mstore.codecs.words import exponents, word_type, zigzag
from mstore.dtypes import BY_NAME
from mstore.ids import Buffer

COUNT = 1 << 17


def versions(case: str, seed: int) -> tuple[str, bytes, str, bytes]:
    """Element type and bytes of a chunk, then of its base."""
    rng = np.random.default_rng(seed)
    old = rng.normal(0, 0.02, COUNT).astype(np.float32)
    new = (old * (1 + 1e-3 * rng.normal(0, 1, COUNT))).astype(np.float32)
    halves, integers = new.astype(np.float16), (old * 500).astype(np.int8)
    if case == "fine-tuned f32":
        return "f32", new.tobytes(), "f32", old.tobytes()
    if case == "fine-tuned >f16":
        return ">f16", halves.byteswap().tobytes(), "f16", old.astype(np.float16).tobytes()
    if case == "fine-tuned bf16":
        short = [(words.view(np.uint32) >> 16).astype(np.uint16).tobytes() for words in (new, old)]
        return "bf16", short[0], "bf16", short[1]
    if case == "moved f32":
        moved = old + (2e-5 * rng.normal(0, 1, COUNT)).astype(np.float32)
        return "f32", moved.tobytes(), "f32", old.tobytes()
    if case == "eight exponents":
        # The upper bits of an exponent tell its lowest, and each is as likely.
        numbers = rng.uniform(-1, 1, COUNT)
        numbers += np.sign(numbers)
        numbers *= 2.0 ** rng.choice([-7, -4, -3, 0, 1, 4, 5, 8], COUNT)
        wide = numbers.astype(np.float32)
        return "f32", wide.tobytes(), "f32", (wide * np.float32(1.001)).tobytes()
    if case == "sparse f32":
        some = np.where(rng.random(COUNT) < 0.01, new, old)
        return "f32", some.tobytes(), "f32", old.tobytes()
    if case == "unrelated f32":
        return "f32", rng.normal(0, 0.02, COUNT).astype(np.float32).tobytes(), "f32", old.tobytes()
    if case == "some rows f32":
        moved = old + (2e-5 * rng.normal(0, 1, COUNT)).astype(np.float32)
        rows = np.repeat(rng.random(COUNT // 384 + 1) < 0.4, 384)[:COUNT]
        return "f32", np.where(rows, moved, old).tobytes(), "f32", old.tobytes()
    if case == "decayed f32":
        decayed = old
        for rate in np.linspace(1e-4, 1e-6, 40, dtype=np.float32):
            decayed = decayed * (1 - rate * np.float32(1e-2))
        return "f32", decayed.tobytes(), "f32", old.tobytes()
    if case == "noise":
        return "f32", rng.bytes(4 * COUNT), "f32", old.tobytes()
    if case == "f16 of a later f32":
        return "f16", halves.tobytes(), "f32", old.tobytes()
    if case == "steps of i8":
        moved = integers + rng.integers(-2, 3, COUNT).astype(np.int8)
        return "i8", moved.tobytes(), "i8", integers.tobytes()
    raise KeyError(case)


TOLERANCES = {
    "fine-tuned f32": 0.02,
    "fine-tuned >f16": 0.05,
    "fine-tuned bf16": 0.1,
    "moved f32": 0.02,
    "eight exponents": 0.05,
    # Some eighty changes are in the sample.
    "sparse f32": 0.25,
    "unrelated f32": 0.05,
    # Of 64 blocks some 26 are in the sample.
    "some rows f32": 0.2,
    "decayed f32": 0.3,
    "noise": 0.01,
    "f16 of a later f32": 0.05,
    # Of small numbers not all bits below the first are noise.
    "steps of i8": 0.15,
}


def share(parts: list[Buffer] | None, raw: bytes) -> float:
    return min(1, sum(map(len, parts)) / len(raw)) if parts is not None else 1


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("case", TOLERANCES)
def test_estimates_are_right_to_some_per_cent(case: str, seed: int) -> None:
    name, raw, base_name, base = versions(case, seed)
    dtype, base_dtype = BY_NAME[name], BY_NAME[base_name]
    kind, base_kind = word_type(dtype), word_type(base_dtype)
    found = delta_share(memoryview(raw), kind, memoryview(base), base_kind)
    real = share(Delta().encode(memoryview(raw), dtype, memoryview(base), base_dtype), raw)
    assert found == pytest.approx(real, rel=TOLERANCES[case])
    own = share(Planes().encode(memoryview(raw), dtype), raw)
    assert own_share(memoryview(raw), kind) == pytest.approx(own, rel=0.02)


def test_what_lies_beyond_a_short_base_counts_as_much_as_on_its_own() -> None:
    name, raw, _, base = versions("fine-tuned f32", 0)
    kind = word_type(BY_NAME[name])
    whole = delta_share(memoryview(raw), kind, memoryview(base), kind)
    half = delta_share(memoryview(raw), kind, memoryview(base)[: len(base) // 2], kind)
    assert half == pytest.approx((whole + own_share(memoryview(raw), kind)) / 2, rel=0.01)


def test_what_is_the_same_takes_nothing() -> None:
    name, raw, _, _ = versions("fine-tuned f32", 0)
    kind = word_type(BY_NAME[name])
    assert delta_share(memoryview(raw), kind, memoryview(raw), kind) == 0


@given(st.lists(st.integers(0, 255), min_size=1, max_size=200))
def test_entropy_is_that_of_shannon(numbers: list[int]) -> None:
    """Sum over all numbers of the binary logarithm of one over their share."""
    array = np.array(numbers)
    bits = sum(np.log2(len(numbers) / numbers.count(number)) for number in numbers)
    assert entropy(array) == pytest.approx(bits / len(numbers))


@given(st.lists(st.tuples(st.integers(0, 64), st.sampled_from([0, 7, 255])), min_size=1))
def test_entropies_are_those_of_shannon(pairs: list[tuple[int, int]]) -> None:
    """Without the contexts and given them."""
    sizes, contexts = (np.array(values, np.uint8) for values in zip(*pairs, strict=True))
    alone, known = entropies(sizes, contexts)
    assert alone == pytest.approx(entropy(sizes), abs=1e-9)
    of_contexts = [context for _, context in pairs]
    bits = sum(np.log2(of_contexts.count(pair[1]) / pairs.count(pair)) for pair in pairs)
    assert known == pytest.approx(bits / len(pairs), abs=1e-9)


@given(
    st.lists(st.integers(0, 63).flatmap(lambda bits: st.integers(0, (1 << bits) - 1)), min_size=1)
)
def test_lengths_are_those_of_the_numbers_in_bits(numbers: list[int]) -> None:
    found = lengths(np.array(numbers, np.uint64)).tolist()
    for bits, number in zip(found, numbers, strict=True):
        # Beyond 2**53 a number may be rounded up to the next power of two.
        assert bits - number.bit_length() in ((0, 1) if number > 1 << 53 else (0,))


@pytest.mark.parametrize("name", ["u8", "u16", "u32"])
def test_lengths_of_the_extremes(name: str) -> None:
    native = word_type(BY_NAME[name]).native
    words = np.array([0, 1, 2, 3, 4, np.iinfo(native).max], native)
    assert lengths(words).tolist() == [0, 1, 2, 2, 3, 8 * native.itemsize]


@pytest.mark.parametrize("count", [1, 100, 16384, 16385, 16400, 99_999, 1 << 18])
def test_a_sample_is_from_all_over_and_short(count: int) -> None:
    taken = sample(np.arange(count))
    assert len(taken) == (count if count <= 16384 else 8192)
    assert taken[0] == 0
    assert count - 128 <= taken[-1] <= count - 1
    assert (np.diff(taken) > 0).all()


def test_order_pays_where_exponents_or_mantissas_tell_of_sizes() -> None:
    rng = np.random.default_rng(0)
    kind = word_type(BY_NAME["f32"])
    base = rng.normal(0, 0.02, COUNT).astype(np.float32).view(np.uint32)
    keys = np.empty(COUNT, np.uint8)
    exponents(base, kind, keys)
    noise = rng.integers(0, 1 << 12, COUNT, np.uint32)
    assert best_order(noise, base, kind) == UNORDERED
    assert best_order(np.zeros(COUNT, np.uint32), base, kind) == UNORDERED
    steps = noise << (keys.max() - keys).astype(np.uint32).clip(0, 8)
    assert best_order(steps, base, kind) == BY_EXPONENT
    shrunk = 200 + 200 * (base & (1 << 23) - 1) // (1 << 23)
    zigzag(shrunk, np.empty_like(shrunk))
    assert best_order(shrunk, base, kind) == DECAYED
    assert best_order(shrunk, base, word_type(BY_NAME["i32"])) == UNORDERED
