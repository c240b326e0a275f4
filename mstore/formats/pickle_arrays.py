"""The arrays in a pickle's value, and what their elements are.

    numpy      a call of `_reconstruct` with a state (version, shape, type, column-major?, bytes),
               or one of `_frombuffer` with (bytes, type, shape, order, order of axes?)
    masked     `_mareconstruct`, whose state has the bytes of the mask, too
    array      a call of `_array_reconstructor` with a code for the type of the elements
    joblib     `mstore.formats.pickle_inline`
    floats     a list or tuple of `MIN_FLOATS` or more, or one of equally long ones of them

Sources: array_reduce and array_setstate in numpy/_core/src/multiarray/methods.c,
numpy/_core/numeric.py, numpy/ma/core.py, and Modules/arraymodule.c of CPython.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeGuard

from mstore.dtypes import BY_NAME, DType
from mstore.formats.pickle_dtypes import UNKNOWN, ElementType, element_type
from mstore.formats.pickle_inline import attributes
from mstore.formats.pickle_values import (
    SAME,
    Call,
    Chars,
    Floats,
    Global,
    Inline,
    OutOfBand,
    Pair,
    Text,
    children,
)

MIN_FLOATS = 16
"""Fewest numbers of a list that counts as an array."""

_MODULES = ("numpy.core.multiarray", "numpy._core.multiarray")
_NUMERIC = ("numpy.core.numeric", "numpy._core.numeric")
_FLOAT = ElementType(BY_NAME["f64"], 8)
_BOOL = ElementType(BY_NAME["bool"], 1)
# Each little-endian, then big-endian but for the first two: the machine formats of array.array.
_OF_ARRAY = ["u8", "i8"] + [
    f"{order}{kind}{bits}"
    for kind, bits in [
        *[("u", 16), ("i", 16), ("u", 32), ("i", 32), ("u", 64), ("i", 64)],
        *[("f", 32), ("f", 64)],
    ]
    for order in ("", ">")
]


@dataclass(frozen=True, slots=True)
class Array:
    """An array of `shape` whose elements are in `content`, row-major or, with `fortran`, not.

    `axes`, if any, is the order of the axes in memory of `shape` as it is there. `content` is the
    place of the elements, or of the opcodes that push them. `why` it is left out is told where its
    place is not known. `held` is how many bytes are written as text there, where that was read.
    """

    kind: ElementType
    shape: tuple[int, ...]
    content: Chars | Floats | None
    fortran: bool = False
    axes: tuple[int, ...] | None = None
    why: str = ""
    held: int | None = None

    @property
    def dtype(self) -> DType | None:
        """The type of the elements, if a `DType` is like it."""
        return self.kind.dtype


Found = list[tuple[object, Array]]


def look(value: object) -> tuple[Found, Iterator[Pair]]:
    """The arrays that a value is by itself, by key, and the values in which to look for others."""
    if isinstance(value, list | tuple):
        floats = _floats(value)
        return ([(SAME, floats)], iter(())) if floats else ([], children(value))
    if isinstance(value, Inline):
        return _inline(value)
    if not isinstance(value, Call) or not isinstance(value.function, Global):
        return [], children(value)
    module, name = value.function.module, value.function.name
    if module in _MODULES and name == "_reconstruct":
        return _with_state(value, masked=False)
    if (module, name) == ("numpy.ma.core", "_mareconstruct"):
        return _with_state(value, masked=True)
    if module in _NUMERIC and name == "_frombuffer":
        return [(SAME, _from_buffer(value.arguments))], iter(())
    if (module, name) == ("array", "_array_reconstructor"):
        return [(SAME, found) for found in _array_array(value.arguments)], iter(())
    return [], children(value)


def _with_state(call: Call, *, masked: bool) -> tuple[Found, Iterator[Pair]]:
    """An array whose state says what it is; and the objects in it, if it is one of objects."""
    state = call.states[-1] if call.states else None
    if not isinstance(state, tuple):
        return [], children(call)
    size = 7 if masked else 5
    # The oldest states have no version before them.
    parts = state[1:] if len(state) == size else state
    if len(parts) != size - 1 or not _is_shape(parts[0]):
        return [], children(call)
    shape, dtype, fortran, content = parts[:4]
    kind = element_type(dtype)
    if isinstance(content, list):  # of objects
        return [], children(content)
    found: Found = [(SAME, _array(kind, shape, content, fortran=bool(fortran)))]
    if not masked:
        return found, iter(())
    found.append(("mask", _array(_BOOL, shape, parts[4], fortran=bool(fortran))))
    return found, iter([("fill_value", parts[5])])


def _from_buffer(arguments: tuple[object, ...]) -> Array:
    if len(arguments) not in (4, 5):
        return _unclear("is made in an unknown way")
    content, dtype, shape, order = arguments[:4]
    kind, axes = element_type(dtype), arguments[4] if len(arguments) == 5 else None
    if type(shape) is int:
        shape = (shape,)
    if not _is_shape(shape):
        return _unclear("has no shape")
    if order == "K" and _is_shape(axes) and sorted(axes) == list(range(len(shape))):
        return _array(kind, shape, content, axes=axes)
    if order not in ("C", "F"):
        return _unclear("has its axes in an unknown order")
    return _array(kind, shape, content, fortran=order == "F")


def _array_array(arguments: tuple[object, ...]) -> Iterator[Array]:
    if len(arguments) != 4 or not isinstance(content := arguments[3], Chars):
        return
    number = arguments[2]
    if type(number) is int and 0 <= number < len(_OF_ARRAY) and content.code == "raw":
        dtype = BY_NAME[_OF_ARRAY[number]]
        count = content.length // dtype.itemsize
        yield _array(ElementType(dtype, dtype.itemsize), (count,), content)


def _inline(value: Inline) -> tuple[Found, Iterator[Pair]]:
    if not isinstance(value.content, Chars):
        return [], children(value)
    said = attributes(value.wrapper)
    shape, fortran = said.get("shape"), said.get("order") == "F"
    if not _is_shape(shape):
        return [], iter(())
    kind = element_type(said.get("dtype"))
    return [(SAME, _array(kind, shape, value.content, fortran=fortran))], iter(())


def _array(
    kind: ElementType,
    shape: tuple[int, ...],
    content: object,
    *,
    fortran: bool = False,
    axes: tuple[int, ...] | None = None,
) -> Array:
    place = place_of(content)
    if place is not None and place.code != "quoted":
        return Array(kind, shape, place, fortran, axes, held=_held(content))
    why = "is not in the file" if isinstance(content, OutOfBand) else "is written in an unknown way"
    return Array(kind, shape, None, why=why)


def _unclear(why: str) -> Array:
    return Array(UNKNOWN, (), None, why=why)


def place_of(content: object) -> Chars | None:
    """Where the bytes are that a value stands for; None if it stands for none."""
    if isinstance(content, Chars):
        return content
    if isinstance(content, Text):  # of Python 2
        return content.chars if content.chars.code in ("raw", "quoted") else None
    if not isinstance(content, Call):
        return None
    name = str(content.function)
    if name in ("__builtin__.bytes", "builtins.bytes") and not content.arguments:
        return Chars("raw", content.at, 0)  # of which there are none
    if name != "_codecs.encode" or len(content.arguments) != 2:
        return None
    text, code = content.arguments
    if code not in ("latin1", "latin-1"):
        return None
    return text.chars if isinstance(text, Text) else text if isinstance(text, Chars) else None


def _held(content: object) -> int | None:
    """How many bytes a text stands for that was read."""
    text = content.arguments[0] if isinstance(content, Call) and content.arguments else None
    return len(text) if isinstance(text, Text) else None


def _floats(members: list[object] | tuple[object, ...]) -> Array | None:
    """Numbers that are all of a list, or all of the lists in a list."""
    single = _only_floats(members)
    if single is not None:
        return Array(_FLOAT, (single.count,), single) if single.count >= MIN_FLOATS else None
    first = _only_floats(members[0]) if members else None
    if first is None:
        return None
    whole = first
    for member in members[1:]:
        row = _only_floats(member)
        joined = whole.joined(row) if row is not None and row.count == first.count else None
        if joined is None:
            return None
        whole = joined
    return Array(_FLOAT, (len(members), first.count), whole) if whole.count >= MIN_FLOATS else None


def _only_floats(value: object) -> Floats | None:
    if isinstance(value, list | tuple) and len(value) == 1 and isinstance(value[0], Floats):
        return value[0]
    return None


def _is_shape(value: object) -> TypeGuard[tuple[int, ...]]:
    # A bool is an int, but no extent.
    return isinstance(value, tuple) and all(type(extent) is int for extent in value)
