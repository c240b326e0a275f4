"""npy: numpy's file of one array.

    offset 0   magic 93 'NUMPY', version major, minor
    offset 8   u16 (version 1) or u32 (2, 3), little-endian: length of the header
    then       header: a Python literal {'descr': '<f4', 'fortran_order': False, 'shape': (2, 3)},
               latin-1 (versions 1, 2) or UTF-8 (3)
    then       data

The literal is read by `mstore.formats.literal`, never evaluated. Arrays of types that are no
`DType` (strings, dates, records) are valid and stay opaque; arrays of Python objects hold a pickle
and are refused. Source: the format section of numpy.lib.format.
"""

import re
from math import prod

from mstore.dtypes import BY_NAME, DType
from mstore.errors import FormatError, LimitExceededError, UnsafeInputError
from mstore.formats.base import (
    Finding,
    Format,
    WindowReader,
    check_shape,
    quote,
    read_exactly,
)
from mstore.formats.literal import parse_literal
from mstore.formats.pickles import PickleFormat
from mstore.layout import ByteReader, Layout, Tensor, cover, opaque

MAGIC = b"\x93NUMPY"
MAX_HEADER = 10_000
"""Most bytes of a header; numpy reads no longer ones either unless told to."""

PICKLED = "holds a pickle, which reading it with allow_pickle runs"
"""What there is to say of an array of Python objects."""

_BYTES = BY_NAME["u8"]
_TYPE = re.compile(r"([<>|])([a-zA-Z])([0-9]{0,9})(\[[0-9a-zA-Z]*\])?")
_KINDS = {"b": "bool", "u": "u", "i": "i", "f": "f", "c": "c"}
_OPAQUE_KINDS = "biufcmMSUV"
_TEXTS_AND_DATES = "SUmM"


class NpyFormat(Format):
    """One numpy array; the tensor has the empty name."""

    name = "npy"

    def sniff(self, head: bytes, reader: ByteReader) -> bool:
        """The magic."""
        return head.startswith(MAGIC)

    def layout(self, reader: ByteReader) -> Layout:
        """The header as an opaque segment, then the array, then what else the file holds.

        numpy reads an array and leaves the file at its end, so files with several arrays exist;
        all but the first stay opaque.
        """
        return self.examine(reader)[0]

    def examine(self, reader: ByteReader) -> tuple[Layout, str | None]:
        """The layout, and why the array is opaque if it is."""
        found = read_array(reader, "")
        if isinstance(found, str):
            layout = Layout(self.name, reader.size, opaque(reader.size).segments)
            return layout, f"opaque bytes for its array, which {found}" if found else None
        return cover(self.name, reader.size, [found]), None

    def findings(self, reader: ByteReader) -> list[Finding]:
        """An array of Python objects, which is a pickle, and what that does."""
        try:
            read_array(reader, "")
        except UnsafeInputError:
            return object_findings(reader)
        return []


def object_findings(reader: ByteReader) -> list[Finding]:
    """What unpickling the objects of an npy file would do.

    Raises FormatError and LimitExceededError where that cannot be judged.
    """
    _, start = _read_header(reader)
    pickled = WindowReader(reader, start, reader.size - start)
    try:
        return [Finding("allowed", PICKLED), *PickleFormat().findings(pickled)]
    except UnsafeInputError as error:
        return [Finding("dangerous", error.message)]
    except (FormatError, LimitExceededError) as error:
        raise type(error)(f"in the pickle of its objects, {error.message}") from None


