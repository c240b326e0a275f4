"""Codec planes (number 3): the bytes of equal significance of all words, each plane apart.

In a trained weight only sign and exponent are predictable; the mantissa is noise. Set apart, each
part gets the code that suits it, and the noise is stored as it is. The words of floats are first
rotated left by one bit, so that the sign moves to the bottom and the exponent fills the top byte.

Payload, integers little-endian; n is the raw length divided by the word size:

| offset | bytes | what |
|---|---|---|
| 0 | 1 | word size W: 1, 2, 4 or 8 |
| 1 | 1 | flags: 1 rotated, 2 big-endian; other bits are zero, and all are when W is 1 |
| 2 | 5 W | for each plane: mode (1 byte), then stored length (4 bytes) |
| 2 + 5 W | | the stored bytes of each plane, in the same order, up to the end of the payload |

Plane 0 holds the least significant byte of each word, in the order of the words, plane W-1 the
most significant.

The modes are those of `bytecoder`.

To decode: put each word together from its planes; if rotated, rotate it right by one bit; write
it, in big-endian order if so flagged, else in little-endian order.
"""

import struct
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from mstore.codecs.base import PLANES, Codec
from mstore.codecs.bytecoder import PLANE_ENTRY, RAW_PLANE, ByteCoder
from mstore.codecs.scratch import Scratch
from mstore.dtypes import DType
from mstore.errors import CorruptDataError
from mstore.ids import Buffer

ROTATED, BIG_ENDIAN = 1, 2
"""Flags of a payload."""

_HEAD = struct.Struct("<BB")

# Words, or planes of them: unsigned integers of 1, 2, 4 or 8 bytes.
_Words = npt.NDArray[np.unsignedinteger]


class Planes(Codec):
    """Tensors of all types, and opaque bytes as words of one byte."""

    number = PLANES
    name = "planes"

    def __init__(self, *, deep: bool = False) -> None:
        """With `deep` every plane is coded with more effort (see `bytecoder`)."""
        self._coder = ByteCoder(deep=deep)
        # Encoding: native words, planes, one plane. Decoding: two levels of merging, the words.
        self._scratch = (Scratch(), Scratch(), Scratch())

    def encode(self, raw: memoryview, dtype: DType | None) -> list[Buffer] | None:
        """Header and planes; None if no plane is the shorter for it."""
        word = dtype.word if dtype else 1
        if len(raw) % word or len(raw) == 0:
            return None
        flags = 0
        if dtype and word > 1:
            flags |= ROTATED if dtype.family in ("float", "complex") else 0
            flags |= BIG_ENDIAN if dtype.big_endian else 0
        words = self._native(np.frombuffer(raw, _word_type(word, flags)))
        header = bytearray(_HEAD.pack(word, flags))
        parts: list[Buffer] = [header]
        pays = False
        for plane in self._split(words, rotated=bool(flags & ROTATED)):
            mode, stored = self._coder.encode(plane)
            header += PLANE_ENTRY.pack(mode, len(stored))
            parts.append(stored)
            pays |= mode != RAW_PLANE
        return parts if pays else None

    def decode(self, payload: memoryview, out: memoryview) -> None:
        """Merge the planes; every length is checked before it is used."""
        word, flags = _read_head(payload, len(out))
        planes = [
            self._coder.decode(mode, stored, len(out) // word)
            for mode, stored in _read_planes(payload, word)
        ]
        target = np.frombuffer(out, _word_type(word, flags))
        if target.flags.aligned and target.dtype.isnative:
            self._merge(planes, target, rotated=bool(flags & ROTATED))
        else:
            words = self._scratch[2].array(len(target), target.dtype.newbyteorder("="))
            self._merge(planes, words, rotated=bool(flags & ROTATED))
            np.copyto(target, words)

    def _native(self, words: _Words) -> _Words:
        """`words` in this machine's byte order and aligned, a copy only where needed."""
        if words.flags.aligned and words.dtype.isnative:
            return words
        native = self._scratch[0].array(len(words), words.dtype.newbyteorder("="))
        np.copyto(native, words)
        return native

    def _split(self, words: _Words, *, rotated: bool) -> list[_Words]:
        """The planes of `words`, least significant first, in scratch.

        Shifting and narrowing in one call, numpy works through a buffer that stays in the first
        level of cache: 11 GB/s for the upper planes, against 4 with a copy of the words between.
        """
        size = words.itemsize
        if size == 1:
            return [words]
        planes = self._scratch[1].array(words.nbytes, np.dtype(np.uint8)).reshape(size, -1)
        # Bit 8k of a rotated word is bit 8k-1 of the word itself, but for the lowest plane.
        for index in range(1 if rotated else 0, size):
            np.right_shift(words, 8 * index - rotated, out=planes[index], casting="unsafe")
        if rotated:
            low = self._scratch[2].array(len(words), np.dtype(np.uint8))
            np.left_shift(words, 1, out=low, casting="unsafe")
            np.right_shift(words, 8 * size - 1, out=planes[0], casting="unsafe")
            np.bitwise_or(planes[0], low, out=planes[0])
        return list(planes)

    def _merge(self, planes: list[_Words], out: _Words, *, rotated: bool) -> None:
        """Fill `out` with the words of `planes`: pairs of planes become planes twice as wide."""
        if len(planes) == 1:
            np.copyto(out, planes[0])
            return
        level = 0
        while len(planes) > 1:
            bits = 8 * planes[0].itemsize
            wide = np.dtype(f"u{bits // 4}")
            pairs = len(planes) // 2
            merged = self._scratch[level].array(len(out) * pairs, wide).reshape(pairs, -1)
            targets = [out] if pairs == 1 else list(merged)
            for target, low, high in zip(targets, planes[::2], planes[1::2], strict=True):
                np.left_shift(high, bits, out=target, dtype=wide)
                np.bitwise_or(target, low, out=target)
            planes = targets
            level += 1
        if rotated:
            sign = self._scratch[0].array(len(out), out.dtype)
            np.left_shift(out, 8 * out.itemsize - 1, out=sign)
            np.right_shift(out, 1, out=out)
            np.bitwise_or(out, sign, out=out)


def _word_type(word: int, flags: int) -> np.dtype[np.unsignedinteger]:
    return np.dtype(f"{'>' if flags & BIG_ENDIAN else '<'}u{word}")


def _read_head(payload: memoryview, raw_length: int) -> tuple[int, int]:
    """Word size and flags, checked against each other and the raw length."""
    if len(payload) < _HEAD.size:
        raise CorruptDataError("the header of a chunk in byte planes is cut short")
    word, flags = _HEAD.unpack_from(payload)
    if word not in (1, 2, 4, 8) or flags & ~(ROTATED | BIG_ENDIAN) or (word == 1 and flags):
        raise CorruptDataError(f"byte planes of words of {word} bytes with flags {flags}")
    if raw_length % word or raw_length == 0:
        raise CorruptDataError(f"words of {word} bytes do not fill {raw_length} bytes")
    return word, flags


def _read_planes(payload: memoryview, word: int) -> Iterator[tuple[int, memoryview]]:
    """Mode and stored bytes of each plane; they end where the payload does."""
    position = _HEAD.size + word * PLANE_ENTRY.size
    if len(payload) < position:
        raise CorruptDataError("the header of a chunk in byte planes is cut short")
    entries = list(PLANE_ENTRY.iter_unpack(payload[_HEAD.size : position]))
    if position + sum(length for _, length in entries) != len(payload):
        raise CorruptDataError("the lengths of byte planes do not add up to the stored length")
    for mode, length in entries:
        yield mode, payload[position : position + length]
        position += length
