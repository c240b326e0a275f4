"""Publishing records that were stored anew in place of the listed ones, whoever else publishes.

A session holds other records of chunks that are listed already, coded against other bases. Which
of the two counts is decided here for each chunk, so that every base is less deep than what is coded
against it; then the indexes list only these.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from mstore.bulkindex import NO_ROW, columns, merge
from mstore.chunkstore import Session, StaleSessionError, store_index
from mstore.database import Database
from mstore.errors import ConflictError, NotFoundError
from mstore.index import Index, IndexRef
from mstore.ops.recode import Recoder, Task
from mstore.ops.table import Table, ids_of
from mstore.pack import pack_key
from mstore.root import Root

_ATTEMPTS = 20
_BATCH = 16


class Choice:
    """For each record that a root lists: does it count, or one that a session has stored?

    `owner` (n,) is the number of the session's record that counts for a row of `table`, NO_ROW for
    the listed one; the session's are numbered through its indexes, the oldest first. `depth` and
    `base` (n,) are those of what counts, the base as a row of `table`.
    """

    def __init__(self, table: Table, stored: Sequence[Index]) -> None:
        self.table = table
        self.stored = stored
        self.owner = np.full(len(table), NO_ROW, np.int64)
        self.depth, self.base = table.depth.copy(), table.base.copy()
        count = 0
        for index in stored:
            # The records of chunks that are not listed any more count for nothing.
            at = table.find(ids_of(index))
            known = at != NO_ROW
            at = at[known]
            self.owner[at] = count + np.flatnonzero(known)
            self.depth[at] = columns(index)[1]["depth"][known]
            self.base[at] = table.bases_of(index)[known]
            count += len(index)
        while (wrong := np.flatnonzero(self._unfit() & (self.owner != NO_ROW))).size:
            # Somebody else has moved the base, or it is gone: the listed record is right then.
            self.owner[wrong] = NO_ROW
            self.depth[wrong], self.base[wrong] = table.depth[wrong], table.base[wrong]

    def _unfit(self) -> NDArray[np.bool_]:
        """Which records have a base that is not there or is not less deep; shape (n,)."""
        # The base NO_ROW takes the last.
        below = np.append(self.depth, np.uint8(255))[self.base]
        unfit: NDArray[np.bool_] = (self.depth > 0) & (below >= self.depth)
        return unfit

    def unfit(self) -> list[Task]:
        """The listed records whose bases have become too deep, to be coded anew.

        Each against what its base is coded against now, if that is less deep than the record is:
        so it does not become deeper itself, and what is coded against it stays right.
        """
        tasks = []
        for row in np.flatnonzero(self._unfit()).tolist():
            bases = []
            # As long as there are unfit ones, bases may lead back to where they began.
            seen = {NO_ROW, row}
            base = int(self.base[row])
            while base not in seen:
                seen.add(base)
                if self.depth[base] < self.table.depth[row]:
                    bases.append((base, int(self.depth[base])))
                base = int(self.base[base]) if self.depth[base] else NO_ROW
            tasks.append(Task(row, tuple(bases)))
        return tasks

    def listed(self) -> NDArray[np.bool_]:
        """Which of the listed records count; shape (n,)."""
        counts: NDArray[np.bool_] = self.owner == NO_ROW
        return counts

    def indexes(self, db: Database, refs: tuple[IndexRef, ...]) -> tuple[IndexRef, ...]:
        """Indexes of what counts and nothing else; those there are, `refs`, if they are such.

        A listed record that does not count must go: `packs` does not name the pack it is in, and
        once that is deleted, a merger of indexes could make the record count.
        """
        if self.listed().all() and sum(ref.count for ref in refs) == len(self.table):
            return refs
        masks, start = [], 0
        mine = np.zeros(sum(map(len, self.stored)), np.bool_)
        mine[self.owner[self.owner != NO_ROW]] = True
        for index in self.stored:
            masks.append(mine[start : start + len(index)])
            start += len(index)
        parts = merge([*self.stored, self.table.index], [*masks, self.listed()])
        return (store_index(db.storage, parts),)

    def packs(self) -> set[str]:
        """The names of the packs that hold what counts."""
        found: set[str] = set()
        start = 0
        mine = self.owner[self.owner != NO_ROW]
        for index in self.stored:
            inside = mine[(mine >= start) & (mine < start + len(index))] - start
            used = np.unique(columns(index)[1]["pack"][inside])
            found.update(index.packs[number] for number in used)
            start += len(index)
        used = np.unique(columns(self.table.index)[1]["pack"][self.listed()])
        return found | {self.table.index.packs[number] for number in used}


class Republisher:
    """Publishes what a session has stored anew."""

    def __init__(self, db: Database, session: Session) -> None:
        self.db = db
        self.session = session
        self._chunks: list[Index] = []
        self._metadata: list[Index] = []

    def publish(self, author: str) -> int:
        """Publish, with what is not needed any more as condemned; returns how many packs that is.

        When others publish meanwhile, it is looked anew what counts, upon their root. Raises
        StaleSessionError when a gc took what was stored, and ConflictError when others always
        publish first.
        """
        self._store()
        for _attempt in range(_ATTEMPTS):
            root = self.db.root
            chunks, metadata = self._settle()
            changed = replace(
                root,
                indexes=chunks.indexes(self.db, root.indexes),
                metadata_indexes=metadata.indexes(self.db, root.metadata_indexes),
                restores=None,
            )
            needed = {ref.key for ref in changed.all_indexes()}
            needed |= {pack_key(name) for name in (*chunks.packs(), *metadata.packs())}
            self._check_stored(root, needed)
            named = {ref.key for ref in root.all_indexes()}
            listed = self.db.opened(root.all_indexes())
            named.update(f"indexes/{index.name}" for index in (*self._chunks, *self._metadata))
            for index in (*listed, *self._chunks, *self._metadata):
                named.update(pack_key(name) for name in index.packs)
            idle = named - needed
            changed = replace(changed, condemned=(root.condemned - needed | idle) - root.doomed)
            if self.db.publish_once(root, changed, action="repack", author=author):
                return sum(key.startswith("packs/") for key in idle)
            self.db.refresh()
        raise ConflictError(
            f"others recorded something during each of {_ATTEMPTS} attempts; nothing was changed",
            hint="run repack again when less is committed",
        )

    def _store(self) -> None:
        """Make durable what the session holds."""
        chunks, metadata = self.session.store()
        try:
            self._chunks = self.db.opened(chunks)[::-1]
            self._metadata = self.db.opened(metadata)[::-1]
        except NotFoundError:
            raise StaleSessionError from None

    def _settle(self) -> tuple[Choice, Choice]:
        """What counts, of chunks and of metadata, after what is unfit has been coded anew."""
        chunks, metadata = Table(self.db.chunk_indexes()), Table(self.db.metadata_indexes())
        while tasks := Choice(chunks, self._chunks).unfit():
            recoder = Recoder(self.db, chunks, deep=False)
            for start in range(0, len(tasks), _BATCH):
                for outcome in recoder.recode(tasks[start : start + _BATCH]):
                    assert outcome.record is not None
                    self.session.append(outcome.record)
            self._store()
        return Choice(chunks, self._chunks), Choice(metadata, self._metadata)

    def _check_stored(self, root: Root, needed: set[str]) -> None:
        """Raise StaleSessionError unless a gc has left what this session stored."""
        stored = {pack_key(n) for index in (*self._chunks, *self._metadata) for n in index.packs}
        for key in stored & needed:
            if key in root.doomed or self.db.storage.head(key) is None:
                raise StaleSessionError


def stored_sizes(db: Database) -> dict[str, int]:
    """The bytes of every pack and index in the storage, by key."""
    found = (info for folder in ("packs/", "indexes/") for info in db.storage.list(folder))
    return {info.key: info.size for info in found}
