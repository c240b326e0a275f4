"""Memory that is used again for every chunk, since fresh pages cost more than the work on them."""

from typing import Any

import numpy as np
import numpy.typing as npt


class Scratch:
    """One run of bytes that grows to the largest size asked for. One thread at a time."""

    def __init__(self) -> None:
        self._bytes = np.empty(0, np.uint8)

    def array(self, length: int, dtype: np.dtype[Any]) -> npt.NDArray[Any]:
        """`length` elements of any content; they share memory with all arrays given before."""
        size = length * dtype.itemsize
        if size > len(self._bytes):
            self._bytes = np.empty(size, np.uint8)
        return self._bytes[:size].view(dtype)
