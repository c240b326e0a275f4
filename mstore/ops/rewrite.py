"""Moving records into new packs, and deleting what is no longer needed; what gc and repack share.

Both store the new packs and indexes first, publish a root that lists these and has the old ones as
`condemned`, and then call `delete_condemned`, which publishes them as `doomed`, deletes them, and
publishes that they are gone. So a writer that relies on one of them notices at the latest when it
publishes, and a reader finds in the newest root where its chunks have moved.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from mstore.bulkindex import columns, merge
from mstore.chunkstore import Session, store_index
from mstore.database import Database
from mstore.index import Index, IndexRef
from mstore.pack import PACK_HEADER_SIZE, pack_key, read_record
from mstore.readplan import record_sizes
from mstore.storage.base import Storage


@dataclass(frozen=True, slots=True)
class Limits:
    """Which packs are copied.

    Those with less than the part `min_live` of their bytes alive, and, where with what is copied of
    these at least `many` are of less than `small` bytes, all of them.
    """

    min_live: float
    small: int
    many: int


@dataclass(frozen=True, slots=True)
class Shelf:
    """The plan for one kind of packs: the listed indexes, which rows live, which packs to copy.

    `refs` are the indexes that the root lists. `indexes` hold all their rows, maybe merged; of
    each row `masks` tells whether it lives. `live` is the bytes of the live records of each pack
    that has any; those of them in `rewrite` are to be copied.
    """

    refs: tuple[IndexRef, ...]
    indexes: Sequence[Index]
    masks: Sequence[NDArray[np.bool_]]
    live: Mapping[str, int]
    rewrite: frozenset[str]

    @classmethod
    def plan(
        cls,
        refs: tuple[IndexRef, ...],
        indexes: Sequence[Index],
        masks: Sequence[NDArray[np.bool_]],
        sizes: Mapping[str, int],
        limits: Limits,
    ) -> "Shelf":
        """Choose the packs to copy; `sizes` are the bytes of all stored objects, by key."""
        live: dict[str, int] = {}
        for index, mask in zip(indexes, masks, strict=True):
            rows = columns(index)[1][mask]
            totals = np.bincount(rows["pack"], record_sizes(rows), len(index.packs))
            for number in np.flatnonzero(totals):
                name = index.packs[number]
                live[name] = live.get(name, 0) + int(totals[number])
        size = {name: sizes.get(pack_key(name), 0) for name in live}
        small = [name for name in live if size[name] < limits.small]
        rewrite = {
            name for name in live if live[name] < limits.min_live * (size[name] - PACK_HEADER_SIZE)
        }
        # What is copied may come to a small pack itself.
        if len(set(small) - rewrite) + bool(rewrite) >= limits.many:
            rewrite.update(small)
        return cls(refs, indexes, masks, live, frozenset(rewrite))

    @property
    def changes(self) -> bool:
        """Whether the list of indexes must change: a listed row is dead or moves."""
        return bool(self.rewrite) or not all(mask.all() for mask in self.masks)

    @property
    def bytes_to_copy(self) -> int:
        """Bytes of the records that `copy` appends."""
        return sum(self.live[name] for name in self.rewrite)

    def needed(self) -> set[str]:
        """The keys of packs that stay, and of the indexes if they do."""
        packs = {pack_key(name) for name in self.live.keys() - self.rewrite}
        return packs if self.changes else packs | {ref.key for ref in self.refs}

    def copy(
        self, storage: Storage, session: Session, progress: Callable[[int], None] | None
    ) -> None:
        """Append every live record of the packs to be copied, pack by pack in order."""
        for index, mask in zip(self.indexes, self.masks, strict=True):
            table = columns(index)[1]
            rows = np.flatnonzero(mask & _in_packs(index, self.rewrite))
            for row in rows[np.lexsort((table["offset"][rows], table["pack"][rows]))]:
                entry = index.entry(int(row))
                session.append_stored(read_record(storage, entry))
                if progress is not None:
                    progress(entry.record_size)

    def trimmed(self, storage: Storage) -> tuple[IndexRef, ...]:
        """The indexes, less the rows that are dead or are copied elsewhere."""
        if not self.changes:
            return self.refs
        keep = [
            mask & ~_in_packs(index, self.rewrite)
            for index, mask in zip(self.indexes, self.masks, strict=True)
        ]
        if not any(mask.any() for mask in keep):
            return ()
        return (store_index(storage, merge(self.indexes, keep)),)


def _in_packs(index: Index, packs: frozenset[str]) -> NDArray[np.bool_]:
    """Which rows of `index` lie in one of `packs`; shape (n,)."""
    chosen = np.array([name in packs for name in index.packs], np.bool_)
    return chosen[columns(index)[1]["pack"]] if len(chosen) else np.zeros(len(index), np.bool_)


def delete_condemned(db: Database, author: str, *, action: str) -> None:
    """Doom, delete and clear what is condemned, also by others that did not come to the end.

    `action` says in the log who does it.
    """
    doomed = db.publish(
        lambda root: (
            replace(root, condemned=frozenset(), doomed=root.doomed | root.condemned)
            if root.condemned
            else None
        ),
        action=f"{action}: doom",
        author=author,
    ).doomed
    for key in sorted(doomed):
        db.storage.delete(key)
    db.publish(
        lambda root: replace(root, doomed=root.doomed - doomed) if root.doomed & doomed else None,
        action=f"{action}: done",
        author=author,
    )
