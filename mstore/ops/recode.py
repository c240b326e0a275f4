"""Coding stored chunks anew, against other bases or with more effort, where that pays."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import xxhash

from mstore.bulkindex import NO_ROW, as_ids
from mstore.chunkreader import ChunkReader, MemorySink, Wanted
from mstore.codecs.base import Base
from mstore.codecs.choose import Encoder
from mstore.database import Database
from mstore.dtypes import BY_CODE
from mstore.ids import Id, Kind
from mstore.ops.table import Table
from mstore.pack import Entry, Record, record_size
from mstore.threads import Memory, PerThread

WORTH = 0.99
"""A new encoding is taken if it is at most this part of the one there is."""


@dataclass(frozen=True, slots=True)
class Task:
    """A chunk to be planned: its row, and the rows and depths of what it may be coded against."""

    row: int
    bases: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a chunk will be stored: the row of its base (or NO_ROW), depth, and bytes in its pack.

    `record` is None where the present payload stays.
    """

    row: int
    base: int
    depth: int
    size: int
    record: Record | None = None


@dataclass(frozen=True, slots=True)
class Offered:
    """A chunk that another may be coded against: its row, its id, and the rest."""

    row: int
    id: Id
    base: Base


class Recoder:
    """Decides how chunks are to be stored, and encodes them where that changes. Thread safe."""

    def __init__(self, db: Database, table: Table, *, deep: bool) -> None:
        """With `deep` all chunks are encoded anew, with more effort."""
        self._table = table
        self._deep = deep
        self._reader = ChunkReader(db, threads=1)
        self._memory = PerThread(Memory)
        self._encoder = PerThread(Encoder.deep if deep else Encoder)

    def needs_reading(self, task: Task) -> bool:
        """Whether there is anything to decide: not of a chunk without bases that never had one."""
        return self._deep or bool(task.bases) or self._table.depth[task.row] > 0

    def stays(self, row: int) -> Outcome:
        """The outcome for a chunk without a base that is left as it is."""
        return Outcome(row, NO_ROW, 0, int(self._table.size[row]))

    def recode(self, tasks: Sequence[Task]) -> list[Outcome]:
        """The outcome of each task; raises CorruptDataError when a chunk cannot be read."""
        wanted = dict.fromkeys(row for task in tasks for row in (task.row, *_rows(task)))
        entries = {row: self._table.entry(row) for row in wanted}
        raws = self._read(entries)
        return [self._recode(task, entries, raws) for task in tasks]

    def _recode(
        self, task: Task, entries: dict[int, Entry], raws: dict[int, memoryview]
    ) -> Outcome:
        row, entry = task.row, entries[task.row]
        offered = [
            Offered(at, entries[at].id, Base(raws[at], BY_CODE[entries[at].dtype], depth))
            for at, depth in task.bases
            if entries[at].dtype in BY_CODE
        ]
        present = next((one for one in offered if one.id == entry.base), None)
        may_stay = not entry.depth or present is not None
        if may_stay and not self._promises(entry, raws[row], offered, present):
            return self._as_it_is(row, present)
        outcome = self._encode(row, entry, raws[row], offered)
        if may_stay and outcome.size > WORTH * entry.record_size:
            if not self._deep or present is None or outcome.base == present.row:
                return self._as_it_is(row, present)
            # A base that is less deep was taken; the present one may gain by more effort.
            outcome = self._encode(row, entry, raws[row], [present])
            if outcome.size > WORTH * entry.record_size:
                return self._as_it_is(row, present)
        return outcome

    def _encode(
        self, row: int, entry: Entry, raw: memoryview, offered: Sequence[Offered]
    ) -> Outcome:
        """Stored anew, against one of these or none."""
        dtype = BY_CODE.get(entry.dtype)
        encoded = self._encoder.get().encode(raw, dtype, [one.base for one in offered])
        base = None if encoded.base is None else offered[encoded.base]
        depth = base.base.depth + 1 if base else 0
        record = Record(
            entry.id,
            Kind.CHUNK,
            encoded.codec,
            entry.raw,
            xxhash.xxh3_64_intdigest(raw),
            encoded.payload,
            entry.dtype,
            entry.energy,
            depth,
            base.id if base else None,
        )
        size = record_size(encoded.stored, depth)
        return Outcome(row, base.row if base else NO_ROW, depth, size, record)

    def _as_it_is(self, row: int, present: Offered | None) -> Outcome:
        if present is None:
            return self.stays(row)
        return Outcome(row, present.row, present.base.depth + 1, int(self._table.size[row]))

    def _promises(
        self, entry: Entry, raw: memoryview, offered: Sequence[Offered], present: Offered | None
    ) -> bool:
        """Whether encoding a chunk anew, which could stay, may make it smaller."""
        if self._deep:
            return True
        dtype = BY_CODE.get(entry.dtype)
        if dtype is None or not offered:
            return False
        encoder = self._encoder.get()
        number, share = encoder.choose_base(raw, dtype, [one.base for one in offered])
        if number is None:
            return False
        if present is None:
            return share < WORTH * entry.stored / entry.raw
        # Both are estimates, which are wrong in the same way.
        _, now = encoder.choose_base(raw, dtype, [present.base])
        return offered[number] is not present and share < WORTH * now

    def _read(self, entries: dict[int, Entry]) -> dict[int, memoryview]:
        """The raw bytes by row, in memory that this thread uses again for the next tasks."""
        lengths = np.array([entry.raw for entry in entries.values()], np.int64)
        starts = np.cumsum(lengths) - lengths
        memory = self._memory.get().take(int(lengths.sum()))
        ids: list[Id] = [entry.id for entry in entries.values()]
        self._reader.read(Wanted(as_ids(b"".join(ids)), starts, lengths), MemorySink(memory))
        return {
            row: memory[start : start + entry.raw]
            for (row, entry), start in zip(entries.items(), starts.tolist(), strict=True)
        }


def _rows(task: Task) -> tuple[int, ...]:
    return tuple(row for row, _ in task.bases)
