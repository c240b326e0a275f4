"""Numbers as words: casting them, and integers whose order is theirs.

A delta is taken between words of one type, so a base of another float type is cast first. Words
of floats are mapped to integers in the order of the numbers ("ulps"), so that the difference of
two neighbours is 1 at any magnitude and across zero: IEEE 754 formats order like sign and
magnitude. All of it is defined on bits, so that every machine, in whatever floating-point mode
it is, computes the same.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mstore.dtypes import DType

Words = npt.NDArray[np.unsignedinteger]
"""Unsigned integers of 1, 2, 4 or 8 bytes."""

_MANTISSA = {
    "f16": 10, "bf16": 7, "f32": 23, "f64": 52, "c64": 23, "c128": 52,
    "f8_e4m3": 3, "f8_e5m2": 2, "f8_e4m3fnuz": 3, "f8_e5m2fnuz": 2,
}  # fmt: skip
"""Bits of the mantissa, by element type; other types are integers to a delta."""

_CASTS = frozenset({"f16", "bf16", "f32", "f64"})
_SIGN = np.uint32(1 << 31)


@dataclass(frozen=True, slots=True)
class WordType:
    """How the words of an element type are understood.

    `size` is in bytes; `mantissa` the bits of the mantissa, 0 for integers; `name` that of the
    element type less its byte order.
    """

    name: str
    size: int
    mantissa: int
    big_endian: bool

    @property
    def stored(self) -> "np.dtype[np.unsignedinteger]":
        """The words as they lie in a chunk."""
        return np.dtype(f"{'>' if self.big_endian else '<'}u{self.size}")

    @property
    def native(self) -> "np.dtype[np.unsignedinteger]":
        """The words as this machine computes with them."""
        return np.dtype(f"u{self.size}")


def word_type(dtype: DType) -> WordType:
    """The words that elements of `dtype` are made of; those of a complex number are its parts."""
    name = dtype.name.removeprefix(">")
    return WordType(name, dtype.word, _MANTISSA.get(name, 0), dtype.big_endian)


def comparable(one: WordType, other: WordType) -> bool:
    """Whether words of `other` can be a base for words of `one`."""
    if {one.name, other.name} <= _CASTS:
        return True
    return (one.size, one.mantissa) == (other.size, other.mantissa)


def exponents(words: Words, kind: WordType, out: npt.NDArray[np.uint8]) -> None:
    """The low eight bits of each word's exponent field, or all of it where it has fewer."""
    bits = 8 * kind.size - 1 - kind.mantissa
    np.right_shift(words, kind.mantissa, out=out, casting="unsafe")
    if bits < 8:
        np.bitwise_and(out, (1 << bits) - 1, out=out)


def mantissas(words: Words, kind: WordType, out: npt.NDArray[np.uint8]) -> None:
    """The upper eight bits of each word's mantissa; where it has fewer, zeros follow them."""
    missing = 8 - kind.mantissa
    if missing > 0:
        np.left_shift(words, missing, out=out, casting="unsafe")
    else:
        np.right_shift(words, -missing, out=out, casting="unsafe")


def magnitudes(words: Words, kind: WordType, out: Words) -> None:
    """Each word without its sign; of words of 8 bytes the upper 32 bits of that."""
    bits = 8 * kind.size - 1
    np.bitwise_and(words, (1 << bits) - 1, out=out)
    if bits > 32:
        np.right_shift(out, bits - 32, out=out)


def ulps(words: Words, kind: WordType, out: Words) -> None:
    """Fill `out` with integers of the words' order: magnitude bits of negative floats are flipped.

    Its own inverse, since it leaves the sign bit as it is. `out` is other memory than `words`.
    """
    if not kind.mantissa:
        out[:] = words
        return
    signed = f"i{kind.size}"
    np.right_shift(words.view(signed), 8 * kind.size - 1, out=out.view(signed))
    np.bitwise_and(out, (1 << (8 * kind.size - 1)) - 1, out=out)
    np.bitwise_xor(words, out, out=out)


def zigzag(words: Words, scratch: Words) -> None:
    """Replace two's complement differences 0, -1, 1, -2, … by 0, 1, 2, 3, …"""
    size = words.itemsize
    signed = f"i{size}"
    np.right_shift(words.view(signed), 8 * size - 1, out=scratch.view(signed))
    np.left_shift(words, 1, out=words)
    np.bitwise_xor(words, scratch, out=words)


def unzigzag(words: Words, scratch: Words) -> None:
    """The inverse of `zigzag`."""
    np.bitwise_and(words, 1, out=scratch)
    np.negative(scratch, out=scratch)
    np.right_shift(words, 1, out=words)
    np.bitwise_xor(words, scratch, out=words)


