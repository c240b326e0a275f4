"""Where a command works: which repository, and which working directory, if there is one.

Nothing here needs numpy.
"""

import os
from dataclasses import dataclass
from pathlib import Path

from mstore.errors import InvalidInputError, NoRepositoryError
from mstore.storage.base import Storage
from mstore.storage.local import LocalStorage
from mstore.storage.open import open_storage

REPOSITORY_FOLDER = ".mstore"
_ROOTS_FOLDER = "roots"


@dataclass(frozen=True, slots=True)
class Place:
    """A repository, and the working directory it lies in; None for a bare one."""

    storage: Storage
    directory: Path | None


def find_place(repo: str | None, start: Path) -> Place:
    """The repository at `repo`, or else the nearest one at or above `start`.

    A repository that is named has a working directory only if `start` lies in it. Raises
    NoRepositoryError when there is none; whether what is there can be read is not looked at.
    """
    found = _find_directory(start)
    if repo is None:
        if found != start and _is_bare(start):
            return Place(LocalStorage(start), None)
        if found is None:
            raise NoRepositoryError(
                f"there is no mstore repository in {start} or a directory above it",
                hint="make one with: mstore init",
            )
        return Place(LocalStorage(found / REPOSITORY_FOLDER), found)
    storage = _storage_at(repo)
    if found is not None and storage.location == str((found / REPOSITORY_FOLDER).absolute()):
        return Place(storage, found)
    return Place(storage, None)


def inside(directory: Path, path: str) -> str:
    """The path, in the working directory `directory`, of what is called `path` from here.

    Raises InvalidInputError for what lies outside it.
    """
    absolute = Path(os.path.normpath(Path.cwd() / path))
    # The same place, reached through a symbolic link.
    real = Path(os.path.realpath(absolute.parent)) / absolute.name
    for one in (absolute, real):
        if one == directory:
            return "."
        if one.is_relative_to(directory):
            return one.relative_to(directory).as_posix()
    raise InvalidInputError(f"{path} lies outside the working directory {directory}")


def _find_directory(start: Path) -> Path | None:
    for folder in (start, *start.parents):
        if (folder / REPOSITORY_FOLDER).is_dir():
            return folder
    return None


def _is_bare(folder: Path) -> bool:
    roots = folder / _ROOTS_FOLDER
    return (
        folder.name != REPOSITORY_FOLDER
        and roots.is_dir()
        and any(one.name.isdecimal() for one in roots.iterdir())
    )


def _storage_at(location: str) -> Storage:
    if "://" in location:
        return open_storage(location)
    directory = Path(location).resolve()
    if (directory / REPOSITORY_FOLDER).is_dir():
        return LocalStorage(directory / REPOSITORY_FOLDER)
    if not directory.is_dir():
        raise NoRepositoryError(
            f"there is no directory {location}", hint=f"make one with: mstore init {location}"
        )
    return open_storage(directory)
