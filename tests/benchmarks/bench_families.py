"""mstore and its peers on families of models: python tests/benchmarks/bench_families.py

Every peer stores the versions of every family in order and gives each of them back, which is
compared byte for byte: first each family in a repository of its own, then all of them in one.
With `--report` the page docs/benchmarks.md is written anew, if nothing is left out. Families that
are not there are trained first. Ends with 1 if a target was missed.
"""

import argparse
import filecmp
import json
import os
import shutil
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from families import FAMILIES, LONG_FAMILIES, Family
from measure import DEFAULT_MODEL, Figure, machine, show, workspace
from peers import PEERS
from programs import Mstore, Peer, Version
from report import write_report
from run import run_benchmark

HERE = Path(__file__).parent

REPEATED = "f32"
"""The family whose speeds are compared; the others are stored once."""

GROWTH = (
    ("f32", 1, 0.372, "float32, steps 0 to 50"),
    ("f32", 2, 0.372, "float32, steps 50 to 100"),
    ("bf16-cast", 1, 0.092, "cast to bfloat16, steps 0 to 50"),
    ("bf16-cast", 2, 0.092, "cast to bfloat16, steps 50 to 100"),
    ("bf16", 1, 0.0170, "native bfloat16, steps 0 to 50"),
    ("bf16", 2, 0.0170, "native bfloat16, steps 50 to 100"),
    ("f16-cast", 1, 0.265, "cast to float16, steps 0 to 300"),
    ("mixed", 1, 0.005, "bfloat16 copy beside its float32 original"),
    ("mixed", 3, 0.005, "float32 upcast beside its bfloat16 original"),
)
"""Family, version, and what that may add at most, as a share of its own bytes.

The first steps of AdamW change more than those after them, so both are shown.
"""

DEEP = {"f32": 0.33, "bf16-cast": 0.084, "bf16": 0.0155}
"""The same for versions 1 and 2 of a family, after `repack --deep`."""

PARTS = ("apart", "together", "depth", "codecs")
"""What is measured: each family in a repository of its own, all of them in one, long histories, and
codecs in memory."""

SUM_RATIO, COMMIT_RATIO, CHECKOUT_RATIO = 1.25, 4, 3

Results = dict[str, Any]


@dataclass(slots=True)
class Series:
    """Versions stored by one peer: per version the bytes after it, and seconds."""

    stored: list[int]
    commit: list[float]
    checkout: list[float]


def store_all(versions: Sequence[Version], kind: type[Peer], home: Path) -> Series:
    """Store the versions in one repository, then restore and compare each."""
    peer = kind(home)
    series = Series([], [], [])
    for version in versions:
        series.commit.append(peer.store(version))
        series.stored.append(peer.size())
    out = home / "out"
    for version in versions:
        out.mkdir()
        os.sync()
        series.checkout.append(peer.restore(version.number, out))
        _compare(version.directory, out, kind.name)
        shutil.rmtree(out)
    peer.remove()
    return series


def _versions(family: Family) -> list[Version]:
    return [
        Version(number, family.directory(number), family.parent(number), family.unrelated)
        for number in range(len(family.versions))
    ]


def versions_together(families: Sequence[Family]) -> list[Version]:
    """The versions of all families, for one repository: numbered throughout."""
    found: list[Version] = []
    for family in families:
        first = len(found)
        for version in _versions(family):
            parent = None if version.parent is None else first + version.parent
            number = first + version.number
            found.append(replace(version, number=number, parent=parent, family=family.name))
    return found


def _compare(original: Path, restored: Path, peer: str) -> None:
    names = sorted(path.name for path in original.iterdir())
    same, different, unreadable = filecmp.cmpfiles(original, restored, names, shallow=False)
    if len(same) != len(names) or len(list(restored.iterdir())) != len(names):
        sys.exit(f"{peer} does not give back {original} as it was: {different + unreadable}")


def deep_growth(family: Family, home: Path) -> list[float] | None:
    """What versions 1 and 2 add to a repository that is repacked after each version."""
    mstore = Mstore(home)
    sizes: list[int] = []
    for version in _versions(family)[:3]:
        mstore.store(version)
        if mstore.repack() is None:
            return None
        sizes.append(mstore.size())
    mstore.remove()
    grown = zip(pairwise(sizes), (1, 2), strict=True)
    return [(after - before) / family.raw_size(number) for (before, after), number in grown]


