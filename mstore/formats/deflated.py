"""The first bytes of a deflated zip member, for parsers of what it holds.

Only as much is inflated as the header of an array can take, so a member that would inflate to
terabytes costs no more than any other. Source: RFC 1951 (deflate); zlib's technical details, which
say that deflate shrinks by 1032 to 1 at most.
"""

import zlib

from mstore.errors import FormatError, LimitExceededError
from mstore.formats import zipdir
from mstore.layout import ByteReader, Recoded

HEAD_SIZE = 16 * 1024
"""Most bytes that are inflated."""

MAX_SIZE = 1 << 40
"""Most bytes that a member may claim to hold."""

_INPUT_SIZE = 64 * 1024
_MAX_RATIO = 1100


class InflatedHead:
    """What a member holds, as a `ByteReader` that has only the first bytes of it.

    Reading beyond them gives fewer bytes than were asked for.
    """

    def __init__(self, reader: ByteReader, member: zipdir.Member) -> None:
        """Inflate the start of `member`.

        Raises LimitExceededError when it claims to hold more than its compressed bytes ever could,
        FormatError when they are damaged or do not hold as much as it claims.
        """
        if member.size > min(MAX_SIZE, _MAX_RATIO * member.compressed):
            raise LimitExceededError(
                f"its {member.compressed} compressed bytes claim to hold {member.size}"
            )
        self.size = member.size
        raw = reader.read(member.data, min(member.compressed, _INPUT_SIZE))
        inflater = zlib.decompressobj(-zlib.MAX_WBITS)
        try:
            self._head = inflater.decompress(raw, HEAD_SIZE)
        except zlib.error:
            raise FormatError("its compressed bytes are damaged") from None
        used_up = len(raw) == member.compressed and not inflater.unconsumed_tail
        if inflater.eof:
            agrees = len(self._head) == self.size and used_up and not inflater.unused_data
        else:
            # With room left for more output and all input used, the end itself is missing.
            ended = used_up and len(self._head) < HEAD_SIZE
            agrees = len(self._head) <= self.size and not ended
        if not agrees:
            raise FormatError(f"its compressed bytes do not hold {self.size} as they claim to")

    def read(self, offset: int, length: int) -> bytes:
        """Bytes from `offset`; fewer than `length` where the head ends."""
        return self._head[offset : offset + length]


def recoded(member: zipdir.Member, start: int) -> Recoded:
    """The bytes from `start` of what a deflated member holds, as the place of a view."""
    return Recoded("deflate", member.data, member.compressed, member.size, start)


def inflate(reader: ByteReader, member: zipdir.Member) -> bytes:
    """All that a deflated member holds, whose size the caller bounds. Raises as `InflatedHead`."""
    InflatedHead(reader, member)
    if member.compressed > 2 * member.size + 1024:
        raise FormatError(f"its {member.compressed} compressed bytes hold only {member.size}")
    raw = reader.read(member.data, member.compressed)
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        found = inflater.decompress(raw, member.size + 1)
    except zlib.error:
        raise FormatError("its compressed bytes are damaged") from None
    if len(found) != member.size or not inflater.eof or inflater.unused_data:
        raise FormatError(f"its compressed bytes do not hold {member.size} as they claim to")
    return found
