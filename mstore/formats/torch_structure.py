"""The tensors in a pickle of `torch.save`, each with the path under which its users know it.

The keys of dictionaries, the numbers in lists and the attributes of objects are the path: that of
a weight in a module is `encoder.0.weight`, without the dictionaries in which a module keeps its
parameters, buffers and modules. The parts of a sparse tensor are called as its methods are:
`w.indices` and `w.values`; those of others by the attributes that hold them.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain

from mstore.errors import LimitExceededError
from mstore.formats.pickle_values import (
    CONTAINERS,
    SAME,
    Call,
    Dict,
    Global,
    Pair,
    Persistent,
    children,
)
from mstore.formats.torch_tensors import (
    Other,
    Path,
    Use,
    is_tensor,
    read_tensor,
    storage_of,
    whole_storage,
)

MAX_DEPTH = 1000
"""Deepest nesting of values; each level of modules takes three."""

MAX_TENSORS = 200_000
"""Most tensors in a file."""

MAX_REPEATS = 200_000
"""Most values that are looked at again, since they are in more than one place."""

_MODULES = (
    *("torch._utils", "torch._tensor", "torch.tensor"),
    *("torch.nested._internal.nested_tensor", "torch.fx.graph_module"),
)
_FROM_OTHERS = (
    *("_rebuild_parameter", "_rebuild_parameter_with_state", "_rebuild_njt"),
    *("_rebuild_device_tensor_from_cpu_tensor", "reduce_graph_module"),
)
"""The functions that are given what the tensors are in; that then counts as what they make."""

_WITH_TYPE = ("_rebuild_from_type", "_rebuild_from_type_v2")  # function, type, its arguments, state
_OF_MODULE = frozenset({"_parameters", "_buffers", "_modules"})
_FIRST = 64  # attributes among which a module has these
_OF_QUANTISER = (None, "scales", "zero_points")
_OF_NESTED = ("values", "sizes", "strides", "storage_offsets")
_SPARSE = ("_rebuild_sparse_tensor", "_rebuild_sparse_csr_tensor")
_BY_ROWS = ("crow_indices", "col_indices", "values")
_BY_COLUMNS = ("ccol_indices", "row_indices", "values")
_OF_SPARSE = {
    "torch.sparse_coo": ("indices", "values"),
    "torch.sparse_csr": _BY_ROWS,
    "torch.sparse_bsr": _BY_ROWS,
    "torch.sparse_csc": _BY_COLUMNS,
    "torch.sparse_bsc": _BY_COLUMNS,
}

Members = Iterator[tuple[object, object, str | None]]
"""What a value holds: keys, values, and what would make something of them, if any."""


@dataclass(frozen=True, slots=True)
class Found:
    """The tensors in a value and the storages elsewhere in it, in the order of the structure.

    `cut` tells that what is in several places was not followed in all of them.
    """

    uses: list[Use | Other]
    cut: bool


def find_tensors(root: object) -> Found:
    """The tensors in a pickle's value, once for each place that they are in.

    Values may be cyclic, and a few of them may stand for very many places: what is met again is
    followed again only where it has tensors, is not just being followed, and as long as all that
    comes to no more than `MAX_REPEATS`.

    Raises FormatError for a tensor or a storage that is malformed, LimitExceededError for values
    nested too deeply or too many tensors.
    """
    search = _Search()
    search.run(root)
    return Found(search.uses, search.repeats > MAX_REPEATS)


@dataclass(slots=True)
class _Step:
    """A value that is being followed: what is left of it, and how many uses were known before."""

    value: object
    left: Members
    path: Path | None
    known: int
    again: bool


@dataclass(slots=True)
class _Search:
    uses: list[Use | Other] = field(default_factory=list)
    repeats: int = 0
    _seen: dict[int, object] = field(default_factory=dict)
    """The values, so that no other can take the id of one."""
    _empty: set[int] = field(default_factory=set)
    _open: set[int] = field(default_factory=set)

    def run(self, root: object) -> None:
        stack = [_Step(None, iter([(SAME, root, None)]), None, 0, False)]
        while stack:
            step = stack[-1]
            if step.again:
                self.repeats += 1
            spent = step.again and self.repeats > MAX_REPEATS
            member = None if spent else next(step.left, None)
            if member is None:
                self._close(stack.pop(), spent)
                continue
            key, value, maker = member
            if not isinstance(value, CONTAINERS):
                continue
            again = step.again or id(value) in self._seen
            if again and not self._is_followed_again(value):
                continue
            if len(stack) > MAX_DEPTH:
                raise LimitExceededError(f"its values are nested deeper than {MAX_DEPTH}")
            if len(self.uses) > MAX_TENSORS:
                raise LimitExceededError(f"it has more than {MAX_TENSORS} tensors")
            path = step.path if key is SAME else (step.path, key)
            stack.append(self._enter(value, path, maker, again))

    def _is_followed_again(self, value: object) -> bool:
        known = id(value)
        if known in self._empty or known in self._open:
            return False
        if known in self._seen:
            self.repeats += 1
        return self.repeats <= MAX_REPEATS

    def _enter(self, value: object, path: Path | None, maker: str | None, again: bool) -> _Step:
        self._seen[id(value)] = value
        self._open.add(id(value))
        known = len(self.uses)
        if isinstance(value, Persistent) and (storage := storage_of(value)):
            alone = None if maker else whole_storage(path, storage)
            self.uses.append(alone or Other(path, storage, maker))
            return _Step(value, iter(()), path, known, again)
        if isinstance(value, Call):
            function = own_function(value.function)
            if function is not None and is_tensor(function):
                self.uses.append(read_tensor(value, path, function))
            return _Step(value, _inside(value, function), path, known, again)
        members = ((key, inner, maker) for key, inner in _members(value))
        return _Step(value, members, path, known, again)

    def _close(self, step: _Step, spent: bool) -> None:
        self._open.discard(id(step.value))
        if step.known == len(self.uses) and not spent:
            self._empty.add(id(step.value))


def own_function(function: object) -> str | None:
    """The name of a function of torch's that makes tensors."""
    if isinstance(function, Global) and function.module in _MODULES:
        return function.name
    return None


