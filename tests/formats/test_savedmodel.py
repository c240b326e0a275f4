"""Graphs of TensorFlow: their constants, and what they would do; also in graphs made here."""

import base64
import contextlib
import json
from pathlib import Path

import pytest
from audited import NOTHING, events
from damage import changed_bytes
from hypothesis import given, settings
from hypothesis import strategies as st
from wire_fields import field

from mstore.errors import FormatError, LimitExceededError, MstoreError
from mstore.formats import savedmodel
from mstore.formats.base import BytesReader
from mstore.formats.detect import describe
from mstore.formats.savedmodel import FrozenGraphFormat, SavedModelFormat
from mstore.layout import opaque

GOLDEN = Path(__file__).parent / "tensorflow_files"
FILES = {
    name: (GOLDEN / name / "saved_model.pb").read_bytes()
    for name in ("saved", "exported", "outside", "constant")
}
FROZEN = {
    name: (GOLDEN / "frozen" / name).read_bytes() for name in ("frozen_graph.pb", "session.pb")
}
NOT_BYTES = {"uint16", "int4", "uint4", "same", "codes"}
"""Constants in the golden files whose numbers are varints, or of which one stands for all."""


def findings(data):
    return SavedModelFormat().findings(BytesReader(data))


def told(data):
    return {(one.danger, one.what) for one in findings(data)}


@pytest.mark.parametrize("name", FILES)
def test_golden(name):
    layout, note = describe(BytesReader(FILES[name]))
    assert layout.format == "tensorflow-savedmodel"
    expected = (
        "opaque bytes for 5 of 25 constants: '__inference___call___85/codes' has its numbers as"
        " varints, '__inference___call___85/uint16' has its numbers as varints, …"
    )
    assert note == (expected if name == "constant" else None)


@pytest.mark.parametrize(
    "path", ["constant/saved_model.pb", *(f"frozen/{name}" for name in FROZEN)]
)
def test_constants_are_what_tensorflow_reads(path, read_tensors):
    data = (GOLDEN / path).read_bytes()
    found = read_tensors(data, describe(BytesReader(data))[0])
    expected = {}
    for where, name, kind, shape, raw in json.loads((GOLDEN / "constants.json").read_text()):
        if where == path and name.rpartition("/")[2] not in NOT_BYTES:
            expected[name] = kind, tuple(shape), base64.b64decode(raw)
    assert found.keys() == expected.keys()
    for name, (kind, shape, raw) in expected.items():
        assert (found[name].dtype.name, found[name].shape) == (kind, shape)
        assert found[name].tobytes() == raw


def test_frozen_golden():
    for data in FROZEN.values():
        layout, note = describe(BytesReader(data))
        assert (layout.format, note) == ("tensorflow-graph", None)
    assert [s.tensor.name for s in layout.segments if s.tensor] == ["dense/kernel", "dense/bias"]


def test_what_golden_files_would_do():
    """Saving, restoring and computing is nothing to tell; files, Python and printing to files is."""
    assert findings(FILES["exported"]) == []
    assert told(FILES["saved"]) == {
        (
            "unknown",
            "reads a file of words, which should be among its assets"
            " (InitializeTableFromTextFileV2)",
        )
    }
    assert told(FILES["outside"]) == {
        ("dangerous", "reads files when it is run (ReadFile)"),
        ("dangerous", "reads files when it is run (MatchingFiles)"),
        ("dangerous", "writes files when it is run (WriteFile)"),
        ("dangerous", "writes to 'file:///dev/null' when it is run (PrintV2)"),
        ("dangerous", "calls functions of Python when it is run (PyFunc)"),
    }
    assert all(one.where.startswith("__inference___call___") for one in findings(FILES["outside"]))


def node(name, operation, *attributes):
    pairs = (field(5, field(1, key) + field(2, field(2, text))) for key, text in attributes)
    return field(1, name) + field(2, operation) + b"".join(pairs)


def saved(*nodes, functions=()):
    return field(1, 1) + meta(*nodes, functions=functions)


def meta(*nodes, functions=()):
    graph = b"".join(field(1, one) for one in nodes) + field(2, b"".join(functions))
    return field(2, field(1, b"") + field(2, graph))


def constant(name, kind, shape, *data, key=b"value"):
    """A constant of an element type by its number, and the fields of its data."""
    extents = b"".join(field(2, field(1, extent)) for extent in shape)
    tensor = field(1, kind) + field(2, extents) + b"".join(data)
    dtype = field(5, field(1, b"dtype") + field(2, field(6, kind)))
    return node(name, b"Const") + dtype + field(5, field(1, key) + field(2, field(8, tensor)))


