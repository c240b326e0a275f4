"""Tensors read in another order than they lie in: what is read, how often, and in what memory."""

import tracemalloc
import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mstore import viewreader
from mstore.chunkreader import ChunkReader
from mstore.chunkstore import Session
from mstore.database import Database
from mstore.dtypes import BY_NAME, DType
from mstore.errors import InvalidInputError
from mstore.filebytes import StoredBytes
from mstore.ingest import FileToStore, Ingest
from mstore.layout import Recoded, Strided, Tensor, Tiled, View, cover
from mstore.ops import rowmajor
from mstore.ops.rowmajor import Lying, common_order, copied, parts, placed
from mstore.ops.values import compare_values
from mstore.sources import BufferSource
from mstore.storage.memory import MemoryStorage

F32 = BY_NAME["f32"]
ANY = [dtype for dtype in BY_NAME.values() if dtype.bits >= 8]
PACKED = [dtype for dtype in BY_NAME.values() if dtype.bits < 8]


@dataclass
class Made:
    """A file of one tensor whose element number i in row-major order has the bytes `values[i]`."""

    data: bytes
    tensor: Tensor
    place: Strided | Tiled | Recoded | None = None

    def lying(self, chunk_size: int) -> Lying:
        """The tensor, as it is stored in chunks of that size."""
        size = len(self.data)
        storage = (0, Tensor("storage", BY_NAME["u8"], (size,)))
        if self.place is None:
            layout = cover("test", size, [(0, self.tensor)])
        else:
            views = [View(self.tensor, self.place)]
            layout = cover("test", size, [storage], hidden=["storage"], views=views)
        db = Database.create(MemoryStorage(), "Ada")
        with Session(db) as session:
            ingest = Ingest(session, threads=1, chunk_size=chunk_size)
            source = BufferSource([memoryview(self.data)])
            ((_, manifest),) = ingest.store([FileToStore("f", source, layout)])
            session.publish(lambda root: root, action="test", author="Ada")
        content = StoredBytes(manifest, ChunkReader(db, threads=1))
        place = manifest.views[0] if manifest.views else manifest.segments[0]
        return Lying(self.tensor, place, 0, content)


