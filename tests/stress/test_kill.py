"""Processes killed with SIGKILL at random moments of a commit, of gc and of repack."""

import random
import time
from pathlib import Path
from statistics import median

import pytest
import worker
from children import Child, new_journal, started
from harness import check_log
from worker import Task, content

from mstore.database import Database
from mstore.repository import Repository
from mstore.storage.local import LocalStorage

SIZE = 130_000
"""Elements: a version is two megabytes."""


class Scene:
    """A repository in a directory, and what was acknowledged in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.repository = folder / "repo"
        self.storage = LocalStorage(self.repository)
        Database.create(self.storage, "ada")
        self.acknowledged: dict[str, tuple[str, int]] = {}
        self.seeds = iter(range(1, 1 << 30))

    def task(self, **more: object) -> Task:
        return Task(
            self.repository,
            new_journal(self.folder),
            next(self.seeds),
            size=SIZE,
            pack_size=1 << 20,
            **more,  # type: ignore[arg-type]
        )

    def commit(self) -> None:
        seed = next(self.seeds) * 1_000_000
        repo = Repository(Database.open(self.storage))
        identifier = worker.commit(repo, seed, SIZE, "main")
        self.acknowledged[identifier] = ("main", seed)

    def check(self) -> None:
        """Everything acknowledged is there, bit for bit, and the next commit just works."""
        repo = Repository(Database.open(self.storage))
        history = {snapshot.id for snapshot in repo.log("main")}
        assert self.acknowledged.keys() <= history
        for identifier, (_, seed) in self.acknowledged.items():
            loaded, expected = repo[identifier].load(), content(seed, SIZE)
            assert all(loaded[name].tobytes() == expected[name].tobytes() for name in expected)
        report = repo.verify()
        assert report.ok, report.damages
        check_log(self.storage)
        self.commit()

    def forget(self) -> None:
        """Keep only the newest versions, so that checking does not take ever longer."""
        repo = Repository(Database.open(self.storage))
        repo.gc(keep_last=2)
        kept = {snapshot.id for snapshot in repo.log("main")}
        self.acknowledged = {i: what for i, what in self.acknowledged.items() if i in kept}
        sizes = sum(info.size for info in self.storage.list("packs/"))
        assert sizes < 4 * (len(kept) + 3) * SIZE * 8, "garbage was left behind"
        assert not list((self.repository / "tmp").iterdir())


def duration(child: Child, what: str) -> float:
    """How long the child takes for it: the median of a few rounds."""
    until = time.monotonic() + 60
    while len(took := [float(line[2]) for line in child.lines if line[:2] == ["end", what]]) < 5:
        time.sleep(0.005)
        assert child.process.is_alive(), child.lines[-1:]
        assert time.monotonic() < until
    return median(took)


def kill_again_and_again(scene: Scene, target: str, what: str, times: int) -> None:
    choose = random.Random(times)
    with started((target, scene.task())) as [child]:
        takes = duration(child, what)
        scene.acknowledged.update(child.acknowledged())
    scene.check()
    middles = 0
    moments = []
    # On a machine whose pace changes some come too early or too late: then there are more of them.
    for number in range(4 * times):
        if number >= times and middles > times / 2:
            break
        # The moments are spread evenly over one round, so that all parts of it are hit.
        moment = takes * (number % times + choose.random()) / times
        with started((target, scene.task())) as [child]:
            child.wait_for("begin")
            time.sleep(moment)
            child.kill()
            middles += child.in_the_middle(what)
            moments.append(moment)
            scene.acknowledged.update(child.acknowledged())
        scene.check()
        if number % 4 == 3:
            scene.forget()
    assert middles > times / 2, f"only {middles} of {times} kills came in the middle"
    assert max(moments) > 4 * min(moments)


def test_commits(tmp_path: Path) -> None:
    kill_again_and_again(Scene(tmp_path), "commit_loop", "commit", 20)


def test_gc(tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    for _ in range(3):
        scene.commit()
    kill_again_and_again(scene, "gc_loop", "gc", 20)


def test_repack(tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    for _ in range(3):
        scene.commit()
    kill_again_and_again(scene, "repack_loop", "repack", 8)


@pytest.mark.slow
def test_many_commits(tmp_path: Path) -> None:
    kill_again_and_again(Scene(tmp_path), "commit_loop", "commit", 200)


@pytest.mark.slow
def test_many_gcs(tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    for _ in range(3):
        scene.commit()
    kill_again_and_again(scene, "gc_loop", "gc", 200)


@pytest.mark.slow
def test_many_repacks(tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    for _ in range(3):
        scene.commit()
    kill_again_and_again(scene, "repack_loop", "repack", 200)
