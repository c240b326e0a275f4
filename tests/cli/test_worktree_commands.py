"""init, status, commit and checkout, as in a session."""

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

from mstore.head import HeadFile


def test_init_makes_a_repository(work: Path, mstore: Any) -> None:
    ran = mstore.ok("init")
    assert ran.out == ""
    assert f"made an empty repository in {work}/.mstore" in ran.err
    assert 'record a first version with: mstore commit -m "first"' in ran.err
    assert mstore.ok("-q", "init", "other").err == ""
    assert (work / "other" / ".mstore").is_dir()
    again = mstore("init")
    assert (again.code, again.error) == (1, f"there is already a repository in {work}/.mstore")


def test_init_json(work: Path, mstore: Any) -> None:
    assert mstore.json("init", "a") == {"repository": f"{work}/a/.mstore", "bare": False}
    assert mstore.json("init", "--bare", "b") == {"repository": f"{work}/b", "bare": True}


def test_status_of_a_new_repository(work: Path, mstore: Any) -> None:
    mstore.ok("init")
    assert mstore.ok("status").lines == [
        "On branch main, with no commits yet",
        "",
        "  added     config.json",
        "  added     model.safetensors",
        "  added     tokenizer/vocab.txt",
        "",
        "3 files changed, 0 unchanged; record all with: mstore commit",
    ]


def test_status_of_an_empty_directory(work: Path, mstore: Any) -> None:
    mstore.ok("init", "empty")
    assert mstore.ok("-C", "empty", "status").lines[-1] == (
        "nothing to commit: there are no files here"
    )


def test_status_after_changes(first: str, mstore: Any) -> None:
    assert mstore.ok("status").lines == [
        f"On branch main, at {first[:12]} first",
        "nothing to commit, the directory is as HEAD has it (3 files)",
    ]
    Path("config.json").write_text("{}")
    Path("tokenizer/vocab.txt").unlink()
    Path("new\x1b[31m.txt").write_text("x")
    assert mstore.ok("status").lines[2:5] == [
        "  modified  config.json",
        r"  added     new\x1b[31m.txt",
        "  deleted   tokenizer/vocab.txt",
    ]
    found = mstore.json("status")
    assert found["head"] == {"model": "default", "branch": "main", "commit": first}
    assert not found["clean"]
    assert found["added"] == ["new\x1b[31m.txt"]
    assert found["modified"] == ["config.json"]
    assert found["deleted"] == ["tokenizer/vocab.txt"]
    assert found["unchanged"] == 1


def test_status_tells_what_was_passed_over(first: str, mstore: Any) -> None:
    Path("link").symlink_to("nowhere")
    assert mstore.ok("status").err == "warning: link is a link to nothing; passed over\n"
    assert mstore.ok("-q", "status").err == ""
    assert mstore.json("status")["warnings"] == ["link is a link to nothing; passed over"]
    Path("link").unlink()
    Path("link").symlink_to("link")
    assert mstore.ok("status").err == "warning: link is a link to itself; passed over\n"


def test_commit_tells_what_it_stored(work: Path, mstore: Any) -> None:
    mstore.ok("init")
    ran = mstore.ok("commit", "-m", "first")
    identifier = mstore.head()["commit"]
    assert ran.lines[0] == f"{identifier[:12]} on main: 3 files, 66.8 kB"
    assert re.fullmatch(r"stored 5\d\.\d kB of 66\.8 kB, 8\d\.\d %, in \d\.\d s", ran.lines[1])
    again = mstore.ok("commit", "-m", "again")
    assert again.out == f"nothing to commit, {identifier[:12]} on main has the same 3 files\n"


def test_commit_json(work: Path, mstore: Any) -> None:
    mstore.ok("init")
    told = mstore.json("commit", "-m", "first")
    assert told["created"]
    assert (told["branch"], told["model"], told["files"]) == ("main", "default", 3)
    size = sum(
        path.stat().st_size
        for path in work.rglob("*.*")
        if path.is_file() and ".mstore" not in path.parts
    )
    assert told["bytes"] == told["bytes_read"] == size
    assert 0 < told["bytes_stored"] < 2 * size
    assert told["seconds"] >= 0
    again = mstore.json("commit")
    assert (again["created"], again["id"], again["bytes_stored"]) == (False, told["id"], 0)


def test_a_quiet_commit_gives_the_id_alone(work: Path, mstore: Any) -> None:
    mstore.ok("init")
    ran = mstore.ok("-q", "commit")
    assert (ran.out, ran.err) == (f"{mstore.head()['commit']}\n", "")


