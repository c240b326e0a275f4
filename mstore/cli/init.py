"""`mstore init`."""

from pathlib import Path

import click

from mstore import repository
from mstore.cli import output, text
from mstore.cli.invocation import Invocation, command


@command(
    "init",
    examples="""
mstore init
mstore init runs/bert
mstore init --bare /srv/models
""",
)
@click.argument("directory", metavar="[DIR]", required=False)
@click.option("--bare", is_flag=True, help="Only a repository, without a working directory.")
def init(call: Invocation, directory: str | None, bare: bool) -> None:
    """Make a repository.

    It lies in DIR/.mstore (DIR is the current directory if not given), and DIR becomes its working
    directory. With --bare it lies in DIR itself, for others to use with --repo.
    """
    location = directory or call.options.repo or "."
    if not repository.is_url(location):
        location = str(Path(location).resolve())
    made = repository.init(location, bare=bare, author=call.author)
    where = made.database.storage.location
    is_bare = bare or repository.is_url(location)
    if call.json:
        output.document({"repository": where, "bare": is_bare})
        return
    call.note(f"made an empty repository in {text.visible(where)}")
    if is_bare:
        call.note(f"use it with: mstore --repo {text.visible(location)} COMMAND")
    else:
        before = "" if Path(location) == Path.cwd() else f"-C {location} "
        call.note(f'record a first version with: mstore {text.visible(before)}commit -m "first"')
