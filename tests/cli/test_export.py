"""`mstore export`, and which file `REV:PATH` names."""

import json
import os
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from mstore.cli import export as export_command


def test_export_npy(first: str, mstore: Any) -> None:
    ran = mstore.ok("export", "main", "--tensor", "encoder.0.weight", "-o", "w.npy")
    assert ran.err == "wrote encoder.0.weight (float32 [256, 64], 65.5 kB) to w.npy\n"
    assert np.array_equal(np.load("w.npy"), mstore.arrays(1)["encoder.0.weight"])
    mstore.ok("export", "main", "--tensor", "steps", "-o", "s.npy")
    assert np.load("s.npy").shape == ()
    assert np.load("s.npy") == 1


def test_export_safetensors(first: str, mstore: Any) -> None:
    mstore.ok("export", "main", "--tensor", "encoder.0.bias", "-o", "b.safetensors")
    Path("model.safetensors").unlink()
    mstore.commit()
    (tensor,) = mstore.json("show", "--tensors")["tensors"]
    assert (tensor["name"], tensor["shape"]) == ("encoder.0.bias", [256])
    told = mstore.json("export", first, "--tensor", "encoder.0.bias", "-o", "again.safetensors")
    assert (told["file"], told["tensor"]) == ("again.safetensors", "encoder.0.bias")
    assert (told["dtype"], told["shape"]) == ("float32", [256])
    assert Path("again.safetensors").read_bytes() == Path("b.safetensors").read_bytes()


def test_export_of_a_model_with_tensors_in_a_file_beside(first: str, mstore: Any) -> None:
    Path("runs").mkdir()
    tensors = [numpy_helper.from_array(np.arange(n, dtype=np.float32), f"w{n}") for n in (3, 9)]
    nodes = [helper.make_node("Identity", [f"w{n}"], [f"y{n}"]) for n in (3, 9)]
    outputs = [helper.make_tensor_value_info(f"y{n}", TensorProto.FLOAT, [n]) for n in (3, 9)]
    made = helper.make_model(helper.make_graph(nodes, "g", [], outputs, tensors))
    options = {"save_as_external_data": True, "size_threshold": 60, "location": "m.bin"}
    onnx.save_model(made, "runs/m.onnx", **options)
    mstore.commit()
    told = "warning: runs/m.onnx keeps more tensors in runs/m.bin, which are left out"
    ran = mstore.ok("export", "main:runs/m.onnx", "-o", "part.safetensors")
    assert ran.err.splitlines() == [told, "wrote w3 (float32 [3], 12 B) to part.safetensors"]
    assert told in mstore.ok("export", "main:runs/m.onnx", "-o", "a.npy", "--json").err
    ran = mstore.ok("export", "main:runs", "-o", "all.safetensors")
    assert ran.err.splitlines() == ["wrote 2 tensors (48 B) to all.safetensors"]
    ran = mstore.ok("export", "main:runs/m.onnx", "--tensor", "w3", "-o", "w3.npy")
    assert "left out" not in ran.err


def test_export_of_types_that_npy_cannot_name(first: str, mstore: Any) -> None:
    half = np.arange(8).astype(ml_dtypes.bfloat16)
    mstore.write_model("model.safetensors", 1, half=half)
    mstore.commit()
    refused = mstore("export", "main", "--tensor", "half", "-o", "h.npy")
    assert (refused.code, refused.error, refused.hint) == (
        1,
        "'half': .npy and .npz files have no element type bfloat16",
        "use a .safetensors file",
    )
    mstore.ok("export", "main", "--tensor", "half", "-o", "h.safetensors")
    assert Path("h.safetensors").read_bytes().endswith(half.tobytes())
    assert not Path("h.npy").exists()


def test_export_of_big_endian_and_column_major_arrays(first: str, mstore: Any) -> None:
    array = np.asfortranarray(np.arange(12, dtype=">i4").reshape(3, 4))
    np.save("odd.npy", array)
    mstore.commit()
    mstore.ok("export", "main", "--tensor", "odd.npy", "-o", "odd.safetensors")
    native = np.arange(12, dtype="<i4").tobytes()
    assert Path("odd.safetensors").read_bytes().endswith(native)
    assert b'"odd"' in Path("odd.safetensors").read_bytes()
    mstore.ok("export", "main", "--tensor", "odd.npy", "-o", "copy.npy")
    assert np.array_equal(np.load("copy.npy"), array)


def test_export_overwrites_only_with_force(first: str, mstore: Any) -> None:
    Path("w.npy").write_text("mine")
    args = ("export", "main", "--tensor", "steps", "-o", "w.npy")
    refused = mstore(*args)
    assert (refused.code, refused.hint) == (11, "overwrite it with --force")
    assert Path("w.npy").read_text() == "mine"
    mstore.ok(*args, "--force")
    assert np.load("w.npy") == 1
    assert sorted(os.listdir())[-1] == "w.npy"


