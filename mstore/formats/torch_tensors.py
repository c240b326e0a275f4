"""How a pickle of PyTorch says what a tensor is: a storage by its key, an offset, a size, strides.

A tensor is pickled as a call of one of torch's own functions with a storage and the rest; a storage
as the persistent id ('storage', class, key, location, elements), in files from before torch 1.6
with the part of the storage that is meant as one more. The calls are known by their names and never
made. Sources: torch/_utils.py, torch/_tensor.py, torch/storage.py and torch/serialization.py of
PyTorch 0.4 to 2.13.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Literal, TypeGuard

from mstore.dtypes import BY_NAME, DType
from mstore.errors import FormatError, LimitExceededError
from mstore.formats.base import MAX_DIMS, quote
from mstore.formats.pickle_paths import Path, join
from mstore.formats.pickle_values import Call, Dict, Global, Persistent

_METADATA = {
    "_rebuild_tensor": None,
    "_rebuild_tensor_v2": 6,
    "_rebuild_tensor_v3": 7,
    "_rebuild_qtensor": None,
}
"""The functions that make a tensor from a storage, and which argument says what else it is."""

_STORAGES = ("torch", "torch.cuda", "torch.storage")
_UNTYPED = ("UntypedStorage", "_UntypedStorage")
DTYPES = {dtype.numpy: dtype for dtype in BY_NAME.values() if not dtype.big_endian}
DTYPES["float4_e2m1fn_x2"] = BY_NAME["f4"]  # two in each byte
"""Element types by the names that torch has for them, without `torch.`."""

_STAND_INS = {
    "complex32": (BY_NAME["f16"], 2),  # the real and the imaginary part
    "bits16": (BY_NAME["u16"], 1),
    **dict.fromkeys(("bits8", "bits4x2", "bits2x4", "bits1x8"), (BY_NAME["u8"], 1)),
}
"""Types that have no `DType`: the one whose numbers they are made of, and how many make one."""

_QUANTISED = {"qint8": BY_NAME["i8"], "quint8": BY_NAME["u8"], "qint32": BY_NAME["i32"]}
_STORAGE_TYPES = {
    f"{name}Storage": (kind, _QUANTISED.get(kind, DTYPES.get(kind)))
    for name, kind in [
        *[("Double", "float64"), ("Float", "float32"), ("Half", "float16")],
        *[("Long", "int64"), ("Int", "int32"), ("Short", "int16"), ("Char", "int8")],
        *[("Byte", "uint8"), ("Bool", "bool"), ("BFloat16", "bfloat16")],
        *[("ComplexDouble", "complex128"), ("ComplexFloat", "complex64")],
        *[("QInt8", "qint8"), ("QUInt8", "quint8"), ("QInt32", "qint32")],
        *[("QUInt4x2", "quint4x2"), ("QUInt2x4", "quint2x4")],  # several in each byte
    ]
}


@dataclass(frozen=True, slots=True)
class Storage:
    """A run of bytes by its key; `nbytes` is None where the type of its elements is unknown.

    `kind` is torch's name of the type, or the name of the class where that says nothing of it.
    What is meant starts at byte `start`.
    """

    key: str
    kind: str
    dtype: DType | None
    nbytes: int | None
    start: int = 0


@dataclass(frozen=True, slots=True)
class Use:
    """A tensor: the elements of a storage from `offset` on, `strides` apart, all counted in it.

    `dtype` is None where no `DType` is like the tensor's own type, called `kind`. `exact` tells
    that the elements are the stored numbers, and not the negative or conjugate of them.
    """

    path: Path | None
    storage: Storage
    dtype: DType | None
    kind: str
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    exact: bool = True

    @property
    def stands_for(self) -> str:
        """The type's name where the numbers stand for others; else empty."""
        name = self.kind.removeprefix("torch.")
        return name if name in _QUANTISED or name in _STAND_INS else ""

    def order_of_all(self, count: int) -> Literal["C", "F"] | None:
        """The order in which it covers a storage of `count` elements; None if it does not."""
        if self.offset or prod(self.shape) != count:
            return None
        if count == 0 or _dense(self.shape[::-1], self.strides[::-1]):
            return "C"
        return "F" if _dense(self.shape, self.strides) else None

    @property
    def reach(self) -> int:
        """Elements from where the storage starts to the end of the last that is viewed."""
        if 0 in self.shape:
            return 0
        steps = zip(self.shape, self.strides, strict=True)
        return 1 + self.offset + sum((size - 1) * stride for size, stride in steps)


