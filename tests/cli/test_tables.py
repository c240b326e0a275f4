import pytest
from click import unstyle
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from mstore.cli import tables
from mstore.cli.tables import Column, Table, cut_middle, cut_name

NAME = "encoder.layer.4.attention.output.LayerNorm.bias"


@given(st.text("abc.日0", max_size=60), st.integers(4, 60))
def test_cut_text_fits(name: str, width: int) -> None:
    for cut in (cut_middle, cut_name):
        shown = cut(name, width)
        assert cell_len(shown) <= width
        assert shown == name or cell_len(name) > width


def test_names_lose_the_beginnings_of_their_first_parts() -> None:
    assert cut_name(NAME, 47) == NAME
    assert cut_name(NAME, 46) == "e.layer.4.attention.output.LayerNorm.bias"
    assert cut_name(NAME, 30) == "e.l.4.a.output.LayerNorm.bias"
    assert cut_name("encoder.layer.12.weight", 16) == "e.l.12.weight"
    assert cut_name("x" * 40, 11) == "xxxxx…xxxxx"


def test_the_middle_goes() -> None:
    assert cut_middle("models/very/deep/config.json", 15) == "models/…ig.json"


@pytest.fixture
def printed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    lines: list[str] = []
    monkeypatch.setattr(tables.output, "data", lambda line: lines.append(unstyle(line)))
    return lines


def line_of(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "_line_width", lambda: width)


def table() -> Table:
    filled = Table(
        [
            Column("tensor", cut=cut_name),
            Column("shape", extra=True),
            Column("size", right=True),
            Column("share", right=True, extra=True),
        ],
        indent=2,
    )
    filled.add(NAME, "[384]", "1.5 kB", "91.0 %")
    filled.add("日本", "[1,2]", "2 B", "1.0 %")
    return filled


def test_without_a_terminal_nothing_is_cut(printed: list[str]) -> None:
    table().print()
    assert printed == [
        f"  {'tensor':<47}  shape    size   share",
        f"  {NAME}  [384]  1.5 kB  91.0 %",
        f"  日本{'':<43}  [1,2]     2 B   1.0 %",
    ]


def test_extra_columns_go_first_and_names_are_cut_last(
    printed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for width, shown in (
        (72, f"{NAME}  [384]  1.5 kB  91.0 %"),
        (71, f"{NAME}  [384]  1.5 kB"),
        (57, f"{NAME}  1.5 kB"),
        (40, "e.l.4.a.output.LayerNorm.bias   1.5 kB"),
    ):
        line_of(width, monkeypatch)
        printed.clear()
        table().print()
        assert printed[1] == f"  {shown}"
        assert max(map(cell_len, printed)) <= width


def test_titles_are_only_there_if_there_are_any(printed: list[str]) -> None:
    plain = Table([Column(), Column(right=True)])
    plain.add("a", "1")
    plain.add("bc", "20")
    plain.print()
    assert printed == ["a    1", "bc  20"]
