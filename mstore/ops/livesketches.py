"""Which sketches outlive a garbage collection: those of manifests that are still reached."""

from collections.abc import Sequence
from dataclasses import dataclass

from mstore.bulkindex import as_ids
from mstore.errors import CorruptDataError, NotFoundError, UnsupportedVersionError
from mstore.ops.marks import Marks
from mstore.root import SketchRef
from mstore.sketches import Files, Rows, Sketches, joined, store_sketches
from mstore.storage.base import Storage


@dataclass(frozen=True, slots=True)
class LiveSketches:
    """The objects that stay as they are, and what is left of the others, to be stored anew."""

    whole: tuple[SketchRef, ...]
    files: Files
    rows: Rows

    @classmethod
    def plan(cls, storage: Storage, refs: Sequence[SketchRef], marks: Marks) -> "LiveSketches":
        """Look through the objects `refs`; what is damaged or gone does not stay.

        `marks` are those of the metadata.
        """
        whole, rest = [], []
        for ref in refs:
            try:
                sketches = Sketches.open(storage, ref)
                sketches.check()
            except (CorruptDataError, NotFoundError):
                continue
            except UnsupportedVersionError:
                # Of what a newer program keeps here, only it can tell what is of use.
                whole.append(ref)
                continue
            live = marks.marked(as_ids(sketches.files["manifest"].tobytes()))
            if live.all():
                whole.append(ref)
            elif live.any():
                rows = sketches.table()
                rest.append((sketches.files, rows[live[rows["file"]]]))
        return cls(tuple(whole), *joined(rest))

    def store(self, storage: Storage) -> tuple[SketchRef, ...]:
        """Store what is left of those that do not stay; all that is to be listed now."""
        if not len(self.rows):
            return self.whole
        return (*self.whole, store_sketches(storage, self.files, self.rows))