def tensors(data, kind=SavedModelFormat):
    """The tensors of a file with their bytes, and what is told of the others."""
    layout, note = kind().examine(BytesReader(data))
    found = {
        one.tensor.name: (one.tensor, data[one.offset :][: one.length])
        for one in layout.segments
        if one.tensor is not None
    }
    return found, note


BIG = 300  # numbers: more than a KiB
FLOATS = bytes(range(200)) * 6


@pytest.mark.parametrize(
    ("kind", "number", "dtype", "size"),
    [
        (1, 5, "f32", 4),
        (2, 6, "f64", 8),
        (8, 9, "c64", 8),
        (18, 12, "c128", 16),
        (10, 11, "bool", 1),
        (25, 18, "f8_e4m3", 1),
        (1, 4, "f32", 4),
        (9, 4, "i64", 8),
        (29, 4, "i8", 1),
        (12, 4, "u8", 1),
    ],
)
def test_numbers_that_are_bytes(kind, number, dtype, size):
    """Of every such field; in the graph, and in a function."""
    raw = b"\1\0\0\1\1\0" if number == 11 else bytes(range(6 * size))
    data = saved(
        constant(b"n", kind, (2, 3), field(number, raw)),
        functions=[function(b"f", constant(b"n", kind, (6,), field(number, raw)))],
    )
    found, note = tensors(data)
    assert note is None
    assert {name: (t.dtype.name, t.shape, b) for name, (t, b) in found.items()} == {
        "n": (dtype, (2, 3), raw),
        "f/n": (dtype, (6,), raw),
    }
    assert found["n"][0].kind == ("quint8" if kind == 12 else "")


@pytest.mark.parametrize(
    ("constant", "why"),
    [
        (constant(b"n", 1, (BIG,), field(5, FLOATS[:-4])), "has not as many numbers as its shape says"),
        (constant(b"n", 1, (BIG,), field(4, FLOATS + b"1234")), "has not as many numbers as its shape says"),
        (constant(b"n", 1, (-1,), field(4, FLOATS)), "has no shape"),
        (constant(b"n", 1, (-1, -1), field(4, FLOATS)), "has no shape"),
        (constant(b"n", 17, (BIG,), field(7, b"\x80\1" * 600)), "has its numbers as varints"),
        (constant(b"n", 3, (1200,), field(7, FLOATS)), "has its numbers as varints"),
        (constant(b"n", 1, (1200,), field(7, FLOATS)), "has its numbers as varints"),
        (constant(b"n", 1, (BIG,), field(5, FLOATS[:600]), field(5, FLOATS[600:])), "has its numbers apart from each other"),
        (constant(b"n", 1, (BIG,), *(b"\x2dabcd",) * BIG), "has its numbers apart from each other"),
        (constant(b"n", 77, (BIG,), field(4, FLOATS)), "is of type 77"),
        (constant(b"n", 10, (1200,), field(11, b"\x80\1" * 600)), "has booleans that are not 0 or 1"),
        (constant(b"n", 10, (70_000,), field(11, b"\1" * 69_999 + b"\2")), "has booleans that are not 0 or 1"),
    ],
)  # fmt: skip
def test_constants_that_stay_opaque(constant, why):
    data = saved(node(b"a", b"Add"), constant)
    assert tensors(data) == ({}, f"opaque bytes for 1 of 1 constants: 'n' {why}")


@pytest.mark.parametrize(
    "constant",
    [
        constant(b"n", 1, (), field(4, b"1234")),  # a single number
        constant(b"n", 1, (1, 1), field(5, b"1234")),
        constant(b"n", 1, (0, 3)),
        constant(b"n", 1, (1000,), field(5, b"1234")),  # one number for all
        constant(b"n", 1, (1000,)),  # zeros
        constant(b"n", 3, (8,), field(7, bytes(8))),  # small
        constant(b"n", 7, (BIG,), field(8, FLOATS)),  # a string
        constant(b"n", 1, (BIG,), field(4, FLOATS), key=b"other"),
        constant(b"n", 1, (BIG,), field(4, FLOATS)) + field(2, b"Add"),
        node(b"n", b"Const"),
    ],
)
def test_constants_of_which_nothing_is_told(constant):
    assert tensors(saved(node(b"a", b"Add"), constant)) == ({}, None)


