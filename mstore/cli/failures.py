"""What can go wrong, as a person sees it: a line that says what, a line what to do, an exit code.

| code | means |
|---|---|
| 0 | it worked |
| 1 | an error; or, with `diff --exit-code`, there is a difference |
| 2 | the command line itself is wrong, a malformed `--where` included |
| 10 | there is no repository |
| 11 | a conflict: something moved meanwhile, or would be overwritten |
| 12 | stored data is damaged, also when `verify` finds it |
| 13 | unsafe or malformed input |
| 130 | interrupted |
| 141 | whoever read the output stopped reading (as a shell reports it) |
"""

import errno
import os
import sys

import click

from mstore.cli import output
from mstore.cli.text import visible
from mstore.errors import (
    ConflictError,
    CorruptDataError,
    FormatError,
    LimitExceededError,
    MstoreError,
    NoRepositoryError,
    UnsafeInputError,
)

ERROR, USAGE, DAMAGED, MALFORMED, INTERRUPTED, BROKEN_PIPE = 1, 2, 12, 13, 130, 141

EXIT_CODES: dict[type[MstoreError], int] = {
    NoRepositoryError: 10,
    ConflictError: 11,
    CorruptDataError: DAMAGED,
    UnsafeInputError: MALFORMED,
    FormatError: MALFORMED,
    LimitExceededError: MALFORMED,
}
"""The exit code of every kind of error that has one of its own."""


class Misuse(click.UsageError):
    """The command line is wrong; `hint` says how it is right."""

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.hint = hint


class InterruptionError(Exception):
    """Ctrl-C came where a command can tell what that means; the text says it."""


def report(error: BaseException) -> int:
    """Tell the user about `error` on stderr; returns the exit code."""
    if os.environ.get("MSTORE_DEBUG") == "1":
        import traceback

        traceback.print_exception(error, file=sys.stderr)
    if isinstance(error, MstoreError):
        _explain(error.message, error.hint)
        return code_of(error)
    if isinstance(error, click.ClickException):
        _explain(error.format_message(), _hint_of(error))
        return USAGE if isinstance(error, click.UsageError) else ERROR
    if isinstance(error, InterruptionError | KeyboardInterrupt | EOFError | click.Abort):
        output.message(
            f"interrupted; {error}" if isinstance(error, InterruptionError) else "interrupted"
        )
        return INTERRUPTED
    return _report_other(error)


def code_of(error: MstoreError) -> int:
    """The exit code of an error."""
    codes = (EXIT_CODES[kind] for kind in type(error).__mro__ if kind in EXIT_CODES)
    return next(codes, ERROR)


def _report_other(error: BaseException) -> int:
    if isinstance(error, BrokenPipeError):
        return BROKEN_PIPE
    if isinstance(error, OSError):
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        # Without a name it is one of the streams: whatever opens a file names it.
        where = error.filename if isinstance(error.filename, str) else "cannot write the output"
        reason = error.strerror or str(error)
        _explain(f"{where}: {reason}", "free some space, then repeat" if full else None)
        return ERROR
    if isinstance(error, MemoryError):
        _explain("there is not enough memory for this", "end other programs, then repeat")
        return ERROR
    if isinstance(error, RecursionError):
        _explain("the input is nested too deeply to be read", None)
        return MALFORMED
    what = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    _explain(f"{what}; please report", "MSTORE_DEBUG=1 shows where", label="internal error")
    return ERROR


def _hint_of(error: click.ClickException) -> str | None:
    if isinstance(error, Misuse) and error.hint:
        return error.hint
    if isinstance(error, click.UsageError) and error.ctx is not None:
        return f"{error.ctx.command_path} --help tells how it is used"
    return None


def _explain(message: str, hint: str | None, label: str = "error") -> None:
    # The text may quote file names and the like.
    output.message(click.style(f"{label}: ", fg="red", bold=True) + visible(message))
    if hint:
        output.message(click.style("hint: ", bold=True) + visible(hint))
