"""Protocol Buffers on the wire, read field by field, for the formats that are such messages.

    tag      varint: the field's number << 3 | the wire type
    payload  0 varint · 1 eight bytes · 2 a length (varint), then as many bytes · 5 four bytes

A message says nothing of itself: which fields it has, and whether bytes are text, numbers or
another message, is up to the format. A long field is stepped over, and its bytes are not read
unless a format asks for it. Lengths are checked against the message around them, whatever its size:
the libraries stop at 2 GiB, but describing more than that harms nobody. Groups (wire types 3 and
4), which no format here has, are refused. Source: the page "Encoding" of the Protocol Buffers
documentation.
"""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from mstore.errors import FormatError, LimitExceededError
from mstore.layout import ByteReader

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
"""The wire types."""

MAX_DEPTH = 100
"""Most messages inside one another; the libraries have the same limit."""

_WINDOW = 8192  # bytes read at once: a hundred small fields, and little beside a tensor
_MESSAGE = 4  # fields that take as long to read as a message takes apart from its fields
_STRETCH = 1 << 16  # bytes of a long field read at once
_CHARGE = 1 << 10  # bytes of it that count as a field
_LONGEST_HEAD = 20  # bytes: two varints
_ENDLESS = 1 << 80
_MAX_NUMBER = (1 << 29) - 1
_ENDS_EARLY = "it ends inside a field"


class Field(NamedTuple):
    """One field: its payload is the `size` bytes at `start`, or `value` if it is a varint.

    A tuple and no dataclass, because models have millions of fields.
    """

    number: int
    wire: int
    start: int
    size: int
    value: int

    @property
    def end(self) -> int:
        """Where the payload ends."""
        return self.start + self.size

    @property
    def signed(self) -> int:
        """The value of an `int32` or `int64`, which is negative from 2**63 on."""
        return self.value - (1 << 64) if self.value >> 63 else self.value


class Wire:
    """The fields of messages in a file; at most `max_fields` of them in all.

    A message inside another counts as a few fields more, since more has to be done for it.
    """

    def __init__(self, reader: ByteReader, *, max_fields: int) -> None:
        self._reader = reader
        self._max_fields = max_fields
        self._left = max_fields
        self._base = 0
        self._window = b""

    def fields(self, start: int, end: int) -> Iterator[Field]:
        """The fields of the message in the bytes from `start` to `end`, in their order.

        Raises FormatError when they do not fill it exactly or are no fields, LimitExceededError
        when there are too many.
        """
        while start < end:
            self._count(1)
            field = self._field(start)
            start = field.start + field.size
            if start > end:
                raise FormatError("a field reaches beyond its message")
            yield field

    def first(self, start: int, number: int, known: Mapping[int, int]) -> Field | None:
        """The first field of this number in the message at `start`, to see what a file may be.

        None if anything before it is not among the `known` fields, which are given with their wire
        types, or is no field at all. Where messages end does not count: the file may be cut short.
        """
        try:
            for field in self.fields(start, _ENDLESS):
                if known.get(field.number) != field.wire:
                    return None
                if field.number == number:
                    return field
        except (FormatError, LimitExceededError):
            pass
        return None

    def inside(self, field: Field, what: str) -> Iterator[Field]:
        """The fields of the message that is the payload of `field`; raises as `fields` does."""
        if field.wire != BYTES:
            raise FormatError(f"{what} has the wrong type")
        self._count(_MESSAGE)
        return self.fields(field.start, field.start + field.size)

    def read(self, field: Field, most: int, what: str) -> bytes:
        """The payload, of at most `most` bytes; `what` it is, for messages.

        Raises FormatError if it is no run of bytes, LimitExceededError if it is longer.
        """
        if field.wire != BYTES:
            raise FormatError(f"{what} has the wrong type")
        if field.size > most:
            raise LimitExceededError(f"{what} has {field.size} bytes; at most {most} are read")
        at = field.start - self._base
        if at >= 0 and at + field.size <= len(self._window):
            return self._window[at : at + field.size]
        data = self._reader.read(field.start, field.size)
        if len(data) != field.size:
            raise FormatError(_ENDS_EARLY)
        return data

    def text(self, field: Field, most: int, what: str) -> str:
        """The payload as text; raises as `read` does, and FormatError unless it is UTF-8."""
        try:
            return self.read(field, most, what).decode("utf-8")
        except UnicodeDecodeError:
            raise FormatError(f"{what} is not UTF-8") from None

    def consists_of(self, field: Field, values: bytes) -> bool:
        """Whether every byte of the payload is one of `values`, of a field of any length.

        Reads no further than to the first other one; each KiB counts as a field. Raises FormatError
        where the file ends before, LimitExceededError when that is too many fields.
        """
        for start in range(field.start, field.end, _STRETCH):
            length = min(_STRETCH, field.end - start)
            self._count(-(-length // _CHARGE))
            data = self._reader.read(start, length)
            if len(data) != length:
                raise FormatError(_ENDS_EARLY)
            if data.translate(None, values):
                return False
        return True

    def integers(self, field: Field, most: int, what: str) -> list[int]:
        """A part of a repeated `int64`: one number, or a packed run of at most `most`.

        Raises FormatError or LimitExceededError.
        """
        if field.wire == VARINT:
            return [field.signed]
        data = self.read(field, most * 10, what)
        numbers: list[int] = []
        at = 0
        while at < len(data):
            value, at = varint(data, at)
            numbers.append(value - (1 << 64) if value >> 63 else value)
        return numbers

    def _count(self, fields: int) -> None:
        self._left -= fields
        if self._left < 0:
            raise LimitExceededError(f"it has more than {self._max_fields} fields")

    def _field(self, start: int) -> Field:
        """The field whose tag is at `start`."""
        at = start - self._base
        if not 0 <= at <= len(self._window) - _LONGEST_HEAD:
            self._base, at = start, 0
            self._window = self._reader.read(start, _WINDOW)
        tag, at = varint(self._window, at)
        number, wire = tag >> 3, tag & 7
        if not 0 < number <= _MAX_NUMBER:
            raise FormatError(f"a field has the number {number}")
        if wire == VARINT:
            value, after = varint(self._window, at)
            return Field(number, wire, self._base + at, after - at, value)
        if wire == BYTES:
            size, at = varint(self._window, at)
            return Field(number, wire, self._base + at, size, 0)
        if wire == FIXED32:
            return Field(number, wire, self._base + at, 4, 0)
        if wire == FIXED64:
            return Field(number, wire, self._base + at, 8, 0)
        raise FormatError(f"a field has the wire type {wire}")


def varint(data: bytes, at: int) -> tuple[int, int]:
    """The number at `at`, seven bits in each byte from the lowest on, and where it ends.

    Padding with bytes of zero bits is allowed, as the libraries do, up to ten bytes in all.
    """
    if at < len(data) and (byte := data[at]) < 0x80:
        return byte, at + 1
    value = 0
    for shift, byte in zip(range(0, 70, 7), data[at : at + 10], strict=False):
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            if value >> 64:
                break
            return value, at + shift // 7 + 1
    if len(data) - at < 10 and (at >= len(data) or data[-1] >= 0x80):
        raise FormatError(_ENDS_EARLY)
    raise FormatError("a number takes more than 64 bits")
