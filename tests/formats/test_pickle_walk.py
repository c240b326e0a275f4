"""The pickle walker: what pickles it reads, and that nothing in them is ever run."""

import collections
import copyreg
import datetime
import io
import math
import os
import pickle
import pickletools
import re
import struct
import sys
from contextlib import suppress
from pathlib import Path

import pytest
from damage import changed_bytes, flipped
from hypothesis import given, settings
from hypothesis import strategies as st
from pickled import reachable

from mstore.errors import FormatError, LimitExceededError, MstoreError, UnsafeInputError
from mstore.formats import pickle_arguments, pickle_stack, pickle_walk
from mstore.formats.pickle_values import (
    SAME,
    Call,
    Chars,
    Dict,
    Extension,
    Floats,
    Global,
    OutOfBand,
    Persistent,
    Set,
    Text,
    children,
)
from mstore.formats.pickle_walk import walk


def plain(value, data=b""):
    """A walked value of no classes but Python's own, as Python has it."""
    if isinstance(value, list | tuple):
        members = []
        for inner in value:
            if isinstance(inner, Floats):
                members += numbers(data[inner.offset : inner.end])
            else:
                members.append(plain(inner, data))
        return type(value)(members)
    if isinstance(value, Dict):
        return {plain(key, data): plain(inner, data) for key, inner in value.pairs}
    if isinstance(value, Set):
        return {plain(inner, data) for inner in value.members}
    if isinstance(value, Call) and value.function.name == "set":
        return set(plain(value.arguments[0], data))
    if isinstance(value, Call) and str(value.function) == "_codecs.encode":
        return plain(value.arguments[0], data).encode("latin-1")
    if isinstance(value, Call) and value.function.name == "bytes":
        return b""
    if isinstance(value, Chars):
        held = data[value.offset : value.offset + value.length]
        return held.decode("utf-8", "surrogatepass") if value.code == "utf8" else held
    return value


def numbers(region):
    """The floats that the opcodes in some bytes push, as Python's own disassembler has them."""
    found = []
    for opcode, argument, _ in genops(region):
        assert opcode.name in LISTS
        if opcode.name in ("FLOAT", "BINFLOAT"):
            found.append(argument)
    return found


def genops(region):
    """The opcodes in some bytes, which need not end with one that stops."""
    for opcode, argument, at in pickletools.genops(region + b"."):
        if at < len(region):
            yield opcode, argument, at


LISTS = {
    *("FLOAT", "BINFLOAT", "MARK", "EMPTY_LIST", "LIST", "APPEND", "APPENDS", "EMPTY_TUPLE"),
    *("TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE", "FRAME"),
}


keys = st.none() | st.booleans() | st.integers() | st.text() | st.binary()
values = st.recursive(
    keys
    | st.floats(allow_nan=False)
    | st.integers(-(2**200), 2**200)
    | st.text(st.characters(codec="utf-8")),
    lambda inner: (
        st.lists(inner)
        | st.tuples(inner, inner)
        | st.lists(inner).map(tuple)
        | st.dictionaries(keys, inner)
        | st.sets(keys)
    ),
    max_leaves=20,
)


@settings(max_examples=120)
@given(value=values, protocol=st.integers(0, 5))
def test_what_python_pickled(value, protocol):
    data = pickle.dumps(value, protocol)
    assert plain(walk(data), data) == value
    optimised = pickletools.optimize(pickle.dumps([value, value], protocol))
    assert plain(walk(optimised), optimised) == [value, value]


@settings(max_examples=120)
@given(value=values, protocol=st.integers(0, 5), data=st.data())
def test_changed_pickles_raise_nothing_else(value, protocol, data):
    changed = data.draw(changed_bytes(pickle.dumps(value, protocol), 4))
    with suppress(MstoreError):
        walk(changed)
        # What is no pickle to Python's own disassembler is none here. It takes names for ASCII, and
        # numbers for those that Python writes.
        problem = disassembled(changed)
        assert not problem or re.search("codec|invalid literal|to float", problem)


def disassembled(data):
    """What Python's own disassembler has against a pickle."""
    try:
        list(pickletools.genops(data))
    except ValueError as error:
        return str(error)
    return ""


