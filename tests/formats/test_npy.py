"""The npy parser, against files numpy wrote and against hostile headers."""

import io
import os
import struct

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis.extra import numpy as hnp

from mstore.errors import FormatError, LimitExceededError, UnsafeInputError
from mstore.formats.base import BytesReader, Finding
from mstore.formats.npy import PICKLED, NpyFormat
from mstore.layout import Segment
from mstore.numpy_dtypes import array_from_bytes


def saved(array, version=None):
    file = io.BytesIO()
    np.lib.format.write_array(file, np.asanyarray(array), version=version)
    return file.getvalue()


def build(header, data=b"", version=(1, 0)):
    raw = header if isinstance(header, bytes) else header.encode()
    width = "<H" if version == (1, 0) else "<I"
    return b"\x93NUMPY" + bytes(version) + struct.pack(width, len(raw)) + raw + data


def literal(descr="'<f4'", fortran="False", shape="(1,)"):
    return f"{{'descr': {descr}, 'fortran_order': {fortran}, 'shape': {shape}, }}"


def layout(data):
    return NpyFormat().layout(BytesReader(data))


def read(data):
    """The array as the layout describes it, or None when all is opaque."""
    found = [s for s in layout(data).segments if s.tensor is not None]
    if not found:
        return None
    (segment,) = found
    tensor = segment.tensor
    assert tensor.name == ""
    raw = data[segment.offset : segment.offset + segment.length]
    return array_from_bytes(raw, tensor.dtype, tensor.shape, tensor.order)


@settings(deadline=None)
@given(
    hnp.arrays(
        hnp.boolean_dtypes()
        | hnp.integer_dtypes(endianness="?")
        | hnp.floating_dtypes(endianness="?")
        | hnp.complex_number_dtypes(endianness="?"),
        hnp.array_shapes(min_dims=0, min_side=0),
    )
)
def test_reads_what_numpy_wrote(array):
    for data in (saved(array), saved(array.T), saved(array, (2, 0)), saved(array, (3, 0))):
        back = read(data)
        expected = np.load(io.BytesIO(data))
        if array.dtype.type in (np.longdouble, np.clongdouble):
            assert back is None  # they have no element type
            continue
        assert back.dtype == expected.dtype
        assert back.shape == expected.shape
        assert back.tobytes() == expected.tobytes()


@pytest.mark.parametrize(
    "array",
    [
        np.array(["a", "bcd"]),
        np.array([b"a"]),
        np.array(["2024"], "M8[D]"),
        np.array([1], "m8"),
        np.zeros(3, [("a", "S3")]),
        np.zeros(3, [("ä\u4e00'\"\\", [("b", "S3")])]),
        np.zeros(3, []),
        np.zeros(3, "V7"),
        np.zeros(3, np.longdouble),
        np.zeros((0, 3), "U5"),
        np.zeros(3, "S0"),
    ],
    ids=lambda array: str(array.dtype)[:30],
)
@pytest.mark.filterwarnings("ignore:Stored array in format 3.0:UserWarning")
def test_types_without_an_element_type_stay_opaque(array):
    data = saved(array)
    assert layout(data).segments == (Segment(0, len(data)),)
    assert layout(data).format == "npy"
    if array.nbytes:
        with pytest.raises(FormatError, match="needs"):
            layout(data[:-1])


@pytest.mark.filterwarnings("ignore:Custom dtypes are saved as python objects:UserWarning")
@pytest.mark.parametrize(
    ("type_", "seen", "kind"),
    [
        (ml_dtypes.bfloat16, "u16", "V2"),
        (ml_dtypes.float8_e4m3fn, "u8", "V1"),
        (ml_dtypes.int4, "u8", "V1"),
        (ml_dtypes.float8_e5m2, "f8_e5m2", ""),
    ],
)
def test_types_of_ml_dtypes(type_, seen, kind):
    array = np.arange(6).astype(type_).reshape(2, 3)
    data = saved(array)
    tensor = layout(data).segments[1].tensor
    assert (tensor.dtype.name, tensor.kind) == (seen, kind)
    assert read(data).tobytes() == array.tobytes()


def test_as_many_dimensions_as_numpy_has():
    assert read(saved(np.ones((1,) * 64))).shape == (1,) * 64
    with pytest.raises(LimitExceededError):
        layout(build(literal(shape=str((1,) * 65)), bytes(4)))


def test_what_follows_the_array_is_opaque():
    data = saved(np.arange(3.0)) + saved(np.arange(2))
    segments = layout(data).segments
    assert [s.tensor is None for s in segments] == [True, False, True]
    assert read(data).tolist() == [0.0, 1.0, 2.0]


def test_forms_of_other_writers():
    body = bytes(4)
    assert read(build(literal(shape="(1L,)"), body)).shape == (1,)
    assert read(build("{'shape':(),'fortran_order':True,'descr':\"|u1\"}\n\n ", b"x")).shape == ()
    assert read(build(literal("'|b1'", shape="(4,)"), body)).dtype == bool
    assert layout(build(literal(fortran="True"), body)).segments[1].tensor.order == "C"
    two = layout(build(literal("'<u1'", "True", "(2, 2)"), body)).segments[1].tensor
    assert two.order == "F"


