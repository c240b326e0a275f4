"""Everything that refs reach, from commits down to chunks, and what damage does to it."""

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from mstore.bulkindex import Ids, as_ids, columns
from mstore.chunkreader import Progress
from mstore.codecs import general
from mstore.errors import CorruptDataError, MstoreError
from mstore.ids import Id, Kind, identify
from mstore.index import Index, find_entry
from mstore.layout import View, extents
from mstore.objects import KIND_OF, Commit, FileEntry, Manifest, SegmentChunks, Snapshot
from mstore.ops.records import NOT_ITS_ID, Fault, Records, fault_of
from mstore.pack import check_raw, read_record
from mstore.root import Root
from mstore.storage.base import Storage

T = TypeVar("T", Commit, Snapshot, Manifest)

_AT_ONCE = 1 << 16
_NOWHERE = "indexes/"

_Harmed = set[tuple[Fault, str | None]]
"""Faults of one file, each with the tensor it is in (None: no tensor, or all of the file)."""


class Harm(NamedTuple):
    """A fault and a place it harms: a tensor of a file, a file, or (both None) whole versions."""

    fault: Fault
    file: str | None
    tensor: str | None


class _Version(NamedTuple):
    """What is kept of a commit that has been read."""

    snapshot: Id
    parents: tuple[Id, ...]
    time: int


