"""The arguments of a pickle's opcodes: numbers and strings, as the protocols 0 to 5 write them.

Protocol 0 writes lines of text, the others binary numbers, little-endian but for floats, and
strings after their length. Source: Python's `pickletools`.

The file is read in windows, and what is long is stepped over: of a large file with large arrays
only the opcodes are read.
"""

import re
import struct
from codecs import raw_unicode_escape_decode
from contextlib import suppress

from mstore.errors import FormatError, LimitExceededError
from mstore.formats.pickle_values import Chars, Code, Text
from mstore.layout import ByteReader

MAX_TEXT = 4096
"""Most bytes of a text that is read; a longer one is known by its place only."""

MAX_LINE = 1 << 30
"""Most bytes of a line of text that is stepped over, for which all of it is read."""

_MAX_INTEGER = 256  # bytes; numbers of as many digits still print under any setting of Python
_MAX_DIGITS = 600
_WINDOW, _MAX_WINDOW = 1 << 12, 1 << 18
_QUOTED = re.compile(rb"""'(?:[^'\\]|\\.)*+'|"(?:[^"\\]|\\.)*+\"""", re.DOTALL)
_ESCAPE = re.compile(rb"\\(x[0-9a-fA-F]{2}|[0-7]{1,3}|.)", re.DOTALL)
_ESCAPES = dict(zip(b"\\'\"abfnrtv", b"\\'\"\a\b\f\n\r\t\v", strict=True))


