"""The tensors of a version as `show` lists them, with what they take and are coded against."""

from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from mstore.cli import output, text
from mstore.cli.invocation import Invocation
from mstore.cli.tables import Column, Table, cut_middle, cut_name
from mstore.ids import Id
from mstore.layout import Strided, Tensor, Tiled, View, extents
from mstore.objects import Manifest, SegmentChunks
from mstore.ops.coded import BaseAt, Coding, codings, find_bases
from mstore.ops.revisions import earlier
from mstore.snapshot import FileView
from mstore.tensors import TensorView


@dataclass(frozen=True, slots=True)
class Lying:
    """A tensor of a file and the chunks it lies in.

    `seen` says what a tensor is that is no segment of its own, and is empty for others; `of` are
    the tensors that it shares bytes with.
    """

    tensor: Tensor
    chunks: SegmentChunks
    seen: str = ""
    of: tuple[str, ...] = ()

    @property
    def kind(self) -> str:
        """What is to be said of it besides its type and shape."""
        seen = f"{self.seen} of {self.of[0]}" if self.of else self.seen
        return ", ".join(part for part in (self.tensor.kind, seen) if part)


@dataclass(frozen=True, slots=True)
class Listed:
    """A tensor of a version: where it lies in the file `path`, how it is stored, against what."""

    path: str
    lying: Lying
    view: TensorView
    coding: Coding
    bases: tuple[BaseAt, ...]

    @property
    def tensor(self) -> Tensor:
        """Its name, type and shape."""
        return self.lying.tensor

    @property
    def chunks(self) -> int:
        """How many chunks it lies in."""
        return self.lying.chunks.count

    def to_json(self) -> dict[str, Any]:
        """All of it."""
        return {
            "path": self.path,
            "name": self.tensor.name,
            "id": self.view.id,
            "dtype": self.tensor.dtype.name,
            "shape": list(self.tensor.shape),
            "order": self.tensor.order,
            "kind": self.tensor.kind,
            "view": self.lying.seen,
            "view_of": list(self.lying.of),
            "bytes": self.tensor.nbytes,
            "bytes_stored": self.coding.stored,
            "chunks": self.chunks,
            "depth": self.coding.depth,
            "bases": [
                {
                    "commit": base.commit.hex() if base.commit is not None else None,
                    "path": base.path,
                    "name": base.name,
                    "chunks": base.chunks,
                }
                for base in self.bases
            ],
        }


def list_tensors(call: Invocation, version: Id, files: Mapping[str, FileView]) -> list[Listed]:
    """The tensors of these files of a version, file by file."""
    found = [(file, one) for file in files.values() for one in _of_file(file)]
    coded = codings(call.db, [one.chunks for _, one in found])
    wanted = [
        (file.path, one.chunks, coding) for (file, one), coding in zip(found, coded, strict=True)
    ]
    return [
        Listed(file.path, one, file.tensors[one.tensor.name], coding, bases)
        for (file, one), coding, bases in zip(
            found, coded, find_bases(call.db, version, wanted), strict=True
        )
    ]


def _of_file(file: FileView) -> Iterator[Lying]:
    """Where each tensor of a file lies."""
    for tensor, segment in file.manifest.tensors():
        if not segment.hidden:
            yield Lying(tensor, segment)
    sharing = _Sharing(file.manifest)
    for view in file.manifest.views:
        chunks, _ = file.bytes.chunks(extents(view))
        yield Lying(view.tensor, chunks, _seen(view), sharing.names(view))


def _seen(view: View) -> str:
    if isinstance(view.place, Strided):
        return "view"
    if isinstance(view.place, Tiled):
        return text.count(len(view.place.offsets), "tile")
    return view.place.code