def made(
    kind: str,
    values: np.ndarray,
    dtype: DType,
    sizes: Sequence[int] = (4, 3),
    axes: Sequence[int] = (1, 0),
) -> Made:
    """Values, of any type of the size of `dtype`, in a file of that kind.

    Tiles have these `sizes`. Strided elements lie along the last of `axes` as neighbours, but with
    room for others, of `sizes` elements, between them.
    """
    tensor = Tensor("w", dtype, values.shape, "F" if kind in ("F", "zlib F") else "C")
    raw = values.tobytes(tensor.order)
    if kind in ("C", "F"):
        return Made(raw, tensor)
    if kind in ("zlib C", "zlib F"):
        packed = zlib.compress(b"head" + raw)
        return Made(b"xx" + packed, tensor, Recoded("zlib", 2, len(packed), len(raw) + 4, 4))
    if kind == "tiled":
        tile = tuple(sizes)
        counts = [-(-n // t) for n, t in zip(values.shape, tile, strict=True)]
        padded = np.zeros([n * t for n, t in zip(counts, tile, strict=True)], values.dtype)
        padded[tuple(slice(n) for n in values.shape)] = values
        data, offsets = b"", []
        for number in np.ndindex(*counts):
            where = tuple(slice(i * t, (i + 1) * t) for i, t in zip(number, tile, strict=True))
            offsets.append(len(data))
            data += padded[where].tobytes()
        return Made(data, tensor, Tiled(tile, tuple(offsets), bytes(dtype.itemsize)))
    shape = [values.shape[axis] * size for axis, size in zip(axes, sizes, strict=True)]
    wide = np.zeros(shape, values.dtype)
    picked = wide[(*(slice(None, None, size) for size in sizes), ...)]
    picked[...] = values.transpose(axes)
    strides = picked.transpose(np.argsort(axes)).strides
    return Made(wide.tobytes() + b"tail", tensor, Strided(0, strides))


def any_of(data: Any, kind: str, values: np.ndarray, dtype: DType) -> Made:
    """As `made`, of any sizes and axes."""
    sizes = data.draw(st.tuples(*[st.integers(1, 4)] * values.ndim))
    return made(kind, values, dtype, sizes, data.draw(st.permutations(range(values.ndim))))


KINDS = ["C", "F", "zlib C", "zlib F", "tiled", "strided"]


def numbered(shape: tuple[int, ...], itemsize: int, seed: int = 0) -> np.ndarray:
    raw = np.random.default_rng(seed).integers(0, 256, (prod(shape), itemsize), "u1")
    return raw.view(np.dtype((np.void, itemsize))).reshape(shape)


def little(values: np.ndarray, dtype: DType) -> bytes:
    raw = np.frombuffer(values.tobytes(), f"V{dtype.word}").tobytes()
    if not dtype.big_endian:
        return raw
    return np.frombuffer(raw, "u1").reshape(-1, dtype.word)[:, ::-1].tobytes()


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """All that is large is small: what is read at once, what is brought into order at once."""
    for name, size in {"_READ_BYTES": 64, "_WRITE_BYTES": 16, "_PIECE": 48}.items():
        monkeypatch.setattr(rowmajor, name, size)
    monkeypatch.setattr(rowmajor, "_ROWS", 3)
    monkeypatch.setattr(rowmajor, "_COLUMNS", 2)
    monkeypatch.setattr(viewreader, "_WINDOW", 100)
    monkeypatch.setattr(viewreader, "_GAP", 16)
    return monkeypatch


def put_together(one: Lying, room: int) -> bytes:
    """The tensor from its placed parts, none of which may lie where another does."""
    whole, taken = bytearray(one.tensor.nbytes), bytearray(one.tensor.nbytes)
    for at, part in placed(one, room):
        whole[at : at + len(part)] = part
        assert not any(taken[at : at + len(part)])
        taken[at : at + len(part)] = b"\1" * len(part)
    assert all(taken)
    return bytes(whole)


cases = st.fixed_dictionaries(
    {
        "shape": st.lists(st.integers(0, 6), max_size=3).map(tuple),
        "room": st.sampled_from([1, 30, 200, 500, 1 << 20]),
        "chunk": st.sampled_from([64, 1000]),
    }
)


@pytest.mark.usefixtures("small")
@settings(max_examples=100, deadline=None)
@given(data=st.data(), case=cases, kind=st.sampled_from(KINDS), dtype=st.sampled_from(ANY))
def test_every_size_of_boxes_gives_the_same(data: Any, case: Any, kind: str, dtype: DType) -> None:
    values = numbered(case["shape"], dtype.itemsize)
    expected = little(values, dtype)
    one = any_of(data, kind, values, dtype).lying(case["chunk"])
    assert b"".join(parts(one, room=case["room"])) == expected
    assert put_together(one, case["room"]) == expected


@pytest.mark.usefixtures("small")
@settings(max_examples=100, deadline=None)
@given(data=st.data(), case=cases, kinds=st.tuples(*[st.sampled_from(KINDS)] * 2))
def test_two_tensors_are_read_in_one_order(data: Any, case: Any, kinds: tuple[str, str]) -> None:
    values = numbered(case["shape"], 2)
    ones = [
        any_of(data, kind, values, BY_NAME[name]).lying(case["chunk"])
        for kind, name in zip(kinds, ("u16", "f16"), strict=True)
    ]
    order = common_order(*ones, case["room"])
    read = [b"".join(parts(one, order)) for one in ones]
    assert read[0] == read[1]
    assert Counter(np.frombuffer(read[0], "u2").tolist()) == Counter(
        np.frombuffer(values.tobytes(), "u2").tolist()
    )


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("dtype", PACKED, ids=str)
@pytest.mark.parametrize("kind", ["C", "F", "zlib C", "zlib F"])
def test_elements_that_share_bytes(kind: str, dtype: DType) -> None:
    """In row-major order they are a run of bytes; in another they are refused."""
    raw = np.arange(6 * 8 * dtype.bits // 8, dtype="u1")
    one = made(kind, raw, BY_NAME["u8"])
    one.tensor = Tensor("w", dtype, (6, 8), "F" if kind.endswith("F") else "C")
    lying, other = one.lying(64), made("C", numbered((6, 8), 4), F32).lying(64)
    assert common_order(lying, other, 100) is None
    assert common_order(other, lying, 100) is None
    runs = copied(lying)
    assert (runs is not None) == (kind == "C")
    assert sum(run.length for run in runs or []) == raw.nbytes * (kind == "C")
    for room in (1, 10, 1 << 20):
        if kind.endswith("F"):
            for read in (parts(lying, room=room), placed(lying, room)):
                with pytest.raises(InvalidInputError, match="packed elements in column-major"):
                    next(read)
        else:
            assert b"".join(parts(lying, room=room)) == raw.tobytes()
            assert put_together(lying, room) == raw.tobytes()
            assert compare_values(lying, lying, room).changed == 0


def test_overlapping_elements() -> None:
    raw = numbered((200,), 4).tobytes()
    for strides in ((8, 4), (0, 4), (4, 0), (12, 12), (0, 0)):
        one = Made(raw, Tensor("w", F32, (16, 16)), Strided(8, strides)).lying(64)
        expected = np.ndarray((16, 16), "<f4", raw, 8, strides).tobytes()
        for room in (100, 1 << 20):
            assert put_together(one, room) == expected
            assert b"".join(parts(one, room=room)) == expected


def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Where the chunks begin that are read from now on."""
    read: list[int] = []
    fetch = StoredBytes._fetch

    def note(self: StoredBytes, starts: Any, wanted: Any, out: memoryview) -> None:
        read.extend(starts.tolist())
        fetch(self, starts, wanted, out)

    monkeypatch.setattr(StoredBytes, "_fetch", note)
    return read


@pytest.mark.parametrize("kind", ["C", "F", "zlib C", "tiled", "strided"])
def test_chunks_are_read_about_once(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows and boxes may begin in the middle of a chunk, but nothing is read for each row."""
    monkeypatch.setattr(viewreader, "_WINDOW", 4 << 10)
    monkeypatch.setattr("mstore.recoding._WINDOW", 4 << 10)
    monkeypatch.setattr(rowmajor, "_WRITE_BYTES", 16)
    values = numbered((200, 80), 4)

    one = made(kind, values, F32, (4, 3) if kind == "tiled" else (1, 2)).lying(512)
    read = counted(monkeypatch)
    whole = put_together(one, 16 << 10)
    assert whole == values.tobytes()
    assert len(read) <= 1.25 * len(set(read))


def test_two_column_major_tensors_are_compared_as_they_lie(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    values = numbered((200, 80), 4)
    one, other = (made("F", values, BY_NAME[name]).lying(512) for name in ("f32", ">f32"))
    monkeypatch.setattr(rowmajor, "PART_BYTES", 4 << 10)
    order = common_order(one, other, 16 << 10)
    assert order is not None
    assert order.is_in_order
    read = counted(monkeypatch)
    assert b"".join(parts(one, order)) == values.tobytes("F")
    assert len(read) <= 1.25 * len(set(read))


def test_what_must_be_decoded_from_its_start_is_decoded_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("mstore.recoding._WINDOW", 1 << 10)
    values = numbered((200, 80), 4)
    one, other = (made(kind, values, F32).lying(512) for kind in ("F", "zlib C"))
    order = common_order(one, other, 4 << 10)
    read = counted(monkeypatch)
    assert b"".join(parts(other, order)) == values.tobytes()
    # A window may begin in the middle of a chunk.
    assert max(Counter(read).values()) <= 2
    assert b"".join(parts(one, order)) == values.tobytes()


@pytest.mark.parametrize("kind", ["F", "zlib F", "strided", "tiled"])
@pytest.mark.parametrize("what", ["export", "diff"])
def test_memory_is_bounded_whatever_the_size(
    kind: str, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    room = 64 << 10
    for name, size in {"_READ_BYTES": 16 << 10, "_WRITE_BYTES": 64, "_PIECE": 16 << 10}.items():
        monkeypatch.setattr(rowmajor, name, size)
    monkeypatch.setattr(rowmajor, "PART_BYTES", room)
    monkeypatch.setattr("mstore.ops.values._BLOCK", 1 << 12)
    for name in ("viewreader._WINDOW", "recoding._WINDOW", "recoding._PIECE"):
        monkeypatch.setattr(f"mstore.{name}", 32 << 10)
    values = np.arange(512 * 768, dtype="<f4").reshape(512, 768)
    # One tile is more than there is room for.
    sizes = (256, 256) if kind == "tiled" else (1, 2)
    one = made(kind, values, F32, sizes).lying(16 << 10)
    other = made("C", values + 1, F32).lying(16 << 10)
    compare_values(one, one, room)  # what is needed once
    tracemalloc.start()
    try:
        if what == "export":
            assert sum(len(part) for _, part in placed(one, room)) == values.nbytes
        else:
            assert compare_values(one, other, room).changed == values.size
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    # Boxes, windows, pieces and what decodes chunks; once there was all of it, twice.
    assert peak < values.nbytes / 2
