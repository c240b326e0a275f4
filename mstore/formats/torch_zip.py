"""torch: what PyTorch's `torch.save` writes since version 1.6, a zip archive of stored members.

    <name>/data.pkl     the saved structure as a pickle, its tensors as views of storages
    <name>/byteorder    `little` or `big`; left out by old versions, which wrote little
    <name>/data/<key>   the bytes of one storage
    <name>/version      and a few more small ones

The pickle is read by `mstore.formats.pickle_walk`, which runs nothing; a file whose pickle would do
harm when loaded is refused. Each tensor is called by the
path to it in the saved structure, see `mstore.formats.torch_structure`:
`optimizer.state.3.exp_avg`. Where two names are the same, the later one gets `#2` after it. One
that has a storage for itself is a segment; all that share a storage or see only a part of it are
views, see `mstore.formats.torch_storages`. Elements of a file whose byte order is `big` are
big-endian for all types, as the machine that wrote it had them. Arrays of numpy and lists of floats
are in the pickle itself, and described as in files of pickles.

Left out, with a note that says so, are tensors whose type is no `DType` or that only code of
another library could build, and those that are the conjugate or negative of what is stored.

TorchScript is an archive of the same kind with code in it, and refused, and so is torch.package.
Source: torch/serialization.py and caffe2/serialize/inline_container.cc of PyTorch.
"""

from collections.abc import Iterable

from mstore.errors import FormatError, LimitExceededError, UnsafeInputError
from mstore.formats import zipdir
from mstore.formats.base import Finding, Format
from mstore.formats.pickle_file import arrange_all, find_deeds, read_harmless
from mstore.formats.pickle_stack import new_account
from mstore.formats.shifting import cover_all, shifted
from mstore.formats.torch_archive import (
    PACKAGE,
    PICKLE,
    code,
    is_big_endian,
    place,
    twice,
    window,
)
from mstore.formats.torch_findings import told
from mstore.formats.torch_storages import Place, arrange
from mstore.formats.torch_structure import find_tensors
from mstore.layout import ByteReader, Layout

_VERSIONS = ("/version", "/.data/version")


class TorchFormat(Format):
    """A file of `torch.save`, but for those of versions before 1.6, which are no zip archives."""

    name = "torch"

    def sniff(self, head: bytes, reader: ByteReader) -> bool:
        """A zip archive with a pickle and a version in one folder, or whose first is a pickle."""
        first = _first_name(head)
        if b"/" not in first:
            return False
        try:
            return _folder(zipdir.read_members(reader)) is not None
        except (FormatError, LimitExceededError):
            return first.endswith(PICKLE.encode()) and first.count(b"/") == 1

    def layout(self, reader: ByteReader) -> Layout:
        """Every tensor of a known type; all that is no storage is opaque."""
        return self.examine(reader)[0]

    def examine(self, reader: ByteReader) -> tuple[Layout, str | None]:
        """The layout, and which tensors were not understood."""
        found = zipdir.read_members(reader)
        folder = _folder(found)
        if folder is None:
            raise FormatError("it has no pickle and version in one folder")
        if harm := code(found, folder) or twice(found):
            raise UnsafeInputError(f"it {harm}")
        members = {member.name: member for member in found}
        big_endian = is_big_endian(reader, members.get(f"{folder}/byteorder"))
        member = members[folder + PICKLE]
        pickled = window(reader, member)
        pickles = read_harmless(pickled, new_account(reader.size))
        value = pickles.values[0]
        places = _places(found, f"{folder}/data/")
        tensors, left = arrange(find_tensors(value), places, big_endian=big_endian)
        arrays, left_too = arrange_all("pickle", pickled.size, value, pickles.inside)
        layout = cover_all(self.name, reader.size, [tensors, shifted(arrays, member.data, "")])
        return layout, "; ".join(note for note in (left, left_too) if note) or None

    def findings(self, reader: ByteReader) -> list[Finding]:
        """What the pickle names and calls, or that there is code of another kind."""
        found = zipdir.read_members(reader)
        if (folder := _folder(found)) is None:
            return []
        if runs := code(found, folder):
            return [Finding("dangerous", runs, folder)]
        if unclear := twice(found):
            return [Finding("dangerous", unclear)]
        (member,) = (member for member in found if member.name == folder + PICKLE)
        pickled = window(reader, member)
        return told(find_deeds(pickled, new_account(reader.size)), member.name)


def _first_name(head: bytes) -> bytes:
    """The name of the first member of a zip archive; empty if the file is none."""
    if not head.startswith(zipdir.MAGIC) or len(head) < 30:
        return b""
    return head[30 : 30 + int.from_bytes(head[26:28], "little")]


def _folder(members: Iterable[zipdir.Member]) -> str | None:
    """The one folder with a pickle and a version, or that of a package; None if there is none."""
    names = {member.name for member in members}
    found = {
        folder
        for name in names
        for end in (PICKLE, PACKAGE)
        if name.endswith(end) and "/" not in (folder := name.removesuffix(end))
        if any(folder + version in names for version in _VERSIONS)
    }
    return found.pop() if len(found) == 1 else None


def _places(members: Iterable[zipdir.Member], folder: str) -> dict[str, Place]:
    """Where the storages are, by their keys."""
    return {
        member.name.removeprefix(folder): place(member)
        for member in members
        if member.name.startswith(folder)
    }
