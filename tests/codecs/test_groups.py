import contextlib
import struct

import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from mstore.codecs.bytecoder import CONSTANT_PLANE, RAW_PLANE, ZSTD_PLANE
from mstore.codecs.groups import (
    DENSE,
    IN_PAIRS,
    PAIRS,
    SPARSE,
    ZERO,
    GroupCoder,
    Table,
    gap_bytes,
    gap_places,
)
from mstore.codecs.words import Words
from mstore.errors import CorruptDataError, LimitExceededError
from mstore.ids import Buffer

SIZES = [1, 2, 4, 8]
DAMAGED = (CorruptDataError, LimitExceededError)


def encode(words: Words, coder: GroupCoder | None = None) -> tuple[bytes, bytes]:
    table, parts = bytearray(), list[Buffer]()
    before = words.copy()
    (coder or GroupCoder()).encode(words, table, parts)
    np.testing.assert_array_equal(words, before)
    return bytes(table), b"".join(parts)


def decode(table: bytes, streams: bytes, count: int, size: int) -> Words:
    reader = Table(memoryview(table), memoryview(streams))
    # Filled with something, so that a number that is not written shows.
    words = np.full(count, 0x5A5A5A5A5A5A5A5A & (1 << 8 * size) - 1, f"u{size}")
    GroupCoder().decode(reader, words)
    reader.finish()
    return words


