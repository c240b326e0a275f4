"""Where output goes: data to stdout; messages, warnings and errors to stderr.

Nothing here needs rich; `tables` and `progress` do.
"""

import json
import math
import os
import sys
from collections.abc import Mapping
from typing import IO

import click


def color(stream: IO[str] | None) -> bool:
    """Whether colours are wanted on a stream: a terminal, and NO_COLOR is not set."""
    if os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
        return False
    return stream is not None and stream.isatty()


def data(text: str = "") -> None:
    """A line of what the user asked for."""
    click.echo(text, color=color(sys.stdout))


def message(text: str) -> None:
    """A line about what is going on."""
    click.echo(text, err=True, color=color(sys.stderr))


def warning(text: str) -> None:
    """A line that the user should not miss."""
    message(click.style("warning: ", fg="yellow", bold=True) + text)


def document(value: object) -> None:
    """One JSON document; characters beyond ASCII are escaped, so it prints anywhere."""
    click.echo(json.dumps(plain(value), indent=2, allow_nan=False))


def plain(value: object) -> object:
    """`value` with the floats that JSON does not have written as text, `NaN` and `Infinity`."""
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value
