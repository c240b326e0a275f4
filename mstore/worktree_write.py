"""Bringing versions back into a working directory. What records new ones is in `worktree`."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from mstore.database import Database
from mstore.errors import CorruptDataError, NotFoundError
from mstore.head import Head
from mstore.ids import Id
from mstore.objects import Snapshot
from mstore.ops.checkout import Writer
from mstore.ops.directory import Directory
from mstore.ops.hashing import holds
from mstore.ops.plan import Plan, Planner
from mstore.progress import SILENT, Progress
from mstore.storage.files import FILES, Files
from mstore.worktree_read import WorktreeReader, is_under


@dataclass(frozen=True, slots=True)
class CheckedOut:
    """What a checkout did: paths written and removed, and changed files it left alone."""

    commit: Id
    branch: str | None
    written: tuple[str, ...]
    removed: tuple[str, ...]
    kept: tuple[str, ...]


class WorktreeWriter(WorktreeReader):
    """A working directory, into which versions are brought back."""

    @classmethod
    def create(cls, directory: Path, db: Database, files: Files = FILES) -> Self:
        """Make `directory` a working directory of a repository that lies in it."""
        tree = cls(directory, db, files)
        tree.set_head(Head())
        return tree

    def set_head(self, head: Head) -> None:
        """Say what the directory shows, without touching its files."""
        self._state.write(head)

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
        directory = self._prepare(planner, plan, after.files, force)
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
        wanted = [path for path in snapshot.files if is_under(path, paths)]
        for path in paths:
            if not any(is_under(one, [path]) for one in wanted):
                raise NotFoundError(f"there is no {path!r} in that version")
        planner = self._planner(self._current_head())
        plan = planner.bring_back({path: snapshot.files[path] for path in wanted})
        directory = self._prepare(planner, plan, wanted, force)
        self._carry_out(plan, directory, threads, progress)
        self._cache.save()
        return tuple(plan.write)

    def _planner(self, head: Head) -> Planner:
        versions = [self._snapshot(one) for one in (head.commit, *self._state.all_unfinished())]
        return Planner(self._scan(), versions, self._is)

    def _prepare(
        self, planner: Planner, plan: Plan, paths: Iterable[str], force: bool
    ) -> Directory:
        """Make sure, before anything is written, that the plan can be carried out.

        It is for `paths` to hold what a version has there.
        """
        if not force:
            plan.refuse_to_lose()
        directory = Directory(self.directory, plan.remove, self.files)
        directory.refuse_names_for_one(paths)
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