def _members(value: object) -> Iterator[Pair]:
    """What a list, tuple, dictionary, set or persistent id holds, with the keys users know."""
    if not isinstance(value, Dict):
        return children(value)
    keys = {key for key, _ in value.pairs[:_FIRST] if isinstance(key, str)}
    return _pairs(value.pairs, _OF_MODULE if keys >= _OF_MODULE else frozenset())


def _pairs(pairs: list[Pair], left_out: frozenset[str] = frozenset()) -> Iterator[Pair]:
    """The pairs of a dictionary, and what is in its keys; a tensor as a key counts as a number."""
    for number, (key, value) in enumerate(pairs):
        label = number if isinstance(key, Call) else key
        if isinstance(key, CONTAINERS):
            yield label, key
        yield SAME if isinstance(key, str) and key in left_out else label, value


def _inside(call: Call, function: str | None) -> Members:
    """What else is in a call: what torch's own functions are given counts as the tensor itself.

    Of shared arguments only the first few are looked at here, or many calls would take too long.
    """
    arguments = call.arguments
    if function in _WITH_TYPE and len(arguments) == 4:
        yield from _with_type(*arguments)
    elif function == "_rebuild_qtensor":
        yield from _labelled(_OF_QUANTISER, arguments[4:5] and arguments[4])
    elif is_tensor(function):
        yield from _same(arguments[4:8])
    elif function in _FROM_OTHERS:
        yield from _same(arguments[:3])
        yield from _same(_parts_of_state(arguments[3:4] and arguments[3]))
    elif function in _SPARSE and len(arguments) == 2:
        yield from _labelled(_OF_SPARSE.get(_layout(arguments[0]), ()), arguments[1])
    elif function == "_rebuild_nested_tensor":
        yield from _labelled(_OF_NESTED, arguments)
    else:
        maker = str(call.function) if isinstance(call.function, Global) else "an object"
        yield SAME, call.function, None
        yield SAME, arguments, maker
        yield SAME, call.keywords, maker
    for key, value in chain(children(call.elements), _pairs(call.pairs)):
        yield key, value, None
    for state in call.states:
        yield from _same(_parts_of_state(state))


def _with_type(function: object, _: object, arguments: object, state: object) -> Members:
    """What makes a tensor of a class of its own: a function, the class, arguments, attributes."""
    if isinstance(arguments, tuple) and own_function(function) not in _WITH_TYPE:
        yield SAME, Call(function, arguments), None
    else:  # one such call in another is none of torch's, and many would take too long
        yield SAME, arguments, _WITH_TYPE[-1]
    if own_function(function) != "_rebuild_njt":  # whose attributes are the same once more
        yield from _same(_parts_of_state(state))


def _same(values: tuple[object, ...]) -> Members:
    return ((SAME, value, None) for value in values)


def _parts_of_state(state: object) -> tuple[object, ...]:
    """The dictionaries of attributes in a state; objects with slots have two."""
    return state if isinstance(state, tuple) and len(state) == 2 else (state,)


def _labelled(labels: tuple[str | None, ...], values: object) -> Members:
    if isinstance(values, tuple):
        for label, value in zip(labels, values, strict=False):
            if label is not None:
                yield label, value, None


def _layout(value: object) -> str:
    """The name of a layout, which is pickled as a call of `torch.serialization._get_layout`."""
    name = value.arguments[0] if isinstance(value, Call) and value.arguments else None
    return name if isinstance(name, str) else ""
