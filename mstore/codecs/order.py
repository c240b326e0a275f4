"""Orders of numbers, by exponents or magnitudes, and which of them to code together."""

import numpy as np
import numpy.typing as npt

from mstore.codecs.scratch import Scratch

SMALLEST_GROUP = 4096
"""Numbers in a group, at least: for fewer the tables of Huffman's code cost more than they save."""

MAGNITUDE_GROUP = 16384
"""Numbers in a group, where they are ordered by magnitude; the last group may have fewer."""

LAST_KEY = 255

UNORDERED, BY_EXPONENT, BY_MAGNITUDE, DECAYED = 0, 1, 2, 4
"""The orders of differences, as payloads name them; in the last one they stand as they do."""

ORDERS = frozenset({UNORDERED, BY_EXPONENT, BY_MAGNITUDE, DECAYED})

_PLACE_BITS = 24
LONGEST_ORDER = 1 << _PLACE_BITS
"""Numbers that an order can have."""

Keys = npt.NDArray[np.uint8]
Places = npt.NDArray[np.intp]


class Order:
    """The places of some numbers in the order of their keys; equal keys stay as they stand.

    `places` (n,) tells for each number in that order where it stands. Shares scratch memory with
    the orders made before by the same `Sorter`.
    """

    def __init__(self, pairs: npt.NDArray[np.uint32], places: Places, unsorted: int) -> None:
        """`pairs` (n,) are keys with places, sorted; `unsorted` is all of them, xored, before.

        `places` (n,) is memory for those.
        """
        self.places = places
        self._pairs = pairs
        self._unsorted = unsorted
        self._derive()

    def renew(self, keys: Keys) -> bool:
        """Derive places and ends again; False if this is not the order of these `keys` (n,).

        It is one if the pairs ascend, and hold all places and the same keys: exclusive ors tell
        of what a fault of memory changed. Costs a sixth of making it again.
        """
        self._derive()
        of_keys = int(np.bitwise_xor.reduce(keys, initial=0))
        return self._unsorted >> _PLACE_BITS == of_keys and _is_sorted(self._pairs, self._unsorted)

    def _derive(self) -> None:
        bounds = np.arange(1, LAST_KEY + 1, dtype=np.uint32) << np.uint32(_PLACE_BITS)
        np.bitwise_and(self._pairs, LONGEST_ORDER - 1, out=self.places)
        ends = np.searchsorted(self._pairs, bounds)
        self._ends: list[int] = [*ends.tolist(), len(self._pairs)]

    def end(self, key: int) -> int:
        """How many numbers have this key or a smaller one."""
        return self._ends[key]

    def groups(self) -> list[int]:
        """The last key of each group that is worth coding apart, ascending; the last is LAST_KEY.

        Each key is a group; one of fewer than SMALLEST_GROUP numbers is joined with those after
        it, and the last ones with the group before them.
        """
        bounds: list[int] = []
        start = 0
        for key, end in enumerate(self._ends):
            if end - start >= SMALLEST_GROUP:
                bounds.append(key)
                start = end
        return [*bounds[:-1], LAST_KEY]


class Sorter:
    """Makes orders. One thread at a time."""

    def __init__(self) -> None:
        self._scratch = Scratch(), Scratch()
        self._numbers = np.empty(0, np.uint32)

    def order(self, keys: Keys) -> Order:
        """The order of numbers by their `keys` (n,), n at most LONGEST_ORDER.

        numpy sorts integers of 32 bits in vector registers, in half the time of its stable
        argsort of bytes: so each key is sorted together with its place.
        """
        count = len(keys)
        if len(self._numbers) < count:
            self._numbers = np.arange(count, dtype=np.uint32)
        pairs = self._scratch[0].array(count, np.dtype(np.uint32))
        np.left_shift(keys, _PLACE_BITS, out=pairs, dtype=np.uint32)
        np.bitwise_or(pairs, self._numbers[:count], out=pairs)
        unsorted = int(np.bitwise_xor.reduce(pairs))
        pairs.sort()
        return Order(pairs, self._scratch[1].array(count, np.dtype(np.intp)), unsorted)


class MagnitudeOrder:
    """As `Order`, of numbers by magnitudes of 32 bits."""

    def __init__(self, pairs: npt.NDArray[np.uint64], places: Places, unsorted: int) -> None:
        """As `Order`; in the pairs the places are the lower 32 bits."""
        self.places = places
        self._pairs = pairs
        self._unsorted = unsorted
        self._derive()

    def renew(self, keys: npt.NDArray[np.unsignedinteger]) -> bool:
        """As `Order.renew`."""
        self._derive()
        of_keys = int(np.bitwise_xor.reduce(keys, initial=0))
        return self._unsorted >> 32 == of_keys and _is_sorted(self._pairs, self._unsorted)

    def _derive(self) -> None:
        np.bitwise_and(self._pairs, np.uint64(0xFFFFFFFF), out=self.places, casting="unsafe")


class MagnitudeSorter:
    """Makes orders by magnitude. One thread at a time."""

    def __init__(self) -> None:
        self._scratch = Scratch(), Scratch()
        self._numbers = np.empty(0, np.uint64)

    def order(self, magnitudes: npt.NDArray[np.unsignedinteger]) -> MagnitudeOrder:
        """The order of numbers by their `magnitudes` (n,), each below 2**32; n < 2**32."""
        count = len(magnitudes)
        if len(self._numbers) < count:
            self._numbers = np.arange(count, dtype=np.uint64)
        pairs = self._scratch[0].array(count, np.dtype(np.uint64))
        np.left_shift(magnitudes, 32, out=pairs, dtype=np.uint64)
        np.bitwise_or(pairs, self._numbers[:count], out=pairs)
        unsorted = int(np.bitwise_xor.reduce(pairs))
        pairs.sort()
        return MagnitudeOrder(pairs, self._scratch[1].array(count, np.dtype(np.intp)), unsorted)


def _is_sorted(pairs: npt.NDArray[np.unsignedinteger], unsorted: int) -> bool:
    """Whether the pairs ascend, and are those of which this is the exclusive or."""
    return bool((pairs[1:] > pairs[:-1]).all()) and int(np.bitwise_xor.reduce(pairs)) == unsorted