def measure(families: Sequence[Family], kinds: Sequence[type[Peer]], runs: int) -> Results:
    """Store every family with every peer, by turns where it is done several times."""
    results: Results = {}
    for family in families:
        numbers = range(len(family.versions))
        samples: dict[str, list[Series]] = {kind.name: [] for kind in kinds}
        with workspace() as work:
            for _ in range(runs if family.name == REPEATED else 1):
                for kind in kinds:
                    series = store_all(_versions(family), kind, work / kind.name)
                    samples[kind.name].append(series)
            deep = deep_growth(family, work / "deep") if family.name in DEEP else None
        results[family.name] = {
            "title": family.title,
            "versions": family.versions,
            "raw": [family.raw_size(number) for number in numbers],
            "whole": [_whole_size(family, number) for number in numbers],
            "deep": deep,
            "peers": {name: _summary(series) for name, series in samples.items()},
        }
        _print_family(results[family.name])
    return results


def measure_together(families: Sequence[Family], kinds: Sequence[type[Peer]]) -> Results:
    """What each family adds to a repository of all, for each peer; and of how many bytes."""
    versions = versions_together(families)
    peers: Results = {}
    print("\nAll families in one repository", flush=True)
    for kind in kinds:
        with workspace() as work:
            stored = store_all(versions, kind, work / kind.name).stored
        pairs = zip(versions, [0, *stored], stored, strict=False)
        added = dict.fromkeys((family.name for family in families), 0)
        for version, before, after in pairs:
            added[version.family] += after - before
        peers[kind.name] = added
        show(Figure(kind.name, stored[-1] / 1e6, "MB"))
    raw = {family.name: _raw(family) for family in families}
    return {
        "raw": raw,
        "titles": {family.name: family.title for family in families},
        "peers": peers,
    }


def _raw(family: Family) -> int:
    return sum(family.raw_size(number) for number in range(len(family.versions)))


def _whole_size(family: Family, number: int) -> int:
    return sum(path.stat().st_size for path in family.directory(number).iterdir())


def _summary(samples: list[Series]) -> Results:
    """Stored bytes of the last run, median seconds of the whole series, and those of each run."""
    commits, checkouts = ([sum(part) for part in parts] for parts in _times(samples))
    return {
        **asdict(samples[-1]),
        "commits": commits,
        "checkouts": checkouts,
        "commit_seconds": statistics.median(commits),
        "checkout_seconds": statistics.median(checkouts),
    }


def _times(samples: list[Series]) -> tuple[list[list[float]], list[list[float]]]:
    return [series.commit for series in samples], [series.checkout for series in samples]


def _print_family(family: Results) -> None:
    """What each peer needs for all versions."""
    raw, whole = sum(family["raw"]), sum(family["whole"])
    print(f"\n{family['title']}: {len(family['versions'])} versions, {raw / 1e6:.0f} MB")
    for name, peer in family["peers"].items():
        speeds = [whole / 1e6 / peer[f"{what}_seconds"] for what in ("commit", "checkout")]
        note = "in {:.0f} MB/s, out {:.0f} MB/s".format(*speeds)
        show(Figure(name, peer["stored"][-1] / raw, "of raw", note=note))


def figures(results: Results, together: Results | None) -> Iterator[Figure]:
    """What has a target."""
    yield from _growth(results)
    yield from _beside_peers(results)
    if together:
        sizes = {peer: sum(added.values()) for peer, added in together["peers"].items()}
        yield from _totals(sizes, "all, in one repository")
    if REPEATED in results:
        yield from _speeds(results[REPEATED]["peers"])


def _growth(results: Results) -> Iterator[Figure]:
    for name, number, target, title in GROWTH:
        if name in results and "mstore" in results[name]["peers"]:
            value = _added(results[name], "mstore", number)
            yield Figure(title, value, "of raw", target, note=_of_xor(results[name], number))
    for name, number, _, title in GROWTH:
        if name in DEEP and name in results:
            deep = results[name]["deep"]
            note = _of_xor(results[name], number) if deep else "this mstore has no repack --deep"
            value = deep[number - 1] if deep else None
            yield Figure(f"{title}, repack --deep", value, "of raw", DEEP[name], note=note)


def _added(family: Results, peer: str, number: int) -> float:
    """What a version added to what the peer stores, as a share of the version's own bytes."""
    stored = family["peers"][peer]["stored"]
    return (stored[number] - stored[number - 1]) / family["raw"][number]


def _of_xor(family: Results, number: int) -> str:
    """The same of the XOR codec, which tells how hard this data is."""
    return f"XOR: {_added(family, 'XOR', number):.4f}" if "XOR" in family["peers"] else ""


