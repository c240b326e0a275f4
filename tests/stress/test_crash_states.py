"""One operation is recorded, and the repository looked at in every state a crash may leave it in.

Whatever was acknowledged before is there bit for bit; the operation in flight is there whole or
not at all, and there for certain once it has returned; the next commit just works; full verify is
clean; gc then leaves nothing behind.
"""

import errno
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from crashes import (
    SYNCS,
    CrashState,
    Disk,
    Operation,
    Record,
    RecordingFiles,
    crash_states,
    needed_syncs,
)
from harness import (
    Arrays,
    arrays,
    check_no_garbage,
    check_whole,
    commit,
    one_thread,
    small_packs,
)

from mstore import chunkstore
from mstore.database import Database
from mstore.errors import NoRepositoryError
from mstore.head import Head
from mstore.ops.commit import Description
from mstore.repository import Repository
from mstore.root import Refs
from mstore.storage.files import Files
from mstore.storage.local import LocalStorage
from mstore.worktree import Worktree


class WithoutSyncs(Files):
    """For checking thousands of states: no sync is needed where no power is lost."""

    def perform(self, operation, path, call, *arguments):  # type: ignore[no-untyped-def]
        return None if operation in SYNCS else super().perform(operation, path, call, *arguments)


FAST = WithoutSyncs()


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    small_packs(monkeypatch)
    one_thread(monkeypatch)


@dataclass
class Scene:
    """A repository in `base`/repo with some history, and what was acknowledged in it."""

    base: Path
    acknowledged: dict[str, Arrays] = field(default_factory=dict)
    disk: Disk = field(default_factory=lambda: Disk({}, frozenset()))

    def open(self, files: Files = FAST) -> Repository:
        return Repository(Database.open(LocalStorage(self.base / "repo", files)))

    def commit(self, repo: Repository, *seeds: int, branch: str = "main") -> str:
        content = arrays(*seeds)
        identifier = commit(repo, content, branch=branch)
        self.acknowledged[identifier] = content
        return identifier


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    """Three versions, two branches, one of them deleted again; packs that are half dead."""
    base = tmp_path / "scene"
    base.mkdir()
    scene = Scene(base)
    Database.create(LocalStorage(base / "repo", FAST), "ada")
    repo = scene.open()
    scene.commit(repo, 1)
    scene.commit(repo, 1, 2)
    gone = scene.commit(repo, 10, 11, 12, 13, branch="gone")
    scene.commit(repo, 1, 10)
    repo.delete_branch("gone")
    del scene.acknowledged[gone]
    return scene


Step = Callable[[Scene, Repository], None]


def commit_step(scene: Scene, repo: Repository) -> None:
    scene.commit(repo, 1, 5)


def large_commit_step(scene: Scene, repo: Repository) -> None:
    """Several packs, and enough indexes that some are merged."""
    scene.commit(repo, 1, 11, *range(20, 26))


def branch_step(scene: Scene, repo: Repository) -> None:
    scene.commit(repo, 6, branch="new")


def tag_step(scene: Scene, repo: Repository) -> None:
    repo.create_tag("v1", "main~1")


def undo_step(scene: Scene, repo: Repository) -> None:
    repo.undo()
    scene.acknowledged[repo.branches["gone"]] = arrays(10, 11, 12, 13)


def gc_step(scene: Scene, repo: Repository) -> None:
    assert repo.gc().rewritten


def forgetful_gc_step(scene: Scene, repo: Repository) -> None:
    repo.gc(keep_last=1)
    scene.acknowledged = {repo.branches["main"]: arrays(1, 10)}


def record(scene: Scene, step: Step, recording: type[RecordingFiles] = RecordingFiles) -> Record:
    files = recording(scene.base)
    step(scene, scene.open(files))
    return Record(files.before, files.operations)


@contextmanager
def restored(state: CrashState, tmp_path: Path) -> Iterator[Path]:
    """A directory like that after the crash."""
    base = tmp_path / "after"
    base.mkdir()
    state.disk.write(base)
    print(state.label)  # shown by pytest when the check fails
    yield base
    shutil.rmtree(base)


Before = tuple[Refs, dict[str, Arrays]]


def check_state(state: CrashState, tmp_path: Path, before: Before, scene: Scene) -> None:
    """What holds in every state; `before` tells of before, `scene` of after the operation."""
    after = scene.open().database.root.refs("default")
    with restored(state, tmp_path) as base:
        storage = LocalStorage(base / "repo", FAST)
        refs = Database.open(storage).root.refs("default")
        assert refs in ((after,) if state.final else (before[0], after))
        expected = scene.acknowledged if refs == after else before[1]
        repo = check_whole(storage, expected)
        content = arrays(1, 99)
        identifier = commit(repo, content)
        check_no_garbage(repo)
        check_whole(storage, {**expected, identifier: content})
        assert not list((base / "repo" / "tmp").iterdir())


def seen(scene: Scene) -> Before:
    return scene.open().database.root.refs("default"), dict(scene.acknowledged)


