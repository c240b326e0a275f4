"""Sorted tables of LevelDB, as TensorFlow writes them: the index of a checkpoint.

    data blocks, a block of metadata (empty), the index block, then 48 bytes of footer:
    offset and size (varints) of the metadata and of the index, zeros up to byte 40, magic

    block    entries, then the offsets of some of them (u32 each) and how many those are (u32)
    entry    varints: bytes of the key shared with the one before, further bytes of the key, bytes
             of the value; then those further bytes and the value
    trailer  behind each block: 0 (or how it is compressed), masked CRC-32C of block and that byte

An entry of the index block has a key not before those of a data block, and as its value the
block's offset and size. All numbers are little-endian. Source: `doc/table_format.md` of LevelDB.
"""

from collections.abc import Iterator
from functools import cache

from mstore.errors import FormatError, LimitExceededError
from mstore.formats.base import read_exactly
from mstore.formats.protobuf import varint
from mstore.layout import ByteReader

MAGIC = bytes.fromhex("57fb808b247547db")
"""The last eight bytes of a table."""

MAX_SIZE = 8 << 20
"""Most bytes of a table; about 70 for each tensor are usual. All of them are read and summed up."""

MAX_KEYS = 16 << 20
"""Most bytes of all keys together, which may share most of theirs."""

_FOOTER = 48
_TRAILER = 5


Entry = tuple[bytes, int, int]
"""A key, and where its value starts and ends."""


def read_table(reader: ByteReader) -> Iterator[Entry]:
    """The keys, in their order, and where in the file their values lie.

    Raises FormatError for anything doubtful: blocks that overlap or fail their checksum, keys that
    are repeated or out of order, compression; LimitExceededError for a table of unreasonable size.
    """
    if reader.size > MAX_SIZE:
        raise LimitExceededError(f"it has {reader.size} bytes; at most {MAX_SIZE} are read")
    end = reader.size - _FOOTER
    footer = read_exactly(reader, max(end, 0), _FOOTER, "its footer")
    if not footer.endswith(MAGIC):
        raise FormatError("it has no footer; the file may be cut short")
    _, at = _handle(footer, 0)
    (index_start, index_size), _ = _handle(footer, at)
    budget = MAX_KEYS
    free_from, last = 0, None
    index = _read_block(reader, index_start, index_size, end)
    for _, handle_at, handle_end in _entries(index):
        (start, size), at = _handle(index, handle_at)
        if start < free_from or at != handle_end:
            raise FormatError("its blocks overlap or are out of order")
        free_from = start + size + _TRAILER
        for key, value_at, value_end in _entries(_read_block(reader, start, size, index_start)):
            budget -= len(key)
            if budget < 0:
                raise LimitExceededError(f"its keys take more than {MAX_KEYS} bytes")
            if last is not None and key <= last:
                raise FormatError("its keys are repeated or out of order")
            last = key
            yield key, start + value_at, start + value_end


def _handle(data: bytes, at: int) -> tuple[tuple[int, int], int]:
    """Offset and size of a block, and where they end in `data`."""
    start, at = varint(data, at)
    size, at = varint(data, at)
    return (start, size), at


def _read_block(reader: ByteReader, start: int, size: int, end: int) -> bytes:
    """The block of `size` bytes at `start`, which with its trailer lies before `end`."""
    if start + size + _TRAILER > end:
        raise FormatError("a block reaches beyond its part of the file")
    block = read_exactly(reader, start, size + _TRAILER, "a block")
    summed = int.from_bytes(block[-4:], "little")
    if summed != masked_crc32c(block[:-4]):
        raise FormatError("the checksum of a block is wrong: the file is damaged")
    if block[-_TRAILER]:
        raise FormatError("its blocks are compressed, which is not supported")
    return block[:-_TRAILER]


def _entries(block: bytes) -> Iterator[Entry]:
    """The keys of a block, and where in it their values lie."""
    restarts = int.from_bytes(block[-4:], "little")
    end = len(block) - 4 - 4 * restarts
    if end < 0:
        raise FormatError("a block is too short")
    key, at = b"", 0
    while at < end:
        shared, at = varint(block, at)
        added, at = varint(block, at)
        length, at = varint(block, at)
        value = at + added
        if shared > len(key) or value + length > end:
            raise FormatError("an entry reaches beyond its block")
        key = key[:shared] + block[at:value]
        at = value + length
        yield key, value, at


def masked_crc32c(data: bytes) -> int:
    """The checksum of a block, as LevelDB stores it: rotated, with a constant added."""
    table = _table()
    crc = 0xFFFFFFFF
    for byte in data:
        crc = table[(crc ^ byte) & 0xFF] ^ crc >> 8
    crc ^= 0xFFFFFFFF
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


@cache
def _table() -> tuple[int, ...]:
    """CRC-32C (RFC 3720, appendix B.4) of each byte."""
    table = []
    for crc in range(256):
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
        table.append(crc)
    return tuple(table)
