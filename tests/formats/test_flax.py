"""The flax parser, against files of flax itself and files made by their layout."""

import json
import pickle
from pathlib import Path

import msgpack
import numpy as np
import pytest
from damage import changed_runs, flipped, judge
from hypothesis import given
from hypothesis import strategies as st

from mstore.dtypes import BY_NAME
from mstore.errors import FormatError, LimitExceededError
from mstore.formats import flax as flax_module
from mstore.formats import msgpack_walk
from mstore.formats.base import BytesReader
from mstore.formats.detect import describe
from mstore.formats.flax import FlaxFormat
from mstore.layout import Tensor, opaque

GOLDEN = sorted((Path(__file__).parent / "flax_files").glob("*.msgpack"))
BYTES = BY_NAME["u8"]


def layout(data):
    return FlaxFormat().layout(BytesReader(data))


def sniffed(data):
    return FlaxFormat().sniff(data[:4096], BytesReader(data))


def tensors(data):
    return {
        s.tensor.name: (s.tensor, data[s.offset : s.offset + s.length])
        for s in layout(data).segments
        if s.tensor is not None
    }


def described(tensor, raw):
    """A tensor in the words of the files beside the golden ones."""
    return {
        "dtype": tensor.kind or tensor.dtype.numpy,
        "shape": list(tensor.shape),
        "data": raw.hex(),
    }


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_reads_what_flax_restores(path):
    data = path.read_bytes()
    assert sniffed(data)
    expected = json.loads(path.with_suffix(".json").read_text())
    found = {name: described(*one) for name, one in tensors(data).items()}
    if path.stem == "chunks":  # flax joins them again
        pieces = [found.pop(f"big.chunks.{number}") for number in range(4)]
        assert [piece["shape"] for piece in pieces] == [[4], [4], [4], [3]]
        whole = expected.pop("big")
        assert "".join(piece["data"] for piece in pieces) == whole["data"]
    assert found == expected
    _, note = FlaxFormat().examine(BytesReader(data))
    assert note is None
    assert FlaxFormat().findings(BytesReader(data)) == []


# Files by hand


def array(value, code=1, **changes):
    value = np.asarray(value)
    fields = {"shape": value.shape, "dtype": value.dtype.name, "data": value.tobytes()} | changes
    return msgpack.ExtType(code, msgpack.packb(tuple(fields.values())))


def packed(value, **options):
    return msgpack.packb(value, **options)


ONE = array(np.arange(3, dtype=np.uint8))
TWO = b"\x82" + packed({"a": ONE})[1:]  # and one more key to come


def test_forms_of_other_writers():
    """Every width of a length, numbers as keys, arrays, and text where flax now writes bytes."""
    old = msgpack.ExtType(1, msgpack.packb(((3,), b"uint8", b"\0\1\2"), use_bin_type=False))
    u8 = Tensor("", BYTES, (3,))
    for wide in (
        b"\xde\0\1\xa1a" + packed(ONE),
        b"\xdf\0\0\0\1\xa1a" + packed(ONE),
        b"\x81\xd9\1a" + packed(ONE),
        b"\x81\xda\0\1a" + packed(ONE),
        b"\x81\xdb\0\0\0\1a" + packed(ONE),
        b"\x81\xa1a\xc8" + len(ONE.data).to_bytes(2, "big") + b"\1" + ONE.data,
        b"\x81\xa1a\xc9" + len(ONE.data).to_bytes(4, "big") + b"\1" + ONE.data,
        packed({"a": old}),
        packed({"a": array(np.arange(3, dtype=np.uint8), code=3)}),
    ):
        assert sniffed(wide)
        (tensor, raw) = tensors(wide)["a"]
        assert (tensor.dtype, tensor.shape, raw) == (u8.dtype, u8.shape, b"\0\1\2")
    others = [
        None,
        True,
        1,
        -1,
        -300,
        2**40,
        1.5,
        "text",
        b"bytes",
        [],
        {},
        msgpack.ExtType(2, b""),
    ]
    fixed = [msgpack.ExtType(9, bytes(n)) for n in (1, 2, 4, 8, 16)]
    data = packed(
        {"a": {1: [others, fixed, ONE], -5: {"b": ONE}, -300: ONE}, "last": np.float32(1).tobytes()}
    )
    assert list(tensors(data)) == ["a.1.2", "a.-5.b", "a.-300"]
    assert sniffed(data)
    assert list(tensors(packed({"f32": b"\xca", "a": ONE}, use_single_float=True))) == ["a"]


def test_large_files():
    """Keys and arrays that cross what is read at once."""
    arrays = {f"layer_{i:040}": np.arange(i % 9000, dtype=np.float32) for i in range(300)}
    data = packed({name: array(value) for name, value in arrays.items()})
    found = tensors(data)
    assert list(found) == list(arrays)
    assert all(found[name][1] == value.tobytes() for name, value in arrays.items())


