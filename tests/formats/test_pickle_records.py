"""Arrays of records in pickles: each field of numbers is a tensor, and what is none is told."""

import pickle

import ml_dtypes
import numpy as np
import pytest
from pickled import by_pickle_and_joblib

from mstore.errors import LimitExceededError
from mstore.formats import pickle_layout
from mstore.formats.base import BytesReader
from mstore.formats.detect import describe
from mstore.formats.pickles import PickleFormat

NESTED = np.dtype(
    [
        ("a", "<i4"),
        ("text", "U3"),
        ("b", ">f8", (2, 3)),
        ("inner", [("x", "u1"), ("when", "M8[s]"), ("y", "f4", 2)], 2),
        (("a title", "last"), "?"),
    ]
)
GAPS = np.dtype({"names": ["a", "b"], "formats": ["u1", "f4"], "offsets": [3, 8], "itemsize": 16})


def records(dtype, *shape):
    """Records of random bytes."""
    raw = np.random.default_rng(1).integers(0, 2, (*shape, np.dtype(dtype).itemsize), np.uint8)
    return np.ndarray(shape, dtype, raw.tobytes())


@pytest.fixture
def check(described):
    """Fails unless the arrays of a file are these; gives its layout."""

    def check(data, expected, note=None):
        layout, found = described(data, expected, note)
        for name, array in expected.items():
            assert (name, found[name].dtype, found[name].shape) == (name, array.dtype, array.shape)
            assert found[name].tobytes() == array.tobytes()
        return layout

    return check


@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_fields(check, protocol):
    nested, gaps = records(NESTED, 4), records(GAPS, 3, 2)
    value = {"nested": nested, "gaps": gaps, "x": np.arange(3.0), "none": records(GAPS, 0)}
    expected = {
        "nested.a": nested["a"],
        "nested.b": nested["b"],
        "nested.inner.x": nested["inner"]["x"],
        "nested.inner.y": nested["inner"]["y"],
        "nested.last": nested["last"],
        "gaps.a": gaps["a"],
        "gaps.b": gaps["b"],
        "x": value["x"],
        "none.a": value["none"]["a"],
        "none.b": value["none"]["b"],
    }
    for data in by_pickle_and_joblib(value, protocol):
        layout = check(data, expected)
        assert sum(segment.hidden for segment in layout.segments) == 3


def test_column_major_and_alone(check):
    turned = np.asfortranarray(records(GAPS, 3, 2))
    for data in by_pickle_and_joblib(turned):
        check(data, {"a": turned["a"], "b": turned["b"]})
    shared = records(GAPS, 3)
    for data in by_pickle_and_joblib([shared, {"again": shared}]):
        check(data, {f"{name}.{key}": shared[key] for name in ("0", "1.again") for key in "ab"})


@pytest.mark.parametrize("protocol", [0, 1, 2])
def test_records_as_text(check, protocol):
    """Which joblib never does."""
    note = "opaque bytes for 1 of its arrays: 'r' holds records that are written as text"
    check(
        pickle.dumps({"r": records(GAPS, 3), "x": np.arange(3)}, protocol),
        {"x": np.arange(3)},
        note,
    )


def test_axes_in_another_order(check):
    note = "opaque bytes for 1 of its arrays: it holds records whose axes lie in another order"
    data = pickle.dumps(records(GAPS, 2, 3, 4).transpose(1, 0, 2), 5)
    check(data, {}, note)


@pytest.mark.parametrize(
    ("array", "why"),
    [
        (np.zeros(3, np.longdouble), "has elements of type 'f16'"),
        (np.zeros(3, "V5"), "has elements of type 'V5'"),
        (np.zeros(4, ml_dtypes.float4_e2m1fn), "has elements of type 'float4_e2m1fn'"),
        (np.zeros(3, [("a", "f4"), ("b", "G")]), "holds records with elements of type 'c32'"),
        (np.zeros(3, "S4"), None),
        (np.zeros(3, "U4"), None),
        (np.zeros(3, "M8[s]"), None),
        (np.zeros(3, "m8[s]"), None),
        (np.zeros(3, [("s", "S4"), ("d", "M8[s]")]), None),
    ],
)
@pytest.mark.parametrize("protocol", [2, 4])
def test_elements_that_are_no_numbers_of_known_types(check, array, why, protocol):
    note = why and f"opaque bytes for 1 of its arrays: 'o' {why}"
    check(pickle.dumps({"o": array, "x": np.arange(3)}, protocol), {"x": np.arange(3)}, note)


