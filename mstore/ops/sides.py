"""The two sides of a comparison: files whose manifests are known and whose tensors can be read.

A side is a version in the repository, or a working directory of which some files are not in it.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
from numpy.typing import NDArray

from mstore.bulkindex import as_ids
from mstore.chunkreader import ChunkReader, MemorySink, Wanted
from mstore.database import Database
from mstore.errors import ConflictError
from mstore.filebytes import FileBytes, StoredBytes
from mstore.ids import ID_SIZE, Id, Kind, identify
from mstore.layout import Tensor, View, extents
from mstore.objects import FileEntry, Manifest, SegmentChunks, Snapshot
from mstore.ops.revisions import Located
from mstore.ops.rowmajor import Lying
from mstore.sources import Source
from mstore.viewreader import view_id


@dataclass(frozen=True, slots=True)
class Place:
    """A tensor in a file of one side.

    `segment` has its bytes, which start at `offset` in the file. Of a tensor that is a `view` it
    has all chunks that hold any of its elements. Equal `id` means equal tensors, but equal tensors
    may be stored in several ways.
    """

    path: str
    offset: int
    tensor: Tensor
    segment: SegmentChunks
    id: Id
    view: View | None = None


@dataclass(frozen=True, slots=True)
class Span:
    """`count` whole chunks of a tensor, from number `first` on."""

    place: Place
    first: int
    count: int

    @property
    def start(self) -> int:
        """Where the chunks start, in bytes from the start of the tensor."""
        return self.first * self.place.segment.piece

    @property
    def length(self) -> int:
        """Bytes of all the chunks."""
        segment = self.place.segment
        return min(self.count * segment.piece, segment.length - self.start)

    @property
    def ids(self) -> bytes:
        """The chunk ids, one after the other."""
        ids = self.place.segment.ids
        return ids[self.first * ID_SIZE : (self.first + self.count) * ID_SIZE]


class Side(ABC):
    """One of the two things compared. `read` may be called from several threads."""

    def __init__(self, snapshot: Snapshot) -> None:
        self.snapshot = snapshot

    @property
    def files(self) -> Mapping[str, FileEntry]:
        """The files by path."""
        return self.snapshot.files

    @abstractmethod
    def manifest(self, path: str) -> Manifest:
        """What the file at `path` consists of."""

    @abstractmethod
    def content(self, path: str) -> FileBytes:
        """The bytes of the file at `path`; may be used from several threads."""

    def places(self, path: str) -> Iterator[Place]:
        """The tensors of a file, in file order, then its views."""
        manifest, offset = self.manifest(path), 0
        for segment in manifest.segments:
            if segment.tensor is not None and not segment.hidden:
                assert segment.tensor_id is not None
                yield Place(path, offset, segment.tensor, segment, segment.tensor_id)
            offset += segment.length
        if manifest.views:
            content = self.content(path)
            for view in manifest.views:
                chunks, starts = content.chunks(extents(view))
                yield Place(path, 0, view.tensor, chunks, view_id(view, chunks, starts), view)

    def lying(self, place: Place) -> Lying:
        """Where to read the values of a tensor of this side."""
        where = place.segment if place.view is None else place.view
        return Lying(place.tensor, where, place.offset, self.content(place.path))

    @abstractmethod
    def read(self, spans: Sequence[Span], out: memoryview) -> None:
        """Fill `out` with the bytes of the spans, one after the other."""


class StoredSide(Side):
    """A version in the repository."""

    def __init__(self, db: Database, snapshot: Snapshot) -> None:
        super().__init__(snapshot)
        self.db = db
        # One thread: `read` itself is called from several.
        self._reader = ChunkReader(db, threads=1)
        self._contents: dict[str, FileBytes] = {}

    def manifest(self, path: str) -> Manifest:
        """The stored manifest; raises CorruptDataError when it is missing or damaged."""
        return self.db.manifest(self.files[path].manifest)

    def content(self, path: str) -> FileBytes:
        """The bytes of the file; reading them raises CorruptDataError."""
        if path not in self._contents:
            self._contents[path] = self._open(path)
        return self._contents[path]

    def _open(self, path: str) -> FileBytes:
        return StoredBytes(self.manifest(path), self._reader)

    def read(self, spans: Sequence[Span], out: memoryview) -> None:
        """Read the chunks, in the order of the packs; raises CorruptDataError."""
        if not spans:
            return
        positions, lengths, start = [], [], 0
        for span in spans:
            piece = span.place.segment.piece
            starts = piece * np.arange(span.count)
            positions.append(start + starts)
            lengths.append(np.minimum(piece, span.length - starts))
            start += span.length
        ids = as_ids(b"".join(span.ids for span in spans))
        wanted = Wanted(ids, np.concatenate(positions), np.concatenate(lengths))
        self._reader.read(wanted, MemorySink(out[:start]))


def side_of(db: Database, located: Located) -> StoredSide:
    """Files of a version in the repository."""
    files = db.snapshot(db.commit(located.commit).snapshot).files
    return StoredSide(db, Snapshot({path: files[path] for path in located.files}))


class FileSide(StoredSide):
    """A working directory: files that are in the repository, and files that are only on disk.

    `hashed` holds the manifests of the latter by path (see `describing.describe_file`), and
    `open_source` opens one of them for a moment; the others are read from the repository.
    """

    def __init__(
        self,
        db: Database,
        snapshot: Snapshot,
        hashed: Mapping[str, Manifest],
        open_source: Callable[[str], Source],
    ) -> None:
        super().__init__(db, snapshot)
        self._hashed = hashed
        self._open_source = open_source

    def manifest(self, path: str) -> Manifest:
        """The manifest from hashing the file, or else the stored one."""
        found = self._hashed.get(path)
        return super().manifest(path) if found is None else found

    def _open(self, path: str) -> FileBytes:
        if path not in self._hashed:
            return super()._open(path)
        return _HashedBytes(self._hashed[path], path, self._open_source)

    def read(self, spans: Sequence[Span], out: memoryview) -> None:
        """Read from the files; raises ConflictError when one changed since it was hashed."""
        start = 0
        for path, group in groupby(spans, key=lambda span: span.place.path):
            wanted = list(group)
            part = out[start : start + sum(span.length for span in wanted)]
            start += len(part)
            if path in self._hashed:
                self._read_file(path, wanted, part)
            else:
                super().read(wanted, part)

    def _read_file(self, path: str, spans: Sequence[Span], out: memoryview) -> None:
        source = self._open_source(path)
        try:
            start = 0
            for span in spans:
                part = out[start : start + span.length]
                start += span.length
                place, piece = span.place, span.place.segment.piece
                lengths = [min(piece, len(part) - at) for at in range(0, len(part), piece)]
                _read_checked(source, path, place.offset + span.start, lengths, span.ids, part)
        finally:
            source.finish()


class _HashedBytes(FileBytes):
    """The content of a file that was hashed; reading raises ConflictError when it changed since."""

    def __init__(self, manifest: Manifest, path: str, open_source: Callable[[str], Source]) -> None:
        super().__init__(manifest)
        self._path = path
        self._open_source = open_source

    def _fetch(self, starts: NDArray[np.int64], wanted: Wanted, out: memoryview) -> None:
        source = self._open_source(self._path)
        try:
            chunks = zip(starts.tolist(), wanted.positions, wanted.lengths, strict=True)
            for number, (start, place, length) in enumerate(chunks):
                part = out[place : place + length]
                identifier = wanted.ids[number].tobytes()
                _read_checked(source, self._path, start, [int(length)], identifier, part)
        finally:
            source.finish()


def _read_checked(
    source: Source, path: str, offset: int, lengths: Sequence[int], ids: bytes, out: memoryview
) -> None:
    """Fill `out` with consecutive chunks, if they are still those that were hashed."""
    if offset + len(out) <= source.size:
        # A source gives its own memory where it has the bytes; else it reads into `out`.
        view, start = source.view(offset, len(out), out), 0
        found = []
        for length in lengths:
            found.append(identify(Kind.CHUNK, view[start : start + length]))
            start += length
        if b"".join(found) == ids:
            out[:] = view
            return
    raise ConflictError(
        f"{path} changed while it was compared", hint="repeat when nothing writes to it"
    )
