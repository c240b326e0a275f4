"""Coding small numbers in groups of like size: what is left of a tensor after its base.

A group is a run of words, each an unsigned number that tends to be small. It is coded in one of
these ways:

| kind | when | streams |
|---|---|---|
| 0 zero | all numbers are 0 | none |
| 1 dense | in all other cases | planes of the low bits, then planes of the others |
| 2 sparse | few numbers are not 0 | gaps, then planes of the others less 1, or pairs of these |
| 3 pairs | many numbers are 0, and few of more than four bits | pairs, then planes of the others |

Dense, with a shift s: ceil(s / 8) planes hold the lowest s bits of each number, eight to a plane,
lowest first; the other planes hold the number shifted right by s. Numbers of some thousand ulps
are so split that all that is predictable about them falls into one byte: Huffman's code for the
s bits below, which are noise, takes s bits.

Sparse: before each number that is not 0 the count of zeros, as so many bytes of 255 and then one
less than 255. These bytes make one plane. The planes of the numbers, each less 1, follow.

Pairs: two numbers in a byte, four bits each, the first in the lower ones; numbers of 15 and more
leave 15 there, and what they have beyond it makes planes of its own. Huffman's code spends at least
a bit on each byte: so much is lost on numbers that are mostly 0, 1 and 2 that it is worth coding
them two at a time.

Planes are coded by `bytecoder`. Higher planes that are not there are zeros.
"""

import struct

import numpy as np
import numpy.typing as npt

from mstore.codecs.bytecoder import PLANE_ENTRY, ByteCoder
from mstore.codecs.entropy import sample
from mstore.codecs.pairs import pack_pairs, packed_size, unpack_pairs
from mstore.codecs.scratch import Scratch
from mstore.codecs.words import Words
from mstore.errors import CorruptDataError
from mstore.ids import Buffer

ZERO, DENSE, SPARSE, PAIRS = range(4)
"""Kinds of groups."""

_DENSE_HEAD = struct.Struct("<BB")
_SPARSE_HEAD = struct.Struct("<BII")
_SPARSE = struct.Struct("<IIB")
# A gap costs about as much as the same numbers in a plane where one in so many is not 0.
_SPARSE_SHARE = 0.3
# The bits of a typical number that are worth a plane of their own, where it has more than a byte.
_TELLING_BITS = 4
_TRIED_BITS = (3, 4, 5)
_SOME_BITS = 10

IN_PAIRS = 128
"""Beside the planes of a sparse group: its numbers, less 1, are in pairs."""

_PAIRS_HEAD = struct.Struct("<IB")
_LARGEST_IN_PAIR = 15
# Pairs pay where not so many of the numbers are other than 0, few do not fit into a pair, and there
# are enough of them, since pairs need a larger table.
_PAIRS_SHARE, _OUTSIDE_SHARE, _FEWEST_IN_PAIRS = 0.75, 1 / 16, 2048
_CHANCE = 0.1

_Bytes = npt.NDArray[np.uint8]


