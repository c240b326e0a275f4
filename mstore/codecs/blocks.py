"""Telling the busy blocks of a chunk from the quiet ones, so that each kind is coded apart.

Training moves some rows of a tensor and leaves others: the words of a vocabulary that did not
occur, the channels of a frozen layer, experts that nobody asked. To code both kinds with one table
costs more than either does alone. A block is `BLOCK` numbers in a row, which divides most widths of
layers, so that no shape needs to be known; the payload has one bit for each.
"""

import math

import numpy as np
import numpy.typing as npt

from mstore.codecs.entropy import entropies, lengths
from mstore.codecs.words import Words
from mstore.errors import CorruptDataError

BLOCK = 128
"""Numbers in a block. What is left over at the end of a chunk counts as busy."""

# Fewer quiet blocks are not worth a table of their own; one that is busy is.
_FEWEST = 16

# Enough blocks and numbers of each to judge by.
_JUDGED, _STEP = 512, 8

# Zeros count as even smaller than they are: a part of nothing else takes no space and no time.
_ZEROS = 1 / 8

# What telling the blocks must save: so many bits for each number, or such a part of all it takes.
_MIN_SAVED_BITS, _MIN_SAVED_SHARE = 0.05, 0.1

Which = npt.NDArray[np.bool_]
"""For each block (n,), whether it is busy."""


def busy_blocks(numbers: Words) -> Which | None:
    """The blocks whose numbers are larger than those of others; None where telling is of no use."""
    blocks = _blocks(numbers)
    if len(blocks) < 2 * _FEWEST:
        return None
    sizes = lengths(np.maximum.reduceat(blocks.reshape(-1), np.arange(0, blocks.size, BLOCK)))
    busy = sizes > _border(sizes)
    if not busy.any() or np.count_nonzero(busy) > len(busy) - _FEWEST:
        return None
    return busy if _pays(blocks, busy) else None


def pack(busy: Which) -> npt.NDArray[np.uint8]:
    """Eight blocks to a byte, the first in its lowest bit."""
    return np.packbits(busy, bitorder="little")


def unpack(packed: npt.NDArray[np.uint8], numbers: int) -> Which:
    """The inverse of `pack`, for a chunk of so many numbers.

    Raises CorruptDataError unless both kinds of blocks are there, and nothing but blocks.
    """
    count = numbers // BLOCK
    busy = np.unpackbits(packed, bitorder="little").view(np.bool_)
    if busy[count:].any() or busy[:count].all() or not busy[:count].any():
        raise CorruptDataError("the busy blocks of a chunk of differences do not fit it")
    return busy[:count]


def packed_size(numbers: int) -> int:
    """Bytes that `pack` makes for a chunk of so many numbers."""
    return -(-(numbers // BLOCK) // 8)


class Split:
    """The two parts of a chunk. `quiet` and `busy` are how many numbers these have."""

    def __init__(self, busy: Which, numbers: int) -> None:
        self._places = np.flatnonzero(~busy), np.flatnonzero(busy)
        self._rest = numbers - len(busy) * BLOCK
        self.quiet = len(self._places[0]) * BLOCK
        self.busy = numbers - self.quiet

    def take(self, words: Words, quiet: Words, busy: Words) -> None:
        """Fill `quiet` and `busy` with the words of their blocks, in the order of the chunk."""
        blocks = _blocks(words)
        np.take(blocks, self._places[0], axis=0, out=_blocks(quiet), mode="wrap")
        whole = self.busy - self._rest
        np.take(blocks, self._places[1], axis=0, out=_blocks(busy[:whole]), mode="wrap")
        busy[whole:] = words[blocks.size :]

    def put(self, quiet: Words, busy: Words, out: Words) -> None:
        """The inverse of `take`."""
        blocks = _blocks(out)
        blocks[self._places[0]] = _blocks(quiet)
        whole = self.busy - self._rest
        blocks[self._places[1]] = _blocks(busy[:whole])
        out[blocks.size :] = busy[whole:]


def _blocks(words: Words) -> Words:
    return words[: len(words) // BLOCK * BLOCK].reshape(-1, BLOCK)


def _pays(blocks: Words, busy: Which) -> bool:
    """Whether knowing which blocks are busy tells enough of the sizes of their numbers."""
    some = slice(None, None, max(1, len(blocks) // _JUDGED))
    judged = blocks[some, ::_STEP] if len(blocks) > _JUDGED else blocks
    known = np.repeat(busy[some].view(np.uint8), judged.shape[1])
    alone, told = entropies(lengths(judged.reshape(-1)), known)
    return alone - told > min(_MIN_SAVED_BITS, _MIN_SAVED_SHARE * alone)


def _border(sizes: npt.NDArray[np.uint8]) -> int:
    """Blocks whose largest number has more bits than this are busy.

    `sizes` (n,) are these bits. Numbers of one kind are taken to cost the logarithm of the mean
    of what their blocks reach to; the border is where both kinds together cost least.
    """
    counts: list[int] = np.bincount(sizes).tolist()
    reach = [count * 2.0**size for size, count in enumerate(counts)]
    reach[0] *= _ZEROS
    quiet, below, busy, above = 0, 0.0, len(sizes), sum(reach)
    border, least = 0, math.inf
    for size, (count, reaches) in enumerate(zip(counts[:-1], reach, strict=False)):
        quiet, below, busy, above = quiet + count, below + reaches, busy - count, above - reaches
        cost = quiet * math.log2(below / quiet) if quiet else 0.0
        cost += busy * math.log2(above / busy)
        if cost < least:
            border, least = size, cost
    return border