def check_states(
    step: Step,
    scene: Scene,
    tmp_path: Path,
    one_in: int,
    recording: type[RecordingFiles] = RecordingFiles,
) -> None:
    before = seen(scene)
    recorded = record(scene, step, recording)
    states = list(crash_states(recorded))
    assert len(states) > len(recorded.operations) / 2
    # Those after the last operation come first, and are all looked at.
    for number, state in enumerate(states):
        if state.final or number % one_in == 0:
            check_state(state, tmp_path, before, scene)


@pytest.mark.parametrize(
    ("step", "one_in"), [(commit_step, 2), (tag_step, 1), (undo_step, 1), (gc_step, 8)]
)
def test_crash_states(step: Step, one_in: int, scene: Scene, tmp_path: Path) -> None:
    check_states(step, scene, tmp_path, one_in)


class LostAnswer(RecordingFiles):
    """Gives the root its name, and then says that this failed."""

    lost = False

    def perform(self, operation, path, call, *arguments):  # type: ignore[no-untyped-def]
        result = super().perform(operation, path, call, *arguments)
        if operation == "link" and path.parent.name == "roots" and not self.lost:
            self.lost = True
            raise OSError(errno.EIO, "Input/output error")
        return result


def test_a_commit_whose_success_was_reported_as_failure(scene: Scene, tmp_path: Path) -> None:
    check_states(commit_step, scene, tmp_path, 10, LostAnswer)


@pytest.mark.slow
@pytest.mark.parametrize(
    "step", [commit_step, large_commit_step, branch_step, gc_step, forgetful_gc_step]
)
def test_every_crash_state(step: Step, scene: Scene, tmp_path: Path) -> None:
    check_states(step, scene, tmp_path, 1)


def test_every_crash_state_of_a_new_repository(tmp_path: Path) -> None:
    base = tmp_path / "scene"
    base.mkdir()
    files = RecordingFiles(base)
    Database.create(LocalStorage(base / "repo", files), "ada")
    for state in crash_states(Record(files.before, files.operations)):
        with restored(state, tmp_path) as after:
            storage = LocalStorage(after / "repo", FAST)
            try:
                Database.open(storage)
            except NoRepositoryError:
                assert not state.final
                Database.create(storage, "ada")
            content = arrays(1)
            identifier = commit(Repository(Database.open(storage)), content)
            check_no_garbage(check_whole(storage, {identifier: content}))


