"""torch: what `torch.save` wrote before version 1.6, and still does if it is told to.

    pickle of the number 0x1950a86a20f9469cfc6c
    pickle of the version, 1001
    pickle of what kind of machine wrote it
    pickle of the saved structure, as in the zip archives of `mstore.formats.torch_zip`
    pickle of the list of the keys of the storages
    for each key: the number of elements as i64, then the elements, all little-endian

Tensors are called and described as they are of those archives. Still older files are refused, see
`mstore.formats.torch_tar`. Source: `_legacy_save`, `_legacy_load` in
torch/serialization.py and torch/csrc/serialization.cpp of PyTorch.
"""

import re
from collections.abc import Iterator, Sequence

from mstore.errors import FormatError, LimitExceededError, UnsafeInputError
from mstore.formats import torch_tar
from mstore.formats.base import HEAD_SIZE, Finding, Format, quote, read_exactly
from mstore.formats.pickle_arguments import Arguments
from mstore.formats.pickle_file import Deed, arrange_all, deeds, refuse_harm
from mstore.formats.pickle_stack import Account, new_account
from mstore.formats.pickle_torch import Inside, look_inside
from mstore.formats.remembered import Kept
from mstore.formats.shifting import cover_all, shifted
from mstore.formats.torch_findings import told
from mstore.formats.torch_storages import Place, arrange
from mstore.formats.torch_stream import MAGIC, Stream, read_stream
from mstore.formats.torch_structure import find_tensors
from mstore.formats.torch_tensors import Use
from mstore.layout import ByteReader, Layout

_BINARY = re.escape(b"\x8a\x0a" + MAGIC.to_bytes(10, "little") + b".")
_TEXT = f"L{MAGIC}L\n".encode() + rb"\."
_START = re.compile(rb"\x80[\x02-\x05](?:\x95.{8})?" + _BINARY + b"|" + _TEXT, re.DOTALL)
_REFUSED = (FormatError, LimitExceededError, UnsafeInputError)
_HARMLESS: Kept[list[Deed]] = Kept()  # what files would do that have been described


class TorchLegacyFormat(Format):
    """A file of `torch.save` that is no zip archive."""

    name = "torch"

    def sniff(self, head: bytes, reader: ByteReader) -> bool:
        """A pickle of torch's magic number, or a tar archive of its three files."""
        return _START.match(head) is not None or torch_tar.is_tar(head, reader)

    def layout(self, reader: ByteReader) -> Layout:
        """Every tensor of a known type; all that is no storage is opaque."""
        return self.examine(reader)[0]

    def examine(self, reader: ByteReader) -> tuple[Layout, str | None]:
        """The layout, and which tensors were not understood."""
        if torch_tar.is_tar(reader.read(0, HEAD_SIZE), reader):
            raise UnsafeInputError(f"it {torch_tar.RUNS}")
        account = new_account(reader.size)
        try:
            stream, inside = _read(reader, account)
        except _REFUSED:
            refuse_harm(account)
            raise
        _HARMLESS.keep(reader, refuse_harm(account))
        uses = find_tensors(stream.value)
        places = dict(_places(reader, uses, stream.keys, stream.end))
        tensors, left = arrange(uses, places, big_endian=False)
        arrays, left_too = arrange_all(self.name, reader.size, stream.value, inside)
        layout = cover_all(self.name, reader.size, [tensors, shifted(arrays, 0, "")])
        return layout, "; ".join(note for note in (left, left_too) if note) or None

    def findings(self, reader: ByteReader) -> list[Finding]:
        """What the pickles name and call."""
        if torch_tar.is_tar(reader.read(0, HEAD_SIZE), reader):
            return [Finding("dangerous", torch_tar.RUNS)]
        if (known := _HARMLESS.get(reader)) is not None:
            return told(known)
        account = new_account(reader.size)
        try:
            _read(reader, account)
        except _REFUSED:
            if not any(deed.danger == "dangerous" for deed in deeds(account)):
                raise
        return told(deeds(account))


def _read(reader: ByteReader, account: Account) -> tuple[Stream, Inside]:
    """The pickles of a file, and what is inside of them. Raises as both do that read them."""
    return read_stream(Arguments(reader), account), look_inside(reader, account)


def _places(
    reader: ByteReader, uses: Sequence[Use], keys: Sequence[str], at: int
) -> Iterator[tuple[str, Place]]:
    """The storages by their keys, the first of which starts at `at`."""
    storages = {use.storage.key: use.storage for use in uses}
    if len(set(keys)) != len(keys):
        raise FormatError("it names a storage twice")
    for key in keys:
        storage = storages.get(key)
        if storage is None or storage.nbytes is None:
            raise FormatError(f"the size of its storage {quote(key)} is unknown")
        head = read_exactly(reader, at, 8, "the size of a storage")
        item = storage.dtype.itemsize if storage.dtype else 1
        if int.from_bytes(head, "little", signed=True) * item != storage.nbytes:
            raise FormatError(f"its storage {quote(key)} has two sizes")
        at += 8
        if storage.nbytes > reader.size - at:
            raise FormatError(f"the file ends inside its storage {quote(key)}")
        yield key, Place(at, storage.nbytes)
        at += storage.nbytes
