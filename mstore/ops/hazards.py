"""Judging many files, without loading any: those of a directory, and those of a stored version."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from mstore.database import Database
from mstore.errors import MstoreError, UnsafeInputError
from mstore.formats.detect import find_format
from mstore.formats.hazards import Hazards, find_hazards, judge
from mstore.objects import Snapshot
from mstore.ops.scan import FoundFile
from mstore.ops.storedfolder import StoredFolders
from mstore.sources import FileSource, Folder, FolderOf

_MAX_SHOWN = 5
_MAX_REASON = 300


@dataclass(frozen=True, slots=True)
class Scanned:
    """What loading one file would do; or None, and why the file could not be read."""

    path: str
    size: int
    hazards: Hazards | None
    error: MstoreError | None = None


def scan_directory(directory: Path, files: Iterable[FoundFile]) -> Iterator[Scanned]:
    """Judge found files of a directory, one after the other."""
    folders: dict[Path, Folder] = {}
    for file in files:
        path = directory / file.path
        folder = folders.setdefault(path.parent, Folder(path.parent))
        try:
            with closing(FileSource(path)) as source:
                hazards = find_hazards(source, FolderOf(folder, path.name))
        except MstoreError as error:
            yield Scanned(file.path, file.stat.st_size, None, error)
        else:
            yield Scanned(file.path, source.size, hazards)


def scan_snapshot(db: Database, snapshot: Snapshot, paths: Iterable[str]) -> Iterator[Scanned]:
    """Judge these files of a stored version; of its chunks only those are read that matter."""
    folders = StoredFolders(db, snapshot)
    for path in paths:
        entry = snapshot.files[path]
        try:
            hazards = find_hazards(folders.read(entry), folders.beside(path))
        except MstoreError as error:
            yield Scanned(path, entry.size, None, error)
        else:
            yield Scanned(path, entry.size, hazards)


def refuse_unsafe(directory: Path, files: Iterable[FoundFile]) -> None:
    """Raise UnsafeInputError if any of the files is dangerous to load, and name those that are.

    So is, for all that can be told, one that breaks off in the middle of what could run code.
    """
    refused: dict[str, Hazards] = {}
    folders: dict[Path, Folder] = {}
    for file in files:
        path = directory / file.path
        folder = folders.setdefault(path.parent, Folder(path.parent))
        with closing(FileSource(path)) as source:
            hazards = judge(source, find_format(source), FolderOf(folder, path.name))
        if hazards.unsafe:
            refused[file.path] = hazards
    if refused:
        raise refusal(refused)


def refusal(files: Mapping[str, Hazards]) -> UnsafeInputError:
    """The error that refuses a commit because of these files."""
    told = [f"{path}: {_reason(hazards)}" for path, hazards in list(files.items())[:_MAX_SHOWN]]
    more = f"; and {len(files) - len(told)} more" if len(files) > len(told) else ""
    return UnsafeInputError(
        f"{'; '.join(told)}{more}; nothing was recorded",
        hint="see `mstore scan`; name such files in .mstoreignore to leave them out, or record "
        "them all the same with --no-refuse-unsafe",
    )


def warning_of(path: str, hazards: Hazards) -> str:
    """What to tell at a commit of a file that is dangerous to load."""
    return (
        f"{path}: {_reason(hazards)}; stored as it is, nothing here runs it; "
        "`mstore scan` tells more"
    )


def _reason(hazards: Hazards) -> str:
    dangers = list(dict.fromkeys(finding.what for finding in hazards.of("dangerous")))
    if not dangers:
        problem = (hazards.problem or "")[:_MAX_REASON]
        return f"cannot be judged (looks like {hazards.format} but {problem})"
    more = f", and {len(dangers) - 1} more" if len(dangers) > 1 else ""
    return f"dangerous to load ({dangers[0][:_MAX_REASON]}{more})"
