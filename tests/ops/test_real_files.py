"""What is said of files that real libraries have written, good and bad."""

import os
import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pytest
import skops.io
import torch
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import save_file
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler

from mstore.formats.hazards import Hazards, find_hazards
from mstore.sources import FileSource, Folder, FolderOf

pytestmark = pytest.mark.filterwarnings("ignore")


class Own:
    """A class that no list has."""


class Payload:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("true",)


class OwnModule(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = torch.nn.Linear(2, 3)


def estimator() -> Any:
    model = make_pipeline(StandardScaler(), LogisticRegression())
    return model.fit(np.array([[0.0, 1.0], [1.0, 0.0]]), [0, 1])


def keras_model(path: Path, *, function: bool) -> None:
    os.environ["KERAS_BACKEND"] = "torch"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import keras
    layers = [keras.layers.Input((4,)), keras.layers.Dense(2)]
    if function:
        layers.append(keras.layers.Lambda(lambda x: x + 1))
    keras.Sequential(layers).save(path)


def onnx_model(path: Path, location: str) -> None:
    weight = numpy_helper.from_array(np.zeros((4, 4), np.float32), "w")
    if location:
        weight.ClearField("raw_data")
        weight.data_location = TensorProto.EXTERNAL
        weight.external_data.add(key="location", value=location)
    graph = helper.make_graph([], "g", [], [], [weight])
    path.write_bytes(helper.make_model(graph).SerializeToString())
    (path.parent / "weights.bin").write_bytes(bytes(64))


def script(path: Path) -> None:
    torch.jit.trace(torch.nn.Linear(2, 3), torch.zeros(1, 2)).save(path)


def npz(path: Path, value: object) -> None:
    holder = np.empty(1, object)
    holder[0] = value
    np.savez(path, w=np.zeros(4), o=holder)


def pickled(value: object) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(pickle.dumps(value))


STATE = {"w": torch.zeros(3, 4), "half": torch.zeros(2, dtype=torch.bfloat16)}
FILES: dict[str, tuple[str, str, Callable[[Path], object]]] = {
    "a.safetensors": ("ok", "safetensors", lambda path: save_file({"w": np.zeros(4)}, path)),
    "state.pt": ("ok", "torch", lambda path: torch.save(STATE, path)),
    "training.pt": (
        "ok",
        "torch",
        lambda path: torch.save({"step": 3, "model": STATE, "args": {"lr": 0.1}}, path),
    ),
    "module.pt": ("unknown", "torch", lambda path: torch.save(OwnModule(), path)),
    "payload.pt": ("dangerous", "torch", lambda path: torch.save({**STATE, "x": Payload()}, path)),
    "script.pt": ("dangerous", "torch", script),
    "arrays.pkl": ("ok", "pickle", pickled({"w": np.zeros((3, 4)), "names": ["a", "b"]})),
    "estimator.pkl": ("ok", "pickle", pickled(estimator())),
    "own.pkl": ("unknown", "pickle", pickled(Own())),
    "payload.pkl": ("dangerous", "pickle", pickled([np.zeros(3), Payload()])),
    "function.pkl": ("dangerous", "pickle", pickled(FunctionTransformer(os.system))),
    "estimator.joblib": ("ok", "joblib", lambda path: joblib.dump(estimator(), path)),
    "small.joblib": ("ok", "joblib", lambda path: joblib.dump(estimator(), path, compress=3)),
    "payload.joblib": (
        "dangerous",
        "joblib",
        lambda path: joblib.dump([np.zeros(9), Payload()], path),
    ),
    "small.payload.joblib": (
        "dangerous",
        "joblib",
        lambda path: joblib.dump([np.zeros(9), Payload()], path, compress=3),
    ),
    "objects.npz": ("ok", "npz", lambda path: npz(path, {"a": 1})),
    "payload.npz": ("dangerous", "npz", lambda path: npz(path, Payload())),
    "estimator.skops": ("ok", "skops", lambda path: skops.io.dump(estimator(), path)),
    "model.onnx": ("ok", "onnx", lambda path: onnx_model(path, "")),
    "beside.onnx": ("ok", "onnx", lambda path: onnx_model(path, "weights.bin")),
    "outside.onnx": ("dangerous", "onnx", lambda path: onnx_model(path, "../../etc/passwd")),
    "dense.keras": ("ok", "keras", lambda path: keras_model(path, function=False)),
    "lambda.keras": ("dangerous", "keras", lambda path: keras_model(path, function=True)),
    "lambda.h5": ("dangerous", "hdf5", lambda path: keras_model(path, function=True)),
}
"""What is to be said of a file, which format it is to be taken for, and what writes it."""


def look(path: Path) -> Hazards:
    source = FileSource(path)
    try:
        return find_hazards(source, FolderOf(Folder(path.parent), path.name))
    finally:
        source.close()


@pytest.mark.parametrize("name", FILES)
def test_what_is_said_of_a_real_file(name: str, tmp_path: Path) -> None:
    verdict, format_name, write = FILES[name]
    write(tmp_path / name)
    found = look(tmp_path / name)
    assert (found.format, found.verdict) == (format_name, verdict), found
    assert found.problem is None
    assert found.unsafe == (verdict == "dangerous")