def test_one_name_twice():
    data = packed({"a": {"b": ONE}, "a.b": ONE})
    assert list(tensors(data)) == ["a.b", "a.b#2"]


def test_unknown_types_stay_opaque():
    data = packed({"a": ONE, "days": array(np.zeros(2, "M8[s]")), "text": array(np.array(["x"]))})
    found, note = FlaxFormat().examine(BytesReader(data))
    assert [s.tensor.name for s in found.segments if s.tensor] == ["a"]
    assert note == (
        "opaque bytes for 2 of 3 arrays: 'days' is of type 'datetime64[s]', "
        "'text' is of type 'str32'"
    )


MALFORMED = {
    "empty": b"",
    "a key twice": b"\x82" + 2 * (b"\xa1a" + packed(ONE)),
    "a key twice further inside": b"\x81\xa1x\x82" + 2 * (b"\xa1a" + packed(ONE)),
    "a list": packed([ONE]),
    "an array": packed(ONE),
    "more behind": packed({"a": ONE}) + b"\0",
    "two maps": packed({"a": ONE}) * 2,
    "fewer keys": TWO,
    "2^32 keys": b"\xdf\xff\xff\xff\xff" + packed({"a": ONE})[1:],
    "2^32 items": TWO + b"\xa1b\xdd\xff\xff\xff\xff",
    "2^32 bytes": TWO + b"\xa1b\xc6\xff\xff\xff\xff",
    "reserved byte": TWO + b"\xa1b\xc1",
    "key a list": TWO + b"\x90\xc0",
    "key bytes": TWO + b"\xc4\1b\xc0",
    "key not UTF-8": TWO + b"\xa1\xff\xc0",
    "shape a number": packed({"a": array(0, shape=3)}),
    "shape text": packed({"a": array(0, shape=("3",))}),
    "shape negative": packed({"a": array(np.zeros(2), shape=(-2,))}),
    "shape negative twice": packed({"a": array(np.zeros(4), shape=(-2, -2))}),
    "shape a boolean": packed({"a": array(np.zeros(1), shape=(True,))}),
    "shape 2^60": packed({"a": array(np.zeros(1), shape=(2**60,))}),
    "shape overflows": packed({"a": array(np.zeros(1), shape=(2**63, 2**63, 0))}),
    "shape smaller": packed({"a": array(np.zeros(2), shape=(1,))}),
    "type a number": packed({"a": array(0, dtype=3)}),
    "type too long": packed({"a": array(0, dtype="x" * 65)}),
    "data a list": packed({"a": array(0, data=[1])}),
    "two fields": packed({"a": msgpack.ExtType(1, packed([[3], "uint8"]))}),
    "four fields": packed({"a": msgpack.ExtType(1, packed([[3], "uint8", b"123", 0]))}),
    "a map": packed({"a": msgpack.ExtType(1, packed({1: 2}))}),
    "more in the extension": packed({"a": msgpack.ExtType(1, ONE.data + b"\0")}),
    "less in the extension": packed({"a": msgpack.ExtType(1, ONE.data[:-1])}),
    "empty extension": packed({"a": msgpack.ExtType(1, b"")}),
}


@pytest.mark.parametrize("data", MALFORMED.values(), ids=MALFORMED.keys())
def test_malformed(data):
    with pytest.raises(FormatError):
        layout(data)


def test_too_much(monkeypatch):
    many = array(0, shape=(1,) * 65)
    for data in (
        TWO + b"\xa1b" + b"\x81\xa1b" * 512 + b"\xc0",
        TWO + b"\xa1b" + b"\x91" * 100_000 + b"\xc0",
        packed({"k" * 16_385: ONE}),
        packed({"k" * 9000: {"k" * 9000: ONE}}),
        packed({"k" * 9000: {"k" * 9000: {}}}),
        packed({"a": many}),
    ):
        with pytest.raises(LimitExceededError):
            layout(data)
    deep = TWO + b"\xa1b" + b"\x81\xa1b" * 511 + b"\xc0"
    assert list(tensors(deep)) == ["a"]
    for module, limit, value in (
        (msgpack_walk, "MAX_OBJECTS", 100),
        (flax_module, "MAX_TENSORS", 0),
    ):
        with monkeypatch.context() as patched:
            patched.setattr(module, limit, value)
            with pytest.raises(LimitExceededError):
                layout(deep)


DAMAGED = (
    "shape negative", "shape negative twice", "shape 2^60", "shape overflows", "shape smaller",
    "two maps", "more behind", "fewer keys", "2^32 keys", "2^32 items",
    "2^32 bytes", "reserved byte", "key not UTF-8", "more in the extension",
    "less in the extension",
)  # fmt: skip


@pytest.mark.parametrize("name", DAMAGED)
def test_what_begins_as_flax_and_is_malformed_is_told(name):
    layout, note = describe(BytesReader(MALFORMED[name]))
    assert layout == opaque(len(MALFORMED[name]))
    assert note.startswith("looks like flax but ")