def test_many_booleans(monkeypatch):
    """As long as they may be, but they are only read so far."""
    mask = bytes(150_000) + b"\1" * 50_000
    data = saved(constant(b"n", 10, (200, 1000), field(11, mask)))
    assert tensors(data)[0]["n"][1] == mask
    monkeypatch.setattr(savedmodel, "MAX_FIELDS", 150)
    with pytest.raises(LimitExceededError, match="more than 150 fields"):
        tensors(data)


def test_booleans_as_bytes_are_as_they_are():
    data = saved(constant(b"n", 10, (3,), field(4, b"\0\1\2")))
    assert tensors(data)[0]["n"][1] == b"\0\1\2"


def test_unknown_rank():
    shape = field(2, field(3, 1))
    value = field(2, field(8, field(1, 1) + shape + field(4, FLOATS)))
    data = saved(node(b"n", b"Const") + field(5, field(1, b"value") + value))
    assert tensors(data)[1].endswith("'n' has no shape")


def test_constants_of_the_same_name():
    """In two graphs of a model; the bytes that count are the last, as in the libraries."""
    one = constant(b"n", 6, (4,), field(4, b"abcd"), field(4, b"efgh"))
    found, _ = tensors(saved(one) + meta(one))
    assert {name: raw for name, (_, raw) in found.items()} == {"n": b"efgh", "n#2": b"efgh"}


def test_too_many_constants(monkeypatch):
    monkeypatch.setattr(savedmodel, "MAX_CONSTANTS", 2)
    kept, left = (constant(b"n", 1, (2,), field(4, raw)) for raw in (b"8 bytes!", b"7 bytes"))
    assert len(tensors(saved(kept, kept))[0]) == 2
    for nodes in ((kept, kept, left), (left, left, kept)):
        with pytest.raises(LimitExceededError, match="more than 2 constants"):
            tensors(saved(*nodes))


def test_too_many_dimensions():
    with pytest.raises(LimitExceededError, match="dimensions"):
        tensors(saved(constant(b"n", 1, (2,) * 65, field(4, b"1234"))))


def graph(*nodes):
    return b"".join(field(1, one) for one in nodes)


def test_frozen_graph():
    file = node(b"x/y", b"ReadFile", (b"T", b"t"))
    data = graph(file, constant(b"n", 6, (4,), field(4, b"abcd")))
    layout, note = describe(BytesReader(data))
    assert (layout.format, note) == ("tensorflow-graph", None)
    assert tensors(data, FrozenGraphFormat)[0].keys() == {"n"}
    (found,) = FrozenGraphFormat().findings(BytesReader(data))
    assert (found.what, found.where) == ("reads files when it is run (ReadFile)", "x/y")
    layout, note = describe(BytesReader(data[:-1]))
    assert layout == opaque(len(data) - 1)
    assert note.startswith("looks like tensorflow-graph but ")


@pytest.mark.parametrize(
    "data",
    [
        b"\n",
        b"\n\0",
        b"\ntext of a file",
        b"\n\n\n\n\n\n\n\n",
        graph(node(b"name", b"Operation")),  # a pair of texts, as in any map
        graph(node(b"name", b"small", (b"T", b"t"))),
        graph(node(b"a name", b"Operation", (b"T", b"t"))),
        graph(node(b"name", b"Operation", (b"\n\0", b"t"))),
        graph(node(b"name", b"Operation") + field(5, field(1, b"T") + field(2, field(77, b"t")))),
        graph(node(b"name", b"Operation") + field(5, field(1, b"T") + field(2, b"t"))),
        graph(node(b"name", b"Operation") + field(5, field(1, b"T"))),
        graph(node(b"name", b"Operation", (b"T", b"t")))[:-3],
        graph(node(b"name", b"Operation") + field(5, field(1, b"T") + field(2, b"") + field(3, 1))),
        field(1, b"net") + field(2, b"data"),
    ],
)
def test_what_is_no_frozen_graph(data):
    assert not FrozenGraphFormat().sniff(data[:4096], BytesReader(data))


def function(name, *nodes):
    return field(1, field(1, field(1, name)) + b"".join(field(3, one) for one in nodes))


