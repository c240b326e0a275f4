"""What a long history costs: python tests/benchmarks/bench_depth.py

Size: the repository of a series beside an endless chain of it, in which every version is coded
against the one before it. The chain has the same codec and the same chunks, and nothing counts but
its payloads. Speed: the checkout of every version beside that of the same version alone in a new
repository; whole processes by turns, medians. The families are those of `make bench`.
"""

import os
import shutil
import statistics
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from families import FAMILIES, LONG_FAMILIES, MODEL, Family
from measure import Figure, in_turns, run, workspace
from programs import Mstore, Version

from mstore.chunking import DEFAULT_CHUNK_SIZE, piece_size
from mstore.codecs.base import Base
from mstore.codecs.choose import Encoder
from mstore.formats.detect import describe
from mstore.layout import Segment
from mstore.sources import BufferSource

RUNS = 3
FINE_TUNES = ("f32", "bf16-cast", "bf16")
SERIES = (*(family for family in FAMILIES if family.name in FINE_TUNES), *LONG_FAMILIES)
LARGER, SLOWER = 1.1, 0.5


def measure(model: Path) -> Iterator[Figure]:
    """Both figures of each series."""
    for family in SERIES:
        title = f"{family.name}, {len(family.versions)} versions"
        if not family.made():
            yield Figure(title, None, note="make bench trains it")
            continue
        with workspace() as work:
            series = Mstore(work / "series")
            for number in range(len(family.versions)):
                series.store(Version(number, family.directory(number), family.parent(number)))
            yield _size(f"{title}: size / endless chain", series.size(), chain_size(family))
            ratios = {
                label: checkout_ratio(series, family, number, work)
                for number, label in enumerate(family.versions)
            }
            yield _slowest(f"{title}: speed / that alone", ratios)


def _size(name: str, size: int, chain: int) -> Figure:
    note = f"{size / 1e6:.1f} MB, chain {chain / 1e6:.1f} MB"
    return Figure(name, size / chain, "x", LARGER, note=note)


def _slowest(name: str, ratios: dict[str, float]) -> Figure:
    slowest = min(ratios, key=lambda label: ratios[label])
    samples = list(ratios.values())
    note = f"slowest: {slowest}; all"
    return Figure(name, ratios[slowest], "x", SLOWER, at_most=False, note=note, samples=samples)


def chain_size(family: Family) -> int:
    """Bytes of all payloads, where each chunk is coded against that of the version before."""
    encoder = Encoder()
    before: dict[str, memoryview] = {}
    total = 0
    for number in range(len(family.versions)):
        data = (family.directory(number) / MODEL).read_bytes()
        for segment in describe(BufferSource([memoryview(data)]))[0].segments:
            raw = memoryview(data)[segment.offset : segment.offset + segment.length]
            name = segment.tensor.name if segment.tensor else f"bytes at {segment.offset}"
            total += _coded_size(encoder, segment, raw, before.get(name))
            before[name] = raw
    return total


def _coded_size(
    encoder: Encoder, segment: Segment, raw: memoryview, base: memoryview | None
) -> int:
    """Bytes of the payloads of one segment; a chunk that stays the same has none."""
    dtype = segment.tensor.dtype if segment.tensor else None
    size = piece_size(dtype, DEFAULT_CHUNK_SIZE) if dtype else DEFAULT_CHUNK_SIZE
    total = 0
    for start in range(0, len(raw), size):
        chunk = raw[start : start + size]
        like = base[start : start + size] if base is not None else None
        if chunk != like:
            bases = [Base(like, dtype, 0)] if like and dtype else []
            total += encoder.encode(chunk, dtype, bases).stored
    return total


def checkout_ratio(series: Mstore, family: Family, number: int, work: Path) -> float:
    """How fast a version comes back, as a multiple of how fast it does alone."""
    alone = Mstore(work / "alone")
    alone.store(Version(number, family.directory(number)))
    contenders = {
        place: partial(_checkout, place, number, work / "out") for place in (series, alone)
    }
    times = in_turns(contenders, RUNS)
    alone.remove()
    return statistics.median(times[alone]) / statistics.median(times[series])


def _checkout(repository: Mstore, number: int, out: Path) -> float:
    out.mkdir()
    os.sync()
    took = repository.restore(number, out)
    shutil.rmtree(out)
    return took


if __name__ == "__main__":
    run("Long histories", measure)
