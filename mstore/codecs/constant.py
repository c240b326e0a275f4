"""Codec constant (number 2): one unit, repeated.

The payload is the unit, which fills the raw length a whole number of times. An encoder takes one
element as the unit (one byte where the type is opaque); a reader takes any unit that fits.
"""

import numpy as np

from mstore.codecs.base import CONSTANT, Codec
from mstore.dtypes import DType
from mstore.errors import CorruptDataError
from mstore.ids import Buffer


class Constant(Codec):
    """Zeros, ones, padding: chunks of one value."""

    number = CONSTANT
    name = "constant"

    def encode(self, raw: memoryview, dtype: DType | None) -> list[Buffer] | None:
        """The first element, if all others have the same bytes."""
        unit = dtype.itemsize if dtype else 1
        if len(raw) <= unit or len(raw) % unit:
            return None
        # Most chunks leave here: their ends and their middle differ.
        middle = len(raw) // unit // 2 * unit
        if not raw[:unit] == raw[middle : middle + unit] == raw[-unit:]:
            return None
        # All units are the same if and only if each is the same as the next.
        data = np.frombuffer(raw, np.uint8)
        if not np.array_equal(data[unit:], data[:-unit]):
            return None
        return [raw[:unit]]

    def decode(self, payload: memoryview, out: memoryview) -> None:
        """Repeat the unit; raises CorruptDataError when it does not fit a whole number of times."""
        unit = len(payload)
        if not unit or len(out) % unit:
            raise CorruptDataError(f"a unit of {unit} bytes does not fill {len(out)} bytes")
        out[: min(unit, len(out))] = payload[: len(out)]
        filled = unit
        while filled < len(out):
            step = min(filled, len(out) - filled)
            out[filled : filled + step] = out[:step]
            filled += step
