"""Write docs/benchmarks.md and its charts: python tests/benchmarks/report.py FILE.json

FILE is what `bench_families.py --json` wrote. The page says what was found, whoever wins.
"""

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from charts import Bar, Panel, Point, bar_chart, scatter_chart
from measure import ROOT, Figure

PAGE = ROOT / "docs/benchmarks.md"
CHARTS = ROOT / "docs/benchmarks"

SERIES = "f32"
OWN = "mstore"
CODECS = ("ZipNN", "XOR", "chunks")
"""Peers that are codecs in memory, not programs."""

Report = dict[str, Any]

PEERS_TABLE = """\
| peer | what it is here |
|---|---|
| restic, borg | backup programs: content-defined chunks, each stored once; restic compresses as it chooses (and encrypts), borg with zstd at level 3, unencrypted |
| git-lfs, DVC | large files beside git: whole files, each stored once, uncompressed |
| ZipNN | the package, per tensor, in memory: byte groups and Huffman coding of one version by itself |
| XOR | the codec of the published systems for fine-tunes (BitX, TensorX), written for this benchmark, in memory: XOR with the same tensor of the version it was made from, byte planes, zstd at level 1; a tensor without such a base is ZipNN-coded. It is always told the base, also where the others are not |
| chunks | as the Hugging Face hub stores files, written for this benchmark, in memory: content-defined chunks of about 64 KiB, each stored once, byte groups of four and LZ4 where that helps |

Sizes of programs are all bytes of their repositories. Those of the codecs in memory are their
payloads and 8 bytes for each, without names, shapes or an index, and their times are without any
disk: both flatter them. Times of programs are those of whole processes, from a warm page cache; what
each makes durable is its own choice. Every version that a peer gave back was compared with the
original byte for byte."""

COMMANDS = """\
```sh
make bench                                                 # all of this page, anew
make bench BENCH='--families f32,bf16 --peers mstore,xor'  # only to look at
make bench BENCH='--parts together'                        # all families in one repository
make bench BENCH='--parts depth'                           # long histories
make bench BENCH='--parts codecs'                          # codecs in memory
```

The first run makes an environment of its own with PyTorch and the peers from the package registry, and
trains the families (a quarter of an hour). restic, borg and git-lfs are used if they are installed. The
families are the demo's sentence encoder (22.7 million parameters) and what real training with PyTorch
made of it on text of the Python standard library's documentation; one small network is trained from
scratch. Another version of Python has other text, so that figures may differ a little."""


def write_report(report: Report) -> None:
    """Write the page and the charts."""
    CHARTS.mkdir(exist_ok=True)
    families = report["families"]
    (CHARTS / "size.svg").write_text(_size_chart(families))
    if SERIES in families:
        (CHARTS / "speed.svg").write_text(_speed_chart(families[SERIES]))
        (CHARTS / "size-speed.svg").write_text(_scatter(families[SERIES]))
    PAGE.write_text("\n\n".join(_page(report)) + "\n")


def _page(report: Report) -> Iterator[str]:
    families = report["families"]
    yield "# Benchmarks"
    yield "<!-- made by tests/benchmarks/report.py -->"
    yield (
        "mstore beside other ways to keep versions of models, on one machine in one run of "
        "`make bench`. Each part says how to run it alone."
    )
    yield _machine(report)
    yield "## Stored size"
    yield (
        "All versions of a family together, as a share of their raw bytes; smaller is better. Each "
        "family is in a repository of its own, so that its first version, which nobody can shrink "
        "much, weighs most. Blue is mstore, dark are programs, light are codecs in memory."
    )
    yield _alone("apart")
    yield "![Stored size by family and peer](benchmarks/size.svg)"
    yield _size_table(families)
    yield "The families:"
    yield _families_table(families)
    if report.get("together"):
        yield "## All families in one repository"
        yield from _together(report["together"], families)
    if report.get("depth"):
        yield "## Long histories"
        yield from _depth(report["depth"])
    if SERIES in families:
        yield "## Speed"
        yield from _speed(families[SERIES])
    if report.get("codecs"):
        yield "## Codecs in memory"
        yield from _codecs(report["codecs"])
    yield "## Where a peer is ahead"
    ahead = [*_ahead(families), *_ahead_together(report.get("together"))]
    yield "\n".join(ahead) or "Nowhere in this run."
    if report["figures"]:
        yield "## Targets"
        yield (
            "What mstore aims at, and what it reached. `XOR` in a note is what the same version "
            "takes with the XOR codec, to compare with figures measured on other data."
        )
        yield _alone("apart,together")
        yield _targets(report["figures"])
    yield "## What is compared"
    yield PEERS_TABLE
    yield "## Do it yourself"
    yield COMMANDS


