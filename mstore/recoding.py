"""What the bytes of a file hold in another form: the codes of `layout.Recoded`, undone.

Only ever for reading a tensor: a file is stored and given back as it is.
"""

import re
import zlib
from codecs import getincrementaldecoder
from collections.abc import Callable, Generator, Iterable, Iterator
from functools import partial

import numpy as np

from mstore.errors import FormatError
from mstore.ids import Buffer
from mstore.layout import Recoding

_PIECE = 1 << 20

# What a pickle of floats in lists consists of: runs of binary floats, a float in text, opcodes that
# only build the lists, memo entries, frames. Source: Python's pickletools.
_FLOATS = re.compile(
    rb"(?P<binary>(?:G.{8})++)|F(?P<text>[^\n]*+)\n"
    rb"|[(\])lLaet\x85\x86\x87\x94]++|q.|r.{4}|p[^\n]*+\n|\x95.{8}",
    re.DOTALL,
)


def decode(code: Recoding, windows: Iterable[Buffer], size: int) -> Iterator[bytes]:
    """The `size` bytes that consecutive windows of a file hold, piece by piece.

    Raises FormatError when they hold something else: what is stored is what the file said, and
    nobody has looked into it before.
    """
    done = 0
    try:
        for piece in _DECODERS[code](windows, size):
            done += len(piece)
            if done > size:
                break
            yield piece
    except (ValueError, zlib.error) as error:
        raise FormatError(f"what the file holds as {code} is malformed: {error}") from error
    if done != size:
        raise FormatError(f"what the file holds as {code} is not of {size} bytes")


def _inflate(windows: Iterable[Buffer], size: int, wbits: int) -> Iterator[bytes]:
    stream = zlib.decompressobj(wbits)
    for window in windows:
        data: Buffer = window
        while len(data):
            # No bomb takes more than this at a time, and more than `size` is told by the caller.
            yield stream.decompress(data, _PIECE)
            data = stream.unconsumed_tail
    while piece := stream.decompress(b"", _PIECE):
        yield piece


def _text(windows: Iterable[Buffer], _: int, encoding: str) -> Iterator[bytes]:
    decoder = getincrementaldecoder(encoding)()
    for window in windows:
        yield decoder.decode(bytes(window)).encode("latin-1")
    yield decoder.decode(b"", final=True).encode("latin-1")


def _floats(windows: Iterable[Buffer], _: int) -> Iterator[bytes]:
    rest = b""
    for window in windows:
        # An opcode that a window cuts through is matched as soon as all of it is there.
        rest = yield from _push(rest + bytes(window))
        if len(rest) > _PIECE:
            break
    if rest:
        raise ValueError(f"the opcode {rest[:1]!r} does not push floats onto lists")


def _push(data: bytes) -> Generator[bytes, None, bytes]:
    """What the opcodes push, up to the first that is cut off or another; gives what is left."""
    at = 0
    while (match := _FLOATS.match(data, at)) is not None:
        at = match.end()
        if (binary := match["binary"]) is not None:
            rows = np.frombuffer(binary, np.uint8).reshape(-1, 9)[:, 1:]
            yield rows[:, ::-1].tobytes()
        elif (text := match["text"]) is not None:
            yield np.float64(float(text)).tobytes()
    return data[at:]


_DECODERS: dict[Recoding, Callable[[Iterable[Buffer], int], Iterator[bytes]]] = {
    "deflate": partial(_inflate, wbits=-zlib.MAX_WBITS),
    "zlib": partial(_inflate, wbits=zlib.MAX_WBITS),
    "latin1": partial(_text, encoding="utf-8"),
    "escaped": partial(_text, encoding="raw-unicode-escape"),
    "floats": _floats,
}
