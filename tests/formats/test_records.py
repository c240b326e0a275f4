"""Arrays of records in npy and npz files: each field a tensor, as numpy has it."""

import io
import json
import struct
import zipfile

import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from watched_files import Watched

from mstore.dtypes import BY_NAME
from mstore.errors import FormatError, LimitExceededError
from mstore.formats import naming, zipdir
from mstore.formats import npy as npy_module
from mstore.formats.base import BytesReader
from mstore.formats.detect import describe, find_format
from mstore.formats.npy import NpyFormat
from mstore.formats.npz import NpzFormat
from mstore.formats.records import RecordField, Records

F32 = BY_NAME["f32"]

PLAIN = st.sampled_from(["<f4", ">f8", "?", "<i2", ">u8", "<c8", "u1", "S3", "<U2", "<M8[s]"])
NAMES = st.sampled_from(["a", "b", "left child", "ä", "x.y"])


def record_types(inner):
    field = st.tuples(inner, st.sampled_from([(), (2,), (1, 3), (0,)]))
    fields = st.dictionaries(NAMES, field, min_size=1, max_size=3)
    return st.builds(
        lambda fields, align: np.dtype([(n, *f) for n, f in fields.items()], align=align),
        fields,
        st.booleans(),
    )


TYPES = record_types(st.recursive(PLAIN, record_types, max_leaves=4))


def saved(array):
    file = io.BytesIO()
    np.lib.format.write_array(file, array)
    return file.getvalue()


def leaves(array, name=""):
    """The fields of numbers of an array of records, by their names."""
    if array.dtype.names is None:
        return {name: array} if array.dtype.kind not in "SUM" else {}
    return {
        path: inner
        for field in array.dtype.names
        for path, inner in leaves(array[field], f"{name}.{field}" if name else field).items()
    }


def check(found, expected):
    assert set(found) == set(expected)
    for name, array in found.items():
        assert (array.dtype, array.shape) == (expected[name].dtype, expected[name].shape)
        assert array.tobytes() == expected[name].tobytes()


@settings(
    deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
@pytest.mark.filterwarnings("ignore:Stored array in format 3.0:UserWarning")
def test_fields_are_what_numpy_has(data, read_tensors):
    type_ = data.draw(TYPES)
    shape = data.draw(hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3))
    raw = np.random.default_rng(0).integers(0, 2, int(np.prod(shape)) * type_.itemsize, np.uint8)
    array = (
        np.frombuffer(raw.tobytes(), type_).reshape(shape) if raw.size else np.zeros(shape, type_)
    )
    for order in "CF":
        written = saved(np.asarray(array, order=order))
        layout, note = describe(BytesReader(written))
        assert (layout.format, note) == ("npy", None)
        check(read_tensors(written, layout), leaves(array))


NODES = np.zeros(5, [("left", "<i8"), ("at", "<f8", (2,)), ("gone", "?"), ("gap", "V7")])
NODES["left"] = np.arange(5)
NODES["at"] = np.arange(10).reshape(5, 2)


def npz(save=np.savez, **arrays):
    file = io.BytesIO()
    save(file, **arrays)
    return file.getvalue()


PLAIN_NODES = NODES[["left", "at", "gone"]].copy()


def test_in_archives_they_follow_the_name_of_the_array(read_tensors):
    data = npz(nodes=PLAIN_NODES, w=np.ones(2))
    layout, note = NpzFormat().examine(BytesReader(data))
    assert note is None
    found = read_tensors(data, layout)
    assert found.pop("w").tolist() == [1, 1]
    check(found, {f"nodes.{name}": PLAIN_NODES[name] for name in ("left", "at", "gone")})
    (hidden,) = [s for s in layout.segments if s.hidden]
    assert hidden.tensor.name == "storage:nodes"
    assert hidden.tensor.shape == (5, PLAIN_NODES.itemsize)


def test_in_an_archive_in_an_archive(read_tensors):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as made:
        made.writestr("a/nodes.npy", saved(PLAIN_NODES))
        made.writestr("b.npz", npz(x=PLAIN_NODES))
    data = file.getvalue()
    layout, note = describe(BytesReader(data))
    assert (layout.format, note) == ("zip", None)
    assert {name.rsplit(".", 1)[0] for name in read_tensors(data, layout)} == {"a/nodes", "b.npz/x"}


def test_compressed_ones_are_told():
    data = npz(np.savez_compressed, nodes=PLAIN_NODES, w=np.ones(2))
    layout, note = NpzFormat().examine(BytesReader(data))
    assert [view.tensor.name for view in layout.views] == ["w"]
    why = "'nodes.npy' holds records and is compressed"
    assert note == f"opaque bytes for 1 of 2 arrays: {why}"


