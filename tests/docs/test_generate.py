"""The generated pages are up to date, and nothing public is left out of them."""

import importlib.util
import re
from pathlib import Path

import pytest

import mstore
from mstore.cli.main import COMMANDS

ROOT = Path(__file__).parents[2]
CLI = (ROOT / "docs/cli.md").read_text("utf-8")
PYTHON = (ROOT / "docs/python.md").read_text("utf-8")


def load_generator():
    spec = importlib.util.spec_from_file_location(
        "generate", Path(__file__).with_name("generate.py")
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


generate = load_generator()


def test_pages_are_up_to_date(capsys: pytest.CaptureFixture[str]) -> None:
    assert generate.main(["--check"]) == 0, capsys.readouterr().err


def test_a_stale_page_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for page in generate.PAGES:
        text = (ROOT / "docs" / page).read_text("utf-8")
        (tmp_path / page).write_text(text.replace(generate.END, "stale\n" + generate.END), "utf-8")
    monkeypatch.setattr(generate, "DOCS", tmp_path)
    assert generate.main(["--check"]) == 1
    generate.main([])
    assert generate.main(["--check"]) == 0
    assert (tmp_path / "cli.md").read_text("utf-8") == CLI


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_is_documented(name: str) -> None:
    section = CLI.partition(f"### mstore {name}\n")[2].partition("\n### ")[0]
    assert "For example:" in section, f"mstore {name} has no examples"


@pytest.mark.parametrize("name", mstore.__all__)
def test_every_public_name_is_documented(name: str) -> None:
    assert re.search(rf"mstore\.{name}\b", PYTHON)
