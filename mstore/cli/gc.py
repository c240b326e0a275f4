"""`mstore gc`."""

import click

from mstore.cli import output, text
from mstore.cli.failures import Misuse
from mstore.cli.invocation import Invocation, command
from mstore.cli.progress import progress
from mstore.errors import ConflictError
from mstore.ops.gc import Report, collect
from mstore.ops.revisions import unknown_model


@command(
    "gc",
    examples="""
mstore gc --dry-run
mstore gc
mstore gc --keep-last 10 --dry-run
""",
)
@click.option("--dry-run", is_flag=True, help="Only say what would go and what stays.")
@click.option(
    "--keep-last",
    metavar="N",
    type=click.IntRange(min=1),
    help="Of each branch of the model keep only the newest N versions, besides tagged ones.",
)
def gc(call: Invocation, dry_run: bool, keep_last: int | None) -> None:
    """Delete what no branch or tag reaches.

    That is versions of deleted or undone branches, and what interrupted commits left behind.
    Others may read and commit meanwhile. What gc deletes is gone: `mstore undo` cannot bring it
    back.
    """
    if call.options.model is not None and keep_last is None:
        raise Misuse("gc is a matter of the whole repository; --model goes only with --keep-last")
    if keep_last is not None and call.model not in call.db.root.models:
        raise unknown_model(call.model, call.db)
    _keep_head(call, keep_last)
    with progress(call, "copying") as told:
        report = collect(
            call.db,
            author=call.author,
            dry_run=dry_run,
            keep_last=keep_last,
            model=call.model,
            progress=told.advance,
        )
    if call.json:
        output.document(_document(report, dry_run))
    else:
        _print(report, dry_run)


def _keep_head(call: Invocation, keep_last: int | None) -> None:
    """Refuse to delete the version that the working directory shows."""
    head = call.directory_head.commit if call.directory_head else None
    if head is None or head in call.db.root.tips():
        return
    report = collect(
        call.db, author=call.author, dry_run=True, keep_last=keep_last, model=call.model
    )
    if head in {lost.id for lost in report.lost}:
        raise ConflictError(
            f"the working directory shows {text.short(head)}, which gc would delete",
            hint=f"keep it with: mstore branch NAME {text.short(head)}",
        )


def _print(report: Report, dry_run: bool) -> None:
    would = "would be " if dry_run else ""
    lost = text.count(len(report.lost), "version")
    if report.lost:
        output.data(f"{lost} {would}deleted:")
        for one in sorted(report.lost, key=lambda one: -one.time):
            identifier = click.style(text.short(one.id), fg="yellow")
            said = text.first_line(one.message)
            output.data(f"  {identifier}  {text.age(one.time)}  {said}")
    else:
        output.data(f"no version {'would be' if dry_run else 'was'} deleted")
    output.data(
        f"{text.size(report.freed)} {would}freed: {text.count(report.deleted, 'pack')} deleted, "
        f"{report.rewritten} rewritten, "
        f"{text.count(report.indexes, 'index', 'indexes')} replaced"
    )
    stay = "would stay" if dry_run else "stay"
    output.data(f"{text.count(report.commits, 'version')} in {text.size(report.kept)} {stay}")
    if report.leftovers:
        output.data(f"{text.size(report.leftovers)} left by interrupted writes removed")
    if dry_run and (report.lost or report.freed):
        output.data("nothing has been deleted yet; do it with: mstore gc")


def _document(report: Report, dry_run: bool) -> dict[str, object]:
    return {
        "dry_run": dry_run,
        "versions_kept": report.commits,
        "versions_deleted": [
            {
                "id": one.id.hex(),
                "time": text.moment(one.time).isoformat(),
                "message": one.message,
            }
            for one in report.lost
        ],
        "packs_kept": report.packs,
        "packs_rewritten": report.rewritten,
        "packs_deleted": report.deleted,
        "indexes_deleted": report.indexes,
        "bytes_kept": report.kept,
        "bytes_freed": report.freed,
        "bytes_leftovers": report.leftovers,
    }
