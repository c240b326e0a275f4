"""What the pages say is true: code blocks run, output is as shown, links lead somewhere.

A page's blocks run in order, in one directory of their own. ```python blocks share a namespace;
an ```output block after one is what it prints. Lines of ```console blocks that begin with `$ ` go
to a shell, the lines after each are what it prints. Blocks of other languages are not run.

Pages show real output, of which some differs from run to run. So an id stands for any id, a date for
any date, and likewise ages and durations; sizes may be off by 3 %, shares by about one point, and runs of
spaces by any number. `…` stands for any text of a line, and on a line of its own for any number of
lines.
"""

import io
import os
import re
import subprocess
import sys
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
LANGUAGES = {"python", "output", "console", "text", "json", "sh"}
_FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^#{1,6} (.+)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced block: its language, its text, and the line of the page it begins on."""

    language: str
    text: str
    line: int


def blocks(page: str) -> list[Block]:
    return [
        Block(match[2], match[3], page.count("\n", 0, match.start(3)) + 1)
        for match in _FENCE.finditer(page)
    ]


def matches(expected: str, found: str) -> bool:
    """Whether `found` is `expected`, as far as it can be the same twice."""
    pattern, close = "", []
    for line in expected.rstrip("\n").split("\n") if expected.strip() else []:
        if line.strip() == "…":
            pattern += r"(?:.*\n)*"
            continue
        at = 0
        for token in _TOKEN.finditer(line.rstrip()):
            pattern += re.escape(line[at : token.start()]) + _PATTERNS[str(token.lastgroup)]
            at = token.end()
            if token.lastgroup in ("size", "share"):
                close.append((token.lastgroup, token[0]))
        pattern += re.escape(line[at:].rstrip()) + r"[ \t]*\n"
    match = re.fullmatch(pattern, found.rstrip("\n") + "\n" if found.strip() else "")
    return match is not None and all(
        _is_close(kind, text, other)
        for (kind, text), other in zip(close, match.groups(), strict=True)
    )


_PATTERNS = {
    "any": r"[^\n]*",
    "id": r"[0-9a-f]+",
    "date": r"\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d[+.:\d ]*",
    "age": r"\([^()\n]*(?:now|ago)\)",
    "took": r"\d+\.\d s(?: \([\d.]+ [kMG]?B/s\))?",
    "size": r"([\d.]+ [kMG]?B)",
    "share": r"(<?[\d.]+ %)",
    "spaces": r" +",
}
_TOKEN = re.compile(
    r"""(?P<any>…)
      | (?P<id>\b(?:[0-9a-f]{64}|[0-9a-f]{12})\b)
      | (?P<date>\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d[+.:\d ]*)
      | (?P<age>\([^()\n]*(?:now|ago)\))
      | (?P<took>\d+\.\d\ s(?:\ \([\d.]+\ [kMG]?B/s\))?)
      | (?P<size>[\d.]+\ [kMG]?B)
      | (?P<share><?[\d.]+\ %)
      | (?P<spaces>\ +)""",
    re.VERBOSE,
)
_FACTORS = {"B": 1.0, "kB": 1e3, "MB": 1e6, "GB": 1e9}


def _is_close(kind: str, text: str, other: str) -> bool:
    (one, unit), (two, other_unit) = (item.lstrip("<").split(" ") for item in (text, other))
    if kind == "share":
        return abs(float(one) - float(two)) <= 1 + 0.03 * float(one)
    size, other_size = float(one) * _FACTORS[unit], float(two) * _FACTORS[other_unit]
    return abs(size - other_size) <= 0.03 * size + 3


