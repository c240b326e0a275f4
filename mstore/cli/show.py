"""`mstore show`."""

from collections.abc import Iterable, Mapping

import click

from mstore.cli import output, text
from mstore.cli.describe import Describer
from mstore.cli.invocation import Invocation, command, complete_revision
from mstore.cli.tables import Column, Table, cut_middle
from mstore.cli.tensors import Namer, list_tensors, print_tensors, size_cells
from mstore.objects import Manifest, SegmentChunks
from mstore.ops.coded import codings
from mstore.snapshot import FileView, Snapshot


@command(
    "show",
    examples="""
mstore show
mstore show v1.0 --tensors
mstore show main:checkpoints/last.pt
mstore show main~2 --json | jq .metadata
""",
)
@click.argument(
    "revision", metavar="[REV[:PATH]]", default="HEAD", shell_complete=complete_revision
)
@click.option("--tensors", is_flag=True, help="Also list the tensors, with what they take.")
def show(call: Invocation, revision: str, tensors: bool) -> None:
    """Show one version: its metadata, files and tensors.

    With the path of a file, that file and its tensors; with that of a folder, the files in it.

    Opaque is a file of no format known here, or one that could not be taken apart into tensors.

    The stored size of a file or tensor is what its chunks take in the repository, also where
    other versions share them; that of all files together counts what they share once.

    For a tensor, base is the nearest version that has what its chunks are coded against, and the
    file and tensor there if they are not called the same. 3/8 means that so many of its chunks are,
    +1 that others are coded against yet another tensor. The depth is how many chunks have to be
    decoded one after the other before the deepest of its own.

    A tensor of the kind view has its elements among bytes of the file that may be those of another
    tensor, too; one of tiles lies in so many pieces; and deflate and the like are how the file
    holds a tensor only in another form. What they take is what the chunks take that they lie in.
    """
    located = call.locate(revision)
    identifier, commit = located.commit, call.db.commit(located.commit)
    version = Snapshot(call.db, identifier).files
    files = {path: version[path] for path in located.files}
    contents = {path: file.manifest for path, file in files.items()}
    stored = {
        path: sum(coding.stored for coding in codings(call.db, manifest.segments))
        for path, manifest in contents.items()
    }
    tensors = tensors or located.path in files
    listed = list_tensors(call, identifier, files) if tensors else []
    describer = Describer(call)
    if call.json:
        described = describer.document(identifier, commit)
        described["bytes"] = sum(file.size for file in files.values())
        described["files"] = [_document(file, stored[path]) for path, file in files.items()]
        if tensors:
            described["tensors"] = [one.to_json() for one in listed]
        output.document(described)
        return
    lines = list(describer.lines(identifier, commit))
    for line in lines[:1] if located.path else lines:
        output.data(line)
    output.data()
    _print_files(contents, stored, _stored_together(call, contents.values()))
    print_tensors(listed, Namer(call, located.revision, identifier))


def _stored_together(call: Invocation, manifests: Iterable[Manifest]) -> int:
    """Bytes that the chunks of all files take, those that several of them share once."""
    ids = {chunk for manifest in manifests for chunk, _ in manifest.chunks()}
    (coding,) = codings(call.db, [SegmentChunks(0, b"".join(ids))])
    return coding.stored


def _document(file: FileView, stored: int) -> dict[str, object]:
    return {
        "path": file.path,
        "bytes": file.size,
        "bytes_stored": stored,
        "executable": file.executable,
        "manifest": file.id,
        "format": file.format,
        "tensors": sum(1 for _ in file.manifest.listed()),
    }


def _print_files(
    contents: Mapping[str, Manifest], stored: Mapping[str, int], together: int
) -> None:
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
        tensors = sum(1 for _ in manifest.listed())
        table.add(
            text.visible(path),
            manifest.format,
            f"{tensors:,}" if tensors else "",
            *size_cells(manifest.size, stored[path]),
        )
    table.print()
    whole = sum(manifest.size for manifest in contents.values())
    output.data(
        f"  {text.count(len(contents), 'file')}, {text.size(whole)}, "
        f"stored in {text.size(together)} ({text.share(together, whole)})"
    )
