"""ONNX: models that the onnx library writes bit for bit, and messages made here that break rules."""

import contextlib
import io
import os
import sys

import numpy as np
import onnx
import pytest
import safetensors.numpy
from audited import NOTHING, events
from damage import changed_bytes, flipped
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from watched_files import Files
from wire_fields import coded, field

import mstore
from mstore.database import Database
from mstore.dtypes import BY_NAME
from mstore.errors import (
    FormatError,
    LimitExceededError,
    MstoreError,
    UnsafeInputError,
)
from mstore.formats import onnx_model
from mstore.formats.base import BytesReader, Finding
from mstore.formats.detect import describe
from mstore.formats.hazards import find_hazards
from mstore.formats.onnx import OnnxDataCompanion, OnnxFormat
from mstore.formats.onnx_tensor import MIN_FLOATS
from mstore.layout import Segment, Strided, Tensor, View, opaque
from mstore.numpy_dtypes import array_from_bytes
from mstore.ops.commit import Description
from mstore.ops.hazards import refuse_unsafe, scan_directory, scan_snapshot
from mstore.ops.opening import open_files
from mstore.ops.scan import Scan
from mstore.storage.local import LocalStorage
from mstore.worktree import Worktree

RANDOM = np.random.default_rng(5)
TYPES = [
    number for name, number in TensorProto.DataType.items() if name not in ("UNDEFINED", "STRING")
]
PACKED = {"UINT4": 4, "INT4": 4, "UINT2": 2, "INT2": 2}


def random_tensor(number, shape, name):
    """A tensor of any type, with random bits."""
    kind = helper.tensor_dtype_to_np_dtype(number)
    bits = {"UINT4": 4, "INT4": 4, "UINT2": 2, "INT2": 2, "FLOAT4E2M1": 4}
    top = 1 << bits.get(TensorProto.DataType.Name(number), 6 if "FLOAT6" in name else 8)
    if name == "BOOL":
        top = 2
    raw = RANDOM.integers(0, top, (*shape, kind.itemsize)).astype(np.uint8)
    return numpy_helper.from_array(np.ndarray(shape, kind, raw.tobytes()), name)


def weights(count=3, shape=(20, 30)):
    return [
        numpy_helper.from_array(
            RANDOM.standard_normal(shape).astype(np.float32), f"layer.{k}.weight"
        )
        for k in range(count)
    ]


def model(tensors=(), nodes=None, sparse=(), functions=(), **options):
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])
    nodes = nodes or [helper.make_node("Identity", ["x"], ["y"])]
    graph = helper.make_graph(nodes, "g", [], [out], list(tensors), sparse_initializer=list(sparse))
    return helper.make_model(graph, functions=list(functions), **options)


def found_in(data):
    """The tensors of a file, and their bytes, by name."""
    layout, _ = describe(BytesReader(data))
    assert layout.format == "onnx"
    return {
        s.tensor.name: (s.tensor, data[s.offset : s.offset + s.length])
        for s in layout.segments
        if s.tensor is not None
    }


def note_of(data):
    return describe(BytesReader(data))[1]


def same(found, tensor):
    """Whether a tensor is what the library reads; packed integers are compared as raw bytes."""
    described, raw = found
    loaded = numpy_helper.to_array(tensor)
    if described.kind:
        assert (described.dtype.name, described.shape) == ("u8", (len(raw),))
        return raw == tensor.raw_data
    array = array_from_bytes(raw, described.dtype, described.shape)
    return (array.shape, array.dtype, array.tobytes()) == (
        loaded.shape,
        loaded.dtype,
        loaded.tobytes(),
    )


def tree(count):
    """A node with thresholds of `count` splits, as converters of trees write them."""
    numbers = np.arange(count, dtype=np.float32) / 3
    return numbers, helper.make_node(
        "TreeEnsembleRegressor", ["x"], ["y"], "trees", domain="ai.onnx.ml",
        nodes_values=numbers.tolist(), nodes_featureids=list(range(count)),
    )  # fmt: skip


def test_numbers_of_attributes(read_tensors):
    numbers, node = tree(40)
    _, few = tree(MIN_FLOATS - 1)
    few.name = "few"
    other = helper.make_node("LinearRegressor", ["x"], ["z"], "linear", coefficients=numbers)
    data = model([], [node, few, other]).SerializeToString()
    layout, note = describe(BytesReader(data))
    assert (layout.format, note) == ("onnx", None)
    found = read_tensors(data, layout)
    assert set(found) == {"trees/nodes_values", "linear/coefficients"}
    for array in found.values():
        assert array.dtype == np.float32
        assert array.tolist() == numbers.tolist()


def test_numbers_of_attributes_by_other_writers(read_tensors):
    numbers, node = tree(20)
    raw = numbers.tobytes()
    packed = field(7, raw)
    tagged = b"".join(b"\x3d" + raw[at : at + 4] for at in range(0, len(raw), 4))
    assert tagged in node.SerializeToString()
    for content, expected in (
        (packed, None),
        (tagged, None),
        (field(7, b"") + packed, None),
        (packed + packed, "apart"),
        (tagged + packed, "apart"),
        (packed + tagged, "apart"),
        (tagged[:50] + field(20, 1) + tagged[50:], "apart"),
    ):
        attribute = field(1, b"v") + content + field(20, 6)
        data = whole(graph=field(1, field(3, b"n") + field(4, b"Op") + field(5, attribute)))
        layout, note = describe(BytesReader(data))
        if expected is None:
            assert note is None
            assert read_tensors(data, layout)["n/v"].tolist() == numbers.tolist()
        else:
            assert note == "opaque bytes for tensors: 1 with numbers apart from each other"
            assert not layout.views


