"""Models to measure with: the real one as arrays and in other forms, and a large made-up one."""

import json
from collections.abc import Mapping
from pathlib import Path

import ml_dtypes
import numpy as np
import numpy.typing as npt

from mstore.arrayfile import pack_arrays
from mstore.database import Database
from mstore.repository import Repository
from mstore.storage.memory import MemoryStorage

Arrays = dict[str, npt.NDArray[np.generic]]

_BLOCK = 4 << 20


def read_arrays(path: Path) -> Arrays:
    """All tensors of a safetensors file by name."""
    loaded = memory_repository().commit(path).load()
    assert isinstance(loaded, dict)
    return loaded


def memory_repository() -> Repository:
    """A new, empty repository in memory."""
    return Repository(Database.create(MemoryStorage(), "benchmark"))


def write_arrays(path: Path, arrays: Mapping[str, npt.NDArray[np.generic]]) -> None:
    """A safetensors file of `arrays`."""
    packed = pack_arrays(arrays, {"format": "pt"})
    with path.open("wb") as file:
        file.write(packed.header)
        for buffer in packed.buffers:
            file.write(buffer)


def as_bfloat16(arrays: Mapping[str, npt.NDArray[np.generic]]) -> Arrays:
    """The float32 arrays rounded to bfloat16, the others as they are."""
    return {
        name: array.astype(ml_dtypes.bfloat16) if array.dtype == np.float32 else array
        for name, array in arrays.items()
    }


def write_large(path: Path, size: int) -> None:
    """A float32 model of about `size` bytes: random weights in the shapes of a transformer.

    Written in blocks, so that it needs little memory.
    """
    shapes = _shapes(size)
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in shapes.items():
        start, end = end, end + 4 * int(np.prod(shape))
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": (start, end)}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    random = np.random.default_rng(0)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for done in range(0, end // 4, _BLOCK):
            values = random.standard_normal(min(_BLOCK, end // 4 - done), np.float32)
            file.write(values * np.float32(0.02))


def _shapes(size: int) -> dict[str, tuple[int, ...]]:
    """Tensors of a decoder with layers of 2048 units and a vocabulary of 32000."""
    width, inner = 2048, 5632
    shapes: dict[str, tuple[int, ...]] = {"embed.weight": (32000, width)}
    left = size - 4 * 32000 * width
    layer: dict[str, tuple[int, ...]] = {
        **{f"attention.{part}.weight": (width, width) for part in "qkvo"},
        "mlp.gate.weight": (inner, width),
        "mlp.up.weight": (inner, width),
        "mlp.down.weight": (width, inner),
        "norm.attention.weight": (width,),
        "norm.mlp.weight": (width,),
    }
    bytes_per_layer = sum(4 * int(np.prod(shape)) for shape in layer.values())
    for number in range(max(1, round(left / bytes_per_layer))):
        shapes |= {f"layers.{number}.{name}": shape for name, shape in layer.items()}
    return shapes
