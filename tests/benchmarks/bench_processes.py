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
from programs import Borg, Mstore, Program, Restic, Version

RUNS = 5
COMMIT_RATIO, CHECKOUT_RATIO = 4, 3
UNCHANGED_SECONDS = 0.3

Kind = type[Program]
COMPARED: tuple[Kind, ...] = (Mstore, Borg, Restic)


def measure(model: Path) -> Iterator[Figure]:
    """Commit, checkout, and a commit of what has not changed."""
    kinds = [kind for kind in COMPARED if kind.version()]
    with workspace() as work:
        source = work / "source"
        source.mkdir()
        shutil.copy(model / "model.safetensors", source)
        version = Version(0, source)
        commits = in_turns({kind: _Commit(kind, work, version) for kind in kinds}, RUNS)
        yield from _compare("commit", commits, COMMIT_RATIO)
        checkouts = {kind: _Checkout(kind, work, version) for kind in kinds}
        yield from _compare("checkout", in_turns(checkouts, RUNS), CHECKOUT_RATIO)
        unchanged = checkouts[Mstore].program.work
        again = repeat(lambda: run_process(MSTORE, "commit", "-m", "again", cwd=unchanged), RUNS)
        yield median("commit of an unchanged directory", again, "s", UNCHANGED_SECONDS)


class _Commit:
    """Store the file in a fresh repository, which is removed again."""

    def __init__(self, kind: Kind, work: Path, version: Version) -> None:
        self.make = lambda: kind(work / kind.name)
        self.version = version

    def __call__(self) -> float:
        program = self.make()
        took = program.store(self.version)
        program.remove()
        return took


class _Checkout:
    """Write the file out again, from a repository made beforehand."""

    def __init__(self, kind: Kind, work: Path, version: Version) -> None:
        self.out = work / "out"
        self.program = kind(work / kind.name)
        self.program.store(version)

    def __call__(self) -> float:
        self.out.mkdir()
        os.sync()
        took = self.program.restore(0, self.out)
        shutil.rmtree(self.out)
        return took


def _compare(what: str, times: Mapping[Kind, Sequence[float]], target: float) -> Iterator[Figure]:
    """Every program's time, and how many times mstore's time the others take."""
    yield median(f"{what}: mstore", times[Mstore], "s")
    for kind in COMPARED:
        if kind is Mstore:
            continue
        name = f"{what}: {kind.name}"
        if kind not in times:
            yield Figure(name, None, note="not installed")
            continue
        yield median(name, times[kind], "s", note=kind.version() or "")
        ratio = statistics.median(times[kind]) / statistics.median(times[Mstore])
        yield Figure(f"{name} / mstore", ratio, "x", target, at_most=False)


if __name__ == "__main__":
    run("Whole processes", measure)
