"""Indexes: where records live. Sorted fixed-width columns, memory-mapped, opened without reading.

One index object holds a header, a table of pack names, the sorted 8-byte keys (the first bytes of
each id), one fixed-width row per record, and a table of base ids. Look-up of one id is a binary
search over the mapped keys and needs no numpy, so that reading history starts fast; `bulkindex`
does the same for many ids at once. Byte by byte: `docs/format.md`.

A row is 56 bytes and its key 8: 64 bytes per record, so an index of ten million chunks is 640 MB
of address space and no memory until it is used.
"""

import os
import struct
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import xxhash

from mstore.errors import CorruptDataError, UnsupportedVersionError
from mstore.ids import ID_SIZE, Buffer, Id, Kind
from mstore.pack import Entry
from mstore.storage.base import Storage

INDEX_VERSION = 1
_MAGIC = b"MSTOREIX"
_HEADER = struct.Struct("<8sHHIQIIQQQQ")
HEADER_SIZE = _HEADER.size
_PACK_NAME_SIZE = 40
ROW = struct.Struct("<24sQIIIIfBBBB")
ROW_SIZE = ROW.size

MAX_OFFSET = 1 << 62
"""Where a record begins at most; sizes can be added to it in signed numbers."""


@dataclass(frozen=True, slots=True)
class IndexRef:
    """An index that the root lists: its name, how many records it holds, its size in bytes."""

    name: str
    count: int
    size: int

    @property
    def key(self) -> str:
        """The storage key."""
        return f"indexes/{self.name}"


def new_index_name() -> str:
    """A name never used before."""
    return os.urandom(16).hex()


def key_of(identifier: bytes) -> int:
    """The number by which an id is sorted and searched: its first eight bytes, big-endian."""
    return int.from_bytes(identifier[:8], "big")


class Index:
    """One opened index; reads are views of the mapped object."""

    def __init__(self, name: str, data: memoryview) -> None:
        """Check the header and the sizes of `data`, which is a whole index object.

        Raises CorruptDataError or UnsupportedVersionError. The checksum over everything is
        checked by `check`, which reads it all.
        """
        self.name = name
        self.count: int
        self._data = data
        if len(data) < HEADER_SIZE or data[:8] != _MAGIC:
            raise CorruptDataError(f"index {name} does not start as an index does")
        head = _HEADER.unpack_from(data)
        _, version, _, pack_count, self.count, base_count, _, _, _, self._checksum, check = head
        if check != xxhash.xxh3_64_intdigest(data[: HEADER_SIZE - 8]):
            raise CorruptDataError(f"index {name}: the header is damaged")
        if version > INDEX_VERSION:
            raise UnsupportedVersionError(
                f"index {name} is of format {version}, newer than this mstore reads",
                hint="upgrade mstore",
            )
        start = HEADER_SIZE
        names = bytes(data[start : start + pack_count * _PACK_NAME_SIZE])
        start += pack_count * _PACK_NAME_SIZE
        keys, start = start, start + self.count * 8
        rows, start = start, start + self.count * ROW_SIZE
        if len(data) != start + base_count * ID_SIZE:
            raise CorruptDataError(f"index {name} has not the size its header says")
        self.keys = data[keys:rows].cast("Q")
        self.rows = data[rows:start]
        self.bases = data[start:]
        self.packs = _decode_names(name, names)

    @classmethod
    def open(cls, storage: Storage, ref: IndexRef) -> "Index":
        """Map the index `ref`; raises NotFoundError when it is gone."""
        index = cls(ref.name, storage.view(ref.key))
        if index.count != ref.count:
            raise CorruptDataError(f"index {ref.name} has not the number of records listed")
        return index

    def check(self) -> None:
        """Read everything; raise CorruptDataError unless checksum and order are right."""
        if xxhash.xxh3_64_intdigest(self._data[HEADER_SIZE:]) != self._checksum:
            raise CorruptDataError(f"index {self.name} is damaged")

    def find(self, identifier: Id) -> Entry | None:
        """The entry of `identifier`, or None when it is not in this index."""
        key, tail = key_of(identifier), identifier[8:]
        for row in range(bisect_left(self.keys, key), self.count):
            if self.keys[row] != key:
                return None
            if self.rows[row * ROW_SIZE : row * ROW_SIZE + 24] == tail:
                return self.entry(row)
        return None

    def with_prefix(self, prefix: str) -> Iterator[Entry]:
        """The entries whose id starts with the hexadecimal digits `prefix` (1 to 64)."""
        low = bytes.fromhex(prefix[:16].ljust(16, "0"))
        for row in range(bisect_left(self.keys, key_of(low)), self.count):
            found = self.entry(row)
            if not found.id.hex().startswith(prefix):
                if found.id.hex()[: len(prefix)] > prefix:
                    return
                continue
            yield found

    def entry(self, row: int) -> Entry:
        """The entry in row number `row`."""
        fields = ROW.unpack_from(self.rows, row * ROW_SIZE)
        tail, offset, pack, stored, raw, base, energy, codec, kind, dtype, depth = fields
        beyond = pack >= len(self.packs) or base * ID_SIZE > len(self.bases)
        if beyond or bool(base) != bool(depth) or offset > MAX_OFFSET:
            raise CorruptDataError(f"index {self.name}: row {row} is damaged")
        return Entry(
            self.keys[row].to_bytes(8, "big") + tail,
            kind,
            self.packs[pack],
            offset,
            stored,
            raw,
            codec,
            dtype,
            depth,
            bytes(self.bases[(base - 1) * ID_SIZE : base * ID_SIZE]) if base else None,
            energy,
        )

    def __iter__(self) -> Iterator[Entry]:
        return (self.entry(row) for row in range(self.count))

    def __len__(self) -> int:
        return self.count


