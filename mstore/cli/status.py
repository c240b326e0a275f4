"""`mstore status`."""

import click

from mstore.cli import output, text
from mstore.cli.describe import head_document
from mstore.cli.invocation import Invocation, command
from mstore.ids import Id
from mstore.worktree_read import Status


@command(
    "status",
    examples="""
mstore status
mstore status --json | jq -r '.modified[]'
""",
)
@click.option("--rehash", is_flag=True, help="Read all files, whatever their times say.")
def status(call: Invocation, rehash: bool) -> None:
    """Show what changed in the working directory since HEAD.

    Files are only read where their size or times have changed. A program that writes through a
    memory map (np.memmap) may leave the times as they are; then --rehash sees the change.
    """
    found = call.worktree_reader().status(rehash=rehash)
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
    at = f"{where}, at {click.style(text.short(head.commit), fg='yellow')}"
    if found.forgotten:
        output.data(f"{at}, which gc has removed")
        return
    output.data(f"{at} {text.first_line(call.db.commit(head.commit).message)}")


def _print_trouble(call: Invocation, found: Status) -> None:
    """An interrupted checkout, a HEAD that is no more, a branch that moved, a HEAD on no branch."""
    if found.interrupted is not None:
        name = _revision(call, found.head.model, found.interrupted)
        output.data("")
        output.data(
            click.style("A checkout was interrupted", fg="red", bold=True)
            + f": files of {text.short(found.interrupted)} and of HEAD are mixed here."
        )
        output.data(f"  finish it:    mstore checkout {name}")
        output.data("  take it back: mstore checkout --force HEAD")
    if found.forgotten:
        output.data("")
        output.data("Nothing is known of the files of that version, so all here count as added.")
        output.data("  keep them:          mstore commit --branch NAME")
        output.data("  go to another one:  mstore checkout --force REV")
        return
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
        if found.head.commit is None or found.forgotten:
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
    option = " --branch NAME" if found.forgotten else ""
    output.data(
        f"{text.count(len(changes), 'file')} changed, {found.unchanged} unchanged; "
        f"record all with: mstore commit{option}"
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
        "forgotten": found.forgotten,
        "warnings": found.warnings,
    }
