"""The stat cache: files known to be unchanged by looking at their size and times alone.

An entry is only believed when the file was last touched well before it was read: a file written
again within the granularity of its time stamps would look untouched (git calls this "racy").
"""

import os
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import xxhash

from mstore.canonical import pack, unpack
from mstore.errors import MstoreError, NotFoundError, StorageError
from mstore.ids import Id
from mstore.storage.files import FILES, Files

_MAGIC = b"MSTORESC"
_VERSION = 1

_TICK_NS = 20_000_000
_COARSE_TICK_NS = 2_000_000_000
"""Time stamps are as coarse as the kernel's clock tick; on FAT, as two seconds."""


@dataclass(frozen=True, slots=True)
class CacheEntry:
    """What a file looked like when its content was found to be that of `manifest`."""

    size: int
    mtime: int
    ctime: int
    inode: int
    manifest: Id


class StatCache:
    """Path -> CacheEntry, kept in a file; a damaged or missing file is an empty cache."""

    def __init__(self, path: Path, files: Files = FILES) -> None:
        self.path = path
        self.files = files
        self.entries = _load(path)
        self._saved = dict(self.entries)

    def manifest(self, path: str, info: os.stat_result) -> Id | None:
        """The manifest of the file at `path`, if it is known and `info` shows no change."""
        entry = self.entries.get(path)
        if entry is None or entry != _entry(info, entry.manifest):
            return None
        return entry.manifest

    def note(self, path: str, info: os.stat_result, manifest: Id, read_at: int) -> None:
        """Remember that the file, when read at `read_at` (ns since 1970), was `manifest`."""
        touched = max(info.st_mtime_ns, info.st_ctime_ns)
        tick = _TICK_NS if info.st_mtime_ns % 1_000_000_000 else _COARSE_TICK_NS
        if touched < read_at - tick:
            self.entries[path] = _entry(info, manifest)
        else:
            self.entries.pop(path, None)

    def note_written(self, path: str, info: os.stat_result, manifest: Id) -> None:
        """Remember a file that this process has just put in place whole."""
        self.entries[path] = _entry(info, manifest)

    def keep_only(self, paths: Iterable[str]) -> None:
        """Forget every other path."""
        kept = set(paths)
        self.entries = {path: entry for path, entry in self.entries.items() if path in kept}

    def forget(self) -> None:
        """Forget every path, so that all files are read again."""
        self.entries = {}

    def save(self) -> None:
        """Write the cache if it changed. It only saves time, so failing to is no error."""
        if self.entries == self._saved:
            return
        rows = [[path, *_fields(entry)] for path, entry in self.entries.items()]
        body = pack([_VERSION, rows])
        data = _MAGIC + xxhash.xxh3_64_digest(body) + body
        try:
            self.files.replace_file(self.path, data)
        except (StorageError, NotFoundError):
            return
        self._saved = dict(self.entries)


def read_time() -> int:
    """Now, in nanoseconds since 1970, as file times count."""
    return time.time_ns()


def _entry(info: os.stat_result, manifest: Id) -> CacheEntry:
    return CacheEntry(info.st_size, info.st_mtime_ns, info.st_ctime_ns, info.st_ino, manifest)


def _fields(entry: CacheEntry) -> list[object]:
    return [entry.size, entry.mtime, entry.ctime, entry.inode, entry.manifest]


def _load(path: Path) -> dict[str, CacheEntry]:
    try:
        data = path.read_bytes()
    except OSError:
        return {}
    body = data[16:]
    if data[:8] != _MAGIC or data[8:16] != xxhash.xxh3_64_digest(body):
        return {}
    try:
        version, rows = unpack(body)
        return {row[0]: CacheEntry(*row[1:]) for row in rows} if version == _VERSION else {}
    except (MstoreError, ValueError, TypeError):
        return {}
