"""A working directory: recording versions of it, and moving it from one to another.

Its state lies in `.mstore/worktree/`: `head` (which model, branch and commit), `cache` (the stat
cache), `checkout` while files are being written, and `pending` while a commit is being published.
The files are replaced whole, so a process killed at any time leaves a state that `status` explains
and the next command can go on from.
"""

from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from mstore.chunking import DEFAULT_CHUNK_SIZE
from mstore.database import Database
from mstore.errors import ConflictError, CorruptDataError, InvalidInputError, NotFoundError
from mstore.head import Head, has_commit
from mstore.ids import Id
from mstore.objects import FileEntry, Snapshot
from mstore.ops.checkout import Writer
from mstore.ops.commit import Content, Description, Recorded, Target, record
from mstore.ops.directory import Directory
from mstore.ops.hashing import holds
from mstore.ops.opening import open_files
from mstore.ops.plan import Plan, Planner
from mstore.ops.revisions import check_name
from mstore.ops.scan import REPOSITORY_FOLDER, FoundFile
from mstore.progress import SILENT, Progress
from mstore.statcache import read_time
from mstore.status import WorktreeReader
from mstore.storage.files import FILES, Files


@dataclass(frozen=True, slots=True)
class CheckedOut:
    """What a checkout did: paths written and removed, and changed files it left alone."""

    commit: Id
    branch: str | None
    written: tuple[str, ...]
    removed: tuple[str, ...]
    kept: tuple[str, ...]


