"""The order of `log`, how much it reads, and its filter and sorting."""

import math
import subprocess
import sys
from dataclasses import replace
from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mstore.chunkstore import Session
from mstore.database import Database
from mstore.errors import CorruptDataError, InvalidInputError
from mstore.ids import Kind
from mstore.objects import Commit, FileEntry, Snapshot
from mstore.ops.history import decorations, log
from mstore.ops.where import parse_where
from mstore.pack import pack_key
from mstore.root import Refs
from mstore.storage.memory import MemoryStorage

HOUR = 3600 * 1_000_000


class Counting(Database):
    """Counts the commits that are read."""

    read = 0

    def commit(self, identifier):
        self.read += 1
        return super().commit(identifier)


def store(parents, times, *, metadata=None, sizes=None):
    """A database of commits 0, 1, …, each with the given earlier ones as parents; and their ids."""
    storage = MemoryStorage()
    ids = []
    with Session(Database.create(storage, "me")) as session:
        for number, (earlier, time) in enumerate(zip(parents, times, strict=True)):
            size = sizes[number] if sizes else 0
            snapshot = session.add_object(Snapshot({"f": FileEntry(bytes(32), size)}))
            described = metadata[number] if metadata else {}
            before = tuple(ids[parent] for parent in earlier)
            commit = Commit(snapshot, before, "me", time, 0, str(number), described)
            ids.append(session.add_object(commit))
        session.publish(lambda root: root, action="test", author="me")
    return Counting.open(storage), ids


def line(count, step=1):
    """A line of commits, one every `step` microseconds."""
    parents = [[], *([number] for number in range(count - 1))]
    return parents, [number * step for number in range(count)]


def numbers(entries):
    """Which commits these are."""
    return [int(entry.commit.message) for entry in entries]


@st.composite
def graphs(draw):
    count = draw(st.integers(0, 11))
    return [[], *(draw(st.lists(st.integers(0, last), max_size=3)) for last in range(count))]


def reachable(parents, tips):
    found, waiting = set(), list(tips)
    while waiting:
        if (number := waiting.pop()) not in found:
            found.add(number)
            waiting.extend(parents[number])
    return found


@given(st.data(), graphs(), st.booleans())
def test_order(data, parents, exact):
    """Every commit once, no parent before its child, and otherwise the newest first."""
    spread = 10 * HOUR if exact else HOUR
    count = len(parents)
    times = data.draw(st.lists(st.integers(0, spread), min_size=count, max_size=count))
    tips = data.draw(st.lists(st.integers(0, count - 1), max_size=3))
    db, ids = store(parents, times)
    found = numbers(log(db, [ids[tip] for tip in tips], exact=exact))
    wanted = reachable(parents, tips)
    assert sorted(found) == sorted(wanted)
    waiting = set(wanted)
    for number in found:
        children = {child for child in waiting if number in parents[child]}
        assert not children
        ready = {n for n in waiting if not any(n in parents[child] for child in waiting)}
        assert times[number] == max(times[n] for n in ready)
        waiting.remove(number)


def test_a_line_is_read_as_far_as_it_is_asked_for():
    db, ids = store(*line(1000))
    assert numbers(log(db, [ids[-1]], limit=10)) == list(range(999, 989, -1))
    assert db.read == 10
    assert numbers(islice(log(db, [ids[-1]]), 3)) == [999, 998, 997]
    assert db.read == 13


def test_a_filter_reads_until_enough_is_found():
    metadata = [{"loss": number % 100} for number in range(1000)]
    db, ids = store(*line(1000), metadata=metadata)
    found = log(db, [ids[-1]], where=parse_where("loss<1"), limit=2)
    assert numbers(found) == [900, 800]
    assert db.read == 200


def test_lines_side_by_side_are_read_an_hour_ahead():
    """Two lines of 500 commits, ten minutes between commits of one line."""
    parents, times = [[]], [0]
    for number in range(1, 1001):
        parents.append([max(0, number - 2)])
        times.append(number * 300_000_000)
    db, ids = store(parents, times)
    assert numbers(log(db, ids[-2:], limit=10)) == list(range(1000, 990, -1))
    assert db.read < 40
    assert numbers(log(db, ids[-2:])) == list(range(1000, -1, -1))


