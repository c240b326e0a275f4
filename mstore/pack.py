"""Packs: one immutable stored object holding many self-describing encoded records.

A pack is a 16-byte header and then records, each a fixed header, the base's id if the codec
needs one, and the payload. Everything an index knows of a record stands in the record too, so an
index can always be rebuilt from packs alone. Byte by byte: `docs/format.md`.
"""

import math
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import xxhash

from mstore.errors import CorruptDataError, UnsupportedVersionError
from mstore.ids import ID_SIZE, Buffer, Id, Kind
from mstore.storage.base import Storage

PACK_VERSION = 1
_PACK_MAGIC = b"MSTOREPK"
_PACK_HEADER = struct.Struct("<8sHHI")
PACK_HEADER_SIZE = _PACK_HEADER.size

_RECORD_MAGIC = b"mREC"
_RECORD = struct.Struct("<4sBBBBIIQ32sfI")
RECORD_HEADER_SIZE = _RECORD.size
_CHECKED = RECORD_HEADER_SIZE - 4


class Entry(NamedTuple):
    """Where one record lies and what is needed to read it; what an index holds of it.

    `offset` is where the record (its header) starts in pack `pack`; `stored` the bytes of its
    payload and `raw` those of what it encodes; `dtype` the `DType.code` it was encoded as (0:
    opaque); `depth` one more than that of the record of its `base`, 0 when it has none;
    `energy` the sum of squares of its elements, NaN when not known.
    """

    id: Id
    kind: int
    pack: str
    offset: int
    stored: int
    raw: int
    codec: int
    dtype: int = 0
    depth: int = 0
    base: Id | None = None
    energy: float = math.nan

    @property
    def record_size(self) -> int:
        """Bytes of the whole record in its pack: header, base id and payload."""
        return record_size(self.stored, self.depth)


@dataclass(frozen=True, slots=True)
class Record:
    """One encoded thing before it has a place in a pack; fields as in `Entry`.

    `checksum` is XXH3-64 of the raw bytes.
    """

    id: Id
    kind: int
    codec: int
    raw: int
    checksum: int
    payload: Buffer
    dtype: int = 0
    energy: float = math.nan
    depth: int = 0
    base: Id | None = None

    @property
    def stored(self) -> int:
        """Bytes of the payload."""
        return len(self.payload)


class Payload(NamedTuple):
    """A record read back: its index entry, the checksum of its raw bytes, and its payload."""

    entry: Entry
    checksum: int
    payload: memoryview


def record_size(stored: int, depth: int) -> int:
    """Bytes of a whole record: header, base id where the depth is not 0, and payload."""
    return RECORD_HEADER_SIZE + (ID_SIZE if depth else 0) + stored


def pack_key(name: str) -> str:
    """The storage key of the pack called `name` ("d…" holds chunks, "m…" metadata)."""
    return f"packs/{name}"


def new_pack_name(kind: Kind) -> str:
    """A name never used before; random, so that no two writers meet."""
    return ("m" if kind.is_metadata else "d") + os.urandom(16).hex()


class PackWriter:
    """Collects records in memory until the pack is big enough to be stored as one object."""

    def __init__(self, kind: Kind) -> None:
        self.name = new_pack_name(kind)
        self.entries: list[Entry] = []
        self.parts: list[Buffer] = [_pack_header(kind.is_metadata)]
        self.size = PACK_HEADER_SIZE

    def append(self, record: Record) -> Entry:
        """Add a record; its entry names the place it will have. Buffers are kept, not copied."""
        entry = Entry(
            record.id,
            record.kind,
            self.name,
            self.size,
            record.stored,
            record.raw,
            record.codec,
            record.dtype,
            record.depth,
            record.base,
            record.energy,
        )
        self.parts.append(encode_header(entry, record.checksum))
        self.parts.append(record.payload)
        self.size += entry.record_size
        self.entries.append(entry)
        return entry

    def append_stored(self, payload: Payload) -> Entry:
        """Add a record of another pack as it is, without decoding it."""
        entry = payload.entry._replace(pack=self.name, offset=self.size)
        self.parts.append(encode_header(entry, payload.checksum))
        self.parts.append(bytes(payload.payload))
        self.size += entry.record_size
        self.entries.append(entry)
        return entry


def encode_header(entry: Entry, checksum: int) -> bytes:
    """The bytes that stand before a record's payload."""
    head = _RECORD.pack(
        _RECORD_MAGIC,
        entry.kind,
        entry.codec,
        entry.dtype,
        entry.depth,
        entry.stored,
        entry.raw,
        checksum,
        entry.id,
        entry.energy,
        0,
    )[:_CHECKED]
    base = entry.base or b""
    return head + _low32(head + base).to_bytes(4, "little") + base


