"""A storage in a directory: key `data/0f3a` is the file `<root>/data/0f3a`.

Nothing is created before the first `put`, so that a repository on a read-only disk can be read.
Nothing outside the root is read or written: keys have no "..", and a symbolic link below the root
is reported as damage instead of followed. The root itself may be reached through one.
"""

import errno
import mmap
import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from mstore.errors import CorruptDataError, NotFoundError, StorageError
from mstore.ids import Buffer
from mstore.storage.arguments import (
    TEMPORARY_FOLDER,
    check_folder,
    check_key,
    check_range,
    is_folder,
    is_key,
)
from mstore.storage.base import ObjectInfo, Storage
from mstore.storage.files import FILES, OBJECT_MODE, READ_FLAGS, Files, close, translate_errors


class LocalStorage(Storage):
    """Objects as files below `root`. Every write goes through `files`."""

    def __init__(self, root: str | os.PathLike[str], files: Files = FILES) -> None:
        self._root = Path(root).absolute()
        self._tmp = self._root / TEMPORARY_FOLDER
        self._files = files
        self._settled: set[Path] = set()

    @property
    def location(self) -> str:
        """The absolute path of the root directory."""
        return str(self._root)

    @property
    def address(self) -> str | None:
        """The absolute path, unless writes go elsewhere than to the system."""
        return str(self._root) if self._files is FILES else None

    def get(self, key: str, start: int = 0, length: int | None = None) -> bytes:
        """The bytes of `key` from `start`, at most `length` of them (all when None)."""
        check_range(start, length)
        path = self._path(key)
        with _open_object(path) as (fd, size), translate_errors("read", path):
            # Bounded by the size, so that a damaged length cannot ask for absurd memory.
            available = max(size - start, 0)
            return _read(fd, start, available if length is None else min(length, available))

    def view(self, key: str) -> memoryview:
        """The file mapped into memory; bytes are read from the disk when they are first used."""
        with _open_object(self._path(key)) as (fd, size):
            if not size:
                return memoryview(b"")
            try:
                return memoryview(mmap.mmap(fd, size, access=mmap.ACCESS_READ))
            except OSError:  # a file system that cannot map files
                return super().view(key)

    def head(self, key: str) -> ObjectInfo | None:
        """Size of `key`, or None when there is no such object."""
        path = self._path(key)
        try:
            with translate_errors("read", path):
                info = os.lstat(path)
        except NotFoundError:
            return None
        if not stat.S_ISREG(info.st_mode):
            raise _not_an_object(path)
        return ObjectInfo(key, info.st_size)

    def put(self, key: str, parts: Sequence[Buffer]) -> bool:
        """Create `key`: write and sync a temporary, link it into its place, sync the folder.

        link() refuses a name that is taken; that is what makes creation exclusive, also between
        machines. Raises DurabilityError when a sync failed: the object may then be there or not.
        """
        path = self._path(key)
        try:
            created = self._create(path, parts)
        except NotFoundError:
            # The temporary or a folder was removed by somebody else; make all of it again.
            self._settled.clear()
            try:
                created = self._create(path, parts)
            except NotFoundError as error:
                raise StorageError(
                    f"cannot create {path}: files in {self._root} vanish while they are written",
                    hint="find out what else deletes files there",
                ) from error
        if not created:
            self.head(key)  # raises if what has the name is no object
        # Also when it was there: it may have been created just now, by somebody who then failed.
        self._files.fsync_dir(path.parent)
        return created

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """Every object in the folder `prefix` and the folders in it, sorted by key."""
        check_folder(prefix)
        folder = self._root / prefix
        self._require_folders(folder)
        return _walk(folder, prefix)

    def delete(self, key: str) -> None:
        """Remove the file of `key`.

        The folder is not synced: an object that comes back after a power loss is removed again by
        the next gc.
        """
        self._files.unlink(self._path(key))

    def sweep(self) -> int:
        """Remove the temporaries of dead writers; returns bytes freed."""
        self._require_folders(self._tmp)
        return self._files.sweep(self._tmp)

    def _path(self, key: str) -> Path:
        check_key(key)
        path = self._root / key
        self._require_folders(path.parent)
        return path

    def _require_folders(self, folder: Path) -> None:
        """Raise CorruptDataError if anything from below the root to `folder` is no directory."""
        if folder == self._root:
            return
        self._require_folders(folder.parent)
        try:
            with translate_errors("read", folder):
                mode = os.lstat(folder).st_mode
        except NotFoundError:
            return
        if not stat.S_ISDIR(mode):
            raise CorruptDataError(
                f"{folder} is not a directory",
                hint="links are not followed inside a repository; move the directory itself there",
            )

    def _create(self, path: Path, parts: Sequence[Buffer]) -> bool:
        self._settle(path.parent)
        self._settle(self._tmp)
        with self._files.temporary(self._tmp, parts, OBJECT_MODE) as temporary:
            return self._files.link(temporary, path)

    def _settle(self, folder: Path) -> None:
        """Make `folder` and what is missing above it, and sync their names, once per storage.

        Also a folder that is there already is synced: the process that made it may have died, or
        may stand, between making and syncing it.
        """
        if folder in self._settled:
            return
        inside = self._root in folder.parents
        if inside:
            self._settle(folder.parent)
        try:
            created = self._files.mkdir(folder)
        except NotFoundError:
            self._settle(folder.parent)
            created = self._files.mkdir(folder)
        # A directory around the root is somebody else's, and may be closed to us for reading.
        if created or inside or os.access(folder.parent, os.R_OK):
            self._files.fsync_dir(folder.parent)
        self._settled.add(folder)


def _walk(folder: Path, prefix: str) -> Iterator[ObjectInfo]:
    """Objects in `folder`, whose keys begin with `prefix`; other things there are passed over."""
    for name, size in _entries(folder):
        if is_folder(prefix + name):
            yield from _walk(folder / name, prefix + name)
        elif is_key(prefix + name):
            yield ObjectInfo(prefix + name, size)


def _entries(folder: Path) -> list[tuple[str, int]]:
    """Files in `folder` with their sizes, and folders with "/" after the name, in key order."""
    found: list[tuple[str, int]] = []
    try:
        with translate_errors("list", folder), os.scandir(folder) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    found.append((entry.name + "/", 0))
                elif entry.is_file(follow_symlinks=False):
                    with suppress(FileNotFoundError):  # deleted just now
                        found.append((entry.name, entry.stat(follow_symlinks=False).st_size))
    except NotFoundError:
        return []
    return sorted(found)


@contextmanager
def _open_object(path: Path) -> Iterator[tuple[int, int]]:
    """The file descriptor of an object and its size in bytes; closed after the block."""
    with translate_errors("read", path):
        try:
            fd = os.open(path, READ_FLAGS)
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.ENXIO):  # a symbolic link, a socket
                raise _not_an_object(path) from error
            raise
    try:
        with translate_errors("read", path):
            info = os.fstat(fd)
        if not stat.S_ISREG(info.st_mode):
            raise _not_an_object(path)
        yield fd, info.st_size
    finally:
        close(fd)


def _read(fd: int, start: int, length: int) -> bytes:
    """Exactly `length` bytes from `start`, or fewer where the file ends."""
    data = os.pread(fd, length, start) if length else b""
    while len(data) < length and (more := os.pread(fd, length - len(data), start + len(data))):
        data += more
    return data


def _not_an_object(path: Path) -> CorruptDataError:
    return CorruptDataError(
        f"{path} is not a regular file, so it is not what mstore stored there",
        hint="remove it, and run `mstore verify` to see what is missing",
    )
