"""`mstore stats`."""

from mstore.cli import output, text
from mstore.cli.invocation import Invocation, command
from mstore.cli.tables import Column, Table, cut_middle
from mstore.ops.stats import Stats
from mstore.ops.stats import stats as figures

_SHOWN = 10


@command(
    "stats",
    examples="""
mstore stats
mstore --model bert stats -v
""",
)
def stats(call: Invocation) -> None:
    """Show where the bytes go.

    What all versions hold, what is left of that when equal chunks are stored once and encoded,
    and how much of it each version has alone: what deleting it would free. With --model, of that
    model.
    """
    found = figures(call.db, model=call.model if call.options.model is not None else None)
    if call.json:
        output.document(_document(found))
        return
    _print_totals(found)
    _print_versions(call, found)


def _print_totals(found: Stats) -> None:
    counts = [
        text.count(found.models, "model"),
        text.count(found.branches, "branch", "branches"),
        text.count(found.tags, "tag"),
        text.count(found.commits, "version"),
    ]
    output.data(", ".join(counts))
    output.data()
    stored = found.stored
    table = Table([Column(), Column(right=True), Column()], indent=2)
    distinct = f"{text.count(found.files, 'distinct file')}, {text.count(found.tensors, 'tensor')}"
    table.add("all versions", text.size(found.logical), distinct)
    table.add(
        "distinct chunks",
        text.size(found.unique),
        f"{text.count(found.chunks, 'chunk')}; sharing saves {text.percent(found.dedup_share)}",
    )
    table.add(
        "encoded",
        text.size(found.encoded),
        f"compression saves {text.percent(found.compression_share)}",
    )
    if (deltas := found.deltas).chunks:
        coded = f"{text.count(deltas.chunks, 'chunk')}, of {text.size(deltas.unique)}"
        table.add("  of it deltas", text.size(deltas.encoded), f"{coded}, coded against others")
    table.add("on disk", text.size(stored.total), text.count(found.packs, "pack"))
    table.add("  weights", text.size(stored.data_packs), "")
    table.add("  metadata", text.size(stored.metadata_packs), "")
    rest = stored.indexes + stored.sketches + stored.roots
    table.add("  indexes and log", text.size(rest), "")
    free = "no branch or tag reaches it; free it with: mstore gc" if found.dead else ""
    table.add("dead", text.size(found.dead), free)
    table.print()


def _print_versions(call: Invocation, found: Stats) -> None:
    if not found.versions:
        return
    output.data()
    table = Table(
        [
            Column("version", color="yellow"),
            Column("size", right=True),
            Column("alone", right=True),
            Column("message", cut=cut_middle),
        ],
        indent=2,
    )
    shown = found.versions if call.verbose else found.versions[:_SHOWN]
    for version in shown:
        message = text.first_line(call.db.commit(version.id).message)
        table.add(
            text.short(version.id), text.size(version.logical), text.size(version.alone), message
        )
    table.print()
    if more := len(found.versions) - len(shown):
        output.data(f"  … and {more} older (all with -v)")


def _document(found: Stats) -> dict[str, object]:
    return {
        "models": found.models,
        "branches": found.branches,
        "tags": found.tags,
        "versions": [
            {
                "id": version.id.hex(),
                "bytes": version.logical,
                "bytes_stored_alone": version.alone,
            }
            for version in found.versions
        ],
        "files": found.files,
        "tensors": found.tensors,
        "chunks": found.chunks,
        "packs": found.packs,
        "bytes": found.logical,
        "bytes_unique": found.unique,
        "bytes_encoded": found.encoded,
        "deltas": {
            "chunks": found.deltas.chunks,
            "bytes_unique": found.deltas.unique,
            "bytes_encoded": found.deltas.encoded,
            "depth": found.deltas.depth,
        },
        "bytes_dead": found.dead,
        "share_saved_by_sharing": found.dedup_share,
        "share_saved_by_compression": found.compression_share,
        "bytes_on_disk": {
            "data_packs": found.stored.data_packs,
            "metadata_packs": found.stored.metadata_packs,
            "indexes": found.stored.indexes,
            "sketches": found.stored.sketches,
            "roots": found.stored.roots,
            "total": found.stored.total,
        },
    }
