"""The tensors in a pickle of `torch.save`, each with the path under which its users know it.

The keys of dictionaries, the numbers in lists and the attributes of objects are the path: that of
a weight in a module is `encoder.0.weight`, without the dictionaries in which a module keeps its
parameters, buffers and modules. The parts of a sparse tensor are called as its methods are:
`w.indices` and `w.values`; those of others by the attributes that hold them.
"""

from collections.abc import Iterator, Mapping
from functools import partial
from itertools import chain

from mstore.formats import pickle_arrays
from mstore.formats.pickle_arrays import Array
from mstore.formats.pickle_paths import Path, find
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
    Storage,
    Use,
    is_tensor,
    read_tensor,
    storage_of,
    whole_storage,
)

_MODULES = (
    *("torch._utils", "torch._tensor", "torch.tensor"),
    "torch.nested._internal.nested_tensor",
)
_FROM_OTHERS = (
    *("_rebuild_parameter", "_rebuild_parameter_with_state", "_rebuild_njt"),
    "_rebuild_device_tensor_from_cpu_tensor",
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

_Look = tuple[list[tuple[object, Call | Storage]], Iterator[Pair]]


def find_tensors(root: object, storages: Mapping[int, Storage] | None = None) -> list[Use]:
    """The tensors in a pickle's value, and storages by themselves, once for each place, in order.

    `storages` are those that calls load, by the ids of the calls; where they are given, there are
    no others.

    Raises FormatError for a tensor or a storage that is malformed, LimitExceededError for values
    nested too deeply.
    """
    look = _look if storages is None else partial(_look_for_loaded, storages)
    return [_use(path, found, storages) for path, found in find(root, look)]


def find_arrays(root: object) -> list[tuple[Path | None, Array]]:
    """The arrays of numpy and lists of floats in a pickle's value, as in files of pickles."""
    return find(root, _look_for_arrays)


def _use(path: Path | None, found: Call | Storage, storages: Mapping[int, Storage] | None) -> Use:
    if isinstance(found, Storage):
        return whole_storage(path, found)
    return read_tensor(found, path, _own_function(found.function) or "", storages)


def _look(value: object) -> _Look:
    """The tensor that a value is, or the storage; and the values in which to look for others."""
    if isinstance(value, Persistent) and (storage := storage_of(value)):
        return [(SAME, storage)], iter(())
    if not isinstance(value, Call):
        return [], _members(value)
    function = _own_function(value.function)
    return [(SAME, value)] if is_tensor(function) else [], _inside(value, function)


def _look_for_loaded(storages: Mapping[int, Storage], value: object) -> _Look:
    """The same, of storages that calls load."""
    if (storage := storages.get(id(value))) is not None:
        return [(SAME, storage)], iter(())
    if not isinstance(value, Call):
        return [], _members(value)
    function = _own_function(value.function)
    is_loaded = is_tensor(function) and id(_first(value)) in storages
    return [(SAME, value)] if is_loaded else [], _inside(value, function)


def _first(call: Call) -> object:
    return call.arguments[0] if call.arguments else None


def _look_for_arrays(value: object) -> tuple[list[tuple[object, Array]], Iterator[Pair]]:
    return ([], _members(value)) if isinstance(value, Dict) else pickle_arrays.look(value)


def _own_function(function: object) -> str | None:
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


def _inside(call: Call, function: str | None) -> Iterator[Pair]:
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
        yield from _same((call.function, arguments, call.keywords))
    yield from chain(children(call.elements), _pairs(call.pairs))
    for state in call.states:
        yield from _same(_parts_of_state(state))


def _with_type(function: object, _: object, arguments: object, state: object) -> Iterator[Pair]:
    """What makes a tensor of a class of its own: a function, the class, arguments, attributes."""
    if isinstance(arguments, tuple) and _own_function(function) not in _WITH_TYPE:
        yield SAME, Call(function, arguments)
    else:  # one such call in another is none of torch's, and many would take too long
        yield SAME, arguments
    if _own_function(function) != "_rebuild_njt":  # whose attributes are the same once more
        yield from _same(_parts_of_state(state))


def _same(values: tuple[object, ...]) -> Iterator[Pair]:
    return ((SAME, value) for value in values)


def _parts_of_state(state: object) -> tuple[object, ...]:
    """The dictionaries of attributes in a state; objects with slots have two."""
    return state if isinstance(state, tuple) and len(state) == 2 else (state,)


def _labelled(labels: tuple[str | None, ...], values: object) -> Iterator[Pair]:
    if isinstance(values, tuple):
        for label, value in zip(labels, values, strict=False):
            if label is not None:
                yield label, value


def _layout(value: object) -> str:
    """The name of a layout, which is pickled as a call of `torch.serialization._get_layout`."""
    name = value.arguments[0] if isinstance(value, Call) and value.arguments else None
    return name if isinstance(name, str) else ""