class Contents:
    """What the refs of a root reach. `check` fills the rest in.

    `harms` maps each harm to the commits it concerns, `reached_by` each commit to a ref that
    reaches it, "model/name". `reached` tells of each row of `chunks` whether a file needs it, be it
    only because others are coded against it.
    When commits are lost, `stranded` are the last ones of those that no ref reaches: the ways to
    what lay behind the lost ones (or to branches that were deleted).
    """

    def __init__(
        self,
        storage: Storage,
        root: Root,
        metadata: Sequence[Index],
        chunks: Records,
        progress: Progress,
    ) -> None:
        """`metadata` are the indexes to use; what is wrong with chunks must be known already."""
        self.storage = storage
        self.root = root
        self.metadata = metadata
        self.chunks = chunks
        self.reached_by: dict[Id, str] = {}
        self.harms: defaultdict[Harm, set[Id]] = defaultdict(set)
        self.reached = np.zeros(len(chunks.rows), np.bool_)
        self.stranded: set[Id] = set()
        self.files = self.tensors = 0
        self._progress = progress
        self._versions: dict[Id, _Version] = {}
        self._commits_of: defaultdict[Id, list[Id]] = defaultdict(list)

    def check(self) -> None:
        """Read all metadata that is reached, and follow every fault up to the commits."""
        self._check_commits()
        for identifier, version in self._versions.items():
            self._commits_of[version.snapshot].append(identifier)
        files: dict[FileEntry, None] = {}
        whole = []
        for identifier, commits in self._commits_of.items():
            snapshot = self._read(Snapshot, identifier)
            if isinstance(snapshot, Fault):
                self.harms[Harm(snapshot, None, None)].update(commits)
            else:
                whole.append(identifier)
                files.update(dict.fromkeys(snapshot.files.values()))
        if harmed := self._check_files(files):
            self._trace(whole, harmed)

    def newest_first(self, commits: Iterable[Id]) -> tuple[Id, ...]:
        """`commits` by time; those that cannot be read come last."""

        def age(identifier: Id) -> tuple[bool, int, Id]:
            version = self._versions.get(identifier)
            return version is None, -version.time if version else 0, identifier

        return tuple(sorted(commits, key=age))

    def _check_commits(self) -> None:
        lost: dict[Id, Fault] = {}
        waiting = [
            (commit, f"{model}/{name}")
            for model, refs in self.root.models.items()
            for names in (refs.branches, refs.tags)
            for name, commit in names.items()
        ]
        while waiting:
            identifier, ref = waiting.pop()
            if identifier in self.reached_by:
                continue
            self.reached_by[identifier] = ref
            commit = self._read(Commit, identifier)
            if isinstance(commit, Fault):
                lost[identifier] = commit
                continue
            parents = tuple(p for p in commit.parents if p not in self.root.forgotten)
            self._versions[identifier] = _Version(commit.snapshot, parents, commit.time)
            waiting.extend((parent, ref) for parent in parents)
        if lost:
            self.stranded = self._unreached_heads()
        for identifier, fault in lost.items():
            # The history of all that came after it is cut.
            self.harms[Harm(fault, None, None)].update(self._descendants(identifier))

    def _unreached_heads(self) -> set[Id]:
        heads: set[Id] = set()
        parents: set[Id] = set()
        for index in self.metadata:
            for row in np.flatnonzero(columns(index)[1]["kind"] == Kind.COMMIT).tolist():
                try:
                    identifier = index.entry(row).id
                except CorruptDataError:
                    continue  # told with the index
                if identifier in self.reached_by:
                    continue
                if not isinstance(commit := self._read(Commit, identifier), Fault):
                    heads.add(identifier)
                    parents.update(commit.parents)
        return heads - parents

    def _descendants(self, identifier: Id) -> set[Id]:
        """The commit itself and all that lead to it."""
        children = defaultdict(list)
        for child, version in self._versions.items():
            for parent in version.parents:
                children[parent].append(child)
        found, waiting = {identifier}, [identifier]
        while waiting:
            new = [child for child in children[waiting.pop()] if child not in found]
            found.update(new)
            waiting.extend(new)
        return found

    def _check_files(self, entries: Iterable[FileEntry]) -> dict[FileEntry, _Harmed]:
        """The entries whose files are harmed, and how."""
        harmed: dict[FileEntry, _Harmed] = {}
        batch: list[tuple[FileEntry, Manifest]] = []
        waiting = 0
        for entry in entries:
            manifest = self._read(Manifest, entry.manifest)
            self.files += 1
            if isinstance(manifest, Fault):
                harmed[entry] = {(manifest, None)}
                continue
            if manifest.size != entry.size:
                name = f"manifest {entry.manifest.hex()[:12]}"
                problem = f"is of a file of {manifest.size} bytes where {entry.size} are recorded"
                harmed[entry] = {(Fault(name, _NOWHERE, problem), None)}
                continue
            self.tensors += sum(1 for _ in manifest.listed())
            batch.append((entry, manifest))
            waiting += sum(segment.count for segment in manifest.segments)
            if waiting >= _AT_ONCE:
                harmed.update(self._check_chunks(batch))
                batch, waiting = [], 0
        harmed.update(self._check_chunks(batch))
        self._reach_bases()
        return harmed

    def _check_chunks(
        self, batch: Sequence[tuple[FileEntry, Manifest]]
    ) -> Iterator[tuple[FileEntry, _Harmed]]:
        """Of some files those that have damaged, missing or wrong chunks. All are looked up at
        once, because one look-up costs about as much as a hundred."""
        rows = self.chunks.rows.find(as_ids(b"".join(m.chunk_ids() for _, m in batch)))
        lengths = np.concatenate([np.zeros(0, np.int64), *(_lengths(m) for _, m in batch)])
        bad = rows < 0
        self.reached[rows[~bad]] = True
        # A row of -1 reads the last one here, which does no harm: it is bad already.
        if len(self.reached):
            bad |= (self.chunks.fault[rows] != 0) | (self.chunks.rows.raw[rows] != lengths)
        start = 0
        for entry, manifest in batch:
            part = slice(start, start + sum(segment.count for segment in manifest.segments))
            if bad[part].any():
                yield entry, set(self._harmed(manifest, rows[part], lengths[part]))
            start = part.stop

    def _reach_bases(self) -> None:
        """What a file's chunks are coded against, the file needs too."""
        dependents, bases = self.chunks.rows.coded_against()
        known = bases >= 0
        dependents, bases = dependents[known], bases[known]
        while (more := self.reached[dependents] & ~self.reached[bases]).any():
            self.reached[bases[more]] = True

    def _harmed(
        self, manifest: Manifest, rows: NDArray[np.int64], lengths: NDArray[np.int64]
    ) -> Iterator[tuple[Fault, str | None]]:
        """What is wrong with the chunks of one file, and in which tensors."""
        starts, viewed = np.cumsum(lengths) - lengths, _Viewed(manifest.views)
        start = 0
        for segment in manifest.segments:
            part = slice(start, start + segment.count)
            start = part.stop
            for fault, bad in self._faults(as_ids(segment.ids), rows[part], lengths[part]):
                harmed = zip(starts[part][bad].tolist(), lengths[part][bad].tolist(), strict=True)
                for tensor in _tensors_at(viewed, segment, harmed):
                    yield fault, tensor

    def _faults(
        self, ids: Ids, rows: NDArray[np.int64], lengths: NDArray[np.int64]
    ) -> Iterator[tuple[Fault, NDArray[np.bool_]]]:
        """What is wrong with chunks at these rows, and which of them each fault concerns."""
        known = rows >= 0
        if not known.all():
            yield Fault(_several(ids[~known]), _NOWHERE, "is in no index"), ~known
        if not known.any():
            return  # and perhaps there are no chunks at all
        wrong = known & (self.chunks.rows.raw[rows] != lengths)
        if wrong.any():
            problem = "has not the length that the file needs"
            yield Fault(_several(ids[wrong]), _NOWHERE, problem), wrong
        numbers = np.where(known, self.chunks.fault[rows], 0)
        for number in np.unique(numbers[numbers > 0]).tolist():
            yield self.chunks.faults[number - 1], numbers == number

    def _trace(self, snapshots: Iterable[Id], harmed: Mapping[FileEntry, _Harmed]) -> None:
        """Find the paths and the commits of harmed files."""
        for identifier in snapshots:
            snapshot = self._read(Snapshot, identifier)
            if isinstance(snapshot, Fault):
                continue  # gone since it was read before
            for path, entry in snapshot.files.items():
                for fault, tensor in harmed.get(entry, ()):
                    self.harms[Harm(fault, path, tensor)].update(self._commits_of[identifier])

    def _read(self, what: type[T], identifier: Id) -> T | Fault:
        """A metadata object, or why it cannot be had."""
        kind = KIND_OF[what]
        name = f"{kind.name.lower()} {identifier.hex()[:12]}"
        try:
            entry = find_entry(self.metadata, kind, identifier)
        except CorruptDataError as error:
            return Fault(name, _NOWHERE, error.message)
        if entry is None:
            return Fault(name, _NOWHERE, "is in no index")
        try:
            found = read_record(self.storage, entry)
            raw = general.decode(entry.codec, found.payload, entry.raw)
            check_raw(entry, found.checksum, raw)
            if identify(kind, raw) != identifier:
                raise CorruptDataError(NOT_ITS_ID)
            self._progress(entry.record_size)
            return what.decode(raw)
        except MstoreError as error:
            return fault_of(entry, error)


