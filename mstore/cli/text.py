"""How values are written for people: sizes, times, counts, and text that nobody has checked.

Whatever comes from a repository or a file (paths, names, messages, metadata) goes through
`visible` before it is printed, so that it can neither move the cursor nor pass for something else.
"""

import json
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta, timezone

_UNITS = ("kB", "MB", "GB", "TB", "PB")
_MINUTE, _HOUR, _DAY = 60, 3600, 86400
_AGES = (
    (365 * _DAY, "year"),
    (30 * _DAY, "month"),
    (7 * _DAY, "week"),
    (_DAY, "day"),
    (_HOUR, "hour"),
    (_MINUTE, "minute"),
)


def visible(text: str) -> str:
    """`text` on one line, with every character that does not print written as an escape.

    These are control characters, the escape sequences of terminals, marks that turn the direction
    of writing, and bytes of paths that are not UTF-8.
    """
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() else _escape(one) for one in text)


def _escape(character: str) -> str:
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:
        # How Python holds a byte that is not UTF-8.
        return f"\\x{code - 0xDC00:02x}"
    return f"\\x{code:02x}" if code < 0x100 else ascii(character)[1:-1]


def short(identifier: bytes) -> str:
    """The first 12 hexadecimal digits of an id."""
    return identifier.hex()[:12]


def size(count: int) -> str:
    """Bytes in decimal units: `612 B`, `90.9 MB`."""
    if abs(count) < 1000:
        return f"{count} B"
    value, units = count / 1000, list(_UNITS)
    # Not 1000, so that what would be rounded up to 1000.0 goes on to the next unit.
    while abs(value) >= 999.95 and len(units) > 1:
        value, units = value / 1000, units[1:]
    return f"{value:.1f} {units[0]}"


def share(part: int, whole: int) -> str:
    """The part of the whole in per cent; nothing of nothing is 0 %."""
    return percent(part / whole if whole else 0.0)


def percent(fraction: float) -> str:
    """A fraction in per cent, never rounded to 0 or 100 unless it is that."""
    if 0 < fraction < 0.0005:
        return "<0.1 %"
    if 0.9995 <= fraction < 1:
        return ">99.9 %"
    return f"{100 * fraction:.1f} %"


def count(number: int, what: str, many: str | None = None) -> str:
    """`1 file`, `2 files`; `many` where an s is not enough."""
    return f"{number:,} {what if number == 1 else many or what + 's'}"


def moment(microseconds: int, zone: int = 0) -> datetime:
    """A recorded time (since 1970, UTC) as the clock showed it, `zone` minutes east of UTC.

    A time that no calendar has, in a forged record, is given as the first day of year 1.
    """
    try:
        there = timezone(timedelta(minutes=zone))
        start = datetime(1970, 1, 1, tzinfo=UTC)
        return (start + timedelta(microseconds=microseconds)).astimezone(there)
    except (OverflowError, ValueError):
        return datetime(1, 1, 1, tzinfo=UTC)


def date(microseconds: int, zone: int = 0) -> str:
    """`2024-05-31 17:00:12 +0200`."""
    return moment(microseconds, zone).strftime("%Y-%m-%d %H:%M:%S %z")


def age(microseconds: int) -> str:
    """How long ago a recorded time was: `3 minutes ago`."""
    seconds = time.time() - microseconds / 1e6
    if seconds < -_MINUTE:
        return "in the future"
    for length, unit in _AGES:
        if seconds >= length:
            return f"{count(int(seconds // length), unit)} ago"
    return "just now"


def first_line(message: str) -> str:
    """The first line of a message, safe to print; `(no message)` for none."""
    lines = message.strip().splitlines()
    return visible(lines[0]) if lines else "(no message)"


def metadata(values: Mapping[str, object]) -> str:
    """`loss=0.3 epoch=4`, keys in order; what is no plain word is written as JSON."""
    return " ".join(f"{visible(key)}={_plain(values[key])}" for key in sorted(values))


def _plain(value: object) -> str:
    if isinstance(value, str) and value and not any(one in value for one in " \"'="):
        return visible(value)
    return visible(json.dumps(value, ensure_ascii=False))


def shape(extents: Sequence[int]) -> str:
    """`[384,1536]`; `[]` for a single number."""
    return f"[{','.join(map(str, extents))}]"
