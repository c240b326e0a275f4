"""What PyTorch runs of the graph in an archive of `torch.export`, which it makes Python code of.

Loading an archive makes the source of a function of its graph, with the names of the nodes in it
as they are, and runs that; sizes such as `"expr_str": "Add(Symbol('s0', integer=True),
Integer(1))"` are given to SymPy, which has Python evaluate them; `guards_code` is Python; what a
node calls is looked up among all that the module `torch` reaches; and the structure of inputs and
outputs, JSON in a text, may name modules to be imported. So no graph is harmless by itself, and
one in which any text is more than real ones have is dangerous.

A graph may have many megabytes. Nearly all of it is consumed by one expression, that of what is
plain; all other texts are looked at one by one. Source: `GraphModuleDeserializer` in
torch/_export/serde/serialize.py, `PythonCode` in torch/fx/graph.py, torch/export/_unlift.py and
torch/utils/_pytree.py of PyTorch 2.13, and sympy/parsing/sympy_parser.py of SymPy 1.14.
"""

import re
from collections.abc import Callable, Iterator

from mstore.errors import FormatError, LimitExceededError
from mstore.formats.base import Danger, Finding, quote
from mstore.formats.pickle_policy import judge
from mstore.formats.torch_export_sizes import is_guard, is_size
from mstore.layout import ByteReader
from mstore.strictjson import parse_json

MAX_GRAPH = 128 << 20
"""Most bytes of all graphs that are judged; 2000 for each node are usual."""

MAX_STOPS = 500_000
"""Most texts of all graphs that are looked at one by one."""

MAX_JUDGED = 4 << 20
"""Most bytes of those of them that differ, and 32 more for each."""

MAX_TOLD = 1000
"""Most findings of a graph."""

_WINDOW = 4 << 20
_REACH = 1 << 20  # most bytes of a text that is looked at, with its key

RUNS = "makes Python code of its graph and runs it"
"""What loading does to every graph."""

_STRING = rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"'
_COLON = rb"[ \t\n\r]*+:[ \t\n\r]*+"
_INERT = rb"stack_trace|nn_module_stack|source_fn_stack|torch_fn|custom|from_node"
_NAMES = rb"name|as_name"
_TARGETS = rb"target|as_operator"
_SIZES = rb"expr_str"
_SPECS = rb"in_spec|out_spec"
_GUARDS = rb"guards_code"
_FREE = rb"as_string|fqn|class_fqn|parameter_name|buffer_name|tensor_constant_name|custom_obj_name"

_OPERATION = (
    rb"torch\.ops\.(?:aten|prims?|higher_order|quantized(?:_decomposed)?|mkldnn|onednn|sparse"
    rb"|_?c10d_functional|inductor|inductor_prims|rngprims|export)"
    rb"\.(?:_?[A-Za-z]\w*+|__i?(?:and|or|xor|[lr]shift|is|isnot|not|contains|getitem)__)"
    rb"(?:\.[A-Za-z]\w*+)?|torch\._?sym_[a-z]\w*+|math\.[a-z]\w*+"
    rb"|_operator\.(?:eq|ne|[lg][et]|neg|pos|abs|inv|invert|mul|add|sub|floordiv|truediv|mod|pow"
    rb"|and_|or_|xor|not_|[lr]shift|getitem|index|matmul)"
    rb"|torch\._functorch\.predispatch\.(?:lazy_load_decompositions|_unwrap_for_grad"
    rb"|_(?:add|remove)_batch_dim"
    rb"|_(?:vmap|jvp)_(?:in|de)crement_nesting|_(?:make|unpack|enter|exit)_dual(?:_level)?)"
)
_SYMBOL = (
    rb"(?:Mul\(Integer\(\d{1,9}\), )?+Symbol\('[a-z]{1,4}\d{1,9}'(?:, [a-z]{1,20}=True)*+\)\)?+"
)
_PLAIN = re.compile(
    rb'(?:[^"]++'
    rb'|"(?!(?:%s)")[\w.:+/@-]*+"'
    rb'|"(?:%s)"%s(?:%s)'
    rb'|"(?:%s)"%s"\w*+"'
    rb'|"(?:%s)"%s"(?:%s)"'
    rb'|"(?:%s)"%s"(?:%s)")*+'
    % (
        b"|".join((_INERT, _NAMES, _TARGETS, _SIZES, _SPECS, _GUARDS, _FREE)),
        *(_INERT, _COLON, _STRING),
        *(_NAMES, _COLON),
        *(_TARGETS, _COLON, _OPERATION),
        *(_SIZES, _COLON, _SYMBOL),
    ),
    re.DOTALL,
)
"""What needs no look: all that is no text, names, known operations, symbols, and what is inert."""

