"""Encoding chunks, each against the stored chunk that suits it best."""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from mstore.bases import BaseReader
from mstore.codecs.base import Base, Encoded
from mstore.codecs.choose import Encoder
from mstore.dtypes import DType
from mstore.ids import Id
from mstore.threads import Memory

_BASES_BYTES = 4 << 20
"""Bytes of candidates that are read at once, about; their own bases come on top."""


class Job(NamedTuple):
    """A chunk to be encoded, its XXH3-64, and the chunks that it may be coded against."""

    raw: memoryview
    dtype: DType | None
    checksum: int
    candidates: tuple[Id, ...] = ()


class Coded(NamedTuple):
    """What became of a chunk: its payload, its base if it has one, and its depth."""

    encoded: Encoded
    base: Id | None
    depth: int


class ChunkEncoder:
    """Encodes chunks. One thread at a time: it owns memory."""

    def __init__(self, reader: BaseReader) -> None:
        self._reader = reader
        self._encoder = Encoder()
        self._memory = Memory()

    def encode(self, jobs: Sequence[Job]) -> list[Coded]:
        """Encode these chunks, against one of their candidates or the bases of those if it pays."""
        coded: list[Coded] = []
        for some in _by_bases(jobs):
            against = dict.fromkeys(one for job in some for one in job.candidates)
            bases = self._reader.read(list(against), self._memory)
            # What was read holds until the next portion is read.
            coded += (self._encode(job, bases) for job in some)
        return coded

    def _encode(self, job: Job, bases: Mapping[Id, list[tuple[Id, Base]]]) -> Coded:
        # Those of one candidate may be among those of another.
        offered = dict(link for candidate in job.candidates for link in bases[candidate])
        ids, contents = list(offered), list(offered.values())
        encoded = self._encoder.encode(job.raw, job.dtype, contents, job.checksum)
        if encoded.base is None:
            return Coded(encoded, None, 0)
        return Coded(encoded, ids[encoded.base], contents[encoded.base].depth + 1)


def _by_bases(jobs: Sequence[Job]) -> Iterator[list[Job]]:
    """Portions whose candidates take no more memory than _BASES_BYTES, but for single chunks."""
    portion: list[Job] = []
    size = 0
    for job in jobs:
        more = len(job.raw) * len(job.candidates)
        if portion and size + more > _BASES_BYTES:
            yield portion
            portion, size = [], 0
        portion.append(job)
        size += more
    if portion:
        yield portion
