"""How many threads to work with, and what each of them has of its own."""

import os
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")

is_own_program = False
"""Whether nothing else runs in this process than the command line, which sets this."""


def default_threads() -> int:
    """Threads to work with: one per processor, eight at most."""
    return min(8, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 4)


class PerThread(Generic[T]):
    """One thing for each thread, made when the thread first asks for it."""

    def __init__(self, make: Callable[[], T]) -> None:
        self._make = make
        self._local = threading.local()

    def get(self) -> T:
        """That of the calling thread."""
        try:
            thing: T = self._local.thing
        except AttributeError:
            thing = self._local.thing = self._make()
        return thing


class Memory:
    """Memory that is used again, since fresh pages cost more than the work on them."""

    def __init__(self, least: int = 0) -> None:
        """It has at least so many bytes as soon as it has any."""
        self._least = least
        self._bytes = bytearray()

    def take(self, length: int) -> memoryview:
        """`length` bytes of any content; they share memory with all that were taken before."""
        if len(self._bytes) < length:
            self._bytes = bytearray(max(length, self._least))
        return memoryview(self._bytes)[:length]
