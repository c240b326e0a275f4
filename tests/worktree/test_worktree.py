"""Working directories: status, commit, checkout, back and forth between versions."""

import os
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
from trees import Tree, description

from mstore.errors import (
    ConflictError,
    CorruptDataError,
    InvalidInputError,
    MstoreError,
    NotFoundError,
    StorageError,
    UnsafeInputError,
)
from mstore.head import Head
from mstore.ops.refs import create_branch
from mstore.worktree_read import Status, find_worktree


def changes(status: Status) -> tuple[tuple[str, ...], ...]:
    return status.added, status.modified, status.deleted


def test_status_follows_the_files(tree: Tree) -> None:
    assert tree.tree.status().clean
    tree.write(a="1", sub__b="2")
    assert changes(tree.tree.status()) == (("a", "sub/b"), (), ())
    tree.commit()
    assert tree.tree.status().clean
    assert tree.tree.status().unchanged == 2
    tree.write(a="other", sub__b=None, c="3")
    assert changes(tree.again().status()) == (("c",), ("a",), ("sub/b",))
    tree.write(a="1", sub__b="2", c=None)
    assert tree.again().status().clean


def test_a_change_of_the_same_size_in_the_same_moment(tree: Tree) -> None:
    """The racy case: size and even the times may be equal, the content is not."""
    tree.commit(a="one")
    info = (tree.directory / "a").stat()
    for text in ("two", "six", "ten"):
        tree.write(a=text)
        os.utime(tree.directory / "a", ns=(info.st_atime_ns, info.st_mtime_ns))
        assert tree.again().status().modified == ("a",)
        tree.tree.commit(description())
        assert tree.tree.status().clean


