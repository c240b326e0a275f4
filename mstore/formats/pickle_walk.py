"""Pickles of protocols 0 to 5, read into inert values: nothing is imported, called or evaluated.

A pickle is a program for a machine with a stack and a memo. This machine has all its opcodes, but
those that would look up or call something only note what they were given, see
`mstore.formats.pickle_values`. What is used twice is shared and never copied, so the values may
be cyclic, and reach one thing on very many ways: whoever follows them must keep count of what was
seen. Source: the tables of Python's `pickletools`, and PEPs 307, 3154 and 574.
"""

import sys
from collections.abc import Callable, Sequence

from mstore.errors import LimitExceededError, UnsafeInputError
from mstore.formats.pickle_arguments import Arguments
from mstore.formats.pickle_values import (
    Call,
    Dict,
    Extension,
    Global,
    OutOfBand,
    Pair,
    Persistent,
    Set,
)

MAX_OPCODES = 8_000_000
"""Most opcodes of a pickle; a tensor takes about 60."""

MAX_MEMORY = 256 * 1024 * 1024
"""Most bytes that the values may take, roughly; a tensor takes about 1500."""

MAX_MARKS = 10_000
"""Most marks at a time: how deeply values can be nested that are made from their members."""

_MAX_NAME = 4096  # characters of a module and a name in it
_MAX_PROTOCOL = 5
_STOP = ord(".")
_NO_FRAME = sys.maxsize
_VALUE, _CALL, _MEMO = 112, 376, 112  # bytes that a value, a call and a memo entry take


def walk(data: bytes) -> object:
    """The value that a pickle describes; what follows the pickle in `data` is not looked at.

    Strings of Python 2 become text where they are UTF-8, else bytes; byte arrays become bytes.

    Raises FormatError for what is no pickle, LimitExceededError for one that is unreasonably
    large, UnsafeInputError for one that would change what it has not made.
    """
    arguments = Arguments(data)
    try:
        return _Machine(arguments).run(data)
    except IndexError:
        # Both the stack and the data are lists to take from; asking first would take longer.
        lacks = "opcodes" if arguments.at >= len(data) else "values"
        raise arguments.fail(f"runs out of {lacks}") from None


