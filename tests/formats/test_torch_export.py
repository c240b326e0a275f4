"""Archives of torch.export: those that torch writes, and hostile ones made by hand."""

import io
import json
import pickle
import warnings
import zipfile
from dataclasses import replace

import numpy as np
import pytest
import torch
from damage import changed_bytes, changed_runs, judge
from export_making import SIX, archive, configured, entry, meta
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from mstore.errors import FormatError, LimitExceededError, UnsafeInputError
from mstore.formats import torch_export, torch_export_archive, torch_export_config
from mstore.formats.base import HEAD_SIZE, BytesReader, Finding
from mstore.formats.detect import describe
from mstore.formats.hazards import find_hazards
from mstore.formats.torch_export import TorchExportFormat
from mstore.formats.torch_export_graph import RUNS

RUN = Finding("unknown", RUNS, "archive/models/model.json")
RUN_BY_HAND = replace(RUN, where="m/models/model.json")

pytestmark = pytest.mark.filterwarnings("ignore")


class Net(nn.Module):
    """Weights of several kinds: tied, turned, part of a storage, empty, buffers, constants."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 6), nn.Linear(4, 6, bias=False)
        self.b.weight = self.a.weight
        self.register_buffer("kept", torch.arange(5.0))
        self.register_buffer("not_kept", torch.ones(3), persistent=False)
        self.turned = nn.Parameter(torch.randn(3, 5).t())
        self.steps = nn.Parameter(torch.randn(4, 6)[:, ::2])
        self.brain = nn.Parameter(torch.randn(8).bfloat16())
        self.part = nn.Parameter(torch.randn(10)[2:6])
        self.empty = nn.Parameter(torch.empty(0, 3))
        self.constant = torch.arange(4)

    def forward(self, x):
        others = (self.kept, self.not_kept, self.turned, self.brain.float(), self.part, self.steps)
        known = torch.tensor([1.0, 2.0])
        more = (self.empty, self.constant, known)
        return self.a(x) + self.b(x) + sum(one.sum() for one in (*others, *more))


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(3)
    return torch.export.export(Net(), (torch.ones(2, 4),))


def saved(program):
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.export.save(program, file)
    return file.getvalue()


@pytest.fixture(scope="module")
def net_file(net):
    return saved(net)


def bits(tensor):
    """The bytes of the elements in row-major order."""
    return tensor.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes()


def worse(data):
    """What is more than allowed of loading this."""
    return [one for one in find_hazards(BytesReader(data)).findings if one.danger != "allowed"]


def test_a_model(net, net_file, read_tensors):
    layout, note = describe(BytesReader(net_file))
    assert (layout.format, note) == ("torch-export", None)
    found = read_tensors(net_file, layout)
    wanted = {
        **net.state_dict,
        **net.constants,
        "data/sample_inputs/model.pt/0.0": torch.ones(2, 4),
    }
    assert set(found) == set(wanted)
    assert {"b.weight", "kept", "not_kept", "constant"} < set(found)
    for name, tensor in wanted.items():
        assert found[name].shape == tuple(tensor.shape)
        assert found[name].tobytes() == bits(tensor), name
    segments = {s.tensor.name: s for s in layout.segments if s.tensor is not None}
    assert segments["turned"].tensor.order == "F"
    assert str(segments["brain"].tensor.dtype) == "bf16"
    assert {name for name, one in segments.items() if one.hidden} == {
        "storage:part",
        "storage:steps",
    }
    assert {view.tensor.name for view in layout.views} == {"b.weight", "part", "steps"}
    assert find_hazards(BytesReader(net_file)).format == "torch-export"
    assert worse(net_file) == [RUN]


def test_sizes_that_are_known_later_are_no_matter_of_weights(read_tensors):
    size = torch.export.Dim("size", min=2, max=64)
    model = nn.Linear(3, 2)
    dynamic = {"input": {0: size}}
    data = saved(torch.export.export(model, (torch.ones(4, 3),), dynamic_shapes=dynamic))
    layout, note = describe(BytesReader(data))
    assert note is None
    assert {"weight", "bias"} < set(read_tensors(data, layout))
    assert worse(data) == [RUN]


def test_several_models(tmp_path, read_tensors):
    from torch.export.pt2_archive._package import package_pt2

    programs = {
        name: torch.export.export(nn.Linear(3, size), (torch.ones(1, 3),))
        for name, size in {"encoder": 2, "decoder": 4}.items()
    }
    path = tmp_path / "two.pt2"
    package_pt2(path, exported_programs=programs, extra_files={"notes.txt": "two models"})
    data = path.read_bytes()
    found = read_tensors(data, describe(BytesReader(data))[0])
    for name, program in programs.items():
        for inner, tensor in program.state_dict.items():
            assert found[f"{name}/{inner}"].tobytes() == bits(tensor)
    assert "weight" not in found


def test_values_that_were_not_saved():
    with torch._subclasses.FakeTensorMode():
        program = torch.export.export(nn.Linear(3, 2), (torch.ones(1, 3),))
    layout, note = describe(BytesReader(saved(program)))
    assert layout.format == "torch-export"
    assert note.startswith("2 of its tensors are not understood: 'weight' was saved without values")


def torch_file(value):
    file = io.BytesIO()
    torch.save(value, file)
    return file.getvalue()


def test_weights_in_files_of_torch(read_tensors):
    """Version 2.8 wrote all weights of a model as one file, 2.13 those of classes of their own."""
    whole = torch_file({"a.weight": torch.ones(2, 3)})
    one = torch_file(torch.arange(4.0))
    data = archive({"own": entry("weight_0", use_pickle=True)}, **{"data/weights/weight_0": one})
    old = archive(
        **{
            "data/weights/weight_0": None,
            "data/weights/model_weights_config.json": None,
            "data/constants/model_constants_config.json": None,
            "data/weights/model.pt": whole,
            "data/constants/model.pt": torch_file({}),
        }
    )
    for content, name, wanted in (
        (data, "own", np.arange(4.0)),
        (old, "a.weight", np.ones((2, 3))),
    ):
        layout, note = describe(BytesReader(content))
        found = read_tensors(content, layout)
        assert (layout.format, note, list(found)) == ("torch-export", None, [name])
        assert np.array_equal(found[name], wanted)
        assert worse(content) == [RUN_BY_HAND]


def shown(data):
    """Names -> type, shape, and how each lies there."""
    layout, note = describe(BytesReader(data))
    assert layout.format == "torch-export", note
    found = {
        s.tensor.name: (str(s.tensor.dtype), s.tensor.shape, "" if s.hidden else s.tensor.order)
        for s in layout.segments
        if s.tensor is not None
    }
    views = {
        v.tensor.name: (str(v.tensor.dtype), v.tensor.shape, v.place.offset) for v in layout.views
    }
    return found | views, note


def test_what_is_one_and_what_is_seen_of_another():
    at = archive().index(SIX)
    whole, tied = entry(), entry(shape=(6,), strides=(1,))
    assert shown(archive({"w": whole, "v": tied}))[0] == {
        "w": ("f32", (2, 3), "C"),
        "v": ("f32", (6,), at),
    }
    part = entry(shape=(2,), strides=(2,), offset=1)
    assert shown(archive({"w": part}))[0] == {
        "storage:w": ("f32", (6,), ""),
        "w": ("f32", (2,), at + 4),
    }


def test_what_is_said_to_be_big_endian():
    """PyTorch writes it, but takes the bytes as its own machine has them."""
    found, note = shown(archive({"w": entry()}, byteorder=b"big"))
    assert found == {}
    assert note == f"{LEFT[:-3]}'w' is said to be big-endian, which PyTorch does not heed"


def test_names():
    for name in ("größe", "重み", "\U0001f600", "a.b.0", 'say "w"', ""):
        text = json.dumps({"config": {name: entry()}}, ensure_ascii=False).encode()
        for config in (text, configured({name: entry()}), b" " + text.replace(b": ", b"\n:\t")):
            assert list(shown(archive(**{CONFIG: config}))[0]) == [name]
    lone = shown(archive({"\ud800": entry()}))[0]
    assert list(lone) == ["\\ud800"]
    many = {f"重み.{number}": entry() for number in range(300)}
    text = json.dumps({"config": many}, ensure_ascii=False).encode()
    assert list(shown(archive(**{CONFIG: text}))[0]) == list(many)


def test_types():
    names = {1: "u8", 2: "i8", 4: "i32", 5: "i64", 6: "f16", 8: "f64", 10: "c64", 12: "bool"}
    for code, name in {**names, 13: "bf16", 28: "u16", 33: "f8_e8m0", 35: "u64"}.items():
        data = archive({"w": entry(shape=(1,), strides=(1,), dtype=code)})
        assert shown(data)[0]["w"][0] == name
    for code, name in {9: "complex32", 0: "0", 99: "99"}.items():
        found, note = shown(archive({"w": entry(dtype=code)}))
        assert (found, note) == ({}, f"1 of its tensors are not listed: 'w' is of type '{name}'")


EXPRESSION = {"as_expr": {"expr_str": "s0", "hint": {"as_int": 2}}}
LEFT = "1 of its tensors are not understood: 'x'"


@pytest.mark.parametrize(
    ("how", "why"),
    [
        ({"shape": (EXPRESSION, 3)}, "has a size that is known only when the model runs"),
        ({"strides": (EXPRESSION, 1)}, "has a size that is known only when the model runs"),
        ({"offset": EXPRESSION}, "has a size that is known only when the model runs"),
        ({"layout": 1}, "is of layout 1, not a dense one"),
    ],
)
def test_one_that_is_not_understood_leaves_the_others(how, why):
    x = {"data/weights/weight_1": SIX}
    found, note = shown(archive({"w": entry(), "x": entry("weight_1", **how)}, **x))
    assert found == {"w": ("f32", (2, 3), "C")}
    assert note == f"{LEFT} {why}"


def test_compressed_members():
    weights = {"w": entry()}
    found, note = shown(archive(weights, compressed=["data/weights/weight_0"]))
    assert (found, note) == ({}, "1 of its tensors are not listed: 'w' is compressed")
    inputs = {"data/sample_inputs/model.pt": torch_file(((torch.ones(2),), {}))}
    data = archive(weights, compressed=["data/sample_inputs/model.pt"], **inputs)
    path = "data/sample_inputs/model.pt"
    assert shown(data)[1] == f"1 of its members are not understood: '{path}' is compressed"
    hazards = find_hazards(BytesReader(data))
    assert (hazards.verdict, hazards.judged) == ("malformed", False)
    assert hazards.problem == (
        f"in its member '{path}', nobody knows what loading it does: it is compressed"
    )
    data = archive(weights, compressed=["models/model.json"])
    assert shown(data)[1] is None
    assert not find_hazards(BytesReader(data)).judged
    assert shown(archive(weights, compressed=["archive_format"]))[1] is None
    with pytest.raises(FormatError, match="is compressed"):
        TorchExportFormat().layout(BytesReader(archive(weights, compressed=[CONFIG])))


class Harm:
    def __reduce__(self):
        return (eval, ("1",))


HARM = pickle.dumps(Harm(), 2)


@pytest.mark.parametrize(
    ("weights", "constants", "members"),
    [
        ({"w": entry("weight_0", use_pickle=True)}, {}, {"data/weights/weight_0": HARM}),
        ({}, {"c": entry("tensor_0", use_pickle=True)}, {"data/constants/tensor_0": HARM}),
        ({}, {"c": entry("opaque_obj_0", use_pickle=True)}, {"data/constants/opaque_obj_0": HARM}),
        ({}, {"c": entry("opaque_obj_0")}, {"data/constants/opaque_obj_0": HARM}),
        ({}, {}, {"data/sample_inputs/model.pt": HARM}),
        ({}, {}, {"DATA/Sample_Inputs/model.PT": HARM}),
        ({}, {}, {"data/weights/model.pt": HARM, "data/weights/model_weights_config.json": None}),
        ({}, {}, {"data/weights/weight_7": HARM}),
        ({}, {}, {"data/aotinductor/model/wrapper.so": b"\x7fELF"}),
        ({}, {}, {"data/aotinductor/model/wrapper.cpp": b"int main() {}"}),
        ({}, {}, {"data/aotinductor/model/x_compile_flags.json": b"{}"}),
        ({}, {}, {"data.pkl": HARM}),
        ({}, {}, {"code/__torch__.py": b"op"}),
        ({}, {}, {"constants.pkl": b")."}),
        ({}, {}, {"Archive_Format": b"pt2"}),
        ({}, {}, {"archive_format": None, "ARCHIVE_Format": b"pt2", "data.pkl": HARM}),
        ({}, {}, {"data/weights/WEIGHT_0": SIX}),
    ],
)
def test_what_does_harm(weights, constants, members):
    reader = BytesReader(archive(weights, constants, **members))
    assert TorchExportFormat().sniff(reader.read(0, HEAD_SIZE), reader)
    hazards = find_hazards(reader)
    assert (hazards.format, hazards.verdict) == ("torch-export", "dangerous")


def test_harm_is_told_beside_what_is_broken():
    inputs = {"data/sample_inputs/model.pt": b"\xff\xff"}
    code = {"data/aotinductor/model/wrapper.so": b"\x7fELF"}
    assert find_hazards(BytesReader(archive(**inputs))).verdict == "malformed"
    assert find_hazards(BytesReader(archive(**inputs, **code))).verdict == "dangerous"


def test_objects_and_code_are_told():
    custom = {"data/constants/custom_obj_0": b"PK"}
    data = archive({}, {"o": entry("custom_obj_0", use_pickle=True)}, **custom)
    assert shown(data)[1] == (
        "1 of its constants are no tensors: 'o' is an object of a class in C++"
    )
    assert worse(data)[:-1] == [
        Finding(
            "unknown",
            "makes an object of a class in C++ for its constant 'o'",
            "data/constants/custom_obj_0",
        )
    ]
    data = archive({"w": entry()}, **{"data/aotinductor/net/a/wrapper.so": b"\x7fELF"})
    found, note = shown(data)
    assert (list(found), note) == (["w"], "opaque bytes for 1 compiled models")
    assert worse(data)[:-1] == [
        Finding(
            "dangerous",
            "has native code of AOTInductor for its model 'net', which loading it runs",
            "m/data/aotinductor/net/a/wrapper.so",
        )
    ]
    data = archive({"w": entry()}, **{"extra/helper.so": b"\x7fELF"})
    assert worse(data)[:-1] == [Finding("unknown", "has native code", "m/extra/helper.so")]
    data = archive({}, {"o": entry("later_0")}, **{"data/constants/later_0": b"x"})
    assert "'o' is no tensor, but something unknown" in shown(data)[1]
    assert find_hazards(BytesReader(data)).verdict == "unknown"


def test_other_archives_are_not_of_this_format():
    for members in ({"archive_format": b"abc"}, {"archive_format": None}):
        reader = BytesReader(archive({"w": entry()}, **members))
        assert not TorchExportFormat().sniff(reader.read(0, HEAD_SIZE), reader)
        with pytest.raises(FormatError):
            TorchExportFormat().examine(reader)


def test_a_model_without_a_name_is_read_too():
    data = archive({"w": entry(use_pickle=True)}, model="", **{"data/weights/weight_0": b"x"})
    assert find_hazards(BytesReader(data)).unsafe


CONFIG = "data/weights/model_weights_config.json"
ENTRY = json.dumps(entry()).encode()
TWICE = b'{"config": {"w": ' + ENTRY + b', "w": ' + ENTRY + b"}}"


def spoilt(**changes):
    """An archive whose one weight is said to be otherwise."""
    return archive({"w": {**entry(), **changes}})


def spoilt_meta(**changes):
    return archive({"w": entry(tensor_meta={**meta(), **changes})})


HOSTILE = {
    "no json": archive(**{CONFIG: b"{"}),
    "no text": archive(**{CONFIG: b"\xff"}),
    "deep json": archive(**{CONFIG: b"[" * 100_000}),
    "duplicate key": archive(**{CONFIG: TWICE}),
    "NaN": archive(**{CONFIG: b'{"config": NaN}'}),
    "list": archive(**{CONFIG: b"[]"}),
    "no entry after a comma": archive(**{CONFIG: configured({"w": entry()})[:-2] + b", }}"}),
    "no comma": archive(**{CONFIG: configured({"w": entry()})[:-2] + b' "x": 1}}'}),
    "no colon": archive(**{CONFIG: b'{"config": {"w" {}}}'}),
    "more behind": archive(**{CONFIG: configured({"w": entry()}) + b"{}"}),
    "more beside": archive(**{CONFIG: configured({"w": entry()})[:-1] + b', "x": 1}'}),
    "cut": archive(**{CONFIG: configured({"w": entry()})[:-1]}),
    "bad text in a name": archive(
        **{CONFIG: configured({"NAME": entry()}).replace(b"NAME", b"\xc3")}
    ),
    "no config": archive(**{CONFIG: b"{}"}),
    "config is a list": archive(**{CONFIG: b'{"config": []}'}),
    "entry is a number": archive({"w": 1}),
    "path is a number": spoilt(path_name=1),
    "path missing": archive({"w": {"use_pickle": False}}),
    "pickle is a word": spoilt(use_pickle="false"),
    "pickle is a number": spoilt(use_pickle=0),
    "storage missing": spoilt(path_name="weight_1"),
    "storage elsewhere": spoilt(path_name="../weights/weight_0"),
    "storage absolute": spoilt(path_name="/m/data/weights/weight_0"),
    "storage by two names": archive({"w": entry(), "x": entry("WEIGHT_0")}),
    "storage and pickle": archive({"w": entry(), "x": entry(use_pickle=True)}),
    "two types": archive({"w": entry(), "x": entry(dtype=4)}),
    "ends inside an element": archive(
        {"w": entry(shape=(1,), strides=(1,))}, **{"data/weights/weight_0": b"12345"}
    ),
    "meta missing": spoilt(tensor_meta=None),
    "meta is a list": spoilt(tensor_meta=[1]),
    "dtype is text": spoilt_meta(dtype="float32"),
    "dtype is a bool": spoilt_meta(dtype=True),
    "layout missing": spoilt_meta(layout=None),
    "sizes missing": spoilt_meta(sizes=None),
    "sizes are numbers": spoilt_meta(sizes=[2, 3]),
    "size of two kinds": spoilt_meta(sizes=[{"as_int": 2, "as_expr": {}}, {"as_int": 3}]),
    "size of no kind": spoilt_meta(sizes=[{}, {"as_int": 3}]),
    "size is a bool": archive({"w": entry(shape=({"as_int": True}, 3))}),
    "size is a float": archive({"w": entry(shape=({"as_int": 2.0}, 3))}),
    "size is negative": archive({"w": entry(shape=(-2, -3))}),
    "size is huge": archive({"w": entry(shape=(2**62, 8))}),
    "size is huge beside none": archive({"w": entry(shape=(0, 2**70))}),
    "too many dimensions": archive({"w": entry(shape=(1,) * 65, strides=(1,) * 65)}),
    "strides missing": archive({"w": entry(strides=(1,))}),
    "stride outside": archive({"w": entry(strides=(4, 1))}),
    "stride negative": archive({"w": entry(strides=(-3, 1))}),
    "stride huge": archive({"w": entry(strides=(2**2000, 1))}),
    "offset outside": archive({"w": entry(offset=1)}),
    "offset negative": archive({"w": entry(offset=-1)}),
    "offset missing": spoilt_meta(storage_offset=None),
    "stride 0 with very many elements": archive({"w": entry(shape=(2**40,), strides=(0,))}),
    "long name": archive({"w" * 5000: entry()}),
    "byte order": archive({"w": entry()}, byteorder=b"middle"),
    "weights in two ways": archive({"w": entry()}, **{"data/weights/model.pt": b"x"}),
}


def outside():
    file = io.BytesIO(archive({"w": entry()}))
    with zipfile.ZipFile(file, "a") as made:
        made.writestr("config.json", "{}")
    return file.getvalue()


HOSTILE["member outside"] = outside()


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile(name):
    data = HOSTILE[name]
    layout, warning = describe(BytesReader(data))
    assert [segment.tensor for segment in layout.segments] == [None]
    assert warning.startswith("looks like torch-export but ")
    with pytest.raises((FormatError, LimitExceededError, UnsafeInputError)):
        TorchExportFormat().layout(BytesReader(data))


def test_limits(monkeypatch):
    data = archive({"w": {**entry(), "more": "x" * 3000}, "x": entry()})
    assert list(shown(data)[0]) == ["w", "x"]
    for module, limit, value in (
        (torch_export_archive, "MAX_CONFIG", 10),
        (torch_export_config, "MAX_ENTRY", 100),
        (torch_export_archive, "MAX_TENSORS", 1),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(module, limit, value)
            with pytest.raises(LimitExceededError):
                TorchExportFormat().layout(BytesReader(data))
    many = {f"data/weights/weight_{number}": torch_file(torch.ones(1)) for number in range(1, 4)}
    data = archive({"w": entry()}, **many)
    monkeypatch.setattr(torch_export, "MAX_FILES", 2)
    found, note = shown(data)
    assert len(found) == 3
    assert note == (
        "1 of its members are not understood: 'data/weights/weight_3' comes after 2 others"
    )
    assert find_hazards(BytesReader(data)).unsafe


def test_cut_short(net_file):
    for size in (*range(30, 200, 7), len(net_file) - 1):
        data = net_file[:size]
        reader = BytesReader(data)
        assert describe(reader)[0].format == "opaque"
        if size > 60:
            assert TorchExportFormat().sniff(data[:HEAD_SIZE], reader)
            assert find_hazards(reader).unsafe


SMALL = archive(
    {"w": entry(), "v": entry(shape=(2,), strides=(2,), offset=1), "p": entry("p", True)},
    {"c": entry("tensor_0"), "o": entry("opaque_obj_0", True)},
    **{
        "data/weights/p": torch_file(torch.ones(2)),
        "data/constants/tensor_0": SIX,
        "data/constants/opaque_obj_0": pickle.dumps({"a": 1}),
    },
)


CUT = st.integers(0, len(SMALL)).map(lambda size: SMALL[:size])


@given(changed_bytes(SMALL) | changed_runs(SMALL) | CUT)
def test_whatever_the_bytes(data):
    judge(TorchExportFormat(), data)


@given(changed_bytes(configured({"w": entry(), "v": entry(offset=1)}), more=9))
def test_whatever_the_configuration(raw):
    judge(TorchExportFormat(), archive(**{CONFIG: raw}))
