"""The arguments of a pickle's opcodes: numbers and strings, as the protocols 0 to 5 write them.

Protocol 0 writes lines of text, the others binary numbers, little-endian but for floats, and
strings after their length. Source: Python's `pickletools`.
"""

import re
import struct
from codecs import raw_unicode_escape_decode

from mstore.errors import FormatError, LimitExceededError

MAX_STRING = 16 * 1024 * 1024
"""Most bytes of one string."""

_MAX_INTEGER = 256  # bytes; numbers of as many digits still print under any setting of Python
_MAX_DIGITS = 600
_INTEGER = re.compile(rb"[+-]?[0-9]+")
_QUOTED = re.compile(rb"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*\"""", re.DOTALL)
_ESCAPE = re.compile(rb"\\(x[0-9a-fA-F]{2}|[0-7]{1,3}|.)", re.DOTALL)
_ESCAPES = dict(zip(b"\\'\"abfnrtv", b"\\'\"\a\b\f\n\r\t\v", strict=True))


class Arguments:
    """A pickle's bytes, read from `at` on; every method steps over what it returns.

    All raise FormatError for what is cut short or no value of its kind, LimitExceededError for
    what is too long.
    """

    def __init__(self, data: bytes) -> None:
        self.at = 0
        self._data = data

    def fail(self, why: str) -> FormatError:
        """An error that tells where in the pickle it is."""
        return FormatError(f"its pickle {why} at byte {self.at}")

    def need(self, size: int) -> int:
        """`size`, if as many bytes are left."""
        if not 0 <= size <= len(self._data) - self.at:
            raise self.fail("is cut short")
        return size

    def take(self, size: int) -> bytes:
        """The next `size` bytes."""
        end = self.at + size
        if end > len(self._data):
            raise self.fail("is cut short")
        taken = self._data[self.at : end]
        self.at = end
        return taken

    def u8(self) -> int:
        """An unsigned byte."""
        return self.take(1)[0]

    def u16(self) -> int:
        """An unsigned number of two bytes."""
        return int.from_bytes(self.take(2), "little")

    def u32(self) -> int:
        """An unsigned number of four bytes."""
        return int.from_bytes(self.take(4), "little")

    def u64(self) -> int:
        """An unsigned number of eight bytes."""
        return int.from_bytes(self.take(8), "little")

    def i32(self) -> int:
        """A signed number of four bytes."""
        return int.from_bytes(self.take(4), "little", signed=True)

    def long1(self) -> int:
        """A signed number after its length in one byte."""
        return int.from_bytes(self.take(self.u8()), "little", signed=True)

    def long4(self) -> int:
        """A signed number after its length in four bytes."""
        size = self.need(self.i32())
        if size > _MAX_INTEGER:
            raise LimitExceededError(f"its pickle has a number of {size} bytes")
        return int.from_bytes(self.take(size), "little", signed=True)

    def f64(self) -> float:
        """A big-endian float of eight bytes."""
        number: float = struct.unpack(">d", self.take(8))[0]
        return number

    def line(self, limit: int = MAX_STRING) -> bytes:
        """The bytes up to the end of the line, at most `limit`."""
        end = self._data.find(b"\n", self.at, self.at + limit + 1)
        if end < 0 and len(self._data) - self.at > limit:
            raise LimitExceededError(f"its pickle has a line of more than {limit} bytes")
        if end < 0:
            raise self.fail("is cut short")
        line = self._data[self.at : end]
        self.at = end + 1
        return line

    def int_line(self) -> int:
        """A decimal number, or a bool where it has a zero too many."""
        line = self.line(_MAX_DIGITS)
        return line == b"01" if line in (b"00", b"01") else self._decimal(line)

    def long_line(self) -> int:
        """A decimal number, perhaps with an L after it."""
        return self._decimal(self.line(_MAX_DIGITS).removesuffix(b"L"))

    def _decimal(self, digits: bytes) -> int:
        if not _INTEGER.fullmatch(digits):
            raise self.fail("has a number that is none")
        return int(digits)

    def float_line(self) -> float:
        """A decimal number with a point, or a special value."""
        try:
            return float(self.line(_MAX_DIGITS))
        except ValueError:
            raise self.fail("has a number that is none") from None

    def index_line(self) -> int:
        """The number of a memo entry."""
        line = self.line(_MAX_DIGITS)
        if not line.isdigit():
            raise self.fail("has a memo entry without a number")
        return int(line)

    def string_line(self) -> str | bytes:
        """A string of Python 2 in quotes."""
        line = self.line().strip()
        if not _QUOTED.fullmatch(line):
            raise self.fail("has a string without its quotes")
        return _old(_ESCAPE.sub(self._unescape, line[1:-1]))

    def _unescape(self, match: re.Match[bytes]) -> bytes:
        escape = match[1]
        if escape[:1] == b"x":
            if len(escape) == 1:
                raise self.fail("has a string with a bad escape")
            return bytes([int(escape[1:], 16)])
        if escape[0] in b"01234567":
            return bytes([int(escape, 8) & 0xFF])
        return bytes([_ESCAPES[escape[0]]]) if escape[0] in _ESCAPES else match[0]

    def string1(self) -> str | bytes:
        """A string of Python 2 after its length in one byte."""
        return _old(self.bytes1())

    def string4(self) -> str | bytes:
        """A string of Python 2 after its length in four bytes."""
        return _old(self._chars(self.i32()))

    def text_line(self) -> str:
        """Latin-1 text with escapes for all else."""
        try:
            return raw_unicode_escape_decode(self.line())[0]
        except UnicodeDecodeError:
            raise self.fail("has a string with a bad escape") from None

    def text1(self) -> str:
        """Text in UTF-8 after its length in one byte."""
        return self.text(self.bytes1())

    def text4(self) -> str:
        """Text in UTF-8 after its length in four bytes."""
        return self.text(self.bytes4())

    def text8(self) -> str:
        """Text in UTF-8 after its length in eight bytes."""
        return self.text(self.bytes8())

    def bytes1(self) -> bytes:
        """Bytes after their length in one byte."""
        return self._chars(self.u8())

    def bytes4(self) -> bytes:
        """Bytes after their length in four bytes."""
        return self._chars(self.u32())

    def bytes8(self) -> bytes:
        """Bytes after their length in eight bytes."""
        return self._chars(self.u64())

    def text(self, raw: bytes) -> str:
        """UTF-8 as text, with lone surrogates as Python allows them."""
        try:
            return raw.decode("utf-8", "surrogatepass")
        except UnicodeDecodeError:
            raise self.fail("has a string that is not UTF-8") from None

    def _chars(self, size: int) -> bytes:
        if self.need(size) > MAX_STRING:
            raise LimitExceededError(f"its pickle has a string of {size} bytes")
        return self.take(size)


def _old(raw: bytes) -> str | bytes:
    """A string of Python 2: text where it is UTF-8, else bytes."""
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return raw