def test_lists_of_numbers_count_as_several_tensors(monkeypatch):
    data = model([], [tree(20)[1]]).SerializeToString()
    assert describe(BytesReader(data))[1] is None
    monkeypatch.setattr(onnx_model, "MAX_TENSORS", 3)
    assert "more than 3 tensors" in note_of(data)


def test_defaults_of_a_function():
    tensor = numpy_helper.from_array(np.ones((2, 3), np.float32), "w")
    function = helper.make_function(
        "mine", "F", ["x"], ["y"], [helper.make_node("Identity", ["x"], ["y"])],
        [helper.make_opsetid("", 20)], attribute_protos=[helper.make_attribute("default", tensor)],
    )  # fmt: skip
    made = model([], [helper.make_node("F", ["x"], ["y"], domain="mine")], functions=[function])
    assert set(found_in(made.SerializeToString())) == {"F/default"}


def test_every_type():
    names = [TensorProto.DataType.Name(number) for number in TYPES]
    tensors = [random_tensor(n, (3, 4), name) for n, name in zip(TYPES, names, strict=True)]
    data = model(tensors).SerializeToString()
    found = found_in(data)
    assert found.keys() == set(names)
    assert len(names) > 20
    for tensor in tensors:
        assert same(found[tensor.name], tensor)
        assert found[tensor.name][0].kind == (tensor.name.lower() if tensor.name in PACKED else "")


@pytest.mark.parametrize("name", ["FLOAT4E2M1", "FLOAT6E2M3", "FLOAT6E3M2", "INT4", "UINT2"])
def test_packed_types_that_do_not_fill_their_last_byte(name):
    tensor = random_tensor(getattr(TensorProto, name), (3, 3), name)
    described, raw = found_in(model([tensor]).SerializeToString())[name]
    assert raw == tensor.raw_data
    assert (described.dtype.name, described.shape) == ("u8", (len(raw),))
    assert described.kind == {
        "FLOAT4E2M1": "float4_e2m1fn", "FLOAT6E2M3": "float6_e2m3fn",
        "FLOAT6E3M2": "float6_e3m2fn", "INT4": "int4", "UINT2": "uint2",
    }[name]  # fmt: skip


def test_shapes_and_fields():
    """Scalars, empty tensors, floats in fields of their own; varints and text stay opaque."""
    tensors = [
        numpy_helper.from_array(np.array(2.5), "scalar"),
        numpy_helper.from_array(np.zeros((0, 3), np.float16), "none"),
        helper.make_tensor("no data", TensorProto.FLOAT, [0], []),
        helper.make_tensor("floats", TensorProto.FLOAT, [2, 2], [1.0, -2.0, 0.5, 0.0]),
        helper.make_tensor("doubles", TensorProto.DOUBLE, [3], [1.0, -2.0, 0.5]),
        helper.make_tensor("complex", TensorProto.COMPLEX64, [2], [1 + 2j, 3 - 4j]),
        helper.make_tensor("wide", TensorProto.COMPLEX128, [1], [1 + 2j]),
        numpy_helper.from_array(np.array(7, np.int64), "é"),
    ]
    opaque_ones = [
        helper.make_tensor("ints", TensorProto.INT64, [2], [1, -2]),
        helper.make_tensor("halves", TensorProto.FLOAT16, [2], [1.0, 2.0]),
        helper.make_tensor("words", TensorProto.STRING, [2], ["a", "b"]),
    ]
    data = model(tensors + opaque_ones).SerializeToString()
    found = found_in(data)
    assert found.keys() == {tensor.name for tensor in tensors}
    assert all(same(found[tensor.name], tensor) for tensor in tensors)
    assert note_of(data) == "opaque bytes for tensors: 2 with numbers as varints"
    assert note_of(model(tensors).SerializeToString()) is None


def test_no_numbers_to_see():
    tensors = [
        TensorProto(name=name, data_type=kind, dims=[2]) for name, kind in (("a", 1), ("b", 99))
    ]
    data = model(tensors).SerializeToString()
    assert found_in(data) == {}
    assert note_of(data) == (
        "opaque bytes for tensors: 1 without data, 1 of types that are not known"
    )


