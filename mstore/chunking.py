"""Where a segment is cut into chunks.

A tensor is cut into pieces of one size from its own start, whole elements each, so that a changed
element changes one chunk and a tensor that moved within its file changes none. Opaque bytes are
cut where their content says so (FastCDC, Xia et al., IEEE TPDS 2020), so that inserted bytes
change the chunks around them only.
"""

from pyfastcdc import FastCDC

from mstore.dtypes import DType
from mstore.errors import InvalidInputError

DEFAULT_CHUNK_SIZE = 1 << 20
"""Bytes in a chunk of a tensor of words of four bytes (or of one), unless told otherwise."""

MAX_CHUNK_SIZE = 64 << 20
"""The largest chunk that may be asked for: some of them are in memory at once."""

SMALLEST, AVERAGE, LARGEST = 16 << 10, 64 << 10, 256 << 10
"""Bytes in a chunk of opaque content. Changing one of these, or the gear table behind them, makes
nothing unreadable, but new versions of a file no longer share chunks with the old ones."""


def piece_size(dtype: DType, chunk_size: int) -> int:
    """Bytes in a piece of a tensor: whole elements, as many as fit into `chunk_size`.

    That is for words of four bytes or of one. Of other words a piece has as many as of words of
    four, so that the chunks of one model in several float types lie side by side, and one can be
    coded against another.

    Raises InvalidInputError when not even one element fits, or when `chunk_size` is too large.
    """
    if chunk_size > MAX_CHUNK_SIZE:
        raise InvalidInputError(f"chunks of {chunk_size} bytes are too large; at most 64 MiB")
    room = chunk_size if dtype.word == 1 else chunk_size // 4 * dtype.word
    size = min(room, MAX_CHUNK_SIZE) // dtype.itemsize * dtype.itemsize
    if size <= 0:
        least = dtype.itemsize if dtype.word == 1 else 4 * dtype.itemsize // dtype.word
        raise InvalidInputError(
            f"chunks of {chunk_size} bytes cannot hold an element of type {dtype}",
            hint=f"use a chunk size of at least {least} bytes",
        )
    return size


def piece_lengths(length: int, piece: int) -> list[int]:
    """Lengths of the pieces of `piece` bytes that cover `length`; the last may be shorter."""
    whole, rest = divmod(length, piece)
    return [piece] * whole + ([rest] if rest else [])


class ContentChunker:
    """Cuts opaque content; where it cuts depends on the content alone, not on how it arrives.

    FastCDC decides each cut from the bytes since the cut before it, of which it looks at no more
    than `LARGEST`. A cut is therefore certain once so many bytes are at hand, or the content
    ends. Holds no state between calls, but is for one thread at a time.
    """

    def __init__(self) -> None:
        self._cdc = FastCDC(AVERAGE, min_size=SMALLEST, max_size=LARGEST)

    def cut(self, window: memoryview, *, final: bool) -> list[int]:
        """Lengths of the chunks that start `window`, as far as they are certain.

        `window` starts at a cut. What the lengths leave over is for the caller to hand in again,
        at the start of the next window; with `final`, when the content ends with the window,
        nothing is left over.
        """
        lengths = []
        left = len(window)
        chunks = self._cdc.cut_buf(window)
        while left >= LARGEST or (final and left):
            length = next(chunks).length
            lengths.append(length)
            left -= length
        return lengths
