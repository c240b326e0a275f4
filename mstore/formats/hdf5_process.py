"""Runs the HDF5 library on a file that nobody trusts, in a process of its own.

`mstore.formats.hdf5_worker` is that process: a program that has one socket and no other way to
reach anything. It asks for bytes of the file and tells what it found; all of that may be lies,
since the library is C code and the file may have been made to break it. So the process is given
only so much time, and what it says is data to be checked. It serves one file and is gone: what one
file did to it cannot touch the next.
"""

import importlib.util
import os
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
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
_WORKER = Path(__file__).with_name("hdf5_worker.py")
_KEPT = ("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH")
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
    try:
        process, link = _start()
    except OSError as error:
        raise FormatError(f"no process can be started to read it: {error.strerror}") from None
    try:
        yield from _converse(reader, link)
    except TimeoutError:
        raise LimitExceededError("the HDF5 library took too long on it") from None
    except (EOFError, OSError):
        raise FormatError(_DIED) from None
    finally:
        process.kill()
        process.wait()
        link.close()


def _start() -> tuple["subprocess.Popen[bytes]", socket.socket]:
    """The worker, with as little as Python can do with, and our end of its socket."""
    folders = [
        str(Path(spec.origin).parent.parent)
        for spec in map(importlib.util.find_spec, ("h5py", "numpy"))
        if spec is not None and spec.origin is not None
    ]
    environment = {name: os.environ[name] for name in _KEPT if name in os.environ}
    environment |= {
        "HDF5_PLUGIN_PRELOAD": "::",  # the library's word for loading no plug-ins
        "OPENBLAS_NUM_THREADS": "1",  # each thread of numpy's would reserve memory
        "OMP_NUM_THREADS": "1",
    }
    ours, theirs = socket.socketpair()
    with theirs:
        try:
            process = subprocess.Popen(
                [sys.executable, "-I", "-S", str(_WORKER), *folders],
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env=environment,
                cwd="/",
            )
        except OSError:
            ours.close()
            raise
    return process, ours


def _converse(reader: ByteReader, link: socket.socket) -> Iterator[dict[str, object]]:
    """Answer what the worker asks, and yield what it tells, until it is done."""
    deadline = _Deadline()
    try:
        _receive(link, _FRAME.size, deadline)
    except EOFError:  # before it has seen anything of the file
        raise FormatError(_NO_LIBRARY) from None
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
