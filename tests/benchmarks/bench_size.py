"""How many bytes a repository takes: python tests/benchmarks/bench_size.py

"Stored" is every byte below the repository's directory: packs, indexes and roots.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from measure import Figure, run, stored_size, workspace
from models import as_bfloat16, read_arrays, write_arrays

import mstore

TENSORS = {
    "a matrix": "encoder.layer.3.intermediate.dense.weight",
    "a bias": "encoder.layer.3.intermediate.dense.bias",
}
SLACK = 64 << 10


def measure(model: Path) -> Iterator[Figure]:
    """First commits, and a second one in which one tensor differs."""
    original = model / "model.safetensors"
    arrays = read_arrays(original)
    with workspace() as work:
        raw = original.stat().st_size
        stored = _commit(work / "f32", original)
        yield Figure("first commit, float32", stored / raw, "of raw", 0.825, note=f"{raw} bytes")
        half = work / "bfloat16.safetensors"
        write_arrays(half, as_bfloat16(arrays))
        raw = half.stat().st_size
        stored = _commit(work / "bf16", half)
        yield Figure("first commit, bfloat16", stored / raw, "of raw", 0.668, note=f"{raw} bytes")
        for what, name in TENSORS.items():
            yield _one_changed(work / what, arrays, what, name)


def _commit(repository: Path, file: Path) -> int:
    mstore.init(repository, bare=True).commit(file)
    return stored_size(repository)


def _one_changed(directory: Path, arrays: dict, what: str, name: str) -> Figure:
    """A step of training on one tensor; what the second commit adds."""
    repo = mstore.init(directory, bare=True)
    repo.commit(arrays)
    before = stored_size(directory)
    random = np.random.default_rng(0)
    step = random.normal(0, 1e-3, arrays[name].shape).astype(np.float32)
    repo.commit(arrays | {name: arrays[name] + step})
    size = arrays[name].nbytes
    added = stored_size(directory) - before
    note = f"tensor of {size} bytes"
    return Figure(f"second commit, {what} changed", added, "bytes", size + SLACK, note=note)


if __name__ == "__main__":
    run("Stored size", measure)
