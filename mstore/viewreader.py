"""The elements of tensors that are no segment of their own: strides, tiles, and recoded bytes."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise, product
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

_Range = tuple[int, int]

_WINDOW = 4 << 20


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
        start, length = _span(place, picked, itemsize)
        (raw,) = self._bytes.read_ranges([(start, length)])
        first, steps = place.offset - start, []
        for one, stride in zip(picked, place.strides, strict=True):
            first += one[0] * stride
            steps.append(one.step * stride)
        counts = [len(one) for one in picked]
        return np.ndarray(counts, _unit(itemsize), raw, first, steps).copy()

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


def _span(place: Strided, picked: Sequence[range], itemsize: int) -> _Range:
    """The byte range from the first to the last of the elements, of which there is one at least."""
    low = high = place.offset
    for one, stride in zip(picked, place.strides, strict=True):
        low += min(one[0], one[-1]) * stride
        high += max(one[0], one[-1]) * stride
    return low, high + itemsize - low


def _as_slice(one: range) -> slice:
    stop = one.stop if one.stop >= 0 else None
    return slice(one.start, stop, one.step)


def _by_tile(picked: range, step: int) -> list[tuple[int, slice, slice]]:
    """For each tile along one axis that has any of `picked`: its number, where there, where in the
    result."""
    indexes = np.arange(picked.start, picked.stop, picked.step)
    tiles = indexes // step
    edges = [0, *(np.flatnonzero(np.diff(tiles)) + 1).tolist(), len(indexes)]
    parts = []
    for begin, end in pairwise(edges):
        tile = int(tiles[begin])
        low, high = int(indexes[begin]) - tile * step, int(indexes[end - 1]) - tile * step
        stop = high + (1 if picked.step > 0 else -1)
        parts.append(
            (tile, slice(low, stop if stop >= 0 else None, picked.step), slice(begin, end))
        )
    return parts
