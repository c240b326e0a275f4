"""`mstore branch` and `mstore tag`. Listing needs no numpy."""

from typing import Literal

import click

from mstore.cli import output, text
from mstore.cli.failures import Misuse
from mstore.cli.invocation import Invocation, command, complete_revision
from mstore.errors import ConflictError


@command(
    "branch",
    examples="""
mstore branch
mstore branch try-lr main~2
mstore branch --delete try-lr
""",
)
@click.argument("name", required=False)
@click.argument("revision", metavar="[REV]", required=False, shell_complete=complete_revision)
@click.option(
    "-d", "--delete", metavar="NAME", shell_complete=complete_revision, help="Delete branch NAME."
)
def branch(call: Invocation, name: str | None, revision: str | None, delete: str | None) -> None:
    """List, create or delete branches.

    Without NAME, list them. With NAME, make that branch at REV (HEAD without one); the working
    directory stays where it is.
    """
    _run(call, "branch", name, revision, delete)


@command(
    "tag",
    examples="""
mstore tag
mstore tag v1.0
mstore tag best 3f9a2b1c4d5e
mstore tag --delete best
""",
)
@click.argument("name", required=False)
@click.argument("revision", metavar="[REV]", required=False, shell_complete=complete_revision)
@click.option(
    "-d", "--delete", metavar="NAME", shell_complete=complete_revision, help="Delete tag NAME."
)
def tag(call: Invocation, name: str | None, revision: str | None, delete: str | None) -> None:
    """List, create or delete tags.

    Without NAME, list them. With NAME, give the version REV (HEAD without one) that tag.
    """
    _run(call, "tag", name, revision, delete)


_Kind = Literal["branch", "tag"]


def _run(
    call: Invocation, kind: _Kind, name: str | None, revision: str | None, delete: str | None
) -> None:
    if delete is not None and name is not None:
        raise Misuse(f"create a {kind} or delete one, not both at once")
    if delete is not None:
        _delete(call, kind, delete)
    elif name is not None:
        _create(call, kind, name, revision or "HEAD")
    else:
        _list(call, kind)


def _list(call: Invocation, kind: _Kind) -> None:
    names = call.refs.branches if kind == "branch" else call.refs.tags
    on = call.head.branch if call.head and kind == "branch" else None
    rows = [(name, names[name], call.db.commit(names[name])) for name in sorted(names)]
    if call.json:
        output.document(
            [
                {
                    "name": name,
                    "commit": identifier.hex(),
                    "time": text.moment(commit.time, commit.zone).isoformat(),
                    "message": commit.message,
                    "head": name == on,
                }
                for name, identifier, commit in rows
            ]
        )
        return
    if not rows:
        call.note(f"there are no {'branches' if kind == 'branch' else 'tags'} yet")
    width = max((len(text.visible(name)) for name, _, _ in rows), default=0)
    for name, identifier, commit in rows:
        shown = text.visible(name).ljust(width)
        shown = click.style(shown, fg="green") if name == on else shown
        where = click.style(
            identifier.hex() if call.verbose else text.short(identifier), fg="yellow"
        )
        said = f"{text.first_line(commit.message)} ({text.age(commit.time)})"
        output.data(f"{'*' if name == on else ' '} {shown}  {where}  {said}")


def _create(call: Invocation, kind: _Kind, name: str, revision: str) -> None:
    # Checking what a commit needs takes numpy, which listing need not wait for.
    from mstore.ops.refs import create_branch, create_tag

    commit = call.resolve(revision)
    create = create_branch if kind == "branch" else create_tag
    create(call.db, call.model, name, commit, author=call.author)
    if call.json:
        output.document({"created": name, "kind": kind, "commit": commit.hex()})
        return
    call.note(f"made {kind} {name} at {text.short(commit)}")
    if kind == "branch" and call.place.directory is not None:
        call.note(f"go on from there with: mstore checkout {name}")


def _delete(call: Invocation, kind: _Kind, name: str) -> None:
    from mstore.ops.refs import delete_branch, delete_tag

    if kind == "branch" and call.head is not None and call.head.branch == name:
        raise ConflictError(
            f"the working directory is on branch {name}, so it cannot be deleted",
            hint="go to another one first, with: mstore checkout BRANCH",
        )
    delete = delete_branch if kind == "branch" else delete_tag
    commit = delete(call.db, call.model, name, author=call.author)
    if call.json:
        output.document({"deleted": name, "kind": kind, "commit": commit.hex()})
        return
    call.note(f"deleted {kind} {name}, which was at {text.short(commit)}")
    call.note(f"bring it back with: mstore {kind} {name} {text.short(commit)}")
