"""Finding what changed from one version to another: files, tensors, and by how much.

Deciding what changed needs only metadata, but for tensors whose files hold them in different ways.
For the numbers of modified tensors, the chunks that differ are read.
"""

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from fnmatch import fnmatchcase
from math import prod
from typing import NamedTuple

import numpy as np

from mstore.database import Database
from mstore.errors import NotFoundError
from mstore.layout import Tensor
from mstore.names import canonical_name
from mstore.ops.changes import Change, Diff, FileChange, TensorAt, TensorChange, Totals
from mstore.ops.compare import Numbers
from mstore.ops.matching import (
    Matched,
    chunk_bytes,
    chunk_difference,
    match_files,
    match_tensors,
    match_under,
    natural,
)
from mstore.ops.measure import changed_chunks, cut_alike, measure
from mstore.ops.revisions import Located, files_of
from mstore.ops.rowmajor import is_column_major, plain_type
from mstore.ops.sides import Place, Side, side_of
from mstore.ops.values import digests, measure_values

__all__ = ["Diff", "diff_located", "diff_sides", "diff_under"]

_CONTINUOUS = ("float", "complex")
_SAME_VALUES = (Change.REORDERED, Change.RENAMED, Change.MOVED)


def diff_located(
    db: Database,
    before: Located,
    after: Located,
    *,
    numbers: bool = True,
    tensor: str | None = None,
) -> Diff:
    """What changed between two versions in the repository, or differs between files of them.

    A path that only one of the two has is meant for both. See `diff_sides` and `diff_under`.
    """
    if not (path := before.path or after.path):
        sides = side_of(db, before), side_of(db, after)
        return diff_sides(db, *sides, numbers=numbers, tensor=tensor)
    one, other = (
        end if end.path else files_of(db, end.commit, end.revision, path) for end in (before, after)
    )
    sides, roots = (side_of(db, one), side_of(db, other)), (one.path, other.path)
    return diff_under(db, *sides, roots, numbers=numbers, tensor=tensor)


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

    `numbers` also reads the chunks that differ, and says how far modified tensors moved; without
    them, what is stored in another way counts as modified, since nobody knows. `tensor` is a name
    or a glob that the name of a tensor, old or new, alone or with its path before it (`path:name`),
    must match to be listed and compared; files are listed all the same. `progress` is told how many
    more bytes were read. Raises NotFoundError when neither side has a tensor that `tensor` means,
    CorruptDataError when something stored is damaged, and ConflictError when a file of a working
    directory changed meanwhile.
    """
    files = match_files(before, after)
    scope = _Scope(numbers, tensor, threads, progress)
    changes, same = _tensor_changes(db, before, after, files, scope, by_path=True)
    listed = _file_changes(before, after, files)
    unchanged = len(after.files) - len(files.both) - len(files.added)
    return Diff(listed, changes, _totals(listed, changes, unchanged, same))


def diff_under(
    db: Database,
    before: Side,
    after: Side,
    roots: tuple[str, str],
    *,
    numbers: bool = True,
    tensor: str | None = None,
    threads: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> Diff:
    """What differs between the files at or under two paths, whatever their names and formats.

    The sides have only files at or under `roots`. A file is compared with that of the same path
    under the other one. Tensors are the same by what formats have in common of their names (see
    `names.canonical_name`), and only other values and shapes make a file with tensors differ.
    Options and errors are as for `diff_sides`.
    """
    files = match_under(before, after, *roots)
    scope = _Scope(numbers, tensor, threads, progress)
    changes, same = _tensor_changes(db, before, after, files, scope, by_path=False)
    differing = {
        (side, there.path)
        for change in changes
        if change.kind is not Change.REORDERED
        for side, there in ((before, change.before), (after, change.after))
        if there is not None
    }
    listed = tuple(
        replace(change, kind=Change.MODIFIED) if change.kind is Change.RENAMED else change
        for change in _file_changes(before, after, files)
        if (after, change.path) in differing
        or (before, change.old_path or change.path) in differing
        or _differs_besides(change, before, after)
    )
    unchanged = len(files.both) - sum(1 for one in listed if one.before and one.after)
    return Diff(listed, changes, _totals(listed, changes, unchanged, same))


@dataclass(frozen=True, slots=True)
class _Scope:
    """What is asked for, and who is told; see `diff_sides`."""

    numbers: bool
    tensor: str | None
    threads: int | None
    progress: Callable[[int], None] | None


class _Pair(NamedTuple):
    """A tensor before and after."""

    before: Place
    after: Place

    @property
    def lies_alike(self) -> bool:
        """Whether the elements are in the same order in both files, in chunks of their own."""
        old, new = self.before.tensor, self.after.tensor
        return (
            self.before.view is None
            and self.after.view is None
            and old.dtype.big_endian == new.dtype.big_endian
            and is_column_major(old) == is_column_major(new)
        )

    @property
    def same_bytes(self) -> bool:
        """Whether the elements are known to be the same without reading any."""
        if self.before.id == self.after.id:
            return True
        alike = self.lies_alike and cut_alike(*self)
        return alike and self.before.segment.ids == self.after.segment.ids

    @property
    def is_comparable(self) -> bool:
        """Whether content differs, and elements of the two can be told to be the same one."""
        old, new = self.before.tensor, self.after.tensor
        if self.same_bytes:
            return False
        if old.shape == new.shape:
            return True
        alike = is_column_major(old) == is_column_major(new) and old.dtype == new.dtype
        return alike and prod(old.shape) == prod(new.shape)


def _tensor_changes(
    db: Database, before: Side, after: Side, files: Matched[str], scope: _Scope, *, by_path: bool
) -> tuple[tuple[TensorChange, ...], int]:
    """The changes of the tensors in these files, and how many tensors are the same."""
    tensors = match_tensors(before, after, files, digests if scope.numbers else None)
    changes = [
        _alone(kind, place)
        for kind, places in ((Change.REMOVED, tensors.removed), (Change.ADDED, tensors.added))
        for place in places
        if _wanted(scope.tensor, place)
    ]
    pairs = [_Pair(*pair) for pair in tensors.both if _wanted(scope.tensor, *pair)]
    numbers = _measure(db, before, after, pairs, scope) if scope.numbers else [None] * len(pairs)
    same_files = set(files.both) if by_path else None
    same = 0 if by_path else _in_equal_files(before, after, files, scope.tensor)
    for pair, known in zip(pairs, numbers, strict=True):
        if (kind := _kind(pair, known, same_files)) is not None:
            changes.append(_together(kind, pair, known))
        else:
            same += 1
    if scope.tensor is not None and not changes and not same:
        _check_there(before, after, scope.tensor)
    changes.sort(key=lambda change: change.sort_key)
    return tuple(changes), same


def _wanted(pattern: str | None, *places: Place) -> bool:
    return pattern is None or any(_is_meant(pattern, place.path, place.tensor) for place in places)


def _is_meant(pattern: str, path: str, tensor: Tensor) -> bool:
    """Whether a pattern means a tensor, as for `export.choose`."""
    return any(name == pattern or fnmatchcase(name, pattern) for name in _names(path, tensor))


def _names(path: str, tensor: Tensor) -> tuple[str, str]:
    """What a tensor may be asked for by."""
    return tensor.name or path, f"{path}:{tensor.name}"


def _in_equal_files(before: Side, after: Side, files: Matched[str], pattern: str | None) -> int:
    """How many tensors are meant in those pairs of files that have the same content."""
    return sum(
        pattern is None or any(_is_meant(pattern, one, tensor) for one in (old_path, path))
        for old_path, path in files.both
        if before.files[old_path].manifest == after.files[path].manifest
        for tensor in after.manifest(path).listed()
    )


def _check_there(before: Side, after: Side, pattern: str) -> None:
    """Raise NotFoundError, with the nearest names, if a pattern means nothing on either side."""
    known: dict[str, None] = {}
    for side in (after, before):
        for path in side.files:
            for tensor in side.manifest(path).listed():
                if _is_meant(pattern, path, tensor):
                    return
                known[_names(path, tensor)[0]] = None
    close = get_close_matches(pattern, known, n=3, cutoff=0.5)
    hint = f"nearest names: {', '.join(close)}" if close else "see: mstore show REV --tensors"
    raise NotFoundError(f"there is no tensor {pattern!r} in either of the two", hint=hint)


def _alone(kind: Change, place: Place) -> TensorChange:
    """A tensor that only one side has."""
    there = TensorAt(place.path, place.tensor)
    before, after = (there, None) if kind is Change.REMOVED else (None, there)
    chunks = place.segment.count
    return TensorChange(
        kind, place.tensor.name, place.path, before, after, chunks, chunks, place.tensor.nbytes
    )


def _together(kind: Change, pair: _Pair, numbers: Numbers | None) -> TensorChange:
    """A tensor that both sides have."""
    before, after = (TensorAt(place.path, place.tensor) for place in pair)
    if kind in _SAME_VALUES:
        numbers = None
    extent = _extent(*pair)
    return TensorChange(kind, after.tensor.name, after.path, before, after, *extent, numbers)


def _measure(
    db: Database, before: Side, after: Side, pairs: Sequence[_Pair], scope: _Scope
) -> list[Numbers | None]:
    """The numbers of each pair; None where content is the same, or cannot be compared."""
    found: list[Numbers | None] = [None] * len(pairs)
    threads, progress = scope.threads, scope.progress
    comparable = [number for number, pair in enumerate(pairs) if pair.is_comparable]
    alike = [number for number in comparable if pairs[number].lies_alike]
    chosen: list[tuple[Place, Place]] = [pairs[number] for number in alike]
    by_chunks = measure(db, before, after, chosen, threads=threads, progress=progress)
    for number, numbers in zip(alike, by_chunks, strict=True):
        found[number] = numbers
    others = [number for number in comparable if not pairs[number].lies_alike]
    chosen = [pairs[number] for number in others]
    by_values = measure_values(before, after, chosen, threads=threads, progress=progress)
    for number, known in zip(others, by_values, strict=True):
        found[number] = known
    return found


def _kind(
    pair: _Pair, numbers: Numbers | None, same_files: Collection[tuple[str, str]] | None
) -> Change | None:
    """What became of a tensor; None if nothing did.

    Where its file is not one of two `same_files`, it has moved. If these are None, its place does
    not count, nor how formats spell its name.
    """
    old, new = pair.before.tensor, pair.after.tensor
    if plain_type(old.dtype) != plain_type(new.dtype):
        return Change.DTYPE
    if old.shape != new.shape:
        return Change.RESHAPED
    if not pair.same_bytes and (numbers is None or numbers.changed):
        return Change.MODIFIED
    if _is_renamed(old.name, new.name, as_files_spell=same_files is not None):
        return Change.RENAMED
    if old.dtype != new.dtype or is_column_major(old) != is_column_major(new):
        return Change.REORDERED
    if same_files is not None and (pair.before.path, pair.after.path) not in same_files:
        return Change.MOVED
    return None


def _is_renamed(old: str, new: str, *, as_files_spell: bool) -> bool:
    """Whether a name is another, apart from what formats make of it unless that counts, too."""
    if as_files_spell:
        return old != new
    # Some formats have no name for an array alone.
    return bool(old and new) and canonical_name(old) != canonical_name(new)


def _extent(before: Place, after: Place) -> tuple[int, int, int]:
    """Chunks, how many of them changed, and the bytes of these."""
    chunks = max(before.segment.count, after.segment.count)
    length = max(before.tensor.nbytes, after.tensor.nbytes)
    if not cut_alike(before, after):
        return chunks, chunks, length
    changed, piece = changed_chunks(before, after), after.segment.piece
    return chunks, len(changed), int(np.minimum(piece, length - changed * piece).sum())


def _differs_besides(change: FileChange, before: Side, after: Side) -> bool:
    """Whether a file of no tensors is another one, or only one of two has tensors."""
    manifests = [
        side.manifest(path)
        for side, path, entry in (
            (before, change.old_path or change.path, change.before),
            (after, change.path, change.after),
        )
        if entry is not None
    ]
    if any(next(manifest.listed(), None) is not None for manifest in manifests):
        return False
    return len(manifests) == 1 or manifests[0].chunk_ids() != manifests[1].chunk_ids()


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


def _totals(
    files: Sequence[FileChange], tensors: Sequence[TensorChange], unchanged: int, same: int
) -> Totals:
    compared = [(change, numbers) for change in tensors if (numbers := change.numbers) is not None]
    continuous = [numbers for change, numbers in compared if _is_continuous(change)]
    return Totals(
        files=_counts(change.kind for change in files),
        unchanged_files=unchanged,
        tensors=_counts(change.kind for change in tensors),
        unchanged_tensors=same,
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
