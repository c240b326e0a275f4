"""The hostile classes by number: what each is, what has to come of it, and what writes its files."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

FORMAT = "FormatError"
LIMIT = "LimitExceededError"
UNSAFE = "UnsafeInputError"
OPAQUE = "not recognised"
DESCRIBED = "described"
HARMFUL = "described, and told to be dangerous"

Write = Callable[[Path], None]


@dataclass(frozen=True, slots=True)
class Hostile:
    """One way to do harm: files of class `number`, and what may come of them.

    Each file is refused by `Format.layout` with one of the errors in `outcomes`; or it is `OPAQUE`,
    when no parser sees its own format in it; or `DESCRIBED`, when it is odd but does no harm; or
    `HARMFUL`, when it is told that loading it does harm, and reading its tensors here does none.
    Files called `beside*` only belong to the hostile ones.
    """

    number: int
    what: str
    outcomes: tuple[str, ...]
    write: Write


TABLE: list[Hostile] = []


def hostile(number: int, *outcomes: str) -> Callable[[Write], Write]:
    """Put a function into the table; its first line says what its files are."""

    def add(write: Write) -> Write:
        assert write.__doc__ is not None
        TABLE.append(Hostile(number, write.__name__, outcomes, write))
        return write

    return add
