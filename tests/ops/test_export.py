"""Exporting tensors of any layout to safetensors, npz, npy and folders of shards."""

import json
import os
import zipfile
import zlib
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mstore.database import Database
from mstore.dtypes import BY_NAME, DType
from mstore.errors import (
    ConflictError,
    CorruptDataError,
    InvalidInputError,
    NotFoundError,
)
from mstore.formats.safetensors import DTYPE_NAMES, read_metadata
from mstore.ingest import FileToStore
from mstore.layout import Recoded, Strided, Tensor, Tiled, View, cover
from mstore.numpy_dtypes import bytes_of, little_endian, numpy_dtype
from mstore.ops import export as export_op
from mstore.ops import rowmajor, targets
from mstore.ops.commit import Content, Description, Target, record
from mstore.repository import Repository
from mstore.snapshot import Snapshot
from mstore.sources import BufferSource
from mstore.storage.memory import MemoryStorage

F32 = BY_NAME["f32"]
PLAIN = [dtype for dtype in BY_NAME.values() if dtype.bits >= 8]


@pytest.fixture(autouse=True)
def _no_sync(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda _: None)


class File:
    """A file to be committed, put together from tensors of any kind."""

    def __init__(self, path: str = "f", head: bytes = b"header!") -> None:
        self.path = path
        self.data = head
        self.tensors: list[tuple[int, Tensor]] = []
        self.hidden: list[str] = []
        self.views: list[View] = []

    def segment(self, tensor: Tensor, data: bytes, *, hidden: bool = False) -> int:
        """Put a tensor at the end; returns its offset."""
        offset = len(self.data)
        self.tensors.append((offset, tensor))
        self.hidden += [tensor.name] * hidden
        self.data += data
        return offset

    def array(self, name: str, array: np.ndarray, kind: str = "") -> "File":
        dtype = next(d for d in PLAIN if numpy_dtype(d) == array.dtype)
        order = "F" if array.flags.f_contiguous and not array.flags.c_contiguous else "C"
        self.segment(Tensor(name, dtype, array.shape, order, kind), array.tobytes(order))
        return self

    def source(self) -> FileToStore:
        layout = cover("test", len(self.data), self.tensors, hidden=self.hidden, views=self.views)
        return FileToStore(self.path, BufferSource([memoryview(self.data)]), layout)


def version(*files: File, chunk_size: int = 64) -> Snapshot:
    db = Database.create(MemoryStorage(), "Ada")
    sources = [file.source() for file in files]
    target = Target("default", "main", None, ())
    content = Content(lambda: sources, {})
    recorded = record(db, target, content, Description("Ada"), chunk_size=chunk_size)
    return Repository(db)[recorded.id.hex()]


def bits(array: np.ndarray) -> tuple[str, tuple[int, ...], bytes]:
    """Type, shape and bytes as an export has them."""
    # Not a copy where none is needed, which would make a 1 of any other byte of a bool.
    little = np.require(array.astype(little_endian(array.dtype), copy=False), requirements="C")
    return str(little.dtype), array.shape, bytes(bytes_of(little))


def loaded(path: Path) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """What the real library reads from a safetensors file, by its view of the bytes."""
    names = {name: str(numpy_dtype(dtype)) for dtype, name in DTYPE_NAMES.items()}
    return {
        name: (names[one["dtype"]], tuple(one["shape"]), bytes(one["data"]))
        for name, one in safetensors.deserialize(path.read_bytes())
    }


def filled(dtype: DType, shape: tuple[int, ...], seed: int) -> bytes:
    return np.random.default_rng(seed).integers(0, 256, dtype.nbytes(shape), "u1").tobytes()


