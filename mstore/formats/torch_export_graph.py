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
from collections import Counter

from mstore.errors import LimitExceededError
from mstore.formats.base import Danger, Finding, quote
from mstore.formats.pickle_policy import judge
from mstore.layout import ByteReader

MAX_GRAPH = 256 << 20
"""Most bytes of a graph that are searched; 2000 for each node are usual."""

MAX_KEYS = 2_000_000
"""Most places of a graph that are looked at."""

MAX_VALUES = 100_000
"""Most of them that differ."""

MAX_TOLD = 1000
"""Most findings of one danger that are told of a graph."""

_WINDOW = 4 << 20
_OVERLAP = 64 << 10  # of neighbouring windows, so that nothing falls between them
_REACH = 8 << 10  # bytes of a window that are there behind all that is looked at

_KEYS = re.compile(rb'"(expr_str|target)"|(default_factory_module|__enum__)')
_TEXT = re.compile(rb'\s{0,16}:\s{0,16}"([^"\\]{0,4000})"')
_NO_TEXT = rb"\s{0,16}(?:[,\]}]|:\s{0,16}[{n]"  # what has the name of a key, but is none or no text
_IGNORED = {
    b"expr_str": re.compile(_NO_TEXT + rb")"),
    b"target": re.compile(_NO_TEXT + rb'|:\s{0,16}"(?!torch|_operator|math))'),
}
_FACTORY = re.compile(rb'[\\" :]{1,64}([\w.]+)[\\" ,]{1,64}default_factory_name[\\" :]{1,64}(\w+)')
_ENUM = re.compile(rb'[\\": ,true]{1,80}fqn[\\" :]{1,64}([\w.]+):([\w.]+)')
_ESCAPE = re.compile(rb"\\u00(?:[2-6][0-9a-fA-F]|7[0-9a-eA-E])")
_BACKSLASHES = 64  # as many in a row are no text that anybody writes

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


def graph_findings(reader: ByteReader, where: str) -> list[Finding]:
    """What of a graph, or a configuration, runs code; each once. `where` is its place in a file.

    Raises LimitExceededError if there is more of it than can be judged, and no danger in the rest.
    """
    if reader.size > MAX_GRAPH:
        raise LimitExceededError(f"it has {reader.size} bytes; at most {MAX_GRAPH} are searched")
    search = _Search(where)
    for start in range(0, reader.size, _WINDOW):
        search.look_at(reader.read(start, _WINDOW + _OVERLAP))
    if search.too_many and all(one.danger != "dangerous" for one in search.found):
        raise LimitExceededError("it has too many names and sizes to be judged")
    return list(search.found)


class _Search:
    """Goes through a graph part by part, and keeps what it finds in the order of the graph."""

    def __init__(self, where: str) -> None:
        self.found: dict[Finding, None] = {}
        self.too_many = False
        self._where = where
        self._told: Counter[str] = Counter()
        self._keys = MAX_KEYS
        self._known: set[int] = set()  # hashes of what was judged already

    def look_at(self, part: bytes) -> None:
        """Look at a part, which may begin and end anywhere."""
        if any(_is_escape(part, match.start()) for match in _ESCAPE.finditer(part)):
            self._tell("dangerous", "has plain letters written as numbers, to hide them")
        end = len(part) - _REACH if len(part) == _WINDOW + _OVERLAP else len(part)
        for match in _KEYS.finditer(part):
            if match.start() > end:
                return
            self._keys -= 1
            if self._keys < 0 or len(self._known) > MAX_VALUES:
                self.too_many = True
                return
            if match[2]:
                self._tell(*_judge_module(part, match))
            else:
                self._judge_text(part, match)

    def _judge_text(self, part: bytes, key: re.Match[bytes]) -> None:
        """An expression, or what a node calls."""
        if text := _TEXT.match(part, key.end()):
            value = key[1] + text[1]
            if (known := hash(value)) in self._known:
                return
            self._known.add(known)
            judge_it = _judge_expression if key[1] == b"expr_str" else _judge_target
            self._tell(*judge_it(text[1].decode("utf-8", "replace")))
        elif not _IGNORED[key[1]].match(part, key.end()):
            what = f"has an entry {quote(key[1].decode())} that is written in an unusual way"
            self._tell("dangerous", what)

    def _tell(self, danger: Danger, what: str = "") -> None:
        finding = Finding(danger, what, self._where)
        if danger != "allowed" and finding not in self.found and self._told[danger] < MAX_TOLD:
            self._told[danger] += 1
            self.found[finding] = None


def _is_escape(part: bytes, at: int) -> bool:
    """Whether the backslash there is none that another one before it makes a plain one."""
    before = part[max(0, at - _BACKSLASHES) : at]
    run = len(before) - len(before.rstrip(b"\\"))
    return run % 2 == 0


def _judge_expression(text: str) -> tuple[Danger, str]:
    """How dangerous an expression of sizes is, which is allowed if it is arithmetic."""
    what = f"has Python evaluate {quote(text)} as a size"
    if _PYTHON.search(_QUOTED.sub("0", text)):
        return "dangerous", what
    for match in _CALL.finditer(text):
        # Brackets behind brackets call what is in the first.
        if not _FUNCTION.fullmatch(match[1]):
            return "dangerous" if judge("builtins", match[1]) == "dangerous" else "unknown", what
    return "allowed", what


def _judge_target(name: str) -> tuple[Danger, str]:
    """How dangerous it is what a node calls, which is allowed if nothing is looked up."""
    what = f"has a node that calls {quote(name)}"
    if not name.startswith(_LOOKED_UP) or _OPERATOR.fullmatch(name):
        return "allowed", what
    first, *parts = name.split(".")
    module, _, function = name.rpartition(".")
    if parts[-1:] == ["load_library"] or not {first, *parts[:-1]}.isdisjoint(_OF_PYTHON):
        return "dangerous", what
    return judge(module, function), what


def _judge_module(part: bytes, key: re.Match[bytes]) -> tuple[Danger, str]:
    """How dangerous it is what a structure of inputs or outputs imports."""
    named = (_FACTORY if key[2] == b"default_factory_module" else _ENUM).match(part, key.end())
    if named is None:
        return "unknown", "imports a module for its inputs or outputs"
    module, name = named[1].decode("utf-8", "replace"), named[2].decode("utf-8", "replace")
    return judge(module, name), f"imports {quote(f'{module}.{name}')}"
