"""Codec delta (number 4): the difference of a chunk from another, number by number.

The words of the base are cast to the type of the chunk where that is another one, both are mapped
to integers in the order of the numbers (see `words`), subtracted modulo the word size, and the
sign is moved to the lowest bit (zigzag: 0, -1, 1, -2, … become 0, 1, 2, 3, …).

How far a step of training moves a weight, counted in ulps, depends on the weight's exponent. So
where it pays the differences are put into the order of the base's exponents, which the decoder
knows too, and numbers of one exponent, or of neighbouring ones where few have them, become a group
that is coded apart (see `groups`). The last exponent of the last group is 255.

They may also be ordered by the whole magnitude of the base, and cut into groups of
`order.MAGNITUDE_GROUP` numbers. The sort takes longer then; only a deep encoder does it.

Payload, integers little-endian:

| offset | bytes | what |
|---|---|---|
| 0 | 1 | code of the chunk's element type |
| 1 | 1 | code of the base's element type |
| 2 | 1 | flags: 1 ordered by exponent, 2 by magnitude (not both); other bits are zero |
| 3 | 1 | zero |
| 4 | 4 | words that are coded as differences, m: the first m of both |
| 8 | 4 | bytes T of the table |
| 12 | 4 | bytes R of the rest |
| 16 | T | for each group its last exponent, if ordered by it (1 byte), and its table |
| 16 + T | R | what the chunk has beyond m words, as codec planes; R is 0 where it has nothing |
| 16 + T + R | | the streams of each group, up to the end of the payload |
"""

import struct
from collections.abc import Sequence

import numpy as np

from mstore.codecs.base import DELTA, DeltaCodec
from mstore.codecs.estimate import pays_to_order
from mstore.codecs.groups import GroupCoder, Table
from mstore.codecs.order import (
    LAST_KEY,
    LONGEST_ORDER,
    MAGNITUDE_GROUP,
    Keys,
    MagnitudeOrder,
    MagnitudeSorter,
    Order,
    Sorter,
)
from mstore.codecs.planes import Planes
from mstore.codecs.scratch import Scratch
from mstore.codecs.words import (
    Words,
    WordType,
    cast,
    comparable,
    exponents,
    from_ulps,
    magnitudes,
    to_ulps,
    unzigzag,
    word_type,
    zigzag,
)
from mstore.dtypes import BY_CODE, DType
from mstore.errors import CorruptDataError
from mstore.ids import Buffer

ORDERED = 1
"""Flag of a payload: the differences lie in the order of the base's exponents."""

BY_MAGNITUDE = 2
"""Flag of a payload: they lie in the order of the base's magnitudes."""

_AnyOrder = Order | MagnitudeOrder

_HEAD = struct.Struct("<BBBxIII")
_BYTE = np.dtype(np.uint8)


