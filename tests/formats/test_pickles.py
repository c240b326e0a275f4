"""Files of pickle: their arrays are what pickle itself loads, under the paths their users know."""

import array
import pickle
import pickletools
from collections import OrderedDict, defaultdict
from contextlib import suppress
from types import SimpleNamespace

import ml_dtypes
import numpy as np
import pytest
from damage import changed_bytes, judge
from hypothesis import given, settings
from hypothesis import strategies as st

from mstore.errors import FormatError, MstoreError
from mstore.formats.base import HEAD_SIZE, BytesReader
from mstore.formats.detect import describe
from mstore.formats.pickles import PickleFormat
from mstore.layout import Recoded, Strided

pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::PendingDeprecationWarning"
)

PROTOCOLS = range(6)
TYPES = [
    *("?", "u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f2", "f4", "f8", "c8", "c16"),
    *(">u2", ">i4", ">i8", ">f2", ">f4", ">f8", ">c8", ">c16"),
    *(ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2),
    *(ml_dtypes.float8_e4m3fnuz, ml_dtypes.float8_e5m2fnuz, ml_dtypes.float8_e8m0fnu),
]


def numbers(*shape, dtype="f4"):
    """Random bits of any type."""
    dtype = np.dtype(dtype)
    raw = np.random.default_rng(len(shape)).integers(0, 256, (*shape, dtype.itemsize), np.uint8)
    if dtype.kind == "b":
        raw &= 1
    return np.ndarray(shape, dtype, raw.tobytes())


def same(found, expected):
    """Fails unless all arrays are equal in type, shape and bits; numpy swaps some as it loads."""
    assert found.keys() == expected.keys()
    for name in expected:
        one, other = (a.astype(a.dtype.newbyteorder("=")) for a in (found[name], expected[name]))
        assert (name, one.dtype, one.shape) == (name, other.dtype, other.shape)
        assert one.tobytes() == other.tobytes()


@pytest.fixture
def check(read_tensors):
    """Fails unless the arrays of a pickle are these; gives its layout."""

    def check(data, expected, note=None):
        layout, said = describe(BytesReader(data))
        assert (layout.format, said) == ("pickle", note)
        same(read_tensors(data, layout), expected)
        return layout

    return check


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_types_and_orders(check, protocol):
    arrays = {}
    for number, kind in enumerate(TYPES):
        whole = numbers(4, 6, 3, dtype=kind)
        arrays[f"{number}"] = whole
        arrays[f"{number}_column_major"] = np.asfortranarray(whole)
        arrays[f"{number}_part"] = whole[::2, 1:4]
        arrays[f"{number}_turned"] = whole.transpose(1, 0, 2)
        arrays[f"{number}_scalar"] = numbers(dtype=kind)
        arrays[f"{number}_none"] = np.zeros((0, 3), kind)
    arrays["all_bytes"] = np.arange(256, dtype=np.uint8)
    data = pickle.dumps(arrays, protocol)
    layout = check(data, pickle.loads(data))
    kinds = {type(view.place) for view in layout.views if view.tensor.nbytes}
    assert kinds == {Recoded} if protocol < 3 else kinds <= {Strided}
    if protocol == 5:  # numpy gives some axes back by turning them
        assert any(segment.hidden for segment in layout.segments)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_paths(check, protocol):
    a, b, c = numbers(2, 3), numbers(4), numbers(5)
    value = {
        "model": {"layers": [{"w": a}, {"w": b}], 3: c, ("x", 1): c, None: [c]},
        "ordered": OrderedDict(z=a, y=b),
        "default": defaultdict(list, k=[a]),
        "object": SimpleNamespace(coef_=a, inner=SimpleNamespace(b=b)),
        "objects": np.array([None, a, {"deep": b}], object),
        "pair": (a, b),
        "empty": {},
        "number": np.float32(2.5),
        "names": np.array(["a", "b"]),
        "dates": np.array(["2020-01-01"], "M8[D]"),
        "raw": b"bytes",
    }
    check(
        pickle.dumps(value, protocol),
        {
            "model.layers.0.w": a,
            "model.layers.1.w": b,
            "model.3": c,
            "model.x,1": c,
            "model.None.0": c,
            "ordered.z": a,
            "ordered.y": b,
            "default.k.0": a,
            "object.coef_": a,
            "object.inner.b": b,
            "objects.1": a,
            "objects.2.deep": b,
            "pair.0": a,
            "pair.1": b,
        },
    )


