"""safetensors: a length, a JSON header, then the tensors with no hole between them.

    offset 0      u64, little-endian: length n of the header
    offset 8      header: {"name": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}, …,
                           "__metadata__": {"key": "text", …}}, padded with spaces
    offset 8 + n  data; `data_offsets` count from here

The header is taken apart one tensor at a time, so that a hostile one costs no more memory than its
text and what was understood so far, and so that duplicate names are seen.
Source: the format section of the safetensors project's README, and the checks of its reader.
"""

import json
import re
from collections.abc import Iterator

from mstore.dtypes import BY_NAME, DType
from mstore.errors import FormatError, LimitExceededError
from mstore.formats.base import Format, check_shape, quote, read_exactly
from mstore.layout import ByteReader, Layout, Tensor, cover
from mstore.strictjson import parse_json

MAX_HEADER = 100_000_000
"""Most bytes of a header; the reference reader has the same limit."""

MAX_TENSORS = 500_000
"""Most tensors in one file; the largest published models have about 100,000."""

MAX_METADATA = 100_000
"""Most entries of `__metadata__`."""

METADATA_KEY = "__metadata__"
"""The header's key that is not a tensor."""

DTYPE_NAMES: dict[DType, str] = {
    dtype: name.upper()
    for name, dtype in BY_NAME.items()
    if not dtype.big_endian and name != "c128"
}
"""The format's own name of each element type it knows."""

_MAX_ENTRY = 4096  # characters of one tensor's {…}: 64 dimensions of 20 digits take 1500
_DTYPES = {name: dtype for dtype, name in DTYPE_NAMES.items()}
_HEAD = re.compile(rb'.{8}[ \t\n\r]*\{[ \t\n\r]*["}]', re.DOTALL)
_OFFSETS_KEY = b'"data_offsets"'
_WINDOW = 1 << 20
_WHITESPACE = " \t\n\r"
_SPACES = re.compile(r"[ \t\n\r]*")
_scan_string = json.JSONDecoder().raw_decode


class SafetensorsFormat(Format):
    """The safetensors format of the Hugging Face libraries."""

    name = "safetensors"

    def sniff(self, head: bytes, reader: ByteReader) -> bool:
        """A JSON object after eight bytes that are not text (as a length they never all are)."""
        return _HEAD.match(head) is not None and not _is_text(head[:8])

    def layout(self, reader: ByteReader) -> Layout:
        """The header as one opaque segment, then every tensor."""
        header = _read_header(reader)
        data_start = 8 + len(header)
        _, tensors = _parse_header(_decode(header), reader.size - data_start)
        layout = cover(
            self.name, reader.size, [(data_start + begin, tensor) for begin, tensor in tensors]
        )
        # `cover` leaves what no tensor claims opaque; only the header may be.
        if sum(s.length for s in layout.segments if s.tensor is None) != data_start:
            raise FormatError("some of its data belongs to no tensor")
        return layout


def read_metadata(reader: ByteReader) -> dict[str, str]:
    """The `__metadata__` of a safetensors file; empty when it has none.

    Raises what `SafetensorsFormat.layout` raises for a bad header; spans are checked against the
    size of the file, holes are not.
    """
    header = _read_header(reader)
    metadata, _ = _parse_header(_decode(header), reader.size - 8 - len(header))
    return metadata


def _is_text(data: bytes) -> bool:
    return all(0x20 <= byte < 0x7F or byte in b"\t\n\r" for byte in data)


def _read_header(reader: ByteReader) -> bytes:
    length = int.from_bytes(read_exactly(reader, 0, 8, "the header's length"), "little")
    if length > MAX_HEADER:
        raise LimitExceededError(f"its header claims {length} bytes; at most {MAX_HEADER} are read")
    if length > _WINDOW and _count_tensors(reader, length) > MAX_TENSORS:
        raise _too_many()
    return read_exactly(reader, 8, length, "its header")


def _count_tensors(reader: ByteReader, length: int) -> int:
    """Tensors that a long header names, counted before any of it is kept.

    Escapes in a key can hide some, which are counted when they are parsed.
    """
    count, rest = 0, b""
    for start in range(8, 8 + length, _WINDOW):
        window = rest + reader.read(start, min(_WINDOW, 8 + length - start))
        count += window.count(_OFFSETS_KEY)
        rest = window[1 - len(_OFFSETS_KEY) :]
    return count


def _too_many() -> LimitExceededError:
    return LimitExceededError(f"its header names more than {MAX_TENSORS} tensors")


