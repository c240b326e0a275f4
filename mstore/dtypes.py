"""The element types of tensors, by the short names used everywhere in mstore.

Nothing here needs numpy; `numpy_dtypes.numpy_dtype` turns a `DType` into an array type.
The names are those of the safetensors format in lower case; a leading `>` marks big-endian
elements, as in numpy.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Literal

from mstore.errors import InvalidInputError

Family = Literal["float", "int", "uint", "bool", "complex"]


@dataclass(frozen=True, slots=True)
class DType:
    """One element type.

    `code` is its number in stored records (1-127, with 128 added when big-endian); `bits` the
    size of one element; `word` the bytes of the unit whose byte planes are worth separating (for
    a complex number, one of its two parts); `numpy` the name of the numpy or ml_dtypes type.
    """

    name: str
    code: int
    family: Family
    bits: int
    word: int
    numpy: str
    big_endian: bool = False

    @property
    def itemsize(self) -> int:
        """Bytes per element; for types smaller than a byte, the bytes of the smallest whole run.

        Four-bit types give 1 (two elements), six-bit types 3 (four elements).
        """
        if self.bits >= 8:
            return self.bits // 8
        return 1 if self.bits == 4 else 3

    def nbytes(self, shape: Sequence[int]) -> int:
        """Bytes of a tensor of `shape`; raises InvalidInputError if that is not a whole number."""
        bits = prod(shape) * self.bits
        if bits % 8:
            raise InvalidInputError(f"a tensor {self.name}{list(shape)} does not fill whole bytes")
        return bits // 8

    def __str__(self) -> str:
        return self.name


_LITTLE = [
    DType("bool", 1, "bool", 8, 1, "bool"),
    DType("u8", 2, "uint", 8, 1, "uint8"),
    DType("i8", 3, "int", 8, 1, "int8"),
    DType("u16", 4, "uint", 16, 2, "uint16"),
    DType("i16", 5, "int", 16, 2, "int16"),
    DType("u32", 6, "uint", 32, 4, "uint32"),
    DType("i32", 7, "int", 32, 4, "int32"),
    DType("u64", 8, "uint", 64, 8, "uint64"),
    DType("i64", 9, "int", 64, 8, "int64"),
    DType("f16", 10, "float", 16, 2, "float16"),
    DType("bf16", 11, "float", 16, 2, "bfloat16"),
    DType("f32", 12, "float", 32, 4, "float32"),
    DType("f64", 13, "float", 64, 8, "float64"),
    DType("c64", 14, "complex", 64, 4, "complex64"),
    DType("c128", 15, "complex", 128, 8, "complex128"),
    DType("f8_e4m3", 16, "float", 8, 1, "float8_e4m3fn"),
    DType("f8_e5m2", 17, "float", 8, 1, "float8_e5m2"),
    DType("f8_e4m3fnuz", 18, "float", 8, 1, "float8_e4m3fnuz"),
    DType("f8_e5m2fnuz", 19, "float", 8, 1, "float8_e5m2fnuz"),
    DType("f8_e8m0", 20, "float", 8, 1, "float8_e8m0fnu"),
    DType("f4", 21, "float", 4, 1, "float4_e2m1fn"),
    DType("f6_e2m3", 22, "float", 6, 1, "float6_e2m3fn"),
    DType("f6_e3m2", 23, "float", 6, 1, "float6_e3m2fn"),
]

_BIG = [
    DType(f">{t.name}", t.code | 128, t.family, t.bits, t.word, t.numpy, big_endian=True)
    for t in _LITTLE
    if t.word > 1
]

BY_NAME: dict[str, DType] = {t.name: t for t in _LITTLE + _BIG}
"""Every element type by its name."""

BY_CODE: dict[int, DType] = {t.code: t for t in _LITTLE + _BIG}
"""Every element type by its number in stored records; 0 stands for opaque bytes."""


def parse_dtype(name: str) -> DType:
    """The element type called `name`; raises InvalidInputError if there is none."""
    try:
        return BY_NAME[name]
    except KeyError:
        raise InvalidInputError(f"unknown element type {name!r}") from None
