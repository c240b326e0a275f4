"""What a file is made of: the ordered segments that cover it with no gap and no overlap."""

from collections.abc import Collection, Iterable, MutableMapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from math import prod
from typing import Any, Literal, Protocol

from mstore.dtypes import DType
from mstore.errors import FormatError, LimitExceededError

Order = Literal["C", "F"]

Recoding = Literal["deflate", "zlib", "latin1", "escaped", "floats"]
"""How bytes of a file hold other bytes: the codes of `Recoded`."""

_MAX_GROWTH = 1 << 30
"""Bytes by which a view may be larger than its file, since one element may be in many places."""

_MAX_EXPANSION = 1100
"""Bytes that one byte of `Recoded` can hold at most: a little more than deflate can."""


class ByteReader(Protocol):
    """Random access to the bytes of one file; what a format parser is given."""

    @property
    def size(self) -> int:
        """Bytes in the file."""
        ...

    def read(self, offset: int, length: int) -> bytes:
        """Exactly `length` bytes from `offset`; fewer only where the file ends."""
        ...


class Beside(Protocol):
    """The folder that a file lies in, for formats that keep one model in several files."""

    @property
    def name(self) -> str:
        """The name of the file itself, without the folder."""
        ...

    def names(self) -> Collection[str]:
        """The names of the regular files in the folder."""
        ...

    def open(self, name: str) -> AbstractContextManager[ByteReader]:
        """One of these, for reading. Raises StorageError, NotFoundError when it is gone."""
        ...

    def is_link(self, path: str) -> bool:
        """Whether what is at `path`, from the folder on, would be read through a link.

        That is one in itself, in a folder that is one, or a file that has another name, too. Opens
        nothing, follows nothing; False where nothing is. `path` is plain: "weights/0.bin".
        """
        ...

    @property
    def known(self) -> MutableMapping[str, Any]:
        """What has been read of these files already, for whoever reads it to keep here."""
        ...


@dataclass(frozen=True, slots=True)
class Tensor:
    """What a segment's bytes mean: a name inside the file, an element type and a shape.

    `order` is "F" when the elements lie in column-major order. The name of a file's only,
    unnamed tensor (`.npy`) is the empty string. `kind` says what the elements are in the words
    of the format where the type alone does not: `q4_k` of rows of bytes that are GGUF blocks.
    """

    name: str
    dtype: DType
    shape: tuple[int, ...]
    order: Order = "C"
    kind: str = ""

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor's data."""
        return self.dtype.nbytes(self.shape)


@dataclass(frozen=True, slots=True)
class Segment:
    """A byte range of a file: one tensor's data, or opaque bytes when `tensor` is None.

    `hidden` marks a tensor that is only the material of views, such as a storage of PyTorch or one
    tile of a dataset: its type helps to store it well, but it is no tensor of the model.
    """

    offset: int
    length: int
    tensor: Tensor | None = None
    hidden: bool = False


@dataclass(frozen=True, slots=True)
class Strided:
    """Elements at regular places: the one at index i lies at byte offset + sum(i * strides).

    `offset` counts from the start of the file; `strides` are in bytes, one per axis, never
    negative, and may be 0.
    """

    offset: int
    strides: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Tiled:
    """Elements in row-major tiles of one shape, as in a chunked dataset of HDF5.

    `offsets` has the place of each tile in the file in the row-major order of the grid, or -1 for a
    tile that is not stored and holds `fill`, the bytes of one element, everywhere. Tiles at the
    upper ends of the axes are stored whole, too.
    """

    tile: tuple[int, ...]
    offsets: tuple[int, ...]
    fill: bytes


@dataclass(frozen=True, slots=True)
class Recoded:
    """Elements that the file holds only in another form.

    Its `length` bytes from `offset` hold `size` other bytes: `deflate` (RFC 1951) and `zlib`
    (RFC 1950) are compressed; `latin1` is UTF-8 text of code points below 256, each one byte,
    `escaped` the same in the raw-unicode-escape of Python, `floats` the opcodes of a pickle
    that push floats onto lists, each one little-endian f64. The tensor starts at `start` of them.
    """

    code: Recoding
    offset: int
    length: int
    size: int
    start: int = 0


@dataclass(frozen=True, slots=True)
class View:
    """A tensor that is no segment of its own: where in the file its elements are to be found."""

    tensor: Tensor
    place: Strided | Tiled | Recoded


