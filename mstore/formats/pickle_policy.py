"""What a pickle may name and call when it is loaded: harmless things, harmful ones, and unknown.

What is on neither of the lists of `mstore.formats.pickle_names` is unknown. Names are judged as
Python 3 understands them, those of Python 2 included. Some functions do harm with some arguments
only; others call what they are given, so what they are given is judged, too.
"""

import re
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING  # what Python 3 makes of names of Python 2
from collections.abc import Iterable, Iterator
from functools import lru_cache

from mstore.formats.base import Danger
from mstore.formats.pickle_inline import is_wrapper
from mstore.formats.pickle_names import (
    ANYTHING,
    ANYWHERE,
    CLASS,
    HARMLESS,
    HARMLESS_LIKE,
    MODULES,
    NAMES,
    OF_FRAMES,
)
from mstore.formats.pickle_values import (
    CONTAINERS,
    Call,
    Chars,
    Extension,
    Global,
    Persistent,
    children,
)

_NESTED_CLASS = re.compile(rf"{CLASS}(\.{CLASS})+")
_DUNDER = re.compile(r"__\w+__")
_GETTER = ("builtins", "getattr")
_PARTIAL = ("functools", "partial")
_OF_TORCH = ("torch.storage", "_load_from_bytes")
_LATIN1 = ("latin1", "latin-1", "iso-8859-1")
_BY_TYPE = {
    (module, f"_rebuild_from_type{version}")
    for module in ("torch._tensor", "torch.tensor")
    for version in ("", "_v2")
}
_OF_RANDOM = "numpy.random._pickle"
_GENERATORS = ("__generator_ctor", "__randomstate_ctor")
_NEW = ("copyreg", "_reconstructor"), ("copyreg", "__newobj__"), ("copyreg", "__newobj_ex__")
_MEMMAPS = [(module, "memmap") for module in ("numpy", "numpy.core.memmap")]
_WRAPPERS = [
    (module, "NumpyArrayWrapper")
    for module in ("joblib.numpy_pickle", "sklearn.externals.joblib.numpy_pickle")
]
_UFUNCS = [(module, "_ufunc_reconstruct") for module in ("numpy.core", "numpy._core")]
_ARRAYS = [
    (module, "_reconstruct") for module in ("numpy.core.multiarray", "numpy._core.multiarray")
]
_DELICATE = {_GETTER, _PARTIAL, _OF_TORCH, *_MEMMAPS, *_WRAPPERS, *_UFUNCS}
_METHODS: dict[str, Danger] = {"zoneinfo.ZoneInfo._unpickle": "allowed"}
_MAX_STEPS = 8  # attributes of attributes
_ORDER: tuple[Danger, ...] = ("allowed", "unknown", "dangerous")


@lru_cache(maxsize=512)
def judge(module: str, name: str) -> Danger:
    """How much harm it may do to load a pickle that names `name` of `module`, and may call it.

    A name with dots is followed by attributes: of classes in classes nothing is known, all others
    are dangerous, for they reach what no list has.
    """
    module, name = _of_python_3(module, name)
    parts, modules = name.split("."), module.split(".")
    if name in HARMLESS.get(module, ()):
        return "allowed"
    if any(".".join(modules[:count]) in MODULES for count in range(1, len(modules) + 1)):
        return "dangerous"
    if ANYWHERE.intersection(modules[1:] + parts) or ANYTHING.intersection(parts):
        return "dangerous"
    if f"{module}.{name}" in MODULES or name in NAMES.get(module, ()):
        return "dangerous"
    if any(m.fullmatch(module) and n.fullmatch(name) for m, n in HARMLESS_LIKE):
        return "allowed"
    if any(_DUNDER.fullmatch(part) for part in parts):
        return "dangerous"
    if module == "pandas" and name.startswith("read_"):
        return "dangerous"
    return "dangerous" if len(parts) > 1 and not _NESTED_CLASS.fullmatch(name) else "unknown"


def judge_call(call: Call) -> tuple[Danger, str]:
    """How much harm a call may do that a pickle makes, and what it calls.

    What another call gave is called by no pickle that was not written for that, but for classes
    within classes and a few known methods of classes.
    """
    function = call.function
    if isinstance(function, Call):
        return _judge_given(function), f"what {_shown(function.function)} gives"
    if not isinstance(function, Global):
        return "unknown", _shown(function)
    return _judge_use(call, _of_python_3(function.module, function.name)), _shown(function)


def _judge_given(function: Call) -> Danger:
    """How much harm it may do to call what another call gives."""
    if known := _METHODS.get(_reach(function) or ""):
        return known
    if is_wrapper(function):
        return "unknown"  # which cannot be called: this is no opcode but a byte of its array
    attribute = _second(function)
    within = _is_getter(function) and isinstance(attribute, str) and re.fullmatch(CLASS, attribute)
    return "unknown" if within and _judge_getter(function) != "dangerous" else "dangerous"


def _judge_use(call: Call, name: tuple[str, str]) -> Danger:
    """How much harm a call of what has this name may do, by its arguments where they matter."""
    first, second = _first(call), _second(call)
    if name == _GETTER:
        return _judge_getter(call)
    if name == _PARTIAL:
        return _judge_partial(call)
    if name == _OF_TORCH:
        # Pickles of single tensors have it, with a file of torch, which the caller looks through.
        return "unknown" if isinstance(first, Chars | Call) else "dangerous"
    if name == ("builtins", "type"):
        return "allowed" if len(call.arguments) == 1 else "dangerous"
    if name == ("_codecs", "encode"):
        return "allowed" if second in _LATIN1 else "unknown"
    if name in _MEMMAPS:
        return "dangerous"  # the class of an array, but by itself it opens a file
    if name in _UFUNCS:
        ours = isinstance(first, str) and first.split(".")[0] in ("numpy", "scipy")
        return "unknown" if ours else "dangerous"
    if name in _BY_TYPE:
        return _worst((judge(*name), _judge_called(first)))
    if name in _NEW:
        return _worst(_judge_new(one) for one in call.arguments[: 1 + (name == _NEW[0])])
    if name[0] == _OF_RANDOM:
        return _judge_random(call, name[1])
    return judge(*name)


