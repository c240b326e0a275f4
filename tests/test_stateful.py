"""Anything a user may do, in any order, beside a model made of plain dicts.

What the model predicts: which refs there are, which versions are kept by gc, what `undo` brings
back, what a working directory holds, and every byte of every version.
"""

import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from mstore import chunkreader, chunkstore
from mstore.database import Database
from mstore.errors import ConflictError, NotFoundError
from mstore.ops import gc as gc_module
from mstore.ops.commit import Description
from mstore.repository import Repository
from mstore.storage.base import Storage
from mstore.storage.local import LocalStorage
from mstore.storage.memory import MemoryStorage
from mstore.worktree import Worktree

CHUNK = 1024

Files = dict[str, bytes]
Ref = tuple[str, str, str]
"""Model, "branch" or "tag", and name."""

MODELS = st.sampled_from(["default", "other"])
BRANCHES = st.sampled_from(["main", "dev", "x"])
TAGS = st.sampled_from(["v1", "v2"])
SEEDS = st.lists(st.integers(0, 7), min_size=1, max_size=4, unique=True)
PATHS = st.sampled_from(["a.bin", "sub/b.bin", "sub/deep/c.txt", "d"])
CONTENTS = st.one_of(
    st.binary(max_size=40),
    st.integers(0, 3).map(lambda seed: np.random.default_rng(seed).bytes(5000)),
    st.integers(0, 2).map(lambda byte: bytes([byte]) * 3000),
)
WHICH = st.integers(0, 1 << 16)
"""Picks one of what there is."""


def array(seed: int) -> np.ndarray:
    """The array of a seed: random, or all of one value, of various types."""
    random = np.random.default_rng(seed)
    if seed % 4 == 3:
        return np.full((20, 30), seed, np.float32)
    dtype = (np.float64, np.float32, np.int16)[seed % 3]
    return (random.standard_normal((9, 30 + seed)) * 100).astype(dtype)


@dataclass
class Version:
    """A commit as the model knows it: either arrays (by seed) or files."""

    id: str
    parents: tuple[str, ...]
    order: int
    seeds: tuple[int, ...] | None = None
    files: Files = field(default_factory=dict)

    def is_right(self, repo: Repository) -> bool:
        """Whether the repository has it, bit for bit."""
        snapshot = repo[self.id]
        if self.seeds is None:
            return {path: file.read() for path, file in snapshot.files.items()} == self.files
        loaded = snapshot.load()
        return loaded.keys() == {f"w{seed}" for seed in self.seeds} and all(
            loaded[f"w{seed}"].dtype == array(seed).dtype
            and loaded[f"w{seed}"].tobytes() == array(seed).tobytes()
            for seed in self.seeds
        )


