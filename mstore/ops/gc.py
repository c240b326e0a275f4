"""Garbage collection: delete what no ref reaches, beside writers and readers, without a clock.

1. Read the root, mark what the refs reach, copy what lives out of packs that are mostly dead,
   and see which stored objects the new state does not need.
2. Publish the new indexes, with those objects as `condemned`. (Lost race: start over.)
3. Publish as `doomed` what is still condemned. A writer whose own new pack was condemned has
   taken it off the list by publishing; one that comes later sees it doomed and writes again.
4. Delete the doomed objects. 5. Publish that they are gone.

Killed at any point, the next gc finishes the work. A reader that finds a pack gone looks at the
newest root again, which knows where its chunks have moved.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import numpy as np

from mstore.bulkindex import check_rows, columns
from mstore.chunkstore import Session, StaleSessionError
from mstore.database import Database
from mstore.errors import ConflictError, CorruptDataError, InvalidInputError, MstoreError
from mstore.ids import Id, Kind
from mstore.ops.livesketches import LiveSketches
from mstore.ops.marks import Marks, Reached
from mstore.ops.rewrite import Limits, Shelf, delete_condemned
from mstore.pack import pack_key
from mstore.root import Root

_ATTEMPTS = 20
_MIN_LIVE = 0.5
_SMALL_PACK = 4 << 20
_MANY_SMALL_PACKS = 16


@dataclass(frozen=True, slots=True)
class LostCommit:
    """A commit that no ref reaches any more, so that gc removes it."""

    id: Id
    time: int
    message: str


@dataclass(frozen=True, slots=True)
class Report:
    """What gc did, or would do. Sizes are bytes of stored objects.

    `commits` stay and `lost` go; `packs` stay as they are, `rewritten` are replaced by smaller
    ones and `deleted` go, with `indexes` that nothing lists. `kept` is what the repository holds
    afterwards, `freed` what it holds less than before.
    """

    commits: int
    lost: tuple[LostCommit, ...]
    packs: int
    rewritten: int
    deleted: int
    indexes: int
    kept: int
    freed: int
    leftovers: int


@dataclass(frozen=True, slots=True)
class _Plan:
    root: Root
    sizes: dict[str, int]
    chunks: Shelf
    metadata: Shelf
    sketches: LiveSketches
    commits: int
    lost: tuple[LostCommit, ...]
    forgotten: frozenset[Id]
    garbage: frozenset[str]


def collect(
    db: Database,
    *,
    author: str,
    dry_run: bool = False,
    keep_last: int | None = None,
    model: str | None = None,
    progress: Callable[[int], None] | None = None,
) -> Report:
    """Delete what no branch or tag reaches; see the module's docstring for how.

    `keep_last` keeps only so many of the newest versions of each branch of `model` (of all models
    when None), besides tagged ones.
    Raises CorruptDataError, having deleted nothing, when something that is reached is missing.
    `progress` is told how many more bytes were copied out of mostly dead packs.
    """
    if keep_last is not None and keep_last < 1:
        raise InvalidInputError("gc must keep at least one version of each branch")
    for _attempt in range(_ATTEMPTS):
        root, copied = db.refresh(), 0
        try:
            plan = _plan(db, root, keep_last, model)
            if dry_run:
                return _report(plan, leftovers=0, copied=_expected_copy(plan))
            unchanged = plan.forgotten == root.forgotten and plan.sketches.whole == root.sketches
            if not plan.garbage and unchanged:
                break
            with Session(db) as session:
                condemned, copied = _rewrite(db, session, plan, progress)
        except (MstoreError, StaleSessionError):
            # What another gc moves meanwhile looks like damage: then there is a newer root.
            if db.log.newest().number == root.number:
                raise
            continue
        if db.publish_once(root, condemned, action="gc: condemn", author=author):
            break
    else:
        raise ConflictError(
            f"others recorded something during each of {_ATTEMPTS} attempts; nothing was deleted",
            hint="run gc again when less is committed",
        )
    delete_condemned(db, author, action="gc")
    return _report(plan, leftovers=db.storage.sweep(), copied=copied)


def _plan(db: Database, root: Root, keep_last: int | None, model: str | None) -> _Plan:
    for index in (*db.chunk_indexes(), *db.metadata_indexes()):
        # A damaged index could make live packs look dead.
        check_rows(index)
    kept, forgotten = _kept_commits(db, root, keep_last, model)
    reached = Reached(db)
    reached.add(kept)
    sizes = {
        info.key: info.size
        for prefix in ("packs/", "indexes/", "sketches/")
        for info in db.storage.list(prefix)
    }
    limits = Limits(_MIN_LIVE, _SMALL_PACK, _MANY_SMALL_PACKS)
    chunks, metadata = (
        Shelf.plan(refs, marks.indexes, marks.masks, sizes, limits)
        for refs, marks in (
            (root.indexes, reached.chunks),
            (root.metadata_indexes, reached.metadata),
        )
    )
    sketches = LiveSketches.plan(db.storage, root.sketches, reached.metadata)
    needed = chunks.needed() | metadata.needed() | {ref.key for ref in sketches.whole}
    return _Plan(
        root=root,
        sizes=sizes,
        chunks=chunks,
        metadata=metadata,
        sketches=sketches,
        commits=reached.commits,
        lost=tuple(_lost_commits(db, reached.metadata)),
        forgotten=forgotten,
        garbage=frozenset(sizes.keys() - needed),
    )


def _kept_commits(
    db: Database, root: Root, keep_last: int | None, model: str | None
) -> tuple[list[Id], frozenset[Id]]:
    """The commits that stay, and those named as parents by them that do not."""
    kept: set[Id] = set()
    whole: set[Id] = set()
    for name, refs in root.models.items():
        if keep_last is None or model not in (None, name):
            whole.update(refs.branches.values(), refs.tags.values())
            continue
        kept.update(refs.tags.values())
        for tip in refs.branches.values():
            kept.update(_newest(db, tip, keep_last))
    kept.update(identifier for identifier, _ in db.ancestry(whole))
    parents = {parent for commit in kept for parent in db.commit(commit).parents}
    return sorted(kept), frozenset(parents - kept)


def _newest(db: Database, tip: Id, count: int) -> Iterable[Id]:
    """The `count` newest versions that lead to `tip`."""
    ancestry = sorted(db.ancestry([tip]), key=lambda item: item[1].time, reverse=True)
    return [tip, *(identifier for identifier, _ in ancestry if identifier != tip)][:count]


def _lost_commits(db: Database, marks: Marks) -> Iterable[LostCommit]:
    for index, mask in zip(marks.indexes, marks.masks, strict=True):
        dead = ~mask & (columns(index)[1]["kind"] == Kind.COMMIT)
        for row in np.flatnonzero(dead):
            identifier = index.entry(int(row)).id
            try:
                commit = db.commit(identifier)
            except CorruptDataError:
                # It goes anyway; that it is damaged must not keep the garbage here.
                yield LostCommit(identifier, 0, "(unreadable)")
                continue
            yield LostCommit(identifier, commit.time, commit.message)


def _rewrite(
    db: Database, session: Session, plan: _Plan, progress: Callable[[int], None] | None
) -> tuple[Root, int]:
    """Store the new packs and indexes; returns the root of step 2 and the bytes written."""
    for shelf in (plan.chunks, plan.metadata):
        shelf.copy(db.storage, session, progress)
    copied_chunks, copied_metadata = session.store()
    trimmed = [shelf.trimmed(db.storage) for shelf in (plan.chunks, plan.metadata)]
    changed = replace(
        plan.root,
        indexes=(*trimmed[0], *copied_chunks),
        metadata_indexes=(*trimmed[1], *copied_metadata),
        sketches=plan.sketches.store(db.storage),
        condemned=(plan.root.condemned | plan.garbage) - plan.root.doomed,
        forgotten=plan.forgotten,
        restores=None,
    )
    listed = {ref.key: ref.size for ref in changed.all_indexes()}
    listed.update((ref.key, ref.size) for ref in changed.sketches)
    new = {key: size for key, size in listed.items() if key not in plan.sizes}
    return changed, session.stored_packs + sum(new.values())


def _expected_copy(plan: _Plan) -> int:
    return plan.chunks.bytes_to_copy + plan.metadata.bytes_to_copy


def _report(plan: _Plan, *, leftovers: int, copied: int) -> Report:
    rewritten = {pack_key(n) for shelf in (plan.chunks, plan.metadata) for n in shelf.rewrite}
    freed = sum(plan.sizes[key] for key in plan.garbage)
    packs = {key for key in plan.sizes if key.startswith("packs/")}
    return Report(
        commits=plan.commits,
        lost=plan.lost,
        packs=len(packs - plan.garbage),
        rewritten=len(rewritten),
        deleted=len((packs & plan.garbage) - rewritten),
        indexes=sum(key.startswith("indexes/") for key in plan.garbage),
        kept=sum(plan.sizes.values()) - freed + copied,
        freed=freed - copied,
        leftovers=leftovers,
    )