def test_metadata_is_json_where_it_can_be(first: str, mstore: Any) -> None:
    Path("config.json").write_text("{}")
    values = ["loss=0.3", "n=4", "ok=true", 'tags=["a", "b"]', "note=two words", "eq=a=b", "e="]
    mstore.commit(*[part for value in values for part in ("--meta", value)])
    assert mstore.json("show")["metadata"] == {
        "loss": 0.3,
        "n": 4,
        "ok": True,
        "tags": ["a", "b"],
        "note": "two words",
        "eq": "a=b",
        "e": "",
    }


def test_a_loss_that_is_not_a_number_is_still_json(first: str, mstore: Any) -> None:
    mstore.commit("--meta", "loss=NaN", "--meta", "most=[-Infinity]")
    ran = mstore.ok("--json", "log", "-n", "1")
    strict = json.loads(ran.out, parse_constant=pytest.fail)
    assert strict[0]["metadata"] == {"loss": "NaN", "most": ["-Infinity"]}


@pytest.mark.parametrize(
    ("meta", "said"),
    [
        (["loss"], "--meta 'loss' is not KEY=VALUE"),
        (["=3"], "--meta '=3' is not KEY=VALUE"),
        (["a=1", "a=2"], "--meta a is given twice"),
        (["a=99999999999999999999"], "--meta: metadata a holds a number beyond 64 bits"),
        ([f"a={'[' * 40}{']' * 40}"], f"--meta: metadata a{'[0]' * 33} is nested too deeply"),
        (["a=\udcff"], "--meta: metadata a holds text that is not Unicode"),
    ],
)
def test_metadata_that_cannot_be(first: str, meta: list[str], said: str, mstore: Any) -> None:
    ran = mstore("commit", *[part for value in meta for part in ("--meta", value)])
    assert (ran.code, ran.error) == (2, said)
    assert mstore.head()["commit"] == first


def test_json_that_is_nested_beyond_reading_is_text(first: str, mstore: Any) -> None:
    mstore.commit("--meta", f"a={'[' * 100_000}")
    assert len(mstore.json("show")["metadata"]["a"]) == 100_000


def test_commit_of_paths_leaves_the_rest(first: str, mstore: Any, monkeypatch: Any) -> None:
    Path("config.json").write_text("{}")
    Path("tokenizer/vocab.txt").write_text("changed")
    Path("tokenizer/more.txt").write_text("more")
    monkeypatch.chdir("tokenizer")
    mstore.ok("commit", "-m", "words", "vocab.txt", "./more.txt")
    monkeypatch.chdir("..")
    assert mstore.json("status")["modified"] == ["config.json"]
    assert mstore.json("status")["added"] == []
    assert [file["path"] for file in mstore.json("show")["files"]] == [
        "config.json",
        "model.safetensors",
        "tokenizer/more.txt",
        "tokenizer/vocab.txt",
    ]


def test_commit_of_a_path_outside_or_nowhere(first: str, work: Path, mstore: Any) -> None:
    outside = mstore("commit", "../elsewhere")
    assert (outside.code, outside.error) == (
        1,
        f"../elsewhere lies outside the working directory {work}",
    )
    assert mstore("commit", "nope.txt").code == 1
    assert mstore.head()["commit"] == first


def test_a_path_through_a_link_to_the_directory(first: str, work: Path, mstore: Any) -> None:
    (work.parent / "link").symlink_to(work)
    Path("config.json").write_text("{}")
    mstore.commit(str(work.parent / "link" / "config.json"))
    assert mstore.json("status")["clean"]


def test_the_author_is_whom_one_says(first: str, mstore: Any) -> None:
    Path("config.json").write_text("{}")
    mstore.commit("--author", "Bo")
    assert [version["author"] for version in mstore.json("log")] == ["Bo", "Ada <ada@example.org>"]


def cut_short(path: str, by: int = 8) -> None:
    """A copy of the model without its last bytes."""
    Path(path).write_bytes(Path("model.safetensors").read_bytes()[:-by])


def test_a_malformed_file_is_recorded_with_a_warning(first: str, mstore: Any) -> None:
    cut_short("bad.safetensors")
    ran = mstore.ok("commit", "-m", "bad")
    assert ran.err.startswith("warning: bad.safetensors: ")
    cut_short("worse.safetensors", 1)
    assert "worse.safetensors" in mstore.json("commit")["warnings"][0]


