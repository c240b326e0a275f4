"""What the machine of a pickle works on: a stack with marks, and a memo; with limits to all.

The opcodes that only move values, or build lists and tuples of them, are methods here. Runs of
floats in lists are kept as one value each, see `Floats`, and of long lists and dictionaries only
what may have arrays in it.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field

from mstore.errors import LimitExceededError
from mstore.formats.pickle_arguments import Arguments
from mstore.formats.pickle_values import CONTAINERS, Call, Floats, Global, Pair, Skipped

MAX_OPCODES = 4_000_000
"""Most opcodes of a file's pickles; a tensor takes about 60."""

MAX_MEMORY = 256 * 1024 * 1024
"""Most bytes that the values may take, roughly; a tensor takes about 1500."""

MAX_MARKS = 10_000
"""Most marks at a time: how deeply values can be nested that are made from their members."""

VALUE = 112
"""Bytes that a value takes, about."""

_LEAST_MEMORY = 24 * 1024 * 1024
_PER_BYTE = 10  # words take 5 bytes of memory for each of the file, short lists of floats 8
_RUN = 176  # bytes that a run of floats takes
LEAST_RUN = 64
"""Fewest float opcodes in a row that are stepped over together; their values are not kept."""

_SCATTERED = 112  # bytes that a memo entry takes whose number is not the next one
_NUMBERS, _NUMBER = (int, float), 24  # and the bytes of one
_WHOLE = 256  # members of a list or dictionary that are all kept
_MANY = 16  # tuples of fewer floats are kept as they are, since a call may be given them


@dataclass(slots=True)
class Account:
    """What the pickles of one file may still take, and what they have named and called so far.

    `opcodes` and `memory` are what is left; the latter is in bytes, of `limit`. `globals` has the
    place of the first use of each name, by module and name; `calls` are in the order in which they
    would be made. `others` is what they would do besides, worded to follow "it …", with its place.
    `inline` counts the arrays between the opcodes. `followed` has the ids of those calls that load
    what was looked through, too.
    """

    opcodes: int
    memory: int
    limit: int
    globals: dict[tuple[str, str], int] = field(default_factory=dict)
    calls: list[Call] = field(default_factory=list)
    others: dict[str, int] = field(default_factory=dict)
    inline: int = 0
    followed: set[int] = field(default_factory=set)


def new_account(size: int) -> Account:
    """What the pickles of a file of `size` bytes may take."""
    memory = min(MAX_MEMORY, _LEAST_MEMORY + _PER_BYTE * size)
    return Account(MAX_OPCODES, memory, memory)


