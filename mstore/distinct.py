"""Which numbers there are in an array."""

from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

Number = TypeVar("Number", bound=np.number)


def distinct(numbers: NDArray[Number]) -> NDArray[Number]:
    """The different ones of `numbers` (n,), ascending; none of them is a NaN.

    As `np.unique`, which at its first call imports `numpy.ma` (numpy 2.4): 13 ms of every commit.
    """
    ordered = np.sort(numbers)
    first = np.ones(len(ordered), np.bool_)
    np.not_equal(ordered[1:], ordered[:-1], out=first[1:])
    return ordered[first]
