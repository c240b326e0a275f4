"""Where the bytes of a repository go: what dedup and compression save, what is dead."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mstore.bulkindex import as_ids, check_rows, columns
from mstore.database import Database
from mstore.errors import CorruptDataError, NotFoundError
from mstore.ids import ID_SIZE, Id
from mstore.index import Index
from mstore.ops.rows import Rows
from mstore.pack import PACK_HEADER_SIZE, pack_key

_AT_ONCE = 1 << 16
_NOBODY = np.iinfo(np.int32).max

_Span = tuple[int, int]
"""The lowest and the highest number of the commits that use something."""


@dataclass(frozen=True, slots=True)
class StoredBytes:
    """Bytes of the stored objects of a repository, by what they are."""

    data_packs: int
    metadata_packs: int
    indexes: int
    sketches: int
    roots: int

    @property
    def total(self) -> int:
        """Bytes of all stored objects."""
        return self.data_packs + self.metadata_packs + self.indexes + self.sketches + self.roots


@dataclass(frozen=True, slots=True)
class Deltas:
    """The chunks that are coded against others: how many, and of how much.

    `unique` is their raw bytes, `encoded` their records in packs. To decode the deepest of them
    takes `depth` others first.
    """

    chunks: int
    unique: int
    encoded: int
    depth: int


@dataclass(frozen=True, slots=True)
class Version:
    """One commit: the bytes of its files, and the stored bytes of the chunks that it `alone` has.

    Chunks that those of other commits are coded against count as theirs too.
    """

    id: Id
    logical: int
    alone: int


@dataclass(frozen=True, slots=True)
class Stats:
    """Figures of a repository, or of one model in it; all sizes are bytes.

    `files` and `chunks` are counted once however many versions share them, and so are the
    `tensors` of those files. `logical` is the files of all commits together, `unique` the raw
    bytes of the distinct chunks, `encoded` their records in packs; `deltas` tells which part of
    these is coded against others. `stored`, `dead` (bytes in packs that no ref reaches) and `packs`
    are of the whole repository in any case, since models share packs. `versions` are the commits,
    newest first.
    """

    models: int
    branches: int
    tags: int
    commits: int
    files: int
    tensors: int
    chunks: int
    packs: int
    logical: int
    unique: int
    encoded: int
    deltas: Deltas
    stored: StoredBytes
    dead: int
    versions: tuple[Version, ...]

    @property
    def dedup_share(self) -> float:
        """The part of the logical bytes that is stored once with others: 0 none, towards 1 all."""
        return 1 - self.unique / self.logical if self.logical else 0.0

    @property
    def compression_share(self) -> float:
        """The part of the unique bytes that encoding saves; below 0 if headers cost more."""
        return 1 - self.encoded / self.unique if self.unique else 0.0


def stats(db: Database, *, model: str | None = None) -> Stats:
    """The figures of the repository, or of `model`.

    Reads all metadata and indexes and no weights. Work and memory grow with the distinct
    snapshots, files and chunks, not with how often commits share them. Raises NotFoundError for
    an unknown model, CorruptDataError when something is damaged.
    """
    root = db.refresh()
    if model is not None and model not in root.models:
        known = ", ".join(sorted(root.models)) or "none"
        raise NotFoundError(f"there is no model {model!r}", hint=f"models here: {known}")
    models = root.models if model is None else {model: root.models[model]}
    ours = {
        tip for refs in models.values() for tip in (*refs.branches.values(), *refs.tags.values())
    }
    usage = _Usage(db, ours)
    wanted = usage.low < usage.ours
    packs = {info.key: info.size for info in db.storage.list("packs/")}
    return Stats(
        models=len(models),
        branches=sum(len(refs.branches) for refs in models.values()),
        tags=sum(len(refs.tags) for refs in models.values()),
        commits=usage.ours,
        files=usage.files,
        tensors=usage.tensors,
        chunks=int(wanted.sum()),
        packs=len(packs),
        logical=sum(usage.logical[version.snapshot] for version in usage.commits[: usage.ours]),
        unique=int(usage.chunks.raw[wanted].sum()),
        encoded=int(usage.chunks.stored[wanted].sum()),
        deltas=_deltas(usage.chunks, wanted),
        stored=_stored_bytes(db, packs),
        dead=sum(packs.values()) - usage.live_bytes(),
        versions=usage.versions(),
    )


def _deltas(chunks: Rows, wanted: NDArray[np.bool_]) -> Deltas:
    coded = wanted & (chunks.depth > 0)
    return Deltas(
        chunks=int(coded.sum()),
        unique=int(chunks.raw[coded].sum()),
        encoded=int(chunks.stored[coded].sum()),
        depth=int(chunks.depth[coded].max(initial=0)),
    )


def _stored_bytes(db: Database, packs: dict[str, int]) -> StoredBytes:
    metadata = sum(size for key, size in packs.items() if key.startswith(pack_key("m")))
    return StoredBytes(
        data_packs=sum(packs.values()) - metadata,
        metadata_packs=metadata,
        indexes=sum(info.size for info in db.storage.list("indexes/")),
        sketches=sum(info.size for info in db.storage.list("sketches/")),
        roots=sum(info.size for info in db.storage.list("roots/")),
    )


class _Commit(NamedTuple):
    id: Id
    snapshot: Id
    time: int


class _Usage:
    """Which commits use what, of all that the refs reach.

    Commits have numbers, those that are asked about (`ours` of them) the lowest. For everything
    only the lowest and the highest number of a commit that uses it is kept: what one commit alone
    uses has them equal, and what any of ours uses has the lowest below `ours`. For chunks they
    stand in `low` and `high`, one int32 per row of `chunks`.
    """

    def __init__(self, db: Database, ours: Iterable[Id]) -> None:
        self.db = db
        self.commits = [_Commit(i, c.snapshot, c.time) for i, c in db.ancestry(ours)]
        self.ours = len(self.commits)
        known = {commit.id for commit in self.commits}
        others = db.ancestry(db.root.tips(), known=known)
        self.commits += [_Commit(i, c.snapshot, c.time) for i, c in others]
        self.chunks = Rows(_checked(db.chunk_indexes()))
        self.low = np.full(len(self.chunks), _NOBODY, np.int32)
        self.high = np.full(len(self.chunks), -1, np.int32)
        self.logical: dict[Id, int] = {}
        self.files = self.tensors = 0
        self._snapshots: dict[Id, _Span] = {}
        for number, commit in enumerate(self.commits):
            _extend(self._snapshots, commit.snapshot, (number, number))
        self._manifests = self._manifest_spans()
        self._add_chunks()
        self._add_bases()

    def versions(self) -> tuple[Version, ...]:
        """Our commits, newest first."""
        alone = self.low == self.high
        sizes = np.bincount(self.low[alone], self.chunks.stored[alone], len(self.commits))
        ours = zip(self.commits[: self.ours], sizes.tolist(), strict=False)
        return tuple(
            Version(commit.id, self.logical[commit.snapshot], int(size))
            for commit, size in sorted(ours, key=lambda item: item[0].time, reverse=True)
        )

    def live_bytes(self) -> int:
        """Bytes of packs that anything reached takes, the headers of those packs included."""
        metadata = Rows(_checked(self.db.metadata_indexes()))
        ids = b"".join((*(c.id for c in self.commits), *self._snapshots, *self._manifests))
        reached = np.zeros(len(metadata), np.bool_)
        reached[_all_found(metadata, ids)] = True
        live = [(self.chunks, self.low < _NOBODY), (metadata, reached)]
        names = {
            index.packs[number]
            for rows, mask in live
            for index, part in rows.parts()
            for number in np.unique(columns(index)[1]["pack"][mask[part]])
        }
        records = sum(int(rows.stored[mask].sum()) for rows, mask in live)
        return records + PACK_HEADER_SIZE * len(names)

    def _manifest_spans(self) -> dict[Id, _Span]:
        spans: dict[Id, _Span] = {}
        for snapshot, span in self._snapshots.items():
            files = self.db.snapshot(snapshot).files.values()
            self.logical[snapshot] = sum(file.size for file in files)
            for file in files:
                _extend(spans, file.manifest, span)
        return spans

    def _add_chunks(self) -> None:
        ids, counts, spans = bytearray(), [], []
        for identifier, span in self._manifests.items():
            manifest = self.db.manifest(identifier)
            if span[0] < self.ours:
                self.files += 1
                self.tensors += sum(1 for _ in manifest.listed())
            chunk_ids = manifest.chunk_ids()
            ids += chunk_ids
            counts.append(len(chunk_ids) // ID_SIZE)
            spans.append(span)
            if len(ids) >= _AT_ONCE * ID_SIZE:
                self._add(ids, counts, spans)
                ids, counts, spans = bytearray(), [], []
        self._add(ids, counts, spans)

    def _add(self, ids: bytearray, counts: list[int], spans: list[_Span]) -> None:
        rows = _all_found(self.chunks, bytes(ids))
        low, high = np.array(spans, np.int32).reshape(-1, 2).T
        np.minimum.at(self.low, rows, np.repeat(low, counts))
        np.maximum.at(self.high, rows, np.repeat(high, counts))

    def _add_bases(self) -> None:
        """Who uses a chunk uses what it is coded against."""
        all_dependents, all_bases = self.chunks.coded_against()
        changed = bool(len(all_dependents))
        while changed:
            used = self.low[all_dependents] < _NOBODY
            dependents, bases = all_dependents[used], all_bases[used]
            if (bases < 0).any():
                raise _missing("a chunk that others are coded against")
            low, high = self.low[bases], self.high[bases]
            np.minimum.at(self.low, bases, self.low[dependents])
            np.maximum.at(self.high, bases, self.high[dependents])
            changed = bool((self.low[bases] != low).any() or (self.high[bases] != high).any())


def _extend(spans: dict[Id, _Span], identifier: Id, span: _Span) -> None:
    low, high = spans.get(identifier, span)
    spans[identifier] = (min(low, span[0]), max(high, span[1]))


def _checked(indexes: Sequence[Index]) -> Sequence[Index]:
    for index in indexes:
        check_rows(index)
    return indexes


def _all_found(rows: Rows, ids: bytes) -> NDArray[np.int64]:
    found = rows.find(as_ids(ids))
    if (lost := np.flatnonzero(found < 0)).size:
        start = int(lost[0]) * ID_SIZE
        raise _missing(f"object {ids[start : start + ID_SIZE].hex()[:12]}")
    return found


def _missing(what: str) -> CorruptDataError:
    return CorruptDataError(f"{what} is missing from the repository", hint="run: mstore verify")
