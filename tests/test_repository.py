"""The public object, from Python: what goes in comes out, from arrays, files and directories."""

import os
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ml_dtypes import bfloat16, float8_e4m3fn

import mstore
from mstore import (
    ConflictError,
    CorruptDataError,
    InvalidInputError,
    NoRepositoryError,
    NotFoundError,
    Progress,
    Repository,
    StorageError,
    UnsupportedVersionError,
)
from mstore.ops.commit import Recorded, record


def test_arrays_come_back_equal(repo: Repository) -> None:
    value = OrderedDict(
        encoder={
            "w": np.float32([[1, -0.0], [np.nan, np.inf]]),
            "layers": [np.arange(3), (1, None)],
        },
        half=np.array([1.5, -2], bfloat16),
        eight=np.array([0.5], float8_e4m3fn),
        big=np.array([1, 2], ">i4"),
        nothing=np.empty((0, 3)),
        scalar=np.float64(7).reshape(()),
        names=["a", "b"],
        rate=3e-4,
        raw=b"\0\1",
    )
    found = repo.commit(value, "first", metadata={"loss": 0.3}).load()
    assert isinstance(found, OrderedDict)
    assert list(found) == list(value)
    assert found["encoder"]["w"].tobytes() == value["encoder"]["w"].tobytes()
    assert found["encoder"]["layers"][1] == (1, None)
    for name in ("half", "eight", "big", "nothing", "scalar"):
        assert found[name].dtype == value[name].dtype
        assert found[name].shape == value[name].shape
        assert found[name].tobytes() == value[name].tobytes()
    assert (found["names"], found["rate"], found["raw"]) == (["a", "b"], 3e-4, b"\0\1")


def test_a_version_says_what_it_is(repo: Repository) -> None:
    snapshot = repo.commit({"w": np.zeros(3)}, "first\nmore", metadata={"loss": 0.3}, author="Bob")
    assert (snapshot.message, snapshot.author, snapshot.metadata) == (
        "first\nmore",
        "Bob",
        {"loss": 0.3},
    )
    assert snapshot.parents == ()
    assert snapshot.time.tzinfo is not None
    assert repr(snapshot) == f"<Snapshot {snapshot.id[:12]} 'first', 1 file>"
    assert repr(snapshot.tensors) == "<1 tensors: w>"
    assert repr(repo) == "<Repository memory://, 1 branch>"
    assert repr(repo.model("bert")) == "<Repository memory:// model bert, 0 branches>"
    assert repr(snapshot.files["model.safetensors"]).startswith(
        "<File model.safetensors safetensors"
    )
    assert snapshot == repo["main"]
    assert len({snapshot, repo["main"]}) == 1
    assert snapshot.size == snapshot.files["model.safetensors"].size


def test_a_virtual_file_is_a_real_safetensors_file(repo: Repository, tmp_path: Path) -> None:
    from safetensors.numpy import load_file

    weights = {"w": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.ones(2, np.int8)}
    snapshot = repo.commit(weights, path="bert/weights.safetensors")
    snapshot.checkout(tmp_path / "out")
    loaded = load_file(tmp_path / "out" / "bert" / "weights.safetensors")
    for name, array in weights.items():
        np.testing.assert_array_equal(loaded[name], array)
    again = repo.commit(tmp_path / "out", "as files")
    assert not snapshot.files.keys() - again.files.keys()
    np.testing.assert_array_equal(again.load()["w"], weights["w"])  # type: ignore[index]


