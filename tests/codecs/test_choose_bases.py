"""Which of its bases a chunk is coded against, and when against none."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mstore.codecs.base import CONSTANT, DELTA, PLANES, RAW, ZSTD, Base, Encoded
from mstore.codecs.choose import Decoder, Encoder
from mstore.codecs.delta import Delta
from mstore.codecs.words import comparable, word_type
from mstore.dtypes import BY_NAME, DType
from mstore.errors import CorruptDataError
from mstore.ids import Buffer

RNG = np.random.default_rng(0)
F32, BF16, I8 = BY_NAME["f32"], BY_NAME["bf16"], BY_NAME["i8"]
COUNT = 1 << 16
OLD = RNG.normal(0, 0.02, COUNT).astype(np.float32)
BASE_BYTES = 64
"""What a base takes in a record and an index."""


def later(steps: float, seed: int = 1) -> np.ndarray:
    """The weights after so many steps of training."""
    change = 2e-5 * steps**0.5 * np.random.default_rng(seed).normal(0, 1, COUNT)
    return OLD + change.astype(np.float32)


NEW = later(1).tobytes()


def base(array: np.ndarray | bytes, dtype: DType = F32, depth: int = 0) -> Base:
    return Base(memoryview(array if isinstance(array, bytes) else array.tobytes()), dtype, depth)


def encode(raw: bytes, dtype: DType | None, *bases: Base) -> Encoded:
    """Encode and see that it comes back, and that it is no larger than without a base."""
    encoder = Encoder()
    encoded = encoder.encode(memoryview(raw), dtype, bases)
    assert encoder.rejected == 0
    assert encoded.stored <= len(raw)
    assert (encoded.codec == DELTA) == (encoded.base is not None)
    out = memoryview(bytearray(len(raw)))
    against = None if encoded.base is None else bases[encoded.base].raw
    Decoder().decode(encoded.codec, memoryview(encoded.payload), out, against)
    assert out == raw
    return encoded


def excess(raw: bytes, dtype: DType, *bases: Base) -> float:
    """What is stored with bases to choose from, by what is without."""
    encoded, own = encode(raw, dtype, *bases), encode(raw, dtype)
    stored = encoded.stored + (BASE_BYTES if encoded.base is not None else 0)
    return stored / own.stored if own.stored else 1


def test_a_base_that_helps_is_used() -> None:
    encoded = encode(NEW, F32, base(OLD))
    assert (encoded.codec, encoded.base) == (DELTA, 0)
    assert encoded.stored < 0.54 * len(NEW)


@pytest.mark.parametrize("count", [100, 500, 513, 4096, 8192, 8193, 10_000])
def test_a_base_helps_chunks_of_any_length(count: int) -> None:
    encoded = encode(NEW[: 4 * count], F32, base(OLD[:count]))
    assert encoded.base == 0
    assert encoded.stored < 0.85 * 4 * count


@pytest.mark.parametrize(
    "other",
    [
        base(RNG.normal(0, 0.02, COUNT).astype(np.float32)),
        base(RNG.bytes(4 * COUNT)),
        base(bytes(4 * COUNT)),
        base(OLD, BY_NAME["i32"]),
        base(OLD, I8),
        base(OLD[:50]),
        base(b""),
        base(b"abc"),
    ],
)
def test_a_base_that_does_not_help_is_not_used(other: Base) -> None:
    assert encode(NEW, F32, other).codec == PLANES
    assert encode(NEW[:600], F32, other).base is None
    # Nor does it keep one that helps from being used.
    assert encode(NEW, F32, other, base(OLD), other).base == 1


def test_chunks_that_need_no_base_are_given_none() -> None:
    old = base(OLD)
    assert encode(bytes(40_000), F32, old).codec == CONSTANT
    assert encode(b"", F32, old).codec == RAW
    assert encode(NEW, None, old).base is None
    assert encode(RNG.bytes(40_000), F32, old).codec == RAW
    assert encode(b"\0\0\x80\x3f", F32, old).codec == RAW
    assert encode(b"abc", F32, old).codec == RAW
    assert encode(b"abcde" * 100, F32, old).base is None
    tiled = np.resize(OLD[:3000], COUNT)
    assert encode(np.where(tiled > 0.03, tiled, 0).tobytes(), F32, base(tiled)).codec == ZSTD


def test_the_better_of_two_bases_is_used() -> None:
    near, far = base(later(0.5)), base(later(400))
    raw = later(0.5, seed=2).tobytes()
    assert encode(raw, F32, far, near).base == 1
    assert encode(raw, F32, near, far).base == 0
    assert encode(raw, F32, far, near).stored < encode(raw, F32, far).stored


@pytest.mark.parametrize("content", [OLD, np.frombuffer(NEW, np.float32)])
def test_of_equal_bases_the_less_deep_is_used(content: np.ndarray) -> None:
    """Also where none leaves a difference."""
    bases = [base(content, depth=depth) for depth in (3, 1, 2, 1)]
    assert encode(NEW, F32, *bases).base == 1
    assert encode(NEW, F32, *bases[::-1]).base == 0


@pytest.mark.parametrize(
    ("steps", "depth", "used"), [(0.1, 1, True), (0.1, 9, False), (350, 1, False), (350, 0, True)]
)
def test_a_deeper_base_must_save_more(steps: float, depth: int, used: bool) -> None:
    """With the weights of 400 steps on the chunk takes 0.66; with those of 0.1, 0.52."""
    far, other = base(later(400, seed=3)), base(later(steps, seed=3), depth=depth)
    assert encode(NEW, F32, far, other).base == used
    assert encode(NEW, F32, other, far).base == (not used)


def test_a_cast_of_its_base_takes_next_to_nothing() -> None:
    raw = (OLD.view(np.uint32) >> 16).astype(np.uint16)
    wide = (raw.astype(np.uint32) << 16).tobytes()
    assert encode(wide, F32, base(OLD), base(raw, BF16)).base == 1
    assert encode(wide, F32, base(OLD), base(raw, BF16)).stored < 20


def test_a_base_must_save_more_than_its_id_takes() -> None:
    """Of a hundred numbers even half is not enough when that is less than two ids."""
    rng = np.random.default_rng(0)
    for count in range(2, 200, 3):
        old = rng.integers(0, 200, count, np.uint8)
        assert excess((old + 1).tobytes(), BY_NAME["u8"], base(old, BY_NAME["u8"])) <= 1
    words = rng.integers(0, 200, 60, np.uint8)
    assert encode((words + 1).tobytes(), BY_NAME["u8"], base(words, BY_NAME["u8"])).base is None


TYPES = sorted(BY_NAME)


@given(st.data())
@settings(max_examples=150)
def test_short_chunks_never_take_more_for_having_bases(data: st.DataObject) -> None:
    dtype = BY_NAME[data.draw(st.sampled_from(TYPES))]
    fits = [t for t in BY_NAME.values() if comparable(word_type(dtype), word_type(t))]
    content = st.binary(max_size=300) | st.builds(
        lambda unit, times: unit * times, st.binary(min_size=1, max_size=9), st.integers(1, 60)
    )
    raw = data.draw(content)
    bases = [
        base(data.draw(content | st.just(raw) | st.just(raw[:-1] + b"\1")), *rest)
        for rest in data.draw(
            st.lists(st.tuples(st.sampled_from(fits), st.integers(0, 9)), max_size=3)
        )
    ]
    assert excess(raw, dtype, *bases) <= 1


def structured(rng: np.random.Generator, count: int) -> np.ndarray:
    """Numbers of f32 such as tensors hold, and such as samples judge badly."""
    numbers = rng.normal(0, 0.02, count).astype(np.float32)
    kind = rng.integers(8)
    if kind == 1:
        return np.where(rng.random(count) < rng.random(), np.float32(0), numbers)
    if kind == 2:
        return np.resize(numbers[: int(2 ** rng.uniform(2, 15))], count)
    if kind == 3:
        for _ in range(rng.integers(1, 60)):
            start = rng.integers(count)
            numbers[start : start + rng.integers(1, count // 8 + 2)] = 0
    if kind == 4:
        return np.repeat(numbers[: count // 64 + 1], 64)[:count]
    if kind == 5:
        return (np.round(numbers * 2 ** rng.integers(4, 14)) / 64).astype(np.float32)
    if kind == 6:
        scales = np.repeat(2.0 ** rng.integers(-30, 30, 16), count // 16 + 1)[:count]
        return (numbers * scales).astype(np.float32)
    if kind == 7:
        half = count // 2
        return np.concatenate([structured(rng, half), structured(rng, count - half)])
    return numbers


def stored_as(numbers: np.ndarray, name: str) -> bytes:
    if name == "bf16":
        return (numbers.view(np.uint32) >> 16).astype(np.uint16).tobytes()
    if name == "i32":
        return (numbers * 1e4).clip(-1e9, 1e9).astype(np.int32).tobytes()
    with np.errstate(over="ignore"):
        return numbers.astype({"f16": np.float16, "f32": np.float32}[name]).tobytes()


def test_long_chunks_do_not_take_more_for_having_bases() -> None:
    """Samples may be wrong, but not here: of 6000 such chunks four take more, up to a tenth."""
    used = 0
    for seed in range(120):
        rng = np.random.default_rng(seed)
        count = int(2 ** rng.uniform(13, 17))
        numbers = structured(rng, count)
        step = 10 ** rng.uniform(-6, -2) * rng.normal(0, 1, count)
        other = [
            numbers * np.float32(1.001),
            numbers + step.astype(np.float32),
            np.where(rng.random(count) < 0.01, np.float32(1), numbers),
            np.roll(numbers, 1),
            structured(rng, count),
        ][rng.integers(5)]
        name = ["f32", "bf16", "f16", "i32"][rng.integers(4)]
        dtype, raw = BY_NAME[name], stored_as(numbers, name)
        found = excess(raw, dtype, base(stored_as(other, name), dtype))
        assert found <= 1.001, seed
        used += found < 1
    assert used > 40


class _Altered(Delta):
    """Differences with a defect."""

    def __init__(
        self,
        *,
        stored: Callable[[bytes], bytes] = lambda payload: payload,
        decoded: Callable[[memoryview], None] = lambda out: None,
    ) -> None:
        super().__init__()
        self.stored = stored
        self.decoded = decoded

    def encode(
        self, raw: memoryview, dtype: DType, base: memoryview, base_dtype: DType
    ) -> list[Buffer] | None:
        parts = super().encode(raw, dtype, base, base_dtype)
        return None if parts is None else [self.stored(b"".join(parts))]

    def check(self, payload: memoryview, base: memoryview, out: memoryview) -> None:
        super().check(payload, base, out)
        self.decoded(out)


def _flip_last(out: memoryview) -> None:
    out[-1] ^= 1


def _fail(out: memoryview) -> None:
    raise IndexError


@pytest.mark.parametrize(
    "broken",
    [
        _Altered(stored=lambda payload: payload[:-1]),
        _Altered(stored=lambda payload: payload[:-1] + bytes([payload[-1] ^ 1])),
        _Altered(stored=lambda payload: b""),
        _Altered(decoded=_flip_last),
        _Altered(decoded=_fail),
    ],
)
def test_broken_differences_fall_back_to_raw(broken: Delta) -> None:
    encoder = Encoder(delta=broken)
    bases = [base(OLD)]
    assert encoder.encode(memoryview(NEW), F32, bases) == Encoded(RAW, NEW)
    assert encoder.rejected == 1
    assert encoder.encode(memoryview(NEW), F32).codec == PLANES
    assert encoder.rejected == 1


def test_differences_that_work_are_not_rejected() -> None:
    encoder = Encoder(delta=_Altered())
    assert encoder.encode(memoryview(NEW), F32, [base(OLD)]).codec == DELTA
    assert encoder.rejected == 0


@pytest.mark.parametrize("wrong", ["places", "pairs", "ends", "keys"])
@pytest.mark.parametrize("part", [0, 1])
def test_an_order_that_is_not_right_is_not_believed(
    monkeypatch: pytest.MonkeyPatch, wrong: str, part: int
) -> None:
    """Encoding with a wrong order would be undone by the same wrong order."""
    codec = Delta()
    sorter = codec._parts[part]._sorter
    make = sorter.order
    made = []

    def change(keys: np.ndarray) -> object:
        if wrong == "keys":
            keys[777] ^= 8
        order = make(keys)
        if wrong == "ends":
            order._ends[119:122] = [end - 1 for end in order._ends[119:122]]
        for array in {"places": [order.places], "pairs": [order.places, order._pairs]}.get(
            wrong, []
        ):
            array[[5, 6]] = array[[6, 5]]
        monkeypatch.setattr(sorter, "order", make)
        made.append(order)
        return order

    monkeypatch.setattr(sorter, "order", change)
    encoder = Encoder(delta=codec)
    new = later(1)
    if part:
        new[: COUNT // 2] = OLD[: COUNT // 2]
    assert encoder.encode(memoryview(new.tobytes()), F32, [base(OLD)]).codec == RAW
    assert made
    assert encoder.rejected == 1


def test_a_result_does_not_change_when_the_encoder_goes_on() -> None:
    """Neither scratch memory nor the caller's buffers may show through."""
    encoder = Encoder()
    buffer, against = bytearray(4 * COUNT), bytearray(4 * COUNT)
    results = []
    for steps in (1, 3, 0.1):
        against[:] = OLD.tobytes()
        buffer[:] = later(steps).tobytes()
        results.append(encoder.encode(memoryview(buffer), F32, [base(OLD)]))
        buffer[:] = against[:] = bytes(4 * COUNT)
    for steps, result in zip((1, 3, 0.1), results, strict=True):
        assert result.base == 0
        out = memoryview(bytearray(4 * COUNT))
        Decoder().decode(DELTA, memoryview(result.payload), out, memoryview(OLD.tobytes()))
        assert out == later(steps).tobytes()