def decode_as_documented(table: bytes, streams: bytes, count: int, size: int) -> list[int]:
    """The group read number by number, as the module's documentation tells it."""

    def planes(at: int, how_many: int, length: int) -> list[bytes]:
        nonlocal used
        found = []
        for mode, stored in struct.iter_unpack("<BI", table[at : at + 5 * how_many]):
            body = streams[used : used + stored]
            used += stored
            if mode == CONSTANT_PLANE:
                body *= length
            elif mode == ZSTD_PLANE:
                body = zstandard.ZstdDecompressor().decompress(body, max_output_size=length)
            found.append(body)
        assert at + 5 * how_many <= len(table)
        return found

    def pairs(at: int, amount: int) -> list[int]:
        outside, how_many = struct.unpack_from("<IB", table, at)
        (both,) = planes(at + 5, 1, -(-amount // 2))
        values = [half for byte in both for half in (byte & 15, byte >> 4)][:amount]
        large = [place for place, value in enumerate(values) if value == 15]
        assert len(large) == outside
        for index, plane in enumerate(planes(at + 10, how_many, outside)):
            for place, byte in zip(large, plane, strict=True):
                values[place] += byte << 8 * index
        return values

    used, numbers = 0, [0] * count
    if table[0] == DENSE:
        shift = table[1]
        low = -(-shift // 8)
        for index, plane in enumerate(planes(3, table[2], count)):
            by = 8 * index if index < low else shift + 8 * (index - low)
            numbers = [number | byte << by for number, byte in zip(numbers, plane, strict=True)]
    elif table[0] == SPARSE:
        amount, length = struct.unpack_from("<II", table, 1)
        (gaps,) = planes(10, 1, length)
        values = [1] * amount
        if table[9] == IN_PAIRS:
            values = [1 + one for one in pairs(15, amount)]
        else:
            for index, plane in enumerate(planes(15, table[9], amount)):
                added = [byte << 8 * index for byte in plane]
                values = [one + more for one, more in zip(values, added, strict=True)]
        place = 0
        for gap in gaps:
            place += gap
            if gap < 255:
                numbers[place] = values.pop(0)
                place += 1
        assert not values
    elif table[0] == PAIRS:
        numbers = pairs(1, count)
    assert used == len(streams)
    return numbers


def check(words: Words) -> int:
    """See that a group comes back; returns its kind."""
    table, streams = encode(words)
    size = words.itemsize
    np.testing.assert_array_equal(decode(table, streams, len(words), size), words)
    assert decode_as_documented(table, streams, len(words), size) == words.tolist()
    return table[0]


@given(st.lists(st.integers(0, 3000), min_size=1, max_size=40, unique=True))
def test_gaps_tell_the_places(places: list[int]) -> None:
    coded = gap_bytes(np.array(sorted(places)))
    assert gap_places(coded).tolist() == sorted(places)
    assert np.count_nonzero(coded != 255) == len(places)


@pytest.mark.parametrize(
    ("places", "coded"),
    [
        ([0], [0]),
        ([254], [254]),
        ([255], [255, 0]),
        ([509], [255, 254]),
        ([510, 511], [255, 255, 0, 0]),
        ([1, 3, 300], [1, 1, 255, 41]),
    ],
)
def test_a_gap_of_255_and_more_takes_more_bytes(places: list[int], coded: list[int]) -> None:
    assert gap_bytes(np.array(places)).tolist() == coded


def numbers(size: int) -> st.SearchStrategy[list[int]]:
    """Runs of numbers of any size of magnitudes, with zeros among them."""
    largest = (1 << 8 * size) - 1
    number = st.integers(0, 8 * size).flatmap(lambda bits: st.integers(0, largest >> bits))
    run = st.tuples(number | st.just(0), st.integers(1, 300)).map(lambda pair: [pair[0]] * pair[1])
    return st.lists(run | number.map(lambda one: [one]), min_size=1, max_size=12).map(
        lambda runs: [one for run in runs for one in run]
    )


@pytest.mark.parametrize("size", SIZES)
@given(data=st.data())
@settings(max_examples=150)
def test_any_group_comes_back(size: int, data: st.DataObject) -> None:
    check(np.array(data.draw(numbers(size)), f"u{size}"))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("count", [1, 2, 5, 4096])
def test_the_extremes_of_each_width_come_back(size: int, count: int) -> None:
    largest = (1 << 8 * size) - 1
    assert check(np.zeros(count, f"u{size}")) == ZERO
    for value in (1, largest, largest - 1, largest // 2, 255):
        assert check(np.full(count, value, f"u{size}")) == DENSE
    some = np.zeros(1000, f"u{size}")
    some[[0, 999]] = largest
    assert check(some) == SPARSE
    some[:] = 1
    some[3] = largest
    assert check(some) == DENSE


@pytest.mark.parametrize("size", SIZES[1:])
def test_every_shift_comes_back(size: int) -> None:
    """Numbers of about so many bits: the shift is 0 up to eight, and four less beyond."""
    rng = np.random.default_rng(size)
    for bits in range(1, 8 * size + 1):
        words = rng.integers(1 << bits - 1, 1 << bits, 300, np.uint64).astype(f"u{size}")
        words[5] = (1 << 8 * size) - 1
        check(words)
        words[5] = 1
        check(words)
        table, _ = encode(words)
        assert table[:2] == bytes([DENSE, bits - 4 if bits > 8 else 0])


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("share", [0.0005, 0.01, 0.1, 0.29, 0.31, 0.9])
def test_few_numbers_that_are_not_zero_make_a_sparse_group(size: int, share: float) -> None:
    rng = np.random.default_rng(1)
    words = rng.integers(1, 200, 5000).astype(f"u{size}")
    words[rng.permutation(5000)[round(share * 5000) :]] = 0
    assert check(words) == (SPARSE if share < 0.3 else DENSE)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("count", [5000, 5001, 30_001])
@pytest.mark.parametrize("share", [0.2, 0.5, 0.9])
def test_small_numbers_are_coded_in_pairs_and_take_little_more_than_their_entropy(
    size: int, count: int, share: float
) -> None:
    """In sparse groups too, where the numbers are less 1; some do not fit into pairs."""
    rng = np.random.default_rng(3)
    drawn = rng.geometric(share, count) - 1
    shares = np.bincount(drawn) / count
    entropy = -(shares[shares > 0] * np.log2(shares[shares > 0])).sum() * count / 8
    words = drawn.astype(f"u{size}")
    words[::500] = rng.integers(0, 250, len(words[::500]))
    words[1] = (1 << 8 * size) - 1
    assert check(words) == {0.2: DENSE, 0.5: PAIRS, 0.9: SPARSE}[share]
    table, streams = encode(words)
    if share == 0.5:
        assert len(table) + len(streams) < 1.03 * entropy + 250
    sparse = np.zeros(4 * count, words.dtype)
    sparse[rng.permutation(4 * count)[:count]] = words
    assert check(sparse) == SPARSE
    table, _ = encode(sparse)
    assert table[9] == IN_PAIRS or share != 0.5


def size_of(words: Words, *, deep: bool = False) -> int:
    table, streams = encode(words, GroupCoder(deep=deep))
    return len(table) + len(streams)


def test_what_repeats_is_not_put_into_pairs() -> None:
    """Steps in runs of eight, which zstd finds in whole bytes only."""
    rng = np.random.default_rng(0)
    words = np.repeat(rng.integers(0, 3, 4000), 8).astype(np.uint8)
    assert check(words) == DENSE
    assert size_of(words) < 0.5 * size_of(rng.permutation(words))


@pytest.mark.parametrize("share", [0.1, 0.4, 0.9])
@pytest.mark.parametrize("large", [0, 0.03])
def test_a_deep_coder_takes_no_more(share: float, large: float) -> None:
    """Also where a few large numbers make the typical one large."""
    rng = np.random.default_rng(1)
    words = (rng.geometric(share, 20_000) - 1).astype(np.uint32)
    moved = rng.random(len(words)) < large
    words[moved] = rng.integers(1 << 10, 1 << 20, int(moved.sum()))
    assert size_of(words, deep=True) <= size_of(words)


@pytest.mark.parametrize("width", [1000, 5000, 20_000, 1e6])
def test_noise_below_the_telling_bits_takes_what_it_is(width: float) -> None:
    """The bits that are shifted off are noise; the rest costs about its entropy."""
    words = np.abs(np.random.default_rng(2).normal(0, width, 1 << 16)).astype(np.uint32)
    _, streams = encode(words)
    # That of a half-normal distribution, in bits.
    entropy = np.log2(width * np.sqrt(np.pi * np.e / 2))
    assert 8 * len(streams) / len(words) < entropy + 0.15


def test_groups_of_one_table_are_read_one_after_the_other() -> None:
    rng = np.random.default_rng(4)
    sparse = np.zeros(900, np.uint32)
    sparse[::90] = 70_000
    groups = [
        sparse,
        rng.integers(0, 1 << 20, 500, np.uint32),
        np.zeros(7, np.uint32),
        rng.integers(0, 9, 40, np.uint32),
    ]
    coder, table, parts = GroupCoder(), bytearray(), list[Buffer]()
    for words in groups:
        coder.encode(words, table, parts)
    reader = Table(memoryview(table), memoryview(b"".join(parts)))
    for words in groups:
        out = np.empty_like(words)
        coder.decode(reader, out)
        np.testing.assert_array_equal(out, words)
    reader.finish()


def plane(mode: int, stored: int) -> bytes:
    return struct.pack("<BI", mode, stored)


def pairs_head(outside: int, planes: int) -> bytes:
    return struct.pack("<BIB", PAIRS, outside, planes)


def sparse_head(used: int, gaps: int, planes: int) -> bytes:
    return struct.pack("<BIIB", SPARSE, used, gaps, planes)


@pytest.mark.parametrize(
    ("table", "streams", "words"),
    [
        (b"\x00", b"", [0, 0, 0, 0]),
        (b"\x01\x00\x01" + plane(RAW_PLANE, 4), b"abcd", list(b"abcd")),
        (b"\x01\x00\x01" + plane(CONSTANT_PLANE, 1), b"a", [97] * 4),
        (
            b"\x01\x03\x02" + plane(RAW_PLANE, 4) + plane(RAW_PLANE, 4),
            b"\1\2\3\4\1\0\2\3",
            [1 + 8, 2, 3 + 16, 4 + 24],
        ),
        (
            b"\x01\x09\x03" + plane(CONSTANT_PLANE, 1) * 3,
            b"\x07\x01\x02",
            [7 + 256 + (2 << 9)] * 4,
        ),
        (sparse_head(1, 1, 0) + plane(RAW_PLANE, 1), b"\2", [0, 0, 1, 0]),
        (
            sparse_head(2, 2, 1) + plane(RAW_PLANE, 2) + plane(RAW_PLANE, 2),
            b"\0\2\4\5",
            [5, 0, 0, 6],
        ),
        (pairs_head(0, 0) + plane(RAW_PLANE, 2), b"\x21\x43", [1, 2, 3, 4]),
        (
            pairs_head(2, 2) + plane(RAW_PLANE, 2) + plane(RAW_PLANE, 2) * 2,
            b"\xf1\x4f" + b"\0\2\1\0",
            [1, 15 + 256, 15 + 2, 4],
        ),
        (
            sparse_head(3, 3, IN_PAIRS)
            + plane(RAW_PLANE, 3)
            + pairs_head(1, 0)[1:]
            + plane(RAW_PLANE, 2),
            b"\0\1\0" + b"\x1f\xe2",
            [16, 0, 2, 3],
        ),
    ],
)
def test_a_table_made_by_hand_is_read(table: bytes, streams: bytes, words: list[int]) -> None:
    assert decode(table, streams, 4, 2).tolist() == words
    assert decode_as_documented(table, streams, 4, 2) == words


RAW_4 = plane(RAW_PLANE, 4)


@pytest.mark.parametrize(
    ("table", "streams"),
    [
        (b"", b""),
        (b"\x04", b""),
        (b"\x03", b""),
        (pairs_head(0, 0), b""),
        (pairs_head(0, 0) + plane(RAW_PLANE, 2), b"\1"),
        (pairs_head(0, 0) + plane(RAW_PLANE, 2), b"\xf1\1"),
        (pairs_head(1, 0) + plane(RAW_PLANE, 2), b"\1\1"),
        (pairs_head(5, 0) + plane(RAW_PLANE, 2), b"\xff\xff"),
        (pairs_head(1, 3) + plane(RAW_PLANE, 2) + plane(RAW_PLANE, 1) * 3, b"\xf1\1\0\0\0"),
        (pairs_head((1 << 32) - 1, 1) + plane(RAW_PLANE, 2) * 2, b"\xff\xff\0\0"),
        (sparse_head(1, 1, IN_PAIRS + 1) + plane(RAW_PLANE, 1) * 2, b"\0\0"),
        (sparse_head(1, 1, IN_PAIRS) + plane(RAW_PLANE, 1), b"\0"),
        (b"\xff", b""),
        (b"\x00\x00", b""),
        (b"\x00", b"a"),
        (b"\x01", b""),
        (b"\x01\x00", b""),
        (b"\x01\x00\x01", b"abcd"),
        (b"\x01\x00\x01" + RAW_4, b"abc"),
        (b"\x01\x00\x01" + RAW_4, b"abcde"),
        (b"\x01\x00\x01" + plane(RAW_PLANE, 3), b"abc"),
        (b"\x01\x00\x01" + plane(RAW_PLANE, 1 << 31), b"abcd"),
        (b"\x01\x00\x03" + RAW_4 * 3, b"abcd" * 3),
        (b"\x01\x10\x02" + RAW_4 * 2, b"abcd" * 2),
        (b"\x01\xff\x20" + RAW_4 * 32, b"abcd" * 32),
        (b"\x01\x09\x01" + RAW_4, b"abcd"),
        (b"\x01\x09\x01" + RAW_4 * 2, b"abcd" * 2),
        (b"\x01\x09\x04" + RAW_4 * 4, b"abcd" * 4),
        (sparse_head(1, 0, 0) + plane(RAW_PLANE, 0), b""),
        (sparse_head(1, 1, 0) + plane(RAW_PLANE, 1), b"\4"),
        (sparse_head(1, 1, 0) + plane(RAW_PLANE, 1), b"\xff"),
        (sparse_head(2, 1, 0) + plane(RAW_PLANE, 1), b"\0"),
        (sparse_head(1, 2, 0) + plane(RAW_PLANE, 2), b"\0\0"),
        (sparse_head(1, 1, 3) + plane(RAW_PLANE, 1) * 4, b"\0\0\0\0"),
        (sparse_head(5, 5, 0) + plane(RAW_PLANE, 5), b"\0\0\0\0\0"),
        (sparse_head(1, 1 << 31, 0) + plane(CONSTANT_PLANE, 1), b"\xff"),
        (sparse_head(1 << 31, 1 << 31, 1) + plane(CONSTANT_PLANE, 1) * 2, b"\0\0"),
        (sparse_head((1 << 32) - 1, (1 << 32) - 1, 0) + plane(CONSTANT_PLANE, 1), b"\0"),
    ],
)
def test_a_table_that_breaks_the_rules_is_refused(table: bytes, streams: bytes) -> None:
    with pytest.raises(CorruptDataError):
        decode(table, streams, 4, 2)


@given(st.data())
@settings(max_examples=200)
def test_damaged_tables_are_refused_or_give_wrong_numbers_only(data: st.DataObject) -> None:
    size = data.draw(st.sampled_from(SIZES))
    words = np.array(data.draw(numbers(size)), f"u{size}")
    table, streams = encode(words)
    kept = data.draw(st.integers(0, len(table)))
    if kept < len(table):
        with pytest.raises(CorruptDataError):
            decode(table[:kept], streams, len(words), size)
    damaged = bytearray(table + streams)
    for _ in range(data.draw(st.integers(1, 3))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    with contextlib.suppress(*DAMAGED):
        decode(bytes(damaged[: len(table)]), bytes(damaged[len(table) :]), len(words), size)
    with contextlib.suppress(*DAMAGED):
        decode(table, streams, data.draw(st.integers(1, 2000)), size)


@given(st.binary(max_size=60), st.binary(max_size=60), st.sampled_from(SIZES))
def test_arbitrary_tables_are_refused_or_give_wrong_numbers_only(
    table: bytes, streams: bytes, size: int
) -> None:
    with contextlib.suppress(*DAMAGED):
        decode(table, streams, 30, size)