def find_entry(indexes: Iterable[Index], kind: Kind, identifier: Id) -> Entry | None:
    """The entry that counts for an object of `kind`, or None when none of `indexes` has one.

    Of several listed records of one id the one of least depth counts, among equals the first
    found. Anything else could make two chunks each other's base.
    """
    best: Entry | None = None
    for index in indexes:
        entry = index.find(identifier)
        if entry is not None and entry.kind == kind and (best is None or entry.depth < best.depth):
            best = entry
            if not entry.depth:
                break
    return best


def encode_entries(entries: Iterable[Entry]) -> list[Buffer]:
    """The bytes, in parts, of an index of `entries`; of a repeated id the one that counts.

    That is the one of least depth, the first among equals.
    """
    unique: dict[Id, Entry] = {}
    for entry in entries:
        if entry.depth < unique.setdefault(entry.id, entry).depth:
            unique[entry.id] = entry
    packs: dict[str, int] = {}
    bases: dict[Id, int] = {}
    keys, rows = bytearray(), bytearray()
    for entry in (unique[identifier] for identifier in sorted(unique)):
        keys += key_of(entry.id).to_bytes(8, "little")
        rows += ROW.pack(
            entry.id[8:],
            entry.offset,
            packs.setdefault(entry.pack, len(packs)),
            entry.stored,
            entry.raw,
            bases.setdefault(entry.base, len(bases) + 1) if entry.base else 0,
            entry.energy,
            entry.codec,
            entry.kind,
            entry.dtype,
            entry.depth,
        )
    return assemble(list(packs), len(unique), keys, rows, b"".join(bases))


def assemble(
    packs: Sequence[str], count: int, keys: Buffer, rows: Buffer, bases: Buffer
) -> list[Buffer]:
    """The parts of an index object from its columns, which must be sorted by id."""
    names = b"".join(name.encode().ljust(_PACK_NAME_SIZE, b"\0") for name in packs)
    body: list[Buffer] = [names, keys, rows, bases]
    hasher = xxhash.xxh3_64()
    for part in body:
        hasher.update(part)
    base_count = len(bases) // ID_SIZE
    fields = (_MAGIC, INDEX_VERSION, 0, len(packs), count, base_count, 0, 0, 0, hasher.intdigest())
    head = _HEADER.pack(*fields, 0)[:-8]
    return [head + xxhash.xxh3_64_digest(head)[::-1], *body]


def _decode_names(index: str, names: bytes) -> list[str]:
    try:
        return [
            names[start : start + _PACK_NAME_SIZE].rstrip(b"\0").decode("ascii")
            for start in range(0, len(names), _PACK_NAME_SIZE)
        ]
    except UnicodeDecodeError:
        raise CorruptDataError(f"index {index}: the pack names are damaged") from None
