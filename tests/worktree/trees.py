"""A working directory to test, and short ways to change it."""

import os
import shutil
from pathlib import Path

from mstore.database import Database
from mstore.ops.commit import Description, Recorded
from mstore.storage.files import Files, is_temporary
from mstore.storage.local import LocalStorage
from mstore.worktree import Worktree


def description(message: str = "") -> Description:
    return Description("Ada", message)


class Tree:
    """A working directory and short ways to change it."""

    def __init__(self, directory: Path, files: Files | None = None) -> None:
        self.directory = directory
        directory.mkdir(exist_ok=True)
        db = Database.create(LocalStorage(directory / ".mstore"), "Ada")
        self.tree = Worktree.create(directory, db)
        if files is not None:
            self.tree = Worktree(directory, db, files)

    def write(self, **files: str | None) -> None:
        for name, text in files.items():
            path = self.directory / name.replace("__", "/")
            if text is None:
                path.unlink()
            else:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text)

    def set(self, **files: str) -> None:
        """Make these the only files."""
        for path in self.directory.iterdir():
            if path.is_dir() and not path.is_symlink():
                if path.name != ".mstore":
                    shutil.rmtree(path)
            else:
                path.unlink()
        self.write(**files)

    def read(self) -> dict[str, str]:
        return {
            path.relative_to(self.directory).as_posix(): path.read_text()
            for path in sorted(self.directory.rglob("*"))
            if path.is_file() and ".mstore" not in path.parts and not is_temporary(path.name)
        }

    def commit(self, message: str = "", **files: str | None) -> Recorded:
        self.write(**files)
        return self.tree.commit(description(message))

    def version(self, **files: str) -> Recorded:
        """Commit just these files."""
        self.set(**files)
        return self.tree.commit(description())

    def again(self) -> Worktree:
        """The same directory as another process would open it."""
        return Worktree(self.directory, Database.open(LocalStorage(self.directory / ".mstore")))


class KilledFiles(Files):
    """Stops like a killed process in front of an operation: after `left` more of them."""

    def __init__(self) -> None:
        self.left = 10**9
        self._opened: dict[int, int] = {}

    def perform(self, operation, path, call, *arguments):  # type: ignore[no-untyped-def]
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt
        result = super().perform(operation, path, call, *arguments)
        if operation == "create":
            self._opened[result] = os.fstat(result).st_ino
        return result

    def die(self) -> None:
        """Close what a dead process leaves open, and so unlock its temporaries."""
        for fd, inode in self._opened.items():
            try:
                if os.fstat(fd).st_ino == inode:
                    os.close(fd)
            except OSError:
                continue
        self._opened.clear()
        self.left = 10**9
