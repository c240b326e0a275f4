import contextlib
import subprocess
import sys

import pytest
import xxhash
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from mstore.codecs import general
from mstore.codecs.base import CONSTANT, PLANES, RAW, ZSTD
from mstore.codecs.general import MAX_WINDOW, Raw, Zstd
from mstore.errors import CorruptDataError, LimitExceededError, UnsupportedVersionError

DAMAGED = (CorruptDataError, LimitExceededError)


def frame_of(raw: bytes, *, content_size: bool, window_log: int = 17) -> bytes:
    parameters = zstandard.ZstdCompressionParameters(
        window_log=window_log, write_content_size=content_size
    )
    # A stream, so that zstd cannot make the window smaller to suit the content.
    stream = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    return stream.compress(raw) + stream.flush()


@given(st.binary(max_size=2000))
def test_what_is_encoded_is_decoded(raw: bytes) -> None:
    codec, payload, checksum = general.encode_checked(raw)
    assert len(payload) <= len(raw)
    assert checksum == xxhash.xxh3_64_intdigest(raw)
    assert general.decode(codec, payload, len(raw)) == raw


def test_compressible_bytes_are_stored_as_zstd_and_noise_as_raw() -> None:
    assert general.encode_checked(b"ab" * 500)[0] == ZSTD
    assert general.encode_checked(bytes(range(256)))[:2] == (RAW, bytes(range(256)))


def test_a_payload_that_does_not_restore_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(general, "decompress", lambda *_: b"something else")
    assert general.encode_checked(b"ab" * 500)[:2] == (RAW, b"ab" * 500)


def test_frames_decode_with_and_without_content_size() -> None:
    raw = b"weights " * 100
    for content_size in (True, False):
        frame = frame_of(raw, content_size=content_size)
        assert general.decode(ZSTD, frame, len(raw)) == raw
        out = bytearray(len(raw))
        Zstd().decode(memoryview(frame), memoryview(out))
        assert out == raw


@pytest.mark.parametrize("raw_length", [0, 1, 799, 801, 1 << 60])
@pytest.mark.parametrize("content_size", [True, False])
def test_a_wrong_raw_length_is_refused(raw_length: int, content_size: bool) -> None:
    frame = frame_of(b"weights " * 100, content_size=content_size)
    with pytest.raises(CorruptDataError):
        general.decode(ZSTD, frame, raw_length)
    with pytest.raises(CorruptDataError):
        general.decode(RAW, b"weights " * 100, raw_length)


def test_a_raw_payload_of_another_length_is_refused() -> None:
    with pytest.raises(CorruptDataError):
        Raw().decode(memoryview(b"abc"), memoryview(bytearray(4)))


def test_bytes_after_the_frame_are_refused() -> None:
    raw = b"weights " * 100
    frame = frame_of(raw, content_size=True)
    for tail in (b"\0", frame):
        with pytest.raises(CorruptDataError):
            general.decode(ZSTD, frame + tail, len(raw))


def test_a_skippable_frame_is_refused() -> None:
    skippable = b"\x50\x2a\x4d\x18\x04\0\0\0abcd"
    for raw_length in (0, 4):
        with pytest.raises(CorruptDataError):
            general.decode(ZSTD, skippable, raw_length)


def test_the_window_has_a_limit() -> None:
    raw = b"weights " * 100
    assert general.decode(ZSTD, frame_of(raw, content_size=False, window_log=23), len(raw)) == raw
    with pytest.raises(LimitExceededError):
        general.decode(ZSTD, frame_of(raw, content_size=False, window_log=24), len(raw))


def test_a_window_no_larger_than_the_content_is_accepted() -> None:
    raw = bytes(2 * MAX_WINDOW)
    frame = zstandard.ZstdCompressor().compress(raw)
    single = zstandard.ZstdCompressionParameters.from_level(3, window_log=24)
    assert general.decode(ZSTD, frame, len(raw)) == raw
    frame = zstandard.ZstdCompressor(compression_params=single).compress(raw)
    assert zstandard.get_frame_parameters(frame).window_size > MAX_WINDOW
    assert general.decode(ZSTD, frame, len(raw)) == raw


def test_a_length_no_frame_of_this_size_can_hold_is_refused_before_allocating() -> None:
    frame = frame_of(bytes(1000), content_size=False)
    with pytest.raises(CorruptDataError, match="cannot hold"):
        general.decode(ZSTD, frame, len(frame) * 32768 + 1)


def test_a_content_size_other_than_the_raw_length_is_refused_before_allocating() -> None:
    frame = zstandard.FRAME_HEADER + b"\xe0" + (1 << 50).to_bytes(8, "little") + bytes(8)
    assert zstandard.frame_content_size(frame) == 1 << 50
    with pytest.raises(CorruptDataError, match="where 1000 are expected"):
        general.decode(ZSTD, frame, 1000)


def test_the_densest_frame_is_not_refused() -> None:
    # As dense as zstd gets: all blocks but the last take four bytes for 128 KiB.
    raw = bytes(64 << 20)
    frame = zstandard.ZstdCompressor(level=1).compress(raw)
    assert len(general.decode(ZSTD, frame, len(raw))) == len(raw)


def test_every_damaged_frame_is_refused_or_has_the_right_length() -> None:
    raw = b"".join(b"%d " % (i * i) for i in range(150))
    for content_size in (True, False):
        frame = frame_of(raw, content_size=content_size)
        for end in range(len(frame)):
            with pytest.raises(CorruptDataError):
                general.decode(ZSTD, frame[:end], len(raw))
        for position in range(len(frame)):
            for bit in range(8):
                damaged = bytearray(frame)
                damaged[position] ^= 1 << bit
                with contextlib.suppress(*DAMAGED):
                    assert len(general.decode(ZSTD, damaged, len(raw))) == len(raw)


@given(st.binary(max_size=200), st.integers(0, 1000))
def test_arbitrary_payloads_are_refused_or_have_the_right_length(
    payload: bytes, length: int
) -> None:
    with contextlib.suppress(*DAMAGED):
        assert len(general.decode(ZSTD, payload, length)) == length


@pytest.mark.parametrize("codec", [CONSTANT, PLANES, 99])
def test_other_codecs_are_not_read(codec: int) -> None:
    with pytest.raises(UnsupportedVersionError):
        general.decode(codec, b"", 0)


def test_metadata_is_read_without_numpy() -> None:
    check = "import sys, mstore.codecs.general; sys.exit('numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0
