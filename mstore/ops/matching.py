"""What belongs together on the two sides of a comparison: files, and the tensors in them.

Only metadata is looked at. Files whose manifests are the same are never opened.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from mstore.ids import Id
from mstore.names import canonical_name
from mstore.objects import Manifest, SegmentChunks
from mstore.ops.rowmajor import plain_type
from mstore.ops.sides import Place, Side

T = TypeVar("T")

Digests = Callable[[Side, Sequence[Place]], Sequence[Hashable]]
"""Gives a hash of the values of each of some tensors, None for what cannot be read."""

_SIMILAR = 0.5
"""Share of a file's bytes that must be found in another for it to be that file, renamed."""


@dataclass(frozen=True, slots=True)
class Matched(Generic[T]):
    """What is on `both` sides, perhaps changed, and what only one side has."""

    both: list[tuple[T, T]]
    removed: list[T]
    added: list[T]


def natural(text: str) -> tuple[object, ...]:
    """A key that sorts as people do: `layer2` before `layer10`."""
    parts = re.split(r"0*([0-9]+)", text)
    # Numbers by their digits, since they may be too long to convert.
    return tuple((len(part), part) if at % 2 else part for at, part in enumerate(parts))


def match_files(before: Side, after: Side) -> Matched[str]:
    """The paths of files that differ in any way, in natural order.

    A file that is gone and one that is new are the same file, renamed, when their content is
    equal, or else when at least half of it is.
    """
    both = [
        (path, path)
        for path, entry in after.files.items()
        if path in before.files and before.files[path] != entry
    ]
    gone, new = _only_in(before, after), _only_in(after, before)
    renamed = [
        *_pair_off(gone, new, lambda file: (file.name, file.content) if file.size else None),
        *_pair_off(gone, new, lambda file: file.content if file.size else None),
        *_pair_similar(before, after, gone, new),
    ]
    both += [(one.path, other.path) for one, other in renamed]
    both.sort(key=lambda pair: natural(pair[1]))
    return Matched(both, [file.path for file in gone], [file.path for file in new])


def match_under(before: Side, after: Side, old_root: str, root: str) -> Matched[str]:
    """The paths of files of one name under two paths, and of those only under one of them.

    Each path is that of a folder or a file; a file belongs to a file. Files of the same content
    are listed, too.
    """
    olds = {path.removeprefix(old_root): path for path in before.files}
    news = {path.removeprefix(root): path for path in after.files}
    both = sorted(olds.keys() & news.keys(), key=natural)
    return Matched(
        [(olds[name], news[name]) for name in both],
        [olds[name] for name in sorted(olds.keys() - news.keys(), key=natural)],
        [news[name] for name in sorted(news.keys() - olds.keys(), key=natural)],
    )


def match_tensors(
    before: Side,
    after: Side,
    files: Matched[str],
    digests: Digests | None = None,
) -> Matched[Place]:
    """The tensors in the given files, except those in pairs of equal content.

    Tensors are the same by name within one file, or else by the name that is canonical for it;
    else by name and content in any file; else by a name, or then a canonical one, that is left
    over once on each side (models cut into other files); else by content. `digests` gives hashes of
    the values of tensors, for those that are stored in several ways; without it, nothing is read.
    """
    both: list[tuple[Place, Place]] = []
    gone = [place for path in files.removed for place in before.places(path)]
    new = [place for path in files.added for place in after.places(path)]
    for old_path, path in files.both:
        if before.files[old_path].manifest == after.files[path].manifest:
            continue
        here, there = list(before.places(old_path)), list(after.places(path))
        both += _pair_off(here, there, lambda place: place.tensor.name)
        both += _pair_off(here, there, _canonical, unique=True)
        if len(here) == len(there) == 1 and not (here[0].tensor.name and there[0].tensor.name):
            # An array alone, of which only one of the two formats says how it is called.
            both.append((here.pop(), there.pop()))
        gone += here
        new += there
    for left in (gone, new):
        left.sort(key=lambda place: (natural(place.path), natural(place.tensor.name)))
    both += _pair_off(gone, new, lambda place: (place.tensor.name, place.id))
    # The only tensor of a file has no name to go by.
    both += _pair_off(gone, new, lambda place: place.tensor.name or None, unique=True)
    both += _pair_off(gone, new, _canonical, unique=True)
    both += _pair_off(gone, new, lambda place: place.id)
    if digests is not None:
        both += _pair_values(before, after, gone, new, digests)
    return Matched(both, gone, new)


def _canonical(place: Place) -> str | None:
    return canonical_name(place.tensor.name) or None


