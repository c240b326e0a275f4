"""Which commits the refs reach, and whether others are still whole.

Whatever the refs of the newest root reach is complete: gc keeps it, and every writer checks what
it relies on before it publishes. A commit that no ref reaches may have lost parts to gc, so it is
looked through before a ref is set to it again.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace

from mstore.bulkindex import as_ids, locate_with_bases
from mstore.database import Database
from mstore.distinct import distinct
from mstore.errors import ConflictError, MstoreError, NotFoundError
from mstore.ids import Id
from mstore.pack import pack_key
from mstore.root import Root


@dataclass(slots=True)
class _Closure:
    """Ids of everything some commits consist of, besides what refs reach anyway."""

    metadata: bytearray
    chunks: bytearray


def with_rescued(db: Database, root: Root, commits: Iterable[Id]) -> Root:
    """`root` with everything that `commits` need kept from gc, so that refs may name them.

    Raises ConflictError when a part of them is gone already.
    """
    wanted = [commit for commit in commits if commit not in root.tips()]
    if not wanted:
        return root
    reached = {identifier for identifier, _ in db.ancestry(root.tips())}
    if not (lost := [commit for commit in wanted if commit not in reached]):
        return root
    try:
        closure = _closure(db, lost, reached)
    except MstoreError as error:
        raise _gone(lost[0]) from error
    keys: set[str] = set()
    for refs, ids in (
        (root.metadata_indexes, closure.metadata),
        (root.indexes, closure.chunks),
    ):
        try:
            located = locate_with_bases(db.opened(refs), as_ids(bytes(ids)))
        except NotFoundError:
            raise _gone(lost[0]) from None
        keys.update(pack_key(located.packs[at]) for at in distinct(located.rows["pack"]))
    if keys & root.doomed or any(db.storage.head(key) is None for key in keys):
        raise _gone(lost[0])
    return replace(root, condemned=root.condemned - keys)


def _closure(db: Database, commits: Iterable[Id], reached: set[Id]) -> _Closure:
    closure = _Closure(bytearray(), bytearray())
    seen: set[Id] = set()
    for identifier, commit in db.ancestry(commits, known=reached):
        closure.metadata += identifier
        if commit.snapshot in seen:
            continue
        seen.add(commit.snapshot)
        closure.metadata += commit.snapshot
        for entry in db.snapshot(commit.snapshot).files.values():
            if entry.manifest not in seen:
                seen.add(entry.manifest)
                closure.metadata += entry.manifest
                closure.chunks += db.chunk_ids(entry.manifest)
    return closure


def _gone(commit: Id) -> ConflictError:
    return ConflictError(
        f"commit {commit.hex()[:12]} is no longer whole: gc has removed what it needs",
        hint="`mstore log` lists the commits that are kept",
    )
