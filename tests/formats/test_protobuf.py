"""The reader of Protocol Buffers: every field where it is, and nothing else than fields."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from wire_fields import coded, field

from mstore.errors import FormatError, LimitExceededError, MstoreError
from mstore.formats.base import BytesReader
from mstore.formats.protobuf import BYTES, FIXED32, FIXED64, VARINT, Field, Wire, varint


def wire_of(data, max_fields=1000):
    return Wire(BytesReader(data), max_fields=max_fields)


def fields(data):
    return list(wire_of(data).fields(0, len(data)))


def test_every_wire_type():
    data = field(1, 300) + field(2, b"abc") + field(3, (FIXED32, b"four"))
    data += field(2**29 - 1, (FIXED64, b"eight..."))
    assert fields(data) == [
        Field(1, VARINT, 1, 2, 300),
        Field(2, BYTES, 5, 3, 0),
        Field(3, FIXED32, 9, 4, 0),
        Field(2**29 - 1, FIXED64, 18, 8, 0),
    ]


def test_messages_in_messages():
    data = field(1, field(2, field(3, 7)) + field(4, 8)) + field(5, 9)
    wire = wire_of(data)
    outer = list(wire.fields(0, len(data)))
    inner = list(wire.inside(outer[0], "a message"))
    innermost = list(wire.inside(inner[0], "a message"))
    assert [[one.number for one in level] for level in (outer, inner, innermost)] == [
        [1, 5], [2, 4], [3],
    ]  # fmt: skip
    assert innermost[0].value == 7
    with pytest.raises(FormatError, match="a message has the wrong type"):
        wire.inside(outer[1], "a message")


@pytest.mark.parametrize(
    ("data", "value"),
    [
        (b"\0", 0),
        (b"\x7f", 127),
        (b"\x80\1", 128),
        (b"\x80\0", 0),  # padded, as writers do that put a length in afterwards
        (b"\x81\x80\x80\x80\0", 1),
        (b"\xff" * 9 + b"\1", 2**64 - 1),
        (b"\x80" * 9 + b"\0", 0),
    ],
)
def test_varints(data, value):
    assert varint(data, 0) == (value, len(data))
    assert varint(b"x" + data + b"x", 1) == (value, len(data) + 1)


@pytest.mark.parametrize(
    "data",
    [b"", b"\x80", b"\xff" * 9, b"\xff" * 9 + b"\2", b"\x80" * 9 + b"\x7f", b"\x80" * 10 + b"\0"],
)
def test_bad_varints(data):
    with pytest.raises(FormatError):
        varint(data, 0)


MALFORMED = {
    "number 0": field(0, 1),
    "number too large": field(2**29, 1),
    "group": field(1, (3, b"")) + field(1, (4, b"")),
    "end of a group": field(1, (4, b"")),
    "wire type 6": field(1, (6, b"")),
    "wire type 7": field(1, (7, b"")),
    "tag only": b"\x08",
    "cut varint": b"\x08\x80",
    "overlong tag": b"\x88" + b"\x80" * 9 + b"\0\1",
    "overlong varint": b"\x08" + b"\xff" * 10 + b"\1",
    "length beyond the message": b"\x0a\2x",
    "length of 2^64 - 1": b"\x0a" + coded(2**64 - 1) + b"x",
    "fixed32 cut": b"\x0d123",
    "fixed64 cut": b"\x091234567",
}


@pytest.mark.parametrize("data", MALFORMED.values(), ids=MALFORMED)
def test_malformed(data):
    with pytest.raises(FormatError):
        fields(data)


def test_a_field_may_not_leave_its_message_although_the_file_goes_on():
    data = field(1, b"\x0a\x05xxx") + b"yyyyyyyy"
    wire = wire_of(data)
    outer = next(wire.fields(0, len(data)))
    with pytest.raises(FormatError, match="beyond its message"):
        list(wire.inside(outer, "a message"))


def test_truncation_at_every_length():
    data = field(1, 300) + field(2, b"abc") + field(3, (FIXED32, b"four"))
    whole = [0, 3, 8, 13]
    for size in range(len(data)):
        if size in whole:
            assert len(fields(data[:size])) == whole.index(size)
        else:
            with pytest.raises(FormatError):
                fields(data[:size])


def test_too_many_fields():
    assert len(list(wire_of(field(1, 1) * 7, 7).fields(0, 14))) == 7
    with pytest.raises(LimitExceededError, match="more than 6 fields"):
        list(wire_of(field(1, 1) * 7, 6).fields(0, 14))
    wire = wire_of(field(1, b"") * 7, 20)  # a message counts more than a field
    with pytest.raises(LimitExceededError):
        [wire.inside(one, "a message") for one in wire.fields(0, 14)]


class Sparse:
    """A file of zeros but for some bytes, which notes what is read of it."""

    def __init__(self, size, parts):
        self.size = size
        self.taken = 0
        self._parts = parts

    def read(self, offset, length):
        self.taken += length
        assert length < 1 << 20
        out = bytearray(max(0, min(length, self.size - offset)))
        for at, part in self._parts.items():
            for index, byte in enumerate(part):
                if 0 <= at + index - offset < len(out):
                    out[at + index - offset] = byte
        return bytes(out)


def test_long_fields_are_stepped_over():
    """Messages beyond the 2 GiB of the libraries are described, and their bytes never read."""
    big = 5 << 30
    inner, after = coded(2 << 3 | BYTES) + coded(big), field(3, b"end")
    first = coded(1 << 3 | BYTES) + coded(len(inner) + big + len(after))
    start = len(first) + len(inner)
    file = Sparse(start + big + len(after), {0: first + inner, start + big: after})
    wire = Wire(file, max_fields=10)
    (outer,) = wire.fields(0, file.size)
    assert list(wire.inside(outer, "a message")) == [
        Field(2, BYTES, start, big, 0),
        Field(3, BYTES, start + big + 2, 3, 0),
    ]
    assert file.taken < 100_000


def test_text_and_bytes():
    data = field(1, "é".encode()) + field(2, b"\xff") + field(3, bytes(20_000)) + field(4, 5)
    wire = wire_of(data)
    text, bad, long, number = wire.fields(0, len(data))
    assert wire.text(text, 10, "a name") == "é"
    assert wire.read(bad, 1, "bytes") == b"\xff"
    assert wire.read(long, 20_000, "bytes") == bytes(20_000)
    with pytest.raises(FormatError, match="a name is not UTF-8"):
        wire.text(bad, 10, "a name")
    with pytest.raises(LimitExceededError, match="a name has 20000 bytes"):
        wire.text(long, 10, "a name")
    with pytest.raises(FormatError, match="wrong type"):
        wire.read(number, 10, "a name")


def test_which_bytes_a_long_field_has():
    size = 200_000
    for at in (0, 1, 65_535, 65_536, 131_072, size - 1):
        data = bytearray(field(1, b"\3" * size) + b"\7")
        wire = Wire(BytesReader(data), max_fields=1000)
        (one,) = wire.fields(0, len(data) - 1)
        assert wire.consists_of(one, b"\1\3")
        data[one.start + at] = 2
        assert not wire.consists_of(one, b"\1\3")
    for _ in range(3):
        assert wire.consists_of(one, b"\2\3")
    with pytest.raises(LimitExceededError):  # each time it counts for 196 fields
        wire.consists_of(one, b"\2\3")
    cut = Wire(BytesReader(data[:-2]), max_fields=1000)
    with pytest.raises(FormatError, match="ends inside a field"):
        cut.consists_of(one, b"\2\3")
    assert cut.consists_of(one._replace(size=0), b"")


def test_integers():
    minus = 2**64 - 3
    data = field(1, minus) + field(1, coded(1) + coded(minus) + coded(300)) + field(1, b"\x80")
    data += field(1, b"\0" * 31)
    wire = wire_of(data)
    one, packed, cut, many = wire.fields(0, len(data))
    assert one.signed == -3
    assert wire.integers(one, 3, "a shape") == [-3]
    assert wire.integers(packed, 3, "a shape") == [1, -3, 300]
    with pytest.raises(FormatError):
        wire.integers(cut, 3, "a shape")
    with pytest.raises(LimitExceededError):
        wire.integers(many, 3, "a shape")


def test_what_comes_first():
    known = {1: VARINT, 2: BYTES, 7: BYTES}
    message = field(1, 1) + field(2, b"x") + field(7, b"abc")
    cases = {
        message: 7,
        message[:-3]: 7,  # a cut file is one of its kind, too
        field(7, b"") + b"\0": 2,
        field(1, 1) + field(3, b"") + message: None,  # not known
        field(1, b"x") + message: None,  # of another type
        field(1, 1) + field(2, b"x"): None,
        field(1, 1) + b"\0": None,
        b"": None,
    }
    for data, start in cases.items():
        found = wire_of(data).first(0, 7, known)
        assert (found and found.start) == start
    assert wire_of(message, 2).first(0, 7, known) is None


values = st.one_of(
    st.integers(0, 2**64 - 1),
    st.binary(max_size=300),
    st.tuples(st.just(FIXED32), st.binary(min_size=4, max_size=4)),
    st.tuples(st.just(FIXED64), st.binary(min_size=8, max_size=8)),
)


@given(st.lists(st.tuples(st.integers(1, 2**29 - 1), values), max_size=200))
def test_messages_are_read_as_written(written):
    data = b"".join(field(number, value) for number, value in written)
    found = fields(data)
    assert [one.number for one in found] == [number for number, _ in written]
    for one, (_, value) in zip(found, written, strict=True):
        if isinstance(value, int):
            assert one.value == value
        else:
            raw = value if isinstance(value, bytes) else value[1]
            assert data[one.start : one.end] == raw


@given(st.binary(max_size=200))
def test_random_bytes(data):
    try:
        found = fields(data)
    except MstoreError:
        return
    assert not data or found[-1].end == len(data)
