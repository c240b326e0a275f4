"""The order in which records and their bases are read, and what is read at once."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mstore import readplan
from mstore.bulkindex import NO_ROW
from mstore.pack import pack_key
from mstore.readplan import Walk, preorder
from mstore.storage.memory import MemoryStorage


@st.composite
def forests(draw: st.DrawFn) -> list[int]:
    """The parent of each node; NO_ROW for roots. Parents may have any number."""
    count = draw(st.integers(0, 25))
    parents = [draw(st.integers(NO_ROW, node - 1)) for node in range(count)]
    order = draw(st.permutations(range(count)))
    renamed = [NO_ROW] * count
    for node, parent in enumerate(parents):
        renamed[order[node]] = order[parent] if parent != NO_ROW else NO_ROW
    return renamed


def depth_first(parents: list[int]) -> list[tuple[int, int]]:
    """The plain way: nodes with their levels."""
    found: list[tuple[int, int]] = []

    def visit(node: int, level: int) -> None:
        found.append((node, level))
        for child, parent in enumerate(parents):
            if parent == node:
                visit(child, level + 1)

    for node, parent in enumerate(parents):
        if parent == NO_ROW:
            visit(node, 0)
    return found


@given(forests())
def test_preorder_is_depth_first(parents: list[int]) -> None:
    order, level = preorder(np.array(parents, np.int64))
    assert list(zip(order.tolist(), level.tolist(), strict=True)) == depth_first(parents)


@pytest.mark.parametrize("parents", [[0], [1, 0], [-1, 0, 3, 2], [-1, 2, 3, 1]])
def test_a_circle_is_refused(parents: list[int]) -> None:
    with pytest.raises(ValueError, match="circle"):
        preorder(np.array(parents, np.int64))


places = st.lists(st.tuples(st.integers(0, 40), st.integers(1, 30)), max_size=25)


@given(places, st.integers(0, 3), st.data())
def test_jobs_and_windows_cover_the_walk(
    gaps_and_sizes: list[tuple[int, int]], packs: int, data: st.DataObject
) -> None:
    """Whole trees in jobs, all of it in windows of bounded size, and the right bytes in each."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(readplan, "READ_SIZE", 64)
        patch.setattr(readplan, "_MAX_GAP", 8)
        storage = MemoryStorage()
        count = len(gaps_and_sizes)
        base = np.array([data.draw(st.integers(NO_ROW, at - 1)) for at in range(count)], np.int64)
        sizes = np.array([size for _, size in gaps_and_sizes], np.int64)
        pack = np.sort(np.array([data.draw(st.integers(0, packs)) for _ in range(count)], np.int64))
        offsets = np.cumsum([gap + size for gap, size in gaps_and_sizes]) - sizes
        names = [f"d{number}" for number in range(packs + 1)]
        content = np.random.default_rng(0).bytes(2000)
        for name in names:
            storage.put(pack_key(name), [content])
        walk = Walk.plan(names, pack, offsets.astype(np.int64), sizes, base)
        seen = 0
        for job in walk.jobs():
            assert job.start == seen
            assert walk.level[job.start] == 0
            trees = int((walk.level[job] == 0).sum())
            assert trees == 1 or walk.size[job].sum() <= 64
            for window in walk.windows(job):
                assert window.start == seen
                seen = window.stop
                assert window.stop - window.start == 1 or walk.size[window].sum() <= 64
                for record, data_read in zip(
                    walk.records[window], walk.fetch(storage, window), strict=True
                ):
                    start, size = offsets[record], sizes[record]
                    assert data_read == content[start : start + size]
        assert seen == count


def test_what_lies_together_is_read_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight chunks, their bases and the bases' bases, in the same order in three packs."""
    reads: list[tuple[str, int]] = []

    class Counting(MemoryStorage):
        def get(self, key: str, start: int = 0, length: int | None = None) -> bytes:
            reads.append((key, length or 0))
            return super().get(key, start, length)

    storage = Counting()
    names = ["d0", "d1", "d2"]
    for name in names:
        storage.put(pack_key(name), [bytes(900)])
    pack = np.repeat(np.arange(3), 8)
    offset = np.tile(np.arange(8) * 110, 3)
    base = np.concatenate((np.full(8, NO_ROW), np.arange(16)))
    walk = Walk.plan(names, pack, offset, np.full(24, 100), base)
    (job,) = walk.jobs()
    (window,) = walk.windows(job)
    assert [len(one) for one in walk.fetch(storage, window)] == [100] * 24
    assert sorted(reads) == [(pack_key(name), 7 * 110 + 100) for name in names]
