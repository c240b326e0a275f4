"""What stands where a checkout is to write: moved out of the way if it is ours, else refused."""

import os
from pathlib import Path

import pytest
from trees import Tree, description

from mstore.database import Database
from mstore.errors import ConflictError, InvalidInputError, UnsafeInputError
from mstore.objects import FileEntry, Snapshot
from mstore.ops.checkout import write_out
from mstore.ops.commit import Content, Target, record
from mstore.ops.directory import Directory
from mstore.ops.scan import Scan
from mstore.worktree import Worktree


def refused(tree: Tree, commit: bytes, *, force: bool = False, match: str = "") -> None:
    """Checking the commit out is refused, before anything is written."""
    head, files = tree.tree.head, tree.read()
    with pytest.raises((ConflictError, UnsafeInputError), match=match):
        tree.again().checkout(commit, None, force=force)
    assert (tree.tree.head, tree.read()) == (head, files)
    assert tree.again().status().interrupted is None


# A file becomes a folder, or the reverse


@pytest.mark.parametrize("force", [False, True])
def test_a_file_becomes_a_folder_and_back(tree: Tree, force: bool) -> None:
    file = tree.version(x="1", same="s")
    folder = tree.version(x__y="2", x__deep__z="3", same="s")
    done = tree.again().checkout(file.id, None, force=force)
    assert tree.read() == {"x": "1", "same": "s"}
    assert (done.written, done.removed) == (("x",), ("x/deep/z", "x/y"))
    assert tree.again().status().clean
    done = tree.again().checkout(folder.id, "main", force=force)
    assert tree.read() == {"x/y": "2", "x/deep/z": "3", "same": "s"}
    assert done.removed == ("x",)
    assert tree.again().status().clean


def test_folders_that_only_hold_empty_folders_give_way(tree: Tree) -> None:
    file = tree.version(x="1")
    tree.version(x__y="2")
    (tree.directory / "x" / "empty" / "deeper").mkdir(parents=True)
    tree.again().checkout(file.id, None)
    assert tree.read() == {"x": "1"}


def test_a_changed_file_in_the_way_is_only_removed_by_force(tree: Tree) -> None:
    folder = tree.version(x__y="2")
    file = tree.version(x="1")
    tree.write(x="mine")
    refused(tree, folder.id, match="x changed since HEAD")
    tree.again().checkout(folder.id, None, force=True)
    assert tree.read() == {"x/y": "2"}
    tree.write(x__y="mine")
    refused(tree, file.id, match="x/y changed since HEAD")
    tree.again().checkout(file.id, None, force=True)
    assert tree.read() == {"x": "1"}


@pytest.mark.parametrize("force", [False, True])
def test_a_folder_with_other_files_in_it_stays(tree: Tree, force: bool) -> None:
    file = tree.version(x="1")
    tree.version(x__y="2")
    tree.write(x__deep__mine="mine")
    refused(tree, file.id, force=force, match="x/deep/mine")


@pytest.mark.parametrize("name", ["x/.git", "x/ignored", "x/link", "x/pipe"])
def test_what_the_scan_passes_over_keeps_its_folder(tree: Tree, name: str) -> None:
    file = tree.version(x="1")
    tree.version(**{"x__y": "2", ".mstoreignore": "ignored"})
    path = tree.directory / name
    if name.endswith("link"):
        path.symlink_to("nothing")
    elif name.endswith("pipe"):
        os.mkfifo(path)
    else:
        path.write_text("mine")
    refused(tree, file.id, force=True, match=name)
    assert os.path.lexists(path)


@pytest.mark.parametrize("force", [False, True])
def test_a_file_that_is_not_tracked_is_not_replaced_by_a_folder(tree: Tree, force: bool) -> None:
    folder = tree.version(x__y="2")
    tree.version(other="1")
    tree.write(x="mine")
    refused(tree, folder.id, force=force, match="is a file, where a folder is to be")


def test_restoring_moves_what_is_in_the_way(tree: Tree) -> None:
    folder = tree.version(x__y="2", x__z="3", a="a")
    file = tree.version(x="1", a="a")
    tree.write(a="mine")
    assert tree.again().restore(folder.snapshot, ["x/y"]) == ("x/y",)
    assert tree.read() == {"x/y": "2", "a": "mine"}
    with pytest.raises(ConflictError, match="x/y"):
        # HEAD does not have that file, so for all we know it is the user's.
        tree.again().restore(file.snapshot, ["x"])
    tree.set(x="mine", a="a")
    with pytest.raises(ConflictError, match="x changed"):
        tree.again().restore(folder.snapshot, ["x"])
    tree.again().restore(folder.snapshot, ["x"], force=True)
    assert tree.read() == {"x/y": "2", "x/z": "3", "a": "a"}


# What a scan passes over


