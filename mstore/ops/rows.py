"""The rows of several indexes under one numbering, for work on every record of a repository.

A figure per record is then one array, whatever the number of indexes: a million chunks take four
megabytes of it. Rows of the first index come first; an id in several counts in the first.
"""

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from mstore.bulkindex import Ids, as_ids, columns, find_rows
from mstore.ids import ID_SIZE
from mstore.index import Index
from mstore.pack import RECORD_HEADER_SIZE

NO_ROW = -1
"""In place of a row: the id is in no index, or there is no base."""


class Rows:
    """All rows of `indexes`, numbered from 0.

    `raw` and `stored` are the raw bytes of every record and its bytes in its pack, header and
    all; both of shape (rows,), int64.
    """

    def __init__(self, indexes: Sequence[Index]) -> None:
        self.indexes = indexes
        tables = [columns(index)[1] for index in indexes]
        self.raw = _joined([table["raw"] for table in tables])
        self.stored = _joined([record_sizes(table) for table in tables])

    def __len__(self) -> int:
        return len(self.raw)

    def parts(self) -> Iterator[tuple[Index, slice]]:
        """Each index with the range of its rows."""
        start = 0
        for index in self.indexes:
            yield index, slice(start, start + len(index))
            start += len(index)

    def find(self, ids: Ids) -> NDArray[np.int64]:
        """The row of each of `ids` (n, 32), or NO_ROW; shape (n,)."""
        rows = np.full(len(ids), NO_ROW, np.int64)
        for index, part in self.parts():
            open_places = np.flatnonzero(rows < 0)
            if not len(open_places):
                break
            found = find_rows(index, ids[open_places])
            hit = found >= 0
            rows[open_places[hit]] = found[hit] + part.start
        return rows

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


def record_sizes(table: NDArray[np.void]) -> NDArray[np.int64]:
    """Bytes of each record in its pack, by the rows of an index; shape (rows,)."""
    return table["stored"].astype(np.int64) + RECORD_HEADER_SIZE + ID_SIZE * (table["depth"] > 0)


def _joined(arrays: Sequence[NDArray[np.integer]]) -> NDArray[np.int64]:
    return np.concatenate([np.zeros(0, np.int64), *arrays]).astype(np.int64, copy=False)
