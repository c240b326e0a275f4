"""All of an ONNX model that matters here: its tensors wherever they are, and its operators.

    ModelProto      1 ir_version · 7 graph · 8 opset_import · 20 training_info · 25 functions
    GraphProto      1 node · 5 initializer (tensors) · 15 sparse_initializer
    NodeProto       2 output · 3 name · 4 op_type · 5 attribute · 7 domain
    AttributeProto  1 name · 5 t (a tensor) · 6 g (a graph) · 7 floats · 10 tensors · 11 graphs ·
                    22 sparse_tensor · 23 sparse_tensors
    FunctionProto   1 name · 7 node · 10 domain · 11 attribute (defaults)
    TrainingInfo    1 initialization and 2 algorithm: graphs

An initializer is called by its own name, a tensor in an attribute by the node and the attribute
(`Constant_3/value`), and whatever lies in a graph inside a node by these before its own name.
Source: `onnx.in.proto` of ONNX.
"""

from dataclasses import dataclass, field
from itertools import count

from mstore.errors import FormatError, LimitExceededError
from mstore.formats.naming import Names
from mstore.formats.onnx_tensor import MAX_TEXT, Described, Floats, read_sparse, read_tensor
from mstore.formats.protobuf import MAX_DEPTH, Field, Wire
from mstore.layout import ByteReader

MAX_FIELDS = 3_000_000
"""Most fields of a model, as `Wire` counts; 20 for each tensor and 30 for each node are usual."""

MAX_TENSORS = 100_000
"""Most tensors of a model."""

_MAX_GRAPHS = MAX_DEPTH // 3  # a graph in an attribute of a node is three messages further in
_TAGGED = 4  # tensors that take as much memory as one whose elements are tagged
_MAX_OPERATORS = 10_000
_MAX_PARTS = 10_000  # attributes of a node, and tensors or graphs of an attribute

Operator = tuple[str, str]
"""The domain and the name of an operator."""


@dataclass(slots=True)
class Model:
    """What was found: tensors in their order, and each operator with the place of its first use.

    `functions` are the operators that the model itself defines.
    """

    tensors: list[Described] = field(default_factory=list)
    operators: dict[Operator, str] = field(default_factory=dict)
    functions: set[Operator] = field(default_factory=set)


def read_model(reader: ByteReader) -> Model:
    """The tensors and operators of a model.

    Raises FormatError, LimitExceededError.
    """
    return _Walk(reader).model(reader.size)


class _Walk:
    """One pass over a model."""

    def __init__(self, reader: ByteReader) -> None:
        self._wire = Wire(reader, max_fields=MAX_FIELDS)
        self._names = Names()
        self._found = Model()
        self._room = MAX_TENSORS

    def model(self, size: int) -> Model:
        graphs = 0
        infos, functions = count(), count()
        for one in self._wire.fields(0, size):
            match one.number:
                case 7:
                    graphs += 1
                    self._graph(one, "", 0)
                case 20:
                    self._training(one, f"training_info/{next(infos)}/")
                case 25:
                    self._function(one, next(functions))
        if graphs != 1:
            raise FormatError("it has no graph" if not graphs else "it has more than one graph")
        return self._found

    def _training(self, info: Field, path: str) -> None:
        for one in self._wire.inside(info, "training_info"):
            if one.number in (1, 2):
                part = "initialization" if one.number == 1 else "algorithm"
                self._graph(one, f"{path}{part}/", 0)

    def _function(self, function: Field, number: int) -> None:
        name = domain = ""
        for one in self._wire.inside(function, "a function"):
            if one.number == 1:
                name = self._text(one)
            elif one.number == 10:
                domain = self._text(one)
        self._found.functions.add((domain, name))
        nodes = count()
        for one in self._wire.inside(function, "a function"):
            if one.number == 7:
                self._node(one, f"{name or number}/", next(nodes), 0)
            elif one.number == 11:
                self._attribute(one, str(name or number), 0)

    def _graph(self, graph: Field, path: str, depth: int) -> None:
        if depth > _MAX_GRAPHS:
            raise LimitExceededError("its graphs are nested too deeply")
        nodes = count()
        for one in self._wire.inside(graph, "a graph"):
            match one.number:
                case 1:
                    self._node(one, path, next(nodes), depth)
                case 5:
                    self._add(read_tensor(self._wire, one), path)
                case 15:
                    for part in read_sparse(self._wire, one):
                        self._add(part, path)

    def _node(self, node: Field, path: str, index: int, depth: int) -> None:
        name = output = kind = domain = ""
        attributes: list[Field] = []
        for one in self._wire.inside(node, "a node"):
            match one.number:
                case 2:
                    output = output or self._text(one)
                case 3:
                    name = self._text(one)
                case 4:
                    kind = self._text(one)
                case 5:
                    _collect(attributes, one)
                case 7:
                    domain = self._text(one)
        called = f"{path}{name or output or f'{kind}_{index}'}"
        self._found.operators.setdefault((domain, kind), called)
        if len(self._found.operators) > _MAX_OPERATORS:
            raise LimitExceededError(f"it has more than {_MAX_OPERATORS} operators")
        for attribute in attributes:
            self._attribute(attribute, called, depth)

    def _attribute(self, attribute: Field, path: str, depth: int) -> None:
        name = ""
        inner: list[Field] = []
        floats = Floats()
        for one in self._wire.inside(attribute, "an attribute"):
            if one.number == 7:
                floats.add(one)
            elif one.number == 1:
                name = self._text(one)
            elif one.number in (5, 6, 10, 11, 22, 23):
                _collect(inner, one)
        path = f"{path}/{name}"
        if (numbers := floats.described(path)) is not None:
            self._add(numbers, "")
        for index, one in enumerate(inner):
            # Of tensors, graphs and so on there may be several, of the others there is one.
            place = f"{path}/{index}" if one.number in (10, 11, 23) else path
            if one.number in (6, 11):
                self._graph(one, f"{place}/", depth + 1)
            elif one.number in (5, 10):
                self._add(read_tensor(self._wire, one, place), "")
            else:
                for part in read_sparse(self._wire, one, place):
                    self._add(part, "")

    def _add(self, described: Described, path: str) -> None:
        self._room -= _TAGGED if described.tagged else 1
        if self._room < 0:
            raise LimitExceededError(f"it has more than {MAX_TENSORS} tensors")
        self._found.tensors.append(described.renamed(self._names.add(path + described.name)))

    def _text(self, one: Field) -> str:
        return self._wire.text(one, MAX_TEXT, "a name")


def _collect(parts: list[Field], part: Field) -> None:
    if len(parts) == _MAX_PARTS:
        raise LimitExceededError(f"a node has more than {_MAX_PARTS} parts")
    parts.append(part)
