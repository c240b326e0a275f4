"""The two sides of a comparison: files whose manifests are known and whose tensors can be read.

A side is a version in the repository, or a working directory of which some files are not in it.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np

from mstore.bulkindex import as_ids
from mstore.chunkreader import ChunkReader, MemorySink, Wanted
from mstore.database import Database
from mstore.errors import ConflictError
from mstore.ids import ID_SIZE, Kind, identify
from mstore.layout import Tensor
from mstore.objects import FileEntry, Manifest, SegmentChunks, Snapshot
from mstore.sources import Source


@dataclass(frozen=True, slots=True)
class Place:
    """A tensor in a file of one side; `offset` is where its bytes start in the file."""

    path: str
    offset: int
    tensor: Tensor
    segment: SegmentChunks


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


def places(path: str, manifest: Manifest) -> Iterator[Place]:
    """The tensors of a file, in file order."""
    offset = 0
    for segment in manifest.segments:
        if segment.tensor is not None:
            yield Place(path, offset, segment.tensor, segment)
        offset += segment.length


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
    def read(self, spans: Sequence[Span], out: memoryview) -> None:
        """Fill `out` with the bytes of the spans, one after the other."""


class StoredSide(Side):
    """A version in the repository."""

    def __init__(self, db: Database, snapshot: Snapshot) -> None:
        super().__init__(snapshot)
        self.db = db
        # One thread: `read` itself is called from several.
        self._reader = ChunkReader(db, threads=1)

    def manifest(self, path: str) -> Manifest:
        """The stored manifest; raises CorruptDataError when it is missing or damaged."""
        return self.db.manifest(self.files[path].manifest)

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
                # A source gives its own memory where it has the bytes; else it reads into `part`.
                part[:] = _checked(source, span, part)
        finally:
            source.finish()


def _checked(source: Source, span: Span, scratch: memoryview) -> memoryview:
    """The bytes of `span`, if they are still those that were hashed."""
    place, piece = span.place, span.place.segment.piece
    offset = place.offset + span.start
    if offset + span.length <= source.size:
        view = source.view(offset, span.length, scratch)
        pieces = (view[start : start + piece] for start in range(0, span.length, piece))
        if b"".join(identify(Kind.CHUNK, one) for one in pieces) == span.ids:
            return view
    raise ConflictError(
        f"{place.path} changed while it was compared", hint="repeat when nothing writes to it"
    )
