"""Processes that die at any moment, and gc that removes what a directory shows."""

import json
import os
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
from trees import KilledFiles, Tree, description

from mstore.database import Database
from mstore.errors import ConflictError, CorruptDataError
from mstore.formats import detect
from mstore.head import Head, HeadFile, has_commit
from mstore.ids import Id
from mstore.ops.commit import Recorded
from mstore.ops.refs import create_branch, delete_branch
from mstore.repository import Repository
from mstore.statcache import StatCache
from mstore.storage.local import LocalStorage
from mstore.worktree import Worktree

ONE = {"a": "1", "b": "same", "sub/c": "1", "gone": "1", "turn": "1", "old/x/y": "1"}
TWO = {"a": "2", "b": "same", "sub/c": "2", "new/d": "2", "turn/e": "2", "old/x": "2"}


def killed(tree: Tree, files: KilledFiles, commit: bytes, left: int) -> bool:
    """Check out until killed before an operation; whether it was."""
    files.left = left
    try:
        tree.tree.checkout(commit, "main")
    except KeyboardInterrupt:
        return True
    finally:
        files.die()
    return False


@pytest.mark.parametrize(
    ("forward", "then"),
    [(True, "finish"), (False, "finish"), (True, "back"), (False, "back by force")],
)
def test_a_checkout_killed_at_any_step(tmp_path: Path, forward: bool, then: str) -> None:
    files = KilledFiles()
    made = Tree(tmp_path / "models", files)
    first, second = made.version(**ONE), made.version(**TWO)
    origin, target = (first, second) if forward else (second, first)
    texts = {path: {ONE.get(path), TWO.get(path)} for path in ONE | TWO}
    steps = 0
    while True:
        made.again().checkout(origin.id, "main", force=True)
        assert made.read() == (ONE if forward else TWO)
        if not killed(made, files, target.id, steps):
            break
        again = made.again()
        for path, text in made.read().items():
            assert text in texts[path], path
        status = again.status()
        if status.interrupted is not None:
            assert status.interrupted == target.id
            with pytest.raises(ConflictError, match="did not finish"):
                again.commit(description())
        else:
            assert status.clean, f"step {steps}: {status}"
            assert status.head.commit in (origin.id, target.id)
        goal = target if then == "finish" else origin
        again.checkout(goal.id, "main", force=then == "back by force")
        assert made.read() == (ONE if goal is first else TWO), steps
        assert again.status().clean
        assert again.status().interrupted is None
        steps += 1
    assert steps > 30


def test_changes_are_told_from_what_an_unfinished_checkout_wrote(tmp_path: Path) -> None:
    files = KilledFiles()
    made = Tree(tmp_path / "models", files)
    first = made.version(a="1", b="1", c="1")
    second = made.version(a="2", b="2", c="1", new="2")
    made.again().checkout(first.id, "main")
    # Everything is written, but HEAD is not.
    steps = 0
    while True:
        assert killed(made, files, second.id, steps)
        if made.read() == {"a": "2", "b": "2", "c": "1", "new": "2"}:
            break
        made.again().checkout(first.id, "main")
        steps += 1
    made.write(b="mine", new="mine")
    with pytest.raises(ConflictError, match="b and 1 more files changed"):
        made.again().checkout(second.id, "main")
    with pytest.raises(ConflictError, match="new changed"):
        made.again().checkout(first.id, "main")
    assert made.read() == {"a": "2", "b": "mine", "c": "1", "new": "mine"}
    made.write(new="2")
    assert made.again().checkout(first.id, "main").kept == ("b",)
    assert made.read() == {"a": "1", "b": "mine", "c": "1"}
    made.again().checkout(first.id, "main", force=True)
    assert made.read() == {"a": "1", "b": "1", "c": "1"}


def test_several_checkouts_that_did_not_finish(tmp_path: Path) -> None:
    files = KilledFiles()
    made = Tree(tmp_path / "models", files)
    versions = [made.version(**{"a": str(n), f"only{n}": str(n)}) for n in range(4)]
    for steps in (12, 15, 18):
        made.again().checkout(versions[0].id, "main", force=True)
        for version in versions[1:3]:
            assert killed(made, files, version.id, steps)
        assert made.again().status().interrupted == versions[2].id
        made.again().checkout(versions[3].id, "main")
        assert made.read() == {"a": "3", "only3": "3"}


def test_restoring_while_a_checkout_is_unfinished(tmp_path: Path) -> None:
    files = KilledFiles()
    made = Tree(tmp_path / "models", files)
    first, second = made.version(a="1"), made.version(a="2")
    made.again().checkout(first.id, "main")
    steps = 0
    while made.read() == {"a": "1"}:
        assert killed(made, files, second.id, steps)
        steps += 1
    made.again().restore(first.snapshot, ["a"])
    assert made.read() == {"a": "1"}


# Between publishing a commit and noting where HEAD is


