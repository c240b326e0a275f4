"""Python values -> nodes of a structure; the grammar is in `mstore.structure`."""

import base64
import json
import math
import struct
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Set
from contextlib import contextmanager
from dataclasses import is_dataclass
from pathlib import PurePath
from typing import Any

import numpy as np
import numpy.typing as npt

from mstore.carriers import Node, describe_dtype, to_carrier
from mstore.errors import InvalidInputError, LimitExceededError
from mstore.foreign_arrays import to_numpy
from mstore.formats.safetensors import METADATA_KEY
from mstore.numpy_dtypes import Array
from mstore.structure_read import KEY_TYPES, MAX_DEPTH

MAX_NODES = 2_000_000
"""Most values in one structure, so that shared lists inside lists cannot multiply without end."""

_BARE_NAME = "array"
_MAX_NAME = 1000  # longer names are cut; the structure knows the place anyway
_MANY_NUMBERS = 64
_LONG_TEXT = 1024


class Flattener:
    """Turns values into nodes and collects the arrays among them by name."""

    def __init__(self) -> None:
        self.arrays: dict[str, Array] = {}
        self._path: list[object] = []
        self._open: set[int] = set()
        self._suffixes: dict[str, int] = {}
        self._nodes = 0

    def node(self, value: object) -> Node:
        """The node of `value`, which stands at the current path."""
        self._nodes += 1
        if self._nodes > MAX_NODES:
            raise LimitExceededError(
                f"there are more than {MAX_NODES} values",
                hint="put long lists of numbers into arrays",
            )
        kind = type(value)
        encode = _PLAIN.get(kind)
        if encode is not None:
            return encode(value)
        if kind in (str, bytes, bytearray):
            return self._blob_node(value)  # type: ignore[arg-type]
        if kind in (list, tuple):
            return self._sequence_node(value)  # type: ignore[arg-type]
        if kind in (dict, OrderedDict):
            return self._mapping_node(value)  # type: ignore[arg-type]
        if kind in (set, frozenset):
            return self._set_node(value)  # type: ignore[arg-type]
        if kind is np.ndarray and value.dtype == np.dtype(object):  # type: ignore[attr-defined]
            return self._objects_node(value)  # type: ignore[arg-type]
        try:
            return self._scalar_node(value) if isinstance(value, np.generic) else self._array(value)
        except InvalidInputError as error:
            raise InvalidInputError(f"{self._where()}: {error.message}", hint=error.hint) from error

    def _blob_node(self, value: str | bytes | bytearray) -> Node:
        kind = type(value).__name__
        raw = value.encode("utf-8", "surrogatepass") if isinstance(value, str) else value
        if len(raw) > _LONG_TEXT:
            return ["blob", kind, self._keep(np.frombuffer(raw, np.uint8))]
        if isinstance(value, str) and _is_unicode(value):
            return value
        return [kind, base64.b64encode(raw).decode()]

    def _sequence_node(self, values: list[object] | tuple[object, ...]) -> Node:
        kind = type(values).__name__
        numbers = _as_numbers(values)
        if numbers is not None:
            return ["numbers", kind, self._keep(numbers)]
        nodes: list[Node] = [kind]
        with self._inside(values):
            for index, value in enumerate(values):
                self._path[-1] = index
                nodes.append(self.node(value))
        return nodes

    def _mapping_node(self, mapping: Mapping[object, object]) -> Node:
        pairs: list[tuple[Node, Node]] = []
        with self._inside(mapping):
            for key, value in mapping.items():
                self._path[-1] = key
                self._check_key(key)
                pairs.append((self.node(key), self.node(value)))
        if type(mapping) is dict and all(isinstance(key, str) for key, _ in pairs):
            return dict(pairs)  # type: ignore[arg-type]
        kind = "dict" if type(mapping) is dict else "ordered"
        return [kind, *(node for pair in pairs for node in pair)]

    def _set_node(self, values: Set[object]) -> Node:
        nodes: list[Node] = []
        with self._inside(values):
            for value in values:
                self._path[-1] = value
                self._check_key(value)
                nodes.append(self.node(value))
        # Equal sets may be walked in different orders.
        return [type(values).__name__, *sorted(nodes, key=json.dumps)]

    def _objects_node(self, array: npt.NDArray[np.object_]) -> Node:
        nodes: list[Node] = ["objects", list(array.shape)]
        with self._inside(array):
            for index, value in enumerate(array.ravel().tolist()):
                self._path[-1] = index
                nodes.append(self.node(value))
        return nodes

    def _check_key(self, key: object) -> None:
        if type(key) is tuple:
            for item in key:
                self._check_key(item)
        elif type(key) not in KEY_TYPES:
            raise InvalidInputError(
                f"{self._where()}: a {type(key).__qualname__} cannot be kept as a key or in a set",
                hint="use str, numbers, bytes, None or tuples of them",
            )

    def _scalar_node(self, value: np.generic) -> Node:
        if type(value) is np.str_:
            # Not str(…), which drops trailing zero characters.
            return ["str_", self._blob_node(str.__str__(value))]
        if type(value) is np.bytes_:
            return ["bytes_", base64.b64encode(bytes(value)).decode()]
        if type(value) is not value.dtype.type:
            raise _refusal(value)
        dtype = describe_dtype(value.dtype)
        return ["scalar", dtype, base64.b64encode(value.tobytes()).decode()]

    def _array(self, value: object) -> Node:
        array = to_numpy(value)
        if array is None:
            raise _refusal(value)
        dtype = describe_dtype(array.dtype)
        carrier = to_carrier(array)
        name = self._keep(carrier)
        fortran = array.ndim > 1 and array.flags.f_contiguous and not array.flags.c_contiguous
        plain = carrier.dtype == array.dtype
        if plain and not fortran:
            return ["array", name]
        return ["array", name, None if plain else dtype, "F" if fortran else "C"]

    def _keep(self, array: Array) -> str:
        """Put an array into the file, under a name made of the current path."""
        name = wanted = ".".join(map(_label, self._path))[:_MAX_NAME] if self._path else _BARE_NAME
        while name in self.arrays or name == METADATA_KEY:
            self._suffixes[wanted] = self._suffixes.get(wanted, 1) + 1
            name = f"{wanted}#{self._suffixes[wanted]}"
        self.arrays[name] = array
        return name

    @contextmanager
    def _inside(self, container: object) -> Iterator[None]:
        """Walk through a container; its items set the last part of the path."""
        if id(container) in self._open:
            raise InvalidInputError(f"{self._where()} contains itself", hint="remove the cycle")
        if len(self._open) == MAX_DEPTH:
            raise InvalidInputError(
                f"{self._where()} is nested deeper than {MAX_DEPTH} levels", hint="flatten it"
            )
        self._open.add(id(container))
        self._path.append(None)
        yield
        self._path.pop()
        self._open.remove(id(container))

    def _where(self) -> str:
        parts = [json.dumps(key) if type(key) is str else ascii(key)[:80] for key in self._path]
        shown = parts if len(parts) <= 10 else [*parts[:5], "…", *parts[-5:]]
        return "model" + "".join(f"[{part}]" for part in shown)