def test_commit_onto_a_new_branch(first: str, mstore: Any) -> None:
    Path("config.json").write_text("{}")
    new = mstore.commit("--branch", "try")
    assert mstore.head() == {"model": "default", "branch": "try", "commit": new}
    Path("config.json").write_text("[]")
    taken = mstore("commit", "--branch", "main")
    assert taken.code == 11
    assert "branch main exists already" in taken.error


def test_checkout_there_and_back(first: str, second: str, work: Path, mstore: Any) -> None:
    ran = mstore.ok("checkout", "HEAD~1")
    assert ran.out == ""
    assert ran.err.splitlines() == [
        f"HEAD is now on no branch, at {first[:12]} first",
        "3 files written, 2 removed",
        "commit from here with: mstore commit --branch NAME",
    ]
    assert mstore.head()["branch"] is None
    assert "On no branch, at" in mstore.ok("status").out
    assert mstore("commit").error.startswith("HEAD is on no branch")
    assert f"on branch main, at {second[:12]}" in mstore.ok("checkout", "main").err
    assert mstore.json("status")["clean"]
    assert mstore.head()["branch"] == "main"


def test_checkout_json(first: str, second: str, mstore: Any) -> None:
    assert mstore.json("checkout", "HEAD~1") == {
        "commit": first,
        "branch": None,
        "written": ["config.json", "model.safetensors", "tokenizer/vocab.txt"],
        "removed": ["notes.txt", "tokenizer/words.txt"],
        "kept": [],
    }


def test_checkout_never_overwrites_changes(first: str, second: str, mstore: Any) -> None:
    Path("model.safetensors").write_text("mine")
    ran = mstore("checkout", "HEAD~1")
    assert (ran.code, ran.hint) == (11, "commit first, or overwrite with --force")
    assert "model.safetensors changed since HEAD" in ran.error
    assert Path("model.safetensors").read_text() == "mine"
    mstore.ok("checkout", "--force", "HEAD~1")
    assert mstore.json("status")["clean"]


def test_checkout_of_head_brings_back_what_is_missing_and_stays(first: str, mstore: Any) -> None:
    Path("config.json").unlink()
    mstore.ok("checkout", "HEAD")
    assert Path("config.json").exists()
    assert mstore.head()["branch"] == "main"


def test_checkout_tells_what_it_left_alone(first: str, second: str, mstore: Any) -> None:
    mstore.ok("checkout", "HEAD~1")
    Path("extra.txt").write_text("x")
    mstore.ok("commit", "--branch", "side")
    Path("extra.txt").write_text("changed")
    mstore.ok("branch", "same")
    ran = mstore.ok("checkout", "same")
    assert "1 changed file left alone, alike in both versions: extra.txt" in ran.err


def test_checkout_of_paths(first: str, second: str, mstore: Any, monkeypatch: Any) -> None:
    monkeypatch.chdir("tokenizer")
    ran = mstore.ok("checkout", "HEAD~1", "../config.json", "vocab.txt")
    assert ran.err.startswith(f"2 files of {first[:12]} written into")
    monkeypatch.chdir("..")
    assert Path("tokenizer/vocab.txt").read_text() == "one\ntwo\n"
    assert mstore.head()["commit"] == second
    assert mstore.json("status")["added"] == ["config.json", "tokenizer/vocab.txt"]
    assert mstore("checkout", "HEAD~1", "nope").code == 1


def test_checkout_into_another_directory(first: str, second: str, work: Path, mstore: Any) -> None:
    assert mstore.json("checkout", "HEAD~1", "-o", "../out")["written"] == [
        "config.json",
        "model.safetensors",
        "tokenizer/vocab.txt",
    ]
    assert (work.parent / "out" / "config.json").read_text() == '{"layers": 2}'
    assert mstore.head()["commit"] == second
    (work.parent / "out" / "config.json").write_text("mine")
    assert mstore("checkout", "HEAD~1", "-o", "../out").code == 11
    mstore.ok("checkout", "HEAD~1", "-o", "../part", "tokenizer")
    assert os.listdir(work.parent / "part") == ["tokenizer"]
    missing = mstore("checkout", "HEAD~1", "-o", "../part", "nope")
    assert (missing.code, missing.error) == (1, "there is no nope in that version")


