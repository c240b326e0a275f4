"""An opened repository: the current root, its indexes, and the metadata objects behind them.

This module needs no numpy, so that looking at history starts fast; chunks of weights are written
by `chunkstore` and read by `chunkreader`, both above it.
"""

from collections.abc import Callable, Collection, Iterable, Iterator
from threading import Lock
from typing import TypeVar

from mstore.codecs import general
from mstore.errors import CorruptDataError, MstoreError, NotFoundError
from mstore.ids import Id, Kind, identify
from mstore.index import Index, IndexRef, find_entry
from mstore.objects import Commit, Manifest, Snapshot
from mstore.pack import Entry, Payload, check_raw, read_record
from mstore.root import Root
from mstore.rootlog import RootLog, update
from mstore.storage.base import Storage

R = TypeVar("R")
T = TypeVar("T", Commit, Snapshot, Manifest)

_CACHED_BYTES = 8 << 20
"""Stored bytes of the objects kept in memory, where they take some ten times as much."""


class Database:
    """One repository in a storage, seen through the root that was newest when last looked at."""

    def __init__(self, storage: Storage, root: Root) -> None:
        self.storage = storage
        self.log = RootLog(storage)
        self.root = root
        self._lock = Lock()
        self._opened: dict[str, Index] = {}
        self._cache: dict[Id, Commit | Snapshot | Manifest] = {}
        self._cached_bytes = 0

    @classmethod
    def open(cls, storage: Storage) -> "Database":
        """Open what is there; raises NoRepositoryError when there is nothing."""
        return cls(storage, RootLog(storage).newest())

    @classmethod
    def create(cls, storage: Storage, author: str) -> "Database":
        """Make a new, empty repository; raises StorageError if one is already there."""
        return cls(storage, RootLog(storage).create(author))

    def refresh(self) -> Root:
        """Look for a newer root."""
        return self._adopt(self.log.newest())

    def publish(self, change: Callable[[Root], Root | None], *, action: str, author: str) -> Root:
        """Publish a change of refs or marks (see `rootlog.update`).

        While `change` runs, the root it is given is the current one here.
        """

        def change_current(root: Root) -> Root | None:
            return change(self._adopt(root))

        return self._adopt(update(self.log, change_current, action=action, author=author))

    def publish_once(self, base: Root, changed: Root, *, action: str, author: str) -> Root | None:
        """Publish `changed` as the successor of `base`, or None when another came first."""
        published = self.log.publish(base, changed, action=action, author=author)
        return self._adopt(published) if published else None

    def _adopt(self, root: Root) -> Root:
        """Make `root` the current one; indexes it does not list need not stay open."""
        with self._lock:
            # Of two threads that looked at once, the one that saw less may come last.
            if root.number > self.root.number:
                self.root = root
                live = {ref.name for ref in root.all_indexes()}
                self._opened = {name: index for name, index in self._opened.items() if name in live}
        return root

    def opened(self, refs: Iterable[IndexRef]) -> list[Index]:
        """The given indexes, newest first, mapped; raises NotFoundError when one is gone."""
        indexes = []
        for ref in refs:
            if (index := self._opened.get(ref.name)) is None:
                index = Index.open(self.storage, ref)
                with self._lock:
                    self._opened[ref.name] = index
            indexes.append(index)
        indexes.reverse()
        return indexes

    def chunk_indexes(self) -> list[Index]:
        """The live indexes of chunks, newest first."""
        return self.retry(lambda: self.opened(self.root.indexes))

    def metadata_indexes(self) -> list[Index]:
        """The live indexes of metadata objects, newest first."""
        return self.retry(lambda: self.opened(self.root.metadata_indexes))

    def retry(self, read: Callable[[], R]) -> R:
        """What `read` returns; called again with a newer root while it raises NotFoundError.

        What a root lists may be gone when there is a newer one: gc has moved or removed it. When
        there is none, something is missing that must be there, and CorruptDataError is raised.
        """
        while True:
            number = self.root.number
            try:
                return read()
            except NotFoundError as error:
                if self.refresh().number == number:
                    raise CorruptDataError(error.message, hint="run: mstore verify") from error

    def find(self, kind: Kind, identifier: Id) -> Entry | None:
        """Where the object `identifier` lies, or None when it is in no live index."""
        indexes = self.metadata_indexes() if kind.is_metadata else self.chunk_indexes()
        return find_entry(indexes, kind, identifier)

    def read_record(self, kind: Kind, identifier: Id) -> Payload:
        """The record of an object; raises CorruptDataError when it is missing or damaged."""

        def read() -> Payload:
            if (entry := self.find(kind, identifier)) is None:
                what = f"{kind.name.lower()} {identifier.hex()[:12]}"
                raise NotFoundError(f"{what} is missing from the repository")
            return read_record(self.storage, entry)

        return self.retry(read)

    def read_metadata(self, kind: Kind, identifier: Id) -> bytes:
        """The canonical bytes of a metadata object; raises CorruptDataError when damaged."""
        entry, checksum, payload = self.read_record(kind, identifier)
        try:
            raw = general.decode(entry.codec, payload, entry.raw)
            check_raw(entry, checksum, raw)
            # A checksum proves that nothing broke; only the id proves that nobody forged it.
            if identify(kind, raw) != identifier:
                raise CorruptDataError("it is not what its id says")
        except MstoreError as error:
            name = f"{kind.name.lower()} {identifier.hex()[:12]}"
            raise type(error)(f"{name}: {error.message}", hint=error.hint) from error
        return raw

    def commit(self, identifier: Id) -> Commit:
        """The commit called `identifier`."""
        return self._object(Kind.COMMIT, identifier, Commit)

    def snapshot(self, identifier: Id) -> Snapshot:
        """The snapshot called `identifier`."""
        return self._object(Kind.SNAPSHOT, identifier, Snapshot)

    def manifest(self, identifier: Id) -> Manifest:
        """The manifest called `identifier`."""
        return self._object(Kind.MANIFEST, identifier, Manifest)

    def chunk_ids(self, manifest: Id) -> bytes:
        """The ids of all chunks of a manifest, one after the other; nothing is kept in memory."""
        return Manifest.decode_chunk_ids(self.read_metadata(Kind.MANIFEST, manifest))

    def commits_with_prefix(self, prefix: str) -> list[Id]:
        """The ids of all commits that start with the hexadecimal digits `prefix`."""
        return sorted(
            {
                entry.id
                for index in self.metadata_indexes()
                for entry in index.with_prefix(prefix)
                if entry.kind == Kind.COMMIT
            }
        )

    def ancestry(
        self, tips: Iterable[Id], known: Collection[Id] = ()
    ) -> Iterator[tuple[Id, Commit]]:
        """Every commit reachable from `tips`, each once, in no promised order.

        The commits in `known` and what lies behind them are left out.
        """
        waiting, seen = list(tips), set(known)
        while waiting:
            if (identifier := waiting.pop()) in seen:
                continue
            seen.add(identifier)
            commit = self.commit(identifier)
            yield identifier, commit
            waiting.extend(self.parents(commit))

    def parents(self, commit: Commit) -> tuple[Id, ...]:
        """The parents of `commit` that are kept; the history may be cut short by gc."""
        forgotten = self.root.forgotten
        return tuple(parent for parent in commit.parents if parent not in forgotten)

    def _object(self, kind: Kind, identifier: Id, what: type[T]) -> T:
        cached = self._cache.get(identifier)
        if isinstance(cached, what):
            return cached
        raw = self.read_metadata(kind, identifier)
        thing = what.decode(raw)
        with self._lock:
            if self._cached_bytes + len(raw) > _CACHED_BYTES:
                self._cache.clear()
                self._cached_bytes = 0
            self._cache[identifier] = thing
            self._cached_bytes += len(raw)
        return thing