def test_one_array_has_no_name(check):
    for protocol in PROTOCOLS:
        check(pickle.dumps(numbers(3, 4), protocol), {"": numbers(3, 4)})


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_equal_paths_get_a_number(check, protocol):
    value = {"a": {"b": numbers(2)}, "a.b": numbers(3)}
    check(pickle.dumps(value, protocol), {"a.b": numbers(2), "a.b#2": numbers(3)})


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_an_array_in_several_places_is_stored_once(check, protocol):
    shared = numbers(3, 2)
    value = {"a": shared, "b": [shared, shared], "c": {"d": shared}}
    expected = dict.fromkeys(("a", "b.0", "b.1", "c.d"), shared)
    layout = check(pickle.dumps(value, protocol), expected)
    assert sum(s.tensor is not None for s in layout.segments) == (0 if protocol < 3 else 1)


def test_two_arrays_of_the_same_bytes(check):
    """The payload of one array, taken from the memo for the other."""
    first = pickle.dumps(numbers(6), 4)
    payload = first.index(b"C\x18")
    assert first[payload + 26 : payload + 27] == b"\x94"
    number = sum(op.name == "MEMOIZE" for op, _, at in pickletools.genops(first) if at < payload)
    state = first[first.index(b"(K\1K\6") : payload]
    second = first[11 : first.index(b"(K\1K\6")] + state
    data = b"\x80\x04(" + first[11:-1] + second.replace(b"K\6\x85", b"K\2K\3\x86")
    data += b"h" + bytes([number]) + b"tb" + b"t."
    loaded = pickle.loads(data)
    assert loaded[1].shape == (2, 3)
    layout = check(data, {"0": loaded[0], "1": loaded[1]})
    assert len(layout.views) == 1


@pytest.mark.parametrize("protocol", [4, 5])
def test_large_arrays_lie_outside_of_frames(check, protocol):
    value = [np.arange(n, dtype="f8") for n in (5, 30_000, 7, 9000, 8192)]
    data = pickle.dumps({"list": value, "tail": numbers(3)}, protocol)
    check(data, {f"list.{n}": one for n, one in enumerate(value)} | {"tail": numbers(3)})


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_lists_of_floats(check, protocol):
    many = [0.1 * n for n in range(5000)]
    matrix = [[float(n), n / 3, -0.0] for n in range(2100)]
    value = {
        "many": many,
        "tuple": tuple(many[:40]),
        "special": [float("inf"), float("-inf"), 1e-320, 1e308] * 10,
        "matrix": matrix,
        "column": [[x] for x in many[:20]],
        "uneven": [many[:20], many[:30]],
        "mixed": [*many[:20], 1, *many[:20]],
        "named": [*many[:20], numbers(2), numbers(3)],
        "few": many[:15],
        "ints": list(range(3000)),
        "again": [many[1:20]] * 2,
    }
    data = pickle.dumps(value, protocol)
    check(
        data,
        {
            "many": np.array(many),
            "tuple": np.array(many[:40]),
            "special": np.array(value["special"]),
            "matrix": np.array(matrix),
            "column": np.array(value["column"]),
            "uneven.0": np.array(many[:20]),
            "uneven.1": np.array(many[:30]),
            "named.20": numbers(2),
            "named.21": numbers(3),
            "again.0": np.array(many[1:20]),
            "again.1": np.array(many[1:20]),
        },
    )


def test_other_arrays(check):
    masked = np.ma.masked_array([[1.0, 2.0], [3.0, 4.0]], [[0, 1], [0, 0]])
    masked.fill_value = 7
    made = array.array("f", [1.0, 2.0, 3.0])
    value = {"masked": masked, "array": made, "matrix": np.matrix([[1, 2]])}
    check(
        pickle.dumps(value, 4),
        {
            "masked": masked.data,
            "masked.mask": masked.mask,
            "masked.fill_value": np.array(7.0),
            "array": np.array(made),
            "matrix": np.asarray(value["matrix"]),
        },
    )


# Written by Python 2.7 with numpy 1.16: {'w': np.arange(3, dtype='<f4'), 'n': [1]} in protocol 2,
# and with the strings of protocol 1 and 0.
PYTHON_2 = (
    b"\x80\x02}q\x01(U\x01nq\x02]q\x03K\x01aU\x01wq\x04cnumpy.core.multiarray\n_reconstruct\nq\x05"
    b"cnumpy\nndarray\nq\x06K\x00\x85U\x01b\x87Rq\x07(K\x01K\x03\x85cnumpy\ndtype\nq\x08U\x02f4K\x00"
    b"K\x01\x87Rq\t(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89"
)


@pytest.mark.parametrize(
    "payload",
    [
        b"U\x0c" + np.arange(3, dtype="<f4").tobytes(),
        b"T\x0c\0\0\0" + np.arange(3, dtype="<f4").tobytes(),
        b"S'abcdefghijkl'\n",
    ],
)
def test_python_2(check, payload):
    data = PYTHON_2 + payload + b"tbu."
    loaded = pickle.loads(data, encoding="latin1")
    layout = check(data, {"w": loaded["w"]})
    assert not layout.views