class Worktree(WorktreeReader):
    """The working directory, from which versions are made and into which they are brought back."""

    @classmethod
    def create(cls, directory: Path, db: Database, files: Files = FILES) -> "Worktree":
        """Make `directory` a working directory of a repository that lies in it."""
        tree = cls(directory, db, files)
        tree.set_head(Head())
        return tree

    def set_head(self, head: Head) -> None:
        """Say what the directory shows, without touching its files."""
        self._state.write(head)

    def commit(
        self,
        description: Description,
        *,
        paths: Collection[str] | None = None,
        branch: str | None = None,
        rehash: bool = False,
        threads: int | None = None,
        chunk_size: int = DEFAULT_CHUNK_SIZE,
        progress: Progress = SILENT,
    ) -> Recorded:
        """Record the directory, or only `paths` in it with the rest as HEAD has it.

        `branch` makes a new branch for it at HEAD and moves there, also when a checkout did not
        finish and the files are a mixture. `rehash` as for `status`. When
        gc removed HEAD's version, the new one has no parent. Raises ConflictError when the branch
        moved since HEAD, InvalidInputError when HEAD is on no branch.
        """
        before = self._current_head()
        head = self._head_to_commit(before, branch)
        snapshot = self._snapshot(head.commit)
        if rehash:
            self._cache.forget()
        read_at = read_time()
        found = self._scan()
        compared = self._compare(found, snapshot)
        to_store = [*compared.added, *compared.modified]
        carried = dict(compared.same)
        if paths is not None:
            to_store, carried = self._only(paths, to_store, snapshot, compared.deleted)
        progress.begin(sum(file.stat.st_size for file in to_store))
        recorded = record(
            self.db,
            self._target(head, branch),
            Content(
                lambda: open_files(self.directory, to_store, self.warnings),
                carried,
                frozenset(file.path for file in to_store if file.executable),
            ),
            description,
            threads=threads,
            chunk_size=chunk_size,
            progress=progress.advance,
            announce=lambda made: self._state.begin_commit(before, replace(head, commit=made)),
        )
        self.set_head(replace(head, commit=recorded.id))
        for file in to_store:
            if file.path in recorded.snapshot.files:
                manifest = recorded.snapshot.files[file.path].manifest
                self._cache.note(file.path, file.stat, manifest, read_at)
        self._cache.save()
        if paths is None:
            self._state.end_checkout()
        return recorded

    def checkout(
        self,
        commit: Id,
        branch: str | None,
        *,
        model: str | None = None,
        force: bool = False,
        threads: int | None = None,
        progress: Progress = SILENT,
    ) -> CheckedOut:
        """Make the directory show `commit`; HEAD is then on `branch`, or on none.

        Files that differ between HEAD and `commit` are replaced or removed, missing ones written.
        Changed files that both versions have alike stay as they are, and so do files that neither
        has. Raises ConflictError, before anything is written, when a change that is not committed
        would be overwritten, unless `force`, which brings back every file of the version.
        """
        head = self._current_head()
        after = self.db.snapshot(self.db.commit(commit).snapshot)
        planner = self._planner(head)
        plan = planner.go_to(after, force=force)
        directory = self._prepare(planner, plan, force)
        unfinished = self._state.unfinished()
        if plan.write or plan.remove:
            self._state.begin_checkout(commit)
        try:
            self._carry_out(plan, directory, threads, progress)
        except CorruptDataError:
            # Damage found before anything was written leaves the files as they were.
            if unfinished is None and not directory.changed:
                self._state.end_checkout()
            raise
        self.set_head(Head(model or head.model, branch, commit))
        self._cache.save()
        self._state.end_checkout()
        return CheckedOut(commit, branch, tuple(plan.write), tuple(plan.remove), tuple(plan.kept))

    def restore(
        self,
        snapshot: Snapshot,
        paths: Collection[str],
        *,
        force: bool = False,
        threads: int | None = None,
        progress: Progress = SILENT,
    ) -> tuple[str, ...]:
        """Bring `paths` (files, or folders with all in them) back from a version; HEAD stays.

        Returns the files written. Raises NotFoundError for a path that the version does not have,
        ConflictError when a change that is not committed would be overwritten, unless `force`.
        """
        wanted = [path for path in snapshot.files if _is_under(path, paths)]
        for path in paths:
            if not any(_is_under(one, [path]) for one in wanted):
                raise NotFoundError(f"there is no {path!r} in that version")
        planner = self._planner(self._current_head())
        plan = planner.bring_back({path: snapshot.files[path] for path in wanted})
        directory = self._prepare(planner, plan, force)
        self._carry_out(plan, directory, threads, progress)
        self._cache.save()
        return tuple(plan.write)

    def _planner(self, head: Head) -> Planner:
        versions = [self._snapshot(one) for one in (head.commit, *self._state.all_unfinished())]
        return Planner(self._scan(), versions, self._is)

    def _prepare(self, planner: Planner, plan: Plan, force: bool) -> Directory:
        """Make sure, before anything is written, that the plan can be carried out."""
        if not force:
            plan.refuse_to_lose()
        directory = Directory(self.directory, plan.remove, self.files)
        planner.look(
            plan, directory, lambda path, entry: holds(self.db, self.directory / path, entry)
        )
        if not force:
            plan.refuse_to_lose()
        return directory

    def _carry_out(
        self, plan: Plan, directory: Directory, threads: int | None, progress: Progress
    ) -> None:
        progress.begin(sum(entry.size for entry in plan.write.values()))
        writer = Writer(self.db, directory, threads=threads, progress=progress.advance)
        for path, info in writer.write(plan.write):
            directory.changed = True
            self._cache.note_written(path, info, plan.write[path].manifest)
        for path in plan.remove:
            directory.remove(path)
        directory.finish()

    def _head_to_commit(self, head: Head, branch: str | None) -> Head:
        if branch is not None:
            return replace(head, branch=check_name("branch", branch))
        if (unfinished := self._state.unfinished()) is not None:
            raise ConflictError(
                f"the checkout of {unfinished.hex()[:12]} did not finish; files of two versions "
                "are mixed here",
                hint=f"finish it with: mstore checkout {unfinished.hex()[:12]}; "
                "or record the files as they are with: mstore commit --branch NAME",
            )
        if head.branch is None:
            raise InvalidInputError(
                "HEAD is on no branch, so a new version here would be lost to gc",
                hint="give it a branch with: mstore commit --branch NAME",
            )
        return head

    def _target(self, head: Head, new_branch: str | None) -> Target:
        assert head.branch is not None
        parents = (head.commit,) if head.commit and has_commit(self.db, head.commit) else ()
        return Target(head.model, head.branch, None if new_branch else head.commit, parents)

    def _only(
        self,
        paths: Collection[str],
        changed: Iterable[FoundFile],
        snapshot: Snapshot,
        deleted: Iterable[str],
    ) -> tuple[list[FoundFile], dict[str, FileEntry]]:
        """Of the changes only those at `paths`; everything else as the snapshot has it."""
        chosen = [file for file in changed if _is_under(file.path, paths)]
        gone = {path for path in deleted if _is_under(path, paths)}
        for path in paths:
            if not (self.directory / path).exists() and not any(_is_under(p, [path]) for p in gone):
                raise NotFoundError(f"there is no {path!r} here, nor in HEAD")
        stored = {file.path for file in chosen}
        carried = {p: e for p, e in snapshot.files.items() if p not in gone and p not in stored}
        return chosen, carried


def find_worktree(start: Path) -> Path | None:
    """The nearest directory at or above `start` that has a repository folder."""
    for folder in (start, *start.parents):
        if (folder / REPOSITORY_FOLDER).is_dir():
            return folder
    return None


def _is_under(path: str, roots: Iterable[str]) -> bool:
    """Whether `path` is one of `roots` or lies in a folder that is."""
    return any(root in (path, "", ".") or path.startswith(f"{root}/") for root in roots)
