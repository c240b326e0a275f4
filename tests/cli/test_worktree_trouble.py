"""A working directory that something has happened to, as the commands show it."""

import os
from pathlib import Path
from typing import Any

import pytest

from mstore.database import Database
from mstore.repository import Repository
from mstore.statcache import StatCache
from mstore.storage.local import LocalStorage
from mstore.worktree import Worktree


@pytest.fixture
def forgotten(first: str, work: Path, mstore: Any) -> str:
    """HEAD is on branch dev; another process has deleted it, and gc its one version."""
    mstore.ok("branch", "dev")
    mstore.ok("checkout", "dev")
    Path("config.json").write_text('{"layers": 3}')
    commit: str = mstore.commit("-m", "on dev")
    other = Repository(Database.open(LocalStorage(work / ".mstore")))
    other.delete_branch("dev")
    other.gc()
    return commit


def test_a_head_that_gc_removed(forgotten: str, mstore: Any) -> None:
    shown = mstore.ok("status").lines
    assert shown[0] == f"On branch dev, at {forgotten[:12]}, which gc has removed"
    assert "  keep them:          mstore commit --branch NAME" in shown
    assert shown[-1] == "3 files changed, 0 unchanged; record all with: mstore commit --branch NAME"
    told = mstore.json("status")
    assert (told["forgotten"], told["head"]["commit"], len(told["added"])) == (True, forgotten, 3)
    refused = mstore("commit")
    assert (refused.code, "nothing was recorded" in refused.error) == (11, True)
    made = mstore.commit("--branch", "rescued")
    told = mstore.json("status")
    assert (told["forgotten"], told["clean"], told["head"]["commit"]) == (False, True, made)
    assert mstore.json("log")[0]["parents"] == []


def test_leaving_a_head_that_gc_removed(forgotten: str, first: str, mstore: Any) -> None:
    refused = mstore("checkout", "main")
    assert (refused.code, "--force" in refused.hint) == (11, True)
    mstore.ok("checkout", "--force", "main")
    assert mstore.json("status")["clean"]
    assert mstore.head()["commit"] == first


def test_nothing_is_there_of_a_head_that_gc_removed(forgotten: str, mstore: Any) -> None:
    for path in ("config.json", "model.safetensors", "tokenizer/vocab.txt"):
        Path(path).unlink()
    assert mstore.ok("status").lines[-1] == "nothing to commit: there are no files here"


def test_rehash_reads_every_file(first: str, mstore: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def believe(cache: StatCache, path: str, _: os.stat_result) -> bytes | None:
        entry = cache.entries.get(path)
        return entry.manifest if entry else None

    mstore.ok("status", "--rehash")
    monkeypatch.setattr(StatCache, "manifest", believe)
    monkeypatch.setattr("mstore.worktree_read.read_time", lambda: 2**62)
    assert mstore.json("status", "--rehash")["clean"]
    # As a memory map writes: size and, for the cache, times stay.
    text = Path("config.json").read_text()
    Path("config.json").write_text(text.replace("2", "3"))
    assert mstore.json("status")["clean"]
    assert not mstore.json("commit")["created"]
    assert mstore.json("status", "--rehash")["modified"] == ["config.json"]


def test_commit_rehash_reads_every_file(
    first: str, mstore: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    commit = Worktree.commit

    def note(tree: Worktree, *args: Any, **extra: Any) -> Any:
        asked.append(extra["rehash"])
        return commit(tree, *args, **extra)

    monkeypatch.setattr(Worktree, "commit", note)
    mstore.ok("commit")
    mstore.ok("commit", "--rehash")
    assert asked == [False, True]


def test_every_command_sees_a_version_that_was_published(
    first: str, mstore: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process died after it published a version, and before it wrote down that HEAD is there."""

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    Path("config.json").write_text("{}")
    with monkeypatch.context() as patched:
        patched.setattr(Worktree, "set_head", stop)
        assert mstore("commit").code == 130
    tip = mstore.json("log", "main")[0]["id"]
    assert tip != first
    assert mstore.json("show", "HEAD")["id"] == tip
    assert mstore.json("show", "HEAD~1")["id"] == first
    assert mstore.head() == {"model": "default", "branch": "main", "commit": tip}
    assert mstore.json("status")["clean"]
    Path("config.json").write_text("{ }")
    mstore.commit()
    assert mstore.json("show", "HEAD~1")["id"] == tip
