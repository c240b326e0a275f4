"""Every state a disk may be in after a crash, from a record of the operations before it.

The rules, more pessimistic than any file system: what was written to a file may be lost, cut short
or zeroes until the file is synced; a name made, replaced or removed may be there or not until its
folder is synced, whatever happened to other names.
"""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock

from mstore.storage.files import Files, is_temporary

NAMING = {"create", "link", "rename", "unlink", "mkdir", "rmdir"}
SYNCS = {"fsync", "fsync_dir"}

FOLDER = -1
"""Stands for a folder where otherwise a file's number stands."""


@dataclass(frozen=True, slots=True)
class Operation:
    """One operation that succeeded. `file` is the number of the file, `source` an older name."""

    kind: str
    path: str
    file: int = FOLDER
    source: str = ""
    offset: int = 0
    data: bytes = b""

    @property
    def folder(self) -> str:
        """The folder in which it changes a name."""
        return str(Path(self.path).parent)

    def __str__(self) -> str:
        return f"{self.kind} {self.path}"


@dataclass(frozen=True)
class Disk:
    """What is in a directory: file contents by relative path, and all folders."""

    files: Mapping[str, bytes]
    folders: frozenset[str]

    @classmethod
    def read(cls, base: Path) -> "Disk":
        """What is there now."""
        found = sorted(base.rglob("*"))
        return cls(
            {str(path.relative_to(base)): path.read_bytes() for path in found if path.is_file()},
            frozenset(str(path.relative_to(base)) for path in found if path.is_dir()),
        )

    def write(self, base: Path) -> None:
        """Make an empty directory be like this."""
        for folder in sorted(self.folders):
            (base / folder).mkdir()
        for path, data in self.files.items():
            (base / path).write_bytes(data)

    def key(self) -> tuple[object, ...]:
        """Equal for equal disks."""
        return (frozenset(self.files.items()), self.folders)