def test_where_tensors_may_be():
    """In attributes, in graphs of nodes, in sparse tensors, functions and training."""
    arrays = {name: numpy_helper.from_array(np.arange(4.0), name) for name in "abcdefgh"}
    sparse = helper.make_sparse_tensor(
        numpy_helper.from_array(np.array([1.0, 2.0]), "thin"),
        numpy_helper.from_array(np.array([0, 3])),
        [4],
    )
    out = [helper.make_tensor_value_info("z", TensorProto.DOUBLE, [4])]
    inner = helper.make_graph(
        [helper.make_node("Constant", [], ["z"], value=arrays["a"])],
        "inner",
        [],
        out,
        [arrays["b"]],
    )
    nodes = [
        helper.make_node("Constant", [], ["k"], name="Constant_3", value=arrays["c"]),
        helper.make_node("Constant", [], ["l"], sparse_value=sparse),
        helper.make_node("If", ["x"], ["z"], name="If_1", then_branch=inner, else_branch=inner),
        helper.make_node("Odd", [], [], tensors=[arrays["d"], arrays["e"]], graphs=[inner]),
    ]
    function = helper.make_function(
        "local", "twice", [], ["z"],
        [helper.make_node("Constant", [], ["z"], value=arrays["f"])],
        [helper.make_opsetid("", 20)],
    )  # fmt: skip
    made = model([arrays["g"], arrays["g"]], nodes, [sparse], [function])
    info = made.training_info.add()
    info.initialization.CopyFrom(inner)
    found = found_in(made.SerializeToString())
    assert list(found) == [
        "Constant_3/value",
        "l/sparse_value/values", "l/sparse_value/indices",
        "If_1/else_branch/z/value", "If_1/else_branch/b",
        "If_1/then_branch/z/value", "If_1/then_branch/b",
        "Odd_3/graphs/0/z/value", "Odd_3/graphs/0/b",
        "Odd_3/tensors/0", "Odd_3/tensors/1",
        "g", "g#2",
        "thin/values", "thin/indices",
        "training_info/0/initialization/z/value", "training_info/0/initialization/b",
        "twice/z/value",
    ]  # fmt: skip
    assert found["thin/indices"][1] == np.array([0, 3]).tobytes()
    assert all(
        raw == np.arange(4.0).tobytes()
        for name, (_, raw) in found.items()
        if "thin" not in name and "sparse" not in name
    )


@pytest.mark.parametrize("one_file", [True, False])
@pytest.mark.parametrize("attributes", [True, False])
def test_external_data_in_a_repository(tmp_path, one_file, attributes):
    """Each data file has its tensors by name, in the version of a folder, bit for bit."""
    tree = Worktree.create(tmp_path, Database.create(LocalStorage(tmp_path / ".mstore"), "Ada"))
    (tmp_path / "net").mkdir()
    path = tmp_path / "net" / "model.onnx"
    kinds = [getattr(TensorProto, name) for name in ("BFLOAT16", "FLOAT8E5M2", "INT4", "INT64")]
    narrow = [random_tensor(kind, (40, 60), TensorProto.DataType.Name(kind)) for kind in kinds]
    value = numpy_helper.from_array(RANDOM.standard_normal((30, 30)), "value")
    constant = helper.make_node("Constant", [], ["k"], value=value)
    made = model([*weights(), *narrow], [constant])
    expected = {tensor.name: numpy_helper.to_array(tensor) for tensor in made.graph.initializer}
    raw = {tensor.name: tensor.raw_data for tensor in made.graph.initializer}
    onnx.save(
        made, path, save_as_external_data=True, all_tensors_to_one_file=one_file,
        location="model.onnx.data" if one_file else None, size_threshold=100,
        convert_attribute=attributes,
    )  # fmt: skip
    tree.commit(Description("Ada", "external"))
    files = mstore.open(tmp_path)["HEAD"].files
    beside = {path: file for path, file in files.items() if path != "net/model.onnx"}
    assert len(beside) == (1 if one_file else 7 + attributes)
    assert {file.format for file in beside.values()} == {"onnx-data"}
    tensors = {name: one for file in files.values() for name, one in file.tensors.items()}
    assert tensors.keys() == expected.keys() | {"k/value"}
    for name, array in expected.items():
        read = tensors[name].numpy()
        if name == "INT4":
            assert read.tobytes() == raw[name]
        else:
            assert (read.dtype, read.tobytes()) == (array.dtype, array.tobytes())
    assert np.array_equal(tensors["layer.1.weight"][3:9, ::7], expected["layer.1.weight"][3:9, ::7])
    for file_path, file in files.items():
        assert file.read() == (tmp_path / file_path).read_bytes()


def external(location="w.bin", name="w", dims=(2, 3), kind=TensorProto.FLOAT, **entries):
    """A tensor that lies in another file."""
    tensor = TensorProto(name=name, data_type=kind, dims=dims, data_location=TensorProto.EXTERNAL)
    pairs = {"location": location, **entries}
    for key, value in pairs.items():
        if value is not None:
            tensor.external_data.add(key=key, value=str(value))
    return tensor


def beside(tensors, name="w.bin", size=24):
    """The layout of a file beside a model, and what is said of it."""
    files = {"m.onnx": model(tensors).SerializeToString(), name: bytes(size)}
    return describe(BytesReader(files[name]), Files(files, name))


def test_places_in_other_files():
    first, second = (Tensor(name, BY_NAME["f32"], (2, 3)) for name in "wv")
    layout, _ = beside([external(offset=8, length=24), external(name="v", offset=32)], size=60)
    assert layout.segments == (
        Segment(0, 8), Segment(8, 24, first), Segment(32, 24, second), Segment(56, 4),
    )  # fmt: skip
    for location in ("./w.bin", ".//./w.bin"):
        assert beside([external(location)])[0].segments == (Segment(0, 24, first),)
    assert beside([external(basepath=".")])[0].segments == (Segment(0, 24, first),)
    assert beside([external("W.BIN")])[0] == opaque(24)
    layout, _ = beside([external(), external(name="v")])  # the same bytes: a tensor, and a view
    assert [view.tensor.name for view in layout.views] == ["v"]


def test_tied_elements_that_share_bytes():
    """No view has elements of less than a byte, so the second tensor is one of bytes."""
    fours = [external(name=name, dims=(6, 8), kind=TensorProto.FLOAT4E2M1) for name in "wv"]
    layout, note = beside(fours)
    assert note is None
    assert layout.segments == (Segment(0, 24, Tensor("w", BY_NAME["f4"], (6, 8))),)
    kept = Tensor("v", BY_NAME["u8"], (24,), kind="float4_e2m1fn")
    assert layout.views == (View(kept, Strided(0, (1,))),)