def test_what_is_unreasonable_is_told():
    for data in (
        packed({"a": array(0, shape=(1,) * 65)}),
        packed({"a": array(0, shape=(1,) * 5000)}),
        b"\x81\xa1a" * 512 + packed({"a": ONE}),
        b"\x82\xaaa long key" * 4000,
    ):
        layout, note = describe(BytesReader(data))
        assert layout == opaque(len(data))
        assert note.startswith("looks like flax but ")


def test_sniff():
    good = packed({"a": 1, "b": ONE})
    assert sniffed(good)
    assert sniffed(good + b"x")  # damaged, but of this format
    assert sniffed(good[:-3])
    assert sniffed(b"\x83" + good[1:])
    for data in (
        b"",
        packed({}),
        packed({"a": 1}),
        packed({"a": {"b": [1.5, "x"]}}),
        packed({1: ONE}),
        packed([ONE]),
        packed({"a": msgpack.ExtType(1, b"x")}),
        packed({"a": msgpack.ExtType(5, ONE.data)}),
        packed({"a": msgpack.ExtType(1, packed([[3], "uint8"]))}),
        packed({"a": msgpack.ExtType(1, packed([3, "uint8", b"abc"]))}),
        packed({"a": msgpack.ExtType(1, packed([[3.5], "uint8", b"abc"]))}),
        packed({"a": msgpack.ExtType(1, packed([["x"], "uint8", b"abc"]))}),
        packed({"a": msgpack.ExtType(1, packed([[3], 8, b"abc"]))}),
        packed({"a": msgpack.ExtType(1, packed([[3], "a\nb", b"abc"]))}),
        packed({"a": msgpack.ExtType(1, packed([[3], "uint8", None]))}),
        packed({"a": msgpack.ExtType(1, packed([[3], "uint8", ["x"]]))}),
        packed({"a": msgpack.ExtType(1, packed([[1], "uint32", b"abc"]))}),
        packed({"a": msgpack.ExtType(1, packed([[1] * 100, "text", b""]))}),
        packed({"place": msgpack.ExtType(1, packed([[], "x", "y"]))}),
        packed({"day": msgpack.ExtType(3, packed([[2020, 1, 1], "UTC", None]))}),
        packed({"day": msgpack.ExtType(3, packed([[2020, 1, 1], "Z", b""]))}),
        b"\x81\xa1a" * 511 + b"\xc0",
        b"\x81\xa1a" * 511 + b"\xc1",
        b"\x81\xa1a" + b"\x91" * 5000,
        b"\x81\xa0" * 5000,
        b"\x81\xdb\xff\xff\xff\xffw",
        b"\x85text that begins with an odd byte" * 20,
        *(pickle.dumps({"a": 1, "b": [ONE.data]}, protocol) for protocol in range(6)),
    ):
        assert not sniffed(data)


def test_sniffs_every_type_that_flax_writes():
    types = "?", "f2", "u8", "c16", "g", "M8", "M8[25s]", "m8[ns]", "S3", "S0", "U2", "V5", "i4,f8"
    arrays = [np.zeros(2, of) for of in (*types, *flax_module._DTYPES)]
    assert len(arrays) > 30
    for one in arrays:
        assert sniffed(packed({"a": array(one)})), one.dtype.name
    for name in flax_module._IN_BYTES:
        assert sniffed(packed({"a": array(np.zeros(2, "u1"), dtype=name)})), name


def test_sniffs_an_array_that_breaks_off():
    data = packed({"a": array(np.zeros(300))})
    assert describe(BytesReader(data))[0].format == "flax"
    behind = data.index(b"float64") + len(b"float64")
    for end in (behind, behind + 1, behind + 2, behind + 3, len(data) - 1):
        assert describe(BytesReader(data[:end]))[1].startswith("looks like flax but the file ends")


SMALL = packed({"params": {"a": ONE, "b": array(np.zeros((2, 2)))}, "n": [1, "x", 2.5]})


def test_truncation_at_every_length():
    assert len(tensors(SMALL)) == 2
    for size in range(len(SMALL)):
        sniffed(SMALL[:size])
        with pytest.raises(FormatError):
            layout(SMALL[:size])


@pytest.mark.parametrize("data", [SMALL, *(path.read_bytes() for path in GOLDEN[:1])])
def test_flipped_bits(data):
    for _, changed in flipped(data):
        judge(FlaxFormat(), changed)


@given(changed_runs(SMALL))
def test_changed_bytes(data):
    judge(FlaxFormat(), data)


VALUES = st.recursive(
    st.none() | st.booleans() | st.floats(allow_nan=False) | st.text(max_size=40) | st.binary(max_size=40)
    | st.integers(-(2**63), 2**64 - 1),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=5), inner, max_size=5),
    max_leaves=15,
)  # fmt: skip


@given(st.dictionaries(st.text(max_size=5), VALUES, max_size=5))
def test_walks_over_everything_that_msgpack_writes(value):
    data = packed({**value, "the array": ONE})
    assert list(tensors(data)) == ["the array"]