def test_too_many_are_not_even_read(monkeypatch):
    data = npz(**{str(number): PLAIN_NODES for number in range(100)})
    directory = Watched(data)
    zipdir.read_members(directory)
    monkeypatch.setattr(naming, "MAX_COUNT", 20)
    reader = Watched(data)
    with pytest.raises(LimitExceededError, match="more than 20 tensors"):
        NpzFormat().layout(reader)
    assert reader.reads < directory.reads + 50


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_headers_of_many_arrays_are_too_much(save, monkeypatch):
    """Each of a few hundred bytes in the file, and of ten thousand when it is inflated."""
    wide = np.zeros(1, [(f"{number:03}", "u1") for number in range(500)])
    data = npz(save, **{str(number): wide for number in range(4)})
    inner = io.BytesIO()
    with zipfile.ZipFile(inner, "w") as made:
        made.writestr("model.safetensors", bytes([2, *bytes(7)]) + b"{}")
        for number in range(4):
            made.writestr(f"{number}.npy", saved(wide), zipfile.ZIP_DEFLATED)
    schema = {"__class__": "dict", "__module__": "builtins", "__loader__": "DictNode"}
    sparse = io.BytesIO()
    with zipfile.ZipFile(sparse, "w") as made:
        made.writestr("schema.json", json.dumps(schema))
        for number in range(2):
            made.writestr(f"{number}.npz", npz(save, **{str(name): wide for name in range(2)}))
    files = {"npz": data, "zip": inner.getvalue(), "skops": sparse.getvalue()}
    assert [describe(BytesReader(one))[0].format for one in files.values()] == list(files)
    monkeypatch.setattr(npy_module, "MAX_HEADERS", 3 * 8600)
    for one in files.values():
        with pytest.raises(LimitExceededError, match="bytes of headers"):
            raise_for(one)


def raise_for(data):
    """Describe and judge a file, but do not catch what that raises."""
    reader = BytesReader(data)
    known = find_format(reader)
    known.findings(reader)
    known.layout(reader)


def test_a_field_of_an_unknown_type_is_told():
    for array, told in ((NODES, "|V7"), (np.zeros(2, [("a", "f4"), ("b", "g")]), "<f16")):
        layout, note = NpyFormat().examine(BytesReader(saved(array)))
        assert not layout.views
        why = f"holds records with elements of type '{told}'"
        assert note == f"opaque bytes for its array, which {why}"


@pytest.mark.filterwarnings("ignore:Custom dtypes are saved as python objects:UserWarning")
def test_fields_of_types_of_ml_dtypes(read_tensors):
    array = np.ones(3, [("a", ml_dtypes.bfloat16), ("b", "i1")])
    data = saved(array)
    found = read_tensors(data, NpyFormat().layout(BytesReader(data)))
    assert found["a"].tobytes() == array["a"].tobytes()
    assert found["a"].dtype == np.uint16


def header(descr, shape="(1,)"):
    text = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}}}".encode("latin-1")
    return b"\x93NUMPY\1\0" + struct.pack("<H", len(text)) + text


@pytest.mark.parametrize(
    ("descr", "shape", "error", "match"),
    [
        ("[(1, '<f4')]", "(1,)", FormatError, "without a name"),
        ("[((1, 'a'), '<f4')]", "(1,)", FormatError, "without a name"),
        ("[(('a', 'b', 'c'), '<f4')]", "(1,)", FormatError, "without a name"),
        ("[('a', '<f4', (-1,))]", "(1,)", FormatError, "bad shape"),
        ("[('a', '<f4', (2305843009213693952,))]", "(0,)", FormatError, "overflows"),
        ("[('a', '|S0', (4,)), ('b', '|u1')]", "(-1,)", FormatError, "negative"),
        (f"[('a', '|u1', {(1,) * 40})]", str((1,) * 40), LimitExceededError, "80 dimensions"),
    ],
)
def test_malformed_records(descr, shape, error, match):
    with pytest.raises(error, match=match):
        NpyFormat().layout(BytesReader(header(descr, shape) + bytes(64)))


def test_two_fields_of_one_name():
    data = header("[('a', '<f4'), ('a', '<f4')]") + bytes(8)
    layout = NpyFormat().layout(BytesReader(data))
    assert [view.tensor.name for view in layout.views] == ["a", "a#2"]


def test_a_type_in_a_pair():
    data = header("[('a', ('<f4', (2,)))]", "(3,)") + bytes(24)
    (view,) = NpyFormat().layout(BytesReader(data)).views
    assert (view.tensor.shape, view.place.strides) == ((3, 2), (8, 4))


def test_places_in_column_major_order():
    records = Records("r", (2, 3), "F", 8, (RecordField("f", F32, 4),))
    (view,) = records.contents(100).views
    assert (view.place.offset, view.place.strides) == (104, (8, 16))
