"""Work on very many chunks at once: python tests/benchmarks/bench_chunks.py"""

import statistics
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from measure import GIB, MIB, MSTORE, Figure, median, repeat, run, seconds, watch_process, workspace
from repositories import add_index, add_versions, create

from mstore.bulkindex import as_ids, columns, locate
from mstore.index import Index

RUNS = 5
INDEXED = 10_000_000
LOOKED_UP = 1_000_000
MARKED = 1_000_000


def measure(model: Path) -> Iterator[Figure]:
    """Bulk look-up, and what gc does before it deletes."""
    with workspace() as work:
        yield _look_up(work / "indexed")
        yield from _gc(work / "versions")


def _look_up(directory: Path) -> Figure:
    """Ids in no order, of which half are in the index."""
    repo = create(directory)
    add_index(repo, INDEXED)
    indexes = repo.database.chunk_indexes()
    random = np.random.default_rng(1)
    rows = random.integers(0, INDEXED, LOOKED_UP // 2)
    absent = as_ids(random.bytes(32 * (LOOKED_UP - len(rows))))
    ids = random.permutation(np.concatenate((_ids(indexes[0], rows), absent)))
    assert locate(indexes, ids).found.sum() == len(rows)
    times = repeat(lambda: seconds(lambda: locate(indexes, ids)), RUNS)
    name = f"look-up of {LOOKED_UP:,} ids in {INDEXED:,}"
    return median(name, [LOOKED_UP / t for t in times], "ids/s", 1e6, at_most=False)


def _ids(index: Index, rows: np.ndarray) -> np.ndarray:
    """The ids in these rows, shape (n, 32)."""
    keys, table = columns(index)
    numbers = [keys[rows].byteswap(), *(table[f"tail{n}"][rows] for n in range(3))]
    return np.ascontiguousarray(np.stack(numbers, axis=1)).view(np.uint8)


def _gc(directory: Path) -> Iterator[Figure]:
    add_versions(create(directory), MARKED)
    gc = (MSTORE, "--repo", directory, "gc", "--dry-run")
    done = [watch_process(*gc, cwd=directory) for _ in range(3)]
    what = f"gc --dry-run, {MARKED:,} chunks"
    yield median(what, [process.seconds for process in done], "s", 15)
    resident = statistics.median(process.resident for process in done)
    anonymous = statistics.median(process.anonymous for process in done)
    note = f"{anonymous / MIB:.0f} MiB without mapped files"
    yield Figure(f"{what}: peak memory", resident, "bytes", GIB, note=note)


if __name__ == "__main__":
    run("Very many chunks", measure)
