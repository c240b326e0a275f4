"""Models of Keras 3 in its three kinds of files."""

import os
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import hdf5_cases
import numpy as np
from cases import Arrays, Case

os.environ["KERAS_BACKEND"] = "torch"


def write(folder: Path) -> Iterator[Case]:
    """Every model in every kind of file."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for make in models():
            model = make()
            name = make.__name__
            model.save(folder / f"{name}.keras")
            yield Case(f"{name}.keras", "keras", partial(load_archive, folder / f"{name}.keras"))
            model.save_weights(folder / f"{name}.weights.h5")
            path = folder / f"{name}.weights.h5"
            yield Case(path.name, "hdf5", partial(hdf5_cases.load, path))
            path = folder / f"{name}.h5"
            model.save(path)
            told = "2 of other types" if name == "brain_floats" else ""
            yield Case(path.name, "hdf5", partial(hdf5_cases.load, path), told)


def load_archive(path: Path) -> Arrays:
    """What h5py finds in the weights of a `.keras` archive."""
    import zipfile
    from tempfile import TemporaryDirectory

    with zipfile.ZipFile(path) as archive, TemporaryDirectory() as folder:
        archive.extract("model.weights.h5", folder)
        return hdf5_cases.load(Path(folder) / "model.weights.h5")


def models() -> list[Callable[[], Any]]:
    """A few small models."""
    import keras
    from keras import layers

    keras.utils.set_random_seed(1)

    def dense() -> Any:
        return keras.Sequential([layers.Input((4,)), layers.Dense(5), layers.Dense(2)])

    def convolution() -> Any:
        image = layers.Input((8, 8, 3))
        hidden = layers.BatchNormalization()(layers.Conv2D(4, 3)(image))
        return keras.Model(image, layers.Dense(2)(layers.Flatten()(hidden)))

    def recurrent() -> Any:
        return keras.Sequential(
            [layers.Input((5,)), layers.Embedding(10, 4), layers.LSTM(3), layers.Dense(1)]
        )

    def trained() -> Any:
        model = dense()
        model.compile("adam", "mse")
        model.fit(np.ones((4, 4)), np.ones((4, 2)), verbose=0)
        return model

    def brain_floats() -> Any:
        return keras.Sequential([layers.Input((4,)), layers.Dense(5, dtype="bfloat16")])

    return [dense, convolution, recurrent, trained, brain_floats]
