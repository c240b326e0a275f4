"""Coding a part of a chunk's differences: in the order that suits them, in groups.

| order | the numbers lie | groups |
|---|---|---|
| 0 | as they stand | one |
| 1 exponent | by the exponents of the base | of one exponent, or of neighbouring ones |
| 2 magnitude | by the base without its sign | of `order.MAGNITUDE_GROUP` numbers |
| 4 decayed | as they stand, less usual steps | one of the steps, one of what remains |

How far a step of training moves a weight, counted in ulps, depends on the weight's exponent. The
decoder knows the base, and so the order. Magnitudes tell a little more, but take longer to sort:
only a deep encoder tries them. What only decays moves by steps that depend on mantissas instead
(see `decay`).

The table of a group that is ordered by exponent begins with its last key; that of the last group
is 255. How a group itself is coded is told in `groups`.
"""

import numpy as np

from mstore.codecs.decay import KEYS, usual_steps, with_steps, without_steps
from mstore.codecs.estimate import best_order
from mstore.codecs.groups import GroupCoder, Table
from mstore.codecs.order import (
    BY_EXPONENT,
    BY_MAGNITUDE,
    DECAYED,
    LAST_KEY,
    LONGEST_ORDER,
    MAGNITUDE_GROUP,
    ORDERS,
    UNORDERED,
    Keys,
    MagnitudeOrder,
    MagnitudeSorter,
    Order,
    Sorter,
)
from mstore.codecs.scratch import Scratch
from mstore.codecs.words import Words, WordType, exponents, magnitudes
from mstore.errors import CorruptDataError
from mstore.ids import Buffer

_BYTE = np.dtype(np.uint8)
_AnyOrder = Order | MagnitudeOrder


class PartCoder:
    """Encodes and decodes parts. One thread at a time.

    Parts are numbers (n,) with the words of the base (n,) that they belong to, after a cast and
    as they are (not as ulps).
    """

    def __init__(self, *, deep: bool = False) -> None:
        """With `deep` all orders are tried, and groups are coded with more effort."""
        self._deep = deep
        self._groups = self._plain_groups = GroupCoder()
        if deep:
            self._groups = GroupCoder(deep=True)
        self._sorter = Sorter()
        self._magnitude_sorter = MagnitudeSorter()
        self._sorted, self._key, self._magnitudes = (Scratch() for _ in range(3))
        self._made: tuple[int, _AnyOrder] | None = None

    def encode(
        self,
        numbers: Words,
        against: Words,
        kind: WordType,
        table: bytearray,
        streams: list[Buffer],
    ) -> int:
        """Append tables and streams; returns the order. The streams own their memory.

        Leaves anything in `numbers`.
        """
        self._made = None
        ways = self._worth_trying(numbers, against, kind)
        chosen = self._smallest(numbers, against, kind, ways) if len(ways) > 1 else ways[0]
        self._encode_as(chosen, self._groups, numbers, against, kind, table, streams)
        return chosen

    def decode(
        self, way: int, table: Table, against: Words, kind: WordType, out: Words, *, again: bool
    ) -> None:
        """Fill `out` with the numbers of a part whose order is `way`.

        With `again` they are those encoded last, and the order made for that serves once more if
        it is right. Raises CorruptDataError when the part cannot be of that length or in
        that order.
        """
        if way not in ORDERS:
            raise CorruptDataError(f"differences are said to be in order {way}")
        if way != UNORDERED and not _has_order(against, kind):
            raise CorruptDataError("numbers are said to be ordered that have no order")
        if way == UNORDERED:
            self._groups.decode(table, out)
        elif way == DECAYED:
            steps = np.empty(KEYS, out.dtype)
            self._groups.decode(table, steps)
            self._groups.decode(table, out)
            with_steps(out, against, kind, steps)
        else:
            order = self._order(way, against, kind, again=again)
            numbers = self._sorted.array(len(out), out.dtype)
            self._decode_groups(table, order, numbers)
            out[order.places] = numbers

    def _worth_trying(self, numbers: Words, against: Words, kind: WordType) -> list[int]:
        """The orders from which to choose."""
        if not _has_order(against, kind) or not numbers.any():
            return [UNORDERED]
        if self._deep:
            return [BY_MAGNITUDE, BY_EXPONENT, DECAYED, UNORDERED]
        return [best_order(numbers, against, kind)]

    def _order(self, way: int, against: Words, kind: WordType, *, again: bool = False) -> _AnyOrder:
        """Made anew; or `again` the one made last, if it is this one and right."""
        made = self._made[1] if again and self._made and self._made[0] == way else None
        self._made = None
        if way == BY_MAGNITUDE:
            found = self._magnitudes.array(len(against), against.dtype)
            magnitudes(against, kind, found)
            if isinstance(made, MagnitudeOrder) and made.renew(found):
                return made
            return self._magnitude_sorter.order(found)
        keys: Keys = self._key.array(len(against), _BYTE)
        exponents(against, kind, keys)
        if isinstance(made, Order) and made.renew(keys):
            return made
        return self._sorter.order(keys)

    def _smallest(self, numbers: Words, against: Words, kind: WordType, ways: list[int]) -> int:
        """The order in which these numbers take least, by coding them without much effort."""
        sizes = {}
        for way in ways:
            table, streams = bytearray(), list[Buffer]()
            tried = numbers.copy()
            self._encode_as(way, self._plain_groups, tried, against, kind, table, streams)
            sizes[way] = len(table) + sum(map(len, streams))
        return min(sizes, key=lambda way: sizes[way])

    def _encode_as(
        self,
        way: int,
        groups: GroupCoder,
        numbers: Words,
        against: Words,
        kind: WordType,
        table: bytearray,
        streams: list[Buffer],
    ) -> None:
        """Encode in this order; leaves anything in `numbers`."""
        if way in (UNORDERED, DECAYED):
            if way == DECAYED:
                steps = usual_steps(numbers, against, kind)
                groups.encode(steps, table, streams)
                without_steps(numbers, against, kind, steps)
            groups.encode(numbers, table, streams)
            return
        order = self._order(way, against, kind)
        self._made = way, order
        ordered = self._sorted.array(len(numbers), numbers.dtype)
        np.take(numbers, order.places, out=ordered, mode="wrap")
        if isinstance(order, MagnitudeOrder):
            for start in range(0, len(ordered), MAGNITUDE_GROUP):
                groups.encode(ordered[start : start + MAGNITUDE_GROUP], table, streams)
            return
        start = 0
        for bound in order.groups():
            table.append(bound)
            groups.encode(ordered[start : order.end(bound)], table, streams)
            start = order.end(bound)

    def _decode_groups(self, table: Table, order: _AnyOrder, numbers: Words) -> None:
        if isinstance(order, MagnitudeOrder):
            for start in range(0, len(numbers), MAGNITUDE_GROUP):
                self._groups.decode(table, numbers[start : start + MAGNITUDE_GROUP])
            return
        bound, start = -1, 0
        while bound < LAST_KEY:
            if (following := table.byte()) <= bound or order.end(following) == start:
                raise CorruptDataError("the groups of a chunk of differences are out of order")
            bound, end = following, order.end(following)
            self._groups.decode(table, numbers[start:end])
            start = end


def _has_order(against: Words, kind: WordType) -> bool:
    return bool(kind.mantissa) and len(against) <= LONGEST_ORDER
