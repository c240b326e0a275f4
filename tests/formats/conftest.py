"""What the tests of several formats begin with: the arrays that a layout describes."""

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from mstore.layout import Layout, Recoded
from mstore.numpy_dtypes import array_from_bytes
from mstore.recoding import decode

# What several tests of files of PyTorch make them with.
sys.path.insert(0, str(Path(__file__).parent / "torch_files"))

ReadTensors = Callable[[bytes, Layout], dict[str, np.ndarray]]


@pytest.fixture
def read_tensors() -> ReadTensors:
    """Reads the tensors of a layout from the bytes of the file, those that are recoded, too."""

    def read(data: bytes, layout: Layout) -> dict[str, np.ndarray]:
        found = {
            s.tensor.name: (s.tensor, data[s.offset : s.offset + s.length])
            for s in layout.segments
            if s.tensor is not None and not s.hidden
        }
        for view in layout.views:
            assert isinstance(view.place, Recoded)
            place = view.place
            held = data[place.offset : place.offset + place.length]
            raw = decode(place.code, held, place.size)[place.start :][: view.tensor.nbytes]
            found[view.tensor.name] = view.tensor, raw
        return {
            name: array_from_bytes(raw, tensor.dtype, tensor.shape, tensor.order)
            for name, (tensor, raw) in found.items()
        }

    return read
