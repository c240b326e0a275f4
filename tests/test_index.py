"""Indexes: single and bulk look-up, prefixes, merging, damage."""

import math
import os

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mstore.bulkindex import as_ids, find_rows, locate, merge
from mstore.errors import CorruptDataError, UnsupportedVersionError
from mstore.index import HEADER_SIZE, Index, encode_entries
from mstore.pack import Entry

PACKS = ["d" + "0" * 32, "d" + "1" * 32, "m" + "2" * 32]


def entry(identifier: bytes, number: int = 0, base: bytes | None = None) -> Entry:
    return Entry(
        identifier,
        1,
        PACKS[number % 3],
        1000 + number,
        number,
        2 * number,
        3,
        12,
        1 if base else 0,
        base,
        float(number),
    )


def index_of(*entries: Entry) -> Index:
    return Index("test", memoryview(b"".join(encode_entries(entries))))


# Ids that share their first eight bytes are what the short keys could confuse.
ids = st.one_of(
    st.binary(min_size=32, max_size=32),
    st.binary(min_size=1, max_size=1).map(lambda tail: b"same key" + bytes(23) + tail),
    st.binary(min_size=1, max_size=1).map(lambda head: b"same key" + head + bytes(23)),
    st.just(b"\xff" * 32),
)
id_sets = st.lists(ids, unique=True, max_size=30)


@given(id_sets, id_sets)
def test_look_up_one_and_many(present: list[bytes], others: list[bytes]) -> None:
    index = index_of(*(entry(one, number) for number, one in enumerate(present)))
    wanted = [*present, *others]
    rows = find_rows(index, as_ids(b"".join(wanted)))
    for identifier, row in zip(wanted, rows, strict=True):
        expected = entry(identifier, present.index(identifier)) if identifier in present else None
        assert index.find(identifier) == expected
        assert (index.entry(int(row)) if row >= 0 else None) == expected


@given(id_sets)
def test_entries_come_sorted(present: list[bytes]) -> None:
    index = index_of(*map(entry, present))
    assert [one.id for one in index] == sorted(present)
    index.check()


def test_the_first_of_a_repeated_id_counts() -> None:
    index = index_of(entry(b"a" * 32, 1), entry(b"a" * 32, 2))
    assert len(index) == 1
    assert index.entry(0).stored == 1


@given(id_sets, st.data())
def test_prefixes(present: list[bytes], data: st.DataObject) -> None:
    index = index_of(*map(entry, present))
    whole = data.draw(st.sampled_from(present or [b"a" * 32])).hex()
    prefix = whole[: data.draw(st.integers(1, 64))]
    expected = sorted(one for one in present if one.hex().startswith(prefix))
    assert [one.id for one in index.with_prefix(prefix)] == expected


@given(st.lists(id_sets, min_size=1, max_size=4), st.randoms())
def test_merge_keeps_the_first_and_what_is_asked(groups: list[list[bytes]], random: object) -> None:
    expected: dict[bytes, Entry] = {}
    indexes, masks = [], []
    for group, present in enumerate(groups):
        base = bytes([group]) * 32
        entries = [
            entry(one, group * 10 + n % 7, base if n % 2 else None) for n, one in enumerate(present)
        ]
        index = index_of(*entries)
        keep = np.array([random.random() < 0.7 for _ in present], np.bool_)  # type: ignore[attr-defined]
        for row in np.flatnonzero(keep):
            expected.setdefault(index.entry(int(row)).id, index.entry(int(row)))
        indexes.append(index)
        masks.append(keep)
    merged = Index("merged", memoryview(b"".join(merge(indexes, masks))))
    merged.check()
    assert [repr(one) for one in merged] == [repr(expected[one]) for one in sorted(expected)]
    assert set(merged.packs) == {one.pack for one in expected.values()}
    assert len(merged.bases) == 32 * len({one.base for one in expected.values() if one.base})


def test_locate_takes_the_first_index_that_has_it() -> None:
    first, second = (
        index_of(entry(b"a" * 32, 1)),
        index_of(entry(b"a" * 32, 2), entry(b"b" * 32, 5)),
    )
    located = locate([first, second], as_ids(b"a" * 32 + b"b" * 32 + b"c" * 32))
    assert located.found.tolist() == [True, True, False]
    assert located.rows["stored"].tolist() == [1, 5, 0]
    assert located.packs[located.rows["pack"][0]] == PACKS[1]
    assert located.packs[located.rows["pack"][1]] == PACKS[5 % 3]


def test_an_empty_index() -> None:
    index = index_of()
    assert index.find(b"a" * 32) is None
    assert list(index) == []
    assert find_rows(index, as_ids(b"a" * 32)).tolist() == [-1]
    assert not locate([], as_ids(b"a" * 32)).found.any()


def test_unknown_energy_stays_unknown() -> None:
    index = index_of(entry(b"a" * 32)._replace(energy=math.nan))
    assert math.isnan(index.entry(0).energy)


@given(st.integers(0, 10_000), st.integers(0, 7))
def test_every_flipped_bit_is_found_by_check(position: int, bit: int) -> None:
    data = bytearray(b"".join(encode_entries([entry(bytes([n]) * 32, n) for n in range(5)])))
    data[position % len(data)] ^= 1 << bit
    with pytest.raises((CorruptDataError, UnsupportedVersionError)):
        Index("test", memoryview(bytes(data))).check()


@given(st.integers(0, 10_000))
def test_a_cut_off_index_is_not_opened(length: int) -> None:
    data = b"".join(encode_entries([entry(bytes([n]) * 32, n) for n in range(5)]))
    with pytest.raises(CorruptDataError):
        Index("test", memoryview(data[: length % len(data)]))


def test_a_row_is_64_bytes() -> None:
    one, two = (
        len(b"".join(encode_entries(entry(os.urandom(32)) for _ in range(n)))) for n in (1, 2)
    )
    assert two - one == 64
    assert one == HEADER_SIZE + 40 + 64
