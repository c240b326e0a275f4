"""What a pickle describes, as inert values: nothing here can be called, imported or run.

Plain values are None, bool, int, float, str, bytes, list and tuple. Everything else a pickle can
hold is one of the classes below. They compare and hash by identity alone, so that neither deep
nor cyclic values, nor keys chosen to collide, cost anything. Dictionaries and sets are lists of
their members for the same reason.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

Pair = tuple[object, object]
"""A key and its value."""


@dataclass(frozen=True, slots=True, eq=False)
class Global:
    """The name of a class, function or other object of a module; only the name."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@dataclass(frozen=True, slots=True, eq=False)
class Extension:
    """A name that another program's registry of extensions gives the number `code`."""

    code: int


@dataclass(frozen=True, slots=True, eq=False)
class OutOfBand:
    """A buffer that is kept elsewhere."""


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Persistent:
    """An object that is kept elsewhere, by what identifies it there."""

    identifier: object


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Dict:
    """A dictionary: its pairs as they were set, so that a later one with an equal key wins."""

    pairs: list[Pair]


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Set:
    """A set or frozenset: its members as they were added."""

    members: list[object]


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Call:
    """An object that loading would make by calling something, and what it would then be given.

    `elements` would be appended or added to it, `pairs` set as its items, and each of `states`
    set as its state, which mostly means its attributes.
    """

    function: object
    arguments: tuple[object, ...]
    keywords: Dict | None = None
    elements: list[object] = field(default_factory=list)
    pairs: list[Pair] = field(default_factory=list)
    states: list[object] = field(default_factory=list)


SAME: Final = object()
"""The key of what counts as the value that holds it."""

CONTAINERS = (list, tuple, Dict, Set, Call, Persistent)
"""The values that hold others."""


def children(value: object) -> Iterator[Pair]:
    """What a value holds, in order, each with its key, or `SAME` where it needs none.

    The key of a member of a list, tuple or set is its number. The arguments of a call and the
    state of an object count as the object itself, so that what they hold is found right below it;
    they are given as they are, because many objects may share them.
    """
    if isinstance(value, list | tuple):
        yield from enumerate(value)
    elif isinstance(value, Dict):
        yield from value.pairs
    elif isinstance(value, Set):
        yield from enumerate(value.members)
    elif isinstance(value, Persistent):
        yield SAME, value.identifier
    elif isinstance(value, Call):
        yield SAME, value.function
        yield SAME, value.arguments
        yield SAME, value.keywords
        yield from enumerate(value.elements)
        yield from value.pairs
        for state in value.states:
            # Objects with slots have two dictionaries of attributes.
            parts = state if isinstance(state, tuple) and len(state) == 2 else (state,)
            for part in parts:
                yield SAME, part
