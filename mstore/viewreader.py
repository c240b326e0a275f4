"""The elements of tensors that are no segment of their own: strides, tiles, and recoded bytes."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import product
from math import prod
from types import EllipsisType

import numpy as np
from numpy.typing import NDArray

from mstore.canonical import pack
from mstore.filebytes import FileBytes
from mstore.ids import Id, identify_tensor
from mstore.layout import Recoded, Strided, Tiled, View, extents, grid
from mstore.numpy_dtypes import Array, array_from_bytes, bytes_of, numpy_dtype
from mstore.recoding import decode
from mstore.tensorfields import view_to_map

_WINDOW = 4 << 20

_GAP = 64 << 10
"""Bytes between elements that may be worth leaving out: as many as a small chunk has."""

_MAX_RUNS = 1 << 20
"""Runs of bytes that elements are looked for in; where there are more, all between is read."""


class ViewReader:
    """Reads the elements of a view of the file that `content` has.

    What is read raises CorruptDataError when a chunk is damaged, FormatError when the file itself
    holds something else than it says.
    """

    def __init__(self, view: View, content: FileBytes) -> None:
        self._tensor = view.tensor
        self._place = view.place
        self._bytes = content

    def whole(self) -> Array:
        """All of it as a new array."""
        return self.part([range(extent) for extent in self._tensor.shape])

    def part(self, picked: Sequence[range]) -> Array:
        """The elements at one range per axis, as a new array."""
        place, counts = self._place, [len(one) for one in picked]
        if isinstance(place, Recoded):
            # The ellipsis makes an array also of what has no axes.
            index: tuple[slice | EllipsisType, ...] = (*map(_as_slice, picked), ...)
            return self._decoded()[index]
        if 0 in counts:
            return np.empty(counts, numpy_dtype(self._tensor.dtype))
        if isinstance(place, Strided):
            part = self._strided(place, picked)
        else:
            part = self._tiled(place, picked)
        return array_from_bytes(bytes_of(part), self._tensor.dtype, counts)

    def pieces(self) -> Iterator[memoryview]:
        """The bytes of a recoded tensor, in its own order, a piece at a time."""
        place, nbytes = self._place, self._tensor.nbytes
        assert isinstance(place, Recoded)
        at = -place.start
        for piece in decode(place.code, self._windows(place), place.size):
            begin, end = max(at, 0), min(at + len(piece), nbytes)
            if begin < end:
                yield memoryview(piece)[begin - at : end - at]
            at += len(piece)

    def _decoded(self) -> Array:
        tensor, at = self._tensor, 0
        out: NDArray[np.uint8] = np.empty(tensor.nbytes, np.uint8)
        for piece in self.pieces():
            out[at : at + len(piece)] = np.frombuffer(piece, np.uint8)
            at += len(piece)
        return array_from_bytes(out.data, tensor.dtype, tensor.shape, tensor.order)

    def _windows(self, place: Recoded) -> Iterator[bytes]:
        end = place.offset + place.length
        for offset in range(place.offset, end, _WINDOW):
            yield self._bytes.read(offset, min(_WINDOW, end - offset))

    def _strided(self, place: Strided, picked: Sequence[range]) -> NDArray[np.void]:
        itemsize = self._tensor.dtype.itemsize
        starts, run = _runs(place, picked, itemsize)
        begin, raw = self._bytes.read_runs(starts, run)
        first, steps = place.offset - begin, []
        for one, stride in zip(picked, place.strides, strict=True):
            first += one[0] * stride
            steps.append(one.step * stride)
        counts = [len(one) for one in picked]
        return np.ndarray(counts, _unit(itemsize), raw.data, first, steps).copy()

    def _tiled(self, place: Tiled, picked: Sequence[range]) -> NDArray[np.void]:
        """The elements, gathered from the tiles that hold any of them."""
        unit = _unit(self._tensor.dtype.itemsize)
        out: NDArray[np.void] = np.empty([len(one) for one in picked], unit)
        out[...] = np.frombuffer(place.fill, unit)[0]
        along = [_by_tile(one, step) for one, step in zip(picked, place.tile, strict=True)]
        counts = grid(self._tensor.shape, place.tile)
        jobs = []
        for parts in product(*along):
            number = 0
            for (tile, _, _), count in zip(parts, counts, strict=True):
                number = number * count + tile
            if (offset := place.offsets[number]) >= 0:
                jobs.append((offset, parts))
        length = prod(place.tile) * unit.itemsize
        found = self._bytes.read_ranges([(offset, length) for offset, _ in jobs])
        for raw, (_, parts) in zip(found, jobs, strict=True):
            whole = np.frombuffer(raw, unit).reshape(place.tile)
            inside = tuple(part for _, part, _ in parts)
            out[tuple(there for _, _, there in parts)] = whole[inside]
        return out


def view_id(view: View, content: FileBytes) -> Id:
    """The id of what a view shows: equal ids mean equal tensors.

    It is made of the chunks that hold the view, and of where its elements are in these.
    """
    chunks, starts = content.chunks(extents(view))
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


def _runs(place: Strided, picked: Sequence[range], itemsize: int) -> tuple[NDArray[np.int64], int]:
    """Where runs of bytes of one length begin that hold the elements, and that length.

    There is one element at least. Elements count to one run unless so much lies between them that
    a chunk may be left out.
    """
    low, run = place.offset, itemsize
    axes = []
    for one, stride in zip(picked, place.strides, strict=True):
        low += min(one[0], one[-1]) * stride
        if len(one) > 1:
            axes.append((abs(one.step) * stride, len(one)))
    starts = np.full(1, low, np.int64)
    for step, count in sorted(axes):
        if step - run < _GAP or len(starts) * count > _MAX_RUNS:
            # What has been taken apart so far is one run again.
            run += int(starts[-1] - low) + (count - 1) * step
            starts = starts[:1]
        else:
            starts = (starts + np.arange(count)[:, None] * step).ravel()
    return starts, run


def _as_slice(one: range) -> slice:
    stop = one.stop if one.stop >= 0 else None
    return slice(one.start, stop, one.step)


def _by_tile(picked: range, step: int) -> list[tuple[int, slice, slice]]:
    """For each tile along one axis that has any of `picked`: its number, where there, where in the
    result."""
    parts, begin = [], 0
    while begin < len(picked):
        tile = picked[begin] // step
        low = picked[begin] - tile * step
        # How many more there are up to the end of the tile that lies in the direction of the steps.
        room = step - 1 - low if picked.step > 0 else low
        end = min(begin + room // abs(picked.step) + 1, len(picked))
        stop = low + (end - begin) * picked.step
        there = slice(low, stop if stop >= 0 else None, picked.step)
        parts.append((tile, there, slice(begin, end)))
        begin = end
    return parts
