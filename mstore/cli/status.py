"""`mstore status`."""

import click

from mstore.cli import output, text
from mstore.cli.describe import head_document
from mstore.cli.invocation import Invocation, command
from mstore.ids import Id
from mstore.worktree import Status


@command(
    "status",
    examples="""
mstore status
mstore status --json | jq -r '.modified[]'
""",
)
def status(call: Invocation) -> None:
    """Show what changed in the working directory since HEAD.

    Files are only read where their size or times have changed.
    """
    found = call.worktree().status()
    if call.json:
        output.document(_document(found))
        return
    _print_head(call, found)
    _print_trouble(call, found)
    _print_changes(found)
    for warning in found.warnings:
        call.warn(text.visible(warning))


def _print_head(call: Invocation, found: Status) -> None:
    head = found.head
    model = f" of model {text.visible(head.model)}" if head.model != "default" else ""
    if head.branch is None:
        where = "On no branch" + model
    else:
        where = f"On branch {click.style(text.visible(head.branch), fg='green')}{model}"
    if head.commit is None:
        output.data(f"{where}, with no commits yet")
        return
    said = text.first_line(call.db.commit(head.commit).message)
    output.data(f"{where}, at {click.style(text.short(head.commit), fg='yellow')} {said}")


def _print_trouble(call: Invocation, found: Status) -> None:
    """An interrupted checkout, a branch that moved, a HEAD on no branch."""
    if found.interrupted is not None:
        name = _revision(call, found.head.model, found.interrupted)
        output.data("")
        output.data(
            click.style("A checkout was interrupted", fg="red", bold=True)
            + f": files of {text.short(found.interrupted)} and of HEAD are mixed here."
        )
        output.data(f"  finish it:    mstore checkout {name}")
        output.data("  take it back: mstore checkout --force HEAD")
    if found.moved is not None:
        output.data("")
        output.data(
            f"The branch has moved on to {text.short(found.moved)}; this directory has not."
        )
        output.data(f"  go there with: mstore checkout {text.visible(found.head.branch or '')}")
    branches = call.db.root.refs(found.head.model).branches
    if found.head.branch is not None:
        if found.head.commit is None or found.head.branch in branches:
            return
        output.data("That branch is gone: somebody has deleted it.")
    output.data("Commit here onto a new branch with: mstore commit --branch NAME")


def _print_changes(found: Status) -> None:
    if found.clean:
        files = text.count(found.unchanged, "file")
        if found.head.commit is None:
            output.data("nothing to commit: there are no files here")
        else:
            output.data(f"nothing to commit, the directory is as HEAD has it ({files})")
        return
    output.data("")
    changes = [
        *((path, "added", "green") for path in found.added),
        *((path, "modified", "yellow") for path in found.modified),
        *((path, "deleted", "red") for path in found.deleted),
    ]
    for path, what, color in sorted(changes):
        output.data(f"  {click.style(f'{what:<8}', fg=color)}  {text.visible(path)}")
    output.data("")
    output.data(
        f"{text.count(len(changes), 'file')} changed, {found.unchanged} unchanged; "
        "record all with: mstore commit"
    )


def _revision(call: Invocation, model: str, commit: Id) -> str:
    """How to name a commit so that a checkout ends on its branch, if it is the tip of one."""
    branches = call.db.root.refs(model).branches
    names = sorted(name for name, tip in branches.items() if tip == commit)
    return names[0] if names else text.short(commit)


def _document(found: Status) -> dict[str, object]:
    return {
        "head": head_document(found.head),
        "clean": found.clean,
        "added": found.added,
        "modified": found.modified,
        "deleted": found.deleted,
        "unchanged": found.unchanged,
        "interrupted": found.interrupted.hex() if found.interrupted else None,
        "moved": found.moved.hex() if found.moved else None,
        "warnings": found.warnings,
    }
