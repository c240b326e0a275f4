"""Codec delta (number 4): the difference of a chunk from another, number by number.

The words of the base are cast to the type of the chunk where that is another one, both are mapped
to integers in the order of the numbers (see `words`), subtracted modulo the word size, and the
sign is moved to the lowest bit (zigzag: 0, -1, 1, -2, … become 0, 1, 2, 3, …).

The numbers so made are a part, which is coded in an order of its own (see `parts`). Where some
blocks of them are busy and others quiet, they are two parts (see `blocks`).

Payload, integers little-endian:

| offset | bytes | what |
|---|---|---|
| 0 | 1 | code of the chunk's element type |
| 1 | 1 | code of the base's element type |
| 2 | 1 | the order of the one part there is, or 8 where there are two |
| 3 | 1 | zero |
| 4 | 4 | words that are coded as differences, m: the first m of both |
| 8 | 4 | bytes T of the table |
| 12 | 4 | bytes R of the rest |
| 16 | T | the tables of the parts |
| 16 + T | R | what the chunk has beyond m words, as codec planes; R is 0 where it has nothing |
| 16 + T + R | | the streams of the parts, up to the end of the payload |

Of two parts the tables begin with the entry of a plane, which has a bit for each block: 1 if it is
busy. Then the order of the quiet part (1 byte) and its tables, and the same of the busy part.
"""

import struct

import numpy as np

from mstore.codecs.base import DELTA, DeltaCodec
from mstore.codecs.blocks import Split, Which, busy_blocks, pack, packed_size, unpack
from mstore.codecs.bytecoder import PLANE_ENTRY, ByteCoder
from mstore.codecs.groups import Table
from mstore.codecs.order import UNORDERED
from mstore.codecs.parts import PartCoder
from mstore.codecs.planes import Planes
from mstore.codecs.scratch import Scratch
from mstore.codecs.words import (
    Words,
    WordType,
    cast,
    comparable,
    ulps,
    unzigzag,
    word_type,
    zigzag,
)
from mstore.dtypes import BY_CODE, DType
from mstore.errors import CorruptDataError
from mstore.ids import Buffer

TWO_PARTS = 8
"""Stands in a payload where the order of its one part stands in others."""

_HEAD = struct.Struct("<BBBxIII")


