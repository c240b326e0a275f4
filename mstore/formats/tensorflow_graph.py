"""A graph of TensorFlow: its nodes, and the tensors that some of them hold as constants.

    GraphDef     1 node · 2 library {1 function {1 signature {1 name}, 3 node_def}}
    NodeDef      1 name · 2 op · 5 attr {1 key, 2 value {8 tensor}}
    TensorProto  1 dtype · 2 tensor_shape {2 dim {1 size}, 3 unknown_rank} · 3 version_number
    the data     4 tensor_content (little-endian bytes), or else numbers: 5 float_val ·
                 6 double_val · 7 int_val · 9 scomplex_val · 10 int64_val · 11 bool_val ·
                 12 dcomplex_val · 13 half_val · 16 uint32_val · 17 uint64_val · 18 float8_val

When a model is frozen, its variables become such constants. A constant is called as its node, after
the name of the function that the node is in, if any. Packed numbers of floats are the same bytes as
`tensor_content`. Those of booleans are varints, which every library writes as the bytes 0 and 1;
they are read to see that. Those of integers are varints of any length, and the last number may
stand for all that follow: such a constant stays opaque. So does one of a single number, of which a
graph has very many.
Source: `graph.proto`, `node_def.proto`, `tensor.proto` and `tensor_shape.proto` of TensorFlow.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from math import prod

from mstore.errors import LimitExceededError
from mstore.formats.base import MAX_DIMS, check_shape, quote
from mstore.formats.protobuf import BYTES, Field, Wire
from mstore.formats.tensorflow_types import NO_NUMBERS, TYPES
from mstore.layout import Tensor

MAX_TEXT = 1 << 16
"""Most bytes of a name or another text."""

_CONSTANT = "Const"
_VALUE = "value"
_CONTENT = 4
_BOOLEANS = 11
_STRINGS = 8
# The field whose numbers are the bytes of the tensor, by its type.
_PACKED = {1: 5, 2: 6, 8: 9, 10: _BOOLEANS, 18: 12} | dict.fromkeys(range(24, 29), 18)
_NUMBERS = {*range(5, 19)} - {_STRINGS}


@dataclass(frozen=True, slots=True)
class Node:
    """One node: its name after that of its function, its operation, and the message itself."""

    name: str
    operation: str
    message: Field


@dataclass(frozen=True, slots=True)
class Constant:
    """A tensor with the place and the size of its data; or why there is none."""

    name: str
    start: int
    size: int
    tensor: Tensor | None = None
    why: str = ""


def read_nodes(wire: Wire, graph: Field) -> Iterator[Node]:
    """Every node of a graph and of its functions. Raises FormatError, LimitExceededError."""
    for one in wire.inside(graph, "a graph"):
        if one.number == 1:
            yield _read_node(wire, one, "")
        elif one.number == 2:
            for function in wire.inside(one, "a library"):
                if function.number == 1:
                    yield from _read_function(wire, function)


def _read_function(wire: Wire, function: Field) -> Iterator[Node]:
    name = ""
    for one in wire.inside(function, "a function"):
        if one.number == 1:
            for part in wire.inside(one, "a signature"):
                if part.number == 1:
                    name = wire.text(part, MAX_TEXT, "a name")
        elif one.number == 3:
            yield _read_node(wire, one, f"{name}/")


def _read_node(wire: Wire, node: Field, path: str) -> Node:
    name = operation = ""
    for one in wire.inside(node, "a node"):
        if one.number == 1:
            name = wire.text(one, MAX_TEXT, "a name")
        elif one.number == 2:
            operation = wire.text(one, MAX_TEXT, "an operation")
    return Node(path + name, operation, node)


def read_constant(wire: Wire, node: Node) -> Constant | None:
    """What a node holds; None if it is no constant of several numbers.

    Raises FormatError, LimitExceededError.
    """
    if node.operation != _CONSTANT:
        return None
    found = _Fields()
    for attribute in wire.inside(node.message, "a node"):
        if attribute.number == 5:
            for one in _value(wire, attribute):
                if one.number == 8:
                    found = _read_fields(wire, one)
    count = prod(found.shape) if min(found.shape, default=0) >= 0 else -1
    if found.type in NO_NUMBERS or count in (0, 1):
        return None
    return _constant(wire, node.name, found)


def _value(wire: Wire, attribute: Field) -> Iterator[Field]:
    """The fields of the attribute `value`; none of another one."""
    key, value = "", None
    for part in wire.inside(attribute, "an attribute"):
        if part.number == 1:
            key = wire.text(part, MAX_TEXT, "the name of an attribute")
        elif part.number == 2:
            value = part
    if key == _VALUE and value is not None:
        yield from wire.inside(value, "an attribute")


@dataclass(slots=True)
class _Fields:
    """The fields of one TensorProto; of data those that are not empty."""

    type: int = 0
    shape: list[int] = field(default_factory=list)
    data: dict[int, Field] = field(default_factory=dict)
    several: bool = False  # numbers in more than one field of the same number
    size: int = 0  # of all data


def _read_fields(wire: Wire, message: Field) -> _Fields:
    found = _Fields()
    for one in wire.inside(message, "a tensor"):
        if one.number == _CONTENT or one.number in _NUMBERS:
            if one.size:
                found.several |= one.number in found.data and one.number != _CONTENT
                found.data[one.number] = one
                found.size += one.size
        elif one.number == 1:
            found.type = one.value
        elif one.number == 2:
            found.shape = _read_shape(wire, one)
    return found


def _read_shape(wire: Wire, message: Field) -> list[int]:
    """The extent of each axis; -1 where it is not known, and for one axis if none is."""
    shape: list[int] = []
    for one in wire.inside(message, "a shape"):
        if one.number == 2:
            extents = [part.signed for part in wire.inside(one, "an axis") if part.number == 1]
            shape.append(extents[-1] if extents else 0)
            if len(shape) > MAX_DIMS:
                raise LimitExceededError(f"a tensor has more than {MAX_DIMS} dimensions")
        elif one.number == 3 and one.value:
            return [-1]
    return shape


def _constant(wire: Wire, name: str, found: _Fields) -> Constant:
    """The tensor, if its data is all there as bytes of the file.

    What `tensor_content` holds is the tensor, also booleans of other bytes, as in all formats.
    """
    known = TYPES.get(found.type)
    data = found.data.get(_CONTENT) or found.data.get(_PACKED.get(found.type, _CONTENT))
    if known is None:
        why = f"is of type {found.type}"
    elif min(found.shape) < 0:
        why = "has no shape"
    elif data is None:
        why = "has its numbers as varints"
    elif data.wire != BYTES or found.several:
        why = "has its numbers apart from each other"
    elif data.size != check_shape(known[0], found.shape, quote(name)):
        why = "has not as many numbers as its shape says"
    elif data.number == _BOOLEANS and not wire.consists_of(data, b"\0\1"):
        why = "has booleans that are not 0 or 1"
    else:
        tensor = Tensor(name, known[0], tuple(found.shape), kind=known[1])
        return Constant(name, data.start, data.size, tensor)
    return Constant(name, 0, found.size, why=why)
