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


class Kept(Generic[T]):
    """A value of each file, or window of a file, for as long as the file is open."""

    def __init__(self) -> None:
        self._known: WeakKeyDictionary[ByteReader, dict[tuple[int, int], T]] = WeakKeyDictionary()

    def get(self, reader: ByteReader) -> T | None:
        """What is kept of it; None if nothing is."""
        file, place = _place(reader)
        return self._known.get(file, {}).get(place)

    def keep(self, reader: ByteReader, value: T) -> T:
        """Keep `value`, which must not refer to the reader; returns it."""
        file, place = _place(reader)
        self._known.setdefault(file, {})[place] = value
        return value


class Remembered(Generic[T]):
    """A function of a file that is carried out once for each file, or window of a file.

    Also what it raises as FormatError or LimitExceededError is kept, and raised again.
    """

    def __init__(self, read: Callable[[ByteReader], T]) -> None:
        self._read = read
        self._kept: Kept[T | _Refused] = Kept()

    def __call__(self, reader: ByteReader) -> T:
        """What is known of the file, or else is read of it now."""
        found = self._kept.get(reader)
        if found is None:
            try:
                found = self._kept.keep(reader, self._read(reader))
            except (FormatError, LimitExceededError) as error:
                # Another one, for `error` refers to the reader, which would never be let go.
                found = self._kept.keep(reader, type(error)(error.message))
        if isinstance(found, FormatError | LimitExceededError):
            raise type(found)(found.message)
        return found


def _place(reader: ByteReader) -> tuple[ByteReader, tuple[int, int]]:
    """The file that is read, and which part of it: where it starts, and its size."""
    file, start = reader, 0
    while isinstance(file, WindowReader):
        start += file.start
        file = file.reader
    return file, (start, reader.size)
