"""Coding one run of bytes of like meaning, a plane: raw, constant, or zstd as a Huffman coder.

| mode | stored bytes | plane of n bytes |
|---|---|---|
| 0 raw | n | the stored bytes |
| 1 constant | 1 | that byte, n times |
| 2 zstd | any number | the content of one zstd frame, as codec 1 has it |

The frames are written with no match finding to speak of, zstd serving as a Huffman coder: on
weights matches are found by chance and cost more than they save, so that level 3 and above code
exponents worse. Every plane is tried whole, for zstd gives up on 256 KiB of noise after about 30
microseconds (of 550 for a chunk of 1 MiB), and a sample would miss what is not noise elsewhere.
"""

import struct

import numpy as np
import numpy.typing as npt
import zstandard

from mstore.codecs.general import decompress
from mstore.errors import CorruptDataError
from mstore.ids import Buffer

RAW_PLANE, CONSTANT_PLANE, ZSTD_PLANE = range(3)
"""Modes of a plane."""

PLANE_ENTRY = struct.Struct("<BI")
"""How payloads tell of a plane: its mode and its stored length."""

Bytes = npt.NDArray[np.uint8]

# target_length=0: with the strategy `fast`, any other value leaves the literals uncompressed.
_HUFFMAN = zstandard.ZstdCompressionParameters(
    strategy=zstandard.STRATEGY_FAST,
    target_length=0,
    min_match=7,
    hash_log=6,
    chain_log=6,
    search_log=1,
    window_log=17,
    write_content_size=False,
    write_checksum=False,
)


# Where Huffman's code does not save so much, a plane is noise to any level.
_NOISE = 0.99
_DEEP_LEVEL = 19


class ByteCoder:
    """Encodes and decodes planes. One thread at a time."""

    def __init__(self, *, deep: bool = False) -> None:
        """With `deep` planes are also tried at level 19, which takes fifty times as long.

        It finds in exponents, and in what is sorted by the magnitude of a base, the few per cent
        that numbers near each other have in common.
        """
        self._deep = zstandard.ZstdCompressor(_DEEP_LEVEL, write_content_size=False)
        self._is_deep = deep
        self._compressor = zstandard.ZstdCompressor(compression_params=_HUFFMAN)
        self._decompressor = zstandard.ZstdDecompressor()

    def encode(self, plane: Bytes) -> tuple[int, Buffer]:
        """Mode and stored bytes of a plane of at least one byte; raw ones lie in the plane."""
        if plane[0] == plane[-1] and (plane == plane[0]).all():
            return CONSTANT_PLANE, bytes(plane[:1])
        frame = self._compressor.compress(plane.data)
        if self._is_deep and len(frame) < _NOISE * len(plane):
            frame = min(frame, self._deep.compress(plane.data), key=len)
        if len(frame) < len(plane):
            return ZSTD_PLANE, frame
        return RAW_PLANE, plane.data

    def decode(self, mode: int, stored: memoryview, length: int) -> Bytes:
        """The plane of `length` bytes; raises CorruptDataError when it cannot be that long."""
        if mode == ZSTD_PLANE:
            return np.frombuffer(decompress(stored, length, self._decompressor), np.uint8)
        if mode == RAW_PLANE and len(stored) == length:
            return np.frombuffer(stored, np.uint8)
        if mode == CONSTANT_PLANE and len(stored) == 1:
            return np.full(length, stored[0], np.uint8)
        raise CorruptDataError(f"a byte plane has mode {mode} and {len(stored)} stored bytes")
