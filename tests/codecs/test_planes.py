import contextlib
import struct

import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from mstore.codecs.bytecoder import CONSTANT_PLANE, RAW_PLANE, ZSTD_PLANE
from mstore.codecs.planes import Planes
from mstore.dtypes import BY_NAME, DType
from mstore.errors import CorruptDataError, LimitExceededError

DAMAGED = (CorruptDataError, LimitExceededError)
GUARD = 16


def encode(raw: bytes, dtype: DType | None) -> bytes | None:
    parts = Planes().encode(memoryview(raw), dtype)
    return None if parts is None else b"".join(parts)


def decode(payload: bytes, length: int, planes: Planes | None = None) -> bytes:
    """Decode into the middle of a larger buffer, and see that nothing around it is touched."""
    out = bytearray(b"\xa5" * (length + 2 * GUARD))
    try:
        (planes or Planes()).decode(memoryview(payload), memoryview(out)[GUARD:-GUARD])
    finally:
        assert out[:GUARD] == out[-GUARD:] == b"\xa5" * GUARD
    return bytes(out[GUARD:-GUARD])


def decode_as_documented(payload: bytes, length: int) -> bytes:
    """The payload read word by word, as the module's documentation tells it."""
    word, flags = payload[0], payload[1]
    count = length // word
    position = 2 + 5 * word
    planes = []
    for index in range(word):
        mode, stored = struct.unpack_from("<BI", payload, 2 + 5 * index)
        body = payload[position : position + stored]
        position += stored
        if mode == CONSTANT_PLANE:
            body = body * count
        elif mode == ZSTD_PLANE:
            body = zstandard.ZstdDecompressor().decompress(body, max_output_size=count)
        planes.append(body)
    assert position == len(payload)
    raw = b""
    for row in zip(*planes, strict=True):
        value = int.from_bytes(bytes(row), "little")
        if flags & 1:
            value = value >> 1 | (value & 1) << (8 * word - 1)
        raw += value.to_bytes(word, "big" if flags & 2 else "little")
    return raw


