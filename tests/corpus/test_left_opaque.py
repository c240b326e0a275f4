"""What is not understood of a good file is told at the commit: in one line, of every such file."""

import pickle
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import h5py
import joblib
import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper

from mstore.database import Database
from mstore.ops.commit import Description
from mstore.storage.local import LocalStorage
from mstore.worktree import Worktree

pytestmark = pytest.mark.filterwarnings("ignore")

Write = Callable[[Path], object]

GOLDEN = Path(__file__).parents[1] / "formats" / "tensorflow_files"
ARRAY = np.arange(400.0)
RECORDS = np.zeros(50, [("a", "f4"), ("b", "i8")])
LONG = np.zeros(50, np.longdouble)


def compact(file: h5py.File) -> None:
    """A dataset inside its header, which h5py itself does not make otherwise."""
    how = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    how.set_layout(h5py.h5d.COMPACT)
    space = h5py.h5s.create_simple(ARRAY.shape)
    made = h5py.h5d.create(file.id, b"w", h5py.h5t.NATIVE_DOUBLE, space, dcpl=how)
    made.write(h5py.h5s.ALL, h5py.h5s.ALL, ARRAY)


def hdf5(fill: Callable[[h5py.File], object]) -> Write:
    """A file of h5py."""

    def write(path: Path) -> None:
        with h5py.File(path, "w") as file:
            fill(file)

    return write


def of_torch(tensor: Callable[[], torch.Tensor], *, zipped: bool = True) -> Write:
    """A file of torch with one tensor that is understood, and one that is not."""
    return lambda path: torch.save(
        {"w": tensor(), "x": torch.ones(3)}, path, _use_new_zipfile_serialization=zipped
    )


def of_onnx(kind: int, values: list[object], shape: list[int]) -> Write:
    """A model with one initializer, written as `helper.make_tensor` does."""
    info = [helper.make_tensor_value_info(name, 1, [1]) for name in "xy"]
    node = helper.make_node("Identity", ["x"], ["y"])
    tensor = helper.make_tensor("w", kind, shape, values)
    graph = helper.make_graph([node], "g", info[:1], info[1:], [tensor])
    return lambda path: onnx.save(helper.make_model(graph), path)


def pickled(value: object, protocol: int = 4) -> Write:
    """A pickle."""
    return lambda path: path.write_bytes(pickle.dumps(value, protocol))


def archive(name: str, method: int, write: Write) -> Write:
    """A zip archive of one compressed member."""

    def write_archive(path: Path) -> None:
        inner = path.with_suffix(".member")
        write(inner)
        with zipfile.ZipFile(path, "w", method) as file:
            file.write(inner, name)
        inner.unlink()

    return write_archive


def saved(array: object) -> Write:
    """An npy file."""

    def write(path: Path) -> None:
        with path.open("wb") as file:
            np.save(file, array, allow_pickle=True)

    return write


def golden(name: str) -> Write:
    """A file of TensorFlow."""
    return lambda path: shutil.copy(GOLDEN / name, path)


QUINT4 = (torch.ones(8, 6), torch.ones(8), torch.zeros(8), 0, torch.quint4x2)
OBJECTS = np.array([1, "a", None], object)
TEXT = "looks like npy but it holds Python objects, which only unpickling could read"
NOT_LISTED = "1 of its tensors are not listed: 'w' is"
OF_ARRAYS = "opaque bytes for 1 of its arrays: 'w'"

