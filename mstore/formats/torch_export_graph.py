"""What PyTorch evaluates and looks up when it reads the graph of an archive of `torch.export`.

Sizes that are expressions are given to SymPy as text, such as `"expr_str": "Add(Symbol('s0',
integer=True), Integer(1))"`, which has Python evaluate it. What a node calls is looked up by a name
with dots, `"target": "torch.ops.aten.add.Tensor"`, among all that the module `torch` reaches, which
is nearly everything. And the structure of inputs and outputs, JSON in a text, may name a module to
be imported: that of an enumeration, or of what makes the values of a `defaultdict`.

A graph may have many megabytes, so it is searched for these and not parsed. Source:
`_parse_sym_expr` and `deserialize_operator` in torch/_export/serde/serialize.py, torch/utils/
_pytree.py of PyTorch 2.13, and sympy/parsing/sympy_parser.py of SymPy 1.14.
"""

import re
import sys
from collections.abc import Iterator

from mstore.formats.base import Finding, quote
from mstore.formats.pickle_policy import judge
from mstore.layout import ByteReader

MAX_GRAPH = 256 << 20
"""Most bytes of a graph that are searched; 2000 for each node are usual."""

_WINDOW = 4 << 20
_OVERLAP = 64 << 10  # of neighbouring windows, so that nothing falls between them
_REACH = 8 << 10  # bytes of a window that are there behind all that is looked at

_KEYS = re.compile(rb'"(expr_str|target)"|(default_factory_module|__enum__)')
_TEXT = re.compile(rb'\s{0,16}:\s{0,16}"((?:[^"\\]|\\.){0,4000})"', re.DOTALL)
_NO_KEY = re.compile(rb"\s{0,16}[,\]}]|\s{0,16}:\s{0,16}[{n]")  # a value, or one that is no text
_FACTORY = re.compile(rb'[\\" :]{1,64}([\w.]+)[\\" ,]{1,64}default_factory_name[\\" :]{1,64}(\w+)')
_ENUM = re.compile(rb'.{0,200}?fqn[\\" :]{1,64}([\w.]+):([\w.]+)')
_HIDDEN = re.compile(rb"(?<!\\)(?:\\\\)*\\u00(?:[2-6][0-9a-fA-F]|7[0-9a-eA-E])")

_PYTHON = re.compile(r"""["'\\\[\]{}@:;]|__|\blambda\b|\.\s*(?![eE][-+]?\d)[A-Za-z_]""")
_QUOTED = re.compile(r"'(?:(?!\w*__)[A-Za-z]\w*|-?\d[\d.]*(?:e[-+]?\d+)?)'")
"""The name of a symbol, or a number."""

_CALL = re.compile(r"([A-Za-z_]\w*|\))\s*\(")
_FUNCTION = re.compile(
    r"FloorDiv|ModularIndexing|Where|PythonMod|Mod|CleanDiv|(Ceil|Floor|Trunc|Round)To(Int|Float)"
    r"|CeilDiv|[LR]Shift|PowByNatural|Float(Pow|TrueDiv)|IntTrueDiv|RoundDecimal|ToFloat|Identity"
    r"|IsNonOverlappingAndDenseIndicator|(OpaqueUnary|Bitwise)Fn_\w+|Max|Min|Abs|Pow|Eq|Ne|[GL][te]"
    r"|And|Or|Not|Xor|Piecewise|ExprCondPair|floor|ceiling|sqrt|log|exp|sign|Integer|Float"
    r"|Rational|Symbol|Add|Mul|(Strict)?(Greater|Less)Than|Equality|Unequality|and|or|not"
)
_OPERATOR = re.compile(
    r"torch\.ops\.(?!_)\w+\.\w+(\.(?!_)\w+)?|torch\.(sym_\w+|_sym_\w+)|math\.[a-z]\w*"
    r"|_operator\.(?!call\b|attrgetter\b|methodcaller\b)[a-z]\w*"
)
_LOOKED_UP = ("torch", "_operator", "math")
_OF_PYTHON = sys.stdlib_module_names - {"math", "operator", "_operator"}


def graph_findings(reader: ByteReader, where: str) -> Iterator[Finding]:
    """What of a graph, or a configuration, runs code; each once. `where` is its place in a file."""
    if reader.size > MAX_GRAPH:
        what = f"has a graph of {reader.size} bytes, which is too large to be judged"
        yield Finding("unknown", what, where)
        return
    told: set[Finding] = set()
    for start in range(0, max(reader.size, 1), _WINDOW):
        for finding in _search(reader.read(start, _WINDOW + _OVERLAP), where):
            if finding not in told:
                told.add(finding)
                yield finding


def _search(part: bytes, where: str) -> Iterator[Finding]:
    """The findings in a part of a graph, which may begin and end anywhere."""
    if _HIDDEN.search(part):
        yield Finding("dangerous", "has plain letters written as numbers, to hide them", where)
    end = len(part) - _REACH if len(part) == _WINDOW + _OVERLAP else len(part)
    for match in _KEYS.finditer(part):
        if match.start() > end:
            return
        if match[2]:
            yield from _judge_module(part, match, where)
        elif text := _TEXT.match(part, match.end()):
            value = text[1].decode("utf-8", "replace")
            found = _judge_expression(value) if match[1] == b"expr_str" else _judge_target(value)
            if found is not None:
                yield Finding(found.danger, found.what, where)
        elif not _NO_KEY.match(part, match.end()):
            what = f"has an entry {quote(match[1].decode())} that is written in an unusual way"
            yield Finding("dangerous", what, where)


def _judge_expression(text: str) -> Finding | None:
    """What is wrong with an expression of sizes; None if it is arithmetic."""
    if _PYTHON.search(_QUOTED.sub("0", text)):
        return Finding("dangerous", f"has Python evaluate {quote(text)} as a size")
    for match in _CALL.finditer(text):
        # Brackets behind brackets call what is in the first.
        if not _FUNCTION.fullmatch(match[1]):
            harm = judge("builtins", match[1]) == "dangerous"
            what = f"has Python evaluate {quote(text)} as a size"
            return Finding("dangerous" if harm else "unknown", what)
    return None


def _judge_target(name: str) -> Finding | None:
    """What is wrong with what a node calls; None if it is an operator, or nothing is looked up."""
    if not name.startswith(_LOOKED_UP) or _OPERATOR.fullmatch(name):
        return None
    first, *parts = name.split(".")
    module, _, function = name.rpartition(".")
    danger = judge(module, function)
    if parts[-1:] == ["load_library"] or not {first, *parts[:-1]}.isdisjoint(_OF_PYTHON):
        danger = "dangerous"
    return None if danger == "allowed" else Finding(danger, f"has a node that calls {quote(name)}")


def _judge_module(part: bytes, match: re.Match[bytes], where: str) -> Iterator[Finding]:
    """What a structure of inputs or outputs imports."""
    named = (_FACTORY if match[2] == b"default_factory_module" else _ENUM).match(part, match.end())
    if named is None:
        yield Finding("unknown", "imports a module for its inputs or outputs", where)
        return
    module, name = named[1].decode("utf-8", "replace"), named[2].decode("utf-8", "replace")
    if (danger := judge(module, name)) != "allowed":
        yield Finding(danger, f"imports {quote(f'{module}.{name}')}", where)
