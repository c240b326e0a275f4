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
        row, entry, raw = task.row, entries[task.row], raws[task.row]
        offered = [(at, depth) for at, depth in task.bases if entries[at].dtype in BY_CODE]
        bases = [Base(raws[at], BY_CODE[entries[at].dtype], depth) for at, depth in offered]
        places = {entries[at].id: place for place, (at, _) in enumerate(offered)}
        present = places.get(entry.base) if entry.base else None
        may_stay = not entry.depth or present is not None
        stays = self._as_it_is(row, offered[present] if present is not None else None)
        if may_stay and not self._promises(entry, raw, bases, present):
            return stays
        encoded = self._encoder.get().encode(raw, BY_CODE.get(entry.dtype), bases)
        base, depth = (NO_ROW, 0) if encoded.base is None else offered[encoded.base]
        depth += base != NO_ROW
        size = record_size(encoded.stored, depth)
        if may_stay and size > WORTH * entry.record_size:
            return stays
        record = Record(
            entry.id,
            Kind.CHUNK,
            encoded.codec,
            entry.raw,
            xxhash.xxh3_64_intdigest(raw),
            encoded.parts,
            entry.dtype,
            entry.energy,
            depth,
            entries[base].id if base != NO_ROW else None,
        )
        return Outcome(row, base, depth, size, record)

    def _as_it_is(self, row: int, base: tuple[int, int] | None) -> Outcome:
        if base is None:
            return self.stays(row)
        return Outcome(row, base[0], base[1] + 1, int(self._table.size[row]))

    def _promises(
        self, entry: Entry, raw: memoryview, bases: Sequence[Base], present: int | None
    ) -> bool:
        """Whether encoding a chunk anew, which could stay, may make it smaller."""
        if self._deep:
            return True
        dtype = BY_CODE.get(entry.dtype)
        if dtype is None or not bases:
            return False
        number, share = self._encoder.get().choose_base(raw, dtype, bases)
        if number is None:
            return False
        if present is None:
            return share < WORTH * entry.stored / entry.raw
        # Both are estimates, which are wrong in the same way.
        _, now = self._encoder.get().choose_base(raw, dtype, [bases[present]])
        return number != present and share < WORTH * now

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
