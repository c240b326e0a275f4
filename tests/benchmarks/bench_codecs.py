"""Speed and stored share of each codec: python tests/benchmarks/bench_codecs.py

Chunks of whole tensors' values in memory, one thread, no disk, no repository; GB/s of raw bytes.
"In" is all that an encoder does: it chooses a codec, encodes, decodes again and compares; "in, not
checked" leaves out the last two. "Out" is decoding. None of them includes hashing or packing, and
the base of a difference is at hand. Results are dropped as they come.
"""

import statistics
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Thread

import ml_dtypes
import numpy as np
import numpy.typing as npt
from families import FAMILIES, MODEL
from measure import Figure, median, repeat, run, seconds
from models import Arrays, read_arrays

from mstore.chunking import DEFAULT_CHUNK_SIZE, ContentChunker, piece_size
from mstore.codecs.base import Base
from mstore.codecs.choose import Decoder, Encoder
from mstore.codecs.energy import sum_of_squares
from mstore.dtypes import BY_NAME, DType

RUNS = 7
THREADS = 2

OWN = {"f32": (1.1, 2.0), "bf16": (0.8, 1.6)}
"""Element type, and the least GB/s in and out of a chunk by itself."""

DELTA = (0.35, 0.6)
"""The same of a chunk against that of the version before."""

DELTAS = {"f32": "f32", "bf16": "bf16"}
"""Families whose second version is coded against their first, and the type of their elements."""

Values = npt.NDArray[np.generic]
Bounds = tuple[float | None, float | None]


@dataclass(frozen=True, slots=True)
class Chunks:
    """Chunks of one type, and for each the bases it may be coded against."""

    raws: Sequence[memoryview]
    dtype: DType | None
    bases: Sequence[Sequence[Base]]

    @property
    def size(self) -> int:
        return sum(len(raw) for raw in self.raws)


def measure(model: Path) -> Iterator[Figure]:
    """Each type by itself, then differences."""
    values = joined(read_arrays(model / MODEL), "f32")
    for name, typed in variants(values).items():
        yield from _speeds(name, _chunks(typed, BY_NAME[name]), OWN.get(name, (None, None)))
    opaque = values[: 4 << 20]
    yield from _speeds("opaque bytes", _chunks(opaque, None), (None, None))
    raw = _bytes(opaque)
    cuts = repeat(lambda: seconds(lambda: list(ContentChunker().cut(raw, final=True))), RUNS)
    yield _speed("content-defined cuts", raw.nbytes, cuts, None)
    chunks = _chunks(values, BY_NAME["f32"])
    squares = repeat(lambda: seconds(lambda: _squares(chunks)), RUNS)
    yield _speed("f32: sum of squares", chunks.size, squares, None)
    yield from _differences()


def _differences() -> Iterator[Figure]:
    """The first steps of the fine-tunes, in which most changes."""
    for family in FAMILIES:
        if family.name not in DELTAS:
            continue
        kind = DELTAS[family.name]
        title = f"{kind}, {family.versions[1]} from its base"
        if not family.made():
            yield Figure(title, None, note="make bench trains them")
            continue
        before, after = (
            joined(read_arrays(family.directory(number) / MODEL), kind) for number in (0, 1)
        )
        yield from _speeds(title, _chunks(after, BY_NAME[kind], before), DELTA)


def joined(arrays: Arrays, kind: str) -> Values:
    """All values of the element type `kind`, one tensor after the other."""
    dtype = {"f32": np.dtype(np.float32), "bf16": np.dtype(ml_dtypes.bfloat16)}[kind]
    return np.concatenate([array.reshape(-1) for array in arrays.values() if array.dtype == dtype])


def variants(f32: Values) -> dict[str, Values]:
    """The values in several element types."""
    scale = 127 / np.abs(f32).max()
    return {
        "f32": f32,
        ">f32": f32.byteswap(),
        "bf16": f32.astype(ml_dtypes.bfloat16),
        "f16": f32.astype(np.float16),
        "f64": f32[: 4 << 20].astype(np.float64),
        "f8_e4m3": f32[: 16 << 20].astype(ml_dtypes.float8_e4m3fn),
        "i8": (f32 * scale * 8).clip(-127, 127).astype(np.int8),
        "i32": (f32[: 4 << 20] * 1e6).astype(np.int32),
    }


