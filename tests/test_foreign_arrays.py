"""Tensors of PyTorch and JAX become numpy arrays with the same bits."""

import sys

import ml_dtypes
import numpy as np
import pytest

from mstore.errors import InvalidInputError
from mstore.foreign_arrays import converter, to_numpy
from mstore.structure import flatten


def test_numpy_needs_no_other_library():
    array = np.arange(3)
    assert to_numpy(array) is array
    for value in (3, "x", [1], {}, None, np.ndarray, object()):
        assert to_numpy(value) is None


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch")


BITS = np.arange(0, 65536, 257, dtype=np.uint16)

# Types whose bits numpy may see under an integer of the same size.
TYPES = [
    ("bool", np.bool_), ("uint8", np.uint8), ("int8", np.int8), ("int16", np.int16),
    ("int32", np.int32), ("int64", np.int64), ("uint16", np.uint16), ("uint32", np.uint32),
    ("uint64", np.uint64), ("float16", np.float16), ("float32", np.float32),
    ("float64", np.float64), ("complex64", np.complex64), ("complex128", np.complex128),
    ("bfloat16", ml_dtypes.bfloat16), ("float8_e4m3fn", ml_dtypes.float8_e4m3fn),
    ("float8_e5m2", ml_dtypes.float8_e5m2), ("float8_e4m3fnuz", ml_dtypes.float8_e4m3fnuz),
    ("float8_e5m2fnuz", ml_dtypes.float8_e5m2fnuz), ("float8_e8m0fnu", ml_dtypes.float8_e8m0fnu),
]  # fmt: skip


@pytest.mark.parametrize(("name", "expected"), TYPES, ids=[name for name, _ in TYPES])
def test_every_torch_type_keeps_its_bits(torch, name, expected):
    raw = (BITS.view(np.uint8) & 1) if name == "bool" else BITS.view(np.uint8)
    tensor = torch.from_numpy(raw.copy()).view(getattr(torch, name))
    array = to_numpy(tensor)
    assert type(array) is np.ndarray
    assert array.dtype == expected
    assert array.tobytes() == raw.tobytes()


@pytest.mark.parametrize(("name", "dtype"), TYPES, ids=[name for name, _ in TYPES])
def test_every_array_becomes_a_tensor_of_its_bits(torch, name, dtype):
    raw = (BITS.view(np.uint8) & 1) if name == "bool" else BITS.view(np.uint8)
    array = raw.copy().view(dtype).reshape(2, -1)
    tensor = converter("torch")(array)
    assert tensor.dtype == getattr(torch, name)
    assert tensor.shape == array.shape
    assert to_numpy(tensor).tobytes() == raw.tobytes()
    assert converter("torch")(array[0, 0].reshape(())).shape == ()


def test_arrays_that_torch_does_not_have_stay(torch):
    for array in (np.array(["a"]), np.arange(3, dtype=">f4"), np.zeros(2, [("a", "i4")])):
        assert converter("torch")(array) is array
        assert converter("numpy")(array) is array


def test_other_libraries_are_refused():
    with pytest.raises(InvalidInputError, match="unknown library 'jax'"):
        converter("jax")


def test_a_library_that_is_not_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(InvalidInputError, match="not installed"):
        converter("torch")


def test_torch_memory_is_shared(torch):
    tensor = torch.zeros(3, dtype=torch.bfloat16)
    array = to_numpy(tensor)
    tensor[0] = 2
    assert array[0] == 2


def test_torch_views_and_parameters(torch):
    tensor = torch.arange(12.0).reshape(3, 4)
    expected = np.arange(12, dtype=np.float32).reshape(3, 4)
    assert (to_numpy(tensor.T) == expected.T).all()
    assert (to_numpy(tensor.to(torch.bfloat16)[:, ::2]) == expected[:, ::2]).all()
    assert (to_numpy(torch.nn.Parameter(tensor)) == expected).all()
    assert to_numpy(torch.tensor(2.0, dtype=torch.bfloat16)).shape == ()
    assert to_numpy(torch.zeros(0, 3, dtype=torch.float8_e5m2)).shape == (0, 3)
    turned = torch.tensor([1 + 2j]).conj()
    assert to_numpy(turned).tolist() == [1 - 2j]
    assert to_numpy(turned.imag).tolist() == [-2]


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_torch_tensors_that_are_refused(torch):
    for tensor in (
        torch.eye(2).to_sparse(),
        torch.zeros(2, device="meta"),
        torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8),
        torch.zeros(2, dtype=torch.complex32),
    ):
        with pytest.raises(InvalidInputError, match=r'model\["x"\]'):
            flatten({"x": tensor})
    with pytest.raises(InvalidInputError, match="state_dict"):
        flatten({"x": torch.nn.Linear(2, 2)})


def test_a_torch_state_dict(torch):
    model = torch.nn.Linear(3, 2).to(torch.bfloat16)
    file = flatten(model.state_dict())
    found = [s.tensor for s in file.layout.segments[1:]]
    assert [(t.name, t.dtype.name, t.shape) for t in found] == [
        ("bias", "bf16", (2,)),
        ("weight", "bf16", (2, 3)),
    ]


def test_jax_arrays():
    jnp = pytest.importorskip("jax.numpy")
    for dtype in (jnp.float32, jnp.bfloat16, jnp.int4, jnp.float8_e4m3fn):
        value = jnp.arange(3).astype(dtype)
        array = to_numpy(value)
        assert array.dtype == value.dtype
        assert array.tolist() == [0, 1, 2]
