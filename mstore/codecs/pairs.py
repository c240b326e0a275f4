"""Two numbers below 16 in a byte, the first in its lower half; a single one at the end alone."""

import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]


def pack_pairs(numbers: Bytes) -> Bytes:
    """The pairs (⌈n / 2⌉,) of `numbers` (n,)."""
    if len(numbers) % 2:
        numbers = np.append(numbers, np.uint8(0))
    wide = numbers.view("<u2")
    pairs: Bytes = (wide | wide >> 4).astype(np.uint8)
    return pairs


def unpack_pairs(pairs: Bytes, count: int) -> Bytes:
    """The inverse of `pack_pairs`, of `count` numbers."""
    wide = pairs.astype("<u2")
    wide |= wide << 4
    wide &= 0x0F0F
    return wide.view(np.uint8)[:count]


def packed_size(count: int) -> int:
    """Bytes of so many numbers."""
    return -(-count // 2)
