"""Pickles of protocols 0 to 5, read into inert values: nothing is imported, called or evaluated.

A pickle is a program for a machine with a stack and a memo. This machine has all its opcodes, but
those that would look up or call something only note what they were given, see
`mstore.formats.pickle_values`. What is used twice is shared and never copied, so the values may
be cyclic, and reach one thing on very many ways: whoever follows them must keep count of what was
seen. Source: the tables of Python's `pickletools`, and PEPs 307, 3154 and 574.

Files of joblib are pickles with the bytes of arrays between the opcodes: see `Inline`.
"""

import sys
from collections.abc import Callable

from mstore.errors import LimitExceededError, UnsafeInputError
from mstore.formats.base import BytesReader
from mstore.formats.pickle_arguments import Arguments
from mstore.formats.pickle_inline import is_wrapper, read_inline
from mstore.formats.pickle_policy import may_be_anything
from mstore.formats.pickle_stack import LEAST_RUN, VALUE, Account, Stack, new_account
from mstore.formats.pickle_values import (
    Call,
    Chars,
    Dict,
    Extension,
    Global,
    Inline,
    OutOfBand,
    Persistent,
    Set,
    Text,
)
from mstore.ids import Buffer

ASKS = "asks whoever loads it for objects that are kept elsewhere"
"""What a pickle does that has persistent ids, worded to follow "it …"."""

_MAX_NAME = 4096  # characters of a module and a name in it
_MAX_PROTOCOL = 5
_STOP, _FLOAT = ord("."), ord("G")
_NO_FRAME = sys.maxsize
_PLACED, _PLACE = (Chars, Text), 72  # bytes that the numbers in them take
_CALL = 384  # bytes that a call takes
_RUN = 1024  # floats that are stepped over at once
_UNREAD = [0.0]  # what stands for each of many floats in a row, whose values nobody asks for


def walk(data: Buffer) -> object:
    """The value that a pickle describes; what follows the pickle in `data` is not looked at.

    Strings of Python 2 become text where they are UTF-8; bytes are told by their place in `data`.

    Raises FormatError for what is no pickle, LimitExceededError for one that is unreasonably
    large, UnsafeInputError for one that would change what it has not made.
    """
    reader = BytesReader(data)
    return walk_next(Arguments(reader), new_account(reader.size))


def walk_next(
    arguments: Arguments, account: Account, *, inline: bool = False, lenient: bool = False
) -> object:
    """The value of the pickle that starts where `arguments` are; they then are at its end.

    What it names and calls is noted in `account`, also when an error is raised. With `inline` there
    may be arrays of joblib between the opcodes. If `lenient`, frames mean nothing, as to the reader
    of pickles in C, and what cannot be done is passed over where that reader might be able to; the
    value then means little. Raises as `walk` does.
    """
    try:
        return _Machine(arguments, account, inline=inline, lenient=lenient).run()
    except IndexError:
        # The stack is a list to take from; asking first would take longer.
        raise arguments.fail("runs out of values") from None


