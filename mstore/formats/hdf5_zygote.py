"""A program that has the HDF5 library ready and starts a worker of it for each file.

Loading the library takes a hundred times as long as to fork a process that has loaded it. So this
process does only that (elsewhere such a process is called a zygote). It never sees anything of a
file: each is read by a worker of its own, which gets a copy of memory that no file has touched, and
of which nothing comes back here. So what one file does to the library cannot touch the next.

Standard input is a socket on which `mstore.formats.hdf5_process` asks. Each message ends the worker
that there is, which is answered by one byte when that is gone; a message that carries a socket
starts another one, whose standard input that is. The end of the socket ends this process.

On its socket the worker says that it is ready (`h`: its process number, or `e`: the error number,
if no process can be started), is told the size of the file, asks for blocks of it (`r`: offset,
length) and tells what it found (`c`: the text of a configuration, the offset says which; `l`: lines
of JSON, one object each; `d`: done); numbers in the frames are little-endian. A worker opens no
file and can open none, and may use little memory and time.

The arguments are the program of the worker, `hdf5_worker.py`, and the folders where h5py and numpy
are. Nothing of mstore is imported.
"""

import contextlib
import ctypes
import gc
import importlib
import json
import os
import resource
import signal
import socket
import struct
import sys
from types import ModuleType
from typing import NoReturn

SOCKET = 0  # standard input
GONE = b"-"  # the answer when a worker is gone
PR_SET_DUMPABLE = 4  # of prctl(2)
MEMORY = 192 << 20  # bytes above what Python and the libraries take
CPU_SECONDS = 120

BLOCK = 8192
BLOCKS = 512  # kept in memory: 4 MiB
BATCH = 32768  # characters of lines that are sent in one frame

FRAME = struct.Struct("<cQI")


def settle() -> None:
    """Undo what this process may have got from who started it, and hide its memory.

    A child whose end is ignored is gone before it has been waited for. Memory that may not be
    dumped can be neither read nor written by other processes of the same user, unless they have
    the rights of an administrator (ptrace(2)); forks get that, too.
    """
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    with contextlib.suppress(AttributeError):  # a system that has no prctl
        no = ctypes.c_ulong(0)
        ctypes.CDLL(None).prctl(PR_SET_DUMPABLE, no, no, no, no)


def confine() -> None:
    """Give up what a process could do harm with; a limit that the system lacks is left out."""
    pages = 0
    with contextlib.suppress(OSError), open("/proc/self/statm") as statm:  # noqa: PTH123
        pages = int(statm.read().split()[0])
    limits = [
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CPU, CPU_SECONDS),
        (resource.RLIMIT_NOFILE, 0),  # what is open stays open
        (resource.RLIMIT_NPROC, 0),
    ]
    if pages:
        limits.append((resource.RLIMIT_AS, pages * resource.getpagesize() + MEMORY))
    for what, limit in limits:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(what, (limit, limit))


def send(kind: bytes, offset: int, length: int, payload: bytes = b"") -> None:
    """Send one frame."""
    waiting = memoryview(FRAME.pack(kind, offset, length) + payload)
    while waiting:
        waiting = waiting[os.write(SOCKET, waiting) :]


