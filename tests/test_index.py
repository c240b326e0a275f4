"""Indexes: single and bulk look-up, prefixes, merging, damage."""

import math
import os
from collections.abc import Iterable
from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mstore.bulkindex import (
    NO_ROW,
    as_ids,
    check_rows,
    find_rows,
    locate,
    locate_with_bases,
    merge,
    search,
)
from mstore.errors import CorruptDataError, NotFoundError, UnsupportedVersionError
from mstore.ids import Kind
from mstore.index import HEADER_SIZE, MAX_OFFSET, Index, encode_entries, find_entry
from mstore.pack import Entry

PACKS = ["d" + "0" * 32, "d" + "1" * 32, "m" + "2" * 32]


def entry(identifier: bytes, number: int = 0, depth: int = 0, base: bytes | None = None) -> Entry:
    return Entry(
        identifier,
        1,
        PACKS[number % 3],
        1000 + number,
        number,
        2 * number,
        3,
        12,
        depth,
        base or (bytes([depth]) * 32 if depth else None),
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


def counting(entries: Iterable[Entry]) -> dict[bytes, Entry]:
    """By id the entry that counts: that of least depth, the first among equals."""
    found: dict[bytes, Entry] = {}
    for one in entries:
        if one.id not in found or one.depth < found[one.id].depth:
            found[one.id] = one
    return found


@given(st.lists(st.tuples(ids, st.integers(0, 3)), max_size=20))
def test_of_a_repeated_id_the_least_depth_counts(records: list[tuple[bytes, int]]) -> None:
    entries = [entry(one, number, depth) for number, (one, depth) in enumerate(records)]
    assert {one.id: one for one in index_of(*entries)} == counting(entries)


# Few ids, so that most stand in several indexes, with every combination of depths.
groups_of_records = st.lists(
    st.dictionaries(ids, st.integers(0, 3), max_size=12), min_size=1, max_size=4
)


def indexes_of(groups: list[dict[bytes, int]]) -> list[Index]:
    return [
        index_of(
            *(entry(one, group * 20 + n, depth) for n, (one, depth) in enumerate(records.items()))
        )
        for group, records in enumerate(groups)
    ]


@given(groups_of_records, id_sets)
def test_look_up_in_several_indexes(groups: list[dict[bytes, int]], others: list[bytes]) -> None:
    """One at a time, in bulk, and the rows alone: they agree on which record counts."""
    indexes = indexes_of(groups)
    expected = counting(one for index in indexes for one in index)
    wanted = [*expected, *others]
    located = locate(indexes, as_ids(b"".join(wanted)))
    numbers, rows = search(indexes, as_ids(b"".join(wanted)))
    for at, identifier in enumerate(wanted):
        one = expected.get(identifier)
        assert find_entry(indexes, Kind.CHUNK, identifier) == one
        assert located.found[at] == (one is not None) == (numbers[at] >= 0)
        if one is None:
            continue
        assert indexes[numbers[at]].entry(int(rows[at])) == one
        row = located.rows[at]
        assert (located.packs[row["pack"]], row["offset"], row["depth"]) == (*one[2:4], one.depth)
        base = located.bases[row["base"] - 1].tobytes() if row["base"] else None
        assert base == one.base
    assert find_entry(indexes, Kind.COMMIT, b"a" * 32) is None


def chain(*depths: int) -> list[Entry]:
    """Entries each coded against the one before it (the first one against the last)."""
    names = [bytes([65 + number]) * 32 for number in range(len(depths))]
    return [
        entry(name, number, depth, names[number - 1] if depth else None)
        for number, (name, depth) in enumerate(zip(names, depths, strict=True))
    ]


def test_bases_are_located_down_to_the_last() -> None:
    entries = chain(0, 1, 4, 5)
    split = [index_of(*entries[::2]), index_of(*entries[1::2])]
    asked = as_ids(entries[3].id + entries[1].id + entries[3].id)
    found = locate_with_bases(split, asked)
    assert found.ids[:3].tolist() == asked.tolist()
    assert sorted(found.packs) == sorted({one.pack for one in entries})
    for start, chain_of_bases in ((0, entries[3::-1]), (1, entries[1::-1]), (2, entries[3::-1])):
        at = start
        for one in chain_of_bases:
            assert found.ids[at].tobytes() == one.id
            assert found.packs[found.rows["pack"][at]] == one.pack
            assert found.rows["offset"][at] == one.offset
            at = int(found.base[at])
        assert at == NO_ROW


def test_no_base_is_located_where_none_is_needed() -> None:
    found = locate_with_bases([index_of(*chain(0, 1, 2))], as_ids(b"A" * 32))
    assert (len(found.ids), found.base.tolist()) == (1, [NO_ROW])


@pytest.mark.parametrize("depths", [(1, 2), (1, 1), (0, 2, 2), (3, 1, 2), (0, 3, 2)])
def test_bases_that_are_not_below_are_refused(depths: tuple[int, ...]) -> None:
    """So that no circle can keep a reader going for ever."""
    entries = chain(*depths)
    with pytest.raises(CorruptDataError, match="circle"):
        locate_with_bases([index_of(*entries)], as_ids(entries[-1].id))


def test_a_missing_base_is_named() -> None:
    entries = chain(0, 1)
    with pytest.raises(NotFoundError, match=f"base {entries[0].id.hex()[:12]} is missing"):
        locate_with_bases([index_of(entries[1])], as_ids(entries[1].id))


@pytest.mark.parametrize(("depth", "base"), [(1, None), (0, b"b" * 32)])
def test_depth_without_base_is_refused(depth: int, base: bytes | None) -> None:
    index = index_of(entry(b"a" * 32)._replace(depth=depth, base=base))
    with pytest.raises(CorruptDataError):
        index.entry(0)
    with pytest.raises(CorruptDataError):
        check_rows(index)
    with pytest.raises(CorruptDataError):
        locate([index], as_ids(b"a" * 32))


@given(id_sets, st.data())
def test_prefixes(present: list[bytes], data: st.DataObject) -> None:
    index = index_of(*map(entry, present))
    whole = data.draw(st.sampled_from(present or [b"a" * 32])).hex()
    prefix = whole[: data.draw(st.integers(1, 64))]
    expected = sorted(one for one in present if one.hex().startswith(prefix))
    assert [one.id for one in index.with_prefix(prefix)] == expected


@given(groups_of_records, st.randoms())
def test_merge_keeps_what_counts_of_what_is_asked(
    groups: list[dict[bytes, int]], random: Random
) -> None:
    indexes = indexes_of(groups)
    masks = [np.array([random.random() < 0.7 for _ in index], np.bool_) for index in indexes]
    kept = (
        index.entry(int(row))
        for index, mask in zip(indexes, masks, strict=True)
        for row in np.flatnonzero(mask)
    )
    expected = counting(kept)
    merged = Index("merged", memoryview(b"".join(merge(indexes, masks))))
    check_rows(merged)
    assert list(merged) == [expected[one] for one in sorted(expected)]
    assert set(merged.packs) == {one.pack for one in expected.values()}
    assert len(merged.bases) == 32 * len({one.base for one in expected.values() if one.base})


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


def test_an_offset_that_no_pack_can_have_is_damage() -> None:
    """Reading on would end in a negative place, and an error that names no index."""
    identifier = bytes(32)
    entry = Entry(identifier, 1, "d" + "0" * 32, MAX_OFFSET + 1, 10, 10, 0)
    index = Index("x", memoryview(b"".join(encode_entries([entry]))))
    with pytest.raises(CorruptDataError, match="index x"):
        index.find(identifier)
    with pytest.raises(CorruptDataError, match="index x"):
        locate([index], as_ids(identifier))
