"""What a file is made of: the ordered segments that cover it with no gap and no overlap."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, Protocol

from mstore.dtypes import DType
from mstore.errors import FormatError

Order = Literal["C", "F"]


class ByteReader(Protocol):
    """Random access to the bytes of one file; what a format parser is given."""

    @property
    def size(self) -> int:
        """Bytes in the file."""
        ...

    def read(self, offset: int, length: int) -> bytes:
        """Exactly `length` bytes from `offset`; fewer only where the file ends."""
        ...


@dataclass(frozen=True, slots=True)
class Tensor:
    """What a segment's bytes mean: a name inside the file, an element type and a shape.

    `order` is "F" when the elements lie in column-major order. The name of a file's only,
    unnamed tensor (`.npy`) is the empty string.
    """

    name: str
    dtype: DType
    shape: tuple[int, ...]
    order: Order = "C"

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor's data."""
        return self.dtype.nbytes(self.shape)


@dataclass(frozen=True, slots=True)
class Segment:
    """A byte range of a file: one tensor's data, or opaque bytes when `tensor` is None."""

    offset: int
    length: int
    tensor: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Layout:
    """The segments of one file of `size` bytes, in order, as format `format` describes it."""

    format: str
    size: int
    segments: tuple[Segment, ...]

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


def cover(format: str, size: int, tensors: Iterable[tuple[int, Tensor]]) -> Layout:  # noqa: A002
    """The layout of a file whose tensors lie at the given offsets; the rest is opaque.

    Raises FormatError if two tensors overlap or one lies outside the file.
    """
    segments: list[Segment] = []
    position = 0
    # By offset, then length, so that an empty tensor comes before the one that starts where it is.
    for offset, tensor in sorted(tensors, key=lambda item: (item[0], item[1].nbytes)):
        if offset < position or offset + tensor.nbytes > size:
            raise FormatError(f"tensor {tensor.name!r} overlaps another or leaves the file")
        if offset > position:
            segments.append(Segment(position, offset - position))
        segments.append(Segment(offset, tensor.nbytes, tensor))
        position = offset + tensor.nbytes
    if position < size:
        segments.append(Segment(position, size - position))
    return Layout(format, size, tuple(segments))


def opaque(size: int) -> Layout:
    """The layout of a file that no parser understands."""
    return Layout("opaque", size, (Segment(0, size),) if size else ())
