"""Lists of floats in pickles: the bytes that are said to hold one hold its numbers and no others."""

import pickle
import pickletools
import struct
from itertools import chain

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mstore.formats.base import BytesReader
from mstore.formats.pickle_values import Floats
from mstore.formats.pickle_walk import walk
from mstore.formats.pickles import PickleFormat


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(st.lists(st.floats(allow_nan=False), min_size=3, max_size=3), min_size=6),
    protocol=st.integers(0, 5),
    optimised=st.booleans(),
)
def test_any_matrix_of_floats(rows, protocol, optimised):
    data = pickle.dumps({"m": rows, "n": list(chain(*rows))}, protocol)
    if optimised:
        data = pickletools.optimize(data)
    layout = PickleFormat().layout(BytesReader(data))
    found = {view.tensor.name: view for view in layout.views}
    assert found.keys() == {"m", "n"}
    for name, view in found.items():
        region = data[view.place.offset : view.place.offset + view.place.length]
        pushed = [
            argument
            for opcode, argument, at in pickletools.genops(region + b".")
            if opcode.name in ("FLOAT", "BINFLOAT")
        ]
        assert struct.pack(f"{len(pushed)}d", *pushed) == np.array(rows).tobytes()
        assert view.tensor.shape == ((len(rows), 3) if name == "m" else (3 * len(rows),))


FLOAT = b"G" + struct.pack(">d", 0.5)


@pytest.mark.parametrize(
    "data",
    [
        b"](" + FLOAT * 9 + b"N0" + FLOAT * 9 + b"e.",
        b"](" + FLOAT * 9 + b"K\1" + FLOAT * 9 + b"e.",
        b"](" + FLOAT * 17 + b"2e.",
        b"(" + FLOAT * 9 + b"N0" + FLOAT * 9 + b"t.",
        FLOAT + b"p0\n0](" + FLOAT * 17 + b"g0\ne.",
        FLOAT + b"p0\n0]" + b"g0\na" * 20 + b".",
        b"]" + (FLOAT + b"N0a") * 20 + b".",
        b"]" + (FLOAT + b"20a") * 20 + b".",
    ],
)
def test_floats_that_not_only_lists_are_made_of(data):
    """Then the bytes between the first and the last hold more than the list does, or less."""
    value = walk(data)
    assert len(value) >= 18
    assert not any(isinstance(member, Floats) for member in value)
