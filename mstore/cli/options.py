"""The options that all commands share. Light to import, since `mstore --help` does."""

import os
from dataclasses import dataclass
from typing import Any

import click

from mstore.errors import NotFoundError


@dataclass(slots=True)
class Options:
    """What the options common to all commands said."""

    repo: str | None = None
    model: str | None = None
    json: bool = False
    quiet: bool = False
    verbose: bool = False


def common_options(*, hidden: bool) -> list[click.Option]:
    """The options that may stand before and (there hidden in the help) after a command's name."""

    def remember(ctx: click.Context, param: click.Parameter, value: object) -> None:
        if value and param.name:
            setattr(ctx.ensure_object(Options), param.name, value)

    def option(*names: str, text: str, **extra: Any) -> click.Option:
        return click.Option(
            names, help=text, callback=remember, expose_value=False, hidden=hidden, **extra
        )

    return [
        option("--repo", metavar="PATH_OR_URL", text="The repository, if not the nearest one."),
        option("--model", metavar="NAME", text="The model meant, in a repository of several."),
        option("--json", is_flag=True, text="Give one JSON document, with everything."),
        option("-q", "--quiet", is_flag=True, text="No messages, only data and errors."),
        option("-v", "--verbose", is_flag=True, text="More detail."),
    ]


def enter(_: click.Context, __: click.Parameter, directories: tuple[str, ...]) -> None:
    """Work as if started in these (`-C`), each named from the one before.

    Raises NotFoundError or an OSError.
    """
    for directory in directories:
        try:
            os.chdir(directory)
        except FileNotFoundError:
            raise NotFoundError(f"there is no directory {directory}") from None
