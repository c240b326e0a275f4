"""Looking for damage: the root log, the indexes, the history, the packs, and who is affected.

A quick check reads all metadata and believes the packs of weights; a full one also reads, decodes
and hashes every record. Nothing is changed. Damage is reported, not raised, and does not keep the
rest from being looked at: all of it is named, with every version, file and tensor it harms.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from mstore.bulkindex import check_rows
from mstore.chunkreader import Progress
from mstore.database import Database
from mstore.errors import MstoreError, NotFoundError
from mstore.ids import Id, identify_root
from mstore.index import Index, IndexRef
from mstore.ops.contents import Contents, Harm
from mstore.ops.records import Fault, Records
from mstore.pack import pack_key
from mstore.root import Root, decode
from mstore.rootlog import KEEP_ROOTS, RootLog, root_key
from mstore.sketches import Sketches
from mstore.storage.base import Storage

_ATTEMPTS = 3


@dataclass(frozen=True, slots=True)
class Damage:
    """One damaged or missing thing, and one place in the versions that it harms.

    `what` it is, `where` it is stored, and the `problem`. `commits` are the versions harmed,
    newest first: in `tensor` of `file`; in all of the file, or in what is no tensor of it, when
    `tensor` is None; in all of the version when `file` is None too. Damage that harms no version
    has no commits. A thing that harms several files or tensors is listed once for each.
    """

    what: str
    where: str
    problem: str
    commits: tuple[Id, ...] = ()
    file: str | None = None
    tensor: str | None = None


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """What was looked at, and all damage found.

    `commits`, `files`, `tensors` and `chunks` are those that refs reach, each once; `packs` those
    that indexes name; `bytes` is how much of stored objects was read. `notes` are things that do
    no harm, for people. `reached_by` tells for every harmed commit a branch or tag that reaches
    it, as "model/name".
    """

    quick: bool
    root: int
    damages: tuple[Damage, ...]
    notes: tuple[str, ...]
    commits: int
    files: int
    tensors: int
    chunks: int
    packs: int
    bytes: int
    reached_by: Mapping[Id, str]

    @property
    def ok(self) -> bool:
        """Whether no damage was found."""
        return not self.damages


def verify(
    db: Database, *, quick: bool, threads: int | None = None, progress: Progress | None = None
) -> VerifyReport:
    """Look for damage in everything that the newest root names; raises only when that is damaged.

    `progress` is told how many more bytes have been read. Memory: about a hundred bytes per
    chunk, and a few times 4 MiB per thread.
    """
    for _attempt in range(_ATTEMPTS):
        root = db.refresh()
        report = _Verification(db.storage, root, progress).run(quick=quick, threads=threads)
        # What gc moved meanwhile looked like damage: then there is a newer root to go by.
        if report.ok or db.log.newest().number == root.number:
            break
    return report


class _Verification:
    """One look at everything that one root names."""

    def __init__(self, storage: Storage, root: Root, progress: Progress | None) -> None:
        self.storage = storage
        self.root = root
        self._progress = progress
        self.faults: list[Fault] = []
        self.bytes = 0

    def run(self, *, quick: bool, threads: int | None) -> VerifyReport:
        """Check all, in the order in which one thing leads to another."""
        self._check_roots(RootLog(self.storage))
        self._check_sketches()
        packs = {info.key: info.size for info in self.storage.list("packs/")}
        metadata = self._records(self.root.metadata_indexes, packs, metadata=True)
        chunks = self._records(self.root.indexes, packs, metadata=False)
        for records in (metadata, chunks):
            records.check_places()
            records.check_bases()
            if not quick:
                records.check_contents(threads, self._done)
        contents = Contents(self.storage, self.root, metadata.rows.indexes, chunks, self._done)
        contents.check()
        named = {
            pack_key(name)
            for records in (metadata, chunks)
            for index in records.rows.indexes
            for name in index.packs
        }
        harmed = {commit for commits in contents.harms.values() for commit in commits}
        return VerifyReport(
            quick=quick,
            root=self.root.number,
            damages=tuple(self._damages(contents, (metadata, chunks))),
            notes=(*self._stranded(contents), *self._notes(packs, named)),
            commits=len(contents.reached_by),
            files=contents.files,
            tensors=contents.tensors,
            chunks=int(contents.reached.sum()),
            packs=len(named),
            bytes=self.bytes,
            reached_by={commit: contents.reached_by[commit] for commit in harmed},
        )

    def _damages(self, contents: Contents, all_records: Iterable[Records]) -> Iterator[Damage]:
        """First what harms no version by itself, then the rest, each thing together."""
        told = {(harm.fault.what, harm.fault.where) for harm in contents.harms}
        alone = list(self.faults)
        for records in all_records:
            alone.extend((*records.others, *records.faults))
        for fault in dict.fromkeys(alone):
            if (fault.what, fault.where) not in told:
                yield Damage(*fault)
        for harm in sorted(contents.harms, key=_order):
            commits = contents.newest_first(contents.harms[harm])
            yield Damage(*harm.fault, commits, harm.file, harm.tensor)

    def _check_roots(self, log: RootLog) -> None:
        """The roots that are kept: each one there, whole, and named by the next."""
        newest = self.root.number
        before: bytes | None = None
        # Older ones may be pruned at any moment, and a late writer's stray may lie among them.
        for number in range(max(1, newest - KEEP_ROOTS + 1), newest + 1):
            name = (f"root {number}", root_key(number))
            try:
                stored = self.storage.get(root_key(number))
                self._done(len(stored))
                root = decode(stored, number)
            except NotFoundError:
                self.faults.append(Fault(*name, "is missing"))
                before = None
            except MstoreError as error:
                if number == newest:
                    raise
                self.faults.append(Fault(*name, error.message))
                before = None
            else:
                if before is not None and root.previous != before:
                    self.faults.append(Fault(*name, "does not follow on the root before it"))
                before = identify_root(stored)

    def _check_sketches(self) -> None:
        """What similar tensors are found by; its damage harms no version."""
        for ref in self.root.sketches:
            try:
                sketches = Sketches.open(self.storage, ref)
                self._done(ref.size)
                sketches.check()
            except NotFoundError:
                self.faults.append(Fault(f"sketches {ref.name}", ref.key, "are missing"))
            except MstoreError as error:
                self.faults.append(Fault(f"sketches {ref.name}", ref.key, error.message))

    def _records(
        self, refs: Iterable[IndexRef], packs: Mapping[str, int], *, metadata: bool
    ) -> Records:
        """The records of those of these indexes that can be opened, newest index first."""
        indexes = []
        for ref in refs:
            try:
                indexes.append(index := Index.open(self.storage, ref))
                self._done(ref.size)
                check_rows(index)
            except NotFoundError:
                self.faults.append(Fault(f"index {ref.name}", ref.key, "is missing"))
            except MstoreError as error:
                # One that could be opened is used nevertheless: most of it may be right.
                self.faults.append(Fault(f"index {ref.name}", ref.key, error.message))
        return Records(self.storage, packs, indexes[::-1], metadata=metadata)

    def _stranded(self, contents: Contents) -> Iterator[str]:
        for commit in sorted(contents.stranded):
            yield (
                f"version {commit.hex()[:12]}, which no ref reaches, may lie behind those lost; "
                f"keep it with: mstore branch NAME {commit.hex()[:12]}"
            )

    def _notes(self, packs: Mapping[str, int], named: set[str]) -> Iterator[str]:
        """Stored objects that nothing names; gc removes them."""
        live = {ref.key for ref in self.root.all_indexes()}
        if any(fault.where in live for fault in self.faults):
            return  # what a damaged index names is not known
        indexes = {info.key: info.size for info in self.storage.list("indexes/")}
        sketches = {info.key: info.size for info in self.storage.list("sketches/")}
        live_sketches = {ref.key for ref in self.root.sketches}
        for sizes, used, what in (
            (packs, named, "packs that no index names"),
            (indexes, live, "indexes that have been replaced or never came into use"),
            (sketches, live_sketches, "objects of sketches that have been replaced"),
        ):
            idle = [size for key, size in sizes.items() if key not in used]
            if idle:
                yield f"{len(idle)} {what} ({sum(idle)} bytes), left for gc to remove"

    def _done(self, count: int) -> None:
        self.bytes += count
        if self._progress is not None:
            self._progress(count)


def _order(harm: Harm) -> tuple[Fault, str, str]:
    return harm.fault, harm.file or "", harm.tensor or ""
