"""Changing the settings of a repository, for everybody who uses it."""

from collections.abc import Mapping
from dataclasses import replace

from mstore.database import Database
from mstore.root import Root
from mstore.settings import with_setting


def configure(db: Database, changes: Mapping[str, bool | None], *, author: str) -> None:
    """Publish new values of the named settings; one that is None is as if it had never been set.

    When all are as they were already, nothing is published. Raises InvalidInputError for a name
    that no setting has.
    """

    def change(root: Root) -> Root | None:
        settings = root.settings
        for name, value in changes.items():
            settings = with_setting(settings, name, value)
        return replace(root, settings=settings) if settings != root.settings else None

    said = ", ".join(f"{name} {_word(value)}" for name, value in changes.items())
    db.publish(change, action=f"config {said}", author=author)


def _word(value: bool | None) -> str:
    return "unset" if value is None else str(value).lower()
