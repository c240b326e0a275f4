"""Encoding in several threads and processes at once.

Who wants chunks encoded takes a seat, at which there is an encoder; there is one for each thread to
work with. Once much is to be encoded, all seats but one are given a process to do the work (see
`encoder_process`); what goes there and comes back lies in shared memory. A process that cannot be
started, or ends, leaves its seat as it was: it makes things faster, and never other.
"""

import mmap
import os
import queue
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mstore.bases import BaseReader
from mstore.chunkencoder import ChunkEncoder, Coded, Job
from mstore.chunkstore import Session
from mstore.codecs.base import Encoded
from mstore.database import Database
from mstore.encoder_process import READY, Answer, PlacedJob, receive, send, serve
from mstore.threads import Memory, PerThread

WORTH_A_PROCESS = 24 << 20
"""Bytes to be encoded for each process that is started, which takes 0.1 s of a processor."""

PORTION_BYTES = 4 << 20
"""Bytes of chunks to encode at once, about. Much larger portions are not encoded in processes."""

_ROOM_BYTES = 2 * PORTION_BYTES

_START = "import sys; sys.path[:] = sys.argv[3:]; from mstore.encoder_process import main; main()"


class Room(NamedTuple):
    """The memory of one thread for chunks to be encoded.

    `results` is the offset in shared memory of where payloads of these chunks can go.
    """

    raw: Memory
    results: int


