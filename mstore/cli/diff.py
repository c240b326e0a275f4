"""`mstore diff`."""

import click

from mstore.cli import output
from mstore.cli.changes import print_diff
from mstore.cli.failures import ERROR
from mstore.cli.invocation import Invocation, command, complete_revision
from mstore.cli.progress import progress
from mstore.cli.text import short
from mstore.cli.working import working_side
from mstore.ids import Id
from mstore.objects import Snapshot
from mstore.ops.diff import diff_sides
from mstore.ops.sides import StoredSide


@command(
    "diff",
    examples="""
mstore diff
mstore diff main~1 main
mstore diff v1.0 main --tensor 'encoder.*.weight'
mstore diff --stat --exit-code && echo "nothing changed"
""",
)
@click.argument("before", metavar="[A", required=False, shell_complete=complete_revision)
@click.argument("after", metavar="[B]]", required=False, shell_complete=complete_revision)
@click.option("--stat", is_flag=True, help="Only files and totals; reads no weights.")
@click.option("--tensor", metavar="GLOB", help="Only tensors whose names match.")
@click.option("--exit-code", is_flag=True, help="End with 1 if there is a difference.")
def diff(
    call: Invocation,
    before: str | None,
    after: str | None,
    stat: bool,
    tensor: str | None,
    exit_code: bool,
) -> None:
    """Show what changed, per file and per tensor, with numbers.

    From version A to B; without B to the working directory, without A from HEAD.

    Of a tensor it tells how many elements changed, how far it moved as a whole (the L2 norm of
    the change by that of what was), the largest change of one element, and the cosine between
    before and after. Those that moved the most come first; all of them with -v.
    """
    one = _commit(call, before)
    other = call.resolve(after) if after is not None else None
    with progress(call, "comparing") as told:
        old = StoredSide(call.db, _snapshot(call, one))
        new = (
            StoredSide(call.db, _snapshot(call, other))
            if other is not None
            else working_side(call.worktree_reader(), told)
        )
        found = diff_sides(
            call.db, old, new, numbers=not stat, tensor=tensor, progress=told.advance
        )
    if call.json:
        ends = {"before": one.hex() if one else None, "after": other.hex() if other else None}
        output.document({**ends, **found.to_json()})
    elif not found:
        call.note("there is no difference")
    else:
        start = short(one) if one else "nothing"
        end = short(other) if other else "the working directory"
        output.data(click.style(f"{start} → {end}", fg="yellow"))
        print_diff(found, tensors=not stat, everything=call.verbose)
    if exit_code and found:
        click.get_current_context().exit(ERROR)


def _commit(call: Invocation, revision: str | None) -> Id | None:
    """The commit to compare from; None in a working directory before its first commit."""
    if revision is not None:
        return call.resolve(revision)
    head = call.worktree_reader().head
    return head.commit if head.model == call.model else call.resolve("HEAD")


def _snapshot(call: Invocation, commit: Id | None) -> Snapshot:
    return call.db.snapshot(call.db.commit(commit).snapshot) if commit else Snapshot({})