class TestTheHarnessItself:
    """A product that forgot one sync, or did things in another order, would be found out."""

    @pytest.fixture(autouse=True)
    def _no_merges(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """An index that is merged with others at once is not missed when it is lost."""
        monkeypatch.setattr(chunkstore, "_MERGE_FACTOR", 100)

    def fails(self, operations: list[Operation], scene: Scene, before: Before, tmp: Path) -> bool:
        for state in crash_states(Record(scene.disk, operations), latest_first=True):
            try:
                check_state(state, tmp, before, scene)
            except Exception:
                shutil.rmtree(tmp / "after", ignore_errors=True)
                return True
        return False

    def test_each_sync_is_needed(self, scene: Scene, tmp_path: Path) -> None:
        before = seen(scene)
        recorded = record(scene, commit_step)
        scene.disk = recorded.before
        syncs = {str(recorded.operations[number]) for number in needed_syncs(recorded)}
        objects = sum(operation.kind == "link" for operation in recorded.operations)
        assert len(syncs) == objects + len(["packs", "indexes", "roots"])
        for sync in sorted(syncs):
            left = [one for one in recorded.operations if str(one) != sync]
            assert self.fails(left, scene, before, tmp_path), f"nobody misses {sync}"

    def test_the_root_comes_last(self, scene: Scene, tmp_path: Path) -> None:
        before = seen(scene)
        recorded = record(scene, commit_step)
        scene.disk = recorded.before
        syncs = {str(recorded.operations[number]) for number in needed_syncs(recorded)}
        links = {str(one) for one in recorded.operations if one.kind == "link"}
        for late in sorted(syncs | links):
            if "roots" in late:
                continue
            left = [one for one in recorded.operations if str(one) != late]
            moved = [one for one in recorded.operations if str(one) == late]
            assert self.fails([*left, *moved], scene, before, tmp_path), f"{late} may come late"


# Working directories

OLD = {"model.bin": b"old model " * 300, "sub/a.npy": b"old array", "sub/gone": b"goes away"}
NEW = {"model.bin": b"new model " * 300, "sub/a.npy": b"new array", "new/b": b"comes"}


class Tree:
    """A working directory, opened anew; `files` records what it does."""

    def __init__(self, base: Path, files: Files = FAST) -> None:
        self.base = base
        self.db = Database.open(LocalStorage(base / ".mstore", files))
        self.tree = Worktree(base, self.db, files)

    def content(self) -> dict[str, bytes]:
        """All files but those of the repository."""
        return {
            path: data
            for path, data in Disk.read(self.base).files.items()
            if not path.startswith(".mstore/")
        }

    def set(self, content: dict[str, bytes]) -> None:
        for path in self.content():
            (self.base / path).unlink()
        for path, data in content.items():
            (self.base / path).parent.mkdir(exist_ok=True)
            (self.base / path).write_bytes(data)

    def commit(self, message: str = "") -> bytes:
        return self.tree.commit(Description("ada", message), threads=1).id

    def files_of(self, identifier: bytes) -> dict[str, bytes]:
        files = Repository(self.db)[identifier.hex()].files
        return {path: file.read() for path, file in files.items()}


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    """OLD is committed, then NEW, and the directory shows OLD, on branch `old`."""
    base = tmp_path / "scene"
    base.mkdir()
    Worktree.create(base, Database.create(LocalStorage(base / ".mstore", FAST), "ada"), FAST)
    tree = Tree(base)
    tree.set(OLD)
    tree.commit("old")
    tree.set(NEW)
    tree.commit("new")
    Repository(tree.db).create_branch("old", "main~1")
    tree.tree.checkout(tree.db.root.refs("default").branches["old"], "old", threads=1)
    (base / "notes").write_bytes(b"not committed")
    return tree


def check_tree(tree: Tree) -> None:
    """The next commit works, and nothing is damaged."""
    (tree.base / "later").write_bytes(b"later")
    identifier = tree.commit("later")
    assert tree.files_of(identifier) == tree.content()
    assert tree.tree.status().clean
    report = Repository(tree.db).verify()
    assert report.ok, report.damages
    check_no_garbage(Repository(tree.db))


def test_every_crash_state_of_a_new_working_directory(tmp_path: Path) -> None:
    base = tmp_path / "scene"
    base.mkdir()
    files = RecordingFiles(base)
    Worktree.create(base, Database.create(LocalStorage(base / ".mstore", files), "ada"), files)
    for state in crash_states(Record(files.before, files.operations)):
        with restored(state, tmp_path) as after:
            try:
                tree = Tree(after)
            except NoRepositoryError:
                assert not state.final
                continue
            check_tree(tree)


def test_every_crash_state_of_a_checkout(tree: Tree, tmp_path: Path) -> None:
    target = tree.db.root.refs("default").branches["main"]
    old_head = tree.tree.head
    files = RecordingFiles(tree.base)
    Tree(tree.base, files).tree.checkout(target, "main", threads=1)
    new_head = tree.tree.head
    kept = {"notes": b"not committed"}
    count = 0
    for state in crash_states(Record(files.before, files.operations)):
        count += 1
        with restored(state, tmp_path) as after:
            crashed = Tree(after)
            assert crashed.tree.head in ((new_head,) if state.final else (old_head, new_head))
            content = crashed.content()
            content = {path: data for path, data in content.items() if ".tmp" not in path}
            for path, data in content.items():
                assert data in (OLD.get(path), NEW.get(path), kept.get(path)), path
            if state.final or (
                crashed.tree.head == new_head and not crashed.tree.status().interrupted
            ):
                assert content == NEW | kept
            if state.final:
                assert crashed.tree.status().interrupted is None
            crashed.tree.checkout(target, "main", threads=1)
            content = crashed.content()
            content = {path: data for path, data in content.items() if ".tmp" not in path}
            assert content == NEW | kept
            assert crashed.tree.status().interrupted is None
    assert count > 20


def test_a_checkout_by_which_a_directory_becomes_one(tmp_path: Path) -> None:
    """The repository is there, but `init` died before it made the folder for HEAD."""
    base = tmp_path / "scene"
    base.mkdir()
    repo = Repository(Database.create(LocalStorage(base / ".mstore", FAST), "ada"))
    identifier = bytes.fromhex(commit(repo, arrays(1)))
    files = RecordingFiles(base)
    Tree(base, files).tree.checkout(identifier, "main", threads=1)
    head = Tree(base).tree.head
    assert head.commit == identifier
    for state in crash_states(Record(files.before, files.operations)):
        with restored(state, tmp_path) as after:
            found = Tree(after).tree.head
            assert found in ((head,) if state.final else (head, Head()))


def test_every_crash_state_of_a_commit_in_a_working_directory(tree: Tree, tmp_path: Path) -> None:
    (tree.base / "model.bin").write_bytes(b"trained " * 400)
    (tree.base / "sub" / "gone").unlink()
    content = tree.content()
    old_head = tree.tree.head
    files = RecordingFiles(tree.base)
    identifier = Tree(tree.base, files).commit("trained")
    new_head = tree.tree.head
    for state in crash_states(Record(files.before, files.operations)):
        with restored(state, tmp_path) as after:
            crashed = Tree(after)
            tip = crashed.db.root.refs("default").branches["old"]
            assert tip in (old_head.commit, identifier)
            if tip == identifier:
                assert crashed.files_of(identifier) == content
            if state.final:
                assert (tip, crashed.tree.head) == (identifier, new_head)
            assert crashed.content() == content
            check_tree(crashed)
