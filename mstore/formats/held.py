"""Files of known formats inside of another file: what they hold, and what loading them would do."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Protocol, TypeVar

from mstore.errors import FormatError, LimitExceededError, UnsafeInputError
from mstore.formats.base import Finding, Format, WindowReader, quote
from mstore.formats.shifting import Contents, shifted


class Inner(Protocol):
    """Something inside of a file, by its path there."""

    @property
    def path(self) -> str:
        """Where it is."""


Entry = TypeVar("Entry", bound=Inner)


@dataclass(frozen=True, slots=True)
class Held:
    """A file at `path` in another: its parser, its bytes, and where in the other they start.

    The names of its tensors get `prefix` before them, which is its path where that is None.
    """

    path: str
    format: Format
    window: WindowReader
    offset: int
    prefix: str | None = None

    def described(self) -> tuple[Contents, str | None]:
        """Its tensors, by their places in the other file, and what to tell of it."""
        try:
            layout, note = self.format.examine(self.window)
        except (FormatError, LimitExceededError, UnsafeInputError) as error:
            return Contents(), f"looks like {self.format.name} but {error.message}"
        prefix = self.path if self.prefix is None else self.prefix
        return shifted(layout, self.offset, prefix), note and f"has {note}"

    def findings(self) -> list[Finding]:
        """What loading it would do; raises as `Format.findings`, but not UnsafeInputError."""
        try:
            return inside(self.path, self.format.findings(self.window))
        except UnsafeInputError as error:
            return [Finding("dangerous", error.message, self.path)]


def inside(path: str, findings: Iterable[Finding]) -> list[Finding]:
    """The findings of a file at `path` as those of the file that it is in."""
    return [replace(one, where=f"{path}/{one.where}" if one.where else path) for one in findings]


def judge_all(entries: Iterable[Entry], judge: Callable[[Entry], list[Finding]]) -> list[Finding]:
    """The findings of all that is in a file.

    Raises the error of one that cannot be judged, if none is known to be dangerous.
    """
    found: list[Finding] = []
    unjudged: FormatError | LimitExceededError | None = None
    for one in entries:
        try:
            found += judge(one)
        except (FormatError, LimitExceededError) as error:
            unjudged = type(error)(f"in its member {quote(one.path)}, {error.message}")
    if unjudged is not None and all(one.danger != "dangerous" for one in found):
        raise unjudged
    return found
