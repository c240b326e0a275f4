"""Writing: pieces of raw bytes become chunks, records, packs and indexes, then one root.

A `Session` holds all that one operation adds. Nothing of it is visible to anyone until `publish`
names its indexes in a new root; what a failed or killed session stored is garbage for gc.
"""

import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from typing import TypeVar

import numpy as np

from mstore.bulkindex import as_ids, columns, locate, locate_with_bases, merge
from mstore.codecs import general
from mstore.database import Database
from mstore.distinct import distinct
from mstore.errors import MstoreError, NotFoundError, StorageError
from mstore.ids import Buffer, Id, Kind
from mstore.index import Index, IndexRef, encode_entries, new_index_name
from mstore.objects import MetadataObject, encode_object
from mstore.pack import Entry, PackWriter, Payload, Record, pack_key
from mstore.root import Root, SketchRef
from mstore.sketches import Files, Rows, file_row, merge_sketches, store_sketches
from mstore.storage.base import Storage

Ref = TypeVar("Ref", bound=IndexRef | SketchRef)

PACK_SIZE = 32 << 20
"""Packs are stored when they have grown to this many bytes."""

_MERGE_FACTOR = 4
_PUTS_AT_ONCE = 2
_ENTRIES_PER_INDEX = 1 << 17


class StaleSessionError(Exception):
    """gc took something this session relies on; the operation starts over with a new session."""


class _Shelf:
    """Records of one kind on their way into packs and indexes."""

    def __init__(self, session: "Session", kind: Kind) -> None:
        self.session = session
        self.pack = PackWriter(kind)
        self.kind = kind
        self.pack_keys: list[str] = []
        self.entries: list[Entry] = []
        self.claimed: set[Id] = set()
        self.refs: list[IndexRef] = []
        self.indexes: list[Index] = []
        self.relied = bytearray()
        self.packed = 0

    def holds(self, identifier: Id) -> bool:
        """Whether this session stores `identifier` itself."""
        return identifier in self.claimed or any(i.find(identifier) for i in self.indexes)

    def full(self) -> PackWriter:
        """The open pack, after sealing one that has grown enough."""
        if self.pack.size >= PACK_SIZE:
            self.seal()
        return self.pack

    def seal(self) -> None:
        """Send the open pack off to be stored and begin another."""
        if self.pack.entries:
            key = pack_key(self.pack.name)
            self.session.put_later(key, self.pack.parts)
            self.pack_keys.append(key)
            self.entries.extend(self.pack.entries)
            self.packed += self.pack.size
            self.pack = PackWriter(self.kind)
        if len(self.entries) >= _ENTRIES_PER_INDEX:
            self.store_index()

    def store_index(self) -> None:
        """Move the entries collected so far from memory into a stored index."""
        if self.entries:
            ref = store_index(self.session.db.storage, encode_entries(self.entries))
            self.refs.append(ref)
            try:
                self.indexes.extend(self.session.db.opened([ref]))
            except NotFoundError:
                raise StaleSessionError from None
            self.claimed.difference_update(entry.id for entry in self.entries)
            self.entries.clear()


