"""`mstore repack`."""

import click

from mstore.cli import output, text
from mstore.cli.invocation import Invocation, command
from mstore.cli.progress import progress
from mstore.ops.repack import RepackReport
from mstore.ops.repack import repack as store_anew


@command(
    "repack",
    examples="""
mstore repack --dry-run
mstore repack
mstore repack --deep
""",
)
@click.option("--deep", is_flag=True, help="Take much more time to make everything smaller.")
@click.option("--dry-run", is_flag=True, help="Only estimate, from a sample, what it would gain.")
def repack(call: Invocation, deep: bool, dry_run: bool) -> None:
    """Make the repository smaller, and its newest version quick to read.

    Commits store what changed since the version before. After many of them the oldest version is
    the one that reads quickest; repack turns that round, chooses for every chunk the best of what
    has come since to store it by, and merges small packs. Versions and their ids do not change.
    Others may read and commit meanwhile, and it may be interrupted at any moment.

    While it runs, the repository takes up to twice its size.
    """
    with progress(call, "repacking") as told:
        report = store_anew(
            call.db,
            author=call.author,
            deep=deep,
            dry_run=dry_run,
            progress=told.advance,
            announce=lambda estimate: _announce(call, estimate, dry_run),
        )
    if call.json:
        output.document(_document(report, dry_run))
    elif not report.worthwhile:
        output.data(f"nothing to gain: {text.size(report.before)} stay as they are")
    else:
        _print(report)
        if dry_run:
            output.data(f"nothing has been changed yet; do it with: {_again(deep)}")


def _announce(call: Invocation, estimate: RepackReport, dry_run: bool) -> None:
    """Say what is to be expected, before it is done."""
    if estimate.worthwhile and not dry_run:
        call.note(f"about {_sizes(estimate)}")


def _print(report: RepackReport) -> None:
    about, would = ("about ", "would ") if report.estimated else ("", "")
    output.data(f"{about}{_sizes(report)}")
    if report.newest is not None and report.replans:
        output.data(
            f"the newest version, {text.short(report.newest)}, {would}{_needs(report)}; "
            f"{report.shallower} of {text.count(report.versions, 'version')} fewer than before, "
            f"{report.deeper} more"
        )
    packs = f"{text.count(report.packs, 'pack')} {'to be ' if would else ''}replaced"
    output.data(f"{text.count(report.recoded, 'chunk')} {would and 'to be '}encoded anew, {packs}")


def _sizes(report: RepackReport) -> str:
    change = "less" if report.gained >= 0 else "more"
    return (
        f"{text.size(report.after)} instead of {text.size(report.before)}, "
        f"{text.size(abs(report.gained))} {change}"
    )


def _needs(report: RepackReport) -> str:
    verb = "need" if report.estimated else "needs"
    return (
        f"{verb} {text.count(report.depth_after, 'other chunk')} for each of its own "
        f"instead of {report.depth_before}"
    )


def _again(deep: bool) -> str:
    return "mstore repack --deep" if deep else "mstore repack"


def _document(report: RepackReport, dry_run: bool) -> dict[str, object]:
    return {
        "dry_run": dry_run,
        "estimated": report.estimated,
        "worthwhile": report.worthwhile,
        "bytes_before": report.before,
        "bytes_after": report.after,
        "newest": report.newest.hex() if report.newest else None,
        "newest_depth_before": report.depth_before,
        "newest_depth_after": report.depth_after,
        "versions": report.versions,
        "versions_shallower": report.shallower,
        "versions_deeper": report.deeper,
        "chunks_encoded": report.recoded,
        "packs_replaced": report.packs,
    }