class Made:
    """Pickled as what it is given."""

    def __init__(self, *reduced):
        self.reduced = reduced

    def __reduce__(self):
        return self.reduced


def array_of(*state):
    """A pickle of three records of eight bytes, whose type has this state."""
    function, arguments, _ = np.zeros(2).__reduce__()
    kind = Made(np.dtype, ("V8", False, True), (3, "|", *state, 8, 1, 16))
    return pickle.dumps(Made(function, arguments, (1, (3,), kind, False, bytes(24))), 3)


F4 = np.dtype("f4")


@pytest.mark.parametrize(
    ("state", "sound"),
    [
        ((None, ("a",), {"a": (F4, 4)}), True),
        ((None, ("a",), {"a": (F4, 4, "title")}), True),
        ((None, ("a",), {"a": (F4, 0), "b": (F4, -9)}), True),  # which is no field
        ((None, ("a",), {"a": (F4, 5)}), False),
        ((None, ("a",), {"a": (F4, -1)}), False),
        ((None, ("a",), {"a": (F4, True)}), False),
        ((None, ("a",), {"a": (F4,)}), False),
        ((None, ("a",), {"a": F4}), False),
        ((None, ("a",), {"b": (F4, 0)}), False),
        ((None, (1,), {1: (F4, 0)}), False),
        ((None, ("a",), {"a": ("f4", 0)}), False),
        ((None, ("a",), {"a": (Made(np.dtype, ("V4", False, True), (3, "|", (F4, 2), None, None, 4, 1, 0)), 0)}), False),
        ((None, ("a",), {"a": (Made(np.dtype, ("V4", False, True), (3, "|", (F4, (1, -1)), None, None, 4, 1, 0)), 0)}), False),
        ((None, ("a",), {"a": (Made(np.dtype, ("V4", False, True), (3, "|", (F4, "1"), None, None, 4, 1, 0)), 0)}), False),
        ((None, ("a",), {"a": (Made(np.dtype, ("V4", False, True), (3, "|", (F4,), None, None, 4, 1, 0)), 0)}), False),
        ((None, ("a",), {"a": (Made(np.dtype, ("V4", False, True), (3, "|", (F4, 1), None, None, 4, 1, 0)), 4)}), True),
        ((None, ("a",), {"a": (Made(np.dtype, ("V8", False, True), (3, "|", (F4, 1), None, None, 8, 1, 0)), 0)}), False),
    ],
)  # fmt: skip
def test_malformed_records(state, sound):
    layout, note = describe(BytesReader(array_of(*state)))
    assert [view.tensor.name for view in layout.views] == ["a"] * sound
    told = "opaque bytes for 1 of its arrays: it holds malformed records"
    assert note == (None if sound else told)


def test_records_of_another_size():
    data = array_of(None, ("a",), {"a": (F4, 0)})
    wrong = data.replace(b"K\x08K\x01K\x10", b"K\x07K\x01K\x10")
    assert wrong != data
    layout, note = describe(BytesReader(wrong))
    assert layout.format == "opaque"
    assert "its array '' of 21 bytes is written in 24" in note


def test_records_in_each_other(check):
    """Deeper than anybody writes, and few bytes of types that are very many fields."""
    kind = np.dtype("f4")
    for _ in range(40):
        kind = np.dtype([("n", kind)])
    check(
        pickle.dumps({"r": np.zeros(2, kind)}, 4),
        {},
        "opaque bytes for 1 of its arrays: 'r' holds malformed records",
    )


def test_very_many_fields():
    kind = np.dtype("M8[s]")
    for _ in range(30):
        fields = {"a": (kind, 0), "b": (kind, 0)}
        kind = Made(np.dtype, ("V8", False, True), (3, "|", None, ("a", "b"), fields, 8, 1, 16))
    data = array_of(None, ("a",), {"a": (kind, 0)})
    assert len(data) < 3000
    with pytest.raises(LimitExceededError, match="fields"):
        PickleFormat().layout(BytesReader(data))


def test_fields_are_counted_together(monkeypatch):
    """Of all types, not of all arrays: a forest has very many of one type."""
    monkeypatch.setattr(pickle_layout, "MAX_STEPS", 20)
    others = [np.dtype([(name, "f4")]) for name in "abcdefgh"]
    many = pickle.dumps([records(GAPS, 3) for _ in range(50)], 4)
    assert len(PickleFormat().layout(BytesReader(many)).views) == 100
    with pytest.raises(LimitExceededError):
        PickleFormat().layout(BytesReader(pickle.dumps([records(one, 1) for one in others], 4)))
