"""What the bytes of a file hold in another form: the codes of `layout.Recoded`, undone.

Only ever for reading a tensor: a file is stored and given back as it is.
"""

import re
import zlib
from codecs import getincrementaldecoder
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from functools import partial

import numpy as np
from numpy.typing import NDArray

from mstore.errors import FormatError
from mstore.ids import Buffer
from mstore.layout import ByteReader, Recoded, Recoding

_PIECE = 1 << 20
_WINDOW = 4 << 20

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


class DecodedBytes:
    """What a part of a file holds in another form, read from its start on.

    Whoever reads on does not pay for what was read before; what comes before is decoded again.
    Memory: what is asked for, and a few MiB. Of use to one thread at a time.
    """

    def __init__(self, place: Recoded, content: ByteReader) -> None:
        self._place = place
        self._content = content
        self._pieces: Iterator[bytes] = iter(())
        self._rest, self._at = memoryview(b""), 0
        self._begin()

    def read_runs(self, starts: NDArray[np.int64], run: int) -> tuple[int, NDArray[np.uint8]]:
        """All from the first run of `run` bytes to the last, and where it begins.

        The runs lie in the `size` bytes of the place and begin at `starts`, of which the first is
        the least and the last the greatest. Raises FormatError when the file holds something else.
        """
        begin, end = int(starts[0]), int(starts[-1]) + run
        if begin < self._at:
            self._begin()
        out = np.empty(end - begin, np.uint8)
        while self._at < end:
            piece = self._rest or memoryview(next(self._pieces))
            low, high = max(begin - self._at, 0), min(end - self._at, len(piece))
            if low < high:
                out[self._at + low - begin : self._at + high - begin] = piece[low:high]
            self._rest, self._at = piece[high:], self._at + high
        if end == self._place.size:
            # That nothing follows is known when the last piece has been asked for.
            deque(self._pieces, maxlen=0)
        return begin, out

    def _begin(self) -> None:
        self._pieces = decode(self._place.code, self._windows(), self._place.size)
        self._rest, self._at = memoryview(b""), 0

    def _windows(self) -> Iterator[bytes]:
        end = self._place.offset + self._place.length
        for offset in range(self._place.offset, end, _WINDOW):
            yield self._content.read(offset, min(_WINDOW, end - offset))


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
