"""GGUF: the file of one model for llama.cpp and others that use ggml.

    offset 0   'GGUF', u32 version (2 or 3), u64 number of tensors, u64 number of entries
    then       entries of metadata: key, u32 type, value
    then       for each tensor: name, u32 number of dimensions, u64 each, the innermost first,
               u32 type, u64 offset of its data
    then       data, from the next multiple of the entry `general.alignment` (32 without it) on;
               offsets count from here

Numbers are little-endian, in files of version 3 for other machines big-endian; keys, names and
other strings are a u64 length and UTF-8.

Tensors of quantised types are blocks of some bytes, each for some elements of a row. They are seen
as arrays of bytes, one row of blocks after the other, as the `gguf` package gives them; their kind
is the name of the type. Values of metadata are skipped, not read. Source: docs/gguf.md and
include/ggml.h of the ggml project, and the constants of its `gguf` package.
"""

import re
from bisect import bisect_right

from mstore.dtypes import BY_NAME, DType
from mstore.errors import FormatError, LimitExceededError
from mstore.formats.base import Finding, Format, check_shape, quote
from mstore.formats.gguf_cursor import Cursor
from mstore.formats.notes import opaque_note
from mstore.layout import ByteReader, Layout, Tensor, cover

MAGIC = b"GGUF"

MAX_TENSORS = 100_000
"""Most tensors in one file; experts are joined in this format, so that few have over 2,000."""

MAX_ENTRIES = 100_000
"""Most entries of metadata; about 50 are usual."""

MAX_NAME = 65_535
"""Most bytes of a key or a name."""

MAX_TEMPLATE = 1 << 20
"""Most bytes of a chat template that are judged."""

PLAIN: dict[int, DType] = {
    0: BY_NAME["f32"],
    1: BY_NAME["f16"],
    24: BY_NAME["i8"],
    25: BY_NAME["i16"],
    26: BY_NAME["i32"],
    27: BY_NAME["i64"],
    28: BY_NAME["f64"],
    30: BY_NAME["bf16"],
}
"""The types of ggml that hold one element after the other, by their numbers."""

BLOCKS: dict[int, tuple[str, int, int]] = {
    2: ("q4_0", 32, 18),
    3: ("q4_1", 32, 20),
    6: ("q5_0", 32, 22),
    7: ("q5_1", 32, 24),
    8: ("q8_0", 32, 34),
    9: ("q8_1", 32, 40),
    10: ("q2_k", 256, 84),
    11: ("q3_k", 256, 110),
    12: ("q4_k", 256, 144),
    13: ("q5_k", 256, 176),
    14: ("q6_k", 256, 210),
    15: ("q8_k", 256, 292),
    16: ("iq2_xxs", 256, 66),
    17: ("iq2_xs", 256, 74),
    18: ("iq3_xxs", 256, 98),
    19: ("iq1_s", 256, 50),
    20: ("iq4_nl", 32, 18),
    21: ("iq3_s", 256, 110),
    22: ("iq2_s", 256, 82),
    23: ("iq4_xs", 256, 136),
    29: ("iq1_m", 256, 56),
    34: ("tq1_0", 256, 54),
    35: ("tq2_0", 256, 66),
    39: ("mxfp4", 32, 17),
    40: ("nvfp4", 64, 36),
    41: ("q1_0", 128, 18),
}
"""The types of blocks by their numbers: name, elements and bytes of a block."""

_VERSIONS = 2, 3
_MAX_DIMS = 4
_MIN_ENTRY = 8 + 4 + 1  # bytes: an empty key, a type, a number of one byte
_MIN_INFO = 8 + 4 + 4 + 8
_ALIGNMENT = b"general.alignment"
_TEMPLATE = b"tokenizer.chat_template"
# Names that lead out of the sandbox of a template, plainly or with escapes in a string.
_ESCAPE = re.compile(rb"__|\\x5f|\\u005f|\\137", re.IGNORECASE)
_BYTES = BY_NAME["u8"]


