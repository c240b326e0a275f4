"""Planning anew what every chunk is coded against: the newest version on its own, older ones by it.

Versions are walked line by line, each from its tip back. A chunk is planned when it is first met,
against chunks that were planned before it: so there can be no circle, and depths are known. It may
be coded against those at its place in the versions around, against what it is coded against now,
and against what is coded against it now.

A chunk that gives up its base takes it along: at the end of its line the base is planned, against
the chunk if that is best, and so before whatever else is coded against it. Thus of the fine-tunes
of one version the newest has no base any more, and the others keep theirs, one level deeper.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
import xxhash
from numpy.typing import NDArray

from mstore.bases import MAX_DEPTH, can_be_base
from mstore.bulkindex import NO_ROW, as_ids
from mstore.database import Database
from mstore.dtypes import BY_CODE
from mstore.errors import CorruptDataError, MstoreError
from mstore.ids import Id
from mstore.layout import Tensor
from mstore.objects import SegmentChunks
from mstore.ops.recode import Outcome, Recoder, Task
from mstore.ops.table import Numbers, Table
from mstore.threads import default_threads

UNPLANNED = 255
"""In place of a depth."""

_KEPT = 3
_OTHER_LINES = 2
_MOST_BASES = 6
_BATCH_BYTES = 32 << 20
_BATCH_TASKS = 64


@dataclass(slots=True, eq=False)
class _Line:
    """One tensor through the versions, and for each of its chunks the last ones planned.

    `recent` (chunks, _KEPT) are rows that others may be coded against, the latest first, filled up
    with NO_ROW. `waiting` is the number of the version of which chunks are on their way, 0 if none.
    """

    segment: SegmentChunks
    recent: Numbers
    waiting: int = 0

    def grow(self, segment: SegmentChunks) -> None:
        """Go on with a version of the tensor that may have more chunks."""
        self.segment = segment
        if (missing := segment.count - len(self.recent)) > 0:
            more = np.full((missing, _KEPT), NO_ROW, np.int64)
            self.recent = np.concatenate((self.recent, more))

    def push(self, number: int, row: int) -> None:
        """Chunk `number` of the tensor can be coded against `row` from now on."""
        places = self.recent[number]
        if row not in places:
            places[1:] = places[:-1]
            places[0] = row


_Place = tuple[_Line, int]


class Plan:
    """How the chunks of a table are to be stored; all arrays are of shape (n,).

    `depth` uint8, UNPLANNED where that is not known; `base` the rows of the bases; `size` the bytes
    of the records. `met` are the chunks of the versions, `newest` those of the newest one.
    `changed` are encoded anew, as many as `recoded` says, or change their depth.
    """

    def __init__(self, table: Table) -> None:
        self.table = table
        self.depth = np.full(len(table), UNPLANNED, np.uint8)
        self.base = np.full(len(table), NO_ROW, np.int64)
        self.size = np.zeros(len(table), np.int64)
        self.met = np.zeros(len(table), np.bool_)
        self.newest = np.zeros(len(table), np.bool_)
        self.changed = np.zeros(len(table), np.bool_)
        self.recoded = 0

    @property
    def planned(self) -> NDArray[np.bool_]:
        """Which chunks are planned."""
        planned: NDArray[np.bool_] = self.depth != UNPLANNED
        return planned

    def add(self, outcome: Outcome) -> None:
        """One more is planned."""
        row = outcome.row
        self.depth[row], self.base[row], self.size[row] = outcome.depth, outcome.base, outcome.size
        self.recoded += outcome.record is not None
        self.changed[row] = outcome.record is not None or outcome.depth != self.table.depth[row]

    def growth(self, rows: NDArray[np.bool_]) -> int:
        """By how many bytes those of these chunks grow that are planned."""
        rows = rows & self.planned
        return int(self.size[rows].sum() - self.table.size[rows].sum())

    def usable(self, rows: Iterable[int], below: int = MAX_DEPTH) -> tuple[tuple[int, int], ...]:
        """Those of these rows, and of their bases, that are planned less deep than `below`."""
        found: dict[int, int] = {}
        for start in rows:
            row = start
            while row != NO_ROW and len(found) < _MOST_BASES:
                depth = int(self.depth[row])
                if depth < below and int(self.table.rows["dtype"][row]) in BY_CODE:
                    found.setdefault(row, depth)
                row = int(self.base[row])
        return tuple(found.items())


class Replanner:
    """Plans all chunks of some versions, and hands over what becomes of each."""

    def __init__(
        self,
        db: Database,
        table: Table,
        recoder: Recoder,
        take: Callable[[Outcome], None],
        *,
        every: int = 1,
        progress: Callable[[int], None] | None = None,
    ) -> None:
        """`take` gets every outcome, in order. Only one in `every` chunks of tensors is planned.

        Those are the same in all versions, so that it is planned like the whole.
        """
        self.plan = Plan(table)
        self._db = db
        self._table = table
        self._recoder = recoder
        self._take = take
        self._every = every
        self._progress = progress
        self._lines: dict[str, dict[str, list[_Line]]] = {}
        self._order = np.argsort(table.base, kind="stable")
        self._sorted_bases = table.base[self._order]
        self._pending: dict[int, list[_Place]] = {}
        self._batch: list[Task] = []
        self._batch_bytes = 0
        self._waiting: deque[Future[list[Outcome]]] = deque()
        self._touched: list[_Line] = []
        self._given_up: dict[int, tuple[int, list[_Place]]] = {}
        self._walked: set[Id] = set()
        self._threads = default_threads()

    def run(self, lines: Iterable[Sequence[Id]], others: Sequence[Id]) -> None:
        """Plan the chunks of these commits, in this order; of `others` only what is whole."""
        with ThreadPoolExecutor(self._threads, "mstore-recode") as self._pool:
            try:
                for line in lines:
                    for commit in line:
                        self._add_version(commit)
                        if len(self._walked) == 1:
                            self.plan.newest[:] = self.plan.met
                    self._finish_line()
                for commit in others:
                    with suppress(CorruptDataError):
                        self._add_version(commit)
                self._finish_line()
            finally:
                for future in self._waiting:
                    future.cancel()

    def _finish_line(self) -> None:
        """Plan what chunks of this line were coded against, and now are not."""
        self._drain()
        while self._given_up:
            for row, (dependent, places) in self._given_up.items():
                near = [int(at) for line, number in places for at in line.recent[number]]
                self._submit(self._task(row, [dependent, *near]), places)
            self._given_up.clear()
            self._drain()

    def _add_version(self, commit: Id) -> None:
        record = self._db.commit(commit)
        snapshot = self._db.snapshot(record.snapshot)
        self._walked.add(commit)
        # Where a line leaves one that was walked before, that is where it comes from.
        parents = [p for p in self._db.parents(record) if p in self._walked]
        before = [self._db.snapshot(self._db.commit(parent).snapshot) for parent in parents]
        segments: list[tuple[str, SegmentChunks]] = []
        for path, file in snapshot.files.items():
            segments += ((path, one) for one in self._db.manifest(file.manifest).segments)
        segments.sort(key=lambda item: self._precedence(item[1]))
        for path, segment in segments:
            rows = self._table.find(as_ids(segment.ids))
            if (rows < 0).any():
                raise CorruptDataError(
                    "a chunk is missing from the repository", hint="run: mstore verify"
                )
            self.plan.met[rows] = True
            if segment.tensor is None:
                self._add_opaque(rows)
                continue
            starts = [
                other
                for parent in before
                if path in parent.files
                for tensor, other in self._db.manifest(parent.files[path].manifest).tensors()
                if tensor.name == segment.tensor.name
                and can_be_base(other, segment.tensor, segment.piece)
            ]
            self._add_tensor(path, segment.tensor, segment, rows, starts)

    def _precedence(self, segment: SegmentChunks) -> tuple[int, bool]:
        """What to sort the segments of a version by.

        What is wider tells more of what is narrower than the other way about: so it comes first.
        But what was widened again comes after the narrower one that it is coded against now, which
        tells all of it.
        """
        if segment.tensor is None:
            return 0, False
        word = segment.tensor.dtype.word
        rows = self._table.find(as_ids(segment.ids))
        bases = self._table.base[rows[rows >= 0]]
        dtypes = np.unique(self._table.rows["dtype"][bases[bases != NO_ROW]]).tolist()
        narrowest = min((BY_CODE[code].word for code in dtypes if code in BY_CODE), default=word)
        return -min(word, narrowest), narrowest < word

    def _add_opaque(self, rows: Numbers) -> None:
        for row in rows[self.plan.depth[rows] == UNPLANNED].tolist():
            if self.plan.depth[row] == UNPLANNED and row not in self._pending:
                self._submit(Task(row), [])

    def _add_tensor(
        self,
        path: str,
        tensor: Tensor,
        segment: SegmentChunks,
        rows: Numbers,
        starts: Sequence[SegmentChunks],
    ) -> None:
        line = self._line(path, tensor, segment)
        others = self._other_lines(path, tensor, segment)
        numbers = np.arange(len(rows))
        if self._every > 1:
            start = xxhash.xxh32_intdigest(tensor.name.encode("utf-8", "surrogateescape"))
            sampled = (numbers + start) % self._every == 0
            numbers = numbers[sampled]
        for number, row in zip(numbers.tolist(), rows[numbers].tolist(), strict=True):
            if row in self._pending:
                self._pending[row].append((line, number))
            elif self.plan.depth[row] != UNPLANNED:
                self._push((line, number), row)
            else:
                self._plan_chunk(line, others, number, row, starts)

    def _plan_chunk(
        self,
        line: _Line,
        others: Sequence[_Line],
        number: int,
        row: int,
        starts: Sequence[SegmentChunks],
    ) -> None:
        present = int(self._table.base[row])
        version = len(self._walked)
        if (
            present in self._pending
            or line.waiting not in (0, version)
            or any(other.waiting for other in others)
        ):
            self._drain()
        rows = [present] if present != NO_ROW else []
        rows += line.recent[number].tolist()
        for start in starts:
            if number < start.count:
                rows += self._table.find(as_ids(start.chunk_id(number))).tolist()
        for other in others:
            if number < len(other.recent):
                rows.append(int(other.recent[number][0]))
        self._submit(self._task(row, rows), [(line, number)])

    def _task(self, row: int, rows: Sequence[int]) -> Task:
        return Task(row, self.plan.usable([*rows, *self._dependents(row)]))

    def _dependents(self, row: int) -> Iterator[int]:
        """Some planned rows that are coded against `row` now."""
        first, last = np.searchsorted(self._sorted_bases, [row, row + 1]).tolist()
        found = self._order[first : min(last, first + 64)]
        yield from found[self.plan.depth[found] < MAX_DEPTH][:_KEPT].tolist()

    def _line(self, path: str, tensor: Tensor, segment: SegmentChunks) -> _Line:
        lines = self._lines.setdefault(tensor.name, {}).setdefault(path, [])
        for line in lines:
            if can_be_base(line.segment, tensor, segment.piece):
                line.grow(segment)
                return line
        lines.append(_Line(segment, np.full((segment.count, _KEPT), NO_ROW, np.int64)))
        return lines[-1]

    def _other_lines(self, path: str, tensor: Tensor, segment: SegmentChunks) -> list[_Line]:
        """Lines of tensors of the same name in other files."""
        if not tensor.name:
            return []
        found = [
            line
            for other, lines in self._lines[tensor.name].items()
            if other != path
            for line in lines
            if can_be_base(line.segment, tensor, segment.piece)
        ]
        return found[-_OTHER_LINES:][::-1]

    def _submit(self, task: Task, places: list[_Place]) -> None:
        if not self._recoder.needs_reading(task):
            self._apply(self._recoder.stays(task.row), places)
            return
        self._pending[task.row] = places
        for line, _ in places:
            line.waiting = len(self._walked)
            self._touched.append(line)
        self._batch.append(task)
        raws = self._table.rows["raw"]
        self._batch_bytes += sum(int(raws[at]) for at in (task.row, *(r for r, _ in task.bases)))
        if self._batch_bytes >= _BATCH_BYTES or len(self._batch) >= _BATCH_TASKS:
            self._send()

    def _send(self) -> None:
        if self._batch:
            self._waiting.append(self._pool.submit(self._recoder.recode, self._batch))
            self._batch, self._batch_bytes = [], 0
        while len(self._waiting) > 2 * self._threads:
            self._collect()

    def _drain(self) -> None:
        """Wait until everything on its way has come in."""
        self._send()
        while self._waiting:
            self._collect()
        for line in self._touched:
            line.waiting = 0
        self._touched.clear()

    def _collect(self) -> None:
        for outcome in self._waiting.popleft().result():
            if self._progress is not None:
                self._progress(int(self._table.rows["raw"][outcome.row]))
            self._apply(outcome, self._pending.pop(outcome.row))

    def _apply(self, outcome: Outcome, places: list[_Place]) -> None:
        row, base = outcome.row, int(self._table.base[outcome.row])
        self.plan.add(outcome)
        self._given_up.pop(row, None)
        if base not in (NO_ROW, outcome.base) and self.plan.depth[base] == UNPLANNED:
            self._given_up[base] = (row, places)
        for place in places:
            self._push(place, row)
        self._take(outcome)

    def _push(self, place: _Place, row: int) -> None:
        if self.plan.depth[row] < MAX_DEPTH:
            place[0].push(place[1], row)


def walk_order(db: Database) -> tuple[list[list[Id]], list[Id]]:
    """All commits in the order to plan them in: those that refs reach, by lines, and the others.

    A line is a tip, the newest first, and what leads to it and was not met before, from new to old.
    The others are those that branches had before and that gc has not collected.
    """
    lines: list[list[Id]] = []
    seen: set[Id] = set()
    for tip in sorted(db.root.tips(), key=lambda tip: (db.commit(tip).time, tip), reverse=True):
        behind = [(commit.time, one) for one, commit in db.ancestry([tip], known=seen)]
        if behind:
            line = [tip, *(one for _, one in sorted(behind, reverse=True) if one != tip)]
            lines.append(line)
            seen.update(line)
    others = []
    for identifier in db.commits_with_prefix(""):
        with suppress(MstoreError):
            if identifier not in seen:
                others.append((db.commit(identifier).time, identifier))
    return lines, [one for _, one in sorted(others, reverse=True)]
