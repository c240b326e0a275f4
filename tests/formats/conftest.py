"""What the tests of several formats begin with: the arrays that a layout describes."""

import sys
from collections.abc import Callable, Collection, Iterator
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np
import pytest

from mstore.formats import hdf5_process
from mstore.formats.base import BytesReader
from mstore.formats.detect import describe
from mstore.layout import Layout, Recoded, Strided, Tiled, View, grid
from mstore.numpy_dtypes import array_from_bytes
from mstore.recoding import decode

# What several tests here share, and what those of files of PyTorch make them with.
sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent / "torch_files")]

ReadTensors = Callable[[bytes, Layout], dict[str, np.ndarray]]
Described = Callable[..., tuple[Layout, dict[str, np.ndarray]]]


@pytest.fixture
def read_tensors() -> ReadTensors:
    """Reads the tensors of a layout from the bytes of the file, those that are views, too."""

    def read(data: bytes, layout: Layout) -> dict[str, np.ndarray]:
        found = {
            s.tensor.name: (s.tensor, data[s.offset : s.offset + s.length])
            for s in layout.segments
            if s.tensor is not None and not s.hidden
        }
        found |= {view.tensor.name: (view.tensor, elements(data, view)) for view in layout.views}
        return {
            name: array_from_bytes(raw, tensor.dtype, tensor.shape, tensor.order)
            for name, (tensor, raw) in found.items()
        }

    return read


@pytest.fixture
def described(read_tensors: ReadTensors) -> Described:
    """Fails unless a file has tensors of these names and this note; gives its layout and them."""

    def described(
        data: bytes, names: Collection[str], note: str | None = None
    ) -> tuple[Layout, dict[str, np.ndarray]]:
        layout, said = describe(BytesReader(data))
        assert said == note
        found = read_tensors(data, layout)
        assert found.keys() == set(names)
        return layout, found

    return described


@pytest.fixture
def no_zygote_kept(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No test gets the process of another that HDF5 workers are forked from."""
    monkeypatch.setattr(hdf5_process, "_ZYGOTES", [])
    yield
    hdf5_process.end_kept()


@pytest.fixture
def worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Puts a program in the place of the one that reads HDF5 files."""
    from hdf5_workers import put_worker

    return partial(put_worker, tmp_path, monkeypatch)


@pytest.fixture
def zygotes(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Every process that is started to fork HDF5 workers from."""
    from hdf5_workers import note_zygotes

    return note_zygotes(monkeypatch)


def elements(data: bytes, view: View) -> bytes:
    """The elements of a view in row-major order, element by element as the layout says."""
    tensor, place = view.tensor, view.place
    if isinstance(place, Recoded):
        held = data[place.offset : place.offset + place.length]
        return b"".join(decode(place.code, [held], place.size))[place.start :][: tensor.nbytes]
    found = np.empty(tensor.shape, np.dtype((np.void, tensor.dtype.itemsize)))
    if isinstance(place, Strided):
        for index in np.ndindex(tensor.shape):
            at = place.offset + sum(i * step for i, step in zip(index, place.strides, strict=True))
            found[index] = np.void(data[at : at + tensor.dtype.itemsize])
    if isinstance(place, Tiled):
        places = product(*map(range, grid(tensor.shape, place.tile)))
        for number, offset in zip(places, place.offsets, strict=True):
            end = offset + tensor.dtype.nbytes(place.tile)
            whole = np.prod(place.tile, dtype=int) * place.fill
            tile = data[offset:end] if offset >= 0 else whole
            pairs = list(zip(number, place.tile, strict=True))
            part = tuple(slice(i * step, (i + 1) * step) for i, step in pairs)
            inside = tuple(slice(0, extent) for extent in found[part].shape)
            found[part] = np.frombuffer(tile, found.dtype).reshape(place.tile)[inside]
    return found.tobytes()
