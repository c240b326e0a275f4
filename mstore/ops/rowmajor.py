"""Tensors of stored files in row-major order and little-endian, whatever order their files have.

Where that is how the bytes lie in the repository, they are runs of its chunks, to be copied. Other
tensors are read box by box, so that memory is bounded for tensors of any size.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import prod

import numpy as np
from numpy.typing import NDArray

from mstore.dtypes import BY_NAME, DType
from mstore.errors import InvalidInputError
from mstore.filebytes import FileBytes, Reach
from mstore.formats.strides import dense_strides
from mstore.ids import Id
from mstore.layout import Strided, Tensor, View
from mstore.numpy_dtypes import bytes_of
from mstore.objects import SegmentChunks
from mstore.sweeps import Box, Sweep, Way, by_distance, sweep
from mstore.viewreader import ViewReader, as_bytes, hull

BOX_BYTES = 128 << 20
"""What is read at once where elements lie in another order than they are wanted in."""

PART_BYTES = 16 << 20
"""What is read at once where they lie in the order that they are wanted in."""

_READ_BYTES = 1 << 20
"""Bytes of a file that are about as cheap to read as fewer of them: those of a chunk."""

_WRITE_BYTES = 4 << 10
"""Bytes that are about as cheap to write to a file as fewer of them."""

_PIECE = 2 << 20
"""Bytes brought into another order at once."""

_ROWS, _COLUMNS = 256, 64

Elements = NDArray[np.void]
"""The bytes of each element."""


@dataclass(frozen=True, slots=True)
class Lying:
    """A tensor where it lies in a file: its segment, which starts at `offset`, or its view.

    `content` is the bytes of the file.
    """

    tensor: Tensor
    place: SegmentChunks | View
    offset: int
    content: FileBytes

    @property
    def reach(self) -> Reach:
        """The bytes of the file from the first to the last element."""
        if isinstance(self.place, View):
            return Reach(self.content, *hull(self.place))
        return Reach(self.content, self.offset, self.offset + self.place.length)

    def read_from(self, content: FileBytes) -> "Lying":
        """The same tensor, to be read from what has the same bytes."""
        return replace(self, content=content)


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


def parts(one: Lying, order: Sweep | None = None, room: int = BOX_BYTES) -> Iterator[memoryview]:
    """The bytes of the tensor in the order of a sweep, row-major by default, part by part.

    Boxes of the default take `room` bytes at most; a tensor that lies in another order is read
    once for each of them. Raises CorruptDataError; FormatError
    where a file holds something else than it says; and InvalidInputError for packed elements in
    column-major order. Memory: that of a box, and some 10 MiB; more where chunks are as large.
    """
    view = _view(one)
    reader = ViewReader(view, one.content)
    order = order or _row_major(reader, view.tensor.dtype.itemsize, room)
    for box in order.boxes():
        for part in _pieces(reader.raw(box).transpose(order.axes)):
            yield _little(part, one.tensor.dtype)


def placed(one: Lying, room: int = BOX_BYTES) -> Iterator[tuple[int, memoryview]]:
    """Where in the tensor, in row-major order, which bytes belong; in any order.

    Each chunk is read about once, whatever order the file has: columns as they lie, so many of
    them that there is some run of each row. What can only be decoded from its start on and is not
    row-major is decoded once for each box. Raises and takes memory as `parts` does.
    """
    view = _view(one)
    reader, size = ViewReader(view, one.content), view.tensor.dtype.itemsize
    ways = [_way(reader, size), _rows(reader, size)]
    if reader.is_decoded:
        order = _row_major(reader, size, room)
    else:
        order = sweep(reader.shape, ways, _most(ways, size, room))
    for box in order.boxes():
        yield from _by_rows(reader.raw(box), box, reader.shape, one.tensor.dtype)


def common_order(before: Lying, after: Lying, room: int) -> Sweep | None:
    """An order in which to read two tensors of one shape, in boxes of `room` bytes at most.

    That in which both lie, if there is one. None for packed elements, which only lie row-major.
    """
    if before.tensor.dtype.bits < 8 or after.tensor.dtype.bits < 8:
        return None
    readers = [ViewReader(_view(one), one.content) for one in (before, after)]
    # What can only be decoded from its start on is not to be read twice.
    readers.sort(key=lambda reader: not reader.is_decoded)
    size = max(before.tensor.dtype.itemsize, after.tensor.dtype.itemsize)
    ways = [_way(reader, size) for reader in readers]
    most = _most(ways, size, room)
    return sweep(readers[0].shape, ways[:1] if readers[0].is_decoded else ways, most)


def _view(one: Lying) -> View:
    """The tensor as a view, of its bytes where these hold several elements each."""
    tensor, place = one.tensor, one.place
    is_packed = tensor.dtype.bits < 8
    if is_packed and is_column_major(tensor):
        raise InvalidInputError("packed elements in column-major order cannot be put in another")
    if isinstance(place, View):
        return as_bytes(place) if is_packed else place
    if is_packed:
        return as_bytes(View(tensor, Strided(one.offset, (1,))))
    strides = dense_strides(tensor.shape, tensor.dtype.itemsize, tensor.order)
    return View(replace(tensor, order="C"), Strided(one.offset, strides))


def _way(reader: ViewReader, itemsize: int) -> Way:
    """How the elements lie in the file, where chunks are about of _READ_BYTES."""
    return Way(reader.axes, _READ_BYTES // itemsize, reader.tile)


def _rows(reader: ViewReader, itemsize: int) -> Way:
    """How the elements lie in row-major order, written to a file."""
    shape = reader.shape
    return Way(by_distance(shape, dense_strides(shape, 1)), _WRITE_BYTES // itemsize, reader.tile)


def _row_major(reader: ViewReader, itemsize: int, room: int) -> Sweep:
    """As many rows at a time as there is room for; whole rows of tiles if there is for one."""
    way = _rows(reader, itemsize)
    most = _most([_way(reader, itemsize), way], itemsize, room)
    order = sweep(reader.shape, [way], most)
    if order.is_in_order:
        return order
    return sweep(reader.shape, [replace(way, tile=(1,) * len(reader.shape))], most)


def _most(ways: Sequence[Way], itemsize: int, room: int) -> int:
    """How many elements to read at once. More than some gain nothing where all lie in one order."""
    if len({way.axes for way in ways}) == 1:
        room = min(room, PART_BYTES)
    return max(1, room // itemsize)


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


def _by_rows(
    found: Elements, box: Box, shape: Sequence[int], dtype: DType
) -> Iterator[tuple[int, memoryview]]:
    """The elements in a box of a tensor of `shape`, in runs that lie together in row-major order.

    Each with the place of its first byte in the tensor.
    """
    strides = dense_strides(shape, found.itemsize)
    # A run goes along the axes that the box has all of, and along the one before these.
    axis = len(shape)
    while axis and len(box[axis - 1]) == shape[axis - 1]:
        axis -= 1
    axis = max(0, axis - 1)
    starts = np.full(1, sum(one.start * step for one, step in zip(box, strides, strict=True)))
    for one, step in zip(box[:axis], strides[:axis], strict=True):
        starts = (starts[:, None] + np.arange(len(one)) * step).ravel()
    length = prod(map(len, box[axis:])) * found.itemsize
    number = done = 0
    for piece in _pieces(found):
        raw = _little(piece, dtype)
        while len(raw):
            part, raw = raw[: length - done], raw[length - done :]
            yield int(starts[number]) + done, part
            done += len(part)
            if done == length:
                number, done = number + 1, 0


def _pieces(elements: Elements) -> Iterator[Elements]:
    """The elements in row-major order, in arrays of at most _PIECE bytes that lie so in memory."""
    if elements.nbytes <= _PIECE:
        yield _turned(elements)
    elif step := _PIECE * len(elements) // elements.nbytes:
        for start in range(0, len(elements), step):
            yield _turned(elements[start : start + step])
    else:
        for row in elements:
            yield from _pieces(row)


def _turned(elements: Elements) -> Elements:
    """The elements in row-major order in memory; not copied where they lie so.

    numpy copies along one axis after the other, so that each line of the cache is fetched for
    every element of it where neighbours are to come apart. Small blocks stay in the cache.
    """
    if elements.flags.c_contiguous:
        return elements
    near = by_distance(elements.shape, elements.strides)[-1]
    if near == elements.ndim - 1:
        return np.ascontiguousarray(elements)
    out = np.empty(elements.shape, elements.dtype)
    index = [slice(None)] * elements.ndim
    for row in range(0, elements.shape[near], _ROWS):
        index[near] = slice(row, row + _ROWS)
        for column in range(0, elements.shape[-1], _COLUMNS):
            index[-1] = slice(column, column + _COLUMNS)
            out[tuple(index)] = elements[tuple(index)]
    return out


def _little(elements: Elements, dtype: DType) -> memoryview:
    raw = bytes_of(elements)
    return swapped(raw, dtype) if dtype.big_endian else raw


def swapped(raw: memoryview, dtype: DType) -> memoryview:
    """Elements of a type of the other byte order: each of the two parts of complex ones, too."""
    return bytes_of(np.frombuffer(raw, f"u{dtype.word}").byteswap())
