"""A directory that versions are written into: what is in the way of a file, and clearing the way.

A version comes from elsewhere, so its paths are not trusted: nothing is written through a symbolic
link, outside the directory, or into `.git` and `.mstore`. What is not ours to remove stays.
"""

import os
import stat
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from unicodedata import normalize

from mstore.checks import is_reserved
from mstore.errors import ConflictError, UnsafeInputError
from mstore.storage.files import FILES, Files, is_temporary, translate_errors

_AWAY = "move it away"


class Directory:
    """The directory at `root`. Paths are relative to it, with "/" between their parts."""

    def __init__(self, root: Path, removable: Collection[str] = (), files: Files = FILES) -> None:
        """`removable` are the paths of files that may be removed where they are in the way."""
        self.root = root
        self.files = files
        self._removable = frozenset(removable)
        self._removed: set[str] = set()
        self.changed = False
        """Whether anything in the directory has been written or removed yet."""
        self._has_root = False
        self._real: set[str] = {""}
        """Folders that are known to be there, and to be no links."""
        self._swept: set[str] = set()
        self._touched: set[str] = set()

    def look(self, path: str) -> os.stat_result | None:
        """What stands where the file `path` is to be: a file or a link, or None when it is free.

        Only looks. Raises UnsafeInputError for a path that may not be written, or that lies behind
        a link; ConflictError when something is in the way that may not be replaced.
        """
        check_path(path)
        folder, _, _ = path.rpartition("/")
        if self._first_missing(folder) is not None:
            return None
        info = self._lstat(path)
        if info is None or stat.S_ISREG(info.st_mode) or stat.S_ISLNK(info.st_mode):
            return info
        if not stat.S_ISDIR(info.st_mode):
            raise ConflictError(f"{self.root / path} is no regular file", hint=_AWAY)
        for inside in self._below(path):
            if not (inside in self._removable or is_temporary(inside.rpartition("/")[2])):
                raise ConflictError(
                    f"{path} is to be a file, but is a folder here, with {inside} in it",
                    hint=_AWAY,
                )
        return None

    def refuse_names_for_one(self, paths: Iterable[str]) -> None:
        """Raise UnsafeInputError if two of the paths would be one file here.

        That is when they differ in case only, or in how accents are written, and this file system
        makes no difference. The file of one would take the place of the other unseen.
        """
        seen: dict[str, str] = {}
        for path in paths:
            key = path if path.isascii() else normalize("NFC", path)
            other = seen.setdefault(key.casefold(), path)
            if other != path and self._folds_case():
                raise UnsafeInputError(
                    f"{other} and {path} would be one file on this file system",
                    hint="check out one of them by name, or all onto another file system",
                )

    def _folds_case(self) -> bool:
        """Whether names that differ in case only are one name here."""
        folder = next(one for one in (self.root, *self.root.parents) if one.is_dir())
        file = self.files.create_temporary(folder)
        try:
            return os.path.lexists(file.path.with_name(file.path.name.upper()))
        finally:
            self.files.discard(file)

    def prepare(self, path: str) -> Path:
        """Make way for the file `path`: its folders made, nothing there but a file or a link.

        Raises as `look` does.
        """
        info = self.look(path)
        folder, _, _ = path.rpartition("/")
        self._make_root()
        self._make_folder(folder)
        if folder not in self._swept:
            self.files.sweep(self.root / folder)
            self._swept.add(folder)
        if info is None and (there := self._lstat(path)) and stat.S_ISDIR(there.st_mode):
            self._clear(path)
        self._touched.add(folder)
        return self.root / path

    def remove(self, path: str) -> None:
        """Delete the file `path`, if it is still there, and the folders that this leaves empty."""
        check_path(path)
        folder, _, _ = path.rpartition("/")
        if path in self._removed or self._first_missing(folder) is not None:
            return
        self._unlink(path)
        while folder and not os.listdir(self.root / folder):
            self._rmdir(folder)
            folder, _, _ = folder.rpartition("/")

    def finish(self) -> None:
        """Make the names of everything written and removed durable."""
        for folder in sorted(self._touched):
            if (self.root / folder).exists():
                self.files.fsync_dir(self.root / folder)
        self._touched.clear()

    def _first_missing(self, folder: str) -> str | None:
        """The first folder on the way to `folder` that has to be made; raises as `look` does."""
        if folder in self._real:
            return None
        for outer in (*folders_of(folder), folder):
            if outer in self._real:
                continue
            info = self._lstat(outer)
            if info is None:
                return outer
            if not stat.S_ISDIR(info.st_mode):
                if outer in self._removable:
                    return outer
                self._refuse_folder(outer, info)
            self._real.add(outer)
        return None

    def _refuse_folder(self, path: str, info: os.stat_result) -> None:
        where = self.root / path
        if stat.S_ISLNK(info.st_mode):
            raise UnsafeInputError(
                f"{where} is a symbolic link, so nothing can be checked out below it", hint=_AWAY
            )
        raise ConflictError(f"{where} is a file, where a folder is to be", hint=_AWAY)

    def _make_root(self) -> None:
        if self._has_root:
            return
        missing = [folder for folder in (self.root, *self.root.parents) if not folder.is_dir()]
        for folder in reversed(missing):
            self.files.mkdir(folder)
            self.files.fsync_dir(folder.parent)
        self._has_root = True

    def _make_folder(self, folder: str) -> None:
        if folder in self._real:
            return
        for outer in (*folders_of(folder), folder):
            if outer in self._real:
                continue
            if (info := self._lstat(outer)) is not None and not stat.S_ISDIR(info.st_mode):
                if outer not in self._removable:
                    self._refuse_folder(outer, info)
                self._unlink(outer)
            self.files.mkdir(self.root / outer)
            self._touched.add(outer.rpartition("/")[0])
            self._real.add(outer)

    def _clear(self, folder: str) -> None:
        """Remove a folder with the removable files in it; what else is there makes this fail."""
        for path in self._below(folder):
            if path in self._removable:
                self._unlink(path)
        for path in reversed(list(self._folders(folder))):
            self.files.sweep(self.root / path)
            self._rmdir(path)

    def _below(self, folder: str) -> Iterator[str]:
        """Everything in a folder, at any depth, that is no folder itself."""
        for outer in self._folders(folder):
            for entry in self._listed(outer):
                if not entry.is_dir(follow_symlinks=False):
                    yield f"{outer}/{entry.name}"

    def _folders(self, folder: str) -> Iterator[str]:
        """A folder and those in it, each before what is in it."""
        waiting = [folder]
        while waiting:
            yield (outer := waiting.pop())
            waiting += [
                f"{outer}/{entry.name}"
                for entry in self._listed(outer)
                if entry.is_dir(follow_symlinks=False)
            ]

    def _listed(self, folder: str) -> "list[os.DirEntry[str]]":
        with translate_errors("list", self.root / folder), os.scandir(self.root / folder) as found:
            return list(found)

    def _lstat(self, path: str) -> os.stat_result | None:
        with translate_errors("look at", self.root / path):
            try:
                return os.lstat(f"{self.root}/{path}")
            except (FileNotFoundError, NotADirectoryError):
                return None

    def _unlink(self, path: str) -> None:
        self.files.unlink(self.root / path)
        self._removed.add(path)
        self.changed = True
        self._touched.add(path.rpartition("/")[0])

    def _rmdir(self, folder: str) -> None:
        where = self.root / folder
        with translate_errors("remove", where):
            self.files.perform("rmdir", where, os.rmdir, where)
        for known in (self._real, self._swept, self._touched):
            known.discard(folder)
        self._touched.add(folder.rpartition("/")[0])


def check_path(path: str) -> None:
    """Raise UnsafeInputError for a path that goes through or to a `.git` or `.mstore`."""
    for part in path.split("/"):
        if is_reserved(part):
            raise UnsafeInputError(
                f"the version has a file {path}, and nothing is written to {part}",
                hint="check out its other files by name: mstore checkout REV PATH...",
            )


def folders_of(path: str) -> Iterator[str]:
    """The folders that `path` lies in, from the outermost on."""
    at = path.find("/")
    while at >= 0:
        yield path[:at]
        at = path.find("/", at + 1)
