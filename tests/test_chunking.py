import numpy as np
import pytest
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st

from mstore.chunking import (
    AVERAGE,
    DEFAULT_CHUNK_SIZE,
    LARGEST,
    SMALLEST,
    ContentChunker,
    piece_lengths,
    piece_size,
)
from mstore.dtypes import BY_NAME
from mstore.errors import InvalidInputError

CONTENT = blake3(b"content").digest(length=3 << 20)
GOLDEN_LENGTHS = [
    74572,
    74030,
    94154,
    18479,
    78880,
    232290,
    36279,
    72835,
    118552,
    105084,
    70349,
    73072,
]


def cut_whole(content: bytes) -> list[int]:
    return ContentChunker().cut(memoryview(content), final=True)


def cut_as_fed(content: bytes, feeds: list[int]) -> list[int]:
    """Cut a stream that arrives in buffers of these sizes (the last size again and again)."""
    chunker = ContentChunker()
    lengths: list[int] = []
    window = b""
    position = 0
    feeds = feeds[::-1]
    while position < len(content):
        size = feeds.pop() if len(feeds) > 1 else feeds[0]
        window += content[position : position + size]
        position += size
        certain = chunker.cut(memoryview(window), final=position >= len(content))
        lengths += certain
        window = window[sum(certain) :]
        assert len(window) < LARGEST
    return lengths


@given(
    start=st.integers(0, 1 << 20),
    length=st.integers(0, 2 << 20),
    zeros=st.integers(0, 1 << 19),
    feeds=st.lists(st.integers(1, 600_000), max_size=20),
    last=st.integers(9_000, 600_000),
)
@settings(max_examples=60)
def test_cuts_do_not_depend_on_how_the_content_arrives(
    start: int, length: int, zeros: int, feeds: list[int], last: int
) -> None:
    content = CONTENT[start : start + length // 2] + bytes(zeros) + CONTENT[: length // 2]
    lengths = cut_whole(content)
    assert sum(lengths) == len(content)
    assert all(SMALLEST <= size <= LARGEST for size in lengths[:-1])
    assert all(0 < size <= LARGEST for size in lengths)
    assert cut_as_fed(content, [*feeds, last]) == lengths


def test_a_cut_depends_on_what_comes_after_the_one_before_it_only() -> None:
    lengths = cut_whole(CONTENT)
    for index in range(len(lengths)):
        assert cut_whole(CONTENT[sum(lengths[:index]) :]) == lengths[index:]


def test_inserted_bytes_change_the_chunks_around_them_only() -> None:
    def chunks(content: bytes) -> set[bytes]:
        ends = np.cumsum(cut_whole(content))
        return {content[a:b] for a, b in zip([0, *ends], ends, strict=False)}

    before = chunks(CONTENT)
    after = chunks(CONTENT[:1_500_000] + b"inserted" + CONTENT[1_500_000:])
    assert len(after - before) <= 3


def test_cuts_are_where_they_have_always_been() -> None:
    """Another gear table or size would split old versions of a file from new ones."""
    assert cut_whole(CONTENT[: 1 << 20]) == GOLDEN_LENGTHS


def test_nothing_is_cut_from_nothing() -> None:
    for final in (True, False):
        assert ContentChunker().cut(memoryview(b""), final=final) == []


def test_content_is_held_back_until_the_cut_is_certain() -> None:
    first = cut_whole(CONTENT)[0]
    chunker = ContentChunker()
    assert chunker.cut(memoryview(CONTENT)[: LARGEST - 1], final=False) == []
    assert chunker.cut(memoryview(CONTENT)[:LARGEST], final=False) == [first]


def test_chunks_are_of_about_the_intended_size() -> None:
    mean = len(CONTENT) / len(cut_whole(CONTENT))
    assert AVERAGE <= mean <= 1.5 * AVERAGE


@pytest.mark.parametrize("name", sorted(BY_NAME))
@given(chunk_size=st.integers(16, 10_000))
@settings(max_examples=20)
def test_a_piece_is_the_most_whole_elements_that_fit(name: str, chunk_size: int) -> None:
    dtype = BY_NAME[name]
    size = piece_size(dtype, chunk_size)
    assert size % dtype.itemsize == 0
    if dtype.word in (1, 4):
        assert size <= chunk_size < size + dtype.itemsize
    else:
        words = size // dtype.word
        assert 4 * words <= chunk_size < 4 * (words + dtype.itemsize // dtype.word)


@given(chunk_size=st.integers(4, 1 << 20))
def test_float_types_are_cut_at_the_same_numbers(chunk_size: int) -> None:
    names = ("f64", "f32", "f16", "bf16", ">f32")
    assert len({piece_size(BY_NAME[n], chunk_size) // BY_NAME[n].itemsize for n in names}) == 1


def test_default_pieces() -> None:
    assert piece_size(BY_NAME["f32"], DEFAULT_CHUNK_SIZE) == 1 << 20
    assert piece_size(BY_NAME["f6_e2m3"], DEFAULT_CHUNK_SIZE) == (1 << 20) - 1


def test_a_chunk_holds_at_least_one_element() -> None:
    with pytest.raises(InvalidInputError, match="c128"):
        piece_size(BY_NAME["c128"], 7)


@pytest.mark.parametrize(
    ("length", "piece", "lengths"),
    [(0, 4, []), (3, 4, [3]), (4, 4, [4]), (5, 4, [4, 1]), (12, 4, [4, 4, 4])],
)
def test_pieces_cover_the_length(length: int, piece: int, lengths: list[int]) -> None:
    assert piece_lengths(length, piece) == lengths