def test_a_clock_an_hour_behind_keeps_children_before_parents():
    """A, the parent of B and C, is newer than its child B by its clock."""
    times = [10 * HOUR, 10 * HOUR - HOUR // 2, 11 * HOUR]
    db, ids = store([[], [0], [0]], times)
    assert numbers(log(db, [ids[1], ids[2]])) == [2, 1, 0]


def test_exact_does_so_with_any_clock():
    db, ids = store([[], [0], [1], [0]], [100 * HOUR, 1, 0, 101 * HOUR])
    assert numbers(log(db, [ids[2], ids[3]], exact=True)) == [3, 2, 1, 0]


def test_a_tip_behind_another_tip_is_still_looked_behind():
    """0 is the parent of both, and by its clock the newest; 1 is first taken for the newest."""
    db, ids = store([[], [0], [1, 0]], [20, 10, 9])
    assert numbers(log(db, [ids[1], ids[2]])) == [2, 1, 0]


def test_a_merge_is_gone_through_once():
    db, ids = store([[], [0], [0], [1, 2, 2]], [0, 1, 2, 3])
    assert numbers(log(db, [ids[3], ids[3], ids[0]])) == [3, 2, 1, 0]


def test_history_ends_where_gc_has_cut_it():
    db, ids = store(*line(5))
    db.root = replace(db.root, forgotten=frozenset([ids[1]]))
    assert numbers(log(db, [ids[4]])) == [4, 3, 2]


def test_no_tips():
    db, _ = store(*line(2))
    assert list(log(db, [])) == []
    assert list(log(db, [], sort="loss")) == []


def test_a_missing_commit_is_told_after_those_before_it():
    db, ids = store([[], [0]], [0, 1])
    db.storage.delete(pack_key(db.find(Kind.COMMIT, ids[0]).pack))
    with pytest.raises(CorruptDataError):
        list(log(db, [ids[0]]))
    entries = log(db, [ids[1]])
    with pytest.raises(CorruptDataError):
        next(entries)


def test_damage_further_back_leaves_the_newer_commits():
    db, ids = store(*line(5))
    original = db.commit

    def commit(identifier):
        if identifier == ids[1]:
            raise CorruptDataError("damaged")
        return original(identifier)

    db.commit = commit
    entries = log(db, [ids[4]])
    assert numbers(islice(entries, 3)) == [4, 3, 2]
    with pytest.raises(CorruptDataError):
        next(entries)


METADATA = [
    {"loss": 0.5, "name": "b", "mixed": 1},
    {"loss": 0.1, "name": "a", "mixed": "x"},
    {"loss": None, "name": "c", "mixed": [1]},
    {"loss": 0.5, "mixed": True},
    {"loss": math.nan, "name": "a", "mixed": 0.5},
    {},
]


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("loss", [1, 3, 0, 5, 4, 2]),
        ("-loss", [3, 0, 1, 5, 4, 2]),
        ("name", [4, 1, 0, 2, 5, 3]),
        ("-name", [2, 0, 4, 1, 5, 3]),
        ("mixed", [4, 3, 0, 1, 5, 2]),
        ("-mixed", [1, 3, 0, 4, 5, 2]),
        ("time", [0, 1, 2, 3, 4, 5]),
        ("-time", [5, 4, 3, 2, 1, 0]),
        ("size", [3, 2, 5, 4, 1, 0]),
        ("-size", [1, 0, 5, 4, 2, 3]),
        ("author", [5, 4, 3, 2, 1, 0]),
        ("-message", [5, 4, 3, 2, 1, 0]),
    ],
)
def test_sort(key, expected):
    """What has no value comes last both ways, and equals stay newest first."""
    sizes = [9, 9, 2, 1, 5, 5]
    db, ids = store(*line(6), metadata=METADATA, sizes=sizes)
    assert numbers(log(db, [ids[-1]], sort=key)) == expected
    assert numbers(log(db, [ids[-1]], sort=key, limit=2)) == expected[:2]


def test_a_key_that_no_version_has_cannot_be_sorted_by():
    db, ids = store(*line(6), metadata=METADATA)
    with pytest.raises(InvalidInputError, match="metadata here: loss"):
        list(log(db, [ids[-1]], sort="-losss"))


def test_sort_and_filter_together():
    db, ids = store(*line(6), metadata=METADATA)
    found = log(db, [ids[-1]], where=parse_where("loss<=0.5"), sort="loss", limit=2)
    assert numbers(found) == [1, 3]


def test_a_negative_limit_is_refused():
    db, ids = store(*line(1))
    with pytest.raises(InvalidInputError):
        log(db, [ids[0]], limit=-1)
    assert list(log(db, [ids[0]], limit=0)) == []


def test_decorations():
    db, ids = store(*line(2))
    one = Refs({"main": ids[1], "dev": ids[1], "old": ids[0]}, {"v1": ids[0], "a": ids[1]})
    root = db.root.with_refs("default", one).with_refs("other", Refs({"x": ids[0]}, {}))
    assert decorations(root, "default") == {ids[1]: ["dev", "main", "a"], ids[0]: ["old", "v1"]}
    assert decorations(root, "other") == {ids[0]: ["x"]}
    assert decorations(root, "nothing") == {}


def test_numpy_is_not_needed():
    code = "import sys, mstore.ops.history, mstore.ops.where; sys.exit('numpy' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
