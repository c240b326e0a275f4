"""What a pickle describes, as inert values: nothing here can be called, imported or run.

Plain values are None, bool, int, float, str, list and tuple. Everything else a pickle can hold is
one of the classes below. They compare and hash by identity alone, so that neither deep nor cyclic
values, nor keys chosen to collide, cost anything. Dictionaries and sets are lists of their members
for the same reason. Bytes and long texts stay in the file, so that what is large costs nothing.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final, Literal

Pair = tuple[object, object]
"""A key and its value."""

Code = Literal["raw", "utf8", "escaped", "quoted"]
"""How bytes or text are written in the file."""


@dataclass(frozen=True, slots=True, eq=False)
class Chars:
    """Bytes or text by its place in the file: `length` bytes from `offset`.

    `code` says how they are written: `raw` bytes are the bytes themselves, `utf8` is text,
    `escaped` text in Python's raw-unicode-escape, `quoted` a string of Python 2 with escapes.
    """

    code: Code
    offset: int
    length: int


class Text(str):
    """Short text that may stand for bytes, with its place in the file, see `Chars`.

    Pickles for Python 2 have bytes only as text, those by Python 2 have text only as bytes.
    """

    __slots__ = ("code", "length", "offset")
    code: Code
    offset: int
    length: int

    @property
    def chars(self) -> Chars:
        """The place."""
        return Chars(self.code, self.offset, self.length)


@dataclass(frozen=True, slots=True, eq=False)
class Floats:
    """`count` numbers, next to each other in a list or tuple, by the opcodes that push them.

    Those are the float opcodes in the bytes from `offset` to `end`, where all others only build
    lists and tuples. `first` counts the float opcodes before, `turn` those opcodes before that do
    anything else; so two are next to each other where nothing else comes between.
    """

    count: int
    offset: int
    end: int
    first: int
    turn: int

    def joined(self, after: "Floats") -> "Floats | None":
        """Both together, if `after` comes right after."""
        if (self.first + self.count, self.turn) != (after.first, after.turn):
            return None
        return Floats(self.count + after.count, self.offset, after.end, self.first, self.turn)


@dataclass(frozen=True, slots=True, eq=False)
class Skipped:
    """`count` plain values in a list, of which nothing else is known."""

    count: int


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
    """A dictionary: its pairs as they were set, so that a later one with an equal key wins.

    Of many pairs those of plain values are left out.
    """

    pairs: list[Pair]


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Set:
    """A set or frozenset: its members as they were added."""

    members: list[object]


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Call:
    """An object that loading would make by calling something, and what it would then be given.

    `elements` would be appended or added to it, `pairs` set as its items, and each of `states`
    set as its state, which mostly means its attributes. `at` is the byte of the file where it is
    called.
    """

    function: object
    arguments: tuple[object, ...]
    keywords: Dict | None = None
    elements: list[object] = field(default_factory=list)
    pairs: list[Pair] = field(default_factory=list)
    states: list[object] = field(default_factory=list)
    at: int = 0


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Inline:
    """An array whose elements follow its wrapper right in the stream, as joblib writes it.

    `content` is where they are, or the value of a pickle of its own where they are objects.
    """

    wrapper: Call
    content: object


SAME: Final = object()
"""The key of what counts as the value that holds it."""

CONTAINERS = (list, tuple, Dict, Set, Call, Persistent, Inline)
"""The values that hold others."""


def children(value: object) -> Iterator[Pair]:
    """What a value holds, in order, each with its key, or `SAME` where it needs none.

    The key of a member of a list, tuple or set is its number. The arguments of a call and the
    state of an object count as the object itself, so that what they hold is found right below it;
    they are given as they are, because many objects may share them.
    """
    if isinstance(value, list | tuple):
        yield from _numbered(value)
    elif isinstance(value, Dict):
        yield from value.pairs
    elif isinstance(value, Set):
        yield from enumerate(value.members)
    elif isinstance(value, Persistent):
        yield SAME, value.identifier
    elif isinstance(value, Inline):
        yield SAME, value.content
    elif isinstance(value, Call):
        yield SAME, value.function
        yield SAME, value.arguments
        yield SAME, value.keywords
        yield from _numbered(value.elements)
        yield from value.pairs
        for state in value.states:
            # Objects with slots have two dictionaries of attributes.
            parts = state if isinstance(state, tuple) and len(state) == 2 else (state,)
            for part in parts:
                yield SAME, part


def _numbered(members: list[object] | tuple[object, ...]) -> Iterator[Pair]:
    number = 0
    for member in members:
        yield number, member
        number += member.count if isinstance(member, Floats | Skipped) else 1
