"""Reading: chunks are found in bulk, read in pack order, and decoded in threads into place.

A chunk wanted in several places, or that others are coded against, is read and decoded once.
Every chunk's checksum is compared before its bytes are handed on, so damage or a decoder's mistake
can never give wrong weights.
"""

from abc import ABC, abstractmethod
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import accumulate, chain, islice
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mstore.bulkindex import Ids, as_ids
from mstore.codecs.choose import Decoder
from mstore.database import Database
from mstore.errors import CorruptDataError, MstoreError, NotFoundError
from mstore.ids import ID_SIZE, Id, Kind
from mstore.index import Index
from mstore.pack import check_raw, decode_record
from mstore.readplan import ChunkPlan, plan_chunks
from mstore.threads import Memory, PerThread, default_threads

Progress = Callable[[int], None]
"""Told how many more bytes are done; called from one thread."""


class Sink(ABC):
    """Where decoded chunks go, by byte position."""

    def buffer(self, position: int, length: int) -> memoryview | None:
        """Memory to decode a chunk straight into, or None to be given it by `put`."""
        return None

    @abstractmethod
    def put(self, position: int, raw: memoryview) -> None:
        """Take the bytes of a chunk; `raw` is only valid during the call. Thread safe."""


class MemorySink(Sink):
    """Chunks go into one writable buffer."""

    def __init__(self, out: memoryview) -> None:
        self.out = out

    def buffer(self, position: int, length: int) -> memoryview | None:
        """The place in the buffer itself."""
        return self.out[position : position + length]

    def put(self, position: int, raw: memoryview) -> None:
        """Copy the chunk to its place."""
        self.out[position : position + len(raw)] = raw


class ManySink(Sink):
    """Chunks go into several writable buffers, which lie one after the other by position."""

    def __init__(self, outs: Sequence[memoryview]) -> None:
        self.outs = [out for out in outs if len(out)]
        self._starts = [0, *accumulate(len(out) for out in self.outs)]

    def buffer(self, position: int, length: int) -> memoryview | None:
        """The place in the buffer that the chunk lies in."""
        number = bisect_right(self._starts, position) - 1
        start = position - self._starts[number]
        return self.outs[number][start : start + length]

    def put(self, position: int, raw: memoryview) -> None:
        """Copy the chunk to its place."""
        place = self.buffer(position, len(raw))
        assert place is not None
        place[:] = raw


@dataclass(frozen=True, slots=True)
class Wanted:
    """Chunks to read: `ids` (n, 32), the byte `positions` (n,) they go to, and their `lengths`."""

    ids: Ids
    positions: NDArray[np.int64]
    lengths: NDArray[np.int64]

    def some(self, numbers: NDArray[np.int64]) -> "Wanted":
        """Those of these numbers (m,)."""
        return Wanted(self.ids[numbers], self.positions[numbers], self.lengths[numbers])


