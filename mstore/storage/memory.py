"""A storage in this process's memory: for tests, benchmarks and throw-away repositories."""

from collections.abc import Iterator, Sequence
from threading import Lock

from mstore.errors import NotFoundError
from mstore.ids import Buffer
from mstore.storage.arguments import check_folder, check_key, check_range
from mstore.storage.base import ObjectInfo, Storage


class MemoryStorage(Storage):
    """Objects in a dict. Nothing survives the process; `name` is only shown to people."""

    def __init__(self, name: str = "") -> None:
        self._name = name
        self._objects: dict[str, bytes] = {}
        self._lock = Lock()

    @property
    def location(self) -> str:
        """`memory://` and the name."""
        return f"memory://{self._name}"

    def get(self, key: str, start: int = 0, length: int | None = None) -> bytes:
        """The bytes of `key` from `start`, at most `length` of them (all when None)."""
        check_range(start, length)
        return self._object(key)[start : None if length is None else start + length]

    def view(self, key: str) -> memoryview:
        """All bytes of `key`, not copied."""
        return memoryview(self._object(key))

    def head(self, key: str) -> ObjectInfo | None:
        """Size of `key`, or None when there is no such object."""
        check_key(key)
        data = self._objects.get(key)
        return None if data is None else ObjectInfo(key, len(data))

    def put(self, key: str, parts: Sequence[Buffer]) -> bool:
        """Create `key` from the concatenated `parts`; False if it exists."""
        check_key(key)
        data = b"".join(parts)  # outside the lock: this is the slow part
        with self._lock:
            if key in self._objects:
                return False
            self._objects[key] = data
            return True

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """Every object in the folder `prefix` and the folders in it, sorted by key."""
        check_folder(prefix)
        with self._lock:
            found = [
                ObjectInfo(key, len(data))
                for key, data in self._objects.items()
                if key.startswith(prefix)
            ]
        return iter(sorted(found, key=lambda info: info.key))

    def delete(self, key: str) -> None:
        """Remove `key`; no error if it is not there."""
        check_key(key)
        with self._lock:
            self._objects.pop(key, None)

    def _object(self, key: str) -> bytes:
        check_key(key)
        try:
            return self._objects[key]
        except KeyError:
            raise NotFoundError(f"there is no {key} in {self.location}") from None