class Page:
    """Runs the blocks of one page."""

    def __init__(self, path: Path, directory: Path) -> None:
        self.path = path
        self.directory = directory
        self.namespace: dict[str, Any] = {"__name__": "page"}
        self.printed = ""

    def run(self) -> None:
        for block in blocks(self.path.read_text("utf-8")):
            if block.language == "python":
                self.run_python(block)
            elif block.language == "console":
                self.run_console(block)
            elif block.language == "output":
                self.compare(block.text, self.printed, block.line, "the block before")

    def run_python(self, block: Block) -> None:
        code = compile("\n" * (block.line - 1) + block.text, self.path, "exec")
        before = Path.cwd()
        os.chdir(self.directory)
        try:
            with redirect_stdout(io.StringIO()) as printed:
                exec(code, self.namespace)
        finally:
            os.chdir(before)
        self.printed = printed.getvalue()

    def run_console(self, block: Block) -> None:
        for session in re.split(r"^(?=\$ )", block.text, flags=re.MULTILINE):
            if not session.startswith("$ "):
                assert not session.strip(), f"{self.path.name}:{block.line}: output of no command"
                continue
            command, _, expected = session[2:].partition("\n")
            if command.startswith("cd "):
                self.directory = self.directory / command[3:]
                continue
            self.compare(expected, self.shell(command), block.line, command)

    def shell(self, command: str) -> str:
        done = subprocess.run(
            ["bash", "-c", command],
            cwd=self.directory,
            env=environment(self.directory),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, f"{self.path.name}: {command}\n{done.stdout}"
        return done.stdout

    def compare(self, expected: str, found: str, line: int, what: str) -> None:
        if not matches(expected, found):
            pytest.fail(f"{self.path.name}:{line}: {what}\nprints\n{found}\nand not\n{expected}")


def environment(directory: Path) -> dict[str, str]:
    return {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "HOME": str(directory),
        "MSTORE_AUTHOR": "Ada Lovelace <ada@example.com>",
        "COLUMNS": "100",
        "NO_COLOR": "1",
        "TZ": "UTC",
        "KERAS_BACKEND": "torch",
        "LC_ALL": "C.UTF-8",
    }


def slug(heading: str) -> str:
    """The anchor that a heading gets where the pages are shown."""
    return re.sub(r"[^\w\- ]", "", heading.lower().replace("`", "")).replace(" ", "-")


# Keras on PyTorch says so of its own use of numpy.
@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept:DeprecationWarning")
@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_page_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in environment(tmp_path).items():
        monkeypatch.setenv(name, value)
    # The page on the format shows bytes of the golden repository.
    (tmp_path / "tests").symlink_to(ROOT / "tests")
    Page(path, tmp_path).run()


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(path: Path) -> None:
    text = _FENCE.sub("", path.read_text("utf-8"))
    for link in _LINK.findall(text):
        if "://" in link:
            continue
        target, _, anchor = link.partition("#")
        there = (path.parent / target).resolve() if target else path
        assert there.exists(), f"{path.name} links to {link}"
        if anchor:
            page = _FENCE.sub("", there.read_text("utf-8"))
            assert anchor in {slug(heading) for heading in _HEADING.findall(page)}, link


def test_blocks_are_of_known_languages() -> None:
    for path in PAGES:
        for block in blocks(path.read_text("utf-8")):
            assert block.language in LANGUAGES, f"{path.name}:{block.line}: {block.language!r}"


@pytest.mark.parametrize(
    ("expected", "found", "same"),
    [
        ("a\n", "a\n", True),
        ("a\n", "b\n", False),
        ("", "", True),
        ("", "a\n", False),
        ("a\n", "", False),
        ("a … c\n", "a b b c\n", True),
        ("a … c\n", "a\nc\n", False),
        ("a\n…\nd\n", "a\nb\nc\nd\n", True),
        ("a\n…\nd\n", "a\nd\n", True),
        ("a\n…\nd\n", "a\nb\n", False),
        ("a.c\n", "abc\n", False),
        ("at 0123456789ab.\n", "at fedcba987654.\n", True),
        ("at 0123456789ab.\n", "at fedcba98765.x\n", False),
        ("2026-11-22 00:42:06 +0000 by\n", "2031-01-02 10:42:06 +0000 by\n", True),
        ("x (just now)\n", "x (2 minutes ago)\n", True),
        ("in 0.1 s (16.1 MB/s)\n", "in 11.1 s (980.0 kB/s)\n", True),
        ("  10.0 MB  a\n", " 10.2 MB  a\n", True),
        ("  10.0 MB  a\n", " 10.4 MB  a\n", False),
        ("  10.0 MB  a\n", " 10.0 kB  a\n", False),
        ("83.2 %\n", "83.9 %\n", True),
        ("83.2 %\n", "88.2 %\n", False),
        ("…  1.0 MB  …\n", "abc 1.0 MB x\n", True),
    ],
)
def test_output_is_compared_with_wildcards(expected: str, found: str, same: bool) -> None:
    assert matches(expected, found) is same
