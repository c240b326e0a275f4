"""Where in a file the superblock of HDF5 is.

Source: the HDF5 file format specification, section II.A: at 0, or at 512 or a doubling of that.
"""

from mstore.layout import ByteReader

SIGNATURE = b"\x89HDF\r\n\x1a\n"
"""What a superblock starts with."""


def find_superblock(head: bytes, reader: ByteReader) -> int | None:
    """Where the superblock starts; None if there is none. `head` is the first bytes of the file."""
    at, length = 0, len(SIGNATURE)
    while at + length <= reader.size:
        inside = at + length <= len(head)
        if (head[at : at + length] if inside else reader.read(at, length)) == SIGNATURE:
            return at
        at = at * 2 or 512
    return None
