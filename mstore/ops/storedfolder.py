"""The files of a stored version as parsers want them: any bytes of one, and what lies beside it."""

from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from itertools import accumulate
from typing import Any

from mstore.chunkreader import ChunkReader
from mstore.database import Database
from mstore.errors import CorruptDataError, NotFoundError
from mstore.filebytes import StoredBytes
from mstore.objects import FileEntry, Manifest, Snapshot

_CACHED_BYTES = 8 << 20
_AHEAD = 64 << 10


class CachedBytes:
    """A `layout.ByteReader` of a stored file, of which the chunks used last stay decoded.

    Parsers read a file in many small steps, of which most touch the chunk of the one before.
    """

    def __init__(self, manifest: Manifest, reader: ChunkReader) -> None:
        self.size = manifest.size
        self._stored = StoredBytes(manifest, reader)
        self._ends = list(accumulate(length for _, length in manifest.chunks()))
        self._cache: OrderedDict[int, bytes] = OrderedDict()
        self._cached = 0

    def read(self, offset: int, length: int) -> bytes:
        """At most `length` bytes from `offset`; fewer only where the file ends.

        Raises CorruptDataError when a chunk is damaged.
        """
        end = min(offset + length, self.size)
        if length > _CACHED_BYTES or offset >= end:
            return self._stored.read(offset, length)
        number = bisect_right(self._ends, offset)
        start = self._ends[number - 1] if number else 0
        parts = []
        while start < end:
            chunk = self._chunk(number, start)
            parts.append(chunk[max(0, offset - start) : end - start])
            number, start = number + 1, start + len(chunk)
        return b"".join(parts)

    def _chunk(self, number: int, start: int) -> bytes:
        if number in self._cache:
            self._cache.move_to_end(number)
            return self._cache[number]
        # Where chunks are small, those behind it are about to be asked for, and come along cheaply.
        end = max(number + 1, bisect_right(self._ends, start + _AHEAD))
        try:
            raw = self._stored.read(start, self._ends[end - 1] - start)
        except CorruptDataError:
            # Of these it may be one that nobody asks for.
            end = number + 1
            raw = self._stored.read(start, self._ends[number] - start)
        at = 0
        for one in range(number, end):
            length = self._ends[one] - start - at
            self._keep(one, raw[at : at + length])
            at += length
        return raw[: self._ends[number] - start]

    def _keep(self, number: int, chunk: bytes) -> None:
        if number in self._cache:
            return
        self._cache[number] = chunk
        self._cached += len(chunk)
        while self._cached > _CACHED_BYTES and len(self._cache) > 1:
            self._cached -= len(self._cache.popitem(last=False)[1])


class StoredFolders:
    """The folders of a version, each with what has been read there for those that lie in it."""

    def __init__(self, db: Database, snapshot: Snapshot) -> None:
        self._db = db
        self._reader = ChunkReader(db, threads=1)
        self._files: dict[str, dict[str, FileEntry]] = {}
        self._known: dict[str, dict[str, Any]] = {}
        for path, entry in snapshot.files.items():
            place, name = _split(path)
            self._files.setdefault(place, {})[name] = entry

    def beside(self, path: str) -> "StoredFolderOf":
        """The folder of the file `path`."""
        place, name = _split(path)
        known = self._known.setdefault(place, {})
        return StoredFolderOf(name, self._files[place], known, self.read)

    def read(self, entry: FileEntry) -> CachedBytes:
        """The content of a file."""
        return CachedBytes(self._db.manifest(entry.manifest), self._reader)


class StoredFolderOf:
    """A `layout.Beside`: the folder of a stored version in which the file `name` lies."""

    def __init__(
        self,
        name: str,
        files: Mapping[str, FileEntry],
        known: dict[str, Any],
        read: Callable[[FileEntry], CachedBytes],
    ) -> None:
        self.name = name
        self.known = known
        self._files = files
        self._read = read

    def names(self) -> Collection[str]:
        """The names of the files there."""
        return self._files.keys()

    def is_link(self, path: str) -> bool:
        """False: what was a link is stored as the file that it led to."""
        return False

    @contextmanager
    def open(self, name: str) -> Iterator[CachedBytes]:
        """One of these, for reading. Raises NotFoundError when there is none called so."""
        if name not in self._files:
            raise NotFoundError(f"there is no file {name!r} beside {self.name!r} in this version")
        yield self._read(self._files[name])


def _split(path: str) -> tuple[str, str]:
    """A path as its folder, with "/" at the end or empty, and its name there."""
    at = path.rfind("/") + 1
    return path[:at], path[at:]
