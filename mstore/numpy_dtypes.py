"""Element types as numpy knows them: `DType` <-> `numpy.dtype`, and bytes <-> arrays."""

import sys
from collections.abc import Sequence
from typing import Literal

import ml_dtypes
import numpy as np
import numpy.typing as npt

from mstore.dtypes import BY_NAME, DType
from mstore.errors import FormatError
from mstore.ids import Buffer
from mstore.layout import Order

Array = npt.NDArray[np.generic]
"""An array of any element type."""

NumpyDType = np.dtype[np.generic]
"""Any numpy element type."""

ML_DTYPES: dict[str, NumpyDType] = {
    name: np.dtype(getattr(ml_dtypes, name))
    for name in (
        *("bfloat16", "float8_e3m4", "float8_e4m3", "float8_e4m3b11fnuz", "float8_e4m3fn"),
        *("float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz", "float8_e8m0fnu"),
        *("float4_e2m1fn", "float6_e2m3fn", "float6_e3m2fn", "int2", "int4", "uint2", "uint4"),
    )
}
"""The types of ml_dtypes by their names; numpy's own type strings do not tell them apart."""

# numpy marks a type as native by "=", and is faster and more able with such types.
_LITTLE: Literal["=", "<"] = "=" if sys.byteorder == "little" else "<"
_NUMPY: dict[DType, NumpyDType] = {
    dtype: (ML_DTYPES.get(dtype.numpy) or np.dtype(dtype.numpy)).newbyteorder(
        ">" if dtype.big_endian else _LITTLE
    )
    for dtype in BY_NAME.values()
}
# Types below one byte are packed in files but take a byte per element in numpy: not the same bytes.
_DTYPES = {numpy: dtype for dtype, numpy in _NUMPY.items() if dtype.bits >= 8}


def numpy_dtype(dtype: DType) -> NumpyDType:
    """The numpy type of elements of `dtype`, byte order included.

    Elements of fewer than 8 bits are packed in files and take one byte each in an array; so does
    `array_from_bytes` give them.
    """
    return _NUMPY[dtype]


def dtype_of(dtype: NumpyDType) -> DType | None:
    """The element type whose bytes are those of arrays of the numpy type; None if there is none."""
    return _DTYPES.get(dtype)


def little_endian(dtype: NumpyDType) -> NumpyDType:
    """The little-endian twin of a numpy type."""
    return dtype.newbyteorder(_LITTLE)


def array_from_bytes(data: Buffer, dtype: DType, shape: Sequence[int], order: Order = "C") -> Array:
    """The array of `shape` whose elements, as they lie in a file, are `data`.

    A view of `data` (read-only where it is), except for packed types and big-endian bfloat16,
    which numpy cannot hold as they lie and which are converted. Packed elements begin at the low
    bits of the first byte, as in PyTorch's `float4_e2m1fn_x2`. Raises FormatError if the number
    of bytes does not fit the shape.
    """
    raw = np.frombuffer(data, np.uint8)
    if raw.size != dtype.nbytes(shape):
        raise FormatError(f"{raw.size} bytes are no tensor {dtype}{list(shape)}")
    target = _NUMPY[dtype]
    if dtype.bits < 8:
        bits = np.unpackbits(raw, bitorder="little").reshape(-1, dtype.bits)
        raw = np.packbits(bits, axis=-1, bitorder="little").reshape(-1)
    elif dtype.big_endian and dtype.numpy in ML_DTYPES:
        raw = np.ascontiguousarray(raw.reshape(-1, dtype.itemsize)[:, ::-1]).reshape(-1)
        target = ML_DTYPES[dtype.numpy]
    return reinterpret(raw, target, shape, order)


def reinterpret(raw: Array, dtype: NumpyDType, shape: Sequence[int], order: Order = "C") -> Array:
    """A view of the C-contiguous array `raw` as other elements of the same total size."""
    return np.ndarray(tuple(shape), dtype, buffer=bytes_of(raw), order=order)


def bytes_of(array: Array) -> memoryview:
    """The bytes of a C-contiguous array of any type without objects, not copied."""
    if array.nbytes == 0:
        return memoryview(b"")
    # mypy sees numpy arrays as buffers only from Python 3.12 on; `data` is the same view.
    return array.reshape(-1).view(np.uint8).data