class _Machine(Stack):
    """The methods are the opcodes that do more than to push what is written after them."""

    def __init__(
        self, arguments: Arguments, account: Account, *, inline: bool, lenient: bool
    ) -> None:
        super().__init__(arguments, account)
        self._inline = inline
        self._lenient = lenient
        self._frame_end = _NO_FRAME

    def run(self) -> object:
        """The value on top when the pickle stops."""
        arguments = self.arguments
        for _ in range(self.account.opcodes):
            self.account.opcodes -= 1
            if arguments.at == len(arguments.window):
                arguments.fill(1)
            opcode = arguments.window[arguments.at]
            arguments.at += 1
            if read := _PLAIN[opcode]:
                self.turn += 1
                value = read(arguments)
                self.push(value, sys.getsizeof(value) + _PLACE * (type(value) in _PLACED))
            elif act := _ACTS[opcode]:
                self.turn += 1
                act(self)
            elif act := _LISTS[opcode]:
                act(self)
            elif opcode != _STOP:
                raise arguments.fail(f"has the unknown opcode {opcode:#04x}")
            if arguments.start + arguments.at >= self._frame_end:
                self._leave_frame()
            if opcode == _STOP:
                return self.values.pop()
        raise LimitExceededError("its pickle has too many opcodes")

    def protocol(self) -> None:
        if (version := self.arguments.u8()) > _MAX_PROTOCOL:
            raise self.arguments.fail(f"has the unknown protocol {version}")
        self.arguments.has_bytes = version >= 3

    def frame(self) -> None:
        size = self.arguments.u64()
        if self._lenient:
            self.arguments.need(size)
            return
        if self._frame_end != _NO_FRAME:
            raise self.arguments.fail("has a frame inside another")
        self.arguments.need(size)
        self._frame_end = self.arguments.position + size

    def _leave_frame(self) -> None:
        if self.arguments.position > self._frame_end:
            raise self.arguments.fail("has an opcode that crosses the end of its frame")
        self._frame_end = _NO_FRAME

    # Floats.

    def float8(self) -> None:
        """One, or as many as there are of this opcode in a row."""
        arguments, at = self.arguments, self.arguments.at - 1
        offset, window = arguments.start + at, arguments.window
        opcodes = window[at : at + 9 * _RUN : 9]
        room = min(len(window) - at, self._frame_end - offset) // 9
        count = min(len(opcodes) - len(opcodes.lstrip(b"G")), room)
        if count < LEAST_RUN:
            self.push_floats([arguments.f64()], offset)
        else:
            arguments.at = at + 9 * count
            self.push_floats(_UNREAD * count, offset + 9 * (count - 1))

    def float_line(self) -> None:
        offset = self.arguments.position - 1
        self.push_floats([self.arguments.float_line()], offset)

    # Dictionaries and sets.

    def empty_dict(self) -> None:
        self.push(Dict([]))

    def dict_of(self) -> None:
        members = self.pop_to_mark()
        self.push(made := Dict([]))
        self.add_pairs(made.pairs, members)

    def empty_set(self) -> None:
        self.push(Set([]))

    def set_of(self) -> None:
        self.push(Set(self.pop_to_mark()))

    def add_items(self) -> None:
        members = self.pop_to_mark()
        target = self.values[-1]
        if not isinstance(target, Set | Call):
            self._refuse("adds to what is no set")
            return
        self.charge(8 * len(members))
        (target.elements if isinstance(target, Call) else target.members).extend(members)

    def set_item(self) -> None:
        value, key = self.values.pop(), self.values.pop()
        self._set_items([key, value])

    def set_items(self) -> None:
        self._set_items(self.pop_to_mark())

    def _set_items(self, flat: list[object]) -> None:
        target = self.values[-1]
        if not isinstance(target, Dict | Call):
            self._refuse("sets items of what is no dictionary")
            return
        self.add_pairs(target.pairs, flat)

    def elements_of(self, value: object) -> list[object]:
        found = value.elements if isinstance(value, Call) else value
        if not isinstance(found, list):
            self._refuse("appends to what is no list")
            return []
        return found

    # What would look up, call or load something.

    def _unsafe(self, what: str) -> UnsafeInputError:
        return UnsafeInputError(f"its pickle {what} at byte {self.arguments.position}")

    def _refuse(self, what: str) -> None:
        if not self._lenient:
            raise self._unsafe(what)

    def global_line(self) -> None:
        self._push_global(*self._global_name())

    def _global_name(self) -> tuple[str, str]:
        arguments = self.arguments
        return arguments.text(arguments.line()), arguments.text(arguments.line())

    def stack_global(self) -> None:
        name, module = self.values.pop(), self.values.pop()
        if not isinstance(name, str) or not isinstance(module, str):
            if not self._lenient or any(map(may_be_anything, (name, module))):
                raise self._unsafe("looks up a name that is no text")
            raise self.arguments.fail("looks up a name that is no text")
        self._push_global(module, name)

    def _push_global(self, module: str, name: str) -> None:
        if len(module) + len(name) > _MAX_NAME:
            raise LimitExceededError(f"its pickle has a global name beyond {_MAX_NAME} characters")
        found = Global(module, name)
        self.note_name(found)
        self.push(found, VALUE + sys.getsizeof(module) + sys.getsizeof(name))

    def extension1(self) -> None:
        self._push_extension(self.arguments.u8())

    def extension2(self) -> None:
        self._push_extension(self.arguments.u16())

    def extension4(self) -> None:
        self._push_extension(self.arguments.i32())

    def _push_extension(self, code: int) -> None:
        self.note("takes a class from a registry that the file is not part of")
        self.push(Extension(code))

    def next_buffer(self) -> None:
        self.push(OutOfBand())

    def persistent_line(self) -> None:
        self._push_persistent(self.arguments.text(self.arguments.line()))

    def persistent(self) -> None:
        self._push_persistent(self.values.pop())

    def _push_persistent(self, identifier: object) -> None:
        self.note(ASKS)
        self.push(Persistent(identifier))

    def reduce(self) -> None:
        arguments, function = self.values.pop(), self.values.pop()
        self._push_call(function, arguments)

    def new_object_with_keywords(self) -> None:
        keywords, arguments, function = self.values.pop(), self.values.pop(), self.values.pop()
        self._push_call(function, arguments, keywords)

    def instance_line(self) -> None:
        module, name = self._global_name()
        members = self.pop_to_mark()
        self._push_global(module, name)
        self._push_call(self.values.pop(), tuple(members))

    def instance_of(self) -> None:
        function, *arguments = self.pop_to_mark() or [None]
        self._push_call(function, tuple(arguments))

    def _push_call(self, function: object, arguments: object, keywords: object = None) -> None:
        if not isinstance(function, Global | Call | Extension | Persistent):
            if self._lenient:
                raise self.arguments.fail("calls what cannot be called")
            raise self._unsafe("calls what cannot be called")
        if not isinstance(arguments, tuple) or not isinstance(keywords, Dict | None):
            if not self._lenient:
                raise self.arguments.fail("calls something with no arguments to speak of")
            arguments, keywords = (), None
        made = Call(function, arguments, keywords, at=self.arguments.position - 1)
        # Objects are hardly called where bytes of arrays are taken for opcodes, but by chance.
        if not self._lenient or isinstance(function, Global) or may_be_anything(function):
            self.note_call(made)
        self.push(made, _CALL)

    def build(self) -> None:
        state, target = self.values.pop(), self.values[-1]
        if not isinstance(target, Call):
            self._refuse("sets attributes of what it has not made")
            return
        self.charge(8)
        target.states.append(state)
        if self._inline and is_wrapper(target):
            self._take_inline(target)

    def _take_inline(self, wrapper: Call) -> None:
        """Take an array of joblib's, which is here outside of any frame, for its wrapper."""
        if self._frame_end not in (_NO_FRAME, self.arguments.position):
            raise self.arguments.fail("has an array inside a frame")
        self._frame_end = _NO_FRAME
        content: object = read_inline(wrapper, self.arguments)
        if content is None:  # of objects, which are a pickle of their own
            content = walk_next(self.arguments, self.account)
        self.account.inline += 1
        self.values[-1] = Inline(wrapper, content)