def _int_node(value: int) -> Node:
    return value if -(2**63) <= value < 2**64 else ["int", f"{value:x}"]


def _float_node(value: float) -> Node:
    return value if math.isfinite(value) else ["float", _bits(value)]


def _complex_node(value: complex) -> Node:
    return ["complex", _bits(value.real), _bits(value.imag)]


_PLAIN: dict[type, Callable[[Any], Node]] = {
    type(None): lambda value: value,
    bool: lambda value: value,
    int: _int_node,
    float: _float_node,
    complex: _complex_node,
}


def _bits(value: float) -> str:
    return struct.pack(">d", value).hex()


def _as_numbers(values: list[object] | tuple[object, ...]) -> Array | None:
    """Many float, or many int of 64 bits, as an array; None for other items."""
    if len(values) < _MANY_NUMBERS:
        return None
    kinds = set(map(type, values))
    if kinds == {float}:
        return np.array(values, np.float64)
    if kinds == {int}:
        try:
            return np.array(values, np.int64)
        except OverflowError:
            return None
    return None


def _is_unicode(text: str) -> bool:
    """Whether `text` has no lone surrogates, which UTF-8 cannot hold."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _label(key: object) -> str:
    """A key or index as part of a tensor's name."""
    text = key if isinstance(key, str) else str(key)
    return text.encode("utf-8", "backslashreplace").decode()


def _refusal(value: object) -> InvalidInputError:
    """Why `value` cannot be stored, and what to do instead."""
    kind = type(value)
    if isinstance(value, type):
        hint = "commit values, not classes"
    elif hasattr(kind, "state_dict"):
        hint = "commit its state_dict()"
    elif isinstance(value, tuple) and hasattr(kind, "_asdict"):
        hint = "commit its _asdict()"
    elif is_dataclass(value):
        hint = "commit dataclasses.asdict(…) of it"
    elif hasattr(kind, "tocsr"):
        hint = "commit its data, indices, indptr and shape"
    elif isinstance(value, PurePath):
        hint = "commit str(…) of it"
    elif isinstance(value, dict | list | tuple | set | str | bytes | int | float | complex):
        plain = next(base for base in kind.__mro__ if base.__module__ == "builtins")
        hint = f"commit it as a plain {plain.__name__}"
    else:
        hint = "commit its arrays and plain values in a dict"
    return InvalidInputError(f"a {kind.__qualname__} would not come back equal", hint=hint)
