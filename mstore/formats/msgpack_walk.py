"""A msgpack file object by object, with nothing built of it but the names on the way.

    00-7f, e0-ff  small numbers      cc-d3  numbers of 1, 2, 4, 8 bytes    c0, c2, c3  nil, booleans
    80-8f, de, df maps               90-9f, dc, dd  arrays                 ca, cb      floats
    a0-bf, d9-db  text               c4-c6  bytes                          c7-c9, d4-d8 extensions

Lengths and numbers are big-endian. Source: spec.md of the msgpack project.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum, auto

from mstore.errors import FormatError, LimitExceededError
from mstore.formats.base import quote
from mstore.layout import ByteReader

MAX_OBJECTS = 1_000_000
"""Most objects in one file, keys among them; each tensor takes about two."""

MAX_DEPTH = 512
"""Most containers in each other."""

MAX_NAME = 16_384
"""Most characters of a key, and of all keys on the way to an object."""

_WINDOW = 4096  # bytes; the objects between two tensors take about 100


class Kind(Enum):
    """What an object is; `OTHER` are nil, booleans and floats."""

    MAP = auto()
    ARRAY = auto()
    TEXT = auto()
    BYTES = auto()
    EXTENSION = auto()
    NUMBER = auto()
    OTHER = auto()


@dataclass(frozen=True, slots=True)
class Extension:
    """An extension object: its `length` bytes from `offset` are of the type `code`.

    `name` is the way to it: keys, and indexes in arrays, with dots between them.
    """

    name: str
    code: int
    offset: int
    length: int


@dataclass(slots=True)
class _Open:
    """A container: how many of its objects are to come, and the name of those, but for the end."""

    is_map: bool
    left: int
    prefix: str
    index: int = 0
    keys: set[str] = field(default_factory=set)

    def add(self, key: str) -> str:
        """`key`; raises FormatError if it was there before: libraries take the last one."""
        if key in self.keys:
            raise FormatError(f"it has {quote(self.prefix + key)} twice")
        self.keys.add(key)
        return key


def extensions(reader: ByteReader) -> Iterator[Extension]:
    """The extension objects of a file that is one map.

    Raises FormatError when it is not, LimitExceededError beyond the limits above.
    """
    cursor = Cursor(reader)
    kind, count = cursor.head()
    if kind is not Kind.MAP:
        raise FormatError("it is no map")
    containers = [_Open(True, count, "")]
    while containers:
        inside = containers[-1]
        if not inside.left:
            containers.pop()
            continue
        inside.left -= 1
        key: str | int = inside.add(cursor.key()) if inside.is_map else inside.index
        inside.index += 1
        kind, count = cursor.head()
        if kind is Kind.MAP or kind is Kind.ARRAY:
            if len(containers) == MAX_DEPTH:
                raise LimitExceededError(f"it has more than {MAX_DEPTH} containers in each other")
            name = _bounded(f"{inside.prefix}{key}.")
            containers.append(_Open(kind is Kind.MAP, count, name))
        elif kind is Kind.EXTENSION:
            code = cursor.code()
            yield Extension(_bounded(f"{inside.prefix}{key}"), code, cursor.at, count)
            cursor.skip(count)
        elif kind is Kind.TEXT or kind is Kind.BYTES:
            cursor.skip(count)
    if cursor.at != reader.size:
        raise FormatError("there are more bytes behind its map")


def _bounded(name: str) -> str:
    if len(name) > MAX_NAME:
        raise LimitExceededError(f"it has a name of more than {MAX_NAME} characters")
    return name


class Cursor:
    """A place in a file, moved forward; `at` is the offset of the next byte.

    Every method raises FormatError where the file ends before what is asked for.
    """

    def __init__(self, reader: ByteReader, at: int = 0) -> None:
        self.at = at
        self._reader = reader
        self._window = b""
        self._start = at
        self._objects = 0

    def head(self) -> tuple[Kind, int]:
        """The start of an object: what it is, and its length, count or value.

        The bytes of text, of bytes and of an extension follow, and the code of the latter before.
        """
        self._objects += 1
        if self._objects > MAX_OBJECTS:
            raise LimitExceededError(f"it has more than {MAX_OBJECTS} objects")
        place = self.at - self._start
        if place < len(self._window):  # nearly always, so worth no call
            first = self._window[place]
            self.at += 1
        else:
            first = self.take(1)[0]
        if first < 0x80:
            return Kind.NUMBER, first
        if first >= 0xE0:
            return Kind.NUMBER, first - 0x100
        if first < 0x90:
            return Kind.MAP, first & 0x0F
        if first < 0xA0:
            return Kind.ARRAY, first & 0x0F
        if first < 0xC0:
            return Kind.TEXT, first & 0x1F
        if first not in _HEADS:
            raise FormatError(f"the byte at {self.at - 1} starts no object")
        kind, width, value = _HEADS[first]
        if width:
            signed = 0xD0 <= first <= 0xD3
            value = int.from_bytes(self.take(width), "big", signed=signed)
        return kind, value

    def key(self) -> str:
        """The key here, which is text or a number."""
        kind, value = self.head()
        if kind is Kind.NUMBER:
            return str(value)
        if kind is not Kind.TEXT:
            raise FormatError("it has a key that is no text")
        return self.text(value)

    def text(self, length: int) -> str:
        """The next `length` bytes as text."""
        if length > MAX_NAME:
            raise LimitExceededError(f"it has a key of {length} bytes; at most {MAX_NAME} are read")
        try:
            return self.take(length).decode("utf-8")
        except UnicodeDecodeError:
            raise FormatError("it has a key that is not UTF-8") from None

    def code(self) -> int:
        """The type of an extension, from -128 to 127."""
        return int.from_bytes(self.take(1), "big", signed=True)

    def take(self, length: int) -> bytes:
        """The next `length` bytes, which the caller bounds."""
        place = self.at - self._start
        if place + length > len(self._window):
            self._start, place = self.at, 0
            self._window = self._reader.read(self.at, max(length, _WINDOW))
            if len(self._window) < length:
                raise FormatError("the file ends inside its map")
        self.at += length
        return self._window[place : place + length]

    def skip(self, length: int) -> None:
        """Move `length` bytes ahead."""
        self.at += length
        if self.at > self._reader.size:
            raise FormatError("the file ends inside its map")


_HEADS: dict[int, tuple[Kind, int, int]] = {
    0xC0: (Kind.OTHER, 0, 0),
    0xC2: (Kind.OTHER, 0, 0),
    0xC3: (Kind.OTHER, 0, 0),
    **{0xC4 + i: (Kind.BYTES, 1 << i, 0) for i in range(3)},
    **{0xC7 + i: (Kind.EXTENSION, 1 << i, 0) for i in range(3)},
    0xCA: (Kind.OTHER, 4, 0),
    0xCB: (Kind.OTHER, 8, 0),
    **{0xCC + i: (Kind.NUMBER, 1 << i, 0) for i in range(4)},
    **{0xD0 + i: (Kind.NUMBER, 1 << i, 0) for i in range(4)},
    **{0xD4 + i: (Kind.EXTENSION, 0, 1 << i) for i in range(5)},
    **{0xD9 + i: (Kind.TEXT, 1 << i, 0) for i in range(3)},
    0xDC: (Kind.ARRAY, 2, 0),
    0xDD: (Kind.ARRAY, 4, 0),
    0xDE: (Kind.MAP, 2, 0),
    0xDF: (Kind.MAP, 4, 0),
}
"""The kind of an object by its first byte, the bytes of the number that follows, or the number."""