@dataclass(frozen=True, slots=True)
class Layout:
    """The segments of one file of `size` bytes, in order, as format `format` describes it.

    `views` are the tensors of the file that are no segments.
    """

    format: str
    size: int
    segments: tuple[Segment, ...]
    views: tuple[View, ...] = ()

    def __post_init__(self) -> None:
        position = 0
        names: set[str] = set()
        for segment in self.segments:
            if segment.offset != position or segment.length < 0:
                raise FormatError(f"segment at {segment.offset} leaves a gap or overlaps another")
            position += segment.length
            if segment.tensor is not None:
                if segment.tensor.nbytes != segment.length:
                    raise FormatError(f"tensor {segment.tensor.name!r} does not fill its segment")
                if segment.tensor.name in names:
                    raise FormatError(f"two tensors are called {segment.tensor.name!r}")
                names.add(segment.tensor.name)
        if position != self.size:
            raise FormatError(f"segments cover {position} of {self.size} bytes")
        for view in self.views:
            if view.tensor.name in names:
                raise FormatError(f"two tensors are called {view.tensor.name!r}")
            names.add(view.tensor.name)
            check_view(view, self.size)


def check_view(view: View, size: int) -> None:
    """Raise FormatError if a view leaves its file of `size` bytes or contradicts itself.

    Raises LimitExceededError if it is much larger than the file.
    """
    tensor, place = view.tensor, view.place
    if isinstance(place, Recoded):
        fits = 0 <= place.offset <= size - place.length and place.length >= 0
        fits = fits and 0 <= place.start <= place.size - tensor.nbytes
        if fits and place.size > _MAX_EXPANSION * (place.length + 1):
            raise LimitExceededError(f"tensor {tensor.name!r} would hold {place.size} bytes")
    elif tensor.nbytes > size + _MAX_GROWTH:
        raise LimitExceededError(f"tensor {tensor.name!r} would take {tensor.nbytes} bytes")
    elif isinstance(place, Strided):
        fits = _strides_fit(tensor, place, size)
    else:
        fits = _tiles_fit(tensor, place, size)
    if not fits:
        raise FormatError(f"tensor {tensor.name!r} leaves the file")


def _strides_fit(tensor: Tensor, place: Strided, size: int) -> bool:
    if len(place.strides) != len(tensor.shape) or not _is_plain(tensor):
        return False
    if min(place.strides, default=0) < 0 or place.offset < 0:
        return False
    if place.offset > size:
        return False
    return all(at + length <= size for at, length in extents(View(tensor, place)))


def _tiles_fit(tensor: Tensor, place: Tiled, size: int) -> bool:
    if len(place.tile) != len(tensor.shape) or not _is_plain(tensor):
        return False
    if min(place.tile, default=1) <= 0 or len(place.fill) != tensor.dtype.itemsize:
        return False
    room = size - tensor.dtype.nbytes(place.tile)
    return prod(grid(tensor.shape, place.tile)) == len(place.offsets) and all(
        -1 <= offset <= max(room, -1) for offset in place.offsets
    )


def _is_plain(tensor: Tensor) -> bool:
    """Whether each element takes whole bytes, and an index is a place in row-major order."""
    return tensor.dtype.bits >= 8 and tensor.order == "C"


def grid(shape: tuple[int, ...], tile: tuple[int, ...]) -> tuple[int, ...]:
    """How many tiles lie along each axis."""
    return tuple(-(-extent // step) for extent, step in zip(shape, tile, strict=True))


def extents(view: View) -> list[tuple[int, int]]:
    """The byte ranges (offset, length) of the file that hold the elements of a view."""
    tensor, place = view.tensor, view.place
    if isinstance(place, Recoded):
        return [(place.offset, place.length)]
    if not tensor.nbytes:
        return []
    if isinstance(place, Tiled):
        length = tensor.dtype.nbytes(place.tile)
        return [(offset, length) for offset in place.offsets if offset >= 0]
    steps = zip(tensor.shape, place.strides, strict=True)
    span = sum((extent - 1) * stride for extent, stride in steps)
    return [(place.offset, span + tensor.dtype.itemsize)]


def cover(
    format: str,  # noqa: A002
    size: int,
    tensors: Iterable[tuple[int, Tensor]],
    *,
    hidden: Collection[str] = (),
    views: Iterable[View] = (),
) -> Layout:
    """The layout of a file whose tensors lie at the given offsets; the rest is opaque.

    `hidden` are the names of those that are only the material of `views`. Raises FormatError if two
    tensors overlap or one lies outside the file.
    """
    segments: list[Segment] = []
    position = 0
    # By offset, then length, so that an empty tensor comes before the one that starts where it is.
    for offset, tensor in sorted(tensors, key=lambda item: (item[0], item[1].nbytes)):
        if offset < position or offset + tensor.nbytes > size:
            raise FormatError(f"tensor {tensor.name!r} overlaps another or leaves the file")
        if offset > position:
            segments.append(Segment(position, offset - position))
        segments.append(Segment(offset, tensor.nbytes, tensor, tensor.name in hidden))
        position = offset + tensor.nbytes
    if position < size:
        segments.append(Segment(position, size - position))
    return Layout(format, size, tuple(segments), tuple(views))


def opaque(size: int) -> Layout:
    """The layout of a file that no parser understands."""
    return Layout("opaque", size, (Segment(0, size),) if size else ())
