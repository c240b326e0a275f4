"""The bytes of files by their chunks, and what several readers share of them."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from mstore.filebytes import FileBytes, Reach, neighbours
from mstore.ids import ID_SIZE
from mstore.objects import Manifest, SegmentChunks


class Content(FileBytes):
    """A file in memory that counts how often each of its chunks is read."""

    def __init__(self, lengths: list[int]) -> None:
        self.data = np.random.default_rng(len(lengths)).bytes(sum(lengths))
        ids = bytes(ID_SIZE * len(lengths))
        segments = (SegmentChunks(len(self.data), ids, lengths=tuple(lengths)),)
        super().__init__(Manifest("opaque", len(self.data), segments))
        self.read_at: list[int] = []

    def _fetch(self, starts, wanted, out):
        for start, place, length in zip(starts, wanted.positions, wanted.lengths, strict=True):
            self.read_at.append(int(start))
            out[place : place + length] = self.data[start : start + length]


lengths = st.lists(st.integers(1, 9), min_size=1, max_size=12)


def ranges(size):
    """Offsets and lengths in a file of so many bytes."""
    pairs = st.tuples(st.integers(0, size), st.integers(0, size))
    return pairs.map(lambda pair: (min(pair), max(pair) - min(pair)))


@given(data=st.data(), lengths=lengths)
def test_ranges_and_runs(data, lengths):
    content = Content(lengths)
    size = len(content.data)
    wanted = data.draw(st.lists(ranges(size), max_size=5))
    found = content.read_ranges(wanted)
    assert [bytes(one) for one in found] == [content.data[at : at + n] for at, n in wanted]
    assert len(content.read_at) == len(set(content.read_at))
    held, starts = content.chunks(wanted)
    assert starts == sorted(content.read_at)
    assert list(held.lengths or ()) == [
        len(content.data[at:end]) for at, end in _chunks(lengths, starts)
    ]
    run = data.draw(st.integers(1, size))
    places = sorted(data.draw(st.sets(st.integers(0, size - run), min_size=1, max_size=4)))
    begin, raw = content.read_runs(np.array(places), run)
    for place in places:
        assert raw[place - begin :][:run].tobytes() == content.data[place : place + run]


def _chunks(lengths, starts):
    ends = np.cumsum(lengths).tolist()
    return [(start, next(end for end in ends if end > start)) for start in starts]


@given(data=st.data(), lengths=lengths)
def test_what_is_held_is_not_read_again(data, lengths):
    content = Content(lengths)
    size = len(content.data)
    begin, length = data.draw(ranges(size))
    held = content.hold(begin, begin + length)
    kept = content.read_at[:]
    content.read_at.clear()
    for at, count in data.draw(st.lists(ranges(size), max_size=5)):
        content.read_at.clear()
        assert held.read(at, count) == content.data[at : at + count]
        (found,) = held.read_ranges([(at, count)])
        assert bytes(found) == content.data[at : at + count]
        if count:
            start, raw = held.read_runs(np.array([at]), count)
            assert raw[at - start :][:count].tobytes() == content.data[at : at + count]
        if begin <= at and at + count <= begin + length and length:
            assert not content.read_at
    assert len(kept) == len(set(kept))
    assert content.read(0, size) == content.data


@given(data=st.data(), most=st.sampled_from([1, 10, 100]))
def test_groups_of_neighbours(data, most):
    files = Content([9] * 10), Content([7] * 9)
    wanted = []
    for _ in range(data.draw(st.integers(0, 8))):
        one, other = (data.draw(ranges(len(file.data))) for file in files)
        first = data.draw(st.sampled_from(files))
        wanted.append((Reach(first, one[0], sum(one)), Reach(files[1], other[0], sum(other))))
    wanted = [one for one in wanted if one[0].end <= one[0].content.size]
    groups = list(neighbours(wanted, most))
    assert sorted(number for group in groups for number in group.numbers) == [*range(len(wanted))]
    for group in groups:
        for place, reach in enumerate(group.reaches):
            members = [wanted[number][place] for number in group.numbers]
            assert {one.content for one in members} == {reach.content}
            assert reach.begin == min(one.begin for one in members)
            assert reach.end == max(one.end for one in members)
            assert len(members) == 1 or reach.end - reach.begin <= most
    # In the order of the first file, of those that belong to it.
    for file in files:
        begins = [
            wanted[n][0].begin for g in groups for n in g.numbers if wanted[n][0].content is file
        ]
        assert begins == sorted(begins)


def test_neighbours_share_what_is_read():
    content = Content([1000] * 100)
    wanted = [(Reach(content, at, at + 100),) for at in range(0, 100_000, 100)]
    wanted = [wanted[number] for number in np.random.default_rng(0).permutation(len(wanted))]
    for group in neighbours(wanted, 20_000):
        (shared,) = group.contents()
        for number in group.numbers:
            ((_, begin, end),) = wanted[number]
            assert shared.read(begin, end - begin) == content.data[begin:end]
    assert sorted(content.read_at) == [*range(0, 100_000, 1000)]


def test_what_lies_far_away_is_no_neighbour(monkeypatch):
    monkeypatch.setattr("mstore.filebytes._GAP", 50)
    content = Content([10] * 100)
    wanted = [(Reach(content, at, at + 10),) for at in (0, 60, 200, 210)]
    assert [group.numbers for group in neighbours(wanted)] == [[0, 1], [2, 3]]
