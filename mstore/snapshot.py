"""One version as a user sees it: its files, its tensors, and what was said about it."""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import datetime, timedelta, timezone
from functools import cached_property
from pathlib import Path

from mstore import objects
from mstore.checks import MetadataValue
from mstore.chunkreader import ChunkReader
from mstore.database import Database
from mstore.errors import InvalidInputError, NotFoundError
from mstore.filebytes import StoredBytes
from mstore.foreign_arrays import converter
from mstore.formats.safetensors import read_metadata
from mstore.ids import Id
from mstore.numpy_dtypes import Array
from mstore.objects import FileEntry, Manifest
from mstore.ops.checkout import write_out
from mstore.ops.export import DEFAULT_SHARD_SIZE, Export, Exportable, choose, export, exportable
from mstore.ops.without_tensors import no_tensors
from mstore.structure import restore
from mstore.tensors import SegmentTensor, TensorView, read_segments
from mstore.viewed import ViewTensor, read_views


class FileView:
    """One file of a version; its content is read when asked for."""

    def __init__(
        self, path: str, entry: FileEntry, version: Id, db: Database, reader: ChunkReader
    ) -> None:
        self.path = path
        self.size = entry.size
        self.executable = entry.executable
        self._entry = entry
        self._version = version
        self._db = db
        self._reader = reader

    @cached_property
    def manifest(self) -> Manifest:
        """The file's segments and chunks."""
        return self._db.manifest(self._entry.manifest)

    @property
    def id(self) -> str:
        """The id of its manifest, 64 hexadecimal digits: equal ids mean equal files."""
        return self._entry.manifest.hex()

    @property
    def format(self) -> str:
        """What its bytes were understood as: `safetensors`, `npy`, `torch`, …, or `opaque`."""
        return self.manifest.format

    @cached_property
    def tensors(self) -> Mapping[str, TensorView]:
        """The tensors of this file by name."""
        found: dict[str, TensorView] = {
            tensor.name: SegmentTensor(self.path, segment, self._reader)
            for tensor, segment in self.manifest.tensors()
            if not segment.hidden
        }
        for view in self.manifest.views:
            found[view.tensor.name] = ViewTensor(self.path, view, self.bytes, self._reader)
        return found

    def read(self, offset: int = 0, length: int | None = None) -> bytes:
        """Its bytes from `offset` on, at most `length`; only the chunks they lie in are read.

        Raises CorruptDataError when a chunk is damaged.
        """
        if offset < 0 or (length is not None and length < 0):
            raise InvalidInputError(f"cannot read {length} bytes from byte {offset} of {self.path}")
        length = self.size - offset if length is None else length
        return self.bytes.read(offset, length)

    @cached_property
    def bytes(self) -> StoredBytes:
        """Its bytes at any offset."""
        return StoredBytes(self.manifest, self._reader)

    def export(
        self,
        out: str | os.PathLike[str],
        *,
        tensors: str | Iterable[str] | None = None,
        force: bool = False,
        shard_size: int = DEFAULT_SHARD_SIZE,
        progress: Callable[[int], None] | None = None,
    ) -> Export:
        """Write its tensors into a file of another format; see `Snapshot.export`.

        Raises what that raises, so InvalidInputError if it has no tensors, which says why.
        """
        found = list(self._exportable())
        if not found:
            raise no_tensors(self._db, self._version, [self.path])
        return export(
            self._reader,
            choose(found, tensors, self._version),
            out,
            commit=self._version,
            force=force,
            shard_size=shard_size,
            progress=progress,
        )

    def _exportable(self) -> Iterator[Exportable]:
        """Its tensors, as they are exported."""
        return exportable(self.path, self.manifest, self.bytes)

    def __repr__(self) -> str:
        return f"<File {self.path} {self.format} {self.size} bytes>"


class Files(Mapping[str, FileView]):
    """The files of a version by path."""

    def __init__(self, files: Mapping[str, FileView]) -> None:
        self._files = files

    def __getitem__(self, path: str) -> FileView:
        try:
            return self._files[path]
        except KeyError:
            raise NotFoundError(
                f"there is no file {path!r} in this version", hint="list(snapshot.files) names them"
            ) from None

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)

    def __repr__(self) -> str:
        shown = ", ".join(list(self._files)[:3])
        return f"<{len(self)} files: {shown}{', …' if len(self) > 3 else ''}>"


class Tensors(Mapping[str, TensorView]):
    """The tensors of a version.

    A tensor is called by its name, or by `path:name` where two files have one of that name (that
    longer name always works). The only tensor of a `.npy` file is called by its path.
    """

    def __init__(self, files: Mapping[str, FileView]) -> None:
        self._files = files

    @cached_property
    def _names(self) -> dict[str, tuple[str, str]]:
        places: dict[str, list[tuple[str, str]]] = {}
        for path, file in self._files.items():
            for tensor in file.manifest.listed():
                places.setdefault(tensor.name or path, []).append((path, tensor.name))
        return {
            name if len(where) == 1 else f"{path}:{inner}": (path, inner)
            for name, where in places.items()
            for path, inner in where
        }

    def __getitem__(self, name: str) -> TensorView:
        if name in self._names:
            path, inner = self._names[name]
            return self._files[path].tensors[inner]
        path, _, inner = name.rpartition(":")
        if path in self._files and inner in self._files[path].tensors:
            return self._files[path].tensors[inner]
        raise NotFoundError(
            f"there is no tensor {name!r} in this version", hint="list(snapshot.tensors) names them"
        )

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __repr__(self) -> str:
        shown = ", ".join(list(self._names)[:3])
        return f"<{len(self)} tensors: {shown}{', …' if len(self) > 3 else ''}>"


