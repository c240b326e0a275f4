"""Runs the HDF5 library on files that nobody trusts, in a process for each.

`mstore.formats.hdf5_worker` runs in that process, which has one socket and no other way to reach
anything. It asks for bytes of the file and tells what it found; all of that may be lies, since the
library is C code and the file may have been made to break it. So the process is given only so much
time, and what it says is data to be checked. It serves one file and is gone: what one file did to
it cannot touch the next. Processes are forked from one that has loaded the library and sees no file
(`mstore.formats.hdf5_zygote`). That one is kept for the next file if all went well; else the next
starts afresh.
"""

import atexit
import contextlib
import importlib.util
import io
import os
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mstore.errors import FormatError, LimitExceededError
from mstore.formats.base import quote, read_exactly
from mstore.layout import ByteReader
from mstore.strictjson import parse_json

SECONDS = 4.0
"""Time that a file of no size is given, once its worker is ready."""

SECONDS_PER_MIB = 3.0
"""Further time for each MiB of the file that is asked for, counting each place once."""

CONFIGS = ("model_config", "training_config")
"""The attributes of the root in which Keras keeps its model."""

MAX_CONFIG = 16 << 20
"""Most bytes of one of them."""

MAX_LINES = 1 << 20
"""Most bytes of lines that are told at once."""

_BLOCK = 8192  # what the worker asks for at once
_MAX_BLOCKS = 1 << 16  # of which it is remembered that they were asked for: 512 MiB
_FRAME = struct.Struct("<cQI")
_ZYGOTE = Path(__file__).with_name("hdf5_zygote.py")
_WORKER = Path(__file__).with_name("hdf5_worker.py")
_VARIABLES = ("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH")
_START, _STOP = b"+", b"-"  # what is said to a zygote; any of it stops the worker that there is
_SECONDS_TO_START = 60.0  # Python and the libraries; 0.1 unless the disk or processor is very slow
_SECONDS_TO_FORK = 2.0
_SECONDS_TO_END = 2.0
_TOO_LONG = "the HDF5 library took too long on it"
_LATE = "h5py, which reads such files, took too long to start; try again when less is going on"
_DIED = "the HDF5 library failed on it"
_NO_LIBRARY = "h5py, which reads such files, does not work here: is it installed as it should be?"


def is_available() -> bool:
    """Whether h5py is installed; does not import it."""
    return importlib.util.find_spec("h5py") is not None


def records(reader: ByteReader) -> Iterator[dict[str, object]]:
    """What the worker reports of the HDF5 file in `reader`, which starts with a superblock.

    Only that each is a JSON object has been checked.

    Raises FormatError if the library cannot be started, could not read the file or broke on it, and
    LimitExceededError if it took too much time or memory.
    """
    zygote, link = _hire()
    deadline = _Deadline(SECONDS)
    well = False
    try:
        yield from _converse(reader, link, deadline)
        well = True
    except TimeoutError:
        raise LimitExceededError(_TOO_LONG) from None
    except (EOFError, OSError):
        raise FormatError(_DIED) from None
    finally:
        link.close()
        if well:
            zygote.keep()
        else:
            zygote.end()


def end_kept() -> None:
    """End the process that is kept for the next file; without that it ends with this one."""
    while zygote := _kept():
        zygote.end()


@dataclass(slots=True, eq=False)
class _Zygote:
    """A process that starts workers, one at a time, as asked on the socket `control`.

    `worker` is the number of the last one's process, 0 before the first.
    """

    process: "subprocess.Popen[bytes]"
    control: socket.socket
    worker: int = 0

    def start_worker(self, seconds: float) -> socket.socket:
        """Start a worker; returns our end of its socket when it is ready.

        Raises OSError or EOFError if it does not get ready in this time.
        """
        deadline = _Deadline(seconds)
        ours, theirs = socket.socketpair()
        theirs.setblocking(True)  # whatever the default of this process is
        try:
            with theirs:
                socket.send_fds(self.control, [_START], [theirs.fileno()])
            # Worth belief: nothing in that process has seen anything of a file yet.
            kind, number, _ = _FRAME.unpack(_receive(ours, _FRAME.size, deadline))
            if kind == b"e":
                raise OSError(number, os.strerror(number))
        except BaseException:
            ours.close()
            self.end()
            raise
        self._is_worker_gone()  # the one before is, and that has been said first
        self.worker = number
        return ours

    def keep(self) -> None:
        """End the worker, and keep the process for the next one; of several only one is kept."""
        try:
            self.control.sendall(_STOP)
        except OSError:
            self.end()
            return
        _ZYGOTES.append(self)
        if len(_ZYGOTES) > 1 and (zygote := _kept()):
            zygote.end()

    def end(self) -> None:
        """End the worker and the process, and wait until they are gone."""
        with contextlib.suppress(OSError):
            # Unlike `close`, this ends the connection even if a fork of this process shares it.
            self.control.shutdown(socket.SHUT_WR)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(_SECONDS_TO_END)
        # A worker may have stopped or ended the process that should end it, and left its group.
        if self.worker and not self._is_worker_gone():
            with contextlib.suppress(OSError):
                os.kill(self.worker, signal.SIGKILL)
        if self.process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        self.control.close()

    def _is_worker_gone(self) -> bool:
        """Whether the process has said so of the last worker, whose number may be another's now."""
        try:
            return bool(self.control.recv(1))
        except OSError:
            return False

    def forget(self) -> None:
        """Let go of it without ending it, in a fork of the process that it belongs to."""
        self.control.close()
        self.process.returncode = 0  # there is nothing to wait for