class Encoders:
    """Encodes chunks in as many threads and processes as it is told to use. Thread safe."""

    def __init__(self, session: Session, threads: int) -> None:
        """`threads` is how many portions to encode at once."""
        # One more than seats, so that what is next is read while all of these are taken.
        self.callers = threads + 1 if threads > 1 else 1
        self._session = session
        self._shared = None
        if threads > 1 and session.db.storage.address is not None:
            self._shared = _SharedMemory.make(self.callers * _ROOM_BYTES)
        reader = BaseReader(session.db, session.chunk_indexes)
        self._seats = [_Seat(reader, session) for _ in range(threads)]
        self._free: queue.SimpleQueue[_Seat] = queue.SimpleQueue()
        for seat in self._seats:
            self._free.put(seat)
        self._rooms = PerThread(self._new_room)
        self._numbers = count()
        self._expected = 0

    def __enter__(self) -> "Encoders":
        return self

    def __exit__(self, *_: object) -> None:
        for seat in self._seats:
            seat.end_process()

    def expect(self, size: int) -> None:
        """Be ready for so many bytes more. From one thread."""
        self._expected += size
        if self._shared is not None:
            processes = min(len(self._seats) - 1, self._expected // WORTH_A_PROCESS)
            for seat in self._seats[1 : processes + 1]:
                seat.start_process(self._shared)

    def room(self) -> Room:
        """The memory of the calling thread. Only chunks that lie there go to processes."""
        return self._rooms.get()

    def _new_room(self) -> Room:
        number = next(self._numbers)
        if self._shared is None or number >= self.callers:
            return Room(Memory(PORTION_BYTES), 0)
        return self._shared.room(number * _ROOM_BYTES)

    def encode(self, jobs: Sequence[Job]) -> list[Coded]:
        """Encode a portion as `ChunkEncoder.encode` does."""
        room = self.room()
        seat = self._free.get()
        try:
            return seat.encode(jobs, room.results)
        finally:
            self._free.put(seat)


class _SharedMemory:
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
    def make(cls, size: int) -> "_SharedMemory | None":
        """So many bytes of it; None where this system has none."""
        if os.name != "posix":
            return None
        try:
            return cls(_nameless_file(), size)
        except OSError:
            return None

    def room(self, start: int) -> Room:
        """The room that begins there."""
        results = start + PORTION_BYTES
        return Room(_Region(self.view[start:results]), results)

    def place(self, job: Job) -> PlacedJob | None:
        """`job` as it lies in this memory; None if it does not."""
        if not job.raw:
            return None
        offset = _address(job.raw) - self._start
        if not 0 <= offset <= len(self.view) - len(job.raw):
            return None
        dtype = job.dtype.code if job.dtype else 0
        return PlacedJob(offset, len(job.raw), dtype, job.checksum, job.candidates)


class _Region(Memory):
    """A part of shared memory; who wants more than there is gets memory of this process."""

    def __init__(self, region: memoryview) -> None:
        super().__init__()
        self._region = region

    def take(self, length: int) -> memoryview:
        return self._region[:length] if length <= len(self._region) else super().take(length)


class _Seat:
    """An encoder, and perhaps a process that does its work. For one caller at a time."""

    def __init__(self, reader: BaseReader, session: Session) -> None:
        self._encoder = ChunkEncoder(reader)
        self._session = session
        self._process: _Process | None = None
        self._had_process = False

    def start_process(self, shared: _SharedMemory) -> None:
        """Give this seat a process, unless it had one before."""
        if not self._had_process:
            self._had_process = True
            with suppress(OSError):
                self._process = _Process(shared, self._session)

    def end_process(self) -> None:
        """End its process, if it has one."""
        if self._process is not None:
            self._process.end()
            self._process = None

    def encode(self, jobs: Sequence[Job], results: int) -> list[Coded]:
        """Encode a portion; its payloads may be left in shared memory from `results` on."""
        if self._process is not None:
            try:
                coded = self._process.encode(jobs, results)
            except (OSError, EOFError, ValueError, TypeError):
                # Whatever became of it, all that it was to encode is still here.
                self.end_process()
            else:
                if coded is not None:
                    return coded
        return self._encoder.encode(jobs)


class _Process:
    """A process that encodes; see `encoder_process` for what is said to it."""

    def __init__(self, shared: _SharedMemory, session: Session) -> None:
        """Start it; raises OSError if that cannot be done."""
        self._shared = shared
        self._session = session
        self._ready = False
        self._link, theirs = socket.socketpair()
        for link in (self._link, theirs):
            link.setblocking(True)  # whatever the default of this process is
        with theirs:
            try:
                start = _fork if _is_alone() else _spawn
                self._process = start(self._link, theirs, shared, session.db)
            except BaseException:
                self._link.close()
                raise

    def end(self) -> None:
        """End it, whatever it does, and wait until it is gone."""
        self._process.kill()
        self._process.wait()
        self._link.close()

    def encode(self, jobs: Sequence[Job], results: int) -> list[Coded] | None:
        """Have a portion encoded; None if it cannot be: too early, or not in shared memory.

        Raises OSError, EOFError, ValueError or TypeError when the process has failed.
        """
        placed = [self._shared.place(job) for job in jobs]
        if None in placed or sum(len(job.raw) for job in jobs) > PORTION_BYTES:
            return None
        if not self._is_ready():
            return None
        unnamed = [(ref.name, ref.count, ref.size) for ref in self._session.new_indexes()]
        send(self._link, (unnamed, placed, results))
        answers = [Answer(*answer) for answer in receive(self._link)]
        if len(answers) != len(jobs):
            raise ValueError("other answers than jobs")
        coded = []
        for codec, base, depth, stored in answers:
            payload = bytes(self._shared.view[results : results + stored])
            if len(payload) != stored:
                raise ValueError("not the bytes of a payload")
            coded.append(Coded(Encoded(codec, payload), base, depth))
            results += stored
        return coded

    def _is_ready(self) -> bool:
        if not self._ready:
            try:
                said = self._link.recv(len(READY), socket.MSG_DONTWAIT)
            except BlockingIOError:
                return False
            if said != READY:
                raise EOFError
            self._ready = True
        return True


class _Child:
    """A fork of this process."""

    def __init__(self, number: int) -> None:
        self._number = number

    def kill(self) -> None:
        os.kill(self._number, signal.SIGKILL)

    def wait(self) -> None:
        os.waitpid(self._number, 0)


def _is_alone() -> bool:
    """Whether no other thread of any kind is in this process, so that a fork of it is whole."""
    try:
        return len(os.listdir("/proc/self/task")) == 1
    except OSError:  # another system than Linux
        return False


def _fork(
    ours: socket.socket, theirs: socket.socket, shared: _SharedMemory, db: Database
) -> _Child:
    """A process that has all modules already, which saves 0.1 s; raises OSError."""
    if number := os.fork():
        return _Child(number)
    try:
        os.setpgid(0, 0)
        ours.close()
        # Whoever waits for the end of what this process prints is not to wait for that one.
        nothing = os.open(os.devnull, os.O_RDWR)
        for stream in range(3):
            os.dup2(nothing, stream)
        serve(db, shared.view, theirs)
    finally:
        os._exit(0)


def _spawn(
    _: socket.socket, theirs: socket.socket, shared: _SharedMemory, db: Database
) -> "subprocess.Popen[bytes]":
    """A new process; raises OSError."""
    assert db.storage.address is not None
    # It finds the modules that this process has, but none in the working directory, where anybody's
    # files may lie.
    path = [str(Path(__file__).parents[1]), *filter(os.path.isabs, sys.path)]
    code = [sys.executable, "-I", "-S", "-c", _START]
    return subprocess.Popen(
        [*code, str(shared.file), db.storage.address, *path],
        stdin=theirs.fileno(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        pass_fds=[shared.file],
        env={**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},
        process_group=0,  # no key that is pressed in the terminal reaches it
    )


def _nameless_file() -> int:
    """The number of a new file that has no name; it is gone when all have closed it."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("mstore")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def _address(part: memoryview) -> int:
    address: int = np.frombuffer(part, np.uint8).__array_interface__["data"][0]
    return address
