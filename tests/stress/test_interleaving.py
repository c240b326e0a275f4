"""Another operation, whole, between any two steps of one operation: nothing is lost or invented.

A step is one call of the storage. Every pair of operations is tried with the other one coming in
front of step 0, 1, 2 … until the first operation has fewer steps than that.
"""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from itertools import count, product
from threading import Event

import pytest
from harness import (
    Arrays,
    HookedStorage,
    arrays,
    check_log,
    check_no_garbage,
    check_whole,
    commit,
    copy_of,
    one_thread,
    same,
    small_packs,
)

from mstore import chunkstore, rootlog
from mstore.database import Database
from mstore.errors import ConflictError, MstoreError, NotFoundError
from mstore.ops import verify as verify_module
from mstore.repository import Repository
from mstore.storage.memory import MemoryStorage

GONE = (3, 10, 11, 12, 13, 14, 15, 16)
"""What a deleted branch had: so much that some packs have nothing else, and some little else."""

_numbers = count(1000)


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    small_packs(monkeypatch)
    one_thread(monkeypatch)


@dataclass
class Bench:
    """A repository seen by two users.

    `first` works through `hooked`; `second` opens the storage anew whenever it acts.
    `acknowledged` is what must be there in the end; `gone` was the tip of a deleted branch.
    """

    inner: MemoryStorage
    acknowledged: dict[str, Arrays]
    gone: str

    def __post_init__(self) -> None:
        self.hooked = HookedStorage(self.inner)
        self.first = Repository(Database.open(self.hooked))

    @classmethod
    def new(cls) -> "Bench":
        """A repository with shared, half-dead and wholly dead packs."""
        inner = MemoryStorage()
        Database.create(inner, "ada")
        bench = cls(inner, {}, "")
        for seeds in ((1,), (1, 2), (1, 2, 3)):
            bench.commit(bench.second, *seeds)
        bench.gone = bench.commit(bench.second, *GONE, branch="gone")
        bench.commit(bench.second, 3, 10)
        bench.commit(bench.second, 10, 12, 20, branch="other")
        bench.second.delete_branch("gone")
        del bench.acknowledged[bench.gone]
        return bench.copy()

    def copy(self) -> "Bench":
        """Another just like it."""
        return Bench(copy_of(self.inner), dict(self.acknowledged), self.gone)

    @property
    def second(self) -> Repository:
        return Repository(Database.open(self.inner))

    def commit(self, repo: Repository, *seeds: int, branch: str = "main") -> str:
        content = arrays(*seeds)
        identifier = commit(repo, content, branch=branch)
        self.acknowledged[identifier] = content
        return identifier

    def rescue_gone(self) -> None:
        self.acknowledged[self.gone] = arrays(*GONE)


Action = Callable[[Bench], None]


# What the first user does


def commit_new(bench: Bench) -> None:
    bench.commit(bench.first, 1, 2, 30, 31)


def commit_much(bench: Bench) -> None:
    """As much as there is already, so that their indexes are of one size."""
    bench.commit(bench.first, 1, *range(30, 38))


def commit_what_is_garbage(bench: Bench) -> None:
    """Relies on chunks that only a deleted branch had."""
    bench.commit(bench.first, 3, 11, 12, 13)


def collect(bench: Bench) -> None:
    bench.first.gc()


def repack(bench: Bench) -> None:
    bench.first.repack()


def load(bench: Bench) -> None:
    for identifier, expected in bench.acknowledged.copy().items():
        assert same(bench.first[identifier].load(), expected)


def look_at_the_log(bench: Bench) -> None:
    for snapshot in bench.first.log():
        assert snapshot.files


def verify(bench: Bench) -> None:
    report = bench.first.verify()
    assert report.ok, report.damages


def tag(bench: Bench) -> None:
    bench.first.create_tag("t", "main~1")


def bring_back(bench: Bench) -> None:
    bench.first.create_branch("back", bench.gone)
    bench.rescue_gone()


def undo(bench: Bench) -> None:
    bench.first.undo()
    if "gone" in bench.second.branches:
        bench.rescue_gone()


def delete_branch(bench: Bench) -> None:
    deleted = bench.first.delete_branch("other")
    bench.acknowledged.pop(deleted, None)


# What the second user does meanwhile


def gc_between(bench: Bench) -> None:
    bench.second.gc()


def repack_between(bench: Bench) -> None:
    bench.second.repack()


def forgetful_gc_between(bench: Bench) -> None:
    repo = bench.second
    repo.gc(keep_last=2)
    kept = {snapshot.id for snapshot in repo.log()}
    bench.acknowledged = {i: a for i, a in bench.acknowledged.items() if i in kept}


def commit_between(bench: Bench) -> None:
    bench.commit(bench.second, 1, 2, next(_numbers))


def same_commit_elsewhere(bench: Bench) -> None:
    """Stores the same chunks under other packs, and is collected again."""
    repo = bench.second
    commit(repo, arrays(1, 11, 12, 13, 30, 31, 40, 41, 42), branch="passing")
    repo.delete_branch("passing")
    repo.gc()