def hide(path: Path, what: str) -> None:
    """Put there what a scan passes over; `.mstoreignore` names "ignored"."""
    if what == "link":
        path.symlink_to("nothing")
    elif what == "folder link":
        path.symlink_to(path.parent)
    elif what == "pipe":
        os.mkfifo(path)
    else:
        path.write_text("precious")


@pytest.mark.parametrize("what", ["file", "link", "folder link"])
def test_what_no_commit_records_is_not_overwritten(tree: Tree, what: str) -> None:
    first = tree.version(ignored="1", a="1")
    tree.version(**{".mstoreignore": "ignored", "a": "1"})
    path = tree.directory / "ignored"
    hide(path, what)
    with pytest.raises(ConflictError, match="ignored would be overwritten"):
        tree.again().checkout(first.id, None)
    with pytest.raises(ConflictError, match="ignored would be overwritten"):
        tree.again().restore(first.snapshot, ["ignored"])
    assert path.is_symlink() == (what != "file")
    assert path.is_symlink() or path.read_text() == "precious"
    tree.again().restore(first.snapshot, ["ignored"], force=True)
    assert not path.is_symlink()
    assert path.read_text() == "1"
    tree.again().checkout(first.id, None)
    assert tree.read() == {"ignored": "1", "a": "1"}


@pytest.mark.parametrize("force", [False, True])
def test_a_pipe_is_never_replaced(tree: Tree, force: bool) -> None:
    first = tree.version(pipe="1")
    tree.version(a="1")
    os.mkfifo(tree.directory / "pipe")
    with pytest.raises(ConflictError, match="no regular file"):
        tree.again().checkout(first.id, None, force=force)
    with pytest.raises(ConflictError, match="no regular file"):
        tree.again().restore(first.snapshot, ["pipe"], force=force)
    with pytest.raises(ConflictError, match="no regular file"):
        write_out(tree.tree.db, first.snapshot, tree.directory, force=force)
    assert (tree.directory / "pipe").is_fifo()


def test_an_ignored_file_that_is_right_is_left_alone(tree: Tree) -> None:
    first = tree.version(ignored="1", a="1")
    tree.version(**{".mstoreignore": "ignored", "a": "1"})
    tree.write(ignored="1")
    assert tree.again().checkout(first.id, None).written == ()
    assert tree.read() == {"ignored": "1", "a": "1"}


def test_an_ignored_file_of_head_may_be_replaced(tree: Tree) -> None:
    first = tree.version(data="1")
    tree.version(data="2")
    tree.write(**{".mstoreignore": "data"})
    tree.again().checkout(first.id, None)
    assert (tree.directory / "data").read_text() == "1"


def test_writing_out_onto_links(tree: Tree, tmp_path: Path) -> None:
    version = tree.version(a="1", b="2")
    out = tmp_path / "out"
    out.mkdir()
    (out / "a").symlink_to("nothing")
    with pytest.raises(ConflictError, match="holds something else"):
        write_out(tree.tree.db, version.snapshot, out)
    assert [path.name for path in out.iterdir()] == ["a"]
    write_out(tree.tree.db, version.snapshot, out, force=True)
    assert (out / "a").read_text() == "1"
    assert not (out / "a").is_symlink()


@pytest.mark.parametrize("force", [False, True])
def test_writing_out_onto_a_folder(tree: Tree, tmp_path: Path, force: bool) -> None:
    version = tree.version(a="1", b="2")
    (tmp_path / "out" / "b").mkdir(parents=True)
    (tmp_path / "out" / "b" / "mine").write_text("keep")
    with pytest.raises(ConflictError, match="b/mine"):
        write_out(tree.tree.db, version.snapshot, tmp_path / "out", force=force)
    assert not (tmp_path / "out" / "a").exists()


# Names that belong to mstore and git


def forge(tree: Tree, path: str) -> bytes:
    """A commit, on branch `evil`, of a version with a file at a path that no scan finds."""
    tree.version(a="1")
    db = tree.tree.db
    scan = Scan(tree.directory)
    entry = db.snapshot(db.commit(tree.tree.head.commit or b"").snapshot).files["a"]
    assert scan.files()
    made = record(
        db,
        Target("default", "evil", None, ()),
        Content(lambda: (), {path: FileEntry(entry.manifest, entry.size, executable=True)}),
        description(),
    )
    return made.id


@pytest.mark.parametrize(
    "path",
    [".git/hooks/pre-commit", "sub/.git", "sub/.GIT/config", "sub/.mstore/head", "x/.Mstore"],
)
def test_nothing_is_written_to_git_or_to_the_repository(
    tree: Tree, tmp_path: Path, path: str
) -> None:
    evil = forge(tree, path)
    refused(tree, evil, match="nothing is written to")
    refused(tree, evil, force=True, match="nothing is written to")
    snapshot = Snapshot({**tree.tree.db.snapshot(tree.tree.db.commit(evil).snapshot).files})
    with pytest.raises(UnsafeInputError, match="nothing is written to"):
        tree.again().restore(snapshot, [path], force=True)
    with pytest.raises(UnsafeInputError, match="nothing is written to"):
        write_out(tree.tree.db, snapshot, tmp_path / "out", force=True)
    assert not (tmp_path / "out").exists()


