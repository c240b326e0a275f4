"""The history behind some commits, newest first, filtered and sorted; nothing here needs numpy."""

import math
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from heapq import heappop, heappush
from itertools import islice
from operator import itemgetter

from mstore.database import Database
from mstore.errors import InvalidInputError
from mstore.ids import Id
from mstore.objects import Commit
from mstore.ops.where import Condition, Field, field_of
from mstore.root import Root

_LOOK_AHEAD = 3600 * 1_000_000
"""Microseconds by which the clocks of two writers may well differ."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One commit of a history, with its id."""

    id: Id
    commit: Commit


def log(
    db: Database,
    tips: Iterable[Id],
    *,
    where: Condition | None = None,
    sort: str | None = None,
    limit: int | None = None,
    exact: bool = False,
) -> Iterator[Entry]:
    """The commits reachable from `tips`, each once, newest first, children before parents.

    Reads no more commits than it yields, and where several lines of history run side by side,
    those of the hour behind. A child whose clock was further behind than that, on another line,
    can therefore come after its parent, unless `exact` has the whole history read first.

    `where` leaves out commits for which it is false. `sort` orders them by a key of their
    metadata, or "time", "author", "message", "id" or "size" (bytes of all files), downwards when
    it begins with "-"; commits without such a value come last, and equal ones newest first.
    `limit` is how many to yield at most. Raises CorruptDataError when a commit cannot be read,
    after those before it.
    """
    if limit is not None and limit < 0:
        raise InvalidInputError(f"{limit} is no number of commits")
    entries = _newest_first(db, tips, math.inf if exact else _LOOK_AHEAD)
    if where is not None:
        entries = (entry for entry in entries if where(entry.commit, entry.id))
    if sort is not None:
        entries = iter(_sorted(db, entries, sort))
    return islice(entries, limit)


def decorations(root: Root, model: str) -> dict[Id, list[str]]:
    """The names of branches, then of tags, that stand at each commit which has any."""
    refs = root.refs(model)
    names: dict[Id, list[str]] = {}
    for kind in (refs.branches, refs.tags):
        for name, commit in sorted(kind.items()):
            names.setdefault(commit, []).append(name)
    return names


def _sorted(db: Database, entries: Iterable[Entry], key: str) -> list[Entry]:
    name = key.removeprefix("-")
    value = _size_of(db) if name == "size" else field_of(name)
    ranked: list[tuple[tuple[int, float | str], Entry]] = []
    last: list[Entry] = []
    for entry in entries:
        found = value(entry.commit, entry.id)
        if isinstance(found, str):
            ranked.append(((1, found), entry))
        elif isinstance(found, int | float) and not math.isnan(found):
            ranked.append(((0, found), entry))
        else:
            last.append(entry)
    if last and not ranked:
        keys = sorted({key for entry in last for key in entry.commit.metadata})
        raise InvalidInputError(
            f"no version has a value {name!r} to sort by",
            hint=f"metadata here: {', '.join(keys[:8]) or 'none'}",
        )
    # Both ways this sort leaves equal values in their order.
    ranked.sort(key=itemgetter(0), reverse=key.startswith("-"))
    return [entry for _, entry in ranked] + last


def _size_of(db: Database) -> Field:
    return lambda commit, _: sum(file.size for file in db.snapshot(commit.snapshot).files.values())


def _newest_first(db: Database, tips: Iterable[Id], look_ahead: float) -> Iterator[Entry]:
    walk = _Walk(db)
    for tip in tips:
        walk.meet(tip)
    while (newest := walk.newest()) is not None:
        other = walk.newest_unexpanded(besides=newest)
        if other is not None and other.commit.time >= newest.commit.time - look_ahead:
            # Behind it may lie a child of what now seems the newest.
            walk.expand(other)
            continue
        yield newest
        walk.leave(newest)


class _Walk:
    """A walk over commits from children to parents, as far as it has come.

    A commit is met when it has been read, expanded when its parents have been met too, and left
    when it has been yielded. It is ready when all children that were met have been left.
    """

    def __init__(self, db: Database) -> None:
        self._db = db
        self._met: dict[Id, Entry] = {}
        self._parents: dict[Id, set[Id]] = {}
        self._left: set[Id] = set()
        self._children: Counter[Id] = Counter()
        # Heaps of negative time and id; both may still name commits that no longer belong there.
        self._ready: list[tuple[int, Id]] = []
        self._unexpanded: list[tuple[int, Id]] = []

    def meet(self, identifier: Id) -> None:
        """Read a commit, unless that has been done."""
        if identifier in self._met or identifier in self._left:
            return
        commit = self._db.commit(identifier)
        self._met[identifier] = Entry(identifier, commit)
        heappush(self._ready, (-commit.time, identifier))
        heappush(self._unexpanded, (-commit.time, identifier))

    def expand(self, entry: Entry) -> None:
        """Meet the parents of a commit, which are not ready before it has been left."""
        if entry.id in self._parents:
            return
        self._parents[entry.id] = set(self._db.parents(entry.commit))
        for parent in self._parents[entry.id]:
            self.meet(parent)
            self._children[parent] += 1

    def leave(self, entry: Entry) -> None:
        """Go on from a commit to its parents."""
        self._left.add(entry.id)
        self.expand(entry)
        for parent in self._parents[entry.id]:
            self._children[parent] -= 1
            if not self._children[parent] and parent in self._met:
                heappush(self._ready, (-self._met[parent].commit.time, parent))
        del self._met[entry.id]

    def newest(self) -> Entry | None:
        """The newest commit that is ready."""
        while self._ready:
            identifier = self._ready[0][1]
            if identifier in self._met and not self._children[identifier]:
                return self._met[identifier]
            heappop(self._ready)
        return None

    def newest_unexpanded(self, besides: Entry) -> Entry | None:
        """The newest commit whose parents have not been met, other than `besides`."""
        heap = self._unexpanded
        while heap and heap[0][1] in self._parents:
            heappop(heap)
        if not heap or heap[0][1] != besides.id:
            return self._met[heap[0][1]] if heap else None
        first = heappop(heap)
        while heap and heap[0][1] in self._parents:
            heappop(heap)
        other = self._met[heap[0][1]] if heap else None
        heappush(heap, first)
        return other
