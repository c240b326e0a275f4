"""The contract of a storage: keys to bytes, written once, never changed.

A key is a path of lower-case words joined by "/", such as `data/0f3a…`. Every storage passes the
suite `mstore.testing.StorageContract`. A storage knows nothing of chunks or commits.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from mstore.ids import Buffer


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """A stored object: its key and its size in bytes."""

    key: str
    size: int


class Storage(ABC):
    """Keys -> bytes. Objects are immutable: they are created, read and deleted, never altered.

    All methods may be called from several threads. Failures of the place itself raise
    `StorageError` (or `DurabilityError` when data may not be safe); a missing object raises
    `NotFoundError`.
    """

    @property
    @abstractmethod
    def location(self) -> str:
        """Where this is, for people: a path or a URL."""

    @property
    def address(self) -> str | None:
        """What `open_storage` takes in another process to open this; None if it cannot."""
        return None

    @abstractmethod
    def get(self, key: str, start: int = 0, length: int | None = None) -> bytes:
        """The bytes of `key` from `start`, at most `length` of them (all when None).

        A range that reaches past the end gives the bytes there are, possibly none.
        Raises NotFoundError when there is no such object.
        """

    @abstractmethod
    def head(self, key: str) -> ObjectInfo | None:
        """Size of `key`, or None when there is no such object."""

    @abstractmethod
    def put(self, key: str, parts: Sequence[Buffer]) -> bool:
        """Create `key` from the concatenated `parts`, only if it is absent.

        Returns True when created and durable, False when the key already exists (which then is
        unchanged). The object appears whole or not at all, whatever happens. When this returns
        True the object survives a power loss.
        """

    @abstractmethod
    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """Every object whose key starts with `prefix` (a whole folder, such as `roots/`), sorted.

        An object created or deleted meanwhile may or may not be listed.
        """

    @abstractmethod
    def delete(self, key: str) -> None:
        """Remove `key`; removing what is not there is no error."""

    def view(self, key: str) -> memoryview:
        """All bytes of `key`, read-only, mapped rather than copied where the place can.

        The view stays valid after the object is deleted.
        """
        return memoryview(self.get(key))

    def sweep(self) -> int:
        """Remove what interrupted writes of dead processes left behind; returns bytes freed."""
        return 0
