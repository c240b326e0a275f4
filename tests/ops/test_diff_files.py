"""Comparing files of different names and formats, and tensors that are no segment of their own."""

import io
import zlib
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import safetensors.numpy
import torch

from mstore.database import Database
from mstore.dtypes import BY_NAME
from mstore.errors import ConflictError, NotFoundError
from mstore.filebytes import StoredBytes
from mstore.formats.detect import describe
from mstore.ingest import FileToStore
from mstore.layout import Recoded, Tensor, View, cover
from mstore.objects import FileEntry, Snapshot, encode_object
from mstore.ops.changes import Change, Diff
from mstore.ops.commit import Content, Description, Target, record
from mstore.ops.compare import compare
from mstore.ops.describing import describe_file
from mstore.ops.diff import diff_sides
from mstore.ops.sides import FileSide, StoredSide
from mstore.ops.values import _blocks
from mstore.repository import Repository
from mstore.sources import BufferSource
from mstore.storage.memory import MemoryStorage

RNG = np.random.default_rng(5)
STATE = {
    "encoder.0.weight": RNG.standard_normal((40, 30)).astype("f4"),
    "encoder.0.bias": RNG.standard_normal(40).astype("f4"),
    "steps": np.array(7),
}


@pytest.fixture
def repo(monkeypatch: pytest.MonkeyPatch) -> Repository:
    return Repository(Database.create(MemoryStorage(), "Ada"))


