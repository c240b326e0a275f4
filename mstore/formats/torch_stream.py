"""The pickles at the start of a file of torch from before version 1.6.

See `mstore.formats.torch_legacy` for what follows them. Storages are still written so where they
are pickled by themselves, see `mstore.formats.pickle_torch`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from mstore.errors import FormatError
from mstore.formats.base import quote
from mstore.formats.pickle_arguments import Arguments
from mstore.formats.pickle_stack import Account
from mstore.formats.pickle_walk import walk_next

MAGIC = 0x1950A86A20F9469CFC6C
"""The first pickle of such a file."""

_VERSION = 1001


@dataclass(frozen=True, slots=True)
class Stream:
    """The saved structure, the keys of the storages, and the byte where the first one starts."""

    value: object
    keys: Sequence[str]
    end: int


def read_stream(arguments: Arguments, account: Account) -> Stream:
    """What the pickles from `arguments` on say. Raises FormatError and as `walk_next` does."""
    if walk_next(arguments, account) != MAGIC:
        raise FormatError("it does not start with torch's number")
    if (version := walk_next(arguments, account)) != _VERSION:
        raise FormatError(f"it is of version {quote(str(version))}")
    walk_next(arguments, account)
    value = walk_next(arguments, account)
    keys = walk_next(arguments, account)
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise FormatError("it has no list of storages")
    return Stream(value, keys, arguments.position)
