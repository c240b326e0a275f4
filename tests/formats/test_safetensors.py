"""The safetensors parser: good files are described fully, hostile headers refused by kind."""

import json
import struct

import ml_dtypes
import numpy as np
import pytest
import safetensors
import safetensors.numpy

from mstore.dtypes import BY_NAME
from mstore.errors import FormatError, LimitExceededError
from mstore.formats import safetensors as parser
from mstore.formats.base import BytesReader
from mstore.formats.safetensors import DTYPE_NAMES, SafetensorsFormat, read_metadata
from mstore.layout import Segment, Tensor


def build(header, data=b""):
    """A file with the given header: JSON text, raw bytes, or a value to be written as JSON."""
    if not isinstance(header, str | bytes):
        header = json.dumps(header)
    raw = header.encode() if isinstance(header, str) else header
    return struct.pack("<Q", len(raw)) + raw + data


def entry(dtype="U8", shape=(1,), offsets=(0, 1)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


def layout(data):
    return SafetensorsFormat().layout(BytesReader(data))


def tensors(data):
    found = layout(data)
    return {s.tensor.name: (s.tensor, s.offset) for s in found.segments if s.tensor is not None}


def test_every_dtype():
    header, data = {}, b""
    for dtype, name in DTYPE_NAMES.items():
        size = dtype.nbytes((4, 2))
        header[dtype.name] = entry(name, (4, 2), (len(data), len(data) + size))
        data += bytes(size)
    blob = build(header, data)
    safetensors.deserialize(blob)  # the reference agrees that this file is good
    found = tensors(blob)
    assert {name: tensor for name, (tensor, _) in found.items()} == {
        dtype.name: Tensor(dtype.name, dtype, (4, 2)) for dtype in DTYPE_NAMES
    }
    assert len(found) == 22


def test_layout_is_header_then_tensors():
    header = {"b": entry("F32", (2,), (3, 11)), "a": entry("U8", (3,), (0, 3))}
    blob = build(header, bytes(11))
    start = len(blob) - 11
    assert layout(blob).segments == (
        Segment(0, start),
        Segment(start, 3, Tensor("a", BY_NAME["u8"], (3,))),
        Segment(start + 3, 8, Tensor("b", BY_NAME["f32"], (2,))),
    )
    assert layout(blob).format == "safetensors"


def test_empty_and_scalar_tensors():
    header = {
        "before": entry("F32", (0, 3), (0, 0)),
        "scalar": entry("F64", (), (0, 8)),
        "between": entry("BF16", (0,), (8, 8)),
        "one": entry("U8", (1,), (8, 9)),
        "end": entry("I64", (5, 0), (9, 9)),
    }
    found = tensors(build(header, bytes(9)))
    assert {name: tensor.shape for name, (tensor, _) in found.items()} == {
        "before": (0, 3), "scalar": (), "between": (0,), "one": (1,), "end": (5, 0),
    }  # fmt: skip


@pytest.mark.parametrize("header", ["{}", "{}   ", " { } \n", "{\n}\t", '{"__metadata__":{}}'])
def test_files_without_tensors(header):
    assert [s.tensor for s in layout(build(header)).segments] == [None]


def test_white_space_and_escapes_in_the_header():
    text = '\n{ "\\u0061" :\t{"shape":[ 1 ] , "data_offsets" : [0,\r1], "dtype":"U\\u0038" } } '
    assert tensors(build(text, b"x"))["a"][0].shape == (1,)


@pytest.mark.parametrize("metadata", [None, {}, {"format": "pt"}, {"a": '{"x": [1]}', "é": "\n"}])
def test_files_of_the_reference_writer(metadata):
    arrays = {
        "w": np.arange(6, dtype=np.float32).reshape(2, 3),
        "é.\u2028": np.array(True),
        "none": np.zeros((0, 2), np.int16),
        "half": np.arange(3, dtype=np.float16),
        "bf": np.arange(3).astype(ml_dtypes.bfloat16),
        "c": np.arange(2).astype(np.complex64),
    }
    blob = safetensors.numpy.save(arrays, metadata)
    found = tensors(blob)
    assert found.keys() == arrays.keys()
    for name, array in arrays.items():
        tensor, offset = found[name]
        assert (tensor.shape, tensor.dtype.numpy) == (array.shape, array.dtype.name)
        assert blob[offset : offset + tensor.nbytes] == array.tobytes()
    assert read_metadata(BytesReader(blob)) == (metadata or {})


ENTRY = '"dtype":"U8","shape":[1],"data_offsets":[0,1]'


def fill(text):
    """A file of one byte whose header is `text` with a good entry's content in place of each @."""
    return build(text.replace("@", ENTRY), b"x")


MALFORMED = {
    "empty file": b"",
    "no header": b"\2\0\0\0\0\0\0",
    "header longer than the file": struct.pack("<Q", 99) + b"{}",
    "header longer by one": build("{}")[:-1],
    "empty header": build(""),
    "not UTF-8": build(b'{"a\xff":1}'),
    "a list": build("[]"),
    "not JSON": build("{a}"),
    "cut JSON": build('{"a":'),
    "cut entry": fill('{"a":{@'),
    "cut string": build('{"a'),
    "text after the header": build("{}x"),
    "trailing comma": fill('{"a":{@},}'),
    "missing comma": fill('{"a":{@}"b":{@}}'),
    "missing colon": fill('{"a"{@}}'),
    "duplicate tensor": fill('{"a":{@},"a":{@}}'),
    "duplicate tensor by escape": fill('{"a":{@},"\\u0061":{@}}'),
    "duplicate in an entry": fill('{"a":{@,"dtype":"U8"}}'),
    "duplicate metadata": build('{"__metadata__":{},"__metadata__":{}}'),
    "duplicate metadata key": build('{"__metadata__":{"a":"","a":""}}'),
    "metadata not text": build('{"__metadata__":{"a":1}}'),
    "metadata nested": build('{"__metadata__":{"a":{}}}'),
    "metadata a list": build('{"__metadata__":[]}'),
    "lone surrogate in a name": fill('{"\\ud800":{@}}'),
    "lone surrogate in metadata": build('{"__metadata__":{"a":"\\ud800"}}'),
    "control character in a name": fill('{"a\n":{@}}'),
    "entry a number": build('{"a":1}'),
    "entry empty": build('{"a":{}}'),
    "entry a list": fill('{"a":[{@}]}'),
    "entry nested": fill('{"a":{@,"x":{}}}'),
    "entry with another key": fill('{"a":{@,"x":1}}'),
    "no dtype": build('{"a":{"shape":[1],"data_offsets":[0,1]}}', b"x"),
    "unknown dtype": build({"a": entry("F33")}, b"x"),
    "lower-case dtype": build({"a": entry("u8")}, b"x"),
    "dtype a list": build({"a": entry(["U8"])}, b"x"),
    "big-endian dtype": build({"a": entry(">U16", (1,), (0, 2))}, b"xx"),
    "shape a number": build('{"a":{"dtype":"U8","shape":1,"data_offsets":[0,1]}}', b"x"),
    "three offsets": build({"a": entry("U8", (1,), (0, 1, 1))}, b"x"),
    "one offset": build({"a": entry("U8", (1,), (0,))}, b"x"),
    "offsets backwards": build({"a": entry("U8", (1,), (1, 0))}, b"x"),
    "offset negative": build({"a": entry("U8", (2,), (-1, 1))}, b"x"),
    "offset beyond the file": build({"a": entry("U8", (2,), (0, 2))}, b"x"),
    "offset huge": build({"a": entry("U8", (2**70,), (0, 2**70))}, b"x"),
    "offset a float": build({"a": entry("U8", (1,), (0, 1.0))}, b"x"),
    "offset true": build({"a": entry("U8", (1,), (0, True))}, b"x"),
    "dimension negative": build({"a": entry("U8", (-1, -1))}, b"x"),
    "dimension minus zero": build('{"a":{"dtype":"U8","shape":[-0],"data_offsets":[0,0]}}'),
    "dimension a float": build({"a": entry("U8", (1.0,))}, b"x"),
    "dimension with an exponent": build(
        '{"a":{"dtype":"U8","shape":[1e0],"data_offsets":[0,1]}}', b"x"
    ),
    "dimension true": build({"a": entry("U8", (True,))}, b"x"),
    "dimension null": build({"a": entry("U8", (None,))}, b"x"),
    "dimension text": build({"a": entry("U8", ("1",))}, b"x"),
    "dimension NaN": build('{"a":{"dtype":"U8","shape":[NaN],"data_offsets":[0,1]}}', b"x"),
    "shape bigger than span": build({"a": entry("U8", (2,))}, b"x"),
    "shape smaller than span": build({"a": entry("U8", (1,), (0, 2))}, b"xx"),
    "shape times dtype": build({"a": entry("F32", (1,))}, b"x"),
    "shape overflows to the span": build({"a": entry("U8", (2**32, 2**32), (0, 0))}),
    "shape overflows beside a zero": build({"a": entry("U8", (2**40, 2**40, 0), (0, 0))}),
    "shape overflows after a zero": build({"a": entry("U8", (0, 2**40, 2**40), (0, 0))}),
    "half a byte": build({"a": entry("F4", (3,), (0, 1))}, b"x"),
    "six bits": build({"a": entry("F6_E2M3", (1,), (0, 1))}, b"x"),
    "overlap": build({"a": entry("U8", (2,), (0, 2)), "b": entry("U8", (2,), (1, 3))}, b"xxx"),
    "same bytes twice": build({"a": entry(), "b": entry()}, b"x"),
    "empty inside another": build({"a": entry("U8", (2,), (0, 2)), "b": entry("U8", (0,), (1, 1))},
                                  b"xx"),
    "hole at the start": build({"a": entry("U8", (1,), (1, 2))}, b"xx"),
    "hole between": build({"a": entry(), "b": entry("U8", (1,), (2, 3))}, b"xxx"),
    "trailing bytes": build({"a": entry()}, b"xx"),
    "data without tensors": build("{}", b"x"),
    "dimension of 4000 digits": build(
        '{"a":{"dtype":"U8","shape":[' + "9" * 4000 + '],"data_offsets":[0,1]}}', b"x"
    ),
}  # fmt: skip

TOO_MUCH = {
    "header over 100 MB": struct.pack("<Q", 100_000_001) + b"{}",
    "length 2^64-1": struct.pack("<Q", 2**64 - 1) + b'{"a":1}',
    "depth of lists": build('{"a":' + "[" * 100_000 + "]" * 100_000 + "}"),
    "depth of objects": build('{"a":' * 100_000 + "1" + "}" * 100_000),
    "depth inside an entry": fill('{"a":{"shape":' + "[" * 2000 + "]" * 2000 + ",@}}"),
    "long entry": build({"a": entry("U8", (1,) * 3000)}, b"x"),
    "entry long with spaces": fill('{"a":{@' + " " * 5000 + "}}"),
    "65 dimensions": build({"a": entry("U8", (1,) * 65)}, b"x"),
}


@pytest.mark.parametrize("blob", MALFORMED.values(), ids=MALFORMED.keys())
def test_malformed(blob):
    with pytest.raises(FormatError):
        layout(blob)


@pytest.mark.parametrize("blob", TOO_MUCH.values(), ids=TOO_MUCH.keys())
def test_too_much(blob):
    with pytest.raises(LimitExceededError):
        layout(blob)


@pytest.mark.parametrize("key", ["data_offsets", "d\\u0061ta_offsets"])
def test_too_many_tensors(monkeypatch, key):
    monkeypatch.setattr(parser, "MAX_TENSORS", 3)
    one = '{"dtype":"U8","shape":[0],"' + key + '":[0,0]}'
    three = build("{" + ",".join(f'"{i}":{one}' for i in range(3)) + "}")
    assert len(tensors(three)) == 3
    with pytest.raises(LimitExceededError, match="more than 3 tensors"):
        layout(build("{" + ",".join(f'"{i}":{one}' for i in range(4)) + "}"))


def test_too_much_metadata(monkeypatch):
    monkeypatch.setattr(parser, "MAX_METADATA", 3)
    with pytest.raises(LimitExceededError, match="metadata"):
        layout(build({"__metadata__": {str(i): "" for i in range(4)}}))


def test_a_name_cannot_upset_a_terminal():
    with pytest.raises(FormatError) as error:
        layout(build({"\x1b[2J" + "x" * 1_000_000: entry("F33")}, b"x"))
    assert "\x1b" not in str(error.value)
    assert len(str(error.value)) < 300


def test_a_file_that_shrinks_is_malformed():
    class Shrinking(BytesReader):
        def read(self, offset, length):
            return super().read(offset, length)[:-1]

    with pytest.raises(FormatError, match="ends inside the header's length"):
        SafetensorsFormat().layout(Shrinking(build("{}")))


@pytest.mark.parametrize(
    ("head", "expected"),
    [
        (build("{}"), True),
        (build({"a": entry()}), True),
        (struct.pack("<Q", 2**64 - 1) + b'{"', True),
        (struct.pack("<Q", 10**9) + b'{ "', True),
        (b"", False),
        (b"\1\0\0\0\0\0\0\0", False),
        (b'[1, 2,\n {"a": 1}]', False),
        (b'12345678{"a": 1}', False),
        (struct.pack("<Q", 2) + b"[]", False),
    ],
)
def test_sniff(head, expected):
    assert SafetensorsFormat().sniff(head, BytesReader(head)) is expected


def test_ten_thousand_tensors():
    header = {f"layer.{i}.w": entry("U8", (1,), (i, i + 1)) for i in range(10_000)}
    assert len(layout(build(header, bytes(10_000))).segments) == 10_001