def _lengths(manifest: Manifest) -> NDArray[np.int64]:
    """The bytes of each chunk of a file, in order; shape (chunks,)."""
    parts = [np.zeros(0, np.int64)]
    for segment in manifest.segments:
        if segment.lengths is not None:
            parts.append(np.array(segment.lengths, np.int64))
        elif segment.count:
            pieces = np.full(segment.count, segment.piece, np.int64)
            pieces[-1] = segment.length - segment.piece * (segment.count - 1)
            parts.append(pieces)
    return np.concatenate(parts)


class _Viewed:
    """Where the views of a file lie, of which there may be many, each in many places."""

    def __init__(self, views: Sequence[View]) -> None:
        self._names = [view.tensor.name for view in views]
        places = [
            (at, at + length, number)
            for number, view in enumerate(views)
            for at, length in extents(view)
        ]
        self._starts, self._ends, self._views = np.array(sorted(places), np.int64).reshape(-1, 3).T
        self._reached = np.maximum.accumulate(self._ends)

    def at(self, start: int, size: int) -> list[str]:
        """The views with any of the bytes (offset, size), perhaps more than once."""
        # Of places that begin before the end of these bytes, those that come first may end before
        # them; where one does not, what is between it and them is looked at.
        first = np.searchsorted(self._reached, start, "right")
        last = np.searchsorted(self._starts, start + size, "left")
        some = slice(int(first), int(last))
        found = self._views[some][self._ends[some] > start]
        return [self._names[number] for number in found.tolist()]


def _tensors_at(
    viewed: _Viewed, segment: SegmentChunks, harmed: Iterable[tuple[int, int]]
) -> Collection[str | None]:
    """The tensors that the bytes (offset, length) of a segment belong to; None if to none."""
    # A dict keeps the order in which they are found.
    names: dict[str | None, None] = {}
    if segment.tensor is not None and not segment.hidden:
        names[segment.tensor.name] = None
    names |= dict.fromkeys(name for start, size in harmed for name in viewed.at(start, size))
    return names or [None]


def _several(ids: Ids) -> str:
    first = f"chunk {ids[0].tobytes().hex()[:12]}"
    return first if len(ids) == 1 else f"{first} and {len(ids) - 1} more"
