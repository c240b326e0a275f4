"""Columns of text. On a terminal long names are shortened so that a line fits."""

import shutil
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import click
from rich.cells import cell_len

from mstore.cli import output

_GAP = "  "
_NARROWEST = 12
_READABLE = 50
"""Names are not cut below this before extra columns are left out."""

Cut = Callable[[str, int], str]
"""How to shorten a text to so many columns."""


@dataclass(frozen=True, slots=True)
class Column:
    """A column: its title, its colour, whether it is flush right, and what may happen to it.

    Where the line is too narrow, one that is `extra` is left out, and what may be `cut` is cut.
    """

    title: str = ""
    right: bool = False
    color: str | None = None
    cut: Cut | None = None
    extra: bool = False


@dataclass(slots=True)
class Table:
    """Rows of cells, which are safe to print (see `text.visible`), under `columns`."""

    columns: Sequence[Column]
    rows: list[Sequence[str]] = field(default_factory=list)
    indent: int = 0

    def add(self, *cells: str) -> None:
        """Add a row."""
        self.rows.append(cells)

    def print(self) -> None:
        """Print all rows as data."""
        widths = self._widths(_line_width() - self.indent)
        if any(column.title for column in self.columns):
            titles = [column.title for column in self.columns]
            self._print_row(titles, widths, ["bright_black"] * len(titles))
        for row in self.rows:
            self._print_row(row, widths, [column.color for column in self.columns])

    def _widths(self, line: int) -> list[int]:
        """The width of every column; 0 for one that is left out."""
        cells = ([column.title for column in self.columns], *self.rows)
        widths = [max(map(cell_len, column)) for column in zip(*cells, strict=True)]
        places = range(len(widths))
        cuttable = [place for place in places if self.columns[place].cut is not None]
        for place in reversed(places):
            needed = _needed(
                min(width, _READABLE) if at in cuttable else width
                for at, width in enumerate(widths)
            )
            if self.columns[place].extra and needed > line:
                widths[place] = 0
        surplus = _needed(widths) - line
        # The widest one gives first.
        while surplus > 0 and cuttable:
            widest = max(cuttable, key=lambda place: widths[place])
            if widths[widest] <= _NARROWEST:
                break
            widths[widest] -= 1
            surplus -= 1
        return widths

    def _print_row(
        self, cells: Sequence[str], widths: Sequence[int], colors: Sequence[str | None]
    ) -> None:
        line = []
        for cell, width, color, column in zip(cells, widths, colors, self.columns, strict=True):
            if not width:
                continue
            shown = column.cut(cell, width) if column.cut else cell
            space = " " * (width - cell_len(shown))
            shown = click.style(shown, fg=color) if color and shown else shown
            line.append(space + shown if column.right else shown + space)
        output.data((" " * self.indent + _GAP.join(line)).rstrip())


def _needed(widths: Iterable[int]) -> int:
    """Columns of a line with cells of these widths."""
    shown = [width for width in widths if width]
    return sum(shown) + len(_GAP) * (len(shown) - 1)


def cut_middle(text: str, width: int) -> str:
    """`text` in at most `width` columns: what is too long loses its middle."""
    if cell_len(text) <= width:
        return text
    front, back = text[: (width - 1) // 2], text
    while cell_len(front) + 1 + cell_len(back) > width and back:
        back = back[1:]
    return f"{front}…{back}"


def cut_name(name: str, width: int) -> str:
    """A dotted name in at most `width` columns: its first parts become single letters.

    So the names of layers, which differ in a number in their middle, stay different. What is too
    long nevertheless loses its middle.
    """
    parts = name.split(".")
    for place in range(len(parts) - 1):
        shown = ".".join(parts)
        if cell_len(shown) <= width:
            return shown
        if not parts[place].isdecimal():
            parts[place] = parts[place][:1]
    return ".".join(parts) if cell_len(".".join(parts)) <= width else cut_middle(name, width)


def _line_width() -> int:
    """Columns of the terminal; without one, no limit."""
    if sys.stdout is not None and sys.stdout.isatty():
        return shutil.get_terminal_size().columns
    return 1 << 30
