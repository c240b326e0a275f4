"""Python values into a safetensors file and back: equal in nesting, types, shapes and bits."""

import struct
from collections import OrderedDict, defaultdict, namedtuple
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import safetensors
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from mstore import structure_write
from mstore.errors import InvalidInputError, LimitExceededError
from mstore.formats.base import BytesReader
from mstore.formats.safetensors import SafetensorsFormat, read_metadata
from mstore.numpy_dtypes import ML_DTYPES, array_from_bytes
from mstore.structure import flatten, restore


def assert_same(one, other):
    """Equal, also in everything that == is blind to."""
    assert type(one) is type(other)
    if isinstance(one, dict):
        assert len(one) == len(other)
        for left, right in zip(one.items(), other.items(), strict=True):
            assert_same(left, right)
    elif isinstance(one, list | tuple):
        assert len(one) == len(other)
        for left, right in zip(one, other, strict=True):
            assert_same(left, right)
    elif isinstance(one, np.ndarray) and one.dtype == object:
        assert (one.dtype, one.shape) == (other.dtype, other.shape)
        assert_same(one.ravel().tolist(), other.ravel().tolist())
    elif isinstance(one, float) and type(one) is float:
        assert struct.pack("d", one) == struct.pack("d", other)
    elif type(one) is complex:
        assert_same((one.real, one.imag), (other.real, other.imag))
    elif isinstance(one, np.ndarray | np.generic) and not isinstance(one, str | bytes):
        assert one.dtype == other.dtype
        assert one.dtype.byteorder == other.dtype.byteorder
        assert one.shape == other.shape
        assert one.tobytes() == other.tobytes()
    else:
        assert one == other


def file_bytes(file):
    return file.header + b"".join(file.buffers)


def round_trip(value):
    """Through real bytes and the safetensors parser, with a load that reads only the bytes."""
    file = flatten(value)
    data = file_bytes(file)
    reader = BytesReader(data)
    layout = SafetensorsFormat().layout(reader)
    assert layout == file.layout
    assert file.size == len(data)
    segments = {s.tensor.name: s for s in layout.segments if s.tensor is not None}
    assert [s.length for s in layout.segments[1:]] == [len(b) for b in file.buffers]

    def load(name):
        s = segments[name]
        raw = data[s.offset : s.offset + s.length]
        return array_from_bytes(raw, s.tensor.dtype, s.tensor.shape, s.tensor.order)

    return restore(read_metadata(reader), segments, load)


def names(value):
    return {s.tensor.name for s in flatten(value).layout.segments if s.tensor is not None}


class Colour(IntEnum):
    RED = 1


Point = namedtuple("Point", "x y")


@dataclass(frozen=True)
class Settings:
    rate: float = 0.1


class Sparse:
    def tocsr(self):
        return self


NAN_PAYLOAD = struct.unpack("<d", struct.pack("<Q", 0x7FF8DEADBEEF0001))[0]
NAN_NEGATIVE = struct.unpack("<d", struct.pack("<Q", 0xFFF8000000000000))[0]

PLAIN = [
    None,
    True,
    False,
    0,
    -1,
    2**63 - 1,
    -(2**63),
    2**64,
    -(2**200),
    10**6000,
    0.0,
    -0.0,
    1e300,
    5e-324,
    float("inf"),
    float("-inf"),
    NAN_PAYLOAD,
    NAN_NEGATIVE,
    complex(-0.0, NAN_PAYLOAD),
    "",
    "naïve 🎉 \0",
    "\ud83d",
    "\ud83d\ude00",  # two lone halves, which are not the one character they look like
    "x" * 5000,
    "\udcff" * 2000,
    b"",
    b"\0\xff",
    b"q" * 5000,
    bytearray(b"abc"),
    bytearray(5000),
    [],
    (),
    {},
    OrderedDict(),
    [1.5] * 64,
    (NAN_PAYLOAD,) * 100,
    list(range(-50, 50)),
    [2**63] * 64,
    [True] * 64,
    [1, 1.0] * 64,
    {1: "a", "1": "b", None: "c", 2.5: "d", b"k": "e", (1, ("x", None)): "f", True + 1: "g"},
    {"\ud800": 1},
    {"": {"": 1}},
    {"b": 1, "a": 2},
    OrderedDict([("b", 1), ("a", [OrderedDict(x=())])]),
    {"__metadata__": 1, "mstore.structure": 2},
    ["list", ["array", "x"]],
    set(),
    {3, 1.5, "x", None, b"y", (1, "z")},
    frozenset([2**70, True]),
    {"classes": {"a", "b"}},
    {"array": ["blob", "bytes", "x"]},
    np.float32(3),
    np.float64(NAN_PAYLOAD),
    np.bool_(True),
    np.int8(-3),
    np.uint64(2**64 - 1),
    np.complex128(1 - 2j),
    np.longdouble(1) / 3,
    np.datetime64("2024-02-29T12:00:01", "ns"),
    np.timedelta64(3, "h"),
    np.datetime64("NaT"),
    np.str_("a\0"),
    np.str_("z" * 2000),
    np.str_("\udc80"),
    np.bytes_(b"a\0"),
    np.void(b"abc"),
    np.array([(1, 2.0)], [("a", "<i4"), ("b", ">f8")])[0],
    ml_dtypes.bfloat16(1.5),
    ml_dtypes.float8_e4m3fn(2),
    ml_dtypes.int4(-3),
]