OPCODES = b"".join(opcode.code.encode("latin-1") for opcode in pickletools.opcodes)


@settings(max_examples=300)
@given(st.lists(st.sampled_from(OPCODES) | st.binary(max_size=9), max_size=40))
def test_random_opcodes_raise_nothing_else(parts):
    data = b"".join(bytes([part]) if isinstance(part, int) else part for part in parts)
    for start in (b"", b"\x80\x04", b"]q\0}q\1(K\1K\2", b"cos\nsystem\n)Rq\0(h\0"):
        with suppress(MstoreError):
            walk(start + data + b".")


class Thing:
    def __init__(self):
        self.a = 1

    def __eq__(self, other):
        return True

    __hash__ = None


class Slots:
    __slots__ = ("x",)

    def __init__(self):
        self.x = [1]


class WithKeywords:
    def __new__(cls, *, size=0):
        return super().__new__(cls)

    def __getnewargs_ex__(self):
        return (), {"size": 3}


SAMPLE = [
    Thing(), Slots(), collections.OrderedDict(a=1), collections.Counter("aab"), {1, 2},
    frozenset([3]), b"bytes", bytearray(b"array"), datetime.date(2020, 1, 2), 1.5, -7, 2**80, 300,
    70000, None, True, False, "ü\n\\", (), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4), {}, {"k": []},
    list(range(3)), collections.deque([1]), len, os.path.join, complex(1, 2), WithKeywords(),
]  # fmt: skip


@pytest.mark.parametrize("protocol", range(6))
def test_truncation_and_flipped_bits(protocol):
    data = pickle.dumps(SAMPLE if protocol >= 2 else SAMPLE[2:-1], protocol)
    walk(data)
    for size in range(len(data)):
        with pytest.raises(FormatError):
            walk(data[:size])
    for _, changed in flipped(data, (0, 3, 6)):
        with suppress(MstoreError):
            walk(changed)


def test_every_opcode_is_known():
    tables = (pickle_walk._PLAIN, pickle_walk._LISTS, pickle_walk._ACTS)
    known = {opcode for table in tables for opcode in range(256) if table[opcode]} | {ord(".")}
    assert sum(table[opcode] is not None for table in tables for opcode in range(256)) == 67
    assert known == set(OPCODES)
    for opcode in set(range(256)) - known:
        with pytest.raises(FormatError, match="unknown opcode"):
            walk(bytes([opcode]) + b"N.")


CASES = {
    b"N.": None,
    b"I01\n.": True,
    b"I00\n.": False,
    b"I-12\n.": -12,
    b"L12L\n.": 12,
    b"L12\n.": 12,
    b"J\xff\xff\xff\xff.": -1,
    b"M\xff\xff.": 65535,
    b"\x8a\0.": 0,
    b"\x8a\2\0\xff.": -256,
    b"\x8b\1\0\0\0\x05.": 5,
    b"\x8b\1\0\0\0\xff.": -1,
    b"F1e3\n.": 1000.0,
    b"Finf\n.": math.inf,
    b"G" + struct.pack(">d", -2.5) + b".": -2.5,
    b"S'a\\'\\n\\x41\\101\\q'\n.": "a'\nAA\\q",
    b'S"\xff"\n.': b"\xff",
    b"T\2\0\0\0ab.": "ab",
    b"U\1\xff.": b"\xff",
    b"V\\u0041\xfc\n.": "Aü",
    b"X\3\0\0\0\xed\xa0\x80.": "\ud800",
    b"\x8d\1" + bytes(7) + b"x.": "x",
    b"\x8e\1" + bytes(7) + b"x.": b"x",
    b"\x96\1" + bytes(7) + b"x.": b"x",
    b"(K\1K\2d.": {1: 2},
    b"(K\1K\2l.": [1, 2],
    b"K\1K\x022\x860.": 1,
    b"(K\1(K\x021l.": [1],
    b"(0K\1.": 1,
    b"]p5\n0g5\n.": [],
    b"]r\5\0\0\0000j\5\0\0\0.": [],
    b"]\x940h\0.": [],
    b"\x80\5\x95\2" + bytes(7) + b"K\1.": 1,
    b"K\1.trailing": 1,
}


