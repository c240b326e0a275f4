"""Hashing files without storing anything: their manifests, and whether they are a stored file."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import chain, islice

from mstore.chunking import DEFAULT_CHUNK_SIZE, ContentChunker, piece_lengths, piece_size
from mstore.chunkreader import default_threads
from mstore.ids import ID_SIZE, Kind, identify
from mstore.layout import Layout, Segment
from mstore.objects import Manifest, SegmentChunks
from mstore.sources import Source

_BATCH_BYTES = 4 << 20
_WINDOW = 4 << 20


@dataclass(slots=True)
class _Batch:
    """A run of bytes of a file that is read at once, and the lengths of its chunks."""

    offset: int
    length: int = 0
    lengths: list[int] = field(default_factory=list)

    def add(self, length: int) -> None:
        self.lengths.append(length)
        self.length += length


def describe_file(
    source: Source,
    layout: Layout,
    *,
    threads: int | None = None,
    chunk_size: int = DEFAULT_CHUNK_SIZE,
    progress: Callable[[int], None] | None = None,
) -> Manifest:
    """The manifest that a commit of this file would record; `source` is finished.

    Equal to what `ingest.Ingest` records with the same `chunk_size`. Raises ConflictError when
    the file changed while it was read. `progress` is told, from the calling thread, how many more
    bytes are done. Memory: a few batches of 4 MiB per thread, whatever the size of the file.
    """
    lengths: list[int] = []
    ids = bytearray()
    pieces = _lengths(source, layout, chunk_size)
    for batch, found in _hashed(source, pieces, threads):
        lengths += batch.lengths
        ids += found
        if progress is not None:
            progress(batch.length)
    source.finish()
    return Manifest(layout.format, layout.size, tuple(_segments(layout, ids, lengths, chunk_size)))


def is_content(source: Source, manifest: Manifest, threads: int | None = None) -> bool:
    """Whether the bytes of `source`, which is finished, are those of the stored file `manifest`.

    They are hashed in the pieces of the stored file, whatever today's parsers make of it, up to
    the first that differs. Raises ConflictError when the file changed while it was read.
    """
    if source.size != manifest.size:
        return False
    expected, position = manifest.chunk_ids(), 0
    pieces = (length for _, length in manifest.chunks())
    for _batch, found in _hashed(source, pieces, threads):
        if expected[position : position + len(found)] != found:
            return False
        position += len(found)
    source.finish()
    return True


def _hashed(
    source: Source, lengths: Iterable[int], threads: int | None
) -> Iterator[tuple[_Batch, bytes]]:
    """Pieces of these lengths in batches, each with the ids of its chunks, one after the other."""
    threads = threads or default_threads()
    batches = _batches(lengths)
    first = list(islice(batches, 2))
    if threads == 1 or len(first) < 2:
        # Starting threads would take longer than the work.
        for batch in chain(first, batches):
            yield batch, _hash(source, batch)
        return
    with ThreadPoolExecutor(threads, "mstore-hash") as pool:
        waiting: deque[tuple[_Batch, Future[bytes]]] = deque()
        try:
            for batch in chain(first, batches):
                waiting.append((batch, pool.submit(_hash, source, batch)))
                if len(waiting) > 2 * threads:
                    done, future = waiting.popleft()
                    yield done, future.result()
            while waiting:
                done, future = waiting.popleft()
                yield done, future.result()
        finally:
            for _, future in waiting:
                future.cancel()


def _hash(source: Source, batch: _Batch) -> bytes:
    """The ids of the chunks of a batch. Runs in a worker thread."""
    view = source.view(batch.offset, batch.length, memoryview(bytearray(batch.length)))
    ids, start = bytearray(), 0
    for length in batch.lengths:
        ids += identify(Kind.CHUNK, view[start : start + length])
        start += length
    return bytes(ids)


def _batches(lengths: Iterable[int]) -> Iterator[_Batch]:
    batch = _Batch(0)
    for length in lengths:
        if batch.lengths and batch.length + length > _BATCH_BYTES:
            yield batch
            batch = _Batch(batch.offset + batch.length)
        batch.add(length)
    if batch.lengths:
        yield batch


def _lengths(source: Source, layout: Layout, chunk_size: int) -> Iterator[int]:
    """The length of every chunk of the file, in order: segments leave no gap."""
    for segment in layout.segments:
        if segment.tensor is not None:
            yield from piece_lengths(segment.length, piece_size(segment.tensor.dtype, chunk_size))
        else:
            yield from _content_lengths(source, segment)


def _content_lengths(source: Source, segment: Segment) -> Iterator[int]:
    """Where the content of an opaque segment says it is to be cut."""
    chunker = ContentChunker()
    scratch = memoryview(bytearray(min(_WINDOW, segment.length)))
    at = 0
    while at < segment.length:
        length = min(_WINDOW, segment.length - at)
        window = source.view(segment.offset + at, length, scratch)
        for size in chunker.cut(window, final=at + length == segment.length):
            yield size
            at += size


def _segments(
    layout: Layout, ids: bytearray, lengths: list[int], chunk_size: int
) -> Iterator[SegmentChunks]:
    """Hand the chunks out to the segments they cover."""
    chunk, start = 0, 0
    for segment in layout.segments:
        first, end = chunk, start + segment.length
        while start < end:
            start += lengths[chunk]
            chunk += 1
        held = bytes(ids[first * ID_SIZE : chunk * ID_SIZE])
        if segment.tensor is not None:
            piece = piece_size(segment.tensor.dtype, chunk_size)
            yield SegmentChunks(segment.length, held, segment.tensor, piece)
        else:
            cut = tuple(lengths[first:chunk])
            yield SegmentChunks(segment.length, held, lengths=cut)
