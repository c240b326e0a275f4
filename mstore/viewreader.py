"""The elements of tensors that are no segment of their own: strides, tiles, and recoded bytes."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import islice, product
from math import prod
from types import EllipsisType
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mstore.canonical import pack
from mstore.dtypes import BY_NAME
from mstore.filebytes import FileBytes
from mstore.formats.strides import dense_strides
from mstore.ids import Id, identify_tensor
from mstore.layout import Recoded, Strided, Tiled, View, extents, grid
from mstore.numpy_dtypes import Array, array_from_bytes, bytes_of
from mstore.objects import SegmentChunks
from mstore.recoding import DecodedBytes
from mstore.sweeps import Sweep, by_distance
from mstore.tensorfields import view_to_map

ReadRuns = Callable[[NDArray[np.int64], int], tuple[int, NDArray[np.uint8]]]
"""Gives runs of bytes; see `FileBytes.read_runs`."""

_WINDOW = 8 << 20
"""Bytes of a file that are looked at at once."""

_GAP = 64 << 10
"""Bytes between elements that may be worth leaving out: as many as a small chunk has."""

_MAX_RUNS = 1 << 20
"""Runs of bytes that elements are looked for in; where there are more, all between is read."""


class ViewReader:
    """Reads the elements of a view of the file that `content` has; of use to one thread at a time.

    What is read raises CorruptDataError when a chunk is damaged, FormatError when the file itself
    holds something else than it says. Memory: what is asked for, and some 10 MiB. Parts of recoded
    tensors should be asked for in the order in which they lie, or all before them is decoded again.
    """

    def __init__(self, view: View, content: FileBytes) -> None:
        self._tensor = view.tensor
        self._place = view.place
        self._bytes = content
        self._unit = _unit(view.tensor.dtype.itemsize)
        place = view.place
        self._decoded = DecodedBytes(place, content) if isinstance(place, Recoded) else None

    @property
    def shape(self) -> tuple[int, ...]:
        """The extents of the view."""
        return self._tensor.shape

    @property
    def axes(self) -> tuple[int, ...]:
        """The axes from the one along which elements lie farthest apart to that of neighbours.

        Those of one place or none, along which nothing lies, are the first.
        """
        if isinstance(self._place, Strided):
            return by_distance(self._tensor.shape, self._place.strides)
        shape, order = self._tensor.shape, self._tensor.order
        return by_distance(shape, dense_strides(shape, 1, order))

    @property
    def is_decoded(self) -> bool:
        """Whether any element can only be had by decoding all that lies before it."""
        return self._decoded is not None

    @property
    def tile(self) -> tuple[int, ...]:
        """The extents of what is read whole, along each axis."""
        if isinstance(self._place, Tiled):
            return self._place.tile
        return (1,) * len(self._tensor.shape)

    def whole(self) -> Array:
        """All of it as a new array."""
        return self.part([range(extent) for extent in self._tensor.shape])

    def part(self, picked: Sequence[range]) -> Array:
        """The elements at one range per axis, as a new array, in the order in which they lie."""
        if self._tensor.dtype.bits < 8:
            return self._unpacked()[_as_slices(picked)]
        raw = self.raw([one if one.step > 0 else one[::-1] for one in picked]).transpose(self.axes)
        found = array_from_bytes(bytes_of(raw), self._tensor.dtype, raw.shape)
        turned = [range(len(one))[:: one.step // abs(one.step)] for one in picked]
        return found.transpose(np.argsort(self.axes))[_as_slices(turned)]

    def raw(self, picked: Sequence[range]) -> NDArray[np.void]:
        """The bytes of each element at one range per axis, all rising, as a new array.

        The elements are in memory as they lie: those along the last of `axes` are neighbours.
        """
        place, shape = self._place, self._tensor.shape
        if not all(picked):
            return np.empty([len(one) for one in picked], self._unit)
        if isinstance(place, Strided):
            return self._gather(self._bytes.read_runs, place, picked, self.axes)
        if isinstance(place, Tiled):
            return self._tiled(place, picked)
        assert self._decoded is not None
        strides = dense_strides(shape, self._unit.itemsize, self._tensor.order)
        dense = Strided(place.start, strides)
        return self._gather(self._decoded.read_runs, dense, picked, self.axes)

    def _unpacked(self) -> Array:
        """All elements of a type smaller than a byte."""
        tensor = self._tensor
        reader = ViewReader(as_bytes(View(tensor, self._place)), self._bytes)
        raw = reader.raw([range(tensor.nbytes)])
        return array_from_bytes(bytes_of(raw), tensor.dtype, tensor.shape, tensor.order)

    def _gather(
        self, read: ReadRuns, place: Strided, picked: Sequence[range], axes: tuple[int, ...]
    ) -> NDArray[np.void]:
        """The elements, from windows of the file, each of them small."""
        counts = [len(one) for one in picked]
        steps = [one.step * stride for one, stride in zip(picked, place.strides, strict=True)]
        low = place.offset
        low += sum(one[0] * stride for one, stride in zip(picked, place.strides, strict=True))
        out: NDArray[np.void] = np.empty([counts[axis] for axis in axes], self._unit)
        out = out.transpose(np.argsort(axes))
        for box in _windows(counts, steps, self._unit.itemsize, axes).boxes():
            extents = [len(one) for one in box]
            first = low + sum(one.start * step for one, step in zip(box, steps, strict=True))
            starts, run = _runs(first, extents, steps, self._unit.itemsize)
            begin, raw = read(starts, run)
            found = np.ndarray(extents, self._unit, raw.data, first - begin, steps)
            out[tuple(slice(one.start, one.stop) for one in box)] = found
        return out

    def _tiled(self, place: Tiled, picked: Sequence[range]) -> NDArray[np.void]:
        """The elements, gathered from the tiles that hold any of them."""
        out: NDArray[np.void] = np.empty([len(one) for one in picked], self._unit)
        out[...] = np.frombuffer(place.fill, self._unit)[0]
        length = prod(place.tile) * self._unit.itemsize
        if length > _WINDOW:
            axes = tuple(range(len(place.tile)))
            strides = dense_strides(place.tile, self._unit.itemsize)
            for job in self._jobs(place, picked):
                dense = Strided(job.offset, strides)
                out[job.there] = self._gather(self._bytes.read_runs, dense, job.inside, axes)
            return out
        jobs_left = self._jobs(place, picked)
        while jobs := list(islice(jobs_left, max(1, _WINDOW // length))):
            found = self._bytes.read_ranges([(job.offset, length) for job in jobs])
            for raw, job in zip(found, jobs, strict=True):
                whole = np.frombuffer(raw, self._unit).reshape(place.tile)
                out[job.there] = whole[_as_slices(job.inside)]
        return out

    def _jobs(self, place: Tiled, picked: Sequence[range]) -> Iterator["_Job"]:
        """What to take from each tile that is stored and has any of the elements."""
        along = [_by_tile(one, step) for one, step in zip(picked, place.tile, strict=True)]
        counts = grid(self._tensor.shape, place.tile)
        for parts in product(*along):
            number = 0
            for (tile, _, _), count in zip(parts, counts, strict=True):
                number = number * count + tile
            if (offset := place.offsets[number]) >= 0:
                inside, there = [one for _, one, _ in parts], tuple(one for _, _, one in parts)
                yield _Job(offset, inside, there)


class _Job(NamedTuple):
    """Elements of one tile, which begins at `offset`: where in the tile, where in the result."""

    offset: int
    inside: Sequence[range]
    there: tuple[slice, ...]


def view_id(view: View, chunks: SegmentChunks, starts: Sequence[int]) -> Id:
    """The id of what a view shows: equal ids mean equal tensors.

    It is made of the chunks that hold the view, which begin at `starts` in the file (see
    `FileBytes.chunks`), and of where its elements are in these.
    """
    start = starts[0] if starts else 0
    described = {**view_to_map(View(view.tensor, _from(view.place, start))), "name": ""}
    return identify_tensor(pack([described, [one - start for one in starts], chunks.ids]))


def _from(place: Strided | Tiled | Recoded, start: int) -> Strided | Tiled | Recoded:
    """The place as it is seen from a later start of the file."""
    if isinstance(place, Tiled):
        return replace(place, offsets=tuple(max(at - start, -1) for at in place.offsets))
    return replace(place, offset=max(place.offset - start, 0))


def _unit(itemsize: int) -> "np.dtype[np.void]":
    """numpy cannot stride over every type of ml_dtypes, but over runs of bytes of its size."""
    return np.dtype((np.void, itemsize))


def as_bytes(view: View) -> View:
    """A view of the bytes of one that is no more than one run of these."""
    tensor = replace(view.tensor, dtype=BY_NAME["u8"], shape=(view.tensor.nbytes,), order="C")
    return View(tensor, view.place)


def hull(view: View) -> tuple[int, int]:
    """Where in the file the first byte of a view lies, and where the last one ends."""
    found = extents(view)
    begin = min((offset for offset, _ in found), default=0)
    return begin, max((offset + length for offset, length in found), default=begin)


def _windows(
    counts: Sequence[int], steps: Sequence[int], itemsize: int, axes: tuple[int, ...]
) -> Sweep:
    """Elements that lie `steps` bytes apart, in boxes that lie in _WINDOW bytes each."""
    box = list(counts)
    span = itemsize + sum((n - 1) * step for n, step in zip(counts, steps, strict=True))
    for axis in sorted(range(len(box)), key=lambda axis: steps[axis], reverse=True):
        if span <= _WINDOW:
            break
        inner = span - (box[axis] - 1) * steps[axis]
        box[axis] = 1 + max(0, _WINDOW - inner) // steps[axis]
        span = inner + (box[axis] - 1) * steps[axis]
    return Sweep(tuple(counts), tuple(box), axes)


def _runs(
    low: int, counts: Sequence[int], steps: Sequence[int], itemsize: int
) -> tuple[NDArray[np.int64], int]:
    """Where runs of bytes of one length begin that hold the elements, and that length.

    There is one element at least; the first is at `low`. Elements count to one run unless so much
    lies between them that a chunk may be left out.
    """
    run = itemsize
    starts = np.full(1, low, np.int64)
    for step, count in sorted(zip(steps, counts, strict=True)):
        if count == 1:
            continue
        if step - run < _GAP or len(starts) * count > _MAX_RUNS:
            # What has been taken apart so far is one run again.
            run += int(starts[-1] - low) + (count - 1) * step
            starts = starts[:1]
        else:
            starts = (starts + np.arange(count)[:, None] * step).ravel()
    return starts, run


def _as_slices(picked: Sequence[range]) -> tuple[slice | EllipsisType, ...]:
    # The ellipsis makes an array also of what has no axes.
    stops = (one.stop if one.stop >= 0 else None for one in picked)
    return *(slice(one.start, stop, one.step) for one, stop in zip(picked, stops, strict=True)), ...


def _by_tile(picked: range, step: int) -> list[tuple[int, range, slice]]:
    """For each tile along one axis that has any of `picked`: its number, where there, where in the
    result."""
    parts, begin = [], 0
    while begin < len(picked):
        tile = picked[begin] // step
        low = picked[begin] - tile * step
        # How many more there are up to the end of the tile.
        end = min(begin + (step - 1 - low) // picked.step + 1, len(picked))
        inside = range(low, low + (end - begin) * picked.step, picked.step)
        parts.append((tile, inside, slice(begin, end)))
        begin = end
    return parts
