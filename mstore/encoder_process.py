"""A process that encodes chunks for another one, which shares memory with it.

Python runs one thread at a time, and encoding a chunk is hundreds of short calls: two threads do
little more than one, two processes twice as much. `encoders` starts such processes and asks them.

On the socket that is the standard input each side sends frames: their length in four bytes, then
msgpack. Before them the process says that it is ready. A request lists the indexes of
chunks that no root names yet, and the jobs, and says where their payloads go, one behind the other;
the answer tells of each job how it was coded, with a checksum of the payload, since that passes
through memory after it was checked. Places are offsets into the shared memory. When the socket
ends, so does the process.
"""

import mmap
import os
import socket
import struct
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, NamedTuple

import msgpack
from xxhash import xxh3_64_intdigest

from mstore.bases import BaseReader
from mstore.chunkencoder import ChunkEncoder, Job
from mstore.database import Database
from mstore.dtypes import BY_CODE
from mstore.ids import Id
from mstore.index import Index, IndexRef
from mstore.storage.open import open_storage
from mstore.version import __version__

READY = f"mstore {__version__}\n".encode()
"""What the process says first; one that started from a newer installation says something else."""

_LENGTH = struct.Struct("<I")


class PlacedJob(NamedTuple):
    """A `Job` whose chunk lies in shared memory. `dtype` is the code of its type, 0 for none."""

    offset: int
    length: int
    dtype: int
    checksum: int
    candidates: tuple[Id, ...]


class Answer(NamedTuple):
    """How a job was coded: codec, base and depth, bytes of the payload and their XXH3-64."""

    codec: int
    base: Id | None
    depth: int
    stored: int
    checksum: int


def send(link: socket.socket, message: object) -> None:
    """Send one frame; raises OSError when the other side is gone."""
    packed: bytes = msgpack.packb(message)
    # Where the program leaves this signal to the system, it would end here.
    link.sendall(_LENGTH.pack(len(packed)) + packed, getattr(socket, "MSG_NOSIGNAL", 0))


def receive(link: socket.socket) -> Any:
    """The next frame; raises EOFError when the other side is gone, ValueError if it is broken."""
    (length,) = _LENGTH.unpack(_exactly(link, _LENGTH.size))
    return msgpack.unpackb(_exactly(link, length), use_list=False)


def _exactly(link: socket.socket, length: int) -> bytes:
    parts = bytearray()
    while len(parts) < length:
        if not (part := link.recv(length - len(parts))):
            raise EOFError
        parts += part
    return bytes(parts)


class _Server:
    """Encodes what is asked for, with the bases of one repository."""

    def __init__(self, db: Database, shared: memoryview) -> None:
        self._db = db
        self._shared = shared
        self._unnamed: list[IndexRef] = []
        self._encoder = ChunkEncoder(BaseReader(db, self._indexes))

    def _indexes(self) -> list[Index]:
        return [*self._db.opened(self._unnamed), *self._db.chunk_indexes()]

    def serve(self, link: socket.socket) -> None:
        """Answer requests; raises EOFError or OSError when the other side is gone."""
        link.sendall(READY)
        while True:
            unnamed, jobs, place = receive(link)
            self._unnamed = [IndexRef(*ref) for ref in unnamed]
            send(link, self._answers([PlacedJob(*job) for job in jobs], place))

    def _answers(self, jobs: Sequence[PlacedJob], place: int) -> list[Answer]:
        coded = self._encoder.encode(
            [
                Job(
                    self._shared[job.offset : job.offset + job.length],
                    BY_CODE.get(job.dtype),
                    job.checksum,
                    job.candidates,
                )
                for job in jobs
            ]
        )
        answers = []
        for encoded, base, depth in coded:
            self._shared[place : place + encoded.stored] = encoded.payload
            place += encoded.stored
            checksum = xxh3_64_intdigest(encoded.payload)
            answers.append(Answer(encoded.codec, base, depth, encoded.stored, checksum))
        return answers


def serve(db: Database, shared: memoryview, link: socket.socket) -> None:
    """Encode what is asked for, until the other side is gone."""
    with suppress(EOFError, OSError):
        _Server(db, shared).serve(link)


def main() -> None:
    """Serve on the standard input. Arguments: the number of the file of memory, the storage."""
    file, address = int(sys.argv[1]), sys.argv[2]
    memory = mmap.mmap(file, 0)
    os.close(file)
    with socket.socket(fileno=os.dup(0)) as link:
        serve(Database.open(open_storage(address)), memoryview(memory), link)