class _Sharing:
    """Which tensors of a file lie where."""

    def __init__(self, manifest: Manifest) -> None:
        self._ends: list[int] = []
        self._tensors: list[tuple[int, str]] = []
        offset = 0
        for segment in manifest.segments:
            if segment.tensor is not None and segment.length and not segment.hidden:
                self._tensors.append((offset, segment.tensor.name))
                self._ends.append(offset + segment.length)
            offset += segment.length

    def names(self, view: View) -> tuple[str, ...]:
        """The tensors whose bytes a view has, too."""
        found: dict[str, None] = {}
        for start, length in extents(view):
            at = bisect_left(self._ends, start + 1)
            while at < len(self._tensors) and self._tensors[at][0] < start + length:
                found[self._tensors[at][1]] = None
                at += 1
        return tuple(found)


def print_tensors(listed: Sequence[Listed], namer: "Namer") -> None:
    """Print a table for each file."""
    for path, group in groupby(listed, key=lambda one: one.path):
        tensors = list(group)
        kinds = any(one.lying.kind for one in tensors)
        output.data()
        table = Table(
            [
                _names_in(path),
                Column("dtype"),
                Column("shape"),
                *([Column("kind", cut=cut_middle)] if kinds else []),
                Column("size", right=True),
                Column("stored", right=True),
                Column("share", right=True, extra=True),
                Column("base", cut=cut_middle, extra=True),
                Column("depth", right=True, extra=True),
            ],
            indent=2,
        )
        for one in tensors:
            table.add(
                text.visible(one.tensor.name) or "(no name)",
                one.tensor.dtype.name,
                text.shape(one.tensor.shape) + (" F" if one.tensor.order == "F" else ""),
                *([text.visible(one.lying.kind)] if kinds else []),
                *_size_cells(one),
                namer.bases(one),
                str(one.coding.depth),
            )
        table.print()


def _names_in(path: str) -> Column:
    """The column of the names of tensors in the file at `path`, which is its title."""
    title = text.visible(path)

    def cut(cell: str, width: int) -> str:
        # The parts of a path that dots separate are no layers.
        return (cut_middle if cell == title else cut_name)(cell, width)

    return Column(title, cut=cut)


def _size_cells(one: Listed) -> tuple[str, str, str]:
    """The size of a tensor and what is stored of it, unless others have told that already."""
    size, stored, share = size_cells(one.tensor.nbytes, one.coding.stored)
    return (size, "", "") if one.lying.of else (size, stored, share)


class Namer:
    """What to call what tensors are coded against, in the words of who asked for `revision`."""

    def __init__(self, call: Invocation, revision: str, version: Id) -> None:
        digits = version.hex().startswith(revision)
        self._names = {version: revision[:12] if digits else revision}
        for model, refs in sorted(
            call.db.root.models.items(), key=lambda item: item[0] != call.model
        ):
            prefix = "" if model == call.model else f"{model}:"
            for names in (refs.branches, refs.tags):
                for name, commit in sorted(names.items()):
                    self._names.setdefault(commit, prefix + name)

    def bases(self, one: Listed) -> str:
        """What most chunks of a tensor are coded against, how many if not all, and what else."""
        if not one.bases:
            return "-"
        most, *others = one.bases
        parts = [self._base(most, one)]
        if most.chunks < one.chunks:
            parts.append(f"{most.chunks}/{one.chunks}")
        if others:
            parts.append(f"+{len(others)}")
        return " ".join(parts)

    def _base(self, base: BaseAt, one: Listed) -> str:
        if base.commit is None:
            return "a version no longer kept"
        if base.tip is not None:
            version = earlier(self._names[base.tip], base.back)
        else:
            version = text.short(base.commit)
        # What a view lies in may have any name.
        names = [(base.path, one.path), *([] if one.lying.seen else [(base.name, one.tensor.name)])]
        differing = [part for part, mine in names if part and part != mine]
        return text.visible(" ".join([version, ":".join(differing)]).rstrip())


def size_cells(size: int, stored: int) -> tuple[str, str, str]:
    """The cells that tell a size, what of it is stored, and the share of that."""
    return text.size(size), text.size(stored), text.share(stored, size)
