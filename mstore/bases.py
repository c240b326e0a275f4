"""What a new tensor may be coded against, and reading it.

Which stored tensor that is, `basefinder` knows.
"""

from collections.abc import Callable, Sequence

import numpy as np

from mstore.bulkindex import NO_ROW, Closure, as_ids, locate_with_bases
from mstore.chunkreader import ChunkReader, MemorySink, Wanted
from mstore.codecs.base import Base
from mstore.codecs.words import comparable, word_type
from mstore.database import Database
from mstore.dtypes import BY_CODE
from mstore.errors import MstoreError
from mstore.ids import Id
from mstore.index import Index
from mstore.layout import Tensor
from mstore.objects import SegmentChunks
from mstore.threads import Memory

MAX_DEPTH = 4
"""Records that are decoded before any chunk this version writes, at most."""


def can_be_base(segment: SegmentChunks, tensor: Tensor, piece: int) -> bool:
    """Whether the chunks of a stored segment can be bases for `tensor` in pieces of `piece` bytes.

    That is when numbers at one place in both are at one place in the model, and in chunks of one
    number.
    """
    other = segment.tensor
    if other is None or not segment.count:
        return False
    kind, other_kind = word_type(tensor.dtype), word_type(other.dtype)
    return (
        comparable(kind, other_kind)
        and segment.piece // other_kind.size == piece // kind.size
        and _aligned(tensor, other)
    )


def _aligned(one: Tensor, other: Tensor) -> bool:
    """Whether numbers at one place in both are at one place in the model: only rows were added."""
    if one.order != other.order:
        return False
    if np.prod(one.shape, dtype=object) == np.prod(other.shape, dtype=object):
        return True
    if one.order == "F":
        return one.shape[:-1] == other.shape[:-1]
    return one.shape[1:] == other.shape[1:]


class BaseReader:
    """Reads chunks to code others against. Thread safe."""

    def __init__(self, db: Database, indexes: Callable[[], list[Index]] | None = None) -> None:
        """`indexes` as for `ChunkReader`."""
        self._db = db
        self._indexes = indexes or db.chunk_indexes
        self._reader = ChunkReader(db, 1, self._indexes)

    def read(self, ids: Sequence[Id], memory: Memory) -> dict[Id, list[tuple[Id, Base]]]:
        """For each of these chunks: it, its base, the base of that, and so on, as bases.

        Only those that add no more than MAX_DEPTH to the depth; none of those that cannot be
        read, for what is stored anew must not depend on what is damaged. What is read lies in
        `memory`.
        """
        if not ids:
            return {}
        try:
            return self._read(ids, memory)
        except MstoreError:
            if len(ids) == 1:
                return {ids[0]: []}
        # One of them is damaged: the memory of the others is their own then.
        found: dict[Id, list[tuple[Id, Base]]] = {}
        for identifier in ids:
            found.update(self.read([identifier], Memory()))
        return found

    def _read(self, ids: Sequence[Id], memory: Memory) -> dict[Id, list[tuple[Id, Base]]]:
        closure = self._db.retry(lambda: locate_with_bases(self._indexes(), as_ids(b"".join(ids))))
        chains = [_chain(closure, row) for row in range(len(ids))]
        place: dict[Id, int] = {}
        for chain in chains:
            for row in chain:
                place.setdefault(closure.ids[row].tobytes(), row)
        rows = np.fromiter(place.values(), np.int64, len(place))
        lengths = closure.rows["raw"][rows].astype(np.int64)
        starts = np.cumsum(lengths) - lengths
        room = memory.take(int(lengths.sum()))
        self._reader.read(Wanted(closure.ids[rows], starts, lengths), MemorySink(room))
        bases = {
            identifier: (identifier, _base(closure, row, room[start : start + length]))
            for (identifier, row), start, length in zip(
                place.items(), starts.tolist(), lengths.tolist(), strict=True
            )
        }
        return {
            identifier: [bases[closure.ids[row].tobytes()] for row in chain]
            for identifier, chain in zip(ids, chains, strict=True)
        }


def _chain(closure: Closure, row: int) -> list[int]:
    """The row and those of its bases, as far as they can be bases here."""
    chain = []
    while row != NO_ROW:
        found = closure.rows[row]
        if found["depth"] < MAX_DEPTH and int(found["dtype"]) in BY_CODE:
            chain.append(row)
        row = int(closure.base[row])
    return chain


def _base(closure: Closure, row: int, raw: memoryview) -> Base:
    found = closure.rows[row]
    return Base(raw, BY_CODE[int(found["dtype"])], int(found["depth"]))