_TEXT, _BETWEEN = re.compile(_STRING, re.DOTALL), re.compile(_COLON)
_VALUE = re.compile(rb"%s|\[[ \t\n\r]*+(?:%s[ \t\n\r,]*+)*+" % (_STRING, _STRING), re.DOTALL)
_KEY = re.compile(rb"[\w.:+/@-]*+")
_HIDDEN = re.compile(rb"\\u00[2-7]")
_CUSTOM = re.compile(r"torch\.ops(?:\.(?!_)\w++){2,3}|#[\w.:]++", re.ASCII)
_LOOKED_UP = ("torch", "_operator", "math", "#")
_OPERATION_OF = re.compile(_OPERATION.decode(), re.ASCII)
_NAME, _PLACE = re.compile(r"\w*+", re.ASCII), re.compile(r"[\w.:+/@-]*+", re.ASCII)
_UNQUOTED = re.compile(r"[^'\"\\\x00-\x1f\x7f]*+")
_ASSERTION = re.compile(r"Runtime assertion failed for expression [^'\"\\\x00-\x1f]*+'\w++'")

_Deed = tuple[str, Danger]  # what a text has loading do


class GraphJudge:
    """Says what loading the graphs of an archive does; its limits are for all of them together."""

    def __init__(self) -> None:
        self._bytes = MAX_GRAPH
        self._stops = MAX_STOPS
        self._left = MAX_JUDGED

    def findings(self, reader: ByteReader, where: str) -> list[Finding]:
        """That a graph is run, and what of it is dangerous or unknown; `where` is its place.

        Nothing is told of what comes after a danger. Raises FormatError and LimitExceededError if
        it cannot be judged.
        """
        self._bytes -= reader.size
        if self._bytes < 0:
            raise LimitExceededError(f"it has graphs of more than {MAX_GRAPH} bytes")
        self._found: dict[_Deed, None] = {}
        self._known: set[tuple[bytes, bytes]] = set()
        self._dangerous = False
        at = 0
        while at < reader.size and not self._dangerous:
            part = reader.read(at, _WINDOW)
            taken = self._look_at(part, last=at + len(part) == reader.size)
            if not taken:
                raise LimitExceededError(f"it has a text of more than {_WINDOW} bytes")
            at += taken
        deeds = ((RUNS, "unknown"), *self._found)
        return [Finding(danger, what, where) for what, danger in deeds]

    def _look_at(self, part: bytes, *, last: bool) -> int:
        """Look at a part of a graph, the `last` or not. Returns how many of its bytes are done."""
        at = 0
        while not self._dangerous:
            matched = _PLAIN.match(part, at)
            assert matched is not None  # of anything, if only of nothing
            at = matched.end()
            text = _TEXT.match(part, at)
            if at == len(part) or (not last and at + 2 * _REACH > len(part) and at):
                return at
            if text is None:
                if last:
                    raise FormatError("its JSON is malformed")
                return at
            self._stops -= 1
            if self._stops < 0:
                raise LimitExceededError("it has too many texts to be judged")
            at = self._look_at_text(part, text)
        return at

    def _look_at_text(self, part: bytes, text: re.Match[bytes]) -> int:
        """Look at a text that is not plain, with what it is the key of. Returns where that ends."""
        key = text[0][1:-1]
        colon, judge_it = _BETWEEN.match(part, text.end()), _JUDGES.get(key)
        if colon is None or judge_it is None:
            if not _KEY.fullmatch(key):
                self._judge(b"", text[0])
            return text.end()
        value = _VALUE.match(part, colon.end())
        if value is None:
            if part[colon.end() : colon.end() + 1] == b'"':
                self._tell((f"has a text without an end as {quote(key.decode())}", "dangerous"))
            return colon.end()
        for one in _TEXT.findall(value[0]):
            self._judge(key, one)
        return value.end()

    def _judge(self, key: bytes, raw: bytes) -> None:
        """Look at a text that `key` is the key of, as it is in the JSON."""
        if (key, raw) in self._known or self._dangerous:
            return
        self._known.add((key, raw))
        self._left -= len(raw) + 32
        if self._left < 0:
            raise LimitExceededError("it has too much text to be judged")
        for deed in _deeds(key, raw):
            self._tell(deed)

    def _tell(self, deed: _Deed) -> None:
        self._dangerous |= deed[1] == "dangerous"
        if len(self._found) < MAX_TOLD or self._dangerous:
            self._found[deed] = None


