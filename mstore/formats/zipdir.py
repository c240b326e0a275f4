"""The directory of a zip archive, read strictly, for the formats that are zip archives.

    local header (30 bytes + name + extra), data, perhaps a data descriptor   for each member
    central directory: for each member 46 bytes + name + extra + comment
    zip64 end record (56 bytes) and its locator (20), where a number needs more than 32 bits
    end record (22 bytes + comment), the last thing in the file

zip readers differ in what they trust: the central directory or the local headers, the first or the
last of two members with one name. So everything that is written twice must agree here, and members
must not share bytes. Nothing is inflated here, and checksums of the data are only compared with
each other, not computed: that would mean reading the data, and a file comes back byte for byte
whatever its checksums say. Source: PKWARE's APPNOTE 6.3.10, sections 4.3 to 4.5.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from mstore.errors import FormatError, LimitExceededError
from mstore.formats.base import quote, read_exactly
from mstore.formats.remembered import Remembered
from mstore.layout import ByteReader

MAGIC = b"PK\x03\x04"
"""Start of a local header, and so of every zip archive that is not empty."""

MAX_DIRECTORY = 64 * 1024 * 1024
"""Most bytes of a central directory; about 100 per member are usual."""

MAX_MEMBERS = 100_000
"""Most members in one archive."""

STORED, DEFLATED = 0, 8
"""The methods of compression that are accepted."""

_LOCAL = struct.Struct("<4s5H3I2H")
_CENTRAL = struct.Struct("<4s6H3I5H2I")
_END = struct.Struct("<4s4H2IH")
_END64 = struct.Struct("<4sQ2H2I4Q")
_LOCATOR = struct.Struct("<4sIQI")
_DESCRIPTOR_RECORD = struct.Struct("<3I")
_WIDE_DESCRIPTOR = struct.Struct("<I2Q")
_USUAL_EXTRA = 64  # bytes of extra fields that are read along
_FULL16, _FULL32 = 0xFFFF, 0xFFFFFFFF
_FULLS = _FULL16, _FULL16, _FULL32, _FULL32
_ENCRYPTED = 0x2041  # flag bits 0 (encrypted), 6 (strongly), 13 (directory masked)
_DESCRIPTOR = 0x0008  # sizes follow the data, and may be 0 in the local header
_UTF8 = 0x0800
_ZIP64 = 1
_UNICODE_PATH = 0x7075  # of Info-ZIP: another name, which some readers take instead


@dataclass(frozen=True, slots=True)
class Member:
    """One member: `compressed` bytes at `data` of the archive, `size` when inflated.

    `header` is the offset of its local header, `method` is `STORED` or `DEFLATED`.
    """

    name: str
    method: int
    header: int
    data: int
    compressed: int
    size: int


@dataclass(frozen=True, slots=True)
class _Entry:
    """One record of the central directory, zip64 values filled in."""

    raw_name: bytes
    flags: int
    method: int
    crc: int
    compressed: int
    size: int
    header: int


def read_members(reader: ByteReader) -> tuple[Member, ...]:
    """The members of a zip archive in the order in which they lie in the file.

    Raises FormatError for anything doubtful: records that disagree, members that overlap, names
    that are repeated or leave the archive's own folder, encryption, methods other than stored and
    deflated. Raises LimitExceededError for a directory of unreasonable size.
    """
    return _members(reader)


def count_members(reader: ByteReader) -> int:
    """How many members an archive claims to have; raises as `read_members`, but costs little."""
    return _find_directory(reader)[2]


def first_name(head: bytes) -> str:
    """The name of the first member, by the start of an archive; empty if it is none."""
    if not head.startswith(MAGIC) or len(head) < _LOCAL.size:
        return ""
    size = int.from_bytes(head[26:28], "little")
    return head[_LOCAL.size : _LOCAL.size + size].decode("utf-8", "replace")


def _read_members(reader: ByteReader) -> list[Member]:
    start, size, count = _find_directory(reader)
    if size > MAX_DIRECTORY or count > MAX_MEMBERS:
        raise LimitExceededError(f"its directory claims {count} members in {size} bytes")
    directory = read_exactly(reader, start, size, "its directory")
    members: list[Member] = []
    names: set[str] = set()
    free_from = 0
    for entry in sorted(_entries(directory, count), key=lambda entry: entry.header):
        member = _check_local(reader, entry, free_from, start)
        if member.name in names:
            raise FormatError(f"it has two members called {quote(member.name)}")
        names.add(member.name)
        members.append(member)
        free_from = member.data + member.compressed
    return members


def _find_directory(reader: ByteReader) -> tuple[int, int, int]:
    """Offset, size and member count of the central directory."""
    end_at = _find_end(reader)
    end = _END.unpack(read_exactly(reader, end_at, _END.size, "its end record"))
    _, disk, first_disk, here, count, size, start, _ = end
    directory_end = end_at
    narrow = here, count, size, start
    if here == _FULL16 or count == _FULL16 or _FULL32 in (size, start) or _has64(reader, end_at):
        directory_end, disk, first_disk, here, count, size, start = _read_end64(reader, end_at)
        # Some writers add the wide numbers always: those that fit must be the same in both.
        for full, number, wide in zip(_FULLS, narrow, (here, count, size, start), strict=True):
            if number not in (full, wide):
                raise FormatError("its two end records differ")
    if disk or first_disk or here != count:
        raise FormatError("it is one part of an archive in several files")
    if start + size != directory_end:
        raise FormatError("its directory is not where its end record says")
    return start, size, count


def _find_end(reader: ByteReader) -> int:
    """Offset of the end record: the one whose comment reaches exactly to the end of the file."""
    tail_start = max(0, reader.size - _END.size - _FULL16)
    tail = reader.read(tail_start, reader.size - tail_start)
    at = tail.rfind(b"PK\x05\x06")
    while at >= 0:
        comment = tail[at + 20 : at + 22]
        if at + _END.size + int.from_bytes(comment, "little") == len(tail) and len(comment) == 2:
            return tail_start + at
        at = tail.rfind(b"PK\x05\x06", 0, at)
    raise FormatError("it has no end record; the file may be cut short")


def _has64(reader: ByteReader, end_at: int) -> bool:
    """Whether a zip64 locator lies before the end record."""
    return end_at >= _LOCATOR.size and reader.read(end_at - _LOCATOR.size, 4) == b"PK\x06\x07"


def _read_end64(reader: ByteReader, end_at: int) -> tuple[int, int, int, int, int, int, int]:
    """Offset of the zip64 end record, then the numbers it holds for those of the end record."""
    if end_at < _LOCATOR.size + _END64.size:
        raise FormatError("its zip64 end record is missing")
    at = end_at - _LOCATOR.size
    magic, disk, offset, disks = _LOCATOR.unpack(
        read_exactly(reader, at, _LOCATOR.size, "its zip64 locator")
    )
    # The record has a fixed size in version 1, so it must lie just before its locator.
    if magic != b"PK\x06\x07" or disk or disks > 1 or offset != at - _END64.size:
        raise FormatError("its zip64 locator is malformed")
    record = _END64.unpack(read_exactly(reader, offset, _END64.size, "its zip64 end record"))
    magic, length, _, _, disk, first_disk, here, count, size, start = record
    if magic != b"PK\x06\x06" or length != _END64.size - 12:
        raise FormatError("its zip64 end record is malformed")
    return offset, disk, first_disk, here, count, size, start


def _entries(directory: bytes, count: int) -> Iterator[_Entry]:
    """The records of the central directory."""
    at = 0
    for _ in range(count):
        if at + _CENTRAL.size > len(directory):
            raise FormatError("its directory has fewer members than it claims")
        fields = _CENTRAL.unpack_from(directory, at)
        magic, _, _, flags, method, _, _, crc, compressed, size = fields[:10]
        name_size, extra_size, comment_size, disk, _, _, header = fields[10:]
        at += _CENTRAL.size
        raw_name = directory[at : at + name_size]
        extra = directory[at + name_size : at + name_size + extra_size]
        at += name_size + extra_size + comment_size
        if magic != b"PK\x01\x02" or disk or at > len(directory):
            raise FormatError("its directory is malformed")
        size, compressed, header = _widen(extra, [size, compressed, header])
        other = _extra_field(extra, _UNICODE_PATH)[5:]  # behind a version and a checksum
        if other not in (b"", raw_name) and (raw_name.isascii() or flags & _UTF8):
            raise FormatError("a member has two names")
        yield _Entry(raw_name, flags, method, crc, compressed, size, header)
    if at != len(directory):
        raise FormatError("its directory has more members than it claims")


def _widen(extra: bytes, numbers: list[int]) -> list[int]:
    """`numbers` with each that is all ones replaced by its value from the zip64 extra field."""
    wide = _extra_field(extra, _ZIP64)
    at = 0
    widened: list[int] = []
    for number in numbers:
        if number == _FULL32:
            if at + 8 > len(wide):
                raise FormatError("its zip64 field is too short")
            number = int.from_bytes(wide[at : at + 8], "little")
            at += 8
        widened.append(number)
    return widened


def _extra_field(extra: bytes, wanted: int) -> bytes:
    """The content of the one field of a kind among the extra fields; empty if there is none."""
    found: bytes | None = None
    at = 0
    while at + 4 <= len(extra):
        kind, size = struct.unpack_from("<2H", extra, at)
        if at + 4 + size > len(extra):
            raise FormatError("an extra field of a member is cut short")
        if kind == wanted:
            if found is not None:
                raise FormatError("a member has two extra fields of one kind")
            found = extra[at + 4 : at + 4 + size]
        at += 4 + size
    return found or b""


def _check_local(reader: ByteReader, entry: _Entry, free_from: int, end: int) -> Member:
    """The member of `entry`, whose bytes must lie in [free_from, end), by its local header too."""
    name = _decode_name(entry)
    if entry.flags & _ENCRYPTED:
        raise FormatError(f"its member {quote(name)} is encrypted")
    if entry.method not in (STORED, DEFLATED):
        raise FormatError(f"its member {quote(name)} is compressed by method {entry.method}")
    if entry.method == STORED and entry.compressed != entry.size:
        raise FormatError(f"its stored member {quote(name)} has two sizes")
    if entry.header < free_from:
        raise FormatError(f"its member {quote(name)} overlaps another")
    local = _read_local(reader, entry)
    fields = _LOCAL.unpack_from(local)
    magic, _, flags, method, _, _, crc, compressed, size, name_size, _ = fields
    variable = local[_LOCAL.size :]
    data = entry.header + len(local)
    if data + entry.compressed > end:
        raise FormatError(f"its member {quote(name)} reaches beyond the data")
    size, compressed = _widen(variable[name_size:], [size, compressed])
    found = (crc, compressed, size)
    agrees = found == (entry.crc, entry.compressed, entry.size)
    if not agrees and flags & _DESCRIPTOR and found == (0, 0, 0):
        agrees = _is_described(reader, data + entry.compressed, entry)
    same_kind = (magic, flags, method) == (MAGIC, entry.flags, entry.method)
    if not agrees or not same_kind or variable[:name_size] != entry.raw_name:
        raise FormatError(f"its member {quote(name)} differs from the directory's record of it")
    return Member(name, method, entry.header, data, entry.compressed, entry.size)


def _read_local(reader: ByteReader, entry: _Entry) -> bytes:
    """The local header, name and extra fields of a member, mostly in a single read."""
    guess = _LOCAL.size + len(entry.raw_name) + _USUAL_EXTRA
    local = reader.read(entry.header, guess)
    if len(local) < _LOCAL.size:
        raise FormatError("the file ends inside a local header")
    length = _LOCAL.size + sum(_LOCAL.unpack_from(local)[-2:])
    if length > guess:
        return read_exactly(reader, entry.header, length, "a local header")
    if length > len(local):
        raise FormatError("the file ends inside a local header")
    return local[:length]


def _is_described(reader: ByteReader, at: int, entry: _Entry) -> bool:
    """Whether the data descriptor behind a member says the same as the directory.

    It may begin with a mark, and its sizes may have four bytes or eight.
    """
    sizes = entry.compressed, entry.size
    raw = reader.read(at, 4 + _WIDE_DESCRIPTOR.size).removeprefix(b"PK\x07\x08")
    forms = [_WIDE_DESCRIPTOR.pack(entry.crc, *sizes)]
    if max(sizes) <= _FULL32:
        forms.append(_DESCRIPTOR_RECORD.pack(entry.crc, *sizes))
    return raw.startswith(tuple(forms))


def _decode_name(entry: _Entry) -> str:
    """The member's name; raises FormatError unless it is a plain path inside the archive."""
    try:
        name = entry.raw_name.decode("utf-8" if entry.flags & _UTF8 else "cp437")
    except UnicodeDecodeError:
        raise FormatError("a member's name is not UTF-8") from None
    # Two slashes in a row lead nowhere else, and are usual in names of parameters: "linear//w".
    leads_out = not name or name.startswith("/") or {".", ".."} & {*name.split("/")}
    if leads_out or any(mark in name for mark in "\0\\"):
        raise FormatError(f"its member {quote(name)} has an unsafe name")
    return name


_members = Remembered(lambda reader: tuple(_read_members(reader)))