def _decode(header: bytes) -> str:
    try:
        return header.decode("utf-8")
    except UnicodeDecodeError as error:
        raise FormatError(f"its header is not UTF-8 at byte {error.start}") from None


def _parse_header(text: str, data_size: int) -> tuple[dict[str, str], list[tuple[int, Tensor]]]:
    """Metadata, and each tensor with its start counted from the end of the header."""
    metadata: dict[str, str] = {}
    tensors: list[tuple[int, Tensor]] = []
    cursor = _Cursor(text)
    for name in cursor.members():
        if name == METADATA_KEY:
            for key in cursor.members():
                if len(metadata) == MAX_METADATA:
                    raise LimitExceededError(f"its metadata has more than {MAX_METADATA} keys")
                metadata[key] = cursor.string()
        elif len(tensors) == MAX_TENSORS:
            raise _too_many()
        else:
            tensors.append(_parse_entry(name, cursor.flat_object(), data_size))
    cursor.finish()
    return metadata, tensors


def _parse_entry(name: str, text: str, data_size: int) -> tuple[int, Tensor]:
    """The tensor that one entry of the header describes, and where its data starts."""
    # No dtype holds a hyphen, so the only use of one is a number below zero, or -0.
    if "-" in text:
        raise FormatError(f"{quote(name)} has a negative number in its entry")
    entry = parse_json(text)
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise FormatError(f"{quote(name)} needs exactly a dtype, a shape and data_offsets")
    dtype = _DTYPES.get(entry["dtype"]) if isinstance(entry["dtype"], str) else None
    if dtype is None:
        raise FormatError(f"{quote(name)} has an unknown dtype")
    shape = _integers(name, entry["shape"])
    offsets = _integers(name, entry["data_offsets"])
    if len(offsets) != 2:
        raise FormatError(f"{quote(name)} needs two data_offsets")
    begin, end = offsets
    if not begin <= end <= data_size:
        raise FormatError(f"the data_offsets of {quote(name)} are backwards or outside the file")
    if end - begin != check_shape(dtype, shape, quote(name)):
        raise FormatError(f"{quote(name)} does not fill its data_offsets")
    return begin, Tensor(name, dtype, tuple(shape))


def _integers(name: str, value: object) -> list[int]:
    # `type` and not `isinstance`, because a bool is an int.
    if not isinstance(value, list) or any(type(item) is not int for item in value):
        raise FormatError(f"{quote(name)} needs lists of whole numbers")
    return value


class _Cursor:
    """A place in the JSON text of a header, moved forward piece by piece."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0

    def members(self) -> Iterator[str]:
        """Each key of the object here; the caller takes the value before the next key."""
        self._expect("{")
        seen: set[str] = set()
        if self._take("}"):
            return
        while True:
            key = self.string()
            if key in seen:
                raise FormatError(f"its header has {quote(key)} twice")
            seen.add(key)
            self._expect(":")
            yield key
            if self._take("}"):
                return
            self._expect(",")

    def string(self) -> str:
        """The string here."""
        if self._peek() != '"':
            raise self._unexpected("a string")
        try:
            value, self._at = _scan_string(self._text, self._at)
            value.encode("utf-8")  # half of a surrogate pair, which UTF-8 cannot hold
        except ValueError:
            raise self._unexpected("a proper string") from None
        return str(value)

    def flat_object(self) -> str:
        """The text up to the next `}`: an object with no object inside it."""
        start = self._at
        end = self._text.find("}", start) + 1
        if not end:
            raise self._unexpected("a closed object")
        if end - start > _MAX_ENTRY:
            raise LimitExceededError("its header has an entry that is too long or nested")
        self._at = end
        return self._text[start:end]

    def finish(self) -> None:
        """Check that only white space is left."""
        if self._peek():
            raise self._unexpected("the end")

    def _peek(self) -> str:
        char = self._text[self._at : self._at + 1]
        if char in _WHITESPACE:  # also at the end, where `char` is empty
            self._at = _SPACES.match(self._text, self._at).end()  # type: ignore[union-attr]
            char = self._text[self._at : self._at + 1]
        return char

    def _take(self, mark: str) -> bool:
        taken = self._peek() == mark
        self._at += taken
        return taken

    def _expect(self, mark: str) -> None:
        if not self._take(mark):
            raise self._unexpected(mark)

    def _unexpected(self, wanted: str) -> FormatError:
        return FormatError(f"its header is malformed at character {self._at}: expected {wanted}")
