"""What loading the graph of an archive of torch.export runs: graphs of torch, and hostile ones."""

import collections
import enum
import io
import json
import pickle
import warnings
import zipfile

import numpy as np
import pytest
import torch
from damage import changed_bytes, judge
from export_making import archive, entry
from hypothesis import given
from torch import nn
from torch.utils import _pytree as pytree

from mstore.errors import FormatError, LimitExceededError
from mstore.formats import torch_export_graph
from mstore.formats.base import HEAD_SIZE, BytesReader
from mstore.formats.detect import describe
from mstore.formats.hazards import find_hazards
from mstore.formats.torch_export_graph import RUNS, GraphJudge
from mstore.formats.torch_export_old import OldTorchExportFormat
from mstore.formats.torch_export_sizes import MAX_LENGTH, is_guard, is_size

pytestmark = pytest.mark.filterwarnings("ignore")

PAYLOAD = "__import__('os').system('true')"
JUST_RUN = [("unknown", RUNS)]


class Dynamic(nn.Module):
    """A graph with sizes of all kinds: divided, rounded, of unknown numbers of rows."""

    def forward(self, x):
        rows = x[x[:, 0] > 0]
        wide = nn.functional.interpolate(x[None], scale_factor=1.5)[0]
        size = max(x.shape[0], 7) + x.shape[0] ** 0.5 + x.shape[0] / 3 + x.shape[0] ** 2
        chosen = torch.cond(x.sum() > 0, lambda x: x + 1, lambda x: x * 2, (x,))
        values = collections.defaultdict(list)
        values["rows"] = rows.sum() + wide.sum() + size
        values["chosen"] = chosen
        return values


class Attention(nn.Module):
    """Embedded words, attention, a mask, and a tied weight."""

    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(20, 8)
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.layers = nn.TransformerEncoder(layer, 2)
        self.head = nn.Linear(8, 20, bias=False)
        self.head.weight = self.words.weight

    def forward(self, x):
        return self.head(self.layers(self.words(x)))


class Structured(nn.Module):
    """Inputs of dictionaries, with a text and a number among them, and odd names."""

    def __init__(self):
        super().__init__()
        self.parts = nn.ModuleDict({"a-1": nn.Linear(2, 2), "größe": nn.Linear(2, 2)})

    def forward(self, values, *, times=2, mode="a b"):
        found = self.parts["a-1"](values["a key"]) + self.parts["größe"](values["größe"])
        return {"out": torch.einsum("ij,kj->ik", found, found) * times, "mode": [mode]}


class Recurrent(nn.Module):
    """An LSTM behind convolutions."""

    def __init__(self):
        super().__init__()
        self.convolve = nn.Sequential(nn.Conv1d(3, 4, 3, stride=2, padding=1), nn.BatchNorm1d(4))
        self.recur = nn.LSTM(4, 5, 2, batch_first=True, bidirectional=True)

    def forward(self, x):
        return self.recur(self.convolve(x).transpose(1, 2))[0]


