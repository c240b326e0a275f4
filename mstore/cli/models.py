"""`mstore models`."""

from mstore.cli import output, text
from mstore.cli.invocation import Invocation, command


@command(
    "models",
    examples="""
mstore models
mstore --model encoder log
""",
)
def models(call: Invocation) -> None:
    """List the models in the repository.

    Models are lines of history of their own, each with its branches and tags, that share what
    they have in common. A commit with --model NAME makes a new one.
    """
    root = call.db.root
    if call.json:
        output.document(
            [
                {"name": name, "branches": len(refs.branches), "tags": len(refs.tags)}
                for name, refs in sorted(root.models.items())
            ]
        )
        return
    if not root.models:
        call.note("there are no commits yet")
    width = max((len(text.visible(name)) for name in root.models), default=0)
    for name, refs in sorted(root.models.items()):
        mark = "*" if name == call.model else " "
        branches = text.count(len(refs.branches), "branch", "branches")
        tags = text.count(len(refs.tags), "tag")
        output.data(f"{mark} {text.visible(name).ljust(width)}  {branches}, {tags}")
