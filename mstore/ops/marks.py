"""Marking what some commits reach, as one bit per row of the live indexes.

A bit per row, not a set of ids: a million chunks take a megabyte.
"""

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from mstore.bulkindex import Ids, as_ids, check_rows, columns, search
from mstore.database import Database
from mstore.errors import CorruptDataError
from mstore.ids import ID_SIZE, Id, Kind
from mstore.index import Index

_AT_ONCE = 1 << 16


class Marks:
    """Which rows of some indexes are in use. Of an id in several only what counts is marked."""

    def __init__(self, indexes: list[Index]) -> None:
        """Read the indexes; raises CorruptDataError when one is damaged.

        What is not marked will be deleted, so a flipped bit here would cost a sound pack.
        """
        for index in indexes:
            check_rows(index)
        self.indexes = indexes
        self.masks = [np.zeros(len(index), np.bool_) for index in indexes]

    def marked(self, ids: Ids) -> NDArray[np.bool_]:
        """Which of these ids (n, 32) are marked; shape (n,)."""
        numbers, rows = search(self.indexes, ids)
        marked = np.zeros(len(ids), np.bool_)
        for number, mask in enumerate(self.masks):
            places = np.flatnonzero(numbers == number)
            marked[places] = mask[rows[places]]
        return marked

    def add(self, ids: Ids) -> None:
        """Mark these ids and the bases they are coded against.

        `ids` is (n, 32) uint8. Raises CorruptDataError when one is in no index.
        """
        while len(ids):
            numbers, rows = search(self.indexes, ids)
            if (lost := np.flatnonzero(numbers < 0)).size:
                raise CorruptDataError(
                    f"object {ids[lost[0]].tobytes().hex()[:12]} is missing from the repository",
                    hint="run: mstore verify",
                )
            bases = [np.zeros((0, ID_SIZE), np.uint8)]
            for number, (index, mask) in enumerate(zip(self.indexes, self.masks, strict=True)):
                found = rows[numbers == number]
                bases.append(_bases(index, found[~mask[found]]))
                mask[found] = True
            ids = np.concatenate(bases)


def _bases(index: Index, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
    numbers = columns(index)[1]["base"][rows]
    return as_ids(index.bases)[np.unique(numbers[numbers > 0]).astype(np.int64) - 1]


class Reached:
    """Everything that some commits consist of: marks over the metadata and the chunk indexes."""

    def __init__(self, db: Database) -> None:
        self.db = db
        self.metadata = Marks(db.metadata_indexes())
        self.chunks = Marks(db.chunk_indexes())
        self.commits = 0
        self._seen: set[Id] = set()
        self._waiting = {Kind.COMMIT: bytearray(), Kind.CHUNK: bytearray()}

    def add(self, commits: Iterable[Id]) -> None:
        """Mark these commits (not their parents) with their snapshots, manifests and chunks."""
        for identifier in commits:
            self.commits += 1
            snapshot = self.db.commit(identifier).snapshot
            self._mark(Kind.COMMIT, identifier)
            if self._is_new(snapshot):
                self._mark(Kind.COMMIT, snapshot)
                self._add_files(snapshot)
        for kind in self._waiting:
            self._flush(kind)

    def _add_files(self, snapshot: Id) -> None:
        for entry in self.db.snapshot(snapshot).files.values():
            if self._is_new(entry.manifest):
                self._mark(Kind.COMMIT, entry.manifest)
                self._mark(Kind.CHUNK, self.db.chunk_ids(entry.manifest))

    def _is_new(self, identifier: Id) -> bool:
        new = identifier not in self._seen
        self._seen.add(identifier)
        return new

    def _mark(self, kind: Kind, ids: bytes) -> None:
        waiting = self._waiting[kind]
        waiting += ids
        if len(waiting) >= _AT_ONCE * ID_SIZE:
            self._flush(kind)

    def _flush(self, kind: Kind) -> None:
        waiting = self._waiting[kind]
        # Each id is looked up once, however many versions share it.
        ids = np.unique(as_ids(bytes(waiting)), axis=0) if waiting else as_ids(b"")
        (self.metadata if kind.is_metadata else self.chunks).add(ids)
        waiting.clear()