def test_unchanged_files_are_not_read_again(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    tree.write(a="1")
    os.utime(tree.directory / "a", ns=(1_500_000_001, 1_500_000_001))
    time.sleep(0.05)
    tree.commit()

    def fail(*_: object) -> bool:
        raise AssertionError("the file was read")

    monkeypatch.setattr("mstore.worktree_read.holds", fail)
    assert tree.again().status().clean
    assert not tree.again().commit(description()).created


def test_touching_a_file_is_no_change(tree: Tree) -> None:
    tree.commit(a="1")
    os.utime(tree.directory / "a", (5, 5))
    assert tree.again().status().clean
    assert not tree.again().commit(description()).created


def test_commit_and_go_back_and_forth(tree: Tree) -> None:
    first = tree.commit("first", a="1", sub__b="2", sub__deep__c="3")
    files = tree.read()
    second = tree.commit("second", a="changed", sub__b=None, sub__deep__c=None, d="new")
    done = tree.tree.checkout(first.id, None)
    assert tree.read() == files
    assert (done.written, done.removed) == (("a", "sub/b", "sub/deep/c"), ("d",))
    assert tree.tree.head == Head("default", None, first.id)
    assert tree.tree.status().clean
    tree.tree.checkout(second.id, "main")
    assert tree.read() == {"a": "changed", "d": "new"}
    assert not (tree.directory / "sub").exists()
    assert tree.tree.head == Head("default", "main", second.id)
    assert tree.again().status().clean


def test_checkout_does_not_overwrite_changes(tree: Tree) -> None:
    first = tree.commit(a="1", b="1")
    second = tree.commit(a="2")
    tree.write(a="mine")
    with pytest.raises(ConflictError, match="a changed since HEAD"):
        tree.tree.checkout(first.id, None)
    assert tree.read() == {"a": "mine", "b": "1"}
    assert tree.tree.head.commit == second.id
    tree.tree.checkout(first.id, None, force=True)
    assert tree.read() == {"a": "1", "b": "1"}


def test_checkout_keeps_changes_that_are_not_in_its_way(tree: Tree) -> None:
    first = tree.commit(a="1", b="1")
    tree.commit(a="2")
    tree.write(b="mine", untracked="x")
    done = tree.tree.checkout(first.id, None)
    assert done.kept == ("b",)
    assert tree.read() == {"a": "1", "b": "mine", "untracked": "x"}
    assert changes(tree.tree.status()) == (("untracked",), ("b",), ())
    tree.tree.checkout(first.id, None, force=True)
    assert tree.read() == {"a": "1", "b": "1", "untracked": "x"}


def test_an_untracked_file_in_the_way(tree: Tree) -> None:
    first = tree.commit(a="1", b="1")
    tree.commit(b=None)
    tree.write(b="mine")
    with pytest.raises(ConflictError, match="b changed"):
        tree.tree.checkout(first.id, None)
    tree.write(b="1")
    tree.tree.checkout(first.id, None)
    assert tree.tree.status().clean


def test_a_deleted_file_comes_back(tree: Tree) -> None:
    first = tree.commit(a="1", b="1")
    tree.write(a=None)
    tree.tree.checkout(first.id, "main")
    assert tree.read() == {"a": "1", "b": "1"}


def test_a_changed_file_that_the_other_version_does_not_have(tree: Tree) -> None:
    first = tree.commit(a="1")
    second = tree.commit(b="2")
    tree.write(b="mine")
    with pytest.raises(ConflictError, match="b changed"):
        tree.tree.checkout(first.id, None)
    tree.tree.checkout(first.id, None, force=True)
    assert tree.read() == {"a": "1"}
    tree.tree.checkout(second.id, "main")
    assert tree.read() == {"a": "1", "b": "2"}


def test_restoring_some_paths(tree: Tree) -> None:
    tree.commit(a="1", sub__b="1", sub__c="1")
    second = tree.commit(a="2", sub__b="2", sub__c="2")
    first = tree.tree.db.snapshot(
        tree.tree.db.commit(tree.tree.db.commit(second.id).parents[0]).snapshot
    )
    assert tree.tree.restore(first, ["sub"]) == ("sub/b", "sub/c")
    assert tree.read() == {"a": "2", "sub/b": "1", "sub/c": "1"}
    assert tree.tree.head.commit == second.id
    tree.write(a="mine")
    with pytest.raises(ConflictError):
        tree.tree.restore(first, ["a"])
    tree.tree.restore(first, ["a"], force=True)
    assert tree.read()["a"] == "1"
    with pytest.raises(NotFoundError, match="nowhere"):
        tree.tree.restore(first, ["nowhere"])


def test_committing_named_paths_carries_the_rest_over(tree: Tree) -> None:
    tree.commit(a="1", sub__b="1", sub__c="1")
    tree.write(a="2", sub__b="2", sub__c=None, new="x")
    tree.tree.commit(description(), paths=["sub"])
    assert changes(tree.tree.status()) == (("new",), ("a",), ())
    tree.tree.commit(description(), paths=["new"])
    assert changes(tree.tree.status()) == ((), ("a",), ())
    with pytest.raises(NotFoundError, match="nowhere"):
        tree.tree.commit(description(), paths=["nowhere"])
    assert not tree.tree.commit(description(), paths=["sub/b"]).created


def test_the_executable_bit(tree: Tree) -> None:
    tree.write(run="#!")
    (tree.directory / "run").chmod(0o755)
    first = tree.commit()
    (tree.directory / "run").chmod(0o644)
    assert tree.tree.status().modified == ("run",)
    second = tree.commit()
    tree.tree.checkout(first.id, None)
    assert os.access(tree.directory / "run", os.X_OK)
    tree.tree.checkout(second.id, "main")
    assert not os.access(tree.directory / "run", os.X_OK)


def test_links_to_files_are_stored_as_their_content(tree: Tree, tmp_path: Path) -> None:
    (tmp_path / "blob").write_text("weights")
    tree.write(a="1")
    (tree.directory / "link").symlink_to(tmp_path / "blob")
    (tree.directory / "broken").symlink_to(tmp_path / "nothing")
    (tree.directory / "folder").symlink_to(tmp_path)
    os.mkfifo(tree.directory / "pipe")
    first = tree.commit()
    warnings = "\n".join(tree.tree.warnings)
    assert set(first.snapshot.files) == {"a", "link"}
    for name in ("broken", "folder", "pipe"):
        assert name in warnings
    tree.commit(a="2")
    (tree.directory / "link").unlink()
    tree.tree.checkout(first.id, None)
    assert not (tree.directory / "link").is_symlink()
    assert (tree.directory / "link").read_text() == "weights"
    assert (tmp_path / "blob").read_text() == "weights"


def test_nothing_is_written_through_a_link(tree: Tree, tmp_path: Path) -> None:
    first = tree.commit(sub__a="1")
    tree.commit(sub__a=None, b="2")
    shutil.rmtree(tree.directory / "sub", ignore_errors=True)
    outside = tmp_path / "outside"
    outside.mkdir()
    (tree.directory / "sub").symlink_to(outside)
    with pytest.raises(UnsafeInputError, match="symbolic link"):
        tree.tree.checkout(first.id, None, force=True)
    assert list(outside.iterdir()) == []


def test_a_folder_where_a_file_is_to_be(tree: Tree) -> None:
    first = tree.commit(a="1")
    tree.commit(a=None, b="1")
    (tree.directory / "a").mkdir()
    (tree.directory / "a" / "mine").write_text("keep")
    with pytest.raises((StorageError, ConflictError)):
        tree.tree.checkout(first.id, None, force=True)
    assert (tree.directory / "a" / "mine").read_text() == "keep"


def test_a_file_where_a_folder_is_to_be(tree: Tree) -> None:
    first = tree.commit(sub__a="1")
    tree.commit(sub__a=None, b="1")
    shutil.rmtree(tree.directory / "sub", ignore_errors=True)
    tree.write(sub="a file")
    with pytest.raises(ConflictError, match="is a file"):
        tree.tree.checkout(first.id, None)
    assert (tree.directory / "sub").read_text() == "a file"


def test_ignored_files(tree: Tree) -> None:
    tree.write(**{".mstoreignore": "*.log\n/cache/\n!keep.log\n", "a": "1", "x.log": "1"})
    tree.write(**{"keep.log": "1", "cache__x": "1", "sub__cache__y": "1", ".git__config": "1"})
    recorded = tree.commit()
    assert set(recorded.snapshot.files) == {".mstoreignore", "a", "keep.log", "sub/cache/y"}
    (tree.directory / ".mstoreignore").write_bytes(b"\xff")
    with pytest.raises(InvalidInputError, match="UTF-8"):
        tree.tree.status()


def test_head_on_no_branch(tree: Tree) -> None:
    first = tree.commit(a="1")
    tree.commit(a="2")
    tree.tree.checkout(first.id, None)
    tree.write(a="3")
    with pytest.raises(InvalidInputError, match="--branch"):
        tree.tree.commit(description())
    recorded = tree.tree.commit(description(), branch="side")
    assert tree.tree.head == Head("default", "side", recorded.id)
    assert tree.tree.db.commit(recorded.id).parents == (first.id,)
    with pytest.raises(ConflictError, match="exists already"):
        tree.tree.commit(description(), branch="main")


def test_a_branch_that_moved_on(tree: Tree) -> None:
    tree.commit(a="1")
    other = tree.again()
    tree.write(a="2")
    second = other.commit(description("elsewhere"))
    tree.tree.set_head(Head("default", "main", tree.tree.db.commit(second.id).parents[0]))
    tree.tree.db.refresh()
    assert tree.tree.status().moved == second.id
    tree.write(a="3")
    with pytest.raises(ConflictError, match="moved"):
        tree.tree.commit(description())
    tree.tree.commit(description(), branch="mine")
    assert tree.tree.status().clean


def test_a_new_branch_at_head_keeps_the_changes(tree: Tree) -> None:
    first = tree.commit(a="1")
    tree.write(a="mine")
    create_branch(tree.tree.db, "default", "side", first.id, author="Ada")
    assert tree.tree.checkout(first.id, "side").kept == ("a",)
    tree.commit("on side")
    assert tree.tree.db.root.refs("default").branches["main"] == first.id


def test_damage_is_named_and_the_old_file_stays(tree: Tree) -> None:
    random = np.random.default_rng(0)
    (tree.directory / "w.bin").write_bytes(random.bytes(300_000))
    first = tree.commit()
    (tree.directory / "w.bin").write_bytes(random.bytes(300_000))
    tree.commit()
    now = (tree.directory / "w.bin").read_bytes()
    pack = next(
        p for p in (tree.directory / ".mstore" / "packs").iterdir() if p.name.startswith("d")
    )
    for pack in (tree.directory / ".mstore" / "packs").glob("d*"):
        data = bytearray(pack.read_bytes())
        data[len(data) // 2] ^= 1
        pack.chmod(0o644)
        pack.write_bytes(data)
    with pytest.raises(CorruptDataError, match=r"w\.bin"):
        tree.again().checkout(first.id, None)
    assert (tree.directory / "w.bin").read_bytes() == now


def test_a_damaged_head_or_cache(tree: Tree) -> None:
    tree.commit(a="1")
    state = tree.directory / ".mstore" / "worktree"
    (state / "cache").write_bytes(b"nonsense")
    assert tree.again().status().clean
    for text in ("", "{}", "[1]", '{"model": "../x", "branch": null, "commit": null}',
                 '{"model": "a", "branch": "b", "commit": "zz"}'):  # fmt: skip
        (state / "head").write_text(text)
        with pytest.raises(MstoreError):
            tree.again().status()


def test_find_worktree(tree: Tree, tmp_path: Path) -> None:
    tree.write(sub__deep__x="1")
    assert find_worktree(tree.directory / "sub" / "deep") == tree.directory
    assert find_worktree(tree.directory) == tree.directory
    assert find_worktree(tmp_path) is None
