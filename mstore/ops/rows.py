"""The rows of several indexes under one numbering, for work on every record of a repository.

A figure per record is then one array, whatever the number of indexes: a million chunks take four
megabytes of it. Rows of the first index come first. Of an id in several indexes the row of least
depth counts, among equals the first.
"""

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from mstore.bulkindex import NO_ROW, Ids, as_ids, columns, search
from mstore.index import MAX_OFFSET, Index
from mstore.pack import Entry
from mstore.readplan import record_sizes


class Rows:
    """All rows of `indexes`, numbered from 0.

    `raw` and `stored` are the raw bytes of every record and its bytes in its pack, header and
    all, `depth` its depth; all of shape (rows,), int64, `depth` uint8.
    """

    def __init__(self, indexes: Sequence[Index]) -> None:
        self.indexes = indexes
        tables = [columns(index)[1] for index in indexes]
        self.raw = _joined([table["raw"] for table in tables])
        self.stored = _joined([record_sizes(table) for table in tables])
        self.depth = np.concatenate([np.zeros(0, np.uint8), *(table["depth"] for table in tables)])

    def __len__(self) -> int:
        return len(self.raw)

    def parts(self) -> Iterator[tuple[Index, slice]]:
        """Each index with the range of its rows."""
        start = 0
        for index in self.indexes:
            yield index, slice(start, start + len(index))
            start += len(index)

    def entry(self, row: int) -> Entry:
        """The entry in row number `row`."""
        for index, part in self.parts():
            if row < part.stop:
                return index.entry(row - part.start)
        raise IndexError(row)

    def places(self) -> tuple[list[str], NDArray[np.int64], NDArray[np.int64]]:
        """Names of packs, each once, and for each row the place of its pack among them.

        Then the offset of each row's record in its pack; both of shape (rows,). Where a row names
        a pack that its index does not have, the place is NO_ROW.
        """
        names: dict[str, int] = {}
        packs, offsets = [], []
        for index, _ in self.parts():
            table = columns(index)[1]
            numbers = [names.setdefault(name, len(names)) for name in index.packs]
            known = np.array([*numbers, NO_ROW], np.int64)
            packs.append(known[np.minimum(table["pack"], len(numbers))])
            offsets.append(np.minimum(table["offset"], MAX_OFFSET).astype(np.int64))
        return list(names), _joined(packs), _joined(offsets)

    def find(self, ids: Ids) -> NDArray[np.int64]:
        """The row that counts of each of `ids` (n, 32), or NO_ROW; shape (n,)."""
        numbers, rows = search(self.indexes, ids)
        starts = np.array([*(part.start for _, part in self.parts()), NO_ROW], np.int64)
        # Number NO_ROW takes the last of the starts.
        return np.where(numbers == NO_ROW, NO_ROW, rows + starts[numbers])

    def coded_against(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The rows that have a base, and the row of that base or NO_ROW; both of shape (n,)."""
        dependents, bases = [], []
        for index, part in self.parts():
            numbers = columns(index)[1]["base"].astype(np.int64)
            # A number beyond the table of bases, in a damaged index, finds no row.
            places = np.append(self.find(as_ids(index.bases)), NO_ROW)
            at = np.flatnonzero(numbers)
            dependents.append(at + part.start)
            bases.append(places[np.minimum(numbers[at], len(places)) - 1])
        return _joined(dependents), _joined(bases)


def _joined(arrays: Sequence[NDArray[np.integer]]) -> NDArray[np.int64]:
    return np.concatenate([np.zeros(0, np.int64), *arrays]).astype(np.int64, copy=False)
