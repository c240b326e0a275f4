"""How tensors are stored: in how many bytes, how deep, and against which tensors of which versions.

A record names the chunk it is coded against, but not where that belongs. `find_bases` looks for it
in the versions, the nearest first.
"""

from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from mstore.bulkindex import Ids, as_ids, locate
from mstore.database import Database
from mstore.errors import CorruptDataError
from mstore.ids import Id
from mstore.objects import SegmentChunks
from mstore.readplan import record_sizes


@dataclass(frozen=True, slots=True)
class Coding:
    """How the chunks of a segment are stored.

    `stored` is the bytes of their records. `depth` is how many others have to be decoded one after
    the other before the deepest of them, 0 when all stand alone. `bases` are the chunks they are
    coded against, with how many are coded against each.
    """

    stored: int
    depth: int
    bases: Mapping[Id, int]


@dataclass(frozen=True, slots=True)
class BaseAt:
    """A tensor that holds bases of `chunks` chunks of another one.

    It is tensor `name` of the file `path` in the version `commit`, or all three are None, when no
    version holds the bases any more. That version is `back` first parents behind `tip`, the
    version asked about or one that a branch or tag names; where there is no such, `tip` is None.
    """

    chunks: int
    commit: Id | None = None
    tip: Id | None = None
    back: int = 0
    path: str | None = None
    name: str | None = None


@dataclass(frozen=True, slots=True)
class _Version:
    """A version, `back` first parents behind `tip`, if not None."""

    commit: Id
    tip: Id | None
    back: int


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a version holds a chunk."""

    version: _Version
    path: str
    name: str


def codings(db: Database, segments: Sequence[SegmentChunks]) -> list[Coding]:
    """How each segment is stored; raises CorruptDataError if a chunk is missing."""
    located = locate(db.chunk_indexes(), as_ids(b"".join(segment.ids for segment in segments)))
    if not located.found.all():
        raise CorruptDataError("chunks are missing from the repository", hint="run: mstore verify")
    sizes, depths, bases = record_sizes(located.rows), located.rows["depth"], located.rows["base"]
    found, start = [], 0
    for segment in segments:
        part = slice(start, start + segment.count)
        numbers = bases[part][bases[part] > 0].astype(np.int64) - 1
        counted = Counter(base.tobytes() for base in located.bases[numbers])
        depth = int(depths[part].max(initial=0))
        found.append(Coding(int(sizes[part].sum()), depth, counted))
        start = part.stop
    return found


def find_bases(
    db: Database, version: Id, coded: Sequence[tuple[str, SegmentChunks, Coding]]
) -> list[tuple[BaseAt, ...]]:
    """For each of some tensors of a version, given with their paths, those they are coded against.

    Most chunks first. Of all versions that hold a base the nearest counts: `version` itself, then
    those it came from, then what other branches and tags reach; among several places in it, one
    of the same name and path. Stops when all are found, and reads every manifest once at most.
    """
    wanted = {base for _, _, coding in coded for base in coding.bases}
    places = _find_places(db, version, wanted)
    return [
        _bases_of(path, segment.tensor.name if segment.tensor else "", coding, places)
        for path, segment, coding in coded
    ]


def _bases_of(
    path: str, name: str, coding: Coding, places: Mapping[Id, Sequence[_Place]]
) -> tuple[BaseAt, ...]:
    chunks: Counter[_Place | None] = Counter()
    for base, count in coding.bases.items():
        nearest = min(
            places.get(base, ()),
            key=lambda place: (place.name != name, place.path != path),
            default=None,
        )
        chunks[nearest] += count
    return tuple(_base_at(count, place) for place, count in chunks.most_common())


def _base_at(count: int, place: _Place | None) -> BaseAt:
    if place is None:
        return BaseAt(count)
    version = place.version
    return BaseAt(count, version.commit, version.tip, version.back, place.path, place.name)


def _find_places(db: Database, version: Id, chunks: Iterable[Id]) -> dict[Id, list[_Place]]:
    """Where the nearest version that holds each of `chunks` does so; nothing for those lost."""
    missing = _Missing(chunks)
    places: dict[Id, list[_Place]] = {}
    seen: set[Id] = set()
    versions = _nearest_first(db, version)
    while missing and (found := next(versions, None)) is not None:
        paths: dict[Id, list[str]] = {}
        for path, entry in db.snapshot(db.commit(found.commit).snapshot).files.items():
            if entry.manifest not in seen:
                paths.setdefault(entry.manifest, []).append(path)
        seen.update(paths)
        held = _held(db, found, paths, missing)
        missing.remove(held)
        places |= held
    return places


def _held(
    db: Database, version: _Version, paths: Mapping[Id, Sequence[str]], missing: "_Missing"
) -> dict[Id, list[_Place]]:
    """Where some files of a version, given by their manifests, hold missing chunks."""
    held: dict[Id, list[_Place]] = {}
    for manifest in paths:
        if not missing.may_be_in(as_ids(db.chunk_ids(manifest))):
            continue
        for segment in db.manifest(manifest).segments:
            name = segment.tensor.name if segment.tensor else ""
            for chunk in missing.among(segment):
                held.setdefault(chunk, []).extend(
                    _Place(version, path, name) for path in paths[manifest]
                )
    return held


class _Missing:
    """The chunks that have not been found yet."""

    def __init__(self, chunks: Iterable[Id]) -> None:
        self._chunks = set(chunks)
        self.remove(())

    def __bool__(self) -> bool:
        return bool(self._chunks)

    def may_be_in(self, ids: Ids) -> bool:
        """Whether the first bytes of any of `ids` (n, 32) are those of one of them."""
        return bool(np.isin(_heads(ids), self._heads).any())

    def among(self, segment: SegmentChunks) -> set[Id]:
        """Those that a segment has."""
        return self._chunks.intersection(chunk for chunk, _ in segment.chunks())

    def remove(self, found: Iterable[Id]) -> None:
        """Look no more for these."""
        self._chunks.difference_update(found)
        self._heads = _heads(as_ids(b"".join(self._chunks)))


def _heads(ids: Ids) -> NDArray[np.uint64]:
    return np.ascontiguousarray(ids[:, :8]).view(np.uint64).ravel()


def _nearest_first(db: Database, version: Id) -> Iterator[_Version]:
    """Every version that is kept, each once: this one and those it came from, then the others."""
    seen: set[Id] = set()
    tips = (
        tip
        for refs in db.root.models.values()
        for tip in (*refs.branches.values(), *refs.tags.values())
    )
    return chain(_walk(db, [version], seen), _walk(db, tips, seen))


def _walk(db: Database, tips: Iterable[Id], seen: set[Id]) -> Iterator[_Version]:
    """Breadth-first from children to parents, less those in `seen`, to which all are added."""
    waiting = deque(_Version(tip, tip, 0) for tip in tips)
    while waiting:
        version = waiting.popleft()
        if version.commit in seen:
            continue
        seen.add(version.commit)
        yield version
        for number, parent in enumerate(db.parents(db.commit(version.commit))):
            waiting.append(_Version(parent, None if number else version.tip, version.back + 1))
