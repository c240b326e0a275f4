"""What a good file is to the corpus, and how the structures of Python are flattened to names."""

import copyreg
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from mstore.numpy_dtypes import dtype_of

Array = npt.NDArray[np.generic]
Arrays = dict[str, Array]

LIST_OF_FLOATS = 16
"""Numbers from which on a plain list of floats counts as a tensor."""


@dataclass(frozen=True, slots=True)
class Case:
    """A good file at `path` of the corpus, which is to be recognised as `format`.

    `load` reads it with its own library: every array by the name that mstore should give it. Arrays
    whose type is no `DType` (strings, records, objects) may be among them. `told` is part of what
    a commit says of it; empty where everything in it is understood.
    """

    path: str
    format: str
    load: Callable[[], Arrays]
    told: str = ""

    def tensors(self) -> Arrays:
        """The arrays that have a type of mstore's."""
        return {name: array for name, array in self.load().items() if is_tensor(array)}


Writer = Callable[[Path], Iterator[Case]]
"""Writes files into a new folder, and says of each what it is; paths start at that folder."""


def is_tensor(array: Array) -> bool:
    """Whether the elements are of a type that mstore has."""
    return dtype_of(native(array).dtype) is not None


def native(array: Array) -> Array:
    """The same elements in this machine's byte order; bits of NaN stay as they are."""
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def with_fields(arrays: Arrays) -> Arrays:
    """The same, but of records their fields, and of bytes without a type unsigned numbers."""
    found: Arrays = {}
    for name, array in arrays.items():
        if array.dtype.names:
            inner = {f"{name}.{one}" if name else one: array[one] for one in array.dtype.names}
            found |= with_fields(inner)
        elif array.dtype.kind == "V" and array.dtype.itemsize in (1, 2, 4, 8):
            found[name] = array.view(f"u{array.dtype.itemsize}")
        else:
            found[name] = array
    return found


def flat(value: object, unpack: Callable[[object], object] = lambda one: one) -> Arrays:
    """Every array in nested containers and objects, by its keys and attributes joined with dots.

    `unpack` turns arrays of other libraries into those of numpy. A list of floats counts as an
    array. Of two with one name the later gets `#2`.
    """
    found: Arrays = {}
    for path, array in _arrays(value, (), unpack, []):
        name, number = ".".join(path), 1
        while name in found:
            number += 1
            name = f"{'.'.join(path)}#{number}"
        found[name] = array
    return found


def _arrays(
    value: object,
    path: tuple[str, ...],
    unpack: Callable[[object], object],
    above: list[object],
) -> Iterator[tuple[tuple[str, ...], Array]]:
    seen, value = value, unpack(value)
    if isinstance(value, np.ndarray):
        yield path, value
        if seen is value:
            return
        value = getattr(seen, "__dict__", {})  # tensors of torch may have attributes
    if is_list_of_floats(value):
        yield path, np.array(value)
        return
    if any(value is one for one in above):
        return
    for key, inner in members(value):
        yield from _arrays(inner, (*path, key), unpack, [*above, value])


def is_list_of_floats(value: object) -> bool:
    """Whether a value is a list of nothing but floats, and of enough of them."""
    return (
        isinstance(value, list)
        and len(value) >= LIST_OF_FLOATS
        and all(type(item) is float for item in value)
    )


def members(value: object) -> Iterator[tuple[str, object]]:
    """What a container or an object holds, by name: of objects, what they are pickled as."""
    if isinstance(value, Mapping):
        yield from ((label(key), inner) for key, inner in value.items())
    elif isinstance(value, list | tuple):
        yield from ((str(number), inner) for number, inner in enumerate(value))
    elif type(value).__module__ != "builtins" and not isinstance(value, np.generic | np.dtype):
        function, arguments, *rest = value.__reduce_ex__(4)
        if function is not copyreg.__newobj__:  # type: ignore[attr-defined]
            yield from members(arguments)
        state = rest[0] if rest else None
        # Two states are those of a class with slots; others have been seen as well.
        for part in state if isinstance(state, tuple) and len(state) == 2 else (state,):
            yield from members(part)


def label(key: object) -> str:
    """A key of a dictionary in a name."""
    if isinstance(key, type):
        return f"{key.__module__}.{key.__qualname__}"
    return ",".join(map(str, key)) if isinstance(key, tuple) else str(key)


def numbers(*shape: int, dtype: npt.DTypeLike = np.float32, seed: int = 0) -> Array:
    """Random numbers of any type; floats take all kinds of bits, NaNs with payloads among them."""
    dtype = np.dtype(dtype)
    count = int(np.prod(shape)) * dtype.itemsize
    raw = np.random.default_rng([seed, *shape, dtype.itemsize]).integers(0, 256, count, np.uint8)
    if dtype.kind == "b":
        raw &= 1
    return np.ndarray(shape, dtype, buffer=raw.data if count else None)
