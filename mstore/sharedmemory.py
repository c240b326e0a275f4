"""Memory that several processes see, in which portions of chunks pass between them."""

import mmap
import os
from typing import NamedTuple

import numpy as np

from mstore.threads import Memory

PORTION_BYTES = 4 << 20
"""Bytes of chunks to encode at once. Larger chunks are not encoded in processes."""

ROOM_BYTES = 2 * PORTION_BYTES


class Room(NamedTuple):
    """Memory for a portion of chunks. Only chunks that lie there are encoded in processes.

    `results` is the offset in shared memory of where their payloads can go.
    """

    raw: Memory
    results: int


class SharedMemory:
    """Memory that processes share. It takes pages only where something is written."""

    def __init__(self, file: int, size: int) -> None:
        """`file` is the number of an empty file that nobody else writes to."""
        self.file = file
        os.ftruncate(file, size)
        self.view = memoryview(mmap.mmap(file, size))
        self._start = _address(self.view)

    def __del__(self) -> None:
        os.close(self.file)

    @classmethod
    def make(cls, size: int) -> "SharedMemory | None":
        """So many bytes of it; None where this system has none."""
        if not hasattr(os, "memfd_create"):  # it is Linux that has it
            return None
        try:
            return cls(os.memfd_create("mstore"), size)
        except OSError:
            return None

    def room(self, start: int) -> Room:
        """The room that begins there."""
        results = start + PORTION_BYTES
        return Room(_Region(self.view[start:results]), results)

    def offset(self, part: memoryview) -> int | None:
        """Where `part` begins in this memory; None if it lies elsewhere, or is empty."""
        if not part:
            return None
        offset = _address(part) - self._start
        return offset if 0 <= offset <= len(self.view) - len(part) else None


class _Region(Memory):
    """A part of shared memory; who wants more than there is gets memory of this process."""

    def __init__(self, region: memoryview) -> None:
        super().__init__()
        self._region = region

    def take(self, length: int) -> memoryview:
        return self._region[:length] if length <= len(self._region) else super().take(length)


def _address(part: memoryview) -> int:
    address: int = np.frombuffer(part, np.uint8).__array_interface__["data"][0]
    return address
