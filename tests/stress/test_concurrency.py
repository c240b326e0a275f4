"""Many processes at once: commits, gc without a pause, repack, tags and branches that come and go."""

import random
import signal
import time
from collections import Counter
from pathlib import Path

import pytest
from children import Child, new_journal, started
from harness import check_no_garbage
from worker import Task, content

from mstore import rootlog
from mstore.database import Database
from mstore.ids import identify_root
from mstore.ops import verify as verify_module
from mstore.repository import Repository
from mstore.rootlog import RootLog, root_key
from mstore.storage.local import LocalStorage

KEEP_ROOTS = 40

PAUSE = 0.2
"""Seconds; two commits are at most that far apart, or else gc would never win a race."""


@pytest.fixture(autouse=True)
def _few_roots(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the children have it: the log is pruned again and again."""
    monkeypatch.setattr(rootlog, "KEEP_ROOTS", KEEP_ROOTS)
    monkeypatch.setattr(verify_module, "KEEP_ROOTS", KEEP_ROOTS)


class Scene:
    """A repository in a directory, and the tasks of its users."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.stop = folder / "stop"
        self.storage = LocalStorage(folder / "repo")
        Database.create(self.storage, "ada")
        self.tasks = 0

    def task(self, **more: object) -> Task:
        self.tasks += 1
        return Task(
            self.folder / "repo",
            new_journal(self.folder),
            self.tasks,
            pack_size=40_000,
            keep_roots=KEEP_ROOTS,
            stop=self.stop,
            **more,  # type: ignore[arg-type]
        )

    def users(self, commits: int) -> list[tuple[str, Task]]:
        """Three on one branch, one on each of two others, and those who go on until the end."""
        wanted = [
            ("commit_loop", {"count": commits, "pause": PAUSE}),
            ("commit_loop", {"count": commits, "pause": PAUSE}),
            ("commit_loop", {"count": commits, "pause": PAUSE}),
            ("commit_loop", {"count": commits, "pause": PAUSE, "branch": "one"}),
            ("commit_loop", {"count": commits, "pause": PAUSE, "branch": "two"}),
            ("gc_loop", {"size": 0}),
            ("repack_loop", {"size": 0, "pause": PAUSE}),
            ("refs_loop", {}),
            ("read_loop", {}),
        ]
        return [(target, self.task(**more)) for target, more in wanted]

    def check(self, children: list[Child]) -> None:
        """Every acknowledged commit is in its branch, whole; nothing is damaged or dangles."""
        repo = Repository(Database.open(self.storage))
        histories = {
            branch: {snapshot.id for snapshot in repo.log(branch)} for branch in repo.branches
        }
        found = 0
        for child in children:
            for identifier, (branch, seed) in child.acknowledged().items():
                found += 1
                assert identifier in histories[branch], f"lost: {identifier[:12]} of {branch}"
                loaded, expected = repo[identifier].load(), content(seed, child.task.size)
                assert all(loaded[name].tobytes() == expected[name].tobytes() for name in expected)
        assert found
        report = repo.verify()
        assert report.ok, report.damages
        check_chain(self.storage)
        check_no_garbage(repo)


def check_chain(storage: LocalStorage) -> None:
    """The roots that are to be kept are all there, each named by the next."""
    log = RootLog(storage)
    newest = log.newest().number
    kept = range(max(1, newest - KEEP_ROOTS + 1), newest + 1)
    assert set(kept) <= set(log.numbers())
    for number in kept[1:]:
        before = storage.get(root_key(number - 1))
        assert log.read(number).previous == identify_root(before)


def conflicts(children: list[Child]) -> Counter[str]:
    """What the conflicts were about, by their first word."""
    return Counter(line[1] for child in children for line in child.lines if line[0] == "conflict")


def race(scene: Scene, commits: int, seconds: float) -> list[Child]:
    with started(*scene.users(commits)) as children:
        committers = [child for child in children if child.target == "commit_loop"]
        for child in committers:
            child.join(seconds)
        scene.stop.touch()
        for child in children:
            child.join(seconds)
    for child in committers:
        assert len(child.acknowledged()) == commits
    ended = Counter(line[1] for child in children for line in child.lines if line[0] == "end")
    # How often depends on how busy the machine is; that it was done at all does not.
    assert min(ended[what] for what in ("gc", "repack", "refs", "read")) > 0, ended
    told = conflicts(children)
    print(ended, told)
    # Losers on the one branch are told that it moved; others only that gc never let them through
    # ("garbage collections kept …"), or they never gc ("others recorded something …").
    assert told.keys() <= {"branch", "garbage", "others"}
    assert told["branch"] > 0
    assert not any(line[0] == "unsure" for child in children for line in child.lines)
    return children


def test_nine_processes(tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    scene.check(race(scene, 40, 60))


@pytest.mark.slow
def test_nine_processes_for_long(tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    scene.check(race(scene, 400, 600))


@pytest.mark.slow
def test_killed_stopped_and_continued(tmp_path: Path) -> None:
    """Any of them may be killed, or sleep past gcs and across the pruning of the log."""
    scene = Scene(tmp_path)
    choose = random.Random(0)
    ended: list[Child] = []
    with started(*scene.users(1 << 30)) as children:
        until = time.monotonic() + 120
        asleep: list[tuple[float, Child]] = []
        killed = 0
        while time.monotonic() < until:
            time.sleep(choose.uniform(0.05, 0.4))
            for child in children:
                assert not any(line[0] == "error" for line in child.lines), child.lines[-1]
            victim = choose.choice(children)
            if choose.random() < 0.4:
                victim.kill()
                killed += 1
                ended.append(victim)
                at = children.index(victim)
                same = {name: getattr(victim.task, name) for name in ("branch", "size", "pause")}
                children[at] = Child(victim.target, scene.task(**same))
            else:
                victim.signal(signal.SIGSTOP)
                asleep.append((time.monotonic() + choose.choice([0.1, 1, 5]), victim))
            for wake, child in list(asleep):
                if wake < time.monotonic():
                    child.signal(signal.SIGCONT)
                    asleep.remove((wake, child))
        for _, child in asleep:
            child.signal(signal.SIGCONT)
        scene.stop.touch()
        for child in children:
            child.join(60)
        ended += children
    assert killed > 50
    scene.check(ended)