def _deeds(key: bytes, raw: bytes) -> Iterator[_Deed]:
    """What a text has loading do that `key` is the key of."""
    if _HIDDEN.search(raw):
        yield "has plain letters written as numbers, to hide them", "dangerous"
        return
    try:
        text = parse_json(raw.decode("utf-8"))
        assert isinstance(text, str)
        yield from _JUDGES.get(key, _judge_other)(text)
    except (FormatError, LimitExceededError, UnicodeDecodeError):
        yield f"has a text that is malformed as {quote(key.decode())}", "dangerous"


def _judge_name(text: str) -> Iterator[_Deed]:
    """The name of a node, which is one in the code."""
    if not _NAME.fullmatch(text):
        yield f"names a node {quote(text)}", "dangerous"


def _judge_other(text: str) -> Iterator[_Deed]:
    """A text that may be anywhere in the code, or is none that real graphs have."""
    yield f"has the text {quote(text)}, which may be code", "dangerous"


def _judge_free(text: str) -> Iterator[_Deed]:
    """A text that is in quotes in the code."""
    if not _UNQUOTED.fullmatch(text) and not _ASSERTION.fullmatch(text):
        yield f"has the text {quote(text)}, which may end the quotes around it", "dangerous"


def _judge_target(text: str) -> Iterator[_Deed]:
    """What a node calls, of which nothing is known."""
    if _CUSTOM.fullmatch(text):
        yield f"has a node that calls {quote(text)}", "unknown"
    elif text.startswith(_LOOKED_UP) and not _OPERATION_OF.fullmatch(text):
        yield f"has a node that calls {quote(text)}", "dangerous"
    elif not _PLACE.fullmatch(text):
        yield from _judge_other(text)


def _judge_size(text: str) -> Iterator[_Deed]:
    if not is_size(text):
        yield f"has Python evaluate {quote(text)} as a size", "dangerous"


def _judge_guard(text: str) -> Iterator[_Deed]:
    if not is_guard(text):
        yield f"has Python evaluate {quote(text)} as a guard", "dangerous"


def _judge_spec(text: str) -> Iterator[_Deed]:
    """The structure of inputs or outputs: JSON, in which texts may be JSON, too."""
    values = [parse_json(text)]
    while values:
        value = values.pop()
        if isinstance(value, str):
            yield from _judge_free(value)
        elif isinstance(value, list):
            values += value
        elif isinstance(value, dict):
            yield from _imported(value)
            values += value
            context = value.get("context")
            if isinstance(context, str) and not _PLACE.fullmatch(context):
                value = {**value, "context": parse_json(context)}
            values += value.values()


def _imported(value: dict[str, object]) -> Iterator[_Deed]:
    """What an enumeration, or what makes the values of a `defaultdict`, has imported."""
    named = None
    if "__enum__" in value:
        named = str(value.get("fqn")).partition(":")
    elif "default_factory_module" in value:
        named = str(value["default_factory_module"]), ":", str(value.get("default_factory_name"))
    if named and (danger := judge(named[0], named[2])) != "allowed":
        yield f"imports {quote(f'{named[0]}.{named[2]}')}", danger


_JUDGES: dict[bytes, Callable[[str], Iterator[_Deed]]] = {
    **dict.fromkeys((b"name", b"as_name"), _judge_name),
    **dict.fromkeys((b"target", b"as_operator"), _judge_target),
    **dict.fromkeys((b"in_spec", b"out_spec"), _judge_spec),
    **dict.fromkeys(_FREE.split(b"|"), _judge_free),
    b"expr_str": _judge_size,
    b"guards_code": _judge_guard,
}