def test_a_file_that_says_itself_what_it_holds_is_believed():
    """Whatever a model beside it makes of its bytes."""
    good = safetensors.numpy.save({"real": np.arange(6.0)})
    files = {"m.onnx": model([external("w.st"), external("raw")]).SerializeToString(), "w.st": good}
    layout, note = describe(BytesReader(good), Files(files, "w.st"))
    assert (layout.format, note) == ("safetensors", None)
    assert [one.tensor.name for one in layout.segments if one.tensor] == ["real"]
    looks_like_it = good[:-1]  # but is no such file, as data may do by chance
    files["raw"] = looks_like_it
    assert describe(BytesReader(looks_like_it), Files(files, "raw"))[0].format == "onnx-data"


def test_data_in_another_folder_stays_opaque():
    data = model([external("sub/w.bin"), external("w.bin", basepath="sub")]).SerializeToString()
    assert note_of(data) == "opaque bytes for tensors: 2 in another folder"
    assert beside([external("sub/w.bin")])[0] == opaque(24)
    (finding,) = OnnxFormat().findings(BytesReader(data))
    assert finding == Finding("allowed", "reads its data from 'sub/w.bin' and 1 more files")


def test_a_data_file_that_is_too_short_is_told():
    layout, note = beside([external()], size=23)
    assert layout == opaque(23)
    assert note.startswith("is not what 'm.onnx' says: tensor 'w' ")


def test_which_models_are_asked():
    ask = OnnxDataCompanion().describers
    assert list(ask("m.data", {"a.onnx", "m.onnx", "m.data"})) == ["m.onnx", "a.onnx"]
    assert list(ask("m.onnx", {"a.onnx", "m.onnx"})) == []
    assert list(ask("w", {"w", "x.txt"})) == []
    many = {f"{k:02}.onnx" for k in range(50)} | {"z.onnx"}
    assert list(ask("z.data", many)) == ["z.onnx", *(f"{k:02}.onnx" for k in range(7))]


def test_describers_are_read_once_and_nothing_else_is():
    files = {
        "m.onnx": model([external(), external("v.bin", "v")]).SerializeToString(),
        "bad.onnx": whole(tensor())[:-1],
        "w.bin": bytes(24),
        "v.bin": bytes(24),
        "u.bin": bytes(24),
    }
    folder = Files(files, "")
    formats = {}
    for folder.name, data in files.items():
        formats[folder.name] = describe(BytesReader(data), folder)[0].format
    assert formats == {
        "m.onnx": "onnx", "bad.onnx": "opaque", "w.bin": "onnx-data", "v.bin": "onnx-data",
        "u.bin": "opaque",
    }  # fmt: skip
    assert sorted(folder.opened) == ["bad.onnx", "m.onnx"]


OUTSIDE = [
    "/etc/passwd", "//etc/passwd", "..", "../w.bin", "a/../../b", "a/..", "./../w", "a/../b",
    "..\\w.bin", "a\\..\\..\\b", "C:\\w.bin", "C:/w.bin", "c:w.bin", "\\\\host\\share\\w",
    "w.bin\0.txt", "http://example.org/w.bin", "file:///etc/passwd", "file:w",
    "*/_ORT_MEM_ADDR_/*",
]  # fmt: skip


@pytest.mark.parametrize("key", ["location", "basepath"])
@pytest.mark.parametrize("outside", OUTSIDE)
def test_locations_outside_of_the_folder(outside, key):
    """Refused wherever the tensor is and whatever its type, and told as dangerous."""
    entries = {"location": "w.bin", key: outside}
    for tensor in (
        external(**entries),
        external(dims=[0], **entries),
        external(kind=TensorProto.STRING, **entries),
        external(kind=99, **entries),
    ):
        constant = helper.make_node("Constant", [], ["k"], value=tensor)
        for made in (model([tensor]), model([], [constant])):
            data = made.SerializeToString()
            with pytest.raises(UnsafeInputError, match="outside of its folder"):
                OnnxFormat().layout(BytesReader(data))
            with pytest.raises(UnsafeInputError):
                OnnxDataCompanion().parse(BytesReader(data), "m.onnx")
            (finding,) = OnnxFormat().findings(BytesReader(data))
            assert finding.danger == "dangerous"
            layout, note = describe(BytesReader(data))
            assert layout == opaque(len(data))
            assert note.startswith("looks like onnx but the data of ")


def test_links_are_refused_where_only_the_folder_tells():
    tensors = [external("./sub//w.bin", "a"), external("w.bin", "b"), external("sub/w.bin", "c")]
    data = model(tensors).SerializeToString()
    for path in ("sub/w.bin", "w.bin"):
        folder = Files({"m.onnx": data}, "m.onnx", [path])
        (finding,) = OnnxFormat().findings_beside(BytesReader(data), folder)
        assert finding == Finding(
            "dangerous",
            f"reads '{path}' through a link, which may lead to any file, so onnx itself refuses "
            "it; copy it without links (cp -rL), then `mstore commit --rehash`",
        )
        assert describe(BytesReader(data), folder) == (
            opaque(len(data)),
            f"looks like onnx but it {finding.what}; stored as opaque bytes",
        )
        hazards = find_hazards(BytesReader(data), folder)
        assert (hazards.format, hazards.verdict) == ("onnx", "dangerous")
        assert hazards.findings[0] == finding
        assert set(folder.asked) == {"sub/w.bin", "w.bin"}
        assert folder.opened == []
    assert find_hazards(BytesReader(data), Files({"m.onnx": data}, "m.onnx")).verdict == "ok"
    assert describe(BytesReader(data))[0].format == "onnx"


