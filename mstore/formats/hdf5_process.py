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
"""Time that a file of no size is given; start takes 0.2 of it."""

SECONDS_PER_MIB = 3.0
"""Further time for each MiB of the file that is asked for, counting each place once."""

MAX_FRAME = 80 << 20
"""Most bytes of one frame; a Keras configuration may be that long."""

_BLOCK = 8192  # what the worker asks for at once
_FRAME = struct.Struct("<cQI")
_ZYGOTE = Path(__file__).with_name("hdf5_zygote.py")
_WORKER = Path(__file__).with_name("hdf5_worker.py")
_VARIABLES = ("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH")
_START, _STOP = b"+", b"-"  # what is said to a zygote; any of it stops the worker that there is
_SECONDS_TO_END = 2.0
_TOO_LONG = "the HDF5 library took too long on it"
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
    deadline = _Deadline()
    zygote, link = _hire(deadline)
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


@dataclass(frozen=True, slots=True)
class _Zygote:
    """A process that starts workers, one at a time, as asked on the socket `control`."""

    process: "subprocess.Popen[bytes]"
    control: socket.socket

    def start_worker(self, deadline: "_Deadline") -> socket.socket:
        """Start a worker; returns our end of its socket when it is ready.

        Raises OSError or EOFError if it does not get ready.
        """
        ours, theirs = socket.socketpair()
        theirs.setblocking(True)  # whatever the default of this process is
        try:
            with theirs:
                socket.send_fds(self.control, [_START], [theirs.fileno()])
            _receive(ours, _FRAME.size, deadline)
        except BaseException:
            ours.close()
            self.end()
            raise
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
            self.control.shutdown(socket.SHUT_RDWR)
        self.control.close()
        try:
            self.process.wait(_SECONDS_TO_END)
        except subprocess.TimeoutExpired:  # a worker may have stopped it
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()

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


def _hire(deadline: "_Deadline") -> tuple[_Zygote, socket.socket]:
    """A worker that is ready: its zygote and our end of its socket.

    Raises FormatError if there is none to be had, LimitExceededError if that takes too long.
    """
    try:
        if zygote := _kept():
            with contextlib.suppress(EOFError, ConnectionError):  # it has ended by itself
                return zygote, zygote.start_worker(deadline)
        zygote = _start()
        return zygote, zygote.start_worker(deadline)
    except EOFError:
        raise FormatError(_NO_LIBRARY) from None
    except TimeoutError:
        raise LimitExceededError(_TOO_LONG) from None
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
        if length > MAX_FRAME:
            raise FormatError(_DIED)
        if kind == b"r" and length <= _BLOCK:
            block = read_exactly(reader, offset, length, "what the HDF5 library reads")
            deadline.extend(offset, length)
            link.settimeout(deadline.left())
            link.sendall(block)
        elif kind == b"l":
            for line in _receive(link, length, deadline).splitlines():
                yield _record(line)
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
    try:
        record = parse_json(line.decode())
    except UnicodeDecodeError:
        raise FormatError(_DIED) from None
    if not isinstance(record, dict):
        raise FormatError(_DIED)
    if "limit" in record:
        raise LimitExceededError(str(record["limit"])[:300])
    if "failed" in record:
        raise FormatError(f"the HDF5 library cannot read it: {quote(str(record['failed'])[:200])}")
    return record


class _Deadline:
    """The end of the time that a worker has, later for every part of the file it has to read."""

    def __init__(self) -> None:
        self._end = time.monotonic() + SECONDS
        self._asked: set[int] = set()

    def extend(self, offset: int, length: int) -> None:
        """Note that the worker asked for these bytes."""
        if offset not in self._asked:
            self._asked.add(offset)
            self._end += length / (1 << 20) * SECONDS_PER_MIB

    def left(self) -> float:
        """Seconds until then; raises TimeoutError when it is past."""
        left = self._end - time.monotonic()
        if left <= 0:
            raise TimeoutError
        return left