STRUCTURED = np.dtype(
    [("a", "<i4"), ("b", [("c", ">f8"), ("d", ml_dtypes.bfloat16)], (2, 2)), ("s", "S3")]
)
ALIGNED = np.dtype([("a", "i1"), ("b", "f8")], align=True)
OVERLAID = np.dtype(
    {"names": ["lo", "all"], "formats": ["<u2", "<u4"], "offsets": [0, 0], "itemsize": 7}
)

ARRAYS = [
    np.arange(6, dtype=np.float32).reshape(2, 3),
    np.array(3.0),
    np.zeros((0,), np.int16),
    np.zeros((3, 0, 2)),
    np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    np.asfortranarray(np.arange(24, dtype=">i4").reshape(2, 3, 4)),
    np.arange(20.0)[::-2],
    np.broadcast_to(np.float32(1), (3, 4)),
    np.arange(5, dtype=">f4"),
    np.array(1, ">u2"),
    np.arange(5, dtype=">c16"),
    np.arange(5).astype(np.complex128),
    np.arange(5).astype(np.complex64),
    np.arange(5).astype(np.longdouble),
    np.arange(5).astype(np.clongdouble),
    np.array(["2024-01-01", "NaT"], "M8[D]"),
    np.array([1, 2], ">m8[25s]"),
    np.array([[1], [2]], "m8"),
    np.array(["ab", "c", ""]),
    np.array(["ab"], ">U3"),
    np.array([b"ab", b"c"]),
    np.ndarray((3,), "U0"),
    np.ndarray((2, 2), "S0"),
    np.array([b"abc"], "V3"),
    np.zeros((2, 3), STRUCTURED),
    np.ones(3, ALIGNED),
    np.zeros(2, OVERLAID),
    np.zeros((), STRUCTURED),
    np.zeros(2, [(("title", "a"), "i4"), ("b", "f4")]),
    np.array([True, False]),
    np.array([2, 3], np.uint8).view(bool),
    np.zeros((4, 8))[::2, ::2][:1, :1],
    np.array([0x7FC12345, 0xFF812345], np.uint32).view(np.float32),
    np.arange(4)
    .astype(ml_dtypes.bfloat16)
    .view(np.uint16)
    .byteswap()
    .view(np.dtype(ml_dtypes.bfloat16).newbyteorder(">")),
    *(np.array([[0, 1], [1, 0]]).astype(dtype) for dtype in ML_DTYPES.values()),
    *(np.array([1, 2]).astype(code) for code in np.typecodes["AllInteger"] + "efdg?"),
]


@pytest.mark.parametrize("value", PLAIN, ids=lambda value: type(value).__name__)
def test_plain_values_come_back(value):
    assert_same(round_trip(value), value)
    assert_same(round_trip({"a": [value]}), {"a": [value]})


@pytest.mark.parametrize("array", ARRAYS, ids=lambda array: f"{array.dtype}{array.shape}"[:40])
def test_arrays_come_back(array):
    assert_same(round_trip(array), array)
    back = round_trip({"a": (array,)})["a"][0]
    assert_same(back, array)
    if array.ndim > 1 and not array.flags.c_contiguous:
        assert back.flags.f_contiguous == array.flags.f_contiguous


def test_aligned_records_stay_aligned():
    assert round_trip(np.ones(3, ALIGNED)).dtype.isalignedstruct


def test_memory_map_is_an_array(tmp_path):
    np.save(tmp_path / "a.npy", np.arange(5.0))
    mapped = np.load(tmp_path / "a.npy", mmap_mode="r")
    assert_same(round_trip({"a": mapped}), {"a": np.arange(5.0)})