class Machine(RuleBasedStateMachine):
    """Two handles of one repository, a working directory, and the model of all that."""

    def make_storage(self) -> Storage:
        return MemoryStorage()

    @initialize()
    def begin(self) -> None:
        self.folder = Path(tempfile.mkdtemp())
        self.storage = self.make_storage()
        db = Database.create(self.storage, "ada")
        self.handles = [Repository(db), Repository(Database.open(self.storage))]
        self.directory = self.folder / "work"
        self.directory.mkdir()
        (self.directory / ".mstore").mkdir()
        self.tree = Worktree.create(self.directory, Database.open(self.storage))
        self.versions: dict[str, Version] = {}
        self.present: set[str] = set()
        self.refs: dict[Ref, str] = {}
        self.past: list[dict[Ref, str]] = []
        self.disk: Files = {}
        self.head: tuple[str | None, str | None] = ("main", None)

    def teardown(self) -> None:
        if hasattr(self, "folder"):
            repo = Repository(Database.open(self.storage))
            for identifier in self.reached(self.refs.values()):
                assert self.versions[identifier].is_right(repo)
            report = repo.verify()
            assert report.ok, report.damages
            shutil.rmtree(self.folder)

    # The model

    def change_refs(self, changed: dict[Ref, str]) -> None:
        if changed != self.refs:
            self.past.append(self.refs)
            self.refs = changed

    def reached(self, tips: Iterator[str] | object) -> set[str]:
        found: set[str] = set()
        waiting = list(tips)  # type: ignore[call-overload]
        while waiting:
            if (identifier := waiting.pop()) not in found and identifier in self.present:
                found.add(identifier)
                waiting.extend(self.versions[identifier].parents)
        return found

    def add(self, identifier: str, branch: Ref, **content: object) -> None:
        """A commit was acknowledged on `branch`."""
        tip = self.refs.get(branch)
        if identifier == tip:
            return
        assert identifier not in self.versions
        parents = (tip,) if tip else ()
        version = Version(identifier, parents, len(self.versions), **content)  # type: ignore[arg-type]
        self.versions[identifier] = version
        self.present.add(identifier)
        self.change_refs({**self.refs, branch: identifier})

    def pick(self, which: int) -> str | None:
        """Some version that is still there, or None."""
        there = sorted(self.present, key=lambda one: self.versions[one].order)
        return there[which % len(there)] if there else None

    def repo(self, which: int, model: str = "default") -> Repository:
        return self.handles[which % len(self.handles)].model(model)

    # Versions

    @rule(model=MODELS, branch=BRANCHES, seeds=SEEDS, which=WHICH)
    def commit_arrays(self, model: str, branch: str, seeds: list[int], which: int) -> None:
        content = {f"w{seed}": array(seed) for seed in seeds}
        made = self.repo(which, model).commit(
            content, branch=branch, author="ada", threads=1, chunk_size=CHUNK
        )
        tip = self.refs.get((model, "branch", branch))
        if tip is not None and self.versions[tip].seeds is not None:
            same = set(self.versions[tip].seeds or ()) == set(seeds)
            # The order of the arrays is part of the structure that is kept.
            assert made.id != tip or same
        self.add(made.id, (model, "branch", branch), seeds=tuple(seeds))

    @rule(branch=BRANCHES, files=st.dictionaries(PATHS, CONTENTS, min_size=1), which=WHICH)
    def commit_directory(self, branch: str, files: Files, which: int) -> None:
        folder = self.folder / "source"
        for path, data in files.items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_bytes(data)
        made = self.repo(which).commit(folder, branch=branch, author="ada", threads=1)
        shutil.rmtree(folder)
        self.add(made.id, ("default", "branch", branch), files=files)

    # Refs

    @rule(model=MODELS, name=BRANCHES, at=WHICH, which=WHICH)
    def branch(self, model: str, name: str, at: int, which: int) -> None:
        self.create((model, "branch", name), at, which)

    @rule(model=MODELS, name=TAGS, at=WHICH, which=WHICH)
    def tag(self, model: str, name: str, at: int, which: int) -> None:
        self.create((model, "tag", name), at, which)

    def create(self, ref: Ref, at: int, which: int) -> None:
        repo = self.repo(which, ref[0])
        repo.refresh()
        if (commit := self.pick(at)) is None:
            return
        create = repo.create_branch if ref[1] == "branch" else repo.create_tag
        if ref in self.refs:
            with pytest.raises(ConflictError):
                create(ref[2], commit, author="ada")
            return
        create(ref[2], commit, author="ada")
        self.change_refs({**self.refs, ref: commit})

    @precondition(lambda self: self.refs)
    @rule(which=WHICH)
    def delete(self, which: int) -> None:
        ref = sorted(self.refs)[which % len(self.refs)]
        repo = self.repo(which, ref[0])
        delete = repo.delete_branch if ref[1] == "branch" else repo.delete_tag
        assert delete(ref[2], author="ada") == self.refs[ref]
        with pytest.raises(NotFoundError):
            delete(ref[2], author="ada")
        self.change_refs({one: at for one, at in self.refs.items() if one != ref})

    @rule(which=WHICH)
    def undo(self, which: int) -> None:
        repo = self.repo(which)
        if not self.past:
            with pytest.raises(NotFoundError):
                repo.undo(author="ada")
        elif not set(self.past[-1].values()) <= self.present:
            with pytest.raises(ConflictError):
                repo.undo(author="ada")
        else:
            repo.undo(author="ada")
            self.refs = self.past.pop()

    # Care

    @rule(which=WHICH)
    def gc(self, which: int) -> None:
        before = len(self.present)
        self.present = self.reached(self.refs.values())
        report = self.repo(which).gc(author="ada")
        assert (report.commits, len(report.lost)) == (len(self.present), before - len(self.present))

    @rule(which=WHICH, deep=st.booleans())
    def repack(self, which: int, deep: bool) -> None:
        repo = self.repo(which)
        planned = repo.repack(deep=deep, dry_run=True, author="ada")
        done = repo.repack(deep=deep, author="ada")
        assert done.worthwhile == planned.worthwhile
        assert not repo.repack(author="ada", dry_run=True).worthwhile

    @rule(model=MODELS, which=WHICH, count=st.integers(1, 3))
    def forgetful_gc(self, model: str, which: int, count: int) -> None:
        kept: set[str] = set()
        for (other, kind, _), tip in self.refs.items():
            if other != model:
                kept |= self.reached([tip])
                continue
            behind = sorted(
                self.reached([tip]) - {tip},
                key=lambda one: self.versions[one].order,
                reverse=True,
            )
            kept.update([tip] if kind == "tag" else [tip, *behind][:count])
        self.present = kept
        report = self.repo(which, model).gc(keep_last=count, author="ada")
        assert report.commits == len(kept)

    @rule(which=WHICH)
    def reopen(self, which: int) -> None:
        self.handles[which % 2] = Repository(Database.open(self.storage))

    @rule(quick=st.booleans())
    def verify(self, quick: bool) -> None:
        report = self.handles[0].verify(quick=quick)
        assert report.ok, report.damages
        assert report.commits == len(self.reached(self.refs.values()))

    @rule(at=WHICH, which=WHICH)
    def look(self, at: int, which: int) -> None:
        reached = sorted(self.reached(self.refs.values()))
        if reached:
            repo = self.repo(which)
            repo.refresh()
            assert self.versions[reached[at % len(reached)]].is_right(repo)

    # The working directory

    @rule(path=PATHS, data=CONTENTS)
    def write(self, path: str, data: bytes) -> None:
        (self.directory / path).parent.mkdir(parents=True, exist_ok=True)
        (self.directory / path).write_bytes(data)
        self.disk[path] = data

    @precondition(lambda self: self.disk)
    @rule(which=WHICH)
    def remove(self, which: int) -> None:
        path = sorted(self.disk)[which % len(self.disk)]
        (self.directory / path).unlink()
        del self.disk[path]

    @rule()
    def commit_working_directory(self) -> None:
        branch, commit = self.head
        tip = self.refs.get(("default", "branch", branch or ""))
        if branch is None or (commit is not None and commit not in self.present):
            return
        self.tree.db.refresh()
        if commit is not None and self.versions[commit].files == self.disk:
            # Nothing differs from HEAD, wherever the branch may be.
            assert self.tree.commit(Description("ada"), threads=1).id.hex() == commit
            return
        if tip != commit:
            with pytest.raises(ConflictError):
                self.tree.commit(Description("ada"), threads=1)
            return
        made = self.tree.commit(Description("ada"), threads=1).id.hex()
        self.add(made, ("default", "branch", branch), files=dict(self.disk))
        self.head = (branch, made)
        assert self.tree.status().clean

    @rule(which=WHICH)
    def checkout(self, which: int) -> None:
        branches = sorted(ref for ref in self.refs if ref[:2] == ("default", "branch"))
        if not branches or (self.head[1] is not None and self.head[1] not in self.present):
            return
        branch = branches[which % len(branches)]
        version = self.versions[self.refs[branch]]
        before = self.versions[self.head[1]].files if self.head[1] else {}
        if version.seeds is not None or (self.head[1] and self.versions[self.head[1]].seeds):
            return
        self.tree.db.refresh()
        self.tree.checkout(bytes.fromhex(version.id), branch[2], force=True, threads=1)
        self.disk = {p: data for p, data in self.disk.items() if p not in before} | version.files
        self.head = (branch[2], version.id)

    # What always holds

    @invariant()
    def refs_are_right(self) -> None:
        if hasattr(self, "storage"):
            root = Database.open(self.storage).root
            found = {
                (model, kind, name): commit.hex()
                for model, refs in root.models.items()
                for kind, names in (("branch", refs.branches), ("tag", refs.tags))
                for name, commit in names.items()
            }
            assert found == self.refs

    @invariant()
    def disk_is_right(self) -> None:
        if hasattr(self, "directory"):
            found = {
                str(path.relative_to(self.directory)): path.read_bytes()
                for path in self.directory.rglob("*")
                if path.is_file() and ".mstore" not in path.parts
            }
            assert found == self.disk


class LocalMachine(Machine):
    """The same in a directory."""

    def make_storage(self) -> Storage:
        return LocalStorage(self.folder / "repository")


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several packs and indexes per commit, many of them rewritten by gc; few threads."""
    monkeypatch.setattr(chunkstore, "PACK_SIZE", 5 * CHUNK)
    monkeypatch.setattr(chunkstore, "_ENTRIES_PER_INDEX", 8)
    monkeypatch.setattr(gc_module, "_SMALL_PACK", 2 * CHUNK)
    monkeypatch.setattr(gc_module, "_MANY_SMALL_PACKS", 6)
    monkeypatch.setattr(chunkreader, "default_threads", lambda: 1)


def run(machine: type[Machine], examples: int, steps: int) -> None:
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


def test_in_memory() -> None:
    run(Machine, 100, 30)


def test_in_a_directory() -> None:
    run(LocalMachine, 8, 25)


@pytest.mark.slow
def test_in_memory_for_long() -> None:
    run(Machine, 400, 60)


@pytest.mark.slow
def test_in_a_directory_for_long() -> None:
    run(LocalMachine, 40, 60)
