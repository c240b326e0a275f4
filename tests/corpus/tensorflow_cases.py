"""Checkpoints and SavedModels that TensorFlow wrote: golden files, since it is no dependency.

`write_golden.py` beside them made them, and wrote down what TensorFlow reads of each.
"""

import base64
import json
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
from cases import Array, Arrays, Case, is_tensor

from mstore.numpy_dtypes import ML_DTYPES

GOLDEN = Path(__file__).parents[1] / "formats" / "tensorflow_files"
SUFFIX = "/.ATTRIBUTES/VARIABLE_VALUE"
"""What every variable of an object is called besides its name."""

SLICES = {
    "graph/model.ckpt-7.data-00000-of-00001": {
        "parts1/w": ((0, 3, 0, 44), (0, 3, 44, 43), (0, 3, 87, 43)),
    },
    "sharded/ckpt-1.data-00000-of-00002": {"list/4": ((0, 3, 0, 5),)},
    "sharded/ckpt-1.data-00001-of-00002": {"list/4": ((3, 5, 0, 5),)},
}
"""Variables that are cut in such a way that no part of the file holds them whole: for each part
the first row and their number, the first column and their number."""

SECOND_SHARD = "sharded/ckpt-1.data-00001-of-00002"
"""Besides its slice it has nothing but this."""
TOLD = {
    "outside/saved_model.pb": "dangerous to load (reads files when it is run",
    "constant/saved_model.pb": "opaque bytes for 5 of 25 constants",
}
NOT_BYTES = {"uint16", "int4", "uint4", "same", "codes"}
"""Constants whose numbers are varints, or of which one stands for all."""


def write(folder: Path) -> Iterator[Case]:
    """Copies of all of them."""
    for inside in sorted(path for path in GOLDEN.iterdir() if path.is_dir()):
        shutil.copytree(inside, folder / inside.name)
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = str(path.relative_to(folder))
        if path.suffix == ".index":
            yield Case(name, "tensorflow-index", dict)
        elif path.name == "saved_model.pb":
            known = partial(load_graph, name)
            yield Case(name, "tensorflow-savedmodel", known, TOLD.get(name, ""))
        elif path.parent.name == "frozen":
            yield Case(name, "tensorflow-graph", partial(load_graph, name))
        elif ".data-" in path.name:
            yield Case(name, "tensorflow-data", partial(load, name))
        else:
            yield Case(name, "opaque", dict)


def load(name: str) -> Arrays:
    """What TensorFlow loads of one data file, by the keys of the checkpoint."""
    checkpoint = name.partition(".data-")[0]
    found: Arrays = {}
    for path, key, kind, shape, data in json.loads((GOLDEN / "expected.json").read_text()):
        if path != checkpoint or kind == "string":
            continue
        array = numbers(kind, shape, data)
        key = key.removesuffix(SUFFIX)
        slices = SLICES.get(name, {}).get(key)
        for row, rows, column, columns in slices or ():
            part = array[row : row + rows, column : column + columns]
            found[f"{key}/slice/{row},{rows}:{column},{columns}"] = part
        if not is_tensor(array):  # of four bits, each in a byte
            array = array.view(np.int8 if kind == "int4" else np.uint8)
        if not slices and (name != SECOND_SHARD):
            found[key] = array
    return found


def load_graph(name: str) -> Arrays:
    """What TensorFlow reads of the constants of a graph."""
    return {
        key: numbers(kind, shape, data)
        for path, key, kind, shape, data in json.loads((GOLDEN / "constants.json").read_text())
        if path == name and key.rpartition("/")[2] not in NOT_BYTES
    }


def numbers(kind: str, shape: list[int], data: str) -> Array:
    """An array from its bytes in base64."""
    return np.ndarray(shape, ML_DTYPES.get(kind) or np.dtype(kind), base64.b64decode(data))