class Stack(ABC):
    """The values of a pickle: what was pushed and what was put in the memo.

    Opcodes raise IndexError where they need more values than there are.
    """

    def __init__(self, arguments: Arguments, account: Account) -> None:
        self.arguments = arguments
        self.account = account
        self.values: list[object] = []  # what was pushed since the last mark
        # What was pushed before each mark, where that is, and how many floats and turns before.
        self._marked: list[tuple[list[object], int, int, int]] = []
        self._memo: list[object] = []  # entries in the order of their numbers, as most are put
        self._scattered: dict[int, object] = {}
        self._since = (0, 0, 0)  # what was noted of the last mark that was taken off
        self._floats = 0
        self._last_float = (0, -1)  # where the last opcode of a float is, and at which turn
        self.turn = 0
        """How many opcodes there were that do more than to build lists and tuples of floats."""

    def push(self, value: object, size: int = VALUE) -> None:
        """Push a value that takes `size` bytes; raises LimitExceededError if it is one too many."""
        self.charge(size)
        self.values.append(value)

    def charge(self, size: int) -> None:
        """Count `size` bytes; raises LimitExceededError when there are too many."""
        self.account.memory -= size
        if self.account.memory < 0:
            limit = self.account.limit
            raise LimitExceededError(f"the values of its pickle take more than {limit} bytes")

    def push_floats(self, numbers: list[float], offset: int) -> None:
        """Push the numbers of float opcodes, the last of which is at `offset`."""
        self._floats += len(numbers)
        self._last_float = (offset, self.turn)
        self.charge(_size_of_floats(len(numbers)))
        self.values += numbers

    # Marks.

    def mark(self) -> None:
        """Have what follows be the members of something."""
        if len(self._marked) == MAX_MARKS:
            raise LimitExceededError(f"its pickle has more than {MAX_MARKS} marks at a time")
        self.charge(VALUE)
        self._marked.append((self.values, self.arguments.position, self._floats, self.turn))
        self.values = []

    def pop_to_mark(self) -> list[object]:
        """What was pushed since the last mark; both are gone then."""
        members = self.values
        self.values, *noted = self._marked.pop()
        self.account.memory += VALUE
        self._since = noted[0], noted[1], noted[2]
        return members

    def _pop_packed(self, least: int = 1) -> list[object]:
        """The same; all of it in one value, if it is `least` floats or more."""
        members = self.pop_to_mark()
        start, floats, turn = self._since
        if len(members) < least or self._floats - floats != len(members) or turn != self.turn:
            return members
        if any(type(member) is not float for member in members):
            return members
        self.account.memory += _size_of_floats(len(members))
        return [Floats(len(members), start, self.arguments.position - 1, floats, turn)]

    def _pop_one_packed(self) -> list[object]:
        """The last value, as a list."""
        member = self.values.pop()
        offset, turn = self._last_float
        if type(member) is not float or turn != self.turn:
            return [member]
        self.account.memory += _size_of_floats(1)
        return [Floats(1, offset, self.arguments.position - 1, self._floats - 1, turn)]

    # Lists, tuples and dictionaries.

    def empty_list(self) -> None:
        """Push a list."""
        self.push([])

    def list_of(self) -> None:
        """Push a list of what was pushed since the mark."""
        members = self._pop_packed()
        self.push(members, VALUE + _RUN if members and isinstance(members[0], Floats) else VALUE)

    def append(self) -> None:
        """Append the last value to the list before it."""
        self._extend(self._pop_one_packed())

    def appends(self) -> None:
        """Append what was pushed since the mark."""
        self._extend(self._pop_packed())

    def _extend(self, members: list[object]) -> None:
        target = self.elements_of(self.values[-1])
        last = target[-1] if target else None
        if members and isinstance(new := members[0], Floats):
            if isinstance(last, Floats) and (joined := last.joined(new)) is not None:
                target[-1] = joined
                return
            self.charge(_RUN)
        elif len(target) >= _WHOLE and all(type(one) in _NUMBERS for one in members):
            self._forget(members)
            before = last.count if isinstance(last, Skipped) else 0
            if before:
                target.pop()
            members = [Skipped(before + len(members))]
        self.charge(8 * len(members))
        target += members

    @abstractmethod
    def elements_of(self, value: object) -> list[object]:
        """The members of a list or of an object, to be added to; the machine says of what else."""

    def add_pairs(self, target: list[Pair], flat: list[object]) -> None:
        """Add keys and values, which take turns in `flat`, to those of a dictionary."""
        if len(flat) % 2:
            raise self.arguments.fail("has a key without a value")
        pairs = list(zip(flat[::2], flat[1::2], strict=True))
        if len(target) >= _WHOLE:
            pairs = [
                pair
                for pair in pairs
                if isinstance(pair[0], CONTAINERS) or isinstance(pair[1], CONTAINERS)
            ]
            if not pairs:
                self._forget(flat)
        self.charge(80 * len(pairs))
        target += pairs

    def _forget(self, values: list[object]) -> None:
        """Numbers are gone when nothing holds them; text is mostly in the memo."""
        self.account.memory += _NUMBER * sum(type(value) in _NUMBERS for value in values)

    def empty_tuple(self) -> None:
        """Push a tuple of nothing."""
        self.push((), 8)

    def tuple_of(self) -> None:
        """Push a tuple of what was pushed since the mark."""
        self.push(tuple(self._pop_packed(_MANY)))

    def tuple1(self) -> None:
        """Push a tuple of the last value."""
        self.push((self.values.pop(),))

    def tuple2(self) -> None:
        """Push a tuple of the last two."""
        second, first = self.values.pop(), self.values.pop()
        self.push((first, second))

    def tuple3(self) -> None:
        """Push a tuple of the last three."""
        third, second, first = self.values.pop(), self.values.pop(), self.values.pop()
        self.push((first, second, third))

    # The memo.

    def _get(self, index: int) -> None:
        if index < len(self._memo):
            self.push(self._memo[index], 8)
        elif index in self._scattered:
            self.push(self._scattered[index], 8)
        else:
            raise self.arguments.fail(f"asks for what it has not put in the memo at {index}")

    def _put(self, index: int) -> None:
        if index < len(self._memo):
            self._memo[index] = self.values[-1]
        elif index == len(self._memo) and index not in self._scattered:
            self.charge(8)
            self._memo.append(self.values[-1])
        else:
            self.charge(_SCATTERED)
            self._scattered[index] = self.values[-1]

    def get_line(self) -> None:
        """Push what is in the memo."""
        self._get(self.arguments.index_line())

    def get1(self) -> None:
        """Push what is in the memo."""
        self._get(self.arguments.u8())

    def get4(self) -> None:
        """Push what is in the memo."""
        self._get(self.arguments.u32())

    def put_line(self) -> None:
        """Put the last value in the memo."""
        self._put(self.arguments.index_line())

    def put1(self) -> None:
        """Put the last value in the memo."""
        self._put(self.arguments.u8())

    def put4(self) -> None:
        """Put the last value in the memo."""
        self._put(self.arguments.u32())

    def memoize(self) -> None:
        """Put the last value in the memo at the number of entries there."""
        self._put(len(self._memo) + len(self._scattered))

    # Values that are taken off, or once more.

    def pop(self) -> None:
        """Drop the last value, or the mark."""
        if self.values:
            self.values.pop()
        else:
            self.pop_to_mark()

    def pop_mark(self) -> None:
        """Drop what was pushed since the mark."""
        self.pop_to_mark()

    def duplicate(self) -> None:
        """Push the last value again."""
        self.push(self.values[-1], 8)

    def read_only(self) -> None:
        """Needs a buffer and changes nothing here."""
        self.values.append(self.values.pop())

    # What is noted of the pickle.

    def note_name(self, found: Global) -> None:
        """Note that the pickle names something."""
        if (found.module, found.name) not in self.account.globals:
            self.charge(2 * VALUE)
            self.account.globals[found.module, found.name] = self.arguments.position - 1

    def note_call(self, made: Call) -> None:
        """Note that the pickle calls something."""
        self.charge(8)
        self.account.calls.append(made)

    def note(self, what: str) -> None:
        """Note that the pickle would do something else."""
        self.account.others.setdefault(what, self.arguments.position - 1)


def _size_of_floats(count: int) -> int:
    """Bytes that floats take on the stack: those of long runs are all the same one."""
    return 8 * count if count >= LEAST_RUN else (8 + _NUMBER) * count
