"""npz: numpy's zip of npy files, one for each array, stored or deflated.

Arrays in stored members are tensors named as numpy names them, by the member without `.npy`.
Deflated members, members that hold Python objects or other types that are no `DType`, and members
that are no npy files stay opaque.
"""

import re

from mstore.errors import FormatError, LimitExceededError, UnsafeInputError
from mstore.formats import zipdir
from mstore.formats.base import Format, WindowReader, quote
from mstore.formats.npy import read_array
from mstore.layout import ByteReader, Layout, Tensor, cover

_SUFFIX = ".npy"
_FIRST_IS_ARRAY = re.compile(rb"PK\x03\x04.{22}(?P<size>..)..", re.DOTALL)


class NpzFormat(Format):
    """A zip archive with at least one `.npy` member."""

    name = "npz"

    def sniff(self, head: bytes, reader: ByteReader) -> bool:
        """A zip whose first member, or whose directory, names an npy file."""
        match = _FIRST_IS_ARRAY.match(head)
        if match is None:
            return False
        name_end = match.end() + int.from_bytes(match["size"], "little")
        if head[match.end() : name_end].endswith(_SUFFIX.encode()):
            return True
        try:
            return any(member.name.endswith(_SUFFIX) for member in zipdir.read_members(reader))
        except (FormatError, LimitExceededError):
            return False

    def layout(self, reader: ByteReader) -> Layout:
        """Every array in a stored member; the rest of the archive is opaque."""
        tensors: list[tuple[int, Tensor]] = []
        for member in zipdir.read_members(reader):
            if member.name.endswith(_SUFFIX) and member.method == zipdir.STORED:
                tensors += _read_member(reader, member)
        return cover(self.name, reader.size, tensors)


def _read_member(reader: ByteReader, member: zipdir.Member) -> list[tuple[int, Tensor]]:
    """The array in a stored member, or nothing if it is to stay opaque."""
    window = WindowReader(reader, member.data, member.size)
    try:
        found = read_array(window, member.name.removesuffix(_SUFFIX))
    except UnsafeInputError:
        # Python objects beside plain arrays are usual in npz files. Not describing them as
        # anything is as safe as refusing, and keeps the other arrays readable.
        return []
    except (FormatError, LimitExceededError) as error:
        message = f"in its member {quote(member.name)}, {error.message}"
        raise type(error)(message) from None
    if found is None:
        return []
    start, tensor = found
    return [(member.data + start, tensor)]
