"""Reading what is needed to say how far tensors moved, and no more.

Where both sides are cut alike, only chunks that differ are read. What the others add to the norms
is in the index; one whose energy is not known there is read once. Elements of two types, or cut
into pieces of two sizes, are read whole, a piece at a time. For tensors that lie in two orders, or
are views, see `ops.values`.
"""

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mstore.bulkindex import Ids, as_ids, locate
from mstore.database import Database
from mstore.dtypes import DType
from mstore.ops.compare import Numbers, Sums, compare, sums_of_same
from mstore.ops.sides import Place, Side, Span, StoredSide
from mstore.threads import Memory, PerThread, default_threads

_GROUP_BYTES = 8 << 20
"""What one thread reads at once, of both sides together; at least one chunk of each."""

_SMALLEST_ENERGY = float(np.finfo(np.float32).tiny)


@dataclass(frozen=True, slots=True)
class _Part:
    """A run of bytes of one side, and the whole chunks it lies in."""

    span: Span
    skip: int
    length: int


@dataclass(frozen=True, slots=True)
class _Block:
    """Runs of equally many elements of pair `number`; `after` is None where both are the same."""

    number: int
    before: _Part
    after: _Part | None

    @property
    def size(self) -> int:
        """Bytes to read."""
        return self.before.span.length + (self.after.span.length if self.after else 0)


Pair = tuple[Place, Place]
"""A tensor before and after; both have the same number of elements."""


