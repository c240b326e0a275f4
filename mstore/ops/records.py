"""Checking every record that some indexes name: its place, and by wish every byte of it."""

import threading
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mstore.bulkindex import columns
from mstore.chunkreader import Progress, default_threads
from mstore.codecs import general
from mstore.codecs.choose import Decoder
from mstore.errors import CorruptDataError, MstoreError
from mstore.ids import ID_SIZE, Buffer, Kind, identify
from mstore.index import Index
from mstore.ops.rows import Rows, record_sizes
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
from mstore.readplan import READ_SIZE
from mstore.storage.base import Storage

NOT_ITS_ID = "has other content than its id stands for"

_MAX_GAP = 64 << 10
_FAR = 1 << 62
_KINDS = frozenset(int(kind) for kind in Kind)


class Fault(NamedTuple):
    """One damaged or missing thing: what it is, where it is stored, and what is wrong with it."""

    what: str
    where: str
    problem: str


@dataclass(slots=True)
class _Run:
    """Rows of one index whose records lie together in one pack."""

    pack: str
    start: int
    stop: int
    rows: list[int]


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
        self._local = threading.local()

    def check_places(self) -> None:
        """See that every record lies inside a pack that is there."""
        for index, part in self.rows.parts():
            table = columns(index)[1]
            fault = self.fault[part]
            base_count = len(index.bases) // ID_SIZE
            malformed = (table["pack"] >= len(index.packs)) | (table["base"] > base_count)
            if malformed.any():
                place = (f"index {index.name}", f"indexes/{index.name}")
                fault[malformed] = self._number(Fault(*place, "has rows that point nowhere"))
            sizes = np.array([self.packs.get(pack_key(name), -1) for name in index.packs], np.int64)
            ends = np.minimum(table["offset"], _FAR).astype(np.int64) + record_sizes(table)
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
        """Read, decode and hash every record that has a place, pack by pack in order.

        `progress` is told how many more bytes are done. Memory: a few runs of READ_SIZE per
        thread.
        """
        threads = threads or default_threads()
        with ThreadPoolExecutor(threads, "mstore-verify") as pool:
            for index, part in self.rows.parts():
                self._check_pack_headers(index)
                sound = np.flatnonzero(self.fault[part] == 0)
                waiting: deque[tuple[_Run, Future[list[tuple[int, Fault]]]]] = deque()
                for run in _runs(index, sound):
                    waiting.append((run, pool.submit(self._check_run, index, run)))
                    if len(waiting) > 2 * threads:
                        self._collect(part.start, *waiting.popleft(), progress)
                while waiting:
                    self._collect(part.start, *waiting.popleft(), progress)

    def spread_to_dependents(self) -> None:
        """A record whose base is damaged or missing cannot be decoded either."""
        dependents, bases = self.rows.coded_against()
        for row in dependents[(bases < 0) & (self.fault[dependents] == 0)].tolist():
            what, where = name_record(self._entry(row))
            self.fault[row] = self._number(
                Fault(what, where, "the chunk that it is coded against is missing")
            )
        while (spoilt := (self.fault[dependents] == 0) & (self.fault[bases] != 0)).any():
            self.fault[dependents[spoilt]] = self.fault[bases[spoilt]]

    def _number(self, fault: Fault) -> int:
        self.faults.append(fault)
        return len(self.faults)

    def _entry(self, row: int) -> Entry:
        for index, part in self.rows.parts():
            if row < part.stop:
                return index.entry(row - part.start)
        raise IndexError(row)

    def _check_pack_headers(self, index: Index) -> None:
        for name in index.packs:
            key = pack_key(name)
            if key in self.packs:
                try:
                    check_pack_header(self.storage.get(key, 0, PACK_HEADER_SIZE), name)
                except MstoreError as error:
                    self.others.append(Fault(f"pack {name}", key, error.message))

    def _collect(
        self, start: int, run: _Run, found: Future[list[tuple[int, Fault]]], progress: Progress
    ) -> None:
        """Runs in the calling thread; `start` is where the rows of the run's index begin."""
        for row, fault in found.result():
            self.fault[start + row] = self._number(fault)
        progress(run.stop - run.start)

    def _check_run(self, index: Index, run: _Run) -> list[tuple[int, Fault]]:
        """The faults of the run's rows. Runs in a worker thread."""
        try:
            data = memoryview(self.storage.get(pack_key(run.pack), run.start, run.stop - run.start))
        except MstoreError as error:
            if len(run.rows) == 1:
                return [(run.rows[0], fault_of(index.entry(run.rows[0]), error))]
            # Where the disk cannot be read at one place, the records around it may be sound.
            singles = _runs(index, np.array(run.rows), longest=0)
            return [fault for single in singles for fault in self._check_run(index, single)]
        faults = []
        for row in run.rows:
            entry = index.entry(row)
            try:
                found = decode_record(data[entry.offset - run.start :], run.pack, entry.offset)
                self._check_content(check_record(found, entry))
            except MstoreError as error:
                faults.append((row, fault_of(entry, error)))
        return faults

    def _check_content(self, found: Payload) -> None:
        entry = found.entry
        if entry.kind not in _KINDS or Kind(entry.kind).is_metadata != self.metadata:
            raise CorruptDataError(f"a record of kind {entry.kind} has no place in this index")
        if self.metadata:
            raw: Buffer = general.decode(entry.codec, found.payload, entry.raw)
        else:
            raw = memoryview(bytearray(entry.raw))
            self._decoder().decode(entry.codec, found.payload, raw)
        check_raw(entry, found.checksum, raw)
        if identify(Kind(entry.kind), raw) != entry.id:
            raise CorruptDataError(NOT_ITS_ID)

    def _decoder(self) -> Decoder:
        decoder: Decoder | None = getattr(self._local, "decoder", None)
        if decoder is None:
            decoder = self._local.decoder = Decoder()
        return decoder


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


def _runs(index: Index, rows: NDArray[np.int64], longest: int = READ_SIZE) -> Iterator[_Run]:
    """Group rows of `index`, in the order of packs and offsets, into runs to read at once."""
    table = columns(index)[1][rows]
    order = np.lexsort((table["offset"], table["pack"]))
    rows, table = rows[order], table[order]
    ends = table["offset"].astype(np.int64) + record_sizes(table)
    run: _Run | None = None
    places = (table["pack"].tolist(), table["offset"].tolist(), ends.tolist())
    for row, pack_number, start, stop in zip(rows.tolist(), *places, strict=True):
        pack = index.packs[pack_number]
        if (
            run is None
            or run.pack != pack
            or start - run.stop > _MAX_GAP
            or stop - run.start > longest
        ):
            if run is not None:
                yield run
            run = _Run(pack, start, stop, [])
        run.rows.append(row)
        run.stop = max(run.stop, stop)
    if run is not None:
        yield run
