"""What `flax.serialization.to_bytes` writes, made with msgpack by flax's own layout.

flax is no dependency of the tests. Arrays are extensions of type 1, complex numbers of type 2,
scalars of numpy of type 3; large arrays are dictionaries of pieces. What flax itself wrote is
beside the tests of the parser. Source: flax/serialization.py.
"""

import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import ml_dtypes
import msgpack
import numpy as np
from cases import Array, Arrays, Case, flat, is_tensor, numbers

GOLDEN = Path(__file__).parents[1] / "formats" / "flax_files"
TYPES = ["bool", "uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64"]
TYPES += ["float16", "float32", "float64", "complex64", "complex128"]
CHUNKED = "__msgpack_chunked_array__"


def write(folder: Path) -> Iterator[Case]:
    """All of them."""
    for name, value in values().items():
        path = folder / f"{name}.msgpack"
        path.write_bytes(msgpack.packb(value, default=_pack, strict_types=True))
        yield Case(path.name, "flax", partial(load, path))
    for golden in sorted(GOLDEN.glob("*.msgpack")):
        path = folder / f"golden_{golden.name}"
        shutil.copy(golden, path)
        yield Case(path.name, "flax", partial(load, path))


def load(path: Path) -> Arrays:
    """What flax restores, by keys joined with dots; the pieces of a large array one by one."""
    value = msgpack.unpackb(path.read_bytes(), ext_hook=_unpack, raw=False, strict_map_key=False)
    return flat(value, _array)


def _array(value: object) -> object:
    if not isinstance(value, np.ndarray | np.generic):
        return value
    array = np.asarray(value)
    # Some types take a byte each here, but less in other formats, and are no `DType` of mstore's.
    return array if is_tensor(array) else array.view(np.uint8)


def values() -> dict[str, Any]:
    """State dictionaries, whose keys are all text."""
    dense = {"kernel": numbers(4, 5), "bias": numbers(5)}
    moments = {"0": {"count": np.int32(3).reshape(()), "mu": {"Dense_0": dense}}, "1": {}}
    narrow = {
        kind: numbers(2, 3, dtype=getattr(ml_dtypes, kind))
        for kind in ("bfloat16", "float8_e4m3fn")
    }
    pieces = {CHUNKED: True, "shape": {"0": 4, "1": 6}}
    pieces["chunks"] = {str(n): part for n, part in enumerate(np.split(numbers(24, dtype="f4"), 3))}
    return {
        "params": {"params": {"Dense_0": dense, "Dense_1": {"kernel": numbers(5, 2)}}},
        "train_state": {"step": 3, "params": {"Dense_0": dense}, "opt_state": moments},
        "types": {kind: numbers(2, 3, dtype=kind) for kind in TYPES} | narrow,
        "shapes": {
            "scalar": np.array(2.5),
            "none": np.zeros((0, 2), np.float32),
            "x": numbers(1, 1, 3),
        },
        "others": {
            "w": numbers(3),
            "c": 1 + 2j,
            "n": np.float32(3),
            "text": "a",
            "no": None,
            "raw": b"xy",
        },
        "pieces": {"w": pieces, "b": numbers(3)},
    }


def _pack(value: object) -> msgpack.ExtType:
    if isinstance(value, complex):
        return msgpack.ExtType(2, msgpack.packb((value.real, value.imag)))
    assert isinstance(value, np.ndarray | np.generic)
    code = 1 if isinstance(value, np.ndarray) else 3
    return msgpack.ExtType(code, msgpack.packb((value.shape, value.dtype.name, value.tobytes())))


def _unpack(code: int, data: bytes) -> object:
    if code == 2:
        return complex(*msgpack.unpackb(data))
    shape, name, raw = msgpack.unpackb(data)
    array: Array = np.ndarray(shape, np.dtype(getattr(ml_dtypes, name, name)), raw)
    return array if code == 1 else array[()]
