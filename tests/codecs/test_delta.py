import contextlib
import struct
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mstore.codecs import parts as coding
from mstore.codecs.blocks import BLOCK
from mstore.codecs.delta import TWO_PARTS, Delta
from mstore.codecs.order import BY_EXPONENT, BY_MAGNITUDE, DECAYED, UNORDERED
from mstore.codecs.words import Words, WordType, cast, comparable, ulps, word_type
from mstore.dtypes import BY_CODE, BY_NAME, DType
from mstore.errors import CorruptDataError, LimitExceededError

DAMAGED = (CorruptDataError, LimitExceededError)
GUARD = 16
HEAD = struct.Struct("<BBBxIII")
EQUAL = HEAD.size + 1
"""Bytes of a payload when there is no difference."""

F32, BF16, F16 = BY_NAME["f32"], BY_NAME["bf16"], BY_NAME["f16"]


def encode(raw: bytes, dtype: DType, base: bytes, base_dtype: DType) -> bytes | None:
    parts = Delta().encode(memoryview(raw), dtype, memoryview(base), base_dtype)
    return None if parts is None else b"".join(parts)


def decode(payload: bytes, base: bytes, length: int, codec: Delta | None = None) -> bytes:
    """Decode into the middle of a larger buffer, and see that nothing around it is touched."""
    out = bytearray(b"\xa5" * (length + 2 * GUARD))
    try:
        (codec or Delta()).decode(
            memoryview(payload), memoryview(base), memoryview(out)[GUARD:-GUARD]
        )
    finally:
        assert out[:GUARD] == out[-GUARD:] == b"\xa5" * GUARD
    return bytes(out[GUARD:-GUARD])


def check(raw: bytes, dtype: DType, base: bytes, base_dtype: DType | None = None) -> bytes:
    """See that a chunk comes back; returns its payload."""
    payload = encode(raw, dtype, base, base_dtype or dtype)
    assert payload is not None
    assert decode(payload, base, len(raw)) == raw
    return payload