class Arguments:
    """A pickle's bytes, read one after another; every method steps over what it returns.

    `window` is what was read of the file, from its byte `start` on; `at` is the place in it. With
    `has_bytes`, as from protocol 3 on, text never stands for bytes.

    All methods raise FormatError for what is cut short or no value of its kind, LimitExceededError
    for what is too long.
    """

    def __init__(self, reader: ByteReader, start: int = 0, end: int | None = None) -> None:
        """The bytes from `start` to `end` of a file, by default all of it."""
        self._reader = reader
        self._end = reader.size if end is None else end
        self.size = self._end - start
        self._step = _WINDOW
        self.window = b""
        self.start = start
        self.at = 0
        self.has_bytes = False

    @property
    def position(self) -> int:
        """The place in the file."""
        return self.start + self.at

    @property
    def left(self) -> int:
        """How many bytes there are from here to the end."""
        return self._end - self.position

    def fail(self, why: str) -> FormatError:
        """An error that tells where in the file it is."""
        return FormatError(f"its pickle {why} at byte {self.position}")

    def need(self, size: int) -> int:
        """`size`, if as many bytes are left."""
        if not 0 <= size <= self.left:
            raise self.fail("is cut short")
        return size

    def fill(self, size: int) -> None:
        """Have at least `size` bytes from here on in the window."""
        rest = self.window[self.at :]
        length = min(max(self.need(size), self._step), self.left) - len(rest)
        more = self._reader.read(self.position + len(rest), length)
        if len(rest) + len(more) < size:
            raise self.fail("is cut short")
        self.window, self.start, self.at = rest + more, self.position, 0
        self._step = min(4 * self._step, _MAX_WINDOW)

    def skip(self, size: int) -> None:
        """Step over `size` bytes without reading them."""
        self.at += self.need(size)
        if self.at > len(self.window):
            self.window, self.start, self.at = b"", self.position, 0
            self._step = _WINDOW

    def take(self, size: int) -> bytes:
        """The next `size` bytes."""
        if self.at + size > len(self.window):
            self.fill(size)
        end = self.at + size
        taken = self.window[self.at : end]
        self.at = end
        return taken

    def u8(self) -> int:
        """An unsigned byte."""
        if self.at == len(self.window):
            self.fill(1)
        byte = self.window[self.at]
        self.at += 1
        return byte

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

    def line(self, limit: int = MAX_TEXT) -> bytes:
        """The bytes up to the end of the line, at most `limit`."""
        while (end := self.window.find(b"\n", self.at, self.at + limit + 1)) < 0:
            have = len(self.window) - self.at
            if have > limit:
                raise LimitExceededError(f"its pickle has a line of more than {limit} bytes")
            self.fill(have + 1)
        line = self.window[self.at : end]
        self.at = end + 1
        return line

    def int_line(self) -> int:
        """A number, or a bool where it has a zero too many."""
        line = self.line(_MAX_DIGITS)
        return line == b"01" if line in (b"00", b"01") else self._number(line)

    def long_line(self) -> int:
        """A number, perhaps with an L after it."""
        return self._number(self.line(_MAX_DIGITS).removesuffix(b"L"))

    def _number(self, digits: bytes) -> int:
        """A decimal number, or one as in the source code of Python or C, which are read as well."""
        if digits.isdigit() and digits[:1] != b"0":
            return int(digits)
        digits = digits.split(b"\0")[0]
        for base in (0, 8):
            with suppress(ValueError):
                return int(digits, base)
        raise self.fail("has a number that is none")

    def float_line(self) -> float:
        """A decimal number with a point, or a special value."""
        line = self.line(_MAX_DIGITS).split(b"\0")[0]
        try:
            if b"_" in line:  # which Python's own reader takes, but never writes
                raise ValueError
            return float(line)
        except ValueError:
            raise self.fail("has a number that is none") from None

    def index_line(self) -> int:
        """The number of a memo entry."""
        line = self.line(_MAX_DIGITS)
        try:
            index = int(line.split(b"\0")[0])
        except ValueError:
            index = -1
        if index < 0:
            raise self.fail("has a memo entry without a number")
        return index

    def string_line(self) -> str | Chars:
        """A string of Python 2 in quotes."""
        place = self._long_line("quoted")
        if isinstance(place, Chars):
            return place
        line = place.strip()
        if not _QUOTED.fullmatch(line):
            raise self.fail("has a string without its quotes")
        code: Code = "quoted" if b"\\" in line else "raw"
        inner = line[1:-1]
        start = self.position - len(place.lstrip())
        return _old(_ESCAPE.sub(self._unescape, inner), code, start, len(inner))

    def _unescape(self, match: re.Match[bytes]) -> bytes:
        escape = match[1]
        if escape[:1] == b"x":
            if len(escape) == 1:
                raise self.fail("has a string with a bad escape")
            return bytes([int(escape[1:], 16)])
        if escape[0] in b"01234567":
            return bytes([int(escape, 8) & 0xFF])
        return bytes([_ESCAPES[escape[0]]]) if escape[0] in _ESCAPES else match[0]

    def string1(self) -> str | Chars:
        """A string of Python 2 after its length in one byte."""
        return self._old_string(self.u8())

    def string4(self) -> str | Chars:
        """A string of Python 2 after its length in four bytes."""
        return self._old_string(self.i32())

    def _old_string(self, size: int) -> str | Chars:
        if self.need(size) > MAX_TEXT:
            return self._bytes(size)
        offset = self.position
        return _old(self.take(size), "raw", offset, size)

    def text_line(self) -> str | Chars:
        """Latin-1 text with escapes for all else."""
        line = self._long_line("escaped")
        if isinstance(line, Chars):
            return line
        try:
            text = raw_unicode_escape_decode(line)[0]
        except UnicodeDecodeError:
            raise self.fail("has a string with a bad escape") from None
        return _placed(text, "escaped", self.position - 1 - len(line), len(line))

    def _long_line(self, code: Code) -> bytes | Chars:
        """A line, or its place if it is long."""
        start = self.position
        have = min(MAX_TEXT + 1, self.left)
        if self.at + have > len(self.window):
            self.fill(have)
        if self.window.find(b"\n", self.at, self.at + MAX_TEXT + 1) >= 0:
            return self.line()
        while (end := self.window.find(b"\n", self.at)) < 0:
            self.at = len(self.window)
            if self.position - start > MAX_LINE:
                raise LimitExceededError(f"its pickle has a line of more than {MAX_LINE} bytes")
            self.fill(1)
        length = self.start + end - start
        self.at = end + 1
        return Chars(code, start, length)

    def text1(self) -> str:
        """Text in UTF-8 after its length in one byte."""
        return self.text(self.take(self.u8()))

    def text4(self) -> str | Chars:
        """Text in UTF-8 after its length in four bytes."""
        return self._text(self.u32())

    def text8(self) -> str | Chars:
        """Text in UTF-8 after its length in eight bytes."""
        return self._text(self.u64())

    def _text(self, size: int) -> str | Chars:
        if self.need(size) > MAX_TEXT:
            return self._bytes(size, "utf8")
        offset = self.position
        text = self.text(self.take(size))
        return text if self.has_bytes else _placed(text, "utf8", offset, size)

    def text(self, raw: bytes) -> str:
        """UTF-8 as text, with lone surrogates as Python allows them."""
        try:
            return raw.decode("utf-8", "surrogatepass")
        except UnicodeDecodeError:
            raise self.fail("has a string that is not UTF-8") from None

    def bytes1(self) -> Chars:
        """Bytes after their length in one byte."""
        return self._bytes(self.u8())

    def bytes4(self) -> Chars:
        """Bytes after their length in four bytes."""
        return self._bytes(self.u32())

    def bytes8(self) -> Chars:
        """Bytes after their length in eight bytes."""
        return self._bytes(self.u64())

    def _bytes(self, size: int, code: Code = "raw") -> Chars:
        chars = Chars(code, self.position, self.need(size))
        self.skip(size)
        return chars


def _old(raw: bytes, code: Code, offset: int, length: int) -> str | Chars:
    """A string of Python 2: text where it is UTF-8, else bytes."""
    try:
        return _placed(raw.decode("utf-8"), code, offset, length)
    except UnicodeDecodeError:
        return Chars(code, offset, length)


def _placed(text: str, code: Code, offset: int, length: int) -> Text:
    placed = Text(text)
    placed.code, placed.offset, placed.length = code, offset, length
    return placed
