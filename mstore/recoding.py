"""What the bytes of a file hold in another form: the codes of `layout.Recoded`, undone.

Only ever for reading a tensor: a file is stored and given back as it is.
"""

import re
import zlib
from collections.abc import Callable

import numpy as np

from mstore.errors import FormatError
from mstore.ids import Buffer
from mstore.layout import Recoding

# What a pickle of floats in lists consists of: runs of binary floats, a float in text, opcodes that
# only build the lists, memo entries, frames. Source: Python's pickletools.
_FLOATS = re.compile(
    rb"(?P<binary>(?:G.{8})++)|F(?P<text>[^\n]*+)\n"
    rb"|[(\])lLaet\x85\x86\x87\x94]++|q.|r.{4}|p[^\n]*+\n|\x95.{8}",
    re.DOTALL,
)


def decode(code: Recoding, data: Buffer, size: int) -> bytes:
    """The `size` bytes that `data` holds.

    Raises FormatError when it holds something else: what is stored is what the file said, and
    nobody has looked into it before.
    """
    try:
        found = _DECODERS[code](bytes(data), size)
    except (ValueError, zlib.error) as error:
        raise FormatError(f"what the file holds as {code} is malformed: {error}") from error
    if len(found) != size:
        raise FormatError(f"what the file holds as {code} is not of {size} bytes")
    return found


def _inflate(data: bytes, size: int, window: int) -> bytes:
    # One byte more shows that there is more, and no bomb can take more than that.
    return zlib.decompressobj(window).decompress(data, size + 1)


def _floats(data: bytes, _: int) -> bytes:
    at, found = 0, []
    while at < len(data):
        if (match := _FLOATS.match(data, at)) is None:
            raise ValueError(f"an opcode at byte {at} does not push floats onto lists")
        at = match.end()
        if (binary := match["binary"]) is not None:
            rows = np.frombuffer(binary, np.uint8).reshape(-1, 9)[:, 1:]
            found.append(rows[:, ::-1].tobytes())
        elif (text := match["text"]) is not None:
            found.append(np.float64(float(text)).tobytes())
    return b"".join(found)


_DECODERS: dict[Recoding, Callable[[bytes, int], bytes]] = {
    "deflate": lambda data, size: _inflate(data, size, -zlib.MAX_WBITS),
    "zlib": lambda data, size: _inflate(data, size, zlib.MAX_WBITS),
    "latin1": lambda data, _: data.decode("utf-8").encode("latin-1"),
    "escaped": lambda data, _: data.decode("raw-unicode-escape").encode("latin-1"),
    "floats": _floats,
}
