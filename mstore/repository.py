"""The public object: a repository, seen as one of its models."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from mstore.author import default_author, local_zone
from mstore.checks import MetadataValue, check_path
from mstore.chunking import DEFAULT_CHUNK_SIZE
from mstore.database import Database
from mstore.errors import InvalidInputError, NoRepositoryError, NotFoundError, StorageError
from mstore.ids import Id
from mstore.ingest import FileToStore
from mstore.ops import gc as gc_op
from mstore.ops import refs as refs_op
from mstore.ops.commit import Content, Description, Target, record
from mstore.ops.diff import Diff, diff_located
from mstore.ops.history import log
from mstore.ops.opening import open_files
from mstore.ops.repack import RepackReport, repack
from mstore.ops.revisions import DEFAULT_BRANCH, DEFAULT_MODEL, check_name, locate, resolve
from mstore.ops.scan import REPOSITORY_FOLDER, FoundFile, Scan
from mstore.ops.settings import configure
from mstore.ops.stats import Stats, stats
from mstore.ops.verify import VerifyReport, verify
from mstore.ops.where import parse_where
from mstore.progress import SILENT, Progress
from mstore.root import Root
from mstore.settings import Settings
from mstore.snapshot import Snapshot
from mstore.sources import BufferSource
from mstore.storage.base import Storage
from mstore.storage.open import open_storage
from mstore.structure import flatten
from mstore.worktree import Worktree

ARRAYS_PATH = "model.safetensors"
"""The file that arrays committed from Python become."""

Location = str | os.PathLike[str]


class Repository:
    """A repository, as the model `model_name` of it. `repo["main~2"]` is a version.

    A revision is a branch, a tag, or an id or its first digits, with `~N` for N versions back;
    `bert:main` is `main` of the model bert. `HEAD` is the newest version of `main` here: what a
    working directory shows is a matter of the command line.

    Made by `mstore.init` and `mstore.open`. All views of one repository share the cached root;
    every call that changes something looks for a newer one first, `refresh` does so at will.
    """

    def __init__(self, db: Database, model: str = DEFAULT_MODEL) -> None:
        self.database = db
        self.model_name = check_name("model", model)

    def __repr__(self) -> str:
        model = "" if self.model_name == DEFAULT_MODEL else f" model {self.model_name}"
        count = len(self.branches)
        where = self.database.storage.location
        return f"<Repository {where}{model}, {count} branch{'es' if count != 1 else ''}>"

    def __getitem__(self, revision: str | Id) -> Snapshot:
        """The version that `revision` names; raises NotFoundError with the nearest names."""
        return Snapshot(self.database, self._resolve(revision))

    def __contains__(self, revision: object) -> bool:
        try:
            return isinstance(revision, str) and bool(self._resolve(revision))
        except (NotFoundError, InvalidInputError):
            return False

    @property
    def models(self) -> list[str]:
        """The names of all models, sorted."""
        return sorted(self.database.root.models)

    @property
    def branches(self) -> Mapping[str, str]:
        """The branches of this model: name -> id of the newest version."""
        refs = self.database.root.refs(self.model_name)
        return MappingProxyType({name: refs.branches[name].hex() for name in sorted(refs.branches)})

    @property
    def tags(self) -> Mapping[str, str]:
        """The tags of this model: name -> id of the version."""
        refs = self.database.root.refs(self.model_name)
        return MappingProxyType({name: refs.tags[name].hex() for name in sorted(refs.tags)})

    @property
    def settings(self) -> Settings:
        """What holds for everybody who writes to the repository, as last seen."""
        return Settings.of(self.database.root.settings)

    def configure(self, *, refuse_unsafe: bool | None, author: str | None = None) -> None:
        """Change the settings of the repository, for all models and everybody who uses it.

        `refuse_unsafe` is whether commits are refused that hold a file which would run code when
        its own library loads it; None is as if it had never been set, which means they are not.
        """
        changes = {"refuse-unsafe": refuse_unsafe}
        configure(self.database, changes, author=author or default_author())

    def model(self, name: str) -> "Repository":
        """The same repository, seen as another model; its first commit makes it."""
        return Repository(self.database, name)

    def refresh(self) -> None:
        """See what others have published since."""
        self.database.refresh()

    def commit(
        self,
        content: object,
        message: str = "",
        *,
        metadata: Mapping[str, MetadataValue] | None = None,
        branch: str = DEFAULT_BRANCH,
        parent: str | None = None,
        base: str | Sequence[str] = (),
        author: str | None = None,
        path: str | None = None,
        threads: int | None = None,
        chunk_size: int = DEFAULT_CHUNK_SIZE,
        refuse_unsafe: bool | None = None,
        progress: Progress = SILENT,
    ) -> Snapshot:
        """Record a version as the new tip of `branch`, and return it.

        `content` is a path (str or PathLike) of a file or directory, or a value: arrays of numpy,
        or anything with `__array__` or `__dlpack__`, in dicts, lists and tuples with plain Python
        values, which becomes one virtual safetensors file called `path` (`model.safetensors`).
        A branch that does not exist yet begins at the revision `parent`, or with this version.
        Tensors are coded against those of the version before; `base` names other revisions, also
        of other models, to look in first. When nothing differs from the tip, and no new metadata
        is given, the tip is returned.

        Works with as many `threads` as there are processors, eight at most. In a directory on
        Linux, all but one of them start a process of Python where much is new.

        Raises InvalidInputError, naming the place, for a value that cannot be stored safely;
        ConflictError when the branch moved or a file changed meanwhile; UnsafeInputError, with
        `refuse_unsafe` (the repository's setting when None), when a file would run code if its own
        library loaded it.
        """
        self.database.refresh()
        tip = self.database.root.refs(self.model_name).branches.get(check_name("branch", branch))
        start = self._resolve(parent) if parent is not None else None
        if tip is not None and start not in (None, tip):
            raise InvalidInputError(
                f"branch {branch} exists, so its next version cannot begin at {parent}",
                hint="name another branch, or leave out the parent",
            )
        first = tip or start
        target = Target(self.model_name, branch, tip, (first,) if first else ())
        named = [base] if isinstance(base, str) else base
        bases = [self._resolve(revision) for revision in named]
        recorded = record(
            self.database,
            target,
            _content(content, path, progress, self.settings.refuses(refuse_unsafe)),
            Description(author or default_author(), message, local_zone(), metadata),
            bases=bases,
            threads=threads,
            chunk_size=chunk_size,
            progress=progress.advance,
        )
        return Snapshot(self.database, recorded.id)

    def log(
        self,
        revision: str | None = None,
        *,
        where: str | None = None,
        sort: str | None = None,
        limit: int | None = None,
    ) -> Iterator[Snapshot]:
        """The versions behind `revision` (all branches and tags when None), newest first.

        `where` filters, as in `loss < 0.3 and author ~ "ada*"`; `sort` is a metadata key, `time`,
        `author` or `size`, with `-` before it for descending.
        """
        refs = self.database.root.refs(self.model_name)
        tips = (
            [self._resolve(revision)]
            if revision is not None
            else [*refs.branches.values(), *refs.tags.values()]
        )
        condition = parse_where(where) if where else None
        for entry in log(self.database, tips, where=condition, sort=sort, limit=limit):
            yield Snapshot(self.database, entry.id)

    def diff(
        self, before: str, after: str, *, tensor: str | None = None, numbers: bool = True
    ) -> Diff:
        """What changed from one version to another, per file and per tensor, with numbers.

        With paths, as in `main:model.pt` and `main:model.safetensors`, two files are compared
        tensor by tensor, whatever their names and formats, or the files of two folders; a path on
        one side only is meant on both. `tensor` is a pattern such as `encoder.*` that limits the
        tensors looked at. Without `numbers` no weights are read.
        """
        db = self.database
        ends = (locate(db, self.model_name, text) for text in (before, after))
        return diff_located(db, *ends, tensor=tensor, numbers=numbers)

    def create_branch(
        self, name: str, revision: str | Id = DEFAULT_BRANCH, *, author: str | None = None
    ) -> None:
        """Make a branch at `revision`; raises ConflictError when it exists."""
        commit = self._resolve(revision)
        refs_op.create_branch(
            self.database, self.model_name, name, commit, author=author or default_author()
        )

    def create_tag(
        self, name: str, revision: str | Id = DEFAULT_BRANCH, *, author: str | None = None
    ) -> None:
        """Make a tag at `revision`; raises ConflictError when it exists."""
        commit = self._resolve(revision)
        refs_op.create_tag(
            self.database, self.model_name, name, commit, author=author or default_author()
        )

    def delete_branch(self, name: str, *, author: str | None = None) -> str:
        """Delete a branch; returns the id it was at, by which `create_branch` brings it back."""
        return refs_op.delete_branch(
            self.database, self.model_name, name, author=author or default_author()
        ).hex()

    def delete_tag(self, name: str, *, author: str | None = None) -> str:
        """Delete a tag; returns the id it was at."""
        return refs_op.delete_tag(
            self.database, self.model_name, name, author=author or default_author()
        ).hex()

    def undo(self, *, to: int | None = None, author: str | None = None) -> Root:
        """Bring back the refs from before the last operation; see `ops.refs.undo`."""
        return refs_op.undo(self.database, to=to, author=author or default_author())

    def reflog(self) -> Iterator[Root]:
        """What was done to the repository, newest first: one root per operation."""
        self.database.refresh()
        return self.database.log.history()

    def gc(
        self,
        *,
        dry_run: bool = False,
        keep_last: int | None = None,
        author: str | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> gc_op.Report:
        """Delete what no branch or tag of any model reaches.

        With `keep_last`, also all but the newest so many versions of each branch of this model,
        besides tagged ones. A dry run only says what would go. What is deleted cannot be undone.
        """
        return gc_op.collect(
            self.database,
            author=author or default_author(),
            dry_run=dry_run,
            keep_last=keep_last,
            model=self.model_name,
            progress=progress,
        )

    def repack(
        self,
        *,
        deep: bool = False,
        dry_run: bool = False,
        author: str | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> RepackReport:
        """Store anew what is stored, so that it takes less and the newest version reads quickest.

        With `deep` it takes several times as long, for a few per cent. Ids and versions do not
        change. A dry run only estimates what there is to gain; with nothing to gain nothing is
        done.
        """
        return repack(
            self.database,
            author=author or default_author(),
            deep=deep,
            dry_run=dry_run,
            progress=progress,
        )

    def verify(self, *, quick: bool = False) -> VerifyReport:
        """Check everything, or (quick) all but the weights themselves; see `ops.verify`."""
        return verify(self.database, quick=quick)

    def stats(self) -> Stats:
        """How large everything is, and what sharing and compression save."""
        return stats(self.database)

    def _resolve(self, revision: str | Id) -> Id:
        if isinstance(revision, bytes):
            revision = revision.hex()
        return resolve(self.database, self.model_name, revision)


def init(location: Location, *, bare: bool = False, author: str | None = None) -> Repository:
    """Make a repository: in `location/.mstore`, or in `location` itself when bare (or a URL).

    Raises StorageError when there is one already.
    """
    author = author or default_author()
    if bare or is_url(location):
        return Repository(Database.create(open_storage(location), author))
    directory = Path(location)
    if (directory / "roots").is_dir():
        raise StorageError(
            f"{directory} is itself a repository", hint="use it with: mstore --repo PATH COMMAND"
        )
    db = Database.create(open_storage(directory / REPOSITORY_FOLDER), author)
    Worktree.create(directory, db)
    return Repository(db)


def open_repository(location: Location, *, model: str = DEFAULT_MODEL) -> Repository:
    """Open the repository at `location`: a directory that has one, a bare one, or a URL.

    Raises NoRepositoryError when there is none.
    """
    return Repository(Database.open(storage_at(location)), model)


def storage_at(location: Location) -> Storage:
    """The storage of the repository at `location`, without looking whether there is one."""
    if not is_url(location):
        inside = Path(location) / REPOSITORY_FOLDER
        if inside.is_dir():
            return open_storage(inside)
        if not Path(location).is_dir():
            raise NoRepositoryError(
                f"there is no directory {os.fspath(location)}", hint="make one with: mstore init"
            )
    return open_storage(location)


def is_url(location: Location) -> bool:
    """Whether `location` names a storage by a URL rather than a path."""
    return isinstance(location, str) and "://" in location


def _content(content: object, path: str | None, progress: Progress, refuse: bool) -> Content:
    if isinstance(content, str | os.PathLike):
        if path is not None:
            raise InvalidInputError("path= names the file that values become, not files on disk")
        return _files_content(Path(content), progress, refuse)
    if path is not None and not path.endswith(".safetensors"):
        raise InvalidInputError(
            f"values become a safetensors file, which {path!r} does not sound like",
            hint="end the path in .safetensors",
        )
    arrays = flatten(content)
    progress.begin(arrays.size)
    name = check_path(path or ARRAYS_PATH)
    buffers = [memoryview(arrays.header), *arrays.buffers]
    return Content(lambda: [FileToStore(name, BufferSource(buffers), arrays.layout)], {})


def _files_content(path: Path, progress: Progress, refuse: bool) -> Content:
    if path.is_dir():
        if (path / "roots").is_dir() and (path / "packs").is_dir():
            raise InvalidInputError(
                f"{path} is itself a repository", hint="commit a directory of model files"
            )
        found = Scan(path).files()
        directory = path
    elif path.exists():
        directory = path.parent
        found = [FoundFile(path.name, path.stat())]
    else:
        raise NotFoundError(f"there is no file or directory {path}")
    progress.begin(sum(file.stat.st_size for file in found))
    executable = frozenset(file.path for file in found if file.executable)
    return Content(lambda: open_files(directory, found, [], refuse=refuse), {}, executable)
