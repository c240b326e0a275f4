"""How fast a process starts: python tests/benchmarks/bench_start.py

Whole processes, from the call to the exit, with everything in the page cache.
"""

import statistics
import sys
from collections.abc import Iterator
from pathlib import Path

from measure import (
    MSTORE,
    Figure,
    in_turns,
    median,
    repeat,
    run,
    run_process,
    watch_process,
    workspace,
)
from repositories import add_commits, add_index, create

RUNS = 15
COMMITS = 10_000
CHUNKS = 10_000_000
READ_ONE_TENSOR = """
import sys, mstore
assert mstore.open(sys.argv[1])["main"].tensors["w"].numpy().size == 256
"""


def measure(model: Path) -> Iterator[Figure]:
    """Help, the log of a long history, and what a large index adds to reading one tensor."""
    with workspace() as work:
        help_times = repeat(lambda: run_process(MSTORE, "--help", cwd=work), RUNS)
        yield median("mstore --help", help_times, "s", 0.1)
        yield from _long_history(work / "long")
        yield from _large_index(work)


def _long_history(directory: Path) -> Iterator[Figure]:
    each = add_commits(create(directory), COMMITS)
    what = f"{COMMITS:,} commits"
    yield Figure(f"{what}: recording one (not synced)", each, "s")
    log = (MSTORE, "--repo", directory, "log", "-n", "10")
    times = repeat(lambda: run_process(*log, cwd=directory), RUNS)
    yield median(f"{what}: mstore log -n 10", times, "s", 0.2)
    whole = watch_process(MSTORE, "--repo", directory, "log", cwd=directory)
    yield Figure(f"{what}: mstore log, all of it", whole.seconds, "s")


def _large_index(work: Path) -> Iterator[Figure]:
    for name in ("small", "large"):
        add_commits(repo := create(work / name), 1)
    add_index(repo, CHUNKS)
    read = (sys.executable, "-c", READ_ONE_TENSOR)
    times = in_turns(
        {
            name: lambda name=name: run_process(*read, work / name, cwd=work)
            for name in ("small", "large")
        },
        RUNS,
    )
    what = f"{CHUNKS:,} chunks"
    yield median("1 chunk: open, read a tensor", times["small"], "s")
    yield median(f"{what}: open, read a tensor", times["large"], "s")
    added = statistics.median(times["large"]) - statistics.median(times["small"])
    yield Figure(f"{what}: adds", added, "s", 0.1)


if __name__ == "__main__":
    run("Start of a process", measure)
