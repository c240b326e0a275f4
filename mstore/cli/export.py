"""`mstore export`."""

import re

import click

from mstore.cli import output, text
from mstore.cli.failures import Misuse
from mstore.cli.invocation import Invocation, command, complete_revision
from mstore.cli.progress import progress
from mstore.dtypes import BY_NAME
from mstore.numpy_dtypes import numpy_dtype
from mstore.ops.export import DEFAULT_SHARD_SIZE, SUFFIXES, Export, is_folder
from mstore.ops.revisions import Located
from mstore.ops.without_tensors import stored_data_files
from mstore.snapshot import Snapshot

_SIZE = re.compile(r"([0-9]{1,15}) ?(?:([kKMGT])(i?))?B?")


@command(
    "export",
    examples="""
mstore export main -o model.safetensors
mstore export main:checkpoints/last.pt -o weights.npz
mstore export v1.0 -o hub/ --shard-size 2GB
mstore export main --tensor encoder.layer.0.weight -o weight.npy
mstore export main --tensor 'encoder.*' --tensor lm_head.weight -o parts.safetensors
""",
)
@click.argument("revision", metavar="REV[:PATH]", shell_complete=complete_revision)
@click.option(
    "--tensor", "tensors", metavar="GLOB", multiple=True, help="Only tensors of such names."
)
@click.option("-o", "--output", "out", metavar="OUT", required=True, help="What to write.")
@click.option("--shard-size", metavar="SIZE", help="Most bytes in each file of a folder: 5GB.")
@click.option("-f", "--force", is_flag=True, help="Overwrite what is there.")
def export(
    call: Invocation,
    revision: str,
    tensors: tuple[str, ...],
    out: str,
    shard_size: str | None,
    force: bool,
) -> None:
    """Write tensors of any format to an open, safe one.

    All tensors of the version, or of one file or folder of it, go to OUT: a .safetensors, .npz or
    .npy file (that of one tensor), or a folder, if it is one or ends with a slash, for safetensors
    files with an index. Elements are little-endian and row-major there, values the same bit for
    bit. A folder that has files of another model is refused, since they would be loaded, too.

    Where two files of the version have tensors of one name, these are called PATH:NAME.
    """
    folder = is_folder(out)
    if not folder and not out.endswith(SUFFIXES):
        raise Misuse(
            f"{out} is neither .safetensors, .npz nor .npy, nor a folder",
            hint="the suffix says the format; end the name of a new folder with /",
        )
    if shard_size is not None and not folder:
        raise Misuse("--shard-size is for folders", hint="end the name of a new folder with /")
    located = call.locate(revision)
    with progress(call, "exporting") as told:
        done = Snapshot(call.db, located.commit).export(
            out,
            files=located.files,
            tensors=tensors or None,
            force=force,
            shard_size=_bytes(shard_size) if shard_size else DEFAULT_SHARD_SIZE,
            progress=told.advance,
        )
    if not tensors:
        for told_of in _left_out(call, located):
            call.warn(told_of)
    if call.json:
        output.document(_document(done))
        return
    for note in done.notes:
        call.note(note)
    call.note(f"wrote {_what(done)} to {_where(done, out)}")


def _left_out(call: Invocation, located: Located) -> list[str]:
    """What to say of tensors that a file keeps in another one, which was not asked for.

    Of a folder or a version all files were.
    """
    if located.files != (located.path,):
        return []
    data = stored_data_files(call.db, located.commit, located.path)
    path = text.visible(located.path)
    return [f"{path} keeps more tensors in {text.visible(one)}, which are left out" for one in data]


def _bytes(size: str) -> int:
    """What `5GB` or `512MiB` is in bytes; raises Misuse."""
    match = _SIZE.fullmatch(size)
    if match is None or not int(match[1]):
        raise Misuse(f"{size} is not a size", hint="write for example 5GB or 512MiB")
    step = 1024 if match[3] else 1000
    return int(match[1]) * int(step ** " KMGT".index((match[2] or " ").upper()))


def _document(done: Export) -> dict[str, object]:
    """All of it; of one tensor also in words of its own."""
    if len(done.tensors) > 1:
        return done.to_json()
    (one,) = done.tensors
    own = {"file": one.file, "tensor": one.source_name or one.source_path}
    return {**own, "dtype": _numpy_name(one.dtype), "shape": list(one.shape), **done.to_json()}


def _what(done: Export) -> str:
    if len(done.tensors) > 1:
        return f"{text.count(len(done.tensors), 'tensor')} ({text.size(done.nbytes)})"
    (one,) = done.tensors
    name = text.visible(one.source_name or one.source_path)
    return f"{name} ({_numpy_name(one.dtype)} {list(one.shape)}, {text.size(one.nbytes)})"


def _where(done: Export, out: str) -> str:
    if len(done.files) == 1:
        return text.visible(out)
    return f"{text.count(len(done.files) - 1, 'file')} and their index in {text.visible(out)}"


def _numpy_name(dtype: str) -> str:
    return str(numpy_dtype(BY_NAME[dtype]))