def weights(dtype: DType, count: int, seed: int = 0) -> bytes:
    """Bytes that look like a trained tensor: about half of the bits predictable."""
    words = np.random.default_rng(seed).normal(0, 0.02, count * dtype.itemsize // dtype.word)
    floats = {1: np.float16, 2: np.float16, 4: np.float32, 8: np.float64}[dtype.word]
    values = words.astype(floats)
    if dtype.word == 1:
        return (values.view(np.uint16) >> 8).astype(np.uint8).tobytes()
    return (values.byteswap() if dtype.big_endian else values).tobytes()


@pytest.mark.parametrize("name", sorted(BY_NAME))
@pytest.mark.parametrize("count", [1, 2, 3, 500, 4097])
def test_every_type_comes_back(name: str, count: int) -> None:
    dtype = BY_NAME[name]
    raw = weights(dtype, count)
    payload = encode(raw, dtype)
    if payload is None:
        assert count <= 3
        return
    assert decode(payload, len(raw)) == raw
    assert decode_as_documented(payload, len(raw)) == raw
    if count > 500:
        assert len(payload) < 0.97 * len(raw)


@pytest.mark.parametrize("name", sorted(BY_NAME))
@given(data=st.data())
@settings(max_examples=25)
def test_any_bytes_of_any_length_come_back(name: str, data: st.DataObject) -> None:
    raw = data.draw(st.binary(max_size=200) | st.lists(st.sampled_from(b"\0\x01\x80\xff")))
    payload = encode(bytes(raw), BY_NAME[name])
    if len(raw) % BY_NAME[name].word:
        assert payload is None
    if payload is not None:
        assert decode(payload, len(raw)) == bytes(raw)
        assert decode_as_documented(payload, len(raw)) == bytes(raw)


SPECIAL_32 = [
    0x7FC00000,
    0xFFC12345,
    0x7F800001,
    0x7F800000,
    0xFF800000,
    0x80000000,
    0,
    1,
    0x807FFFFF,
]
SPECIAL_16 = [0x7FC0, 0xFFC1, 0x7F81, 0x7F80, 0xFF80, 0x8000, 0, 1, 0x807F, 0x7C00, 0xFC01]


@pytest.mark.parametrize(
    ("name", "bits"),
    [("f32", SPECIAL_32), (">f32", SPECIAL_32), ("bf16", SPECIAL_16), ("f16", SPECIAL_16)],
)
def test_not_a_number_infinity_minus_zero_and_denormals_keep_their_bits(
    name: str, bits: list[int]
) -> None:
    dtype = BY_NAME[name]
    raw = np.array(bits * 40, f"{'>' if dtype.big_endian else '<'}u{dtype.word}").tobytes()
    payload = encode(raw, dtype)
    assert payload is not None
    assert decode(payload, len(raw)) == raw


def test_the_exponents_of_a_float_fill_one_plane() -> None:
    """Without the rotation, the sign would double the symbols and halve the runs."""
    signs = np.where(np.arange(512) % 2, -1, 1)
    raw = (signs * np.linspace(1, 1.999, 512)).astype(np.float32).tobytes()
    payload = encode(raw, BY_NAME["f32"])
    assert payload is not None
    assert payload[:2] == bytes([4, 1])
    assert payload[2 + 5 * 3] == CONSTANT_PLANE


def test_the_header_says_what_was_done() -> None:
    heads = {
        "f32": (4, 1), ">f32": (4, 3), "bf16": (2, 1), "c64": (4, 1), ">c128": (8, 3),
        "i32": (4, 0), ">i16": (2, 2), "u8": (1, 0), "bool": (1, 0), "f8_e5m2": (1, 0),
        "f4": (1, 0),
    }  # fmt: skip
    for name, head in heads.items():
        payload = encode(bytes(960), BY_NAME[name])
        assert payload is not None
        assert tuple(payload[:2]) == head, name


def test_planes_are_stored_raw_constant_or_compressed() -> None:
    words = np.random.default_rng(0).integers(0, 256, 4000, np.uint32)
    words |= np.random.default_rng(1).integers(0, 3, 4000, np.uint32) << np.uint32(8)
    payload = encode(words.tobytes(), BY_NAME["u32"])
    assert payload is not None
    modes = [payload[2 + 5 * plane] for plane in range(4)]
    assert modes == [RAW_PLANE, ZSTD_PLANE, CONSTANT_PLANE, CONSTANT_PLANE]


def test_noise_does_not_pay() -> None:
    assert encode(np.random.default_rng(0).bytes(40000), BY_NAME["u32"]) is None


@pytest.mark.parametrize("name", ["f32", ">f32", "bf16", "f64"])
@pytest.mark.parametrize("shift", range(1, 8))
def test_unaligned_memory_is_read_and_written(name: str, shift: int) -> None:
    dtype = BY_NAME[name]
    raw = weights(dtype, 600)
    parts = Planes().encode(memoryview(bytes(shift) + raw)[shift:], dtype)
    assert parts is not None
    payload = b"".join(parts)
    assert payload == encode(raw, dtype)
    out = bytearray(len(raw) + shift)
    Planes().decode(memoryview(bytes(shift) + payload)[shift:], memoryview(out)[shift:])
    assert out == bytes(shift) + raw


def test_scratch_of_one_chunk_does_not_show_in_the_next() -> None:
    planes = Planes()
    chunks = [
        (BY_NAME[name], weights(BY_NAME[name], count, seed))
        for seed, (name, count) in enumerate(
            [("f64", 3000), ("f32", 100), (">f32", 2000), ("bf16", 1), ("bf16", 4000), ("u8", 900)]
        )
    ]
    for dtype, raw in chunks + chunks[::-1]:
        parts = planes.encode(memoryview(raw), dtype)
        if parts is not None:
            assert decode(b"".join(parts), len(raw), planes) == raw


def payload_of(word: int, flags: int, *planes: tuple[int, int, bytes]) -> bytes:
    head = bytes([word, flags]) + b"".join(struct.pack("<BI", mode, n) for mode, n, _ in planes)
    return head + b"".join(stored for _, _, stored in planes)


CONSTANT = ((CONSTANT_PLANE, 1, b"x"),) * 2
GOOD = ((RAW_PLANE, 4, b"abcd"), (CONSTANT_PLANE, 1, b"x"))


def test_a_payload_made_by_hand_is_read() -> None:
    assert decode(payload_of(2, 0, *GOOD), 8) == b"axbxcxdx"
    assert decode(payload_of(2, 2, *GOOD), 8) == b"xaxbxcxd"
    assert decode(payload_of(1, 0, GOOD[0]), 4) == b"abcd"


@pytest.mark.parametrize(
    ("payload", "length"),
    [
        (b"", 8),
        (b"\x02", 8),
        (payload_of(2, 0, *GOOD)[:11], 8),
        (payload_of(2, 0, *GOOD), 0),
        (payload_of(2, 0, *CONSTANT), 0),
        (payload_of(2, 0, *CONSTANT), 7),
        (payload_of(2, 0, *GOOD), 6),
        (payload_of(2, 0, *GOOD), 7),
        (payload_of(2, 0, *GOOD), 10),
        (payload_of(2, 0, *GOOD)[:-1], 8),
        (payload_of(2, 0, *GOOD) + b"z", 8),
        (payload_of(2, 4, *GOOD), 8),
        (payload_of(0, 0), 8),
        (payload_of(3, 0, *GOOD, GOOD[1]), 12),
        (payload_of(1, 1, GOOD[0]), 4),
        (payload_of(1, 2, GOOD[0]), 4),
        (payload_of(2, 0, GOOD[0], (CONSTANT_PLANE, 0, b"")), 8),
        (payload_of(2, 0, GOOD[0], (CONSTANT_PLANE, 2, b"xx")), 8),
        (payload_of(2, 0, GOOD[0], (ZSTD_PLANE, 4, b"abcd")), 8),
        (payload_of(2, 0, GOOD[0], (ZSTD_PLANE, 0, b"")), 8),
        (payload_of(2, 0, GOOD[0], (3, 4, b"abcd")), 8),
        (payload_of(2, 0, GOOD[0], (RAW_PLANE, 0xFFFFFFFF, b"abcd")), 8),
        (payload_of(2, 0, (RAW_PLANE, 0xFFFFFFFF, b"abcd"), (RAW_PLANE, 5, b"abcde")), 8),
    ],
)
def test_a_payload_that_breaks_the_rules_is_refused(payload: bytes, length: int) -> None:
    with pytest.raises(CorruptDataError):
        decode(payload, length)


def test_a_bomb_in_a_plane_is_refused() -> None:
    bomb = zstandard.ZstdCompressor(write_content_size=False).compress(bytes(64 << 20))
    sized = zstandard.ZstdCompressor().compress(bytes(64 << 20))
    for frame in (bomb, sized):
        with pytest.raises(DAMAGED):
            decode(payload_of(2, 0, GOOD[0], (ZSTD_PLANE, len(frame), frame)), 8)


@pytest.mark.parametrize("name", ["f32", ">i16", "u8"])
def test_every_damaged_payload_is_refused_or_gives_wrong_bytes_only(name: str) -> None:
    raw = weights(BY_NAME[name], 400)
    payload = encode(raw, BY_NAME[name])
    assert payload is not None
    planes = Planes()
    for end in range(len(payload)):
        with pytest.raises(CorruptDataError):
            decode(payload[:end], len(raw), planes)
    rng = np.random.default_rng(0)
    header = {(position, bit) for position in range(60) for bit in range(8)}
    sample = {(int(p), int(b)) for p, b in rng.integers(0, (len(payload), 8), (400, 2))}
    for position, bit in header | sample:
        damaged = bytearray(payload)
        damaged[position] ^= 1 << bit
        with contextlib.suppress(*DAMAGED):
            decode(bytes(damaged), len(raw), planes)


@given(st.binary(max_size=100), st.integers(0, 100))
def test_arbitrary_payloads_are_refused_or_give_wrong_bytes_only(
    payload: bytes, length: int
) -> None:
    with contextlib.suppress(*DAMAGED):
        decode(payload, length)
