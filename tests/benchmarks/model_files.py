"""One model in the files of every library that people save models with."""

import pickle
from collections.abc import Callable
from pathlib import Path

from models import Arrays, write_arrays


def torch(path: Path, arrays: Arrays) -> None:
    import torch as library

    library.save({name: library.from_numpy(array.copy()) for name, array in arrays.items()}, path)


def npz(path: Path, arrays: Arrays) -> None:
    import numpy as library

    library.savez(path, **arrays)


def hdf5(path: Path, arrays: Arrays) -> None:
    import h5py as library

    with library.File(path, "w") as file:
        for name, array in arrays.items():
            file[name.replace(".", "/")] = array


def pickled(path: Path, arrays: Arrays) -> None:
    path.write_bytes(pickle.dumps(arrays, 5))


def joblib(path: Path, arrays: Arrays) -> None:
    import joblib as library

    library.dump(arrays, path)


WRITERS: dict[str, tuple[str, Callable[[Path, Arrays], None]]] = {
    "safetensors": ("model.safetensors", write_arrays),
    "torch": ("model.pt", torch),
    "npz": ("model.npz", npz),
    "hdf5": ("model.h5", hdf5),
    "pickle": ("model.pkl", pickled),
    "joblib": ("model.joblib", joblib),
}
"""Format -> the file, and what writes it."""