class Unknown(nn.Module):
    """A size that is a value, and what is known of it."""

    def forward(self, x):
        size = x[0].item()
        torch._check(size >= 2)
        torch._check(size < 100)
        return torch.zeros(size * 3 + 1).reshape(-1)[: size // 2]


class Mapped(nn.Module):
    """What is mapped over rows, and what has no gradient."""

    def forward(self, x):
        with torch.no_grad():
            y = x * 2
        return torch.vmap(lambda row: row.sin() + 1)(y)


AUTO = torch.export.Dim.AUTO
REAL = {
    "dynamic": (Dynamic(), (torch.ones(8, 3),), {}, {"x": {0: AUTO}}),
    "attention": (Attention(), (torch.ones(2, 6, dtype=torch.int64),), {}, ({0: AUTO, 1: AUTO},)),
    "structured": (
        Structured(),
        ({"a key": torch.ones(3, 2), "größe": torch.ones(3, 2)},),
        {"times": 3, "mode": "c d"},
        None,
    ),
    "recurrent": (Recurrent(), (torch.ones(2, 3, 16),), {}, ({2: AUTO},)),
    "mapped": (Mapped(), (torch.ones(3, 4),), {}, None),
    "unknown": (Unknown(), (torch.tensor([5, 6]),), {}, None),
}


@pytest.mark.parametrize("name", REAL)
def test_graphs_of_torch_are_no_danger(name):
    module, inputs, named, dynamic = REAL[name]
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.export(module.eval(), inputs, named, dynamic_shapes=dynamic)
        torch.export.save(program, file)
    data = file.getvalue()
    if name == "dynamic":
        for word in (b"expr_str", b"default_factory_module", b"ToFloat", b"FloatPow", b"_operator"):
            assert word in data
    hazards = find_hazards(BytesReader(data))
    found = [(one.danger, one.what) for one in hazards.findings if one.danger != "allowed"]
    assert (found, hazards.problem) == (JUST_RUN, None)


def graph_of(text):
    """What is said of a graph of this text, but that it is run."""
    reader = BytesReader(text.encode())
    first, *found = [(one.danger, one.what) for one in GraphJudge().findings(reader, "g")]
    assert [first] == JUST_RUN
    return found


def dangers(**entries):
    """How dangerous a graph is that has these."""
    return [danger for danger, _ in graph_of(json.dumps(entries))]


SIZES = [
    "s0",
    "2*s0 + 1",
    "s0**2*s1",
    "Max(1, s0//2)",
    "Symbol('s0', positive=True, integer=True)",
    "Add(Symbol('s0',integer=True),Integer(-3))",
    "Mul(Float('1.5e-3', precision=53), ToFloat(Symbol('s0')))",
    "Pow(Symbol('s0', integer=True), Integer(2))",
    "Pow(Add(Symbol('s0'), Integer(1)), Rational(1, 2))",
    "s0 >= 2",
    "1.0e-5*s0",
    "And(s0 >= 2, Not(Eq(s0, 3)))",
]
MORE = [
    PAYLOAD,
    "Max('__import__(1)')",
    "Symbol('__a')",
    "().__class__",
    "Symbol('s').name",
    "s0.name",
    "1.name",
    "1 .name",
    "[s0]",
    "lambda: s0",
    'eval("1")',
    "exec(s0)",
    "exec (s0)",
    "eval",
    "getattr(s0, 'name')",
    "preview(s0)",
    "(Max)(s0)",
    "Max(s0)(s1)",
    "s0 (s1)",
    "s0!",
    "a" * 5000,
    "s0+" * MAX_LENGTH + "1",
    "s0\n",
    "s0)",
    "(s0",
    "Integer(1).\uff53\uff55\uff42\uff53(1)",
    "\uff45\uff56\uff41\uff4c(1)",
    "s\uff10",
    "9**9**9**9",
    "(9**99)**999",
    "Pow(9, Pow(9, 9))",
    "Pow(Pow(9, 999), 999)",
    "LShift(1, 99999999)",
    "1e9999999999999999",
    "1<<99999999",
    "9" * 4000,
]


@pytest.mark.parametrize("expression", SIZES)
def test_expressions_that_are_sizes(expression):
    assert is_size(expression)
    assert graph_of(json.dumps({"expr_str": expression})) == []


@pytest.mark.parametrize("expression", MORE)
def test_expressions_that_are_more(expression):
    assert dangers(expr_str=expression) == ["dangerous"]
    plain = json.dumps({"expr_str": expression}, ensure_ascii=False)
    assert [one for one, _ in graph_of(plain)] == ["dangerous"]


@pytest.mark.parametrize(
    "guard",
    [
        "L['x'].size()[1] == 5",
        "L['values'][0]['a key'].size()[0] % 8 == 0",
        "2 <= L['x'].size()[0] and L['x'].size()[0] <= 64",
        "not (L['größe'].stride()[0] != 3*L['x'].size()[1]**2)",
        "math.floor(L['x'].size()[0]/2) >= max(2, 3)",
        "L['flat_args'][0].storage_offset() == 0",
    ],
)
def test_guards(guard):
    assert is_guard(guard)
    assert dangers(guards_code=[guard]) == []


@pytest.mark.parametrize(
    "guard",
    [
        f"True, {PAYLOAD}",
        "L['x'].size()[0].real == 5",
        "L['x']() == 5",
        "L['x'] (1) == 5",
        "L['x'].apply_(1)",
        "L['x'][exec]",
        "L[eval('1')] == 1",
        "math.inf.real",
        "torch.load('x')",
        "open(1)",
        "L['x'] == 'a'",
        "s0\n",
    ],
)
def test_guards_that_are_more(guard):
    assert dangers(guards_code=["L['x'].size()[1] == 5", guard]) == ["dangerous"]


@pytest.mark.parametrize(
    ("target", "danger"),
    [
        ("torch.ops.aten.__and__.Tensor", None),
        ("torch.ops.aten._assert_scalar.default", None),
        ("torch.ops.higher_order.cond", None),
        ("torch.sym_max", None),
        ("_operator.add", None),
        ("math.ceil", None),
        ("encoder.weight", None),
        ("torch.ops.mine.op.default", "unknown"),
        ("#mine:op", "unknown"),
        ("torch.os.system", "dangerous"),
        ("torchX.os.system", "dangerous"),
        ("torch.nn.modules.sys.exit", "dangerous"),
        ("torch.ops.load_library", "dangerous"),
        ("torch.load", "dangerous"),
        ("torch.hub.load", "dangerous"),
        ("torch.my.own", "dangerous"),
        ("_operator.methodcaller", "dangerous"),
        ("_operatorX.call", "dangerous"),
        ("math.__loader__.load_module", "dangerous"),
        ("torch.ops.aten.__init__.__globals__", "dangerous"),
        ("torch.ops.mine.__init__.__globals__", "dangerous"),
        ("torch.ops.aten.add.Tensor.op", "dangerous"),
        (PAYLOAD, "dangerous"),
    ],
)
def test_what_nodes_call(target, danger):
    assert dangers(target=target, inputs=[]) == ([danger] if danger else [])
    assert dangers(as_operator=target) == ([danger] if danger else [])


@pytest.mark.parametrize(
    "graph",
    [
        {"name": f"x={PAYLOAD}"},
        {"name": f"relu = 1\n{PAYLOAD}\nx"},
        {"name": "a.b"},
        {"as_name": "a b"},
        {"as_tensor": {"name": "größe"}},
        {"tensor_values": {f"x={PAYLOAD}": {}}},
        {"inputs": [{"name": f"a={PAYLOAD},b", "kind": 2}]},
        {"parameter_name": f'w") if {PAYLOAD} else (0, "'},
        {"as_string": f"' or {PAYLOAD} or '"},
        {"as_string": "a\nb"},
        {"forward_arg_names": ["x", PAYLOAD]},
        {"anything": ["ok", {"more": "a(b)"}]},
        {"in_spec": "[1, {"},
        {"in_spec": '{"a": 1, "a": 2}'},
        {"in_spec": json.dumps([PAYLOAD])},
        {"out_spec": json.dumps([1, {"type": "x", "context": json.dumps([PAYLOAD])}])},
        {"out_spec": json.dumps([1, {"type": "x", "context": "[" * 100_000}])},
    ],
)
def test_texts_that_may_be_code(graph):
    assert dangers(**graph) == ["dangerous"]
    assert [one for one, _ in graph_of(json.dumps(graph, ensure_ascii=False))] == ["dangerous"]


@pytest.mark.parametrize(
    "graph",
    [
        {"target": {"name": "x"}, "expr_str": None, "name": None},
        {"names": ["expr_str", "target", "stack_trace"]},
        {"tensor_values": {"target": {"name": "target"}, "name": {}, "custom": {"name": "a"}}},
        {"stack_trace": f'x\n"{PAYLOAD}" größe \\ \x00', "nn_module_stack": "a,b;(c)"},
        {"parameter_name": "größe.0", "fqn": "a-1@1", "buffer_name": "a b"},
        {"as_string": "ij,jk->ik"},
        {"as_string": "Runtime assertion failed for expression Eq(u0, 3) on node 'eq'"},
        {"as_string": "重み (x)"},
        {"torch_version": "2.13.0+cpu", "device": {"type": "cuda:0"}},
    ],
)
def test_texts_that_are_plain(graph):
    assert dangers(**graph) == []
    assert graph_of(json.dumps(graph, ensure_ascii=False, indent=1)) == []


class Color(enum.Enum):
    """A key of a dictionary, which only its module can make again."""

    RED = 1


def test_what_is_imported_for_inputs_and_outputs():
    _, spec = pytree.tree_flatten({Color.RED: 1})
    found = graph_of(json.dumps({"in_spec": pytree.treespec_dumps(spec)}))
    assert found == [("unknown", f"imports '{__name__}.Color'")]
    for maker, danger in ((list, []), (os_abort, ["dangerous"])):
        _, spec = pytree.tree_flatten(collections.defaultdict(maker, a=1))
        text = pytree.treespec_dumps(spec)
        assert dangers(in_spec=text) == danger
        # The same within escapes of any depth.
        for deep in (text, json.dumps(text)):
            hidden = deep.replace("default_factory_module", "\\u0064efault_factory_module")
            assert dangers(in_spec=hidden) == ["dangerous"]
    context = {"default_factory_module": 5, "default_factory_name": "x"}
    assert dangers(in_spec=json.dumps(context)) == ["unknown"]


def os_abort():
    """Stands for the function of that name."""


os_abort.__module__, os_abort.__name__ = "os", "abort"


@pytest.mark.parametrize(
    "raw",
    [
        '{"\\u0065xpr_str": "1"}',
        '{"expr_str": "\\u0061"}',
        '{"n\\u0061me": "x"}',
        '{"name": "\\u0061"}',
        '{"target": "\\u0074orch.load"}',
        '{"fqn": "\\u0061"}',
        '{"a\\u00e9": 1}',
        '{"a\\/b": 1}',
    ],
)
def test_what_hides_in_a_graph(raw):
    assert [one for one, _ in graph_of(raw)] == ["dangerous"]


def test_a_graph_that_is_cut():
    for raw in ('{"a', '{"stack_trace": "', '"\\"'):
        with pytest.raises(FormatError):
            graph_of(raw)
    assert [one for one, _ in graph_of('{"name": "a')] == ["dangerous"]


def test_a_long_graph_is_judged_everywhere(monkeypatch):
    monkeypatch.setattr(torch_export_graph, "_WINDOW", 1000)
    monkeypatch.setattr(torch_export_graph, "_REACH", 200)
    plain = '"stack_trace": "%s",\n"target": "torch.ops.aten.add.Tensor", ' % (r"\"(x)\\" * 9)
    for bad in ({"expr_str": "s0.x"}, {"guards_code": ["L['x'] == 1", "x"]}, {"name": "a.b"}):
        for before in (*range(0, 3000, 37), *range(590, 610), *range(990, 1010)):
            text = " " * before + plain * 3 + json.dumps(bad) + plain * 30
            assert [one for one, _ in graph_of(text)] == ["dangerous"], before
    good = json.dumps({"expr_str": "2*s0", "guards_code": ["L['x'].size()[1] == 5"], "name": "a"})
    for before in range(0, 1100, 7):
        assert graph_of(" " * before + (plain + good) * 40) == []
    with pytest.raises(LimitExceededError):
        graph_of('"' + "a" * 2000 + '"' + plain * 30)


@pytest.mark.parametrize(
    ("limit", "value"), [("MAX_STOPS", 3), ("MAX_JUDGED", 100), ("MAX_GRAPH", 90)]
)
def test_limits(monkeypatch, limit, value):
    sizes = b",".join(b'"expr_str": "%d*s0"' % number for number in range(9))
    monkeypatch.setattr(torch_export_graph, limit, value)
    with pytest.raises(LimitExceededError):
        GraphJudge().findings(BytesReader(sizes), "g")
    judge_both = GraphJudge()  # the limits are for all graphs of an archive
    two = b'"expr_str": "%d*s0", "expr_str": "%d*s0"   '
    judge_both.findings(BytesReader(two % (1, 2) + b" " * 20), "g")
    with pytest.raises(LimitExceededError):
        judge_both.findings(BytesReader(two % (3, 4) + b" " * 20), "h")
    assert find_hazards(BytesReader(archive(**{"models/model.json": sizes}))).unsafe


def test_findings_are_told_once(monkeypatch):
    monkeypatch.setattr(torch_export_graph, "MAX_TOLD", 5)
    custom = [{"target": f"torch.ops.mine.op{number % 20}"} for number in range(100)]
    assert len(graph_of(json.dumps(custom))) == 5
    assert graph_of(json.dumps([*custom, {"name": "a b"}]))[-1][0] == "dangerous"


def test_graphs_of_all_models_are_judged():
    bad = json.dumps({"name": PAYLOAD}).encode()
    for path in ("models/other.json", "MODELS/x", "models/a/b"):
        assert find_hazards(BytesReader(archive(**{path: bad}))).verdict == "dangerous"
    assert not find_hazards(BytesReader(archive(compressed=["models/model.json"]))).judged
    evaluated = entry(shape=({"as_expr": {"expr_str": PAYLOAD}}, 3))  # of a weight, never
    assert find_hazards(BytesReader(archive({"w": evaluated}))).verdict == "unknown"


def torch_file(value):
    file = io.BytesIO()
    torch.save(value, file)
    return file.getvalue()


def old_archive(graph=b"{}", method=zipfile.ZIP_STORED, **members):
    """An archive as versions before 2.8 wrote it, by hand."""
    made = {
        "version": b"8.8",
        "serialized_exported_program.json": graph,
        "serialized_state_dict.pt": torch_file({"a.weight": torch.ones(2, 3)}),
        "serialized_constants.pt": torch_file({}),
        "serialized_example_inputs.pt": torch_file(((torch.ones(2),), {})),
        "extra_files/notes.txt": b"os.system",
        **members,
    }
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as opened:
        for path, content in made.items():
            opened.writestr(path, content)
    return file.getvalue()


def test_archives_before_2_8(read_tensors):
    data = old_archive()
    layout, note = describe(BytesReader(data))
    assert (layout.format, note) == ("torch-export", None)
    found = read_tensors(data, layout)
    assert set(found) == {
        "serialized_state_dict.pt/a.weight",
        "serialized_example_inputs.pt/0.0",
    }
    assert np.array_equal(found["serialized_state_dict.pt/a.weight"], np.ones((2, 3)))
    hazards = find_hazards(BytesReader(data))
    (worse,) = [one for one in hazards.findings if one.danger != "allowed"]
    assert (worse.danger, worse.what) == JUST_RUN[0]
    assert worse.where == "serialized_exported_program.json"


class Harm:
    def __reduce__(self):
        return (eval, ("1",))


HARM = pickle.dumps(Harm(), 2)


@pytest.mark.parametrize(
    "data",
    [
        old_archive(json.dumps({"expr_str": PAYLOAD}).encode()),
        old_archive(json.dumps({"name": PAYLOAD}).encode()),
        old_archive(**{"serialized_state_dict.json": HARM}),
        old_archive(**{"serialized_constants.pt": HARM}),
        old_archive(**{"extra_files/data.pkl": HARM}),
        old_archive(Version=b"8.8"),
    ],
)
def test_archives_before_2_8_that_do_harm(data):
    reader = BytesReader(data)
    assert OldTorchExportFormat().sniff(data[:HEAD_SIZE], reader)
    hazards = find_hazards(reader)
    assert (hazards.format, hazards.verdict) == ("torch-export", "dangerous")
    nested = io.BytesIO()
    with zipfile.ZipFile(nested, "w") as made:
        made.writestr("model.pt2", data)
    assert find_hazards(BytesReader(nested.getvalue())).verdict == "dangerous"


@pytest.mark.parametrize(
    "data",
    [
        old_archive(method=zipfile.ZIP_DEFLATED),
        old_archive(b'"'),
        old_archive(**{"config.json": b"{}"}),
        old_archive(**{"m/data.pkl": HARM}),
        old_archive()[:-30],
    ],
)
def test_archives_before_2_8_that_nobody_can_judge(data):
    hazards = find_hazards(BytesReader(data))
    assert (hazards.format, hazards.verdict, hazards.judged) == ("torch-export", "malformed", False)


SMALL = json.dumps(
    {
        "target": "torch.ops.aten.add.Tensor",
        "expr_str": "Mul(Integer(2), Max(Symbol('s0', integer=True), 3))",
        "guards_code": ["L['x'].size()[1] == 5"],
        "in_spec": json.dumps([1, {"type": None, "context": json.dumps(["a"])}]),
        "stack_trace": 'File "x"\n',
    }
).encode()


@given(changed_bytes(SMALL, more=9))
def test_whatever_the_graph(raw):
    judge(OldTorchExportFormat(), old_archive(raw))
