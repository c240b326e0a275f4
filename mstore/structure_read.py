"""Nodes of a structure, which may be hostile, -> Python values; grammar in `mstore.structure`.

Only the types named in the grammar are ever made; nothing is imported, looked up or called by a
name from the file.
"""

import base64
import re
import struct
from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from mstore.carriers import from_carrier, parse_dtype
from mstore.errors import FormatError, LimitExceededError
from mstore.numpy_dtypes import Array, NumpyDType

MAX_DEPTH = 200
"""Deepest nesting; well below Python's own limit of about 1000 calls."""

KEY_TYPES = (str, int, bool, float, complex, bytes, type(None))
"""Types of the keys of a dict; tuples of them are keys too."""

_Mapping = TypeVar("_Mapping", bound=dict[Any, Any])
_BITS = re.compile("[0-9a-f]{16}")
_HEX = re.compile("-?[0-9a-f]+")


class Restorer:
    """Turns nodes into values; each tensor is loaded at most once."""

    def __init__(
        self,
        names: Iterable[str],
        load: Callable[[str], Array],
        convert: Callable[[Array], object] = lambda array: array,
    ) -> None:
        """`convert` makes of each array what is to stand for it in the value."""
        self._unused = set(names)
        self._load = load
        self._convert = convert

    def value(self, node: object, depth: int) -> object:
        """The value of `node`, `depth` containers down."""
        if depth > MAX_DEPTH:
            raise LimitExceededError(f"the structure is nested deeper than {MAX_DEPTH} levels")
        match node:
            case None | bool() | int() | float() | str():
                return node
            case dict():
                return {key: self.value(item, depth + 1) for key, item in node.items()}
            case ["list", *items]:
                return [self.value(item, depth + 1) for item in items]
            case ["tuple", *items]:
                return tuple([self.value(item, depth + 1) for item in items])
            case ["dict", *items]:
                return self._pairs({}, items, depth + 1)
            case ["ordered", *items]:
                return self._pairs(OrderedDict(), items, depth + 1)
            case ["array", str(name)]:
                return self._convert(self._tensor(name))
            case ["array", str(name), dtype, "C" | "F" as order]:
                array = self._tensor(name)
                if dtype is not None:
                    array = from_carrier(array, parse_dtype(dtype))
                return self._convert(np.asfortranarray(array) if order == "F" else array)
            case ["set", *items]:
                return self._set(items, depth + 1)
            case ["frozenset", *items]:
                return frozenset(self._set(items, depth + 1))
            case ["objects", [*shape], *items]:
                return _objects(shape, [self.value(item, depth + 1) for item in items])
            case ["numbers", "list", str(name)]:
                return self._numbers(name)
            case ["numbers", "tuple", str(name)]:
                return tuple(self._numbers(name))
            case ["blob", "str" | "bytes" | "bytearray" as kind, str(name)]:
                return _blob(kind, self._bytes(name))
            case ["str_", item]:
                text = self.value(item, depth + 1)
                if isinstance(text, str):
                    return np.str_(text)
        return _leaf(node)

    def finish(self) -> None:
        """Check that the structure has used every tensor."""
        if self._unused:
            raise FormatError(
                f"the structure does not mention the tensor {min(self._unused)[:80]!a}",
                hint="read the tensors by their names",
            )

    def _pairs(self, mapping: _Mapping, items: list[object], depth: int) -> _Mapping:
        """`mapping` filled with alternating keys and values."""
        if len(items) % 2:
            raise FormatError("the structure has a key without a value")
        for place in range(0, len(items), 2):
            key = self.value(items[place], depth)
            _check_restored_key(key)
            if key in mapping:
                raise FormatError("the structure has a key twice")
            mapping[key] = self.value(items[place + 1], depth)
        return mapping

    def _set(self, items: list[object], depth: int) -> set[object]:
        found = set()
        for item in items:
            value = self.value(item, depth)
            _check_restored_key(value)
            if value in found:
                raise FormatError("the structure has a value twice in a set")
            found.add(value)
        return found

    def _tensor(self, name: str) -> Array:
        try:
            self._unused.remove(name)
        except KeyError:
            raise FormatError(
                f"the structure uses the tensor {name[:80]!a} twice, or it is not there"
            ) from None
        return self._load(name)

    def _numbers(self, name: str) -> list[object]:
        array = self._tensor(name)
        if array.ndim != 1 or array.dtype not in (np.float64, np.int64):
            raise FormatError(f"the tensor {name[:80]!a} is no list of numbers")
        items: list[object] = array.tolist()
        return items

    def _bytes(self, name: str) -> bytes:
        array = self._tensor(name)
        if array.ndim != 1 or array.dtype != np.uint8:
            raise FormatError(f"the tensor {name[:80]!a} is no string of bytes")
        return array.tobytes()


def _objects(shape: list[object], items: list[object]) -> Array:
    """The array of Python objects of that shape."""
    array: npt.NDArray[np.object_] = np.empty(len(items), object)
    for index, item in enumerate(items):
        # One by one: numpy would take a list apart.
        array[index] = item
    dims = [dim for dim in shape if type(dim) is int and dim >= 0]
    try:
        if len(dims) == len(shape):
            return array.reshape(dims)
    except (ValueError, OverflowError):
        pass  # another number of items, told below
    raise FormatError("the structure has an array of objects of another shape")


def _check_restored_key(key: object) -> None:
    for item in key if isinstance(key, tuple) else ():
        _check_restored_key(item)
    if type(key) not in (*KEY_TYPES, tuple):
        raise FormatError("the structure has a key that cannot be one")


def _leaf(node: object) -> object:
    """The value of a node that holds all of it."""
    try:
        match node:
            case ["int", str(text)] if _HEX.fullmatch(text):
                return int(text, 16)
            case ["float", str(bits)]:
                return _float(bits)
            case ["complex", str(real), str(imaginary)]:
                return complex(_float(real), _float(imaginary))
            case ["str" | "bytes" | "bytearray" as kind, str(text)]:
                return _blob(kind, base64.b64decode(text, validate=True))
            case ["bytes_", str(text)]:
                return np.bytes_(base64.b64decode(text, validate=True))
            case ["scalar", described, str(text)]:
                return _scalar(parse_dtype(described), base64.b64decode(text, validate=True))
    except ValueError:
        pass  # bad base64, told below
    raise FormatError("the structure has a malformed value")


def _float(bits: str) -> float:
    if not _BITS.fullmatch(bits):
        raise FormatError("the structure has a malformed number")
    value: float = struct.unpack(">d", bytes.fromhex(bits))[0]
    return value


def _blob(kind: str, raw: bytes) -> str | bytes | bytearray:
    if kind == "str":
        try:
            return raw.decode("utf-8", "surrogatepass")
        except UnicodeDecodeError:
            raise FormatError("the structure has a text that is not UTF-8") from None
    return raw if kind == "bytes" else bytearray(raw)


def _scalar(dtype: NumpyDType, raw: bytes) -> object:
    if len(raw) != dtype.itemsize:
        raise FormatError(f"{len(raw)} bytes are no scalar of type {dtype}")
    # A bytearray, because a record stays a view of its memory and can be changed.
    return np.ndarray((), dtype, buffer=bytearray(raw))[()]