@pytest.mark.parametrize("data", CASES)
def test_opcodes(data):
    found = plain(walk(data), data)
    expected = CASES[data]
    assert (found, type(expected)) == (expected, str if type(found) is Text else type(found))


def test_inert_values():
    call = walk(b"cos\nsystem\n(S'x'\ntR.")
    assert isinstance(call, Call)
    assert (str(call.function), call.arguments) == ("os.system", ("x",))
    assert str(walk(b"\x8c\3a.b\x8c\3c.d\x93.")) == "a.b.c.d"
    made = walk(b"(K\1im\nC\n.")
    assert (str(made.function), made.arguments) == ("m.C", (1,))
    made = walk(b"(cm\nC\nK\1o.")
    assert (str(made.function), made.arguments) == ("m.C", (1,))
    made = walk(b"cm\nC\n)\x81}K\1K\2sb]b.")
    assert plain(made.states[0]) == {1: 2}
    assert made.states[1] == []
    made = walk(b"cm\nC\n)}K\1K\2s\x92.")
    assert plain(made.keywords) == {1: 2}
    made = walk(b"cm\nC\n)R(K\1K\2uK\3K\4s(K\5eK\6a(K\7\x90.")
    assert (made.pairs, made.elements) == ([(1, 2), (3, 4)], [5, 6, 7])
    assert walk(b"Pid\n.").identifier == "id"
    assert walk(b"(K\1K\2tQ.").identifier == (1, 2)
    assert [walk(data).code for data in (b"\x82\7.", b"\x83\7\1.", b"\x84\7\0\0\0.")] == [7, 263, 7]
    assert isinstance(walk(b"\x97."), OutOfBand)
    assert isinstance(walk(b"\x97\x98."), OutOfBand)


def test_extensions_stay_numbers():
    copyreg.add_extension(__name__, "Thing", 0x1234)
    try:
        (call,) = walk(pickle.dumps([Thing()], 2))
        assert isinstance(call.function, Extension)
    finally:
        copyreg.remove_extension(__name__, "Thing", 0x1234)


def test_python_reads_the_same_globals():
    """Python's own unpickler asks for the same names in the same order."""
    asked = []

    class Asking(pickle.Unpickler):
        def find_class(self, module, name):
            asked.append(f"{module}.{name}")
            return super().find_class(module, name)

    for protocol in (2, 4, 5):
        data = pickle.dumps(SAMPLE, protocol, fix_imports=False)
        asked.clear()
        Asking(io.BytesIO(data)).load()
        found = [f"{g.module}.{g.name}" for g in reachable(walk(data)) if isinstance(g, Global)]
        assert set(found) == set(asked)


def test_children():
    value = walk(b"cm\nC\n(K\1t}K\2K\3s\x92K\4a(K\5K\6uN}K\7K\x08s\x86b.")
    found = list(children(value))
    assert [(key, child) for key, child in found if key is not SAME] == [(0, 4), (5, 6)]
    assert [plain(child) for key, child in found if key is SAME][1:] == [
        (1,), {2: 3}, None, {7: 8}
    ]  # fmt: skip
    assert list(children(Persistent("x"))) == [(SAME, "x")]
    assert list(children(Set([1, 2]))) == [(0, 1), (1, 2)]
    assert list(children("text")) == list(children(5)) == []