def _machine(report: Report) -> str:
    found = [version for version in report["peers"].values() if version]
    missing = [name for name, version in report["peers"].items() if not version]
    rows = [(what, value) for what, value in report["machine"].items() if what != "busy"]
    rows.append(("peers", ", ".join(found)))
    if missing:
        rows.append(("not installed", ", ".join(missing)))
    return _table(("", ""), rows)


def _size_table(families: Report) -> str:
    names = _peers(families)
    rows = []
    for family in families.values():
        stored = {name: peer["stored"][-1] for name, peer in family["peers"].items()}
        rows.append((family["title"], *_shares(stored, sum(family["raw"]))))
    raw = sum(sum(family["raw"]) for family in families.values())
    rows.append((f"**all, {raw / 1e6:,.0f} MB**", *_shares(_sums(families), raw)))
    return _table(("family", *names), rows)


def _alone(parts: str) -> str:
    """How to measure only what a part of the page shows."""
    return f"Alone: `make bench BENCH='--parts {parts}'`."


def _together(together: Report, families: Report) -> Iterator[str]:
    """What each family adds to one repository of all; and all, beside repositories of their own."""
    yield (
        "A team keeps its models in one store. Here all families go, one after the other in this "
        "order, into one repository for each peer, and each row is what a family adds, as a share of "
        "its raw bytes. Nobody is told what families have in common: to mstore each is a model of "
        "its own, to the other programs a directory. For the codecs the same file counts once, and "
        "XOR is told the parent of each version as above."
    )
    yield _alone("together")
    peers, raw = together["peers"], together["raw"]
    rows = [
        (title, *_shares({peer: peers[peer][name] for peer in peers}, raw[name]))
        for name, title in together["titles"].items()
    ]
    totals = {peer: sum(added.values()) for peer, added in peers.items()}
    whole = sum(raw.values())
    rows.append((f"**all, {whole / 1e6:,.0f} MB**", *_shares(totals, whole)))
    yield _table(("family", *peers), rows)
    if OWN in peers:
        yield "All bytes, and how many times those of mstore they are:"
        sizes = {"all families in one repository": totals}
        if set(families) == set(raw):
            sizes["each family in a repository of its own"] = _sums(families)
        rows = [
            (what, *(f"{size / 1e6:,.0f} MB, {size / found[OWN]:.2f}x" for size in found.values()))
            for what, found in sizes.items()
        ]
        yield _table(("", *peers), rows)


def _sums(families: Report) -> dict[str, int]:
    """What each peer needs for all families, each in a repository of its own."""
    return {
        name: sum(family["peers"][name]["stored"][-1] for family in families.values())
        for name in _peers(families)
    }


def _depth(figures: Sequence[Report]) -> Iterator[str]:
    yield (
        "mstore codes a version against another one, but never in an endless chain, so that every "
        "version comes back fast. Size: the repository beside an endless chain of the same codec, "
        "of which nothing but the payloads is counted. Speed: the checkout of each version (whole "
        "processes, medians by turns) beside that of the same version alone in a new repository; "
        "shown is the slowest."
    )
    yield _alone("depth")
    yield _targets(figures)


def _codecs(figures: Sequence[Report]) -> Iterator[str]:
    yield (
        "GB/s of raw bytes of one thread, without any disk. *In* is all that mstore's encoder does "
        "with a chunk of 1 MiB: choose, encode, decode again and compare; *not checked* leaves out "
        "the last two. *Out* is decoding. Hashing and packing are not included, nor is reading a "
        "base. The last rows are versions coded against the ones before them."
    )
    yield _alone("codecs")
    yield _targets(figures)


def _shares(stored: dict[str, int], raw: int) -> list[str]:
    """Shares of raw, the smallest in bold."""
    best = min(stored.values())
    shown = {name: f"{size / raw:.3f}" for name, size in stored.items()}
    return [f"**{shown[name]}**" if stored[name] == best else shown[name] for name in stored]


def _families_table(families: Report) -> str:
    rows = [
        (f"{family['title']} (`{name}`)", ", ".join(family["versions"]), _megabytes(family["raw"]))
        for name, family in families.items()
    ]
    return _table(("family", "versions", "raw MB"), rows)


