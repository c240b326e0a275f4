"""What is told of files without tensors, when somebody asks for some."""

import gzip
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper

from mstore.database import Database
from mstore.errors import InvalidInputError
from mstore.formats import detect
from mstore.ids import Id
from mstore.layout import Beside, ByteReader, Layout
from mstore.ops import without_tensors
from mstore.ops.commit import Description
from mstore.ops.without_tensors import no_tensors, stored_data_files
from mstore.repository import Repository
from mstore.storage.local import LocalStorage
from mstore.worktree import Worktree

GGUF = b"GGUF\3\0\0\0" + bytes(8) + b"\1" + bytes(7) + b"\xff" * 8
"""Metadata with a key of endless length."""


class Version:
    """A version of these files."""

    def __init__(self, folder: Path, files: dict[str, bytes]) -> None:
        for name, data in files.items():
            (folder / name).write_bytes(data)
        self.db = Database.create(LocalStorage(folder / ".mstore"), "Ada")
        self.tree = Worktree.create(folder, self.db)
        self.id: Id = self.tree.commit(Description("Ada", "files")).id

    def error(self, *paths: str) -> InvalidInputError:
        """What is told of some of them."""
        return no_tensors(self.db, self.id, paths)


def test_why_a_file_was_not_understood(tmp_path: Path) -> None:
    compressed = gzip.compress(pickle.dumps({"w": np.arange(99.0)}))
    version = Version(tmp_path, {"bad.gguf": GGUF, "w.pkl.gz": compressed})
    error = version.error("bad.gguf")
    assert error.message.startswith("there are no tensors in bad.gguf: looks like gguf but ")
    assert error.message.endswith("; stored as opaque bytes")
    assert error.hint == f"for files as they are: mstore checkout {version.id.hex()[:12]} -o FOLDER"
    assert version.error("w.pkl.gz").message == (
        "there are no tensors in w.pkl.gz: opaque bytes: it is a compressed joblib file"
    )


def test_exporting_them(tmp_path: Path) -> None:
    version = Version(tmp_path, {"bad.gguf": GGUF, "notes.txt": b"text"})
    snapshot = Repository(version.db)["main"]
    for export in (
        lambda: snapshot.files["bad.gguf"].export(tmp_path / "x.npz"),
        lambda: snapshot.export(tmp_path / "x.npz", files=iter(["bad.gguf"]), tensors="w"),
        lambda: snapshot.export(tmp_path / "x.npz"),
    ):
        with pytest.raises(InvalidInputError, match=r"in bad\.gguf: looks like gguf but "):
            export()
    with pytest.raises(InvalidInputError, match=r"in notes\.txt, which is of no format"):
        snapshot.export(tmp_path / "x.npz", files="notes.txt")


def test_files_of_other_kinds(tmp_path: Path) -> None:
    names = pickle.dumps({"names": ["a", "b"]})
    version = Version(tmp_path, {"notes.txt": b"text", "names.pkl": names})
    assert version.error("notes.txt").message == (
        "there are no tensors in notes.txt, which is of no format known here, so it is opaque"
    )
    assert version.error("names.pkl").message == (
        "there are no tensors in names.pkl, which is a pickle file"
    )
    assert version.error("notes.txt", "names.pkl").message == (
        "there are no tensors in any of 2 files"
    )
    assert version.error().message == "there are no tensors in any of 0 files"


TENSORFLOW = Path(__file__).parents[1] / "formats" / "tensorflow_files" / "sharded"


def onnx_model(*locations: str) -> bytes:
    """A model whose tensors lie elsewhere, one at each place."""
    tensors = []
    for name in locations:
        tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=[2])
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value=name)
        tensors.append(tensor)
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, [2])
    nodes = [helper.make_node("Identity", [locations[0]], ["y"])]
    graph = helper.make_graph(nodes, "g", [], [output], tensors)
    return bytes(helper.make_model(graph).SerializeToString())


