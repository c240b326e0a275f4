"""The state of a working directory besides its files: what it shows, and what did not finish.

It lies in `.mstore/worktree/`. Each file there is replaced whole and durably.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from mstore.database import Database
from mstore.errors import CorruptDataError, NotFoundError
from mstore.ids import ID_SIZE, Id, Kind
from mstore.ops.revisions import DEFAULT_BRANCH, DEFAULT_MODEL, check_name
from mstore.storage.files import FILES, Files, translate_errors


@dataclass(frozen=True, slots=True)
class Head:
    """What a working directory shows: a branch of a model, or (branch None) a bare commit."""

    model: str = DEFAULT_MODEL
    branch: str | None = DEFAULT_BRANCH
    commit: Id | None = None


class HeadFile:
    """Reads and writes `head`, and two marks that are there while something is being done.

    `checkout` names the versions whose files are being written; `pending` the commit that is being
    published. Publishing and writing `head` are two steps, and a process may die between them.
    """

    def __init__(self, folder: Path, files: Files = FILES) -> None:
        self._folder = folder
        self._head = folder / "head"
        self._checkout = folder / "checkout"
        self._pending = folder / "pending"
        self._files = files

    def read(self, has_commit: Callable[[Id], bool]) -> Head:
        """What the directory shows; raises CorruptDataError when that is not readable.

        `has_commit` says whether the repository has a commit. When a process died after publishing
        one from this directory, and before it wrote that down, HEAD is there all the same.
        """
        try:
            with translate_errors("read", self._head):
                head = _parse_head(json.loads(self._head.read_bytes()))
        except NotFoundError:
            head = Head()
        except (ValueError, RecursionError) as error:
            raise CorruptDataError(
                f"{self._head} is damaged: {error}", hint="delete it, then check a version out"
            ) from error
        pending = self._read_pending(head)
        published = pending and pending.commit and has_commit(pending.commit)
        return pending if pending and published else head

    def write(self, head: Head) -> None:
        """Say what the directory shows; nothing is pending any more."""
        self._replace(self._head, json.dumps(_fields(head)))
        self._remove(self._pending)

    def begin_commit(self, before: Head, after: Head) -> None:
        """Note that HEAD goes from `before` to `after`, once the commit of `after` is published."""
        if self._pending.exists():
            self.write(before)
        fields = {"before": _fields(before), "after": _fields(after)}
        self._replace(self._pending, json.dumps(fields))

    def _read_pending(self, head: Head) -> Head | None:
        """Where HEAD was about to go from `head`."""
        try:
            fields = json.loads(self._pending.read_bytes())
            return _parse_head(fields["after"]) if _parse_head(fields["before"]) == head else None
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            # Without it HEAD is where it was, and `status` tells that the branch is not.
            return None

    def begin_checkout(self, commit: Id) -> None:
        """Note that files of `commit` are about to be written, besides those of unfinished ones."""
        commits = [*(one for one in self.all_unfinished() if one != commit), commit]
        self._replace(self._checkout, "\n".join(one.hex() for one in commits))

    def end_checkout(self) -> None:
        """Note that the files are those of HEAD again."""
        self._remove(self._checkout)

    def unfinished(self) -> Id | None:
        """The commit whose checkout did not finish, if there is one; the last of several."""
        commits = self.all_unfinished()
        return commits[-1] if commits else None

    def all_unfinished(self) -> list[Id]:
        """Every commit whose checkout began since the files were last those of HEAD."""
        try:
            return [_parse_id(line) for line in self._checkout.read_text("ascii").split()]
        except (OSError, ValueError):
            return []

    def _replace(self, path: Path, text: str) -> None:
        if not self._folder.is_dir():
            # `init` may have died before it came to this.
            self._files.mkdir(self._folder)
            self._files.fsync_dir(self._folder.parent)
        self._files.replace_file(path, text.encode() + b"\n")

    def _remove(self, path: Path) -> None:
        if path.exists():
            self._files.unlink(path)
            self._files.fsync_dir(self._folder)


def has_commit(db: Database, commit: Id) -> bool:
    """Whether the repository has a commit: one that was published, and that gc has not removed."""
    return db.find(Kind.COMMIT, commit) is not None


def _fields(head: Head) -> dict[str, str | None]:
    commit = head.commit.hex() if head.commit else None
    return {"model": head.model, "branch": head.branch, "commit": commit}


def _parse_head(fields: object) -> Head:
    """HEAD as it stands in a file; raises ValueError."""
    if not isinstance(fields, Mapping):
        raise ValueError("it is no JSON object")
    found = [fields.get(name) for name in ("model", "branch", "commit")]
    model, branch, commit = (one if isinstance(one, str) else None for one in found)
    if model is None or [model, branch, commit] != found:
        raise ValueError("a field has a wrong type")
    return Head(
        check_name("model", model),
        None if branch is None else check_name("branch", branch),
        None if commit is None else _parse_id(commit),
    )


def _parse_id(text: str) -> Id:
    identifier = bytes.fromhex(text)
    if len(identifier) != ID_SIZE:
        raise ValueError("a commit id has 64 hexadecimal digits")
    return identifier
