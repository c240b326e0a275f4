"""Stored tensors in row-major order and little-endian, whatever order their files have.

Where that is how the bytes lie in the repository, they are runs of its chunks, to be copied. Other
tensors are read in parts.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from mstore.filebytes import StoredBytes
from mstore.ids import Id
from mstore.layout import Strided, Tensor, Tiled, View
from mstore.numpy_dtypes import Array, bytes_of, little_endian
from mstore.objects import SegmentChunks

_PART_BYTES = 32 << 20
"""About what is read at once."""


class Elements(Protocol):
    """Reads a tensor, whole or in part, as numpy arrays."""

    def numpy(self) -> Array:
        """All of it."""
        ...

    def __getitem__(self, index: tuple[int | slice, ...]) -> Any:
        """What the index gives of the array."""
        ...


@dataclass(frozen=True, slots=True)
class Exportable:
    """A tensor of the file at `path` of a version.

    `place` is its segment or view there, `content` the bytes of the file, and `elements` reads it.
    """

    path: str
    tensor: Tensor
    place: SegmentChunks | View
    content: StoredBytes
    elements: Elements

    @property
    def name(self) -> str:
        """What it is called; the only tensor of a `.npy` file is called after the file."""
        return self.tensor.name or self.path.removesuffix(".npy")

    @property
    def names(self) -> tuple[str, str]:
        """What it may be asked for by."""
        return self.tensor.name or self.path, f"{self.path}:{self.tensor.name}"


@dataclass(frozen=True, slots=True)
class Run:
    """The `length` bytes from byte `skip` on of a chunk of `chunk` bytes."""

    id: Id
    chunk: int
    skip: int
    length: int


def copied(one: Exportable) -> list[Run] | None:
    """The tensor as runs of chunks, in order; None if its elements do not lie so.

    Of a big-endian tensor each run has whole elements.
    """
    tensor, place = one.tensor, one.place
    if isinstance(place, SegmentChunks):
        if tensor.order == "F" and _axes(tensor.shape) > 1:
            return None
        return [Run(identifier, length, 0, length) for identifier, length in place.chunks()]
    where = place.place
    if not isinstance(where, Strided) or tensor.dtype.big_endian or not _is_row_major(place):
        return None
    return _runs(one.content, where.offset, tensor.nbytes)


def parts(one: Exportable) -> Iterator[memoryview]:
    """The bytes of the tensor, in order and in parts of some rows where that is of use.

    Raises CorruptDataError. Memory: a few times 32 MiB, or twice the tensor where any part of it
    lies all over the rest: column-major ones, transposed views, and those that are packed.
    """
    for array in _arrays(one):
        plain = array.astype(little_endian(array.dtype), copy=False)
        yield bytes_of(np.require(plain, requirements="C"))


def _axes(shape: Sequence[int]) -> int:
    """How many axes matter for the order of elements."""
    return sum(extent > 1 for extent in shape)


def _is_row_major(view: View) -> bool:
    """Whether the elements of a strided view lie one after the other, in order."""
    assert isinstance(view.place, Strided)
    expected = view.tensor.dtype.itemsize
    for extent, stride in zip(view.tensor.shape[::-1], view.place.strides[::-1], strict=True):
        if extent > 1 and stride != expected:
            return False
        expected *= extent
    return True


def _runs(content: StoredBytes, offset: int, length: int) -> list[Run]:
    """The bytes of a file from `offset` on."""
    held, starts = content.chunks([(offset, length)])
    runs = []
    for (identifier, chunk), start in zip(held.chunks(), starts, strict=True):
        skip = max(0, offset - start)
        runs.append(Run(identifier, chunk, skip, min(chunk, offset + length - start) - skip))
    return runs


def _arrays(one: Exportable) -> Iterator[Array]:
    """The tensor as arrays, one after the other in row-major order."""
    shape = one.tensor.shape
    if shape and one.tensor.nbytes > _PART_BYTES and (step := _step(one)):
        for start in range(0, shape[0], step):
            yield one.elements[(slice(start, start + step),)]
        return
    whole = one.elements.numpy()
    if whole.flags.c_contiguous:
        yield whole
        return
    # In parts nevertheless, so that only parts of it are there twice.
    step = max(1, _PART_BYTES // _row_bytes(one.tensor))
    for start in range(0, shape[0], step):
        yield whole[start : start + step]


def _row_bytes(tensor: Tensor) -> int:
    """Bytes of one place along the first axis, at least 1."""
    return max(1, tensor.dtype.nbytes(tensor.shape[1:]))


def _step(one: Exportable) -> int:
    """How many rows to read at once of a large tensor; 0 if all of it must be read for any."""
    tensor, place = one.tensor, one.place
    if isinstance(place, SegmentChunks):
        return 0
    where, row = place.place, _row_bytes(tensor)
    rows = max(1, _PART_BYTES // row)
    if isinstance(where, Tiled):
        # Whole rows of tiles, so that each tile is read once.
        return max(1, rows // where.tile[0]) * where.tile[0]
    if isinstance(where, Strided):
        steps = zip((rows, *tensor.shape[1:]), where.strides, strict=True)
        span = sum((extent - 1) * stride for extent, stride in steps) + tensor.dtype.itemsize
        return rows if span <= max(_PART_BYTES, 2 * rows * row) else 0
    return 0
