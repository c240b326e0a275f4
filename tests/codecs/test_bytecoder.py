import contextlib

import numpy as np
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from mstore.codecs.bytecoder import CONSTANT_PLANE, RAW_PLANE, ZSTD_PLANE, ByteCoder
from mstore.errors import CorruptDataError, LimitExceededError

RNG = np.random.default_rng(3)


def encode(plane: np.ndarray) -> tuple[int, bytes]:
    mode, stored = ByteCoder().encode(plane)
    return mode, bytes(stored)


@given(
    st.binary(min_size=1, max_size=500)
    | st.builds(lambda unit, n: unit * n, st.binary(min_size=1, max_size=3), st.integers(1, 900))
)
def test_any_plane_comes_back_and_never_grows(raw: bytes) -> None:
    mode, stored = encode(np.frombuffer(raw, np.uint8))
    assert len(stored) <= len(raw)
    assert ByteCoder().decode(mode, memoryview(stored), len(raw)).tobytes() == raw


@pytest.mark.parametrize(
    ("plane", "mode", "stored"),
    [
        (np.zeros(1, np.uint8), CONSTANT_PLANE, 1),
        (np.full(1 << 18, 255, np.uint8), CONSTANT_PLANE, 1),
        (np.arange(256, dtype=np.uint8), RAW_PLANE, 256),
        (RNG.integers(0, 256, 1 << 18, np.uint8), RAW_PLANE, 1 << 18),
        (RNG.integers(0, 16, 1 << 18, np.uint8), ZSTD_PLANE, 1.01 * (1 << 17)),
        (np.append(np.zeros(4000, np.uint8), np.uint8(1)), ZSTD_PLANE, 60),
        (np.array([0, 1] + [0] * 4000, np.uint8), ZSTD_PLANE, 60),
    ],
)
def test_each_plane_gets_the_mode_that_suits_it(
    plane: np.ndarray, mode: int, stored: float
) -> None:
    found, content = encode(plane)
    assert found == mode
    assert len(content) <= stored


def test_literals_are_coded_and_matches_are_not_looked_for() -> None:
    """About the entropy of the bytes; level 3 takes more, since it finds matches by chance."""
    plane = np.abs(RNG.normal(0, 12, 1 << 18)).astype(np.uint8)
    shares = np.bincount(plane) / len(plane)
    shares = shares[shares > 0]
    entropy = -(shares * np.log2(shares)).sum() / 8 * len(plane)
    _, stored = encode(plane)
    assert entropy < len(stored) < 1.015 * entropy
    assert len(stored) < len(zstandard.ZstdCompressor(level=3).compress(plane.data))


@pytest.mark.parametrize(
    ("mode", "stored", "length"),
    [
        (RAW_PLANE, b"abc", 4),
        (RAW_PLANE, b"abc", 2),
        (CONSTANT_PLANE, b"", 4),
        (CONSTANT_PLANE, b"ab", 4),
        (ZSTD_PLANE, b"abcd", 4),
        (ZSTD_PLANE, b"", 0),
        (ZSTD_PLANE, zstandard.ZstdCompressor().compress(b"abcd"), 5),
        (3, b"abcd", 4),
        (255, b"", 0),
    ],
)
def test_a_plane_that_breaks_the_rules_is_refused(mode: int, stored: bytes, length: int) -> None:
    with pytest.raises(CorruptDataError):
        ByteCoder().decode(mode, memoryview(stored), length)


@given(st.integers(0, 255), st.binary(max_size=60), st.integers(0, 1 << 40))
def test_no_damage_asks_for_more_memory_than_the_plane(
    mode: int, stored: bytes, length: int
) -> None:
    """A plane said to be of 2**40 bytes would not fit; a constant one is as long as it is asked."""
    if mode == CONSTANT_PLANE:
        length %= 1000
    with contextlib.suppress(CorruptDataError, LimitExceededError):
        assert len(ByteCoder().decode(mode, memoryview(stored), length)) == length