class Delta(DeltaCodec):
    """Tensors of one number type, or of float types that can be cast."""

    number = DELTA
    name = "delta"

    def __init__(self, *, deep: bool = False) -> None:
        """With `deep` all orders are tried, and groups are coded with more effort."""
        self._parts = PartCoder(deep=deep), PartCoder(deep=deep)
        self._planes = Planes(deep=deep)
        self._coder = ByteCoder(deep=deep)
        self._base, self._words, self._scratch = (Scratch() for _ in range(3))
        self._halves = tuple(Scratch() for _ in range(4))

    def encode(
        self, raw: memoryview, dtype: DType, base: memoryview, base_dtype: DType
    ) -> list[Buffer] | None:
        """Header, table and streams; None if there is nothing to compare."""
        kind, base_kind = word_type(dtype), word_type(base_dtype)
        count = min(len(raw) // kind.size, len(base) // base_kind.size)
        if not comparable(kind, base_kind) or not count or len(raw) % kind.size:
            return None
        against = self._cast_base(base, base_kind, kind, count)
        numbers = self._differences(np.frombuffer(raw, kind.stored, count), against, kind)
        table, streams = bytearray(), list[Buffer]()
        busy = busy_blocks(numbers)
        if busy is None:
            way = self._parts[0].encode(numbers, against, kind, table, streams)
        else:
            way = TWO_PARTS
            self._encode_two(busy, numbers, against, kind, table, streams)
        rest = self._encode_rest(raw[count * kind.size :], dtype)
        head = _HEAD.pack(dtype.code, base_dtype.code, way, count, len(table), len(rest))
        return [head, bytes(table), rest, *streams]

    def decode(self, payload: memoryview, base: memoryview, out: memoryview) -> None:
        """Add the differences to the base; every length is checked before it is used."""
        self._decode(payload, base, out, again=False)

    def check(self, payload: memoryview, base: memoryview, out: memoryview) -> None:
        """As `decode`, but an order is not made again if that made for encoding is right."""
        self._decode(payload, base, out, again=True)

    def _decode(
        self, payload: memoryview, base: memoryview, out: memoryview, *, again: bool
    ) -> None:
        if len(payload) < _HEAD.size:
            raise CorruptDataError("the header of a chunk of differences is cut short")
        code, base_code, way, count, table_size, rest_size = _HEAD.unpack_from(payload)
        kind, base_kind = _known(code), _known(base_code)
        start = _HEAD.size + table_size
        if (
            not comparable(kind, base_kind)
            or payload[3]
            or not 0 < count <= min(len(out) // kind.size, len(base) // base_kind.size)
            or start + rest_size > len(payload)
        ):
            raise CorruptDataError("a chunk of differences does not fit its base")
        self._decode_rest(payload[start : start + rest_size], out[count * kind.size :])
        against = self._cast_base(base, base_kind, kind, count)
        table = Table(payload[_HEAD.size : start], payload[start + rest_size :])
        numbers = self._words.array(count, kind.native)
        if way == TWO_PARTS:
            self._decode_two(table, against, kind, numbers, again=again)
        else:
            self._parts[0].decode(way, table, against, kind, numbers, again=again)
        table.finish()
        scratch = self._scratch.array(count, kind.native)
        unzigzag(numbers, scratch)
        ulps(against, kind, scratch)
        np.add(numbers, scratch, out=numbers)
        ulps(numbers, kind, scratch)
        np.frombuffer(out, kind.stored, count)[:] = scratch

    def _differences(self, stored: Words, against: Words, kind: WordType) -> Words:
        """The numbers that are coded, in scratch; `against` stays as it is."""
        numbers = self._words.array(len(stored), kind.native)
        scratch = self._scratch.array(len(stored), kind.native)
        numbers[:] = stored
        ulps(numbers, kind, scratch)
        ulps(against, kind, numbers)
        np.subtract(scratch, numbers, out=numbers)
        zigzag(numbers, scratch)
        return numbers

    def _encode_two(
        self,
        busy: Which,
        numbers: Words,
        against: Words,
        kind: WordType,
        table: bytearray,
        streams: list[Buffer],
    ) -> None:
        mode, stored = self._coder.encode(pack(busy))
        table += PLANE_ENTRY.pack(mode, len(stored))
        streams.append(bytes(stored))
        split = Split(busy, len(numbers))
        of_numbers, of_base = self._two(split, kind)
        split.take(numbers, *of_numbers)
        split.take(against, *of_base)
        for part, its_numbers, its_base in zip(self._parts, of_numbers, of_base, strict=True):
            at = len(table)
            table.append(UNORDERED)
            table[at] = part.encode(its_numbers, its_base, kind, table, streams)

    def _decode_two(
        self, table: Table, against: Words, kind: WordType, numbers: Words, *, again: bool
    ) -> None:
        packed = self._coder.decode(*table.plane(), packed_size(len(numbers)))
        split = Split(unpack(packed, len(numbers)), len(numbers))
        of_numbers, of_base = self._two(split, kind)
        split.take(against, *of_base)
        for part, its_numbers, its_base in zip(self._parts, of_numbers, of_base, strict=True):
            part.decode(table.byte(), table, its_base, kind, its_numbers, again=again)
        split.put(*of_numbers, numbers)

    def _two(self, split: Split, kind: WordType) -> list[tuple[Words, Words]]:
        """Scratch for the numbers of the quiet part and the busy one, and for their base."""
        quiet, busy, *base = self._halves
        return [
            (one.array(split.quiet, kind.native), other.array(split.busy, kind.native))
            for one, other in ((quiet, busy), base)
        ]

    def _cast_base(self, base: memoryview, source: WordType, target: WordType, count: int) -> Words:
        """The first `count` words of the base, as those of the chunk's type; not to be changed."""
        stored = np.frombuffer(base, source.stored, count)
        if source.name != target.name and (source.mantissa, target.mantissa) != (0, 0):
            native = stored.astype(source.native, copy=False)
            stored = cast(native, source, target)
        if stored.dtype == target.native and stored.flags.aligned:
            return stored
        words = self._base.array(count, target.native)
        words[:] = stored
        return words

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
