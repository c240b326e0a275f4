"""Files of torch.save in a repository: their tensors are read back, hostile ones are stored too."""

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest

import mstore
from mstore.database import Database
from mstore.ops.commit import Description
from mstore.storage.local import LocalStorage
from mstore.worktree import Worktree

GOLDEN = Path(__file__).parent / "torch_files"


@pytest.fixture
def tree(tmp_path):
    db = Database.create(LocalStorage(tmp_path / ".mstore"), "Ada")
    return Worktree.create(tmp_path, db)


def test_tensors_of_all_golden_files(tree):
    paths = sorted(GOLDEN.glob("*.pt"))
    for path in paths:
        (tree.directory / path.name).write_bytes(path.read_bytes())
    tree.commit(Description("Ada", "golden"))
    version = mstore.open(tree.directory)["HEAD"]
    for path in paths:
        file = version.files[path.name]
        assert file.format == "torch"
        assert file.read() == path.read_bytes()
        expected = json.loads(path.with_suffix(".json").read_text())
        assert set(file.tensors) == set(expected)
        for name, tensor in file.tensors.items():
            array, said = tensor.numpy(), expected[name]
            assert list(array.shape) == said["shape"]
            assert array.dtype.newbyteorder("=").name == said["dtype"].removeprefix(">")
            if array.dtype.itemsize > 1 and not said["dtype"].startswith(">"):
                order = "F" if said["order"] == "F" else "C"
                assert array.tobytes(order).hex() == said["data"]


def test_a_change_costs_only_what_changed(tree):
    """The second version of a checkpoint shares every chunk but those of the tensor that moved."""
    data = (GOLDEN / "training.pt").read_bytes()
    moved = json.loads((GOLDEN / "training.json").read_text())["model.1.weight"]["data"]
    for content in (data, data.replace(bytes.fromhex(moved), bytes(16))):
        (tree.directory / "model.pt").write_bytes(content)
        tree.commit(Description("Ada", "step"))
    repo = mstore.open(tree.directory)
    diff = repo.diff("HEAD~1", "HEAD")
    assert [change.name for change in diff.tensors] == ["model.1.weight"]
    assert np.count_nonzero(repo["HEAD"].tensors["model.1.weight"][...]) == 0


def test_a_hostile_file_is_committed(tree):
    with zipfile.ZipFile(tree.directory / "evil.pt", "w") as made:
        made.writestr("x/data.pkl", b"cos\nsystem\n(S'touch ran'\ntR.")
        made.writestr("x/version", b"3\n")
    (tree.directory / "cut.pt").write_bytes((GOLDEN / "alone.pt").read_bytes()[:-9])
    tree.commit(Description("Ada", "hostile"))
    files = mstore.open(tree.directory)["HEAD"].files
    assert {path: file.format for path, file in files.items()} == {
        "cut.pt": "opaque",
        "evil.pt": "opaque",
    }
    assert all(file.read() == (tree.directory / path).read_bytes() for path, file in files.items())
    cut, evil = tree.warnings
    assert cut.startswith("cut.pt: looks like torch but ")
    assert evil.startswith("evil.pt: dangerous to load (calls os.system)")