def test_whatever_is_called_mstore_or_git_is_left_out(tree: Tree, tmp_path: Path) -> None:
    tree.write(**{"a": "1", "sub__.git": "gitdir: elsewhere", "sub__.mstore": "x", "sub__b": "2"})
    tree.write(**{"other__.GIT__config": "x", "sub__.gitignore": "y"})
    assert set(tree.tree.commit(description()).snapshot.files) == {"a", "sub/b", "sub/.gitignore"}
    bare = tmp_path / "elsewhere"
    bare.mkdir()
    (bare / ".mstore").write_text("a file")
    (bare / "a").write_text("1")
    assert [file.path for file in Scan(bare).files()] == ["a"]


def test_folders_deep_in_one_another(tree: Tree) -> None:
    depth = 1100
    at = os.open(tree.directory, os.O_RDONLY)
    for _ in range(depth):
        os.mkdir("d", dir_fd=at)
        inner = os.open("d", os.O_RDONLY, dir_fd=at)
        os.close(at)
        at = inner
    os.close(os.open("f", os.O_CREAT | os.O_WRONLY, dir_fd=at))
    os.close(at)
    path = "d/" * depth + "f"
    deep = tree.tree.commit(description())
    assert list(deep.snapshot.files) == [path]
    (tree.directory / path).unlink()
    tree.again().checkout(deep.id, "main")
    assert tree.again().status().clean
    for level in range(depth, 0, -1):
        # `rmtree` of the test's own folder would recurse too deep.
        folder = tree.directory / ("d/" * level)
        (folder / "f").unlink(missing_ok=True)
        folder.rmdir()


def test_an_unreadable_ignore_file_is_no_reason_to_write(tree: Tree) -> None:
    first = tree.version(a="1")
    tree.version(a="2")
    (tree.directory / ".mstoreignore").write_bytes(b"\xff")
    with pytest.raises(InvalidInputError, match="UTF-8"):
        tree.again().checkout(first.id, None)
    assert (tree.directory / "a").read_text() == "2"


def test_many_small_files_are_written_in_groups(tree: Tree, tmp_path: Path) -> None:
    """More than one group by number and by size, with repeated content and empty files."""
    files = {f"d{i % 7}__f{i}": f"{i % 50}" * (i % 3) for i in range(2500)}
    files |= {f"big{i}": f"{i}" * (3 << 20) for i in range(4)}
    made = tree.version(**files)
    content = tree.read()
    for path in content:
        (tree.directory / path).unlink()
    done = tree.again().checkout(made.id, "main")
    assert len(done.written) == len(files)
    assert tree.read() == content
    assert tree.again().status().clean
    assert write_out(Database.open(tree.tree.db.storage), made.snapshot, tmp_path / "out") == 2504
    other = Worktree(tmp_path / "out", tree.tree.db)
    assert {file.path for file in Scan(other.directory).files()} == content.keys()
    assert all((other.directory / path).read_text() == text for path, text in content.items())


# Names that some file systems take for one

NAMES = [("Model.bin", "model.BIN"), ("caf\u00e9/x", "cafe\u0301/x"), ("straße", "STRASSE")]


@pytest.mark.parametrize(("one", "other"), NAMES)
def test_names_that_would_be_one_file(
    tree: Tree, one: str, other: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    both = tree.version(**{one.replace("/", "__"): "1", other.replace("/", "__"): "2"})
    tree.version(neither="3")
    write_out(tree.tree.db, both.snapshot, tmp_path / "apart")
    assert (tmp_path / "apart" / one).read_text() == "1"
    assert (tmp_path / "apart" / other).read_text() == "2"
    monkeypatch.setattr(Directory, "_folds_case", lambda _: True)
    refused(tree, both.id, match="would be one file on this file system")
    refused(tree, both.id, force=True, match="would be one file on this file system")
    with pytest.raises(UnsafeInputError, match="would be one file"):
        write_out(tree.tree.db, both.snapshot, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    write_out(tree.tree.db, both.snapshot, tmp_path / "out", paths=[one])
    assert (tmp_path / "out" / one).read_text() == "1"


def test_where_case_makes_no_difference_a_look_shows_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As far as this can be seen where it does make one."""
    assert not Directory(tmp_path / "not" / "there")._folds_case()
    asked = []
    monkeypatch.setattr(os.path, "lexists", lambda path: asked.append(path) or True)
    assert Directory(tmp_path / "not" / "there")._folds_case()
    assert [path.name.isupper() for path in asked] == [True]
    assert not list(tmp_path.iterdir())
