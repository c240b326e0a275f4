"""Tensors that are no segment of their own, against numpy on the same bytes."""

import pickle
import tracemalloc
import zlib
from math import prod

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mstore import viewreader
from mstore.chunkreader import ChunkReader
from mstore.chunkstore import Session
from mstore.database import Database
from mstore.dtypes import BY_NAME
from mstore.errors import FormatError, LimitExceededError
from mstore.filebytes import StoredBytes
from mstore.ingest import FileToStore, Ingest
from mstore.layout import Recoded, Strided, Tensor, Tiled, View, cover
from mstore.objects import Manifest
from mstore.recoding import DecodedBytes, decode
from mstore.sources import BufferSource
from mstore.storage.memory import MemoryStorage
from mstore.viewed import ViewTensor

F32 = BY_NAME["f32"]


def stored(data: bytes, *views: View, tensors=(), hidden=()) -> list[ViewTensor]:
    """The views of a file with the content `data`, as stored in small chunks."""
    db = Database.create(MemoryStorage(), "Ada")
    layout = cover("test", len(data), tensors, hidden=hidden, views=views)
    with Session(db) as session:
        ingest = Ingest(session, threads=1, chunk_size=64)
        file = FileToStore("f", BufferSource([memoryview(data)]), layout)
        ((_, manifest),) = ingest.store([file])
        session.publish(lambda root: root, action="test", author="Ada")
    assert Manifest.decode(manifest.encode()) == manifest
    reader = ChunkReader(db)
    return [ViewTensor("f", view, StoredBytes(manifest, reader), reader) for view in views]


def decoded(code, data, size, step=7):
    """What `data` holds, decoded from small windows."""
    windows = (data[at : at + step] for at in range(0, len(data), step))
    return b"".join(decode(code, windows, size))


def slices(shape):
    """Slices with any steps, and integers, for each axis."""
    return st.tuples(
        *(
            st.one_of(
                st.slices(extent), st.integers(0, extent - 1) if extent else st.just(slice(None))
            )
            for extent in shape
        )
    )


shapes = st.lists(st.integers(0, 7), max_size=3).map(tuple)


@given(data=st.data(), shape=shapes, offset=st.integers(0, 9), gap=st.sampled_from([0, 1, 64]))
def test_strided(data, shape, offset, gap):
    strides = data.draw(st.tuples(*(st.integers(0, 40) for _ in shape)))
    span = sum((n - 1) * s for n, s in zip(shape, strides, strict=True)) if prod(shape) else 0
    raw = np.random.default_rng(1).bytes(offset + span + 4)
    expected = np.ndarray(shape, "<u4", raw, offset, strides)
    (view,) = stored(raw, View(Tensor("w", BY_NAME["u32"], shape), Strided(offset, strides)))
    index = data.draw(slices(shape))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(viewreader, "_GAP", gap)
        patch.setattr(viewreader, "_MAX_RUNS", data.draw(st.sampled_from([1, 4, 100])))
        patch.setattr(viewreader, "_WINDOW", data.draw(st.sampled_from([8, 30, 1 << 20])))
        np.testing.assert_array_equal(view.numpy(), expected)
        np.testing.assert_array_equal(view[index], expected[index])


