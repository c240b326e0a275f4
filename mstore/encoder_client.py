"""The side of a process that encodes on which it is asked: starting it, asking it, ending it.

What is said stands in `encoder_process`, which is the other side.
"""

import gc
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from xxhash import xxh3_64_intdigest

from mstore import threads
from mstore.bases import MAX_DEPTH
from mstore.chunkencoder import Coded, Job
from mstore.chunkstore import Session
from mstore.codecs.base import Encoded
from mstore.database import Database
from mstore.encoder_process import READY, Answer, PlacedJob, receive, send, serve
from mstore.ids import ID_SIZE
from mstore.sharedmemory import SharedMemory

_SECONDS = 60.0  # for a portion, which takes some hundredths of a second unless a process hangs

_START = "import sys; sys.path[:] = sys.argv[3:]; from mstore.encoder_process import main; main()"


class EncoderProcess:
    """A process that encodes; see `encoder_process` for what is said to it."""

    def __init__(self, shared: SharedMemory, session: Session) -> None:
        """Start it; raises OSError if that cannot be done."""
        self._shared = shared
        self._session = session
        self._ready = False
        self._link, theirs = socket.socketpair()
        theirs.setblocking(True)  # whatever the default of this process is
        self._link.setblocking(False)
        with theirs:
            try:
                start = _fork if is_alone() else _spawn
                self._process = start(self._link, theirs, shared, session.db)
            except BaseException:
                self._link.close()
                raise

    def kill(self) -> None:
        """Make it end at once, whatever it does."""
        self._process.kill()

    def end(self) -> None:
        """End it, and wait until it is gone."""
        self._process.kill()
        self._process.wait()
        self._link.close()

    def encode(self, jobs: Sequence[Job], results: int) -> list[Coded] | None:
        """Have a portion encoded; None if it cannot be: too early, or not in shared memory.

        Raises OSError, EOFError, ValueError or TypeError when the process has failed.
        """
        placed = [_placed(job, self._shared) for job in jobs]
        if None in placed or not self._is_ready():
            return None
        unnamed = [(ref.name, ref.count, ref.size) for ref in self._session.new_indexes()]
        send(self._link, (unnamed, placed, results))
        answers = [Answer(*answer) for answer in receive(self._link)]
        if len(answers) != len(jobs):
            raise ValueError("other answers than jobs")
        coded = []
        for answer in answers:
            payload = bytes(self._shared.view[results : results + answer.stored])
            coded.append(_checked(answer, payload))
            results += answer.stored
        return coded

    def _is_ready(self) -> bool:
        if not self._ready:
            try:
                said = self._link.recv(len(READY), socket.MSG_DONTWAIT)
            except BlockingIOError:
                return False
            if said != READY:
                raise EOFError
            self._link.settimeout(_SECONDS)
            self._ready = True
        return True


def _placed(job: Job, shared: SharedMemory) -> PlacedJob | None:
    """`job` as it lies in shared memory; None if it does not."""
    offset = shared.offset(job.raw)
    if offset is None:
        return None
    dtype = job.dtype.code if job.dtype else 0
    return PlacedJob(offset, len(job.raw), dtype, job.checksum, job.candidates)


def _checked(answer: Answer, payload: bytes) -> Coded:
    """What an answer says, with its payload; raises ValueError if they do not belong together."""
    codec, base, depth, _, checksum = answer
    if xxh3_64_intdigest(payload) != checksum:
        raise ValueError("another payload than was checked")
    if not (0 <= depth <= MAX_DEPTH and len(base or b"") == (ID_SIZE if depth else 0)):
        raise ValueError("a base of no such depth")
    return Coded(Encoded(codec, payload), base, depth)


class _Fork:
    """A fork of this process."""

    def __init__(self, number: int) -> None:
        self.pid = number
        self._is_gone = False

    def kill(self) -> None:
        # It may have been waited for already, by whoever waits for all children.
        if not self._is_gone:
            with suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)

    def wait(self) -> None:
        with suppress(ChildProcessError):
            os.waitpid(self.pid, 0)
        self._is_gone = True


def is_alone() -> bool:
    """Whether a fork of this process is whole: nothing else runs here, nor any other thread."""
    if not threads.is_own_program:
        return False
    try:
        return len(os.listdir("/proc/self/task")) == 1
    except OSError:  # another system than Linux
        return False


def _fork(ours: socket.socket, theirs: socket.socket, shared: SharedMemory, db: Database) -> _Fork:
    """A process that has all modules already, which saves 0.1 s; raises OSError."""
    if number := os.fork():
        # No key that is pressed in the terminal reaches it.
        with suppress(OSError):
            os.setpgid(number, number)
        return _Fork(number)
    try:
        # Nothing of the other's is to be finalised here.
        gc.freeze()
        ours.close()
        # Whoever waits for the end of what this process prints is not to wait for that one.
        nothing = os.open(os.devnull, os.O_RDWR)
        for stream in range(3):
            os.dup2(nothing, stream)
        serve(db, shared.view, theirs)
    finally:
        os._exit(0)


def _spawn(
    _: socket.socket, theirs: socket.socket, shared: SharedMemory, db: Database
) -> "subprocess.Popen[bytes]":
    """A new process; raises OSError."""
    python = sys.executable or ""
    if getattr(sys, "frozen", False) or not Path(python).name.lower().startswith("python"):
        raise OSError("this process is no Python that could be started again")
    # It finds the modules that this process has, and where that has them.
    path = list(filter(os.path.isabs, sys.path))
    if (here := str(Path(__file__).parents[1])) not in path:
        path.append(here)
    assert db.storage.address is not None
    return subprocess.Popen(
        [python, "-I", "-S", "-c", _START, str(shared.file), db.storage.address, *path],
        stdin=theirs.fileno(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        pass_fds=[shared.file],
        env={**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},
        process_group=0,
    )
