"""The whole working directory: looking at it, bringing versions back into it, recording new ones.

Its state lies in `.mstore/worktree/`: `head` (which model, branch and commit), `cache` (the stat
cache), `checkout` while files are being written, and `pending` while a commit is being published.
The files are replaced whole, so a process killed at any time leaves a state that `status` explains
and the next command can go on from.
"""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace

from mstore.chunking import DEFAULT_CHUNK_SIZE
from mstore.errors import ConflictError, InvalidInputError, NotFoundError
from mstore.head import Head, has_commit
from mstore.ids import Id
from mstore.objects import FileEntry, Snapshot
from mstore.ops.commit import Content, Description, Recorded, Target, record
from mstore.ops.opening import open_files
from mstore.ops.revisions import check_name
from mstore.ops.scan import FoundFile
from mstore.progress import SILENT, Progress
from mstore.settings import Settings
from mstore.statcache import read_time
from mstore.worktree_read import all_changed, is_under
from mstore.worktree_write import WorktreeWriter


class Worktree(WorktreeWriter):
    """A working directory, of which versions are recorded."""

    def commit(
        self,
        description: Description,
        *,
        paths: Collection[str] | None = None,
        branch: str | None = None,
        bases: Sequence[Id] = (),
        rehash: bool = False,
        threads: int | None = None,
        chunk_size: int = DEFAULT_CHUNK_SIZE,
        refuse_unsafe: bool | None = None,
        progress: Progress = SILENT,
    ) -> Recorded:
        """Record the directory, or only `paths` in it with the rest as HEAD has it.

        `branch` makes a new branch for it at HEAD and moves there, also when a checkout did not
        finish and the files are a mixture. Tensors that changed are coded against those of the
        commits `bases` first, then of HEAD. With `rehash` all files are read and described anew,
        also those whose size and times are as before. When gc removed HEAD's version, the new one
        has no parent. Raises ConflictError when the branch moved since HEAD, InvalidInputError when
        HEAD is on no branch, UnsafeInputError with `refuse_unsafe` (the repository's setting when
        None) when a file that is stored is dangerous to load.
        """
        before = self._current_head()
        head = self._head_to_commit(before, branch)
        snapshot = self._snapshot(head.commit)
        read_at = read_time()
        found = self._scan()
        compared = all_changed(found, snapshot) if rehash else self._compare(found, snapshot)
        to_store = [*compared.added, *compared.modified]
        carried = dict(compared.same)
        if paths is not None:
            to_store, carried = self._only(paths, to_store, snapshot, compared.deleted)
        refuse = Settings.of(self.db.root.settings).refuses(refuse_unsafe)
        progress.begin(sum(file.stat.st_size for file in to_store))
        recorded = record(
            self.db,
            self._target(head, branch),
            Content(
                lambda: open_files(self.directory, to_store, self.warnings, refuse=refuse),
                carried,
                frozenset(file.path for file in to_store if file.executable),
            ),
            description,
            bases=bases,
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
        chosen = [file for file in changed if is_under(file.path, paths)]
        gone = {path for path in deleted if is_under(path, paths)}
        for path in paths:
            if not (self.directory / path).exists() and not any(is_under(p, [path]) for p in gone):
                raise NotFoundError(f"there is no {path!r} here, nor in HEAD")
        stored = {file.path for file in chosen}
        carried = {p: e for p, e in snapshot.files.items() if p not in gone and p not in stored}
        return chosen, carried
