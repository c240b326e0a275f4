"""Python literals, as npy headers use them: parsed, never evaluated.

    value  = string | integer | True | False | None | tuple | list | dict
    string = '…' or "…" with backslash escapes, perhaps after u or b
Integers may end in L, as Python 2 wrote them. Everything else, any operator above all, is refused.
"""

import re
from collections.abc import Callable
from typing import TypeVar

from mstore.errors import FormatError, LimitExceededError

MAX_DEPTH = 32
"""Deepest nesting of tuples, lists and dicts."""

T = TypeVar("T")
_TOKEN = re.compile(
    r"""\s*(?:
        (?P<string>[ub]?(?:'(?:[^'\\\n]|\\.)*'|"(?:[^"\\\n]|\\.)*"))
      | (?P<integer>-?(?:0|[1-9][0-9]{0,29}))L?(?![\w.])
      | (?P<word>True|False|None)(?!\w)
      | (?P<mark>[(){}\[\],:])
      | (?P<end>\Z)
    )""",
    re.VERBOSE | re.ASCII,
)
_WORDS = {"True": True, "False": False, "None": None}
_CLOSERS = {"(": ")", "[": "]", "{": "}"}


def parse_literal(text: str) -> object:
    """The value of a Python literal; the caller bounds the length of `text`.

    Strings keep their escapes as written. Raises FormatError for what is not a literal of the
    grammar above, for a duplicate key, or for a key that is not a string; LimitExceededError for
    nesting deeper than `MAX_DEPTH`.
    """
    parser = _Parser(text)
    value = parser.value(0)
    parser.expect("")
    return value


class _Parser:
    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._advance()

    def _advance(self) -> None:
        """Read the next token into `_kind` and `_token`."""
        match = _TOKEN.match(self._text, self._at)
        if match is None or match.lastgroup is None:
            raise FormatError(f"its header is not a plain literal at character {self._at}")
        self._kind = match.lastgroup
        self._token = match[self._kind]
        self._at = match.end()

    def expect(self, mark: str) -> None:
        """Step over `mark`; the empty mark is the end of the text."""
        if self._token != mark or self._kind not in ("mark", "end"):
            raise FormatError(f"its header is malformed before character {self._at}")
        if mark:
            self._advance()

    def value(self, depth: int) -> object:
        """The value that starts here."""
        if depth > MAX_DEPTH:
            raise LimitExceededError("its header is nested too deeply")
        kind, token = self._kind, self._token
        if kind == "mark" and token in _CLOSERS:
            return self._collection(token, depth + 1)
        if kind not in ("string", "integer", "word"):
            raise FormatError(f"its header is malformed before character {self._at}")
        self._advance()
        if kind == "string":
            return token.lstrip("ub")[1:-1]
        return int(token) if kind == "integer" else _WORDS[token]

    def _collection(self, opener: str, depth: int) -> object:
        """The tuple, list or dict that starts here; (x) is x, as in Python."""
        self._advance()
        if opener == "{":
            pairs, _ = self._items("}", lambda: self._pair(depth))
            members = dict(pairs)
            if len(members) != len(pairs):
                raise FormatError("its header has a duplicate key")
            return members
        items, comma = self._items(_CLOSERS[opener], lambda: self.value(depth))
        if opener == "[":
            return items
        return items[0] if len(items) == 1 and not comma else tuple(items)

    def _pair(self, depth: int) -> tuple[str, object]:
        if self._kind != "string":
            raise FormatError("its header has a key that is not a string")
        key = str(self.value(depth))
        self.expect(":")
        return key, self.value(depth)

    def _items(self, closer: str, item: Callable[[], T]) -> tuple[list[T], bool]:
        """The items up to `closer`, and whether a comma came last."""
        items: list[T] = []
        comma = False
        while self._token != closer or self._kind != "mark":
            if items and not comma:
                raise FormatError(f"its header is malformed before character {self._at}")
            items.append(item())
            comma = self._token == "," and self._kind == "mark"
            if comma:
                self._advance()
        self.expect(closer)
        return items, comma
