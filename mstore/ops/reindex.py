"""Rebuilding all indexes from packs alone, when an index is damaged or lost.

Every record says all that an index knows of it, so the packs are read from end to end and new
indexes published in place of the listed ones. Nothing is deleted; the old indexes are left to gc.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from mstore.bulkindex import NO_ROW, as_ids, check_rows, columns, merge, search
from mstore.chunkstore import store_index
from mstore.database import Database
from mstore.errors import CorruptDataError, MstoreError, NotFoundError
from mstore.ids import Buffer, Kind
from mstore.index import Index, IndexRef, encode_entries
from mstore.pack import Entry, scan
from mstore.root import Root
from mstore.storage.base import ObjectInfo, Storage

_ENTRIES_PER_INDEX = 1 << 17


@dataclass(frozen=True, slots=True)
class Reindexed:
    """What was found: packs read, records indexed, and what was wrong with damaged packs."""

    packs: int
    records: int
    damaged: tuple[str, ...]


class _Builder:
    """Collects entries and makes one index of them; bounded memory.

    On the way they are stored in indexes of entries of one depth each, which are left to gc.
    """

    def __init__(self, storage: Storage) -> None:
        self.storage = storage
        self._waiting: defaultdict[int, list[Entry]] = defaultdict(list)
        self._count = 0
        self._refs: dict[str, IndexRef] = {}
        self._stored: defaultdict[int, list[Index]] = defaultdict(list)

    def add(self, entry: Entry) -> None:
        """Take one more, of any depth."""
        self._waiting[entry.depth].append(entry)
        self._count += 1
        if self._count >= _ENTRIES_PER_INDEX:
            self._flush()

    def finish(self) -> tuple[IndexRef, ...]:
        """One index, if there are any entries, with one record of each id that can be decoded.

        By ascending depth, a record is taken if its base has been taken with a smaller depth. Of
        those of one id that can be taken the least deep one is listed. What cannot be decoded is
        left out: `verify` says whom it is missing from, and a commit that has it stores it anew.
        """
        self._flush()
        taken: list[Index] = []
        for depth in sorted(self._stored):
            indexes = self._stored[depth]
            masks = [_takeable(index, taken) for index in indexes]
            if all(mask.all() for mask in masks):
                taken.extend(indexes)
            elif any(mask.any() for mask in masks):
                taken.append(self._store(merge(indexes, masks)))
        if len(taken) > 1:
            taken = [self._store(merge(taken, [None] * len(taken)))]
        return tuple(self._refs[index.name] for index in taken)

    def _flush(self) -> None:
        for depth, entries in self._waiting.items():
            rest = list({(entry.id, entry.base): entry for entry in reversed(entries)}.values())
            while rest:
                # An index has one record of each id, and any of several bases may be missing.
                unique = {entry.id: entry for entry in rest}
                self._stored[depth].append(self._store(encode_entries(unique.values())))
                rest = [entry for entry in rest if unique[entry.id] is not entry]
        self._waiting.clear()
        self._count = 0

    def _store(self, parts: list[Buffer]) -> Index:
        ref = store_index(self.storage, parts)
        self._refs[ref.name] = ref
        return Index.open(self.storage, ref)


def _takeable(index: Index, taken: Sequence[Index]) -> NDArray[np.bool_]:
    """Which records of `index` have no base or one that is in `taken`; shape (n,)."""
    numbers = columns(index)[1]["base"].astype(np.int64)
    found, _ = search(taken, as_ids(index.bases))
    # Number 0, no base, takes the last.
    known: NDArray[np.bool_] = np.append(found != NO_ROW, True)
    return known[numbers - 1]


def reindex(
    db: Database, *, author: str, progress: Callable[[int], None] | None = None
) -> Reindexed:
    """Publish indexes made anew from all packs; safe beside writers.

    Of a damaged pack, the records before the damage are found in it, and the others are taken
    over from the old indexes that are still whole. Records whose bases are gone are left out.
    `progress` is told how many more bytes of packs were read. Raises StorageError when reading or
    writing fails.
    """
    while True:
        root = db.refresh()
        builders = {False: _Builder(db.storage), True: _Builder(db.storage)}
        damaged: dict[str, str] = {}
        packs = list(_packs(db.storage, root))
        for info in packs:
            name = info.key.removeprefix("packs/")
            try:
                for found in scan(db.storage, name):
                    builders[Kind(found.entry.kind).is_metadata].add(found.entry)
            except NotFoundError:
                continue  # gc was quicker; then there is a newer root, and another round
            except (CorruptDataError, ValueError) as error:
                damaged[name] = str(error)
            if progress is not None:
                progress(info.size)
        for entry in _known_to_old_indexes(db.storage, root, damaged):
            builders[Kind(entry.kind).is_metadata].add(entry)
        changed = replace(
            root,
            indexes=builders[False].finish(),
            metadata_indexes=builders[True].finish(),
            restores=None,
        )
        if db.publish_once(root, changed, action="reindex", author=author):
            records = sum(ref.count for ref in changed.all_indexes())
            return Reindexed(len(packs), records, tuple(damaged.values()))


def _packs(storage: Storage, root: Root) -> Iterator[ObjectInfo]:
    """All packs but those on their way out."""
    leaving = root.condemned | root.doomed
    return (info for info in storage.list("packs/") if info.key not in leaving)


def _known_to_old_indexes(storage: Storage, root: Root, packs: dict[str, str]) -> Iterator[Entry]:
    """The entries in `packs` that whole old indexes know of."""
    for ref in root.all_indexes() if packs else ():
        try:
            index = Index.open(storage, ref)
            check_rows(index)
        except MstoreError:
            continue
        yield from (entry for entry in index if entry.pack in packs)