KEYS = st.one_of(
    st.text(max_size=5),
    st.integers(),
    st.booleans(),
    st.none(),
    st.floats(allow_nan=False),
    st.binary(max_size=4),
    st.tuples(st.integers(), st.text(max_size=2)),
)
NUMPY_TYPES = st.one_of(
    hnp.scalar_dtypes(),
    hnp.byte_string_dtypes(),
    hnp.unicode_string_dtypes(),
    hnp.complex_number_dtypes(),
    hnp.array_dtypes(hnp.scalar_dtypes(), max_size=3),
)


@st.composite
def arrays(draw):
    """Arrays of any type, with arbitrary bits, order and strides."""
    dtype = draw(st.one_of(NUMPY_TYPES, st.sampled_from(list(ML_DTYPES.values()))))
    shape = draw(hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4))
    count = int(np.prod(shape)) * dtype.itemsize
    # Strings only of characters, since numpy itself cannot read others.
    raw = bytes(count) if dtype.kind == "U" else draw(st.binary(min_size=count, max_size=count))
    array = np.ndarray(shape, dtype, buffer=bytearray(raw))
    if array.ndim and draw(st.booleans()):
        array = array[::-1]
    return array.T if draw(st.booleans()) else array


VALUES = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.floats(),
        st.complex_numbers(),
        st.text(st.characters()),
        st.text(st.characters(categories=["Cs"]), max_size=3),
        st.binary(),
        arrays(),
        st.lists(st.floats(), min_size=64, max_size=70),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.lists(inner, max_size=4).map(tuple),
        st.dictionaries(KEYS, inner, max_size=4),
        st.dictionaries(KEYS, inner, max_size=3).map(OrderedDict),
    ),
    max_leaves=12,
)


@settings(deadline=None, max_examples=100)
@given(VALUES)
def test_anything_nested_comes_back(value):
    assert_same(round_trip(value), value)


@settings(deadline=None, max_examples=100)
@given(arrays())
def test_any_array_comes_back(array):
    assert_same(round_trip([array]), [array])


@pytest.mark.parametrize(
    "array",
    [
        np.array(["a", "bc", None, 1.5], object),
        np.array([["x", [1, 2]], [{"k": np.arange(3)}, ()]], object),
        np.asfortranarray(np.array([["a", "b", "c"], ["d", "e", "f"]], object)),
        np.array("alone", object),
        np.empty((0, 3), object),
    ],
    ids=lambda array: str(array.shape),
)
def test_arrays_of_plain_values_come_back(array):
    assert_same(round_trip({"names": array})["names"], array)


def test_an_array_that_holds_itself_is_refused():
    array = np.empty(1, object)
    array[0] = array
    with pytest.raises(InvalidInputError, match="contains itself"):
        flatten({"a": array})


def test_equal_sets_give_equal_bytes():
    one, other = {0, 8}, {8, 0}
    assert list(one) != list(other)
    assert file_bytes(flatten(one)) == file_bytes(flatten(other))


def test_contiguous_arrays_are_not_copied():
    array = np.arange(1000, dtype=np.float32)
    (buffer,) = flatten({"w": array}).buffers
    array[0] = 7
    assert bytes(buffer[:4]) == array[:1].tobytes()


def test_tensors_are_aligned_and_sorted_by_name():
    value = {
        "c": np.zeros(3, "i1"),
        "b": np.zeros(1, "f8"),
        "a": np.zeros(3, "f2"),
        "d": [
            np.zeros(2),
            np.zeros(1, "<c8"),
        ],
    }
    segments = flatten(value).layout.segments[1:]
    assert [s.tensor.name for s in segments] == ["b", "d.0", "d.1", "a", "c"]
    assert all(s.offset % s.tensor.dtype.itemsize == 0 for s in segments)


def test_same_value_gives_same_bytes():
    value = {"b": np.arange(3), "a": [1.5, "x"]}
    assert file_bytes(flatten(value)) == file_bytes(flatten(value))


def test_tensor_names():
    w = np.zeros(1)
    assert names({"encoder": {"layers": [{"w": w}]}}) == {"encoder.layers.0.w"}
    assert names({"encoder.layers.0.w": w, "": w}) == {"encoder.layers.0.w", ""}
    assert names({"a": {"b": w}, "a.b": w, "a.b#2": w}) == {"a.b", "a.b#2", "a.b#2#2"}
    assert names({1: w, "1": w, (1, "x"): w}) == {"1", "1#2", "(1, 'x')"}
    assert names(w) == {"array"}
    assert names({"__metadata__": w, "\ud800": w}) == {"__metadata__#2", "\\ud800"}


