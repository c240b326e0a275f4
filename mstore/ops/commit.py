"""Recording a version: store the files' chunks, then publish a commit on a branch."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

from mstore.basefinder import BaseFinder
from mstore.checks import MetadataValue
from mstore.chunking import DEFAULT_CHUNK_SIZE
from mstore.chunkstore import Session, StaleSessionError
from mstore.database import Database
from mstore.errors import ConflictError, MstoreError
from mstore.ids import Id
from mstore.ingest import FileToStore, Ingest
from mstore.objects import Commit, FileEntry, Snapshot
from mstore.ops.reachable import with_rescued
from mstore.root import Root
from mstore.rootlog import now

_ATTEMPTS = 20


@dataclass(frozen=True, slots=True)
class Target:
    """Where a commit goes: a branch of a model, and the commit its tip must still be at.

    `tip` is None for a branch that does not exist yet. `parents` are those of the new commit.
    """

    model: str
    branch: str
    tip: Id | None
    parents: tuple[Id, ...]


@dataclass(frozen=True, slots=True)
class Description:
    """What is said about a version. `zone` is the author's minutes east of UTC."""

    author: str
    message: str = ""
    zone: int = 0
    metadata: Mapping[str, MetadataValue] | None = None


@dataclass(frozen=True, slots=True)
class Recorded:
    """What a commit came to. `created` is False when there was nothing to commit.

    `logical` is the bytes of all files of the version, `read` those of the files looked at,
    `stored` the bytes that were added to the repository.
    """

    id: Id
    created: bool
    snapshot: Snapshot
    logical: int
    read: int
    stored: int


@dataclass(frozen=True, slots=True)
class Content:
    """The files of a version: those to be stored, and those carried over as they are.

    `open_files` is called anew for every attempt. `executable` names the paths of files with
    the executable bit.
    """

    open_files: Callable[[], Iterable[FileToStore]]
    carried: Mapping[str, FileEntry]
    executable: frozenset[str] = frozenset()


def record(
    db: Database,
    target: Target,
    content: Content,
    description: Description,
    *,
    bases: Sequence[Id] = (),
    threads: int | None = None,
    chunk_size: int = DEFAULT_CHUNK_SIZE,
    progress: Callable[[int], None] | None = None,
    announce: Callable[[Id], None] | None = None,
) -> Recorded:
    """Store a version and make it the tip of the target branch.

    When this returns, the version is durable. Raises ConflictError when the branch moved or a
    file changed meanwhile; then nothing is recorded, and what was stored serves the next try.
    Tensors that changed are coded against those of the commits `bases`, and of the parents.
    `progress` is told how many more bytes of the files are done, `announce` the id of the commit
    before anybody can see it.
    """
    for _attempt in range(_ATTEMPTS):
        try:
            with Session(db) as session:
                finder = _finder(db, (*bases, *target.parents))
                ingest = Ingest(
                    session,
                    bases=finder,
                    threads=threads,
                    chunk_size=chunk_size,
                    progress=progress,
                )
                return _record(db, session, ingest, finder, target, content, description, announce)
        except StaleSessionError:
            # gc removed chunks this attempt relied on; the next one stores them again.
            db.refresh()
    raise ConflictError(
        "garbage collections kept removing what this commit relies on",
        hint="repeat the commit when no gc runs",
    )


def _finder(db: Database, commits: Iterable[Id]) -> BaseFinder:
    snapshots = []
    for commit in commits:
        # Without one that is damaged less is found; the new version does not need it.
        with suppress(MstoreError):
            snapshots.append(db.snapshot(db.commit(commit).snapshot))
    return BaseFinder(db, snapshots)


def _record(
    db: Database,
    session: Session,
    ingest: Ingest,
    finder: BaseFinder,
    target: Target,
    content: Content,
    description: Description,
    announce: Callable[[Id], None] | None,
) -> Recorded:
    files = dict(content.carried)
    read = 0
    for file, manifest in ingest.store(content.open_files()):
        read += manifest.size
        executable = file.path in content.executable
        manifest_id = session.add_object(manifest)
        files[file.path] = FileEntry(manifest_id, manifest.size, executable)
        session.add_sketches(manifest_id, target.model, file.path, finder.sketches(file.path))
    snapshot = Snapshot(files)
    snapshot_id = session.add_object(snapshot)
    logical = sum(entry.size for entry in files.values())
    metadata = dict(description.metadata or {})
    if target.parents and target.tip == target.parents[0]:
        parent = db.commit(target.parents[0])
        if parent.snapshot == snapshot_id and metadata in ({}, parent.metadata):
            if session.adds_chunks:
                # The parent lacked them: it is whole again from now on.
                session.publish(
                    lambda root: with_rescued(db, root, target.parents),
                    action=f"restore {target.parents[0].hex()[:12]}",
                    author=description.author,
                )
            return Recorded(target.parents[0], False, snapshot, logical, read, 0)
    commit_id = session.add_object(
        Commit(
            snapshot=snapshot_id,
            parents=target.parents,
            author=description.author,
            time=now(),
            zone=description.zone,
            message=description.message,
            metadata=metadata,
        )
    )
    if announce is not None:
        announce(commit_id)
    session.publish(
        lambda root: move_branch(db, root, target, commit_id),
        action=f"commit {commit_id.hex()[:12]} on {target.branch}",
        author=description.author,
    )
    return Recorded(commit_id, True, snapshot, logical, read, session.stored)


def move_branch(db: Database, root: Root, target: Target, commit: Id) -> Root:
    """`root` with the target branch at `commit`; raises ConflictError when its tip moved."""
    refs = root.refs(target.model)
    tip = refs.branches.get(target.branch)
    if tip is not None and target.tip is None:
        raise ConflictError(
            f"branch {target.branch} exists already, or has just been made, "
            f"at {tip.hex()[:12]}; nothing was recorded",
            hint="commit again to follow it, or choose another name with --branch",
        )
    if tip is None and target.branch in refs.tags:
        raise ConflictError(
            f"there is a tag called {target.branch} already; nothing was recorded",
            hint="choose another name for the branch",
        )
    if tip != target.tip:
        raise ConflictError(
            f"branch {target.branch} moved to {tip.hex()[:12] if tip else 'nothing'} "
            "while this version was being recorded; nothing was recorded",
            hint="look at it with `mstore log`, then commit onto a new branch with --branch NAME",
        )
    kept = with_rescued(db, root, target.parents)
    return kept.with_refs(target.model, refs.with_branch(target.branch, commit))
