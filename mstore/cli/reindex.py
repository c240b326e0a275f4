"""`mstore reindex`."""

from mstore.cli import output, text
from mstore.cli.invocation import Invocation, command
from mstore.cli.progress import progress
from mstore.ops.reindex import reindex as rebuild


@command(
    "reindex",
    examples="""
mstore reindex
""",
)
def reindex(call: Invocation) -> None:
    """Make all indexes anew from the packs.

    That helps when `mstore verify` finds an index damaged or missing. Nothing is deleted; others
    may read and commit meanwhile.
    """
    with progress(call, "reading") as told:
        report = rebuild(call.db, author=call.author, progress=told.advance)
    if call.json:
        output.document(
            {"packs": report.packs, "records": report.records, "damaged": list(report.damaged)}
        )
        return
    packs, records = text.count(report.packs, "pack"), text.count(report.records, "record")
    output.data(f"{records} of {packs} indexed anew")
    for problem in report.damaged:
        output.data(f"  damaged: {text.visible(problem)}")
