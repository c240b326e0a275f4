"""Branches, tags, revisions and undo."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mstore.errors import ConflictError, InvalidInputError, NotFoundError
from mstore.ops.revisions import check_name, earlier, resolve
from mstore.repository import Repository
from mstore.snapshot import Snapshot


def commits(repo: Repository, count: int = 3, branch: str = "main") -> list[Snapshot]:
    return [repo.commit({"a": float(n)}, f"{branch}{n}", branch=branch) for n in range(count)]


def test_revisions(repo: Repository) -> None:
    first, second, third = commits(repo)
    repo.create_tag("v1", first.id)
    repo.create_branch("feature/x", "main~1")
    for revision, expected in {
        "main": third,
        "HEAD": third,
        "@": third,
        "main^": second,
        "main~1": second,
        "main~2": first,
        "main^^": first,
        "main^~1": first,
        "main~0": third,
        "v1": first,
        "feature/x": second,
        "feature/x~": first,
        first.id: first,
        first.id[:4]: first,
        second.id[:12] + "~1": first,
    }.items():
        assert repo[revision] == expected, revision
        assert revision in repo
    assert 3 not in repo


@pytest.mark.parametrize(
    "revision", ["nothing", "main~3", "^", "~1", "", "main~x", "abc", "dead" * 10]
)
def test_what_is_no_revision(repo: Repository, revision: str) -> None:
    commits(repo)
    assert revision not in repo
    with pytest.raises((NotFoundError, InvalidInputError)):
        repo[revision]


def test_the_nearest_names_are_told(repo: Repository) -> None:
    commits(repo)
    repo.create_tag("release-1")
    with pytest.raises(NotFoundError, match="release-1"):
        repo["relase-1"]
    with pytest.raises(NotFoundError, match="models here: default"):
        repo.model("bert")["main"]
    with pytest.raises(NotFoundError, match="no commits yet"):
        Repository(repo.database.create(type(repo.database.storage)(), "Ada"))["HEAD"]


def test_an_ambiguous_prefix(repo: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        type(repo.database), "commits_with_prefix", lambda *_: [b"a" * 32, b"b" * 32]
    )
    with pytest.raises(InvalidInputError, match="several commits"):
        repo["abcd"]


def test_branches_and_tags(repo: Repository) -> None:
    first, second, third = commits(repo)
    repo.create_branch("old", "main~2")
    repo.create_tag("v1", "old")
    assert dict(repo.branches) == {"main": third.id, "old": first.id}
    assert dict(repo.tags) == {"v1": first.id}
    with pytest.raises(ConflictError, match="a branch called old already"):
        repo.create_branch("old")
    with pytest.raises(ConflictError, match="a tag called v1 already"):
        repo.create_tag("v1")
    assert repo.delete_branch("old") == first.id
    assert repo.delete_tag("v1") == first.id
    with pytest.raises(NotFoundError, match="main"):
        repo.delete_branch("old")
    with pytest.raises(NotFoundError):
        repo.delete_tag("v1")
    repo.create_branch("again", first.id)
    assert repo["again"] == first
    assert second.parents == (first.id,)


@pytest.mark.parametrize(
    "name",
    [
        "",
        "HEAD",
        "a b",
        "-x",
        "a..",
        "../x",
        "a/../b",
        "a//b",
        "/a",
        "a/",
        "a~1",
        "a^",
        "a:b",
        "a\nb",
        "x" * 300,
        "a\x1b",
        "*",
        "\u202e",
    ],
)
def test_names_that_are_refused(repo: Repository, name: str) -> None:
    commits(repo, 1)
    for make in (repo.create_branch, repo.create_tag, repo.model):
        if name == "a.." and make:
            continue
        with pytest.raises(InvalidInputError):
            make(name)


@given(st.text(max_size=8))
def test_an_accepted_name_is_one_printable_word(name: str) -> None:
    try:
        check_name("tag", name)
    except InvalidInputError:
        return
    assert name.isprintable()
    assert name.split() == [name]
    assert not set("~^:*?[\\") & set(name)


def test_models_share_chunks_but_not_names(repo: Repository) -> None:
    import numpy as np

    weights = np.random.default_rng(0).standard_normal(50_000)
    repo.commit({"w": weights})
    before = repo.stats().stored.total
    bert = repo.model("bert")
    bert.commit({"w": weights}, "same weights")
    assert repo.stats().stored.total - before < 2000
    assert repo.models == ["bert", "default"]
    assert bert["main"].message == "same weights"
    assert repo["main"].message == ""
    bert.create_tag("v1")
    assert "v1" not in repo


def test_undo_goes_back_operation_by_operation(repo: Repository) -> None:
    first, second, third = commits(repo)
    repo.create_tag("v1")
    repo.undo()
    assert not repo.tags
    assert repo["main"] == third
    repo.undo()
    assert repo["main"] == second
    repo.undo()
    assert repo["main"] == first
    repo.undo()
    assert not repo.branches
    with pytest.raises(NotFoundError, match="nothing to undo"):
        repo.undo()


def test_undo_then_work_then_undo(repo: Repository) -> None:
    first, second, _third = commits(repo)
    repo.undo()
    other = repo.commit({"a": "else"}, "other")
    assert other.parents == (second.id,)
    repo.undo()
    assert repo["main"] == second
    repo.undo()
    assert repo["main"] == first


def test_undo_to_a_root_and_forward_again(repo: Repository) -> None:
    _, _, third = commits(repo)
    newest = repo.database.root.number
    repo.undo(to=2)
    assert repo["main"].message == "main0"
    repo.undo(to=newest)
    assert repo["main"] == third
    for wrong in (0, 99):
        with pytest.raises(InvalidInputError, match="no root"):
            repo.undo(to=wrong)


def test_undo_passes_over_what_changed_no_refs(repo: Repository) -> None:
    first, _ = commits(repo, 2)
    repo.commit({"b": 1}, branch="side")
    repo.delete_branch("side")
    repo.gc()
    with pytest.raises(ConflictError, match="no longer whole"):
        repo.undo()
    assert first.id in [one.id for one in repo.log()]


def test_undo_to_where_it_is_changes_nothing(repo: Repository) -> None:
    commits(repo)
    number = repo.database.root.number
    repo.undo(to=number)
    assert repo.database.refresh().number == number


def test_reflog(repo: Repository) -> None:
    commits(repo, 1)
    repo.create_tag("v1")
    repo.undo()
    actions = [root.action for root in repo.reflog()]
    assert actions[0] == "undo"
    assert actions[1] == "tag v1"
    assert actions[2].startswith("commit ")
    assert actions[3] == "init"
    assert {root.author for root in list(repo.reflog())[:2]} == {"Ada <ada@example.org>"}


def test_a_lost_commit_can_be_named_until_gc(repo: Repository) -> None:
    commits(repo, 1)
    lost = repo.commit({"b": 1}, branch="side", parent="main")
    repo.delete_branch("side")
    repo.create_branch("back", lost.id[:8])
    assert repo["back"] == lost
    repo.delete_branch("back")
    repo.gc()
    with pytest.raises(NotFoundError):
        repo.create_branch("back", lost.id[:8])


def test_undo_goes_on_behind_a_gc(repo: Repository) -> None:
    first, second, _ = commits(repo)
    repo.undo()
    repo.gc()
    assert repo["main"] == second
    repo.undo()
    assert repo["main"] == first
    repo.gc()
    repo.undo()
    assert not repo.branches
    with pytest.raises(NotFoundError, match="nothing to undo"):
        repo.undo()


def test_a_name_is_a_branch_or_a_tag(repo: Repository) -> None:
    commits(repo, 2)
    repo.create_tag("v1")
    repo.create_branch("side")
    with pytest.raises(ConflictError, match="tag called v1"):
        repo.create_branch("v1", "main~1")
    with pytest.raises(ConflictError, match="branch called side"):
        repo.create_tag("side")
    with pytest.raises(ConflictError, match="tag called v1"):
        repo.commit({"a": 9.0}, branch="v1")


def test_a_huge_number_of_steps_is_no_revision(repo: Repository) -> None:
    commits(repo, 1)
    for revision in ("main~" + "9" * 5000, "main~999999999", "main~\u0663"):
        with pytest.raises((NotFoundError, InvalidInputError)):
            repo[revision]


@pytest.mark.parametrize("author", [5, "\ud800", None])
def test_an_author_that_cannot_be_recorded_locks_nobody_out(
    repo: Repository, author: object
) -> None:
    commits(repo, 1)
    if author is not None:
        with pytest.raises(InvalidInputError, match="author"):
            repo.create_tag("x", author=author)  # type: ignore[arg-type]
        with pytest.raises(InvalidInputError, match="author"):
            repo.commit({"a": 5.0}, author=author)  # type: ignore[arg-type]
    with pytest.raises(InvalidInputError, match="message"):
        repo.commit({"a": 5.0}, message=author if author is not None else None)  # type: ignore[arg-type]
    again = Repository(type(repo.database).open(repo.database.storage))
    assert again["main"].message == "main0"
    assert again.verify().ok


def test_revisions_of_other_models(repo: Repository) -> None:
    commits(repo, 2)
    bert = repo.model("team/bert")
    first, second, third = commits(bert)
    bert.create_tag("v1", first.id)
    for revision, expected in {
        "team/bert:main": third,
        "team/bert:HEAD": third,
        "team/bert:main~1": second,
        "team/bert:v1": first,
        f"team/bert:{second.id}^": first,
    }.items():
        assert repo[revision] == expected, revision
        assert bert[revision] == expected, revision
    assert bert["default:main"] == repo["main"] != bert["main"]


def test_head_is_that_of_the_own_model_only(repo: Repository) -> None:
    first, _ = commits(repo, 2)
    head = bytes.fromhex(first.id)
    assert resolve(repo.database, "default", "default:HEAD", head) == head
    bert = repo.model("bert").commit({"b": 1.0})
    assert resolve(repo.database, "default", "bert:HEAD", head).hex() == bert.id


@pytest.mark.parametrize(
    ("revision", "said"),
    [
        ("brt:main", "there is no model 'brt'.*models here: bert, default"),
        ("bert:mian", "unknown revision 'mian'.*main"),
        (":main", "':main' is not a revision"),
        ("bert:", "'bert:' is not a revision"),
        ("a:b:c", "'a:b:c' is not a revision"),
    ],
)
def test_what_is_no_revision_of_another_model(repo: Repository, revision: str, said: str) -> None:
    commits(repo, 1)
    commits(repo.model("bert"), 1)
    with pytest.raises((NotFoundError, InvalidInputError), match=f"(?s){said}"):
        repo[revision]


@given(
    st.sampled_from(["main", "v1", "bert:main", "HEAD", "3f9a"]),
    st.lists(st.sampled_from(["^", "~", "~0", "~1", "~3"]), max_size=3).map("".join),
    st.integers(0, 5),
)
def test_earlier(name: str, steps: str, more: int) -> None:
    count = sum({"^": 1, "~": 1, "~0": 0, "~1": 1, "~3": 3}[one] for one in _steps(steps)) + more
    assert earlier(name + steps, more) == (f"{name}~{count}" if count else name)


def _steps(steps: str) -> list[str]:
    return re.findall(r"\^|~\d?", steps)


def test_earlier_than_what_is_no_revision() -> None:
    with pytest.raises(InvalidInputError, match="not a revision"):
        earlier("~1", 1)