def tag_what_is_garbage(bench: Bench) -> None:
    with suppress(NotFoundError, ConflictError):  # unless gc was first
        bench.second.create_tag("kept", bench.gone)
        bench.rescue_gone()


QUICK = {
    (commit_new, gc_between),
    (commit_what_is_garbage, gc_between),
    (commit_what_is_garbage, same_commit_elsewhere),
    (collect, gc_between),
    (collect, commit_between),
    (collect, tag_what_is_garbage),
    (load, same_commit_elsewhere),
    (tag, gc_between),
    (commit_new, commit_between),
    (bring_back, gc_between),
    (undo, same_commit_elsewhere),
    (commit_new, repack_between),
    (repack, commit_between),
}

MUST_SUCCEED = [
    *product(
        (commit_new, commit_what_is_garbage, collect, verify, tag, delete_branch),
        (gc_between, forgetful_gc_between, same_commit_elsewhere),
    ),
    *product(
        (load, look_at_the_log),
        (gc_between, commit_between, same_commit_elsewhere),
    ),
    *product((collect, verify, tag, bring_back, delete_branch), (commit_between,)),
    (collect, tag_what_is_garbage),
    (commit_what_is_garbage, tag_what_is_garbage),
    *product(
        (commit_new, commit_what_is_garbage, collect, load, verify, tag, repack), (repack_between,)
    ),
    *product(
        (repack,),
        (gc_between, forgetful_gc_between, same_commit_elsewhere, commit_between),
    ),
    (repack, tag_what_is_garbage),
]

MAY_CONFLICT = [
    (commit_new, commit_between),
    (commit_what_is_garbage, commit_between),
    *product((bring_back, undo), (gc_between, forgetful_gc_between, same_commit_elsewhere)),
]


def named(pairs: list[tuple[Action, Action]]) -> list[object]:
    return [
        pytest.param(
            *pair,
            id=f"{pair[0].__name__}-{pair[1].__name__}",
            marks=() if pair in QUICK else pytest.mark.slow,
        )
        for pair in pairs
    ]


def each_step(act: Action, other: Action) -> Iterator[tuple[Bench, Exception | None]]:
    """Run `act` once for each of its steps, with `other` in front of it."""
    template = Bench.new()
    for at in count():
        bench = template.copy()

        def hook(step: int, *_: str, at: int = at, bench: Bench = bench) -> None:
            if step == at:
                other(bench)

        problem: Exception | None = None
        with bench.hooked.hooked(hook):
            try:
                act(bench)
            except MstoreError as error:
                problem = error
        if bench.hooked.steps <= at:
            assert at > 3
            return
        # Shown by pytest when the check fails.
        print(f"{other.__name__} in front of step {at}: {bench.hooked.log[at]}; then {problem!r}")
        yield bench, problem


def check_and_go_on(bench: Bench) -> None:
    """All is there, one more commit works, and gc then leaves nothing unexpected."""
    repo = Repository(Database.open(bench.inner))
    check_log(bench.inner)
    bench.commit(repo, 50)
    check_no_garbage(repo)
    check_whole(bench.inner, bench.acknowledged)


@pytest.mark.parametrize(("act", "other"), named(MUST_SUCCEED))
def test_it_succeeds(act: Action, other: Action) -> None:
    for bench, problem in each_step(act, other):
        if problem is not None:
            raise problem
        check_and_go_on(bench)


@pytest.mark.parametrize(("act", "other"), named(MAY_CONFLICT))
def test_it_succeeds_or_says_why_not(act: Action, other: Action) -> None:
    outcomes = set()
    for bench, problem in each_step(act, other):
        # NotFoundError: what was named is no longer known at all.
        assert problem is None or isinstance(problem, ConflictError | NotFoundError)
        outcomes.add(type(problem))
        check_and_go_on(bench)
    assert ConflictError in outcomes


@pytest.mark.parametrize("act", [commit_new, commit_what_is_garbage, collect, load, verify])
def test_gc_between_all_steps(act: Action) -> None:
    """Something to collect appears, and is collected, in front of each of the first steps."""
    bench = Bench.new()

    def hook(step: int, *_: str) -> None:
        if step < 25:
            same_commit_elsewhere(bench)

    with bench.hooked.hooked(hook):
        act(bench)
    check_whole(bench.inner, bench.acknowledged)


def test_a_commit_that_gc_never_lets_through_gives_up() -> None:
    bench = Bench.new()
    before = dict(bench.acknowledged)

    def hook(_: int, method: str, key: str) -> None:
        if method == "put" and key.startswith("roots/"):
            gc_between(bench)
            bench.second.create_tag(f"t{next(_numbers)}", "main")
            gc_between(bench)

    with bench.hooked.hooked(hook), pytest.raises(ConflictError, match="garbage collections"):
        commit_new(bench)
    check_whole(bench.inner, before)


