"""A safetensors file made of arrays in memory, ready to be committed or written out.

The layout of such files is described in `mstore.formats.safetensors`. Like the reference writer,
tensors are ordered by falling item size, then by name, so that each starts at a multiple of its
item size.
"""

import json
from collections.abc import Mapping
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
    if len(arrays) > MAX_TENSORS:
        raise LimitExceededError(f"{len(arrays)} tensors are too many for one file")
    tensors = [Tensor(name, _storable(name, array), array.shape) for name, array in arrays.items()]
    tensors.sort(key=lambda tensor: (-tensor.dtype.itemsize, tensor.name))
    entries: dict[str, object] = {METADATA_KEY: dict(metadata)} if metadata else {}
    starts: list[int] = []
    end = 0
    for tensor in tensors:
        starts.append(end)
        end += tensor.nbytes
        entries[tensor.name] = {
            "dtype": DTYPE_NAMES[tensor.dtype],
            "shape": tensor.shape,
            "data_offsets": (starts[-1], end),
        }
    header = _encode_header(entries)
    placed = [(len(header) + start, tensor) for start, tensor in zip(starts, tensors, strict=True)]
    layout = cover("safetensors", len(header) + end, placed)
    return ArrayFile(header, layout, [bytes_of(arrays[tensor.name]) for tensor in tensors])


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
