"""Tensors compared by their values, however their files hold them.

Both are read in one order and little-endian, box by box, so that memory is bounded. This is for
pairs whose chunks do not tell what differs: views, other orders of elements or bytes.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from math import prod

from blake3 import blake3

from mstore.errors import FormatError, InvalidInputError
from mstore.ids import Id
from mstore.ops.compare import Numbers, Sums, compare
from mstore.ops.rowmajor import Lying, common_order, parts, plain_type
from mstore.ops.sides import Place, Side
from mstore.threads import default_threads

_ROOM = 64 << 20
"""Bytes of one side that all threads together hold while comparing."""

_BLOCK = 1 << 20
"""Elements compared at a time; a multiple of 8, so that packed types stay on whole bytes."""


def compare_values(before: Lying, after: Lying, room: int = _ROOM) -> Numbers:
    """The numbers of two tensors of equally many elements, paired in row-major order.

    Raises CorruptDataError and what else reading them raises. Memory: some 20 MiB, and where they
    lie in two orders, `room` bytes for each.
    """
    old, new = plain_type(before.tensor.dtype), plain_type(after.tensor.dtype)
    alike = before.tensor.shape == after.tensor.shape
    order = common_order(before, after, room) if alike else None
    ones = _blocks(parts(before, order), _BLOCK * old.bits // 8)
    others = _blocks(parts(after, order), _BLOCK * new.bits // 8)
    total = Sums()
    for one, other in zip(ones, others, strict=True):
        total += compare(one, other, old, new)
    return Numbers(prod(after.tensor.shape), total)


def measure_values(
    before: Side,
    after: Side,
    pairs: Sequence[tuple[Place, Place]],
    *,
    threads: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> list[Numbers | None]:
    """The numbers of each pair, as `compare_values` tells them; `progress` as for `measure`.

    None for a pair one of which cannot be read, since its file holds something else than it says.
    """
    threads = max(1, min(threads or default_threads(), len(pairs)))

    def work(pair: tuple[Place, Place]) -> Numbers | None:
        with suppress(FormatError, InvalidInputError):
            return compare_values(before.lying(pair[0]), after.lying(pair[1]), _ROOM // threads)
        return None

    found = []
    with ThreadPoolExecutor(threads, "mstore-diff") as pool:
        for pair, numbers in zip(pairs, pool.map(work, pairs), strict=True):
            found.append(numbers)
            if progress is not None:
                progress(sum(place.tensor.nbytes for place in pair))
    return found


def digest(side: Side, place: Place) -> Id | None:
    """A hash of the values: equal for equal values of one type and shape, however they lie.

    None for a tensor that cannot be read, since its file holds something else than it says.
    """
    found = blake3()
    try:
        for part in parts(side.lying(place)):
            found.update(part)
    except (FormatError, InvalidInputError):
        return None
    return found.digest()


def _blocks(found: Iterator[memoryview], size: int) -> Iterator[memoryview]:
    """The same bytes in blocks of `size`, the last of which may be shorter."""
    rest = bytearray()
    for part in found:
        at = 0
        if rest:
            at = min(size - len(rest), len(part))
            rest += part[:at]
            if len(rest) < size:
                continue
            yield memoryview(rest)
            rest = bytearray()
        while len(part) - at >= size:
            yield part[at : at + size]
            at += size
        rest += part[at:]
    if rest:
        yield memoryview(rest)
