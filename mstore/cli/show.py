"""`mstore show`."""

from typing import Any

import click
import numpy as np

from mstore.bulkindex import as_ids, locate
from mstore.cli import output, text
from mstore.cli.describe import Describer
from mstore.cli.invocation import Invocation, command, complete_revision
from mstore.cli.tables import Column, Table, cut_middle, cut_name
from mstore.database import Database
from mstore.errors import CorruptDataError
from mstore.objects import Manifest, SegmentChunks
from mstore.readplan import record_sizes


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
    """
    identifier = call.resolve(revision)
    commit = call.db.commit(identifier)
    files = call.db.snapshot(commit.snapshot).files
    contents = {path: call.db.manifest(entry.manifest) for path, entry in files.items()}
    stored = {path: _stored(call.db, manifest) for path, manifest in contents.items()}
    describer = Describer(call)
    if call.json:
        described = describer.document(identifier, commit)
        described["bytes"] = sum(entry.size for entry in files.values())
        described["files"] = [
            {
                "path": path,
                "bytes": entry.size,
                "bytes_stored": sum(stored[path]),
                "executable": entry.executable,
                "manifest": entry.manifest.hex(),
                "format": contents[path].format,
                "tensors": sum(1 for _ in contents[path].tensors()),
            }
            for path, entry in files.items()
        ]
        if tensors:
            described["tensors"] = [
                document
                for path, manifest in contents.items()
                for document in _tensor_documents(path, manifest, stored[path])
            ]
        output.document(described)
        return
    for line in describer.lines(identifier, commit):
        output.data(line)
    output.data()
    _print_files(contents, stored)
    if tensors:
        _print_tensors(contents, stored)


def _stored(db: Database, manifest: Manifest) -> list[int]:
    """The stored bytes of every segment of a file; raises CorruptDataError if a chunk is lost."""
    located = locate(db.chunk_indexes(), as_ids(manifest.chunk_ids()))
    if not located.found.all():
        raise CorruptDataError("chunks are missing from the repository", hint="run: mstore verify")
    ends = np.cumsum([segment.count for segment in manifest.segments], dtype=np.int64)
    sums = np.append(0, np.cumsum(record_sizes(located.rows)))
    totals: list[int] = np.diff(sums[np.append(0, ends)]).tolist()
    return totals


def _tensors(manifest: Manifest, stored: list[int]) -> list[tuple[SegmentChunks, int]]:
    """The segments that are tensors, with their stored bytes."""
    pairs = zip(manifest.segments, stored, strict=True)
    return [(segment, size) for segment, size in pairs if segment.tensor is not None]


def _tensor_documents(path: str, manifest: Manifest, stored: list[int]) -> list[dict[str, Any]]:
    documents = []
    for segment, size in _tensors(manifest, stored):
        tensor, identifier = segment.tensor, segment.tensor_id
        assert tensor is not None
        assert identifier is not None
        documents.append(
            {
                "path": path,
                "name": tensor.name,
                "id": identifier.hex(),
                "dtype": tensor.dtype.name,
                "shape": list(tensor.shape),
                "order": tensor.order,
                "bytes": tensor.nbytes,
                "bytes_stored": size,
            }
        )
    return documents


def _print_files(contents: dict[str, Manifest], stored: dict[str, list[int]]) -> None:
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
            *_size_cells(manifest.size, sum(stored[path])),
        )
    table.print()
    whole = sum(manifest.size for manifest in contents.values())
    all_stored = sum(sum(sizes) for sizes in stored.values())
    output.data(
        f"  {text.count(len(contents), 'file')}, {text.size(whole)}, "
        f"stored in {text.size(all_stored)} ({text.share(all_stored, whole)})"
    )


def _print_tensors(contents: dict[str, Manifest], stored: dict[str, list[int]]) -> None:
    for path, manifest in contents.items():
        if not (tensors := _tensors(manifest, stored[path])):
            continue
        output.data()
        table = Table(
            [
                Column(text.visible(path), cut=cut_name),
                Column("dtype"),
                Column("shape"),
                Column("size", right=True),
                Column("stored", right=True),
                Column("share", right=True, extra=True),
            ],
            indent=2,
        )
        for segment, size in tensors:
            tensor = segment.tensor
            assert tensor is not None
            table.add(
                text.visible(tensor.name) or "(no name)",
                tensor.dtype.name,
                text.shape(tensor.shape) + (" F" if tensor.order == "F" else ""),
                *_size_cells(tensor.nbytes, size),
            )
        table.print()


def _size_cells(size: int, stored: int) -> tuple[str, str, str]:
    return text.size(size), text.size(stored), text.share(stored, size)
