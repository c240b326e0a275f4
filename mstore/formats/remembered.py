"""What has been read of a file, kept as long as the file is open.

Several parsers look at the same directory of an archive, and one file is looked at once to be
described and once to be judged.
"""

from collections.abc import Callable
from typing import Generic, TypeVar
from weakref import WeakKeyDictionary

from mstore.errors import FormatError, LimitExceededError
from mstore.formats.base import WindowReader
from mstore.layout import ByteReader

T = TypeVar("T")

_Refused = FormatError | LimitExceededError


class Remembered(Generic[T]):
    """A function of a file that is carried out once for each file, or window of a file.

    Also what it raises as FormatError or LimitExceededError is kept, and raised again.
    """

    def __init__(self, read: Callable[[ByteReader], T]) -> None:
        self._read = read
        self._known: WeakKeyDictionary[ByteReader, dict[tuple[int, int], T | _Refused]] = (
            WeakKeyDictionary()
        )

    def __call__(self, reader: ByteReader) -> T:
        """What is known of the file, or else is read of it now."""
        file, start, size = reader, 0, reader.size
        while isinstance(file, WindowReader):
            start += file.start
            file = file.reader
        known = self._known.setdefault(file, {})
        if (start, size) not in known:
            try:
                known[start, size] = self._read(reader)
            except (FormatError, LimitExceededError) as error:
                # Another one, for `error` refers to the reader, which would never be let go.
                known[start, size] = type(error)(error.message)
        found = known[start, size]
        if isinstance(found, FormatError | LimitExceededError):
            raise type(found)(found.message)
        return found
