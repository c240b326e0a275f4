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
from cases import Arrays, Case, flat, numbers, with_fields


def write(folder: Path) -> Iterator[Case]:
    """All of them."""
    for name, estimator in joblib_cases.fitted().items():
        path = folder / f"{name}.skops"
        skops.io.dump(estimator, path)
        yield Case(path.name, "skops", partial(load_skops, path))
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
        told = "" if stored else "looks like safetensors but is compressed"
        yield Case(path.name, "zip", partial(load_bundle, arrays if stored else {}), told)


def load_skops(path: Path) -> Arrays:
    """What skops loads, by path in the structure; its numbers of numpy are arrays, too.

    What is in several places is in the archive once, and called after the first.
    """
    seen: set[int] = set()

    def once(one: object) -> object:
        if not isinstance(one, np.ndarray | np.generic):
            return one
        if id(one) in seen:
            return None
        seen.add(id(one))
        return np.asarray(one)

    value = skops.io.load(path, trusted=skops.io.get_untrusted_types(file=path))
    # Trees are written as what their `__reduce__` gives, random numbers as their state alone.
    found = {
        name.replace("tree_.1", "tree_.__reduce__.args.1"): array
        for name, array in flat(value, once).items()
        if not name.startswith("_random_state.0.")
    }
    return with_fields(found)


def load_bundle(arrays: Arrays) -> Arrays:
    """The arrays under the names of both members they are in."""
    return {
        f"{member}/{name}": array
        for member in ("model.safetensors", "inner/more.npz")
        for name, array in arrays.items()
    }
