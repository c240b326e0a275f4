"""What lies on disk as one side of a diff: the working directory, or a single file."""

import stat
from collections.abc import Callable, Mapping
from pathlib import Path

from mstore.database import Database
from mstore.formats.detect import describe
from mstore.objects import FileEntry, Manifest, Snapshot, encode_object
from mstore.ops.describing import describe_file
from mstore.ops.sides import FileSide
from mstore.progress import Progress
from mstore.sources import FileSource, Folder, FolderOf
from mstore.worktree_read import WorktreeReader


def working_side(
    tree: WorktreeReader, progress: Progress, wanted: Callable[[str], bool] = lambda _: True
) -> FileSide:
    """What lies in the working directory, of files whose paths are `wanted`.

    Those that differ from HEAD are read, none is stored. Raises ConflictError when a file changes
    meanwhile, StorageError when one cannot be read.
    """
    status = tree.status()
    changed = [path for path in (*status.added, *status.modified) if wanted(path)]
    gone = {*changed, *status.deleted}
    files = {
        path: entry
        for path, entry in tree.head_snapshot().files.items()
        if path not in gone and wanted(path)
    }
    return _side(tree.db, files, {path: tree.directory / path for path in changed}, progress)


def file_side(db: Database, path: str, progress: Progress) -> FileSide:
    """The file at `path`, wherever that is; raises as `working_side` does."""
    return _side(db, {}, {path: Path(path)}, progress)


def _side(
    db: Database,
    stored: Mapping[str, FileEntry],
    on_disk: Mapping[str, Path],
    progress: Progress,
) -> FileSide:
    """Files that are in the repository, and files that are read from where they are."""
    files = dict(stored)
    hashed: dict[str, Manifest] = {}
    folders: dict[Path, Folder] = {}
    for path, place in on_disk.items():
        source = FileSource(place)
        executable = bool(source.stat.st_mode & stat.S_IXUSR)
        folder = folders.setdefault(source.path.parent, Folder(source.path.parent))
        layout, _ = describe(source, FolderOf(folder, source.path.name))
        hashed[path] = manifest = describe_file(source, layout, progress=progress.advance)
        files[path] = FileEntry(encode_object(manifest)[1], manifest.size, executable)
    return FileSide(db, Snapshot(files), hashed, lambda path: FileSource(on_disk[path]))
