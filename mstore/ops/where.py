"""The small language of `log --where`: `loss<0.3 and (author=ana or not note~"*wip*")`.

    condition  = both { "or" both }
    both       = one { "and" one }
    one        = "not" one | "(" condition ")" | KEY OP VALUE
    OP         = "<" | "<=" | ">" | ">=" | "=" | "==" | "!=" | "~"

KEY is one of the fields below, or else a key of the commit's metadata, with dots between nested
keys (`metadata.author` is the metadata key `author`). VALUE is a number, true, false, null, or
text; text that has spaces or operators in it, or looks like one of the others, stands in quotes.
`~` compares text with a pattern of `*`, `?` and `[…]`.

A condition on a key that a commit does not have, or on a value of another type than VALUE, is
false. Nothing is ever evaluated but these comparisons.
"""

import operator
import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from fnmatch import translate
from typing import Any, Final, NamedTuple, NoReturn

from mstore.errors import InvalidInputError
from mstore.ids import Id
from mstore.objects import Commit

Condition = Callable[[Commit, Id], bool]
"""Whether a commit, given with its id, is wanted."""

Field = Callable[[Commit, Id], object]
"""What a commit, given with its id, has under some key; MISSING when it has nothing there."""

MISSING: Final = object()
"""Not None, which metadata can hold."""

_TEXT_FIELDS: dict[str, Field] = {
    "author": lambda commit, _: commit.author,
    "message": lambda commit, _: commit.message,
    "id": lambda _, identifier: identifier.hex(),
}
_TIME_FIELDS = ("time", "date")
_METADATA = "metadata."