class RecordingFiles(Files):
    """Carries operations below `base` out and records them; syncs are recorded only."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.before = Disk.read(base)
        self.operations: list[Operation] = []
        self._files = {path: number for number, path in enumerate(self.before.files)}
        self._ends: dict[int, int] = {}
        self._count = len(self._files)
        self._lock = Lock()

    def perform(self, operation, path, call, *arguments):  # type: ignore[no-untyped-def]
        name = os.path.relpath(path, self.base)
        with self._lock:
            result = (
                None if operation in SYNCS else super().perform(operation, path, call, *arguments)
            )
            self.operations.append(self._recorded(operation, name, arguments, result))
            return result

    def _recorded(self, kind: str, name: str, arguments, result) -> Operation:  # type: ignore[no-untyped-def]
        match kind:
            case "create":
                self._files[name] = self._count
                self._count += 1
                return Operation(kind, name, self._files[name])
            case "write":
                file = self._files[name]
                buffers = arguments[1]
                data = bytes(buffers) if isinstance(buffers, memoryview) else b"".join(buffers)
                offset = arguments[2] if len(arguments) > 2 else self._ends.get(file, 0)
                self._ends[file] = offset + result
                return Operation(kind, name, file, offset=offset, data=data[:result])
            case "link" | "rename":
                source = os.path.relpath(arguments[0], self.base)
                file = self._files[source]
                self._files[name] = file
                if kind == "rename":
                    del self._files[source]
                return Operation(kind, name, file, source)
            case "unlink":
                return Operation(kind, name, self._files.pop(name))
            case "fsync":
                return Operation(kind, name, self._files[name])
            case "mkdir" | "rmdir" | "fsync_dir":
                return Operation(kind, name)
        raise AssertionError(kind)


@dataclass
class Record:
    """What was there before, and the operations since."""

    before: Disk
    operations: list[Operation]


@dataclass(frozen=True)
class CrashState:
    """One state after a crash. `final` when the last operation was done before."""

    disk: Disk
    done: int
    final: bool
    label: str


@dataclass
class _Prefix:
    """The first operations of a record, and which of their effects are durable."""

    before: Disk
    operations: list[Operation]
    loose_names: list[int] = field(default_factory=list)
    junk: list[int] = field(default_factory=list)
    contents: dict[int, bytes] = field(default_factory=dict)
    synced: dict[int, bytes] = field(default_factory=dict)

    def __post_init__(self) -> None:
        loose: list[int] = []
        for number, data in enumerate(self.before.files.values()):
            self.contents[number] = self.synced[number] = data
        for number, operation in enumerate(self.operations):
            if operation.kind in NAMING:
                loose.append(number)
            elif operation.kind == "fsync_dir":
                loose = [one for one in loose if self.operations[one].folder != operation.path]
            elif operation.kind == "write":
                old = self.contents.get(operation.file, b"")
                old = old.ljust(operation.offset, b"\0")
                end = operation.offset + len(operation.data)
                self.contents[operation.file] = old[: operation.offset] + operation.data + old[end:]
            elif operation.kind == "fsync":
                self.synced[operation.file] = self.contents.get(operation.file, b"")
        # What becomes of temporary names matters little: all of them there, or none, or as it was.
        for number in loose:
            temporary = is_temporary(Path(self.operations[number].path).name)
            (self.junk if temporary else self.loose_names).append(number)

    def loose_files(self) -> set[int]:
        """The files whose contents may be lost."""
        return {f for f, data in self.contents.items() if self.synced.get(f) != data}

    def disk(self, dropped: frozenset[int], spoil: Callable[[bytes], bytes]) -> Disk:
        """The disk without the `dropped` changes of names, contents not synced being spoiled."""
        names = dict(zip(self.before.files, range(len(self.before.files)), strict=True))
        folders = set(self.before.folders)
        for number, operation in enumerate(self.operations):
            if operation.kind not in NAMING or number in dropped:
                continue
            match operation.kind:
                case "mkdir":
                    folders.add(operation.path)
                case "rmdir":
                    folders.discard(operation.path)
                case "unlink":
                    names.pop(operation.path, None)
                case "rename":
                    names.pop(operation.source, None)
                    names[operation.path] = operation.file
                case _:
                    names[operation.path] = operation.file
        there = {folder for folder in folders if _has_all_above(folder, folders)}
        loose = self.loose_files()
        files = {
            path: spoil(self.contents.get(file, b""))
            if file in loose
            else self.contents.get(file, b"")
            for path, file in names.items()
            if str(Path(path).parent) in there | {"."}
        }
        return Disk(files, frozenset(there))

    def choices(self) -> Iterator[tuple[str, frozenset[int]]]:
        """Which changes of names to drop, with a word for it."""
        names, junk = self.loose_names, frozenset(self.junk)
        removed = frozenset(n for n in junk if self.operations[n].kind == "unlink")
        yield "nothing dropped", frozenset()
        yield "temporaries stay", removed
        yield "all names dropped", junk | frozenset(names)
        yield "all names dropped, temporaries stay", removed | frozenset(names)
        for at, number in enumerate(names):
            yield f"dropped {self.operations[number]}", frozenset({number})
            yield f"only kept {self.operations[number]}", frozenset(names) - {number}
            yield f"dropped from {self.operations[number]}", frozenset(names[at:])


def _has_all_above(folder: str, folders: set[str]) -> bool:
    return all(str(above) in folders for above in list(Path(folder).parents)[:-1])


SPOILS: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ", data empty": lambda data: b"",
    ", data zero": lambda data: bytes(len(data)),
    ", data torn": lambda data: data[: len(data) // 2],
}


def crash_states(record: Record, *, latest_first: bool = False) -> Iterator[CrashState]:
    """Every different state after each prefix of the record."""
    seen = set()
    total = len(record.operations)
    # States that come up with several prefixes count as the earliest, but final ones as final.
    order = [total, *(reversed(range(total)) if latest_first else range(total))]
    for done in order:
        prefix = _Prefix(record.before, record.operations[:done])
        spoils = SPOILS if prefix.loose_files() else {"": bytes}
        for dropping, dropped in prefix.choices():
            for spoiling, spoil in spoils.items():
                disk = prefix.disk(dropped, spoil)
                if (key := disk.key()) in seen:
                    continue
                seen.add(key)
                label = f"after {done} of {total} operations, {dropping}{spoiling}"
                yield CrashState(disk, done, done == total, label)


def needed_syncs(record: Record) -> list[int]:
    """The syncs before which something other than a temporary's name was not durable."""
    needed = []
    for number, operation in enumerate(record.operations):
        prefix = _Prefix(record.before, record.operations[:number])
        loose = {prefix.operations[n].folder for n in prefix.loose_names}
        with suppress(KeyError):
            if (operation.kind == "fsync_dir" and operation.path in loose) or (
                operation.kind == "fsync" and operation.file in prefix.loose_files()
            ):
                needed.append(number)
    return needed
