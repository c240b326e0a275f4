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
from mstore.filebytes import FileBytes, Group, neighbours
from mstore.ids import Id
from mstore.ops.compare import Numbers, Sums, compare
from mstore.ops.rowmajor import Lying, common_order, parts, plain_type
from mstore.ops.sides import Place, Side
from mstore.threads import default_threads

_ROOM = 64 << 20
"""Bytes of one side that all threads together have of tensors in two orders."""

_HOLD = 32 << 20
"""Bytes of one side that all threads together have of what small tensors share."""

_BLOCK = 1 << 18
"""Elements compared at a time; a multiple of 8, so that packed types stay on whole bytes."""


def compare_values(before: Lying, after: Lying, room: int = _ROOM) -> Numbers:
    """The numbers of two tensors of equally many elements, paired in row-major order.

    Raises CorruptDataError and what else reading them raises. Memory: some 20 MiB, and where they
    lie in two orders, `room` bytes for each.
    """
    old, new = plain_type(before.tensor.dtype), plain_type(after.tensor.dtype)
    alike = before.tensor.shape == after.tensor.shape
    order = common_order(before, after, room) if alike else None
    ones = _blocks(parts(before, order, room), _BLOCK * old.bits // 8)
    others = _blocks(parts(after, order, room), _BLOCK * new.bits // 8)
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
    threads = threads or default_threads()
    lying = [(before.lying(one), after.lying(other)) for one, other in pairs]
    reaches = [(one.reach, other.reach) for one, other in lying]
    groups = list(neighbours(reaches, _HOLD // threads))
    threads = max(1, min(threads, len(groups)))

    def work(group: Group) -> list[Numbers | None]:
        contents = group.contents()
        return [_compared(lying[number], contents, _ROOM // threads) for number in group.numbers]

    found: list[Numbers | None] = [None] * len(pairs)
    with ThreadPoolExecutor(threads, "mstore-diff") as pool:
        for group, results in zip(groups, pool.map(work, groups), strict=True):
            for number, numbers in zip(group.numbers, results, strict=True):
                found[number] = numbers
                if progress is not None:
                    progress(sum(place.tensor.nbytes for place in pairs[number]))
    return found


def _compared(
    pair: tuple[Lying, Lying], contents: Sequence[FileBytes], room: int
) -> Numbers | None:
    one, other = map(Lying.read_from, pair, contents)
    with suppress(FormatError, InvalidInputError):
        return compare_values(one, other, room)
    return None


def digests(side: Side, places: Sequence[Place]) -> list[Id | None]:
    """Hashes of the values: equal for equal values of one type and shape, however they lie.

    None for a tensor that cannot be read, since its file holds something else than it says.
    """
    lying = [side.lying(place) for place in places]
    found: list[Id | None] = [None] * len(places)
    for group in neighbours([(one.reach,) for one in lying], _HOLD):
        (shared,) = group.contents()
        for number in group.numbers:
            found[number] = _digest(lying[number].read_from(shared))
    return found


def _digest(one: Lying) -> Id | None:
    found = blake3()
    with suppress(FormatError, InvalidInputError):
        for part in parts(one):
            found.update(part)
        return found.digest()
    return None


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
