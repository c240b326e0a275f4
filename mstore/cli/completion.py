"""`mstore completion`."""

import click
from click.shell_completion import get_completion_class

from mstore.cli import output
from mstore.cli.invocation import Invocation, command
from mstore.cli.main import COMPLETE_VARIABLE, cli


@command(
    "completion",
    examples="""
eval "$(mstore completion bash)"                    in ~/.bashrc
eval "$(mstore completion zsh)"                     in ~/.zshrc
mstore completion fish > ~/.config/fish/completions/mstore.fish
""",
)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(call: Invocation, shell: str) -> None:
    """Print the completion script for a shell.

    With it the shell completes commands, options, branches and tags.
    """
    kind = get_completion_class(shell)
    assert kind is not None
    script = kind(cli, {}, "mstore", COMPLETE_VARIABLE).source()
    if call.json:
        output.document({"shell": shell, "script": script})
    else:
        output.data(script)
