"""The settings of a repository, from the command line and from Python."""

from typing import Any

import pytest

import mstore as package
from mstore.errors import InvalidInputError
from mstore.ops.settings import configure


def test_a_setting_is_shown_changed_and_unset(first: str, mstore: Any) -> None:
    assert mstore.json("config") == {"refuse-unsafe": False}
    changed = mstore.ok("config", "refuse-unsafe", "true")
    assert changed.lines == ["refuse-unsafe true"]
    assert changed.err == "changed for everybody who uses this repository: refuse-unsafe\n"
    assert mstore.ok("config").lines == ["refuse-unsafe true"]
    assert mstore.json("config", "refuse-unsafe") == {"refuse-unsafe": True}
    assert mstore.ok("config", "--unset", "refuse-unsafe").lines == ["refuse-unsafe false"]
    assert [one["action"] for one in mstore.json("reflog")[:2]] == [
        "config refuse-unsafe unset",
        "config refuse-unsafe true",
    ]


def test_what_is_so_already_is_not_published(first: str, mstore: Any) -> None:
    mstore.ok("config", "refuse-unsafe", "false")
    mstore.ok("config", "refuse-unsafe", "no")
    mstore.ok("config", "--unset", "refuse-unsafe")
    mstore.ok("config", "--unset", "refuse-unsafe")
    assert len(mstore.json("reflog")) == 4


@pytest.mark.parametrize(
    ("args", "said", "hint"),
    [
        (("nothing",), "there is no setting 'nothing'", "those there are: refuse-unsafe"),
        (("nothing", "true"), "there is no setting 'nothing'", "those there are: refuse-unsafe"),
        (("--unset", "nothing"), "there is no setting 'nothing'", "those there are: refuse-unsafe"),
        (("refuse-unsafe", "maybe"), "refuse-unsafe cannot be 'maybe'", "it is true or false"),
    ],
)
def test_unknown_settings_and_values_are_refused(
    args: tuple[str, ...], said: str, hint: str, first: str, mstore: Any
) -> None:
    ran = mstore("config", *args)
    assert (ran.code, ran.error, ran.hint) == (2, said, hint)
    assert len(mstore.json("reflog")) == 2


def test_unset_takes_one_key(first: str, mstore: Any) -> None:
    assert mstore("config", "--unset").code == 2
    assert mstore("config", "--unset", "refuse-unsafe", "true").code == 2


def test_all_models_and_later_operations_keep_the_settings(first: str, mstore: Any) -> None:
    mstore.ok("config", "refuse-unsafe", "true")
    mstore.ok("tag", "v1")
    mstore.ok("undo")
    mstore.ok("gc")
    assert mstore.json("config", "--model", "other") == {"refuse-unsafe": True}


def test_settings_in_python() -> None:
    repo = package.init("memory://settings", bare=True)
    assert not repo.settings.refuse_unsafe
    other = repo.model("bert")
    other.configure(refuse_unsafe=True)
    assert repo.settings == package.open("memory://settings").settings
    assert repo.settings.refuse_unsafe
    repo.configure(refuse_unsafe=None)
    assert not other.settings.refuse_unsafe
    with pytest.raises(InvalidInputError, match="no setting 'later'"):
        configure(repo.database, {"later": True}, author="Ada")


def test_showing_settings_needs_no_numpy(first: str, mstore: Any) -> None:
    assert not {"numpy", "rich"} & mstore.modules_after("config")
