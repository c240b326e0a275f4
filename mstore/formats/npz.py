"""npz: numpy's zip of npy files, one for each array, stored or deflated.

Arrays are tensors named as numpy names them, by the member without `.npy`. Those in deflated
members are views: of such a member only the first bytes are inflated, for the header. Members that
hold Python objects or other types that are no `DType`, deflated ones of records, and members that
are no npy files stay opaque. Source: numpy.lib.npyio and the format section of numpy.lib.format.
"""

from collections.abc import Iterable, Iterator
from dataclasses import replace

from mstore.errors import FormatError, LimitExceededError, UnsafeInputError
from mstore.formats import zipdir
from mstore.formats.base import BytesReader, Finding, Format, WindowReader, quote
from mstore.formats.deflated import InflatedHead, inflate, recoded
from mstore.formats.notes import opaque_note
from mstore.formats.npy import Headers, contents, object_findings, read_array
from mstore.formats.records import Records
from mstore.formats.shifting import Contents, cover_all
from mstore.layout import ByteReader, Layout, View

SUFFIX = ".npy"
"""How the names of the members that hold arrays end."""

OBJECTS = "holds Python objects"
"""What `read_member` says of an array of Python objects."""

MAX_PICKLE = 16 << 20
"""Most bytes of objects that are inflated to judge them."""


class NpzFormat(Format):
    """A zip archive with at least one `.npy` member."""

    name = "npz"

    def sniff(self, head: bytes, reader: ByteReader) -> bool:
        """A zip whose first member, or whose directory, names an npy file."""
        if not (first := zipdir.first_name(head)):
            return False
        if first.endswith(SUFFIX):
            return True
        try:
            return any(_members(reader))
        except (FormatError, LimitExceededError):
            return False

    def layout(self, reader: ByteReader) -> Layout:
        """Every array; the rest of the archive is opaque."""
        return self.examine(reader)[0]

    def examine(self, reader: ByteReader) -> tuple[Layout, str | None]:
        """The layout, and which arrays are none that have an element type."""
        return cover_arrays(self.name, reader.size, read_arrays(reader, Headers()))

    def findings(self, reader: ByteReader) -> list[Finding]:
        """Arrays of Python objects, which are pickles, and what those do."""
        headers = Headers()
        return [
            replace(finding, where="/".join(filter(None, (member.name, finding.where))))
            for member in _members(reader)
            for finding in member_findings(reader, member, headers)
        ]


def _members(reader: ByteReader) -> Iterator[zipdir.Member]:
    return (m for m in zipdir.read_members(reader) if m.name.endswith(SUFFIX))


def read_arrays(reader: ByteReader, headers: Headers) -> Iterator[tuple[str, Contents | str]]:
    """What `read_member` says of each array of an npz file, with the member's name."""
    for member in _members(reader):
        name = member.name.removesuffix(SUFFIX)
        yield member.name, read_member(reader, member, name, headers)


def read_member(
    reader: ByteReader, member: zipdir.Member, name: str, headers: Headers
) -> Contents | str:
    """The array in a member that is an npy file, called `name`.

    A text instead when it stays opaque: why it does, or nothing where it holds text or dates.
    Raises FormatError and LimitExceededError as `Format.layout` does.
    """
    try:
        if member.method == zipdir.STORED:
            found = read_array(WindowReader(reader, member.data, member.size), name, headers)
        else:
            found = read_array(InflatedHead(reader, member), name, headers)
    except UnsafeInputError:
        # Python objects beside plain arrays are usual in npz files. Not describing them as
        # anything is as safe as refusing, and keeps the other arrays readable.
        return OBJECTS
    except (FormatError, LimitExceededError) as error:
        message = f"in its member {quote(member.name)}, {error.message}"
        raise type(error)(message) from None
    if isinstance(found, str):
        return found
    start, array = found
    if member.method == zipdir.STORED:
        return contents(array, member.data + start)
    if isinstance(array, Records):
        return "holds records and is compressed"
    if start + array.nbytes != member.size:
        raise FormatError(f"its member {quote(member.name)} holds more than its array")
    return Contents(views=(View(array, recoded(member, start)),))


def member_findings(reader: ByteReader, member: zipdir.Member, headers: Headers) -> list[Finding]:
    """What loading the npy file in a member would do. Raises as `read_member` does."""
    if read_member(reader, member, "", headers) != OBJECTS:
        return []
    if member.method == zipdir.STORED:
        return object_findings(WindowReader(reader, member.data, member.size))
    if member.size > MAX_PICKLE:
        raise LimitExceededError(f"its member {quote(member.name)} holds too many objects")
    return object_findings(BytesReader(inflate(reader, member)))


def cover_arrays(
    format: str,  # noqa: A002
    size: int,
    arrays: Iterable[tuple[str, Contents | str]],
) -> tuple[Layout, str | None]:
    """The layout of an archive of arrays, which are given as `read_member` does, each with a name
    for messages; and what to tell of those that stay opaque.

    Raises as `cover_all` does, to which each array goes as soon as it is read.
    """
    seen = 0
    left: list[tuple[str, str]] = []

    def parts() -> Iterator[Contents]:
        nonlocal seen
        for name, found in arrays:
            if isinstance(found, Contents):
                seen += 1
                yield found
            elif found:
                left.append((name, found))

    layout = cover_all(format, size, parts())
    return layout, opaque_note(left, seen + len(left), "arrays")