class _Machine:
    """The methods are the opcodes that do more than to push what is written after them."""

    def __init__(self, arguments: Arguments) -> None:
        self._arguments = arguments
        self._stack: list[object] = []  # what was pushed since the last mark
        self._marked: list[list[object]] = []  # what was pushed before each mark
        self._memo: dict[int, object] = {}
        self._frame_end = _NO_FRAME
        self._memory = 0

    def run(self, data: bytes) -> object:
        """The value on top when the pickle stops."""
        arguments = self._arguments
        for _ in range(MAX_OPCODES):
            opcode = data[arguments.at]
            arguments.at += 1
            if read := _PLAIN.get(opcode):
                value = read(arguments)
                self._push(value, sys.getsizeof(value))
            elif act := _ACTS.get(opcode):
                act(self)
            elif opcode != _STOP:
                raise arguments.fail(f"has the unknown opcode {opcode:#04x}")
            if arguments.at >= self._frame_end:
                self._leave_frame()
            if opcode == _STOP:
                return self._stack.pop()
        raise LimitExceededError(f"its pickle has more than {MAX_OPCODES} opcodes")

    def _push(self, value: object, size: int = _VALUE) -> None:
        self._charge(size)
        self._stack.append(value)

    def _charge(self, size: int) -> None:
        self._memory += size
        if self._memory > MAX_MEMORY:
            raise LimitExceededError(f"the values of its pickle take more than {MAX_MEMORY} bytes")

    def protocol(self) -> None:
        if (version := self._arguments.u8()) > _MAX_PROTOCOL:
            raise self._arguments.fail(f"has the unknown protocol {version}")

    def frame(self) -> None:
        size = self._arguments.u64()
        if self._frame_end != _NO_FRAME:
            raise self._arguments.fail("has a frame inside another")
        self._arguments.need(size)
        self._frame_end = self._arguments.at + size

    def _leave_frame(self) -> None:
        if self._arguments.at > self._frame_end:
            raise self._arguments.fail("has an opcode that crosses the end of its frame")
        self._frame_end = _NO_FRAME

    # The stack and the memo.

    def mark(self) -> None:
        if len(self._marked) == MAX_MARKS:
            raise LimitExceededError(f"its pickle has more than {MAX_MARKS} marks at a time")
        self._charge(_VALUE)
        self._marked.append(self._stack)
        self._stack = []

    def _since_mark(self) -> list[object]:
        """What was pushed since the last mark; both are gone then."""
        members = self._stack
        self._stack = self._marked.pop()
        return members

    def pop_mark(self) -> None:
        self._since_mark()

    def pop(self) -> None:
        if self._stack:
            self._stack.pop()
        else:
            self._since_mark()

    def duplicate(self) -> None:
        self._stack.append(self._stack[-1])

    def read_only(self) -> None:
        """Needs a buffer and changes nothing here."""
        self._stack.append(self._stack.pop())

    def _get(self, index: int) -> None:
        if index not in self._memo:
            raise self._arguments.fail(f"asks for what it has not put in the memo at {index}")
        self._stack.append(self._memo[index])

    def _put(self, index: int) -> None:
        self._charge(_MEMO)
        self._memo[index] = self._stack[-1]

    def get_line(self) -> None:
        self._get(self._arguments.index_line())

    def get1(self) -> None:
        self._get(self._arguments.u8())

    def get4(self) -> None:
        self._get(self._arguments.u32())

    def put_line(self) -> None:
        self._put(self._arguments.index_line())

    def put1(self) -> None:
        self._put(self._arguments.u8())

    def put4(self) -> None:
        self._put(self._arguments.u32())

    def memoize(self) -> None:
        self._put(len(self._memo))

    # Lists, tuples, dictionaries and sets.

    def empty_list(self) -> None:
        self._push([])

    def list_of(self) -> None:
        self._push(self._since_mark())

    def empty_tuple(self) -> None:
        self._stack.append(())

    def tuple_of(self) -> None:
        self._push(tuple(self._since_mark()))

    def tuple1(self) -> None:
        self._push((self._stack.pop(),))

    def tuple2(self) -> None:
        second, first = self._stack.pop(), self._stack.pop()
        self._push((first, second))

    def tuple3(self) -> None:
        third, second, first = self._stack.pop(), self._stack.pop(), self._stack.pop()
        self._push((first, second, third))

    def empty_dict(self) -> None:
        self._push(Dict([]))

    def dict_of(self) -> None:
        self._push(Dict(self._pairs(self._since_mark())))

    def empty_set(self) -> None:
        self._push(Set([]))

    def set_of(self) -> None:
        self._push(Set(self._since_mark()))

    def append(self) -> None:
        self._extend([self._stack.pop()])

    def appends(self) -> None:
        self._extend(self._since_mark())

    def _extend(self, members: list[object]) -> None:
        target = self._stack[-1]
        if isinstance(target, Call):
            target = target.elements
        if not isinstance(target, list):
            raise self._unsafe("appends to what is no list")
        self._charge(8 * len(members))
        target.extend(members)

    def add_items(self) -> None:
        members = self._since_mark()
        target = self._stack[-1]
        if not isinstance(target, Set | Call):
            raise self._unsafe("adds to what is no set")
        self._charge(8 * len(members))
        (target.elements if isinstance(target, Call) else target.members).extend(members)

    def set_item(self) -> None:
        value, key = self._stack.pop(), self._stack.pop()
        self._set_items([key, value])

    def set_items(self) -> None:
        self._set_items(self._since_mark())

    def _set_items(self, flat: list[object]) -> None:
        pairs = self._pairs(flat)
        target = self._stack[-1]
        if not isinstance(target, Dict | Call):
            raise self._unsafe("sets items of what is no dictionary")
        target.pairs.extend(pairs)

    def _pairs(self, flat: Sequence[object]) -> list[Pair]:
        if len(flat) % 2:
            raise self._arguments.fail("has a key without a value")
        self._charge(40 * len(flat))
        return list(zip(flat[::2], flat[1::2], strict=True))

    # What would look up, call or load something.

    def _unsafe(self, what: str) -> UnsafeInputError:
        return UnsafeInputError(f"its pickle {what} at byte {self._arguments.at}")

    def global_line(self) -> None:
        self._push_global(*self._global_name())

    def _global_name(self) -> tuple[str, str]:
        arguments = self._arguments
        return arguments.text(arguments.line()), arguments.text(arguments.line())

    def stack_global(self) -> None:
        name, module = self._stack.pop(), self._stack.pop()
        if not isinstance(name, str) or not isinstance(module, str):
            raise self._unsafe("looks up a name that is no text")
        self._push_global(module, name)

    def _push_global(self, module: str, name: str) -> None:
        if len(module) + len(name) > _MAX_NAME:
            raise LimitExceededError(f"its pickle has a global name beyond {_MAX_NAME} characters")
        self._push(Global(module, name), _VALUE + sys.getsizeof(module) + sys.getsizeof(name))

    def extension1(self) -> None:
        self._push(Extension(self._arguments.u8()))

    def extension2(self) -> None:
        self._push(Extension(self._arguments.u16()))

    def extension4(self) -> None:
        self._push(Extension(self._arguments.i32()))

    def next_buffer(self) -> None:
        self._push(OutOfBand())

    def persistent_line(self) -> None:
        self._push(Persistent(self._arguments.text(self._arguments.line())))

    def persistent(self) -> None:
        self._push(Persistent(self._stack.pop()))

    def reduce(self) -> None:
        arguments, function = self._stack.pop(), self._stack.pop()
        self._push_call(function, arguments)

    def new_object_with_keywords(self) -> None:
        keywords, arguments, function = self._stack.pop(), self._stack.pop(), self._stack.pop()
        self._push_call(function, arguments, keywords)

    def instance_line(self) -> None:
        module, name = self._global_name()
        members = self._since_mark()
        self._push_global(module, name)
        self._push_call(self._stack.pop(), tuple(members))

    def instance_of(self) -> None:
        function, *arguments = self._since_mark() or [None]
        self._push_call(function, tuple(arguments))

    def _push_call(self, function: object, arguments: object, keywords: object = None) -> None:
        if not isinstance(function, Global | Call | Extension | Persistent):
            raise self._unsafe("calls what cannot be called")
        if not isinstance(arguments, tuple) or not isinstance(keywords, Dict | None):
            raise self._arguments.fail("calls something with no arguments to speak of")
        self._push(Call(function, arguments, keywords), _CALL)

    def build(self) -> None:
        state, target = self._stack.pop(), self._stack[-1]
        if not isinstance(target, Call):
            raise self._unsafe("sets attributes of what it has not made")
        self._charge(8)
        target.states.append(state)


def _table(of: dict[bytes, Callable[..., object]]) -> dict[int, Callable[..., object]]:
    return {opcode[0]: act for opcode, act in of.items()}


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
        b"F": Arguments.float_line,
        b"G": Arguments.f64,
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

_ACTS = _table(
    {
        b"\x80": _Machine.protocol,
        b"\x95": _Machine.frame,
        b"(": _Machine.mark,
        b"0": _Machine.pop,
        b"1": _Machine.pop_mark,
        b"2": _Machine.duplicate,
        b"g": _Machine.get_line,
        b"h": _Machine.get1,
        b"j": _Machine.get4,
        b"p": _Machine.put_line,
        b"q": _Machine.put1,
        b"r": _Machine.put4,
        b"\x94": _Machine.memoize,
        b"]": _Machine.empty_list,
        b"l": _Machine.list_of,
        b"a": _Machine.append,
        b"e": _Machine.appends,
        b")": _Machine.empty_tuple,
        b"t": _Machine.tuple_of,
        b"\x85": _Machine.tuple1,
        b"\x86": _Machine.tuple2,
        b"\x87": _Machine.tuple3,
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
