"""What the archives of PyTorch have in common: those of `torch.save` and of `torch.export.save`.

All are zip archives whose members lie in one folder. PyTorch finds a member by its path in that
folder without regard to upper and lower case, by a search that ends at any of those that fit.
Source: caffe2/serialize/inline_container.cc of PyTorch.
"""

from collections.abc import Iterable

from mstore.errors import FormatError, LimitExceededError
from mstore.formats import zipdir
from mstore.formats.base import WindowReader, quote, read_exactly
from mstore.formats.torch_storages import Place
from mstore.layout import ByteReader

PICKLE = "/data.pkl"
"""Behind the folder: the pickle of `torch.save`."""

PACKAGE = "/.data/extern_modules"
"""Behind the folder: what only an archive of torch.package has."""

_SCRIPT = ("/constants.pkl", "/code/")
_BYTE_ORDERS = {b"little": False, b"big": True}
_SCRIPT_RUNS = "holds TorchScript code, which loading it runs"
_PACKAGE_RUNS = "holds Python code of torch.package, which loading it runs"


def folded(name: str) -> str:
    """The name that all have which PyTorch takes for the same; only ASCII is lowered, as in C."""
    return name.encode("utf-8", "surrogatepass").lower().decode("utf-8", "surrogatepass")


def code(members: Iterable[zipdir.Member], folder: str) -> str | None:
    """What an archive would run that has code in it; None for one that has none."""
    names = [folded(member.name) for member in members]
    folder = folded(folder)
    if any(name.startswith(folder + start) for name in names for start in _SCRIPT):
        return _SCRIPT_RUNS
    return _PACKAGE_RUNS if folder + PACKAGE in names else None


def twice(members: Iterable[zipdir.Member]) -> str | None:
    """What is wrong with an archive of which PyTorch may read another member than is read here."""
    names: set[str] = set()
    for member in members:
        lowered = folded(member.name)
        if lowered in names:
            return f"has two members of which PyTorch may read either: {quote(member.name)}"
        names.add(lowered)
    return None


def is_big_endian(reader: ByteReader, member: zipdir.Member | None) -> bool:
    """Whether the machine that wrote an archive was, by its member `byteorder`, if it has one.

    Raises FormatError, LimitExceededError if that says neither.
    """
    order = b"little" if member is None else read_small(reader, member, 16)
    if order not in _BYTE_ORDERS:
        raise FormatError("its byte order is neither little nor big")
    return _BYTE_ORDERS[order]


def read_small(reader: ByteReader, member: zipdir.Member, limit: int) -> bytes:
    """The content of a stored member of at most `limit` bytes.

    Raises LimitExceededError for one of more, FormatError for a compressed one.
    """
    if member.size > limit:
        raise LimitExceededError(
            f"its member {quote(member.name)} has {member.size} bytes; at most {limit} are read"
        )
    inside = window(reader, member)
    return read_exactly(inside, 0, inside.size, quote(member.name))


def window(reader: ByteReader, member: zipdir.Member) -> WindowReader:
    """The bytes of a stored member as a file of its own; FormatError for a compressed one."""
    if member.method != zipdir.STORED:
        raise FormatError(f"its member {quote(member.name)} is compressed")
    return WindowReader(reader, member.data, member.size)


def place(member: zipdir.Member) -> Place:
    """Where a member is, as a storage."""
    why = "" if member.method == zipdir.STORED else "is compressed"
    return Place(member.data, member.size, why)