def _judge_getter(call: Call) -> Danger:
    """How much harm it may do to look up an attribute: of a class, a module or an object."""
    attribute = _second(call)
    if not isinstance(attribute, str) or _DUNDER.fullmatch(attribute) or attribute in OF_FRAMES:
        return "dangerous"
    if (reached := _reach(call)) is None:
        # A method of an object, but nobody looks up attributes of attributes of one.
        return "dangerous" if _is_getter(_first(call)) else "unknown"
    if reached in _METHODS:
        return _METHODS[reached]
    parts = reached.split(".")
    # What a name stands for in a module may be another module, whose own name is the end of it.
    ends = [(".".join(parts[start:-1]), attribute) for start in range(len(parts) - 1)]
    if not _DELICATE.isdisjoint(ends):
        return "dangerous"
    return "dangerous" if any(judge(*end) == "dangerous" for end in ends) else "unknown"


def _reach(value: object) -> str | None:
    """The name with dots of a global, or of an attribute of one; None of anything else."""
    names: list[str] = []
    while isinstance(value, Call) and _is_getter(value) and len(names) < _MAX_STEPS:
        attribute = _second(value)
        if not isinstance(attribute, str):
            return None
        names.append(attribute)
        value = _first(value)
    if not isinstance(value, Global):
        return None
    return ".".join([*_of_python_3(value.module, value.name), *reversed(names)])


def _judge_partial(call: Call) -> Danger:
    """How much harm a call of `partial` may do; its state has the function once more."""
    again = [state[0] if isinstance(state, tuple) and state else None for state in call.states]
    named = all(isinstance(one, Global) for one in [_first(call), *again])
    return "unknown" if named else "dangerous"


def _judge_called(function: object) -> Danger:
    """How much harm it may do that a function which is called calls another."""
    return judge(function.module, function.name) if isinstance(function, Global) else "dangerous"


def _judge_new(made: object) -> Danger:
    """How much harm it may do that an object of a class is made."""
    if isinstance(made, Call):
        return "dangerous" if _judge_given(made) == "dangerous" else "allowed"
    return "allowed" if isinstance(made, Global) else "unknown"  # the class is judged by itself


def _judge_random(call: Call, name: str) -> Danger:
    """How much harm it may do to make one of numpy's generators, by a function that is given."""
    maker = _second(call) if name in _GENERATORS else _first(call)
    if isinstance(maker, Global) and name in _GENERATORS:
        maker = (maker.module, maker.name) != (_OF_RANDOM, "__bit_generator_ctor")
        return "dangerous" if maker else "allowed"
    return "dangerous" if isinstance(maker, Call) else judge(_OF_RANDOM, name)


def handed_over(calls: Iterable[Call]) -> Iterator[Global]:
    """What calls are given that is harmless only where it is called by the pickle itself.

    The class of arrays in files is named by those arrays, too, and by the wrappers of joblib.
    """
    seen: dict[int, object] = {}
    for call in calls:
        name = _name_of(call)
        waiting: list[object] = [call.arguments, call.keywords, call.elements, call.pairs]
        wrapper = is_wrapper(call)
        if name in _ARRAYS or wrapper:
            waiting[0] = call.arguments[1:]
        if not wrapper:
            waiting += call.states
        while waiting:
            value = waiting.pop()
            if isinstance(value, Global):
                if _of_python_3(value.module, value.name) in _DELICATE:
                    yield value
            elif _holds(value) and id(value) not in seen:
                seen[id(value)] = value
                waiting += (child for _, child in children(value))


def _holds(value: object) -> bool:
    return isinstance(value, CONTAINERS) and not isinstance(value, Call)


def may_be_anything(value: object) -> bool:
    """Whether a value may be text, or be called, when the pickle is loaded: what a function gives.

    An object of a class is none of both, nor what is known to make arrays and the like.
    """
    if not isinstance(value, Call):
        return isinstance(value, Extension | Persistent)
    function = value.function
    if not isinstance(function, Global):
        return True
    if function.name in ("str", "unicode"):
        return True
    return not function.name[:1].isupper() and judge(function.module, function.name) != "allowed"


def is_delicate(module: str, name: str) -> bool:
    """Whether a name is harmless only where a pickle itself calls it."""
    return _of_python_3(module, name) in _DELICATE


def _worst(dangers: Iterable[Danger]) -> Danger:
    return max(dangers, key=_ORDER.index, default="allowed")


def _first(call: Call) -> object:
    return call.arguments[0] if call.arguments else None


def _second(call: Call) -> object:
    return call.arguments[1] if len(call.arguments) > 1 else None


def _name_of(call: Call) -> tuple[str, str] | None:
    """The module and name of what is called, as Python 3 has them."""
    function = call.function
    return _of_python_3(function.module, function.name) if isinstance(function, Global) else None


def _is_getter(value: object) -> bool:
    return isinstance(value, Call) and _name_of(value) == _GETTER


def _shown(function: object) -> str:
    if isinstance(function, Global):
        return str(function)
    return "another call" if isinstance(function, Call) else "something that is not in the file"


def _of_python_3(module: str, name: str) -> tuple[str, str]:
    if (module, name) in NAME_MAPPING:
        return NAME_MAPPING[module, name]
    return IMPORT_MAPPING.get(module, module), name
