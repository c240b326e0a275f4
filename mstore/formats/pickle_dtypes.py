"""Types of numpy's elements, as pickles describe them.

A type is pickled as a call of `numpy.dtype` with a short code (`f4`) or a class of `ml_dtypes`, and
a state that has the byte order. Source: `arraydescr_reduce` in numpy/_core/src/multiarray/
descriptor.c, from numpy 1.0 to 2.4.
"""

import re
from dataclasses import dataclass, field

from mstore.dtypes import BY_NAME, DType
from mstore.formats.pickle_values import Call, Global

_CODE = re.compile(r"([<>|=]?)([a-zA-Z])([0-9]{1,9})")
_KINDS = {"u": "u", "i": "i", "f": "f", "c": "c"}
_SIZED = "VSUa"  # records, bytes and text
_TEXTS_AND_DATES = "SUamM"
_OBJECTS = 1  # the flag of a type that has references to objects in it
# numpy has the narrower ones of ml_dtypes one to a byte, not packed as a `DType` is.
_OF_ML_DTYPES = {t.numpy: t for t in BY_NAME.values() if t.bits >= 8 and not t.big_endian}


@dataclass(frozen=True, slots=True)
class ElementType:
    """What one element of an array is: `itemsize` bytes, or an object.

    `dtype` is None where no `DType` is like it, `itemsize` where it is not known. `unknown` is the
    name of a type that is not understood; objects, text and dates are, although they are no
    numbers. `state` is that of what may be records, see `mstore.formats.pickle_records`.
    """

    dtype: DType | None
    itemsize: int | None
    objects: bool = False
    unknown: str = ""
    state: tuple[object, ...] = field(default=(), repr=False)

    @property
    def is_record(self) -> bool:
        """Whether it has fields."""
        return self.state[4:5] not in ((), (None,))


UNKNOWN = ElementType(None, None, unknown="?")
"""A type of which nothing is understood."""


def element_type(value: object) -> ElementType:
    """What a pickled type of numpy says; `UNKNOWN` for anything else."""
    if not isinstance(value, Call) or not value.arguments:
        return UNKNOWN
    if str(value.function) != "numpy.dtype":
        return UNKNOWN
    code = value.arguments[0]
    state = value.states[-1] if value.states else ()
    state = state if isinstance(state, tuple) else ()
    if not all(isinstance(part, int) for part in state[5:8]):
        return UNKNOWN
    if isinstance(code, Global) and code.module.startswith("ml_dtypes"):
        if (dtype := _OF_ML_DTYPES.get(code.name)) is None:
            return ElementType(None, None, unknown=code.name)
        return ElementType(_in_order(dtype, state), dtype.itemsize)
    match = _CODE.fullmatch(code) if isinstance(code, str) else None
    if match is None:
        return UNKNOWN
    order, kind, digits = match.groups()
    size = int(digits)
    if kind == "O" or _flags(state) & _OBJECTS:
        return ElementType(None, size, objects=True)
    name = "bool" if (kind, size) == ("b", 1) else f"{_KINDS.get(kind)}{8 * size}"
    dtype = _in_order(BY_NAME.get(name), state or (3, order))
    size *= 4 if kind == "U" else 1
    if kind in _SIZED and state:  # whose state has the size once more, which counts
        size = state[5] if len(state) > 7 and type(state[5]) is int else -1
    if size < 0:
        return UNKNOWN
    unknown = "" if dtype or kind in _TEXTS_AND_DATES else kind + digits
    return ElementType(dtype, size, unknown=unknown, state=state if kind == "V" else ())


def _in_order(dtype: DType | None, state: tuple[object, ...]) -> DType | None:
    """The type in the byte order of a state, the second of it."""
    if dtype is None or state[1:2] != (">",):
        return dtype
    return BY_NAME.get(f">{dtype.name}", dtype)


def _flags(state: tuple[object, ...]) -> int:
    flags = state[7] if len(state) > 7 else 0
    return flags if isinstance(flags, int) else 0