class Session:
    """What one operation adds to a repository, dedup included."""

    def __init__(self, db: Database) -> None:
        self.db = db
        self._lock = threading.Lock()
        self._putter = ThreadPoolExecutor(_PUTS_AT_ONCE, "mstore-put")
        self._puts: list[Future[bool]] = []
        self._chunks = _Shelf(self, Kind.CHUNK)
        self._metadata = _Shelf(self, Kind.COMMIT)
        self._files: list[Files] = []
        self._sketches: list[Rows] = []
        self._sketch_refs: list[SketchRef] = []

    def __enter__(self) -> "Session":
        return self

    def __exit__(self, *_: object) -> None:
        self._putter.shutdown(cancel_futures=True)

    @property
    def stored(self) -> int:
        """Bytes of packs, indexes and sketches handed to the storage so far."""
        refs = (*self._chunks.refs, *self._metadata.refs)
        sketches = sum(ref.size for ref in self._sketch_refs)
        return self.stored_packs + sum(ref.size for ref in refs) + sketches

    @property
    def stored_packs(self) -> int:
        """Bytes of packs handed to the storage so far."""
        return self._chunks.packed + self._metadata.packed

    @property
    def adds_chunks(self) -> bool:
        """Whether any chunk was new to the repository."""
        return bool(self._chunks.claimed or self._chunks.refs)

    def claim(self, ids: Sequence[Id]) -> list[bool]:
        """Which of these chunks the caller must encode and append: True for each new one.

        The others are in the repository, or were claimed before. Thread safe. Many at once,
        because the look-up in numpy costs about the same for one id as for a hundred.
        """
        stored = locate(self.db.chunk_indexes(), as_ids(b"".join(ids))).found
        shelf = self._chunks
        answers = []
        with self._lock:
            for identifier, known in zip(ids, stored.tolist(), strict=True):
                if known:
                    shelf.relied += identifier
                ours = not known and not shelf.holds(identifier)
                if ours:
                    shelf.claimed.add(identifier)
                answers.append(ours)
        return answers

    def chunk_indexes(self) -> list[Index]:
        """The indexes of the repository, and before them those that this session has stored."""
        return [*reversed(self._chunks.indexes), *self.db.chunk_indexes()]

    def new_indexes(self) -> list[IndexRef]:
        """The indexes of chunks that this session has stored; no root names them yet."""
        return list(self._chunks.refs)

    def append(self, record: Record) -> None:
        """Add an encoded chunk that was claimed. From one thread, in the order of reading.

        The base of a chunk that has one must be in the repository or have been appended before,
        and need not have been claimed; `publish` sees that it is still there, with a smaller depth.
        """
        self._chunks.full().append(record)

    def append_stored(self, payload: Payload) -> None:
        """Add a record as another pack holds it, of any kind. From one thread."""
        shelf = self._metadata if Kind(payload.entry.kind).is_metadata else self._chunks
        shelf.full().append_stored(payload)

    def add_object(self, thing: MetadataObject) -> Id:
        """Store a metadata object unless it is there already; returns its id. From one thread."""
        kind, identifier, raw = encode_object(thing)
        shelf = self._metadata
        if shelf.holds(identifier):
            return identifier
        if self.db.find(kind, identifier) is not None:
            shelf.relied += identifier
            return identifier
        codec, payload, checksum = general.encode_checked(raw)
        shelf.full().append(Record(identifier, kind, codec, len(raw), checksum, payload))
        shelf.claimed.add(identifier)
        return identifier

    def add_sketches(self, manifest: Id, model: str, path: str, rows: Rows) -> None:
        """Keep sketches of tensors in a file of `model`; which file is filled in here."""
        if not len(rows):
            return
        rows = rows.copy()
        rows["file"] = len(self._files)
        self._files.append(file_row(manifest, model, path))
        self._sketches.append(rows)

    def put_later(self, key: str, parts: Sequence[Buffer]) -> None:
        """Store a pack in the background; few at once, so that memory stays bounded."""
        if len(self._puts) >= _PUTS_AT_ONCE:
            self._finish(self._puts.pop(0))
        self._puts.append(self._putter.submit(self.db.storage.put, key, parts))

    def _finish(self, put: "Future[bool]") -> None:
        if not put.result():
            raise StorageError("a pack's random name was taken already; nothing was published")

    def store(self) -> tuple[list[IndexRef], list[IndexRef]]:
        """Make all packs and their indexes durable; the new indexes of chunks and of metadata."""
        for shelf in (self._chunks, self._metadata):
            shelf.seal()
        while self._puts:
            self._finish(self._puts.pop(0))
        for shelf in (self._chunks, self._metadata):
            shelf.store_index()
        return self._chunks.refs, self._metadata.refs

    def publish(self, change: Callable[[Root], Root], *, action: str, author: str) -> Root:
        """Make everything durable, then name it in a new root made by `change`.

        Raises what `change` raises (ConflictError), and StaleSessionError when gc removed
        something this session stored or relied on.
        """
        sketches_stored = self._putter.submit(self._store_sketches)
        self.store()
        sketches_stored.result()
        self.db.refresh()
        merged_sketches = self._merge_sketches((*self.db.root.sketches, *self._sketch_refs))
        merges = (
            self._merge((*self.db.root.indexes, *self._chunks.refs)),
            self._merge((*self.db.root.metadata_indexes, *self._metadata.refs)),
        )

        def apply(root: Root) -> Root:
            self._check_relied(root)
            indexes = self._with_new(root, root.indexes, self._chunks.refs, merges[0])
            metadata = self._with_new(root, root.metadata_indexes, self._metadata.refs, merges[1])
            # Sketches are advice: without those that gc took, the commit is whole.
            new_sketches = [ref for ref in self._sketch_refs if self._is_safe(root, ref.key)]
            sketches = self._with_new(root, root.sketches, new_sketches, merged_sketches)
            keys = {ref.key for ref in (*indexes, *metadata)} | {ref.key for ref in sketches}
            keys.update(self._chunks.pack_keys, self._metadata.pack_keys)
            # What is named here is no longer on its way out.
            rescued = replace(root, condemned=root.condemned - keys)
            changed = replace(change(rescued), indexes=indexes, metadata_indexes=metadata)
            return replace(changed, sketches=sketches)

        return self.db.publish(apply, action=action, author=author)

    def _merge(self, refs: Sequence[IndexRef]) -> "tuple[set[str], IndexRef] | None":
        """Merge indexes of about the same size; the inputs' names and the result."""
        if not (chosen := choose_merge(refs)):
            return None
        try:
            opened = self.db.opened(chosen)
        except NotFoundError:
            # gc took one that a newer root no longer lists. Merging can wait.
            return None
        merged = store_index(self.db.storage, merge(opened, [None] * len(opened)))
        return {ref.name for ref in chosen}, merged

    def _store_sketches(self) -> None:
        """Make the sketches durable; where they cannot be stored, do without them."""
        if self._sketches:
            files, rows = np.concatenate(self._files), np.concatenate(self._sketches)
            with suppress(MstoreError):
                self._sketch_refs.append(store_sketches(self.db.storage, files, rows))
            self._sketches.clear()

    def _merge_sketches(self, refs: Sequence[SketchRef]) -> "tuple[set[str], SketchRef] | None":
        """As `_merge`, for sketches."""
        if not (chosen := choose_merge(refs)):
            return None
        try:
            merged = store_sketches(self.db.storage, *merge_sketches(self.db.storage, chosen))
        except MstoreError:
            return None
        return {ref.name for ref in chosen}, merged

    def _with_new(
        self,
        root: Root,
        listed: tuple[Ref, ...],
        new: Sequence[Ref],
        merged: "tuple[set[str], Ref] | None",
    ) -> tuple[Ref, ...]:
        """What to list: what is listed and what is new, or their merger where it holds."""
        refs: tuple[Ref, ...] = (*listed, *new)
        # A merger stands in for its inputs only while all of them are listed.
        if merged is None or not merged[0] <= {ref.name for ref in refs}:
            return refs
        if not self._is_safe(root, merged[1].key):
            return refs
        kept = tuple(ref for ref in refs if ref.name not in merged[0])
        return (*kept, merged[1])

    def _check_relied(self, root: Root) -> None:
        """Raise StaleSessionError unless all this session stored or relies on is there to stay."""
        keys: set[str] = set()
        for shelf, listed in (
            (self._chunks, root.indexes),
            (self._metadata, root.metadata_indexes),
        ):
            keys.update(shelf.pack_keys, (ref.key for ref in shelf.refs))
            indexes = [*reversed(shelf.indexes), *self.db.opened(listed)]
            _check_depths(shelf.indexes, indexes)
            bases = b"".join(bytes(index.bases) for index in shelf.indexes)
            try:
                found = locate_with_bases(indexes, as_ids(bytes(shelf.relied) + bases))
            except NotFoundError:
                raise StaleSessionError from None
            keys.update(pack_key(found.packs[at]) for at in distinct(found.rows["pack"]))
        if not all(self._is_safe(root, key) for key in keys):
            raise StaleSessionError

    def _is_safe(self, root: Root, key: str) -> bool:
        return key not in root.doomed and self.db.storage.head(key) is not None


