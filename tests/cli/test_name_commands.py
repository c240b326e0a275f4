"""branch, tag, models, reflog and undo."""

from pathlib import Path
from typing import Any

import pytest


@pytest.mark.parametrize("kind", ["branch", "tag"])
def test_make_list_and_delete(kind: str, first: str, second: str, mstore: Any) -> None:
    made = mstore.ok(kind, "old", "HEAD~1")
    assert made.err.startswith(f"made {kind} old at {first[:12]}\n")
    rows = {row["name"]: row for row in mstore.json(kind)}
    assert rows["old"]["commit"] == first
    assert rows["old"]["message"] == "first"
    assert not rows["old"]["head"]
    shown = [line for line in mstore.ok(kind).lines if "old" in line]
    assert shown == [f"  old{'' if kind == 'tag' else ' '}  {first[:12]}  first (just now)"]
    assert mstore(kind, "old").code == 11
    deleted = mstore.ok(kind, "--delete", "old")
    assert deleted.err.splitlines() == [
        f"deleted {kind} old, which was at {first[:12]}",
        f"bring it back with: mstore {kind} old {first[:12]}",
    ]
    assert "old" not in {row["name"] for row in mstore.json(kind)}
    gone = mstore(kind, "--delete", "old")
    assert (gone.code, gone.error) == (1, f"there is no {kind} 'old'")


@pytest.mark.parametrize("kind", ["branch", "tag"])
def test_json_of_making_and_deleting(kind: str, first: str, mstore: Any) -> None:
    told = {"kind": kind, "commit": first}
    assert mstore.json(kind, "x") == {"created": "x", **told}
    assert mstore.json(kind, "-d", "x") == {"deleted": "x", **told}


def test_the_branch_one_is_on_is_marked_and_stays(first: str, mstore: Any) -> None:
    assert mstore.ok("branch").out == f"* main  {first[:12]}  first (just now)\n"
    assert mstore.json("branch")[0]["head"]
    refused = mstore("branch", "--delete", "main")
    assert refused.code == 11
    assert refused.hint == "go to another one first, with: mstore checkout BRANCH"
    assert len(mstore.json("branch")) == 1


def test_lists_of_nothing(work: Path, mstore: Any) -> None:
    mstore.ok("init")
    assert mstore.ok("branch").err == "there are no branches yet\n"
    assert mstore.ok("tag").err == "there are no tags yet\n"
    assert mstore.ok("models").err == "there are no commits yet\n"
    assert (mstore.json("branch"), mstore.json("tag"), mstore.json("models")) == ([], [], [])


def test_a_name_that_cannot_be(first: str, mstore: Any) -> None:
    ran = mstore("branch", "a b")
    assert (ran.code, ran.error) == (1, "'a b' cannot be the name of a branch")
    assert mstore("tag", "x", "--delete", "y").code == 2


def test_models(first: str, mstore: Any) -> None:
    mstore.ok("--model", "bert", "tag", "v1", first)
    assert mstore.ok("models").lines == [
        "  bert     0 branches, 1 tag",
        "* default  1 branch, 0 tags",
    ]
    assert mstore.json("models") == [
        {"name": "bert", "branches": 0, "tags": 1},
        {"name": "default", "branches": 1, "tags": 0},
    ]
    mstore.ok("--model", "bert", "checkout", "v1")
    assert mstore.head() == {"model": "bert", "branch": None, "commit": first}


def test_reflog(first: str, second: str, mstore: Any) -> None:
    lines = mstore.ok("reflog").lines
    assert [line.split()[0] for line in lines] == ["3", "2", "1"]
    assert lines[0].endswith(f"commit {second[:12]} on main, by Ada <ada@example.org>")
    newest, *_, oldest = mstore.json("reflog")
    assert (newest["number"], newest["restores"]) == (3, None)
    assert newest["action"] == f"commit {second[:12]} on main"
    assert oldest["action"] == "init"
    assert len(mstore.json("reflog", "-n", "2")) == 2


def test_undo_of_a_commit_takes_head_along_and_no_file(
    first: str, second: str, mstore: Any
) -> None:
    ran = mstore.ok("undo")
    assert ran.lines == [
        f"branches and tags are as they were after operation 2 (commit {first[:12]} on main)",
        f"  branch main: {second[:12]} → {first[:12]}",
    ]
    assert ran.err.splitlines() == [
        f"HEAD follows main to {first[:12]}; no file was touched, see: mstore status",
        "take this back with: mstore undo --to 3",
    ]
    assert mstore.head() == {"model": "default", "branch": "main", "commit": first}
    assert Path("notes.txt").exists()
    assert mstore.json("status")["added"] == ["notes.txt", "tokenizer/words.txt"]
    forward = mstore.json("undo", "--to", "3")
    assert forward["head"]["commit"] == second
    assert mstore.json("status")["clean"]


def test_undo_json(first: str, second: str, mstore: Any) -> None:
    told = mstore.json("undo")
    assert told["restored"]["number"] == 2
    assert told["root"] == 4
    assert told["changes"] == [
        {"model": "default", "kind": "branch", "name": "main", "before": second, "after": first}
    ]
    assert told["head"] == {"model": "default", "branch": "main", "commit": first}


def test_undo_of_the_first_commit_leaves_head_on_no_branch(first: str, mstore: Any) -> None:
    ran = mstore.ok("undo")
    assert f"there is no branch main any more: HEAD stays at {first[:12]}" in ran.err
    assert mstore.head() == {"model": "default", "branch": None, "commit": first}
    mstore.ok("branch", "main")
    mstore.ok("checkout", "main")
    assert mstore.json("status")["clean"]


def test_undo_of_something_else_leaves_head(first: str, mstore: Any) -> None:
    mstore.ok("tag", "v1")
    ran = mstore.ok("undo")
    assert ran.lines[1] == f"  tag v1: {first[:12]} → none"
    assert "HEAD" not in ran.err
    assert mstore.head()["commit"] == first


def test_undo_leaves_a_head_that_was_behind_already(
    first: str, second: str, mstore: Any, work: Path
) -> None:
    import json

    head = work / ".mstore" / "worktree" / "head"
    behind = json.dumps({"model": "default", "branch": "main", "commit": first})
    third = mstore.json("commit", "--meta", "n=3")["id"]
    head.write_text(behind)
    mstore.ok("undo")
    assert third != second
    assert mstore.head()["commit"] == first


def test_nothing_to_undo(work: Path, mstore: Any) -> None:
    mstore.ok("init")
    ran = mstore("undo")
    assert (ran.code, ran.error, ran.hint) == (1, "there is nothing to undo", "see: mstore reflog")
    assert mstore("undo", "--to", "99").code == 1
