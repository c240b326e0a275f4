"""The numbers of a change: two runs of elements compared, whatever their types.

Everything is computed in float64, in blocks that stay in the processor's cache, and without BLAS,
which would start threads of its own. Of a complex number the two parts are compared; its size is
its absolute value, so norms are what one expects.
"""

import math
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from mstore.dtypes import DType
from mstore.numpy_dtypes import array_from_bytes, numpy_dtype

Floats = npt.NDArray[np.float64]

_BLOCK = 1 << 16
"""Elements compared at a time; a multiple of 8, so that packed types stay on whole bytes."""


@dataclass(frozen=True, slots=True)
class Sums:
    """What adds up over the parts of a tensor.

    `changed` elements; the sums of squares `before`, `after` and of the `change`; the sum of the
    products of what was and what is; the `largest` absolute change. A pair of elements of which
    one is infinite or not a number counts in none of these but `changed`; such elements are
    counted in `nonfinite_before` and `nonfinite_after`.
    """

    changed: int = 0
    before: float = 0.0
    after: float = 0.0
    change: float = 0.0
    product: float = 0.0
    largest: float = 0.0
    nonfinite_before: int = 0
    nonfinite_after: int = 0

    def __add__(self, other: "Sums") -> "Sums":
        return Sums(
            self.changed + other.changed,
            self.before + other.before,
            self.after + other.after,
            self.change + other.change,
            self.product + other.product,
            max(self.largest, other.largest),
            self.nonfinite_before + other.nonfinite_before,
            self.nonfinite_after + other.nonfinite_after,
        )


@dataclass(frozen=True, slots=True)
class Numbers:
    """How far a tensor of `elements` elements moved, from `sums` over all of it.

    Between elements of one type, changed means that the bits differ (0.0 is not -0.0, a NaN is
    the same as itself); between two types, that the values differ.
    """

    elements: int
    sums: Sums

    def __add__(self, other: "Numbers") -> "Numbers":
        """The numbers of both tensors, as if they were one."""
        return Numbers(self.elements + other.elements, self.sums + other.sums)

    @property
    def changed(self) -> int:
        """Elements that changed."""
        return self.sums.changed

    @property
    def fraction(self) -> float:
        """The part of the elements that changed, 0 to 1."""
        return self.sums.changed / self.elements if self.elements else 0.0

    @property
    def norm_before(self) -> float:
        """The L2 norm of what was."""
        return math.sqrt(self.sums.before)

    @property
    def norm_after(self) -> float:
        """The L2 norm of what is."""
        return math.sqrt(self.sums.after)

    @property
    def norm_change(self) -> float:
        """The L2 norm of the difference."""
        return math.sqrt(self.sums.change)

    @property
    def largest(self) -> float:
        """The largest absolute change of one element."""
        return self.sums.largest

    @property
    def relative(self) -> float | None:
        """The norm of the difference by the norm of what was; None where that is no number.

        0 when nothing moved, even from zero; None when all was zero before, or the squares are
        beyond float64.
        """
        if self.sums.change == 0:
            return 0.0
        if self.sums.before == 0 or not math.isfinite(self.sums.before):
            return None
        return _finite(self.norm_change / self.norm_before)

    @property
    def cosine(self) -> float | None:
        """The cosine of the angle between the two, -1 to 1; None when one of them is zero.

        For complex tensors, of the angle between them as vectors of real parts.
        """
        norms = self.norm_before * self.norm_after
        if norms == 0 or not math.isfinite(norms):
            return None
        cosine = _finite(self.sums.product / norms)
        return None if cosine is None else max(-1.0, min(1.0, cosine))

    @property
    def nonfinite_before(self) -> int:
        """Elements that were infinite or not a number."""
        return self.sums.nonfinite_before

    @property
    def nonfinite_after(self) -> int:
        """Elements that are infinite or not a number."""
        return self.sums.nonfinite_after

    def to_json(self) -> dict[str, object]:
        """Plain values; None for what is no finite number."""
        return {
            "elements": self.elements,
            "changed_elements": self.changed,
            "fraction_changed": self.fraction,
            "norm_before": _finite(self.norm_before),
            "norm_after": _finite(self.norm_after),
            "norm_change": _finite(self.norm_change),
            "relative_change": self.relative,
            "largest_change": _finite(self.largest),
            "cosine": self.cosine,
            "nonfinite_before": self.nonfinite_before,
            "nonfinite_after": self.nonfinite_after,
        }