def test_tensors_in_files_beside(tmp_path: Path) -> None:
    folder = tmp_path / "runs"
    shutil.copytree(TENSORFLOW, folder)
    names = ["e.bin", "d.bin", "c.bin", "b.bin"]
    for name in names:
        (folder / name).write_bytes(bytes(8))
    for name in (".index", ".data-00000-of-00002"):
        shutil.copy(folder / f"ckpt-1{name}", folder / f"bare{name.removesuffix('.index')}")
    (folder / "m.onnx").write_bytes(onnx_model(*names, "gone.bin", "else/where.bin"))
    (folder / "one.onnx").write_bytes(onnx_model("b.bin"))
    (folder / "lost.onnx").write_bytes(onnx_model("gone.bin"))
    version = Version(tmp_path, {"b.bin": bytes(8)})
    one = version.error("runs/one.onnx")
    assert one.message == "there are no tensors in runs/one.onnx, which is an onnx file"
    assert one.hint == "its tensors are in runs/b.bin: name that instead"
    for name in ("lost.onnx", "bare"):  # an index without a suffix is nobody's
        hint = version.error(f"runs/{name}").hint
        assert hint is not None
        assert hint.startswith("for files as they are: ")
    data = [f"ckpt-1.data-0000{number}-of-00002" for number in (0, 1)]
    index = version.error("runs/ckpt-1.index")
    assert index.message.endswith("ckpt-1.index, which is a tensorflow-index file")
    assert index.hint == (
        f"its tensors are in runs/{data[0]}, runs/{data[1]}: "
        "name one of these, or the folder, instead"
    )
    assert stored_data_files(version.db, version.id, "runs/m.onnx") == [
        f"runs/{name}" for name in sorted(names)
    ]
    for no_file in ("runs", "nowhere"):
        assert stored_data_files(version.db, version.id, no_file) == []


def test_many_files_beside(tmp_path: Path) -> None:
    names = [f"{number}.bin" for number in range(5)]
    files = {name: bytes(8) for name in names} | {"m.onnx": onnx_model(*names)}
    hint = Version(tmp_path, files).error("m.onnx").hint
    assert hint == (
        "its tensors are in 0.bin, 1.bin, 2.bin and 2 more: "
        "name one of these, or the folder, instead"
    )


def test_the_largest_of_many_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bad = {f"{number}.gguf": GGUF + bytes(number) for number in range(5)}
    version = Version(tmp_path, bad | {f"{number}.txt": b"x" for number in range(90)})
    described: list[int] = []

    def counted(reader: ByteReader, beside: Beside | None) -> tuple[Layout, str | None]:
        described.append(reader.size)
        return detect.describe(reader, beside)

    monkeypatch.setattr(without_tensors, "describe", counted)
    message = version.error(*bad, *(f"{number}.txt" for number in range(90))).message
    assert described == [len(GGUF) + 4, len(GGUF) + 3, len(GGUF) + 2]  # enough to tell
    assert message.endswith("; nor in 92 other files")
    assert version.error("0.gguf", "1.txt").message.endswith("; nor in 1 other file")
    assert message.index("4.gguf: ") < message.index("3.gguf: ") < message.index("2.gguf: ")
    assert "1.gguf" not in message


def test_files_that_are_understood_by_now(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.save(tmp_path / "w.npy", np.arange(3.0))
    with monkeypatch.context() as patch:
        patch.setattr(detect, "FORMATS", [])
        version = Version(tmp_path, {})
    assert version.error("w.npy").message == (
        "there are no tensors in w.npy: it was committed before mstore knew such files, "
        "or through a link; see: mstore commit --rehash"
    )
    (tmp_path / "copy.npy").write_bytes((tmp_path / "w.npy").read_bytes())
    again = version.tree.commit(Description("Ada", "again")).id
    entry = version.db.snapshot(version.db.commit(again).snapshot).files["copy.npy"]
    assert version.db.manifest(entry.manifest).format == "npy"
