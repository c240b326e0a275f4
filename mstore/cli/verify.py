"""`mstore verify`."""

import click

from mstore.cli import output, text
from mstore.cli.failures import DAMAGED
from mstore.cli.invocation import Invocation, command
from mstore.cli.progress import progress
from mstore.ops.verify import Damage, VerifyReport
from mstore.ops.verify import verify as look

_SHOWN_COMMITS = 5


@command(
    "verify",
    examples="""
mstore verify
mstore verify --quick
""",
)
@click.option("--quick", is_flag=True, help="Do not read the weights themselves.")
def verify(call: Invocation, quick: bool) -> None:
    """Look for damage.

    Reads, decodes and hashes everything that is stored, or with --quick all but the weights, and
    names every version, file and tensor that is harmed. Nothing is changed. Ends with 12 when
    there is damage.
    """
    with progress(call, "verifying") as told:
        told.begin(0 if quick else _stored_bytes(call))
        report = look(call.db, quick=quick, progress=told.advance)
    if call.json:
        output.document(_document(report))
    else:
        _print(call, report)
    if not report.ok:
        click.get_current_context().exit(DAMAGED)


def _stored_bytes(call: Invocation) -> int:
    folders = ("packs/", "indexes/", "sketches/", "roots/")
    return sum(info.size for folder in folders for info in call.db.storage.list(folder))


def _print(call: Invocation, report: VerifyReport) -> None:
    output.data(
        f"{'quick check' if report.quick else 'check'} of operation {report.root}: "
        f"{text.size(report.bytes)} read"
    )
    output.data(
        f"{text.count(report.commits, 'version')}, {text.count(report.files, 'file')}, "
        f"{text.count(report.tensors, 'tensor')}, {text.count(report.chunks, 'chunk')}, "
        f"{text.count(report.packs, 'pack')}"
    )
    for note in report.notes:
        output.data(f"note: {text.visible(note)}")
    if report.ok:
        output.data(click.style("no damage found", fg="green"))
        if report.quick:
            call.note("the weights themselves were not read; do that with: mstore verify")
        return
    output.data()
    for (what, where, problem), harmed in _by_thing(report).items():
        output.data(click.style(f"{what}: {problem}", fg="red", bold=True) + f" ({where})")
        if not any(damage.commits for damage in harmed):
            output.data("  no version is harmed")
        for damage in harmed:
            if damage.commits:
                output.data(f"  {_harm(damage)} in {_versions(call, damage, report)}")
    output.data()
    things = len(_by_thing(report))
    output.data(click.style(f"{text.count(things, 'damage')} found", fg="red", bold=True))
    call.note("versions that are not named above are whole; keep the repository as it is")
    if any(damage.what.startswith("index ") for damage in report.damages):
        call.note("indexes can be made anew from the packs with: mstore reindex")


def _by_thing(report: VerifyReport) -> dict[tuple[str, str, str], list[Damage]]:
    """The places harmed, by the damaged thing."""
    things: dict[tuple[str, str, str], list[Damage]] = {}
    for damage in report.damages:
        key = (damage.what, damage.where, damage.problem)
        things.setdefault((text.visible(key[0]), key[1], text.visible(key[2])), []).append(damage)
    return things


def _harm(damage: Damage) -> str:
    if damage.file is None:
        return "all files"
    if damage.tensor is None:
        return f"file {text.visible(damage.file)}"
    tensor = f"tensor {text.visible(damage.tensor)}" if damage.tensor else "the tensor"
    return f"{tensor} of {text.visible(damage.file)}"


def _versions(call: Invocation, damage: Damage, report: VerifyReport) -> str:
    """The versions harmed, with a branch or tag that leads to each."""
    shown = damage.commits if call.verbose else damage.commits[:_SHOWN_COMMITS]
    names = [
        f"{text.short(commit)} ({text.visible(report.reached_by[commit])})"
        if commit in report.reached_by
        else text.short(commit)
        for commit in shown
    ]
    more = len(damage.commits) - len(shown)
    return ", ".join(names) + (f" and {more} more versions" if more else "")


def _document(report: VerifyReport) -> dict[str, object]:
    return {
        "ok": report.ok,
        "quick": report.quick,
        "root": report.root,
        "versions": report.commits,
        "files": report.files,
        "tensors": report.tensors,
        "chunks": report.chunks,
        "packs": report.packs,
        "bytes_read": report.bytes,
        "notes": list(report.notes),
        "damages": [
            {
                "what": damage.what,
                "where": damage.where,
                "problem": damage.problem,
                "versions": [commit.hex() for commit in damage.commits],
                "reached_by": [report.reached_by.get(commit) for commit in damage.commits],
                "file": damage.file,
                "tensor": damage.tensor,
            }
            for damage in report.damages
        ],
    }
