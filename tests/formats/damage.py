"""Good files with damage, of one kind in turn or at random, and what must come of any bytes."""

from collections.abc import Iterable, Iterator
from contextlib import suppress

from hypothesis import strategies as st

from mstore.errors import MstoreError
from mstore.formats.base import HEAD_SIZE, BytesReader, Format


def flipped(data: bytes, bits: Iterable[int] = range(8)) -> Iterator[tuple[int, bytes]]:
    """For each of these bits of each byte: the place of the byte, and the file with it flipped."""
    changed = bytearray(data)
    for at in range(len(changed)):
        for bit in bits:
            changed[at] ^= 1 << bit
            yield at, bytes(changed)
            changed[at] ^= 1 << bit


@st.composite
def changed_bytes(
    draw: st.DrawFn, data: bytes, most: int = 3, *, least: int = 1, more: int = 0
) -> bytes:
    """A file in which some bytes are others, and up to `more` of them were put in somewhere."""
    changed = bytearray(data)
    for _ in range(draw(st.integers(least, most))):
        changed[draw(st.integers(0, len(changed) - 1))] = draw(st.integers(0, 255))
    if more:
        at = draw(st.integers(0, len(changed)))
        changed[at:at] = draw(st.binary(max_size=more))
    return bytes(changed)


@st.composite
def changed_runs(draw: st.DrawFn, data: bytes, most: int = 4) -> bytes:
    """A file in which runs of up to eight bytes are others, which need not be as long."""
    changed = bytearray(data)
    for _ in range(draw(st.integers(1, most))):
        at = draw(st.integers(0, max(0, len(changed) - 1)))
        changed[at : at + draw(st.integers(0, 8))] = draw(st.binary(max_size=8))
    return bytes(changed)


def judge(parser: Format, data: bytes) -> None:
    """Whatever the bytes: only errors of this package, and layouts that cover the file."""
    reader = BytesReader(data)
    with suppress(MstoreError):
        layout, _ = parser.examine(reader)
        assert layout.size == sum(one.length for one in layout.segments) == len(data)
    with suppress(MstoreError):
        parser.findings(reader)
    parser.sniff(reader.read(0, HEAD_SIZE), reader)