class GgufFormat(Format):
    """A file of version 2 or 3, of either byte order."""

    name = "gguf"

    def sniff(self, head: bytes, reader: ByteReader) -> bool:
        """The magic, and a version below 256 in one byte order or the other."""
        return head.startswith(MAGIC) and len(head) >= 8 and b"\0\0\0" in (head[4:7], head[5:8])

    def layout(self, reader: ByteReader) -> Layout:
        """Every tensor of a known type."""
        return self.examine(reader)[0]

    def examine(self, reader: ByteReader) -> tuple[Layout, str | None]:
        """The layout, and which tensors are of types that are not known."""
        cursor, tensor_count, entry_count = _start(reader)
        alignment, _ = _read_metadata(cursor, entry_count)
        known: list[tuple[int, Tensor]] = []
        unknown: dict[str, tuple[int, int]] = {}
        names: set[str] = set()
        for _ in range(tensor_count):
            name, dims, kind, offset = _read_info(cursor)
            if name in names:
                raise FormatError(f"it has two tensors called {quote(name)}")
            if offset % alignment:
                raise FormatError(f"its tensor {quote(name)} is not aligned to {alignment} bytes")
            names.add(name)
            if kind in PLAIN or kind in BLOCKS:
                known.append((offset, _tensor(name, dims, kind, cursor.big_endian)))
            else:
                unknown[name] = kind, offset
        start = -(-cursor.at // alignment) * alignment
        layout = cover(self.name, reader.size, [(start + offset, t) for offset, t in known])
        _check_unknown(known, unknown, reader.size - start)
        left = [(name, f"is of type {kind}") for name, (kind, _) in unknown.items()]
        return layout, opaque_note(left, tensor_count, "tensors")

    def findings(self, reader: ByteReader) -> list[Finding]:
        """Chat templates, which programs run in a sandbox, that may reach out of it."""
        cursor, _, entry_count = _start(reader)
        return _read_metadata(cursor, entry_count)[1]


def _start(reader: ByteReader) -> tuple[Cursor, int, int]:
    """A cursor behind the header, the number of tensors and the number of entries."""
    cursor = Cursor(reader)
    if cursor.take(4) != MAGIC:
        raise FormatError("it does not start with the magic of GGUF")
    version = cursor.u32()
    if version not in _VERSIONS:
        cursor = Cursor(reader, big_endian=True)
        cursor.skip(4)
        swapped = cursor.u32()
        if swapped not in _VERSIONS:
            raise FormatError(f"its version {min(version, swapped)} is not known")
    counts = cursor.u64(), cursor.u64()
    limits = (MAX_TENSORS, _MIN_INFO, "tensors"), (MAX_ENTRIES, _MIN_ENTRY, "entries of metadata")
    for count, (most, smallest, what) in zip(counts, limits, strict=True):
        if count * smallest > reader.size:
            raise FormatError(f"it claims {count} {what}, for which it is too small")
        if count > most:
            raise LimitExceededError(f"it claims {count} {what}; at most {most} are read")
    return cursor, *counts


def _read_metadata(cursor: Cursor, count: int) -> tuple[int, list[Finding]]:
    """The alignment of the data, and what there is to tell of chat templates."""
    alignment = 32
    findings: list[Finding] = []
    keys: set[bytes] = set()
    for _ in range(count):
        key = cursor.string(MAX_NAME, "a key")
        if key in keys:
            raise FormatError(f"it has two entries called {quote(key.decode('utf-8', 'replace'))}")
        keys.add(key)
        kind = cursor.u32()
        if key == _ALIGNMENT:
            if kind != Cursor.U32:
                raise FormatError("its alignment is not of type u32")
            alignment = cursor.u32()
            if alignment.bit_count() != 1:
                raise FormatError(f"its alignment {alignment} is not a power of two")
        elif key.startswith(_TEMPLATE) and kind == Cursor.STRING:
            findings += _judge_template(cursor, key.decode("utf-8", "replace"))
        else:
            cursor.skip_value(kind)
    return alignment, findings


def _judge_template(cursor: Cursor, key: str) -> list[Finding]:
    length = cursor.u64()
    if length > MAX_TEMPLATE:
        cursor.skip(length)
        return [Finding("unknown", f"has a chat template of {length} bytes", key)]
    if _ESCAPE.search(cursor.take(length)):
        what = "has a chat template with names of two underscores, which may leave its sandbox"
        return [Finding("unknown", what, key)]
    return []


def _read_info(cursor: Cursor) -> tuple[str, tuple[int, ...], int, int]:
    """Name, dimensions with the outermost first, type and offset of a tensor."""
    try:
        name = cursor.string(MAX_NAME, "a name").decode("utf-8")
    except UnicodeDecodeError:
        raise FormatError("the name of a tensor is not UTF-8") from None
    count = cursor.u32()
    if count > _MAX_DIMS:
        raise FormatError(f"its tensor {quote(name)} has {count} dimensions")
    dims = tuple(cursor.u64() for _ in range(count))[::-1]
    return name, dims, cursor.u32(), cursor.u64()


def _tensor(name: str, dims: tuple[int, ...], kind: int, big_endian: bool) -> Tensor:
    """The tensor of a known type."""
    if kind in PLAIN:
        dtype = PLAIN[kind]
        dtype = BY_NAME.get(f">{dtype.name}", dtype) if big_endian else dtype
        check_shape(dtype, dims, f"its tensor {quote(name)}")
        return Tensor(name, dtype, dims)
    word, elements, size = BLOCKS[kind]
    if not dims or dims[-1] % elements:
        raise FormatError(f"its tensor {quote(name)} has rows that are no whole blocks of {word}")
    shape = *dims[:-1], dims[-1] // elements * size
    check_shape(_BYTES, shape, f"its tensor {quote(name)}")
    return Tensor(name, _BYTES, shape, kind=word)


def _check_unknown(
    known: list[tuple[int, Tensor]], unknown: dict[str, tuple[int, int]], room: int
) -> None:
    """Raise FormatError if a tensor of unknown size lies inside another or outside the file."""
    spans = sorted((offset, offset + tensor.nbytes) for offset, tensor in known)
    for name, (_, offset) in unknown.items():
        before = bisect_right(spans, (offset, room)) - 1
        if offset > room or (before >= 0 and spans[before][1] > offset):
            raise FormatError(f"tensor {quote(name)} overlaps another or leaves the file")
