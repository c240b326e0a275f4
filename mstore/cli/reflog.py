"""`mstore reflog` and `mstore undo`: the history of the repository itself."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import islice

import click

from mstore.cli import output, text
from mstore.cli.describe import head_document
from mstore.cli.failures import Misuse
from mstore.cli.invocation import Invocation, command
from mstore.cli.place import REPOSITORY_FOLDER
from mstore.head import Head, HeadFile
from mstore.ids import Id
from mstore.root import Root


@command(
    "reflog",
    examples="""
mstore reflog -n 10
""",
)
@click.option("-n", "limit", metavar="N", type=click.IntRange(min=1), help="At most N operations.")
def reflog(call: Invocation, limit: int | None) -> None:
    """Show what was done to the repository.

    One line for each operation, newest first: its number, for `mstore undo --to`, when, what, and
    by whom. All models are in it. The last 500 or so are kept.
    """
    roots = islice(call.db.log.history(), limit)
    if call.json:
        output.document([_document(root) for root in roots])
        return
    for root in roots:
        number = click.style(f"{root.number:>4}", fg="yellow")
        restored = f" (back to {root.restores})" if root.restores is not None else ""
        what = text.visible(root.action) + restored
        output.data(f"{number}  {text.date(root.time)}  {what}, by {text.visible(root.author)}")


@command(
    "undo",
    examples="""
mstore undo
mstore reflog
mstore undo --to 12
""",
)
@click.option("--to", metavar="N", type=int, help="Back to how it was after operation N.")
def undo(call: Invocation, to: int | None) -> None:
    """Take back the last change of branches and tags.

    Commits, created and deleted branches and tags of all models can be taken back, until gc has
    removed what they need. Once more goes one further back; --to goes anywhere, also forward
    again. Files in the working directory are not touched.
    """
    # Checking what the versions need takes numpy, which reflog need not wait for.
    from mstore.ops import refs

    if call.options.model is not None:
        raise Misuse("undo is a matter of the whole repository, so it takes no --model")
    before = call.db.refresh()
    restored = refs.undo(call.db, author=call.author, to=to)
    after = call.db.root
    changes = list(_changes(before, after))
    head, told = _follow(call, before, after)
    if call.json:
        output.document(
            {
                "restored": _document(restored),
                "root": after.number,
                "changes": [
                    {
                        "model": model,
                        "kind": kind,
                        "name": name,
                        "before": old.hex() if old else None,
                        "after": new.hex() if new else None,
                    }
                    for model, kind, name, old, new in changes
                ],
                "head": head_document(head) if head else None,
            }
        )
        return
    what = f"operation {restored.number} ({text.visible(restored.action)})"
    output.data(f"branches and tags are as they were after {what}")
    for model, kind, name, old, new in changes:
        where = "" if model == call.model else f" of model {text.visible(model)}"
        move = f"{text.short(old) if old else 'none'} → {text.short(new) if new else 'none'}"
        output.data(f"  {kind} {text.visible(name)}{where}: {move}")
    if told:
        call.note(told)
    call.note(f"take this back with: mstore undo --to {before.number}")


def _changes(before: Root, after: Root) -> Iterator[tuple[str, str, str, Id | None, Id | None]]:
    """Model, kind and name of every ref that moved, and where from and to."""
    for model in sorted({*before.models, *after.models}):
        old, new = before.refs(model), after.refs(model)
        for kind, were, are in (
            ("branch", old.branches, new.branches),
            ("tag", old.tags, new.tags),
        ):
            for name in sorted({*were, *are}):
                if were.get(name) != are.get(name):
                    yield model, kind, name, were.get(name), are.get(name)


def _follow(call: Invocation, before: Root, after: Root) -> tuple[Head | None, str | None]:
    """Let HEAD follow its branch, if it stood at its tip; returns it and what to tell about it."""
    head, directory = call.directory_head, call.place.directory
    if head is None or directory is None or head.branch is None:
        return head, None
    old = before.refs(head.model).branches.get(head.branch)
    new = after.refs(head.model).branches.get(head.branch)
    if old == new or old != head.commit:
        return head, None
    if new is None and head.commit is not None:
        moved = replace(head, branch=None)
        told = (
            f"there is no branch {head.branch} any more: HEAD stays at {text.short(head.commit)}, "
            "on no branch"
        )
    else:
        moved = replace(head, commit=new)
        told = (
            f"HEAD follows {head.branch} to {text.short(new) if new else 'nothing'}; "
            "no file was touched, see: mstore status"
        )
    HeadFile(directory / REPOSITORY_FOLDER / "worktree").write(moved)
    return moved, told


def _document(root: Root) -> dict[str, object]:
    return {
        "number": root.number,
        "time": text.moment(root.time).isoformat(),
        "author": root.author,
        "action": root.action,
        "restores": root.restores,
    }