class GroupCoder:
    """Encodes and decodes groups. One thread at a time."""

    def __init__(self, *, deep: bool = False) -> None:
        """With `deep` several ways to code a group are tried, and the best with more effort."""
        self._coder = self._plain = ByteCoder()
        self._deep = ByteCoder(deep=True) if deep else None
        self._plane = Scratch()

    def encode(self, words: Words, table: bytearray, parts: list[Buffer]) -> None:
        """Append the group's table and its streams; the parts own their memory."""
        top = int(words.max())
        if top == 0:
            table.append(ZERO)
            return
        used = int(np.count_nonzero(words))
        typical = int(words[:: max(1, len(words) // 1024)].mean()).bit_length()
        if self._deep is not None:
            self._encode_smallest(self._deep, words, used, typical, table, parts)
        else:
            self._encode_as(words, _usual_way(words, used, typical), table, parts)

    def _encode_smallest(
        self,
        coder: ByteCoder,
        words: Words,
        used: int,
        typical: int,
        table: bytearray,
        parts: list[Buffer],
    ) -> None:
        """Try the usual way and what is near to it; the planes of the smallest go to `coder`."""
        ways = {_usual_way(words, used, typical)}
        if used > _SPARSE_SHARE / 2 * len(words):
            ways.update((DENSE, max(0, typical - bits)) for bits in _TRIED_BITS)
            ways.update({(DENSE, 0)} if typical < _SOME_BITS else ())
            ways.update({(PAIRS, 0)} if typical < 4 else ())
        if used < 2 * _SPARSE_SHARE * len(words):
            ways.add((SPARSE, 0))
        sizes = {}
        for way in ways:
            tried, streams = bytearray(), list[Buffer]()
            self._encode_as(words, way, tried, streams)
            sizes[way] = len(tried) + sum(map(len, streams))
        self._coder = coder
        self._encode_as(words, min(sizes, key=lambda way: sizes[way]), table, parts)
        self._coder = self._plain

    def _encode_as(
        self, words: Words, way: tuple[int, int], table: bytearray, parts: list[Buffer]
    ) -> None:
        """As a group of this kind; dense with this shift."""
        kind, shift = way
        if kind == SPARSE:
            self._encode_sparse(words, table, parts)
        elif kind == PAIRS:
            table.append(PAIRS)
            self._encode_pairs(words, table, parts)
        else:
            self._encode_dense(words, shift, table, parts)

    def _encode_dense(
        self, words: Words, shift: int, table: bytearray, parts: list[Buffer]
    ) -> None:
        top = int(words.max())
        low, high = -(-shift // 8), -(-max(0, top.bit_length() - shift) // 8)
        table += _DENSE_HEAD.pack(DENSE, shift)
        table.append(low + high)
        for plane in range(low):
            bits = min(8, shift - 8 * plane)
            self._encode_plane(words, 8 * plane, (1 << bits) - 1, table, parts)
        for plane in range(high):
            self._encode_plane(words, shift + 8 * plane, 255, table, parts)

    def decode(self, table: "Table", out: Words) -> None:
        """Fill `out` with one group; raises CorruptDataError when it cannot be of that length."""
        kind = table.byte()
        if kind == ZERO:
            out[:] = 0
        elif kind == DENSE:
            self._decode_dense(table, out)
        elif kind == SPARSE:
            self._decode_sparse(table, out)
        elif kind == PAIRS:
            self._decode_pairs(table, out)
        else:
            raise CorruptDataError(f"a group of differences is of kind {kind}")

    def _encode_sparse(self, words: Words, table: bytearray, parts: list[Buffer]) -> None:
        # Four times as fast as to ask for the places of numbers.
        places = np.flatnonzero(words != 0)
        gaps = gap_bytes(places)
        values = words[places] - words.dtype.type(1)
        table += _SPARSE_HEAD.pack(SPARSE, len(places), len(gaps))
        if _suits_pairs(values, int(np.count_nonzero(values))):
            table.append(IN_PAIRS)
            self._append(gaps, table, parts)
            self._encode_pairs(values, table, parts)
            return
        planes = _planes_of(values)
        table.append(planes)
        self._append(gaps, table, parts)
        for plane in range(planes):
            self._encode_plane(values, 8 * plane, 255, table, parts)

    def _encode_pairs(self, words: Words, table: bytearray, parts: list[Buffer]) -> None:
        """Head, pairs, and planes of the numbers that do not fit into pairs."""
        small = np.minimum(words, _LARGEST_IN_PAIR).astype(np.uint8)
        outside = words[small == _LARGEST_IN_PAIR] - words.dtype.type(_LARGEST_IN_PAIR)
        planes = _planes_of(outside)
        table += _PAIRS_HEAD.pack(len(outside), planes)
        self._append(pack_pairs(small), table, parts)
        for plane in range(planes):
            self._encode_plane(outside, 8 * plane, 255, table, parts)

    def _encode_plane(
        self, words: Words, shift: int, mask: int, table: bytearray, parts: list[Buffer]
    ) -> None:
        plane = self._plane.array(len(words), np.dtype(np.uint8))
        np.right_shift(words, shift, out=plane, casting="unsafe")
        if mask != 255:
            np.bitwise_and(plane, mask, out=plane)
        self._append(plane, table, parts)

    def _append(self, plane: _Bytes, table: bytearray, parts: list[Buffer]) -> None:
        mode, stored = self._coder.encode(plane)
        table += PLANE_ENTRY.pack(mode, len(stored))
        parts.append(stored if isinstance(stored, bytes) else bytes(stored))

    def _decode_dense(self, table: "Table", out: Words) -> None:
        shift, planes = table.byte(), table.byte()
        size = 8 * out.itemsize
        low = -(-shift // 8)
        if shift >= size or planes < low or shift + 8 * (planes - low) >= size + 8:
            raise CorruptDataError(f"a group of {planes} planes with a shift of {shift} bits")
        places = [*range(0, 8 * low, 8), *range(shift, shift + 8 * (planes - low), 8)]
        self._merge(table, places, out)

    def _decode_sparse(self, table: "Table", out: Words) -> None:
        used, length, planes = _SPARSE.unpack(table.take(_SPARSE.size))
        longest = used + len(out) // 255
        if used > len(out) or not used <= length <= longest:
            raise CorruptDataError(f"a sparse group of {used} numbers, {length} gaps")
        places = gap_places(self._coder.decode(*table.plane(), length))
        if len(places) != used or (used and places[-1] >= len(out)):
            raise CorruptDataError("the gaps of a sparse group do not fit it")
        values = np.empty(used, out.dtype)
        if planes == IN_PAIRS:
            self._decode_pairs(table, values)
        else:
            self._decode_planes(table, planes, values)
        values += out.dtype.type(1)
        out[:] = 0
        out[places] = values

    def _decode_pairs(self, table: "Table", out: Words) -> None:
        outside, planes = _PAIRS_HEAD.unpack(table.take(_PAIRS_HEAD.size))
        if outside > len(out):
            raise CorruptDataError(f"{outside} numbers of {len(out)} do not fit into pairs")
        pairs = self._coder.decode(*table.plane(), packed_size(len(out)))
        np.copyto(out, unpack_pairs(pairs, len(out)))
        places = np.flatnonzero(out == _LARGEST_IN_PAIR)
        if len(places) != outside:
            raise CorruptDataError("other numbers than there are do not fit into pairs")
        beyond = np.empty(outside, out.dtype)
        self._decode_planes(table, planes, beyond)
        out[places] += beyond

    def _decode_planes(self, table: "Table", planes: int, out: Words) -> None:
        if planes > out.itemsize:
            raise CorruptDataError(f"numbers of {planes} planes")
        self._merge(table, list(range(0, 8 * planes, 8)), out)

    def _merge(self, table: "Table", shifts: list[int], out: Words) -> None:
        """Fill `out` with the numbers whose planes come next; plane i is shifted by shifts[i]."""
        if not shifts:
            out[:] = 0
        for shift in shifts:
            plane = self._coder.decode(*table.plane(), len(out))
            if shift == 0:
                np.copyto(out, plane)
                continue
            wide = self._plane.array(len(out), out.dtype)
            np.left_shift(plane, shift, out=wide, dtype=out.dtype)
            np.bitwise_or(out, wide, out=out)


def _usual_way(words: Words, used: int, typical: int) -> tuple[int, int]:
    """The kind of group, and the shift of a dense one.

    `used` of these numbers are not 0; the mean of them all has `typical` bits.
    """
    if used < _SPARSE_SHARE * len(words):
        return SPARSE, 0
    if _suits_pairs(words, used):
        return PAIRS, 0
    # Up to a byte and a bit, cutting off low bits costs more than it saves.
    return DENSE, typical - _TELLING_BITS if typical > 8 else 0


def _suits_pairs(words: Words, used: int) -> bool:
    """Whether these numbers, of which so many are not 0, are better coded in pairs."""
    if len(words) < _FEWEST_IN_PAIRS or used > _PAIRS_SHARE * len(words):
        return False
    outside = int(np.count_nonzero(words >= _LARGEST_IN_PAIR))
    return outside < _OUTSIDE_SHARE * len(words) and not _repeats(words)


def _repeats(words: Words) -> bool:
    """Whether neighbours are equal more often than by chance: in whole bytes zstd finds runs."""
    some = np.minimum(sample(words), _LARGEST_IN_PAIR)
    shares = np.bincount(some.astype(np.uint8)) / len(some)
    equal = int(np.count_nonzero(some[1:] == some[:-1])) / len(some)
    return equal > float(np.square(shares).sum()) + _CHANCE


def _planes_of(words: Words) -> int:
    """Bytes of the largest number."""
    return -(-int(words.max(initial=0)).bit_length() // 8)


def gap_bytes(places: npt.NDArray[np.intp]) -> _Bytes:
    """The zeros before each of these ascending places, as bytes: 255 means that more follow."""
    gaps = places.copy()
    gaps[1:] -= places[:-1] + 1
    if gaps.max() < 255:
        return gaps.astype(np.uint8)
    escapes, rest = np.divmod(gaps, 255)
    ends = np.cumsum(escapes + 1)
    coded = np.full(int(ends[-1]), 255, np.uint8)
    coded[ends - 1] = rest
    return coded


def gap_places(coded: _Bytes) -> npt.NDArray[np.intp]:
    """The inverse of `gap_bytes`."""
    last = coded != 255
    ends = np.cumsum(coded, dtype=np.int64)[last]
    places: npt.NDArray[np.intp] = ends + np.arange(len(ends))
    return places


class Table:
    """Reads the tables of groups one after the other, and hands out their streams."""

    def __init__(self, table: memoryview, streams: memoryview) -> None:
        self._table = table
        self._streams = streams
        self._at = self._used = 0

    def byte(self) -> int:
        """The next byte."""
        (value,) = self.take(1)
        return value

    def plane(self) -> tuple[int, memoryview]:
        """Mode and stored bytes of the next plane; raises CorruptDataError past the end."""
        mode, length = PLANE_ENTRY.unpack(self.take(PLANE_ENTRY.size))
        if self._used + length > len(self._streams):
            raise CorruptDataError("the planes of differences are cut short")
        self._used += length
        return mode, self._streams[self._used - length : self._used]

    def finish(self) -> None:
        """Raise CorruptDataError unless everything was used."""
        if (self._at, self._used) != (len(self._table), len(self._streams)):
            raise CorruptDataError("there is more in a chunk of differences than its groups hold")

    def take(self, count: int) -> memoryview:
        """The next bytes; raises CorruptDataError past the end."""
        if self._at + count > len(self._table):
            raise CorruptDataError("the table of a chunk of differences is cut short")
        self._at += count
        return self._table[self._at - count : self._at]