class File:
    """The file as h5py wants it: seek, tell and readinto, in blocks that are asked for."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._at = 0
        self._blocks: dict[int, bytes] = {}  # the one used last at the end

    def seek(self, offset: int, whence: int = 0) -> int:
        """Go to a place; `whence` is 0 or 2."""
        self._at = offset + (self._size if whence == 2 else 0)
        return self._at

    def tell(self) -> int:
        """The place."""
        return self._at

    def flush(self) -> None:
        """Nothing is ever written."""

    def readinto(self, out: memoryview) -> int:
        """Fill `out` from the place on, as far as the file reaches; returns how far."""
        wanted = max(0, min(len(out), self._size - self._at))
        done = 0
        while done < wanted:
            number, start = divmod(self._at, BLOCK)
            piece = self._block(number)[start : start + wanted - done]
            out[done : done + len(piece)] = piece
            self._at += len(piece)
            done += len(piece)
        return done

    def _block(self, number: int) -> bytes:
        block = self._blocks.pop(number, None)
        if block is None:
            if len(self._blocks) == BLOCKS:
                del self._blocks[next(iter(self._blocks))]
            block = self._ask(number * BLOCK, min(BLOCK, self._size - number * BLOCK))
        self._blocks[number] = block
        return block

    def _ask(self, offset: int, length: int) -> bytes:
        send(b"r", offset, length)
        block = b""
        while len(block) < length:
            piece = os.read(SOCKET, length - len(block))
            if not piece:
                os._exit(1)  # whoever asked is gone
            block += piece
        return block


def encoded(text: str) -> bytes:
    """The bytes of a text, which h5py may have had from bytes that are not UTF-8."""
    return text.encode("utf-8", "backslashreplace")


class Report:
    """Lines to the parent, some at a time."""

    def __init__(self) -> None:
        self._configs: list[tuple[int, bytes]] = []
        self._lines: list[str] = []
        self._length = 0

    def add(self, **line: object) -> None:
        """Report one thing."""
        text = json.dumps(line, ensure_ascii=False)
        self._lines.append(text)
        self._length += len(text)
        if self._length >= BATCH:
            self.flush()

    def config(self, number: int, text: str) -> None:
        """Report a configuration, which is too long for a line."""
        self._configs.append((number, encoded(text)))

    def flush(self) -> None:
        """Send what has not been sent."""
        for number, text in self._configs:
            send(b"c", number, len(text), text)
        self._configs.clear()
        payload = encoded("\n".join(self._lines))
        self._lines.clear()
        self._length = 0
        if payload:
            send(b"l", 0, len(payload), payload)


def serve(worker: ModuleType) -> None:
    """Serve one file, whose size comes first."""
    confine()
    send(b"h", os.getpid(), 0)
    (size,) = struct.unpack("<Q", os.read(SOCKET, 8))
    report = Report()
    worker.list_file(File(size), report)
    report.flush()
    send(b"d", 0, 0)


def start(worker: ModuleType, link: int) -> int:
    """Start a process that serves the socket `link`; returns its number, 0 if that cannot be."""
    try:
        child = os.fork()
    except OSError as error:
        with contextlib.suppress(OSError):
            os.write(link, FRAME.pack(b"e", error.errno or 0, 0))
        os.close(link)
        return 0
    if not child:
        try:
            os.dup2(link, SOCKET)  # with that it has let go of the socket to whoever asks
            os.close(link)
            serve(worker)
        finally:
            os._exit(0)  # and nothing else that Python does when it ends
    os.close(link)
    return child


def end(child: int) -> None:
    """End a process, if it has not ended, and wait until it is gone."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(child, signal.SIGKILL)
    with contextlib.suppress(ChildProcessError):
        os.waitpid(child, 0)


def answer(worker: ModuleType, control: socket.socket) -> None:
    """Start and end workers as asked, until nobody asks."""
    child = 0
    while True:
        try:
            message, links, _, _ = socket.recv_fds(control, 1, 1)
        except OSError:
            message, links = b"", []
        if child:
            end(child)
            with contextlib.suppress(OSError):
                control.send(GONE)
        if not message:
            return
        child = start(worker, links[0]) if links else 0


def loaded(program: str) -> ModuleType:
    """The program of the worker, which finds the files beside it as parts of one package.

    Their folder must not be where all modules are looked for: it has names that others have, too.
    """
    folder, name = os.path.split(program)
    package = ModuleType("beside")
    package.__path__ = [folder]
    sys.modules["beside"] = package
    return importlib.import_module(f"beside.{name.removesuffix('.py')}")


def main() -> NoReturn:
    """Load the libraries, and answer."""
    settle()
    program, *folders = sys.argv[1:]
    sys.path += folders
    worker = loaded(program)
    worker.rehearse(Report())
    gc.freeze()  # or each worker would copy all memory in order to look for garbage in it
    answer(worker, socket.socket(fileno=SOCKET))
    os._exit(0)


if __name__ == "__main__":
    main()