@pytest.mark.parametrize(
    ("operation", "what"),
    [
        ("ReadFile", "reads files"),
        ("ImmutableConst", "reads files"),
        ("ExperimentalCSVDataset", "reads files"),
        ("WriteFile", "writes files"),
        ("DebugIdentityV3", "writes files"),
        ("EagerPyFunc", "calls functions of Python"),
        ("PyFuncStateless", "calls functions of Python"),
        ("RpcCall", "talks to other machines"),
    ],
)
def test_operations(operation, what):
    add = node(b"a", b"AddV2")
    whole = f"{what} when it is run ({operation})"
    for data, where in [
        (saved(add, node(b"n", operation.encode()), node(b"m", operation.encode())), "n"),
        (saved(add, functions=[function(b"f", add, node(b"n", operation.encode()))]), "f/n"),
    ]:
        (found,) = findings(data)
        assert (found.danger, found.what, found.where) == ("dangerous", whole, where)
    assert findings(saved(add, node(operation.encode(), b"SaveV2"))) == []


def test_prints():
    """Only printing to a file is told, wherever the attribute stands."""
    to_file, to_error = (b"output_stream", b"file:///x"), (b"output_stream", b"stderr")
    many = [(b"end%d" % number, b"\n") for number in range(60)]
    assert findings(saved(node(b"p", b"PrintV2", to_error, (b"end", b"\n")))) == []
    for data in (
        saved(node(b"p", b"PrintV2", *many, to_file)),
        saved(field(5, field(2, field(2, b"file:///x")) + field(1, b"o")) + node(b"p", b"PrintV2")),
    ):
        assert told(data) == {("dangerous", "writes to 'file:///x' when it is run (PrintV2)")}


def test_the_last_operation_of_a_node_counts():
    """As in the libraries of Protocol Buffers, so that nothing hides behind an earlier one."""
    assert told(saved(node(b"n", b"Add") + field(2, b"ReadFile")))
    assert not told(saved(node(b"n", b"ReadFile") + field(2, b"Add")))


def test_nothing_is_imported_opened_or_run():
    """In a process of its own, no event that Python audits happens while files are described."""
    indexes = [path.read_bytes() for path in GOLDEN.rglob("*.index")]
    prepare = f"""
from mstore.formats.base import BytesReader
from mstore.formats.detect import describe
from mstore.formats.savedmodel import SavedModelFormat
from mstore.formats.tensorbundle import TensorBundleCompanion
graphs = {[FILES["outside"], FILES["saved"], FILES["constant"]]!r}
indexes = {indexes!r}
"""
    watched = """
for data in graphs:
    describe(BytesReader(data))
    SavedModelFormat().findings(BytesReader(data))
for data in indexes:
    describe(BytesReader(data))
    TensorBundleCompanion().parse(BytesReader(data), "x.index")
"""
    assert events(prepare, watched) == NOTHING


@pytest.mark.parametrize(
    "data",
    [
        field(1, 2) + saved(node(b"n", b"Add"))[2:],  # another version
        saved(),  # no node to tell it by
        field(1, 1) + field(2, b"pytorch") + field(7, field(1, field(4, b"Add"))),
        field(1, 1),
        b"\x08\x01\x12",
        b"\x08\x01\x12\x02\n\0",
        (GOLDEN / "saved" / "fingerprint.pb").read_bytes(),
        (GOLDEN / "saved" / "variables" / "variables.data-00000-of-00001").read_bytes(),
    ],
)
def test_other_files(data):
    assert not SavedModelFormat().sniff(data[:4096], BytesReader(data))


def test_cut_and_malformed_files():
    data = FILES["outside"]
    layout, note = describe(BytesReader(data[:-1]))
    assert layout == opaque(len(data) - 1)
    assert note.startswith("looks like tensorflow-savedmodel but ")
    for bad in (data[:-1], data + b"\0", saved(node(b"n", b"Add") + b"\x0b")):
        with pytest.raises(FormatError):
            findings(bad)


def test_too_many_fields(monkeypatch):
    monkeypatch.setattr(savedmodel, "MAX_FIELDS", 100)
    with pytest.raises(LimitExceededError):
        findings(FILES["outside"])


@settings(max_examples=200)
@given(data=st.data(), name=st.sampled_from(["saved", "outside", "constant", *FROZEN]))
def test_changed_bytes(data, name):
    """Whatever is done to a file, only this package's errors come out."""
    changed = data.draw(changed_bytes((FILES | FROZEN)[name], 4))
    changed = changed[: data.draw(st.integers(0, len(changed)))]
    assert describe(BytesReader(changed))[0].size == len(changed)
    for one in (SavedModelFormat(), FrozenGraphFormat()):
        with contextlib.suppress(MstoreError):
            one.findings(BytesReader(changed))