def test_status_says_how_to_go_on_after_an_interrupted_checkout(
    first: str, second: str, work: Path, mstore: Any
) -> None:
    mstore.ok("branch", "old", "HEAD~1")
    HeadFile(work / ".mstore" / "worktree").begin_checkout(bytes.fromhex(first))
    shown = mstore.ok("status").out
    assert "A checkout was interrupted" in shown
    assert "finish it:    mstore checkout old" in shown
    assert mstore.json("status")["interrupted"] == first
    refused = mstore("commit")
    assert (refused.code, "did not finish" in refused.error) == (11, True)
    mstore.ok("checkout", "old")
    assert mstore.json("status")["interrupted"] is None


def test_status_says_that_the_branch_moved_on(first: str, work: Path, mstore: Any) -> None:
    other = work.parent / "other"
    other.mkdir()
    (other / "a").write_text("a")
    moved = mstore.json("-C", str(other), "--repo", "../work", "commit")["id"]
    os.chdir(work)
    shown = mstore.ok("status").out
    assert f"The branch has moved on to {moved[:12]}" in shown
    assert mstore.json("status")["moved"] == moved
    Path("config.json").write_text("{}")
    refused = mstore("commit")
    assert refused.code == 11
    assert "nothing was recorded" in refused.error


def test_status_says_that_the_branch_is_gone(first: str, work: Path, mstore: Any) -> None:
    mstore.ok("tag", "keep")
    bare = work.parent
    os.chdir(bare)
    mstore.ok("--repo", str(work), "branch", "--delete", "main")
    os.chdir(work)
    assert "That branch is gone: somebody has deleted it." in mstore.ok("status").out
    Path("config.json").write_text("{}")
    mstore.ok("commit", "--branch", "main")


def test_a_bare_repository_takes_versions_from_any_directory(work: Path, mstore: Any) -> None:
    mstore.ok("init", "--bare", "../store")
    told = mstore.json("--repo", "../store", "--model", "bert", "commit", "-m", "one")
    assert (told["branch"], told["model"], told["files"]) == ("main", "bert", 3)
    assert not mstore.json("--repo", "../store", "--model", "bert", "commit")["created"]
    Path("config.json").write_text("{}")
    side = mstore.json("--repo", "../store", "--model", "bert", "commit", "--branch", "side")
    assert side["branch"] == "side"
    assert len(mstore.json("--repo", "../store", "--model", "bert", "log", "main")) == 1
    assert not (work / ".mstore").exists()


def test_what_a_version_was_made_from_can_be_named(work: Path, mstore: Any) -> None:
    mstore.ok("init", "--bare", "../store")
    first = mstore.json("--repo", "../store", "commit")["id"]
    Path("config.json").write_text('{"by": "Bob"}')
    second = mstore.json("--repo", "../store", "commit", "--onto", first[:8])["id"]
    Path("config.json").write_text('{"by": "Alice"}')
    late = mstore("--repo", "../store", "commit", "--onto", first[:8])
    assert late.code == 11
    assert f"branch main has moved on from {first[:8]}, to {second[:12]}" in late.error
    side = mstore.json("--repo", "../store", "commit", "--onto", first, "--branch", "alice")["id"]
    log = mstore.json("--repo", "../store", "log", "alice")
    assert [entry["id"] for entry in log] == [side, first]
    mstore.ok("init")
    assert mstore("commit", "--onto", "main").code == 2


def test_a_commit_without_a_working_directory_warns_too(work: Path, mstore: Any) -> None:
    mstore.ok("init", "--bare", "../store")
    cut_short("bad.safetensors")
    assert "bad.safetensors" in mstore.ok("--repo", "../store", "commit").err


def test_a_repository_is_not_recorded_in_itself(work: Path, mstore: Any) -> None:
    mstore.ok("init", "--bare", "store")
    ran = mstore("--repo", "store", "commit")
    assert ran.code == 11
    assert "so it would be recorded in itself" in ran.error


@pytest.mark.parametrize("args", [("status",), ("diff",), ("checkout", "main")])
def test_what_needs_a_working_directory_says_so(
    work: Path, args: tuple[str, ...], mstore: Any
) -> None:
    mstore.ok("init", "--bare", "../store")
    mstore.ok("--repo", "../store", "commit")
    ran = mstore("--repo", "../store", *args)
    assert ran.code == 1
    assert "has no working directory here" in ran.error


def test_paths_need_a_working_directory(work: Path, mstore: Any) -> None:
    mstore.ok("init", "--bare", "../store")
    assert mstore("--repo", "../store", "commit", "config.json").code == 2


def test_another_model_is_checked_out_not_committed_to(first: str, mstore: Any) -> None:
    refused = mstore("--model", "other", "commit")
    assert refused.code == 1
    assert "the working directory is of model default, not other" in refused.error
