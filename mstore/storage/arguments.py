"""What every storage accepts: the spelling of keys and folders, and sensible ranges."""

import re

from mstore.errors import InvalidInputError

# A word starts with a letter or digit, so "..", ".", hidden names and empty words cannot occur.
# 128 characters a word stay far below every file system's 255 bytes, eight words below the 1024
# bytes of an object store.
_WORD = r"[a-z0-9][a-z0-9._-]{0,127}"
_KEY = re.compile(rf"{_WORD}(?:/{_WORD}){{0,7}}")
_FOLDER = re.compile(rf"(?:{_WORD}/){{1,7}}")

TEMPORARY_FOLDER = "tmp"
"""The one first word that no key may have: storages keep unfinished writes there."""


def is_key(text: str) -> bool:
    """Whether `text` may name an object: lower-case words joined by "/", not below `tmp/`."""
    return _KEY.fullmatch(text) is not None and not _is_temporary(text)


def is_folder(text: str) -> bool:
    """Whether `text` may be a folder of objects: words each followed by "/", as in `roots/`."""
    return _FOLDER.fullmatch(text) is not None and not _is_temporary(text)


def check_key(key: str) -> None:
    """Raise InvalidInputError unless `key` may name an object."""
    if not is_key(key):
        raise InvalidInputError(
            f"{key!r} cannot be the key of a stored object",
            hint=f'use a-z 0-9 . _ - in words joined by "/", the first not {TEMPORARY_FOLDER!r}',
        )


def check_folder(prefix: str) -> None:
    """Raise InvalidInputError unless `prefix` may be a folder of objects."""
    if not is_folder(prefix):
        raise InvalidInputError(
            f"{prefix!r} cannot be a folder of stored objects",
            hint='name a whole folder, with a "/" at the end, such as "roots/"',
        )


def check_range(start: int, length: int | None) -> None:
    """Raise InvalidInputError if a range begins before the object or has a negative length."""
    if start < 0 or (length is not None and length < 0):
        raise InvalidInputError(f"a range cannot start at {start} with length {length}")


def _is_temporary(key: str) -> bool:
    return key.partition("/")[0] == TEMPORARY_FOLDER
