"""Where in a pickle's value things are: under which keys, numbers and attributes."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from mstore.errors import LimitExceededError
from mstore.formats.pickle_values import CONTAINERS, SAME, Call, Global, Pair

MAX_DEPTH = 10_000
"""Deepest nesting of values; what Python pickles by itself is nested about 500 deep."""

MAX_REPEATS = 200_000
"""Most values that are looked at again, since they are in more than one place. No model comes near;
a few hundred bytes can stand for any number of places."""

MAX_WRITTEN_OUT = 1 << 40
"""Most lists, tuples, dictionaries and sets, each counted wherever it is used: few hundred bytes of
lists that hold each other twice would be more than any program could print, compare or copy."""

MAX_NAME = 4096
"""Most characters of a joined path."""

Path = tuple["Path | None", object]
"""Where a value is: the path of what holds it, if that has one, and its own key there."""

T = TypeVar("T")
Look = Callable[[object], tuple[list[tuple[object, T]], Iterator[Pair]]]
"""Tells what is to be found in a value, by key, and in which others to look on."""


def find(root: object, look: Look[T]) -> list[tuple[Path | None, T]]:
    """What `look` finds in a value and in all that is in it, once for each place, in order.

    Values may be cyclic: what is met again is followed again only where something was found in it,
    and it is not just being followed.

    Raises LimitExceededError for values nested too deeply, or in more than `MAX_REPEATS` places, or
    for more than `MAX_WRITTEN_OUT`.
    """
    search = _Search(look)
    search.run(root)
    return search.found


@dataclass(slots=True)
class _Step:
    """A value that is being followed: what is left of it, how much was found before, and how.

    `written_out` counts it and what it holds. An object counts as 1: objects that know each other
    are usual, and nobody writes them out.
    """

    value: object
    left: Iterator[Pair]
    path: Path | None
    known: int
    again: bool
    written_out: int = 1

    def add(self, written_out: int) -> None:
        """Count what it holds; raises LimitExceededError when that is too much."""
        if not isinstance(self.value, Call):
            self.written_out += written_out
        if self.written_out > MAX_WRITTEN_OUT:
            raise LimitExceededError(
                "its lists hold each other so often that it would be more than "
                f"2^{MAX_WRITTEN_OUT.bit_length() - 1} values if it were written out"
            )


@dataclass(slots=True)
class _Search(Generic[T]):
    look: Look[T]
    found: list[tuple[Path | None, T]] = field(default_factory=list)
    repeats: int = 0
    seen: dict[int, object] = field(default_factory=dict)
    """The values, so that no other can take the id of one."""
    empty: dict[int, int] = field(default_factory=dict)
    """Those in which nothing was found, and what each counts when it is written out."""
    open: set[int] = field(default_factory=set)

    def run(self, root: object) -> None:
        stack = [_Step(None, iter([(SAME, root)]), None, 0, again=False)]
        while stack:
            step = stack[-1]
            if step.again:  # each member counts, also plain ones: a long list has many
                self._count()
            pair = next(step.left, None)
            if pair is None:
                self._close(stack.pop())
                if stack:
                    stack[-1].add(step.written_out)
                continue
            key, value = pair
            if not isinstance(value, CONTAINERS):
                continue
            again = id(value) in self.seen
            if again and not self._is_followed_again(value):
                step.add(self.empty.get(id(value), 1))
                continue
            if len(stack) > MAX_DEPTH:
                raise LimitExceededError(f"its values are nested deeper than {MAX_DEPTH}")
            path = step.path if key is SAME else (step.path, key)
            stack.append(self._enter(value, path, again=again or step.again))

    def _is_followed_again(self, value: object) -> bool:
        known = id(value)
        if known in self.empty or known in self.open:
            return False
        self._count()
        return True

    def _count(self) -> None:
        self.repeats += 1
        if self.repeats > MAX_REPEATS:
            raise LimitExceededError(f"its values are in more than {MAX_REPEATS} places")

    def _enter(self, value: object, path: Path | None, *, again: bool) -> _Step:
        self.seen[id(value)] = value
        self.open.add(id(value))
        known = len(self.found)
        here, inside = self.look(value)
        for key, item in here:
            self.found.append((path if key is SAME else (path, key), item))
        return _Step(value, inside, path, known, again)

    def _close(self, step: _Step) -> None:
        self.open.discard(id(step.value))
        if step.known == len(self.found):
            self.empty[id(step.value)] = step.written_out


def join(path: Path | None) -> str:
    """The keys of a path, with dots between; raises LimitExceededError if it is too long.

    Keys may have dots in them, so two paths may be joined to the same name.
    """
    labels: list[str] = []
    length = 0
    while path is not None:
        path, key = path
        labels.append(_label(key))
        length += len(labels[-1]) + 1
        if length > MAX_NAME:
            raise LimitExceededError(f"an array in it has a name of over {MAX_NAME} characters")
    return ".".join(reversed(labels))


def _label(key: object) -> str:
    if isinstance(key, str):
        # Lone surrogates are no text that could be stored.
        return key[: MAX_NAME + 1].encode("utf-8", "backslashreplace").decode()
    if isinstance(key, tuple):
        return ",".join("?" if isinstance(part, tuple) else _label(part) for part in key[:16])
    return str(key) if isinstance(key, int | float | Global | None) else "?"