class HalfwayGc:
    """A gc in a thread of its own that stops in front of one of its steps until told to go on."""

    def __init__(self, inner: MemoryStorage, stop_at: int) -> None:
        self.storage = HookedStorage(inner)
        self.stop_at = stop_at
        self.stopped = Event()
        self.go_on = Event()
        self.pool = ThreadPoolExecutor(1)
        self.result: Future[object] | None = None

    def begin(self) -> None:
        """Run up to that step, or to the end if that comes first."""
        self.result = self.pool.submit(self._run)
        self.result.add_done_callback(lambda _: self.stopped.set())
        assert self.stopped.wait(20)

    def finish(self) -> None:
        self.go_on.set()
        if self.result is not None:
            self.result.result(20)
        self.pool.shutdown()

    def _run(self) -> None:
        repo = Repository(Database.open(self.storage))
        with self.storage.hooked(self._hook):
            repo.gc()

    def _hook(self, step: int, *_: str) -> None:
        if step == self.stop_at:
            self.stopped.set()
            assert self.go_on.wait(20)


def turning_points(template: Bench) -> list[int]:
    """The steps of a gc around which it matters most where it is: roots, and the first deletion."""
    bench = template.copy()
    with bench.hooked.hooked(lambda *_: None):
        collect(bench)
    log = bench.hooked.log
    roots = [step for step, what in enumerate(log) if what.startswith("put roots/")]
    deletions = [step for step, what in enumerate(log) if what.startswith("delete ")]
    assert len(roots) == 3
    return sorted({*roots, deletions[0], deletions[-1], roots[0] - 1})


def straddle(act: Action, stops: Iterable[int], template: Bench) -> None:
    """Begin a gc in front of each step of `act`, let `act` end, and then the gc."""
    for stop_at in stops:
        for at in count():
            bench = template.copy()
            gc = HalfwayGc(bench.inner, stop_at)

            def hook(step: int, *_: str, at: int = at, gc: HalfwayGc = gc) -> None:
                if step == at:
                    gc.begin()

            print(f"gc up to step {stop_at} in front of step {at}")
            with bench.hooked.hooked(hook):
                act(bench)
            ended = bench.hooked.steps <= at
            gc.finish()
            check_log(bench.inner)
            check_whole(bench.inner, bench.acknowledged)
            if ended:
                break


STRADDLING = [
    commit_new,
    commit_what_is_garbage,
    pytest.param(tag, marks=pytest.mark.slow),
    pytest.param(load, marks=pytest.mark.slow),
    pytest.param(collect, marks=pytest.mark.slow),
]


@pytest.mark.parametrize("act", STRADDLING)
def test_within_one_phase_of_gc(act: Action) -> None:
    template = Bench.new()
    straddle(act, turning_points(template), template)


def test_with_indexes_that_are_merged(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is merged may have been replaced by the time the merger is to be listed."""
    monkeypatch.setattr(chunkstore, "_MERGE_FACTOR", 2)
    template = Bench.new()
    straddle(commit_much, turning_points(template)[2:4], template)


@pytest.mark.slow
@pytest.mark.parametrize("act", [commit_new, commit_what_is_garbage])
def test_anywhere_within_gc(act: Action) -> None:
    template = Bench.new()
    straddle(act, range(max(turning_points(template)) + 2), template)


def begin_to_undo(bench: Bench) -> None:
    """Bring the deleted branch back while a gc is about to remove what it needs."""
    with suppress(ConflictError, NotFoundError):
        bring_back(bench)


def test_bringing_back_within_gc() -> None:
    template = Bench.new()
    straddle(begin_to_undo, turning_points(template), template)


@pytest.mark.parametrize(
    "act",
    [
        commit_new,
        pytest.param(collect, marks=pytest.mark.slow),
        tag,
        undo,
        pytest.param(delete_branch, marks=pytest.mark.slow),
    ],
)
def test_sleeping_past_the_kept_roots(act: Action, monkeypatch: pytest.MonkeyPatch) -> None:
    """In front of each step, so many roots are published that all known ones are pruned."""
    for module in (rootlog, verify_module):
        monkeypatch.setattr(module, "KEEP_ROOTS", 5)
    monkeypatch.setattr(rootlog, "_PRUNE_EVERY", 2)

    def sleep(bench: Bench) -> None:
        repo = bench.second
        for number in range(4):
            repo.create_tag(f"nap{number}", "other")
            repo.delete_tag(f"nap{number}")
        bench.commit(repo, 70, branch="meanwhile")

    for bench, problem in each_step(act, sleep):
        # A sleeper may be told of a conflict with itself; what it was told is done is done.
        assert problem is None or isinstance(problem, ConflictError | NotFoundError)
        if act is tag and problem is None:
            assert "t" in bench.second.tags
        if act is undo and problem is None and "meanwhile" not in bench.second.branches:
            # It took back what came last, which was the other's commit.
            bench.second.undo(to=bench.second.database.root.number - 1)
        repo = bench.second
        for identifier, expected in bench.acknowledged.items():
            assert same(repo[identifier].load(), expected)
        assert repo.verify().ok
