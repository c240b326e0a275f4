"""How to go through the elements of a tensor that does not fit in memory: box by box.

A box has a range of places along each axis. Elements that lie one after the other should be in one
box, for whoever reads them and for whoever writes them or reads others to compare with. Where two
orders contradict each other, as row- and column-major do, a box is a compromise: so much of both
axes that either reads or writes runs of some length.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from math import inf, prod

Box = tuple[range, ...]
"""Places along each axis, one after the other."""


@dataclass(frozen=True, slots=True)
class Way:
    """How elements lie: along the first of `axes` farthest apart, along the last as neighbours.

    `unit` is how many elements in a row are worth to be had at once. `tile` are the extents of a
    box that should not be cut.
    """

    axes: tuple[int, ...]
    unit: int
    tile: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Sweep:
    """All elements of a tensor of `shape` in boxes with the extents `box`, in the order of `axes`.

    `axes` are the axes from the outermost to the innermost, as in nested loops over the boxes.
    """

    shape: tuple[int, ...]
    box: tuple[int, ...]
    axes: tuple[int, ...]

    def boxes(self) -> Iterator[Box]:
        """Each element is in one of them; they are smaller at the upper ends of the axes."""
        loops = [
            [range(at, min(at + self.box[axis], self.shape[axis])) for at in self._starts(axis)]
            for axis in self.axes
        ]
        back = [self.axes.index(axis) for axis in range(len(self.axes))]
        for ranges in product(*loops):
            yield tuple(ranges[place] for place in back)

    @property
    def is_in_order(self) -> bool:
        """Whether all elements come in the order of `axes`, across boxes as within each."""
        cut = [self.box[axis] < self.shape[axis] for axis in self.axes]
        last = len(cut) - cut[::-1].index(True) if True in cut else 0
        return all(self.box[axis] == 1 for axis in self.axes[: max(0, last - 1)])

    def _starts(self, axis: int) -> range:
        return range(0, self.shape[axis], self.box[axis])


def sweep(shape: Sequence[int], ways: Sequence[Way], room: int) -> Sweep:
    """Boxes of at most `room` elements, at least one, that are long in each of `ways`.

    They come in the order of the first way. Of one way with tiles of one element they are as much
    as there is room for, in the order in which the elements lie.
    """
    extents = tuple(shape)
    tiles = zip(*(way.tile for way in ways), strict=True)
    least = [max(1, min(most, max(sizes))) for most, sizes in zip(extents, tiles, strict=True)]
    if prod(least) > room:
        least = [1] * len(extents)
    box = list(least)
    while (axis := _next_axis(extents, box, ways)) is not None:
        fits = room * box[axis] // prod(box) // least[axis] * least[axis]
        extent = min(2 * box[axis], fits, extents[axis])
        if extent <= box[axis]:
            break
        box[axis] = extent
    return Sweep(extents, tuple(box), ways[0].axes)


def _next_axis(shape: Sequence[int], box: Sequence[int], ways: Sequence[Way]) -> int | None:
    """The axis that makes longer the runs of the way that has the shortest, in its units.

    None when all boxes are one.
    """
    found = []
    for way in ways:
        run = 1
        for axis in reversed(way.axes):
            run *= box[axis]
            if box[axis] < shape[axis]:
                found.append((run / way.unit, axis))
                break
    return min(found)[1] if found else None


def by_distance(shape: Sequence[int], strides: Sequence[int]) -> tuple[int, ...]:
    """The axes by how far apart elements lie along them, the farthest first.

    Those of one place or none come before all others.
    """

    def distance(axis: int) -> float:
        return strides[axis] if shape[axis] > 1 else inf

    return tuple(sorted(range(len(shape)), key=distance, reverse=True))