def is_tensor(function: str | None) -> bool:
    """Whether torch's function of this name makes a tensor from a storage."""
    return function in _METADATA


def storage_of(value: object) -> Storage | None:
    """The storage of a persistent id; None if the id is not of that kind.

    Raises FormatError for one that torch would not write.
    """
    identifier = value.identifier if isinstance(value, Persistent) else None
    if not isinstance(identifier, tuple) or identifier[:1] != ("storage",):
        return None
    if len(identifier) not in (5, 6):
        raise FormatError("it names a storage in an unknown way")
    _, kind, key, _, count = identifier[:5]
    if not isinstance(kind, Global) or not isinstance(key, str) or not _is_size(count):
        raise FormatError("it names a storage in an unknown way")
    known = _STORAGE_TYPES.get(kind.name) if kind.module in _STORAGES else None
    part = _start_of_part(identifier[5]) if len(identifier) == 6 else 0
    if known is not None:
        name, dtype = known
        size = dtype.itemsize if dtype else 1
        return Storage(key, name, dtype, size * count, size * part)
    if kind.module in _STORAGES and kind.name in _UNTYPED:
        return Storage(key, str(kind), None, count, part)
    return Storage(key, str(kind), None, None)


def _start_of_part(part: object) -> int:
    """The element that a part of a storage starts at; it is written as (key, start, elements)."""
    if part is None:
        return 0
    if not isinstance(part, tuple) or len(part) != 3 or not _are_sizes(part[1:]):
        raise FormatError("it names a part of a storage in an unknown way")
    start: int = part[1]
    return start


def whole_storage(path: Path | None, storage: Storage) -> Use:
    """A storage by itself: as a tensor of one axis where the type of its elements is known."""
    if storage.nbytes is None:
        return Use(path, storage, None, storage.kind, 0, (), ())
    dtype = storage.dtype or BY_NAME["u8"]
    count = storage.nbytes // dtype.itemsize
    return Use(path, storage, dtype, storage.kind, 0, (count,), (1,))


def read_tensor(
    call: Call, path: Path | None, function: str, storages: Mapping[int, Storage] | None = None
) -> Use:
    """What a call of torch's `function` makes. Raises FormatError, LimitExceededError if none.

    `storages` are those that other calls load, by the ids of the calls.
    """
    arguments = call.arguments
    storage = None
    if len(arguments) >= 4:
        storage = (storages or {}).get(id(arguments[0])) or storage_of(arguments[0])
    if storage is None:
        raise FormatError(f"its tensor {quote(join(path))} has no storage")
    offset, size, strides = arguments[1:4]
    # A size is pickled as a tuple, but by itself it is an object of a class of its own.
    if isinstance(size, Call) and str(size.function) == "torch.Size" and len(size.arguments) == 1:
        (size,) = size.arguments
    for numbers in (size, strides):
        if isinstance(numbers, tuple) and len(numbers) > MAX_DIMS:
            raise LimitExceededError(
                f"its tensor {quote(join(path))} has {len(numbers)} dimensions"
            )
    if not (_is_size(offset) and _are_sizes(size) and _are_sizes(strides)):
        raise FormatError(f"the shape of its tensor {quote(join(path))} is malformed")
    if len(size) != len(strides):
        raise FormatError(f"its tensor {quote(join(path))} has {len(strides)} strides")
    dtype, kind = storage.dtype, storage.kind
    if function == "_rebuild_tensor_v3":  # the only one that says the type
        kind = str(arguments[6]) if len(arguments) > 6 else "no type"
        dtype, parts = _STAND_INS.get(name := kind.removeprefix("torch."), (DTYPES.get(name), 1))
        if parts > 1:
            offset *= parts
            size, strides = (*size, parts), (*(parts * stride for stride in strides), 1)
    at = _METADATA[function]
    metadata = arguments[at] if at is not None and len(arguments) > at else None
    exact = not (isinstance(metadata, Dict) and metadata.pairs)
    return Use(path, storage, dtype, kind, offset, size, strides, exact)


def _is_size(value: object) -> TypeGuard[int]:
    return type(value) is int and value >= 0  # a bool is an int, but no size


def _are_sizes(values: object) -> TypeGuard[tuple[int, ...]]:
    return isinstance(values, tuple) and all(map(_is_size, values))


def _dense(sizes: tuple[int, ...], strides: tuple[int, ...]) -> bool:
    """Whether elements lie without gaps, those along the first dimension next to each other."""
    step = 1
    for size, stride in zip(sizes, strides, strict=True):
        if size != 1 and stride != step:
            return False
        step *= size
    return True
