"""Finding what changed from one version to another: files, tensors, and by how much.

Deciding what changed needs only metadata. For the numbers of modified tensors, the chunks that
differ are read.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from fnmatch import fnmatchcase
from math import prod

import numpy as np

from mstore.database import Database
from mstore.layout import Tensor
from mstore.objects import Snapshot
from mstore.ops.changes import Change, Diff, FileChange, TensorAt, TensorChange, Totals
from mstore.ops.compare import Numbers
from mstore.ops.matching import (
    Matched,
    chunk_bytes,
    chunk_difference,
    match_files,
    match_tensors,
    natural,
)
from mstore.ops.measure import Pair, changed_chunks, cut_alike, measure
from mstore.ops.sides import Place, Side, StoredSide

__all__ = ["Diff", "diff_sides", "diff_snapshots"]

_CONTINUOUS = ("float", "complex")


def diff_snapshots(
    db: Database,
    before: Snapshot,
    after: Snapshot,
    *,
    numbers: bool = True,
    tensor: str | None = None,
    threads: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> Diff:
    """What changed between two versions in the repository; see `diff_sides`."""
    one, other = StoredSide(db, before), StoredSide(db, after)
    return diff_sides(
        db, one, other, numbers=numbers, tensor=tensor, threads=threads, progress=progress
    )


def diff_sides(
    db: Database,
    before: Side,
    after: Side,
    *,
    numbers: bool = True,
    tensor: str | None = None,
    threads: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> Diff:
    """What changed from `before` to `after`.

    `numbers` also reads the chunks that differ, and says how far modified tensors moved.
    `tensor` is a glob that the name of a tensor, old or new, must match to be listed and
    compared; files are listed all the same. `progress` is told how many more bytes were read.
    Raises CorruptDataError when something stored is damaged, and ConflictError when a file of a
    working directory changed meanwhile.
    """
    files = match_files(before, after)
    tensors = match_tensors(before, after, files)
    changes = [_alone(Change.REMOVED, place) for place in tensors.removed if _wanted(tensor, place)]
    changes += [_alone(Change.ADDED, place) for place in tensors.added if _wanted(tensor, place)]
    same_files = set(files.both)
    pairs: list[tuple[Change, Pair]] = []
    for pair in tensors.both:
        kind = _kind(*pair, same_file=(pair[0].path, pair[1].path) in same_files)
        if kind is not None and _wanted(tensor, *pair):
            pairs.append((kind, pair))
    comparable = [numbers and _comparable(*change) for change in pairs]
    chosen = [pair for (_, pair), chosen in zip(pairs, comparable, strict=True) if chosen]
    measured = iter(measure(db, before, after, chosen, threads=threads, progress=progress))
    for (kind, pair), known in zip(pairs, comparable, strict=True):
        change = _together(kind, pair, next(measured) if known else None)
        if not _only_recut(change):
            changes.append(change)
    changes.sort(key=lambda change: change.sort_key)
    listed = _file_changes(before, after, files)
    unchanged = len(after.files) - len(files.both) - len(files.added)
    return Diff(listed, tuple(changes), _totals(listed, changes, unchanged))


def _wanted(pattern: str | None, *places: Place) -> bool:
    return pattern is None or any(fnmatchcase(place.tensor.name, pattern) for place in places)


def _alone(kind: Change, place: Place) -> TensorChange:
    """A tensor that only one side has."""
    there = TensorAt(place.path, place.tensor)
    before, after = (there, None) if kind is Change.REMOVED else (None, there)
    chunks = place.segment.count
    return TensorChange(
        kind, place.tensor.name, place.path, before, after, chunks, chunks, place.segment.length
    )


def _together(kind: Change, pair: Pair, numbers: Numbers | None) -> TensorChange:
    """A tensor that both sides have."""
    before, after = (TensorAt(place.path, place.tensor) for place in pair)
    extent = _extent(*pair)
    return TensorChange(kind, after.tensor.name, after.path, before, after, *extent, numbers)


def _kind(before: Place, after: Place, *, same_file: bool) -> Change | None:
    """What became of a tensor; None if nothing did."""
    old, new = before.tensor, after.tensor
    if old.dtype != new.dtype:
        return Change.DTYPE
    if old.shape != new.shape or _order(old) != _order(new):
        return Change.RESHAPED
    if not _same_bytes(before, after):
        return Change.MODIFIED
    if old.name != new.name:
        return Change.RENAMED
    return None if same_file else Change.MOVED


def _order(tensor: Tensor) -> str:
    """The order of elements, of tensors for which it makes a difference."""
    return tensor.order if sum(extent > 1 for extent in tensor.shape) > 1 else "C"


def _same_bytes(before: Place, after: Place) -> bool:
    return cut_alike(before, after) and before.segment.ids == after.segment.ids


def _extent(before: Place, after: Place) -> tuple[int, int, int]:
    """Chunks, how many of them changed, and the bytes of these."""
    chunks = max(before.segment.count, after.segment.count)
    length = max(before.segment.length, after.segment.length)
    if not cut_alike(before, after):
        return chunks, chunks, length
    changed, piece = changed_chunks(before, after), after.segment.piece
    return chunks, len(changed), int(np.minimum(piece, length - changed * piece).sum())


def _comparable(kind: Change, pair: Pair) -> bool:
    """Whether content differs, and elements of the two can be told to be the same one."""
    old, new = pair[0].tensor, pair[1].tensor
    if _order(old) != _order(new) or _same_bytes(*pair):
        return False
    if kind is Change.RESHAPED:
        return prod(old.shape) == prod(new.shape)
    return old.shape == new.shape


def _only_recut(change: TensorChange) -> bool:
    """Whether the chunks differ only because they were cut in another size."""
    numbers = change.numbers
    return change.kind is Change.MODIFIED and numbers is not None and numbers.changed == 0


def _file_changes(before: Side, after: Side, files: Matched[str]) -> tuple[FileChange, ...]:
    changes = [_file_change(before, after, *pair) for pair in files.both]
    for path in files.removed:
        entry = before.files[path]
        changes.append(FileChange(Change.REMOVED, path, None, entry, None, entry.size, 0))
    for path in files.added:
        entry = after.files[path]
        changes.append(FileChange(Change.ADDED, path, None, None, entry, 0, entry.size))
    return tuple(sorted(changes, key=lambda change: natural(change.path)))


def _file_change(before: Side, after: Side, old_path: str, path: str) -> FileChange:
    old, new = before.files[old_path], after.files[path]
    removed = added = 0
    if old.manifest != new.manifest:
        only_old, only_new = chunk_difference(before.manifest(old_path), after.manifest(path))
        removed, added = chunk_bytes(only_old), chunk_bytes(only_new)
    if old_path == path:
        return FileChange(Change.MODIFIED, path, None, old, new, removed, added)
    return FileChange(Change.RENAMED, path, old_path, old, new, removed, added)


def _totals(files: Sequence[FileChange], tensors: Sequence[TensorChange], unchanged: int) -> Totals:
    compared = [(change, numbers) for change in tensors if (numbers := change.numbers) is not None]
    continuous = [numbers for change, numbers in compared if _is_continuous(change)]
    return Totals(
        files=_counts(change.kind for change in files),
        unchanged_files=unchanged,
        tensors=_counts(change.kind for change in tensors),
        bytes_removed=sum(change.bytes_removed for change in files),
        bytes_added=sum(change.bytes_added for change in files),
        changed_chunks=sum(change.changed_chunks for change in tensors),
        changed_bytes=sum(change.changed_bytes for change in tensors),
        elements=sum(numbers.elements for _, numbers in compared),
        changed_elements=sum(numbers.changed for _, numbers in compared),
        numbers=sum(continuous[1:], continuous[0]) if continuous else None,
    )


def _is_continuous(change: TensorChange) -> bool:
    both = (change.before, change.after)
    return all(one is not None and one.tensor.dtype.family in _CONTINUOUS for one in both)


def _counts(kinds: Iterable[Change]) -> dict[Change, int]:
    counts = Counter(kinds)
    return {kind: counts[kind] for kind in Change if counts[kind]}