def test_records_with_and_without_a_base_are_told_apart() -> None:
    out, payload = memoryview(bytearray(4)), memoryview(b"abcd")
    with pytest.raises(CorruptDataError, match="has no base"):
        Decoder().decode(DELTA, payload, out)
    for codec in (RAW, ZSTD, CONSTANT, PLANES):
        with pytest.raises(CorruptDataError, match="is said to have a base"):
            Decoder().decode(codec, payload, out, payload)


@pytest.mark.parametrize(
    ("name", "values", "chosen"),
    [
        # Three tenths of what is taken,
        *(("u32", (32, 20), 0), ("u32", (32, 8), 1), ("u16", (6, 5), 0), ("u16", (6, 3), 1)),
        # but no more than 2.1 % of the raw bytes for each byte of a word: 2.7 bits, or 0.7.
        *(("u32", (1 << 20, 1 << 18), 0), ("u32", (1 << 20, 1 << 17), 1)),
        *(("u16", (256, 180), 0), ("u16", (256, 128), 1)),
    ],
)
def test_what_a_deeper_base_must_save(name: str, values: tuple[int, int], chosen: int) -> None:
    """Of bases that leave so many values of each number, the second is one deeper."""
    rng = np.random.default_rng(0)
    dtype = BY_NAME[name]
    unit = word_type(dtype).native
    new = rng.integers(1 << 12, 1 << 13, COUNT).astype(unit)
    bases = [
        base(new + rng.integers(0, count, COUNT).astype(unit), dtype, depth)
        for depth, count in enumerate(values)
    ]
    assert Encoder().choose_base(memoryview(new.tobytes()), dtype, bases)[0] == chosen
