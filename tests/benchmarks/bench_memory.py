"""Peak memory on a model of 4 GiB: python tests/benchmarks/bench_memory.py

Anonymous and shared memory, which the process needs; VmHWM, in the notes, also counts pages of
mapped files, which belong to the page cache.
"""

from collections.abc import Iterator
from pathlib import Path

from measure import GIB, MIB, MSTORE, Figure, run, watch_process, workspace
from models import write_large

SIZE = 4 * GIB
MUCH, LITTLE = 512 * MIB, 100 * MIB


def measure(model: Path) -> Iterator[Figure]:
    """Commit, checkout, log and status, each as one process."""
    with workspace() as work:
        source = work / "source"
        source.mkdir()
        write_large(source / "model.safetensors", SIZE)
        watch_process(MSTORE, "init", cwd=source)
        for words, bound in (
            (["commit", "-m", "first"], MUCH),
            (["checkout", "main", "-o", str(work / "out")], MUCH),
            (["log"], LITTLE),
            (["status"], LITTLE),
        ):
            process = watch_process(MSTORE, *words, cwd=source)
            note = f"VmHWM {process.resident / MIB:.0f} MiB, {process.seconds:.2f} s"
            if bound == MUCH:
                note += f", {SIZE / process.seconds / 1e9:.2f} GB/s"
            yield Figure(f"mstore {words[0]}", process.anonymous, "bytes", bound, note=note)


if __name__ == "__main__":
    run("Peak memory, 4 GiB model", measure)
