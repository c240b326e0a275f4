"""`mstore show` of single files, and of tensors that are no segment of their own."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mstore.cli import text
from mstore.cli.tensors import _Sharing
from mstore.dtypes import BY_NAME
from mstore.layout import Strided, Tensor, View
from mstore.objects import Manifest, SegmentChunks


@pytest.fixture
def model(first: str, mstore: Any) -> str:
    """The id of a version with a file in which tensors share storages."""
    embed = torch.arange(2048, dtype=torch.float32).reshape(64, 32)
    Path("runs").mkdir()
    state = {
        "embed": embed,
        "head": embed,
        "rows": embed[2:4],
        "column": embed[:, 1],
        "b": embed[0, 0],
    }
    torch.save(state, "runs/m.pt")
    np.savez_compressed("runs/c.npz", packed=np.arange(10.0), plain=np.arange(3))
    return str(mstore.commit())


def rows(lines: list[str]) -> dict[str, list[str]]:
    """The rows of all tables by their first cell."""
    return {line.split()[0]: line.split() for line in lines if line.startswith("  ")}


def test_one_file_and_its_tensors(model: str, mstore: Any) -> None:
    lines = mstore.ok("show", "main:runs/m.pt").lines
    assert lines[:2] == [f"commit {model[:12]} (HEAD -> main)", ""]
    table = rows(lines)
    assert table["runs/m.pt"][:5] == ["runs/m.pt", "dtype", "shape", "kind", "size"]
    assert lines[3].split()[:3] == ["runs/m.pt", "torch", "5"]
    assert table["embed"][:3] == ["embed", "f32", "[64,32]"]
    assert "view" not in table["embed"]
    # What the storage takes is told once.
    assert table["head"] == ["head", "f32", "[64,32]", "view", "of", "embed", "8.2", "kB", "-", "0"]
    assert table["rows"][2:6] == ["[2,32]", "view", "of", "embed"]
    assert table["column"][2:6] == ["[64]", "view", "of", "embed"]
    assert table["b"][2:6] == ["[]", "view", "of", "embed"]
    assert "config.json" not in table


def test_paths_of_shards_differ_where_they_are_cut(
    first: str, mstore: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mstore.cli.tables._line_width", lambda: 66)
    for number in (1, 2):
        long = {f"encoder.{number}.attention.self.query.projection.weight": np.zeros(3, "f4")}
        mstore.write_model(f"model-0000{number}-of-00002.ckpt.safetensors", number, **long)
    mstore.commit()
    lines = [line.split() for line in mstore.ok("show", "--tensors").lines]
    titles = [line[0] for line in lines if line[1:3] == ["dtype", "shape"]]
    assert titles[:2] == [
        "model-00001-of…pt.safetensors",
        "model-00002-of…pt.safetensors",
    ]
    assert any(line[0].startswith("e.1.a.") for line in lines if line)


def test_one_file_without_tensors(model: str, mstore: Any) -> None:
    lines = mstore.ok("show", "HEAD:config.json").lines
    assert lines[3].split()[:4] == ["config.json", "opaque", "13", "B"]
    assert lines[4].startswith("  1 file, 13 B, stored in ")
    assert len(lines) == 5


def test_a_folder(model: str, mstore: Any) -> None:
    lines = mstore.ok("show", "main:runs").lines
    assert [line.split()[0] for line in lines[3:5]] == ["runs/c.npz", "runs/m.pt"]
    assert "embed" not in rows(lines)
    assert "embed" in rows(mstore.ok("show", "main:runs", "--tensors").lines)
    assert len(mstore.json("show", "main:runs/")["files"]) == 2


def test_packed_tensors(model: str, mstore: Any) -> None:
    table = rows(mstore.ok("show", "main:runs/c.npz").lines)
    assert table["packed"][1:6] == ["f64", "[10]", "deflate", "80", "B"]


def test_the_document(model: str, mstore: Any) -> None:
    shown = mstore.json("show", "main:runs/m.pt")
    assert shown["id"] == model
    (file,) = shown["files"]
    assert (file["path"], file["tensors"], file["format"]) == ("runs/m.pt", 5, "torch")
    tensors = {one["name"]: one for one in shown["tensors"]}
    assert (tensors["embed"]["view"], tensors["embed"]["view_of"]) == ("", [])
    assert (tensors["rows"]["view"], tensors["rows"]["view_of"]) == ("view", ["embed"])
    assert tensors["rows"]["bytes"] == 256
    assert tensors["rows"]["bytes_stored"] == tensors["embed"]["bytes_stored"]
    assert len({one["id"] for one in tensors.values()}) == 5
    assert "tensors" not in mstore.json("show", "main:runs")
    counts = {one["path"]: one["tensors"] for one in mstore.json("show")["files"]}
    assert counts["runs/m.pt"] == 5


def test_bases_of_views(model: str, mstore: Any) -> None:
    embed = torch.arange(2048, dtype=torch.float32).reshape(64, 32)
    embed[3] += 0.001
    torch.save({"embed": embed, "rows": embed[2:4]}, "runs/m.pt")
    mstore.commit()
    table = rows(mstore.ok("show", "main:runs/m.pt").lines)
    assert table["embed"][-2:] == ["main~1", "1"]
    assert table["rows"][-2:] == ["main~1", "1"]


def test_a_path_that_is_not_there(model: str, mstore: Any) -> None:
    ran = mstore("show", "main:runs/m.py")
    assert (ran.code, ran.error) == (1, "there is no file 'runs/m.py' in main")
    assert ran.hint.startswith("nearest paths: runs/m.pt")


def test_tensors_that_only_touch_share_nothing() -> None:
    f32 = BY_NAME["f32"]
    segments = tuple(
        SegmentChunks(16, bytes(32), Tensor(name, f32, (4,)), piece=16, hidden=name == "hidden")
        for name in ("a", "b", "hidden")
    )
    sharing = _Sharing(Manifest("test", 48, segments))

    def names(offset: int, count: int) -> tuple[str, ...]:
        return sharing.names(View(Tensor("v", f32, (count,)), Strided(offset, (4,))))

    assert names(0, 4) == ("a",)
    assert names(16, 1) == ("b",)
    assert names(12, 2) == ("a", "b")
    assert names(32, 4) == ()
    assert names(16, 8) == ("b",)


def test_what_files_share_is_stored_once(first: str, mstore: Any) -> None:
    weights = np.random.default_rng(0).standard_normal(50_000).astype("f4")
    for name in ("one.npy", "other.npy"):
        np.save(name, weights)
    mstore.commit()
    files = {one["path"]: one["bytes_stored"] for one in mstore.json("show")["files"]}
    assert files["one.npy"] == files["other.npy"] > 100_000
    (total,) = (line for line in mstore.ok("show").lines if "stored in" in line)
    together = sum(files.values()) - files["other.npy"]  # all of it is the other's, too
    assert f"stored in {text.size(together)} (" in total