CASES: dict[str, tuple[Write, str]] = {
    # joblib
    **{
        f"{how}.joblib": (
            lambda path, how=how: joblib.dump({"w": ARRAY}, path, compress=(how, 3)),
            "opaque bytes: it is a compressed joblib file",
        )
        for how in ("zlib", "gzip", "bz2", "lzma", "xz")
    },
    "long.joblib": (
        lambda path: joblib.dump({"w": LONG, "x": ARRAY}, path),
        f"{OF_ARRAYS} has elements of type 'f16'",
    ),
    # pickle
    "long.pkl": (pickled({"w": LONG}), f"{OF_ARRAYS} has elements of type 'f16'"),
    "records.pkl": (
        pickled({"w": RECORDS}, 2),
        f"{OF_ARRAYS} holds records that are written as text",
    ),
    "part.pkl": (
        pickled({"w": torch.arange(100.0)[5:50]}, 2),
        f"{NOT_LISTED} a part of what is written as text",
    ),
    "sparse.pkl": (pickled({"w": torch.eye(9).to_sparse()[0], "x": torch.ones(2)}), ""),
    # HDF5
    "gzip.h5": (
        hdf5(lambda file: file.create_dataset("w", data=ARRAY, compression="gzip")),
        "opaque bytes for 1 of 1 datasets: 1 compressed",
    ),
    "lzf.h5": (
        hdf5(lambda file: file.create_dataset("w", data=ARRAY, compression="lzf", shuffle=True)),
        "opaque bytes for 1 of 1 datasets: 1 compressed",
    ),
    "compact.h5": (hdf5(compact), "opaque bytes for 1 of 1 datasets: 1 inside their headers"),
    "types.h5": (
        hdf5(lambda file: file.update(records=RECORDS, long=LONG, w=ARRAY)),
        "opaque bytes for 2 of 3 datasets: 2 of other types",
    ),
    # numpy
    "long.npy": (saved(LONG), "opaque bytes for its array, which has elements of type '<f16'"),
    "objects.npy": (saved(OBJECTS), f"{TEXT}; stored as opaque bytes"),
    "objects.npz": (
        lambda path: np.savez(path, o=OBJECTS, w=ARRAY),
        "opaque bytes for 1 of 2 arrays: 'o.npy' holds Python objects",
    ),
    "deflated_records.npz": (
        lambda path: np.savez_compressed(path, r=RECORDS, w=ARRAY),
        "opaque bytes for 1 of 2 arrays: 'r.npy' holds records and is compressed",
    ),
    "bzip2.npz": (
        archive("w.npy", zipfile.ZIP_BZIP2, saved(ARRAY)),
        "looks like npz but its member 'w.npy' is compressed by method 12; stored as opaque bytes",
    ),
    "deflated.zip": (
        archive("m.pkl", zipfile.ZIP_DEFLATED, pickled({"w": ARRAY})),
        "'m.pkl' looks like pickle but is compressed; opaque bytes for 1 compressed members",
    ),
    # torch
    "quint4x2.pt": (
        of_torch(lambda: torch.quantize_per_channel(*QUINT4)),
        f"{NOT_LISTED} of type 'quint4x2'",
    ),
    "qint8.pt": (
        of_torch(lambda: torch.quantize_per_tensor(torch.ones(9), 0.1, 0, torch.qint8)),
        "",
    ),
    "conjugate.pt": (
        of_torch(lambda: torch.ones(9, dtype=torch.complex64).conj()),
        f"{NOT_LISTED} the conjugate or the negative of what is stored",
    ),
    # ONNX
    "int64.onnx": (
        of_onnx(TensorProto.INT64, [*range(90)], [90]),
        "opaque bytes for tensors: 1 with numbers as varints",
    ),
    "float16.onnx": (
        of_onnx(TensorProto.FLOAT16, [1.0] * 90, [90]),
        "opaque bytes for tensors: 1 with numbers as varints",
    ),
    "text.onnx": (of_onnx(TensorProto.STRING, [b"x"] * 90, [90]), ""),
    # TensorFlow
    "frozen_graph.pb": (golden("frozen/frozen_graph.pb"), ""),
    "saved_model.pb": (
        golden("constant/saved_model.pb"),
        "opaque bytes for 5 of 25 constants: '__inference___call___85/codes' has its numbers as"
        " varints, '__inference___call___85/uint16' has its numbers as varints, …",
    ),
}
"""Each with what a commit says of it, which is nothing where all numbers in it are understood."""


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[str, str]]:
    """What a commit of all of them says, by path."""
    folder = tmp_path_factory.mktemp("opaque")
    for name, (write, _) in CASES.items():
        write(folder / name)
    assert {path.name for path in folder.iterdir()} == set(CASES)
    db = Database.create(LocalStorage(folder / ".mstore"), "Ada")
    tree = Worktree.create(folder, db)
    tree.commit(Description("Ada", "not all of these is understood"))
    pairs = [warning.partition(": ")[::2] for warning in tree.warnings]
    assert {path for path, _ in pairs} <= set(CASES)
    return pairs


@pytest.mark.parametrize("name", CASES)
def test_one_line(told: list[tuple[str, str]], name: str) -> None:
    expected = CASES[name][1]
    assert [what for path, what in told if path == name] == ([expected] if expected else [])
    assert "\n" not in expected
