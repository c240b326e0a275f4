"""All records of chunks that count, under one numbering; for planning them anew."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from mstore.bulkindex import NO_ROW, Ids, as_ids, columns, find_rows, merge
from mstore.index import Index, assemble
from mstore.pack import Entry
from mstore.readplan import record_sizes

Numbers = NDArray[np.int64]


class Table:
    """Of each id in some indexes the record that counts; rows are in the order of the ids.

    `depth` (n,) uint8 is the depth of each record, `size` (n,) its bytes in its pack, `base` (n,)
    the row of its base, or NO_ROW where there is none or none is listed. Takes about a hundred
    bytes per record.
    """

    def __init__(self, indexes: Sequence[Index]) -> None:
        """Raises CorruptDataError when an index is damaged."""
        parts = merge(indexes, [None] * len(indexes)) if indexes else assemble([], 0, b"", b"", b"")
        self.index = Index("all", memoryview(b"".join(parts)))
        rows = columns(self.index)[1]
        self.rows = rows
        self.depth: NDArray[np.uint8] = np.ascontiguousarray(rows["depth"])
        self.size = record_sizes(rows)
        self.base = self.bases_of(self.index)

    def __len__(self) -> int:
        return len(self.rows)

    def find(self, ids: Ids) -> Numbers:
        """The row of each of `ids` (n, 32), or NO_ROW; shape (n,)."""
        return find_rows(self.index, ids)

    def bases_of(self, index: Index) -> Numbers:
        """For each row of any index the row of its base here, or NO_ROW; shape (len(index),)."""
        numbers = columns(index)[1]["base"].astype(np.int64)
        # Number 0, no base, takes the last.
        places = np.append(self.find(as_ids(index.bases)), NO_ROW)
        return places[numbers - 1]

    def entry(self, row: int) -> Entry:
        """The entry in row number `row`."""
        return self.index.entry(row)


def ids_of(index: Index) -> Ids:
    """The ids in `index`, in order; shape (n, 32)."""
    keys, rows = columns(index)
    ids = np.empty((len(keys), 4), np.uint64)
    ids[:, 0] = keys.byteswap()
    for column in range(3):
        ids[:, column + 1] = rows[f"tail{column}"]
    return ids.view(np.uint8)