def write(path: Path, state: dict[str, np.ndarray]) -> None:
    """The state in the format that the name says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    match path.name:
        case "wrapped.pt":
            held = {name: torch.from_numpy(np.array(array)) for name, array in state.items()}
            torch.save({"state_dict": held, "epoch": 3}, path)
        case "turned.npz":
            others = {
                name.replace(".", "/"): np.asarray(array, array.dtype.newbyteorder(">"), order="F")
                for name, array in state.items()
            }
            np.savez(path, **others)
        case "packed.npz":
            np.savez_compressed(path, **state)
        case "tiles.h5":
            with h5py.File(path, "w") as file:
                for name, array in state.items():
                    chunks = tuple(max(1, n // 3) for n in array.shape) or None
                    file.create_dataset(name.replace(".", "/"), data=array, chunks=chunks)
        case _:
            safetensors.numpy.save_file(state, path)


FORMATS = ["wrapped.pt", "turned.npz", "packed.npz", "tiles.h5", "plain.safetensors"]


@pytest.mark.parametrize("other", FORMATS[:-1])
def test_one_model_in_two_formats(repo: Repository, tmp_path: Path, other: str) -> None:
    write(tmp_path / "plain.safetensors", STATE)
    write(tmp_path / other, STATE)
    repo.commit(tmp_path)
    for paths in ((other, "plain.safetensors"), ("plain.safetensors", other)):
        found = repo.diff(*(f"main:{path}" for path in paths))
        assert not found
        assert found.totals.unchanged_tensors + len(found.tensors) == 3
        turned = {"encoder.0.weight", "encoder.0.bias", "steps"} if "turned" in other else set()
        assert {change.name.replace("/", ".") for change in found.tensors} == turned
        assert {change.kind for change in found.tensors} <= {Change.REORDERED}


@pytest.mark.parametrize("other", FORMATS)
def test_what_differs_between_two_formats(repo: Repository, tmp_path: Path, other: str) -> None:
    write(tmp_path / "a" / "plain.safetensors", STATE)
    weight = STATE["encoder.0.weight"].copy()
    weight[3, 4] += 1
    write(tmp_path / "b" / other, {**STATE, "encoder.0.weight": weight, "more": np.zeros(2)})
    repo.commit(tmp_path)
    found = repo.diff("main:a/plain.safetensors", f"main:b/{other}")
    (file,) = found.files
    assert (file.kind, file.path) == (Change.MODIFIED, f"b/{other}")
    changes = {change.kind: change for change in found.tensors}
    assert changes.keys() - {Change.REORDERED} == {Change.MODIFIED, Change.ADDED}
    numbers = changes[Change.MODIFIED].numbers
    assert numbers is not None
    assert (numbers.changed, numbers.elements) == (1, 1200)
    assert numbers.largest == pytest.approx(1)
    before = STATE["encoder.0.weight"].astype(float)
    assert numbers.relative == pytest.approx(
        np.linalg.norm(weight - before) / np.linalg.norm(before)
    )
    assert found.totals.unchanged_tensors + len(found.tensors) == 4


@pytest.mark.parametrize("pattern", ["encoder.*", "encoder/*"])
def test_unchanged_tensors_are_meant_by_either_name(
    repo: Repository, tmp_path: Path, pattern: str
) -> None:
    write(tmp_path / "plain.safetensors", STATE)
    write(tmp_path / "tiles.h5", STATE)
    repo.commit(tmp_path)
    for paths in (("tiles.h5", "plain.safetensors"), ("plain.safetensors", "tiles.h5")):
        found = repo.diff(*(f"main:{path}" for path in paths), tensor=pattern)
        assert (found.tensors, found.totals.unchanged_tensors) == ((), 2)


def test_unchanged_tensors_in_files_of_the_same_content(repo: Repository, tmp_path: Path) -> None:
    write(tmp_path / "a" / "plain.safetensors", STATE)
    write(tmp_path / "b" / "plain.safetensors", STATE)
    repo.commit(tmp_path)
    for pattern, count in ((None, 3), ("encoder.*", 2), ("a/*:steps", 1), ("b/*:steps", 1)):
        found = repo.diff("main:a", "main:b", tensor=pattern)
        assert (found.tensors, found.totals.unchanged_tensors) == ((), count)


def test_tensors_of_other_names_are_found_by_their_values(repo: Repository, tmp_path: Path) -> None:
    write(tmp_path / "plain.safetensors", STATE)
    write(tmp_path / "tiles.h5", {f"x/{n}": array for n, array in enumerate(STATE.values())})
    repo.commit(tmp_path)
    found = repo.diff("main:plain.safetensors", "main:tiles.h5")
    assert {(c.kind, c.before.tensor.name, c.name) for c in found.tensors if c.before} == {
        (Change.RENAMED, name, f"x/{n}") for n, name in enumerate(STATE)
    }
    # Without reading them nobody can know.
    found = repo.diff("main:plain.safetensors", "main:tiles.h5", numbers=False)
    assert {change.kind for change in found.tensors} <= {
        Change.ADDED,
        Change.REMOVED,
        Change.RENAMED,
    }


def test_an_array_alone_has_no_name_to_differ(repo: Repository, tmp_path: Path) -> None:
    array = STATE["encoder.0.weight"]
    np.save(tmp_path / "a.npy", array)
    np.savez(tmp_path / "same.npz", weight=array)
    np.savez(tmp_path / "other.npz", weight=array + 1)
    repo.commit(tmp_path)
    assert not repo.diff("main:a.npy", "main:same.npz")
    (change,) = repo.diff("main:other.npz", "main:a.npy").tensors
    assert (change.kind, change.name) == (Change.MODIFIED, "")
    assert change.numbers is not None
    assert change.numbers.largest == pytest.approx(1)


def test_folders(repo: Repository, tmp_path: Path) -> None:
    for run, changed in (("1", 0.0), ("2", 0.5)):
        bias = STATE["encoder.0.bias"] + np.float32(changed)
        write(tmp_path / run / "m.safetensors", {**STATE, "encoder.0.bias": bias})
        (tmp_path / run / "same.txt").write_text("same")
        (tmp_path / run / "log.txt").write_text(run)
    (tmp_path / "2" / "new.txt").write_text("new")
    repo.commit(tmp_path)
    found = repo.diff("main:1", "main:2")
    assert [(c.kind, c.old_path, c.path) for c in found.files] == [
        (Change.MODIFIED, "1/log.txt", "2/log.txt"),
        (Change.MODIFIED, "1/m.safetensors", "2/m.safetensors"),
        (Change.ADDED, None, "2/new.txt"),
    ]
    assert found.totals.unchanged_files == 1
    assert [change.name for change in found.tensors] == ["encoder.0.bias"]
    assert not repo.diff("main:1", "main:1")


def test_a_file_and_its_shards(repo: Repository, tmp_path: Path) -> None:
    write(tmp_path / "m.safetensors", STATE)
    repo.commit(tmp_path)
    repo["main"].export(f"{tmp_path}/shards/", shard_size=200)
    repo.commit(tmp_path)
    found = repo.diff("main:m.safetensors", "main:shards")
    assert [(c.kind, c.path) for c in found.files] == [
        (Change.ADDED, "shards/model.safetensors.index.json")
    ]
    assert found.tensors == ()
    assert found.totals.unchanged_tensors == 3


def test_files_without_tensors(repo: Repository, tmp_path: Path) -> None:
    for name, content in (("a", "x"), ("b", "x"), ("c", "y")):
        (tmp_path / name).write_text(content)
    write(tmp_path / "m.safetensors", STATE)
    repo.commit(tmp_path)
    assert not repo.diff("main:a", "main:b")
    assert [change.path for change in repo.diff("main:a", "main:c").files] == ["c"]
    found = repo.diff("main:a", "main:m.safetensors")
    assert len(found.files) == 1
    assert found.totals.tensors == {Change.ADDED: 3}


def test_a_path_on_one_side_is_meant_on_both(repo: Repository, tmp_path: Path) -> None:
    write(tmp_path / "m.safetensors", STATE)
    (tmp_path / "n").write_text("1")
    first = repo.commit(tmp_path)
    (tmp_path / "n").write_text("2")
    write(tmp_path / "m.safetensors", {**STATE, "steps": np.array(8)})
    repo.commit(tmp_path)
    for before, after in ((f"{first.id}:m.safetensors", "main"), ("main~1", "main:m.safetensors")):
        found = repo.diff(before, after)
        assert [change.path for change in found.files] == ["m.safetensors"]
        assert [change.name for change in found.tensors] == ["steps"]
        assert found.totals.unchanged_tensors == 2
    with pytest.raises(NotFoundError, match="no file 'o'"):
        repo.diff("main~1", "main:o")


class TestViews:
    """Tensors that share storages, in the usual diff of two versions."""

    @staticmethod
    def save(folder: Path, embed: torch.Tensor, **more: torch.Tensor) -> None:
        other = torch.arange(36.0).reshape(6, 6)
        state = {"embed": embed, "head": embed, "rows": embed[2:4], "t": other[:, 1:3], **more}
        torch.save(state, folder / "m.pt")

    def versions(self, repo: Repository, folder: Path, *embeds: torch.Tensor, **more: Any) -> Diff:
        for embed in embeds[:-1]:
            self.save(folder, embed)
            repo.commit(folder)
        self.save(folder, embeds[-1], **more)
        repo.commit(folder)
        return repo.diff("main~1", "main")

    def test_only_those_that_moved(self, repo: Repository, tmp_path: Path) -> None:
        one = torch.arange(64.0).reshape(8, 8)
        other = one.clone()
        other[0, 0] += 2
        found = self.versions(repo, tmp_path, one, other)
        assert {(c.kind, c.name) for c in found.tensors} == {
            (Change.MODIFIED, "embed"),
            (Change.MODIFIED, "head"),
        }
        for change in found.tensors:
            assert change.numbers is not None
            assert (change.numbers.changed, change.numbers.largest) == (1, 2)
        assert found.totals.unchanged_tensors == 2

    def test_no_hidden_ones(self, repo: Repository, tmp_path: Path) -> None:
        found = self.versions(repo, tmp_path, torch.zeros(4, 8), torch.ones(4, 8))
        assert {change.name for change in found.tensors} == {"embed", "head", "rows"}
        alone = self.versions(
            repo, tmp_path, torch.zeros(4, 8), torch.zeros(4, 8), new=torch.ones(3)
        )
        assert [(c.kind, c.name) for c in alone.tensors] == [(Change.ADDED, "new")]

    def test_only_names_and_places(self, repo: Repository, tmp_path: Path) -> None:
        """A header before the storages that grew moves them, but changes no value."""
        embed = torch.arange(64.0).reshape(8, 8)
        self.save(tmp_path, embed)
        repo.commit(tmp_path)
        state = torch.load(tmp_path / "m.pt")
        state["part"] = state.pop("rows")
        torch.save({"much": "x" * 300, **state}, tmp_path / "m.pt")
        repo.commit(tmp_path)
        for numbers in (True, False):
            found = repo.diff("main~1", "main", numbers=numbers)
            assert [(c.kind, c.name) for c in found.tensors] == [(Change.RENAMED, "part")]

    def test_in_the_working_directory(self) -> None:
        side, data = hashed(torch.arange(64.0).reshape(8, 8))
        other, _ = hashed(torch.arange(1, 65.0).reshape(8, 8))
        found = diff_sides(side.db, other, side)
        rows = next(change for change in found.tensors if change.name == "rows")
        assert rows.numbers is not None
        assert (rows.numbers.changed, rows.numbers.largest) == (16, 1)
        data[:] = bytes(len(data))
        with pytest.raises(ConflictError, match="changed while it was compared"):
            diff_sides(side.db, other, side)


def hashed(embed: torch.Tensor) -> tuple[FileSide, bytearray]:
    """A side of a file on disk whose tensors share a storage, and its bytes."""
    held = io.BytesIO()
    torch.save({"embed": embed, "rows": embed[2:4]}, held)
    data = bytearray(held.getvalue())
    source = BufferSource([memoryview(data)])
    layout, _ = describe(source)
    manifest = describe_file(source, layout)
    entry = FileEntry(encode_object(manifest)[1], manifest.size)
    return (
        FileSide(
            Database.create(MemoryStorage(), "Ada"),
            Snapshot({"m.pt": entry}),
            {"m.pt": manifest},
            lambda _: BufferSource([memoryview(data)]),
        ),
        data,
    )


def test_a_file_that_holds_something_else_than_it_says(repo: Repository) -> None:
    """What cannot be decoded has no numbers, and is no reason to tell nothing of the rest."""

    def committed(raw: bytes, value: float) -> Snapshot:
        place = Recoded("zlib", 0, len(raw), 16)
        data = raw + np.full(4, value).tobytes()
        layout = cover(
            *("test", len(data)),
            [(len(raw), Tensor("plain", BY_NAME["f64"], (4,)))],
            views=[View(Tensor("packed", BY_NAME["f64"], (2,)), place)],
        )
        file = FileToStore("f", BufferSource([memoryview(data)]), layout)
        target = Target("default", f"b{value}", None, ())
        content = Content(lambda: [file], {})
        return record(repo.database, target, content, Description("Ada")).snapshot

    one, other = committed(zlib.compress(bytes(16)), 1.0), committed(b"broken zlib data", 2.0)
    db = repo.database
    found = diff_sides(db, StoredSide(db, one), StoredSide(db, other))
    assert {(c.kind, c.name, c.numbers is None) for c in found.tensors} == {
        (Change.MODIFIED, "plain", False),
        (Change.MODIFIED, "packed", True),
    }


def test_names_of_wrappers_and_formats(repo: Repository, tmp_path: Path) -> None:
    """In a version the names that formats give are told, but the tensors are found."""
    write(tmp_path / "m.safetensors", STATE)
    repo.commit(tmp_path)
    bias = STATE["encoder.0.bias"] + np.float32(1)
    write(
        tmp_path / "m.safetensors",
        {f"module.{n}": a for n, a in {**STATE, "encoder.0.bias": bias}.items()},
    )
    repo.commit(tmp_path)
    found = repo.diff("main~1", "main")
    assert {(c.kind, c.name) for c in found.tensors} == {
        (Change.MODIFIED, "module.encoder.0.bias"),
        (Change.RENAMED, "module.encoder.0.weight"),
        (Change.RENAMED, "module.steps"),
    }


def test_names_of_wrappers_count_for_each_file(repo: Repository, tmp_path: Path) -> None:
    """Two models of the same names: each is compared with what it was."""
    for wrapper, step in (("", 0), ("module.", 1)):
        for number in (1, 2):
            value = np.full(3, 10.0 * number + step)
            write(tmp_path / f"{number}.safetensors", {f"{wrapper}w": value})
        repo.commit(tmp_path)
    found = repo.diff("main~1", "main").tensors
    assert [(c.kind, c.before.path if c.before else "", c.path) for c in found] == [
        (Change.MODIFIED, "1.safetensors", "1.safetensors"),
        (Change.MODIFIED, "2.safetensors", "2.safetensors"),
    ]


def test_a_model_that_was_converted_and_trained(repo: Repository, tmp_path: Path) -> None:
    """Neither the name of the file nor any of its bytes are as before."""
    write(tmp_path / "plain.safetensors", STATE)
    repo.commit(tmp_path)
    (tmp_path / "plain.safetensors").unlink()
    write(tmp_path / "wrapped.pt", {name: array + 1 for name, array in STATE.items()})
    repo.commit(tmp_path)
    found = repo.diff("main~1", "main")
    assert {change.kind for change in found.files} == {Change.ADDED, Change.REMOVED}
    assert {change.kind for change in found.tensors} == {Change.MODIFIED}
    assert found.totals.changed_elements == 1241


@pytest.mark.parametrize("sizes", [[], [3], [1, 1, 1], [8], [4, 4], [9], [3, 20, 1], [16, 1]])
def test_parts_are_put_together_to_blocks(sizes: list[int]) -> None:
    whole = bytes(range(sum(sizes)))
    ends = np.cumsum(sizes, dtype=int)
    parts = [memoryview(whole)[end - size : end] for size, end in zip(sizes, ends, strict=True)]
    blocks = [bytes(block) for block in _blocks(iter(parts), 4)]
    assert b"".join(blocks) == whole
    assert [len(block) for block in blocks] == [4] * (len(whole) // 4) + (
        [len(whole) % 4] if len(whole) % 4 else []
    )


def test_large_tensors_in_two_orders(
    repo: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Values are compared block by block: whatever the blocks, the numbers are those of the whole."""
    monkeypatch.setattr("mstore.ops.values._BLOCK", 64)
    monkeypatch.setattr("mstore.ops.values._ROOM", 1000)
    one = RNG.standard_normal((50, 61))
    other = one + 1e-3 * RNG.standard_normal(one.shape)
    np.savez(tmp_path / "m.npz", w=one)
    repo.commit(tmp_path)
    np.savez(tmp_path / "m.npz", w=np.asfortranarray(other).astype(">f8"))
    repo.commit(tmp_path)
    (change,) = repo.diff("main~1", "main").tensors
    whole = compare(one.data.cast("B"), other.data.cast("B"), *[BY_NAME["f64"]] * 2)
    assert change.numbers is not None
    assert change.numbers.changed == whole.changed == one.size
    assert change.numbers.sums.change == pytest.approx(whole.change)
    assert change.numbers.sums.product == pytest.approx(whole.product)