def measure(
    db: Database,
    before: Side,
    after: Side,
    pairs: Sequence[Pair],
    *,
    threads: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> list[Numbers]:
    """The numbers of each pair, which must have equally many elements.

    Elements are paired as they lie in memory. `progress` is told, from the calling thread, how
    many more bytes were read. Memory: about 16 MiB per thread, or three chunks where those are
    larger; and the plan, a few bytes per chunk of one tensor.
    """
    worker = _Worker(before, after, pairs)
    threads = threads or default_threads()
    known, read = [Sums()] * len(pairs), [Sums()] * len(pairs)
    waiting: deque[tuple[list[_Block], Future[list[Sums]]]] = deque()

    def collect() -> None:
        group, future = waiting.popleft()
        for block, sums in zip(group, future.result(), strict=True):
            read[block.number] += sums
        if progress is not None:
            progress(sum(block.size for block in group))

    with ThreadPoolExecutor(threads, "mstore-diff") as pool:
        try:
            for group in _groups(_plan(db, pairs, known)):
                waiting.append((group, pool.submit(worker.work, group)))
                if len(waiting) > 2 * threads:
                    collect()
            while waiting:
                collect()
        finally:
            for _, future in waiting:
                future.cancel()
    # Summed apart, so that the result does not depend on when which thread was done.
    return [
        Numbers(_elements(pair[1]), one + other)
        for pair, one, other in zip(pairs, known, read, strict=True)
    ]


def cut_alike(before: Place, after: Place) -> bool:
    """Whether equal chunk ids at equal places mean equal elements."""
    if before.view is not None or after.view is not None:
        return False
    return before.tensor.dtype == after.tensor.dtype and before.segment.piece == after.segment.piece


def changed_chunks(before: Place, after: Place) -> npt.NDArray[np.intp]:
    """The numbers of the chunks that differ, of two tensors cut alike; also of those only in one.

    Shape (k,), rising.
    """
    old, new = as_ids(before.segment.ids), as_ids(after.segment.ids)
    common = min(len(old), len(new))
    differs = np.ones(max(len(old), len(new)), np.bool_)
    differs[:common] = (old[:common] != new[:common]).any(axis=1)
    return np.flatnonzero(differs)


class _Worker:
    """Reads and compares groups of blocks; shared by all threads."""

    def __init__(self, before: Side, after: Side, pairs: Sequence[Pair]) -> None:
        self._before = before
        self._after = after
        self._pairs = pairs
        self._memory = PerThread(lambda: Memory(_GROUP_BYTES))

    def work(self, group: list[_Block]) -> list[Sums]:
        """The sums of each block."""
        old_parts = [block.before for block in group]
        new_parts = [block.after for block in group if block.after is not None]
        middle = sum(part.span.length for part in old_parts)
        scratch = self._memory.get().take(middle + sum(part.span.length for part in new_parts))
        old_spans, new_spans = ([part.span for part in parts] for parts in (old_parts, new_parts))
        if type(self._before) is type(self._after) is StoredSide:
            # Read together, a chunk that the other is coded against is decoded once.
            self._after.read([*old_spans, *new_spans], scratch)
        else:
            self._before.read(old_spans, scratch[:middle])
            self._after.read(new_spans, scratch[middle:])
        olds, news = _views(old_parts, scratch), _views(new_parts, scratch[middle:])
        return [
            sums_of_same(next(olds), self._dtype(block, 0))
            if block.after is None
            else compare(next(olds), next(news), self._dtype(block, 0), self._dtype(block, 1))
            for block in group
        ]

    def _dtype(self, block: _Block, side: int) -> DType:
        return self._pairs[block.number][side].tensor.dtype


def _views(parts: Iterable[_Part], read: memoryview) -> Iterator[memoryview]:
    """The bytes of each part, in what was read: the chunks of all parts."""
    start = 0
    for part in parts:
        yield read[start + part.skip : start + part.skip + part.length]
        start += part.span.length


def _groups(blocks: Iterable[_Block]) -> Iterator[list[_Block]]:
    group: list[_Block] = []
    size = 0
    for block in blocks:
        if group and size + block.size > _GROUP_BYTES:
            yield group
            group, size = [], 0
        group.append(block)
        size += block.size
    if group:
        yield group


def _plan(db: Database, pairs: Sequence[Pair], known: list[Sums]) -> Iterator[_Block]:
    """All that must be read; what need not be is added to `known`."""
    for number, (before, after) in enumerate(pairs):
        if cut_alike(before, after):
            changed = changed_chunks(before, after)
            same = np.delete(np.arange(after.segment.count), changed)
            energies = _energies(db, as_ids(after.segment.ids)[same], after.tensor.dtype)
            total = float(np.nansum(energies))
            known[number] += Sums(before=total, after=total, product=total)
            yield from _chunk_blocks(number, before, after, changed, same[np.isnan(energies)])
        else:
            yield from _element_blocks(number, before, after)


def _energies(db: Database, ids: Ids, dtype: DType) -> npt.NDArray[np.float64]:
    """The sum of squares of each chunk, shape (n,); NaN where the index does not tell it.

    Nor does it where squares may have been too small for the float32 they are stored in.
    """
    rows = locate(db.chunk_indexes(), ids).rows
    energies = rows["energy"].astype(np.float64)
    usable = np.isfinite(energies) & (energies >= _SMALLEST_ENERGY) & (rows["dtype"] == dtype.code)
    return np.where(usable, energies, np.nan)


def _chunk_blocks(
    number: int,
    before: Place,
    after: Place,
    changed: npt.NDArray[np.intp],
    unknown: npt.NDArray[np.intp],
) -> Iterator[_Block]:
    """One block per chunk, in their order."""
    reading = np.concatenate((changed, unknown))
    differs = np.arange(len(reading)) < len(changed)
    order = np.argsort(reading)
    for chunk, both in zip(reading[order].tolist(), differs[order].tolist(), strict=True):
        old, new = Span(before, chunk, 1), Span(after, chunk, 1)
        part = _Part(new, 0, new.length) if both else None
        yield _Block(number, _Part(old, 0, old.length), part)


def _element_blocks(number: int, before: Place, after: Place) -> Iterator[_Block]:
    """Blocks of as many elements as the larger pieces hold, so that few chunks are read twice."""
    step = max(place.segment.piece * 8 // place.tensor.dtype.bits for place in (before, after))
    # Elements smaller than a byte stay on whole bytes.
    step = max(8, step - step % 8)
    count = _elements(after)
    for start in range(0, count, step):
        stop = min(start + step, count)
        yield _Block(number, _part(before, start, stop), _part(after, start, stop))


def _part(place: Place, start: int, stop: int) -> _Part:
    """Elements `start` to `stop` of a tensor, and the chunks they lie in."""
    bits, piece = place.tensor.dtype.bits, place.segment.piece
    first, last = start * bits // 8, stop * bits // 8
    chunk = first // piece
    return _Part(Span(place, chunk, -(-last // piece) - chunk), first - chunk * piece, last - first)


def _elements(place: Place) -> int:
    return math.prod(place.tensor.shape)
