"""Exporting: the tensors of files of any format, written into an open, safe one.

A file is written beside its place, synced, and renamed. What lies in the repository as it will lie
in the file goes there chunk by chunk; other tensors are read box by box, as they lie, and their
elements written to where they belong.
"""

import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np

from mstore.bulkindex import as_ids
from mstore.chunkreader import ChunkReader, Sink, Wanted
from mstore.dtypes import DType
from mstore.errors import InvalidInputError, NotFoundError
from mstore.filebytes import FileBytes, neighbours
from mstore.formats.base import quote
from mstore.formats.shards import INDEX_SUFFIX
from mstore.ids import Id
from mstore.layout import Tensor
from mstore.objects import Manifest
from mstore.ops import targets
from mstore.ops.rowmajor import Lying, Run, copied, placed, plain_type, swapped
from mstore.storage.files import FILES, OpenFile, translate_errors

DEFAULT_SHARD_SIZE = 5_000_000_000
"""Bytes of tensors in one of several files, as the Hugging Face libraries have it."""

SUFFIXES = (".safetensors", ".npz", ".npy")
"""How the name of a file ends that can be exported to."""


@dataclass(frozen=True, slots=True)
class Exportable:
    """A tensor of the file at `path` of a version, and where it lies."""

    path: str
    lying: Lying

    @property
    def tensor(self) -> Tensor:
        """Its name, type and shape there."""
        return self.lying.tensor

    @property
    def name(self) -> str:
        """What it is called; the only tensor of a `.npy` file is called after the file."""
        return self.tensor.name or self.path.removesuffix(".npy")

    @property
    def names(self) -> tuple[str, str]:
        """What it may be asked for by."""
        return self.tensor.name or self.path, f"{self.path}:{self.tensor.name}"


def exportable(path: str, manifest: Manifest, content: FileBytes) -> Iterator[Exportable]:
    """The tensors of the file at `path`, in file order, then its views."""
    offset = 0
    for segment in manifest.segments:
        if segment.tensor is not None and not segment.hidden:
            yield Exportable(path, Lying(segment.tensor, segment, offset, content))
        offset += segment.length
    for view in manifest.views:
        yield Exportable(path, Lying(view.tensor, view, 0, content))


