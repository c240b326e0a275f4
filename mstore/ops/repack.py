"""Storing anew what is stored, so that it takes less and the newest version is read soonest.

1. Read the root; plan anew what each chunk is coded against (see `replan`), and store those that
   change in new packs. Copy what is left of packs that are partly idle, and small packs together.
2. Publish new indexes in place of the listed ones, with the idle packs as `condemned`, upon the
   very root that was read. When others published meanwhile, what they added is looked at: what is
   coded against a chunk that has become deeper is coded anew too. Then publish upon their root.
3. Doom and delete what is condemned, as gc does.

Ids and commits do not change, and nothing that a branch had before is lost. Killed at any point
before the root is published, nothing has happened; what is left behind is collected by gc.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from mstore import chunkstore
from mstore.bulkindex import NO_ROW, as_ids
from mstore.chunkstore import Session, StaleSessionError
from mstore.database import Database
from mstore.errors import ConflictError, CorruptDataError, NotFoundError
from mstore.ids import Id
from mstore.ops.recode import WORTH, Outcome, Recoder
from mstore.ops.replan import Plan, Replanner, walk_order
from mstore.ops.republish import Republisher, stored_sizes
from mstore.ops.rewrite import Limits, Shelf, delete_condemned
from mstore.ops.table import Table
from mstore.pack import read_record

_ATTEMPTS = 5
_SAMPLE = 64
_SPARSE = 16
_MIN_LIVE = 0.9

_MOST_GROWTH = 0.05
"""The part by which a repository may grow so that its newest version is read sooner."""

Progress = Callable[[int], None]
Depths = Mapping[Id, int]


@dataclass(frozen=True, slots=True)
class RepackReport:
    """What repack did, or would do. Sizes are bytes of packs and indexes.

    `before` is what the repository held and `after` what it holds then, `newest` the newest version
    of all branches: as many records as `depth_before` had to be decoded before some chunk of it,
    and `depth_after` have to now. Of all `versions`, as many as `shallower` need fewer than before
    and as many as `deeper` more. `recoded` chunks were encoded anew, and `packs` were replaced.
    With `estimated` the figures are from a sample of the chunks. When not `worthwhile`, there is
    nothing to gain, and nothing is changed; if it is, but not `replans`, packs are only merged.
    """

    estimated: bool
    worthwhile: bool
    replans: bool
    before: int
    after: int
    newest: Id | None
    depth_before: int
    depth_after: int
    versions: int
    shallower: int
    deeper: int
    recoded: int
    packs: int

    @property
    def gained(self) -> int:
        """Bytes less than before; negative when there are more."""
        return self.before - self.after


def repack(
    db: Database,
    *,
    author: str,
    deep: bool = False,
    dry_run: bool = False,
    progress: Progress | None = None,
    announce: Callable[[RepackReport], None] | None = None,
) -> RepackReport:
    """Store anew what is stored; see the module's docstring for how.

    With `deep` chunks that stay where they are are encoded anew too, with more effort. `announce`
    gets the estimate before anything is written; `progress` is told how many more bytes of chunks
    are done. Raises CorruptDataError, having changed nothing, when a chunk cannot be read, and
    ConflictError when others always publish first.
    """
    for _attempt in range(_ATTEMPTS):
        root = db.refresh()
        try:
            attempt = _Repack(db, deep, progress)
            estimate = attempt.estimate()
            if announce is not None:
                announce(estimate)
            if dry_run or not estimate.worthwhile:
                return estimate
            return attempt.run(author, estimate)
        except (CorruptDataError, NotFoundError, StaleSessionError):
            # What a gc moves meanwhile looks like damage: then there is a newer root.
            if db.log.newest().number == root.number:
                raise
    raise ConflictError(
        f"others recorded something during each of {_ATTEMPTS} attempts; nothing was changed",
        hint="run repack again when less is committed",
    )


class _Repack:
    """One attempt, from the root that is newest at the beginning."""

    def __init__(self, db: Database, deep: bool, progress: Progress | None) -> None:
        self.db = db
        self.deep = deep
        self.progress = progress
        self.table = Table(db.chunk_indexes())
        self.lines, self.others = walk_order(db)
        self.before = sum(stored_sizes(db).values())

    def estimate(self) -> RepackReport:
        """What a sample of the chunks promises."""
        every = max(1, min(_SPARSE, len(self.table) // _SAMPLE))
        plan = self._plan(lambda outcome: None, every)
        planned, size = plan.planned, self.table.size
        gained = -plan.growth(planned)
        if every > 1:
            gained = int(gained * size[plan.met].sum() / max(1, size[planned].sum()))
        depths = (
            self._depths(self.table, np.where(planned, self.table.depth, 0)),
            self._depths(self.table, np.where(planned, plan.depth, 0)),
        )
        shallower = any(depths[1][line[0]] < depths[0][line[0]] for line in self.lines[:1])
        worth = gained > (1 - WORTH) * int(size.sum()) or shallower
        replans = bool(plan.changed.any() and worth and is_fair(plan))
        idle = sum(len(shelf.rewrite) for shelf in self._copies(np.zeros(len(planned), np.bool_)))
        report = self._report(
            *(depths if replans else (depths[0], depths[0])),
            after=self.before - (gained if replans else 0),
            estimated=True,
            replans=replans,
            worthwhile=replans or idle > 0,
            recoded=plan.recoded * every if replans else 0,
            packs=idle,
        )
        if report.newest is None:
            return report
        # How deep it is now need not be judged by a sample.
        now = self._depths(self.table, self.table.depth)[report.newest]
        return replace(report, depth_before=now, depth_after=report.depth_after if replans else now)

    def run(self, author: str, estimate: RepackReport) -> RepackReport:
        """Do it, and report what came of it."""
        before = self._depths(self.table, self.table.depth)
        recoded, changed = 0, np.zeros(len(self.table), np.bool_)
        with Session(self.db) as session:
            if estimate.replans:
                plan = self._plan(lambda outcome: self._store(session, outcome), 1)
                if not is_fair(plan):
                    # What the sample did not show. What has been stored is left to gc.
                    return replace(estimate, worthwhile=False, replans=False, after=self.before)
                recoded, changed = plan.recoded, plan.changed
            for shelf in self._copies(changed):
                shelf.copy(self.db.storage, session, self.progress)
            packs = Republisher(self.db, session).publish(author)
        delete_condemned(self.db, author, action="repack")
        table = Table(self.db.chunk_indexes())
        return self._report(
            before,
            self._depths(table, table.depth),
            after=sum(stored_sizes(self.db).values()),
            estimated=False,
            replans=estimate.replans,
            worthwhile=True,
            recoded=recoded,
            packs=packs,
        )

    def _plan(self, take: Callable[[Outcome], None], every: int) -> Plan:
        recoder = Recoder(self.db, self.table, deep=self.deep)
        planner = Replanner(self.db, self.table, recoder, take, every=every, progress=self.progress)
        planner.run(self.lines, self.others)
        return planner.plan

    def _store(self, session: Session, outcome: Outcome) -> None:
        """Store what changes: a new payload, or the one there is with another depth."""
        if outcome.record is not None:
            session.append(outcome.record)
        elif outcome.depth != self.table.depth[outcome.row]:
            found = read_record(self.db.storage, self.table.entry(outcome.row))
            session.append_stored(found._replace(entry=found.entry._replace(depth=outcome.depth)))

    def _copies(self, changed: NDArray[np.bool_]) -> tuple[Shelf, Shelf]:
        """What to copy, of chunks and of metadata, when the `changed` chunks (n,) are stored anew.

        Packs that are partly idle then, and small ones if that makes them fewer.
        """
        sizes = stored_sizes(self.db)
        metadata = Table(self.db.metadata_indexes())
        small = chunkstore.PACK_SIZE // 2
        several, any_more = Limits(_MIN_LIVE, small, 2), Limits(_MIN_LIVE, small, 1)
        limits = any_more if changed.any() else several
        everything = np.ones(len(metadata), np.bool_)
        return (
            Shelf.plan((), [self.table.index], [~changed], sizes, limits),
            Shelf.plan((), [metadata.index], [everything], sizes, several),
        )

    def _depths(self, table: Table, depth: NDArray[np.integer]) -> Depths:
        """Of each version that refs reach the greatest of these depths (n,) of its chunks."""
        deepest: dict[Id, int] = {}
        found: dict[Id, int] = {}
        for commit in (commit for line in self.lines for commit in line):
            found[commit] = 0
            for entry in self.db.snapshot(self.db.commit(commit).snapshot).files.values():
                if entry.manifest not in deepest:
                    rows = table.find(as_ids(self.db.chunk_ids(entry.manifest)))
                    rows = rows[rows != NO_ROW]
                    deepest[entry.manifest] = int(depth[rows].max(initial=0))
                found[commit] = max(found[commit], deepest[entry.manifest])
        return found

    def _report(
        self,
        depth_before: Depths,
        depth_after: Depths,
        *,
        after: int,
        estimated: bool,
        replans: bool,
        worthwhile: bool,
        recoded: int,
        packs: int,
    ) -> RepackReport:
        newest = self.lines[0][0] if self.lines else None
        changes = [depth_after[commit] - depth_before[commit] for commit in depth_before]
        return RepackReport(
            estimated=estimated,
            worthwhile=worthwhile,
            replans=replans,
            before=self.before,
            after=after,
            newest=newest,
            depth_before=depth_before[newest] if newest else 0,
            depth_after=depth_after[newest] if newest else 0,
            versions=len(changes),
            shallower=sum(change < 0 for change in changes),
            deeper=sum(change > 0 for change in changes),
            recoded=recoded,
            packs=packs,
        )


def is_fair(plan: Plan) -> bool:
    """Whether all grows by little, and by no more than the newest version does for less depth."""
    planned = plan.planned
    size = int(plan.table.size[planned].sum())
    growth = plan.growth(planned)
    slack = (1 - WORTH) * size
    return growth <= max(0, plan.growth(plan.newest)) + slack and growth <= _MOST_GROWTH * size
