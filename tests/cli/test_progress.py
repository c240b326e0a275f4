import io
from contextlib import redirect_stderr, suppress

import pytest

from mstore.cli.invocation import Invocation
from mstore.cli.options import Options
from mstore.cli.progress import Bar, progress
from mstore.progress import SILENT, Progress

LARGE = 64 << 20


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def _terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")


def work(
    stderr: io.StringIO | None, total: int, *, begin: bool = True, **options: bool
) -> Progress:
    """Do `total` bytes of work, in two halves; returns who was told."""
    call = Invocation(Options(**options))
    with redirect_stderr(stderr), progress(call, "[bold]recording") as told:
        if begin:
            told.begin(total)
        told.advance(total // 2)
        told.advance(total // 2)
    return told


def test_a_bar_for_what_takes_long() -> None:
    stderr = Terminal()
    work(stderr, LARGE)
    assert "[bold]recording" in stderr.getvalue()
    assert "67.1/67.1 MB" in stderr.getvalue()


def test_a_bar_without_a_known_total() -> None:
    stderr = Terminal()
    work(stderr, LARGE, begin=False)
    assert "67.1/? MB" in stderr.getvalue()


def test_no_bar_for_what_is_done_at_once() -> None:
    stderr = Terminal()
    assert isinstance(work(stderr, 1000), Bar)
    assert stderr.getvalue() == ""


def test_no_bar_when_quiet_or_without_a_terminal() -> None:
    stderr = Terminal()
    assert work(stderr, LARGE, quiet=True) is SILENT
    assert work(io.StringIO(), LARGE) is SILENT
    assert work(None, LARGE) is SILENT
    assert stderr.getvalue() == ""


def test_the_cursor_is_back_when_the_work_fails() -> None:
    stderr, call = Terminal(), Invocation(Options())
    with (
        suppress(KeyboardInterrupt),
        redirect_stderr(stderr),
        progress(call, "recording") as told,
    ):
        told.begin(LARGE)
        told.advance(1)
        raise KeyboardInterrupt
    hidden, shown = "\x1b[?25l", "\x1b[?25h"
    assert stderr.getvalue().count(hidden) == stderr.getvalue().count(shown) == 1