def test_links_are_told_beside_what_lies_outside():
    data = model([external("../w", "a"), external("link", "b")]).SerializeToString()
    folder = Files({"m.onnx": data}, "m.onnx", ["link", "../w"])
    hazards = find_hazards(BytesReader(data), folder)
    outside, link = hazards.of("dangerous")
    assert (outside.what, outside.where) == ("reads '../w', outside of its folder", "a")
    assert link.what.startswith("reads 'link' through a link")
    assert set(folder.asked) == {"link"}
    many = model([external(f"l{k}", f"{k}") for k in range(50)]).SerializeToString()
    folder = Files({}, "m.onnx", [f"l{k}" for k in range(50)])
    assert len(find_hazards(BytesReader(many), folder).of("dangerous")) == 20


def test_data_many_folders_away_is_refused():
    near = model([external("a/" * 7 + "w")]).SerializeToString()
    assert note_of(near) == "opaque bytes for tensors: 1 in another folder"
    far = model([external("a/" * 8 + "w")]).SerializeToString()
    folder = Files({}, "m.onnx")
    with pytest.raises(LimitExceededError, match="lies 8 folders away"):
        OnnxFormat().layout(BytesReader(far))
    assert find_hazards(BytesReader(far), folder).verdict == "malformed"
    assert folder.asked == []


def test_the_cache_of_hugging_face(tmp_path):
    """The onnx library refuses a model there; it is kept, and one warning says what to do."""
    raw = RANDOM.standard_normal((2, 3)).astype(np.float32).tobytes()
    (tmp_path / "blobs").mkdir()
    snapshot = tmp_path / "snapshots" / "0"
    snapshot.mkdir(parents=True)
    contents = {"model.onnx": model([external("weights")]).SerializeToString(), "weights": raw}
    for number, (name, content) in enumerate(contents.items()):
        (tmp_path / "blobs" / f"{number}").write_bytes(content)
        (snapshot / name).symlink_to(f"../../blobs/{number}")
    with pytest.raises(onnx.checker.ValidationError, match="symbolic link"):
        onnx.load(snapshot / "model.onnx")

    files, warnings = Scan(snapshot).files(), []
    for file in open_files(snapshot, files, warnings):
        file.source.close()
    assert warnings == [
        "model.onnx: dangerous to load (reads 'weights' through a link, which may lead to any "
        "file, so onnx itself refuses it; copy it without links (cp -rL), then "
        "`mstore commit --rehash`); stored as it is, nothing here runs it; "
        "`mstore scan` tells more"
    ]
    (scanned, _) = scan_directory(snapshot, files)
    assert scanned.hazards.verdict == "dangerous"

    repo = mstore.init(tmp_path / "repo", bare=True)
    stored = repo.commit(snapshot)
    assert stored.files["model.onnx"].format == "opaque"
    assert stored.files["weights"].tensors["w"].numpy().tobytes() == raw
    for refuse in (
        lambda: refuse_unsafe(snapshot, files),
        lambda: list(open_files(snapshot, files, [], refuse=True)),
        lambda: repo.commit(snapshot, refuse_unsafe=True),
    ):
        with pytest.raises(UnsafeInputError, match="through a link"):
            refuse()

    stored.checkout(tmp_path / "out")  # there are no links in versions
    (scanned,) = scan_snapshot(repo.database, stored.record, ["model.onnx"])
    assert scanned.hazards.verdict == "ok"
    assert onnx.load(tmp_path / "out" / "model.onnx").graph.initializer[0].raw_data == raw
    again = repo.commit(tmp_path / "out", refuse_unsafe=True)
    assert {name: file.format for name, file in again.files.items()} == {
        "model.onnx": "onnx", "weights": "onnx-data",
    }  # fmt: skip


def test_a_copy_in_place_of_a_link(tmp_path):
    """The model has no other bytes afterwards, so it takes the `--rehash` that is advised."""
    inside = helper.make_tensor("v", TensorProto.FLOAT, [2], bytes(8), raw=True)
    (tmp_path / "m.onnx").write_bytes(model([external("weights"), inside]).SerializeToString())
    (tmp_path / "real").write_bytes(bytes(24))
    (tmp_path / "weights").symlink_to("real")
    tree = Worktree.create(tmp_path, Database.create(LocalStorage(tmp_path / ".mstore"), "Ada"))

    def committed(**options):
        recorded = tree.commit(Description("Ada", "files"), **options)
        return recorded.created, tree.db.manifest(recorded.snapshot.files["m.onnx"].manifest).format

    assert committed() == (True, "opaque")
    (tmp_path / "weights").unlink()
    (tmp_path / "weights").write_bytes(bytes(24))
    assert committed() == (False, "opaque")
    assert committed(rehash=True) == (True, "onnx")