def _table(of: dict[bytes, Callable[..., object]]) -> list[Callable[..., object] | None]:
    """By the number of the opcode."""
    return [of.get(bytes([opcode])) for opcode in range(256)]


_PLAIN = _table(
    {
        b"N": lambda _: None,
        b"\x88": lambda _: True,
        b"\x89": lambda _: False,
        b"I": Arguments.int_line,
        b"J": Arguments.i32,
        b"K": Arguments.u8,
        b"M": Arguments.u16,
        b"L": Arguments.long_line,
        b"\x8a": Arguments.long1,
        b"\x8b": Arguments.long4,
        b"S": Arguments.string_line,
        b"T": Arguments.string4,
        b"U": Arguments.string1,
        b"V": Arguments.text_line,
        b"X": Arguments.text4,
        b"\x8c": Arguments.text1,
        b"\x8d": Arguments.text8,
        b"B": Arguments.bytes4,
        b"C": Arguments.bytes1,
        b"\x8e": Arguments.bytes8,
        b"\x96": Arguments.bytes8,
    }
)

# Lists of floats are made of these alone: `Recoded` knows no others.
_LISTS = _table(
    {
        b"G": _Machine.float8,
        b"F": _Machine.float_line,
        b"\x95": _Machine.frame,
        b"(": _Machine.mark,
        b"]": _Machine.empty_list,
        b"l": _Machine.list_of,
        b"a": _Machine.append,
        b"e": _Machine.appends,
        b")": _Machine.empty_tuple,
        b"t": _Machine.tuple_of,
        b"\x85": _Machine.tuple1,
        b"\x86": _Machine.tuple2,
        b"\x87": _Machine.tuple3,
        b"p": _Machine.put_line,
        b"q": _Machine.put1,
        b"r": _Machine.put4,
        b"\x94": _Machine.memoize,
    }
)

_ACTS = _table(
    {
        b"\x80": _Machine.protocol,
        b"0": _Machine.pop,
        b"1": _Machine.pop_mark,
        b"2": _Machine.duplicate,
        b"g": _Machine.get_line,
        b"h": _Machine.get1,
        b"j": _Machine.get4,
        b"}": _Machine.empty_dict,
        b"d": _Machine.dict_of,
        b"s": _Machine.set_item,
        b"u": _Machine.set_items,
        b"\x8f": _Machine.empty_set,
        b"\x90": _Machine.add_items,
        b"\x91": _Machine.set_of,
        b"c": _Machine.global_line,
        b"\x93": _Machine.stack_global,
        b"\x82": _Machine.extension1,
        b"\x83": _Machine.extension2,
        b"\x84": _Machine.extension4,
        b"\x97": _Machine.next_buffer,
        b"\x98": _Machine.read_only,
        b"P": _Machine.persistent_line,
        b"Q": _Machine.persistent,
        b"R": _Machine.reduce,
        b"\x81": _Machine.reduce,
        b"\x92": _Machine.new_object_with_keywords,
        b"i": _Machine.instance_line,
        b"o": _Machine.instance_of,
        b"b": _Machine.build,
    }
)
