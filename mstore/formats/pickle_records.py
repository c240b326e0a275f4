"""Types of records of numpy, as pickles describe them: elements of several fields.

The state of such a type is (version, byte order, array, names, fields, bytes, …), where `fields`
has for each name the field's own type, at which byte of the record it is, and perhaps a title. Of a
field that is itself an array, `array` is (type, shape). See `mstore.formats.pickle_dtypes` for the
types of one number and for the source.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from mstore.dtypes import BY_NAME
from mstore.errors import FormatError
from mstore.formats.base import check_shape, quote
from mstore.formats.pickle_dtypes import ElementType, element_type
from mstore.formats.pickle_paths import Path, join
from mstore.formats.pickle_values import Dict
from mstore.formats.records import RecordField
from mstore.formats.strides import dense_strides

Step = RecordField | str | None
"""A field of numbers, why records are not understood, or None for what only takes its time."""

_BYTES = BY_NAME["u8"]
_MAX_DEPTH = 32
_MALFORMED = "holds malformed records"


@dataclass(frozen=True, slots=True)
class _Place:
    """Where in a record something is; if it is in arrays, in how many and how far apart."""

    path: Path | None = None
    offset: int = 0
    shape: tuple[int, ...] = ()
    strides: tuple[int, ...] = ()
    depth: int = 0


def record_fields(kind: ElementType) -> Iterator[Step]:
    """What records are made of: those fields that are numbers.

    The same type may be in another very often, so whoever asks has to count the steps. Raises
    LimitExceededError for a name that is too long.
    """
    return _fields(kind, _Place())


def _fields(kind: ElementType, place: _Place) -> Iterator[Step]:
    yield None
    array, names, fields = kind.state[2:5] if len(kind.state) > 4 else (None, None, None)
    if kind.dtype is not None:
        yield RecordField(join(place.path), kind.dtype, place.offset, place.shape, place.strides)
    elif place.depth > _MAX_DEPTH or kind.itemsize is None:
        yield _MALFORMED
    elif isinstance(array, tuple):
        yield from _in_array(kind.itemsize, array, place)
    elif isinstance(names, tuple) and isinstance(fields, Dict):
        yield from _in_record(kind.itemsize, names, fields, place)
    elif kind.unknown:
        yield f"holds records with elements of type {quote(kind.unknown)}"


def _in_array(size: int, array: tuple[object, ...], place: _Place) -> Iterator[Step]:
    """Those in a field that is an array."""
    kind, shape = array if len(array) == 2 else (None, None)
    inner, dims = element_type(kind), _dims(shape)
    if dims is None or not _fills(inner, dims, size):
        yield _MALFORMED
        return
    strides = dense_strides(dims, inner.itemsize or 0)
    further = replace(
        place,
        shape=(*place.shape, *dims),
        strides=(*place.strides, *strides),
        depth=place.depth + 1,
    )
    yield from _fields(inner, further)


def _dims(shape: object) -> tuple[int, ...] | None:
    shape = (shape,) if type(shape) is int else shape
    if not isinstance(shape, tuple):
        return None
    dims = tuple(extent for extent in shape if type(extent) is int)
    return dims if len(dims) == len(shape) else None


def _in_record(size: int, names: tuple[object, ...], fields: Dict, place: _Place) -> Iterator[Step]:
    """Those in a record, or in a field that is one."""
    told: dict[str, object] = {}
    for name, said in fields.pairs:
        yield None
        if isinstance(name, str):
            told[name] = said
    for name in names:
        member = _member(told.get(name)) if isinstance(name, str) else None
        if member is None or member[1] + (member[0].itemsize or 0) > size:
            yield _MALFORMED
            return
        inner, offset = member
        further = replace(
            place, path=(place.path, name), offset=place.offset + offset, depth=place.depth + 1
        )
        yield from _fields(inner, further)


def _member(said: object) -> tuple[ElementType, int] | None:
    """The type of a field, and at which byte of its record it is; None if that is malformed."""
    if not isinstance(said, tuple) or len(said) not in (2, 3):
        return None
    offset = said[1]
    return (element_type(said[0]), offset) if type(offset) is int and offset >= 0 else None


def _fills(inner: ElementType, shape: tuple[int, ...], size: int) -> bool:
    """Whether an array of a type and shape takes so many bytes."""
    if inner.itemsize is None:
        return False
    try:
        return check_shape(_BYTES, (*shape, inner.itemsize), "") == size
    except FormatError:
        return False