def decode_record(data: memoryview, pack: str, offset: int) -> Payload:
    """The record whose bytes start at `data[0]`; `data` may go on beyond it.

    Raises CorruptDataError when the header is damaged or the record is cut short.
    """
    where = f"pack {pack} at byte {offset}"
    if len(data) < RECORD_HEADER_SIZE:
        raise CorruptDataError(f"{where}: the record is cut short")
    fields = _RECORD.unpack_from(data)
    magic, kind, codec, dtype, depth, stored, raw, checksum, identifier, energy, check = fields
    start = RECORD_HEADER_SIZE + (ID_SIZE if depth else 0)
    base = bytes(data[RECORD_HEADER_SIZE:start])
    if magic != _RECORD_MAGIC or check != _low32(bytes(data[:_CHECKED]) + base):
        raise CorruptDataError(f"{where}: the record's header is damaged")
    if len(data) < start + stored:
        raise CorruptDataError(f"{where}: the record is cut short")
    entry = Entry(
        identifier, kind, pack, offset, stored, raw, codec, dtype, depth, base or None, energy
    )
    return Payload(entry, checksum, data[start : start + stored])


def read_record(storage: Storage, entry: Entry) -> Payload:
    """Read the record that `entry` tells of and check that it is the one meant.

    Raises NotFoundError when the pack is gone and CorruptDataError when the record is damaged.
    """
    data = storage.get(pack_key(entry.pack), entry.offset, entry.record_size)
    return check_record(decode_record(memoryview(data), entry.pack, entry.offset), entry)


def check_record(found: Payload, entry: Entry) -> Payload:
    """`found`, if it is the record that `entry` tells of; raises CorruptDataError if not."""
    seen = found.entry
    if (seen.id, seen.kind, seen.stored, seen.raw, seen.depth, seen.base) != (
        entry.id,
        entry.kind,
        entry.stored,
        entry.raw,
        entry.depth,
        entry.base,
    ):
        raise CorruptDataError(
            f"pack {entry.pack} at byte {entry.offset}: another record than the index says"
        )
    if seen.base is not None and seen.kind != Kind.CHUNK:
        raise CorruptDataError(f"pack {entry.pack} at byte {entry.offset}: only chunks have bases")
    return found


def check_raw(entry: Entry, checksum: int, raw: Buffer) -> None:
    """Raise CorruptDataError unless `raw` has the record's length and XXH3-64 checksum."""
    if len(raw) != entry.raw or xxhash.xxh3_64_intdigest(raw) != checksum:
        raise CorruptDataError(
            f"{Kind(entry.kind).name.lower()} {entry.id.hex()[:12]} in pack {entry.pack} at byte "
            f"{entry.offset} is damaged"
        )


def scan(storage: Storage, name: str, window: int = 32 << 20) -> Iterator[Payload]:
    """Every record of the pack `name`, in order, reading `window` bytes at a time.

    Raises CorruptDataError at the first damage, after yielding the records before it, and
    UnsupportedVersionError when the pack is of a newer format. Bounded memory: one window, or
    one record where that is larger.
    """
    key, window = pack_key(name), max(window, RECORD_HEADER_SIZE)
    check_pack_header(storage.get(key, 0, PACK_HEADER_SIZE), name)
    offset = PACK_HEADER_SIZE
    while data := memoryview(storage.get(key, offset, window)):
        used = 0
        while len(data) - used >= RECORD_HEADER_SIZE:
            size = _size_at(data[used:])
            if used + size > len(data):
                break
            yield (found := decode_record(data[used:], name, offset + used))
            used += found.entry.record_size
        if used == 0:
            # One record larger than the window, or the end of a damaged pack.
            data = memoryview(storage.get(key, offset, _size_at(data)))
            found = decode_record(data, name, offset)
            yield found
            used = found.entry.record_size
        offset += used


def _size_at(data: memoryview) -> int:
    if len(data) < RECORD_HEADER_SIZE:
        return RECORD_HEADER_SIZE
    return record_size(stored=int.from_bytes(data[8:12], "little"), depth=data[7])


def _pack_header(metadata: bool) -> bytes:
    head = _PACK_HEADER.pack(_PACK_MAGIC, PACK_VERSION, int(metadata), 0)[:-4]
    return head + _low32(head).to_bytes(4, "little")


def check_pack_header(data: bytes, name: str) -> None:
    """Check the first PACK_HEADER_SIZE bytes of the pack `name`.

    Raises CorruptDataError, or UnsupportedVersionError when the pack is of a newer format.
    """
    if len(data) < PACK_HEADER_SIZE or not data.startswith(_PACK_MAGIC):
        raise CorruptDataError(f"pack {name} does not start as a pack does")
    _, version, metadata, check = _PACK_HEADER.unpack(data)
    if check != _low32(data[:-4]):
        raise CorruptDataError(f"pack {name}: the header is damaged")
    if version > PACK_VERSION:
        raise UnsupportedVersionError(
            f"pack {name} is of format {version}, newer than this mstore reads",
            hint="upgrade mstore",
        )
    if bool(metadata) != name.startswith("m"):
        raise CorruptDataError(f"pack {name} holds another kind of records than its name says")


def _low32(data: Buffer) -> int:
    return xxhash.xxh3_64_intdigest(data) & 0xFFFFFFFF