def _speed(series: Report) -> Iterator[str]:
    count = len(series["versions"])
    yield (
        f"The {count} float32 checkpoints one after the other, {_megabytes(series['whole'])} MB: raw "
        "bytes per second over all commits, and over all checkouts; medians of the runs."
    )
    yield _alone("apart")
    yield "![Speed of commits and checkouts](benchmarks/speed.svg)"
    rows = [
        (
            _where(name),
            *(f"{_rate(series, name, what):,.0f}" for what in ("commit", "checkout")),
            _spread(peer["commits"]),
            _spread(peer["checkouts"]),
            f"{peer['stored'][-1] / sum(series['raw']):.3f}",
        )
        for name, peer in series["peers"].items()
    ]
    titles = ("", "commit MB/s", "checkout MB/s", "all commits s", "all checkouts s", "stored")
    yield _table(titles, rows)
    yield "![Stored size against speed of commits](benchmarks/size-speed.svg)"


def _ahead(families: Report) -> Iterator[str]:
    """Where some peer is smaller or faster."""
    for family in families.values():
        peers = family["peers"]
        for what, of in (
            ("smaller", _stored),
            ("faster to commit", _commit),
            ("faster to check out", _checkout),
        ):
            if OWN not in peers:
                continue
            better = {
                name: of(peers[OWN]) / of(peer)
                for name, peer in peers.items()
                if of(peer) < of(peers[OWN])
            }
            if better:
                shown = ", ".join(f"{_where(name)} {ratio:.2f}x" for name, ratio in better.items())
                yield f"- {family['title']}: {what}: {shown}."


def _ahead_together(together: Report | None) -> Iterator[str]:
    """Which families add less to some peer's repository of all."""
    peers = together["peers"] if together else {}
    own = peers.get(OWN, {})
    for name, size in own.items():
        better = ", ".join(
            f"{_where(peer)} {size / max(1, added[name]):.2f}x"
            for peer, added in peers.items()
            if added[name] < size
        )
        if better and together:
            yield f"- {together['titles'][name]}, in one repository with all: smaller: {better}."


def _stored(peer: Report) -> float:
    return peer["stored"][-1]


def _commit(peer: Report) -> float:
    return peer["commit_seconds"]


def _checkout(peer: Report) -> float:
    return peer["checkout_seconds"]


def _targets(figures: Sequence[Report]) -> str:
    rows = []
    for found in figures:
        figure = Figure(**{name: value for name, value in found.items() if name != "verdict"})
        name, value, target, verdict, note = figure.cells()
        rows.append((name, value, target, verdict or "-", note))
    return _table(("figure", "measured", "target", "", ""), rows)


def _size_chart(families: Report) -> str:
    panels = []
    for family in families.values():
        raw = sum(family["raw"])
        shares = {name: peer["stored"][-1] / raw for name, peer in family["peers"].items()}
        bars = [Bar(name, share, f"{share:.3f}", _kind(name)) for name, share in shares.items()]
        panels.append(Panel(family["title"], bars, full=1.0))
    return bar_chart(panels, 3, "Stored bytes as a share of raw bytes, by family and peer")


def _speed_chart(series: Report) -> str:
    panels = []
    for what in ("commit", "checkout"):
        rates = {name: _rate(series, name, what) for name in series["peers"]}
        bars = [Bar(name, rate, f"{rate:,.0f}", _kind(name)) for name, rate in rates.items()]
        panels.append(Panel(f"{what}, MB/s", bars))
    return bar_chart(panels, 2, "Raw megabytes per second of commits and checkouts")


def _scatter(series: Report) -> str:
    raw = sum(series["raw"])
    points = [
        Point(name, _rate(series, name, "commit"), peer["stored"][-1] / raw, _kind(name))
        for name, peer in series["peers"].items()
    ]
    return scatter_chart(
        points, "commit, MB/s", "stored / raw", "Stored size against speed of commits"
    )


def _rate(series: Report, peer: str, what: str) -> float:
    """Raw megabytes per second of all commits, or of all checkouts."""
    return sum(series["whole"]) / 1e6 / series["peers"][peer][f"{what}_seconds"]


def _kind(name: str) -> str:
    return "own" if name == OWN else "codec" if name in CODECS else "program"


def _where(name: str) -> str:
    return f"{name} (in memory)" if name in CODECS else name


def _peers(families: Report) -> list[str]:
    return list(next(iter(families.values()))["peers"])


def _megabytes(sizes: Sequence[int]) -> str:
    return f"{sum(sizes) / 1e6:,.0f}"


def _spread(samples: Sequence[float]) -> str:
    return f"{min(samples):.2f} to {max(samples):.2f}"


def _table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [titles, ["---"] * len(titles), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    write_report(json.loads(Path(sys.argv[1]).read_text()))
