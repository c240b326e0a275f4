"""Speed of the Python API with no disk in it: python tests/benchmarks/bench_memory_speed.py

All tensors of the model from numpy into a repository in memory, and back into numpy. GB/s of raw
bytes; hashing, encoding, checking and packing included.
"""

from collections.abc import Iterator
from pathlib import Path

from measure import Figure, median, repeat, run, seconds
from models import memory_repository, read_arrays

RUNS = 9


def measure(model: Path) -> Iterator[Figure]:
    """Commit and load."""
    arrays = read_arrays(model / "model.safetensors")
    size = sum(array.nbytes for array in arrays.values())
    repo = memory_repository()
    repo.commit(arrays)
    commits = repeat(lambda: seconds(lambda: memory_repository().commit(arrays)), RUNS)
    yield _speed("commit to memory", size, commits, 0.8)
    loads = repeat(lambda: seconds(lambda: repo["main"].load()), RUNS)
    yield _speed("load all tensors", size, loads, 1.2)


def _speed(name: str, size: int, times: list[float], target: float) -> Figure:
    speeds = [size / taken / 1e9 for taken in times]
    return median(name, speeds, "GB/s", target, at_most=False)


if __name__ == "__main__":
    run("Speed in memory", measure)
