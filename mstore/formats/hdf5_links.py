"""Soft links of an HDF5 file that never end; a part of `hdf5_worker.py`."""

from .hdf5_refusal import TooMuch, shown

MAX_SOFT_LINKS = 100  # one through another; the library gives up after 16


class SoftLinks:
    """Where the soft links of a file lead, told from their text alone."""

    def __init__(self) -> None:
        self.groups: set[str] = set()  # paths of all groups; that of the root is empty
        self._targets: dict[str, str] = {}
        self._ends: dict[str, str | None] = {}

    def add(self, path: str, target: str) -> None:
        """Note a soft link."""
        self._targets[path] = target

    def check(self) -> None:
        """Raise TooMuch if there are links that lead to each other in a circle."""
        for path in self._targets:
            self._end(path, 0)

    def _end(self, path: str, depth: int) -> str | None:
        """The group to which a link leads, or None if it leads to none."""
        if depth > MAX_SOFT_LINKS:
            raise TooMuch(f"its soft link {shown(path)} never ends")
        if path not in self._ends:
            self._ends[path] = self._follow(path, depth)
        return self._ends[path]

    def _follow(self, path: str, depth: int) -> str | None:
        target = self._targets[path]
        at = "" if target.startswith("/") else path.rpartition("/")[0]
        for name in target.split("/"):
            if name in ("", "."):
                continue
            inner = f"{at}/{name}" if at else name
            end = self._end(inner, depth + 1) if inner in self._targets else inner
            if end is None or end not in self.groups:
                return None
            at = end
        return at