def weights(kind: WordType, count: int, rng: np.random.Generator) -> Words:
    """Words like those of a trained tensor."""
    numbers = rng.normal(0, 0.02, count)
    if kind.name == "bf16":
        return (numbers.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
    if kind.mantissa and kind.size > 1:
        return numbers.astype(f"f{kind.size}").view(kind.native)
    return (1000 * numbers).astype(f"i{kind.size}").view(kind.native)


def specials(kind: WordType, count: int, rng: np.random.Generator) -> Words:
    """Infinities, NaNs of all kinds, zeros of both signs, denormals, and the largest words."""
    top = (1 << 8 * kind.size - 1) - 1
    infinity = top >> kind.mantissa << kind.mantissa
    magnitudes = [
        0,
        1,
        (1 << kind.mantissa) - 1,
        infinity - 1,
        infinity,
        infinity + 1,
        top - 1,
        top,
    ]
    words = np.array([word | sign for word in magnitudes for sign in (0, top + 1)], kind.native)
    return rng.choice(words, count)


def noise(kind: WordType, count: int, rng: np.random.Generator) -> Words:
    return np.frombuffer(rng.bytes(count * kind.size), kind.native)


def changed(words: Words, kind: WordType, how: str, rng: np.random.Generator) -> Words:
    """Words of a later version."""
    if how == "not":
        return words
    if how == "unrelated":
        return weights(kind, len(words), rng)
    if how == "noise":
        return noise(kind, len(words), rng)
    at = np.arange(len(words))
    if how == "some":
        at = np.flatnonzero(rng.random(len(words)) < 0.01)
    elif how == "rows":
        at = np.flatnonzero(np.repeat(rng.random(len(words) // BLOCK + 1) < 0.3, BLOCK)[at])
    elif how == "shrunk":
        return words - ((words & (1 << kind.mantissa) - 1) >> max(0, kind.mantissa - 3))
    moved, back = np.empty_like(words), np.empty_like(words)
    ulps(words, kind, moved)
    moved[at] += rng.integers(-40, 41, len(at)).astype(f"i{kind.size}").view(kind.native)
    ulps(moved, kind, back)
    return back


def stored(words: Words, kind: WordType) -> bytes:
    return words.astype(kind.stored).tobytes()


CONTENTS = {"weights": weights, "specials": specials, "noise": noise}
TYPES = sorted(BY_NAME)


@pytest.mark.parametrize("name", TYPES)
@given(data=st.data())
@settings(max_examples=25)
def test_any_chunk_of_any_type_comes_back(name: str, data: st.DataObject) -> None:
    dtype = BY_NAME[name]
    kind = word_type(dtype)
    base_dtype = data.draw(
        st.sampled_from([t for t in BY_NAME.values() if comparable(kind, word_type(t))])
    )
    base_kind = word_type(base_dtype)
    rng = np.random.default_rng(data.draw(st.integers(0, 1 << 30)))
    count = data.draw(st.sampled_from([1, 2, 3, 17, 300, 9001]))
    base = CONTENTS[data.draw(st.sampled_from(sorted(CONTENTS)))](base_kind, count, rng)
    how = data.draw(st.sampled_from(["not", "some", "all", "rows", "shrunk", "unrelated", "noise"]))
    words = changed(cast(base, base_kind, kind).astype(kind.native), kind, how, rng)
    # What stands beyond the end of the other: words, and bytes that make no word.
    tail = data.draw(st.sampled_from([b"", b"x", rng.bytes(90)]))
    kept = max(1, count - data.draw(st.sampled_from([0, 0, 1, 200])))
    raw_count = max(1, count - data.draw(st.sampled_from([0, 0, 1, 200])))
    old = (stored(base, base_kind) + tail)[: kept * base_kind.size + len(tail)]
    payload = check(stored(words[:raw_count], kind), dtype, old, base_dtype)
    if how == "not" and raw_count <= kept:
        assert len(payload) == EQUAL


@pytest.mark.parametrize("name", TYPES)
@given(data=st.data())
@settings(max_examples=25)
def test_any_bytes_of_any_length_come_back(name: str, data: st.DataObject) -> None:
    """Or are not encoded: bytes that are not whole words, or not one of either."""
    dtype = BY_NAME[name]
    content = st.binary(max_size=60) | st.lists(st.sampled_from(b"\0\x01\x80\xff\x7f")).map(bytes)
    raw, base = data.draw(content), data.draw(content)
    payload = encode(raw, dtype, base, dtype)
    if len(raw) % dtype.word or min(len(raw), len(base)) < dtype.word:
        assert payload is None
    else:
        assert payload is not None
        assert decode(payload, base, len(raw)) == raw


@pytest.mark.parametrize("name", TYPES)
@pytest.mark.parametrize("base_name", ["f32", "i16", "c128", "f8_e5m2", "u8"])
def test_types_that_cannot_be_compared_are_not(name: str, base_name: str) -> None:
    dtype, base_dtype = BY_NAME[name], BY_NAME[base_name]
    payload = encode(bytes(48), dtype, bytes(48), base_dtype)
    if comparable(word_type(dtype), word_type(base_dtype)):
        assert payload is not None
        assert HEAD.unpack_from(payload)[:2] == (dtype.code, base_dtype.code)
    else:
        assert payload is None


@pytest.mark.parametrize("name", ["f32", ">f32", "bf16", "f64", "i16", "u8"])
@pytest.mark.parametrize("base_name", ["f32", ">f16", "i16", "u8"])
@pytest.mark.parametrize("shift", [1, 2, 3, 5])
def test_unaligned_and_read_only_memory_is_read(name: str, base_name: str, shift: int) -> None:
    dtype, base_dtype = BY_NAME[name], BY_NAME[base_name]
    if not comparable(word_type(dtype), word_type(base_dtype)):
        base_dtype = dtype
    rng = np.random.default_rng(0)
    raw = stored(weights(word_type(dtype), 600, rng), word_type(dtype))
    base = stored(weights(word_type(base_dtype), 500, rng), word_type(base_dtype))

    def moved(content: bytes) -> memoryview:
        return memoryview(bytes(shift) + content)[shift:]

    parts = Delta().encode(moved(raw), dtype, moved(base), base_dtype)
    assert parts is not None
    payload = b"".join(parts)
    assert payload == encode(raw, dtype, base, base_dtype)
    out = bytearray(shift + len(raw))
    Delta().decode(moved(payload), moved(base), memoryview(out)[shift:])
    assert out == bytes(shift) + raw


def trained(count: int, seed: int = 0) -> tuple[bytes, bytes]:
    """Two versions in f32, as far apart as after some steps of training: old, new."""
    rng = np.random.default_rng(seed)
    old = rng.normal(0, 0.02, count).astype(np.float32)
    new = old + (2e-5 * rng.normal(0, 1, count)).astype(np.float32)
    return old.tobytes(), new.tobytes()


@pytest.mark.parametrize("name", TYPES)
@given(data=st.data())
@settings(max_examples=10)
def test_what_is_coded_deep_comes_back(name: str, data: st.DataObject) -> None:
    """By the same decoder as everything else."""
    dtype = BY_NAME[name]
    kind = word_type(dtype)
    rng = np.random.default_rng(data.draw(st.integers(0, 1 << 30)))
    count = data.draw(st.sampled_from([1, 17, 300, 16_384, 16_385, 40_000]))
    base = CONTENTS[data.draw(st.sampled_from(sorted(CONTENTS)))](kind, count, rng)
    how = data.draw(st.sampled_from(["not", "some", "all", "rows", "shrunk", "unrelated", "noise"]))
    raw, old = stored(changed(base, kind, how, rng), kind), stored(base, kind)
    codec = Delta(deep=True)
    parts = codec.encode(memoryview(raw), dtype, memoryview(old), dtype)
    assert parts is not None
    payload = b"".join(parts)
    assert decode(payload, old, len(raw)) == raw
    out = bytearray(len(raw))
    codec.check(memoryview(payload), memoryview(old), memoryview(out))
    assert out == raw


@pytest.mark.parametrize("name", ["f32", "f64"])
def test_deep_differences_are_ordered_by_magnitude_and_take_less(name: str) -> None:
    rng = np.random.default_rng(3)
    old = rng.normal(0, 0.02, 1 << 17)
    # The larger a weight the larger its steps, also where the exponents are the same.
    new = old + 20 * np.abs(old) ** 3 * rng.normal(0, 1, len(old))
    raw, base = (array.astype(f"f{int(name[1:]) // 8}") for array in (new, old))
    dtype = BY_NAME[name]
    parts = Delta(deep=True).encode(
        memoryview(raw.tobytes()), dtype, memoryview(base.tobytes()), dtype
    )
    assert parts is not None
    payload = b"".join(parts)
    assert payload[2] == BY_MAGNITUDE
    assert decode(payload, base.tobytes(), raw.nbytes) == raw.tobytes()
    plain = check(raw.tobytes(), dtype, base.tobytes())
    assert plain[2] == BY_EXPONENT
    assert len(payload) < 0.995 * len(plain)


def test_a_wrong_order_by_magnitude_does_not_serve_again() -> None:
    rng = np.random.default_rng(3)
    old = rng.normal(0, 0.02, 1 << 17).astype(np.float32)
    new = (old + 20 * np.abs(old) ** 3 * rng.normal(0, 1, len(old))).astype(np.float32)
    raw, base, codec = new.tobytes(), memoryview(old.tobytes()), Delta(deep=True)
    parts = codec.encode(memoryview(raw), F32, base, F32)
    assert parts is not None
    made = codec._parts[0]._made
    assert made is not None
    assert made[0] == BY_MAGNITUDE
    made[1].places[[-5, -6]] = made[1].places[[-6, -5]]
    out = bytearray(len(raw))
    codec.check(memoryview(b"".join(parts)), base, memoryview(out))
    assert out == raw


def test_numbers_in_the_order_of_magnitude() -> None:
    """Of 1.0, -2.0 and 0.0 the last comes first; signs do not count, and equal ones stay."""
    payload = payload_of(GROUP, STREAM, flags=2)
    assert decode(payload, BASE, 12) == b"".join(
        struct.pack("<I", word) for word in (0x3F800000, 0xC0000001, 0x00000001)
    )
    base = struct.pack("<3f", 1.0, -1.0, 1.0)
    first = payload_of(b"\1\0\1\0\3\0\0\0", b"\2\0\0", flags=2)
    assert decode(first, base, 12) == struct.pack("<I", 0x3F800001) + base[4:]


def test_differences_are_ordered_by_exponent_and_take_less_for_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    old, new = trained(1 << 16)
    payload = check(new, F32, old)
    *_, flags, count, table, rest = HEAD.unpack_from(payload)
    assert (flags, count, rest) == (BY_EXPONENT, 1 << 16, 0)
    assert table > 100
    monkeypatch.setattr(coding, "best_order", lambda *_: UNORDERED)
    plain = check(new, F32, old)
    assert plain[2] == 0
    assert len(payload) < 0.97 * len(plain)
    assert len(payload) < 0.53 * len(new)


def test_what_only_decays_takes_next_to_nothing() -> None:
    """As AdamW leaves what no gradient reaches: mantissas tell all of it."""
    old = np.random.default_rng(0).normal(0, 0.02, 1 << 17).astype(np.float32)
    new = old
    for _ in range(50):
        new = new * np.float32(1 - 2e-7)
    payload = check(new.tobytes(), F32, old.tobytes())
    assert payload[2] == DECAYED
    assert len(payload) < 0.005 * new.nbytes


def test_rows_that_moved_do_not_make_the_others_dear() -> None:
    rng = np.random.default_rng(0)
    old, new = (
        np.frombuffer(version, np.float32).reshape(-1, 4 * BLOCK) for version in trained(1 << 17)
    )
    rows = rng.random(len(old)) < 0.1
    some = np.where(rows[:, None], new, old * np.float32(1 - 1e-5))
    payload = check(some.tobytes(), F32, old.tobytes())
    assert payload[2] == TWO_PARTS
    moved = check(new[rows].tobytes(), F32, old[rows].tobytes())
    decayed = check(some[~rows].tobytes(), F32, old[~rows].tobytes())
    assert len(payload) < 1.01 * (len(moved) + len(decayed)) + 200


def constant(number: int) -> tuple[bytes, bytes]:
    """Table and stream of a group of one and the same number, not 0."""
    return bytes((1, 0, 1)) + struct.pack("<BI", 1, 1), bytes((number,))


def test_two_parts_made_by_hand() -> None:
    """A quiet block, a busy one, and what is left over, which is busy too."""
    base = np.arange(1, 301, dtype=np.float32)
    plane, moved = struct.pack("<BI", 0, 1), constant(2)
    table = plane + b"\0\0" + b"\1\xff" + moved[0]
    payload = payload_of(table, b"\2" + moved[1], flags=8, count=300)
    words = base.view(np.uint32).copy()
    words[128:] += 1
    assert decode(payload, base.tobytes(), 1200) == words.tobytes()
    for bits in (b"\0", b"\3", b"\6", b"\x82"):
        with pytest.raises(CorruptDataError):
            decode(payload_of(table, bits + moved[1], flags=8, count=300), base.tobytes(), 1200)
    for order in (3, 8, 5, 255):
        wrong = plane + bytes((order,)) + table[len(plane) + 1 :]
        with pytest.raises(CorruptDataError):
            decode(payload_of(wrong, b"\2" + moved[1], flags=8, count=300), base.tobytes(), 1200)


def test_decayed_numbers_made_by_hand() -> None:
    """All step by -3, towards zero, but of 1.5, -1.0 and -1.25 the first, which steps by -2."""
    base = struct.pack("<3f", 1.5, -1.0, -1.25)
    steps, plane = constant(5), bytes((1, 0, 1)) + struct.pack("<BI", 0, 3)
    moved = decode(payload_of(steps[0] + plane, steps[1] + b"\2\0\0", flags=4), base, 12)
    assert struct.unpack("<3I", moved) == (0x3FBFFFFE, 0xBF7FFFFD, 0xBF9FFFFD)
    with pytest.raises(CorruptDataError):
        decode(payload_of(steps[0], steps[1], flags=4), base, 12)


def test_the_difference_does_not_grow_at_zero_and_at_powers_of_two() -> None:
    """Neighbouring numbers differ by one ulp, whatever their bits."""
    rng = np.random.default_rng(0)
    old = rng.choice([0.0, -0.0, 1.0, -1.0, 2.0, np.inf, -np.inf], 4096).astype(np.float32)
    new = np.nextafter(old, np.float32(0.5))
    assert len(check(new.tobytes(), F32, old.tobytes())) < 0.08 * new.nbytes


def test_a_chunk_cast_from_its_base_takes_next_to_nothing() -> None:
    rng = np.random.default_rng(0)
    singles = rng.normal(0, 0.02, 5000).astype(np.float32)
    halves = singles.astype(np.float16)
    doubles = singles.astype(np.float64)
    assert len(check(halves.tobytes(), F16, singles.tobytes(), F32)) == EQUAL
    assert len(check(halves.tobytes(), F16, doubles.tobytes(), BY_NAME["f64"])) == EQUAL
    assert len(check(doubles.tobytes(), BY_NAME["f64"], singles.tobytes(), F32)) == EQUAL
    wide, big = halves.astype(np.float32), halves.byteswap()
    assert len(check(wide.tobytes(), F32, big.tobytes(), BY_NAME[">f16"])) == EQUAL


@pytest.mark.parametrize(("name", "share", "over"), [
    ("f32", 0.01, 1.15), ("bf16", 0.01, 1.15), ("f32", 0.001, 1.6), ("bf16", 0.001, 1.4),
])  # fmt: skip
@pytest.mark.parametrize("largest", [1, 16, 300])
def test_few_changes_take_little_more_than_their_places_and_sizes(
    name: str, share: float, over: float, largest: int
) -> None:
    """Of 0.1 % the bound is some hundred bytes, and headers and Huffman tables weigh as much."""
    kind = word_type(BY_NAME[name])
    rng = np.random.default_rng(1)
    count = (1 << 20) // kind.size
    old = weights(kind, count, rng)
    changes = round(share * count)
    new, at = old.copy(), rng.choice(count, changes, replace=False)
    by = rng.integers(1, largest + 1, changes) * rng.choice([-1, 1], changes)
    new[at] += by.astype(f"i{kind.size}").view(kind.native)
    payload = check(stored(new, kind), BY_NAME[name], stored(old, kind))
    places = -count * (share * np.log2(share) + (1 - share) * np.log2(1 - share))
    bound = (places + changes * np.log2(2 * largest)) / 8
    assert len(payload) < over * bound


def test_what_the_chunk_has_beyond_its_base_is_coded_as_planes() -> None:
    old, new = trained(4096)
    whole = check(new, F32, old)
    half = check(new, F32, old[: len(old) // 2])
    *_, count, _, rest = HEAD.unpack_from(half)
    assert count == 2048
    assert 0.8 * 8192 < rest < 8192
    assert len(whole) < len(half) < len(new)
    tail = np.random.default_rng(1).bytes(400)
    noisy = check(new + tail, F32, old)
    assert HEAD.unpack_from(noisy)[-1] == len(tail) + 7
    assert len(noisy) == len(whole) + len(tail) + 7


def test_scratch_of_one_chunk_does_not_show_in_the_next() -> None:
    codec = Delta()
    rng = np.random.default_rng(0)
    chunks = []
    for name, base_name, count in [
        ("f64", "f32", 9000), ("f32", "f32", 100), (">f32", "bf16", 5000), ("bf16", "bf16", 1),
        ("bf16", ">f64", 9000), ("u8", "i8", 900), ("i64", "i64", 3),
    ]:  # fmt: skip
        kind, base_kind = word_type(BY_NAME[name]), word_type(BY_NAME[base_name])
        base = weights(base_kind, count, rng)
        raw = changed(cast(base, base_kind, kind).astype(kind.native), kind, "all", rng)
        chunks.append(
            (BY_NAME[name], stored(raw, kind), BY_NAME[base_name], stored(base, base_kind))
        )
    for dtype, content, base_dtype, against in chunks + chunks[::-1]:
        parts = codec.encode(memoryview(content), dtype, memoryview(against), base_dtype)
        assert parts is not None
        assert decode(b"".join(parts), against, len(content), codec) == content


def test_a_chunk_too_long_to_be_ordered_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    old, new = trained(1 << 14)
    ordered = check(new, F32, old)
    assert ordered[2] == BY_EXPONENT
    monkeypatch.setattr(coding, "LONGEST_ORDER", 1 << 14)
    assert check(new, F32, old) == ordered
    monkeypatch.setattr(coding, "LONGEST_ORDER", (1 << 14) - 1)
    assert check(new, F32, old)[2] == 0
    with pytest.raises(CorruptDataError):
        decode(ordered, old, len(new))


def payload_of(
    groups: bytes,
    streams: bytes = b"",
    *,
    code: int = F32.code,
    base_code: int = F32.code,
    flags: int = 0,
    zero: int = 0,
    count: int = 3,
    table: int | None = None,
    rest: bytes = b"",
    rest_size: int | None = None,
) -> bytes:
    """A payload made by hand."""
    sizes = (
        len(groups) if table is None else table,
        len(rest) if rest_size is None else rest_size,
    )
    head = struct.pack("<BBBBIII", code, base_code, flags, zero, count, *sizes)
    return head + groups + rest + streams


BASE = struct.pack("<3f", 1.0, -2.0, 0.0)
NEXT = struct.pack("<3I", 0x3F800001, 0xC0000000, 0x80000000)
GROUP = bytes((1, 0, 1, 0)) + struct.pack("<I", 3)
STREAM = b"\2\0\1"
REST = bytes((1, 0, 0)) + struct.pack("<I", 4) + b"rest"


def test_a_payload_made_by_hand_is_read() -> None:
    payload = payload_of(GROUP, STREAM)
    assert decode(payload, BASE, 12) == NEXT
    assert decode(payload, BASE + b"beyond", 12) == NEXT
    assert decode(payload_of(GROUP, STREAM, rest=REST), BASE, 16) == NEXT + b"rest"
    assert decode(payload_of(b"\xff" + GROUP, STREAM, flags=1), BASE, 12) == b"".join(
        # In the order of the exponents: 0.0, 1.0, -2.0.
        struct.pack("<I", word)
        for word in (0x3F800000, 0xC0000001, 0x00000001)
    )
    big = payload_of(GROUP, STREAM, code=F32.code | 128)
    assert decode(big, BASE, 12) == np.frombuffer(NEXT, "<u4").astype(">u4").tobytes()
    cast_first = payload_of(b"\0", code=BF16.code)
    assert decode(cast_first, BASE, 6) == bytes.fromhex("803f00c00000")


WRONG_ORDERS = (b"\x80\0\x7f\0", b"\x80\0\x80\0", b"\x80\0")
EMPTY = (b"\0\0\x01\0\xff\0", b"\x7f\0\x7e\0\xff\0", b"\x7f\0\x80\0\x81\0\xff\0")
UNKNOWN = sorted({*range(256)} - {*BY_CODE})


@pytest.mark.parametrize(
    ("payload", "length"),
    [
        (b"", 12),
        (payload_of(GROUP, STREAM)[:15], 12),
        *((payload_of(GROUP, STREAM, code=code), 12) for code in (0, 24, 127, 128, 255)),
        (payload_of(GROUP, STREAM, base_code=0), 12),
        (payload_of(GROUP, STREAM, base_code=BY_NAME["i32"].code), 12),
        (payload_of(GROUP, STREAM, flags=16), 12),
        (payload_of(GROUP, STREAM, flags=3), 12),
        (payload_of(b"\xff" + GROUP, STREAM, flags=3), 12),
        (payload_of(b"\0", flags=2, code=4, base_code=4), 6),
        (payload_of(b"\0\0", flags=4, code=4, base_code=4), 6),
        (payload_of(b"\xff" + GROUP, STREAM, flags=5), 12),
        (payload_of(b"\xff" + GROUP, STREAM, flags=9), 12),
        (payload_of(b"\0\0\0\0\0" + b"\0\0" * 2, flags=8), 12),
        (payload_of(GROUP, STREAM, zero=1), 12),
        (payload_of(b"", count=0), 12),
        (payload_of(b"", count=0, rest=REST), 4),
        (payload_of(b"\0", count=0, rest=REST), 4),
        (payload_of(b"\0", count=4), 12),
        (payload_of(b"\0", count=4), 16),
        (payload_of(b"\0", count=(1 << 32) - 1), 12),
        (payload_of(GROUP, STREAM), 0),
        (payload_of(GROUP, STREAM), 8),
        (payload_of(GROUP, STREAM), 13),
        (payload_of(GROUP, STREAM), 16),
        (payload_of(GROUP, STREAM, table=7), 12),
        (payload_of(GROUP, STREAM, table=9), 12),
        (payload_of(GROUP, STREAM, table=(1 << 32) - 1), 12),
        (payload_of(GROUP, STREAM, rest=REST), 12),
        (payload_of(GROUP, STREAM, rest=REST), 20),
        (payload_of(GROUP, STREAM, rest=REST, rest_size=10), 16),
        (payload_of(GROUP, STREAM, rest_size=3), 12),
        (payload_of(b"\0", rest=REST, rest_size=20), 16),
        (payload_of(GROUP, STREAM, rest_size=(1 << 32) - 1), 12),
        (payload_of(GROUP, STREAM) + b"\0", 12),
        (payload_of(GROUP, STREAM)[:-1], 12),
        (payload_of(GROUP + b"\0", STREAM), 12),
        (payload_of(b"\xff\0", flags=1, code=4, base_code=4), 6),
        *((payload_of(groups, flags=1), 12) for groups in WRONG_ORDERS + EMPTY),
    ],
)
def test_a_payload_that_breaks_the_rules_is_refused(payload: bytes, length: int) -> None:
    with pytest.raises(CorruptDataError):
        decode(payload, BASE, length)


def test_element_types_that_are_not_known_are_refused() -> None:
    for code in UNKNOWN:
        with pytest.raises(CorruptDataError, match=f"unknown type {code}"):
            decode(payload_of(GROUP, STREAM, code=code, base_code=code), BASE, 12)


def damaged_cases() -> Sequence[tuple[bytes, bytes, int]]:
    """Payload, base and length: ordered groups, sparse and dense ones, casts, a rest, two parts."""
    old, new = trained(20_000)
    rng = np.random.default_rng(5)
    bf16 = word_type(BF16)
    words = weights(bf16, 9000, rng)
    sparse = stored(changed(words, bf16, "some", rng), bf16)
    halves = np.frombuffer(new, np.float32).astype(np.float16).tobytes()
    shrunk = (np.frombuffer(old, np.float32) * np.float32(1 - 1e-5)).tobytes()
    cases = [
        (new, F32, old, F32),
        (sparse, BF16, stored(words, bf16), BF16),
        (halves, F16, old[:-4000], F32),
        (new[:4000], F32, halves[:500], F16),
        (sparse[:600], BY_NAME["i16"], stored(words, bf16), BY_NAME[">u16"]),
        (new[:20_000] + shrunk[20_000:], F32, old, F32),
    ]
    return [
        (check(raw, dtype, base, base_dtype), base, len(raw))
        for raw, dtype, base, base_dtype in cases
    ]


@pytest.mark.parametrize("number", range(6))
def test_every_damaged_payload_is_refused_or_gives_wrong_bytes_only(number: int) -> None:
    payload, base, length = damaged_cases()[number]
    codec = Delta()
    rng = np.random.default_rng(number)
    table = HEAD.size + HEAD.unpack_from(payload)[4]
    for end in {*range(min(table, 60)), *rng.integers(0, len(payload), 40).tolist()}:
        with pytest.raises(CorruptDataError):
            decode(payload[:end], base, length, codec)
    head = [(position, bit) for position in range(HEAD.size) for bit in range(8)]
    places = [
        *head,
        *zip(rng.integers(HEAD.size, table, 150), rng.integers(0, 8, 150), strict=True),
        *zip(rng.integers(0, len(payload), 60), rng.integers(0, 8, 60), strict=True),
    ]
    for position, bit in places:
        damaged = bytearray(payload)
        damaged[position] ^= 1 << bit
        with contextlib.suppress(*DAMAGED):
            decode(bytes(damaged), base, length, codec)


@pytest.mark.parametrize("number", range(6))
def test_a_wrong_base_is_refused_or_gives_wrong_bytes_only(number: int) -> None:
    payload, base, length = damaged_cases()[number]
    rng = np.random.default_rng(number)
    longer, shorter = base + b"\0" * 8, base[: len(base) // 2]
    wrong = [b"", base[:1], shorter, bytes(len(base)), rng.bytes(len(base)), longer, base[::-1]]
    wrong += [bytes(rng.permutation(np.frombuffer(base, np.uint8)))]
    for other in wrong:
        with contextlib.suppress(*DAMAGED):
            decode(payload, other, length)
    count = HEAD.unpack_from(payload)[3]
    with pytest.raises(CorruptDataError):
        decode(payload, base[:count], length)


@given(st.binary(max_size=80), st.binary(max_size=40), st.integers(0, 40))
def test_arbitrary_payloads_are_refused_or_give_wrong_bytes_only(
    payload: bytes, base: bytes, length: int
) -> None:
    with contextlib.suppress(*DAMAGED):
        decode(payload, base, length)


@given(st.data())
@settings(max_examples=200)
def test_payloads_with_a_good_head_are_refused_or_give_wrong_bytes_only(
    data: st.DataObject,
) -> None:
    code, base_code = data.draw(st.tuples(*[st.sampled_from([10, 11, 12, 139])] * 2))
    payload = payload_of(
        data.draw(st.lists(st.sampled_from([0, 1, 2, 3, 5, 127, 255]), max_size=40).map(bytes)),
        data.draw(st.binary(max_size=40)),
        code=code,
        base_code=base_code,
        flags=data.draw(st.sampled_from([0, 1, 2, 4, 8])),
        count=data.draw(st.sampled_from([1, 2, 3, 4, 256])),
        rest=data.draw(st.sampled_from([b"", REST])),
    )
    with contextlib.suppress(*DAMAGED):
        decode(
            payload,
            data.draw(st.binary(min_size=16, max_size=32) | st.just(bytes(2048))),
            data.draw(st.integers(4, 24) | st.just(2048)),
        )
