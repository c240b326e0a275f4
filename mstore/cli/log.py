"""`mstore log`. Nothing here needs numpy or rich, so that it starts fast."""

from collections.abc import Iterable

import click

from mstore.cli import output
from mstore.cli.describe import Describer
from mstore.cli.failures import Misuse
from mstore.cli.graph import Graph
from mstore.cli.invocation import Invocation, command, complete_revision
from mstore.errors import InvalidInputError
from mstore.ids import Id
from mstore.ops.history import Entry
from mstore.ops.history import log as history
from mstore.ops.revisions import unknown_model
from mstore.ops.where import Condition, parse_where


def _condition(_: click.Context, __: click.Parameter, value: str | None) -> Condition | None:
    """The condition that the text states; raises Misuse where it goes wrong."""
    try:
        return None if value is None else parse_where(value)
    except InvalidInputError as error:
        raise Misuse(f"--where: {error.message}", hint=error.hint) from error


@command(
    "log",
    examples="""
mstore log -n 5
mstore log --oneline --graph --all
mstore log --where 'loss<0.3 and author~"ana*"'
mstore log --where 'time>=2024-05-01' --sort loss
mstore log --json | jq -r '.[] | [.id, .metadata.loss] | @tsv'
""",
)
@click.argument("revision", metavar="[REV]", required=False, shell_complete=complete_revision)
@click.option("-n", "limit", metavar="N", type=click.IntRange(min=1), help="At most N versions.")
@click.option("--oneline", is_flag=True, help="One line for each version.")
@click.option("--graph", is_flag=True, help="Draw the lines of history.")
@click.option("--all", "everything", is_flag=True, help="From all branches and tags.")
@click.option(
    "--where", metavar="EXPR", callback=_condition, help="Only versions this is true for."
)
@click.option("--sort", metavar="KEY", help="By a metadata key, time, author or size; -KEY: down.")
def log(
    call: Invocation,
    revision: str | None,
    limit: int | None,
    oneline: bool,
    graph: bool,
    everything: bool,
    where: Condition | None,
    sort: str | None,
) -> None:
    """Show the history, newest first.

    It begins at REV; without one at HEAD, or where there is no HEAD at all branches and tags.

    The condition of --where compares metadata, author, message, id or time with values:
    KEY < VALUE, also <= > >= = != and ~ for patterns with * and ?, combined by and, or, not and
    brackets.
    """
    if revision is not None and everything:
        raise Misuse("give either a revision or --all")
    if graph and (where or sort):
        raise Misuse(
            "--graph cannot be combined with --where or --sort",
            hint="a graph needs every version, in order",
        )
    tips = _tips(call, revision, everything)
    found = history(call.db, tips, where=where, sort=sort, limit=limit, exact=graph)
    describer = Describer(call)
    if call.json:
        output.document([describer.document(entry.id, entry.commit) for entry in found])
        return
    shown = _print(call, describer, found, oneline, Graph() if graph else None)
    if not shown:
        call.note("no version matches" if tips else "there are no commits yet")


def _tips(call: Invocation, revision: str | None, everything: bool) -> list[Id]:
    """The commits to begin at; none in an empty repository."""
    if revision is not None:
        return [call.resolve(revision)]
    head = call.head.commit if call.head else None
    if head is not None and not everything:
        return [head]
    if call.model not in call.db.root.models and call.db.root.models:
        raise unknown_model(call.model, call.db)
    tips = [*call.refs.branches.values(), *call.refs.tags.values()]
    return tips if head is None else [head, *tips]


def _print(
    call: Invocation,
    describer: Describer,
    entries: Iterable[Entry],
    oneline: bool,
    graph: Graph | None,
) -> int:
    """Print one version after the other, as they are found; returns how many."""
    printed = 0
    for entry in entries:
        lines: Iterable[str] = (
            [describer.oneline(entry.id, entry.commit)]
            if oneline
            else [*describer.lines(entry.id, entry.commit), ""]
        )
        if graph is not None:
            lines = graph.draw(entry.id, call.db.parents(entry.commit), lines)
        for line in lines:
            output.data(line)
        printed += 1
    return printed
