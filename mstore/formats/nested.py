"""zip: any other archive, in which some members are files of a known format.

A stored member that is such a file is described as that, through a window, and so on in archives
in archives. Its tensors are called by the member and by their own name: `a/model.safetensors/w`.
An npy file is called as in npz files: by the member without `.npy`, and it may be deflated, too.
Other compressed members are opaque; only their first bytes are inflated, to tell which are files
of a known format.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from mstore.errors import FormatError, LimitExceededError, UnsafeInputError
from mstore.formats import zipdir
from mstore.formats.base import (
    HEAD_SIZE,
    BytesReader,
    Finding,
    Format,
    WindowReader,
    quote,
)
from mstore.formats.deflated import InflatedHead
from mstore.formats.held import Held, inside, judge_all
from mstore.formats.npy import Headers
from mstore.formats.npz import SUFFIX, member_findings, read_member
from mstore.formats.shifting import Contents, cover_all, shifted
from mstore.layout import ByteReader, Layout

MAX_DEPTH = 4
"""Most archives in each other."""

MAX_MEMBERS = 20_000
"""Most members of all archives in each other together; those of formats that are archives count."""

MAX_FILES = 1000
"""Most members that are looked into as files of a known format."""

MAX_HEADS = 1000
"""Most compressed members of which the first bytes are inflated."""

_MAX_TOLD = 2
_COSTS = {"hdf5": 20, "keras": 20}  # as many as that count those that take a process of their own


@dataclass(frozen=True, slots=True)
class _Array:
    """An npy file in an archive; `offset` is that of the archive."""

    path: str
    archive: ByteReader
    member: zipdir.Member
    offset: int


@dataclass(frozen=True, slots=True)
class _Compressed:
    """A file of a known format in an archive, of which nothing more is known."""

    path: str
    format: Format


_Entry = Held | _Array | _Compressed


class ZipFormat(Format):
    """An archive with at least one member of a known format besides npy."""

    name = "zip"

    def __init__(self, formats: Callable[[], Sequence[Format]]) -> None:
        """`formats` gives all that are known, this one among them."""
        self._formats = formats

    def sniff(self, head: bytes, reader: ByteReader) -> bool:
        """A sound archive with a member that another format knows, or with too deep ones only."""
        if not head.startswith(zipdir.MAGIC):
            return False
        walk = self._walk(reader)
        empty = True
        try:
            for one in walk.files():
                if not isinstance(one, _Array):
                    return True
                empty = False
        except (FormatError, LimitExceededError):
            return False
        return empty and walk.too_deep

    def layout(self, reader: ByteReader) -> Layout:
        """The tensors of all members that are understood."""
        return self.examine(reader)[0]

    def examine(self, reader: ByteReader) -> tuple[Layout, str | None]:
        """The layout, and which members are not understood."""
        walk = self._walk(reader)
        notes: list[str] = []
        headers = Headers()

        def parts() -> Iterator[Contents]:
            empty = True
            for one in walk.files():
                empty = False
                contents, note = _describe(one, headers)
                if note:
                    notes.append(f"{quote(one.path)} {note}")
                yield contents
            if empty and walk.too_deep:
                raise LimitExceededError(f"it has more than {MAX_DEPTH} archives in each other")

        layout = cover_all(self.name, reader.size, parts())
        if walk.compressed:
            notes.append(f"opaque bytes for {walk.compressed} compressed members")
        if walk.left_out:
            notes.append(f"{walk.left_out} members are too many or too deep to be looked into")
        more = [f"and {len(notes) - _MAX_TOLD} more"] if len(notes) > _MAX_TOLD else []
        note = "; ".join(notes[:_MAX_TOLD] + more)
        return layout, note or None

    def findings(self, reader: ByteReader) -> list[Finding]:
        """What loading its members one by one would do.

        Raises the error of a member that cannot be judged, if none is known to be dangerous.
        """
        walk = self._walk(reader)
        headers = Headers()
        found = judge_all(walk.files(), lambda one: _findings(one, headers))
        if walk.left_out:
            what = f"has {walk.left_out} members that are too many or too deep to be looked into"
            found.append(Finding("unknown", what))
        return found

    def _walk(self, reader: ByteReader) -> "_Walk":
        return _Walk(self._formats(), reader)


class _Walk:
    """Goes through an archive and those in it, and counts what is left out."""

    def __init__(self, formats: Sequence[Format], reader: ByteReader) -> None:
        self.compressed = 0
        self.left_out = 0
        self.too_deep = False
        self._formats = formats
        self._reader = reader
        self._members = MAX_MEMBERS
        self._files = MAX_FILES
        self._heads = MAX_HEADS

    def files(self) -> Iterator[_Entry]:
        """The files of known formats in the archive and in those in it.

        Raises FormatError and LimitExceededError when the outermost is malformed or too large.
        """
        self._charge(self._reader)
        yield from self._archive(self._reader, "", 0, 1)

    def _archive(self, reader: ByteReader, path: str, offset: int, depth: int) -> Iterator[_Entry]:
        """Those in the archive that `reader` reads, which lies at `offset` of the outermost."""
        for member in zipdir.read_members(reader):
            inner = f"{path}/{member.name}" if path else member.name
            if not member.size:
                continue
            if member.name.endswith(SUFFIX):
                yield _Array(inner.removesuffix(SUFFIX), reader, member, offset)
            elif member.method != zipdir.STORED:
                self.compressed += 1
                yield from self._compressed(reader, member, inner)
            else:
                window = WindowReader(reader, member.data, member.size)
                yield from self._file(window, inner, offset + member.data, depth)

    def _file(self, window: WindowReader, path: str, offset: int, depth: int) -> Iterator[_Entry]:
        """What a stored member holds."""
        head = window.read(0, HEAD_SIZE)
        if head.startswith(zipdir.MAGIC):
            try:
                self._charge(window)
            except LimitExceededError:
                self.left_out += 1
                return
            except FormatError:
                pass  # its own format, if it has one, says what is wrong
        for known in self._formats:
            if known.name == ZipFormat.name:
                found = self._inner_archive(window, head, path, offset, depth)
                if found:
                    yield from found
                    return
            elif known.sniff(head, window):
                self._files -= _COSTS.get(known.name, 1)
                if self._files < 0:
                    self.left_out += 1
                else:
                    yield Held(path, known, window, offset)
                return

    def _inner_archive(
        self, window: WindowReader, head: bytes, path: str, offset: int, depth: int
    ) -> list[_Entry]:
        """What an archive in an archive holds; nothing if it is none of this format."""
        if not head.startswith(zipdir.MAGIC):
            return []
        if depth == MAX_DEPTH:
            self.left_out += 1
            self.too_deep = True
            return []
        try:
            found = list(self._archive(window, path, offset, depth + 1))
        except (FormatError, LimitExceededError):
            return []
        return found if any(not isinstance(one, _Array) for one in found) else []

    def _compressed(
        self, reader: ByteReader, member: zipdir.Member, path: str
    ) -> list[_Compressed]:
        """A compressed member, if its first bytes look like a file of a known format."""
        self._heads -= 1
        if self._heads < 0:
            return []
        try:
            head = InflatedHead(reader, member).read(0, HEAD_SIZE)
        except (FormatError, LimitExceededError):
            return []
        known = (one for one in self._formats if one.name != ZipFormat.name)
        alone = BytesReader(head)
        return [_Compressed(path, one) for one in known if one.sniff(head, alone)][:1]

    def _charge(self, reader: ByteReader) -> None:
        """Count the members of an archive before they are read."""
        self._members -= zipdir.count_members(reader)
        if self._members < 0:
            raise LimitExceededError(f"it has more than {MAX_MEMBERS} members")


def _describe(one: _Entry, headers: Headers) -> tuple[Contents, str | None]:
    """The tensors of a file, by their places in the outermost archive, and what to tell of it."""
    if isinstance(one, Held):
        return one.described()
    if isinstance(one, _Compressed):
        return Contents(), f"looks like {one.format.name} but is compressed"
    try:
        found = read_member(one.archive, one.member, one.path, headers)
    except (FormatError, LimitExceededError, UnsafeInputError) as error:
        return Contents(), f"looks like npy but {error.message}"
    if isinstance(found, str):
        return Contents(), found or None
    # As a layout of its own it is moved like all others.
    part = cover_all("npy", one.archive.size, [found])
    return shifted(part, one.offset, ""), None


def _findings(one: _Entry, headers: Headers) -> list[Finding]:
    """What loading a file would do, by its place in the archive. Raises as `Held.findings`."""
    if isinstance(one, Held):
        return one.findings()
    if isinstance(one, _Compressed):
        return [Finding("unknown", f"looks like {one.format.name} but is compressed", one.path)]
    try:
        return inside(one.path, member_findings(one.archive, one.member, headers))
    except UnsafeInputError as error:
        return [Finding("dangerous", error.message, one.path)]
