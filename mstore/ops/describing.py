"""The manifests of files that are not stored: what a commit would record of them."""

from collections.abc import Callable, Iterator

from mstore.chunking import DEFAULT_CHUNK_SIZE, ContentChunker, piece_lengths, piece_size
from mstore.ids import ID_SIZE
from mstore.layout import Layout, Segment
from mstore.objects import Manifest, SegmentChunks
from mstore.ops.hashing import in_batches
from mstore.sources import Source

_WINDOW = 4 << 20


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
    for batch, found in in_batches(source, pieces, threads):
        lengths += batch.lengths
        ids += found
        if progress is not None:
            progress(batch.length)
    source.finish()
    segments = tuple(_segments(layout, ids, lengths, chunk_size))
    return Manifest(layout.format, layout.size, segments, layout.views)


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
            yield SegmentChunks(segment.length, held, segment.tensor, piece, hidden=segment.hidden)
        else:
            cut = tuple(lengths[first:chunk])
            yield SegmentChunks(segment.length, held, lengths=cut)
