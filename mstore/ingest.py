"""The commit pipeline: files become pieces, pieces become chunks, chunks become manifests.

One pass over the bytes, in order: read, hash, look up, encode, check. Threads do this for a few
megabytes at a time; one thread appends the results to the pack in the order of the files.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import compress

from xxhash import xxh3_64_intdigest

from mstore.basefinder import BaseFinder
from mstore.chunkencoder import Coded, Job
from mstore.chunking import DEFAULT_CHUNK_SIZE, ContentChunker, piece_size
from mstore.chunkstore import Session
from mstore.codecs.energy import sum_of_squares
from mstore.dtypes import DType
from mstore.encoders import Encoders
from mstore.ids import Id, Kind, identify
from mstore.layout import Layout, Segment
from mstore.names import canonical_name
from mstore.objects import Manifest, SegmentChunks
from mstore.pack import Record
from mstore.sharedmemory import PORTION_BYTES
from mstore.sources import BufferSource, Source
from mstore.threads import Memory, default_threads

_BATCH_PIECES = 64
_WINDOW = 4 << 20

_WORTH_A_BASE = 64 << 10
"""Bytes of a tensor that is looked for again among the files that come after it."""

_WORTH_WAITING = 1 << 20
"""Bytes of tensors for which it pays to store what they may come from first."""


@dataclass(frozen=True, slots=True)
class FileToStore:
    """One file of a commit: what to call it, where its bytes are, and what they mean."""

    path: str
    source: Source
    layout: Layout


@dataclass(slots=True)
class _Collected:
    """The chunks of one segment as they come in."""

    segment: Segment
    piece: int
    ids: bytearray = field(default_factory=bytearray)
    lengths: list[int] = field(default_factory=list)

    def done(self) -> SegmentChunks:
        tensor = self.segment.tensor
        lengths = tuple(self.lengths) if tensor is None else None
        return SegmentChunks(
            self.segment.length,
            bytes(self.ids),
            tensor,
            self.piece,
            lengths,
            self.segment.hidden,
        )


@dataclass(slots=True)
class _File:
    """One file on its way through the pipeline."""

    file: FileToStore
    segments: list[_Collected] = field(default_factory=list)

    def manifest(self) -> Manifest:
        layout = self.file.layout
        segments = tuple(one.done() for one in self.segments)
        return Manifest(layout.format, layout.size, segments, layout.views)


@dataclass(frozen=True, slots=True)
class _Piece:
    """What will be one chunk, where its id is wanted, and which chunks it may be coded against."""

    source: Source
    offset: int
    length: int
    dtype: DType | None
    target: _Collected
    bases: tuple[Id, ...] = ()


_Batch = list[_Piece | _File]
"""Pieces in order; a `_File` stands behind the last piece of that file."""

_Stored = list[tuple[Id, Record | None]]


class Ingest:
    """Stores the contents of files through a session."""

    def __init__(
        self,
        session: Session,
        *,
        bases: BaseFinder | None = None,
        threads: int | None = None,
        chunk_size: int = DEFAULT_CHUNK_SIZE,
        progress: Callable[[int], None] | None = None,
    ) -> None:
        """`progress` is told, from the calling thread, how many more bytes are done."""
        self.session = session
        self._finder = bases
        self.threads = threads or default_threads()
        self.chunk_size = chunk_size
        self.progress = progress
        self._open: set[Source] = set()
        self._names: set[str] = set()
        self._finished: list[tuple[str, Manifest]] = []
        self._encoders = Encoders(session, self.threads)

    def store(self, files: Iterable[FileToStore]) -> Iterator[tuple[FileToStore, Manifest]]:
        """Store each file's chunks; yields the files with their manifests, in order.

        Raises ConflictError when a file changed while it was read. Memory: a few batches of
        4 MiB per thread, or process started for one, whatever the size of the files.
        """
        waiting: deque[tuple[_Batch, Future[_Stored]]] = deque()
        callers = self._encoders.callers
        with self._encoders, ThreadPoolExecutor(callers, "mstore-encode") as pool:
            try:
                for batch in self._batches(files):
                    if batch is not None:
                        waiting.append((batch, pool.submit(self._store_batch, batch)))
                    while waiting and (batch is None or len(waiting) > 2 * callers):
                        yield from self._collect(*waiting.popleft())
                    if batch is None:
                        self._make_bases()
                while waiting:
                    yield from self._collect(*waiting.popleft())
            finally:
                for _, future in waiting:
                    future.cancel()
                self._encoders.stop()
                pool.shutdown()
                for source in self._open:
                    source.close()
                self._open.clear()

    def _batches(self, files: Iterable[FileToStore]) -> Iterator[_Batch | None]:
        """All pieces in batches; None where what comes next needs all before it to be stored."""
        batch: _Batch = []
        size = 0
        for item in self._pieces(files):
            length = item.length if isinstance(item, _Piece) else 0
            full = size + length > PORTION_BYTES or len(batch) >= _BATCH_PIECES
            if batch and (full or item is None):
                yield batch
                batch, size = [], 0
            if item is None:
                yield None
            else:
                batch.append(item)
                size += length
        if batch:
            yield batch

    def _pieces(self, files: Iterable[FileToStore]) -> Iterator[_Piece | _File | None]:
        for file in files:
            # After an error nobody else would close what is still being read.
            self._open.add(file.source)
            self._encoders.expect(file.layout.size)
            if self._repeats_names(file.layout):
                yield None
            state = _File(file)
            bases = self._find_bases(file)
            for segment, candidates in zip(file.layout.segments, bases, strict=True):
                tensor = segment.tensor
                if tensor is None:
                    state.segments.append(target := _Collected(segment, 0))
                    yield from _content_pieces(file.source, target)
                else:
                    piece = piece_size(tensor.dtype, self.chunk_size)
                    state.segments.append(target := _Collected(segment, piece))
                    yield from _fixed_pieces(file.source, tensor.dtype, target, candidates)
            yield state

    def _repeats_names(self, layout: Layout) -> bool:
        """Whether tensors worth it are named as in a file before, and so may come from those."""
        tensors = [
            (canonical_name(segment.tensor.name), segment.length)
            for segment in layout.segments
            if segment.tensor
        ]
        repeated = sum(length for name, length in tensors if name in self._names)
        self._names.update(name for name, length in tensors if name and length >= _WORTH_A_BASE)
        return repeated >= _WORTH_WAITING

    def _make_bases(self) -> None:
        """Store all so far, so that what follows can be coded against it."""
        self.session.store()
        for path, manifest in self._finished:
            if self._finder is not None:
                self._finder.add(path, manifest)
        self._finished.clear()

    def _find_bases(self, file: FileToStore) -> Sequence[Sequence[SegmentChunks]]:
        """What each segment may be coded against."""
        if self._finder is None:
            return [()] * len(file.layout.segments)
        return self._finder.find(file.path, file.source, file.layout, self.chunk_size)

    def _store_batch(self, batch: _Batch) -> _Stored:
        """Runs in a worker thread."""
        pieces = [item for item in batch if isinstance(item, _Piece)]
        with self._encoders.room() as room:
            views = _read(pieces, room.raw)
            ids = [identify(Kind.CHUNK, view) for view in views]
            wanted = self.session.claim(ids)
            new = list(compress(zip(ids, views, pieces, strict=True), wanted))
            jobs = [
                Job(view, piece.dtype, xxh3_64_intdigest(view), piece.bases)
                for _, view, piece in new
            ]
            coded = self._encoders.encode(jobs, room) if jobs else []
            records = map(_record, (identifier for identifier, *_ in new), jobs, coded)
            return [
                (identifier, next(records) if is_new else None)
                for identifier, is_new in zip(ids, wanted, strict=True)
            ]

    def _collect(
        self, batch: _Batch, future: "Future[_Stored]"
    ) -> Iterator[tuple[FileToStore, Manifest]]:
        """Runs in the calling thread, batch after batch in order."""
        stored = iter(future.result())
        for item in batch:
            if isinstance(item, _File):
                item.file.source.finish()
                self._open.discard(item.file.source)
                manifest = item.manifest()
                if any(segment.tensor for segment in manifest.segments):
                    self._finished.append((item.file.path, manifest))
                yield item.file, manifest
                continue
            identifier, record = next(stored)
            if record is not None:
                self.session.append(record)
            item.target.ids += identifier
            item.target.lengths.append(item.length)
            if self.progress is not None:
                self.progress(item.length)


def _read(pieces: Sequence[_Piece], memory: Memory) -> list[memoryview]:
    """The bytes of these pieces, one behind the other in `memory`."""
    room = memory.take(sum(piece.length for piece in pieces))
    views, used = [], 0
    for piece in pieces:
        part = room[used : used + piece.length]
        views.append(piece.source.view(piece.offset, piece.length, part))
        used += piece.length
    return views


def _record(identifier: Id, job: Job, coded: Coded) -> Record:
    return Record(
        identifier,
        Kind.CHUNK,
        coded.encoded.codec,
        len(job.raw),
        job.checksum,
        coded.encoded.payload,
        job.dtype.code if job.dtype else 0,
        sum_of_squares(job.raw, job.dtype) if job.dtype else float("nan"),
        coded.depth,
        coded.base,
    )


def _fixed_pieces(
    source: Source, dtype: DType, target: _Collected, bases: Sequence[SegmentChunks]
) -> Iterator[_Piece]:
    segment = target.segment
    for number, start in enumerate(range(0, segment.length, target.piece)):
        length = min(target.piece, segment.length - start)
        against = tuple(base.chunk_id(number) for base in bases if number < base.count)
        yield _Piece(source, segment.offset + start, length, dtype, target, against)


def _content_pieces(source: Source, target: _Collected) -> Iterator[_Piece]:
    """Cut an opaque segment where its content says; the pieces are views of what was read."""
    segment = target.segment
    chunker = ContentChunker()
    at = 0
    while at < segment.length:
        length = min(_WINDOW, segment.length - at)
        window = source.view(segment.offset + at, length, memoryview(bytearray(length)))
        held = BufferSource([window])
        used = 0
        for size in chunker.cut(window, final=at + length == segment.length):
            yield _Piece(held, used, size, None, target)
            used += size
        at += used
