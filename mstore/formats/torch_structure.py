"""The tensors in a pickle of `torch.save`, as it describes them: views of numbered storages.

A tensor is pickled as a call of one of torch's own functions with a storage, an offset, a size and
strides; a storage as the persistent id ('storage', class, key, location, elements). The calls are
known by their names and never made. Sources: torch/_utils.py, torch/_tensor.py and
torch/serialization.py of PyTorch 1.6 to 2.13.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import Literal, TypeGuard

from mstore.dtypes import BY_NAME, DType
from mstore.errors import FormatError, LimitExceededError
from mstore.formats.base import MAX_DIMS, quote
from mstore.formats.pickle_values import (
    CONTAINERS,
    SAME,
    Call,
    Dict,
    Global,
    Pair,
    Persistent,
    children,
)

MAX_DEPTH = 256
"""Deepest nesting of values; models are nested about 20 deep."""

MAX_NAME = 4096
"""Most characters of a tensor's name."""

Path = tuple["Path | None", object]
"""Where a value is: the path of what holds it, if that has one, and its own key there."""

_MODULES = ("torch._utils", "torch._tensor", "torch.tensor")
_TENSOR = ("_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_tensor_v3")
_PARAMETER = ("_rebuild_parameter", "_rebuild_parameter_with_state")
_WITH_TYPE = ("_rebuild_from_type", "_rebuild_from_type_v2")  # function, type, its arguments, state
_STORAGES = ("torch", "torch.cuda", "torch.storage")
_UNTYPED = ("UntypedStorage", "_UntypedStorage")
_STORAGE_DTYPES = {
    f"{name}Storage": BY_NAME[dtype]
    for name, dtype in [
        *[("Double", "f64"), ("Float", "f32"), ("Half", "f16"), ("BFloat16", "bf16")],
        *[("Long", "i64"), ("Int", "i32"), ("Short", "i16"), ("Char", "i8"), ("Byte", "u8")],
        *[("Bool", "bool"), ("ComplexDouble", "c128"), ("ComplexFloat", "c64")],
    ]
}
_DTYPES = {dtype.numpy: dtype for dtype in BY_NAME.values() if not dtype.big_endian}
_DTYPES["float4_e2m1fn_x2"] = BY_NAME["f4"]  # two in each byte


@dataclass(frozen=True, slots=True)
class Storage:
    """A run of bytes by its key; `nbytes` is None where the type of its elements is unknown."""

    key: str
    kind: str
    dtype: DType | None
    nbytes: int | None


@dataclass(frozen=True, slots=True)
class View:
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
    exact: bool

    def order_of_all(self, count: int) -> Literal["C", "F"] | None:
        """The order in which the view covers a storage of `count` elements; None if it does not."""
        if not self.exact or self.offset or prod(self.shape) != count:
            return None
        if count == 0 or _dense(self.shape[::-1], self.strides[::-1]):
            return "C"
        return "F" if _dense(self.shape, self.strides) else None

    @property
    def reach(self) -> int:
        """Elements from the start of the storage to the end of the last that is viewed."""
        if 0 in self.shape:
            return 0
        steps = zip(self.shape, self.strides, strict=True)
        return 1 + self.offset + sum((size - 1) * stride for size, stride in steps)


@dataclass(frozen=True, slots=True)
class Other:
    """A storage in something that is not understood: in what `maker` makes, or by itself."""

    path: Path | None
    storage: Storage
    maker: str | None


def find_tensors(root: object) -> Iterator[View | Other]:
    """The tensors in a pickle's value and storages elsewhere in it, in the order of the structure.

    What is in several places is found once, at the first. Raises FormatError for a tensor or a
    storage that is malformed, LimitExceededError for values nested too deeply.
    """
    seen: dict[int, object] = {}  # holds the values, so that none can take the id of another
    # What is left of each value that holds the next, where it is, and what would make it.
    stack: list[tuple[Iterator[Pair], Path | None, str | None]] = [
        (iter([(SAME, root)]), None, None)
    ]
    while stack:
        inner, path, maker = stack[-1]
        found = next(inner, None)
        if found is None:
            stack.pop()
            continue
        key, value = found
        if id(value) in seen or not isinstance(value, CONTAINERS):
            continue
        seen[id(value)] = value
        path = path if key is SAME else (path, key)
        if isinstance(value, Persistent) and (storage := _storage(value)):
            yield Other(path, storage, maker)
            continue
        inner = children(value)
        if isinstance(value, Call):
            maker = str(value.function) if isinstance(value.function, Global) else None
            name = _own_function(value.function)
            if name is not None and name in _TENSOR:
                yield _view(value, path, name)
            inner = _inside(value, name)
        if len(stack) > MAX_DEPTH:
            raise LimitExceededError(f"its values are nested deeper than {MAX_DEPTH}")
        stack.append((inner, path, maker))


