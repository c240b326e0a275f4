from pathlib import Path

import pytest

from mstore.errors import InvalidInputError
from mstore.storage.local import LocalStorage
from mstore.storage.memory import MemoryStorage
from mstore.storage.open import open_storage


@pytest.mark.parametrize("kind", [str, Path])
def test_a_path(tmp_path, kind):
    storage = open_storage(kind(tmp_path / "repo"))
    assert isinstance(storage, LocalStorage)
    assert storage.location == str(tmp_path / "repo")


def test_a_relative_path_stays_where_it_was(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    storage = open_storage("repo")
    monkeypatch.chdir("/")
    assert storage.location == str(tmp_path / "repo")


@pytest.mark.parametrize("host", ["", "localhost"])
def test_a_file_url(host):
    assert open_storage(f"file://{host}/some/a%20place").location == "/some/a place"


def test_a_path_object_is_never_a_url(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert isinstance(open_storage(Path("memory://x")), LocalStorage)


def test_memory_is_shared_by_name():
    one = open_storage("memory://test-open-one")
    assert isinstance(one, MemoryStorage)
    assert one.location == "memory://test-open-one"
    assert open_storage("memory://test-open-one") is one
    assert open_storage("memory://test-open-two") is not one


@pytest.mark.parametrize(
    ("location", "hint"),
    [
        ("", "directory"),
        ("a\0b", "directory"),
        ("file:///a%00b", "directory"),
        ("file://relative", "three slashes"),
        ("file://other.host/path", "three slashes"),
        ("memory://", "memory://scratch"),
        ("gopher://x", "file://, memory://"),
        ("FILE:///x", "file://, memory://"),
    ],
)
def test_what_cannot_be_opened(location, hint):
    with pytest.raises(InvalidInputError) as caught:
        open_storage(location)
    assert hint in caught.value.hint
