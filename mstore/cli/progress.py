"""A bar on the terminal for what takes long."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from mstore.cli.invocation import Invocation
from mstore.progress import SILENT, Progress

if TYPE_CHECKING:
    from rich.progress import Progress as Bars
    from rich.progress import TaskID

_WORTH_A_BAR = 32 << 20
"""Less than this is done before anyone would look."""


class Bar(Progress):
    """Shows how far `action` is, in bytes, once there is much to do; used by one thread."""

    def __init__(self, action: str) -> None:
        self._action = action
        self._done = 0
        self._total = 0
        self._bars: Bars | None = None
        self._task: TaskID | None = None

    def begin(self, total: int) -> None:
        """`total` bytes are to be done; 0 when that is not known."""
        self._total = total

    def advance(self, done: int) -> None:
        """`done` more bytes are done."""
        self._done += done
        if self._bars is None:
            if max(self._done, self._total) < _WORTH_A_BAR:
                return
            self._bars, self._task = self._start()
        assert self._task is not None
        self._bars.update(self._task, completed=self._done)

    def close(self) -> None:
        """Take the bar away."""
        if self._bars is not None:
            self._bars.stop()

    def _start(self) -> "tuple[Bars, TaskID]":
        # rich takes a tenth of a second to import, so only those who see a bar pay for it.
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            TextColumn,
            TimeRemainingColumn,
            TransferSpeedColumn,
        )
        from rich.progress import Progress as Bars

        bars = Bars(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=30),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            transient=True,
        )
        bars.start()
        return bars, bars.add_task(self._action, total=self._total or None)


@contextmanager
def progress(call: Invocation, action: str) -> Iterator[Progress]:
    """Someone to tell how far `action` is, who shows it on a terminal."""
    if call.quiet or sys.stderr is None or not sys.stderr.isatty():
        yield SILENT
        return
    bar = Bar(action)
    try:
        yield bar
    finally:
        bar.close()