def join(path: Path | None) -> str:
    """The keys of a path, with dots between; raises LimitExceededError if it is too long.

    Keys may have dots in them, so two paths may be joined to the same name.
    """
    labels: list[str] = []
    length = 0
    while path is not None:
        path, key = path
        labels.append(_label(key))
        length += len(labels[-1]) + 1
        if length > MAX_NAME:
            raise LimitExceededError(
                f"a tensor in it has a name of more than {MAX_NAME} characters"
            )
    return ".".join(reversed(labels))


def _label(key: object) -> str:
    if isinstance(key, str):
        # Lone surrogates are no text that could be stored.
        return key[: MAX_NAME + 1].encode("utf-8", "backslashreplace").decode()
    if isinstance(key, tuple):
        return ",".join("?" if isinstance(part, tuple) else _label(part) for part in key[:16])
    return str(key) if isinstance(key, int | float | Global | None) else "?"


def _inside(call: Call, name: str | None) -> Iterator[tuple[object, object]]:
    """What else is in a call: what torch's own functions are given counts as the tensor itself.

    Of shared arguments only the first few are looked at here, or many calls would take too long.
    """
    if name in _WITH_TYPE and len(call.arguments) == 4:
        function, _, arguments, state = call.arguments
        if isinstance(arguments, tuple) and _own_function(function) not in _WITH_TYPE:
            yield SAME, Call(function, arguments)
        else:  # one such call in another is none of torch's, and many would take too long
            yield SAME, arguments
        yield SAME, state
    elif name in _PARAMETER or name in _TENSOR:
        for argument in call.arguments[4 if name in _TENSOR else 0 : 8]:
            yield SAME, argument
        for state in call.states:
            yield SAME, state
    else:
        # Tensors of other kinds are mostly made from their storage, and so called as it is.
        for argument in call.arguments[:1]:
            if isinstance(argument, Persistent):
                yield SAME, argument
        yield from children(call)


def _own_function(function: object) -> str | None:
    """The name of a function of torch's that makes tensors."""
    if isinstance(function, Global) and function.module in _MODULES:
        return function.name
    return None


def _storage(value: object) -> Storage | None:
    """The storage of a persistent id; None if the id is not of that kind."""
    identifier = value.identifier if isinstance(value, Persistent) else None
    if not isinstance(identifier, tuple) or identifier[:1] != ("storage",):
        return None
    if len(identifier) != 5:
        raise FormatError("it names a storage in an unknown way")
    _, kind, key, _, count = identifier
    if not isinstance(kind, Global) or not isinstance(key, str) or not _is_size(count):
        raise FormatError("it names a storage in an unknown way")
    if kind.module not in _STORAGES:
        return Storage(key, str(kind), None, None)
    if kind.name in _UNTYPED:
        return Storage(key, str(kind), None, count)
    dtype = _STORAGE_DTYPES.get(kind.name)
    return Storage(key, str(kind), dtype, dtype.itemsize * count if dtype else None)


def _view(call: Call, path: Path | None, name: str) -> View:
    arguments = call.arguments
    storage = _storage(arguments[0]) if len(arguments) >= 4 else None
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
    if name == "_rebuild_tensor_v3":  # the only one that says the type
        kind = str(arguments[6]) if len(arguments) > 6 else "no type"
        dtype = _DTYPES.get(kind.removeprefix("torch."))
    metadata = arguments[-1]
    exact = not (isinstance(metadata, Dict) and metadata.pairs)
    return View(path, storage, dtype, kind, offset, size, strides, exact)


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
