"""Every good file comes back byte for byte, and every tensor as its own library loads it."""

import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from cases import Array, Case, native
from good import LIBRARIES, writers

import mstore
from mstore.database import Database
from mstore.formats.detect import COMPANIONS, FORMATS
from mstore.ops.commit import Description
from mstore.ops.hazards import scan_directory
from mstore.ops.scan import Scan
from mstore.snapshot import Snapshot
from mstore.storage.local import LocalStorage
from mstore.tensors import TensorView
from mstore.worktree import Worktree

pytestmark = pytest.mark.filterwarnings("ignore")


@dataclass(frozen=True, slots=True)
class Corpus:
    """All good files in one version of one repository."""

    directory: Path
    cases: list[Case]
    version: Snapshot
    told: dict[str, str]

    def of(self, library: str) -> list[Case]:
        """The cases of one library."""
        return [case for case in self.cases if case.path.startswith(f"{library}/")]


@pytest.fixture(scope="module")
def corpus(good_directory) -> Corpus:
    directory, cases = good_directory
    db = Database.create(LocalStorage(directory / ".mstore"), "Ada")
    tree = Worktree.create(directory, db)
    tree.commit(Description("Ada", "all good files"))
    told = dict(warning.split(": ", 1) for warning in tree.warnings)
    return Corpus(directory, cases, mstore.Repository(db)["main"], told)


def failures(found: list[str]) -> None:
    """Fail with one line for each thing that is wrong."""
    if found:
        pytest.fail(f"{len(found)} failures:\n" + "\n".join(found), pytrace=False)


def test_there_are_enough_of_them(corpus):
    assert len(corpus.cases) >= 100
    assert len({case.path for case in corpus.cases}) == len(corpus.cases)
    assert tuple(writers()) == LIBRARIES
    for library in LIBRARIES:
        assert any(case.path.startswith(f"{library}/") for case in corpus.cases)
    known = {one.name for one in (*FORMATS, *COMPANIONS)} | {"opaque"}
    assert {case.format for case in corpus.cases} == known


def test_every_file_comes_back_byte_for_byte(corpus, tmp_path):
    corpus.version.checkout(tmp_path / "out")
    there = {p.relative_to(corpus.directory) for p in corpus.directory.rglob("*") if p.is_file()}
    there = {path for path in there if path.parts[0] != ".mstore"}
    assert {Path(case.path) for case in corpus.cases} <= there
    assert {str(path) for path in there} == set(corpus.version.files)
    failures(
        [
            f"{path} differs"
            for path in sorted(there)
            if (tmp_path / "out" / path).read_bytes() != (corpus.directory / path).read_bytes()
        ]
    )


def test_no_good_file_is_refused(corpus):
    """All are recognised as what they are, and nothing is told of them but what is meant to be."""
    wrong = []
    for case in corpus.cases:
        found, told = corpus.version.files[case.path].format, corpus.told.get(case.path, "")
        if found != case.format:
            wrong.append(f"{case.path} is taken for {found}, not {case.format}: {told}")
        elif case.told not in told or bool(case.told) != bool(told):
            wrong.append(f"{case.path}: {told!r} is said, not {case.told!r}")
    failures(wrong)


OUTSIDE = {"tensorflow/outside/saved_model.pb", "torch/script.pt"}
"""Good files that are programs: a graph that reads and writes files, and TorchScript."""


def test_no_good_file_is_dangerous_or_malformed(corpus):
    """But for those that are programs; also not those that no case names."""
    scanned = list(scan_directory(corpus.directory, Scan(corpus.directory).files()))
    assert len(scanned) >= len(corpus.cases)
    failures(
        [
            f"{one.path} is {one.hazards.verdict}: {one.hazards.problem}, {one.hazards.findings}"
            for one in scanned
            if one.hazards is None
            or (one.hazards.verdict == "dangerous") != (one.path in OUTSIDE)
            or one.hazards.verdict == "malformed"
        ]
    )


@pytest.mark.parametrize("library", LIBRARIES)
def test_every_tensor_is_what_its_library_loads(corpus, library):
    wrong = []
    for case in corpus.of(library):
        expected, found = case.tensors(), corpus.version.files[case.path].tensors
        if missing := expected.keys() - found.keys():
            wrong.append(f"{case.path} lacks {sorted(missing)[:5]}")
        if extra := found.keys() - expected.keys():
            wrong.append(f"{case.path} has also {sorted(extra)[:5]}")
        wrong += [
            f"{case.path}: {name!r} {problem}"
            for name in expected.keys() & found.keys()
            if (problem := difference(found[name], expected[name]))
        ]
    failures(wrong)


def difference(tensor: TensorView, expected: Array) -> str:
    """In what a tensor differs from the array that its library loads; empty if in nothing."""
    whole, wanted = native(tensor.numpy()), native(expected)
    if (whole.dtype, whole.shape) != (wanted.dtype, wanted.shape):
        return f"is {whole.dtype}{whole.shape}, not {wanted.dtype}{wanted.shape}"
    if whole.tobytes() != wanted.tobytes():
        return "has other bits"
    index = some_part(wanted)
    part = native(np.asarray(tensor[index]))
    if part.tobytes() != wanted[index].tobytes() or part.shape != wanted[index].shape:
        return f"has other bits at {index}"
    return ""


def some_part(array: Array) -> tuple[slice | int, ...]:
    """A slice or a number for each axis of an array, the same in every run."""
    chance = random.Random(repr(array.shape))
    return tuple(
        chance.randrange(extent)
        if extent and chance.random() < 0.3
        else slice(chance.randrange(extent + 1), None, chance.choice((1, 2, 3)))
        for extent in array.shape
    )