def test_what_a_link_leads_to_is_not_opened(tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_bytes(b"s" * 24)
    folder = tmp_path / "repo"
    folder.mkdir()
    tree = Worktree.create(folder, Database.create(LocalStorage(folder / ".mstore"), "Ada"))
    os.link(outside / "secret", folder / "hard")
    (folder / "sub").symlink_to(outside)
    tensors = [external("sub/secret"), external("hard", "v")]
    (folder / "m.onnx").write_bytes(model(tensors).SerializeToString())
    opened = []

    def hook(event, arguments):
        if event == "open" and watching:
            opened.append(str(arguments[0]))

    watching = True
    sys.addaudithook(hook)
    tree.commit(Description("Ada", "links"))
    watching = False
    assert not [path for path in opened if "secret" in path]
    files = mstore.open(folder)["HEAD"].files
    assert files["m.onnx"].format == "opaque"
    assert files["hard"].format == "onnx-data"  # a regular file here, whatever else it is
    assert all(file.read() != b"s" * 24 for path, file in files.items() if path != "hard")


def test_custom_operators():
    local = helper.make_function(
        "mine", "Known", ["x"], ["y"], [helper.make_node("Identity", ["x"], ["y"])],
        [helper.make_opsetid("", 20)],
    )  # fmt: skip
    nodes = [
        helper.make_node("Add", ["x", "x"], ["a"]),
        helper.make_node("Scaler", ["a"], ["b"], domain="ai.onnx.ml"),
        helper.make_node("Gelu", ["b"], ["c"], domain="com.microsoft"),
        helper.make_node("Known", ["c"], ["d"], domain="mine"),
    ]
    made = model([], nodes, functions=[local])
    assert OnnxFormat().findings(BytesReader(made.SerializeToString())) == []
    for kind, domain in (
        ("Other", "mine"),
        ("Run", "evil"),
        ("Run2", "evil"),
        ("EPContext", "com.microsoft"),
        ("PythonOp", "com.microsoft"),
    ):
        made.graph.node.append(
            helper.make_node(kind, ["d"], ["e"], name=f"the {kind}", domain=domain)
        )
    found = OnnxFormat().findings(BytesReader(made.SerializeToString()))
    assert [(one.danger, one.where) for one in found] == [
        ("unknown", "the EPContext"),
        ("dangerous", "the PythonOp"),
        ("unknown", "the Other"),
        ("unknown", "the Run"),
    ]
    assert found[3].what == "runs operators of 'evil', such as 'Run', from a custom library"


# Messages made by hand.


NODE = field(1, field(1, b"x") + field(2, b"y") + field(4, b"Identity"))
RAW = field(9, bytes(8))


def whole(tensor=b"", graph=b"", after=b""):
    """A model with one tensor, and more in its graph and behind it."""
    inner = NODE + (field(5, tensor) if tensor else b"") + graph
    return field(1, 8) + field(2, b"tests") + field(7, inner) + after


def tensor(dims=(2,), kind=1, data=RAW, name=b"w"):
    return b"".join(field(1, dim) for dim in dims) + field(2, kind) + field(8, name) + data


def entries(*pairs):
    return b"".join(field(13, field(1, key) + field(2, value)) for key, value in pairs)


AWAY = field(14, 1)


def test_other_ways_to_write_the_same():
    expected = {"w": (Tensor("w", BY_NAME["f32"], (2, 1)), bytes(8))}
    packed = field(1, b"\2\1") + field(2, 1) + field(8, b"w") + RAW
    padded = tensor((2, 1), data=coded(9 << 3 | 2) + b"\x88\x80\x80\0" + bytes(8))
    turned = RAW + field(8, b"w") + field(2, 1) + field(1, b"\2\1")
    empty_too = tensor((2, 1), data=RAW + field(4, b"") + field(10, b""))
    unknown = tensor((2, 1), data=RAW + field(99, b"new") + field(16, b""))
    for written in (tensor((2, 1)), packed, padded, turned, empty_too, unknown):
        assert found_in(whole(written)) == expected
    assert found_in(whole(tensor((2, 1)), after=field(99, b"new"))) == expected
    apart = tensor(data=b"\x25" + bytes(4) + b"\x25" + bytes(4))  # floats that are not packed
    assert note_of(whole(apart)) == (
        "opaque bytes for tensors: 1 with numbers apart from each other"
    )


MALFORMED = {
    "no graph": field(1, 8) + field(2, b"x"),
    "two graphs": whole(after=field(7, NODE)),
    "graph is a number": field(1, 8) + field(7, 1),
    "cut": whole(tensor())[:-1],
    "bytes after the end": whole(tensor(), after=b"\0"),
    "group": whole(tensor(), after=b"\x1b\x1c"),
    "data overruns its tensor": whole(tensor(data=b"\x4a\x7f" + bytes(8))),
    "length of 2^63": field(1, 8) + b"\x3a" + coded(1 << 63) + NODE,
    "raw data and floats": whole(tensor(data=RAW + field(4, bytes(8)))),
    "raw data and varints": whole(tensor(data=RAW + field(7, b"\1\1"))),
    "raw data and one varint": whole(tensor(data=RAW + field(5, 1))),
    "raw data twice": whole(tensor(data=RAW + RAW)),
    "raw data a number": whole(tensor(data=field(9, 1))),
    "data inside and outside": whole(tensor(data=RAW + AWAY + entries((b"location", b"f")))),
    "data inside and entries": whole(tensor(data=RAW + entries((b"location", b"f")))),
    "segment": whole(tensor(data=RAW + field(3, b""))),
    "too small": whole(tensor((3,))),
    "too large": whole(tensor((1,))),
    "raw data of an empty tensor": whole(tensor((0,))),
    "floats too small": whole(tensor((3,), data=field(4, bytes(8)))),
    "dimension negative": whole(tensor((-2,))),
    "shape overflows": whole(tensor((1 << 40, 1 << 40))),
    "shape overflows beside 0": whole(tensor((0, 1 << 40, 1 << 40), data=b"")),
    "packed shape overflows": whole(tensor((1 << 40, 1 << 40), 22)),
    "packed too small": whole(tensor((17,), 22)),
    "shape a text": whole(tensor() + field(1, b"\xff")),
    "name not UTF-8": whole(tensor(name=b"\xff")),
    "name a number": whole(tensor() + field(8, 1)),
    "no location": whole(tensor(data=AWAY)),
    "location empty": whole(tensor(data=AWAY + entries((b"location", b"")))),
    "location not UTF-8": whole(tensor(data=AWAY + entries((b"location", b"\xff")))),
    "location twice": whole(tensor(data=AWAY + entries((b"location", b"a"), (b"location", b"b")))),
    "offset negative": whole(tensor(data=AWAY + entries((b"location", b"a"), (b"offset", b"-1")))),
    "offset a fraction": whole(
        tensor(data=AWAY + entries((b"location", b"a"), (b"offset", b"1.")))
    ),
    "offset of other digits": whole(
        tensor(data=AWAY + entries((b"location", b"a"), (b"offset", "\u0661".encode())))
    ),
    "offset of 5000 digits": whole(
        tensor(data=AWAY + entries((b"location", b"a"), (b"offset", b"9" * 5000)))
    ),
    "length other than the shape": whole(
        tensor(data=AWAY + entries((b"location", b"a"), (b"length", b"9")))
    ),
    "tensor not a message": whole(b"\xff\xff"),
    "node not a message": whole(graph=field(1, b"\xff\xff")),
    "attribute a number": whole(graph=field(1, field(5, 1))),
    "sparse not a message": whole(graph=field(15, b"\xff")),
    "function not a message": whole(after=field(25, b"\xff")),
}


@pytest.mark.parametrize("data", MALFORMED.values(), ids=MALFORMED)
def test_malformed(data):
    with pytest.raises(FormatError):
        OnnxFormat().layout(BytesReader(data))


def nested(depth):
    """Graphs inside nodes inside graphs."""
    graph = NODE
    for _ in range(depth):
        graph = field(1, field(4, b"If") + field(5, field(1, b"then_branch") + field(6, graph)))
    return graph


TOO_MUCH = {
    "nested too deeply": whole(graph=nested(34)),
    "nested without end": whole(graph=nested(3000)),
    "dimensions": whole(tensor((1,) * 65)),
    "dimensions packed": whole(tensor(()) + field(1, b"\1" * 65)),
    "name": whole(tensor(name=b"n" * 70_000)),
    "entries": whole(tensor(data=entries(*((b"%d" % k, b"") for k in range(65))))),
    "attributes": whole(graph=field(1, field(5, b"") * 10_001)),
    "operators": whole(graph=b"".join(field(1, field(4, b"%d" % k)) for k in range(10_001))),
}


@pytest.mark.parametrize("data", TOO_MUCH.values(), ids=TOO_MUCH)
def test_too_much(data):
    with pytest.raises(LimitExceededError):
        OnnxFormat().layout(BytesReader(data))
    assert describe(BytesReader(data))[0] == opaque(len(data))


def test_limits(monkeypatch):
    data = whole(graph=field(5, tensor()) * 4)
    assert len(found_in(data)) == 4
    monkeypatch.setattr(onnx_model, "MAX_TENSORS", 3)
    with pytest.raises(LimitExceededError, match="more than 3 tensors"):
        OnnxFormat().layout(BytesReader(data))
    monkeypatch.setattr(onnx_model, "MAX_FIELDS", 30)
    with pytest.raises(LimitExceededError, match="more than 30 fields"):
        OnnxFormat().findings(BytesReader(data))


def test_long_paths_of_many_tensors():
    """Names that take a few bytes in the file and very many here are refused."""
    inner = field(5, tensor((0,), data=b"")) * 3000
    node = field(3, b"n" * 60_000) + field(5, field(1, b"a") + field(6, inner))
    with pytest.raises(LimitExceededError, match="names of its tensors"):
        OnnxFormat().layout(BytesReader(whole(graph=field(1, node))))


OTHERS = {
    "empty": b"",
    "short": b"\x08",
    "text": b"\x08\x08 text after two backspaces",
    "no version": NODE,
    "version 0": b"\x08\0" + whole()[2:],
    "version 21": b"\x08\x15" + whole()[2:],
    "version a text": field(1, b"8") + whole()[2:],
    "unknown field first": field(1, 8) + field(77, b"") + whole()[2:],
    "Core ML": field(1, 4) + field(2, field(1, field(1, b"x"))) + field(500, field(1, b"x")),
    "numbers": field(1, 8) + field(2, 3) + field(3, 4),
    "graph of other fields": field(1, 8) + field(7, field(3, b"x")),
    "graph of text": field(1, 8) + field(7, b"hello, world"),
    "node of other fields": field(1, 8) + field(7, field(1, field(1, 1))),
    "node without operator": field(1, 8) + field(7, field(1, field(1, b"x"))),
    "graph empty": field(1, 8) + field(7, b""),
    "graph empty, by somebody": field(1, 8) + field(2, b"me") + field(7, b""),
    "text, by somebody": field(1, 8) + field(2, b"me") + field(7, b"hello, world"),
    "names only": field(1, 8) + field(2, b"me") + field(3, b"1.0"),
    "nobody's, cut": field(1, 8) + field(7, b"", 99),
    "somebody without a name, cut": field(1, 8) + field(2, b"") + field(7, b"", 99),
    "somebody who is a message, cut": field(1, 8) + field(2, field(1, b"x")) + field(7, b"", 99),
    "somebody with a long name, cut": field(1, 8) + field(2, b"x" * 257) + field(7, b"", 99),
    "other fields, cut": field(1, 8) + field(2, b"me") + field(9, b"") + field(7, b"", 99),
    "something else cut": field(1, 8) + field(2, b"me") + field(6, b"", 99),
    "attribute without a type": field(1, 8) + field(7, field(1, field(5, field(1, b"x")))),
    "attribute of other fields": field(1, 8) + field(7, field(1, field(5, field(20, b"x")))),
}


@pytest.mark.parametrize("data", OTHERS.values(), ids=OTHERS)
def test_other_files(data):
    assert describe(BytesReader(data)) == (opaque(len(data)), None)


def without_operators(depth):
    """Graphs inside nodes that have nothing but them."""
    graph = b""
    for _ in range(depth):
        graph = field(1, field(5, field(1, b"body") + field(6, graph) + field(20, 5)))
    return graph


MADE = field(1, 8) + field(2, b"pytorch") + field(3, b"2.13") + field(5, 3)
BROKEN = {
    "graph cut": MADE + field(7, b"", 1 << 40),
    "graph cut and short": field(1, 8) + field(2, b"tests") + field(7, b"hello", 99),
    "no length": MADE + b"\x3a",
    "length without end": MADE + b"\x3a" + b"\xff" * 20,
    "told more": MADE + field(6, "ü\n".encode()) + b"\x3a",
    "graphs without operators": field(1, 8) + field(7, without_operators(200)),
    "tensor cut": whole(tensor())[:-9],
}


@pytest.mark.parametrize("data", BROKEN.values(), ids=BROKEN)
def test_what_begins_as_a_model_and_is_malformed_is_told(data):
    layout, note = describe(BytesReader(data))
    assert layout == opaque(len(data))
    assert note.startswith("looks like onnx but ")


def test_cut_files_are_told():
    data = model(weights()).SerializeToString()
    for size in (len(data) - 1, len(data) // 2, 100):
        layout, note = describe(BytesReader(data[:size]))
        assert layout == opaque(size)
        assert note.startswith("looks like onnx but ")


def test_nothing_is_imported_opened_or_run():
    """In a process of its own, no event that Python audits happens while models are described."""
    payloads = [
        model([external(location)]).SerializeToString()
        for location in ("../../etc/passwd", "/etc/passwd", "w.bin", "sub/w.bin")
    ]
    payloads += [whole(tensor()), *MALFORMED.values(), *list(TOO_MUCH.values())[1:3]]
    prepare = f"""
from mstore.errors import MstoreError
from mstore.formats.base import BytesReader
from mstore.formats.detect import describe
from mstore.formats.onnx import OnnxDataCompanion, OnnxFormat
payloads = {payloads!r}
describe(BytesReader(payloads[0]))  # what is imported late, but not because of a file
"""
    watched = """
for payload in payloads:
    reader = BytesReader(payload)
    describe(reader)
    for read in (OnnxFormat().findings, lambda r: OnnxDataCompanion().parse(r, "")):
        try:
            read(reader)
        except MstoreError:
            pass
"""
    assert events(prepare, watched) == NOTHING


def small():
    """A small model with something of everything."""
    inner = helper.make_graph(
        [helper.make_node("Constant", [], ["z"], value=numpy_helper.from_array(np.arange(2.0)))],
        "inner", [], [helper.make_tensor_value_info("z", TensorProto.DOUBLE, [2])],
    )  # fmt: skip
    nodes = [helper.make_node("If", ["x"], ["z"], then_branch=inner)]
    ints = helper.make_tensor("i", TensorProto.INT64, [2], [1, 2])
    floats = helper.make_tensor("f", TensorProto.FLOAT, [2], [1, 2])
    return model([*weights(1, (2, 2)), external(offset=8, length=24), ints, floats], nodes)


SMALL = small().SerializeToString()


def check_anything(data):
    """Whatever a file holds, only this package's errors come out, and layouts cover it."""
    reader = BytesReader(data)
    assert describe(reader)[0].size == len(data)
    for read in (OnnxFormat().findings, OnnxFormat().layout):
        with contextlib.suppress(MstoreError):
            read(reader)
    files = {"m.onnx": bytes(data), "w.bin": bytes(40)}
    assert describe(BytesReader(files["w.bin"]), Files(files, "w.bin"))[0].size == 40


def test_truncation_at_every_length():
    for size in range(len(SMALL)):
        check_anything(SMALL[:size])


def test_flipped_bits():
    for _, changed in flipped(SMALL, (0, 3, 7)):
        check_anything(changed)


@settings(max_examples=200)
@given(changed_bytes(SMALL, 4, more=12))
def test_changed_bytes(data):
    check_anything(data)


@settings(max_examples=50)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(TYPES), st.lists(st.integers(0, 4), max_size=4), st.text(max_size=9)
        ),
        max_size=6,
    )
)
def test_models_of_random_tensors(tensors):
    made = model([random_tensor(kind, tuple(shape), name) for kind, shape, name in tensors])
    file = io.BytesIO()
    onnx.save(made, file)
    found = found_in(file.getvalue())
    assert len(found) == len(tensors)
    for one, tensor in zip(found.values(), made.graph.initializer, strict=True):
        assert same(one, tensor)
