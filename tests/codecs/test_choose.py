import contextlib
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mstore.codecs.base import CONSTANT, PLANES, RAW, ZSTD, Base, Codec, Encoded
from mstore.codecs.choose import Decoder, Encoder
from mstore.codecs.planes import Planes
from mstore.dtypes import BY_NAME, DType
from mstore.errors import CorruptDataError, LimitExceededError, UnsupportedVersionError
from mstore.ids import Buffer

RNG = np.random.default_rng(0)
WEIGHTS = RNG.normal(0, 0.02, 1 << 16).astype(np.float32)
F32 = BY_NAME["f32"]


def encode(raw: bytes, dtype: DType | None) -> Encoded:
    encoder = Encoder()
    encoded = encoder.encode(memoryview(raw), dtype)
    assert encoder.rejected == 0
    assert encoded.stored <= len(raw)
    return encoded


def decode(encoded: Encoded, length: int) -> bytes:
    out = bytearray(length)
    Decoder().decode(encoded.codec, memoryview(encoded.payload), memoryview(out))
    return bytes(out)


WORDS = [RNG.bytes(length) for length in RNG.integers(3, 12, 2000)]
TEXT = b" ".join(WORDS[i] for i in RNG.integers(0, len(WORDS), 30000))
PRUNED = np.where(RNG.random(len(WEIGHTS)) < 0.9, 0, WEIGHTS)
IDS = np.arange(30000, dtype=np.int64) // 100
BF16 = (WEIGHTS.view(np.uint32) >> 16).astype(np.uint16)


@pytest.mark.parametrize(
    ("name", "raw", "codec", "fraction"),
    [
        ("f32", WEIGHTS.tobytes(), PLANES, 0.86),
        ("f32", WEIGHTS[:1000].tobytes(), PLANES, 0.89),
        (">f32", WEIGHTS.byteswap().tobytes(), PLANES, 0.86),
        ("bf16", BF16.tobytes(), PLANES, 0.72),
        ("f16", WEIGHTS.astype(np.float16).tobytes(), PLANES, 0.89),
        ("f64", WEIGHTS.astype(np.float64).tobytes(), PLANES, 0.47),
        ("c64", WEIGHTS.tobytes(), PLANES, 0.86),
        ("i8", (WEIGHTS * 500).astype(np.int8).tobytes(), PLANES, 0.75),
        ("i32", (WEIGHTS * 1e5).astype(np.int32).tobytes(), PLANES, 0.6),
        ("f32", (BF16.astype(np.uint32) << 16).tobytes(), PLANES, 0.37),
        ("f32", PRUNED.tobytes(), ZSTD, 0.16),
        ("i64", IDS.tobytes(), PLANES, 0.01),
        (None, TEXT, ZSTD, 0.5),
        ("u8", RNG.bytes(50000), RAW, 1.0),
        ("f32", RNG.bytes(50000), RAW, 1.0),
        (None, RNG.bytes(50000), RAW, 1.0),
        ("f32", bytes(40000), CONSTANT, 0.001),
        ("bf16", b"\x80\x3f" * 5000, CONSTANT, 0.001),
        (None, b"\xff" * 5000, CONSTANT, 0.001),
        ("f32", b"\0\0\x80\x3f", RAW, 1.0),
        ("f32", b"", RAW, 1.0),
        (None, b"", RAW, 1.0),
    ],
)
def test_each_kind_of_data_gets_the_codec_that_suits_it(
    name: str | None, raw: bytes, codec: int, fraction: float
) -> None:
    encoded = encode(raw, BY_NAME[name] if name else None)
    assert encoded.codec == codec
    assert encoded.stored <= fraction * len(raw)
    assert decode(encoded, len(raw)) == raw


@given(
    st.sampled_from([None, *BY_NAME.values()]),
    st.binary(max_size=300)
    | st.builds(lambda unit, n: unit * n, st.binary(max_size=9), st.integers(0, 40)),
)
@settings(max_examples=300)
def test_anything_comes_back_and_never_grows(dtype: DType | None, raw: bytes) -> None:
    """Also bytes that are not whole elements of their type, which no tensor gives."""
    assert decode(encode(raw, dtype), len(raw)) == raw