def test_what_is_not_understood_is_told(check):
    escaped = PYTHON_2 + b"S'\\x00\\x00\\x80?abcdefgh'\ntbu."
    check(escaped, {}, "opaque bytes for 1 of its arrays: 'w' is written in an unknown way")
    outside = pickle.dumps({"w": numbers(3)}, 5, buffer_callback=lambda _: False)
    check(outside, {}, "opaque bytes for 1 of its arrays: 'w' is not in the file")
    two = pickle.dumps([numbers(3)] + [numbers(2)] * 2, 5, buffer_callback=lambda _: False)
    note = "'0' is not in the file, '1' is not in the file, …"
    check(two, {}, f"opaque bytes for 3 of its arrays: {note}")


def test_several_pickles_in_a_file(check):
    one, two = pickle.dumps({"w": numbers(3)}, 4), pickle.dumps([numbers(2)], 2)
    check(one + two, {"0.w": numbers(3), "1.0": numbers(2)})
    check(one + b"\0\1\2", {"w": numbers(3)}, "opaque bytes for the last 3, which are no pickle")


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("shape", [(4,), (2,), (2**60,), (3, 2**59), (-3,), (2**70,)])
def test_class_12_a_payload_of_another_size(protocol, shape):
    data = pickle.dumps(numbers(3), protocol)
    new = b"".join(b"\x8a\x0c" + extent.to_bytes(12, "little", signed=True) for extent in shape)
    new = b"(" + new + b"t"
    assert data.count(b"K\3\x85") == 1
    changed = data.replace(b"K\3\x85", new)
    if protocol >= 4:
        changed = changed[:3] + (len(changed) - 11).to_bytes(8, "little") + changed[11:]
    with pytest.raises(FormatError, match="its array ''"):
        PickleFormat().layout(BytesReader(changed))


NO_PICKLES = [
    b"",
    b"N.",
    b".",
    b"(",
    b"]",
    b"c",
    b"cat\ndog\nmouse\n",
    b"country,city\nItaly,Rome\nFrance,Paris\n",
    b"(a short text in brackets.)",
    b"(dp0\nis how some pickles start\n",
    b"]]]",
    b"}\n",
    b'{"json": [1, 2, 3]}',
    b"[1, 2.5]",
    b"I am a text that ends with a dot.",
    b"\x80",
    b"\x80\x02",
    b"\x80\x01}q\0.",
    b"\x80\x06}\x94.",
    b"\x81\xa1a\x01",  # msgpack
    b"\x80\xc0\xc0\xc0",
    b"\x08\x07\x12\x07pytorch",  # ONNX
    b"\x80\x02\xff\xfe\xfd\xfc",
    b"\x89PNG\r\n\x1a\n" + bytes(20),
    b"\x80\x03" + bytes(100),
]


@pytest.mark.parametrize("data", NO_PICKLES)
def test_other_files_are_not_claimed(data):
    assert not PickleFormat().sniff(data[:HEAD_SIZE], BytesReader(data))
    assert describe(BytesReader(data))[0].format != "pickle"


def test_random_files_are_not_claimed():
    chance = np.random.default_rng(0)
    claimed = 0
    for start in (b"", b"\x80\x02", b"\x80\x04", b"(", b"c", b"]", b"}"):
        for _ in range(300):
            data = start + chance.bytes(200)
            claimed += PickleFormat().sniff(data, BytesReader(data))
    assert claimed <= 10


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_what_is_claimed(protocol):
    for value in ({}, [], {"a": 1}, [0.5] * 20, [1, 2], numbers(3), SimpleNamespace(a=1)):
        data = pickle.dumps(value, protocol)
        assert PickleFormat().sniff(data, BytesReader(data)) or len(data) < 10
        if len(data) > 40:
            cut = data[:-1]
            assert PickleFormat().sniff(cut, BytesReader(cut)) == (
                protocol >= 2 or b"R" in data or isinstance(value, SimpleNamespace)
            )


GOOD = {
    protocol: pickle.dumps(
        {"w": numbers(3), "o": SimpleNamespace(f=[0.5] * 20), "n": [[0.25] * 2] * 9}, protocol
    )
    for protocol in PROTOCOLS
}


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_truncation_at_every_length(protocol):
    data = GOOD[protocol]
    for size in range(len(data)):
        with pytest.raises(MstoreError):
            PickleFormat().layout(BytesReader(data[:size]))
        with suppress(MstoreError):
            PickleFormat().findings(BytesReader(data[:size]))


@pytest.mark.parametrize("protocol", PROTOCOLS)
@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_changed_bytes(protocol, data):
    """Whatever is done to a file, only this package's errors come out of its parser."""
    changed = data.draw(changed_bytes(GOOD[protocol]))
    judge(PickleFormat(), changed)
    assert describe(BytesReader(changed))[0].size == len(changed)
