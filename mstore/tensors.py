"""Tensors of stored files, read on demand: `tensor[10:20]` reads only the chunks it needs."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from math import prod
from types import EllipsisType
from typing import Any, cast

import numpy as np
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray

from mstore.bulkindex import as_ids
from mstore.chunkreader import ChunkReader, ManySink, MemorySink, Wanted
from mstore.distinct import distinct
from mstore.layout import Tensor
from mstore.numpy_dtypes import Array, NumpyDType, array_from_bytes, dtype_of, numpy_dtype
from mstore.objects import SegmentChunks
from mstore.ops.coded import Coding, codings

Index = int | slice | EllipsisType | None | Sequence[int] | NDArray[Any]
"""What a tensor may be indexed with, as a numpy array is; or a tuple of these."""


_BASIC = (int, np.integer, slice, EllipsisType)


class TensorView(ABC):
    """One tensor of one file of one version. Nothing is read until asked for.

    `name` is its name in the file, `path` the file; `nbytes` counts the bytes of its data.
    """

    def __init__(self, path: str, tensor: Tensor, reader: ChunkReader) -> None:
        self.path = path
        self._tensor = tensor
        self._reader = reader

    @property
    def name(self) -> str:
        """The name in the file; empty for the only tensor of a `.npy` file."""
        return self._tensor.name

    @property
    def dtype(self) -> NumpyDType:
        """The numpy type of the elements; those of ml_dtypes for bfloat16, float8 and the like."""
        return numpy_dtype(self._tensor.dtype)

    @property
    def kind(self) -> str:
        """What the elements are in the words of the file's format, such as `q4_k`; mostly empty."""
        return self._tensor.kind

    @property
    def shape(self) -> tuple[int, ...]:
        """The extents of the axes."""
        return self._tensor.shape

    @property
    def ndim(self) -> int:
        """The number of axes."""
        return len(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the data."""
        return self._tensor.nbytes

    @property
    @abstractmethod
    def id(self) -> str:
        """The id of the content, 64 hexadecimal digits: equal ids mean equal tensors."""

    @property
    def stored(self) -> int:
        """Bytes that its chunks take in the repository, also where other versions share them."""
        return self._coding.stored

    @property
    def depth(self) -> int:
        """How many chunks are decoded one after the other before the deepest of its own."""
        return self._coding.depth

    @property
    def _coding(self) -> Coding:
        (coding,) = codings(self._reader.db, [self._chunks()])
        return coding

    @abstractmethod
    def _chunks(self) -> SegmentChunks:
        """The chunks that hold its data, and perhaps more."""

    @abstractmethod
    def numpy(self) -> Array:
        """The whole tensor as a new array.

        Raises CorruptDataError when a chunk is damaged, FormatError when a tensor that the file
        holds compressed or in text is not what the file says.
        """

    def __array__(self, dtype: NumpyDType | None = None, copy: bool | None = None) -> Array:
        if copy is False:
            raise ValueError("a stored tensor can only be given as a copy")
        array = self.numpy()
        return array if dtype is None else array.astype(dtype, copy=False)

    def __getitem__(self, index: Index | tuple[Index, ...]) -> Any:
        """Part of the tensor, as the same index gives of the array; reads only what it needs."""
        if (ranges := self._as_ranges(index)) is None:
            return self.numpy()[index]
        picked, dropped = ranges
        part = self._part(picked)
        return part[tuple(0 if drop else slice(None) for drop in dropped)]

    @abstractmethod
    def _part(self, picked: Sequence[range]) -> Array:
        """The elements at one range per axis, as a new array."""

    def __len__(self) -> int:
        if not self.shape:
            raise TypeError("a tensor of no axes has no length")
        return self.shape[0]

    def __repr__(self) -> str:
        return f"<Tensor {self.name or self.path} {self._tensor.dtype}{list(self.shape)}>"

    def _as_ranges(self, index: Index | tuple[Index, ...]) -> tuple[list[range], list[bool]] | None:
        """The elements asked for, as one range per axis, and which axes an integer drops.

        None when the index is not made of integers, slices and an ellipsis. Raises IndexError.
        """
        items = list(index) if isinstance(index, tuple) else [index]
        if not all(isinstance(item, _BASIC) and not isinstance(item, bool) for item in items):
            return None
        ellipses = [at for at, item in enumerate(items) if item is Ellipsis]
        if len(ellipses) > 1 or len(items) - len(ellipses) > self.ndim:
            raise IndexError(f"too many indices for a tensor of {self.ndim} axes")
        at = ellipses[0] if ellipses else len(items)
        missing = self.ndim - (len(items) - len(ellipses))
        items[at : at + len(ellipses)] = [slice(None)] * missing
        picked, dropped = [], []
        for item, extent in zip(items, self.shape, strict=True):
            if isinstance(item, slice):
                found = range(extent)[item]
                # The step behind the last element may be of any size.
                picked.append(
                    found if len(found) > 1 else range(found.start, found.start + len(found))
                )
            else:
                picked.append(range(one := range(extent)[cast(int, item)], one + 1))
            dropped.append(not isinstance(item, slice))
        return picked, dropped


class SegmentTensor(TensorView):
    """A tensor that is a run of bytes of its file, in chunks of its own."""

    def __init__(self, path: str, segment: SegmentChunks, reader: ChunkReader) -> None:
        assert segment.tensor is not None
        super().__init__(path, segment.tensor, reader)
        self._segment = segment

    @property
    def id(self) -> str:
        """The id of the content, 64 hexadecimal digits: equal ids mean equal tensors."""
        assert self._segment.tensor_id is not None
        return self._segment.tensor_id.hex()

    def _chunks(self) -> SegmentChunks:
        return self._segment

    def numpy(self) -> Array:
        """The whole tensor as a new array. Raises CorruptDataError when a chunk is damaged."""
        (array,) = read_segments([self])
        return array

    def __getitem__(self, index: Index | tuple[Index, ...]) -> Any:
        """Part of the tensor, as the same index gives of the array; reads only what it needs."""
        if not self._lies_as_in_numpy():
            return self.numpy()[index]
        if isinstance(index, list | np.ndarray) and self._tensor.order == "C" and self.shape:
            rows = np.asarray(index, None if len(index) else np.int64)
            if rows.ndim == 1 and rows.dtype.kind in "iub":
                return self._read_rows(rows)
        return super().__getitem__(index)

    def _part(self, picked: Sequence[range]) -> Array:
        if self._tensor.order == "F":
            return self._read_part(picked[::-1], self.shape[::-1]).transpose()
        return self._read_part(picked, self.shape)

    def _lies_as_in_numpy(self) -> bool:
        """Whether an element takes the same bytes in the file as in an array."""
        return dtype_of(self.dtype) is self._tensor.dtype

    def _read_part(self, picked: Sequence[range], shape: Sequence[int]) -> Array:
        """The elements at `picked` of a row-major tensor of `shape`, as a new array."""
        dtype = self.dtype
        counts = [len(one) for one in picked]
        if 0 in counts:
            return np.empty(counts, dtype)
        strides = [dtype.itemsize * prod(shape[axis + 1 :]) for axis in range(len(shape))]
        first = sum(one[0] * stride for one, stride in zip(picked, strides, strict=True))
        low = sum(
            min(one[0], one[-1]) * stride for one, stride in zip(picked, strides, strict=True)
        )
        touched = _chunks_touched(picked, strides, self.nbytes, self._segment.piece)
        start = int(touched[0]) * self._segment.piece
        raw = self._read_chunks(start, touched)[low - start :]
        steps = [one.step * stride for one, stride in zip(picked, strides, strict=True)]
        # numpy cannot stride over every type of ml_dtypes, but over runs of bytes of its size.
        unit = np.dtype((np.void, dtype.itemsize))
        elements = raw[: len(raw) // dtype.itemsize * dtype.itemsize].view(unit)
        part = as_strided(elements[(first - low) // dtype.itemsize :], counts, steps).copy()
        found: Array = part.view(dtype)
        return found

    def _read_rows(self, index: NDArray[Any]) -> Array:
        """The rows at an array of integers or of booleans along the first axis."""
        shape = self.shape
        rows: NDArray[np.int64] = np.arange(shape[0] if shape else 0)[index]
        row_bytes = self.nbytes // shape[0] if self.nbytes else 0
        if not row_bytes or not rows.size:
            empty: Array = np.empty(shape, self.dtype)[index]
            return empty
        first = distinct(rows) * row_bytes
        touched = np.zeros(self._segment.count + 1, np.int64)
        np.add.at(touched, first // self._segment.piece, 1)
        np.add.at(touched, (first + row_bytes - 1) // self._segment.piece + 1, -1)
        raw = self._read_chunks(0, np.flatnonzero(np.cumsum(touched)), whole=True)
        picked: Array = raw.view(self.dtype).reshape(shape)[index]
        return picked

    def _read_chunks(
        self, start: int, numbers: NDArray[np.int64], *, whole: bool = False
    ) -> NDArray[np.uint8]:
        """The data from byte `start` to the end of the last chunk (or to its own end if `whole`).

        Only chunks `numbers` are filled in, and only their pages are ever touched, so that the
        holes between them cost no memory.
        """
        piece = self._segment.piece
        stop = self.nbytes
        if not whole and len(numbers):
            stop = min(stop, (int(numbers[-1]) + 1) * piece)
        out = np.empty(stop - start, np.uint8)
        starts = numbers * piece
        lengths = np.minimum(piece, self.nbytes - starts)
        wanted = Wanted(as_ids(self._segment.ids)[numbers], starts - start, lengths)
        self._reader.read(wanted, MemorySink(out.data))
        return out


def read_segments(tensors: Sequence[SegmentTensor]) -> list[Array]:
    """All of these tensors of one repository as new arrays, read together in pack order."""
    outs = [np.empty(tensor.nbytes, np.uint8) for tensor in tensors]
    segments = [tensor._segment for tensor in tensors]
    ends = np.cumsum([tensor.nbytes for tensor in tensors], dtype=np.int64)
    parts: list[tuple[NDArray[np.int64], NDArray[np.int64]]] = []
    for segment, end in zip(segments, ends, strict=True):
        starts = np.arange(segment.count, dtype=np.int64) * segment.piece
        lengths = np.minimum(segment.piece, segment.length - starts)
        parts.append((starts + (end - segment.length), lengths))
    if tensors:
        ids = as_ids(b"".join(segment.ids for segment in segments))
        positions, lengths = (np.concatenate(column) for column in zip(*parts, strict=True))
        wanted = Wanted(ids, positions, lengths)
        tensors[0]._reader.read(wanted, ManySink([out.data for out in outs]))
    return [
        array_from_bytes(out.data, one._tensor.dtype, one.shape, one._tensor.order)
        for out, one in zip(outs, tensors, strict=True)
    ]


def _chunks_touched(
    picked: Sequence[range], strides: Sequence[int], nbytes: int, piece: int
) -> NDArray[np.int64]:
    """The numbers of the chunks that hold any of the elements at `picked`, ascending.

    `picked` has one range for each axis of a row-major tensor of `nbytes` bytes. Trailing axes
    that are taken whole, and the one before them where its step is 1, are runs of neighbouring
    bytes; what is touched is every chunk between the first and the last byte of a run.
    """
    lengths = [nbytes, *strides]
    axes = len(strides)
    while axes and len(picked[axes - 1]) * lengths[axes] == lengths[axes - 1]:
        axes -= 1
    starts, run = np.zeros(1, np.int64), lengths[axes]
    if axes and picked[axes - 1].step == 1:
        axes -= 1
        starts += picked[axes][0] * strides[axes]
        run = len(picked[axes]) * strides[axes]
    for one, stride in zip(picked[:axes], strides[:axes], strict=True):
        starts = (starts[:, None] + np.array(one, np.int64) * stride).ravel()
    first, last = starts // piece, (starts + run - 1) // piece
    touched = np.zeros(-(-nbytes // piece) + 1, np.int64)
    np.add.at(touched, first, 1)
    np.add.at(touched, last + 1, -1)
    return np.flatnonzero(np.cumsum(touched))
