import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mstore.codecs.order import (
    LAST_KEY,
    SMALLEST_GROUP,
    MagnitudeSorter,
    Order,
    Sorter,
)

KEYS = st.integers(0, LAST_KEY)
COUNTS = st.sampled_from([0, 1, 2, 100, 4095, 4096, 4097, 9000])


def keys_of(counts: dict[int, int], seed: int = 0) -> np.ndarray:
    """So many of each key, in any order."""
    keys = np.repeat(np.array(list(counts), np.uint8), list(counts.values()))
    return np.random.default_rng(seed).permutation(keys)


def sizes(order: Order) -> list[int]:
    """Numbers in each group."""
    return np.diff([order.end(bound) for bound in order.groups()], prepend=0).tolist()


@given(st.lists(KEYS, max_size=300))
def test_an_order_is_a_stable_sort_by_key(values: list[int]) -> None:
    keys = np.array(values, np.uint8)
    order = Sorter().order(keys)
    assert order.places.tolist() == np.argsort(keys, kind="stable").tolist()


@given(st.lists(st.integers(0, (1 << 32) - 1) | st.integers(0, 3), max_size=300), st.booleans())
def test_an_order_by_magnitude_is_a_stable_sort(values: list[int], wide: bool) -> None:
    magnitudes = np.array(values, np.uint64 if wide else np.uint32)
    order = MagnitudeSorter().order(magnitudes)
    assert order.places.tolist() == np.argsort(magnitudes, kind="stable").tolist()
    order.places[:] = 0
    assert order.renew(magnitudes)
    assert order.places.tolist() == np.argsort(magnitudes, kind="stable").tolist()


@given(st.lists(st.integers(0, 9), min_size=2, max_size=40), st.data())
def test_a_wrong_order_by_magnitude_is_found(values: list[int], data: st.DataObject) -> None:
    magnitudes = np.array(values, np.uint16)
    order = MagnitudeSorter().order(magnitudes)
    at = data.draw(st.integers(0, len(values) - 1))
    order._pairs[at] ^= 1 << data.draw(st.sampled_from([0, 3, 33]))
    assert not order.renew(magnitudes)


@pytest.mark.parametrize("kind", ["keys", "magnitudes"])
def test_an_order_of_other_keys_is_found(kind: str) -> None:
    """As when a key was changed in memory before it was sorted by."""
    keys = np.random.default_rng(0).integers(100, 120, 5000, np.uint8)
    order = Sorter().order(keys) if kind == "keys" else MagnitudeSorter().order(keys)
    assert order.renew(keys)
    keys[777] ^= 8
    assert not order.renew(keys)


@pytest.mark.parametrize("count", [1, 255, 256, 70_000, 1 << 18])
def test_long_orders_too(count: int) -> None:
    keys = np.random.default_rng(count).normal(110, 3, count).astype(np.uint8)
    np.testing.assert_array_equal(Sorter().order(keys).places, np.argsort(keys, kind="stable"))


@given(st.dictionaries(KEYS, COUNTS, max_size=5))
def test_ends_count_the_numbers_up_to_a_key(counts: dict[int, int]) -> None:
    order = Sorter().order(keys_of(counts))
    for key in range(LAST_KEY + 1):
        assert order.end(key) == sum(count for one, count in counts.items() if one <= key)


@given(st.dictionaries(KEYS, COUNTS, max_size=8))
def test_no_group_is_small_but_when_all_is(counts: dict[int, int]) -> None:
    order = Sorter().order(keys_of(counts))
    bounds, total = order.groups(), sum(counts.values())
    assert bounds == sorted(set(bounds))
    assert bounds[-1] == LAST_KEY
    assert order.end(LAST_KEY) == total
    if total < SMALLEST_GROUP:
        assert bounds == [LAST_KEY]
    else:
        assert min(sizes(order)) >= SMALLEST_GROUP


@pytest.mark.parametrize(
    ("counts", "bounds"),
    [
        ({}, [255]),
        ({3: 4095}, [255]),
        ({3: 4096}, [255]),
        ({3: 4096, 4: 4095}, [255]),
        ({3: 4096, 4: 4096}, [3, 255]),
        ({3: 4095, 4: 1, 9: 5000}, [4, 255]),
        ({3: 100, 4: 4096, 9: 5000}, [4, 255]),
        ({0: 5000, 254: 5000, 255: 5000}, [0, 254, 255]),
        ({0: 5000, 100: 4096, 101: 4095}, [0, 255]),
        ({255: 10_000}, [255]),
    ],
)
def test_keys_with_few_numbers_share_a_group(counts: dict[int, int], bounds: list[int]) -> None:
    assert Sorter().order(keys_of(counts)).groups() == bounds


def test_an_order_shorter_than_the_one_before_is_right() -> None:
    sorter = Sorter()
    for count in (5000, 10, 0, 6000, 1):
        keys = np.random.default_rng(count).integers(0, 256, count, np.uint8)
        assert sorter.order(keys).places.tolist() == np.argsort(keys, kind="stable").tolist()


def test_an_order_is_found_right_unless_it_is_not() -> None:
    """Pairs that were swapped, one that is missing, and one of another key; places are made anew."""
    keys = np.random.default_rng(0).integers(100, 120, 5000, np.uint8)
    sorter = Sorter()
    order = sorter.order(keys)
    right = order.places.tolist()
    order.places[[7, 8]] = order.places[[8, 7]]
    order._ends[110:112] = [0, 0]
    assert order.renew(keys)
    assert order.places.tolist() == right
    assert order.end(110) == np.count_nonzero(keys <= 110)
    order._pairs[[7, 8]] = order._pairs[[8, 7]]
    assert not order.renew(keys)
    for at, change in [(0, 1), (4999, 1 << 24), (2500, 1 << 30)]:
        order = sorter.order(keys)
        order._pairs[at] ^= change
        assert not order.renew(keys)


@pytest.mark.parametrize("count", [0, 1])
def test_the_shortest_orders_are_right(count: int) -> None:
    keys = np.zeros(count, np.uint8)
    order = Sorter().order(keys)
    assert order.renew(keys)
    assert order.end(LAST_KEY) == count
