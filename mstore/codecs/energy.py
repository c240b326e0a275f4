"""The energy of a chunk: the sum of squares of its elements.

It is stored beside each chunk, so that the norm of a tensor, and of the chunks that two versions
have in common, is known without reading them. Nothing here calls BLAS, which would start threads
of its own, or needs ml_dtypes, which every commit would wait for.
"""

import math
from collections.abc import Iterator
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from mstore.dtypes import DType

_BLOCK = 1 << 16
_EXACT_FROM = 1e-25
_FLOAT32_MAX = float(np.finfo(np.float32).max)

# Read as a float32, the shifted bits of a float16 are too small by the difference of the biases
# of the exponents. An exponent of all ones (infinite, not a number) then gives the limit or more.
_HALF_SCALE = np.float32(2.0 ** (127 - 15))
_HALF_LIMIT = 65536.0

# Bits of the mantissa and bias of the exponent, by the OCP specification of 8-bit floats (OFP8)
# and, for "fnuz", by arXiv:2206.02915.
_FLOAT8 = {
    "float8_e4m3fn": (3, 7),
    "float8_e5m2": (2, 15),
    "float8_e4m3fnuz": (3, 8),
    "float8_e5m2fnuz": (2, 16),
}


def sum_of_squares(raw: memoryview, dtype: DType | None) -> float:
    """The sum of |x|² over the elements x of `raw`, to about a millionth of itself.

    NaN when it is not a finite float32 (the form in which it is stored), when `raw` is not whole
    elements, and for opaque bytes and types smaller than a byte. For any number of threads.
    """
    if dtype is None or dtype.bits < 8 or len(raw) % dtype.itemsize:
        return math.nan
    stored = np.dtype(f"{'>' if dtype.big_endian else '<'}u{dtype.word}")
    # Copies only where the byte order is not this machine's.
    words = np.frombuffer(raw, stored).astype(stored.newbyteorder("="), copy=False)
    with np.errstate(all="ignore"):
        if dtype.numpy.startswith("float8"):
            total = _float8_energy(words, dtype.numpy)
        elif dtype.numpy == "float16":
            total = _half_energy(words)
        elif dtype.numpy == "bfloat16":
            total = _bfloat16_energy(words)
        elif dtype.numpy in ("float32", "complex64"):
            total = _float32_energy(words.view(np.float32))
        else:
            total = _energy(words.view(np.float64 if dtype.family == "complex" else dtype.numpy))
    return total if total <= _FLOAT32_MAX else math.nan


def _energy(values: npt.NDArray[Any]) -> float:
    """Of any type that numpy converts to float64 quickly."""
    scratch = np.empty(min(len(values), _BLOCK), np.float64)
    total = 0.0
    for block in _blocks(values):
        wide = scratch[: len(block)]
        np.copyto(wide, block)
        np.multiply(wide, wide, out=wide)
        total += float(np.add.reduce(wide))
    return total


def _float32_energy(values: npt.NDArray[Any]) -> float:
    """Of float32 without a copy; `einsum` sums in several lanes and does not call BLAS.

    Squares that are no normal float32 any more lose digits, which shows only in a tiny sum.
    """
    total = math.fsum(float(np.einsum("i,i->", block, block)) for block in _blocks(values))
    return total if total >= _EXACT_FROM else _energy(values)


def _bfloat16_energy(words: npt.NDArray[Any]) -> float:
    """Of bfloat16. `einsum` would be faster, but less exact with such coarse numbers."""
    total = 0.0
    for values in _widened(words):
        np.multiply(values, values, out=values)
        total += float(np.add.reduce(values))
    return total if total >= _EXACT_FROM else sum(map(_energy, _widened(words)), 0.0)


def _widened(words: npt.NDArray[Any]) -> Iterator[npt.NDArray[np.float32]]:
    """Runs of bfloat16 as float32, whose upper halves they are; all in the same memory."""
    scratch = np.empty(min(len(words), _BLOCK), np.uint32)
    for block in _blocks(words):
        wide = scratch[: len(block)]
        np.left_shift(block, 16, out=wide, dtype=np.uint32)
        yield wide.view(np.float32)


def _half_energy(words: npt.NDArray[Any]) -> float:
    """Of float16 by its bits, since numpy's own conversion runs at 1.6 GB/s.

    In float32 the square of a float16 neither overflows nor underflows.
    """
    size = min(len(words), _BLOCK)
    magnitudes, scratch = np.empty(size, np.uint16), np.empty(size, np.uint32)
    total = 0.0
    for block in _blocks(words):
        bits, wide = magnitudes[: len(block)], scratch[: len(block)]
        np.bitwise_and(block, 0x7FFF, out=bits)
        np.left_shift(bits, 13, out=wide, dtype=np.uint32)
        values = wide.view(np.float32)
        np.multiply(values, _HALF_SCALE, out=values)
        if values.max() >= _HALF_LIMIT:
            return math.nan
        np.multiply(values, values, out=values)
        total += float(np.add.reduce(values))
    return total


def _blocks(values: npt.NDArray[Any]) -> Iterator[npt.NDArray[Any]]:
    """Runs of `values` whose scratch stays in the second level of cache."""
    return (values[start : start + _BLOCK] for start in range(0, len(values), _BLOCK))


def _float8_energy(words: npt.NDArray[Any], numpy_name: str) -> float:
    counts = np.bincount(words, minlength=256)
    # Values that do not occur must not count: some of them are NaN or infinite.
    present = counts > 0
    return float(np.add.reduce(counts[present] * _float8_squares(numpy_name)[present]))


@cache
def _float8_squares(numpy_name: str) -> npt.NDArray[np.float64]:
    """The squares of all 256 values of a type of one byte; NaN for those that are not finite."""
    bits = np.arange(256)
    if numpy_name == "float8_e8m0fnu":
        # An exponent and nothing else.
        return np.where(bits == 0xFF, np.nan, np.ldexp(1.0, 2 * (bits - 127)))
    mantissa_bits, bias = _FLOAT8[numpy_name]
    magnitude = bits & 0x7F
    exponent, mantissa = np.divmod(magnitude, 1 << mantissa_bits)
    # Subnormal numbers have the exponent of the smallest normal ones, and no leading one.
    significand = mantissa + (exponent > 0) * (1 << mantissa_bits)
    values = np.ldexp(significand * 1.0, np.maximum(exponent, 1) - bias - mantissa_bits)
    if numpy_name.endswith("fnuz"):
        special = bits == 0x80
    elif numpy_name.endswith("fn"):
        special = magnitude == 0x7F
    else:
        special = magnitude >= 0x7F >> mantissa_bits << mantissa_bits
    return np.where(special, np.nan, np.square(values))
