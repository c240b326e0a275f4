"""Arrays of types that safetensors lacks, carried by tensors of types it has.

A carrier has the same bits: the little-endian form of big-endian numbers; I64 for dates; F64 with
a last dimension of 2 for complex128; for all the rest U8 with a last dimension of the item size.
The dtype itself is written down as JSON (`describe_dtype`), by the grammar in `mstore.structure`.
"""

import re

import numpy as np

from mstore.errors import FormatError, InvalidInputError, LimitExceededError
from mstore.numpy_dtypes import ML_DTYPES, Array, NumpyDType, dtype_of, little_endian, reinterpret

Node = None | bool | int | float | str | list["Node"] | dict[str, "Node"]
"""A JSON value."""

_MAX_DEPTH = 16
_MAX_FIELDS = 10_000
_ML_NAMES = {dtype: name for name, dtype in ML_DTYPES.items()}
_TYPE = re.compile(
    r"[<>|](?:b1|[iu][1248]|f(?:2|4|8|12|16)|c(?:8|16|24|32)|[SUV][0-9]{1,9}"
    r"|[mM]8(?:\[[0-9]{0,9}(?:Y|M|W|D|h|m|s|ms|us|ns|ps|fs|as)\])?)"
)
_C128 = np.dtype("<c16")


def to_carrier(array: Array) -> Array:
    """A C-contiguous array with the bits of `array` that a safetensors file can hold."""
    element, tail = _carrier_of(array.dtype)
    if _is_swapped(array.dtype):
        array = array.byteswap()
    array = np.asarray(array, order="C")
    if array.dtype == element:
        return array
    return reinterpret(array, element, (*array.shape, *tail))


def from_carrier(carrier: Array, dtype: NumpyDType) -> Array:
    """The array of `dtype` that `to_carrier` made `carrier` of.

    Raises FormatError when `carrier` is not of the type and shape that carries `dtype`.
    """
    element, tail = _carrier_of(dtype)
    shape = carrier.shape[: max(0, carrier.ndim - len(tail))]
    if carrier.dtype != element or carrier.shape != (*shape, *tail):
        raise FormatError(f"{carrier.dtype}{list(carrier.shape)} cannot carry elements of {dtype}")
    array = reinterpret(np.asarray(carrier, order="C"), dtype, shape)
    return array.byteswap() if _is_swapped(dtype) else array


def _carrier_of(dtype: NumpyDType) -> tuple[NumpyDType, tuple[int, ...]]:
    """The element type of the carrier of `dtype`, and the dimensions it has besides the array's."""
    little = little_endian(dtype)
    if little == _C128:
        return np.dtype("<f8"), (2,)
    if dtype_of(little) is not None:
        return little, ()
    if little.kind in "mM":
        return np.dtype("<i8"), ()
    return np.dtype("u1"), (dtype.itemsize,)


def _is_swapped(dtype: NumpyDType) -> bool:
    """Whether elements are big-endian numbers, whose carrier is little-endian."""
    little = little_endian(dtype)
    return dtype != little and (dtype_of(little) is not None or little.kind in "mM")


def describe_dtype(dtype: NumpyDType) -> Node:
    """`dtype` as JSON; raises InvalidInputError for types without a fixed size."""
    if dtype in _ML_NAMES:
        return _ML_NAMES[dtype]
    little = little_endian(dtype)
    if little in _ML_NAMES:
        return f">{_ML_NAMES[little]}"
    if dtype.names is not None:
        return ["struct", dtype.itemsize, dtype.isalignedstruct, *_describe_fields(dtype)]
    if _TYPE.fullmatch(dtype.str) and np.dtype(dtype.str) == dtype:
        return dtype.str
    raise InvalidInputError(
        f"elements of type {dtype} cannot be stored", hint="convert them to a plain numpy type"
    )


def _describe_fields(dtype: NumpyDType) -> list[Node]:
    if dtype.type is not np.void:
        raise InvalidInputError("records are more than their fields", hint="use np.asarray(…)")
    described: list[Node] = []
    for name in dtype.names or ():
        field, offset, *title = dtype.fields[name]  # type: ignore[index]
        if title and not isinstance(title[0], str):
            raise InvalidInputError(f"the field {name!r} has a title that is no str")
        element, shape = field.subdtype or (field, ())
        described.append([name, offset, describe_dtype(element), list(shape), *title])
    return described


def parse_dtype(node: object, depth: int = 0) -> NumpyDType:
    """The numpy type that `describe_dtype` wrote down.

    Raises FormatError for anything it would not have written, LimitExceededError for records of
    unreasonable depth or width.
    """
    try:
        if isinstance(node, str):
            name = node.removeprefix(">")
            if name in ML_DTYPES:
                return ML_DTYPES[name] if name == node else ML_DTYPES[name].newbyteorder(">")
            if _TYPE.fullmatch(node):
                return np.dtype(node)
        elif isinstance(node, list) and len(node) >= 3 and node[0] == "struct":
            return _parse_struct(node, depth + 1)
    except (TypeError, ValueError, OverflowError):
        pass  # numpy's own refusal, told below
    raise FormatError("a structure has an unknown element type")


def _parse_struct(node: list[object], depth: int) -> NumpyDType:
    _, itemsize, aligned, *fields = node
    if depth > _MAX_DEPTH or len(fields) > _MAX_FIELDS:
        raise LimitExceededError("a structure has a record of too many fields")
    names: list[str] = []
    formats: list[object] = []
    offsets: list[int] = []
    titles: list[str | None] = []
    for field in fields:
        match field:
            case [str(name), int(offset), element, [*shape], *title] if _are_dims(shape):
                dtype = parse_dtype(element, depth)
                names.append(name)
                formats.append((dtype, tuple(shape)) if shape else dtype)
                offsets.append(offset)
                titles.append(_title(title))
            case _:
                raise FormatError("a structure has a malformed record type")
    if type(itemsize) is not int or type(aligned) is not bool:
        raise FormatError("a structure has a malformed record type")
    described = {
        "names": names,
        "formats": formats,
        "offsets": offsets,
        "titles": titles,
        "itemsize": itemsize,
    }
    return np.dtype(described, align=aligned)  # type: ignore[call-overload, no-any-return]


def _are_dims(shape: list[object]) -> bool:
    return all(type(dim) is int for dim in shape)


def _title(rest: list[object]) -> str | None:
    match rest:
        case []:
            return None
        case [str(title)]:
            return title
    raise FormatError("a structure has a malformed record type")