MALFORMED = {
    "empty": b"",
    "magic only": b"\x93NUMPY",
    "other magic": b"\x93NUMPX" + saved(np.arange(3))[6:],
    "version 0": build(literal(), bytes(4), (0, 1)),
    "version 4": build(literal(), bytes(4), (4, 0)),
    "header cut": build(literal())[:-5],
    "header empty": build(""),
    "header a list": build("[]"),
    "an expression": build(literal(shape="(1+1,)"), bytes(8)),
    "a call": build(literal(shape="(__import__('os').system('true'),)"), bytes(8)),
    "a comprehension": build(literal(shape="[i for i in (1,)]"), bytes(8)),
    "text after": build(literal() + "1", bytes(4)),
    "key missing": build("{'descr': '<f4', 'shape': (1,)}", bytes(4)),
    "key added": build(literal()[:-1] + "'x': 1}", bytes(4)),
    "key twice": build(literal()[:-1] + "'shape': (1,)}", bytes(4)),
    "not UTF-8": build(b"{'descr\xff': 1}", version=(3, 0)),
    "shape a list": build(literal(shape="[1]"), bytes(4)),
    "shape a number": build(literal(shape="(1)"), bytes(4)),
    "dimension negative": build(literal(shape="(-1,)"), bytes(4)),
    "dimensions negative": build(literal(shape="(-1,-1)"), bytes(4)),
    "dimension true": build(literal(shape="(True,)"), bytes(4)),
    "dimension text": build(literal(shape="('1',)"), bytes(4)),
    "shape 2^60": build(literal(shape=f"({2**60},)"), bytes(4)),
    "shape 2^62 strings": build(literal("'<U4'", shape=f"({2**62},)"), bytes(4)),
    "shape overflows": build(literal(shape=f"({2**40}, {2**40}, 0)")),
    "records overflow": build(literal("[('a', '<f4', (1000000000000, 1000000000000))]"), bytes(4)),
    "one byte short": saved(np.arange(3))[:-1],
    "fortran_order 1": build(literal(fortran="1"), bytes(4)),
    "fortran_order None": build(literal(fortran="None"), bytes(4)),
    "descr None": build(literal("None"), bytes(4)),
    "descr a dict": build(literal("{'a': 1}"), bytes(4)),
    "descr a name": build(literal("'float32'"), bytes(4)),
    "descr unknown kind": build(literal("'<q8'"), bytes(4)),
    "descr padded": build(literal("' <f4'"), bytes(4)),
    "descr two types": build(literal("'<f4,<f4'"), bytes(8)),
    "field not a pair": build(literal("[('a',)]"), bytes(4)),
    "field a string": build(literal("['<f4']"), bytes(4)),
    "subarray negative": build(literal("[('a', '<f4', (-1,))]"), bytes(4)),
    "subarray negative twice": build(literal("[('a', '<f4', (-1, -1))]"), bytes(4)),
    "subarray text": build(literal("[('a', '<f4', 'x')]"), bytes(4)),
}


@pytest.mark.parametrize("data", MALFORMED.values(), ids=MALFORMED.keys())
def test_malformed(data):
    with pytest.raises(FormatError):
        layout(data)


OBJECTS = {
    "saved": saved(np.array([None, {}])),
    "field": build(literal("[('a', '<f4'), ('b', '|O')]"), bytes(12)),
    "nested field": build(literal("[('a', [('b', '|O8', (2,))])]"), bytes(16)),
    "sized": build(literal("'|O8'"), bytes(8)),
    "subarray": build(literal("('|O', (2,))"), bytes(16)),
}


@pytest.mark.parametrize("data", OBJECTS.values(), ids=OBJECTS.keys())
def test_objects_are_unsafe(data):
    with pytest.raises(UnsafeInputError):
        layout(data)
    if data != OBJECTS["saved"]:
        with pytest.raises(FormatError, match="pickle"):
            NpyFormat().findings(BytesReader(data))


class Evil:
    def __reduce__(self):
        return os.system, ("touch harmed",)


def test_what_the_objects_do_is_told(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = NpyFormat().findings(BytesReader(saved([Evil()])))
    assert [f.what for f in found if f.danger == "dangerous"] == [f"calls {os.name}.system"]
    (told, *more) = NpyFormat().findings(BytesReader(saved([None, {1: "x"}])))
    assert told == Finding("allowed", PICKLED)
    assert {finding.danger for finding in more} == {"allowed"}
    with pytest.raises(FormatError, match="pickle"):
        NpyFormat().findings(BytesReader(saved([Evil()])[:-1]))
    assert list(tmp_path.iterdir()) == []


def test_what_there_is_to_tell_of_other_types():
    for array, told in (
        (np.arange(3), None),
        (np.array(["a"]), None),
        (np.array(["2024"], "M8[D]"), None),
        (np.zeros(3, "V7"), "opaque bytes for its array, which has elements of type '|V7'"),
    ):
        reader = BytesReader(saved(array))
        assert NpyFormat().examine(reader)[1] == told
        assert NpyFormat().findings(reader) == []


TOO_MUCH = {
    "depth": build(literal("(" * 4000 + ")" * 4000), bytes(4)),
    "65 dimensions": build(literal(shape="(" + "1," * 65 + ")"), bytes(4)),
}


@pytest.mark.parametrize("data", TOO_MUCH.values(), ids=TOO_MUCH.keys())
def test_too_much(data):
    with pytest.raises(LimitExceededError):
        layout(data)


@pytest.mark.parametrize(
    "data",
    [build(literal() + " " * 10_000, bytes(4)), b"\x93NUMPY\2\0\xff\xff\xff\xff"],
    ids=["10 kB", "4 GB"],
)
def test_a_header_that_numpy_would_not_read(data):
    with pytest.raises(FormatError, match="at most 10000 are read"):
        layout(data)


def test_sniff():
    assert NpyFormat().sniff(saved(np.arange(3)), BytesReader(b""))
    assert not NpyFormat().sniff(b"NUMPY\x93", BytesReader(b""))
