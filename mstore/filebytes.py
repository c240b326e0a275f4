"""The bytes of a file at any offset, read by the chunks that they lie in."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from mstore.bulkindex import as_ids
from mstore.chunkreader import ChunkReader, MemorySink, Wanted
from mstore.objects import Manifest, SegmentChunks


class FileBytes(ABC):
    """The content of a file of which `manifest` tells; a `layout.ByteReader`."""

    def __init__(self, manifest: Manifest) -> None:
        self._manifest = manifest

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
        wanted = [self._numbers(offset, length) for offset, length in ranges]
        numbers = np.unique(np.concatenate([np.zeros(0, np.int64), *wanted]))
        starts, lengths = self._starts(numbers), self._ends[numbers] - self._starts(numbers)
        places = np.cumsum(lengths) - lengths
        out = memoryview(bytearray(int(lengths.sum())))
        self._fetch(starts, Wanted(self._ids[numbers], places, lengths), out)
        found = []
        for (offset, length), mine in zip(ranges, wanted, strict=True):
            if not len(mine):
                found.append(out[:0])
                continue
            at = int(np.searchsorted(numbers, mine[0]))
            first = int(places[at]) + offset - int(starts[at])
            found.append(out[first : first + length])
        return found

    def read_runs(self, starts: NDArray[np.int64], run: int) -> tuple[int, NDArray[np.uint8]]:
        """The bytes from the first to the last of some runs, and where in the file they begin.

        The runs lie inside the file, are of `run` bytes each, at least one, and begin at `starts`,
        of which the first is the least and the last the greatest. Only the chunks that they touch
        are read, and only their pages are ever touched, so that the holes between them cost no
        memory; what is in these means nothing.
        """
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

    def chunks(self, ranges: Sequence[tuple[int, int]]) -> tuple[SegmentChunks, list[int]]:
        """The chunks that hold these ranges, each once, and where in the file each begins."""
        wanted = [self._numbers(offset, length) for offset, length in ranges]
        numbers = np.unique(np.concatenate([np.zeros(0, np.int64), *wanted]))
        lengths = (self._ends[numbers] - self._starts(numbers)).tolist()
        held = SegmentChunks(sum(lengths), self._ids[numbers].tobytes(), lengths=tuple(lengths))
        return held, self._starts(numbers).tolist()

    @abstractmethod
    def _fetch(self, starts: NDArray[np.int64], wanted: Wanted, out: memoryview) -> None:
        """Put chunks, which begin at `starts` in the file, to their places in `out`."""

    @cached_property
    def _ids(self) -> NDArray[np.uint8]:
        return as_ids(self._manifest.chunk_ids())

    def _starts(self, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        return np.where(numbers > 0, self._ends[numbers - 1], 0)

    def _numbers(self, offset: int, length: int) -> NDArray[np.int64]:
        """The numbers of the chunks that a range touches."""
        if length <= 0:
            return np.zeros(0, np.int64)
        first, last = np.searchsorted(self._ends, (offset, offset + length - 1), side="right")
        return np.arange(first, last + 1)


class StoredBytes(FileBytes):
    """The content of a file in the repository; reading raises CorruptDataError."""

    def __init__(self, manifest: Manifest, reader: ChunkReader) -> None:
        super().__init__(manifest)
        self._reader = reader

    def _fetch(self, starts: NDArray[np.int64], wanted: Wanted, out: memoryview) -> None:
        self._reader.read(wanted, MemorySink(out))
