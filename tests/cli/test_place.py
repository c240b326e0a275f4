from pathlib import Path

import pytest

from mstore.cli.place import find_place, inside
from mstore.errors import InvalidInputError, NoRepositoryError
from mstore.repository import init


def test_the_nearest_repository_above(tmp_path: Path) -> None:
    init(tmp_path)
    deep = tmp_path / "a" / "b"
    deep.mkdir(parents=True)
    assert find_place(None, deep).directory == tmp_path
    init(tmp_path / "a")
    place = find_place(None, deep)
    assert place.directory == tmp_path / "a"
    assert place.storage.location == str(tmp_path / "a" / ".mstore")


def test_a_bare_repository_from_within(tmp_path: Path) -> None:
    init(tmp_path / "store", bare=True)
    place = find_place(None, tmp_path / "store")
    assert (place.directory, place.storage.location) == (None, str(tmp_path / "store"))


def test_a_working_directory_may_have_a_folder_called_roots(tmp_path: Path) -> None:
    init(tmp_path)
    (tmp_path / "roots").mkdir()
    (tmp_path / "roots" / "1").touch()
    assert find_place(None, tmp_path).directory == tmp_path


def test_a_folder_called_roots_does_not_make_a_repository(tmp_path: Path) -> None:
    (tmp_path / "roots").mkdir()
    (tmp_path / "roots" / "oak.bin").touch()
    with pytest.raises(NoRepositoryError):
        find_place(None, tmp_path)


def test_the_inside_of_a_repository_belongs_to_its_directory(tmp_path: Path) -> None:
    init(tmp_path)
    assert find_place(None, tmp_path / ".mstore").directory == tmp_path


def test_a_named_repository(tmp_path: Path) -> None:
    init(tmp_path / "one")
    init(tmp_path / "two")
    init(tmp_path / "bare", bare=True)
    elsewhere = find_place(str(tmp_path / "two"), tmp_path / "one")
    assert elsewhere.storage.location == str(tmp_path / "two" / ".mstore")
    assert elsewhere.directory is None
    assert find_place(str(tmp_path / "one"), tmp_path / "one").directory == tmp_path / "one"
    assert find_place(str(tmp_path / "bare"), tmp_path).storage.location == str(tmp_path / "bare")
    assert find_place("memory://x", tmp_path).storage.location == "memory://x"
    with pytest.raises(NoRepositoryError):
        find_place(str(tmp_path / "none"), tmp_path)


def test_paths_from_here_in_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = tmp_path / "tree"
    (tree / "sub").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tree)
    monkeypatch.chdir(tree / "sub")
    assert inside(tree, "a") == "sub/a"
    assert inside(tree, "../a/./b/") == "a/b"
    assert inside(tree, "..") == "."
    assert inside(tree, str(tmp_path / "link" / "a")) == "a"
    for outside in ("../..", "/", str(tmp_path / "treehouse")):
        with pytest.raises(InvalidInputError):
            inside(tree, outside)


def test_a_link_in_the_working_directory_is_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to("/etc/passwd")
    assert inside(tmp_path, "link") == "link"
