"""npy: numpy's file of one array.

    offset 0   magic 93 'NUMPY', version major, minor
    offset 8   u16 (version 1) or u32 (2, 3), little-endian: length of the header
    then       header: a Python literal {'descr': '<f4', 'fortran_order': False, 'shape': (2, 3)},
               latin-1 (versions 1, 2) or UTF-8 (3)
    then       data

The literal is read by `mstore.formats.literal`, never evaluated. Each field of records is a tensor
of its own, see `mstore.formats.records`: `left`, or in archives `nodes.left`. Arrays of types that
are no `DType` (strings, dates) are valid and stay opaque; arrays of Python objects hold a pickle
and are refused. Source: the format section of numpy.lib.format.
"""

from mstore.dtypes import BY_NAME
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
from mstore.formats.npy_types import element_type, is_text_or_date, item_size, record_fields
from mstore.formats.pickles import PickleFormat
from mstore.formats.records import Records
from mstore.formats.shifting import Contents, cover_all
from mstore.layout import ByteReader, Layout, Order, Tensor, opaque

MAGIC = b"\x93NUMPY"
MAX_HEADER = 10_000
"""Most bytes of a header; numpy reads no longer ones either unless told to."""

MAX_HEADERS = 14_000_000
"""Most bytes of all headers in one archive together, a field of a record counted as `_FIELD`."""

PICKLED = "holds a pickle, which reading it with allow_pickle runs"
"""What there is to say of an array of Python objects."""

_BYTES = BY_NAME["u8"]
_WHAT = "its array"
_USUAL_START = 128  # bytes up to the data of nearly every array
_FIELD = 100  # bytes of a header that take about as long to read as a tensor takes to be made


class Headers:
    """How many bytes of headers may still be read of one file, which may hold many arrays."""

    def __init__(self) -> None:
        self._left = MAX_HEADERS

    def charge(self, size: int) -> None:
        """Raise LimitExceededError when there are no `size` bytes left."""
        self._left -= size
        if self._left < 0:
            raise LimitExceededError(f"its arrays have more than {MAX_HEADERS} bytes of headers")


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
        found = read_array(reader, "", Headers())
        if isinstance(found, str):
            layout = Layout(self.name, reader.size, opaque(reader.size).segments)
            return layout, f"opaque bytes for its array, which {found}" if found else None
        start, array = found
        return cover_all(self.name, reader.size, [contents(array, start)]), None

    def findings(self, reader: ByteReader) -> list[Finding]:
        """An array of Python objects, which is a pickle, and what that does."""
        try:
            read_array(reader, "", Headers())
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


def read_array(
    reader: ByteReader, name: str, headers: Headers
) -> tuple[int, Tensor | Records] | str:
    """Where the array of an npy file starts and what it is, called `name`.

    If its type is no `DType`, a text instead: what is so about it, or nothing if it is text or
    dates, which are no numbers. Raises as `Format.layout` does.
    """
    text, start = _read_header(reader)
    headers.charge(len(text))
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
    size = item_size(descr)
    needed = check_shape(_BYTES, (check_shape(_BYTES, shape, _WHAT), size), _WHAT)
    if needed > reader.size - start:
        raise FormatError(f"{_WHAT} needs {needed} bytes, but {reader.size - start} are there")
    array = _array(descr, name, shape, "F" if fortran and len(shape) > 1 else "C", size)
    if isinstance(array, Records):
        headers.charge(_FIELD * len(array.fields))
    return array if isinstance(array, str) else (start, array)


def _array(
    descr: object, name: str, shape: tuple[int, ...], order: Order, itemsize: int
) -> Tensor | Records | str:
    """The array of a type that `item_size` has accepted; a text as `read_array` says."""
    if isinstance(descr, str):
        if (known := element_type(descr)) is None:
            return "" if is_text_or_date(descr) else f"has elements of type {quote(descr)}"
        dtype, kind = known
        check_shape(dtype, shape, _WHAT)
        return Tensor(name, dtype, shape, order, kind)
    if not isinstance(descr, list):
        return "holds arrays"
    fields = record_fields(descr)
    if isinstance(fields, str):
        return f"holds records with elements of type {quote(fields)}"
    return Records(name, shape, order, itemsize, fields) if fields else ""


def contents(array: Tensor | Records, offset: int) -> Contents:
    """The tensors of an array that starts at `offset` of its file. Raises as `read_array` does."""
    if isinstance(array, Records):
        return array.contents(offset)
    return Contents(((offset, array),))


def _read_header(reader: ByteReader) -> tuple[str, int]:
    """The header's text and the offset of the data."""
    start = reader.read(0, _USUAL_START)
    if not start.startswith(MAGIC):
        raise FormatError("it does not start with the magic of npy")
    version = tuple(start[6:8])
    if version not in ((1, 0), (2, 0), (3, 0)):
        raise FormatError(f"its version {'.'.join(map(str, version))} is unknown")
    at = 10 if version == (1, 0) else 12
    length = int.from_bytes(start[8:at], "little")
    if length > MAX_HEADER:
        raise FormatError(f"its header claims {length} bytes; at most {MAX_HEADER} are read")
    if at + length > len(start):
        start = read_exactly(reader, 0, at + length, "its header")
    raw = start[at : at + length]
    try:
        return raw.decode("utf-8" if version == (3, 0) else "latin-1"), at + length
    except UnicodeDecodeError:
        raise FormatError("its header is not UTF-8") from None
