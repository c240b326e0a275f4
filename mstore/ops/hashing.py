"""Hashing files without storing anything: whether they are a stored file. Nothing needs numpy."""

import stat
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path

from mstore.database import Database
from mstore.ids import Kind, identify
from mstore.objects import FileEntry, Manifest
from mstore.sources import FileSource, Source
from mstore.threads import default_threads

_BATCH_BYTES = 4 << 20


@dataclass(slots=True)
class Batch:
    """A run of bytes of a file that is read at once, and the lengths of its chunks."""

    offset: int
    length: int = 0
    lengths: list[int] = field(default_factory=list)

    def add(self, length: int) -> None:
        """Make it longer by one chunk."""
        self.lengths.append(length)
        self.length += length


def holds(db: Database, path: Path, entry: FileEntry, threads: int | None = None) -> bool:
    """Whether the file at `path` is, byte for byte, the stored file `entry`.

    Its executable bit counts too. Raises ConflictError when it changes meanwhile, StorageError
    when it cannot be read.
    """
    try:
        info = path.stat()
    except OSError:
        return False
    if not stat.S_ISREG(info.st_mode) or info.st_size != entry.size:
        return False
    if bool(info.st_mode & stat.S_IXUSR) != entry.executable:
        return False
    source = FileSource(path)
    try:
        return is_content(source, db.manifest(entry.manifest), threads)
    finally:
        source.close()


def is_content(source: Source, manifest: Manifest, threads: int | None = None) -> bool:
    """Whether the bytes of `source`, which is finished, are those of the stored file `manifest`.

    They are hashed in the pieces of the stored file, whatever today's parsers make of it, up to
    the first that differs. Raises ConflictError when the file changed while it was read.
    """
    if source.size != manifest.size:
        return False
    expected, position = manifest.chunk_ids(), 0
    pieces = (length for _, length in manifest.chunks())
    for _batch, found in in_batches(source, pieces, threads):
        if expected[position : position + len(found)] != found:
            return False
        position += len(found)
    source.finish()
    return True


def in_batches(
    source: Source, lengths: Iterable[int], threads: int | None
) -> Iterator[tuple[Batch, bytes]]:
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
        waiting: deque[tuple[Batch, Future[bytes]]] = deque()
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


def _hash(source: Source, batch: Batch) -> bytes:
    """The ids of the chunks of a batch. Runs in a worker thread."""
    view = source.view(batch.offset, batch.length, memoryview(bytearray(batch.length)))
    ids, start = bytearray(), 0
    for length in batch.lengths:
        ids += identify(Kind.CHUNK, view[start : start + length])
        start += length
    return bytes(ids)


def _batches(lengths: Iterable[int]) -> Iterator[Batch]:
    batch = Batch(0)
    for length in lengths:
        if batch.lengths and batch.length + length > _BATCH_BYTES:
            yield batch
            batch = Batch(batch.offset + batch.length)
        batch.add(length)
    if batch.lengths:
        yield batch