def test_directories_and_files_on_disk(repo: Repository, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    (folder / "sub").mkdir(parents=True)
    np.save(folder / "e.npy", np.arange(5))
    np.savez(folder / "sub" / "z.npz", a=np.ones(2), b=np.zeros(3))
    (folder / "config.json").write_text("{}")
    (folder / "run.sh").write_text("#!")
    (folder / "run.sh").chmod(0o755)
    snapshot = repo.commit(folder, "dir")
    assert set(snapshot.files) == {"e.npy", "sub/z.npz", "config.json", "run.sh"}
    assert set(snapshot.tensors) == {"e.npy", "a", "b"}
    np.testing.assert_array_equal(snapshot.tensors["e.npy"], np.arange(5))
    np.testing.assert_array_equal(snapshot.tensors["sub/z.npz:a"], np.ones(2))
    assert set(snapshot.load()) == {"e.npy", "a", "b"}  # type: ignore[call-overload]
    assert snapshot.files["run.sh"].executable
    assert [snapshot.files[p].format for p in ("e.npy", "sub/z.npz", "run.sh")] == [
        "npy",
        "npz",
        "opaque",
    ]
    out = snapshot.checkout(tmp_path / "out")
    for path in snapshot.files:
        assert (out / path).read_bytes() == (folder / path).read_bytes()
        assert os.access(out / path, os.X_OK) == os.access(folder / path, os.X_OK)
    one = repo.commit(str(folder / "config.json"), "one file", branch="side")
    assert set(one.files) == {"config.json"}
    with pytest.raises(InvalidInputError, match="no tensors"):
        one.load()


def test_two_files_with_a_tensor_of_one_name(repo: Repository, tmp_path: Path) -> None:
    for name in ("one", "two"):
        repo.commit({"w": np.full(2, len(name))}, branch=name, path=f"{name}.safetensors")
        repo[name].checkout(tmp_path)
    snapshot = repo.commit(tmp_path)
    assert set(snapshot.tensors) == {"one.safetensors:w", "two.safetensors:w"}
    assert "w" not in snapshot.tensors
    with pytest.raises(NotFoundError, match="no tensor 'w'"):
        snapshot.tensors["w"]


def test_reading_part_of_a_file(repo: Repository, tmp_path: Path) -> None:
    data = np.random.default_rng(0).bytes(500_000)
    (tmp_path / "blob").write_bytes(data)
    file = repo.commit(tmp_path).files["blob"]
    for offset, length in (
        (0, None),
        (0, 10),
        (123_456, 99_999),
        (499_999, 5),
        (500_000, 1),
        (7, 0),
    ):
        stop = None if length is None else offset + length
        assert file.read(offset, length) == data[offset:stop]


def test_a_checkout_does_not_overwrite(repo: Repository, tmp_path: Path) -> None:
    snapshot = repo.commit({"w": np.zeros(3)})
    (tmp_path / "model.safetensors").write_text("mine")
    with pytest.raises(ConflictError, match="holds something else"):
        snapshot.checkout(tmp_path)
    assert (tmp_path / "model.safetensors").read_text() == "mine"
    snapshot.checkout(tmp_path, force=True)
    snapshot.checkout(tmp_path)


def test_what_cannot_be_stored_names_its_place(repo: Repository) -> None:
    with pytest.raises(InvalidInputError, match="encoder"):
        repo.commit({"encoder": [object()]})
    with pytest.raises(NotFoundError, match="no file or directory"):
        repo.commit("no/such/path")
    with pytest.raises(InvalidInputError):
        repo.commit({"w": np.zeros(1)}, path="../outside")
    with pytest.raises(InvalidInputError):
        repo.commit({"w": np.zeros(1)}, metadata={"x": np.zeros(1)})  # type: ignore[dict-item]
    assert repo.branches == {}


def test_branches_begin_where_they_are_told(repo: Repository) -> None:
    first = repo.commit({"w": 1})
    second = repo.commit({"w": 2})
    side = repo.commit({"w": 3}, branch="side", parent="main~1")
    assert side.parents == (first.id,)
    with pytest.raises(InvalidInputError, match="cannot begin"):
        repo.commit({"w": 4}, branch="side", parent="main")
    assert repo.commit({"w": 5}, parent="main").parents == (second.id,)


def test_the_log(repo: Repository) -> None:
    for number in range(5):
        repo.commit({"w": number}, f"n{number}", metadata={"loss": 1 / (number + 1)})
    repo.commit({"w": 9}, "side", branch="side")
    assert [one.message for one in repo.log("main", limit=2)] == ["n4", "n3"]
    assert [one.message for one in repo.log(where="loss<0.3", sort="loss")] == ["n4", "n3"]
    assert len(list(repo.log())) == 6
    with pytest.raises(InvalidInputError):
        list(repo.log(where="loss <"))


def test_the_diff(repo: Repository) -> None:
    repo.commit({"w": np.zeros(100, np.float32), "same": np.ones(3)})
    changed = np.zeros(100, np.float32)
    changed[:10] = 2
    repo.commit({"w": changed, "same": np.ones(3)})
    (change,) = repo.diff("main~1", "main").tensors
    assert change.name == "w"
    assert change.numbers is not None
    assert change.numbers.fraction == 0.1
    assert not repo.diff("main", "main")


def test_progress_is_told(repo: Repository) -> None:
    class Counting(Progress):
        total = done = 0

        def begin(self, total: int) -> None:
            self.total = total

        def advance(self, done: int) -> None:
            self.done += done

    progress = Counting()
    repo.commit({"w": np.zeros(1000)}, progress=progress)
    assert progress.total == progress.done > 8000


def test_init_and_open(tmp_path: Path) -> None:
    made = mstore.init(tmp_path / "models")
    made.commit({"w": np.zeros(3)})
    assert mstore.open(tmp_path / "models")["main"].tensors["w"].shape == (3,)
    assert mstore.open(str(tmp_path / "models" / ".mstore"))["main"].id == made["main"].id
    bare = mstore.init(tmp_path / "bare", bare=True)
    bare.commit({"w": 1})
    assert (tmp_path / "bare" / "roots").is_dir()
    assert mstore.open(tmp_path / "bare", model="bert").model_name == "bert"
    for again in (
        lambda: mstore.init(tmp_path / "models"),
        lambda: mstore.init(tmp_path / "bare", bare=True),
    ):
        with pytest.raises(StorageError, match="already"):
            again()
    for missing in (tmp_path, tmp_path / "nowhere", "memory://nothing-here"):
        with pytest.raises(NoRepositoryError, match="mstore init"):
            mstore.open(missing)
    with pytest.raises(InvalidInputError):
        mstore.open("ftp://host/path")


def test_repositories_in_memory_by_name() -> None:
    mstore.init("memory://shared-name").commit({"w": 1})
    assert mstore.open("memory://shared-name")["main"].load() == {"w": 1}


def test_a_newer_format_is_named(tmp_path: Path) -> None:
    mstore.init(tmp_path)
    (root,) = (tmp_path / ".mstore" / "roots").iterdir()
    data = bytearray(root.read_bytes())
    data[8] = 99
    root.chmod(0o644)
    root.write_bytes(data)
    with pytest.raises(UnsupportedVersionError, match="upgrade"):
        mstore.open(tmp_path)


def test_a_damaged_weight_is_never_given(tmp_path: Path) -> None:
    repo = mstore.init(tmp_path)
    repo.commit({"w": np.random.default_rng(0).standard_normal(10_000)})
    (pack,) = (tmp_path / ".mstore" / "packs").glob("d*")
    data = bytearray(pack.read_bytes())
    pack.chmod(0o644)
    for position in range(100, len(data), len(data) // 7):
        changed = bytearray(data)
        changed[position] ^= 16
        pack.write_bytes(changed)
        with pytest.raises(CorruptDataError):
            mstore.open(tmp_path)["main"].load()


def test_two_repositories_on_one_place_see_each_other(tmp_path: Path) -> None:
    one = mstore.init(tmp_path)
    two = mstore.open(tmp_path)
    one.commit({"w": 1}, "from one")
    second = two.commit({"w": 2}, "from two")
    assert second.parents == (one["main"].id,)
    one.refresh()
    assert one["main"].message == "from two"


def test_ids_are_taken_as_text_or_bytes(repo: Repository) -> None:
    snapshot = repo.commit({"w": 1})
    assert repo[bytes.fromhex(snapshot.id)] == snapshot
    repo.delete_branch("main")
    (lost,) = repo.gc(dry_run=True).lost
    repo.create_branch("back", lost.id)
    assert repo["back"] == snapshot


def test_what_is_missing_is_named(repo: Repository) -> None:
    snapshot = repo.commit({"w": 1}, branch="dev")
    with pytest.raises(NotFoundError, match=r"no file 'nope'"):
        snapshot.files["nope"]
    assert "nope" not in snapshot.files
    assert repr(snapshot.files) == "<1 files: model.safetensors>"
    with pytest.raises(NotFoundError, match=r"no branch main.*branches: dev"):
        repo["HEAD"]
    with pytest.raises(InvalidInputError, match=r"\.safetensors"):
        repo.commit({"w": 1}, path="w.npy")
    assert repr(repo.diff("dev", "dev")) == "<Diff 0 files, 0 tensors changed>"
    assert repr(next(repo.reflog())).startswith("<Root 2: commit ")


def test_no_repository_inside_or_over_another(tmp_path: Path) -> None:
    mstore.init(tmp_path / "hub", bare=True).commit({"w": 1})
    with pytest.raises(StorageError, match="itself a repository"):
        mstore.init(tmp_path / "hub")
    mstore.init(tmp_path / "tree").commit({"w": 1})
    for root in (tmp_path / "tree" / ".mstore" / "roots").iterdir():
        root.unlink()
    with pytest.raises(StorageError, match="backup"):
        mstore.init(tmp_path / "tree")
    assert list((tmp_path / "tree" / ".mstore" / "packs").iterdir())


def test_a_base_by_hand(repo: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[list[str]] = []

    def recorded(*args: Any, bases: Sequence[bytes], **more: Any) -> Recorded:
        told.append([base.hex() for base in bases])
        return record(*args, bases=bases, **more)

    monkeypatch.setattr("mstore.repository.record", recorded)
    weights = np.random.default_rng(0).normal(0, 0.02, 20_000).astype(np.float32)
    first = repo.commit({"w": weights})
    second = repo.commit({"w": weights * np.float32(1.5)}, base=())
    tuned = repo.model("tuned")
    found = tuned.commit({"w": weights + np.float32(1e-6)}, base="default:main~1")
    tuned.commit({"w": weights + np.float32(2e-6)}, base=["default:main", "main"])
    assert told == [[], [], [first.id], [second.id, found.id]]
    assert found.tensors["w"].depth == 1
    assert found.tensors["w"].stored < first.tensors["w"].stored / 2
    assert first.tensors["w"].depth == 0
    assert np.array_equal(found.load()["w"], weights + np.float32(1e-6))
    with pytest.raises(NotFoundError, match="unknown revision 'mian'"):
        tuned.commit({"w": weights}, base=["main", "mian"])


def test_a_checkpoint_of_torch_comes_back(repo: Repository) -> None:
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.BatchNorm1d(3)).bfloat16()
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(2, 4, dtype=torch.bfloat16)).sum().backward()
    optimizer.step()
    checkpoint = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 3}
    loaded = repo.commit(checkpoint).load(arrays="torch")
    assert loaded["epoch"] == 3
    assert loaded["optimizer"]["param_groups"] == checkpoint["optimizer"]["param_groups"]
    again = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.BatchNorm1d(3)).bfloat16()
    again.load_state_dict(loaded["model"])
    for name, tensor in model.state_dict().items():
        assert loaded["model"][name].dtype == tensor.dtype
        assert torch.equal(again.state_dict()[name], tensor)
    other = torch.optim.AdamW(again.parameters())
    other.load_state_dict(loaded["optimizer"])
    for number, state in optimizer.state_dict()["state"].items():
        assert other.state_dict()["state"][number].keys() == state.keys()
        for name, tensor in state.items():
            assert torch.equal(other.state_dict()["state"][number][name], tensor)


def test_files_load_as_tensors_of_torch(repo: Repository, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    torch.save({"w": torch.ones(3, dtype=torch.bfloat16)}, tmp_path / "m.pt")
    loaded = repo.commit(tmp_path / "m.pt").load(arrays="torch")
    assert torch.equal(loaded["w"], torch.ones(3, dtype=torch.bfloat16))
    with pytest.raises(InvalidInputError):
        repo["main"].load(arrays="tensorflow")
