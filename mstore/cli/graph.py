r"""The lines of history beside a log, drawn with `* | / \`.

Each line of history that is still to be continued has a lane, which waits for one commit.
"""

from collections.abc import Iterable, Iterator, Sequence

from mstore.ids import Id


class Graph:
    """Draws one commit after the other; children must come before their parents."""

    def __init__(self) -> None:
        self._lanes: list[Id] = []

    def draw(self, identifier: Id, parents: Sequence[Id], lines: Iterable[str]) -> Iterator[str]:
        """The `lines` that describe a commit, and the rows that lead to it and on from it."""
        if identifier not in self._lanes:
            self._lanes.append(identifier)
        lane = self._lanes.index(identifier)
        yield from self._join(identifier, lane)
        marks = ["*" if place == lane else "|" for place in range(len(self._lanes))]
        for line in lines:
            yield f"{' '.join(marks)} {line}".rstrip()
            marks[lane] = "|" if parents else " "
        yield from self._go_on(lane, parents)

    def _join(self, identifier: Id, lane: int) -> Iterator[str]:
        """Lead the other lanes that wait for the same commit into its lane."""
        while self._lanes.count(identifier) > 1:
            last = max(place for place, waiting in enumerate(self._lanes) if waiting == identifier)
            row = self._row(upto=last)
            for place in range(lane, last - 1):
                row[2 * place + 1] = "_"
            self._shift_left(row, last)
            del self._lanes[last]
            yield "".join(row).rstrip()

    def _go_on(self, lane: int, parents: Sequence[Id]) -> Iterator[str]:
        """Let the lanes wait for the parents."""
        if parents:
            self._lanes[lane] = parents[0]
            for parent in reversed(parents[1:]):
                row = self._row(upto=lane + 1)
                for place in range(lane, len(self._lanes)):
                    row[2 * place + 1] = "\\"
                self._lanes.insert(lane + 1, parent)
                yield "".join(row).rstrip()
            return
        if lane + 1 < len(self._lanes):
            row = self._row(upto=lane)
            self._shift_left(row, lane + 1)
            yield "".join(row).rstrip()
        del self._lanes[lane]

    def _row(self, upto: int) -> list[str]:
        """A row of characters in which the lanes before number `upto` go straight on."""
        row = [" "] * (2 * len(self._lanes) + 1)
        row[: 2 * upto : 2] = "|" * upto
        return row

    def _shift_left(self, row: list[str], first: int) -> None:
        """Draw the lanes from `first` on as moving one place to the left."""
        for place in range(first, len(self._lanes)):
            row[2 * place - 1] = "/"
