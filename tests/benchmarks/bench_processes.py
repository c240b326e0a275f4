"""mstore beside borg and restic, as whole processes: python tests/benchmarks/bench_processes.py

All store the same float32 model file on the same disk into a fresh repository, and write it out
again. The file is in the page cache; what each program makes durable is its own choice.
"""

import os
import shutil
import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from measure import MSTORE, Figure, in_turns, median, repeat, run, run_process, workspace
from programs import PROGRAMS, Mstore, Program

RUNS = 5
COMMIT_RATIO, CHECKOUT_RATIO = 4, 3
UNCHANGED_SECONDS = 0.3

Kind = type[Program]


def measure(model: Path) -> Iterator[Figure]:
    """Commit, checkout, and a commit of what has not changed."""
    kinds = [kind for kind in PROGRAMS if kind.installed()]
    with workspace() as work:
        source = work / "source"
        source.mkdir()
        shutil.copy(model / "model.safetensors", source)
        commits = in_turns({kind: _Commit(kind, work, source) for kind in kinds}, RUNS)
        yield from _compare("commit", commits, COMMIT_RATIO)
        checkouts = in_turns({kind: _Checkout(kind, work, source) for kind in kinds}, RUNS)
        yield from _compare("checkout", checkouts, CHECKOUT_RATIO)
        again = repeat(lambda: run_process(MSTORE, "commit", "-m", "again", cwd=source), RUNS)
        yield median("commit of an unchanged directory", again, "s", UNCHANGED_SECONDS)


class _Commit:
    """Store the file in a fresh repository, which is removed again."""

    def __init__(self, kind: Kind, work: Path, source: Path) -> None:
        self.make = lambda: kind(work / kind.__name__, source, "model.safetensors")

    def __call__(self) -> float:
        program = self.make()
        program.init()
        # Nobody is to wait for the writing out of what another left behind.
        os.sync()
        took = program.store()
        program.remove()
        return took


class _Checkout:
    """Write the file out again, from a repository made beforehand."""

    def __init__(self, kind: Kind, work: Path, source: Path) -> None:
        self.out = work / "out"
        self.program = kind(work / kind.__name__, source, "model.safetensors")
        self.program.init()
        self.program.store()

    def __call__(self) -> float:
        self.out.mkdir()
        os.sync()
        took = self.program.restore(self.out)
        shutil.rmtree(self.out)
        return took


def _compare(what: str, times: Mapping[Kind, Sequence[float]], target: float) -> Iterator[Figure]:
    """Every program's time, and how many times mstore's time the others take."""
    yield median(f"{what}: mstore", times[Mstore], "s")
    for kind in PROGRAMS:
        if kind is Mstore:
            continue
        name = f"{what}: {kind.command}"
        if kind not in times:
            yield Figure(name, None, note="not installed")
            continue
        yield median(name, times[kind], "s", note=kind.version())
        ratio = statistics.median(times[kind]) / statistics.median(times[Mstore])
        yield Figure(f"{name} / mstore", ratio, "x", target, at_most=False)


if __name__ == "__main__":
    run("Whole processes", measure)