def _pair_values(
    before: Side,
    after: Side,
    gone: list[Place],
    new: list[Place],
    digests: Digests,
) -> list[tuple[Place, Place]]:
    """Take from both lists what has the same values, where these may be stored in several ways."""

    def shape(place: Place) -> Hashable:
        return plain_type(place.tensor.dtype), place.tensor.shape

    # What is stored in one way only has been paired off by its content, or is not the same.
    ways: defaultdict[Hashable, set[Hashable]] = defaultdict(set)
    for place in (*gone, *new):
        # Views are told apart, since any two may be stored in two ways.
        way = place.tensor.dtype, place.tensor.order, place.segment.piece
        ways[shape(place)].add(way if place.view is None else place.view)
    shapes = {shape(place) for place in gone} & {shape(place) for place in new}
    wanted = {one for one in shapes if len(ways[one]) > 1}
    keys: dict[int, Hashable] = {}
    for side, places in ((before, gone), (after, new)):
        chosen = [place for place in places if shape(place) in wanted]
        for place, found in zip(chosen, digests(side, chosen), strict=True):
            if found is not None:
                keys[id(place)] = shape(place), found
    return _pair_off(gone, new, lambda place: keys.get(id(place)))


def chunk_difference(
    before: Manifest, after: Manifest
) -> tuple[Counter[tuple[Id, int]], Counter[tuple[Id, int]]]:
    """The (id, length) of chunks, as often as they are in `before` only and in `after` only."""
    old, new = Counter(before.segments), Counter(after.segments)
    # Most segments are whole on both sides; only the others are taken apart.
    one, other = _chunks(old - new), _chunks(new - old)
    return one - other, other - one


def chunk_bytes(chunks: Counter[tuple[Id, int]]) -> int:
    """Bytes of all these chunks, each as often as it is counted."""
    return sum(length * times for (_, length), times in chunks.items())


@dataclass(frozen=True, slots=True)
class _File:
    path: str
    content: Id
    size: int

    @property
    def name(self) -> str:
        return self.path.rpartition("/")[2]


def _only_in(side: Side, other: Side) -> list[_File]:
    paths = sorted((path for path in side.files if path not in other.files), key=natural)
    return [_File(path, side.files[path].manifest, side.files[path].size) for path in paths]


def _pair_off(
    gone: list[T], new: list[T], key: Callable[[T], Hashable], *, unique: bool = False
) -> list[tuple[T, T]]:
    """Take from both lists what has the same key, in order; a key of None is like no other.

    With `unique`, only what is alone with its key in its list.
    """
    groups: defaultdict[Hashable, tuple[list[T], list[T]]] = defaultdict(lambda: ([], []))
    for number, items in enumerate((gone, new)):
        for item in items:
            if (found := key(item)) is not None:
                groups[found][number].append(item)
    pairs: list[tuple[T, T]] = []
    for ones, others in groups.values():
        if not unique or len(ones) == len(others) == 1:
            pairs.extend(zip(ones, others, strict=False))
    _remove(gone, (one for one, _ in pairs))
    _remove(new, (other for _, other in pairs))
    return pairs


def _remove(items: list[T], taken: Iterable[T]) -> None:
    known = {id(item) for item in taken}
    items[:] = [item for item in items if id(item) not in known]


def _pair_similar(
    before: Side, after: Side, gone: list[_File], new: list[_File]
) -> list[tuple[_File, _File]]:
    """Take from both lists the files that share most of their bytes, the most alike first."""
    owners: defaultdict[Id, list[tuple[_File, int]]] = defaultdict(list)
    for file in gone if new else ():
        for (identifier, _), times in Counter(before.manifest(file.path).chunks()).items():
            owners[identifier].append((file, times))
    candidates: list[tuple[float, _File, _File]] = []
    for file in new if gone else ():
        shared: Counter[_File] = Counter()
        for (identifier, length), times in Counter(after.manifest(file.path).chunks()).items():
            for owner, there in owners.get(identifier, ()):
                shared[owner] += min(times, there) * length
        for owner, size in shared.items():
            share = size / max(owner.size, file.size)
            if share >= _SIMILAR:
                candidates.append((share, owner, file))
    candidates.sort(key=lambda one: (-one[0], natural(one[1].path), natural(one[2].path)))
    pairs: list[tuple[_File, _File]] = []
    taken: set[_File] = set()
    for _, owner, file in candidates:
        if taken.isdisjoint((owner, file)):
            taken.update((owner, file))
            pairs.append((owner, file))
    _remove(gone, (owner for owner, _ in pairs))
    _remove(new, (file for _, file in pairs))
    return pairs


def _chunks(segments: Counter[SegmentChunks]) -> Counter[tuple[Id, int]]:
    found: Counter[tuple[Id, int]] = Counter()
    for segment, times in segments.items():
        for chunk in segment.chunks():
            found[chunk] += times
    return found