class Delta(DeltaCodec):
    """Tensors of one number type, or of float types that can be cast."""

    number = DELTA
    name = "delta"

    def __init__(self, *, deep: bool = False) -> None:
        """With `deep` all orders are tried, and groups are coded with more effort."""
        self._deep = deep
        self._groups = self._plain_groups = GroupCoder()
        if deep:
            self._groups = GroupCoder(deep=True)
        self._sorter = Sorter()
        self._magnitude_sorter = MagnitudeSorter()
        self._order: Order | MagnitudeOrder | None = None
        self._planes = Planes(deep=deep)
        self._base, self._words, self._sorted, self._key = (Scratch() for _ in range(4))

    def encode(
        self, raw: memoryview, dtype: DType, base: memoryview, base_dtype: DType
    ) -> list[Buffer] | None:
        """Header, table and streams; None if there is nothing to compare."""
        kind, base_kind = word_type(dtype), word_type(base_dtype)
        count = min(len(raw) // kind.size, len(base) // base_kind.size)
        if not comparable(kind, base_kind) or not count or len(raw) % kind.size:
            return None
        against = self._cast_base(base, base_kind, kind, count)
        self._order = None
        words = self._words.array(count, kind.native)
        words[:] = np.frombuffer(raw, kind.stored, count)
        keys = self._keys(against, kind)
        scratch = self._sorted.array(count, kind.native)
        by_magnitude = self._by_magnitude(against, kind, scratch) if self._deep else None
        to_ulps(words, kind, scratch)
        to_ulps(against, kind, scratch)
        np.subtract(words, against, out=words)
        zigzag(words, scratch)
        orders: list[_AnyOrder | None] = [by_magnitude] if by_magnitude else []
        if keys is not None and pays_to_order(words, keys):
            orders.append(self._sorter.order(keys))
        if self._deep or not orders:
            orders.append(None)
        order = self._order = self._best_order(words, orders, scratch)
        flags, table, streams = self._encode_groups(self._groups, words, order, scratch)
        rest = self._encode_rest(raw[count * kind.size :], dtype)
        head = _HEAD.pack(dtype.code, base_dtype.code, flags, count, len(table), len(rest))
        return [head, bytes(table), rest, *streams]

    def decode(self, payload: memoryview, base: memoryview, out: memoryview) -> None:
        """Add the differences to the base; every length is checked before it is used."""
        self._order = None
        self._decode(payload, base, out)

    def check(self, payload: memoryview, base: memoryview, out: memoryview) -> None:
        """As `decode`, but the order is not made again if that made for encoding is right."""
        if self._order is not None and not self._order.is_right():
            self._order = None
        self._decode(payload, base, out)

    def _decode(self, payload: memoryview, base: memoryview, out: memoryview) -> None:
        if len(payload) < _HEAD.size:
            raise CorruptDataError("the header of a chunk of differences is cut short")
        code, base_code, flags, count, table_size, rest_size = _HEAD.unpack_from(payload)
        kind, base_kind = _known(code), _known(base_code)
        start = _HEAD.size + table_size
        if (
            not comparable(kind, base_kind)
            or flags not in (0, ORDERED, BY_MAGNITUDE)
            or payload[3]
            or not 0 < count <= min(len(out) // kind.size, len(base) // base_kind.size)
            or start + rest_size > len(payload)
        ):
            raise CorruptDataError("a chunk of differences does not fit its base")
        self._decode_rest(payload[start : start + rest_size], out[count * kind.size :])
        against = self._cast_base(base, base_kind, kind, count)
        table = Table(payload[_HEAD.size : start], payload[start + rest_size :])
        words = self._words.array(count, kind.native)
        scratch = self._sorted.array(count, kind.native)
        if flags:
            order = self._order or self._find_order(flags, against, kind, scratch)
            self._decode_groups(table, order, scratch)
            words[order.places] = scratch
        else:
            self._groups.decode(table, words)
        table.finish()
        unzigzag(words, scratch)
        to_ulps(against, kind, scratch)
        np.add(words, against, out=words)
        from_ulps(words, kind, scratch)
        np.frombuffer(out, kind.stored, count)[:] = words

    def _best_order(
        self, words: Words, orders: Sequence[_AnyOrder | None], scratch: Words
    ) -> _AnyOrder | None:
        """The order in which these numbers take least, by coding them without much effort."""
        if len(orders) == 1:
            return orders[0]
        sizes = []
        for order in orders:
            _, table, streams = self._encode_groups(self._plain_groups, words, order, scratch)
            sizes.append(len(table) + sum(len(stream) for stream in streams))
        return orders[sizes.index(min(sizes))]

    def _encode_groups(
        self, groups: GroupCoder, words: Words, order: _AnyOrder | None, scratch: Words
    ) -> tuple[int, bytearray, list[Buffer]]:
        """Flags, tables and streams of the numbers in this order."""
        table, streams = bytearray(), list[Buffer]()
        if order is None:
            groups.encode(words, table, streams)
            return 0, table, streams
        np.take(words, order.places, out=scratch, mode="clip")
        if isinstance(order, MagnitudeOrder):
            for start in range(0, len(scratch), MAGNITUDE_GROUP):
                groups.encode(scratch[start : start + MAGNITUDE_GROUP], table, streams)
            return BY_MAGNITUDE, table, streams
        start = 0
        for bound in order.groups():
            table.append(bound)
            groups.encode(scratch[start : order.end(bound)], table, streams)
            start = order.end(bound)
        return ORDERED, table, streams

    def _decode_groups(self, table: Table, order: _AnyOrder, words: Words) -> None:
        if isinstance(order, MagnitudeOrder):
            for start in range(0, len(words), MAGNITUDE_GROUP):
                self._groups.decode(table, words[start : start + MAGNITUDE_GROUP])
            return
        bound, start = -1, 0
        while bound < LAST_KEY:
            if (following := table.byte()) <= bound or order.end(following) == start:
                raise CorruptDataError("the groups of a chunk of differences are out of order")
            bound, end = following, order.end(following)
            self._groups.decode(table, words[start:end])
            start = end

    def _find_order(self, flags: int, against: Words, kind: WordType, scratch: Words) -> _AnyOrder:
        """The order that a payload says; raises CorruptDataError where there is none."""
        if flags == BY_MAGNITUDE and (found := self._by_magnitude(against, kind, scratch)):
            return found
        if flags == ORDERED and (keys := self._keys(against, kind)) is not None:
            return self._sorter.order(keys)
        raise CorruptDataError("numbers are said to be ordered that have no order")

    def _cast_base(self, base: memoryview, source: WordType, target: WordType, count: int) -> Words:
        """The first `count` words of the base, as those of the chunk's type, in scratch."""
        stored = np.frombuffer(base, source.stored, count)
        if source.name != target.name and (source.mantissa, target.mantissa) != (0, 0):
            native = stored.astype(source.native, copy=False)
            stored = cast(native, source, target)
        words = self._base.array(count, target.native)
        words[:] = stored
        return words

    def _keys(self, against: Words, kind: WordType) -> Keys | None:
        if not kind.mantissa or len(against) > LONGEST_ORDER:
            return None
        keys: Keys = self._key.array(len(against), _BYTE)
        exponents(against, kind, keys)
        return keys

    def _by_magnitude(
        self, against: Words, kind: WordType, scratch: Words
    ) -> MagnitudeOrder | None:
        if not kind.mantissa or len(against) > LONGEST_ORDER:
            return None
        magnitudes(against, kind, scratch)
        return self._magnitude_sorter.order(scratch)

    def _encode_rest(self, raw: memoryview, dtype: DType) -> bytes:
        if not raw:
            return b""
        parts = self._planes.encode(raw, dtype)
        if parts is None:
            # Planes that do not shrink: one plane of single bytes, as it is.
            return bytes((1, 0, 0)) + len(raw).to_bytes(4, "little") + bytes(raw)
        return b"".join(parts)

    def _decode_rest(self, rest: memoryview, out: memoryview) -> None:
        if out or rest:
            self._planes.decode(rest, out)


def _known(code: int) -> WordType:
    if code not in BY_CODE:
        raise CorruptDataError(f"a chunk of differences has elements of unknown type {code}")
    return word_type(BY_CODE[code])
