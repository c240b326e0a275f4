"""Encoding in several threads and processes at once.

Who wants chunks encoded takes a seat, at which there is an encoder; there is one for each thread to
work with. Once much is to be encoded, all seats but one are given a process to do the work (see
`encoder_process`); what goes there and comes back lies in shared memory. A process that cannot be
started, or ends, leaves its seat as it was: it makes things faster, and never other.
"""

import queue
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TypeVar

from mstore.bases import BaseReader
from mstore.chunkencoder import ChunkEncoder, Coded, Job
from mstore.chunkstore import Session
from mstore.encoder_client import EncoderProcess, is_alone
from mstore.sharedmemory import PORTION_BYTES, ROOM_BYTES, Room, SharedMemory
from mstore.threads import Memory

T = TypeVar("T")

WORTH_A_PROCESS = 24 << 20
"""Bytes to be encoded for each process that is started, which takes 0.1 s of a processor."""

# Bytes of new chunks in a portion that tell that there is more to do than to note what is known.
_MUCH = 1 << 20


class Encoders:
    """Encodes chunks in as many threads and processes as it is told to use. Thread safe."""

    def __init__(self, session: Session, threads: int) -> None:
        """`threads` is how many portions to encode at once."""
        # One more than seats, so that what is next is read while all of these are taken.
        self.callers = threads + 1 if threads > 1 else 1
        shared = None
        if threads > 1 and session.db.storage.address is not None:
            shared = SharedMemory.make(self.callers * ROOM_BYTES)
        reader = BaseReader(session.db, session.chunk_indexes)
        self._seats = [_Seat(reader, session, shared if at else None) for at in range(threads)]
        self._free = _filled(self._seats)
        self._rooms = _filled(
            shared.room(number * ROOM_BYTES) if shared else Room(Memory(PORTION_BYTES), 0)
            for number in range(self.callers)
        )
        self._expected = 0

    def __enter__(self) -> "Encoders":
        return self

    def __exit__(self, *_: object) -> None:
        for seat in self._seats:
            seat.end_process()

    def expect(self, size: int) -> None:
        """Be ready for so many bytes more. From the thread that starts the others."""
        self._expected += size
        if is_alone():
            self._start_processes()

    def stop(self) -> None:
        """Let nobody wait for a process any more."""
        for seat in self._seats:
            seat.kill_process()

    @contextmanager
    def room(self) -> Iterator[Room]:
        """Memory for a portion. There is some for each caller."""
        room = self._rooms.get()
        try:
            yield room
        finally:
            self._rooms.put(room)

    def encode(self, jobs: Sequence[Job], room: Room) -> list[Coded]:
        """Encode a portion as `ChunkEncoder.encode` does; its chunks lie in `room`."""
        if sum(len(job.raw) for job in jobs) > _MUCH:
            self._start_processes()
        seat = self._free.get()
        try:
            return seat.encode(jobs, room.results)
        finally:
            self._free.put(seat)

    def _start_processes(self) -> None:
        processes = min(len(self._seats) - 1, self._expected // WORTH_A_PROCESS)
        for seat in self._seats[1 : processes + 1]:
            seat.start_process()


def _filled(things: Iterable[T]) -> "queue.SimpleQueue[T]":
    filled: queue.SimpleQueue[T] = queue.SimpleQueue()
    for thing in things:
        filled.put(thing)
    return filled


class _Seat:
    """An encoder, and perhaps a process that does its work. For one caller at a time."""

    def __init__(
        self, reader: BaseReader, session: Session, shared: SharedMemory | None = None
    ) -> None:
        """`shared` is memory to share with a process, None if there is to be none."""
        self._encoder = ChunkEncoder(reader)
        self._session = session
        self._shared = shared
        self._process: EncoderProcess | None = None
        self._lock = threading.Lock()

    def start_process(self) -> None:
        """Give this seat a process, unless it had one before. Thread safe."""
        with self._lock:
            shared, self._shared = self._shared, None
        if shared is not None:
            # What is not to be had is done without, and not asked for again.
            with suppress(OSError):
                self._process = EncoderProcess(shared, self._session)

    def kill_process(self) -> None:
        """Make its process end, if it has one. Thread safe."""
        if (process := self._process) is not None:
            process.kill()

    def end_process(self) -> None:
        """End its process, if it has one, and wait until it is gone."""
        process, self._process = self._process, None
        if process is not None:
            process.end()

    def encode(self, jobs: Sequence[Job], results: int) -> list[Coded]:
        """Encode a portion; its payloads may be left in shared memory from `results` on."""
        if self._process is not None:
            try:
                coded = self._process.encode(jobs, results)
            except (OSError, EOFError, ValueError, TypeError):
                # Whatever became of it, all that it was to encode is still here.
                self.end_process()
            except BaseException:
                # An answer may still come, which would be taken for another one.
                self.end_process()
                raise
            else:
                if coded is not None:
                    return coded
        return self._encoder.encode(jobs)
