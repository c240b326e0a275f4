"""Reads what payloads are made of; written from docs/format.md alone, sharing no code with mstore.

What is not as docs/format.md says raises `RefusedError`.
"""

import io
import struct

import numpy as np
import zstandard


class RefusedError(Exception):
    """The repository is not as the format says."""


def require(condition, what):
    if not condition:
        raise RefusedError(what)


def unzstd(frame, length):
    """The content of one frame, which must be `length` bytes."""
    try:
        header = zstandard.get_frame_parameters(frame)
        require(header.content_size in (length, zstandard.CONTENTSIZE_UNKNOWN), "zstd length")
        require(header.window_size <= max(8 << 20, length), "zstd window")
        decompressor = zstandard.ZstdDecompressor()
        content = decompressor.decompress(frame, max_output_size=length, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise RefusedError(f"zstd: {error}") from error
    require(len(content) == length, "zstd length")
    return content


def read(file, layout):
    data = file.read(struct.calcsize(layout))
    require(len(data) == struct.calcsize(layout), "cut short")
    return struct.unpack(layout, data)


def read_planes(entries, streams, shifts, count, dtype):
    """The bitwise or of planes of `count` bytes, each shifted left."""
    words = np.zeros(count, dtype)
    for shift in shifts:
        mode, stored = read(entries, "<BI")
        data = streams.read(stored)
        require(len(data) == stored and mode in (0, 1, 2), "plane")
        require(mode == 2 or stored == (count, 1)[mode], "plane")
        data = unzstd(data, count) if mode == 2 else data * (count if mode == 1 else 1)
        words |= np.frombuffer(data, np.uint8).astype(dtype) << words.dtype.type(shift)
    return words


def decode_planes(payload, raw_length):
    file = io.BytesIO(payload)
    word, flags = read(file, "<BB")
    require(word in (1, 2, 4, 8) and flags <= (0 if word == 1 else 3), "planes header")
    require(raw_length and raw_length % word == 0, "planes lengths")
    entries = io.BytesIO(file.read(5 * word))
    count, shifts = raw_length // word, range(0, 8 * word, 8)
    words = read_planes(entries, file, shifts, count, f"<u{word}")
    require(not file.read(1), "planes lengths")
    if flags & 1:
        words = words >> words.dtype.type(1) | words << words.dtype.type(8 * word - 1)
    return words.astype(f">u{word}" if flags & 2 else f"<u{word}").tobytes()
