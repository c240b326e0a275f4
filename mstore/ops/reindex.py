"""Rebuilding all indexes from packs alone, when an index is damaged or lost.

Every record says all that an index knows of it, so the packs are read from end to end and new
indexes published in place of the listed ones. Nothing is deleted; the old indexes are left to gc.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

from mstore.bulkindex import check_rows, merge
from mstore.chunkstore import store_index
from mstore.database import Database
from mstore.errors import CorruptDataError, MstoreError, NotFoundError
from mstore.ids import Kind
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


@dataclass(slots=True)
class _Builder:
    """Collects entries and stores them as one index; bounded memory."""

    storage: Storage
    entries: list[Entry] = field(default_factory=list)
    refs: list[IndexRef] = field(default_factory=list)

    def add(self, entry: Entry) -> None:
        self.entries.append(entry)
        if len(self.entries) >= _ENTRIES_PER_INDEX:
            self.flush()

    def flush(self) -> None:
        if self.entries:
            self.refs.append(store_index(self.storage, encode_entries(self.entries)))
            self.entries.clear()

    def finish(self) -> tuple[IndexRef, ...]:
        self.flush()
        if len(self.refs) > 1:
            opened = [Index.open(self.storage, ref) for ref in self.refs]
            self.refs = [store_index(self.storage, merge(opened, [None] * len(opened)))]
        return tuple(self.refs)


def reindex(
    db: Database, *, author: str, progress: Callable[[int], None] | None = None
) -> Reindexed:
    """Publish indexes made anew from all packs; safe beside writers.

    Of a damaged pack, the records before the damage are found in it, and the others are taken
    over from the old indexes that are still whole. `progress` is told how many more bytes of
    packs were read. Raises StorageError when reading or writing fails.
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
