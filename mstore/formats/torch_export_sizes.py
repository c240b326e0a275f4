"""Whether what Python evaluates of a graph of `torch.export` is arithmetic of sizes, and no more.

Sizes are expressions of SymPy, `Mul(Integer(2), Symbol('s0', integer=True))` or `2*s0`; guards
compare those of the inputs, `L['x'].size()[0] % 8 == 0`. Brackets are replaced by a symbol where
they close; so every call and every power is seen by itself. Powers of numbers, such as `9**9**9`,
take for ever: exponents are small, and are numbers. Source: torch/utils/_sympy/functions.py and
printers.py of PyTorch 2.13.
"""

import re
from math import inf, prod
from string import ascii_letters, digits

MAX_LENGTH = 16_000
"""Most characters of an expression."""

_MAX_POWER = 10_000  # of all exponents multiplied

_NUMBER = r"\d{1,20}+(?:\.\d{0,30}+)?+(?:e[+-]?\d{1,3}+)?+(?![\w.])"
_SYMBOLS = re.compile(
    rf"(?<!\w)(?:Symbol\('[A-Za-z]\w{{0,60}}+'(?:, ?[a-z_]{{1,20}}=(?:True|False))*+\)"
    rf"|Integer\((-?{_NUMBER})\)|Float\('(-?{_NUMBER})'(?:, ?[a-z]{{1,9}}=\d{{1,4}})?+\)"
    r"|Rational\((-?\d{1,9}), ?\d{1,9}\))",
    re.ASCII,
)
_INPUTS = re.compile(
    r"(?<!\w)L(?:\['[^'\"\\\[\]\x00-\x1f]{1,200}+'\]|\[\d{1,9}\])++"
    r"(?:\.(?:size|stride)\(\)\[\d{1,9}\]|\.storage_offset\(\))?+",
    re.ASCII,
)
_OF_MATH = re.compile(r"(?<!\w)(?:math|torch)\.(?=(?:floor|ceil|trunc|sqrt|sym_[a-z]+)\()")
_PIECES = re.compile(r"([^()]*+)([()]?)")
_OF_NAMES = ascii_letters + digits + "_"
_FLAT = re.compile(
    rf"(?:(?<![\w.])(?:{_NUMBER}|(?:[a-z]{{1,4}}\d{{1,9}}|(?:int_)?oo|[Tt]rue|[Ff]alse)(?![\w.]))"
    r"(?! ++(?!and\b|or\b)\w)"  # or it is a call, or no arithmetic at all
    r"|(?<![\w.])(?:and|or|not)(?![\w.])|//?|\*\*?|<=?(?!<)|>=?(?!>)|[=!]=|[-+%,&|~ ])*+"
)
_POWER = re.compile(rf"\*\* ?-?(?:({_NUMBER})(?! *\*\*))?")
_EXPONENT = re.compile(rf"[^,]*+, ?-?({_NUMBER})(?:, ?[^,]*+)?")
_FUNCTION = re.compile(
    r"FloorDiv|ModularIndexing|Where|PythonMod|Mod|CleanDiv|(Ceil|Floor|Trunc|Round)To(Int|Float)"
    r"|CeilDiv|RShift|FloatTrueDiv|IntTrueDiv|RoundDecimal|ToFloat|Identity|BitwiseFn_\w+"
    r"|IsNonOverlappingAndDenseIndicator|OpaqueUnaryFn_\w+|Max|Min|Abs|Eq|Ne|[GL][te]"
    r"|And|Or|Not|Xor|Piecewise|ExprCondPair|floor|ceiling|sqrt|log|exp|sign|Integer|Float"
    r"|Rational|Add|Mul|(Strict)?(Greater|Less)Than|Equality|Unequality|and|or|not",
    re.ASCII,
)
_OF_GUARDS = re.compile(
    r"Mod|PythonMod|max|min|abs|int|float|round|floor|ceil|trunc|sqrt|sym_[a-z]+|and|or|not"
)
_POWERS = ("Pow", "PowByNatural", "FloatPow", "LShift")


def is_size(text: str) -> bool:
    """Whether an expression of SymPy is arithmetic."""
    return len(text) <= MAX_LENGTH and _is_arithmetic(_SYMBOLS.sub(_value, text), _FUNCTION)


def is_guard(text: str) -> bool:
    """Whether a condition on the sizes of inputs is arithmetic."""
    if len(text) > MAX_LENGTH:
        return False
    return _is_arithmetic(_OF_MATH.sub("", _INPUTS.sub("s0", text)), _OF_GUARDS)


def _value(match: re.Match[str]) -> str:
    """A symbol for a symbol, and a number for a number."""
    return match[1] or match[2] or match[3] or "s0"


def _is_arithmetic(text: str, functions: re.Pattern[str]) -> bool:
    """Whether an expression calls nothing but these `functions`, and is flat otherwise."""
    if not text.isascii():  # Python takes other letters for these, SymPy before it looks at them
        return False
    power = 1.0
    levels: list[list[str]] = [[]]  # what is in each bracket that is open
    for piece, bracket in _PIECES.findall(text):
        levels[-1].append(piece)
        if bracket == "(":
            levels.append([])
        elif bracket == ")":
            inner = "".join(levels.pop())
            if not levels:
                return False
            before = levels[-1][-1]
            stem = before.rstrip(_OF_NAMES)
            name = before[len(stem) :]
            power *= _power(name, inner)
            if name and name not in _POWERS and not functions.fullmatch(name):
                return False
            if not _FLAT.fullmatch(inner):
                return False
            levels[-1][-1] = stem + "s0"
    text = "".join(levels[0])
    power *= _power("", text)
    return len(levels) == 1 and power <= _MAX_POWER and _FLAT.fullmatch(text) is not None


def _power(name: str, inner: str) -> float:
    """All exponents multiplied of what is called `name`, and has brackets around `inner`."""
    exponents = [match[1] for match in _POWER.finditer(inner)]
    if name in _POWERS:
        exponent = _EXPONENT.fullmatch(inner)
        exponents.append(exponent and exponent[1])
    return prod(max(1.0, float(one)) if one else inf for one in exponents)
