"""The author comes from the environment, then git, then the login."""

import subprocess
from pathlib import Path

import pytest

from mstore import author


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("MSTORE_AUTHOR")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "none"))
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")
    monkeypatch.chdir(tmp_path)
    author._from_git.cache_clear()
    author._login.cache_clear()


def test_the_environment_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MSTORE_AUTHOR", "  Grace <grace@example.org> ")
    assert author.default_author() == "Grace <grace@example.org>"


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (
            {"user.name": "Grace Hopper", "user.email": "g@example.org"},
            "Grace Hopper <g@example.org>",
        ),
        ({"user.name": "Grace"}, "Grace"),
        ({"user.email": "g@example.org"}, "g@example.org"),
    ],
)
def test_then_git(settings: dict[str, str], expected: str) -> None:
    for key, value in settings.items():
        subprocess.run(["git", "config", "--global", key, value], check=True)
    assert author.default_author() == expected


def test_then_the_login(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOGNAME", "grace")
    assert author.default_author() == "grace"


def test_without_git_and_login(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")

    def nobody() -> str:
        raise KeyError("uid not found")

    monkeypatch.setattr("getpass.getuser", nobody)
    assert author.default_author() == "unknown"
