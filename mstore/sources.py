"""Where the bytes of a file come from: a real file, or memory.

A source is a `layout.ByteReader` for parsers, and gives the commit pipeline views of its bytes.
"""

import os
import stat
import time
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any

from mstore.errors import ConflictError, NotFoundError, UnsafeInputError
from mstore.storage.files import translate_errors

_SMALL = 256 << 10
_CLOCK_TICK_NS = 20_000_000


class Source(ABC):
    """The bytes of one file, at any offset. Reading is thread safe."""

    @property
    @abstractmethod
    def size(self) -> int:
        """Bytes in the file."""

    @abstractmethod
    def view(self, offset: int, length: int, scratch: memoryview) -> memoryview:
        """Exactly these bytes, at the beginning of `scratch`."""

    @abstractmethod
    def finish(self) -> None:
        """Release the source; raises ConflictError if it changed since it was opened."""

    def close(self) -> None:  # noqa: B027
        """Release the source without another look at it; there may be nothing to release."""

    def read(self, offset: int, length: int) -> bytes:
        """At most `length` bytes from `offset`; fewer only where the file ends."""
        length = max(0, min(length, self.size - offset))
        return bytes(self.view(offset, length, memoryview(bytearray(length))))


class FileSource(Source):
    """A regular file, or a symbolic link to one, watched for changes while it is read.

    Small files are read at once, so that only large ones keep a file descriptor.
    """

    def __init__(self, path: Path) -> None:
        """Open `path`; raises StorageError, or UnsafeInputError when it is no regular file."""
        self.path = path
        with translate_errors("read", path):
            # Non-blocking, so that a named pipe is refused instead of waited for.
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        self.stat = os.fstat(self._fd)
        if not stat.S_ISREG(self.stat.st_mode):
            self.close()
            raise UnsafeInputError(
                f"{path} is not a regular file", hint="name it in .mstoreignore, or remove it"
            )
        # A second write in the clock tick of the last one would leave the times as they are.
        age = time.time_ns() - self.stat.st_mtime_ns
        if 0 <= age < _CLOCK_TICK_NS:
            time.sleep((_CLOCK_TICK_NS - age) / 1e9)
        self._content: bytes | None = None
        if self.size <= _SMALL:
            try:
                self._content = self.read(0, self.size)
                self.finish()
            finally:
                self.close()

    @property
    def size(self) -> int:
        """Bytes in the file when it was opened."""
        return self.stat.st_size

    def view(self, offset: int, length: int, scratch: memoryview) -> memoryview:
        """These bytes; raises ConflictError when the file has become shorter."""
        done = 0
        if self._content is not None:
            scratch[:length] = self._content[offset : offset + length]
            done = length
        with translate_errors("read", self.path):
            while done < length:
                read = os.preadv(self._fd, [scratch[done:length]], offset + done)
                if read == 0:
                    raise self._changed()
                done += read
        return scratch[:length]

    def finish(self) -> None:
        """Close; raises ConflictError if it is another file now, or has other times."""
        if self._fd < 0:
            return
        now = os.fstat(self._fd)
        self.close()
        try:
            there = self.path.stat()
        except OSError:
            raise self._changed() from None
        if not (same_file(self.stat, now) and same_file(self.stat, there)):
            raise self._changed()

    def close(self) -> None:
        """Release the file without another look at it; harmless when it is closed already."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _changed(self) -> ConflictError:
        return ConflictError(
            f"{self.path} changed while it was read; nothing was recorded",
            hint="repeat when nothing writes to it",
        )


class BufferSource(Source):
    """Buffers in memory, one after the other, as if they were a file.

    Bytes are handed out as copies: the owner of an array may go on changing it, and a chunk must
    not be hashed as one thing and stored as another.
    """

    def __init__(self, buffers: Sequence[memoryview]) -> None:
        self._buffers = [buffer for buffer in buffers if len(buffer)]
        self._starts = []
        self._size = 0
        for buffer in self._buffers:
            self._starts.append(self._size)
            self._size += len(buffer)

    @property
    def size(self) -> int:
        """Bytes in all buffers together."""
        return self._size

    def view(self, offset: int, length: int, scratch: memoryview) -> memoryview:
        """A copy of these bytes in `scratch`."""
        number = bisect_right(self._starts, offset) - 1
        start = offset - self._starts[number] if number >= 0 else 0
        done = 0
        while done < length:
            piece = self._buffers[number][start : start + length - done]
            scratch[done : done + len(piece)] = piece
            done += len(piece)
            number, start = number + 1, 0
        return scratch[:length]

    def finish(self) -> None:
        """Memory needs no closing."""


class Folder:
    """The files of a folder, read while others of them are described."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.known: dict[str, Any] = {}

    @cached_property
    def names(self) -> frozenset[str]:
        """The names of the regular files there, and of links to such. Raises StorageError."""
        with translate_errors("list", self.path), os.scandir(self.path) as entries:
            return frozenset(entry.name for entry in entries if entry.is_file())

    def is_link(self, path: str) -> bool:
        """As `layout.Beside` says; each folder on the way is looked at before what is in it."""
        for place in accumulate(path.split("/"), "{}/{}".format):
            try:
                found = os.lstat(f"{self.path}/{place}")
            except (OSError, ValueError):  # nothing is there, or nothing can be called so
                return False
            if stat.S_ISLNK(found.st_mode) or (stat.S_ISREG(found.st_mode) and found.st_nlink > 1):
                return True
        return False


class FolderOf:
    """A `layout.Beside`: the folder in which the file `name` lies."""

    def __init__(self, folder: Folder, name: str) -> None:
        self.name = name
        self.known = folder.known
        self._folder = folder

    def names(self) -> Collection[str]:
        """The names of the regular files there, and of links to such. Raises StorageError."""
        return self._folder.names

    def is_link(self, path: str) -> bool:
        """Whether what is at `path`, from the folder on, would be read through a link."""
        return self._folder.is_link(path)

    @contextmanager
    def open(self, name: str) -> Iterator[FileSource]:
        """One of these, for reading. Raises StorageError, NotFoundError when it is gone."""
        if name not in self._folder.names:
            raise NotFoundError(f"there is no file {name!r} in {self._folder.path}")
        source = FileSource(self._folder.path / name)
        try:
            yield source
        finally:
            source.close()


def same_file(one: os.stat_result, other: os.stat_result) -> bool:
    """Whether two looks at a file show the same one, not written to in between."""
    return (one.st_dev, one.st_ino, one.st_size, one.st_mtime_ns, one.st_ctime_ns) == (
        other.st_dev,
        other.st_ino,
        other.st_size,
        other.st_mtime_ns,
        other.st_ctime_ns,
    )
