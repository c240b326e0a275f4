"""What the tensors of a new file were made from, where no history and no name tells.

Large tensors are looked up by their sketches. They show which stored file this one comes from;
then the best version of that file is chosen, and the other tensors are found in it by their names,
or else by their shapes and places.
"""

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice

import numpy as np

from mstore.bases import BaseReader, can_be_base
from mstore.chunking import piece_size
from mstore.codecs.estimate import delta_share
from mstore.codecs.words import comparable, word_type
from mstore.database import Database
from mstore.distinct import distinct
from mstore.ids import Id
from mstore.layout import Layout, Tensor
from mstore.objects import Manifest, SegmentChunks
from mstore.similar import Like, nearest
from mstore.sketches import Rows, fingerprint
from mstore.sources import Source
from mstore.threads import Memory

_VERSIONS = 8
_TIPS = 64
_FAMILIES = 4
_LARGEST = 4
_ALL_OVER = 10


class _StoredFile:
    """The tensors of a stored file, by number, name and shape."""

    def __init__(self, manifest: Manifest) -> None:
        self.segments = manifest.segments
        self.numbers: dict[str, int] = {}
        for number, segment in enumerate(manifest.segments):
            if segment.tensor is not None:
                self.numbers[segment.tensor.name] = number

    def name(self, number: int) -> str | None:
        """The name of the tensor that is segment `number`, if it is one."""
        if number >= len(self.segments) or (tensor := self.segments[number].tensor) is None:
            return None
        return tensor.name


class _NewFile:
    """A file to be stored, and which of its segments still lack a base."""

    def __init__(
        self, source: Source, layout: Layout, chunk_size: int, wanted: Iterable[int]
    ) -> None:
        self.source = source
        self.tensors: dict[int, Tensor] = {}
        for number in wanted:
            if (tensor := layout.segments[number].tensor) is not None:
                self.tensors[number] = tensor
        self.layout = layout
        self.chunk_size = chunk_size
        self.likes: dict[int, list[Like]] = {}
        self.bases: dict[int, SegmentChunks] = {}

    def piece(self, number: int) -> int:
        """The bytes of a chunk of tensor `number`."""
        return piece_size(self.tensors[number].dtype, self.chunk_size)

    def fits(self, number: int, base: SegmentChunks) -> bool:
        """Whether tensor `number` could be coded against `base`."""
        return can_be_base(base, self.tensors[number], self.piece(number))

    def first_chunk(self, number: int) -> memoryview:
        """The bytes of the first chunk of tensor `number`."""
        segment = self.layout.segments[number]
        length = min(segment.length, self.piece(number))
        return self.source.view(segment.offset, length, memoryview(bytearray(length)))


