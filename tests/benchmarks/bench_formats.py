"""One model in many formats: python tests/benchmarks/bench_formats.py

What a repository of all of them takes, beside the smallest of them alone; how long it takes to see
the tensors of large files, and how much memory; commit and checkout beside `cp`.
"""

import json
import shutil
import statistics
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import model_files
import sparse_files
from measure import MIB, MSTORE, Figure, in_turns, median, run, run_process, stored_size, workspace
from models import read_arrays

import mstore

ALL_OF_SMALLEST = 1.02
LAYOUT_SECONDS = 2
LAYOUT_MEMORY = 256 * MIB
RUNS = 3
TIMED = ("safetensors", "torch", "hdf5", "pickle")
"""Formats whose commit and checkout are timed."""


def measure(model: Path) -> Iterator[Figure]:
    """All three."""
    yield from _together(model)
    yield from _large()
    yield from _beside_copy(model)


def _together(model: Path) -> Iterator[Figure]:
    """The model in every format in one repository."""
    arrays = read_arrays(model / "model.safetensors")
    with workspace() as work:
        folder = work / "files"
        folder.mkdir()
        alone = {}
        for name, (file, write) in model_files.WRITERS.items():
            write(folder / file, arrays)
            mstore.init(work / name, bare=True).commit(folder / file)
            alone[name] = stored_size(work / name)
            note = f"file {(folder / file).stat().st_size} bytes"
            yield Figure(f"{name} alone", alone[name], "bytes", note=note)
        repo = mstore.init(work / "all", bare=True)
        repo.commit(folder)
        seen = [file for file in repo["main"].files.values() if len(file.tensors) == len(arrays)]
        together = stored_size(work / "all")
        yield Figure("all in one repository", together, "bytes")
        yield Figure("files with all tensors seen", len(seen), "", len(alone), at_most=False)
        smallest = min(alone.values())
        yield Figure("all / the smallest", together / smallest, "x", ALL_OF_SMALLEST)


def _large() -> Iterator[Figure]:
    """Seeing the tensors of sparse files of 10 GB."""
    for name, (file, write) in sparse_files.WRITERS.items():
        with workspace() as work:
            write(work / file)
            seen = 0
            paths = sorted(work.iterdir())
            for path in paths:
                report = _described(path)
                seen += report["tensors"]
                what = f"layout of {path.suffix.lstrip('.') if len(paths) > 1 else name}"
                note = f"{path.stat().st_size / 1e9:.1f} GB"
                yield Figure(what, report["seconds"], "s", LAYOUT_SECONDS, note=note)
                used = max(report["memory"], report["children"])
                yield Figure(f"{what}: memory", used, "bytes", LAYOUT_MEMORY)
            yield Figure(f"{name}: tensors seen", seen, "", sparse_files.COUNT, at_most=False)


def _described(path: Path) -> dict:
    """What a process of its own reports of a file."""
    command = [sys.executable, Path(__file__).with_name("describe_file.py"), path]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def _beside_copy(model: Path) -> Iterator[Figure]:
    """Commit into a fresh repository and checkout out of it, beside `cp` of the file."""
    arrays = read_arrays(model / "model.safetensors")
    for name in TIMED:
        with workspace() as work:
            file, write = model_files.WRITERS[name]
            write(work / file, arrays)
            copy = partial(_copy, work, file)
            took = in_turns({"cp": copy, "mstore": partial(_commit, work, file)}, RUNS)
            yield median(f"commit of {file}", took["mstore"], "s", note=_beside(took))
            _commit(work, file, keep=True)
            took = in_turns({"cp": copy, "mstore": partial(_checkout, work)}, RUNS)
            yield median(f"checkout of {file}", took["mstore"], "s", note=_beside(took))


def _beside(took: dict[str, list[float]]) -> str:
    return f"cp {statistics.median(took['cp']):.2f} s"


def _copy(work: Path, file: str) -> float:
    """With `sync`, since what mstore writes is durable."""
    took = run_process("sh", "-c", f"cp {file} copy && sync copy", cwd=work)
    (work / "copy").unlink()
    return took


def _commit(work: Path, file: str, *, keep: bool = False) -> float:
    tree = work / "tree"
    shutil.rmtree(tree, ignore_errors=True)
    tree.mkdir()
    (tree / file).hardlink_to(work / file)
    run_process(MSTORE, "init", cwd=tree)
    took = run_process(MSTORE, "commit", "-m", "first", cwd=tree)
    if not keep:
        shutil.rmtree(tree)
    return took


def _checkout(work: Path) -> float:
    took = run_process(MSTORE, "checkout", "main", "-o", str(work / "out"), cwd=work / "tree")
    shutil.rmtree(work / "out")
    return took


if __name__ == "__main__":
    run("Formats", measure)
