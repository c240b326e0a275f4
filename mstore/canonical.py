"""Canonical msgpack, in which metadata is stored, and checks of what is read back from it.

Maps have their keys in sorted order, numbers the shortest form, and text is UTF-8 (file names that
are not UTF-8 keep their bytes).
"""

from collections.abc import Mapping
from typing import Any, TypeVar

import msgpack

from mstore.ids import ID_SIZE, Id

T = TypeVar("T")

_PLAIN = frozenset({str, bytes, int, float, bool, type(None)})


def pack(value: object) -> bytes:
    """`value` as canonical msgpack: sorted maps, shortest numbers."""
    packed: bytes = msgpack.packb(_sorted(value), unicode_errors="surrogateescape")
    return packed


def unpack(raw: bytes) -> Any:
    """The value in `raw`; raises ValueError when it is not one msgpack value."""
    return msgpack.unpackb(raw, unicode_errors="surrogateescape", strict_map_key=True)


def _sorted(value: object) -> object:
    if type(value) in _PLAIN:
        # Nearly all there is; to ask whether it is a mapping would take most of the time.
        return value
    if isinstance(value, Mapping):
        return {key: _sorted(value[key]) for key in sorted(value)}
    if isinstance(value, list):
        return [_sorted(item) for item in value]
    return value


def typed(value: object, expected: type[T]) -> T:
    """`value`, which was stored, if it is of exactly this type; raises TypeError if not."""
    if type(value) is not expected:
        raise TypeError(f"expected {expected.__name__}, found {type(value).__name__}")
    return value


def checked_id(value: object) -> Id:
    """`value`, which was stored, if it is an id; raises TypeError or ValueError if not."""
    if len(identifier := typed(value, bytes)) != ID_SIZE:
        raise ValueError("an id is not 32 bytes")
    return identifier


def checked_size(value: object) -> int:
    """`value`, which was stored, if it is from 0 to 2**63 - 1; else TypeError or ValueError."""
    if not 0 <= (number := typed(value, int)) < 1 << 63:
        raise ValueError("a size is out of range")
    return number


def within(value: object, low: int, high: int) -> int:
    """`value`, which was stored, if it is an integer in the range; else TypeError or ValueError."""
    if not low <= (number := typed(value, int)) <= high:
        raise ValueError(f"{number} is out of range")
    return number
