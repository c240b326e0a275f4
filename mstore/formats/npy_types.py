"""Types of elements as the headers of npy files give them: `descr`.

    '<f4'                                   byte order, kind, bytes
    [('a', '<f4'), ('b', '<i8', (2, 3))]    a record: name and type of each field, and the shape of
                                            one that is an array; no name for bytes in between

A name may be (title, name). numpy has no name for the types of ml_dtypes: '<f1' is its only one of
kind f and one byte, `float8_e5m2`; of the others just the size is written, as '<V2' for bfloat16,
so that their elements are seen as plain ones of that size. Source: `dtype_to_descr` of
numpy.lib.format.
"""

import re
from collections.abc import Iterator
from math import prod

from mstore.dtypes import BY_NAME, DType
from mstore.errors import FormatError, UnsafeInputError
from mstore.formats.base import quote
from mstore.formats.records import RecordField
from mstore.formats.strides import dense_strides

_TYPE = re.compile(r"([<>|])([a-zA-Z])([0-9]{0,9})(\[[0-9a-zA-Z]*\])?")
_KINDS = {"b": "bool", "u": "u", "i": "i", "f": "f", "c": "c"}
_OTHERS = {"b1": ("bool", ""), "f1": ("f8_e5m2", ""), "V1": ("u8", "V1"), "V2": ("u16", "V2")}
_OPAQUE_KINDS = "biufcmMSUV"
_TEXTS_AND_DATES = "SUmM"


def item_size(descr: object) -> int:
    """Bytes of one element of a descr.

    Raises UnsafeInputError for Python objects, FormatError for what is no descr.
    """
    if isinstance(descr, list):
        return sum(_field_size(field) for field in descr)
    if isinstance(descr, tuple) and len(descr) == 2:  # (type, shape)
        return item_size(descr[0]) * prod(_dims(descr[1]))
    match = _TYPE.fullmatch(descr) if isinstance(descr, str) else None
    if match is None:
        raise FormatError("its descr is not a numpy type")
    kind, size = match[2], int(match[3] or 0)
    if kind == "O":
        raise UnsafeInputError("it holds Python objects, which only unpickling could read")
    if kind not in _OPAQUE_KINDS:
        raise FormatError(f"its descr {quote(match[0])} is not a numpy type")
    return size * (4 if kind == "U" else 1)


def element_type(descr: str) -> tuple[DType, str] | None:
    """The type of a descr that `item_size` has accepted, and its kind; None if it is no `DType`."""
    match = _TYPE.fullmatch(descr)
    if match is None:
        return None
    order, letter, size, _ = match.groups()
    name, kind = _OTHERS.get(f"{letter}{size}") or (f"{_KINDS.get(letter)}{8 * int(size or 0)}", "")
    dtype = BY_NAME.get(name)
    if dtype is None:
        return None
    return BY_NAME.get(f">{name}", dtype) if order == ">" else dtype, kind


def is_text_or_date(descr: str) -> bool:
    """Whether the elements of a descr that `item_size` has accepted are meant to be no numbers."""
    return descr[1] in _TEXTS_AND_DATES


def record_fields(descr: list[object]) -> tuple[RecordField, ...] | str:
    """The fields that are numbers in a record that `item_size` has accepted.

    If one is neither numbers of a known type nor text, a date or a gap: its type instead.
    """
    fields: list[RecordField] = []
    for one in _fields(descr, "", 0, (), ()):
        if isinstance(one, str):
            return one
        fields.append(one)
    return tuple(fields)


def _fields(
    descr: object, name: str, offset: int, shape: tuple[int, ...], strides: tuple[int, ...]
) -> Iterator[RecordField | str]:
    """Those in a field of type `descr`, which is an array if it has a shape."""
    if isinstance(descr, tuple):
        inner, dims = descr[0], _dims(descr[1])
        further = dense_strides(dims, item_size(inner))
        yield from _fields(inner, name, offset, (*shape, *dims), (*strides, *further))
    elif isinstance(descr, list):
        for index, field in enumerate(descr):
            inner = field[1] if len(field) == 2 else field[1:]
            if not _is_gap(field[0], inner):
                called = _field_name(field[0]) or f"f{index}"
                path = f"{name}.{called}" if name else called
                yield from _fields(inner, path, offset, shape, strides)
            offset += item_size(inner)
    elif isinstance(descr, str):
        if (known := element_type(descr)) is not None:
            yield RecordField(name, known[0], offset, shape, strides, known[1])
        elif not is_text_or_date(descr):
            yield descr


def _is_gap(name: object, descr: object) -> bool:
    """Whether a field is what numpy writes for bytes between fields."""
    return not name and isinstance(descr, str) and descr.startswith("|V")


def _field_name(name: object) -> str:
    """The name of a field, which may have a title before it."""
    return str(name[1] if isinstance(name, tuple) else name)


def _field_size(field: object) -> int:
    if not isinstance(field, tuple) or len(field) not in (2, 3):
        raise FormatError("its descr has a field that is not (name, type)")
    pair = isinstance(field[0], tuple) and len(field[0]) == 2
    if not all(isinstance(part, str) for part in (field[0] if pair else field[:1])):
        raise FormatError("its descr has a field without a name")
    return item_size(field[1] if len(field) == 2 else field[1:])


def _dims(shape: object) -> tuple[int, ...]:
    """The shape of an array in an array."""
    dims = (shape,) if type(shape) is int else shape
    if not isinstance(dims, tuple) or any(type(dim) is not int or dim < 0 for dim in dims):
        raise FormatError("its descr has a subarray with a bad shape")
    return dims
