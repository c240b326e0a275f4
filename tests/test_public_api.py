"""What `import mstore` promises."""

import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import mstore
from mstore import errors


def test_exported_names() -> None:
    assert mstore.__all__ == [
        "ConflictError",
        "CorruptDataError",
        "Diff",
        "DurabilityError",
        "FileView",
        "FormatError",
        "InvalidInputError",
        "LimitExceededError",
        "MstoreError",
        "NoRepositoryError",
        "NotFoundError",
        "Progress",
        "Repository",
        "Snapshot",
        "StorageError",
        "TensorView",
        "UnsafeInputError",
        "UnsupportedVersionError",
        "__version__",
        "init",
        "open",
    ]


def members(thing: type) -> dict[str, object]:
    """The public methods and properties that a class defines itself."""
    return {
        name: member
        for name, member in vars(thing).items()
        if not name.startswith("_")
        and (inspect.isfunction(member) or isinstance(member, property) or hasattr(member, "func"))
    }


def test_members_of_the_main_classes() -> None:
    assert sorted(members(mstore.Repository)) == [
        "branches",
        "commit",
        "configure",
        "create_branch",
        "create_tag",
        "delete_branch",
        "delete_tag",
        "diff",
        "gc",
        "log",
        "model",
        "models",
        "reflog",
        "refresh",
        "repack",
        "settings",
        "stats",
        "tags",
        "undo",
        "verify",
    ]
    assert sorted(members(mstore.Snapshot)) == [
        "author",
        "checkout",
        "export",
        "files",
        "id",
        "load",
        "message",
        "metadata",
        "parents",
        "record",
        "size",
        "tensors",
        "time",
    ]


@pytest.mark.parametrize("name", mstore.__all__)
def test_everything_public_can_be_had_and_is_described(name: str) -> None:
    thing = getattr(mstore, name)
    if name == "__version__":
        assert thing.count(".") >= 2
        return
    assert (thing.__doc__ or "").strip()
    if isinstance(thing, type):
        for member_name, member in members(thing).items():
            assert (member.__doc__ or "").strip(), f"{name}.{member_name} has no docstring"


def test_every_error_is_public() -> None:
    defined = {
        name
        for name, thing in vars(errors).items()
        if isinstance(thing, type) and issubclass(thing, errors.MstoreError)
    }
    assert defined == {name for name in mstore.__all__ if name.endswith("Error")}


def test_dir_lists_the_public_names() -> None:
    assert dir(mstore) == sorted(mstore.__all__)


def test_unknown_names_raise_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        mstore.nothing  # noqa: B018


def test_import_does_not_load_numpy() -> None:
    code = "import sys, mstore; mstore.MstoreError; print('numpy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_types_are_shipped() -> None:
    assert mstore.__file__ is not None
    assert Path(mstore.__file__).with_name("py.typed").is_file()
