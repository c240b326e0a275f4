"""Archives of skops, and zip archives with files of other formats in them."""

import io
import zipfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import joblib_cases
import numpy as np
import safetensors.numpy
import skops.io
from cases import Arrays, Case, numbers


def write(folder: Path) -> Iterator[Case]:
    """All of them."""
    for name, estimator in joblib_cases.fitted().items():
        path = folder / f"{name}.skops"
        skops.io.dump(estimator, path)
        yield Case(path.name, "skops", partial(load_members, path))
    arrays = {"w": numbers(4, 5), "b": numbers(5)}
    npz = io.BytesIO()
    np.savez(npz, **arrays)
    for name, method in (("stored", zipfile.ZIP_STORED), ("deflated", zipfile.ZIP_DEFLATED)):
        path = folder / f"bundle_{name}.zip"
        with zipfile.ZipFile(path, "w", method) as archive:
            archive.writestr("config.json", "{}")
            archive.writestr("model.safetensors", safetensors.numpy.save(arrays))
            archive.writestr("inner/more.npz", npz.getvalue())
        stored = method == zipfile.ZIP_STORED
        yield Case(path.name, "zip", partial(load_bundle, arrays if stored else {}))


def load_members(path: Path) -> Arrays:
    """What numpy loads of the members that are npy files, by their names without `.npy`."""
    found: Arrays = {}
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            if name.endswith(".npy"):
                array = np.load(io.BytesIO(archive.read(name)), allow_pickle=True)
                if array.dtype != object:
                    found[name.removesuffix(".npy")] = array
    return found


def load_bundle(arrays: Arrays) -> Arrays:
    """The arrays under the names of both members they are in."""
    return {
        f"{member}/{name}": array
        for member in ("model.safetensors", "inner/more.npz")
        for name, array in arrays.items()
    }
