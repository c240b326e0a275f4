"""Looking at a working directory: which version it shows (HEAD), and what changed since.

Nothing here needs numpy, since `mstore status` is run more often than anything else.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from mstore.database import Database
from mstore.head import Head, HeadFile, has_commit
from mstore.ids import Id
from mstore.objects import FileEntry, Snapshot
from mstore.ops.hashing import holds
from mstore.ops.scan import REPOSITORY_FOLDER, FoundFile, Scan
from mstore.statcache import StatCache, read_time
from mstore.storage.files import FILES, Files


@dataclass(frozen=True, slots=True)
class Status:
    """How the files differ from HEAD. Paths are sorted.

    `interrupted` is the id of the version whose checkout did not finish, if one did not; `moved`
    is where the branch stands when that is not HEAD any more. `forgotten` is whether gc removed the
    version of HEAD; then every file counts as added.
    """

    head: Head
    added: tuple[str, ...]
    modified: tuple[str, ...]
    deleted: tuple[str, ...]
    unchanged: int
    warnings: tuple[str, ...]
    interrupted: Id | None = None
    moved: Id | None = None
    forgotten: bool = False

    @property
    def clean(self) -> bool:
        """Whether the files are those of HEAD."""
        return not (self.added or self.modified or self.deleted)


@dataclass(slots=True)
class Compared:
    """Found files sorted by how they compare with HEAD."""

    same: dict[str, FileEntry]
    added: list[FoundFile]
    modified: list[FoundFile]
    deleted: list[str]


def all_changed(found: Sequence[FoundFile], snapshot: Snapshot) -> Compared:
    """As if no file were what the snapshot has at its path."""
    paths = {file.path for file in found}
    return Compared({}, [], list(found), sorted(p for p in snapshot.files if p not in paths))


class WorktreeReader:
    """The working directory `directory`, whose repository is opened as `db`, as it is now.

    Of all there is, only the stat cache is ever written.
    """

    def __init__(self, directory: Path, db: Database, files: Files = FILES) -> None:
        self.directory = directory
        self.db = db
        self.files = files
        folder = directory / REPOSITORY_FOLDER / "worktree"
        self._state = HeadFile(folder, files)
        self._cache = StatCache(folder / "cache", files)
        self.warnings: list[str] = []

    @property
    def head(self) -> Head:
        """What the directory shows. Raises CorruptDataError when that cannot be read."""
        return self._state.read(lambda commit: has_commit(self.db, commit))

    def head_snapshot(self) -> Snapshot:
        """The files that HEAD has; none before the first commit, or when gc removed it."""
        return self._snapshot(self.head.commit)

    def status(self, *, rehash: bool = False) -> Status:
        """How the files differ from HEAD; looks into files only where size or times changed.

        With `rehash` into all: writing through a memory map may leave the times as they are.
        """
        head = self._current_head()
        if rehash:
            self._cache.forget()
        compared = self._compare(self._scan(), self._snapshot(head.commit))
        self._cache.save()
        tip = self.db.root.refs(head.model).branches.get(head.branch) if head.branch else None
        return Status(
            head=head,
            added=tuple(file.path for file in compared.added),
            modified=tuple(file.path for file in compared.modified),
            deleted=tuple(compared.deleted),
            unchanged=len(compared.same),
            warnings=tuple(self.warnings),
            interrupted=self._state.unfinished(),
            moved=tip if head.branch and tip != head.commit else None,
            forgotten=head.commit is not None and not has_commit(self.db, head.commit),
        )

    def _current_head(self) -> Head:
        """What the directory shows, in the light of the newest root."""
        self.db.refresh()
        return self.head

    def _snapshot(self, commit: Id | None) -> Snapshot:
        """The files of a version; none when there is no such, or none any more."""
        if commit is None or not has_commit(self.db, commit):
            return Snapshot({})
        return self.db.snapshot(self.db.commit(commit).snapshot)

    def _scan(self) -> list[FoundFile]:
        scan = Scan(self.directory)
        found = scan.files()
        self.warnings = scan.warnings
        self._cache.keep_only(file.path for file in found)
        return found

    def _compare(self, found: Iterable[FoundFile], snapshot: Snapshot) -> Compared:
        compared = Compared({}, [], [], [])
        paths = set()
        for file in found:
            paths.add(file.path)
            entry = snapshot.files.get(file.path)
            if entry is None:
                compared.added.append(file)
            elif self._is(file, entry):
                compared.same[file.path] = entry
            else:
                compared.modified.append(file)
        compared.deleted = sorted(path for path in snapshot.files if path not in paths)
        return compared

    def _is(self, file: FoundFile, entry: FileEntry) -> bool:
        if file.stat.st_size != entry.size or file.executable != entry.executable:
            return False
        if (known := self._cache.manifest(file.path, file.stat)) is not None:
            return known == entry.manifest
        read_at = read_time()
        same = holds(self.db, self.directory / file.path, entry)
        if same:
            self._cache.note(file.path, file.stat, entry.manifest, read_at)
        return same


def find_worktree(start: Path) -> Path | None:
    """The nearest directory at or above `start` that has a repository folder."""
    for folder in (start, *start.parents):
        if (folder / REPOSITORY_FOLDER).is_dir():
            return folder
    return None


def is_under(path: str, roots: Iterable[str]) -> bool:
    """Whether `path` is one of `roots` or lies in a folder that is."""
    return any(root in (path, "", ".") or path.startswith(f"{root}/") for root in roots)
