"""The good files: made anew by the real libraries in a folder for each of them."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from cases import Case, Writer


def writers() -> dict[str, Writer]:
    """What writes the files of each library; importing these takes seconds."""
    import flax_cases
    import gguf_cases
    import hdf5_cases
    import joblib_cases
    import keras_cases
    import nested_cases
    import numpy_cases
    import onnx_cases
    import pickle_cases
    import safetensors_cases
    import tensorflow_cases
    import torch_cases

    return {
        "numpy": numpy_cases.write,
        "safetensors": safetensors_cases.write,
        "torch": torch_cases.write,
        "pickle": pickle_cases.write,
        "joblib": joblib_cases.write,
        "hdf5": hdf5_cases.write,
        "keras": keras_cases.write,
        "onnx": onnx_cases.write,
        "gguf": gguf_cases.write,
        "flax": flax_cases.write,
        "tensorflow": tensorflow_cases.write,
        "nested": nested_cases.write,
    }


LIBRARIES = (
    *("numpy", "safetensors", "torch", "pickle", "joblib", "hdf5", "keras", "onnx", "gguf"),
    *("flax", "tensorflow", "nested"),
)
"""The folders of the corpus."""


def good_files(directory: Path) -> Iterator[Case]:
    """Write every file into `directory`, and say of each what it is."""
    for library, write in writers().items():
        folder = directory / library
        folder.mkdir()
        for case in write(folder):
            yield replace(case, path=f"{library}/{case.path}")
