"""Finding what a model was made from: python tests/benchmarks/bench_bases.py

In a repository of 100,000 tensors that all could be compared with those of the model, and none of
which is like them: so all of it is cost.
"""

import shutil
import statistics
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from unittest import mock

import numpy as np
from measure import Figure, in_turns, median, repeat, run, seconds, workspace
from repositories import AUTHOR, create

from mstore.basefinder import BaseFinder
from mstore.chunking import DEFAULT_CHUNK_SIZE
from mstore.formats.detect import describe
from mstore.repository import Repository, open_repository
from mstore.similar import sketch
from mstore.sketches import FILE_DTYPE, Rows, store_sketches, values_of
from mstore.sources import FileSource

RUNS = 9
TENSORS = 100_000
TENSORS_PER_FILE = 200
OBJECTS = (0.6, 0.25, 0.1, 0.03, 0.015, 0.005)
"""How many of the sketches are in each object, about as mergers leave them."""


def measure(model: Path) -> Iterator[Figure]:
    """The search by itself, and whole commits with it and without."""
    weights = model / "model.safetensors"
    with workspace() as work:
        repo = create(work / "filled")
        fill(repo, weights)
        find = repeat(lambda: search(repo, weights), RUNS)
        yield median(f"finding bases among {TENSORS:,} tensors", find, "s")
        contenders = {
            "without": lambda: commit(work, weights, find=False),
            "with": lambda: commit(work, weights, find=True),
        }
        times = in_turns(contenders, RUNS)
        yield median("commit of the model without it", times["without"], "s")
        yield median("commit of the model with it", times["with"], "s")
        share = statistics.median(find) / statistics.median(times["without"])
        yield Figure("the search, of such a commit", share, "", 0.03)
        paired = [one / other for one, other in zip(times["with"], times["without"], strict=True)]
        yield median("commit with it, of one without", paired, "", 1.03)


def fill(repo: Repository, weights: Path) -> None:
    """List sketches of random tensors, in the classes and about the spreads of the model's."""
    source = FileSource(weights)
    layout = describe(source)[0]
    own = sketch(source, layout, range(len(layout.segments)))
    source.close()
    random = np.random.default_rng(0)
    refs = []
    for share in OBJECTS:
        rows = _random_rows(random, own, round(TENSORS * share))
        files = np.zeros(-(-len(rows) // TENSORS_PER_FILE), FILE_DTYPE)
        files["manifest"] = random.integers(0, 256, files["manifest"].shape)
        rows["file"] = np.arange(len(rows)) // TENSORS_PER_FILE
        refs.append(store_sketches(repo.database.storage, files, rows))
    repo.database.publish(
        lambda root: replace(root, sketches=tuple(refs)), action="build", author=AUTHOR
    )


def _random_rows(random: np.random.Generator, own: Rows, count: int) -> Rows:
    rows = own[random.integers(0, len(own), count)]
    values = random.standard_normal(rows["samples"].shape, np.float32)
    values *= (rows["spread"] * random.uniform(0.5, 2, count) / np.sqrt(values.shape[1]))[:, None]
    rows["samples"] = values.astype(np.float32).view(np.uint32) >> 16
    rows["spread"] = np.linalg.norm(values_of(rows["samples"]), axis=1)
    rows["segment"] = np.arange(count) % TENSORS_PER_FILE
    return rows


def search(repo: Repository, weights: Path) -> float:
    """Seconds that a commit of the model takes to find bases."""
    source = FileSource(weights)
    layout = describe(source)[0]
    finder = BaseFinder(repo.database, [])
    start = time.perf_counter()
    found = finder.find("model.safetensors", source, layout, DEFAULT_CHUNK_SIZE)
    took = time.perf_counter() - start
    source.close()
    assert not any(found)
    return took


def commit(work: Path, weights: Path, *, find: bool) -> float:
    """Seconds that a commit of the model takes, into a copy of the repository."""
    copy = work / "copy"
    shutil.copytree(work / "filled", copy)
    repo = open_repository(copy)
    nothing = mock.patch.object(BaseFinder, "find", _find_nothing)
    try:
        if find:
            return seconds(lambda: repo.commit(weights, author=AUTHOR))
        with nothing:
            return seconds(lambda: repo.commit(weights, author=AUTHOR))
    finally:
        shutil.rmtree(copy)


def _find_nothing(self: BaseFinder, path, source, layout, chunk_size):
    return [()] * len(layout.segments)


if __name__ == "__main__":
    run("Finding bases", measure)