_MAX_DEPTH = 50
_TOKEN = re.compile(
    r"""\s*(?:
        (?P<operator> <=|>=|==|!=|[<>=~])
      | (?P<bracket> [()])
      | (?P<quoted> "(?:[^"\\]|\\.)*" | '(?:[^'\\]|\\.)*')
      | (?P<word> (?:[^\s()<>=~!"']|!(?!=))+)
      | (?P<end> \Z)
    )""",
    re.VERBOSE | re.DOTALL,
)
_NUMBER = re.compile(r"[+-]?(?:(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?|inf)")
_CONSTANTS: dict[str, bool | None] = {"true": True, "false": False, "null": None}
_COMPARE: dict[str, Callable[[Any, Any], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "=": operator.eq,
    "==": operator.eq,
    "!=": operator.ne,
}
_DATE = re.compile(r"(\d{4})(?:-(\d\d)(?:-(\d\d))?)?", re.ASCII)
_MOMENT = re.compile(r"\d{4}-\d\d-\d\d[T ]\S+", re.ASCII)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


def parse_where(text: str) -> Condition:
    """The condition that `text` states; raises InvalidInputError showing where it goes wrong."""
    return _Parser(text).parse()


def field_of(key: str) -> Field:
    """What `key` means in a condition, and as a key to sort by; times are microseconds."""
    if key in _TEXT_FIELDS:
        return _TEXT_FIELDS[key]
    if key in _TIME_FIELDS:
        return lambda commit, _: commit.time
    path = key.removeprefix(_METADATA)
    return lambda commit, _: _nested(commit.metadata, path)


class _Token(NamedTuple):
    kind: str
    text: str
    start: int


class _Parser:
    """A parser by recursive descent, one method per rule."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._depth = 0
        self._at = 0
        self._next = self._read()

    def parse(self) -> Condition:
        condition = self._condition()
        if self._next.kind != "end":
            self._fail("`and`, `or` or the end is expected")
        return condition

    def _condition(self) -> Condition:
        choices = [self._both()]
        while self._is_word("or"):
            self._take()
            choices.append(self._both())
        if len(choices) == 1:
            return choices[0]
        return lambda commit, identifier: any(one(commit, identifier) for one in choices)

    def _both(self) -> Condition:
        parts = [self._one()]
        while self._is_word("and"):
            self._take()
            parts.append(self._one())
        if len(parts) == 1:
            return parts[0]
        return lambda commit, identifier: all(one(commit, identifier) for one in parts)

    def _one(self) -> Condition:
        self._depth += 1
        if self._depth > _MAX_DEPTH:
            self._fail("it is nested too deeply")
        try:
            if self._is_word("not"):
                self._take()
                inner = self._one()
                return lambda commit, identifier: not inner(commit, identifier)
            if self._next.text == "(":
                self._take()
                condition = self._condition()
                if self._next.text != ")":
                    self._fail("a closing bracket is expected")
                self._take()
                return condition
            return self._comparison()
        finally:
            self._depth -= 1

    def _comparison(self) -> Condition:
        if self._next.kind not in ("word", "quoted") or self._is_word("and", "or"):
            self._fail("a key is expected")
        key = _content(self._take())
        if self._next.kind != "operator":
            self._fail("one of < <= > >= = != ~ is expected")
        sign = self._take().text
        if self._next.kind not in ("word", "quoted") or self._is_word("and", "or", "not"):
            self._fail("a value is expected")
        if key in _TIME_FIELDS:
            return self._compare_time(sign)
        value = self._take()
        if sign == "~":
            return _matching(field_of(key), _content(value))
        if key == "id" and sign in ("=", "=="):
            return _matching(field_of(key), f"{_content(value).lower()}*")
        is_text = key in _TEXT_FIELDS or value.kind == "quoted"
        wanted = _content(value) if is_text else _literal(value.text)
        return _comparing(field_of(key), sign, wanted)

    def _compare_time(self, sign: str) -> Condition:
        value = self._next
        try:
            first, last, local = _parse_time(_content(value))
        except (ValueError, OverflowError):
            self._fail("a date such as 2024-05-31 or 2024-05-31T17:00 is expected")
        if sign == "~":
            self._fail("times have no patterns; compare with < > =")
        self._take()

        def position(commit: Commit) -> int:
            """-1, 0 or 1: the commit is before, within or after the time named."""
            # A date without a zone is the one that the author's clock showed, as `log` shows it.
            time = commit.time + (commit.zone * 60_000_000 if local else 0)
            return (time > last) - (time < first)

        compare = _COMPARE[sign]
        return lambda commit, _: compare(position(commit), 0)

    def _is_word(self, *words: str) -> bool:
        return self._next.kind == "word" and self._next.text.lower() in words

    def _take(self) -> _Token:
        taken, self._next = self._next, self._read()
        return taken

    def _read(self) -> _Token:
        match = _TOKEN.match(self._text, self._at)
        if match is None or match.lastgroup is None:
            rest = self._text[self._at :].lstrip()
            self._next = _Token("wrong", rest, len(self._text) - len(rest))
            self._fail("the quotes are not closed")
        self._at = match.end()
        return _Token(match.lastgroup, match[match.lastgroup], match.start(match.lastgroup))

    def _fail(self, problem: str) -> NoReturn:
        start = self._next.start
        rest = f"at {self._text[start : start + 20]!r}" if self._next.text else "at its end"
        raise InvalidInputError(
            f"the condition {self._text!r} goes wrong {rest} (character {start + 1}): {problem}",
            hint='write for example: loss<0.3 and (author=ana or not message~"*test*")',
        )


def _content(token: _Token) -> str:
    """The text of a word or of what stands in quotes."""
    if token.kind == "word":
        return token.text
    return re.sub(r"\\(.)", r"\1", token.text[1:-1], flags=re.DOTALL)


def _literal(word: str) -> str | int | float | bool | None:
    """What a word without quotes stands for."""
    if word in _CONSTANTS:
        return _CONSTANTS[word]
    if not _NUMBER.fullmatch(word):
        return word
    # Longer ones are beyond any number that metadata can hold.
    return int(word) if len(word) < 30 and word.lstrip("+-").isdecimal() else float(word)


def _matching(value: Field, pattern: str) -> Condition:
    matches = re.compile(translate(pattern)).match

    def condition(commit: Commit, identifier: Id) -> bool:
        found = value(commit, identifier)
        return isinstance(found, str) and matches(found) is not None

    return condition


def _comparing(value: Field, sign: str, wanted: str | int | float | bool | None) -> Condition:
    compare, kind = _COMPARE[sign], _kind(wanted)
    if kind in ("bool", "NoneType") and sign not in ("=", "==", "!="):
        return lambda *_: False

    def condition(commit: Commit, identifier: Id) -> bool:
        found = value(commit, identifier)
        return _kind(found) == kind and compare(found, wanted)

    return condition


def _kind(value: object) -> str:
    """The type of a value as far as comparing goes."""
    if value is None or isinstance(value, bool | str):
        return type(value).__name__
    return "number" if isinstance(value, int | float) else "other"


def _nested(metadata: Mapping[str, object], path: str) -> object:
    found: object = metadata
    while isinstance(found, Mapping):
        if path in found:
            return found[path]
        head, _, path = path.partition(".")
        if not path:
            break
        found = found.get(head)
    return MISSING


def _parse_time(text: str) -> tuple[int, int, bool]:
    """The first and the last microsecond of the time named, and whether it names no zone.

    Raises ValueError or OverflowError when it is none.
    """
    if match := _DATE.fullmatch(text):
        year, month, day = (int(part or 0) for part in match.groups())
        start = datetime(year, month or 1, day or 1)
        if day:
            end = start + timedelta(days=1)
        elif month:
            end = (start + timedelta(days=31)).replace(day=1)
        else:
            end = datetime(year + 1, 1, 1)
    elif _MOMENT.fullmatch(text):
        start = datetime.fromisoformat(text)
        end = start + (_MICROSECOND if "." in text else timedelta(seconds=1))
    else:
        raise ValueError(text)
    local = start.tzinfo is None
    if local:
        start, end = start.replace(tzinfo=UTC), end.replace(tzinfo=UTC)
    return (start - _EPOCH) // _MICROSECOND, (end - _EPOCH) // _MICROSECOND - 1, local
