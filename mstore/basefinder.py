"""Finding the stored tensors that new ones were made from, a file at a time.

First by where a tensor is and its name, in the versions that this one is made from; where that
leads to nothing, by what is like it in all of the repository.
"""

from collections.abc import Sequence
from contextlib import suppress

import numpy as np

from mstore.bases import can_be_base
from mstore.chunking import piece_size
from mstore.database import Database
from mstore.errors import MstoreError
from mstore.layout import Layout, Tensor
from mstore.objects import SegmentChunks, Snapshot
from mstore.relatives import Relatives
from mstore.similar import sketch
from mstore.sketches import ROW_DTYPE, Rows
from mstore.sources import Source

_SKETCHES_OF_RELATIVES = 8


class BaseFinder:
    """Finds what the tensors of new files may be coded against. From one thread."""

    def __init__(self, db: Database, snapshots: Sequence[Snapshot]) -> None:
        """`snapshots` are the versions to look in, the most likely first."""
        self.db = db
        self._snapshots = snapshots
        self._relatives = Relatives(db)
        self._everywhere: dict[str, list[SegmentChunks]] | None = None
        self._sketches: dict[str, Rows] = {}

    def find(
        self, path: str, source: Source, layout: Layout, chunk_size: int
    ) -> list[SegmentChunks | None]:
        """For each segment of the file the stored tensor it most likely comes from, if any.

        It is cut into pieces of as many numbers as the segment will be. What the search for
        similar tensors cannot read is passed over: it is not needed to store the file.
        """
        if not any(segment.tensor for segment in layout.segments):
            return [None] * len(layout.segments)
        here = self._named_at(path)
        bases: list[SegmentChunks | None] = []
        wanted = []
        for number, segment in enumerate(layout.segments):
            found = None
            if (tensor := segment.tensor) is not None and segment.length:
                found = self._by_name(here, tensor, piece_size(tensor.dtype, chunk_size))
                if found is None:
                    wanted.append(number)
            bases.append(found)
        if wanted:
            with suppress(MstoreError):
                sketches = sketch(source, layout, wanted)
                self._sketches[path] = sketches
                similar, same = self._relatives.find(source, layout, chunk_size, wanted, sketches)
                self._sketches[path] = _worth_keeping(sketches, layout, set(similar), same)
                for number, base in similar.items():
                    bases[number] = base
        return bases

    def sketches(self, path: str) -> Rows:
        """The sketches to keep of the file that was asked for at `path`; once."""
        return self._sketches.pop(path, np.empty(0, ROW_DTYPE))

    def _by_name(
        self, here: Sequence[dict[str, SegmentChunks]], tensor: Tensor, piece: int
    ) -> SegmentChunks | None:
        """The tensor of that name in the same file of a version before, or else in any file."""
        candidates = [named[tensor.name] for named in here if tensor.name in named]
        for segment in candidates:
            if can_be_base(segment, tensor, piece):
                return segment
        if not tensor.name:
            return None
        if self._everywhere is None:
            self._everywhere = self._named_everywhere()
        for segment in self._everywhere.get(tensor.name, ()):
            if can_be_base(segment, tensor, piece):
                return segment
        return None

    def _named_at(self, path: str) -> list[dict[str, SegmentChunks]]:
        """The tensors of the file at `path` by name, in each version that has it."""
        entries = [snapshot.files.get(path) for snapshot in self._snapshots]
        return [
            {tensor.name: segment for tensor, segment in self.db.manifest(entry.manifest).tensors()}
            for entry in entries
            if entry is not None
        ]

    def _named_everywhere(self) -> dict[str, list[SegmentChunks]]:
        """Every tensor of the versions, by name; those of the most likely version first."""
        named: dict[str, list[SegmentChunks]] = {}
        for snapshot in self._snapshots:
            for entry in snapshot.files.values():
                for tensor, segment in self.db.manifest(entry.manifest).tensors():
                    named.setdefault(tensor.name, []).append(segment)
        return named


def _worth_keeping(sketches: Rows, layout: Layout, similar: set[int], same: set[int]) -> Rows:
    """The sketches of tensors that are like no stored one, and a few of those that are.

    These few, of the largest, are enough to find this file by, when what it is like is gone or it
    is nearer to a third. Of values that are stored already there is a sketch.
    """
    segments = sketches["segment"].tolist()
    related = sorted(similar & set(segments), key=lambda number: -layout.segments[number].length)
    kept = (set(segments) - similar) | set(related[:_SKETCHES_OF_RELATIVES])
    return sketches[[number in kept and number not in same for number in segments]]
