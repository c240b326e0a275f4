"""What may be recorded: paths of files, texts, and the metadata of a commit."""

from collections.abc import Mapping

from mstore.errors import InvalidInputError

MetadataValue = str | int | float | bool | None | list["MetadataValue"] | dict[str, "MetadataValue"]
"""What a commit's metadata may hold: the values of JSON."""

MAX_PATH_BYTES = 4096

_RESERVED = frozenset({".mstore", ".git"})


def path_bytes(path: str) -> bytes:
    """A path as the operating system spells it; what paths are sorted by."""
    return path.encode("utf-8", "surrogateescape")


def check_path(path: str) -> str:
    """`path`, if it can name a file inside a directory and nothing outside it.

    Raises InvalidInputError for an absolute path, "..", ".", empty parts, NUL, a backslash-free
    but overlong path, and anything inside `.mstore`.
    """
    parts = path.split("/")
    if (
        not path
        or len(path_bytes(path)) > MAX_PATH_BYTES
        or "\0" in path
        or any(part in ("", ".", "..") for part in parts)
        or parts[0] == ".mstore"
    ):
        raise InvalidInputError(f"{path!r} cannot be the path of a file in a version")
    return path


def is_reserved(name: str) -> bool:
    """Whether a file or folder called so is no part of any version.

    Case counts for nothing, since some file systems take `.GIT` for `.git`.
    """
    return name.lower() in _RESERVED


def check_text(what: str, value: str) -> str:
    """`value`, if it is text that UTF-8 can hold; raises InvalidInputError naming `what`."""
    if not isinstance(value, str):
        raise InvalidInputError(f"{what} must be text, not {type(value).__name__}")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise InvalidInputError(f"{what} holds text that is not Unicode") from None
    return value


def check_metadata(metadata: Mapping[str, MetadataValue]) -> dict[str, MetadataValue]:
    """`metadata` as a plain dict; raises InvalidInputError when a value is not of JSON's kinds."""
    for key, value in metadata.items():
        if not check_text("a key of metadata", key):
            raise InvalidInputError("a key of metadata is empty")
        _check_value(key, value, depth=0)
    return dict(metadata)


def _check_value(where: str, value: object, depth: int) -> None:
    if depth > 32:
        raise InvalidInputError(f"metadata {where} is nested too deeply")
    if value is None or type(value) in (bool, float):
        return
    if type(value) is int:
        if not -(1 << 63) <= value < 1 << 63:
            raise InvalidInputError(f"metadata {where} holds a number beyond 64 bits")
    elif type(value) is str:
        check_text(f"metadata {where}", value)
    elif type(value) is list:
        for number, item in enumerate(value):
            _check_value(f"{where}[{number}]", item, depth + 1)
    elif type(value) is dict:
        for key, item in value.items():
            check_text(f"a key of metadata {where}", key)
            _check_value(f"{where}.{key}", item, depth + 1)
    else:
        raise InvalidInputError(
            f"metadata {where} is a {type(value).__name__}, which cannot be recorded",
            hint="use text, int, float, bool, None, lists and dicts; float(x) of a scalar",
        )
