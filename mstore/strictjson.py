"""JSON read strictly: no duplicate keys, no NaN or Infinity, no unbounded nesting.

Duplicate keys matter because two programs may each believe a different one of them.
"""

import json
from collections.abc import Callable
from typing import TypeVar

from mstore.errors import FormatError, LimitExceededError

T = TypeVar("T")


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise FormatError("its JSON has a duplicate key")
    return members


def _refuse_constant(name: str) -> object:
    raise FormatError(f"its JSON holds {name}, which is no JSON number")


_DECODER = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_refuse_constant)


def parse_json(text: str) -> object:
    """The value of the JSON document `text`.

    Raises FormatError when it is not strict JSON, LimitExceededError when it is nested deeper
    than Python's own recursion limit allows. The caller bounds the length of `text`.
    """
    # The annotation keeps the decoder's `Any` from spreading.
    value: object = _checked(lambda: _DECODER.decode(text))
    return value


def parse_json_at(text: str, at: int) -> tuple[object, int]:
    """The JSON value that starts at character `at` of `text`, and where it ends.

    Raises as `parse_json` does, and FormatError where no value starts there.
    """
    found: tuple[object, int] = _checked(lambda: _DECODER.raw_decode(text, at))
    return found


def _checked(decode: Callable[[], T]) -> T:
    try:
        return decode()
    except RecursionError:
        raise LimitExceededError("its JSON is nested too deeply") from None
    except ValueError as error:  # JSONDecodeError, or an integer of more than 4300 digits
        raise FormatError(f"its JSON is malformed: {error}") from None
