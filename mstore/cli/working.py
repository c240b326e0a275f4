"""The working directory as one side of a diff."""

import stat
from pathlib import Path

from mstore.formats.detect import describe
from mstore.objects import FileEntry, Manifest, Snapshot, encode_object
from mstore.ops.describing import describe_file
from mstore.ops.sides import FileSide
from mstore.progress import Progress
from mstore.sources import FileSource, Folder, FolderOf
from mstore.worktree_read import WorktreeReader


def working_side(tree: WorktreeReader, progress: Progress) -> FileSide:
    """What lies in the working directory; files that differ from HEAD are read, none is stored.

    Raises ConflictError when a file changes meanwhile, StorageError when one cannot be read.
    """
    status = tree.status()
    changed = (*status.added, *status.modified)
    gone = {*changed, *status.deleted}
    files = {path: entry for path, entry in tree.head_snapshot().files.items() if path not in gone}
    hashed: dict[str, Manifest] = {}
    folders: dict[Path, Folder] = {}
    for path in changed:
        source = FileSource(tree.directory / path)
        executable = bool(source.stat.st_mode & stat.S_IXUSR)
        folder = folders.setdefault(source.path.parent, Folder(source.path.parent))
        layout, _ = describe(source, FolderOf(folder, source.path.name))
        hashed[path] = manifest = describe_file(source, layout, progress=progress.advance)
        files[path] = FileEntry(encode_object(manifest)[1], manifest.size, executable)
    return FileSide(
        tree.db, Snapshot(files), hashed, lambda path: FileSource(tree.directory / path)
    )
