"""The page of the benchmarks says who won, whoever it is, and its charts are well-formed."""

import importlib
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def report():
    sys.path.insert(0, str(HERE))
    try:
        yield importlib.import_module("report")
    finally:
        sys.path.remove(str(HERE))


def peer(stored: int, commit: float, checkout: float) -> dict:
    return {
        "stored": [stored // 2, stored],
        "commits": [commit],
        "checkouts": [checkout],
        "commit_seconds": commit,
        "checkout_seconds": checkout,
    }


def family(title: str, **peers: dict) -> dict:
    sizes = [100_000, 100_000]
    return {
        "title": title,
        "versions": ["base", "50 <steps>"],
        "raw": sizes,
        "whole": sizes,
        "peers": peers,
    }


@pytest.fixture
def written(tmp_path, monkeypatch, report) -> Path:
    monkeypatch.setattr(report, "PAGE", tmp_path / "benchmarks.md")
    monkeypatch.setattr(report, "CHARTS", tmp_path / "charts")
    families = {
        "f32": family("float & more", mstore=peer(90_000, 1, 2), XOR=peer(120_000, 0.5, 4)),
        "bf16": family("half", mstore=peer(50_000, 1, 2), XOR=peer(25_000, 2, 4)),
    }
    figure = {"name": "a size", "value": 0.5, "unit": "of raw", "target": 0.4, "verdict": "MISSED"}
    peers = {"mstore": "mstore 1", "XOR": "XOR", "borg": None}
    machine = {"processor": "2 x a processor", "busy": "load 9.9"}
    together = {
        "raw": {"f32": 200_000, "bf16": 200_000},
        "titles": {"f32": "float & more", "bf16": "half"},
        "peers": {
            "mstore": {"f32": 90_000, "bf16": 10_000},
            "XOR": {"f32": 60_000, "bf16": 25_000},
        },
    }
    report.write_report(
        {
            "machine": machine,
            "peers": peers,
            "families": families,
            "together": together,
            "figures": [figure],
            "depth": [{"name": "a length", "value": 1.05, "unit": "x", "target": 1.1}],
            "codecs": [{"name": "a speed", "value": 2.5, "unit": "GB/s"}],
        }
    )
    return tmp_path


def test_page(written) -> None:
    page = (written / "benchmarks.md").read_text()
    assert "| float & more | **0.450** | 0.600 |" in page
    assert "| half | 0.250 | **0.125** |" in page
    assert "| **all, 0 MB** | **0.350** | 0.362 |" in page
    assert "- half: smaller: XOR (in memory) 2.00x." in page
    assert "- float & more: faster to commit: XOR (in memory) 2.00x." in page
    assert "faster to check out" not in page.partition("## Where a peer is ahead")[2]
    assert "| not installed | borg |" in page
    assert "| a size | 0.5000 | <= 0.4000 | MISSED |" in page
    assert "load 9.9" not in page


def test_page_has_sizes_in_one_repository_beside_those_apart(written) -> None:
    page = (written / "benchmarks.md").read_text()
    _, _, part = page.partition("## All families in one repository")
    part, _, rest = part.partition("## Long histories")
    assert "| half | **0.050** | 0.125 |" in part
    assert "| **all, 0 MB** | 0.250 | **0.212** |" in part
    assert "| all families in one repository | 0 MB, 1.00x | 0 MB, 0.85x |" in part
    assert "| each family in a repository of its own | 0 MB, 1.00x | 0 MB, 1.04x |" in part
    assert "| a length | 1.05 x | <= 1.10 x | ok |" in rest
    ahead = "- float & more, in one repository with all: smaller: XOR (in memory) 1.50x."
    assert ahead in rest
    assert "half, in one repository" not in rest
    assert "| a speed | 2.50 GB/s |" in rest.partition("## Codecs in memory")[2]


def test_charts_are_well_formed(written) -> None:
    charts = {path.name: path.read_text() for path in (written / "charts").iterdir()}
    assert sorted(charts) == ["size-speed.svg", "size.svg", "speed.svg"]
    for chart in charts.values():
        ElementTree.fromstring(chart)
    assert charts["size.svg"].count('class="own"') == 2
    assert "float &amp; more" in charts["size.svg"]


def test_bars_are_as_long_as_their_values(written) -> None:
    root = ElementTree.fromstring((written / "charts/size.svg").read_text())
    widths = [
        float(bar.get("width", ""))
        for bar in root.iter("{http://www.w3.org/2000/svg}rect")
        if bar.get("class") in ("own", "codec")
    ]
    assert [round(width / widths[0] * 0.45, 2) for width in widths] == [0.45, 0.6, 0.25, 0.12]
