"""`mstore export`."""

import io
import os
from collections.abc import Callable
from difflib import get_close_matches
from pathlib import Path

import click
import numpy as np

from mstore.arrayfile import pack_arrays
from mstore.cli import output, text
from mstore.cli.failures import Misuse
from mstore.cli.invocation import Invocation, command, complete_revision
from mstore.errors import ConflictError, InvalidInputError, NotFoundError
from mstore.ids import Buffer
from mstore.numpy_dtypes import ML_DTYPES, Array, bytes_of, little_endian
from mstore.snapshot import Snapshot
from mstore.storage.files import FILES
from mstore.tensors import TensorView


@command(
    "export",
    examples="""
mstore export main --tensor encoder.layer.0.weight -o weight.npy
mstore export v1.0 --tensor lm_head.weight -o head.safetensors
""",
)
@click.argument("revision", metavar="REV", shell_complete=complete_revision)
@click.option("--tensor", metavar="NAME", required=True, help="The tensor, as `show` names it.")
@click.option(
    "-o", "--output", "out", metavar="FILE", required=True, help="A .npy or .safetensors file."
)
@click.option("-f", "--force", is_flag=True, help="Overwrite FILE if it is there.")
def export(call: Invocation, revision: str, tensor: str, out: str, force: bool) -> None:
    """Write one tensor to a .npy or .safetensors file.

    Where two files of the version have tensors of one name, call it PATH:NAME.
    """
    target = Path(out)
    if target.suffix not in _FORMATS:
        raise Misuse(f"{out} is neither .npy nor .safetensors", hint="the suffix says the format")
    if not force and os.path.lexists(target):
        raise ConflictError(f"{out} is there already", hint="overwrite it with --force")
    view = _find(Snapshot(call.db, call.resolve(revision)), tensor)
    parts = _FORMATS[target.suffix](view.name or Path(view.path).stem, view.numpy())
    with FILES.temporary(target.parent, parts) as temporary:
        FILES.rename(temporary, target)
    FILES.fsync_dir(target.parent)
    shape = list(view.shape)
    if call.json:
        output.document({"file": out, "tensor": tensor, "dtype": str(view.dtype), "shape": shape})
        return
    call.note(
        f"wrote {text.visible(tensor)} ({view.dtype} {shape}, {text.size(view.nbytes)}) "
        f"to {text.visible(out)}"
    )


def _find(snapshot: Snapshot, name: str) -> TensorView:
    try:
        return snapshot.tensors[name]
    except NotFoundError:
        close = get_close_matches(name, snapshot.tensors, n=3, cutoff=0.5)
        hint = (
            f"nearest names: {', '.join(close)}"
            if close
            else f"see: mstore show {snapshot.id[:12]} --tensors"
        )
        raise NotFoundError(f"there is no tensor {name!r} in this version", hint=hint) from None


def _npy(_: str, array: Array) -> list[Buffer]:
    """The parts of a .npy file; raises InvalidInputError for types that it cannot name."""
    if array.dtype.newbyteorder("=") in ML_DTYPES.values():
        raise InvalidInputError(
            f".npy files have no element type {array.dtype}", hint="use a .safetensors file"
        )
    header = io.BytesIO()
    array = np.require(array, requirements="C")
    np.lib.format.write_array_header_1_0(header, np.lib.format.header_data_from_array_1_0(array))
    return [header.getvalue(), bytes_of(array)]


def _safetensors(name: str, array: Array) -> list[Buffer]:
    """The parts of a .safetensors file; raises InvalidInputError for types it cannot name."""
    # Not ascontiguousarray, which would give an array of no axes one.
    plain = np.require(array.astype(little_endian(array.dtype)), requirements="C")
    packed = pack_arrays({name: plain}, {})
    return [packed.header, *packed.buffers]


_FORMATS: dict[str, Callable[[str, Array], list[Buffer]]] = {
    ".npy": _npy,
    ".safetensors": _safetensors,
}