@pytest.mark.parametrize("kind", ["slices", "tiles", "deflated"])
def test_many_small_tensors_share_what_is_read(
    repo: Repository, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No chunk is decoded for each of the tensors in it, and no read is planned for each of them."""

    def commit(values: np.ndarray) -> None:
        if kind == "slices":
            whole = torch.from_numpy(values)
            torch.save({f"{n}": whole[n, ::2] for n in range(len(whole))}, tmp_path / "m.pt")
        elif kind == "tiles":
            with h5py.File(tmp_path / "m.h5", "w") as file:
                for number, row in enumerate(values):
                    file.create_dataset(str(number), data=row.reshape(10, 10), chunks=(5, 5))
        else:
            rows = {str(number): row for number, row in enumerate(values)}
            np.savez_compressed(tmp_path / "m.npz", **rows)
        repo.commit(tmp_path)

    values = RNG.standard_normal((300, 100)).astype("f4")
    commit(values)
    commit(values + 1)
    reads: list[list[int]] = []
    fetch = StoredBytes._fetch

    def note(self: StoredBytes, starts: Any, wanted: Any, out: memoryview) -> None:
        reads.append(starts.tolist())
        fetch(self, starts, wanted, out)

    monkeypatch.setattr(StoredBytes, "_fetch", note)
    monkeypatch.setattr("mstore.ops.values.default_threads", lambda: 2)
    view = repo["main"]
    loaded = view.load()
    assert isinstance(loaded, dict)
    assert len(loaded) == 300
    assert 1 <= len(reads) <= 3
    view.export(tmp_path / "out.npz")
    assert len(reads) <= 6
    found = repo.diff("main~1", "main")
    assert found.totals.changed_elements == sum(array.size for array in loaded.values())
    assert len(reads) <= 12
    monkeypatch.undo()
    with np.load(tmp_path / "out.npz") as exported:
        for name, array in loaded.items():
            np.testing.assert_array_equal(array, exported[name.removesuffix(".npy")])
