"""`mstore show`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import click

from mstore.cli import output, text
from mstore.cli.describe import Describer
from mstore.cli.invocation import Invocation, command, complete_revision
from mstore.cli.tables import Column, Table, cut_middle, cut_name
from mstore.ids import Id
from mstore.layout import Tensor
from mstore.objects import Manifest
from mstore.ops.coded import BaseAt, Coding, codings, find_bases
from mstore.ops.revisions import earlier


@command(
    "show",
    examples="""
mstore show
mstore show v1.0 --tensors
mstore show main~2 --json | jq .metadata
""",
)
@click.argument("revision", metavar="[REV]", default="HEAD", shell_complete=complete_revision)
@click.option("--tensors", is_flag=True, help="Also list the tensors, with what they take.")
def show(call: Invocation, revision: str, tensors: bool) -> None:
    """Show one version: its metadata, files and tensors.

    The stored size of a file or tensor is what its chunks take in the repository, also where
    other versions share them.

    For a tensor, base is the nearest version that has what its chunks are coded against, and the
    file and tensor there if they are not called the same. 3/8 means that so many of its chunks are,
    +1 that others are coded against yet another tensor. The depth is how many chunks have to be
    decoded one after the other before the deepest of its own.
    """
    identifier = call.resolve(revision)
    commit = call.db.commit(identifier)
    files = call.db.snapshot(commit.snapshot).files
    contents = {path: call.db.manifest(entry.manifest) for path, entry in files.items()}
    coded = {path: codings(call.db, manifest.segments) for path, manifest in contents.items()}
    stored = {path: sum(coding.stored for coding in coded[path]) for path in contents}
    listed = _tensors(call, identifier, contents, coded) if tensors else []
    describer = Describer(call)
    if call.json:
        described = describer.document(identifier, commit)
        described["bytes"] = sum(entry.size for entry in files.values())
        described["files"] = [
            {
                "path": path,
                "bytes": entry.size,
                "bytes_stored": stored[path],
                "executable": entry.executable,
                "manifest": entry.manifest.hex(),
                "format": contents[path].format,
                "tensors": sum(1 for _ in contents[path].tensors()),
            }
            for path, entry in files.items()
        ]
        if tensors:
            described["tensors"] = [_tensor_document(one) for one in listed]
        output.document(described)
        return
    for line in describer.lines(identifier, commit):
        output.data(line)
    output.data()
    _print_files(contents, stored)
    _print_tensors(listed, _Namer(call, revision, identifier))


@dataclass(frozen=True, slots=True)
class _Listed:
    """A tensor of the version: the file and its place there, how it is stored, against what."""

    path: str
    tensor: Tensor
    id: Id
    chunks: int
    coding: Coding
    bases: tuple[BaseAt, ...]


def _tensors(
    call: Invocation,
    version: Id,
    contents: Mapping[str, Manifest],
    coded: Mapping[str, Sequence[Coding]],
) -> list[_Listed]:
    """All tensors, file by file."""
    found = [
        (path, segment, coding)
        for path, manifest in contents.items()
        for segment, coding in zip(manifest.segments, coded[path], strict=True)
        if segment.tensor is not None
    ]
    listed = []
    for (path, segment, coding), bases in zip(
        found, find_bases(call.db, version, found), strict=True
    ):
        assert segment.tensor is not None
        assert segment.tensor_id is not None
        listed.append(
            _Listed(path, segment.tensor, segment.tensor_id, segment.count, coding, bases)
        )
    return listed


def _tensor_document(one: _Listed) -> dict[str, Any]:
    return {
        "path": one.path,
        "name": one.tensor.name,
        "id": one.id.hex(),
        "dtype": one.tensor.dtype.name,
        "shape": list(one.tensor.shape),
        "order": one.tensor.order,
        "bytes": one.tensor.nbytes,
        "bytes_stored": one.coding.stored,
        "chunks": one.chunks,
        "depth": one.coding.depth,
        "bases": [
            {
                "commit": base.commit.hex() if base.commit is not None else None,
                "path": base.path,
                "name": base.name,
                "chunks": base.chunks,
            }
            for base in one.bases
        ],
    }


def _print_files(contents: Mapping[str, Manifest], stored: Mapping[str, int]) -> None:
    table = Table(
        [
            Column("file", cut=cut_middle),
            Column("format"),
            Column("tensors", right=True),
            Column("size", right=True),
            Column("stored", right=True),
            Column("share", right=True, extra=True),
        ],
        indent=2,
    )
    for path, manifest in contents.items():
        tensors = sum(1 for _ in manifest.tensors())
        kind = manifest.format if manifest.format != "opaque" else ""
        table.add(
            text.visible(path),
            kind,
            f"{tensors:,}" if tensors else "",
            *_size_cells(manifest.size, stored[path]),
        )
    table.print()
    whole = sum(manifest.size for manifest in contents.values())
    all_stored = sum(stored.values())
    output.data(
        f"  {text.count(len(contents), 'file')}, {text.size(whole)}, "
        f"stored in {text.size(all_stored)} ({text.share(all_stored, whole)})"
    )


def _print_tensors(listed: Sequence[_Listed], namer: "_Namer") -> None:
    for path, tensors in groupby(listed, key=lambda one: one.path):
        output.data()
        table = Table(
            [
                Column(text.visible(path), cut=cut_name),
                Column("dtype"),
                Column("shape"),
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
                *_size_cells(one.tensor.nbytes, one.coding.stored),
                namer.bases(one),
                str(one.coding.depth),
            )
        table.print()


class _Namer:
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

    def bases(self, one: _Listed) -> str:
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

    def _base(self, base: BaseAt, one: _Listed) -> str:
        if base.commit is None:
            return "a version no longer kept"
        if base.tip is not None:
            version = earlier(self._names[base.tip], base.back)
        else:
            version = text.short(base.commit)
        own = (one.path, one.tensor.name)
        differing = [
            part
            for part, mine in zip((base.path, base.name), own, strict=True)
            if part and part != mine
        ]
        return text.visible(" ".join([version, ":".join(differing)]).rstrip())


def _size_cells(size: int, stored: int) -> tuple[str, str, str]:
    return text.size(size), text.size(stored), text.share(stored, size)