class Snapshot:
    """One version. `snapshot.tensors["w"][10:20]` reads only what it needs."""

    def __init__(self, db: Database, identifier: Id) -> None:
        self._db = db
        self._id = identifier
        self._reader = ChunkReader(db)
        self._commit = db.commit(identifier)

    @property
    def id(self) -> str:
        """The id of the commit, 64 hexadecimal digits."""
        return self._id.hex()

    @property
    def message(self) -> str:
        """What its author said about it."""
        return self._commit.message

    @property
    def author(self) -> str:
        """Who made it."""
        return self._commit.author

    @property
    def time(self) -> datetime:
        """When it was made, in its author's time zone."""
        zone = timezone(timedelta(minutes=self._commit.zone))
        return datetime.fromtimestamp(self._commit.time / 1e6, zone)

    @property
    def metadata(self) -> dict[str, MetadataValue]:
        """The values recorded with it, such as a loss."""
        return dict(self._commit.metadata)

    @property
    def parents(self) -> tuple[str, ...]:
        """The ids of the versions it came from."""
        return tuple(parent.hex() for parent in self._commit.parents)

    @cached_property
    def record(self) -> objects.Snapshot:
        """The snapshot as it is stored: path -> manifest."""
        return self._db.snapshot(self._commit.snapshot)

    @cached_property
    def files(self) -> Mapping[str, FileView]:
        """The files by path."""
        return Files(
            {
                path: FileView(path, entry, self._id, self._db, self._reader)
                for path, entry in self.record.files.items()
            }
        )

    @cached_property
    def tensors(self) -> Mapping[str, TensorView]:
        """The tensors of all files by name; see `Tensors`."""
        return Tensors(self.files)

    @property
    def size(self) -> int:
        """Bytes of all files together."""
        return sum(entry.size for entry in self.record.files.values())

    def load(self, *, arrays: str = "numpy") -> object:
        """The value that was committed, its arrays in memory.

        A version of one file of tensors gives its structure, or its arrays by name; a version of
        several files gives the arrays of all of them by name (see `tensors`). They are numpy's, or
        with `arrays="torch"` tensors of PyTorch, but for arrays of types that it does not have.
        Raises InvalidInputError when it holds no tensors at all, CorruptDataError when data is
        damaged.
        """
        convert = converter(arrays)
        if len(self.files) == 1:
            (file,) = self.files.values()
            if file.format == "safetensors":
                found = _arrays(file.tensors)
                return restore(read_metadata(file), found, found.__getitem__, convert)
        if not self.tensors:
            raise InvalidInputError(
                f"version {self.id[:12]} holds no tensors to load",
                hint="read its files with snapshot.files[path].read(), or check it out",
            )
        return {name: convert(array) for name, array in _arrays(self.tensors).items()}

    def checkout(
        self,
        directory: str | Path,
        *,
        force: bool = False,
        progress: Callable[[int], None] | None = None,
    ) -> Path:
        """Write all files into `directory`, which is made if it is missing.

        Raises ConflictError, having written nothing, when a file there would be overwritten by
        another content, unless `force`.
        """
        write_out(self._db, self.record, Path(directory), force=force, progress=progress)
        return Path(directory)

    def export(
        self,
        out: str | os.PathLike[str],
        *,
        files: str | Iterable[str] | None = None,
        tensors: str | Iterable[str] | None = None,
        force: bool = False,
        shard_size: int = DEFAULT_SHARD_SIZE,
        progress: Callable[[int], None] | None = None,
    ) -> Export:
        """Write the tensors of all files, whatever format these have, into a file of another.

        `out` is a .safetensors, .npz or .npy file, or a folder that is there or ends with a slash
        in a str, which gets safetensors files of `shard_size` bytes and their index. `files` limits
        it to these paths; `tensors` are names, or patterns such as `encoder.*`. What is written is
        little-endian and row-major, and the values are the same bit for bit.

        Raises ConflictError when something is there that would be overwritten, unless `force`, or
        files of another model in the folder; NotFoundError for a file or tensor that is not there;
        InvalidInputError for tensors of a type that the file cannot have, and where there are none.
        """
        paths = [files] if isinstance(files, str) else list(self.files if files is None else files)
        found = [one for path in paths for one in self.files[path]._exportable()]
        if not found:
            raise no_tensors(self._db, self._id, paths)
        return export(
            self._reader,
            choose(found, tensors, self._id),
            out,
            commit=self._id,
            force=force,
            shard_size=shard_size,
            progress=progress,
        )

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Snapshot) and other._id == self._id

    def __hash__(self) -> int:
        return hash(self._id)

    def __repr__(self) -> str:
        said = f" {self.message.splitlines()[0]!r}" if self.message else ""
        count = len(self.record.files)
        return f"<Snapshot {self.id[:12]}{said}, {count} file{'s' if count != 1 else ''}>"


def _arrays(tensors: Mapping[str, TensorView]) -> dict[str, Array]:
    """The tensors as arrays, read together: the segments, and the views."""
    segments = {name: one for name, one in tensors.items() if isinstance(one, SegmentTensor)}
    views = {name: one for name, one in tensors.items() if isinstance(one, ViewTensor)}
    read = dict(zip(segments, read_segments(list(segments.values())), strict=True))
    read |= dict(zip(views, read_views(list(views.values())), strict=True))
    return {name: read[name] for name in tensors}