def _check_depths(stored: Iterable[Index], indexes: Sequence[Index]) -> None:
    """Raise StaleSessionError unless the bases of all records in `stored` are found below them.

    That is, the record of the base that counts in `indexes` has a smaller depth than what is coded
    against it. So the depth of what counts for an id never grows while others are coded against
    it, and no writers at once can make chunks each other's base.
    """
    for index in stored:
        rows = columns(index)[1]
        coded = rows[rows["base"] > 0]
        bases = locate(indexes, as_ids(index.bases))
        depths = bases.rows["depth"][coded["base"].astype(np.int64) - 1]
        if not bases.found.all() or (depths >= coded["depth"]).any():
            raise StaleSessionError


def store_index(storage: Storage, parts: list[Buffer]) -> IndexRef:
    """Store an index object; returns how the root refers to it."""
    index = Index("new", memoryview(b"".join(parts)))
    ref = IndexRef(new_index_name(), len(index), sum(len(part) for part in parts))
    storage.put(ref.key, parts)
    return ref


def choose_merge(refs: Iterable[Ref]) -> list[Ref]:
    """The indexes (or sketches) to merge so that few remain, each record being merged few times.

    Indexes are of one level when their sizes are within a factor of four; four of one level
    become one of the next (a log-structured merge). Returns none when nothing is due.
    """
    levels: dict[int, list[Ref]] = {}
    for ref in refs:
        levels.setdefault((max(ref.count, 1).bit_length() - 1) // 2, []).append(ref)
    chosen: list[Ref] = []
    for level in range(max(levels, default=0) + 1):
        members = levels.get(level, [])
        # What was chosen below becomes one more member of this level.
        if len(members) + bool(chosen) >= _MERGE_FACTOR:
            chosen.extend(members)
        elif chosen:
            break
    return chosen
