"""`mstore config`. Showing settings needs no numpy."""

import click

from mstore.cli import output
from mstore.cli.failures import Misuse
from mstore.cli.invocation import Invocation, command
from mstore.errors import InvalidInputError
from mstore.ops.settings import configure
from mstore.settings import Settings, check_setting, parse_setting


def _complete_name(_: click.Context, __: click.Parameter, incomplete: str) -> list[str]:
    return [name for name in Settings().items() if name.startswith(incomplete)]


@command(
    "config",
    examples="""
mstore config
mstore config refuse-unsafe true
mstore config --unset refuse-unsafe
""",
)
@click.argument("name", metavar="[KEY", required=False, shell_complete=_complete_name)
@click.argument("value", metavar="[VALUE]]", required=False)
@click.option("--unset", is_flag=True, help="Make KEY what it is in a new repository.")
def config(call: Invocation, name: str | None, value: str | None, unset: bool) -> None:
    """Show or change the settings of the repository.

    They hold for all models and for everybody who uses the repository. Without KEY, list them;
    without VALUE, show that one.

    refuse-unsafe, true or false: whether a commit is refused when a file in it would run code when
    its own library loads it (see mstore scan). A single commit can decide otherwise with
    --refuse-unsafe or --no-refuse-unsafe.
    """
    if unset and (name is None or value is not None):
        raise Misuse("--unset takes one KEY, and no VALUE")
    try:
        if name is not None and (unset or value is not None):
            new = None if value is None else parse_setting(name, value)
            configure(call.db, {name: new}, author=call.author)
            call.note(f"changed for everybody who uses this repository: {name}")
        shown = _settings(call, name)
    except InvalidInputError as error:
        raise Misuse(error.message, hint=error.hint) from error
    if call.json:
        output.document(shown)
        return
    for one, now in shown.items():
        output.data(f"{one} {str(now).lower()}")


def _settings(call: Invocation, name: str | None) -> dict[str, bool]:
    """All settings, or the one that is named; raises InvalidInputError if there is no such."""
    settings = Settings.of(call.db.root.settings).items()
    return settings if name is None else {name: settings[check_setting(name)]}
