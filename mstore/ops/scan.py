"""Looking through a directory: which files a commit of it holds.

Left out: whatever is called `.mstore` or `.git`, temporaries of a checkout, and what the patterns
in `.mstoreignore` name (those of git's ignore files).
"""

import errno
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from pathspec import GitIgnoreSpec

from mstore.checks import MAX_PATH_BYTES, is_reserved, path_bytes
from mstore.errors import InvalidInputError, NotFoundError, StorageError
from mstore.storage.files import is_temporary, translate_errors

IGNORE_FILE = ".mstoreignore"
REPOSITORY_FOLDER = ".mstore"


@dataclass(frozen=True, slots=True)
class FoundFile:
    """A regular file (or a link to one): its path in the directory and what stat says of it."""

    path: str
    stat: os.stat_result

    @property
    def executable(self) -> bool:
        """Whether its owner may execute it."""
        return bool(self.stat.st_mode & stat.S_IXUSR)


class Scan:
    """The files of a directory; `warnings` tells what was passed over, once it has been read.

    `left_out` counts what the ignore file names: files, and folders that were not looked into.
    """

    def __init__(self, directory: Path, *, ignore: bool = True) -> None:
        """Read the ignore file, or with `ignore` False leave nothing out because of it.

        Raises StorageError or InvalidInputError when that fails.
        """
        self.directory = directory
        self.warnings: list[str] = []
        self.left_out = 0
        self._ignored = read_ignore_file(directory / IGNORE_FILE) if ignore else _nothing

    def files(self) -> list[FoundFile]:
        """Every file that is not left out, sorted by path. Raises StorageError."""
        return sorted(self._walk(), key=lambda file: path_bytes(file.path))

    def _walk(self) -> Iterator[FoundFile]:
        # Folders may lie deeper in one another than Python's calls may.
        waiting = [""]
        while waiting:
            prefix = waiting.pop()
            folder = self.directory / prefix
            with translate_errors("list", folder), os.scandir(folder) as entries:
                listed = list(entries)
            for entry in listed:
                path = prefix + entry.name
                if is_reserved(entry.name):
                    continue
                is_folder = entry.is_dir(follow_symlinks=False)
                if not is_folder and is_temporary(entry.name):
                    continue
                if self._ignored(path + "/" if is_folder else path):
                    self.left_out += 1
                elif is_folder:
                    waiting.append(path + "/")
                else:
                    yield from self._look(entry, path)

    def _look(self, entry: "os.DirEntry[str]", path: str) -> Iterator[FoundFile]:
        try:
            info = entry.stat()
        except FileNotFoundError:
            if entry.is_symlink():
                self.warnings.append(f"{path} is a link to nothing; passed over")
            return
        except OSError as error:
            if error.errno == errno.ELOOP:
                self.warnings.append(f"{path} is a link to itself; passed over")
                return
            raise StorageError(f"cannot read {path}: {error.strerror}") from error
        if stat.S_ISREG(info.st_mode):
            if len(path_bytes(path)) > MAX_PATH_BYTES:
                raise InvalidInputError(f"the path {path[:80]}… is too long to be recorded")
            yield FoundFile(path, info)
        elif stat.S_ISDIR(info.st_mode):
            self.warnings.append(f"{path} is a link to a folder; passed over")
        else:
            self.warnings.append(f"{path} is not a regular file; passed over")


def read_ignore_file(path: Path) -> Callable[[str], bool]:
    """Whether a path (of a folder: with "/" at its end) is ignored; raises InvalidInputError."""
    try:
        with translate_errors("read", path):
            lines = path.read_text("utf-8").splitlines()
    except NotFoundError:
        return _nothing
    except UnicodeDecodeError as error:
        raise InvalidInputError(f"{path} is not UTF-8 text") from error
    try:
        return GitIgnoreSpec.from_lines(lines).match_file
    except ValueError as error:
        raise InvalidInputError(f"{path} has a malformed pattern: {error}") from error


def _nothing(_: str) -> bool:
    """Ignores no path."""
    return False