BAD = {
    b"": FormatError,
    b".": FormatError,
    b"0.": FormatError,
    b"1.": FormatError,
    b"2.": FormatError,
    b"(": FormatError,
    b"(.": FormatError,
    b"K": FormatError,
    b"h\0.": FormatError,
    b"q\0.": FormatError,
    b"g-1\n.": FormatError,
    b"gx\n.": FormatError,
    b"I1__0\n.": FormatError,
    b"I09\n.": FormatError,
    b"L\n.": FormatError,
    b"Fone\n.": FormatError,
    b"S'\n.": FormatError,
    b"Sx\n.": FormatError,
    b"S'\\x4'\n.": FormatError,
    b"V\\u12\n.": FormatError,
    b"\x8c\1\xff.": FormatError,
    b"T\xff\xff\xff\xff.": FormatError,
    b"X\xff\xff\xff\xffabc.": FormatError,
    b"\x8e" + b"\xff" * 8 + b".": FormatError,
    b"\x8b\xff\xff\xff\xff.": FormatError,
    b"\x8b\xff\xff\xff\x7f.": FormatError,
    b"\x80\6N.": FormatError,
    b"(K\1d.": FormatError,
    b"}(K\1u.": FormatError,
    b"}K\1K\2t.": FormatError,
    b"cos\nsystem\nK\1R.": FormatError,
    b"cos\nsystem\n)K\1\x92.": FormatError,
    b"\x95\x09" + bytes(7) + b"K\1.": FormatError,
    b"\x95\1" + bytes(7) + b"K\1.": FormatError,
    b"\x95\x0a" + bytes(7) + b"\x95\1" + bytes(7) + b"N.": FormatError,
    b"c\xff\nx\n.": FormatError,
    b"K\1)R.": UnsafeInputError,
    b"(o.": UnsafeInputError,
    b"K\1K\2\x93.": UnsafeInputError,
    b"cos\nenviron\nK\1K\2s.": UnsafeInputError,
    b"cos\nsystem\n}b.": UnsafeInputError,
    b"]}b.": UnsafeInputError,
    b"]K\1K\2s.": UnsafeInputError,
    b"}K\1a.": UnsafeInputError,
    b"](K\1\x90.": UnsafeInputError,
    b"c" + b"m" * 5000 + b"\nx\n.": LimitExceededError,
    b"I" + b"1" * 5000 + b"\n.": LimitExceededError,
    b"\x8b\0\2\0\0" + b"\1" * 512 + b".": LimitExceededError,
    b"(" * 20_000: LimitExceededError,
}


@pytest.mark.parametrize("data", BAD, ids=lambda data: repr(data[:20]))
def test_refused(data):
    with pytest.raises(BAD[data], match="its pickle"):
        walk(data)


def test_limits(monkeypatch):
    nested = b"]" + b"h\0" * 10 + b"."
    monkeypatch.setattr(pickle_stack, "MAX_OPCODES", 10)
    with pytest.raises(LimitExceededError, match="opcodes"):
        walk(b"]q\0" + nested)
    monkeypatch.undo()
    monkeypatch.setattr(pickle_stack, "MAX_MEMORY", 10_000)
    for flood in (b"]", b"}", b"\x8f", b"(", b")\x85", b"cm\nC\n", b"\x97", b"F1\n", b"U\1x"):
        with pytest.raises(LimitExceededError, match="10000 bytes"):
            walk(flood * 2000 + b".")
    with pytest.raises(LimitExceededError):
        walk(b"N" + b"".join(b"p%d\n" % index for index in range(2000)) + b".")
    for many in (b"](" + b"N" * 9000 + b"e.", b"}(" + b"N" * 400 + b"u.", b"N" + b"2" * 2000):
        with pytest.raises(LimitExceededError):
            walk(many)


def test_the_code_has_no_way_to_run_anything():
    """Neither pickle nor importing, evaluating or looking up attributes by name is in the source."""
    for module in (pickle_walk, pickle_stack, pickle_arguments, sys.modules[Call.__module__]):
        source = re.sub(r'""".*?"""', "", Path(module.__file__).read_text(), flags=re.DOTALL)
        assert not re.search(
            r"import pickle\b|__import__|importlib|eval\(|exec\(|getattr|setattr|globals\(", source
        )


@pytest.mark.parametrize(
    "line",
    [
        *(b"I0x10", b"I010", b"I1_0", b"I 5", b"I-0", b"I1\0x", b"L0x1fL", b"L1_0L", b"L1\0xL"),
        *(b"F1.5\0x", b"F-1e3", b"Np+1\n0g1", b"Np1_1\n0g11", b"Np1\0\n0g1"),
    ],
)
def test_numbers_as_only_the_reader_in_c_takes_them(line):
    """Whatever is read differently here might hide what comes after it."""
    data = line + b"\n."
    assert walk(data) == pickle.loads(data)
