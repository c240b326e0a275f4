"""Reading tensors: the same as numpy for every index, and only the chunks that are needed."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from mstore.database import Database
from mstore.dtypes import BY_NAME
from mstore.ingest import FileToStore
from mstore.layout import Tensor, cover
from mstore.numpy_dtypes import dtype_of, numpy_dtype
from mstore.ops.commit import Content, Description, Target, record
from mstore.repository import Repository
from mstore.sources import BufferSource
from mstore.storage.memory import MemoryStorage
from mstore.tensors import SegmentTensor


class CountingStorage(MemoryStorage):
    """Counts the bytes read from packs of chunks."""

    read = 0

    def get(self, key: str, start: int = 0, length: int | None = None) -> bytes:
        data = super().get(key, start, length)
        if key.startswith("packs/d"):
            self.read += len(data)
        return data


def stored(
    array: np.ndarray, chunk_size: int = 64, order: str = "C"
) -> tuple[SegmentTensor, CountingStorage]:
    storage = CountingStorage()
    db = Database.create(storage, "Ada")
    dtype = dtype_of(array.dtype)
    assert dtype is not None
    data = array.tobytes(order)  # type: ignore[arg-type]
    tensor = Tensor("x", dtype, array.shape, order)  # type: ignore[arg-type]
    layout = cover("test", 5 + len(data), [(5, tensor)])
    file = FileToStore("f", BufferSource([memoryview(b"head!"), memoryview(data)]), layout)
    recorded = record(
        db, Target("default", "main", None, ()), Content(lambda: [file], {}),
        Description("Ada"), chunk_size=chunk_size,
    )  # fmt: skip
    return Repository(db)[recorded.id.hex()].tensors["x"], storage


shapes = hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=9)


@settings(max_examples=150)
@given(st.data(), shapes, st.sampled_from(["f4", "i8", "u1", ">f4"]), st.sampled_from("CF"))
def test_every_index_gives_what_numpy_gives(
    data: st.DataObject, shape: tuple[int, ...], dtype: str, order: str
) -> None:
    array = np.arange(np.prod(shape, dtype=int)).astype(dtype).reshape(shape)
    tensor, _ = stored(array, data.draw(st.sampled_from([8, 64, 1000])), order)
    index = data.draw(hnp.basic_indices(shape, allow_newaxis=True, allow_ellipsis=True))
    expected = array[index]
    found = tensor[index]
    if np.ndim(expected):  # a scalar of numpy has no byte order
        assert found.dtype == array.dtype
    np.testing.assert_array_equal(found, expected)
    assert np.shape(found) == np.shape(expected)


@given(st.data(), hnp.array_shapes(min_dims=1, max_dims=3, max_side=20))
def test_rows_by_number_or_mask(data: st.DataObject, shape: tuple[int, ...]) -> None:
    array = np.arange(np.prod(shape)).astype(np.float32).reshape(shape)
    tensor, _ = stored(array)
    rows = data.draw(st.lists(st.integers(-shape[0], shape[0] - 1), max_size=6))
    picked = np.array(rows, int)
    np.testing.assert_array_equal(tensor[picked], array[picked])
    mask = data.draw(hnp.arrays(np.bool_, shape[0]))
    np.testing.assert_array_equal(tensor[mask], array[mask])


def test_a_list_of_rows() -> None:
    array = np.arange(40, dtype=np.float32).reshape(10, 4)
    tensor, _ = stored(array)
    np.testing.assert_array_equal(tensor[[3, 1, 3]], array[[3, 1, 3]])
    np.testing.assert_array_equal(tensor[[1], 2], array[[1], 2])


@pytest.mark.parametrize("index", [10, -11, (0, 0, 0), (..., ...), [11], "name"])
def test_what_numpy_refuses_is_refused(index: object) -> None:
    tensor, _ = stored(np.zeros((10, 4), np.float32))
    with pytest.raises(IndexError):
        tensor[index]  # type: ignore[index]


@pytest.mark.parametrize(
    ("index", "chunks"),
    [
        (slice(0, 1), 1),
        (5, 1),
        (slice(100, 102), 2),
        (slice(None, None, 500), 2),
        ((slice(10, 12), slice(0, 4)), 2),
        ((999, -1), 1),
        ([0, 500, 999], 3),
        (slice(None), 1000),
        ((slice(None, None, 250), 3), 4),
        (slice(0, 0), 0),
    ],
)
def test_only_the_chunks_that_are_needed_are_read(index: object, chunks: int) -> None:
    """Rows of 1 KiB in chunks of 1 KiB, of noise that does not compress."""
    array = np.random.default_rng(1).integers(0, 256, (1000, 1024), np.uint8)
    tensor, storage = stored(array, chunk_size=1024)
    storage.read = 0
    np.testing.assert_array_equal(tensor[index], array[index])  # type: ignore[index]
    size = 1024 + 64
    assert chunks * size <= storage.read + 64
    # Records in between are read along when that saves a request.
    if chunks < 10 and not isinstance(index, list | tuple) and not getattr(index, "step", None):
        assert storage.read == chunks * size


def test_far_apart_rows_do_not_read_what_lies_between() -> None:
    array = np.random.default_rng(1).integers(0, 256, (300, 4096), np.uint8)
    tensor, storage = stored(array, chunk_size=4096)
    storage.read = 0
    np.testing.assert_array_equal(tensor[::100], array[::100])
    assert storage.read == 3 * (4096 + 64)


def test_about_a_tensor() -> None:
    tensor, _ = stored(np.zeros((10, 4), np.float32))
    assert (tensor.name, tensor.path, tensor.shape, tensor.ndim) == ("x", "f", (10, 4), 2)
    assert (tensor.nbytes, tensor.dtype, len(tensor)) == (160, np.dtype("f4"), 10)
    assert repr(tensor) == "<Tensor x f32[10, 4]>"
    assert len(tensor.id) == 64
    other, _ = stored(np.zeros((10, 4), np.float32))
    assert other.id == tensor.id
    assert np.asarray(tensor, np.float64).dtype == np.float64
    assert np.mean(tensor) == 0  # type: ignore[call-overload]
    with pytest.raises(ValueError, match="copy"):
        np.asarray(tensor, copy=False)
    scalar, _ = stored(np.float32(3).reshape(()))
    assert scalar[()] == 3
    with pytest.raises(TypeError):
        len(scalar)


def test_what_is_read_may_be_written_to() -> None:
    tensor, _ = stored(np.zeros((10, 4), np.float32))
    part = tensor[2:4]
    part += 1
    whole = tensor.numpy()
    whole += 1
    assert not tensor.numpy().any()


def test_masks_and_lists_of_every_shape() -> None:
    array = np.arange(24, dtype=np.float32).reshape(6, 4)
    tensor, _ = stored(array)
    rows = np.array([[0, 5], [3, 3]])
    for index in (array > 5, [], rows, np.array([], int), np.zeros(6, np.bool_), [[0, 1], [2, 3]]):
        np.testing.assert_array_equal(tensor[index], array[index])
    with pytest.raises(IndexError):
        tensor[np.array([1.5])]


@pytest.mark.parametrize("name", sorted(BY_NAME))
def test_slices_of_every_type(name: str) -> None:
    """numpy itself cannot stride over some types of one byte."""
    dtype = numpy_dtype(BY_NAME[name])
    if dtype_of(dtype) is not BY_NAME[name]:
        pytest.skip("an element of this type takes other bytes in an array")
    raw = np.random.default_rng(0).integers(0, 2, 24 * dtype.itemsize, np.uint8)
    array = raw.view(dtype).reshape(4, 6)
    tensor, _ = stored(array)
    assert tensor[1:3, ::2].tobytes() == array[1:3, ::2].tobytes()
    assert tensor[2].tobytes() == array[2].tobytes()
