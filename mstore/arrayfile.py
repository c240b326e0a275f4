"""Safetensors files to be made: of arrays in memory, ready to be committed, or of given tensors.

The layout of such files is described in `mstore.formats.safetensors`. Like the reference writer,
tensors are ordered by falling item size, then by name, so that each starts at a multiple of its
item size.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from mstore.dtypes import DType
from mstore.errors import InvalidInputError, LimitExceededError
from mstore.formats.safetensors import DTYPE_NAMES, MAX_HEADER, MAX_TENSORS, METADATA_KEY
from mstore.layout import Layout, Tensor, cover
from mstore.numpy_dtypes import Array, bytes_of, dtype_of


@dataclass(frozen=True, slots=True)
class ArrayFile:
    """A virtual safetensors file: `header`, then `buffers` one after the other.

    `layout` covers the whole file; its first segment is the header and every later one a tensor,
    whose bytes are the buffer at the same place in `buffers`. Buffers are views of the arrays
    they came from, so these must not change while the file is in use.
    """

    header: bytes
    layout: Layout
    buffers: list[memoryview]

    @property
    def size(self) -> int:
        """Bytes of the whole file."""
        return self.layout.size


def pack_arrays(arrays: Mapping[str, Array], metadata: Mapping[str, str]) -> ArrayFile:
    """The safetensors file of C-contiguous little-endian `arrays` by name.

    Raises InvalidInputError for an array whose type safetensors cannot hold or whose memory lies
    otherwise, LimitExceededError for more tensors or names than a reader would accept.
    """
    tensors = [Tensor(name, _storable(name, array), array.shape) for name, array in arrays.items()]
    header, placed = place_tensors(tensors, metadata)
    end = len(header) + sum(tensor.nbytes for tensor in tensors)
    layout = cover("safetensors", end, placed)
    return ArrayFile(header, layout, [bytes_of(arrays[tensor.name]) for _, tensor in placed])


def place_tensors(
    tensors: Iterable[Tensor], metadata: Mapping[str, str]
) -> tuple[bytes, list[tuple[int, Tensor]]]:
    """The header of a safetensors file of these, and where in the file each lies, in file order.

    They are row-major, of different names, and of types that are keys of `DTYPE_NAMES`. Raises
    InvalidInputError for a name that cannot be written, LimitExceededError for more tensors or
    names than a reader would accept.
    """
    ordered = sorted(tensors, key=lambda tensor: (-_alignment(tensor.dtype), tensor.name))
    if len(ordered) > MAX_TENSORS:
        raise LimitExceededError(f"{len(ordered)} tensors are too many for one file")
    entries: dict[str, object] = {METADATA_KEY: dict(metadata)} if metadata else {}
    starts: list[int] = []
    end = 0
    for tensor in ordered:
        starts.append(end)
        end += tensor.nbytes
        entries[tensor.name] = {
            "dtype": DTYPE_NAMES[tensor.dtype],
            "shape": tensor.shape,
            "data_offsets": (starts[-1], end),
        }
    header = _encode_header(entries)
    return header, [(len(header) + start, one) for start, one in zip(starts, ordered, strict=True)]


def _alignment(dtype: DType) -> int:
    """The power of two in the item size, which is 3 for elements of six bits."""
    return dtype.itemsize & -dtype.itemsize


def _storable(name: str, array: Array) -> DType:
    dtype = dtype_of(array.dtype)
    if dtype not in DTYPE_NAMES:
        raise InvalidInputError(f"{name!r}: safetensors has no element type {array.dtype}")
    if not array.flags.c_contiguous:
        raise InvalidInputError(f"{name!r} is not contiguous", hint="copy it first")
    return dtype


def _encode_header(entries: Mapping[str, object]) -> bytes:
    """Length and JSON, padded with spaces so that the data starts at a multiple of 8."""
    try:
        text = json.dumps(entries, ensure_ascii=False, separators=(",", ":")).encode()
    except UnicodeEncodeError as error:
        raise InvalidInputError(f"a name is not valid Unicode: {error.object[:80]!a}") from None
    text += b" " * (-len(text) % 8)
    if len(text) > MAX_HEADER:
        raise LimitExceededError(
            f"the names and plain values take {len(text)} bytes; at most {MAX_HEADER} can be read",
            hint="put long lists of numbers into arrays",
        )
    return len(text).to_bytes(8, "little") + text