@dataclass(frozen=True, slots=True)
class ExportedTensor:
    """A tensor as it was exported: its name, type and shape in the file, and what it came from.

    `kind` is as for tensors that were read: of blocks the bytes are exported as they are.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    nbytes: int
    file: str
    source_path: str
    source_name: str
    kind: str

    def to_json(self) -> dict[str, object]:
        """Plain values."""
        return {
            "name": self.name,
            "dtype": self.dtype,
            "shape": list(self.shape),
            "bytes": self.nbytes,
            "file": self.file,
            "source_path": self.source_path,
            "source_name": self.source_name,
            "kind": self.kind,
        }


@dataclass(frozen=True, slots=True)
class Export:
    """What was exported: the files that were written, and the tensors in them."""

    files: tuple[str, ...]
    tensors: tuple[ExportedTensor, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.nbytes for tensor in self.tensors)

    @property
    def notes(self) -> list[str]:
        """What to know of it: tensors whose bytes mean more than their type says."""
        kinds = Counter(tensor.kind for tensor in self.tensors if tensor.kind)
        return [
            f"{count} tensor{'s' if count > 1 else ''} of {kind} exported as the bytes they are"
            for kind, count in sorted(kinds.items())
        ]

    def to_json(self) -> dict[str, object]:
        """Plain values."""
        return {
            "files": list(self.files),
            "bytes": self.nbytes,
            "tensors": [tensor.to_json() for tensor in self.tensors],
        }


def is_folder(out: str | os.PathLike[str]) -> bool:
    """Whether an export to `out` makes shards in a folder: it is one, or ends like one."""
    return os.fspath(out).endswith(os.sep) or Path(out).is_dir()


def choose(
    tensors: Sequence[Exportable], patterns: str | Iterable[str] | None, commit: Id
) -> list[Exportable]:
    """Those of the tensors of a version that any pattern means; all of them for None.

    A pattern is the name of a tensor, as it is or with its path before it (`path:name`), or else a
    glob of such names. Raises NotFoundError, with the nearest names, for one that means none.
    """
    if patterns is None:
        return list(tensors)
    chosen: set[int] = set()
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        # As it is first, since names may have characters that are special in a glob.
        found = [n for n, one in enumerate(tensors) if pattern in one.names] or [
            n
            for n, one in enumerate(tensors)
            if any(fnmatchcase(name, pattern) for name in one.names)
        ]
        if not found:
            raise _no_tensor(pattern, tensors, commit)
        chosen.update(found)
    return [tensors[number] for number in sorted(chosen)]


def _no_tensor(name: str, tensors: Sequence[Exportable], commit: Id) -> NotFoundError:
    hint = f"see: mstore show {commit.hex()[:12]} --tensors"
    for names in zip(*(one.names for one in tensors), strict=True):
        if close := get_close_matches(name, dict.fromkeys(names), n=3, cutoff=0.5):
            hint = f"nearest names: {', '.join(close)}"
            break
    return NotFoundError(f"there is no tensor {name!r} in this version", hint=hint)


def export(
    reader: ChunkReader,
    tensors: Sequence[Exportable],
    out: str | os.PathLike[str],
    *,
    commit: Id,
    force: bool = False,
    shard_size: int = DEFAULT_SHARD_SIZE,
    progress: Callable[[int], None] | None = None,
) -> Export:
    """Write the tensors to `out`, and say what was written.

    That is a .safetensors, .npz or .npy file, or a folder (see `is_folder`), which is made if need
    be and gets safetensors files of `shard_size` bytes of tensors at most (or one tensor) and an
    index of them. Safetensors files name `commit`, the version they are from. Tensors are
    little-endian and row-major in all of them. `progress` is told how many more bytes are written.

    Raises ConflictError when something is there that would be overwritten, unless `force`, or what
    loaders of the folder would take, too; InvalidInputError for no tensors, or for types or names
    that the files cannot have; CorruptDataError when stored data is damaged; StorageError when
    writing fails. Then nothing that was there has changed. Memory: some 250 MiB at most, whatever
    the size of a tensor and the order it has in its file.
    """
    folder = is_folder(out)
    target = Path(out)
    if not folder and target.suffix not in SUFFIXES:
        raise InvalidInputError(
            f"{out} is neither a .safetensors, .npz or .npy file nor a folder",
            hint="the suffix says the format; for a folder of safetensors files end it with /",
        )
    if not tensors:
        raise InvalidInputError("there are no tensors to export")
    named = [_renamed(name, one) for name, one in _names(tensors)]
    wanted = list(zip(named, tensors, strict=True))
    _check_packed(wanted)
    files = _shards(target, wanted, shard_size) if folder else {target: wanted}
    inside = {path: [tensor for tensor, _ in group] for path, group in files.items()}
    plans = {
        path: _plan(path, inside[path], _metadata(group, commit)) for path, group in files.items()
    }
    index = {target / f"model{INDEX_SUFFIX}": targets.index_of(inside)} if folder else {}
    targets.check_free([*files, *index], force=force)
    if folder:
        targets.check_others(target, files)
    if not target.parent.is_dir():
        raise NotFoundError(f"there is no folder {target.parent}", hint="make it first")
    if folder:
        FILES.mkdir(target)
    with _beside([*files, *index]) as written:
        for path, group in files.items():
            _fill(reader, written[path], plans[path], group, progress)
        for path, content in index.items():
            FILES.write(written[path], [content])
        for file in written.values():
            FILES.fsync(file)
        for path, file in written.items():
            if path in index:  # comes last: loaders go by it, so all it names has to be there
                FILES.fsync_dir(target)
            FILES.rename(file.path, path)
    FILES.fsync_dir(target if folder else target.parent)
    return Export(
        tuple(map(str, (*files, *index))),
        tuple(_told(path, *pair) for path, group in files.items() for pair in group),
    )


def _names(tensors: Sequence[Exportable]) -> Iterator[tuple[str, Exportable]]:
    """Each tensor with its name, or with its path before that where two have the same."""
    often = Counter(one.name for one in tensors)
    taken: set[str] = set()
    for one in tensors:
        name = one.name if often[one.name] == 1 else f"{one.path}:{one.tensor.name}"
        if name in taken:
            raise InvalidInputError(
                f"two tensors would be called {quote(name)}", hint="export the files one by one"
            )
        taken.add(name)
        yield name, one


def _renamed(name: str, one: Exportable) -> Tensor:
    """The tensor as the exported file will have it."""
    return Tensor(name, plain_type(one.tensor.dtype), one.tensor.shape)


def _told(path: Path, tensor: Tensor, one: Exportable) -> ExportedTensor:
    source = one.tensor
    return ExportedTensor(
        *(tensor.name, tensor.dtype.name, tensor.shape, tensor.nbytes, str(path)),
        *(one.path, source.name, source.kind),
    )


_Wanted = Sequence[tuple[Tensor, Exportable]]
"""Tensors as a file will have them, and where each comes from."""


def _check_packed(wanted: _Wanted) -> None:
    for tensor, one in wanted:
        if tensor.dtype.bits < 8 and copied(one.lying) is None:
            raise InvalidInputError(
                f"{quote(tensor.name)} packs several elements into a byte, in an order that no "
                "other file has",
                hint="leave the tensor out",
            )


def _plan(path: Path, tensors: Sequence[Tensor], metadata: Mapping[str, str]) -> targets.Planned:
    if path.suffix == ".npz":
        return targets.plan_npz(tensors)
    if path.suffix == ".safetensors":
        return targets.plan_safetensors(tensors, metadata)
    if len(tensors) > 1:
        shown = ", ".join(quote(tensor.name) for tensor in tensors[:3])
        raise InvalidInputError(
            f"a .npy file holds one array, and these are {len(tensors)}: {shown}, …",
            hint="name one with --tensor, or use a .npz or .safetensors file",
        )
    return targets.plan_npy(tensors[0])


def _metadata(wanted: _Wanted, commit: Id) -> dict[str, str]:
    """What a safetensors file says besides its tensors."""
    # Loaders of Hugging Face want to know what kind of file this was before.
    metadata = {"format": "pt", "mstore.commit": commit.hex()}
    kinds = {tensor.name: one.tensor.kind for tensor, one in wanted if one.tensor.kind}
    return metadata | ({"mstore.kinds": json.dumps(kinds)} if kinds else {})


def _shards(folder: Path, wanted: _Wanted, shard_size: int) -> dict[Path, _Wanted]:
    """The files that the tensors go to, as many in a row as `shard_size` allows."""
    if shard_size <= 0:
        raise InvalidInputError(f"files of {shard_size} bytes cannot hold a tensor")
    groups: list[list[tuple[Tensor, Exportable]]] = []
    size = 0
    for tensor, one in wanted:
        if not groups or size + tensor.nbytes > shard_size:
            groups.append([])
            size = 0
        groups[-1].append((tensor, one))
        size += tensor.nbytes
    count = len(groups)
    return {
        folder / f"model-{number:05}-of-{count:05}.safetensors": group
        for number, group in enumerate(groups, 1)
    }


@contextmanager
def _beside(paths: Iterable[Path]) -> Iterator[dict[Path, OpenFile]]:
    """A new, empty file beside each path; what was not renamed in the block is removed."""
    files: dict[Path, OpenFile] = {}
    try:
        for path in paths:
            files[path] = FILES.create_temporary(path.parent)
        yield files
    finally:
        for file in files.values():
            FILES.discard(file)


def _fill(
    reader: ChunkReader,
    file: OpenFile,
    plan: targets.Planned,
    wanted: _Wanted,
    progress: Callable[[int], None] | None,
) -> None:
    """Write all that a file holds."""
    copies, others, offsets = _Copies(file), [], []
    for (_, one), offset in zip(wanted, plan.offsets, strict=True):
        if (runs := copied(one.lying)) is not None:
            copies.add(runs, offset, one.tensor.dtype)
        else:
            others.append(one.lying)
            offsets.append(offset)
    for group in neighbours([(one.reach,) for one in others]):
        (shared,) = group.contents()
        for number in group.numbers:
            for at, part in placed(others[number].read_from(shared)):
                FILES.write_at(file, offsets[number] + at, part)
                if progress is not None:
                    progress(len(part))
    reader.read(copies.wanted(), copies, progress)
    with translate_errors("read", file.path), file.path.open("rb") as back:
        for offset, content in plan.around(lambda at, length: os.pread(back.fileno(), length, at)):
            FILES.write_at(file, offset, memoryview(content))


class _Copies(Sink):
    """Parts of chunks that go into a file; their numbers are the positions of the sink."""

    def __init__(self, file: OpenFile) -> None:
        self._file = file
        self._ids: list[bytes] = []
        self._lengths: list[int] = []
        self._places: list[tuple[int, int, int, DType]] = []

    def add(self, runs: Iterable[Run], offset: int, dtype: DType) -> None:
        """Elements that go to `offset`, one run after the other."""
        for run in runs:
            self._ids.append(run.id)
            self._lengths.append(run.chunk)
            self._places.append((offset, run.skip, run.length, dtype))
            offset += run.length

    def wanted(self) -> Wanted:
        """The chunks to be read."""
        ids = as_ids(b"".join(self._ids))
        return Wanted(ids, np.arange(len(ids)), np.array(self._lengths, np.int64))

    def put(self, position: int, raw: memoryview) -> None:
        """Write what is wanted of a chunk."""
        offset, skip, length, dtype = self._places[position]
        part = raw[skip : skip + length]
        FILES.write_at(self._file, offset, swapped(part, dtype) if dtype.big_endian else part)
