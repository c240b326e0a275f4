"""`distinct` is `np.unique`, and what a commit does does not need the latter."""

import json
import struct
import subprocess
import sys

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from mstore.distinct import distinct


def safetensors(arrays):
    """A file of these arrays of float32, with which no pickle could begin."""
    size = 4096
    header = {
        name: {"dtype": "F32", "shape": array.shape, "data_offsets": [n * size, (n + 1) * size]}
        for n, (name, array) in enumerate(arrays.items())
    }
    text = json.dumps(header).encode()
    text += b" " * ((0x90 - len(text)) % 256)  # an opcode that needs a mark before it
    return struct.pack("<Q", len(text)) + text + b"".join(map(bytes, arrays.values()))


COMMIT = """
import sys
import numpy as np
import mstore

repo = mstore.init("repository", author="Ada")
repo.commit("model", "first")
sys.exit(" ".join(sys.modules.keys() & {"numpy.ma", "mstore.formats.pickle_file"}) or 0)
"""


@given(st.lists(st.integers(0, 2**64 - 1)), st.sampled_from(["u8", "u4", "u1"]))
def test_as_unique(numbers, kind):
    given = np.array([number % 2 ** (8 * int(kind[1])) for number in numbers], kind)
    found = distinct(given)
    assert found.dtype == given.dtype
    np.testing.assert_array_equal(found, np.unique(given))


def test_a_commit_does_not_load_what_it_does_not_need(tmp_path):
    """Where a file is no pickle, and tensors are looked for among those that are stored."""
    model = tmp_path / "model"
    model.mkdir()
    arrays = {f"w{n:02}": np.full((32, 32), n, "f4") for n in range(40)}
    (model / "model.safetensors").write_bytes(safetensors(arrays))
    (model / "config.json").write_text("{}")
    done = subprocess.run(
        [sys.executable, "-c", COMMIT], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
