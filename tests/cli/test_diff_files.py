"""`mstore diff` of files: in two versions, in one, and on disk."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest


@pytest.fixture
def model(first: str, mstore: Any) -> str:
    """The id of a version that has the model in another format, and a changed one."""
    arrays = mstore.arrays(1)
    np.savez("same.npz", **{name: np.asarray(array, order="F") for name, array in arrays.items()})
    arrays["encoder.0.bias"] = arrays["encoder.0.bias"] * np.float32(1.5)
    Path("runs").mkdir()
    np.savez("runs/changed.npz", **arrays)
    return str(mstore.commit())


def test_the_same_tensors(model: str, mstore: Any) -> None:
    ran = mstore.ok("diff", "main~1:model.safetensors", "main:same.npz", "--exit-code")
    assert ran.out == ""
    assert ran.err == "there is no difference: 3 tensors of the same values, 1 in another order\n"
    ran = mstore.ok("diff", "main~1:model.safetensors", "main:model.safetensors")
    assert ran.err == "there is no difference: 3 tensors of the same values\n"
    assert mstore.ok("diff", "main~1:config.json", "main").err == "there is no difference\n"


def test_tensors_that_differ(model: str, first: str, mstore: Any) -> None:
    ran = mstore("diff", "main~1:model.safetensors", "main:runs/changed.npz", "--exit-code")
    assert ran.code == 1
    lines = ran.lines
    assert lines[0] == f"{first[:12]}:model.safetensors → {model[:12]}:runs/changed.npz"
    assert lines[2].split()[:4] == ["modified", "model.safetensors", "→", "runs/changed.npz"]
    assert lines[5].split()[:5] == ["encoder.0.bias", "f32", "[256]", "100.0", "%"]
    assert "tensors  1 modified, 2 unchanged" in lines
    stat = mstore.ok("diff", "main:model.safetensors", "main:same.npz", "--stat").lines
    assert "tensors  1 modified, 2 unchanged" in stat


def test_the_document(model: str, first: str, mstore: Any) -> None:
    found = mstore.json("diff", "main~1:model.safetensors", "main:same.npz")
    assert (found["before"], found["after"]) == (first, model)
    assert (found["before_path"], found["after_path"]) == ("model.safetensors", "same.npz")
    assert found["files"] == []
    assert [(one["kind"], one["name"]) for one in found["tensors"]] == [
        ("reordered", "encoder.0.weight")
    ]
    assert found["totals"]["unchanged_tensors"] == 2
    assert "before_path" not in mstore.json("diff", "main~1", "main")


def test_with_the_working_directory(model: str, mstore: Any) -> None:
    assert mstore.ok("diff", "main:model.safetensors").err.startswith("there is no difference")
    Path("config.json").write_text("other")
    mstore.write_model("model.safetensors", 2)
    lines = mstore.ok("diff", "main:model.safetensors").lines
    assert (
        lines[0] == f"{model[:12]}:model.safetensors → model.safetensors in the working directory"
    )
    assert not any("config.json" in line for line in lines)
    Path("runs/changed.npz").unlink()
    gone = mstore("diff", "main:runs")
    assert (gone.code, gone.error) == (1, "there is no file 'runs' in the working directory")


def test_with_files_on_disk(model: str, mstore: Any, tmp_path: Path) -> None:
    other = tmp_path / "downloaded.bin"
    mstore.write_model(other, 1)
    ran = mstore.ok("diff", "main:same.npz", str(other))
    assert ran.err == "there is no difference: 3 tensors of the same values, 1 in another order\n"
    mstore.write_model(other, 2)
    lines = mstore.ok("diff", str(other), "main:same.npz").lines
    assert lines[0] == f"{other} → {model[:12]}:same.npz"
    assert any(line.startswith("tensors  3 modified") for line in lines)
    found = mstore.json("diff", str(other), "runs/changed.npz")
    assert (found["before"], found["after"]) == (None, None)
    assert found["totals"]["tensors"] == {"modified": 3}


def test_what_cannot_be_compared(model: str, mstore: Any) -> None:
    for names in (["same.npz"], ["main", "same.npz"], ["same.npz", "main"]):
        ran = mstore("diff", *names)
        assert (ran.code, ran.hint) == (2, "name one: REV:PATH")
    assert mstore("diff", "main:same.npz", "main:same.npy").code == 1
    assert mstore("diff", "main", "nowhere.npz").error == "unknown revision 'nowhere.npz'"