def compare(before: memoryview, after: memoryview, old: DType, new: DType) -> Sums:
    """The sums over two runs of as many elements, of types `old` and `new`, as they lie in files.

    Raises ValueError when the number of elements differs.
    """
    count = len(before) * 8 // old.bits
    if count != len(after) * 8 // new.bits:
        raise ValueError("the runs to compare have different numbers of elements")
    total = Sums()
    with np.errstate(all="ignore"):
        for start in range(0, count, _BLOCK):
            stop = min(start + _BLOCK, count)
            one = before[start * old.bits // 8 : stop * old.bits // 8]
            other = after[start * new.bits // 8 : stop * new.bits // 8]
            if old == new:
                total += _compare_like(one, other, old)
            else:
                total += _compare_unlike(one, other, old, new)
    return total


def sums_of_same(raw: memoryview, dtype: DType) -> Sums:
    """The sums over elements that are the same before and after."""
    total = Sums()
    count = len(raw) * 8 // dtype.bits
    with np.errstate(all="ignore"):
        for start in range(0, count, _BLOCK):
            stop = min(start + _BLOCK, count)
            total += _measure(
                _widened(raw[start * dtype.bits // 8 : stop * dtype.bits // 8], dtype)
            )
    return total


def _compare_like(before: memoryview, after: memoryview, dtype: DType) -> Sums:
    changed = _count_changed(before, after, dtype)
    one = _widened(before, dtype)
    if changed == 0:
        return _measure(one)
    other = _widened(after, dtype)
    if dtype.bits == 64 and dtype.family in ("int", "uint"):
        return _sums(changed, one, other, _integer_distance(before, after, dtype))
    return _sums(changed, one, other, one - other)


def _compare_unlike(before: memoryview, after: memoryview, old: DType, new: DType) -> Sums:
    one, other = _widened(before, old), _widened(after, new)
    if "complex" in (old.family, new.family):
        one, other = _as_complex(one, old), _as_complex(other, new)
    same = (one == other) | (np.isnan(one) & np.isnan(other))
    changed = len(same) - int(np.count_nonzero(same.all(axis=-1) if same.ndim > 1 else same))
    return _sums(changed, one, other, one - other)


def _measure(values: Floats) -> Sums:
    squares = _product(values, values)
    if math.isfinite(squares):
        return Sums(before=squares, after=squares, product=squares)
    finite = _finite_elements(values)
    bad = len(finite) - int(np.count_nonzero(finite))
    squares = _product(values[finite], values[finite])
    return Sums(
        before=squares, after=squares, product=squares, nonfinite_before=bad, nonfinite_after=bad
    )


def _sums(changed: int, before: Floats, after: Floats, change: Floats) -> Sums:
    """The sums over one block; arrays of shape (n,), or (n, 2) for complex elements."""
    old_bad = new_bad = 0
    if not math.isfinite(_product(before, before) + _product(after, after)):
        finite, also = _finite_elements(before), _finite_elements(after)
        old_bad = len(finite) - int(np.count_nonzero(finite))
        new_bad = len(also) - int(np.count_nonzero(also))
        both = finite & also
        before, after, change = before[both], after[both], change[both]
    return Sums(
        changed,
        before=_product(before, before),
        after=_product(after, after),
        change=_product(change, change),
        product=_product(before, after),
        largest=_largest(change),
        nonfinite_before=old_bad,
        nonfinite_after=new_bad,
    )


def _product(one: Floats, other: Floats) -> float:
    """The scalar product of arrays of any shape. `einsum` is numpy's own loop, not BLAS."""
    return float(np.einsum("i,i->", one.reshape(-1), other.reshape(-1)))


def _largest(values: Floats) -> float:
    if values.ndim > 1:
        values = np.hypot(values[:, 0], values[:, 1])
    return max(float(values.max()), -float(values.min())) if len(values) else 0.0


def _finite_elements(values: Floats) -> npt.NDArray[np.bool_]:
    finite: npt.NDArray[np.bool_] = np.isfinite(values)
    return np.all(finite, axis=-1) if finite.ndim > 1 else finite


def _count_changed(before: memoryview, after: memoryview, dtype: DType) -> int:
    if dtype.bits < 8:
        one, other = _packed(before, dtype), _packed(after, dtype)
    else:
        unit = np.dtype(f"u{min(dtype.itemsize, 8)}")
        one, other = np.frombuffer(before, unit), np.frombuffer(after, unit)
    differs = one != other
    if dtype.itemsize > 8:
        differs = differs.reshape(-1, dtype.itemsize // 8).any(axis=-1)
    return int(np.count_nonzero(differs))


def _integer_distance(before: memoryview, after: memoryview, dtype: DType) -> Floats:
    """|after - before| of 64-bit integers, subtracted before rounding to float64.

    The distance of two int64 always fits in uint64, whose arithmetic wraps around to it.
    """
    one, other = (np.frombuffer(raw, numpy_dtype(dtype)) for raw in (before, after))
    native = numpy_dtype(dtype).newbyteorder("=")
    low, high = (
        function(one, other).astype(native, copy=False).view(np.uint64)
        for function in (np.minimum, np.maximum)
    )
    return (high - low).astype(np.float64)


def _widened(raw: memoryview, dtype: DType) -> Floats:
    """The values of all elements as float64, shape (n,); (n, 2) for complex ones."""
    if dtype.family == "complex":
        order = ">" if dtype.big_endian else "<"
        parts = np.frombuffer(raw, f"{order}f{dtype.word}").reshape(-1, 2)
        return parts.astype(np.float64)
    if dtype.bits < 8:
        return np.take(_values(dtype), _packed(raw, dtype))
    if dtype.bits == 8 and dtype.family in ("float", "bool"):
        return np.take(_values(dtype), np.frombuffer(raw, np.uint8))
    if dtype.numpy == "bfloat16":
        # A bfloat16 is the upper half of a float32.
        words = np.frombuffer(raw, ">u2" if dtype.big_endian else "<u2").astype(np.uint32)
        np.left_shift(words, 16, out=words)
        return words.view(np.float32).astype(np.float64)
    return np.frombuffer(raw, numpy_dtype(dtype)).astype(np.float64)


def _as_complex(values: Floats, dtype: DType) -> Floats:
    return values if dtype.family == "complex" else np.stack((values, np.zeros_like(values)), -1)


def _packed(raw: memoryview, dtype: DType) -> npt.NDArray[np.uint8]:
    """The bits of elements smaller than a byte, one per byte."""
    array: Any = array_from_bytes(raw, dtype, (len(raw) * 8 // dtype.bits,))
    codes: npt.NDArray[np.uint8] = array.view(np.uint8)
    return codes


@cache
def _values(dtype: DType) -> Floats:
    """The values of a type of at most one byte, by its bits: a look-up is the fastest conversion.

    Any byte but zero is a true.
    """
    codes = np.arange(1 << min(dtype.bits, 8), dtype=np.uint8)
    values: Any = codes != 0 if dtype.family == "bool" else codes.view(numpy_dtype(dtype))
    widened: Floats = values.astype(np.float64)
    return widened


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
