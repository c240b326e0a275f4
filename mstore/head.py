"""The state of a working directory besides its files: what it shows, and an unfinished checkout.

It lies in `.mstore/worktree/`. Each file there is replaced whole and durably.
"""

import json
from dataclasses import dataclass
from pathlib import Path

from mstore.errors import CorruptDataError, NotFoundError
from mstore.ids import ID_SIZE, Id
from mstore.ops.revisions import DEFAULT_BRANCH, DEFAULT_MODEL, check_name
from mstore.storage.files import FILES, Files, translate_errors


@dataclass(frozen=True, slots=True)
class Head:
    """What a working directory shows: a branch of a model, or (branch None) a bare commit."""

    model: str = DEFAULT_MODEL
    branch: str | None = DEFAULT_BRANCH
    commit: Id | None = None


class HeadFile:
    """Reads and writes `head`, and `checkout`, which is there while files are being replaced."""

    def __init__(self, folder: Path, files: Files = FILES) -> None:
        self._head = folder / "head"
        self._checkout = folder / "checkout"
        self._files = files

    def read(self) -> Head:
        """What the directory shows; raises CorruptDataError when that is not readable."""
        try:
            with translate_errors("read", self._head):
                fields = json.loads(self._head.read_bytes())
            branch, commit = fields["branch"], fields["commit"]
            return Head(
                check_name("model", fields["model"]),
                None if branch is None else check_name("branch", branch),
                None if commit is None else _parse_id(commit),
            )
        except NotFoundError:
            return Head()
        except (ValueError, KeyError, TypeError) as error:
            raise CorruptDataError(
                f"{self._head} is damaged: {error}", hint="delete it, then check a version out"
            ) from error

    def write(self, head: Head) -> None:
        """Say what the directory shows."""
        commit = head.commit.hex() if head.commit else None
        text = json.dumps({"model": head.model, "branch": head.branch, "commit": commit})
        self._files.replace_file(self._head, text.encode() + b"\n")

    def begin_checkout(self, commit: Id) -> None:
        """Note that files of `commit` are about to be written."""
        self._files.replace_file(self._checkout, commit.hex().encode() + b"\n")

    def end_checkout(self) -> None:
        """Note that the files are those of HEAD again."""
        self._files.unlink(self._checkout)

    def unfinished(self) -> Id | None:
        """The commit whose checkout did not finish, if there is one."""
        try:
            return _parse_id(self._checkout.read_text("ascii").strip())
        except (OSError, ValueError):
            return None


def _parse_id(text: str) -> Id:
    identifier = bytes.fromhex(text)
    if len(identifier) != ID_SIZE:
        raise ValueError("a commit id has 64 hexadecimal digits")
    return identifier
