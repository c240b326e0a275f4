"""Compressed files that are read as what they hold, forward and only so far."""

import bz2
import lzma
import zlib
from collections.abc import Callable
from typing import Protocol

from mstore.errors import FormatError, LimitExceededError
from mstore.layout import ByteReader

MAX_INFLATED = 64 * 1024 * 1024
"""Most bytes of one file that are inflated, in all."""

_MAX_DICTIONARY = 24 * 1024 * 1024  # bytes for the window of xz; its presets up to 6 take 9 MiB
_MAX_RATIO = 200  # weights shrink to a half, or a tenth where most are 0
_PIECE = 1 << 16
_ENDLESS = 1 << 62


class _Inflater(Protocol):
    """What bz2 and lzma have in common."""

    def decompress(self, data: bytes, max_length: int) -> bytes: ...

    @property
    def needs_input(self) -> bool: ...

    @property
    def eof(self) -> bool: ...


class _Zlib:
    """zlib and gzip, with the same."""

    def __init__(self) -> None:
        self._inflater = zlib.decompressobj(zlib.MAX_WBITS | 32)  # by either header

    def decompress(self, data: bytes, max_length: int) -> bytes:
        return self._inflater.decompress(self._inflater.unconsumed_tail + data, max_length)

    @property
    def needs_input(self) -> bool:
        return not self._inflater.unconsumed_tail

    @property
    def eof(self) -> bool:
        return self._inflater.eof


def _lzma() -> _Inflater:
    return lzma.LZMADecompressor(memlimit=_MAX_DICTIONARY)


_INFLATERS: dict[bytes, Callable[[], _Inflater]] = {
    b"\x78": _Zlib,
    b"\x1f\x8b": _Zlib,
    b"BZh": bz2.BZ2Decompressor,
    b"\xfd7zXZ": _lzma,
    b"\x5d\x00\x00": _lzma,
}


def is_compressed(head: bytes) -> bool:
    """Whether a file may be compressed, by its first bytes."""
    return head.startswith(tuple(_INFLATERS))


class Inflated:
    """What a compressed file holds, as a `ByteReader`; its size is not known and said to be huge.

    Reading backward starts again. All reading raises FormatError where the file is damaged,
    LimitExceededError after `MAX_INFLATED` bytes in all; `full` then says so, and `bomb` whether
    the file is much smaller than what is in it.
    """

    size = _ENDLESS

    def __init__(self, reader: ByteReader) -> None:
        self._reader = reader
        self._new = next(
            make for magic, make in _INFLATERS.items() if reader.read(0, 8).startswith(magic)
        )
        self._total = 0
        self.full = False
        self._restart()

    @property
    def bomb(self) -> bool:
        """Whether far more came out than was in the file."""
        return self._total > _MAX_RATIO * max(self._taken, 1)

    def read(self, offset: int, length: int) -> bytes:
        """Exactly `length` bytes from `offset`; fewer only where the content ends."""
        if offset < self._start:
            self._restart()
        while self._start + len(self._piece) <= offset and self._next():
            pass
        parts: list[bytes] = []
        while length > 0 and (self._start + len(self._piece) > offset or self._next()):
            parts.append(self._piece[offset - self._start :][:length])
            offset += len(parts[-1])
            length -= len(parts[-1])
        return b"".join(parts)

    def _restart(self) -> None:
        self._inflater = self._new()
        self._piece = b""
        self._start = 0
        self._taken = 0

    def _next(self) -> bool:
        """Have the next piece, if there is one."""
        self._start += len(self._piece)
        self._piece = b""
        try:
            while not self._piece and not self._inflater.eof:
                data = b""
                if self._inflater.needs_input:
                    data = self._reader.read(self._taken, _PIECE)
                    self._taken += len(data)
                    if not data:
                        return False
                self._piece = self._inflater.decompress(data, _PIECE)
        except (zlib.error, lzma.LZMAError, OSError, EOFError, ValueError) as error:
            raise FormatError(f"what it holds compressed is damaged: {error}") from None
        self._total += len(self._piece)
        if self._total > MAX_INFLATED:
            self.full = True
            raise LimitExceededError(f"it inflates to more than {MAX_INFLATED} bytes")
        return bool(self._piece)
