"""flax: the msgpack files of `flax.serialization.to_bytes`, maps in maps with arrays in them.

An array is an extension of type 1, and a number of numpy one of type 3, that holds an array of
three: the shape, the name of the element type, and the elements in row-major order:

    c9 <u32 length> 01   93   92 04 03   a7 'float32'   c4 30 <48 bytes>

Tensors are called by the keys to them with dots between: `params.Dense_0.kernel`. flax cuts arrays
of more than 1 GiB into flat chunks, under the keys `chunks` and `0`, `1` and so on. Each chunk is
a tensor here, called `params.Embed_0.embedding.chunks.0`, as the pieces of the array lie apart.

Source: flax/serialization.py of the flax project.
"""

import re

from mstore.dtypes import BY_NAME, DType
from mstore.errors import FormatError, LimitExceededError
from mstore.formats.base import MAX_DIMS, BytesReader, Format, check_shape, quote
from mstore.formats.msgpack_walk import MAX_DEPTH, Cursor, Extension, Kind, extensions
from mstore.formats.notes import opaque_note
from mstore.formats.shifting import Contents, cover_all
from mstore.layout import ByteReader, Layout, Tensor

MAX_TENSORS = 100_000
"""Most arrays in one file."""

_ARRAYS = 1, 3
_MAX_TYPE = 64  # characters of the name of an element type
_DTYPES: dict[str, DType] = {
    dtype.numpy: dtype
    for dtype in BY_NAME.values()
    if not dtype.big_endian and dtype.bits >= 8  # in memory, the smaller ones take a byte each
}
_IN_BYTES = frozenset(
    f"{family}{rest}"
    for family, rests in {
        "int": ("2", "4"),
        "uint": ("2", "4"),
        "float": ("4_e2m1fn", "6_e2m3fn", "6_e3m2fn", "8_e3m4", "8_e4m3", "8_e4m3b11fnuz"),
    }.items()
    for rest in rests
)
"""Types of one element per byte that have no `DType`, or one that takes less than a byte."""

_TYPE = re.compile(
    r"bool|(u?int|b?float|complex)[0-9]+(_e[0-9]+m[0-9]+[a-z0-9]*)?"
    r"|(str|bytes|void)[0-9]*|(datetime|timedelta)64(\[\w+\])?"
)
"""How the types of numpy and jax are called that flax writes, those that are not known here, too.

Other programs have extensions of the same codes, of three things, too."""


class FlaxFormat(Format):
    """A map of arrays and other maps, in msgpack."""

    name = "flax"

    def sniff(self, head: bytes, reader: ByteReader) -> bool:
        """A map whose first key is text, with an array of flax before anything that is malformed.

        Of the array it is enough how it begins, up to the length of its data. Or maps in maps and
        nothing else, more than may be.
        """
        try:
            cursor = Cursor(BytesReader(head))
            if cursor.head()[0] is not Kind.MAP or cursor.head()[0] is not Kind.TEXT:
                return False
            first = next((e for e in extensions(reader) if e.code in _ARRAYS), None)
            return first is not None and _begins_as_array(Cursor(reader, first.offset))
        except FormatError:
            return False
        except LimitExceededError:
            return _is_endless(Cursor(reader))

    def layout(self, reader: ByteReader) -> Layout:
        """Every array of a known type."""
        return self.examine(reader)[0]

    def examine(self, reader: ByteReader) -> tuple[Layout, str | None]:
        """The layout, and which arrays are of types that are not known."""
        tensors: list[tuple[int, Tensor]] = []
        left: list[tuple[str, str]] = []
        for extension in extensions(reader):
            if extension.code in _ARRAYS:
                if len(tensors) + len(left) == MAX_TENSORS:
                    raise LimitExceededError(f"it has more than {MAX_TENSORS} arrays")
                offset, found = _read_array(reader, extension)
                if isinstance(found, Tensor):
                    tensors.append((offset, found))
                else:
                    left.append((extension.name, f"is of type {quote(found)}"))
        layout = cover_all(self.name, reader.size, [Contents(tuple(tensors))])
        return layout, opaque_note(left, len(tensors) + len(left), "arrays")


def _begins_as_array(cursor: Cursor) -> bool:
    """Whether an extension holds a shape, the name of a type, and bytes for whole elements of it.

    Raises FormatError when it breaks off before the bytes, LimitExceededError for too many axes.
    """
    if cursor.head() != (Kind.ARRAY, 3):
        return False
    kind, count = cursor.head()
    if kind is not Kind.ARRAY:
        return False
    if any(cursor.head()[0] is not Kind.NUMBER for _ in range(count)):
        return False
    kind, length = cursor.head()
    if kind not in (Kind.TEXT, Kind.BYTES) or length > _MAX_TYPE:
        return False
    type_name = cursor.text(length)
    if _TYPE.fullmatch(type_name) is None:
        return False
    try:
        kind, length = cursor.head()
    except FormatError:
        return True
    dtype = _DTYPES.get(type_name)
    whole = dtype is None or length % dtype.itemsize == 0
    return kind in (Kind.TEXT, Kind.BYTES) and whole


def _is_endless(cursor: Cursor) -> bool:
    """Whether there are maps first in maps, by names, until there are too many."""
    try:
        for _ in range(MAX_DEPTH):
            kind, count = cursor.head()
            named, length = cursor.head()
            if (kind, named) != (Kind.MAP, Kind.TEXT) or not count or not cursor.text(length):
                return False
    except (FormatError, LimitExceededError):
        return False
    return True


def _read_array(reader: ByteReader, extension: Extension) -> tuple[int, Tensor | str]:
    """Where the elements of an array lie and what they are, or only the name of an unknown type.

    Raises FormatError when the extension holds something else.
    """
    what = f"its array {quote(extension.name)}"
    cursor = Cursor(reader, extension.offset)
    malformed = FormatError(f"{what} is malformed")
    if cursor.head() != (Kind.ARRAY, 3):
        raise malformed
    kind, count = cursor.head()
    if kind is not Kind.ARRAY:
        raise malformed
    if count > MAX_DIMS:
        raise LimitExceededError(f"{what} has {count} dimensions")
    dims = [cursor.head() for _ in range(count)]
    if any(kind is not Kind.NUMBER for kind, _ in dims):
        raise malformed
    shape = tuple(dim for _, dim in dims)
    kind, length = cursor.head()
    if kind not in (Kind.TEXT, Kind.BYTES) or length > _MAX_TYPE:
        raise malformed
    type_name = cursor.text(length)
    kind, length = cursor.head()
    end = extension.offset + extension.length
    if kind not in (Kind.TEXT, Kind.BYTES) or cursor.at + length != end:
        raise malformed
    dtype = BY_NAME["u8"] if type_name in _IN_BYTES else _DTYPES.get(type_name)
    if dtype is None:
        return cursor.at, type_name
    if check_shape(dtype, shape, what) != length:
        raise FormatError(f"{what} has {length} bytes, but should have {dtype.nbytes(shape)}")
    kind_name = type_name if type_name in _IN_BYTES else ""
    return cursor.at, Tensor(extension.name, dtype, shape, kind=kind_name)