class ChunkReader:
    """Reads chunks of one repository; may be used from several threads.

    With one thread of its own it starts no others, so that threads of the caller can each read
    what they need.
    """

    def __init__(
        self,
        db: Database,
        threads: int | None = None,
        indexes: Callable[[], list[Index]] | None = None,
    ) -> None:
        """`indexes` gives the indexes to look chunks up in, those of the database by default."""
        self.db = db
        self.threads = threads or default_threads()
        self._indexes = indexes or db.chunk_indexes
        self._decoder = PerThread(Decoder)
        self._levels: PerThread[list[Memory]] = PerThread(list)

    def read(self, wanted: Wanted, sink: Sink, progress: Progress | None = None) -> None:
        """Give every wanted chunk to `sink`, in pack order but for bases, which come first.

        Raises CorruptDataError naming the chunk when one is damaged or missing, or is coded
        against one that is. Memory: a few times READ_SIZE per thread, and a chunk for each step
        of the longest chain of bases, whatever the number of chunks.
        """
        plan = self.db.retry(lambda: self._plan(wanted))
        jobs = plan.walk.jobs()
        first = list(islice(jobs, 2))
        jobs = chain(first, jobs)
        if self.threads == 1 or len(first) < 2:
            # Starting threads would take longer than the work.
            for job in jobs:
                self._report(progress, self._read_job(wanted, plan, job, sink))
            return
        with ThreadPoolExecutor(self.threads, "mstore-read") as pool:
            waiting: deque[Future[int]] = deque()
            try:
                for job in jobs:
                    waiting.append(pool.submit(self._read_job, wanted, plan, job, sink))
                    if len(waiting) > 2 * self.threads:
                        self._report(progress, waiting.popleft().result())
                while waiting:
                    self._report(progress, waiting.popleft().result())
            finally:
                for future in waiting:
                    future.cancel()

    def read_one(self, identifier: Id) -> bytes:
        """The raw bytes of one chunk; raises CorruptDataError as `read` does."""
        ids = as_ids(identifier)
        plan = self.db.retry(lambda: plan_chunks(self._indexes(), ids))
        length = int(plan.raw[np.argmax(np.diff(plan.starts))])
        out = bytearray(length)
        one = Wanted(ids, np.zeros(1, np.int64), np.array([length]))
        self.read(one, MemorySink(memoryview(out)))
        return bytes(out)

    def _plan(self, wanted: Wanted) -> ChunkPlan:
        plan = plan_chunks(self._indexes(), wanted.ids)
        lengths = np.repeat(plan.raw, np.diff(plan.starts))
        if (wrong := np.flatnonzero(lengths != wanted.lengths[plan.wanted])).size:
            identifier = wanted.ids[plan.wanted[wrong[0]]].tobytes().hex()[:12]
            raise CorruptDataError(f"chunk {identifier} has not the length that the file needs")
        return plan

    def _read_job(self, wanted: Wanted, plan: ChunkPlan, job: slice, sink: Sink) -> int:
        """Read one job; returns how many bytes of wanted chunks it had."""
        try:
            return self._read_trees(wanted, plan, job, sink)
        except NotFoundError:
            # gc moved a pack after the indexes were read, so a newer root knows the places.
            again = wanted.some(plan.wanted[plan.starts[job.start] : plan.starts[job.stop]])
            return self.db.retry(lambda: self._read_anew(again, sink))

    def _read_anew(self, wanted: Wanted, sink: Sink) -> int:
        plan = self._plan(wanted)
        return sum(self._read_trees(wanted, plan, job, sink) for job in plan.walk.jobs())

    def _read_trees(self, wanted: Wanted, plan: ChunkPlan, job: slice, sink: Sink) -> int:
        """Decode the records of a job, each after its base; raises NotFoundError from storage."""
        done = 0
        decoded: list[_Decoded] = []
        for window in plan.walk.windows(job):
            stored = plan.walk.fetch(self.db.storage, window)
            for data, planned in zip(stored, _planned(wanted, plan, window), strict=True):
                # What is left are the bases of this one, from the root of the tree on.
                del decoded[planned.level :]
                base = decoded[-1] if decoded else None
                raw = self._read_record(data, planned, base, sink)
                decoded.append(_Decoded(planned.id, raw))
                done += len(raw) * len(planned.positions)
        return done

    def _read_record(
        self, data: memoryview, planned: "_Planned", base: "_Decoded | None", sink: Sink
    ) -> memoryview:
        """Decode one record and give it to `sink` where it is wanted; returns the raw bytes."""
        entry, checksum, payload = decode_record(data, planned.pack, planned.offset)
        if (entry.id, entry.kind, entry.raw, entry.base) != (
            planned.id,
            Kind.CHUNK,
            planned.raw,
            base.id if base else None,
        ):
            raise CorruptDataError(
                f"pack {planned.pack} at byte {planned.offset}: another record than the index says"
            )
        positions = planned.positions
        target = sink.buffer(positions[0], entry.raw) if positions else None
        raw = self._scratch(planned.level, entry.raw) if target is None else target
        try:
            self._decoder.get().decode(entry.codec, payload, raw, base.raw if base else None)
        except MstoreError as error:
            name = f"chunk {entry.id.hex()[:12]} in pack {entry.pack} at byte {entry.offset}"
            raise type(error)(f"{name}: {error.message}", hint=error.hint) from error
        check_raw(entry, checksum, raw)
        for position in positions if target is None else positions[1:]:
            sink.put(position, raw)
        return raw

    def _scratch(self, level: int, length: int) -> memoryview:
        """Memory for a chunk that stands behind `level` bases, which have memory of their own."""
        levels = self._levels.get()
        levels.extend(Memory(1 << 20) for _ in range(level + 1 - len(levels)))
        return levels[level].take(length)

    @staticmethod
    def _report(progress: Progress | None, done: int) -> None:
        if progress is not None:
            progress(done)


class _Planned(NamedTuple):
    """What a plan says of one record, and the positions that it is wanted at."""

    id: Id
    level: int
    pack: str
    offset: int
    raw: int
    positions: list[int]


class _Decoded(NamedTuple):
    """A chunk that others may be coded against."""

    id: Id
    raw: memoryview


def _planned(wanted: Wanted, plan: ChunkPlan, window: slice) -> Iterator[_Planned]:
    """What `plan` says of the records of `window`, in order."""
    walk, ids = plan.walk, plan.ids[window].tobytes()
    starts = plan.starts[window.start : window.stop + 1]
    positions = wanted.positions[plan.wanted[starts[0] : starts[-1]]].tolist()
    columns = (walk.level, walk.pack, walk.offset, plan.raw)
    begin = 0
    for number, (level, pack, offset, raw, end) in enumerate(
        zip(
            *(column[window].tolist() for column in columns),
            (starts[1:] - starts[0]).tolist(),
            strict=True,
        )
    ):
        identifier = ids[number * ID_SIZE : (number + 1) * ID_SIZE]
        yield _Planned(identifier, level, walk.packs[pack], offset, raw, positions[begin:end])
        begin = end
