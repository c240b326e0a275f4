"""Checking every record that some indexes name: its place, and by wish every byte of it."""

from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mstore.bulkindex import NO_ROW, columns
from mstore.chunkreader import Progress
from mstore.codecs import general
from mstore.codecs.choose import Decoder
from mstore.errors import CorruptDataError, MstoreError
from mstore.ids import ID_SIZE, Kind, identify
from mstore.index import MAX_OFFSET, Index
from mstore.ops.rows import Rows
from mstore.pack import (
    PACK_HEADER_SIZE,
    Entry,
    Payload,
    check_pack_header,
    check_raw,
    check_record,
    decode_record,
    pack_key,
)
from mstore.readplan import Walk, record_sizes
from mstore.storage.base import Storage
from mstore.threads import PerThread, default_threads

NOT_ITS_ID = "has other content than its id stands for"

_KINDS = frozenset(int(kind) for kind in Kind)


class Fault(NamedTuple):
    """One damaged or missing thing: what it is, where it is stored, and what is wrong with it."""

    what: str
    where: str
    problem: str


class Records:
    """The records that `indexes` name, and what is wrong with them.

    `fault[row]` is 0 for a sound record, else the place of its fault in `faults`, from 1; shape
    (rows,), int32. `others` are faults of packs and indexes that do no record any harm.
    """

    def __init__(
        self,
        storage: Storage,
        packs: Mapping[str, int],
        indexes: Sequence[Index],
        *,
        metadata: bool,
    ) -> None:
        """`packs` maps the keys of the stored packs to their sizes."""
        self.storage = storage
        self.packs = packs
        self.metadata = metadata
        self.rows = Rows(indexes)
        self.fault = np.zeros(len(self.rows), np.int32)
        self.faults: list[Fault] = []
        self.others: list[Fault] = []
        self._decoder = PerThread(Decoder)

    def check_places(self) -> None:
        """See that every record lies inside a pack that is there."""
        for index, part in self.rows.parts():
            table = columns(index)[1]
            fault = self.fault[part]
            base_count = len(index.bases) // ID_SIZE
            malformed = (table["pack"] >= len(index.packs)) | (table["base"] > base_count)
            malformed |= (table["base"] > 0) != (table["depth"] > 0)
            if malformed.any():
                place = (f"index {index.name}", f"indexes/{index.name}")
                fault[malformed] = self._number(Fault(*place, "has rows that point nowhere"))
            sizes = np.array([self.packs.get(pack_key(name), -1) for name in index.packs], np.int64)
            ends = np.minimum(table["offset"], MAX_OFFSET).astype(np.int64) + record_sizes(table)
            inside = np.flatnonzero(~malformed)
            numbers = table["pack"][inside]
            outside = ends[inside] > sizes[numbers] if len(sizes) else np.zeros(0, np.bool_)
            of_pack = np.zeros(len(sizes), np.int32)
            for number in np.unique(numbers[outside]):
                name = index.packs[number]
                problem = "is missing" if sizes[number] < 0 else "is cut short"
                of_pack[number] = self._number(Fault(f"pack {name}", pack_key(name), problem))
            fault[inside[outside]] = of_pack[numbers[outside]]

    def check_contents(self, threads: int | None, progress: Progress) -> None:
        """Read, decode and hash every record that can be, each once, in the order of the packs.

        A base comes before what is coded against it. Places and bases must have been checked.
        `progress` is told how many more bytes are done. Memory: about a hundred bytes per record,
        and a few times READ_SIZE per thread.
        """
        for index in self.rows.indexes:
            self._check_pack_headers(index)
        rows, walk = self._walk()
        threads = threads or default_threads()
        with ThreadPoolExecutor(threads, "mstore-verify") as pool:
            waiting: deque[tuple[int, Future[list[tuple[int, Fault]]]]] = deque()
            for job in walk.jobs():
                size = int(walk.size[job].sum())
                waiting.append((size, pool.submit(self._check_trees, rows, walk, job)))
                if len(waiting) > 2 * threads:
                    self._collect(*waiting.popleft(), progress)
            while waiting:
                self._collect(*waiting.popleft(), progress)
        self.check_bases()

    def check_bases(self) -> None:
        """A record whose base is damaged, missing or not less deep cannot be decoded either."""
        dependents, bases = self.rows.coded_against()
        deep = (bases >= 0) & (self.rows.depth[bases] >= self.rows.depth[dependents])
        for wrong, problem in (
            (bases < 0, "the chunk that it is coded against is missing"),
            (deep, "the chunk that it is coded against is coded against others at least as deep"),
        ):
            for row in dependents[wrong & (self.fault[dependents] == 0)].tolist():
                what, where = name_record(self.rows.entry(row))
                self.fault[row] = self._number(Fault(what, where, problem))
        while (spoilt := (self.fault[dependents] == 0) & (self.fault[bases] != 0)).any():
            self.fault[dependents[spoilt]] = self.fault[bases[spoilt]]

    def _number(self, fault: Fault) -> int:
        self.faults.append(fault)
        return len(self.faults)

    def _walk(self) -> tuple[NDArray[np.int64], Walk]:
        """The rows without a fault in the order of their places, and the walk over their records.

        The bases of such rows have no fault either.
        """
        sound = np.flatnonzero(self.fault == 0)
        packs, pack, offset = self.rows.places()
        rows = sound[np.lexsort((offset[sound], pack[sound]))]
        number = np.full(len(self.rows), NO_ROW, np.int64)
        number[rows] = np.arange(len(rows))
        dependents, bases = self.rows.coded_against()
        base = np.full(len(self.rows), NO_ROW, np.int64)
        base[dependents] = number[bases]
        walk = Walk.plan(packs, pack[rows], offset[rows], self.rows.stored[rows], base[rows])
        return rows, walk

    def _check_pack_headers(self, index: Index) -> None:
        for name in index.packs:
            key = pack_key(name)
            if key in self.packs:
                try:
                    check_pack_header(self.storage.get(key, 0, PACK_HEADER_SIZE), name)
                except MstoreError as error:
                    self.others.append(Fault(f"pack {name}", key, error.message))

    def _collect(
        self, size: int, found: Future[list[tuple[int, Fault]]], progress: Progress
    ) -> None:
        """Runs in the calling thread."""
        for row, fault in found.result():
            self.fault[row] = self._number(fault)
        progress(size)

    def _check_trees(
        self, rows: NDArray[np.int64], walk: Walk, job: slice
    ) -> list[tuple[int, Fault]]:
        """The faults of the rows of one job, less those of damaged bases. In a worker thread."""
        faults = []
        # What was decoded on the way from the root of the tree; None for what could not be.
        decoded: list[memoryview | None] = []
        for window in walk.windows(job):
            stored = self._fetch(walk, window)
            places = (rows[walk.records[window]].tolist(), walk.level[window].tolist())
            for data, row, level in zip(stored, *places, strict=True):
                del decoded[level:]
                decoded.append(None)
                if level and decoded[level - 1] is None:
                    continue
                entry = self.rows.entry(row)
                try:
                    if isinstance(data, MstoreError):
                        raise data
                    found = decode_record(data, entry.pack, entry.offset)
                    base = decoded[level - 1] if level else None
                    decoded[level] = self._check_content(check_record(found, entry), base)
                except MstoreError as error:
                    faults.append((row, fault_of(entry, error)))
        return faults

    def _fetch(self, walk: Walk, window: slice) -> Sequence[memoryview | MstoreError]:
        """The stored bytes of each record of `window`, or why they cannot be had."""
        try:
            return walk.fetch(self.storage, window)
        except MstoreError as error:
            if window.stop - window.start == 1:
                return [error]
            # Where the disk cannot be read at one place, the records around it may be sound.
            singles = (slice(at, at + 1) for at in range(window.start, window.stop))
            return [self._fetch(walk, single)[0] for single in singles]

    def _check_content(self, found: Payload, base: memoryview | None) -> memoryview:
        """The raw bytes of a record; raises MstoreError when they are not as they should be."""
        entry = found.entry
        if entry.kind not in _KINDS or Kind(entry.kind).is_metadata != self.metadata:
            raise CorruptDataError(f"a record of kind {entry.kind} has no place in this index")
        if self.metadata:
            raw = memoryview(general.decode(entry.codec, found.payload, entry.raw))
        else:
            raw = memoryview(bytearray(entry.raw))
            self._decoder.get().decode(entry.codec, found.payload, raw, base)
        check_raw(entry, found.checksum, raw)
        if identify(Kind(entry.kind), raw) != entry.id:
            raise CorruptDataError(NOT_ITS_ID)
        return raw


def fault_of(entry: Entry, error: MstoreError) -> Fault:
    """The fault that `error` tells of the record of `entry`."""
    what, where = name_record(entry)
    place = f"pack {entry.pack} at byte {entry.offset}"
    problem = error.message.removeprefix(f"{place}: ").removeprefix(f"{what} in {place} ")
    return Fault(what, where, problem)


def name_record(entry: Entry) -> tuple[str, str]:
    """What a record is and where it is stored, for people."""
    kind = Kind(entry.kind).name.lower() if entry.kind in _KINDS else "record"
    return f"{kind} {entry.id.hex()[:12]}", f"{pack_key(entry.pack)} at byte {entry.offset}"
