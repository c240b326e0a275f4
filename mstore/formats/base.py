"""The contract of a file-format parser, and the few things every parser needs.

A parser only *describes* a file: it names the byte ranges that are tensors. It never reads tensor
data, never writes, and never imports, evaluates or calls anything a file asks for. Error messages
are worded to follow "looks like <format> but …".
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from mstore.dtypes import DType
from mstore.errors import FormatError, InvalidInputError, LimitExceededError
from mstore.ids import Buffer
from mstore.layout import Beside, ByteReader, Layout

HEAD_SIZE = 4096
"""Bytes from the start of a file that `Format.sniff` is given (fewer for a smaller file)."""

MAX_DIMS = 64
"""Most dimensions of a tensor; numpy 2 allows as many."""

_MAX_BITS = 2**66  # 2**63 bytes: the largest tensor any supported library could address


Danger = Literal["allowed", "unknown", "dangerous"]
"""How much harm something in a file may do: none, perhaps some, or any."""


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that reading a file with the library it is made for would do, besides tensors.

    `what` continues "it …": "calls os.system". `where` is the place in the file (a member, an
    object's path), or empty for the file as such.
    """

    danger: Danger
    what: str
    where: str = ""


class Format(ABC):
    """One file format. Instances hold no state and may be used from several threads."""

    name: str
    """Short name of the format, as shown to users and kept in layouts."""

    @abstractmethod
    def sniff(self, head: bytes, reader: ByteReader) -> bool:
        """Whether the file is of this format, judged by its content alone.

        `head` holds the first `HEAD_SIZE` bytes. True for a damaged or hostile file of this
        format too: `layout` then says what is wrong. Raises nothing for any content.
        """

    @abstractmethod
    def layout(self, reader: ByteReader) -> Layout:
        """Where the tensors of the file lie.

        Raises FormatError when the file breaks the rules of its format, LimitExceededError when
        it asks for unreasonable memory, depth or counts, UnsafeInputError when reading it as its
        own libraries do would run code.
        """

    def examine(self, reader: ByteReader) -> tuple[Layout, str | None]:
        """`layout`, and what to tell the user of tensors that it leaves opaque, or None."""
        return self.layout(reader), None

    def findings(self, reader: ByteReader) -> list[Finding]:
        """What the library that the format is made for would do when it reads the file.

        Raises as `layout` does.
        """
        return []

    def findings_beside(self, reader: ByteReader, beside: Beside) -> list[Finding]:
        """What that library would do because of the folder that the file lies in.

        No other file is opened to find that out. A file of which this says something dangerous is
        refused there as if `layout` had raised UnsafeInputError. Raises as `layout` does.
        """
        return []


class BytesReader:
    """Bytes in memory as a `ByteReader`."""

    def __init__(self, data: Buffer) -> None:
        self._data = memoryview(data).cast("B")
        self.size = len(self._data)

    def read(self, offset: int, length: int) -> bytes:
        """Exactly `length` bytes from `offset`; fewer only at the end."""
        return bytes(self._data[offset : offset + length])


class WindowReader:
    """The `size` bytes from `start` of another reader: a file inside a file."""

    def __init__(self, reader: ByteReader, start: int, size: int) -> None:
        self.reader = reader
        self.start = start
        self.size = size

    def read(self, offset: int, length: int) -> bytes:
        """Exactly `length` bytes from `offset` of the window; fewer only at its end."""
        length = min(length, self.size - offset)
        return self.reader.read(self.start + offset, length) if length > 0 else b""


def read_exactly(reader: ByteReader, offset: int, length: int, what: str) -> bytes:
    """`length` bytes from `offset`; raises FormatError if the file ends before."""
    if length > reader.size - offset:
        raise FormatError(f"the file ends inside {what}")
    data = reader.read(offset, length)
    if len(data) != length:
        raise FormatError(f"the file ends inside {what}")
    return data


def check_shape(dtype: DType, shape: Sequence[int], what: str) -> int:
    """Bytes of a tensor of `shape`, whose dimensions came from a file and may be any integers.

    `what` is the tensor in error messages.

    Raises FormatError for a negative dimension, a size beyond 2^63 bytes (even if another
    dimension is 0) or elements that do not fill whole bytes; LimitExceededError for more than
    `MAX_DIMS` dimensions.
    """
    if len(shape) > MAX_DIMS:
        raise LimitExceededError(f"{what} has {len(shape)} dimensions")
    bits = dtype.bits
    for dim in shape:
        if dim < 0:
            raise FormatError(f"{what} has the negative dimension {dim}")
        bits *= dim or 1
        if bits >= _MAX_BITS:
            raise FormatError(f"the size of {what} overflows")
    try:
        return dtype.nbytes(shape)
    except InvalidInputError as error:
        raise FormatError(f"{what}: {error.message}") from None


def quote(name: str) -> str:
    """A name from a file, safe to print: quoted, escaped and shortened."""
    shown = ascii(name[:80])
    return shown if len(name) <= 80 else f"{shown}…"
