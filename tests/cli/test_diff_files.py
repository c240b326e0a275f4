"""`mstore diff` of files: in two versions, in one, and on disk."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper


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


def test_no_tensor_of_such_a_name(model: str, first: str, mstore: Any) -> None:
    both = ("main~1:model.safetensors", "main:same.npz")
    for ends in (("main~1", "main"), both, ("main", "main"), ()):
        for more in ((), ("--exit-code",), ("--stat",), ("--json",)):
            ran = mstore("diff", *ends, "--tensor", "nope*", *more)
            assert (ran.code, ran.out) == (1, "")
            assert ran.error == "there is no tensor 'nope*' in either of the two"
            assert ran.hint == "see: mstore show REV --tensors"
    near = mstore("diff", *both, "--tensor", "encoder.0.bais")
    assert near.hint == "nearest names: encoder.0.bias, encoder.0.weight"
    exact = mstore.ok("diff", *both, "--tensor", "encoder.0.bias", "--exit-code")
    assert exact.err == "there is no difference: 1 tensor of the same values\n"


def test_tensors_that_are_the_same_in_files_that_differ(first: str, mstore: Any) -> None:
    Path("config.json").write_text("other")
    said = "tensors  none that match encoder.* changed"
    assert said in mstore.ok("diff", "--tensor", "encoder.*").lines
    assert said in mstore.ok("diff", "--tensor", "encoder.*", "--stat").lines
    assert not any(line.startswith("tensors") for line in mstore.ok("diff").lines)
    mstore.write_model("model.safetensors", 1, steps=np.array(2))
    assert "tensors  2 unchanged" in mstore.ok("diff", "--tensor", "encoder.*").lines


def tables(lines: list[str]) -> dict[str, list[str]]:
    """The tensors by the line above the titles of their table."""
    found: dict[str, list[str]] = {}
    names = None
    for above, line in pairwise(lines):
        if "dtype and shape" in line:
            names = found.setdefault(above.strip(), [])
        elif not line or line.startswith("  …"):
            names = None
        elif names is not None:
            names.append(line[line.index("vars") :].split("  ")[0] if "vars" in line else line)
    return found


def test_rows_of_several_files(first: str, mstore: Any) -> None:
    def write(seed: int, scale: float, **more: np.ndarray) -> None:
        for path in ("a.npz", "b.npz"):
            arrays = {f"vars/{n}": np.full(8, n + seed * scale) for n in (1, 2)}
            np.savez(path, **arrays, **more)
            scale *= 100
        np.save("alone.npy", np.full(4, seed))
        np.save("other.npy", np.full(4, seed + 1))

    write(0, 1)
    mstore.commit()
    write(1, 1)
    lines = mstore.ok("diff").lines
    assert tables(lines) == {
        "b.npz": ["vars/1", "vars/2"],
        "": [line for line in lines if line.startswith(("  alone.npy", "  other.npy"))],
        "a.npz": ["vars/1", "vars/2"],
    }
    assert len(tables(lines)[""]) == 2
    assert lines.index("  b.npz") < lines.index("  a.npz")
    one = tables(mstore.ok("diff", "--tensor", "a.npz:*").lines)
    assert one == {"": ["vars/1", "vars/2"]}
    # What is shown of one file alone may not be all.
    write(1, 1, **{f"vars/{n}": np.zeros(2) for n in range(10, 60)})
    lines = mstore.ok("diff").lines
    assert list(tables(lines)) == ["a.npz"]
    assert "  … and 66 more tensors (all with -v)" in lines
    assert {len(names) for names in tables(mstore.ok("diff", "-v").lines).values()} == {52, 2}


def test_rows_of_one_file_that_is_called_otherwise(model: str, mstore: Any) -> None:
    arrays = mstore.arrays(2)
    del arrays["steps"]
    np.savez("runs/changed.npz", **arrays)
    lines = mstore.ok("diff", "main:same.npz", "runs/changed.npz").lines
    assert sum("dtype and shape" in line for line in lines) == 1
    assert [line.split()[0] for line in lines[5:8]] == ["removed", "modified", "modified"]


def test_broken_numbers_of_several_files(first: str, mstore: Any) -> None:
    for path in ("a.npz", "b.npz"):
        np.savez(path, w=np.zeros(8))
    mstore.commit()
    for path in ("a.npz", "b.npz"):
        np.savez(path, w=np.full(8, np.nan))
    lines = mstore.ok("diff").lines
    assert "  8 elements of w in a.npz infinite or not a number (before: 0)" in lines
    lines = mstore.ok("diff", "main:a.npz", "a.npz").lines
    assert "  8 elements of w infinite or not a number (before: 0)" in lines


def test_tensors_in_a_file_beside(first: str, mstore: Any, tmp_path: Path) -> None:
    def write(folder: Path) -> None:
        folder.mkdir()
        tensor = numpy_helper.from_array(np.arange(9, dtype=np.float32), "w")
        node = helper.make_node("Identity", ["w"], ["y"])
        output = helper.make_tensor_value_info("y", TensorProto.FLOAT, [9])
        made = helper.make_model(helper.make_graph([node], "g", [], [output], [tensor]))
        onnx.save_model(made, folder / "m.onnx")
        options = {"save_as_external_data": True, "size_threshold": 0, "location": "ext.bin"}
        onnx.save_model(made, folder / "ext.onnx", **options)

    write(Path("runs"))
    mstore.commit()
    warning = (
        "warning: runs/ext.onnx keeps tensors in runs/ext.bin: name that instead to compare them"
    )
    ran = mstore.ok("diff", "main:runs/m.onnx", "main:runs/ext.onnx")
    assert "tensors  1 removed" in ran.lines
    assert ran.err.splitlines() == [warning]
    ran = mstore.ok("diff", "main:runs/ext.onnx")
    assert ran.err.splitlines() == [warning, "there is no difference"]
    for ends in (("main:runs/m.onnx", "main:runs/ext.bin"), ("main:runs", "main:runs")):
        ran = mstore.ok("diff", *ends)
        assert "there is no difference" in ran.err
        assert "warning" not in ran.err
    write(tmp_path / "else")
    on_disk = tmp_path / "else" / "ext.onnx"
    ran = mstore.ok("diff", "main:runs/m.onnx", str(on_disk))
    assert ran.err == (
        f"warning: {on_disk} keeps tensors in {on_disk.parent}/ext.bin: "
        "name that instead to compare them\n"
    )


def test_what_cannot_be_compared(model: str, mstore: Any) -> None:
    for names in (["same.npz"], ["main", "same.npz"], ["same.npz", "main"]):
        ran = mstore("diff", *names)
        assert (ran.code, ran.hint) == (2, "name one: REV:PATH")
    assert mstore("diff", "main:same.npz", "main:same.npy").code == 1
    assert mstore("diff", "main", "nowhere.npz").error == "unknown revision 'nowhere.npz'"
