"""What child processes do in the tests that kill, stop and race them.

Each writes to its own journal, a line at a time, what it begins and what it was told is done; a
line that is written stays, whatever becomes of the process.
"""

import os
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mstore import chunkstore, rootlog
from mstore.database import Database
from mstore.errors import ConflictError, NotFoundError
from mstore.ops import gc as gc_module
from mstore.repository import Repository
from mstore.storage.local import LocalStorage

CHUNK = 64 << 10


@dataclass(frozen=True)
class Task:
    """For one child: which repository and journal, how long, and how small things are."""

    repository: Path
    journal: Path
    seed: int
    count: int = 1 << 30
    size: int = 3000
    pause: float = 0
    branch: str = "main"
    pack_size: int = 32 << 20
    keep_roots: int = rootlog.KEEP_ROOTS
    stop: Path = Path("/nonexistent")

    def rounds(self) -> Iterator[int]:
        """Numbers that no other child has, until there were enough or it is time to stop."""
        for number in range(self.count):
            if self.stop.exists():
                return
            yield self.seed * 1_000_000 + number


def content(seed: int, size: int) -> dict[str, np.ndarray]:
    """One array of its own, which is like that of others, and one that many versions share.

    They have `size` elements each.
    """
    steps = np.random.default_rng(seed).standard_normal(size)
    return {
        "own": np.random.default_rng(0).standard_normal(size) + 1e-6 * steps,
        "shared": np.random.default_rng(seed % 3).standard_normal(size),
    }


class Journal:
    """Lines of words. A line is there whole or not at all."""

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_CREAT | os.O_APPEND | os.O_WRONLY, 0o644)

    def write(self, *words: object) -> None:
        os.write(self._fd, (" ".join(map(str, words)) + "\n").encode())

    @contextmanager
    def noting(self, what: str) -> Iterator[None]:
        """Note the beginning, and the end with the seconds it took when there was no error."""
        self.write("begin", what)
        began = time.monotonic()
        yield
        self.write("end", what, time.monotonic() - began)


def read_journal(path: Path) -> list[list[str]]:
    """The words of every line so far."""
    return [line.split() for line in path.read_text().splitlines()] if path.exists() else []


def _begin(task: Task) -> tuple[Repository, Journal]:
    chunkstore.PACK_SIZE = task.pack_size
    gc_module._SMALL_PACK = task.pack_size // 2
    rootlog.KEEP_ROOTS = task.keep_roots
    rootlog._PRUNE_EVERY = max(1, task.keep_roots // 10)
    return Repository(Database.open(LocalStorage(task.repository))), Journal(task.journal)


def commit(repo: Repository, seed: int, size: int, branch: str) -> str:
    """Record the content of a seed; returns the id."""
    made = repo.commit(
        content(seed, size), str(seed), branch=branch, author="ada", threads=1, chunk_size=CHUNK
    )
    return made.id


def commit_loop(task: Task) -> None:
    """Commit to one branch, again and again; a conflict is noted and tried again."""
    repo, journal = _begin(task)
    choose = random.Random(task.seed)
    for seed in task.rounds():
        time.sleep(choose.uniform(0, task.pause))
        with journal.noting("commit"):
            while True:
                try:
                    identifier = commit(repo, seed, task.size, task.branch)
                    break
                except ConflictError as error:
                    journal.write("conflict", error.message)
            journal.write("commit", identifier, task.branch, seed)


def gc_loop(task: Task) -> None:
    """Collect garbage without a pause, making some where `count` is limited."""
    repo, journal = _begin(task)
    for seed in task.rounds():
        if task.size:
            # What begins with a shared array lets packs be half dead rather than wholly.
            branch = f"garbage{seed}"
            commit(repo, seed, task.size, branch)
            repo.delete_branch(branch, author="ada")
        try:
            with journal.noting("gc"):
                repo.gc(author="ada")
        except ConflictError as error:
            journal.write("conflict", error.message)


def repack_loop(task: Task) -> None:
    """Repack again and again, with a new version each time where `size` is given."""
    repo, journal = _begin(task)
    for seed in task.rounds():
        time.sleep(task.pause)
        if task.size:
            identifier = commit(repo, seed, task.size, task.branch)
            journal.write("commit", identifier, task.branch, seed)
        try:
            with journal.noting("repack"):
                repo.repack(author="ada")
        except ConflictError as error:
            journal.write("conflict", error.message)


def refs_loop(task: Task) -> None:
    """Make and delete tags and branches at versions of all ages."""
    repo, journal = _begin(task)
    choose = random.Random(task.seed)
    for number in task.rounds():
        time.sleep(0.02)  # or else nobody else would ever win the race
        repo.refresh()
        back = choose.randrange(5)
        name = f"{choose.choice(['t', 'u'])}{number}"
        create, delete = choose.choice(
            [(repo.create_tag, repo.delete_tag), (repo.create_branch, repo.delete_branch)]
        )
        with journal.noting("refs"):
            try:
                create(name, f"{task.branch}~{back}", author="ada")
            except NotFoundError:
                continue  # the history is not that long yet
            repo.refresh()
            assert name in {**repo.branches, **repo.tags}, "what was created is not there"
            try:
                delete(name, author="ada")
            except NotFoundError:
                # Whoever sleeps while its root is pruned cannot tell that it was published.
                journal.write("unsure", name)


def read_loop(task: Task) -> None:
    """Load versions and check every bit of them."""
    repo, journal = _begin(task)
    for _ in task.rounds():
        time.sleep(0.005)
        repo.refresh()
        if task.branch not in repo.branches:
            continue
        with journal.noting("read"):
            snapshot = repo[task.branch]
            seed = int(snapshot.message)
            loaded, expected = snapshot.load(), content(seed, task.size)
            assert all(loaded[name].tobytes() == expected[name].tobytes() for name in expected)


def guarded(target: str, task: Task) -> None:
    """Run one of the loops; what it raises goes to its journal."""
    try:
        globals()[target](task)
    except BaseException as error:
        Journal(task.journal).write("error", repr(error).replace("\n", " "))
        raise
