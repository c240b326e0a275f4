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

from collections.abc import Iterable, Mapping

from mstore.errors import FormatError, LimitExceededError, UnsafeInputError
from mstore.formats import zipdir
from mstore.formats.base import Finding, Format, WindowReader, quote, read_exactly
from mstore.formats.pickle_file import arrange_all, find_deeds, read_harmless
from mstore.formats.pickle_stack import new_account
from mstore.formats.shifting import cover_all, shifted
from mstore.formats.torch_findings import told
from mstore.formats.torch_storages import Place, arrange
from mstore.formats.torch_structure import find_tensors
from mstore.layout import ByteReader, Layout

_PICKLE = "/data.pkl"
_VERSIONS = ("/version", "/.data/version")
_SCRIPT = ("/constants.pkl", "/code/")
_PACKAGE = "/.data/extern_modules"
_BYTE_ORDERS = {b"little": False, b"big": True}
_SCRIPT_RUNS = "holds TorchScript code, which loading it runs"
_PACKAGE_RUNS = "holds Python code of torch.package, which loading it runs"

Members = Mapping[str, zipdir.Member]


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
            return first.endswith(_PICKLE.encode()) and first.count(b"/") == 1

    def layout(self, reader: ByteReader) -> Layout:
        """Every tensor of a known type; all that is no storage is opaque."""
        return self.examine(reader)[0]

    def examine(self, reader: ByteReader) -> tuple[Layout, str | None]:
        """The layout, and which tensors were not understood."""
        found = zipdir.read_members(reader)
        folder = _folder(found)
        if folder is None:
            raise FormatError("it has no pickle and version in one folder")
        if code := _code(found, folder):
            raise UnsafeInputError(f"it {code}")
        if twice := _twice(found):
            raise UnsafeInputError(f"it {twice}")
        members = {member.name: member for member in found}
        big_endian = _is_big_endian(reader, members, folder)
        member = members[folder + _PICKLE]
        pickled = _window(reader, member)
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
        if code := _code(found, folder):
            return [Finding("dangerous", code, folder)]
        if twice := _twice(found):
            return [Finding("dangerous", twice)]
        (member,) = (member for member in found if member.name == folder + _PICKLE)
        pickled = _window(reader, member)
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
        for end in (_PICKLE, _PACKAGE)
        if name.endswith(end) and "/" not in (folder := name.removesuffix(end))
        if any(folder + version in names for version in _VERSIONS)
    }
    return found.pop() if len(found) == 1 else None


def _code(members: Iterable[zipdir.Member], folder: str) -> str | None:
    """What an archive would run that is none of `torch.save`; None for one that is."""
    names = [member.name.lower() for member in members]
    folder = folder.lower()
    if any(name.startswith(folder + start) for name in names for start in _SCRIPT):
        return _SCRIPT_RUNS
    return _PACKAGE_RUNS if folder + _PACKAGE in names else None


def _twice(members: Iterable[zipdir.Member]) -> str | None:
    """What is wrong with an archive of which PyTorch may read another member than is read here.

    It finds members without regard to upper and lower case, by a search that ends at any of them.
    """
    names: set[bytes] = set()
    for member in members:
        # Of ASCII alone, as the C library of zip does it.
        lowered = member.name.encode("utf-8", "surrogatepass").lower()
        if lowered in names:
            return f"has two members of which PyTorch may read either: {quote(member.name)}"
        names.add(lowered)
    return None


def _is_big_endian(reader: ByteReader, members: Members, folder: str) -> bool:
    member = members.get(f"{folder}/byteorder")
    order = b"little" if member is None else _read(reader, member, 16)
    if order not in _BYTE_ORDERS:
        raise FormatError("its byte order is neither little nor big")
    return _BYTE_ORDERS[order]


def _read(reader: ByteReader, member: zipdir.Member, limit: int) -> bytes:
    """The content of a small stored member."""
    if member.size > limit:
        raise LimitExceededError(
            f"its member {quote(member.name)} has {member.size} bytes; at most {limit} are read"
        )
    window = _window(reader, member)
    return read_exactly(window, 0, window.size, quote(member.name))


def _window(reader: ByteReader, member: zipdir.Member) -> WindowReader:
    """The bytes of a stored member as a file of its own."""
    if member.method != zipdir.STORED:
        raise FormatError(f"its member {quote(member.name)} is compressed")
    return WindowReader(reader, member.data, member.size)


def _places(members: Iterable[zipdir.Member], folder: str) -> dict[str, Place]:
    """Where the storages are, by their keys."""
    return {
        member.name.removeprefix(folder): Place(
            member.data, member.size, "" if member.method == zipdir.STORED else "is compressed"
        )
        for member in members
        if member.name.startswith(folder)
    }
