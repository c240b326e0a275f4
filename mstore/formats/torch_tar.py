"""tar archives of torch from before version 0.2, which only torch's own reader could follow.

    storages, tensors, pickle   its three members, each with pickles in it

`torch.load` takes any file for such an archive whose first 512 bytes are a header of tar, before it
looks for anything else; a file may be both that and a pickle. Source: `legacy_load` in
torch/serialization.py of PyTorch, and tarfile of Python.
"""

import re

from mstore.layout import ByteReader

RUNS = "is an archive of a PyTorch before 0.2, whose pickles loading it runs"
"""What loading one does, worded to follow "it …"."""

_BLOCK = 512
_MEMBERS = (b"storages", b"tensors", b"pickle")
_MAX_MEMBERS = 1000
_MAX_EXTENSION = 1 << 16
_EXTENSIONS = b"xgLK"  # headers that say more of the member after them, such as its name
_PICKLE = 0x80


def is_tar(head: bytes, reader: ByteReader) -> bool:
    """Whether a file that starts with `head` is an archive that torch would unpickle.

    That is one with the three members, or one that is also a pickle, which needs no more.
    """
    if not begins(head):
        return False
    if head[0] == _PICKLE:
        return True
    missing = set(_MEMBERS)
    at = 0
    for _ in range(_MAX_MEMBERS):
        block = reader.read(at, _BLOCK)
        if not missing or not _is_header(block) or (size := _number(block[124:136])) is None:
            break
        said = block[:100].rstrip(b"\0")
        if block[156] in _EXTENSIONS:
            said = reader.read(at + _BLOCK, min(size, _MAX_EXTENSION))
            missing -= {name for name in missing if name in said}
        missing.discard(said.removeprefix(b"./"))
        at += _BLOCK * (1 + -(-size // _BLOCK))
    return not missing


def begins(head: bytes) -> bool:
    """Whether a file that starts with `head` starts as an archive."""
    return _is_header(head[:_BLOCK])


def _is_header(block: bytes) -> bool:
    """Whether the checksum of a header is right, in either way of counting."""
    if len(block) != _BLOCK or (said := _number(block[148:156])) is None:
        return False
    counted = block[:148] + b" " * 8 + block[156:]
    signed = sum(byte - 256 * (byte > 127) for byte in counted)
    return said in (sum(counted), signed)


def _number(field: bytes) -> int | None:
    """A number of a header, in octal digits or, where they do not suffice, in binary."""
    if field[0] == _PICKLE:
        return int.from_bytes(field[1:], "big")
    digits = field.split(b"\0")[0].strip()
    if not digits:
        return 0
    return int(digits, 8) if re.fullmatch(rb"[0-7]+", digits) else None
