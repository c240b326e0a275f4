"""Finding the stored tensors that new ones were made from, a file at a time.

First by where a tensor is and its name, in the versions that this one is made from; where that
leads to nothing, by what is like it in all of the repository.
"""

import re
from collections.abc import Sequence
from contextlib import suppress
from typing import NamedTuple

import numpy as np

from mstore.bases import can_be_base
from mstore.chunking import piece_size
from mstore.database import Database
from mstore.errors import MstoreError
from mstore.ids import Id
from mstore.layout import Layout, Tensor
from mstore.names import canonical_name
from mstore.objects import Manifest, SegmentChunks, Snapshot
from mstore.relatives import Relatives
from mstore.similar import sketch
from mstore.sketches import ROW_DTYPE, Rows
from mstore.sources import Source

_SKETCHES_OF_RELATIVES = 8

_CANDIDATES = 3
"""Tensors to choose from, chunk by chunk."""


class _Named(NamedTuple):
    """A tensor of some name: the key of its file, and its chunks."""

    key: tuple[str | int, ...]
    segment: SegmentChunks


class BaseFinder:
    """Finds what the tensors of new files may be coded against. From one thread."""

    def __init__(self, db: Database, snapshots: Sequence[Snapshot]) -> None:
        """`snapshots` are the versions to look in, the most likely first."""
        self.db = db
        self._snapshots = snapshots
        self._relatives = Relatives(db)
        self._everywhere: dict[str, list[_Named]] | None = None
        self._new: dict[str, list[_Named]] = {}
        self._sketches: dict[str, Rows] = {}

    def find(
        self, path: str, source: Source, layout: Layout, chunk_size: int
    ) -> list[tuple[SegmentChunks, ...]]:
        """For each segment of the file the stored tensors it may come from, the likeliest first.

        They are cut into pieces of as many numbers as the segment will be. What cannot be read of
        the versions before, or to search for similar tensors, is passed over: it is not needed to
        store the file.
        """
        if not any(segment.tensor for segment in layout.segments):
            return [()] * len(layout.segments)
        here = self._named_at(path)
        bases: list[tuple[SegmentChunks, ...]] = []
        wanted = []
        for number, segment in enumerate(layout.segments):
            found: tuple[SegmentChunks, ...] = ()
            if (tensor := segment.tensor) is not None and segment.length:
                found = self._by_name(path, here, tensor, piece_size(tensor.dtype, chunk_size))
                if not found:
                    wanted.append(number)
            bases.append(found)
        if wanted:
            with suppress(MstoreError):
                sketches = sketch(source, layout, wanted)
                self._sketches[path] = sketches
                similar, same = self._relatives.find(source, layout, chunk_size, wanted, sketches)
                self._sketches[path] = _worth_keeping(sketches, layout, set(similar), same)
                for number, base in similar.items():
                    bases[number] = (base,)
        return bases

    def add(self, path: str, manifest: Manifest) -> None:
        """Look in this file too, which is being stored now."""
        for tensor, segment in manifest.tensors():
            if name := canonical_name(tensor.name):
                self._new.setdefault(name, []).append(_Named(natural_key(path), segment))

    def sketches(self, path: str) -> Rows:
        """The sketches to keep of the file that was asked for at `path`; once."""
        return self._sketches.pop(path, np.empty(0, ROW_DTYPE))

    def _by_name(
        self, path: str, here: Sequence[dict[str, SegmentChunks]], tensor: Tensor, piece: int
    ) -> tuple[SegmentChunks, ...]:
        """The tensors of that name: one stored just now, and those in the versions before.

        That is those in the same file there, or else the one in the file next to it by name. In
        other files, which may be of another format, names need only be canonically the same.
        """
        name = canonical_name(tensor.name)
        new = _nearest(self._new.get(name, ()), path, tensor, piece)[:_CANDIDATES]
        at_path = [named[tensor.name] for named in here if tensor.name in named]
        before = [segment for segment in at_path if can_be_base(segment, tensor, piece)]
        if not before and tensor.name:
            if self._everywhere is None:
                self._everywhere = self._named_everywhere()
            before = _nearest(self._everywhere.get(name, ()), path, tensor, piece)
        return (*new, *before[: _CANDIDATES - len(new)])

    def _named_at(self, path: str) -> list[dict[str, SegmentChunks]]:
        """The tensors of the file at `path` by name, in each version that has it."""
        entries = [snapshot.files.get(path) for snapshot in self._snapshots]
        return [
            {tensor.name: segment for tensor, segment in self._tensors(entry.manifest)}
            for entry in entries
            if entry is not None
        ]

    def _named_everywhere(self) -> dict[str, list[_Named]]:
        """Every tensor of the versions by canonical name; those of the likeliest version first."""
        named: dict[str, list[_Named]] = {}
        for snapshot in self._snapshots:
            for path, entry in snapshot.files.items():
                key = natural_key(path)
                for tensor, segment in self._tensors(entry.manifest):
                    name = canonical_name(tensor.name)
                    named.setdefault(name, []).append(_Named(key, segment))
        return named

    def _tensors(self, manifest: Id) -> list[tuple[Tensor, SegmentChunks]]:
        """The tensors of a stored file; none when its manifest is damaged."""
        try:
            return list(self.db.manifest(manifest).tensors())
        except MstoreError:
            return []


def natural_key(path: str) -> tuple[str | int, ...]:
    """What to sort paths by so that `step-50` comes before `step-100`.

    Text and numbers take turns, beginning with text, so that any two keys can be compared.
    """
    parts = re.split("([0-9]+)", path)
    return tuple(int(part) if at % 2 else part for at, part in enumerate(parts))


def _nearest(named: Sequence[_Named], path: str, tensor: Tensor, piece: int) -> list[SegmentChunks]:
    """Of tensors of one name those that can be a base, one of each element type.

    Those of exactly its name come before others.

    It is the one in the file that comes before `path`, or the first one after it where there is
    none: checkpoints of one training lie in files next to each other. The type of `tensor` itself
    comes first.
    """
    usable = [
        (one, found)
        for one in named
        if (found := one.segment.tensor) is not None and can_be_base(one.segment, tensor, piece)
    ]
    exactly = [(one, found) for one, found in usable if found.name == tensor.name]
    key = natural_key(path)
    chosen: dict[str, _Named] = {}
    for one, found in sorted(exactly or usable, key=lambda pair: pair[0].key):
        if one.key <= key or found.dtype.name not in chosen:
            chosen[found.dtype.name] = one
    own = tensor.dtype.name
    return [chosen[name].segment for name in sorted(chosen, key=lambda name: name != own)]


def _worth_keeping(sketches: Rows, layout: Layout, similar: set[int], same: set[int]) -> Rows:
    """The sketches of tensors that are like no stored one, and a few of those that are.

    These few, of the largest, are enough to find this file by, when what it is like is gone or it
    is nearer to a third. Of values that are stored already there is a sketch.
    """
    segments = sketches["segment"].tolist()
    related = sorted(similar & set(segments), key=lambda number: -layout.segments[number].length)
    kept = (set(segments) - similar) | set(related[:_SKETCHES_OF_RELATIVES])
    return sketches[[number in kept and number not in same for number in segments]]