_ZYGOTES: list[_Zygote] = []


def _kept() -> _Zygote | None:
    """The process that is kept for the next file, no longer kept; None if there is none."""
    try:
        return _ZYGOTES.pop()  # at once, so that no two threads get the same
    except IndexError:
        return None


def _forget_kept() -> None:
    while zygote := _kept():
        zygote.forget()


atexit.register(end_kept)
os.register_at_fork(after_in_child=_forget_kept)


def _hire() -> tuple[_Zygote, socket.socket]:
    """A worker that is ready: its zygote and our end of its socket.

    Raises FormatError if there is none to be had, LimitExceededError if that takes too long.
    """
    try:
        if zygote := _kept():
            # Another process, or the worker for the last file, may have ended or stopped it.
            with contextlib.suppress(EOFError, ConnectionError, TimeoutError):
                return zygote, zygote.start_worker(_SECONDS_TO_FORK)
        zygote = _start()
        return zygote, zygote.start_worker(_SECONDS_TO_START)
    except EOFError:
        raise FormatError(_NO_LIBRARY) from None
    except TimeoutError:
        raise LimitExceededError(_LATE) from None
    except OSError as error:
        raise FormatError(f"no process can be started to read it: {error.strerror}") from None


def _start() -> _Zygote:
    """A process that starts workers, with as little as Python can do with."""
    folders = [
        str(Path(spec.origin).parent.parent)
        for spec in map(importlib.util.find_spec, ("h5py", "numpy"))
        if spec is not None and spec.origin is not None
    ]
    environment = {name: os.environ[name] for name in _VARIABLES if name in os.environ}
    environment |= {
        "HDF5_PLUGIN_PRELOAD": "::",  # the library's word for loading no plug-ins
        "OPENBLAS_NUM_THREADS": "1",  # each thread of numpy's would reserve memory
        "OMP_NUM_THREADS": "1",
    }
    ours, theirs = socket.socketpair()
    ours.setblocking(False)  # no answer is waited for, and a byte at a time can always be sent
    theirs.setblocking(True)
    with theirs:
        try:
            process = subprocess.Popen(
                [sys.executable, "-I", "-S", str(_ZYGOTE), str(_WORKER), *folders],
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env=environment,
                cwd="/",
                process_group=0,  # no key that is pressed in the terminal reaches it
            )
        except OSError:
            ours.close()
            raise
    return _Zygote(process, ours)


def _converse(
    reader: ByteReader, link: socket.socket, deadline: "_Deadline"
) -> Iterator[dict[str, object]]:
    """Answer what the worker asks, and yield what it tells, until it is done."""
    link.settimeout(deadline.left())
    link.sendall(struct.pack("<Q", reader.size))
    while True:
        kind, offset, length = _FRAME.unpack(_receive(link, _FRAME.size, deadline))
        if kind == b"r" and offset % _BLOCK == 0 and 0 < length <= _BLOCK:
            block = read_exactly(reader, offset, length, "what the HDF5 library reads")
            deadline.extend(offset, length)
            link.settimeout(deadline.left())
            link.sendall(block)
        elif kind == b"l" and length <= MAX_LINES:
            for line in io.BytesIO(_receive(link, length, deadline)):
                yield _record(line)
        elif kind == b"c" and length <= MAX_CONFIG and offset < len(CONFIGS):
            text = _receive(link, length, deadline)
            yield {"config": _decoded(text), "path": CONFIGS[offset]}
        elif kind == b"d":
            return
        else:
            raise FormatError(_DIED)


def _receive(link: socket.socket, length: int, deadline: "_Deadline") -> bytes:
    parts = bytearray()
    while len(parts) < length:
        link.settimeout(deadline.left())
        part = link.recv(min(length - len(parts), 1 << 20))
        if not part:
            raise EOFError
        parts += part
    return bytes(parts)


def _record(line: bytes) -> dict[str, object]:
    record = parse_json(_decoded(line))
    if not isinstance(record, dict):
        raise FormatError(_DIED)
    if "limit" in record:
        raise LimitExceededError(str(record["limit"])[:300])
    if "failed" in record:
        raise FormatError(f"the HDF5 library cannot read it: {quote(str(record['failed'])[:200])}")
    return record


def _decoded(text: bytes) -> str:
    try:
        return text.decode()
    except UnicodeDecodeError:
        raise FormatError(_DIED) from None


class _Deadline:
    """The end of the time that a worker has, later for every part of the file it has to read."""

    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds
        self._asked: set[int] = set()

    def extend(self, offset: int, length: int) -> None:
        """Note that the worker asked for the block at this offset."""
        if offset not in self._asked and len(self._asked) < _MAX_BLOCKS:
            self._asked.add(offset)
            self._end += length / (1 << 20) * SECONDS_PER_MIB

    def left(self) -> float:
        """Seconds until then; raises TimeoutError when it is past."""
        left = self._end - time.monotonic()
        if left <= 0:
            raise TimeoutError
        return left