@pytest.mark.parametrize(
    ("strides", "index", "read"),
    [
        ((2048, 2), np.s_[:, 3], 32 * 32),  # a chunk of each row
        ((2048, 2), np.s_[::5, 30:34], 7 * 32),
        ((2048, 64), np.s_[7:1:-3, 5], 2 * 32),
        ((2, 64), np.s_[3], 32 * 32),  # in every other chunk of the part that is viewed
        ((2, 64), np.s_[:, 7:9], 4 * 32),
    ],
)
def test_a_slice_of_a_strided_view_reads_only_what_it_needs(strides, index, read, monkeypatch):
    monkeypatch.setattr(viewreader, "_GAP", 32)  # as many bytes as a chunk has here
    raw = np.random.default_rng(0).bytes(64 * 1024)
    expected = np.ndarray((32, 32), "<u2", raw, 0, strides)
    storage = Tensor("storage", BY_NAME["u16"], (len(raw) // 2,))
    place = View(Tensor("w", BY_NAME["u16"], (32, 32)), Strided(0, strides))
    (view,) = stored(raw, place, tensors=[(0, storage)], hidden=["storage"])
    fetched = []
    fetch = StoredBytes._fetch

    def note(self, starts, wanted, out):
        fetched.append(int(wanted.lengths.sum()))
        fetch(self, starts, wanted, out)

    monkeypatch.setattr(StoredBytes, "_fetch", note)
    np.testing.assert_array_equal(view[index], expected[index])
    assert fetched == [read]


def test_a_slice_may_have_a_step_of_any_size():
    raw = np.arange(12, dtype="<f4").tobytes()
    whole = (0, Tensor("whole", F32, (12,)))
    (view,) = stored(raw, View(Tensor("w", F32, (3,)), Strided(4, (16,))), tensors=[whole])
    np.testing.assert_array_equal(view[:: 10**25], [1])
    np.testing.assert_array_equal(view[2 :: -(10**25)], [9])
    np.testing.assert_array_equal(view[3 :: 10**25], [])


def test_an_axis_of_tiles_takes_no_memory_by_its_length():
    fill = np.array([7], "u1").tobytes()
    place = Tiled((1 << 28,), (-1,), fill)
    (view,) = stored(b"", View(Tensor("w", BY_NAME["u8"], (1 << 28,)), place))
    tracemalloc.start()
    try:
        part = view[1::64]
        assert tracemalloc.get_traced_memory()[1] < 2 * part.nbytes
    finally:
        tracemalloc.stop()
    assert part.tobytes() == fill * (1 << 22)


@given(data=st.data(), shape=st.lists(st.integers(0, 9), min_size=1, max_size=3).map(tuple))
def test_tiled(data, shape):
    tile = data.draw(st.tuples(*(st.integers(1, 5) for _ in shape)))
    counts = [-(-n // t) for n, t in zip(shape, tile, strict=True)]
    padded = np.random.default_rng(2).integers(
        0, 255, [c * t for c, t in zip(counts, tile, strict=True)], "u2"
    )
    fill = np.array([7], "u2")
    parts, offsets, at = [], [], 3
    for number in np.ndindex(*counts):
        where = tuple(slice(i * t, (i + 1) * t) for i, t in zip(number, tile, strict=True))
        if data.draw(st.booleans()):
            parts.append(padded[where].tobytes())
            offsets.append(at)
            at += len(parts[-1])
        else:
            padded[where] = fill
            offsets.append(-1)
    expected = padded[tuple(slice(n) for n in shape)]
    raw = b"xyz" + b"".join(parts)
    place = Tiled(tile, tuple(offsets), fill.tobytes())
    (view,) = stored(raw, View(Tensor("w", BY_NAME["u16"], shape), place))
    index = data.draw(slices(shape))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(viewreader, "_WINDOW", data.draw(st.sampled_from([8, 30, 1 << 20])))
        np.testing.assert_array_equal(view.numpy(), expected)
        np.testing.assert_array_equal(view[index], expected[index])


@pytest.mark.parametrize("name", ["bf16", ">bf16", ">f32", "f8_e4m3", "c64", "bool"])
def test_types(name):
    dtype = BY_NAME[name]
    raw = bytes(i % 2 for i in range(16 * dtype.itemsize))
    step = 2 * dtype.itemsize
    (view,) = stored(raw, View(Tensor("w", dtype, (8,)), Strided(dtype.itemsize, (step,))))
    swapped = np.frombuffer(raw, np.uint8).reshape(8, 2, -1)[:, 1]
    if name == ">bf16":
        swapped = swapped[:, ::-1]
    expected = np.ascontiguousarray(swapped).view(view.numpy().dtype).ravel()
    assert view.numpy().tobytes() == expected.tobytes()
    assert view.dtype.itemsize == dtype.itemsize
    assert view[2:3].tobytes() == expected[2:3].tobytes()


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("name", ["f4", "f6_e2m3", "f6_e3m2"])
def test_elements_that_share_bytes(name, order):
    """They are taken apart after they are decoded; a slice then has the right ones."""
    dtype = BY_NAME[name]
    raw = np.random.default_rng(1).integers(0, 256, 6 * 8 * dtype.bits // 8, np.uint8).tobytes()
    packed = zlib.compress(b"head" + raw)
    tensor = Tensor("w", dtype, (6, 8), order)
    place = Recoded("zlib", 0, len(packed), 4 + len(raw), 4)
    view, whole = *stored(packed, View(tensor, place)), int.from_bytes(raw, "little")
    numbers = [whole >> at * dtype.bits & (1 << dtype.bits) - 1 for at in range(48)]
    expected = np.array(numbers, np.uint8).reshape((6, 8), order=order)
    np.testing.assert_array_equal(view.numpy().view(np.uint8), expected)
    for index in ((slice(1, 5, 2), slice(3, None)), (2,), (..., slice(None, None, -3))):
        found = np.ascontiguousarray(view[index]).view(np.uint8)
        np.testing.assert_array_equal(found, expected[index])


def test_the_material_of_views_is_typed_and_the_views_are_listed():
    raw = np.arange(12, dtype="<f4").tobytes()
    storage = (0, Tensor("storage", F32, (12,)))
    row = View(Tensor("row", F32, (4,)), Strided(16, (4,)))
    column = View(Tensor("column", F32, (3,)), Strided(4, (16,)))
    views = stored(raw, row, column, tensors=[storage], hidden=["storage"])
    np.testing.assert_array_equal(views[0].numpy(), [4, 5, 6, 7])
    np.testing.assert_array_equal(views[1].numpy(), [1, 5, 9])
    assert views[0].stored > 0
    assert views[0].depth == 0


def test_equal_places_of_equal_bytes_have_equal_ids():
    raw = np.arange(12, dtype="<f4").tobytes()
    one, other, third = stored(
        raw,
        View(Tensor("one", F32, (3,)), Strided(4, (16,))),
        View(Tensor("other", F32, (3,)), Strided(4, (16,))),
        View(Tensor("third", F32, (3,)), Strided(8, (16,))),
    )
    (changed,) = stored(
        raw[:4] + b"\1" + raw[5:], View(Tensor("one", F32, (3,)), Strided(4, (16,)))
    )
    assert one.id == other.id
    assert len({one.id, third.id, changed.id}) == 3


def test_deflated():
    values = np.arange(1000, dtype="<f4")
    packed = zlib.compressobj(9, zlib.DEFLATED, -15)
    code = packed.compress(b"head" + values.tobytes()) + packed.flush()
    place = Recoded("deflate", 2, len(code), 4004, 4)
    (view,) = stored(b"xx" + code + b"tail", View(Tensor("w", F32, (10, 100)), place))
    np.testing.assert_array_equal(view.numpy(), values.reshape(10, 100))
    np.testing.assert_array_equal(view[9:2:-3, 5], values.reshape(10, 100)[9:2:-3, 5])
    place = Recoded("deflate", 2, len(code), 4004, 4)
    (view,) = stored(b"xx" + code, View(Tensor("w", F32, (10, 100), "F"), place))
    np.testing.assert_array_equal(view.numpy(), values.reshape(10, 100, order="F"))


@given(data=st.data(), order=st.sampled_from("CF"), window=st.sampled_from([8, 30, 1 << 20]))
def test_parts_of_what_is_deflated(data, order, window):
    values = np.arange(210, dtype="<u2").reshape((5, 6, 7), order=order)
    code = zlib.compress(b"head" + values.tobytes(order))
    place = Recoded("zlib", 2, len(code), 424, 4)
    (view,) = stored(b"xx" + code, View(Tensor("w", BY_NAME["u16"], (5, 6, 7), order), place))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(viewreader, "_WINDOW", window)
        patch.setattr("mstore.recoding._WINDOW", 10)
        patch.setattr("mstore.recoding._PIECE", 16)
        for index in data.draw(st.lists(slices((5, 6, 7)), max_size=4)):
            np.testing.assert_array_equal(view[index], values[index])


def test_decoded_bytes_are_read_on_and_only_then_again(monkeypatch):
    monkeypatch.setattr("mstore.recoding._WINDOW", 100)
    monkeypatch.setattr("mstore.recoding._PIECE", 10)
    raw = np.random.default_rng(3).bytes(2000)
    data = zlib.compress(raw)
    asked = []

    class File:
        size = len(data)

        def read(self, offset, length):
            asked.append(offset)
            return data[offset : offset + length]

    found = DecodedBytes(Recoded("zlib", 0, len(data), len(raw)), File())

    def read(begin, end):
        # Three runs, with something between them.
        at, got = found.read_runs(np.array([begin, begin + 9, end - 3]), 3)
        assert (at, got.tobytes()) == (begin, raw[begin:end])

    for begin, end in ((3, 300), (300, 315), (500, 777), (777, 2000)):
        read(begin, end)
    once = list(range(0, len(data), 100))
    assert asked == once
    read(1000, 1500)
    read(200, 2000)
    assert asked == [*once, *once[: len(asked) - 2 * len(once)], *once]


def test_text_of_pickles():
    raw = bytes(range(256)) * 2
    assert decoded("latin1", raw.decode("latin-1").encode(), 512) == raw
    line, *_ = pickle.dumps(raw.decode("latin-1"), protocol=0).split(b"\n")
    assert decoded("escaped", line.removeprefix(b"V"), 512) == raw


@pytest.mark.parametrize("protocol", range(6))
@given(values=st.lists(st.floats(allow_nan=False), max_size=50), times=st.integers(1, 100))
def test_floats_of_pickles(protocol, values, times):
    data = pickle.dumps(values * times, protocol=protocol)
    data = data[2:-1] if protocol >= 2 else data[:-1]
    expected = np.array(values * times, "<f8").tobytes()
    assert decoded("floats", data, len(expected)) == expected


@pytest.mark.parametrize("code", ["deflate", "latin1", "floats"])
def test_what_is_decoded_takes_little_memory_whatever_the_length(code):
    piece = b"G" + bytes(8) if code == "floats" else bytes(9)
    data = piece * 1_000_000
    size = len(data) * 8 // 9 if code == "floats" else len(data)
    if code == "deflate":
        data = zlib.compress(data)[2:-4]
    windows = (data[at : at + 65536] for at in range(0, len(data), 65536))
    tracemalloc.start()
    try:
        assert sum(len(piece) for piece in decode(code, windows, size)) == size
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()


def test_floats_with_an_endless_opcode():
    with pytest.raises(FormatError, match="floats"):
        decoded("floats", b"F" + b"1" * (5 << 20), 8, 1 << 16)


@pytest.mark.parametrize(
    ("code", "data"),
    [
        ("deflate", b"\xff\xff"),
        ("zlib", b"x"),
        ("zlib", zlib.compress(bytes(5))),
        ("zlib", zlib.compress(bytes(3))),
        ("latin1", "\u0100abc".encode()),
        ("latin1", b"\xff\xff\xff\xff"),
        ("floats", b"c__main__\n"),
        ("floats", b"Fx\n"),
        ("floats", b"G123"),
    ],
)
def test_a_file_that_holds_something_else(code, data):
    with pytest.raises(FormatError, match=code):
        decoded(code, data, 4)


@pytest.mark.parametrize(
    ("tensor", "place"),
    [
        (Tensor("w", F32, (4,)), Strided(1, (4,))),
        (Tensor("w", F32, (4,)), Strided(0, (5,))),
        (Tensor("w", F32, (4,)), Strided(-1, (1,))),
        (Tensor("w", F32, (4,)), Strided(12, (-4,))),
        (Tensor("w", F32, (4,)), Strided(0, ())),
        (Tensor("w", F32, (4,), "F"), Strided(0, (4,))),
        (Tensor("w", BY_NAME["f4"], (4,)), Strided(0, (1,))),
        (Tensor("w", BY_NAME["f4"], (2, 4)), Strided(0, (2, 1))),
        (Tensor("w", BY_NAME["f6_e2m3"], (4,)), Strided(0, (3,))),
        (Tensor("w", BY_NAME["f4"], (4,)), Tiled((4,), (0,), bytes(1))),
        (Tensor("w", F32, (0,)), Strided(17, (4,))),
        (Tensor("w", F32, (4,)), Tiled((2,), (0, 9), bytes(4))),
        (Tensor("w", F32, (4,)), Tiled((2,), (0, -2), bytes(4))),
        (Tensor("w", F32, (4,)), Tiled((2,), (0,), bytes(4))),
        (Tensor("w", F32, (4,)), Tiled((0,), (0,), bytes(4))),
        (Tensor("w", F32, (4,)), Tiled((2,), (0, 8), bytes(3))),
        (Tensor("w", F32, (4,)), Recoded("zlib", 8, 9, 16)),
        (Tensor("w", F32, (4,)), Recoded("zlib", -1, 9, 16)),
        (Tensor("w", F32, (4,)), Recoded("zlib", 0, 9, 16, 1)),
        (Tensor("w", F32, (4,)), Recoded("zlib", 0, -1, 16)),
    ],
)
def test_places_outside_the_file(tensor, place):
    with pytest.raises(FormatError, match="leaves the file"):
        cover("test", 16, [], views=[View(tensor, place)])


def test_a_view_much_larger_than_its_file():
    huge = View(Tensor("w", F32, (1 << 40,)), Strided(0, (0,)))
    with pytest.raises(LimitExceededError, match="'w' would take"):
        cover("test", 16, [], views=[huge])


def test_a_bomb_is_not_inflated_beyond_what_it_claims():
    with pytest.raises(FormatError, match="not of 1000 bytes"):
        decoded("zlib", zlib.compress(bytes(10_000_000)), 1000)
    huge = View(Tensor("w", F32, (1 << 20,)), Recoded("zlib", 0, 16, 4 << 20))
    with pytest.raises(LimitExceededError, match="'w' would hold"):
        cover("test", 16, [], views=[huge])


def test_names_are_told_apart():
    view = View(Tensor("w", F32, (4,)), Strided(0, (4,)))
    with pytest.raises(FormatError, match="two tensors are called 'w'"):
        cover("test", 16, [(0, Tensor("w", F32, (4,)))], views=[view])
    with pytest.raises(FormatError, match="two tensors are called 'w'"):
        cover("test", 16, [], views=[view, view])


def test_a_number_alone_is_an_array_and_keeps_its_bits():
    data = zlib.compress(b"_")
    (view,) = stored(data, View(Tensor("w", BY_NAME["bool"], ()), Recoded("zlib", 0, len(data), 1)))
    assert isinstance(view.numpy(), np.ndarray)
    assert view.numpy().tobytes() == b"_"