def mirror(differences: Words, against: Words, scratch: Words) -> None:
    """Negate the two's complement differences of words `against` that are negative floats.

    So that what brings a float closer to zero has one sign, whatever the float's. Its own inverse.
    """
    signed = f"i{against.itemsize}"
    np.right_shift(against.view(signed), 8 * against.itemsize - 1, out=scratch.view(signed))
    np.bitwise_xor(differences, scratch, out=differences)
    np.subtract(differences, scratch, out=differences)


def cast(words: Words, source: WordType, target: WordType) -> Words:
    """Words of float type `source` as words of `target`, rounded to nearest even, by way of f32.

    A NaN keeps its sign and the upper bits of its mantissa; where it becomes narrower it is made
    quiet. Returns `words` itself when nothing changes.
    """
    if source.name == target.name or not {source.name, target.name} <= _CASTS:
        return words
    singles = words if source.name == "f32" else _widened(words, source)
    return singles if target.name == "f32" else _narrowed(singles, target)


def _widened(words: Words, source: WordType) -> Words:
    """Words of any float type as those of f32."""
    if source.name == "bf16":
        return np.left_shift(words, 16, dtype=np.uint32)
    if source.name == "f64":
        return _from_double(words)
    singles = words.view(np.float16).astype(np.float32).view(np.uint32)
    special = np.flatnonzero((words & 0x7FFF) > 0x7C00)
    if special.size:
        # Machines differ in whether this conversion makes a signalling NaN quiet.
        nan = words[special].astype(np.uint32)
        singles[special] = (nan & 0x8000) << 16 | 0x7F800000 | (nan & 0x3FF) << 13
    return singles


def _narrowed(singles: Words, target: WordType) -> Words:
    """Words of f32 as those of another float type."""
    if target.name == "f64":
        return _to_double(singles)
    nan = np.flatnonzero((singles & ~_SIGN) > 0x7F800000)
    if target.name == "bf16":
        rounded = singles + np.uint32(0x7FFF) + (singles >> 16 & 1)
        narrow = (rounded >> 16).astype(np.uint16)
        narrow[nan] = (singles[nan] >> 16 | 0x40).astype(np.uint16)
        return narrow
    with np.errstate(all="ignore"):
        narrow = singles.view(np.float32).astype(np.float16).view(np.uint16)
    if nan.size:
        found = singles[nan]
        narrow[nan] = (found >> 16 & 0x8000 | 0x7E00 | found >> 13 & 0x1FF).astype(np.uint16)
    return narrow


def _to_double(singles: Words) -> Words:
    """Words of f32 as those of f64, exactly."""
    with np.errstate(all="ignore"):
        doubles = singles.view(np.float32).astype(np.float64).view(np.uint64)
    magnitudes = singles & ~_SIGN
    odd = np.flatnonzero((magnitudes - np.uint32(1) < 0x7FFFFF) | (magnitudes > 0x7F800000))
    if odd.size:
        # Some modes of the processor take denormals for zeros; and NaNs are as in `_widened`.
        found = magnitudes[odd]
        exact = (found.astype(np.float64) * 2.0**-149).view(np.uint64)
        nan = np.uint64(0x7FF << 52) | (found & 0x7FFFFF).astype(np.uint64) << np.uint64(29)
        sign = (singles[odd] & _SIGN).astype(np.uint64) << np.uint64(32)
        doubles[odd] = np.where(found > 0x7F800000, nan, exact) | sign
    return doubles


def _from_double(doubles: Words) -> Words:
    """Words of f64 as those of f32, rounded to nearest even."""
    magnitudes = doubles & np.uint64((1 << 63) - 1)
    # Added to the bits below the last that is kept, and to that, a carry rounds.
    half = np.uint64((1 << 28) - 1) + (magnitudes >> np.uint64(29) & np.uint64(1))
    rounded = ((magnitudes + half) >> np.uint64(29)) - np.uint64((1023 - 127) << 23)
    singles: Words = np.minimum(rounded, np.uint64(0x7F800000)).astype(np.uint32)
    odd = np.flatnonzero(
        (magnitudes < np.uint64(0x381 << 52)) | (magnitudes > np.uint64(0x7FF << 52))
    )
    if odd.size:
        # What becomes denormal or zero is counted in units of 2**-149, which is exact.
        found = magnitudes[odd]
        units = np.minimum(found, np.uint64(0x381 << 52)).view(np.float64) * 2.0**149
        tiny = np.floor(units).astype(np.uint32)
        rest = units - tiny
        tiny += (rest > 0.5) | ((rest == 0.5) & (tiny & 1 == 1))
        nan = np.uint32(0x7FC00000) | (found >> np.uint64(29) & np.uint64(0x3FFFFF)).astype(
            np.uint32
        )
        singles[odd] = np.where(found > np.uint64(0x7FF << 52), nan, tiny)
    singles |= (doubles >> np.uint64(32)).astype(np.uint32) & _SIGN
    return singles
