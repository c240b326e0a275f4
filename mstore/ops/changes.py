"""What a diff says: changes of files and of tensors, and their totals."""

import math
from dataclasses import dataclass
from enum import StrEnum

from mstore.layout import Tensor
from mstore.objects import FileEntry
from mstore.ops.compare import Numbers
from mstore.ops.matching import natural


class Change(StrEnum):
    """What happened to a file or a tensor, the one that says most."""

    ADDED = "added"
    REMOVED = "removed"
    DTYPE = "dtype"
    """Tensors: the element type is another."""
    RESHAPED = "reshaped"
    """Tensors: the shape is another, the type is not."""
    MODIFIED = "modified"
    REORDERED = "reordered"
    """Tensors: the values are the same, in another order of elements or of their bytes."""
    RENAMED = "renamed"
    """A tensor of the same content has another name; a file of similar content another path."""
    MOVED = "moved"
    """Tensors: the same name and content, in another file."""


@dataclass(frozen=True, slots=True)
class FileChange:
    """A file that is not the same in both versions.

    `path` is where it is now, or was; `old_path` where it was, if that is another. `before` and
    `after` are None where there is no such file. `bytes_removed` are those of the chunks that only
    the old file holds, `bytes_added` of those that only the new one does: both are 0 where only
    the path or the executable bit is another.
    """

    kind: Change
    path: str
    old_path: str | None
    before: FileEntry | None
    after: FileEntry | None
    bytes_removed: int
    bytes_added: int

    def to_json(self) -> dict[str, object]:
        """Plain values."""
        return {
            "kind": self.kind.value,
            "path": self.path,
            "old_path": self.old_path,
            "before": _entry_to_json(self.before),
            "after": _entry_to_json(self.after),
            "bytes_removed": self.bytes_removed,
            "bytes_added": self.bytes_added,
        }


@dataclass(frozen=True, slots=True)
class TensorAt:
    """A tensor in a file of one of the versions."""

    path: str
    tensor: Tensor

    def to_json(self) -> dict[str, object]:
        """Plain values."""
        return {
            "path": self.path,
            "name": self.tensor.name,
            "dtype": self.tensor.dtype.name,
            "shape": list(self.tensor.shape),
            "order": self.tensor.order,
            "bytes": self.tensor.nbytes,
        }


@dataclass(frozen=True, slots=True)
class TensorChange:
    """A tensor that is not the same in both versions.

    `name` and `path` are those it has now, or had. `before` and `after` are None where there is no
    such tensor. `changed_chunks` of `chunks` places differ, counting those that only one version
    has, with `changed_bytes` bytes in the version that has more there. `numbers` is None where
    elements cannot be paired, where content is the same, and when no numbers were asked for.
    """

    kind: Change
    name: str
    path: str
    before: TensorAt | None
    after: TensorAt | None
    chunks: int
    changed_chunks: int
    changed_bytes: int
    numbers: Numbers | None = None

    @property
    def sort_key(self) -> tuple[object, ...]:
        """Orders changes by what matters.

        First, tensors that hold infinities or NaNs they did not hold before. Then what changes
        the structure, then modifications, the relatively largest first, then other names and
        places for the same content.
        """
        numbers = self.numbers
        broken = numbers is not None and numbers.nonfinite_after > numbers.nonfinite_before
        relative = None if numbers is None else numbers.relative
        size = -math.inf if relative is None else -relative
        by_name = natural(self.path), natural(self.name)
        return (not broken, _RANKS[self.kind], size, -self.changed_bytes, *by_name)

    def to_json(self) -> dict[str, object]:
        """Plain values."""
        return {
            "kind": self.kind.value,
            "name": self.name,
            "path": self.path,
            "before": self.before.to_json() if self.before else None,
            "after": self.after.to_json() if self.after else None,
            "chunks": self.chunks,
            "changed_chunks": self.changed_chunks,
            "changed_bytes": self.changed_bytes,
            "numbers": self.numbers.to_json() if self.numbers else None,
        }


@dataclass(frozen=True, slots=True)
class Totals:
    """The sums of a diff: how many changes of each kind, and over all files and tensors listed.

    `unchanged_tensors` are those of files that were compared tensor by tensor.
    `numbers` is over those tensors of floating-point or complex elements that were compared, as
    if they were one long tensor; integers, such as counters, would drown them. `elements` and
    `changed_elements` are of all tensors that were compared.
    """

    files: dict[Change, int]
    unchanged_files: int
    tensors: dict[Change, int]
    unchanged_tensors: int
    bytes_removed: int
    bytes_added: int
    changed_chunks: int
    changed_bytes: int
    elements: int
    changed_elements: int
    numbers: Numbers | None

    def to_json(self) -> dict[str, object]:
        """Plain values."""
        return {
            "files": {kind.value: count for kind, count in self.files.items()},
            "unchanged_files": self.unchanged_files,
            "tensors": {kind.value: count for kind, count in self.tensors.items()},
            "unchanged_tensors": self.unchanged_tensors,
            "bytes_removed": self.bytes_removed,
            "bytes_added": self.bytes_added,
            "changed_chunks": self.changed_chunks,
            "changed_bytes": self.changed_bytes,
            "elements": self.elements,
            "changed_elements": self.changed_elements,
            "numbers": self.numbers.to_json() if self.numbers else None,
        }


@dataclass(frozen=True, slots=True)
class Diff:
    """All changes: `files` by path, `tensors` by what matters (see `TensorChange.sort_key`)."""

    files: tuple[FileChange, ...]
    tensors: tuple[TensorChange, ...]
    totals: Totals

    def __bool__(self) -> bool:
        return bool(self.files)

    def __repr__(self) -> str:
        return f"<Diff {len(self.files)} files, {len(self.tensors)} tensors changed>"

    def to_json(self) -> dict[str, object]:
        """Everything, as plain values."""
        return {
            "files": [change.to_json() for change in self.files],
            "tensors": [change.to_json() for change in self.tensors],
            "totals": self.totals.to_json(),
        }


_RANKS = {
    kind: rank
    for rank, kind in enumerate(
        (
            Change.DTYPE,
            Change.RESHAPED,
            Change.REMOVED,
            Change.ADDED,
            Change.MODIFIED,
            Change.REORDERED,
            Change.RENAMED,
            Change.MOVED,
        )
    )
}


def _entry_to_json(entry: FileEntry | None) -> dict[str, object] | None:
    if entry is None:
        return None
    return {
        "manifest": entry.manifest.hex(),
        "bytes": entry.size,
        "executable": entry.executable,
    }
