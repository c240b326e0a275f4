import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mstore.codecs.blocks import BLOCK, Split, busy_blocks, pack, packed_size, unpack
from mstore.errors import CorruptDataError

COUNT = 1 << 17


def rows(small: int, large: int, share: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Numbers below `small` but for some blocks, whose numbers are below `large`; and which."""
    rng = np.random.default_rng(seed)
    busy = rng.random(COUNT // BLOCK) < share
    numbers = rng.integers(0, small, COUNT)
    moved = np.repeat(busy, BLOCK)
    numbers[moved] = rng.integers(0, large, int(moved.sum()))
    return numbers.astype(np.uint32), busy


@pytest.mark.parametrize("share", [0.02, 0.2, 0.6, 0.95])
@pytest.mark.parametrize(("small", "large"), [(1, 4), (1, 1 << 20), (300, 1 << 20), (9, 1 << 31)])
def test_busy_blocks_are_found(small: int, large: int, share: float) -> None:
    numbers, busy = rows(small, large, share)
    found = busy_blocks(numbers)
    assert found is not None
    assert found.tolist() == busy.tolist()


def test_a_few_steps_in_a_block_make_it_busy() -> None:
    numbers = np.zeros(COUNT, np.uint16)
    busy = np.random.default_rng(0).random(COUNT // BLOCK) < 0.1
    for block in np.flatnonzero(busy):
        numbers[block * BLOCK + np.arange(0, BLOCK, 20)] = 3
    found = busy_blocks(numbers)
    assert found is not None
    assert found.tolist() == busy.tolist()


@pytest.mark.parametrize(
    "numbers",
    [
        np.zeros(COUNT, np.uint32),
        np.full(COUNT, 1 << 20, np.uint32),
        np.random.default_rng(0).integers(0, 1 << 17, COUNT, np.uint32),
        # What is as likely to change everywhere, and one block that stands out.
        (np.random.default_rng(0).random(COUNT) < 0.15).astype(np.uint16),
        np.where(np.arange(COUNT) < BLOCK, 0, 1 << 14).astype(np.uint16),
        rows(1, 1 << 20, 0.5)[0][: 31 * BLOCK],
    ],
)
def test_where_blocks_tell_nothing_there_are_none(numbers: np.ndarray) -> None:
    assert busy_blocks(numbers) is None


@given(st.lists(st.booleans(), min_size=2, max_size=40), st.integers(0, BLOCK - 1), st.booleans())
def test_parts_are_taken_and_put_back(busy: list[bool], rest: int, wide: bool) -> None:
    busy[:2] = [True, False]
    count = len(busy) * BLOCK + rest
    words = (
        np.random.default_rng(count).integers(0, 256, count).astype(np.uint64 if wide else np.uint8)
    )
    which = unpack(pack(np.array(busy)), count)
    assert which.tolist() == busy
    assert len(pack(which)) == packed_size(count)
    split = Split(which, count)
    of_quiet, of_busy = np.empty(split.quiet, words.dtype), np.empty(split.busy, words.dtype)
    split.take(words, of_quiet, of_busy)
    moved = np.append(np.repeat(busy, BLOCK), np.ones(rest, np.bool_))
    assert of_quiet.tolist() == words[~moved].tolist()
    assert of_busy.tolist() == words[moved].tolist()
    out = np.empty_like(words)
    split.put(of_quiet, of_busy, out)
    assert out.tolist() == words.tolist()


@pytest.mark.parametrize(
    ("bits", "count"),
    [(0b00, 2), (0b11, 2), (0b101, 2), (0b10000000, 7), (0b01, 1), (0b00, 1), (0b1, 0), (0, 0)],
)
def test_bits_that_do_not_fit_are_refused(bits: int, count: int) -> None:
    """One kind of block is missing, or there are bits beyond the last one."""
    with pytest.raises(CorruptDataError):
        unpack(np.array([bits], np.uint8), count * BLOCK + 5)