def test_export_misused(first: str, mstore: Any) -> None:
    wrong = mstore("export", "main", "--tensor", "steps", "-o", "w.txt")
    assert wrong.code == 2
    assert wrong.error == "w.txt is neither .safetensors, .npz nor .npy, nor a folder"
    for size in ("5 apples", "0", "1i"):
        assert mstore("export", "main", "-o", "out/", "--shard-size", size).code == 2
    assert mstore("export", "main", "-o", "w.npz", "--shard-size", "5GB").code == 2
    assert mstore("export", "main").code == 2
    near = mstore("export", "main", "--tensor", "encoder.0.wieght", "-o", "w.npy")
    assert (near.code, near.hint) == (1, "nearest names: encoder.0.weight, encoder.0.bias")
    far = mstore("export", "main", "--tensor", "zzz", "-o", "w.npy")
    assert far.hint == f"see: mstore show {first[:12]} --tensors"
    nowhere = mstore("export", "main", "--tensor", "steps", "-o", "no/such/w.npy")
    assert (nowhere.code, nowhere.error) == (1, "there is no folder no/such")


def test_export_of_a_whole_version(first: str, mstore: Any) -> None:
    ran = mstore.ok("export", "main", "-o", "all.npz")
    assert (ran.out, ran.err) == ("", "wrote 3 tensors (66.6 kB) to all.npz\n")
    with np.load("all.npz") as found:
        assert {name: found[name].tolist() for name in found.files} == {
            name: array.tolist() for name, array in mstore.arrays(1).items()
        }
    told = mstore.json("export", "main", "-o", "all.safetensors")
    assert told["files"] == ["all.safetensors"]
    assert told["bytes"] == 66568
    assert {one["source_path"] for one in told["tensors"]} == {"model.safetensors"}


def test_export_of_some_tensors(first: str, mstore: Any) -> None:
    ran = mstore.ok("export", "main", "--tensor", "encoder.*", "-o", "some.npz")
    assert ran.err == "wrote 2 tensors (66.6 kB) to some.npz\n"
    mstore.ok("export", "main", "--tensor", "*.bias", "--tensor", "steps", "-o", "two.npz")
    assert sorted(np.load("two.npz").files) == ["encoder.0.bias", "steps"]


def test_export_of_a_folder_of_shards(first: str, mstore: Any) -> None:
    ran = mstore.ok("export", "main", "-o", "hub/", "--shard-size", "66kB")
    assert ran.err == "wrote 3 tensors (66.6 kB) to 2 files and their index in hub/\n"
    assert len(os.listdir("hub")) == 3
    index = json.loads(Path("hub/model.safetensors.index.json").read_text())
    assert len(index["weight_map"]) == 3
    assert mstore("export", "main", "-o", "hub").code == 11


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("7", 7),
        ("7B", 7),
        ("5GB", 5 * 10**9),
        ("512 MiB", 512 << 20),
        ("2k", 2000),
        ("1TiB", 1 << 40),
    ],
)
def test_sizes(text: str, size: int) -> None:
    assert export_command._bytes(text) == size


@pytest.fixture
def files(first: str, mstore: Any) -> str:
    """The id of a version with models in several folders."""
    for path in ("a:b.npy", "runs/1/w.npy", "runs/2/w.npy", "steps.npy"):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        np.save(path, np.full(2, len(path)))
    return str(mstore.commit())


def exported(mstore: Any, what: str) -> list[str]:
    """The paths of the tensors that are exported."""
    told = mstore.json("export", what, "-o", "x.npz", "--force")
    return sorted({one["source_path"] for one in told["tensors"]})


def test_paths_of_versions(files: str, mstore: Any) -> None:
    assert exported(mstore, "main:steps.npy") == ["steps.npy"]
    assert exported(mstore, f"{files[:8]}:./steps.npy") == ["steps.npy"]
    assert exported(mstore, "HEAD:runs") == ["runs/1/w.npy", "runs/2/w.npy"]
    assert exported(mstore, "main:runs/1/") == ["runs/1/w.npy"]
    assert exported(mstore, "main:a:b.npy") == ["a:b.npy"]
    assert exported(mstore, "default:main:a:b.npy") == ["a:b.npy"]
    assert exported(mstore, "main~1:model.safetensors") == ["model.safetensors"]
    assert len(exported(mstore, "main:")) == 5


def test_what_is_a_revision_is_no_path(files: str, mstore: Any) -> None:
    mstore.ok("tag", "steps.npy", "HEAD~1")
    assert exported(mstore, "default:steps.npy") == ["model.safetensors"]
    # A branch that is called as the model.
    mstore.ok("branch", "default", "main")
    assert exported(mstore, "default:steps.npy") == ["model.safetensors"]
    assert exported(mstore, "default~0:steps.npy") == ["steps.npy"]
    assert exported(mstore, "default:default:steps.npy") == ["steps.npy"]


def test_paths_that_are_not_there(files: str, mstore: Any) -> None:
    near = mstore("export", "main:step.npy", "-o", "x.npz")
    assert (near.code, near.error) == (1, "there is no file 'step.npy' in main")
    assert near.hint == "nearest paths: steps.npy, a:b.npy, runs/2/w.npy"
    far = mstore("export", "main:zzz", "-o", "x.npz")
    assert far.hint == "see: mstore show main"
    assert mstore("export", "mian:steps.npy", "-o", "x.npz").error == "unknown revision 'mian'"
    model = mstore("export", "default:mian", "-o", "x.npz")
    assert model.error == "unknown revision 'mian'"
    assert mstore("export", "default:mian:steps.npy", "-o", "x").code == 2
    for more in ((), ("--tensor", "w")):
        opaque = mstore("export", "main:config.json", "-o", "x.npz", *more)
        assert opaque.error == (
            "there are no tensors in config.json, which is of no format known here, so it is opaque"
        )
        assert opaque.hint.startswith("for files as they are: mstore checkout ")
    assert not Path("x.npz").exists()
