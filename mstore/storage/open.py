"""From what the user writes, a path or a URL, to the storage it means."""

import os
from collections.abc import Callable
from threading import Lock
from urllib.parse import unquote

from mstore.errors import InvalidInputError
from mstore.storage.base import Storage
from mstore.storage.local import LocalStorage
from mstore.storage.memory import MemoryStorage

_memories: dict[str, MemoryStorage] = {}
_memories_lock = Lock()


def open_storage(location: str | os.PathLike[str]) -> Storage:
    """The storage at a path, a `file:///absolute/path` or a `memory://NAME`.

    Nothing is created or read yet. A `memory://` storage lives as long as the process, and the
    same name gives the same storage. Raises InvalidInputError for anything else.
    """
    text = os.fspath(location)
    scheme, separator, rest = text.partition("://")
    if not separator:
        return _open_path(text)
    opener = _OPENERS.get(scheme)
    if opener is None:
        known = ", ".join(f"{name}://" for name in sorted(_OPENERS))
        raise InvalidInputError(
            f"{text!r} is of a kind that this mstore cannot open",
            hint=f"use a path or one of {known}",
        )
    return opener(rest)


def _open_path(path: str) -> Storage:
    if not path or "\0" in path:
        raise InvalidInputError(f"{path!r} is no place for a repository", hint="give a directory")
    return LocalStorage(path)


def _open_file(rest: str) -> Storage:
    host, slash, path = rest.partition("/")
    if host not in ("", "localhost") or not slash:
        raise InvalidInputError(
            f"file://{rest} does not name a directory of this machine",
            hint="write three slashes and an absolute path: file:///home/me/models",
        )
    return _open_path("/" + unquote(path))


def _open_memory(name: str) -> Storage:
    if not name:
        raise InvalidInputError("memory:// needs a name", hint="for example memory://scratch")
    with _memories_lock:
        return _memories.setdefault(name, MemoryStorage(name))


_OPENERS: dict[str, Callable[[str], Storage]] = {"file": _open_file, "memory": _open_memory}
