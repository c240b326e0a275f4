"""Good files that are cut short or have bits flipped: only mstore's errors, and a whole cover."""

import random
from collections.abc import Iterator

import pytest

from mstore.errors import MstoreError
from mstore.formats.base import HEAD_SIZE, BytesReader, Format
from mstore.formats.detect import FORMATS, describe

SMALL = 16 << 10
"""Bytes of a file that is tried."""

SLOW = {"hdf5": 4, "keras": 2}
"""How often files are tried whose parsers start a process each time."""

TIMES = 400
"""How often the files of other formats are tried."""

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def contents(good_directory) -> dict[str, list[bytes]]:
    """The small good files by format, the smallest first."""
    directory, cases = good_directory
    found: dict[str, list[bytes]] = {}
    for case in cases:
        content = (directory / case.path).read_bytes()
        if 0 < len(content) <= SMALL:
            found.setdefault(case.format, []).append(content)
    return {name: sorted(files, key=len) for name, files in found.items()}


def of_format(parser: Format, contents: dict[str, list[bytes]]) -> tuple[list[bytes], int]:
    """The files to try of a format, and how many times."""
    files = contents[parser.name]
    assert files, f"no file of {parser.name} is small enough"
    return files, SLOW.get(parser.name, TIMES)


def try_content(parser: Format, content: bytes) -> None:
    """Whatever the bytes, a parser raises nothing but mstore's errors, and covers the file."""
    reader = BytesReader(content)
    if parser.name not in SLOW:
        assert describe(reader)[0].size == len(content)
    if not parser.sniff(content[:HEAD_SIZE], reader):
        return
    for ask in (parser.examine, parser.findings):
        try:
            answer = ask(reader)
        except MstoreError:
            continue
        if isinstance(answer, tuple):
            assert sum(segment.length for segment in answer[0].segments) == len(content)


@pytest.mark.parametrize("parser", FORMATS, ids=lambda parser: parser.name)
def test_cut_short(parser, contents):
    files, times = of_format(parser, contents)
    chance = random.Random(1)
    smallest = files[0]
    lengths = sorted(chance.sample(range(len(smallest)), min(times, len(smallest))))
    for length in lengths:
        try_content(parser, smallest[:length])
    for content in chance.choices(files, k=times // 4):
        try_content(parser, content[: chance.randrange(len(content))])


@pytest.mark.parametrize("parser", FORMATS, ids=lambda parser: parser.name)
def test_changed(parser, contents):
    files, times = of_format(parser, contents)
    for content in damaged(files, times):
        try_content(parser, content)


def damaged(files: list[bytes], times: int) -> Iterator[bytes]:
    """Files with a few bits flipped, bytes replaced, or runs moved, doubled or left out."""
    chance = random.Random(2)
    for content in chance.choices(files, k=times):
        made = bytearray(content)
        for _ in range(chance.choice((1, 1, 1, 2, 5))):
            at = chance.randrange(len(made))
            how = chance.randrange(4)
            if how < 2:
                made[at] ^= 1 << chance.randrange(8)
            elif how == 2:
                run = chance.choice((1, 2, 4, 8))
                made[at : at + run] = chance.choice((b"\0", b"\xff", b"\x80", b"\x7f")) * run
            else:
                length, to = chance.randrange(1, 64), chance.randrange(len(made))
                made[to:to] = made[at : at + length]
            made = made or bytearray(1)
        yield bytes(made)