def _chunks(values: Values, dtype: DType | None, before: Values | None = None) -> Chunks:
    size = piece_size(dtype, DEFAULT_CHUNK_SIZE) if dtype else DEFAULT_CHUNK_SIZE
    raws = _cut(values, size)
    if before is None or dtype is None:
        return Chunks(raws, dtype, [()] * len(raws))
    return Chunks(raws, dtype, [[Base(raw, dtype, 0)] for raw in _cut(before, size)])


def _cut(values: Values, size: int) -> list[memoryview]:
    raw = _bytes(values)
    return [raw[start : start + size] for start in range(0, len(raw), size)]


def _bytes(values: Values) -> memoryview:
    return memoryview(values.view(np.uint8))


def _squares(chunks: Chunks) -> None:
    for raw in chunks.raws:
        sum_of_squares(raw, chunks.dtype)


def _speeds(name: str, chunks: Chunks, bounds: Bounds) -> Iterator[Figure]:
    """In, in without the check, and out; the note says how small, and what two threads do."""
    coders = [_Coder(chunks) for _ in range(THREADS)]
    encoded = [coders[0].encode(number) for number in range(len(chunks.raws))]
    payloads = [memoryview(one.payload) for one in encoded]

    def decode(coder: _Coder, number: int) -> None:
        coder.decode(number, encoded[number], payloads[number])

    stored = sum(one.stored for one in encoded) / chunks.size
    codecs = ", ".join(f"{count} of codec {codec}" for codec, count in _count(encoded))
    yield Figure(f"{name}: stored", stored, "of raw", note=codecs)
    for what, work, bound in (
        ("in", _Coder.encode, bounds[0]),
        ("in, not checked", _Coder.choose, None),
        ("out", decode, bounds[1]),
    ):
        times = repeat(lambda work=work: _time(coders[:1], work, len(chunks.raws)), RUNS)
        both = repeat(lambda work=work: _time(coders, work, len(chunks.raws)), RUNS)
        note = f"{THREADS} threads: {chunks.size / statistics.median(both) / 1e9:.2f} GB/s"
        yield _speed(f"{name}: {what}", chunks.size, times, bound, note)


class _Coder:
    """What one thread has."""

    def __init__(self, chunks: Chunks) -> None:
        self._chunks = chunks
        self._encoder, self._decoder = Encoder(), Decoder()
        self._out = memoryview(bytearray(max(len(raw) for raw in chunks.raws)))

    def encode(self, number: int):
        chunks = self._chunks
        return self._encoder.encode(chunks.raws[number], chunks.dtype, chunks.bases[number])

    def choose(self, number: int):
        chunks = self._chunks
        return self._encoder.choose(chunks.raws[number], chunks.dtype, chunks.bases[number])

    def decode(self, number: int, encoded, payload: memoryview) -> None:
        bases = self._chunks.bases[number]
        base = None if encoded.base is None else bases[encoded.base].raw
        out = self._out[: len(self._chunks.raws[number])]
        self._decoder.decode(encoded.codec, payload, out, base)


def _time(coders: Sequence[_Coder], work: Callable[[_Coder, int], object], count: int) -> float:
    """Seconds until all chunks are done, dealt out to as many threads as there are coders."""

    def share(index: int) -> None:
        for number in range(index, count, len(coders)):
            work(coders[index], number)

    if len(coders) == 1:
        return seconds(lambda: share(0))
    threads = [Thread(target=share, args=(index,)) for index in range(len(coders))]

    def all_of_them() -> None:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    return seconds(all_of_them)


def _count(encoded) -> list[tuple[int, int]]:
    return Counter(one.codec for one in encoded).most_common()


def _speed(
    name: str, size: int, times: Sequence[float], bound: float | None, note: str = ""
) -> Figure:
    speeds = [size / took / 1e9 for took in times]
    return median(name, speeds, "GB/s", bound, at_most=False, note=note)


if __name__ == "__main__":
    run("Codecs in memory, one thread", measure)
