"""Codecs for any bytes: raw (number 0) and zstd (number 1). Nothing here needs numpy.

The payload of raw is the raw bytes. The payload of zstd is exactly one zstd frame (RFC 8878),
with no dictionary, and nothing after it. A frame may or may not give its content size; if it
does, that is the raw length. A window is at most 8 MiB (RFC 8878, 3.1.1.1.2, asks no more of a
decoder) or at most the raw length.
"""

import xxhash
import zstandard

from mstore.codecs.base import RAW, ZSTD, Codec
from mstore.dtypes import DType
from mstore.errors import CorruptDataError, LimitExceededError, UnsupportedVersionError
from mstore.ids import Buffer

LEVEL = 3
"""The zstd level of general bytes."""

MAX_WINDOW = 8 << 20
"""Bytes that any frame may ask a decoder to keep in memory beside the output."""

# A zstd block takes at least 4 bytes (RLE: 3 of header, 1 of content) and gives at most 128 KiB.
_MAX_EXPANSION = (128 << 10) // 4


class Raw(Codec):
    """The bytes as they are."""

    number = RAW
    name = "raw"

    def encode(self, raw: memoryview, dtype: DType | None) -> list[Buffer]:
        """Always `raw` itself."""
        return [raw]

    def decode(self, payload: memoryview, out: memoryview) -> None:
        """Copy; raises CorruptDataError when the lengths differ."""
        if len(payload) != len(out):
            raise _wrong_length(len(payload), len(out))
        out[:] = payload


class Zstd(Codec):
    """One zstd frame."""

    number = ZSTD
    name = "zstd"

    def __init__(self, level: int = LEVEL) -> None:
        self._compressor = zstandard.ZstdCompressor(level=level)
        self._decompressor = zstandard.ZstdDecompressor()

    def encode(self, raw: memoryview, dtype: DType | None) -> list[Buffer]:
        """One part, the frame."""
        return [self._compressor.compress(raw)]

    def decode(self, payload: memoryview, out: memoryview) -> None:
        """Decompress; raises CorruptDataError or LimitExceededError as `decompress` does."""
        out[:] = decompress(payload, len(out), self._decompressor)


def encode_checked(raw: Buffer) -> tuple[int, bytes, int]:
    """Encode metadata: number of the codec, payload, and XXH3-64 of `raw`.

    The payload is decoded once and compared before it is returned.
    """
    frame = zstandard.ZstdCompressor(level=LEVEL).compress(raw)
    checksum = xxhash.xxh3_64_intdigest(raw)
    if len(frame) < len(raw) and decode(ZSTD, frame, len(raw)) == raw:
        return ZSTD, frame, checksum
    return RAW, bytes(raw), checksum


def decode(codec: int, payload: Buffer, raw_length: int) -> bytes:
    """The `raw_length` raw bytes of a payload of codec raw or zstd.

    Never allocates more than `raw_length` and the window. Raises CorruptDataError when the
    payload is not that of so many bytes, LimitExceededError when its window is too large and
    UnsupportedVersionError for any other codec.
    """
    if codec == RAW:
        if len(payload) != raw_length:
            raise _wrong_length(len(payload), raw_length)
        return bytes(payload)
    if codec == ZSTD:
        return decompress(payload, raw_length, zstandard.ZstdDecompressor())
    raise UnsupportedVersionError(
        f"metadata is stored with codec {codec}, which this version cannot read",
        hint="upgrade mstore",
    )


def decompress(frame: Buffer, length: int, decompressor: zstandard.ZstdDecompressor) -> bytes:
    """The content of one zstd frame, which must be `length` bytes.

    Raises CorruptDataError when it is not, and LimitExceededError when the window is too large.
    All sizes are checked before anything is allocated.
    """
    if length > len(frame) * _MAX_EXPANSION:
        raise CorruptDataError(f"{len(frame)} bytes of zstd data cannot hold {length} bytes")
    try:
        header = zstandard.get_frame_parameters(frame)
        if header.content_size not in (length, zstandard.CONTENTSIZE_UNKNOWN):
            raise _wrong_length(header.content_size, length)
        if header.window_size > max(MAX_WINDOW, length):
            raise LimitExceededError(f"zstd data asks for a window of {header.window_size} bytes")
        content = decompressor.decompress(frame, max_output_size=length, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise CorruptDataError(f"zstd data is damaged: {error}") from error
    if len(content) != length:
        raise _wrong_length(len(content), length)
    return content


def _wrong_length(found: int, expected: int) -> CorruptDataError:
    return CorruptDataError(f"data decodes to {found} bytes where {expected} are expected")