def _beside_peers(results: Results) -> Iterator[Figure]:
    """The smallest peer of each family, and the sum of all."""
    totals: dict[str, int] = {}
    for name, family in results.items():
        stored = {peer: found["stored"][-1] for peer, found in family["peers"].items()}
        totals = {peer: totals.get(peer, 0) + size for peer, size in stored.items()}
        own = stored.pop("mstore", None)
        if own and stored:
            best = min(stored, key=lambda peer: stored[peer])
            ratio = stored[best] / own
            yield Figure(f"size of {best} / mstore: {name}", ratio, "x", 1, at_most=False)
    yield from _totals(totals, "all, a repository each")


def _totals(sizes: dict[str, int], how: str) -> Iterator[Figure]:
    """What each peer needs for all families, beside mstore."""
    for peer, size in sizes.items():
        if peer != "mstore" and "mstore" in sizes:
            target = SUM_RATIO if peer == "XOR" else 1
            ratio = size / sizes["mstore"]
            yield Figure(f"size of {peer} / mstore: {how}", ratio, "x", target, at_most=False)


def _speeds(peers: Results) -> Iterator[Figure]:
    for what, target in (("commit", COMMIT_RATIO), ("checkout", CHECKOUT_RATIO)):
        for name in ("restic", "borg"):
            if name in peers and "mstore" in peers:
                ratio = peers[name][f"{what}_seconds"] / peers["mstore"][f"{what}_seconds"]
                title = f"{what} of the float32 series: {name} / mstore"
                yield Figure(title, ratio, "x", target, at_most=False)


def main() -> int:
    """The command line; returns the exit code."""
    arguments = _arguments()
    families = [family for family in FAMILIES if family.name in arguments.families]
    wanted = [*families, *(LONG_FAMILIES if "depth" in arguments.parts else ())]
    missing = [family.name for family in wanted if not family.made()]
    if missing:
        maker = [sys.executable, HERE / "make_families.py", "--model", arguments.model, *missing]
        subprocess.run(maker, check=True)
    described = machine()
    print("\n".join(f"{what:10} {value}" for what, value in described.items()), flush=True)
    kinds = {name: PEERS[name] for name in PEERS if name in arguments.peers}
    versions = {kind.name: kind.version() for kind in kinds.values()}
    for name, version in versions.items():
        print(version or f"{name} is not installed", flush=True)
    installed = [kind for kind in kinds.values() if versions[kind.name]]
    parts = arguments.parts
    results = measure(families, installed, arguments.runs) if "apart" in parts else {}
    together = measure_together(families, installed) if "together" in parts else None
    others = {
        part: run_benchmark(part, arguments.model)["figures"]
        for part in ("depth", "codecs")
        if part in parts
    }
    found = list(figures(results, together))
    print("\nTargets" if found else "")
    for figure in found:
        show(figure)
    report = {
        "machine": described,
        "peers": versions,
        "families": results,
        "together": together,
        "figures": [asdict(figure) | {"verdict": figure.verdict} for figure in found],
        **others,
    }
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=1) + "\n")
    all_ran = (len(families), len(kinds), len(parts)) == (len(FAMILIES), len(PEERS), len(PARTS))
    if arguments.report and all_ran:
        write_report(report)
    verdicts = [figure["verdict"] for part in ("figures", *others) for figure in report[part]]
    return 1 if "MISSED" in verdicts else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="mstore and its peers on families of models.")
    parser.add_argument("--model", type=Path, default=DEFAULT_MODEL, help="folder of the f32 model")
    parser.add_argument("--json", type=Path, help="also write what was found to this file")
    parser.add_argument(
        "--report", action="store_true", help="write docs/benchmarks.md, if all ran"
    )
    parser.add_argument("--runs", type=int, default=3, help=f"runs of {REPEATED} (default: 3)")
    choices = (
        ("parts", PARTS),
        ("families", [family.name for family in FAMILIES]),
        ("peers", list(PEERS)),
    )
    for what, known in choices:
        shown = f"some of: {','.join(known)}"
        parser.add_argument(f"--{what}", type=_names(known), default=known, help=shown)
    return parser.parse_args()


def _names(known: Sequence[str]):
    """A parser of names with commas between."""

    def parse(text: str) -> list[str]:
        names = text.split(",")
        if unknown := set(names) - set(known):
            raise argparse.ArgumentTypeError(f"not one of {','.join(known)}: {min(unknown)}")
        return names

    return parse


if __name__ == "__main__":
    sys.exit(main())
