"""Reading: chunks are found in bulk, read in pack order, and decoded in threads into place.

A chunk wanted in several places is read and decoded once. Every chunk's checksum is compared
before its bytes are handed on, so damage or a decoder's mistake can never give wrong weights.
"""

import os
import threading
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import accumulate, chain, islice

import numpy as np
from numpy.typing import NDArray

from mstore.bulkindex import Ids, Located, locate
from mstore.codecs.choose import Decoder
from mstore.database import Database
from mstore.errors import CorruptDataError, NotFoundError
from mstore.ids import Id, Kind
from mstore.pack import (
    Payload,
    check_raw,
    decode_record,
    pack_key,
    record_size,
)

READ_SIZE = 4 << 20
"""Records that lie together are read in runs of about this many bytes."""

_MAX_GAP = 64 << 10

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


@dataclass(slots=True)
class _Run:
    """Records of one pack that lie together, with the places each is wanted at."""

    pack: str
    start: int
    stop: int
    ids: list[Id] = field(default_factory=list)
    offsets: list[int] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)
    positions: list[list[int]] = field(default_factory=list)


def default_threads() -> int:
    """Threads to work with: one per processor, eight at most."""
    return min(8, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 4)


class ChunkReader:
    """Reads chunks of one repository; may be used from several threads."""

    def __init__(self, db: Database, threads: int | None = None) -> None:
        self.db = db
        self.threads = threads or default_threads()
        self._local = threading.local()

    def read(self, wanted: Wanted, sink: Sink, progress: Progress | None = None) -> None:
        """Give every wanted chunk to `sink`, in pack order.

        Raises CorruptDataError naming the chunk when one is damaged or missing. Memory: a few
        runs of READ_SIZE per thread, whatever the number of chunks.
        """
        runs = self._plan(wanted)
        first = list(islice(runs, 2))
        runs = chain(first, runs)
        if self.threads == 1 or len(first) < 2:
            # Starting threads would take longer than the work.
            for run in runs:
                self._report(progress, self._read_run(run, sink))
            return
        with ThreadPoolExecutor(self.threads, "mstore-read") as pool:
            waiting: deque[Future[int]] = deque()
            try:
                for run in runs:
                    waiting.append(pool.submit(self._read_run, run, sink))
                    if len(waiting) > 2 * self.threads:
                        self._report(progress, waiting.popleft().result())
                while waiting:
                    self._report(progress, waiting.popleft().result())
            finally:
                for future in waiting:
                    future.cancel()

    def read_one(self, identifier: Id) -> bytes:
        """The raw bytes of one chunk."""
        found = self.db.read_record(Kind.CHUNK, identifier)
        out = bytearray(found.entry.raw)
        self._deliver(found, [0], MemorySink(memoryview(out)))
        return bytes(out)

    def _locate(self, ids: Ids) -> Located:
        located = locate(self.db.chunk_indexes(), ids)
        if not located.found.all():
            missing = ids[int(np.argmin(located.found))].tobytes()
            raise NotFoundError(f"chunk {missing.hex()[:12]} is missing from the repository")
        return located

    def _plan(self, wanted: Wanted) -> Iterator[_Run]:
        located = self.db.retry(lambda: self._locate(wanted.ids))
        rows = located.rows
        if (wrong := np.flatnonzero(rows["raw"] != wanted.lengths)).size:
            identifier = wanted.ids[wrong[0]].tobytes().hex()[:12]
            raise CorruptDataError(f"chunk {identifier} has not the length that the file needs")
        order = np.lexsort((rows["offset"], rows["pack"]))
        yield from _runs(wanted, rows[order], order, located.packs)

    def _read_run(self, run: _Run, sink: Sink) -> int:
        try:
            data = memoryview(
                self.db.storage.get(pack_key(run.pack), run.start, run.stop - run.start)
            )
        except NotFoundError:
            return self._read_moved(run, sink)
        done = 0
        columns = (run.ids, run.offsets, run.lengths, run.positions)
        for identifier, offset, length, positions in zip(*columns, strict=True):
            found = decode_record(data[offset - run.start :], run.pack, offset)
            if (found.entry.id, found.entry.kind, found.entry.raw) != (
                identifier,
                Kind.CHUNK,
                length,
            ):
                raise CorruptDataError(
                    f"pack {run.pack} at byte {offset}: another record than the index says"
                )
            done += self._deliver(found, positions, sink)
        return done

    def _read_moved(self, run: _Run, sink: Sink) -> int:
        """Read chunks whose pack is gone: gc moved them, so a newer root knows their places."""
        done = 0
        for identifier, length, positions in zip(run.ids, run.lengths, run.positions, strict=True):
            found = self.db.read_record(Kind.CHUNK, identifier)
            if found.entry.raw != length:
                raise CorruptDataError(f"chunk {identifier.hex()[:12]} has changed its length")
            done += self._deliver(found, positions, sink)
        return done

    def _deliver(self, found: Payload, positions: list[int], sink: Sink) -> int:
        entry = found.entry
        target = sink.buffer(positions[0], entry.raw)
        raw = target if target is not None else self._scratch(entry.raw)
        self._decoder().decode(entry.codec, found.payload, raw)
        check_raw(entry, found.checksum, raw)
        for position in positions[target is not None :]:
            sink.put(position, raw)
        return entry.raw * len(positions)

    def _decoder(self) -> Decoder:
        decoder: Decoder | None = getattr(self._local, "decoder", None)
        if decoder is None:
            decoder = self._local.decoder = Decoder()
        return decoder

    def _scratch(self, length: int) -> memoryview:
        scratch: bytearray | None = getattr(self._local, "scratch", None)
        if scratch is None or len(scratch) < length:
            scratch = self._local.scratch = bytearray(max(length, 1 << 20))
        return memoryview(scratch)[:length]

    @staticmethod
    def _report(progress: Progress | None, done: int) -> None:
        if progress is not None:
            progress(done)


def _runs(
    wanted: Wanted, rows: NDArray[np.void], order: NDArray[np.intp], packs: Sequence[str]
) -> Iterator[_Run]:
    """Group located chunks, given in pack order, into runs to read at once."""
    run: _Run | None = None
    columns = (rows[name].tolist() for name in ("pack", "offset", "stored", "depth"))
    for pack_number, offset, stored, depth, at in zip(*columns, order.tolist(), strict=True):
        pack, position = packs[pack_number], int(wanted.positions[at])
        if run is not None and run.pack == pack and run.offsets[-1] == offset:
            run.positions[-1].append(position)
            continue
        stop = offset + record_size(stored, depth)
        if (
            run is None
            or run.pack != pack
            or offset - run.stop > _MAX_GAP
            or stop - run.start > READ_SIZE
        ):
            if run is not None:
                yield run
            run = _Run(pack, offset, stop)
        run.ids.append(wanted.ids[at].tobytes())
        run.offsets.append(offset)
        run.lengths.append(int(wanted.lengths[at]))
        run.positions.append([position])
        run.stop = stop
    if run is not None:
        yield run