def read_array(reader: ByteReader, name: str) -> tuple[int, Tensor] | str:
    """Where the array of an npy file starts and what it is, as a tensor called `name`.

    If its type is no `DType`, a text instead: what is so about it, or nothing if it is text or
    dates, which are no numbers. Raises as `Format.layout` does.
    """
    text, start = _read_header(reader)
    header = parse_literal(text)
    if not isinstance(header, dict) or header.keys() != {"descr", "fortran_order", "shape"}:
        raise FormatError("its header needs exactly descr, fortran_order and shape")
    descr, fortran, shape = header["descr"], header["fortran_order"], header["shape"]
    if not isinstance(fortran, bool):
        raise FormatError("its fortran_order is neither True nor False")
    # `type` and not `isinstance`, because a bool is an int.
    if not isinstance(shape, tuple) or any(type(dim) is not int for dim in shape):
        raise FormatError("its shape is not a tuple of whole numbers")
    # A type's bytes are checked as if they were one more dimension: no product can overflow.
    needed = check_shape(_BYTES, (*shape, _itemsize(descr)), "its array")
    if needed > reader.size - start:
        raise FormatError(f"its array needs {needed} bytes, but {reader.size - start} are there")
    dtype = _dtype(descr)
    if dtype is None:
        if not isinstance(descr, str):
            return "holds records"
        return "" if descr[1] in _TEXTS_AND_DATES else f"has elements of type {quote(descr)}"
    order = "F" if fortran and len(shape) > 1 else "C"
    return start, Tensor(name, dtype, shape, order)  # type: ignore[arg-type]


def _read_header(reader: ByteReader) -> tuple[str, int]:
    """The header's text and the offset of the data."""
    start = read_exactly(reader, 0, 8, "its header")
    if not start.startswith(MAGIC):
        raise FormatError("it does not start with the magic of npy")
    version = start[6], start[7]
    if version not in ((1, 0), (2, 0), (3, 0)):
        raise FormatError(f"its version {version[0]}.{version[1]} is unknown")
    width = 2 if version == (1, 0) else 4
    length = int.from_bytes(read_exactly(reader, 8, width, "its header"), "little")
    if length > MAX_HEADER:
        raise LimitExceededError(f"its header claims {length} bytes; at most {MAX_HEADER} are read")
    raw = read_exactly(reader, 8 + width, length, "its header")
    try:
        return raw.decode("utf-8" if version == (3, 0) else "latin-1"), 8 + width + length
    except UnicodeDecodeError:
        raise FormatError("its header is not UTF-8") from None


def _dtype(descr: object) -> DType | None:
    """The element type of a descr that `_itemsize` has accepted; None if it is no `DType`."""
    if not isinstance(descr, str) or not (match := _TYPE.fullmatch(descr)):
        return None
    order, kind, size, _ = match.groups()
    if kind not in _KINDS:
        return None
    name = "bool" if (kind, size) == ("b", "1") else f"{kind}{8 * int(size or 0)}"
    return BY_NAME.get(f">{name}" if order == ">" else name, BY_NAME.get(name))


def _itemsize(descr: object) -> int:
    """Bytes of one element of a descr: a type string, or a list of fields.

    A field is (name, descr) or (name, descr, subarray shape); a name may be (title, name).
    Raises UnsafeInputError for Python objects, FormatError for what is no descr.
    """
    if isinstance(descr, list):
        return sum(_field_size(field) for field in descr)
    if isinstance(descr, tuple) and len(descr) == 2:  # (descr, subarray shape)
        return _itemsize(descr[0]) * _count(descr[1])
    match = _TYPE.fullmatch(descr) if isinstance(descr, str) else None
    if match is None:
        raise FormatError("its descr is not a numpy type")
    kind, size = match[2], int(match[3] or 0)
    if kind == "O":
        raise UnsafeInputError("it holds Python objects, which only unpickling could read")
    if kind not in _OPAQUE_KINDS:
        raise FormatError(f"its descr {quote(match[0])} is not a numpy type")
    return size * (4 if kind == "U" else 1)


def _field_size(field: object) -> int:
    if not isinstance(field, tuple) or len(field) not in (2, 3):
        raise FormatError("its descr has a field that is not (name, type)")
    return _itemsize(field[1]) * (_count(field[2]) if len(field) == 3 else 1)


def _count(shape: object) -> int:
    """Elements of a subarray."""
    dims = (shape,) if type(shape) is int else shape
    if not isinstance(dims, tuple) or any(type(dim) is not int or dim < 0 for dim in dims):
        raise FormatError("its descr has a subarray with a bad shape")
    return prod(dims)
