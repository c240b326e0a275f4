"""Version control for model weights.

    import mstore

    repo = mstore.init("models")                      # or mstore.open("models")
    repo.commit({"w": array}, "first", metadata={"loss": 0.3})
    repo["main"].tensors["w"][10:20]                  # reads only what it needs
    repo["main"].load()                               # the structure that was committed

Errors are subclasses of `MstoreError`, see `mstore.errors`.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from mstore.version import __version__

if TYPE_CHECKING:
    from mstore.errors import (
        ConflictError,
        CorruptDataError,
        DurabilityError,
        FormatError,
        InvalidInputError,
        LimitExceededError,
        MstoreError,
        NoRepositoryError,
        NotFoundError,
        StorageError,
        UnsafeInputError,
        UnsupportedVersionError,
    )
    from mstore.ops.diff import Diff
    from mstore.progress import Progress
    from mstore.repository import Repository, init
    from mstore.repository import open_repository as open  # noqa: A004
    from mstore.snapshot import FileView, Snapshot
    from mstore.tensors import TensorView

_PLACES = {
    "Diff": "mstore.ops.diff",
    "FileView": "mstore.snapshot",
    "Progress": "mstore.progress",
    "Repository": "mstore.repository",
    "Snapshot": "mstore.snapshot",
    "TensorView": "mstore.tensors",
    "init": "mstore.repository",
    "open": "mstore.repository:open_repository",
    **dict.fromkeys(
        (
            "ConflictError",
            "CorruptDataError",
            "DurabilityError",
            "FormatError",
            "InvalidInputError",
            "LimitExceededError",
            "MstoreError",
            "NoRepositoryError",
            "NotFoundError",
            "StorageError",
            "UnsafeInputError",
            "UnsupportedVersionError",
        ),
        "mstore.errors",
    ),
}

__all__ = [
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


def __getattr__(name: str) -> object:
    """Import what is asked for only then: the command line starts without numpy."""
    if name not in _PLACES:
        raise AttributeError(f"module 'mstore' has no attribute {name!r}")
    module, _, inner = _PLACES[name].partition(":")
    value = getattr(import_module(module), inner or name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
