"""The order to read records in, when some are coded against others, and reading them in it.

A chunk's base must be decoded before the chunk. Records and their bases form a forest: a chunk is
a child of its base. It is walked depth-first, so that each record is read and decoded once, and
only the bases from the root down to the record at hand have to be kept.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mstore.bulkindex import NO_ROW, Ids, locate_with_bases
from mstore.ids import ID_SIZE
from mstore.index import Index
from mstore.pack import RECORD_HEADER_SIZE, pack_key
from mstore.storage.base import Storage

READ_SIZE = 4 << 20
"""Records are read in portions of about this many bytes."""

_MAX_GAP = 64 << 10
"""It takes less time to read on over so many bytes than to begin again behind them."""

Numbers = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Walk:
    """Records in the order to read them in; all arrays are of shape (n,).

    The forest's trees come in the order of the places of their roots, and in a tree every record
    right after its base or after what else is coded against that. `records` are the numbers that
    the records were given in the order of their places, `level` how many bases each is away from
    one that has none. `pack` is an index into `packs`; `offset` is where the record lies in the
    pack and `size` its bytes there. `ends` are the bytes of all records up to and with each one.
    """

    records: Numbers
    level: Numbers
    packs: Sequence[str]
    pack: NDArray[np.integer]
    offset: Numbers
    size: Numbers
    ends: Numbers

    @classmethod
    def plan(
        cls,
        packs: Sequence[str],
        pack: NDArray[np.integer],
        offset: Numbers,
        size: Numbers,
        base: Numbers,
    ) -> "Walk":
        """The walk over records that are given in the order of their places, by pack and offset.

        `base` is the number of each one's base or NO_ROW. Raises ValueError when there is a circle.
        """
        records, level = preorder(base)
        size = size[records]
        return cls(records, level, packs, pack[records], offset[records], size, np.cumsum(size))

    def jobs(self) -> Iterator[slice]:
        """Parts of the walk that need nothing of each other: one or more whole trees.

        They are of READ_SIZE bytes at most, but where a single tree is larger.
        """
        roots = np.flatnonzero(self.level == 0)
        bounds = np.append(roots, len(self.level))
        for first, last in _portions(self.ends[bounds[1:] - 1], 0):
            yield slice(int(bounds[first]), int(bounds[last]))

    def windows(self, job: slice) -> Iterator[slice]:
        """Parts of a job to be read at once, of READ_SIZE bytes at most or of one record."""
        before = int(self.ends[job.start] - self.size[job.start])
        for first, last in _portions(self.ends[job], before):
            yield slice(job.start + first, job.start + last)

    def fetch(self, storage: Storage, window: slice) -> list[memoryview]:
        """The stored bytes of the records of `window`, in their order.

        Records that lie together are read together. What is missing at the end of a pack is
        missing from the record. Raises NotFoundError when a pack is gone.
        """
        found = [memoryview(b"")] * (window.stop - window.start)
        pack, offset = self.pack[window].tolist(), self.offset[window].tolist()
        size = self.size[window].tolist()
        by_place = np.argsort(self.records[window], kind="stable").tolist()
        for run in _runs(by_place, pack, offset, size):
            start, last = offset[run[0]], run[-1]
            key = pack_key(self.packs[pack[last]])
            data = memoryview(storage.get(key, start, offset[last] + size[last] - start))
            # Views hold all that was read: where that is mostly gaps, copies take less memory.
            sparse = len(data) > 2 * sum(size[at] for at in run)
            for at in run:
                record = data[offset[at] - start : offset[at] - start + size[at]]
                found[at] = memoryview(bytes(record)) if sparse else record
        return found


@dataclass(frozen=True, slots=True)
class ChunkPlan:
    """How to read some chunks: a walk over their records and those of their bases.

    `ids` (n, 32) and `raw` (n,), the bytes that each record decodes to, are in the order of the
    walk. Record number k of the walk is wanted by those of the ids asked for whose numbers are
    `wanted[starts[k] : starts[k + 1]]`: several if an id was asked for several times, none if it
    is only a base. `wanted` is of shape (ids asked for,), `starts` of (n + 1,).
    """

    walk: Walk
    ids: Ids
    raw: Numbers
    wanted: Numbers
    starts: Numbers


def plan_chunks(indexes: Sequence[Index], ids: Ids) -> ChunkPlan:
    """How to read the chunks `ids` (n, 32); each record is read once, however often it is needed.

    Raises NotFoundError when a chunk or a base is in no index, and CorruptDataError when a row is
    malformed or a base has not a smaller depth than what is coded against it.
    """
    located = locate_with_bases(indexes, ids)
    rows = located.rows
    order = np.lexsort((rows["offset"], rows["pack"]))
    # One record may be wanted several times, and as a base too.
    first = np.ones(len(rows), np.bool_)
    first[1:] = np.diff(rows["offset"][order]) != 0
    first[1:] |= np.diff(rows["pack"][order]) != 0
    record_of = np.empty(len(rows), np.int64)
    record_of[order] = np.cumsum(first) - 1
    chosen = order[first]
    base = located.base[chosen]
    base[base >= 0] = record_of[base[base >= 0]]
    rows = rows[chosen]
    offset = rows["offset"].astype(np.int64)
    walk = Walk.plan(located.packs, rows["pack"], offset, record_sizes(rows), base)
    place = np.empty_like(walk.records)
    place[walk.records] = np.arange(len(place))
    wanted_at = place[record_of[: len(ids)]]
    starts = np.zeros(len(place) + 1, np.int64)
    np.cumsum(np.bincount(wanted_at, minlength=len(place)), out=starts[1:])
    return ChunkPlan(
        walk=walk,
        ids=located.ids[chosen[walk.records]],
        raw=rows["raw"][walk.records].astype(np.int64),
        wanted=np.argsort(wanted_at, kind="stable"),
        starts=starts,
    )


def record_sizes(rows: NDArray[np.void]) -> Numbers:
    """Bytes of each record in its pack, by the rows of an index; shape (n,)."""
    return rows["stored"].astype(np.int64) + RECORD_HEADER_SIZE + ID_SIZE * (rows["depth"] > 0)


def preorder(base: Numbers) -> tuple[Numbers, Numbers]:
    """The depth-first order of a forest, and the level of each node in that order.

    `base` (n,) is each node's parent, or NO_ROW for a root, whose level is 0. Roots, and the
    children of one parent, come in the order of their numbers. Raises ValueError when there is a
    circle.
    """
    roots = np.flatnonzero(base == NO_ROW)
    level = np.where(base == NO_ROW, 0, -1).astype(np.int64)
    if len(roots) == len(base):
        return roots, level
    generations = _generations(base, level)
    count = np.ones(len(base), np.int64)
    for generation in reversed(generations):
        np.add.at(count, base[generation], count[generation])
    # Where a node stands: behind its parent, and behind its elder siblings with all below them.
    place = np.empty(len(base), np.int64)
    place[roots] = np.cumsum(count[roots]) - count[roots]
    for generation in generations:
        children = generation[np.argsort(base[generation], kind="stable")]
        parents = base[children]
        before = np.cumsum(count[children]) - count[children]
        eldest = np.ones(len(children), np.bool_)
        eldest[1:] = parents[1:] != parents[:-1]
        before -= np.repeat(before[eldest], np.diff(np.append(np.flatnonzero(eldest), len(eldest))))
        place[children] = place[parents] + 1 + before
    order = np.empty(len(base), np.int64)
    order[place] = np.arange(len(base))
    return order, level[order]


def _generations(base: Numbers, level: Numbers) -> list[Numbers]:
    """The nodes of level 1, those of level 2 and so on; fills in `level`, which is -1 for them."""
    generations: list[Numbers] = []
    waiting = np.flatnonzero(level < 0)
    while len(waiting):
        ready = level[base[waiting]] == len(generations)
        if not ready.any():
            raise ValueError("records are coded against each other in a circle")
        generations.append(waiting[ready])
        level[generations[-1]] = len(generations)
        waiting = waiting[~ready]
    return generations


def _portions(ends: Numbers, before: int) -> Iterator[tuple[int, int]]:
    """Cut things into portions of READ_SIZE bytes at most, or of one thing that is larger.

    `ends` (n,) are the bytes of all up to each, counted from where `before` bytes had been seen.
    Yields the first of each portion and the first behind it.
    """
    first = 0
    while first < len(ends):
        last = max(first + 1, int(np.searchsorted(ends, before + READ_SIZE, side="right")))
        yield first, last
        before, first = int(ends[last - 1]), last


def _runs(
    by_place: Sequence[int], pack: Sequence[int], offset: Sequence[int], size: Sequence[int]
) -> Iterator[list[int]]:
    """Group records, given in the order of their places, into runs that lie together."""
    run: list[int] = []
    for at in by_place:
        if run:
            start, stop = offset[run[0]], offset[run[-1]] + size[run[-1]]
            if (
                pack[at] != pack[run[0]]
                or offset[at] - stop > _MAX_GAP
                or offset[at] + size[at] - start > READ_SIZE
            ):
                yield run
                run = []
        run.append(at)
    if run:
        yield run
