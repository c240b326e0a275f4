"""`DType` <-> numpy, and arrays from the bytes of tensors."""

import ml_dtypes
import numpy as np
import pytest

from mstore.dtypes import BY_NAME
from mstore.errors import FormatError
from mstore.numpy_dtypes import array_from_bytes, bytes_of, dtype_of, numpy_dtype


@pytest.mark.parametrize("dtype", BY_NAME.values(), ids=str)
def test_every_type_both_ways(dtype):
    numpy = numpy_dtype(dtype)
    if dtype.bits < 8:
        assert numpy.itemsize == 1
        assert dtype_of(numpy) is None  # one byte for each element is not how they lie in files
    else:
        assert numpy.itemsize == dtype.itemsize
        assert dtype_of(numpy) == dtype
        assert numpy.isnative is not dtype.big_endian


def test_types_that_are_no_tensor_elements():
    for numpy in ("U3", "S1", "M8[s]", "V2", np.longdouble, ml_dtypes.int4, [("a", "f4")]):
        assert dtype_of(np.dtype(numpy)) is None


def test_arrays_are_views():
    data = bytearray(np.arange(6, dtype=">i2").tobytes())
    array = array_from_bytes(data, BY_NAME[">i16"], (3, 2), "F")
    assert array.tolist() == [[0, 3], [1, 4], [2, 5]]
    data[1] = 9
    assert array[0, 0] == 9
    assert not array_from_bytes(bytes(2), BY_NAME["i16"], ()).flags.writeable


def test_packed_elements_start_at_the_low_bits():
    four = array_from_bytes(b"\x21\x0f", BY_NAME["f4"], (2, 2))
    assert four.dtype == ml_dtypes.float4_e2m1fn
    assert four.tolist() == [[0.5, 1.0], [-6.0, 0.0]]
    bits = 1 | 2 << 6 | 33 << 12 | 8 << 18
    six = array_from_bytes(bits.to_bytes(3, "little"), BY_NAME["f6_e2m3"], (4,))
    assert six.dtype == ml_dtypes.float6_e2m3fn
    assert six.view(np.uint8).tolist() == [1, 2, 33, 8]


def test_big_endian_bfloat16_becomes_native():
    array = array_from_bytes(b"\x3f\x80\x40\x00", BY_NAME[">bf16"], (2,))
    assert array.dtype == ml_dtypes.bfloat16
    assert array.tolist() == [1.0, 2.0]


@pytest.mark.parametrize("shape", [(0,), (0, 5), (2, 0, 3)])
def test_empty(shape):
    for dtype in BY_NAME.values():
        assert array_from_bytes(b"", dtype, shape).shape == shape


def test_wrong_number_of_bytes():
    with pytest.raises(FormatError):
        array_from_bytes(bytes(5), BY_NAME["f32"], (1,))


def test_bytes_of_shares_memory():
    array = np.zeros((2, 2), ml_dtypes.bfloat16)
    view = bytes_of(array)
    array[0, 1] = 1
    assert bytes(view) == array.tobytes()
    assert bytes_of(np.array(1.5, ">f4")) == b"\x3f\xc0\0\0"