class Relatives:
    """Finds what new files come from among all that a repository holds. From one thread."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self._reader = BaseReader(db)
        self._memory = Memory()
        self._stored: dict[Id, _StoredFile] = {}

    def find(
        self,
        source: Source,
        layout: Layout,
        chunk_size: int,
        wanted: Sequence[int],
        sketches: Rows,
    ) -> tuple[dict[int, SegmentChunks], set[int]]:
        """What the segments `wanted` can be coded against, by their numbers, as far as found.

        `sketches` are those of the segments that have one. The second result is the segments of
        which the very values sampled are stored already. Raises MstoreError when what is stored
        cannot be read; nothing depends on it.
        """
        file = _NewFile(source, layout, chunk_size, wanted)
        found = self._likes(layout, sketches)
        for segment, likes in zip(sketches["segment"].tolist(), found, strict=True):
            if likes:
                file.likes[segment] = likes
        waiting = dict(file.likes)
        for _ in range(_FAMILIES):
            if not waiting:
                break
            probe = _most_telling(waiting)
            best = self._best_version(file, probe)
            if best is not None:
                self._pair(file, best)
            waiting.pop(probe)
            waiting = {n: likes for n, likes in waiting.items() if n not in file.bases}
        for number in file.likes.keys() - file.bases.keys():
            self._take_nearest(file, number)
        same = {number for number, likes in file.likes.items() if likes[0].distance == 0}
        return file.bases, same

    def _likes(self, layout: Layout, sketches: Rows) -> list[list[Like]]:
        """What the tensor of each sketch is like.

        A few are looked up first, the largest and some from all over: where none of them is like
        anything, nothing is gained by the others.
        """
        storage, refs = self._db.storage, self._db.root.sketches
        if len(sketches) > _LARGEST + _ALL_OVER:
            lengths = [layout.segments[number].length for number in sketches["segment"].tolist()]
            places = np.linspace(0, len(sketches) - 1, _ALL_OVER).astype(np.intp)
            few = distinct(np.concatenate((places, np.argsort(lengths)[-_LARGEST:])))
            if not any(nearest(storage, refs, sketches[few])):
                return [[] for _ in sketches]
        return nearest(storage, refs, sketches)

    def _best_version(self, file: _NewFile, probe: int) -> _StoredFile | None:
        """Of all versions of the files that tensor `probe` is like, the one nearest to it now.

        Only first members of a line have sketches, so what comes after them is looked at as well:
        one chunk of each.
        """
        chunks: dict[Id, _StoredFile] = {}
        for like in file.likes[probe]:
            name = self._open(like.manifest).name(like.segment)
            if name is None:
                continue
            for manifest in self._versions(like):
                stored = self._open(manifest)
                number = stored.numbers.get(name)
                if number is not None and file.fits(probe, stored.segments[number]):
                    chunks.setdefault(stored.segments[number].chunk_id(0), stored)
        if len(chunks) < 2:
            return next(iter(chunks.values()), None)
        shares = self._shares(file, probe, list(chunks))
        return chunks[min(chunks, key=lambda chunk: shares[chunk])]

    def _shares(self, file: _NewFile, probe: int, chunks: Sequence[Id]) -> Mapping[Id, float]:
        """The part of the first chunk of tensor `probe` that is left of it beside each of these."""
        raw, kind = file.first_chunk(probe), word_type(file.tensors[probe].dtype)
        shares = {}
        for chunk, chain in self._reader.read(chunks, self._memory).items():
            shares[chunk] = min(
                (
                    delta_share(raw, kind, base.raw, word_type(base.dtype))
                    for _, base in chain
                    if comparable(kind, word_type(base.dtype))
                ),
                default=1.0,
            )
        return shares

    def _versions(self, like: Like) -> Iterator[Id]:
        """The manifest that is like a tensor, and those at its place at the tips of its model."""
        yield like.manifest
        seen = {like.manifest}
        for model, refs in self._db.root.models.items():
            if fingerprint(model) != like.model:
                continue
            tips = dict.fromkeys((*refs.branches.values(), *refs.tags.values()))
            commits = [self._db.commit(tip) for tip in islice(tips, _TIPS)]
            for commit in sorted(commits, key=lambda commit: commit.time, reverse=True):
                for path, entry in self._db.snapshot(commit.snapshot).files.items():
                    if fingerprint(path) == like.path and entry.manifest not in seen:
                        seen.add(entry.manifest)
                        yield entry.manifest
                if len(seen) > _VERSIONS:
                    return

    def _pair(self, file: _NewFile, stored: _StoredFile) -> None:
        """Give the tensors that lack a base those of `stored` that they come from."""
        taken: dict[int, int] = {}
        for number in file.tensors:
            if number in file.bases:
                continue
            for name in self._names(file, number):
                at = stored.numbers.get(name)
                if at is not None and file.fits(number, stored.segments[at]):
                    taken[number] = at
                    break
        if not taken.keys() & file.likes.keys():
            return
        _pair_by_shape(file, stored, taken)
        file.bases.update((number, stored.segments[at]) for number, at in taken.items())

    def _take_nearest(self, file: _NewFile, number: int) -> None:
        """Give a tensor that has no family here the nearest one it could be coded against."""
        for like in file.likes[number]:
            stored = self._open(like.manifest)
            if stored.name(like.segment) is not None:
                segment = stored.segments[like.segment]
                if file.fits(number, segment):
                    file.bases[number] = segment
                    return

    def _names(self, file: _NewFile, number: int) -> Iterator[str]:
        """What tensor `number` may be called in a file it comes from, the likeliest first."""
        for like in file.likes.get(number, ()):
            name = self._open(like.manifest).name(like.segment)
            if name is not None:
                yield name
        if number not in file.likes:
            yield file.tensors[number].name

    def _open(self, manifest: Id) -> _StoredFile:
        if manifest not in self._stored:
            self._stored[manifest] = _StoredFile(self._db.manifest(manifest))
        return self._stored[manifest]


def _pair_by_shape(file: _NewFile, stored: _StoredFile, taken: dict[int, int]) -> None:
    """Add to `taken` the tensors that no name leads to: the one of their shape at their place.

    Places are counted from the tensor before that has been found, so that files in which only
    names differ, or what lies in front, are paired in order.
    """
    free: dict[tuple[object, ...], list[int]] = {}
    used = set(taken.values())
    for at, segment in enumerate(stored.segments):
        if segment.tensor is not None and at not in used:
            free.setdefault(_shape(segment.tensor), []).append(at)
    first = min(taken)
    shift = taken[first] - first
    for number, tensor in file.tensors.items():
        if number in taken:
            shift = taken[number] - number
        elif number not in file.likes and number not in file.bases:
            places = free.get(_shape(tensor), [])
            near = _nearest_place(places, number + shift)
            if near is not None and file.fits(number, stored.segments[places[near]]):
                taken[number] = places.pop(near)


def _shape(tensor: Tensor) -> tuple[object, ...]:
    return tensor.shape, tensor.order


def _nearest_place(places: Sequence[int], place: int) -> int | None:
    """Which of these ascending numbers is nearest to `place`."""
    at = bisect_left(places, place)
    around = [near for near in (at - 1, at) if 0 <= near < len(places)]
    return min(around, key=lambda near: abs(places[near] - place), default=None)


def _most_telling(likes: Mapping[int, Sequence[Like]]) -> int:
    """The tensor to choose a version by: it is like one in as many files as any.

    Of several it is the one whose distance is neither the least nor the greatest. Versions of a
    file are told apart by what changed in each, which a tensor that never changes does not show,
    nor one that was begun anew.
    """
    most = max(map(len, likes.values()))
    among = [number for number, found in likes.items() if len(found) == most]
    ordered = sorted(among, key=lambda number: likes[number][0].distance)
    return ordered[len(ordered) // 2]
