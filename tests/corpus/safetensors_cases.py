"""safetensors files: every type, metadata, and models in several shards."""

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import ml_dtypes
import numpy as np
import safetensors
import safetensors.numpy
from cases import Arrays, Case, numbers

TYPES = {
    "BOOL": "?", "U8": "u1", "I8": "i1", "U16": "u2", "I16": "i2", "U32": "u4", "I32": "i4",
    "U64": "u8", "I64": "i8", "F16": "f2", "F32": "f4", "F64": "f8", "C64": "c8",
    "BF16": ml_dtypes.bfloat16, "F8_E4M3": ml_dtypes.float8_e4m3fn, "F8_E5M2": ml_dtypes.float8_e5m2,
    "F8_E8M0": ml_dtypes.float8_e8m0fnu,
}  # fmt: skip


def write(folder: Path) -> Iterator[Case]:
    """All of them."""
    every = {name: numbers(3, 4, dtype=kind) for name, kind in TYPES.items()}
    made: dict[str, tuple[Arrays, dict[str, str] | None]] = {
        "types": (every, None),
        "metadata": ({"w": numbers(3, 4)}, {"format": "pt", "ünï": 'text "quoted"\n'}),
        "shapes": (
            {
                "s": np.array(2.5, np.float32),
                "e": np.zeros((0, 3), np.int16),
                "l": numbers(2, 3, 4),
            },
            None,
        ),
        "nothing": ({}, None),
        "names": ({"": numbers(1), "a/b:0": numbers(2), "ünï.🎉": numbers(3)}, None),
        "many": ({f"layers.{n}.weight": numbers(4, seed=n) for n in range(500)}, None),
    }
    for name, (arrays, metadata) in made.items():
        path = folder / f"{name}.safetensors"
        path.write_bytes(safetensors.numpy.save(arrays, metadata))
        yield Case(path.name, "safetensors", partial(load, path))
    yield from sharded(folder)


def sharded(folder: Path) -> Iterator[Case]:
    """Two shards and their index, as the Hugging Face libraries write them."""
    inside = folder / "sharded"
    inside.mkdir()
    where = {}
    for number in (1, 2):
        path = inside / f"model-{number:05}-of-00002.safetensors"
        arrays = {f"layers.{number}.{part}": numbers(20, 10, seed=number) for part in "qkv"}
        safetensors.numpy.save_file(arrays, path, {"format": "pt"})
        where |= dict.fromkeys(arrays, path.name)
        yield Case(f"sharded/{path.name}", "safetensors", partial(load, path))
    index = inside / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 4800}, "weight_map": where}))
    yield Case("sharded/model.safetensors.index.json", "opaque", dict)


def load(path: Path) -> Arrays:
    """What safetensors loads."""
    found: Arrays = {}
    for name, tensor in safetensors.deserialize(path.read_bytes()):
        dtype = np.dtype(TYPES[tensor["dtype"]])
        raw = np.frombuffer(bytes(tensor["data"]), np.uint8)
        found[name] = np.ndarray(tuple(tensor["shape"]), dtype, raw.tobytes())
    return found
