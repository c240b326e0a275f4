"""Files in memory that notice what a parser reads of them, and what it opens beside them."""

from collections.abc import Collection, Iterator
from contextlib import contextmanager

from mstore.errors import NotFoundError
from mstore.formats.base import BytesReader


class Watched(BytesReader):
    """Notes how often it was read from, how many bytes in all, and how many at most at once."""

    reads = 0
    read_bytes = 0
    most = 0

    def read(self, offset: int, length: int) -> bytes:
        self.reads += 1
        self.read_bytes += length
        self.most = max(self.most, length)
        return super().read(offset, length)


class Files:
    """A folder in memory, as what lies beside the file `name`; notes what is opened.

    What is asked for as a link is noted as well, and those in `links` are some.
    """

    def __init__(self, files: dict[str, bytes], name: str, links: Collection[str] = ()) -> None:
        self.name = name
        self.known: dict[str, object] = {}
        self.opened: list[str] = []
        self.asked: list[str] = []
        self._files = files
        self._links = links

    def names(self) -> Collection[str]:
        return self._files.keys()

    def is_link(self, path: str) -> bool:
        self.asked.append(path)
        return path in self._links

    @contextmanager
    def open(self, name: str) -> Iterator[BytesReader]:
        self.opened.append(name)
        if name not in self._files:
            raise NotFoundError(name)
        yield BytesReader(self._files[name])
