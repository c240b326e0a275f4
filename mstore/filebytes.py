"""The bytes of a file at any offset, read by the chunks that they lie in."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from copy import copy
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mstore.bulkindex import as_ids
from mstore.chunkreader import ChunkReader, MemorySink, Wanted
from mstore.distinct import distinct
from mstore.objects import Manifest, SegmentChunks

HOLD_BYTES = 64 << 20
"""Bytes of a file that are kept in memory for all that is to be read of them."""

_GAP = 64 << 10
"""Bytes that are read in vain rather than to begin again behind them."""


class FileBytes(ABC):
    """The content of a file of which `manifest` tells; a `layout.ByteReader`."""

    def __init__(self, manifest: Manifest) -> None:
        self._manifest = manifest
        self._held: tuple[int, NDArray[np.uint8]] | None = None

    @property
    def size(self) -> int:
        """Bytes in the file."""
        return self._manifest.size

    @cached_property
    def _ends(self) -> NDArray[np.int64]:
        """Where each chunk ends in the file."""
        lengths = np.fromiter((length for _, length in self._manifest.chunks()), np.int64)
        return np.cumsum(lengths)

    def read(self, offset: int, length: int) -> bytes:
        """At most `length` bytes from `offset`; fewer only where the file ends.

        Raises CorruptDataError when a chunk is damaged.
        """
        length = max(0, min(length, self.size - offset))
        return bytes(self.read_ranges([(offset, length)])[0])

    def read_ranges(self, ranges: Sequence[tuple[int, int]]) -> list[memoryview]:
        """The bytes of several (offset, length), which lie inside the file.

        Each chunk is read and decoded once, and takes memory once, however many of them want it.
        """
        first = min((at for at, _ in ranges), default=0)
        last = max((at + length for at, length in ranges), default=0)
        if (held := self._in_memory(first, last)) is not None:
            begin, raw = held
            return [raw.data[at - begin : at - begin + length] for at, length in ranges]
        numbers, wanted = self._numbers(ranges)
        starts, lengths = self._starts(numbers), self._ends[numbers] - self._starts(numbers)
        places = np.cumsum(lengths) - lengths
        out = memoryview(bytearray(int(lengths.sum())))
        self._fetch(starts, Wanted(self._ids[numbers], places, lengths), out)
        found = []
        for (offset, length), at in zip(ranges, wanted, strict=True):
            first = int(places[at]) + offset - int(starts[at]) if length else 0
            found.append(out[first : first + length])
        return found

    def read_runs(self, starts: NDArray[np.int64], run: int) -> tuple[int, NDArray[np.uint8]]:
        """The bytes from the first to the last of some runs, and where in the file they begin.

        The runs lie inside the file, are of `run` bytes each, at least one, and begin at `starts`,
        of which the first is the least and the last the greatest. Only the chunks that they touch
        are read, and only their pages are ever touched, so that the holes between them cost no
        memory; what is in these means nothing.
        """
        if (held := self._in_memory(int(starts[0]), int(starts[-1]) + run)) is not None:
            return held
        count = len(self._ends)
        touched = np.zeros(count + 1, np.int64)
        np.add.at(touched, np.searchsorted(self._ends, starts, side="right"), 1)
        np.add.at(touched, np.searchsorted(self._ends, starts + (run - 1), side="right") + 1, -1)
        numbers = np.flatnonzero(np.cumsum(touched))
        begins, ends = self._starts(numbers), self._ends[numbers]
        out: NDArray[np.uint8] = np.empty(int(ends[-1] - begins[0]), np.uint8)
        wanted = Wanted(self._ids[numbers], begins - begins[0], ends - begins)
        self._fetch(begins, wanted, out.data)
        return int(begins[0]), out

    def hold(self, begin: int, end: int) -> "FileBytes":
        """The same file with the bytes from `begin` to `end` read and kept in memory.

        For many small reads there, each of which would read and decode whole chunks.
        """
        held = copy(self)
        if begin < end:
            held._held = self.read_runs(np.array([begin]), end - begin)
        return held

    def chunks(self, ranges: Sequence[tuple[int, int]]) -> tuple[SegmentChunks, list[int]]:
        """The chunks that hold these ranges, each once, and where in the file each begins."""
        numbers, _ = self._numbers(ranges)
        lengths = (self._ends[numbers] - self._starts(numbers)).tolist()
        held = SegmentChunks(sum(lengths), self._ids[numbers].tobytes(), lengths=tuple(lengths))
        return held, self._starts(numbers).tolist()

    def _in_memory(self, begin: int, end: int) -> tuple[int, NDArray[np.uint8]] | None:
        """What is held and where it begins, if it has all from `begin` to `end`."""
        if self._held is None:
            return None
        start, raw = self._held
        return self._held if start <= begin and end <= start + len(raw) else None

    @abstractmethod
    def _fetch(self, starts: NDArray[np.int64], wanted: Wanted, out: memoryview) -> None:
        """Put chunks, which begin at `starts` in the file, to their places in `out`."""

    @cached_property
    def _ids(self) -> NDArray[np.uint8]:
        return as_ids(self._manifest.chunk_ids())

    def _starts(self, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        return np.where(numbers > 0, self._ends[numbers - 1], 0)

    def _numbers(self, ranges: Sequence[tuple[int, int]]) -> tuple[NDArray[np.int64], list[int]]:
        """The numbers of the chunks that the ranges touch, and where each range begins in them."""
        offsets, lengths = np.array(ranges, np.int64).reshape(-1, 2).T
        first = np.searchsorted(self._ends, offsets, side="right")
        last = np.searchsorted(self._ends, offsets + lengths - 1, side="right")
        spans = zip(first.tolist(), np.where(lengths > 0, last + 1, first).tolist(), strict=True)
        touched = [np.arange(low, high) for low, high in spans]
        if len(touched) == 1:
            return touched[0], [0]
        numbers = distinct(np.concatenate([np.zeros(0, np.int64), *touched]))
        return numbers, np.searchsorted(numbers, first).tolist()


class StoredBytes(FileBytes):
    """The content of a file in the repository; reading raises CorruptDataError."""

    def __init__(self, manifest: Manifest, reader: ChunkReader) -> None:
        super().__init__(manifest)
        self._reader = reader

    def _fetch(self, starts: NDArray[np.int64], wanted: Wanted, out: memoryview) -> None:
        self._reader.read(wanted, MemorySink(out))


class Reach(NamedTuple):
    """The bytes of a file from `begin` to `end`."""

    content: FileBytes
    begin: int
    end: int

    def joined(self, other: "Reach", most: int) -> "Reach | None":
        """Both and what is between, if this is little and all together at most `most` bytes."""
        begin, end = min(self.begin, other.begin), max(self.end, other.end)
        between = max(self.begin, other.begin) - min(self.end, other.end)
        if self.content is not other.content or end - begin > most or between > _GAP:
            return None
        return Reach(self.content, begin, end)


@dataclass(frozen=True, slots=True)
class Group:
    """Some of what is to be read, by numbers, and all that these need of one or more files."""

    numbers: list[int]
    reaches: tuple[Reach, ...]

    def contents(self) -> tuple[FileBytes, ...]:
        """The files, to be read from by whoever reads what is in the group.

        They have in memory what several share. Raises CorruptDataError as reading does.
        """
        if len(self.numbers) == 1:
            return tuple(one.content for one in self.reaches)
        return tuple(one.content.hold(one.begin, one.end) for one in self.reaches)


def neighbours(wanted: Sequence[tuple[Reach, ...]], most: int = HOLD_BYTES) -> Iterator[Group]:
    """Groups of what lies together, in the order of the first file.

    Each of `wanted` is what something needs of one file, or of each of several; no group needs
    more than `most` bytes of one, but of a single member.
    """
    files = {one[0].content: 0 for one in wanted}
    places = {content: number for number, content in enumerate(files)}
    starts = [(places[one[0].content], one[0].begin) for one in wanted]
    group: list[int] = []
    reaches: list[Reach] = []
    for number in sorted(range(len(wanted)), key=starts.__getitem__):
        # Of no group yet there are no reaches, and nothing to be joined with.
        both = zip(reaches, wanted[number], strict=False)
        joined = [one for a, b in both if (one := a.joined(b, most)) is not None]
        if group and len(joined) < len(reaches):
            yield Group(group, tuple(reaches))
            group = []
        reaches = joined if group else list(wanted[number])
        group.append(number)
    if group:
        yield Group(group, tuple(reaches))