def test_other_libraries_read_the_file():
    value = {
        "f": np.arange(6, dtype=np.float32).reshape(2, 3),
        "i": [np.arange(3), np.array(True)],
        "big": np.arange(3, dtype=">i4"),
        "bf": np.arange(3).astype(ml_dtypes.bfloat16),
        "c128": np.array([1 + 2j]),
        "none": np.zeros((0, 4), np.uint16),
        "note": "text",
    }
    data = file_bytes(flatten(value))
    read = dict(safetensors.deserialize(data))
    assert {name: (t["dtype"], t["shape"]) for name, t in read.items()} == {
        "f": ("F32", [2, 3]),
        "i.0": ("I64", [3]),
        "i.1": ("BOOL", []),
        "big": ("I32", [3]),
        "bf": ("BF16", [3]),
        "c128": ("F64", [1, 2]),
        "none": ("U16", [0, 4]),
    }
    assert bytes(read["f"]["data"]) == value["f"].tobytes()
    assert bytes(read["big"]["data"]) == np.arange(3, dtype="<i4").tobytes()


@settings(deadline=None, max_examples=30)
@given(VALUES)
def test_other_libraries_accept_every_file(value):
    safetensors.deserialize(file_bytes(flatten(value)))


def test_file_without_structure_is_a_flat_dict():
    loaded = restore({"format": "pt"}, ["b", "a"], lambda name: np.array([len(name)]))
    assert list(loaded) == ["b", "a"]


class Module:
    def state_dict(self):
        return {}


class Estimator:
    pass


class ArrayLike:
    def __array__(self, dtype=None, copy=None):
        return np.arange(3, dtype=np.int16)


class DlpackLike:
    def __init__(self):
        self._array = np.arange(3, dtype=np.float32)

    def __dlpack__(self, **options):
        return self._array.__dlpack__(**options)

    def __dlpack_device__(self):
        return self._array.__dlpack_device__()


class Unwilling:
    def __array__(self, dtype=None, copy=None):
        raise TypeError("I am on another device")


@pytest.mark.parametrize("value", [ArrayLike(), DlpackLike()])
def test_arrays_of_other_libraries_come_back_as_numpy(value):
    assert_same(round_trip([value])[0], np.asarray(getattr(value, "_array", value)))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.array([Estimator()]), "in a dict"),
        (np.array([(1, None)], [("a", "i4"), ("b", "O")]), "Python objects"),
        (np.array(["a"], np.dtypes.StringDType()), "Python objects"),
        (Module(), "state_dict"),
        (Module, "classes"),
        (Estimator(), "in a dict"),
        (Point(1, 2), "_asdict"),
        (type("Bag", (set,), {})(), "plain set"),
        (Sparse(), "indptr"),
        (Path("x"), "str(…)"),
        (Settings(), "asdict"),
        (defaultdict(list), "plain dict"),
        (Colour.RED, "plain int"),
        (type("Text", (str,), {})("a"), "plain str"),
        (np.ma.masked_array([1, 2], [True, False]), "asarray"),
        (np.zeros((1, 1)).view(np.matrix), "asarray"),
        (np.rec.array([(1,)], [("a", "i4")]), "asarray"),
        (np.rec.array([(1,)], [("a", "i4")])[0], "records"),
        (np.zeros(1, np.dtype([((5, "a"), "i4")])), "title"),
        (np.zeros(1, ml_dtypes.int1), "cannot be stored"),
        (type("Half", (np.float64,), {})(1), "plain float"),
        ({Estimator(): 1}, "as a key"),
        ({(1, frozenset()): 1}, "as a key"),
        ({Estimator()}, "in a set"),
        ({np.int64(1): 1}, "as a key"),
        (Unwilling(), "another device"),
        (len, "in a dict"),
        (range(3), "in a dict"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_refusals_name_the_place_and_the_remedy(value, message):
    with pytest.raises(InvalidInputError) as error:
        flatten({"encoder": [0, 1, 2, value]})
    assert str(error.value).startswith('model["encoder"][3]')
    assert message in str(error.value)


def test_cycles_are_refused_and_shared_values_are_not():
    shared = [np.arange(3)]
    assert_same(round_trip([shared, shared]), [shared, shared])
    cycle = {"a": [1]}
    cycle["a"].append(cycle)
    with pytest.raises(InvalidInputError, match=r'^model\["a"\]\[1\] contains itself'):
        flatten(cycle)


def nested(depth):
    value = []
    for _ in range(depth - 1):
        value = [value]
    return value


def test_depth_has_a_limit_that_is_readable():
    assert_same(round_trip(nested(200)), nested(200))
    with pytest.raises(InvalidInputError, match="nested deeper than 200"):
        flatten(nested(201))


def test_shared_lists_do_not_multiply_without_end(monkeypatch):
    monkeypatch.setattr(structure_write, "MAX_NODES", 10_000)
    value = [0]
    for _ in range(40):
        value = [value, value]
    with pytest.raises(LimitExceededError):
        flatten(value)
