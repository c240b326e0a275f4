"""Coding a part of a chunk's differences: in the order that suits them, in groups.

| order | the numbers lie | groups |
|---|---|---|
| 0 | as they stand | one |
| 1 exponent | by the exponents of the base | of one exponent, or of neighbouring ones |
| 2 magnitude | by the base without its sign | of `order.MAGNITUDE_GROUP` numbers |
| 4 mantissa | by the upper bits of the base's mantissas | as with exponents |

How far a step of training moves a weight, counted in ulps, depends on the weight's exponent.
Weights that only decay, since nothing moves them, move by ulps that depend on their mantissas
alone, and towards zero: in order 4 the difference of opposite sign is coded where the base is
negative. The decoder knows the base, and so the order. Magnitudes tell a little more than
exponents, but take longer to sort: only a deep encoder tries them.

The table of a group that is ordered by exponent or mantissa begins with its last key; that of the
last group is 255. How a group itself is coded is told in `groups`.
"""

import numpy as np

from mstore.codecs.estimate import best_order
from mstore.codecs.groups import GroupCoder, Table
from mstore.codecs.order import (
    BY_EXPONENT,
    BY_MAGNITUDE,
    BY_MANTISSA,
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
from mstore.codecs.words import Words, WordType, exponents, magnitudes, mantissas, mirror
from mstore.errors import CorruptDataError
from mstore.ids import Buffer

_BYTE = np.dtype(np.uint8)
_KEYS = {BY_EXPONENT: exponents, BY_MANTISSA: mantissas}

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
        self._sorters = {BY_EXPONENT: Sorter(), BY_MANTISSA: Sorter()}
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
        orders = {way: self._order(way, against, kind) for way in ways}
        chosen = self._smallest(numbers, against, kind, orders) if len(orders) > 1 else ways[0]
        order = orders[chosen]
        self._made = (chosen, order) if order else None
        if chosen == BY_MANTISSA:
            mirror(numbers, against, kind)
        self._encode_groups(self._groups, numbers, order, table, streams)
        return chosen

    def decode(
        self, way: int, table: Table, against: Words, kind: WordType, out: Words, *, again: bool
    ) -> None:
        """Fill `out` with the numbers of a part whose order is `way`.

        With `again` they are those encoded just now, and the order made for that serves once
        more if it is right. Raises CorruptDataError when the part cannot be of that length or in
        that order.
        """
        if way not in ORDERS:
            raise CorruptDataError(f"differences are said to be in order {way}")
        order = self._again(way) if again else None
        self._made = None
        if way != UNORDERED:
            order = order or self._order(way, against, kind)
            if order is None:
                raise CorruptDataError("numbers are said to be ordered that have no order")
        if order is None:
            self._groups.decode(table, out)
            return
        numbers = self._sorted.array(len(out), out.dtype)
        self._decode_groups(table, order, numbers)
        out[order.places] = numbers
        if way == BY_MANTISSA:
            mirror(out, against, kind)

    def _again(self, way: int) -> _AnyOrder | None:
        """The order made for encoding, if it is this one and right."""
        if self._made is None or self._made[0] != way or not self._made[1].renew():
            return None
        return self._made[1]

    def _worth_trying(self, numbers: Words, against: Words, kind: WordType) -> list[int]:
        """The orders from which to choose."""
        if not _has_order(against, kind) or not numbers.any():
            return [UNORDERED]
        if self._deep:
            return [BY_MAGNITUDE, BY_EXPONENT, BY_MANTISSA, UNORDERED]
        return [best_order(numbers, against, kind)]

    def _order(self, way: int, against: Words, kind: WordType) -> _AnyOrder | None:
        """None where there is no order to make."""
        if way == UNORDERED or not _has_order(against, kind):
            return None
        if way == BY_MAGNITUDE:
            found = self._magnitudes.array(len(against), against.dtype)
            magnitudes(against, kind, found)
            return self._magnitude_sorter.order(found)
        keys: Keys = self._key.array(len(against), _BYTE)
        _KEYS[way](against, kind, keys)
        return self._sorters[way].order(keys)

    def _smallest(
        self,
        numbers: Words,
        against: Words,
        kind: WordType,
        orders: dict[int, _AnyOrder | None],
    ) -> int:
        """The order in which these numbers take least, by coding them without much effort."""
        sizes = {}
        mirrored = numbers.copy()
        mirror(mirrored, against, kind)
        for way, order in orders.items():
            table, streams = bytearray(), list[Buffer]()
            tried = mirrored if way == BY_MANTISSA else numbers
            self._encode_groups(self._plain_groups, tried, order, table, streams)
            sizes[way] = len(table) + sum(map(len, streams))
        return min(sizes, key=lambda way: sizes[way])

    def _encode_groups(
        self,
        groups: GroupCoder,
        numbers: Words,
        order: _AnyOrder | None,
        table: bytearray,
        streams: list[Buffer],
    ) -> None:
        if order is None:
            groups.encode(numbers, table, streams)
            return
        ordered = self._sorted.array(len(numbers), numbers.dtype)
        np.take(numbers, order.places, out=ordered, mode="clip")
        if isinstance(order, MagnitudeOrder):
            for start in range(0, len(ordered), MAGNITUDE_GROUP):
                groups.encode(ordered[start : start + MAGNITUDE_GROUP], table, streams)
            return
        start = 0
        for bound in order.groups(ordered):
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