@st.composite
def files(draw: Any) -> File:
    """A file with tensors of all kinds of places, types and orders."""
    file = File()
    for number in range(draw(st.integers(1, 4))):
        dtype = draw(st.sampled_from(PLAIN))
        shape = tuple(draw(st.lists(st.integers(0, 9), max_size=3)))
        tensor = Tensor(f"t{number}", dtype, shape)
        kind = draw(st.sampled_from(["C", "F", "strided", "contiguous", "tiled", "deflate"]))
        if kind in "CF":
            file.segment(Tensor(tensor.name, dtype, shape, kind), filled(dtype, shape, number))
        elif kind == "deflate":
            raw = b"xyz" + filled(dtype, shape, number)
            packed = zlib.compress(raw)
            place = Recoded("zlib", len(file.data), len(packed), len(raw), 3)
            file.data += packed
            file.views.append(View(tensor, place))
        elif kind == "tiled" and shape:
            tile = tuple(draw(st.integers(1, 4)) for _ in shape)
            offsets = []
            for _ in range(prod(-(-n // t) for n, t in zip(shape, tile, strict=True))):
                offsets.append(len(file.data) if draw(st.booleans()) else -1)
                file.data += filled(dtype, tile, len(file.data)) if offsets[-1] >= 0 else b""
            fill = filled(dtype, (), 5)
            file.views.append(View(tensor, Tiled(tile, tuple(offsets), fill)))
        else:
            strides = tuple(draw(st.integers(0, 40)) for _ in shape)
            if kind == "contiguous":
                strides = tuple(dtype.itemsize * prod(shape[at + 1 :]) for at in range(len(shape)))
            span = sum(max(n - 1, 0) * s for n, s in zip(shape, strides, strict=True))
            storage = Tensor(f"s{number}", BY_NAME["u8"], (span + dtype.itemsize + 9,))
            raw = filled(storage.dtype, storage.shape, number)
            offset = file.segment(storage, raw, hidden=True) + draw(st.integers(0, 9))
            file.views.append(View(tensor, Strided(offset, strides)))
    return file


@settings(max_examples=150, deadline=None)
@given(file=files(), part=st.sampled_from([1, 40, 1 << 20]), chunk=st.sampled_from([64, 1000]))
def test_every_kind_of_tensor_is_what_reading_it_gives(
    file: File, part: int, chunk: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    snapshot = version(file, chunk_size=chunk)
    folder = tmp_path_factory.mktemp("out")
    expected = {name: bits(tensor.numpy()) for name, tensor in snapshot.tensors.items()}
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(export_op, "placed", lambda one: rowmajor.placed(one, part))
        names = {d.numpy for d in DTYPE_NAMES}
        safe = [n for n, (dtype, _, _) in expected.items() if dtype in names]
        if safe:
            snapshot.export(folder / "a.safetensors", tensors=safe)
            assert loaded(folder / "a.safetensors") == {name: expected[name] for name in safe}
        known = [
            n
            for n, one in snapshot.tensors.items()
            if one.dtype.kind != "V" and "8_" not in str(one.dtype)
        ]
        known = [n for n in known if "bfloat" not in expected[n][0]]
        if known:
            snapshot.export(folder / "a.npz", tensors=known)
            with np.load(folder / "a.npz") as read:
                assert {name: bits(read[name]) for name in read.files} == {
                    name: expected[name] for name in known
                }


def test_real_torch_files(tmp_path: Path) -> None:
    base = torch.arange(60, dtype=torch.float32).reshape(6, 10)
    state = {
        "whole": base,
        "rows": base[2:5],
        "column": base[:, 3],
        "transposed": base.t(),
        "half": torch.linspace(0, 1, 7).to(torch.bfloat16),
        "counter": torch.tensor(5),
        "empty": torch.zeros(0, 3),
        "flags": torch.tensor([True, False]),
    }
    torch.save(state, tmp_path / "m.pt")
    repo = Repository(Database.create(MemoryStorage(), "Ada"))
    snapshot = repo.commit(tmp_path / "m.pt")
    snapshot.export(tmp_path / "m.safetensors")
    read = safetensors.torch.load_file(tmp_path / "m.safetensors")
    assert read.keys() == snapshot.tensors.keys()
    for name, tensor in read.items():
        assert tensor.dtype == state[name].dtype
        assert torch.equal(tensor, state[name])


def test_a_safetensors_file_keeps_the_rules_of_the_format(tmp_path: Path) -> None:
    file = File().array("odd", np.arange(3, dtype="u1")).array("b", np.arange(3.0))
    file.array("c", np.arange(5, dtype="f2"))
    snapshot = version(file)
    snapshot.export(tmp_path / "a.safetensors")
    raw = (tmp_path / "a.safetensors").read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    assert length % 8 == 0
    assert header.pop("__metadata__") == {"format": "pt", "mstore.commit": snapshot.id}
    spans = [tuple(entry["data_offsets"]) for entry in header.values()]
    assert spans == [(0, 24), (24, 34), (34, 37)]
    assert len(raw) == 8 + length + 37
    assert (tmp_path / "a.safetensors").stat().st_mode & 0o777 == 0o666 & ~_umask()


def _umask() -> int:
    os.umask(mask := os.umask(0))
    return mask


def test_packed_elements_stay_packed(tmp_path: Path) -> None:
    file = File()
    file.segment(Tensor("four", BY_NAME["f4"], (3, 4)), bytes(range(6)))
    file.segment(Tensor("six", BY_NAME["f6_e2m3"], (8,)), bytes(range(6)))
    file.array("wide", np.arange(3.0))
    version(file).export(tmp_path / "a.safetensors")
    raw = (tmp_path / "a.safetensors").read_bytes()
    assert raw.endswith(np.arange(3.0).tobytes() + bytes(range(6)) * 2)
    with pytest.raises(InvalidInputError, match="no element type float4_e2m1fn"):
        version(file).export(tmp_path / "a.npz")
    twisted = File()
    twisted.segment(Tensor("four", BY_NAME["f4"], (3, 4), "F"), bytes(range(6)))
    with pytest.raises(InvalidInputError, match="packs several elements"):
        version(twisted).export(tmp_path / "b.safetensors")


def test_blocks_are_exported_as_bytes_and_told(tmp_path: Path) -> None:
    file = File().array("q", np.arange(36, dtype="u1").reshape(2, 18), "q4_0")
    done = version(file).export(tmp_path / "a.safetensors")
    assert done.notes == ["1 tensor of q4_0 exported as the bytes they are"]
    with (tmp_path / "a.safetensors").open("rb") as read:
        metadata = read_metadata(Reader(read.read()))
    assert json.loads(metadata["mstore.kinds"]) == {"q": "q4_0"}


class Reader:
    def __init__(self, data: bytes) -> None:
        self.data = data
        self.size = len(data)

    def read(self, offset: int, length: int) -> bytes:
        return self.data[offset : offset + length]


def test_a_zip_is_what_savez_would_make(tmp_path: Path) -> None:
    arrays = {
        "a": np.arange(6, dtype=">i4").reshape(2, 3),
        "ü/b": np.zeros((0, 2)),
        "c": np.array(1j),
    }
    file = File()
    for name, array in arrays.items():
        file.array(name, array)
    snapshot = version(file)
    snapshot.export(tmp_path / "a.npz")
    snapshot.export(tmp_path / "b.npz")
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    with zipfile.ZipFile(tmp_path / "a.npz") as archive:
        assert archive.testzip() is None
        assert [one.filename for one in archive.infolist()] == ["a.npy", "ü/b.npy", "c.npy"]
    # It is a file of arrays for this program, too.
    again = Repository(snapshot._db).commit(tmp_path / "a.npz", branch="other")
    assert again.files["a.npz"].format == "npz"
    for name, array in arrays.items():
        assert np.array_equal(again.tensors[name].numpy(), array)


def test_a_zip_beyond_four_gigabytes_keeps_its_places() -> None:
    tensors = [Tensor("a", F32, (3 << 28, 2)), Tensor("b", F32, (2,))]
    plan = targets.plan_npz(tensors)
    sparse = {}
    # A checksum of so much would take long.
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(targets, "_checksum", lambda member, read: 7)
        sparse.update(plan.around(lambda offset, length: b""))
    end = sparse.pop(max(sparse))
    assert plan.offsets[1] > 6 << 30
    assert max(sparse).to_bytes(8, "little") in end
    assert end.count((6 << 30).to_bytes(8, "little")[4:]) >= 1


@pytest.mark.parametrize(
    "name", ["../a", "/etc/a", "a//b", "a\\..\\b", "a\0b", "\ud800", "x" * 70_000]
)
def test_names_that_a_zip_must_not_have(name: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="npz file cannot be called"):
        targets.plan_npz([Tensor(name, F32, (1,))])


def test_what_files_cannot_have(tmp_path: Path) -> None:
    half = version(File().array("h", np.zeros(2, numpy_dtype(BY_NAME["bf16"]))))
    for suffix in ("npy", "npz"):
        with pytest.raises(InvalidInputError, match="no element type bfloat16") as refused:
            half.export(tmp_path / f"a.{suffix}")
        assert refused.value.hint == "use a .safetensors file"
    wide = version(File().array("c", np.zeros(2, "c16")))
    with pytest.raises(InvalidInputError, match="no element type c128"):
        wide.export(tmp_path / "a.safetensors")
    reserved = version(File().array("__metadata__", np.zeros(2)))
    with pytest.raises(InvalidInputError, match="__metadata__"):
        reserved.export(tmp_path / "a.safetensors")
    two = version(File().array("a", np.zeros(2)).array("b", np.zeros(2)))
    with pytest.raises(InvalidInputError, match="holds one array"):
        two.export(tmp_path / "a.npy")
    with pytest.raises(InvalidInputError, match="neither"):
        two.export(tmp_path / "a.txt")
    with pytest.raises(InvalidInputError, match="no tensors"):
        version(File()).export(tmp_path / "a.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_an_array_alone(tmp_path: Path) -> None:
    array = np.asfortranarray(np.arange(12, dtype=">i4").reshape(3, 4))
    snapshot = version(File("runs/odd.npy").array("", array))
    snapshot.export(tmp_path / "copy.npy")
    read = np.load(tmp_path / "copy.npy")
    assert read.dtype == np.dtype("<i4")
    assert np.array_equal(read, array)
    done = snapshot.export(tmp_path / "a.safetensors", tensors=["runs/odd.npy"])
    assert [one.name for one in done.tensors] == ["runs/odd"]


def test_tensors_of_one_name(tmp_path: Path) -> None:
    one, other = (
        File(path).array("w", np.full(3, value)) for path, value in (("a", 1.0), ("b", 2.0))
    )
    other.array("v", np.zeros(1))
    snapshot = version(one, other)
    assert {t.name for t in snapshot.export(tmp_path / "all.npz").tensors} == {"a:w", "b:w", "v"}
    (only,) = snapshot.export(tmp_path / "b.npy", tensors="b:w").tensors
    assert (only.name, only.source_path, only.source_name) == ("w", "b", "w")
    assert np.load(tmp_path / "b.npy")[0] == 2
    done = snapshot.files["b"].export(tmp_path / "c.npz")
    assert [tensor.name for tensor in done.tensors] == ["w", "v"]
    done = snapshot.export(tmp_path / "d.npz", files="a")
    assert [tensor.name for tensor in done.tensors] == ["w"]
    with pytest.raises(NotFoundError):
        snapshot.export(tmp_path / "d.npz", files=["c"])


def test_names_that_cannot_be_told_apart(tmp_path: Path) -> None:
    one, other = File("a").array("w", np.zeros(1)), File("b").array("w", np.zeros(1))
    one.array("b:w", np.zeros(1))
    with pytest.raises(InvalidInputError, match="two tensors would be called 'b:w'"):
        version(one, other).export(tmp_path / "a.npz")


def test_tensors_by_pattern(tmp_path: Path) -> None:
    file = File()
    for name in ("enc.0.w", "enc.1.w", "enc.0.b", "head[0]", "head0"):
        file.array(name, np.zeros(1))
    snapshot = version(file)

    def names(*patterns: str) -> list[str]:
        done = snapshot.export(tmp_path / "a.npz", tensors=patterns, force=True)
        return [tensor.name for tensor in done.tensors]

    assert names("enc.*.w") == ["enc.0.w", "enc.1.w"]
    assert names("enc.1.w", "enc.0.*") == ["enc.0.w", "enc.1.w", "enc.0.b"]
    assert names("head[0]") == ["head[0]"]
    assert names("head?") == ["head0"]
    assert names("f:enc.*b") == ["enc.0.b"]
    with pytest.raises(NotFoundError, match=r"no tensor 'enc\.0\.v'") as missing:
        names("enc.0.v")
    assert missing.value.hint is not None
    assert missing.value.hint.startswith("nearest names: enc.0.")


def test_a_folder_of_shards(tmp_path: Path) -> None:
    file = File()
    arrays = {f"layer.{n}": np.arange(n, n + 100, dtype="f4") for n in range(5)}
    for name, array in arrays.items():
        file.array(name, array)
    snapshot = version(file)
    done = snapshot.export(f"{tmp_path}/hub/", shard_size=900)
    folder = tmp_path / "hub"
    shards = [f"model-0000{n}-of-00003.safetensors" for n in (1, 2, 3)]
    assert sorted(os.listdir(folder)) == [*shards, "model.safetensors.index.json"]
    assert list(done.files) == [str(folder / n) for n in (*shards, "model.safetensors.index.json")]
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    assert index["metadata"] == {"total_size": 2000}
    assert list(index["weight_map"]) == list(arrays)
    for shard in shards:
        for name, tensor in safetensors.torch.load_file(folder / shard).items():
            assert index["weight_map"].pop(name) == shard
            assert np.array_equal(tensor.numpy(), arrays[name])
    assert index["weight_map"] == {}
    with pytest.raises(ConflictError):
        snapshot.export(folder, shard_size=900)
    with pytest.raises(InvalidInputError):
        snapshot.export(folder, shard_size=0, force=True)


def test_what_an_earlier_export_would_leave_in_a_folder(tmp_path: Path) -> None:
    """It is not deleted, but loaders would take it for a part of the model."""
    file = File()
    for n in range(8):
        file.array(f"layer.{n}", np.arange(100, dtype="f4"))
    snapshot = version(file)
    folder = tmp_path / "hub"
    snapshot.export(f"{folder}/", shard_size=1)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(ConflictError) as refused:
        snapshot.export(folder, shard_size=900, force=True)
    assert refused.value.message == (
        f"{folder} has files of another model, which would be loaded, too:"
        f" {', '.join(f'model-0000{n}-of-00008.safetensors' for n in range(1, 6))} and 3 more"
    )
    assert "remove these" in (refused.value.hint or "")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    snapshot.export(folder, shard_size=1, force=True)
    for path in folder.iterdir():
        path.unlink()
    (folder / "model.safetensors").write_text("which many loaders prefer to an index")
    with pytest.raises(ConflictError, match=r"loaded, too: model\.safetensors \("):
        snapshot.export(folder, shard_size=900)
    (folder / "model.safetensors").rename(folder / "adapter_model.safetensors")
    snapshot.export(folder, shard_size=900)


def test_the_index_is_replaced_when_all_that_it_names_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = File().array("a", np.arange(9.0)).array("b", np.arange(9.0))
    steps: list[str] = []
    files = type(export_op.FILES)
    rename, fsync_dir = files.rename, files.fsync_dir

    def renamed(self: Any, path: Path, to: Path) -> None:
        steps.append(to.name)
        rename(self, path, to)

    def synced(self: Any, path: Path) -> None:
        steps.append(f"sync {path.name}")
        fsync_dir(self, path)

    monkeypatch.setattr(files, "rename", renamed)
    monkeypatch.setattr(files, "fsync_dir", synced)
    version(file).export(f"{tmp_path}/hub/", shard_size=1)
    shards = [f"model-0000{n}-of-00002.safetensors" for n in (1, 2)]
    assert steps[-5:] == [*shards, "sync hub", "model.safetensors.index.json", "sync hub"]


def test_nothing_is_overwritten_unless_forced(tmp_path: Path) -> None:
    snapshot = version(File().array("w", np.arange(3.0)))
    there = tmp_path / "w.npy"
    there.symlink_to("nowhere")
    with pytest.raises(ConflictError, match="is there already"):
        snapshot.export(there)
    snapshot.export(there, force=True)
    assert np.array_equal(np.load(there), np.arange(3.0))
    assert not there.is_symlink()
    with pytest.raises(NotFoundError, match="there is no folder"):
        snapshot.export(tmp_path / "no" / "such" / "w.npy")
    (tmp_path / "hub" / "model.safetensors.index.json").mkdir(parents=True)
    with pytest.raises(ConflictError, match="is a folder"):
        snapshot.export(tmp_path / "hub", force=True)


@pytest.mark.parametrize("out", ["w.safetensors", "w.npz", "hub/"])
def test_damage_leaves_what_was_there(
    out: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot = version(File().array("v", np.arange(9.0)).array("w", np.arange(100.0)))
    (tmp_path / "w.npz").write_text("mine")
    (tmp_path / "w.safetensors").write_text("mine")
    put = export_op._Copies.put

    def broken(self: Any, position: int, raw: memoryview) -> None:
        if position == 7:
            raise CorruptDataError("a chunk is damaged")
        put(self, position, raw)

    monkeypatch.setattr(export_op._Copies, "put", broken)
    with pytest.raises(CorruptDataError):
        snapshot.export(f"{tmp_path}/{out}", force=True)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert sorted(path.name for path in files) == ["w.npz", "w.safetensors"]
    assert {path.read_text() for path in files} == {"mine"}


def test_progress_counts_every_byte(tmp_path: Path) -> None:
    file = File().array("w", np.arange(100.0))
    file.array("f", np.asfortranarray(np.zeros((5, 4))))
    told: list[int] = []
    version(file).export(tmp_path / "a.safetensors", progress=told.append)
    assert sum(told) == 800 + 160
