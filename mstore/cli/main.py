"""The entry point: which commands there are, and the one place where errors end."""

import gc
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module
from typing import Any, NoReturn

import click

from mstore import threads
from mstore.cli import failures
from mstore.cli.failures import Misuse
from mstore.cli.options import Options, common_options, enter
from mstore.version import __version__

SECTIONS: dict[str, dict[str, tuple[str, str]]] = {
    "Everyday": {
        "init": ("init", "Make a repository."),
        "status": ("status", "Show what changed in the working directory since HEAD."),
        "commit": ("commit", "Record a version of the working directory."),
        "log": ("log", "Show the history, newest first."),
        "show": ("show", "Show one version: its metadata, files and tensors."),
        "diff": ("diff", "Show what changed, per file and per tensor, with numbers."),
        "checkout": ("checkout", "Bring a version back."),
        "scan": ("scan", "Tell what model files would do if their own libraries loaded them."),
        "export": ("export", "Write tensors of any format to an open, safe one."),
    },
    "Names": {
        "branch": ("names", "List, create or delete branches."),
        "tag": ("names", "List, create or delete tags."),
        "models": ("models", "List the models in the repository."),
    },
    "Care of the repository": {
        "stats": ("stats", "Show where the bytes go."),
        "verify": ("verify", "Look for damage."),
        "reindex": ("reindex", "Make all indexes anew from the packs."),
        "gc": ("gc", "Delete what no branch or tag reaches."),
        "repack": ("repack", "Make the repository smaller, and its newest version quick to read."),
        "reflog": ("reflog", "Show what was done to the repository."),
        "undo": ("reflog", "Take back the last change of branches and tags."),
        "config": ("config", "Show or change the settings of the repository."),
        "completion": ("completion", "Print the completion script for a shell."),
    },
}
"""The commands by section: the module of this package they are in, and the first line of help.

The help stands here as well as in the modules so that listing commands imports none of them.
"""

COMMANDS = {name: entry for section in SECTIONS.values() for name, entry in section.items()}
COMPLETE_VARIABLE = "_MSTORE_COMPLETE"


class Commands(click.Group):
    """The commands, each imported when it is run."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names of all commands."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of that name, from its module."""
        if cmd_name not in COMMANDS:
            return None
        found = getattr(import_module(f"mstore.cli.{COMMANDS[cmd_name][0]}"), cmd_name)
        assert isinstance(found, click.Command)
        return found

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The command that is meant; raises Misuse with those it could have been."""
        name = args[0]
        if name not in COMMANDS and not name.startswith("-") and not ctx.resilient_parsing:
            from difflib import get_close_matches

            close = get_close_matches(name, COMMANDS, n=3, cutoff=0.5)
            hint = f"did you mean: {', '.join(close)}" if close else "mstore --help lists them"
            raise Misuse(f"there is no command {name!r}", hint=hint)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The commands by section, from the table alone."""
        for title, commands in SECTIONS.items():
            with formatter.section(title):
                formatter.write_dl([(name, text) for name, (_, text) in commands.items()])

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[Any]:
        """Names of commands that begin so, and options."""
        from click.shell_completion import CompletionItem

        names = [name for name in COMMANDS if name.startswith(incomplete)]
        items = [CompletionItem(name, help=COMMANDS[name][1]) for name in names]
        return [*items, *click.Command.shell_complete(self, ctx, incomplete)]

    def main(self, args: Sequence[str] | None = None, *_: Any, **__: Any) -> NoReturn:
        """Run the command line and end the process; whatever goes wrong, without a traceback."""
        if instruction := os.environ.get(COMPLETE_VARIABLE):
            from click.shell_completion import shell_complete

            sys.exit(shell_complete(self, {}, "mstore", COMPLETE_VARIABLE, instruction))
        sys.exit(self._run(list(sys.argv[1:] if args is None else args)))

    def _run(self, args: list[str]) -> int:
        """Run the command line; returns the exit code."""
        try:
            with self.make_context("mstore", args) as context:
                self.invoke(context)
            return 0
        except click.exceptions.Exit as ended:
            return ended.exit_code
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                # Once is enough: a second Ctrl-C would only cut the last words short.
                with suppress(ValueError):
                    signal.signal(signal.SIGINT, signal.SIG_IGN)
            return _report(error)


def _report(error: BaseException) -> int:
    """Tell the user about an error, even if part of the output cannot be written any more."""
    try:
        code = failures.report(error)
    except OSError:
        code = failures.BROKEN_PIPE if isinstance(error, BrokenPipeError) else failures.ERROR
    for stream, descriptor in ((sys.stdout, 1), (sys.stderr, 2)):
        try:
            if stream is not None:
                stream.flush()
        except OSError:
            # What is left in the buffer cannot be written; Python would try again, and complain.
            os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)
    return code


@click.group(
    "mstore",
    cls=Commands,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, message="mstore %(version)s")
@click.option(
    "-C",
    "directory",
    metavar="DIR",
    is_eager=True,
    expose_value=False,
    multiple=True,
    callback=enter,
    help="Work as if started in DIR.",
)
@click.pass_context
def cli(ctx: click.Context) -> None:
    """Version control for model weights.

    In a directory of model files: `mstore init`, `mstore commit -m "first"`, train,
    `mstore status`, `mstore diff`, `mstore commit`, `mstore log`, `mstore checkout REV`.

    A revision (REV) is a branch, a tag, HEAD, the first digits of an id, or one of these followed
    by ~N (N versions back). REV:PATH is a file or folder of that version.
    """
    ctx.ensure_object(Options)
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


cli.params.extend(common_options(hidden=False))


def run() -> NoReturn:
    """Run `mstore` as a program."""
    for stream in (sys.stdout, sys.stderr):
        # A terminal that cannot show a character gets its escape.
        if stream is not None and hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    threads.is_own_program = True
    # What is imported is no garbage; to look for some meanwhile takes a twentieth of the start.
    gc.set_threshold(100_000)
    # numpy's BLAS is not used, but would start a thread for each processor.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    try:
        cli.main()
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 0
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:
                stream.flush()
        except OSError as error:
            code = code or _report(error)
    # Taking the interpreter and numpy apart in order would take longer than most commands.
    os._exit(code)
