"""Starting children from a server that has everything imported already, so that it is quick."""

import multiprocessing
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing.process import BaseProcess
from pathlib import Path

import worker
from worker import Task, read_journal

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["worker"])


class Child:
    """One child process and its journal."""

    def __init__(self, target: str, task: Task) -> None:
        self.target = target
        self.task = task
        self.process: BaseProcess = _context.Process(
            target=worker.guarded, args=(target, task), daemon=True
        )
        self.process.start()

    @property
    def lines(self) -> list[list[str]]:
        """What its journal says so far."""
        return read_journal(self.task.journal)

    def wait_for(self, word: str, seconds: float = 20) -> None:
        """Wait until its journal has a line that begins with `word`."""
        until = time.monotonic() + seconds
        while not any(line[0] == word for line in self.lines):
            assert self.process.is_alive(), f"{self.target} died: {self.lines[-1:]}"
            assert time.monotonic() < until, f"{self.target} never came to {word!r}"
            time.sleep(0.002)

    def signal(self, number: int) -> None:
        """Send it a signal, if it is still there."""
        with suppress(ProcessLookupError):
            if self.process.is_alive() and self.process.pid is not None:
                os.kill(self.process.pid, number)

    def kill(self) -> None:
        """Kill it as a power cut would, and wait until it is gone."""
        self.signal(signal.SIGKILL)
        self.process.join()

    def join(self, seconds: float) -> None:
        """Wait until it is done; fails when it took too long or ended with an error."""
        self.process.join(seconds)
        assert not self.process.is_alive(), f"{self.target} is not done: {self.lines[-3:]}"
        assert self.process.exitcode == 0, self.lines[-1:]

    def acknowledged(self) -> dict[str, tuple[str, int]]:
        """The commits it was told are done: id -> branch and seed."""
        return {line[1]: (line[2], int(line[3])) for line in self.lines if line[0] == "commit"}

    def in_the_middle(self, what: str) -> bool:
        """Whether the last thing it noted is that it began `what`, or did not end it yet."""
        begun = sum(line[:2] == ["begin", what] for line in self.lines)
        ended = sum(line[:2] == ["end", what] for line in self.lines)
        return begun > ended


@contextmanager
def started(*wanted: tuple[str, Task]) -> Iterator[list[Child]]:
    """Children that are all gone after the block."""
    children = [Child(target, task) for target, task in wanted]
    try:
        yield children
    finally:
        for child in children:
            child.signal(signal.SIGCONT)
            child.kill()


def new_journal(folder: Path) -> Path:
    """A journal that is not used yet."""
    journal = folder / f"journal{len(list(folder.glob('journal*')))}"
    journal.touch()
    return journal