@pytest.mark.parametrize("length", [32767, 32768, 32769, 100_001, (1 << 20) - 1, 1 << 20])
def test_samples_stay_within_chunks_of_any_length(length: int) -> None:
    raw = (WEIGHTS.tobytes() * 4)[:length]
    assert decode(encode(raw, None), length) == raw


def test_structure_that_no_sample_meets_is_found() -> None:
    """Planes are tried whole; only zstd is judged by samples."""
    raw = bytearray(RNG.bytes(1 << 18))
    raw[10000:60000] = bytes(50000)
    assert encode(bytes(raw), F32).stored < 0.85 * len(raw)


def test_a_result_does_not_change_when_the_encoder_goes_on() -> None:
    """Neither scratch memory nor the caller's buffer may show through."""
    encoder = Encoder()
    chunks = [
        (F32, WEIGHTS.tobytes()),
        (F32, RNG.bytes(1 << 18)),
        (F32, PRUNED.tobytes()),
        (None, RNG.bytes(1 << 18)),
        (F32, (WEIGHTS * 3).tobytes()),
        (F32, bytes(1 << 18)),
    ]
    buffer = bytearray(1 << 18)
    results = []
    for dtype, raw in chunks:
        buffer[:] = raw
        results.append(encoder.encode(memoryview(buffer), dtype))
    buffer[:] = bytes(len(buffer))
    assert {result.codec for result in results} == {RAW, ZSTD, CONSTANT, PLANES}
    for (_, raw), result in zip(chunks, results, strict=True):
        assert decode(result, len(raw)) == raw


class _Altered(Planes):
    """Byte planes with a defect."""

    def __init__(
        self,
        *,
        stored: Callable[[bytes], bytes] = lambda payload: payload,
        decoded: Callable[[memoryview], None] = lambda out: None,
    ) -> None:
        super().__init__()
        self.stored = stored
        self.decoded = decoded

    def encode(self, raw: memoryview, dtype: DType | None) -> list[Buffer] | None:
        parts = super().encode(raw, dtype)
        return None if parts is None else [self.stored(b"".join(parts))]

    def decode(self, payload: memoryview, out: memoryview) -> None:
        super().decode(payload, out)
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
def test_a_broken_codec_falls_back_to_raw(broken: Codec) -> None:
    raw = WEIGHTS.tobytes()
    encoder = Encoder(planes=broken)
    encoded = encoder.encode(memoryview(raw), F32)
    assert encoded == Encoded(RAW, raw)
    assert encoder.rejected == 1


def test_a_codec_that_works_is_not_rejected() -> None:
    encoder = Encoder(planes=_Altered())
    assert encoder.encode(memoryview(WEIGHTS.tobytes()), F32).codec == PLANES
    assert encoder.rejected == 0


def test_an_unknown_codec_asks_for_a_newer_version() -> None:
    with pytest.raises(UnsupportedVersionError, match="codec 77"):
        Decoder().decode(77, memoryview(b""), memoryview(bytearray(4)))


@given(st.sampled_from([RAW, ZSTD, CONSTANT, PLANES]), st.binary(max_size=60), st.integers(0, 60))
@settings(max_examples=300)
def test_hostile_payloads_are_refused_or_give_wrong_bytes_only(
    codec: int, payload: bytes, length: int
) -> None:
    with contextlib.suppress(CorruptDataError, LimitExceededError):
        Decoder().decode(codec, memoryview(payload), memoryview(bytearray(length)))


def test_a_deep_encoder_takes_less_and_the_same_decoder_reads_it() -> None:
    raw = memoryview(WEIGHTS.tobytes())
    old = WEIGHTS + (1e-5 * np.random.default_rng(1).normal(0, 1, len(WEIGHTS))).astype("f4")
    bases = [Base(memoryview(old.tobytes()), F32, 0)]
    encoder = Encoder.deep()
    for offered in ([], bases):
        encoded = encoder.encode(raw, F32, offered)
        assert encoded.stored < Encoder().encode(raw, F32, offered).stored
        out = memoryview(bytearray(len(raw)))
        base = bases[0].raw if encoded.base is not None else None
        Decoder().decode(encoded.codec, memoryview(encoded.payload), out, base)
        assert out == raw
    assert encoder.rejected == 0
