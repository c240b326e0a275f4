"""Boxes of tensors: each element is in one, and they are as large as there is room for."""

from itertools import chain, product
from math import prod

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mstore.sweeps import Way, by_distance, sweep

shapes = st.lists(st.integers(0, 9), max_size=4).map(tuple)


@st.composite
def ways(draw, shape):
    axes = tuple(draw(st.permutations(range(len(shape)))))
    tile = tuple(draw(st.integers(1, 4)) for _ in shape)
    return Way(axes, draw(st.sampled_from([1, 16, 256])), tile)


@given(data=st.data(), shape=shapes, room=st.integers(1, 3000))
def test_each_element_is_in_one_box(data, shape, room):
    order = sweep(shape, data.draw(st.lists(ways(shape), min_size=1, max_size=2)), room)
    boxes = list(order.boxes())
    found = list(chain.from_iterable(product(*box) for box in boxes))
    assert sorted(found) == list(np.ndindex(*shape))
    assert all(prod(map(len, box)) <= room for box in boxes)


@given(data=st.data(), shape=shapes, room=st.integers(1, 3000))
def test_the_boxes_of_one_way_follow_it(data, shape, room):
    way = data.draw(ways(shape))
    order = sweep(shape, [Way(way.axes, way.unit, (1,) * len(shape))], room)
    assert order.is_in_order
    places = [product(*(box[axis] for axis in way.axes)) for box in order.boxes()]
    assert list(chain.from_iterable(places)) == list(np.ndindex(*(shape[a] for a in way.axes)))


@given(data=st.data(), shape=shapes, room=st.integers(1, 3000))
def test_elements_come_in_order_where_it_says_so(data, shape, room):
    order = sweep(shape, data.draw(st.lists(ways(shape), min_size=1, max_size=2)), room)
    places = [product(*(box[axis] for axis in order.axes)) for box in order.boxes()]
    found = list(chain.from_iterable(places))
    if prod(shape):
        assert order.is_in_order == (found == sorted(found))


@pytest.mark.parametrize(
    ("shape", "units", "room", "box"),
    [
        # Rows and columns count alike: a square.
        ((4096, 4096), (1, 1), 1 << 20, (1024, 1024)),
        # Runs of rows count 16 times: whole columns as far as that is reached.
        ((4096, 4096), (256, 16), 1 << 20, (4096, 256)),
        # Few columns: all of each row.
        ((1 << 20, 4), (1, 1), 1 << 10, (256, 4)),
        ((4, 1 << 20), (1, 1), 1 << 10, (4, 256)),
    ],
)
def test_boxes_between_columns_and_rows(shape, units, room, box):
    columns, rows = Way((1, 0), units[0], (1, 1)), Way((0, 1), units[1], (1, 1))
    assert sweep(shape, [columns, rows], room).box == box


def test_tiles_are_not_cut_unless_one_is_too_large():
    way = Way((0, 1), 1, (30, 20))
    assert sweep((100, 100), [way], 2500).box == (30, 80)
    assert sweep((100, 100), [way], 30 * 100).box == (30, 100)
    assert sweep((100, 100), [way], 599).box == (5, 100)


def test_axes_by_distance():
    assert by_distance((2, 3, 4), (4, 8, 24)) == (2, 1, 0)
    assert by_distance((2, 3, 4), (48, 16, 4)) == (0, 1, 2)
    assert by_distance((2, 1, 4, 0), (16, 4, 32, 4)) == (1, 3, 2, 0)
    assert by_distance((2, 3), (0, 4)) == (1, 0)
    assert by_distance((), ()) == ()
