"""Writing files of a version into a directory, each beside its place and then renamed.

At every moment a path holds either what was there before or the whole new file.
"""

import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import chain
from pathlib import Path

import numpy as np

from mstore.bulkindex import as_ids
from mstore.chunkreader import ChunkReader, ManySink, Sink, Wanted
from mstore.database import Database
from mstore.errors import ConflictError, CorruptDataError
from mstore.objects import FileEntry, Manifest, Snapshot
from mstore.ops.directory import Directory
from mstore.ops.hashing import holds
from mstore.storage.files import Files, OpenFile

_GROUP_BYTES = 8 << 20
_GROUP_FILES = 1000
_WRITING_THREADS = 4
"""Small files are read in groups; a few are written at once, since each waits for the disk."""


class _FileSink(Sink):
    """Decoded chunks go to their place in a file."""

    def __init__(self, files: Files, file: OpenFile) -> None:
        self.files = files
        self.file = file

    def put(self, position: int, raw: memoryview) -> None:
        """Write the chunk at its place."""
        self.files.write_at(self.file, position, raw)


class Writer:
    """Writes files of versions into one directory."""

    def __init__(
        self,
        db: Database,
        directory: Directory,
        *,
        threads: int | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> None:
        """`progress` is told how many more bytes are written."""
        self.db = db
        self.directory = directory
        self.files = directory.files
        self.reader = ChunkReader(db, threads)
        self.progress = progress

    def write(self, entries: Mapping[str, FileEntry]) -> Iterator[tuple[str, os.stat_result]]:
        """Make the paths hold these files, replacing what is there; yields each with its new stat.

        What is in the way of a file, and may be removed, is removed just before it is written. The
        names are durable once the directory has been told to `finish`. Raises UnsafeInputError or
        ConflictError when something is in the way that may not be removed, CorruptDataError naming
        the file when its data is damaged, StorageError when writing fails. Then what was there
        before is still there. Memory: a group of 8 MiB, whatever the size of the files.
        """
        with ThreadPoolExecutor(_WRITING_THREADS, "mstore-write") as pool:
            for group in _groups(entries):
                path, entry = group[0]
                if entry.size > _GROUP_BYTES:
                    yield path, self._write_large(path, entry)
                else:
                    yield from self._write_small(group, pool)

    def _write_large(self, path: str, entry: FileEntry) -> os.stat_result:
        with _naming(path):
            wanted = _chunks_of([self.db.manifest(entry.manifest)])
            target = self.directory.prepare(path)
            return self._put(
                target,
                entry,
                lambda file: self.reader.read(wanted, _FileSink(self.files, file), self.progress),
            )

    def _write_small(
        self, group: Sequence[tuple[str, FileEntry]], pool: ThreadPoolExecutor
    ) -> Iterator[tuple[str, os.stat_result]]:
        try:
            contents = self._read([entry for _, entry in group])
        except CorruptDataError:
            # One after the other, so that the damaged one is named and those before it are there.
            for path, entry in group:
                with _naming(path):
                    (content,) = self._read([entry])
                yield path, self._put_bytes(self.directory.prepare(path), entry, content)
            return
        targets = [self.directory.prepare(path) for path, _ in group]
        written = pool.map(self._put_bytes, targets, (entry for _, entry in group), contents)
        yield from zip((path for path, _ in group), written, strict=True)

    def _read(self, entries: Iterable[FileEntry]) -> list[bytearray]:
        """The contents of small files."""
        manifests = [self.db.manifest(entry.manifest) for entry in entries]
        contents = [bytearray(manifest.size) for manifest in manifests]
        sink = ManySink([memoryview(content) for content in contents])
        self.reader.read(_chunks_of(manifests), sink, self.progress)
        return contents

    def _put_bytes(self, target: Path, entry: FileEntry, content: bytearray) -> os.stat_result:
        """Runs in a worker thread."""
        return self._put(target, entry, lambda file: self.files.write(file, [content]))

    def _put(
        self, target: Path, entry: FileEntry, fill: Callable[[OpenFile], None]
    ) -> os.stat_result:
        """Give `target` the content that `fill` writes; the folder of it must be there."""
        file = self.files.create_temporary(target.parent, 0o777 if entry.executable else 0o666)
        try:
            fill(file)
            self.files.fsync(file)
            written = os.fstat(file.fd)
            self.files.rename(file.path, target)
        finally:
            self.files.discard(file)
        # Renaming changes the file's ctime, so its stat is looked at again.
        now = os.lstat(target)
        return now if now.st_ino == written.st_ino else written


def _chunks_of(manifests: Sequence[Manifest]) -> Wanted:
    """All chunks of files that lie one after the other."""
    chunks = chain.from_iterable(manifest.chunks() for manifest in manifests)
    lengths = np.fromiter((length for _, length in chunks), np.int64)
    ids = as_ids(b"".join(manifest.chunk_ids() for manifest in manifests))
    return Wanted(ids, np.cumsum(lengths) - lengths, lengths)


def _groups(entries: Mapping[str, FileEntry]) -> Iterator[list[tuple[str, FileEntry]]]:
    """The files in groups of 8 MiB at most; a larger one comes alone."""
    group: list[tuple[str, FileEntry]] = []
    size = 0
    for path, entry in entries.items():
        if group and (size + entry.size > _GROUP_BYTES or len(group) == _GROUP_FILES):
            yield group
            group, size = [], 0
        group.append((path, entry))
        size += entry.size
    if group:
        yield group


@contextmanager
def _naming(path: str) -> Iterator[None]:
    """Name the file in the errors about its damaged data."""
    try:
        yield
    except CorruptDataError as error:
        raise CorruptDataError(f"{path}: {error.message}", hint=error.hint) from error


def write_out(
    db: Database,
    snapshot: Snapshot,
    directory: Path,
    *,
    paths: Collection[str] | None = None,
    force: bool = False,
    threads: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> int:
    """Write a version's files (or those in `paths`) into `directory`; returns how many.

    Raises ConflictError, having written nothing, when a file of another content is in the way,
    unless `force`. Files there that the version does not have stay. `progress` as for `Writer`.
    """
    wanted = {p: e for p, e in snapshot.files.items() if paths is None or p in paths}
    target = Directory(directory)
    target.refuse_names_for_one(wanted)
    there = {path for path in wanted if target.look(path) is not None}
    write = wanted
    if not force:
        in_the_way = [p for p in sorted(there) if not holds(db, directory / p, wanted[p], threads)]
        if in_the_way:
            raise ConflictError(
                f"{directory / in_the_way[0]} holds something else"
                + (f", and {len(in_the_way) - 1} more files" if len(in_the_way) > 1 else ""),
                hint="choose an empty directory, or overwrite them with --force",
            )
        write = {path: entry for path, entry in wanted.items() if path not in there}
    for _ in Writer(db, target, threads=threads, progress=progress).write(write):
        pass
    target.finish()
    return len(wanted)