@pytest.mark.parametrize("branch", [None, "side"])
def test_a_commit_killed_at_any_step(tmp_path: Path, branch: str | None) -> None:
    for steps in range(100):
        files = KilledFiles()
        made = Tree(tmp_path / str(steps), files)
        first = made.version(a="1")
        made.write(a="2")
        files.left = steps
        try:
            made.tree.commit(description(), branch=branch)
            break
        except KeyboardInterrupt:
            files.die()
        again = made.again()
        on = branch or "main"
        tip = again.db.root.refs("default").branches.get(on)
        published = tip not in (None, first.id)
        assert again.head == (Head("default", on, tip) if published else Head(commit=first.id))
        assert again.status().clean == published
        made.write(a="3")
        third = made.again().commit(description())
        assert again.db.commit(third.id).parents == (tip if published else first.id,)
        assert made.again().head.commit == third.id
    assert 0 < steps < 99


def stop(*_: object) -> None:
    raise KeyboardInterrupt


def died_before_head(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> bytes:
    """Commit, and die when the version is published; returns its id."""
    with monkeypatch.context() as patched:
        patched.setattr(Worktree, "set_head", stop)
        with pytest.raises(KeyboardInterrupt):
            tree.again().commit(description())
    return tree.again().db.root.refs("default").branches["main"]


def test_head_follows_a_published_commit(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    tree.version(a="1")
    for text in ("22", "333", "4444"):
        tree.write(a=text)
        tip = died_before_head(tree, monkeypatch)
        assert tree.again().head.commit == tip
        assert tree.again().status().clean
    assert len(list(tree.again().db.ancestry([tip]))) == 4


def test_head_stays_where_it_went_later(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    first = tree.version(a="1")
    tree.write(a="22")
    tip = died_before_head(tree, monkeypatch)
    tree.again().checkout(first.id, "main")
    assert tree.again().head.commit == first.id
    assert tree.again().status().moved == tip


def test_a_mark_of_a_commit_that_head_has_left(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two processes died: one before noting its commit, one before removing the mark of that."""
    first, second = tree.version(a="1"), tree.version(a="2")
    tree.write(a="33")
    died_before_head(tree, monkeypatch)
    with monkeypatch.context() as patched:
        patched.setattr(HeadFile, "_remove", stop)
        with pytest.raises(KeyboardInterrupt):
            tree.again().checkout(first.id, "main")
    assert (tree.directory / ".mstore" / "worktree" / "pending").exists()
    assert tree.again().head.commit == first.id != second.id


def test_a_damaged_mark_of_a_commit(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    first = tree.version(a="1")
    tree.write(a="22")
    tip = died_before_head(tree, monkeypatch)
    pending = tree.directory / ".mstore" / "worktree" / "pending"
    for text in ("", "[" * 100_000, "[]", "{}", '{"before": 1, "after": 2}', '{"after": {}}'):
        pending.write_text(text)
        assert tree.again().head.commit == first.id
        assert tree.again().status().moved == tip


# The state itself


@pytest.mark.parametrize(
    "fields",
    [
        {"model": 5, "branch": None, "commit": None},
        {"model": "default", "branch": 5, "commit": None},
        {"model": "default", "branch": ["main"], "commit": None},
        {"model": "default", "branch": "main", "commit": 5},
        {"model": "default", "branch": "main", "commit": "é" * 64},
        {"branch": "main", "commit": None},
        [],
        None,
    ],
)
def test_a_damaged_head_is_told(tree: Tree, fields: object) -> None:
    tree.version(a="1")
    head = tree.directory / ".mstore" / "worktree" / "head"
    head.write_text(json.dumps(fields))
    for work in (tree.again().status, lambda: tree.again().commit(description())):
        with pytest.raises(CorruptDataError, match="head is damaged"):
            work()
    head.write_text("[" * 100_000)
    with pytest.raises(CorruptDataError, match="head is damaged"):
        tree.again().status()


def test_a_folder_of_the_state_that_was_never_made(tree: Tree) -> None:
    state = tree.directory / ".mstore" / "worktree"
    shutil.rmtree(state)
    tree.write(a="1")
    assert tree.again().status().added == ("a",)
    made = tree.again().commit(description())
    assert tree.again().status().clean
    shutil.rmtree(state)
    tree.again().checkout(made.id, "main")
    assert tree.again().head == Head("default", "main", made.id)
    shutil.rmtree(state)
    (tree.directory / "a").unlink()
    tree.again().restore(made.snapshot, ["a"])
    assert tree.read() == {"a": "1"}


# A version of HEAD that gc removed


@pytest.fixture
def forgotten(tree: Tree) -> tuple[Tree, Recorded]:
    """HEAD is on `dev`, which another process deleted with its only commit; main is returned."""
    kept = tree.version(a="1", b="1")
    create_branch(tree.tree.db, "default", "dev", kept.id, author="Ada")
    tree.again().checkout(kept.id, "dev")
    lost = tree.again()
    tree.write(a="2")
    lost.commit(description())
    repository = Repository(Database.open(LocalStorage(tree.directory / ".mstore")))
    delete_branch(repository.database, "default", "dev", author="Ada")
    repository.gc()
    commit = lost.head.commit
    assert commit is not None
    assert not has_commit(repository.database, commit)
    return tree, kept


def test_the_status_of_a_forgotten_head(forgotten: tuple[Tree, Recorded]) -> None:
    tree, _ = forgotten
    status = tree.again().status()
    assert status.forgotten
    assert (status.added, status.modified, status.deleted) == (("a", "b"), (), ())


def test_a_commit_on_a_forgotten_head(forgotten: tuple[Tree, Recorded]) -> None:
    tree, _ = forgotten
    with pytest.raises(ConflictError, match="branch dev moved"):
        tree.again().commit(description())
    made = tree.again().commit(description(), branch="new")
    assert tree.again().db.commit(made.id).parents == ()
    status = tree.again().status()
    assert status.clean
    assert not status.forgotten


def test_a_checkout_from_a_forgotten_head(forgotten: tuple[Tree, Recorded]) -> None:
    tree, kept = forgotten
    with pytest.raises(ConflictError, match="a changed"):
        tree.again().checkout(kept.id, "main")
    tree.again().checkout(kept.id, "main", force=True)
    assert tree.read() == {"a": "1", "b": "1"}
    assert tree.again().status().clean


def test_a_process_that_was_there_before_gc(tree: Tree) -> None:
    """It has the commit, and where it lay, in its memory."""
    kept = tree.version(a="1")
    create_branch(tree.tree.db, "default", "dev", kept.id, author="Ada")
    tree.tree.checkout(kept.id, "dev")
    tree.write(a="2")
    tree.tree.commit(description())
    assert tree.tree.status().clean
    repository = Repository(Database.open(LocalStorage(tree.directory / ".mstore")))
    delete_branch(repository.database, "default", "dev", author="Ada")
    repository.gc()
    assert tree.tree.status().forgotten
    made = tree.tree.commit(description(), branch="new")
    assert tree.tree.db.commit(made.id).parents == ()


def test_an_unfinished_version_that_gc_removed(forgotten: tuple[Tree, Recorded]) -> None:
    tree, kept = forgotten
    state = HeadFile(tree.directory / ".mstore" / "worktree")
    state.begin_checkout(b"\1" * 32)
    assert tree.again().status().interrupted == b"\1" * 32
    tree.again().checkout(kept.id, "main", force=True)
    assert tree.again().status().clean


def test_damage_is_not_taken_for_a_forgotten_head(tree: Tree) -> None:
    tree.version(a="1")
    for pack in (tree.directory / ".mstore" / "packs").iterdir():
        pack.chmod(0o644)
        pack.write_bytes(bytes(pack.stat().st_size))
    with pytest.raises(CorruptDataError):
        tree.again().status()


# Changes that leave no trace in the times


def believe(cache: StatCache, path: str, _: os.stat_result) -> Id | None:
    """What a stat cache knows of a file, whatever its times."""
    entry = cache.entries.get(path)
    return entry.manifest if entry else None


def test_rehash_sees_what_the_times_do_not_show(
    tree: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree.set(a="1" * 4096, b="b")
    # Only of files that are old enough are the times believed.
    time.sleep(0.05)
    tree.again().commit(description())
    array = np.memmap(tree.directory / "a", np.uint8, "r+")
    array[:] = 2
    array.flush()
    # Whether the times change is up to the kernel; here they do not.
    monkeypatch.setattr("mstore.statcache.StatCache.manifest", believe)
    assert tree.again().status().clean
    assert not tree.again().commit(description()).created
    assert tree.again().status(rehash=True).modified == ("a",)
    assert tree.again().commit(description(), rehash=True).created


def test_another_directory_of_the_same_repository(tree: Tree, tmp_path: Path) -> None:
    """The marks are those of one directory; `Worktree` reads no other's."""
    made = tree.version(a="1")
    (tmp_path / "other" / ".mstore").mkdir(parents=True)
    other = Worktree(tmp_path / "other", tree.tree.db)
    other.checkout(made.id, "main")
    assert (tmp_path / "other" / "a").read_text() == "1"
    assert other.head == tree.tree.head


def test_rehash_looks_for_tensors_again(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    """When a format was not known, or could not be read, as its files were recorded."""
    tree.set(b="b")
    np.save(tree.directory / "w.npy", np.arange(5.0))
    with monkeypatch.context() as patch:
        patch.setattr(detect, "FORMATS", [])
        tree.again().commit(description())
    assert not tree.again().commit(description()).created
    before = tree.again().head_snapshot().files
    again = tree.again()
    assert again.commit(description(), rehash=True).created
    after = again.head_snapshot().files
    assert [path for path in after if after[path] != before[path]] == ["w.npy"]
    formats = [again.db.manifest(files["w.npy"].manifest).format for files in (before, after)]
    assert formats == ["opaque", "npy"]
    assert again.status().clean
    assert not again.commit(description(), rehash=True).created
