"""Writing files of a version into a directory, each beside its place and then renamed.

At every moment a path holds either what was there before or the whole new file. Nothing is ever
written through a symbolic link or outside the directory.
"""

import os
import stat
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from mstore.bulkindex import as_ids
from mstore.chunkreader import ChunkReader, MemorySink, Sink, Wanted
from mstore.database import Database
from mstore.errors import ConflictError, CorruptDataError, StorageError, UnsafeInputError
from mstore.objects import FileEntry, Manifest, Snapshot
from mstore.ops.hashing import is_content
from mstore.sources import FileSource
from mstore.storage.files import FILES, Files, OpenFile, translate_errors

_SMALL = 4 << 20


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
        directory: Path,
        *,
        threads: int | None = None,
        progress: Callable[[int], None] | None = None,
        files: Files = FILES,
    ) -> None:
        """`progress` is told how many more bytes are written."""
        self.db = db
        self.directory = directory
        self.reader = ChunkReader(db, threads)
        self.progress = progress
        self.files = files
        self._touched: set[Path] = set()
        self._checked: set[Path] = set()

    def write(self, path: str, entry: FileEntry) -> os.stat_result:
        """Make `path` hold the file `entry`, replacing what is there; returns its new stat.

        Raises UnsafeInputError when a folder of the path is a symbolic link or no folder,
        CorruptDataError naming the file when its data is damaged, StorageError when writing
        fails. Then what was there before is still there.
        """
        target = self._prepare(path)
        mode = 0o777 if entry.executable else 0o666
        with _naming(path), self._temporary(target.parent, mode) as file:
            self._fill(file, self.db.manifest(entry.manifest))
            self.files.fsync(file)
            written = os.fstat(file.fd)
            self.files.rename(file.path, target)
        self._touched.add(target.parent)
        # Renaming changes the file's ctime, so its stat is looked at again.
        now = os.lstat(target)
        return now if now.st_ino == written.st_ino else written

    def remove(self, path: str) -> None:
        """Delete the file at `path`, and the folders that this leaves empty."""
        target = self.safe_path(path)
        self.files.unlink(target)
        self._touched.add(target.parent)
        for folder in target.parents:
            if folder == self.directory or os.listdir(folder):
                return
            with translate_errors("remove", folder):
                self.files.perform("rmdir", folder, os.rmdir, folder)
            self._touched.discard(folder)
            self._touched.add(folder.parent)

    def finish(self) -> None:
        """Make the names of everything written and removed durable."""
        for folder in sorted(self._touched):
            if folder.exists():
                self.files.fsync_dir(folder)
        self._touched.clear()

    def safe_path(self, path: str) -> Path:
        """Where `path` lies; raises UnsafeInputError if a link or a file stands in the way."""
        target = self.directory / path
        for folder in reversed(target.relative_to(self.directory).parents[:-1]):
            self._check_folder(self.directory / folder)
        if target.is_dir() and not target.is_symlink():
            raise StorageError(f"{target} is a folder, where a file is to be", hint="move it away")
        return target

    def _check_folder(self, folder: Path) -> None:
        if folder in self._checked:
            return
        try:
            mode = os.lstat(folder).st_mode
        except FileNotFoundError:
            return
        if not stat.S_ISDIR(mode):
            what = "a symbolic link" if stat.S_ISLNK(mode) else "a file"
            raise UnsafeInputError(
                f"{folder} is {what}, so nothing can be checked out below it", hint="move it away"
            )
        self._checked.add(folder)

    def _prepare(self, path: str) -> Path:
        """`safe_path`, its folders made where they are missing, swept of dead temporaries."""
        target = self.safe_path(path)
        missing = [folder for folder in target.parents if not folder.is_dir()]
        for folder in reversed(missing):
            self.files.mkdir(folder)
            self._touched.add(folder.parent)
        if target.parent not in self._touched:
            self.files.sweep(target.parent)
        return target

    @contextmanager
    def _temporary(self, folder: Path, mode: int) -> Iterator[OpenFile]:
        file = self.files.create_temporary(folder, mode)
        try:
            yield file
        finally:
            self.files.discard(file)

    def _fill(self, file: OpenFile, manifest: Manifest) -> None:
        wanted = whole_file(manifest)
        if manifest.size > _SMALL:
            self.reader.read(wanted, _FileSink(self.files, file), self.progress)
            return
        out = bytearray(manifest.size)
        self.reader.read(wanted, MemorySink(memoryview(out)), self.progress)
        self.files.write(file, [out])


def whole_file(manifest: Manifest) -> Wanted:
    """All chunks of a file at their places in it."""
    lengths = np.fromiter((length for _, length in manifest.chunks()), np.int64)
    return Wanted(as_ids(manifest.chunk_ids()), np.cumsum(lengths) - lengths, lengths)


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
    writer = Writer(db, directory, threads=threads, progress=progress)
    wanted = {p: e for p, e in snapshot.files.items() if paths is None or p in paths}
    there = {path for path in wanted if os.path.lexists(writer.safe_path(path))}
    if not force:
        in_the_way = [p for p in sorted(there) if not holds(db, directory / p, wanted[p], threads)]
        if in_the_way:
            raise ConflictError(
                f"{directory / in_the_way[0]} holds something else"
                + (f", and {len(in_the_way) - 1} more files" if len(in_the_way) > 1 else ""),
                hint="choose an empty directory, or overwrite them with --force",
            )
        wanted = {path: entry for path, entry in wanted.items() if path not in there}
    for path, entry in wanted.items():
        writer.write(path, entry)
    writer.finish()
    return len(wanted) if force else len(wanted) + len(there)


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
