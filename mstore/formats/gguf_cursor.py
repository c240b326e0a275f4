"""A place in the head of a GGUF file, moved forward value by value.

Values that nobody needs are skipped without building them, as a vocabulary has 150,000 strings and
a hostile file may claim any number. Source: docs/gguf.md of the ggml project.
"""

import struct
from typing import ClassVar

from mstore.errors import FormatError, LimitExceededError
from mstore.layout import ByteReader

MAX_HEAD = 256 << 20
"""Most bytes before the data; a large vocabulary takes about 10 MB."""

MAX_STRINGS = 10_000_000
"""Most strings in all arrays together; an array in an array counts as a hundred."""

_WINDOW = 256 << 10
_MAX_DEPTH = 4  # of arrays of arrays, which no program is known to write
_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
"""Bytes of a number or bool by the number of its type."""


class Cursor:
    """Reads forward from the start of a file; `at` is the offset of the next byte.

    Every method raises FormatError where the file ends before what is asked for, and
    LimitExceededError beyond `MAX_HEAD`.
    """

    U32: ClassVar = 4
    STRING: ClassVar = 8
    ARRAY: ClassVar = 9

    def __init__(self, reader: ByteReader, *, big_endian: bool = False) -> None:
        self.at = 0
        self.big_endian = big_endian
        mark = ">" if big_endian else "<"
        self._u32 = struct.Struct(f"{mark}I")
        self._u64 = struct.Struct(f"{mark}Q")
        self._reader = reader
        self._window = b""
        self._start = 0
        self._strings = 0

    def u32(self) -> int:
        """The number of four bytes here."""
        return int(self._u32.unpack(self.take(4))[0])

    def u64(self) -> int:
        """The number of eight bytes here."""
        return int(self._u64.unpack(self.take(8))[0])

    def take(self, length: int) -> bytes:
        """The next `length` bytes, which the caller bounds."""
        self._load(length)
        place = self.at - self._start
        self.at += length
        return self._window[place : place + length]

    def string(self, limit: int, what: str) -> bytes:
        """The string here; raises LimitExceededError if it has more than `limit` bytes."""
        length = self.u64()
        if length > limit:
            raise LimitExceededError(f"it has {what} of {length} bytes; at most {limit} are read")
        return self.take(length)

    def skip(self, length: int) -> None:
        """Move `length` bytes ahead."""
        self.at += length
        self._check(0)

    def skip_value(self, kind: int, depth: int = 0) -> None:
        """Move behind the value here, which is of the type `kind`."""
        if kind == self.STRING:
            self.skip(self.u64())
        elif kind != self.ARRAY:
            self.skip(_size(kind))
        elif depth == _MAX_DEPTH:
            raise LimitExceededError("it has arrays of arrays nested too deeply")
        else:
            inner, count = self.u32(), self.u64()
            if inner == self.STRING:
                self._skip_strings(count)
            elif inner != self.ARRAY:
                self.skip(count * _size(inner))
            else:
                self._count(count, 100)
                for _ in range(count):
                    self.skip_value(inner, depth + 1)

    def _skip_strings(self, count: int) -> None:
        self._count(count)
        unpack = self._u64.unpack_from
        while count:
            self._load(8)
            window, place = self._window, self.at - self._start
            last = len(window) - 8
            while count and place <= last:
                place += 8 + unpack(window, place)[0]
                count -= 1
            self.at = self._start + place
            self._check(0)

    def _count(self, count: int, cost: int = 1) -> None:
        """Count strings, or arrays, that are to be skipped one by one."""
        # Each has a length of eight bytes, so that the file bounds their number, too.
        self._check(8 * count)
        self._strings += cost * count
        if self._strings > MAX_STRINGS:
            raise LimitExceededError(f"its metadata has more than {MAX_STRINGS} strings in arrays")

    def _load(self, length: int) -> None:
        """Make sure that the window holds the next `length` bytes."""
        if self.at - self._start + length > len(self._window):
            self._check(length)
            self._start = self.at
            self._window = self._reader.read(self.at, max(length, _WINDOW))
            if len(self._window) < length:
                raise FormatError("the file ends inside its metadata")

    def _check(self, length: int) -> None:
        """Raise unless `length` more bytes are there, and may be read."""
        if self.at + length > self._reader.size:
            raise FormatError("the file ends inside its metadata")
        if self.at + length > MAX_HEAD:
            raise LimitExceededError(f"its metadata has more than {MAX_HEAD} bytes")


def _size(kind: int) -> int:
    """Bytes of a number of type `kind`."""
    if kind not in _SIZES:
        raise FormatError(f"its metadata has a value of the unknown type {kind}")
    return _SIZES[kind]
