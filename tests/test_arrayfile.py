"""Safetensors files made of arrays by name."""

import numpy as np
import pytest
import safetensors.numpy

from mstore import arrayfile
from mstore.arrayfile import pack_arrays, place_tensors
from mstore.dtypes import BY_NAME
from mstore.errors import InvalidInputError, LimitExceededError
from mstore.layout import Tensor


def written(arrays, metadata):
    file = pack_arrays(arrays, metadata)
    assert file.header == file.header[: file.layout.segments[0].length]
    data = file.header + b"".join(file.buffers)
    assert len(data) == file.size
    return data


def test_the_reference_library_reads_it(tmp_path):
    arrays = {
        "ü": np.arange(6, dtype=np.int8).reshape(2, 3),
        "a": np.arange(2.0),
        "0": np.array(True),
        "none": np.zeros((0, 4), np.float16),
    }
    path = tmp_path / "a.safetensors"
    path.write_bytes(written(arrays, {"format": "np", "note": '"ü'}))
    with safetensors.safe_open(path, "np") as file:
        assert file.metadata() == {"format": "np", "note": '"ü'}
        assert set(file.keys()) == set(arrays)
        for name, array in arrays.items():
            found = file.get_tensor(name)
            assert (found.dtype, found.shape) == (array.dtype, array.shape)
            assert found.tobytes() == array.tobytes()


@pytest.mark.parametrize("arrays", [{}, {"a": np.zeros(0)}])
def test_nothing_in_it(arrays):
    assert set(safetensors.numpy.load(written(arrays, {}))) == set(arrays)


@pytest.mark.parametrize(
    "array",
    [np.arange(3, dtype=">f4"), np.array(["x"]), np.arange(6)[::2], np.arange(2.0) + 1j],
)
def test_what_safetensors_cannot_hold(array):
    with pytest.raises(InvalidInputError, match="'w'"):
        pack_arrays({"w": array}, {})


def test_names_must_be_unicode():
    with pytest.raises(InvalidInputError, match="Unicode"):
        pack_arrays({"\ud800": np.zeros(1)}, {})


def test_what_no_reader_would_accept(monkeypatch):
    monkeypatch.setattr(arrayfile, "MAX_TENSORS", 1)
    with pytest.raises(LimitExceededError):
        pack_arrays({"a": np.zeros(1), "b": np.zeros(1)}, {})
    monkeypatch.setattr(arrayfile, "MAX_HEADER", 100)
    with pytest.raises(LimitExceededError):
        pack_arrays({"a" * 100: np.zeros(1)}, {})


def test_elements_of_six_bits_leave_the_others_aligned():
    tensors = [
        Tensor("six", BY_NAME["f6_e2m3"], (4,)),
        Tensor("half", BY_NAME["f16"], (3,)),
        Tensor("byte", BY_NAME["u8"], (1,)),
        Tensor("wide", BY_NAME["f64"], (1,)),
    ]
    header, placed = place_tensors(tensors, {})
    assert [tensor.name for _, tensor in placed] == ["wide", "half", "byte", "six"]
    assert [offset - len(header) for offset, _ in placed] == [0, 8, 14, 15]
