"""Tensors of stored files in row-major order and little-endian, whatever order their files have.

Where that is how the bytes lie in the repository, they are runs of its chunks, to be copied. Other
tensors are read in parts.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from mstore.dtypes import BY_NAME, DType
from mstore.errors import InvalidInputError
from mstore.filebytes import FileBytes
from mstore.ids import Id
from mstore.layout import Recoded, Strided, Tensor, Tiled, View
from mstore.numpy_dtypes import Array, array_from_bytes, bytes_of, little_endian
from mstore.objects import SegmentChunks
from mstore.viewreader import ViewReader

PART_BYTES = 32 << 20
"""About what is read at once."""


@dataclass(frozen=True, slots=True)
class Lying:
    """A tensor where it lies in a file: its segment, which starts at `offset`, or its view.

    `content` is the bytes of the file.
    """

    tensor: Tensor
    place: SegmentChunks | View
    offset: int
    content: FileBytes


@dataclass(frozen=True, slots=True)
class Run:
    """The `length` bytes from byte `skip` on of a chunk of `chunk` bytes."""

    id: Id
    chunk: int
    skip: int
    length: int


def plain_type(dtype: DType) -> DType:
    """The little-endian type of the same elements."""
    return BY_NAME[dtype.name.removeprefix(">")]


def is_column_major(tensor: Tensor) -> bool:
    """Whether the elements lie in column-major order, and that makes a difference."""
    return tensor.order == "F" and sum(extent > 1 for extent in tensor.shape) > 1


def copied(one: Lying) -> list[Run] | None:
    """The tensor as runs of chunks, in order; None if its elements do not lie so.

    Of a big-endian tensor each run has whole elements.
    """
    tensor, place = one.tensor, one.place
    if isinstance(place, SegmentChunks):
        if is_column_major(tensor):
            return None
        return [Run(identifier, length, 0, length) for identifier, length in place.chunks()]
    where = place.place
    if not isinstance(where, Strided) or tensor.dtype.big_endian or not _is_row_major(place):
        return None
    return _runs(one.content, where.offset, tensor.nbytes)


def parts(one: Lying, size: int = PART_BYTES) -> Iterator[memoryview]:
    """The bytes of the tensor, in order, in parts of about `size` bytes.

    Raises CorruptDataError; FormatError where a file holds something else than it says; and
    InvalidInputError for packed elements in column-major order. Memory: a few times `size`, or
    twice the tensor where any part of it lies all over the rest, as of column-major ones and
    transposed views.
    """
    tensor, place = one.tensor, one.place
    if is_column_major(tensor) and tensor.dtype.bits < 8:
        raise InvalidInputError("packed elements in column-major order cannot be put in another")
    if isinstance(place, SegmentChunks) and not is_column_major(tensor):
        # Whole chunks, so that each is read once.
        yield from _stretch(one, one.offset, max(1, size // place.piece) * place.piece)
    elif isinstance(place, View) and isinstance(place.place, Strided) and _is_row_major(place):
        yield from _stretch(one, place.place.offset, max(1, size // 16) * 16)
    elif isinstance(place, View) and isinstance(place.place, Recoded) and _is_plain(tensor):
        yield from ViewReader(place, one.content).pieces()
    else:
        for array in _arrays(one, size):
            plain = array.astype(little_endian(array.dtype), copy=False)
            yield bytes_of(np.require(plain, requirements="C"))


def _is_plain(tensor: Tensor) -> bool:
    return not is_column_major(tensor) and not tensor.dtype.big_endian


def _is_row_major(view: View) -> bool:
    """Whether the elements of a strided view lie one after the other, in order."""
    assert isinstance(view.place, Strided)
    expected = view.tensor.dtype.itemsize
    for extent, stride in zip(view.tensor.shape[::-1], view.place.strides[::-1], strict=True):
        if extent > 1 and stride != expected:
            return False
        expected *= extent
    return True


def _runs(content: FileBytes, offset: int, length: int) -> list[Run]:
    """The bytes of a file from `offset` on."""
    held, starts = content.chunks([(offset, length)])
    runs = []
    for (identifier, chunk), start in zip(held.chunks(), starts, strict=True):
        skip = max(0, offset - start)
        runs.append(Run(identifier, chunk, skip, min(chunk, offset + length - start) - skip))
    return runs


def _stretch(one: Lying, offset: int, step: int) -> Iterator[memoryview]:
    """The tensor whose elements are the bytes from `offset` on, `step` bytes at a time."""
    dtype, nbytes = one.tensor.dtype, one.tensor.nbytes
    for start in range(0, nbytes, step):
        wanted = (offset + start, min(step, nbytes - start))
        (raw,) = one.content.read_ranges([wanted])
        yield swapped(raw, dtype) if dtype.big_endian else raw


def swapped(raw: memoryview, dtype: DType) -> memoryview:
    """Elements of a type of the other byte order: each of the two parts of complex ones, too."""
    return bytes_of(np.frombuffer(raw, f"u{dtype.word}").byteswap())


def _arrays(one: Lying, size: int) -> Iterator[Array]:
    """The tensor as arrays, one after the other in row-major order."""
    tensor, place = one.tensor, one.place
    if isinstance(place, View) and tensor.nbytes > size and (step := _step(place, size)):
        reader, rest = ViewReader(place, one.content), [range(n) for n in tensor.shape[1:]]
        for start in range(0, tensor.shape[0], step):
            yield reader.part([range(start, min(start + step, tensor.shape[0])), *rest])
        return
    if isinstance(place, View):
        whole = ViewReader(place, one.content).whole()
    else:
        (raw,) = one.content.read_ranges([(one.offset, tensor.nbytes)])
        whole = array_from_bytes(raw, tensor.dtype, tensor.shape, tensor.order)
    if whole.flags.c_contiguous:
        yield whole
        return
    # In parts nevertheless, so that only parts of it are there twice.
    step = max(1, size // _row_bytes(tensor))
    for start in range(0, tensor.shape[0], step):
        yield whole[start : start + step]


def _row_bytes(tensor: Tensor) -> int:
    """Bytes of one place along the first axis, at least 1."""
    return max(1, tensor.dtype.nbytes(tensor.shape[1:]))


def _step(view: View, size: int) -> int:
    """How many rows of a large view to read at once; 0 if all of it must be read for any."""
    tensor, where = view.tensor, view.place
    if not tensor.shape or isinstance(where, Recoded):
        return 0
    row = _row_bytes(tensor)
    rows = max(1, size // row)
    if isinstance(where, Tiled):
        # Whole rows of tiles, so that each tile is read once.
        return max(1, rows // where.tile[0]) * where.tile[0]
    steps = zip((rows, *tensor.shape[1:]), where.strides, strict=True)
    span = sum((extent - 1) * stride for extent, stride in steps) + tensor.dtype.itemsize
    return rows if span <= max(size, 2 * rows * row) else 0
