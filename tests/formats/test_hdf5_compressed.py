"""Compressed chunks of HDF5: what h5py writes is described, what would inflate to too much is not."""

import re
import zlib
from pathlib import Path

import h5py
import numpy as np
import pytest
from h5py import h5d, h5p, h5s, h5t, h5z
from hdf5_files import write

from mstore.errors import FormatError, LimitExceededError
from mstore.formats import hdf5_process
from mstore.formats.base import BytesReader
from mstore.formats.hdf5 import Hdf5Format

MIB = 1 << 20
CLAIMS = "a chunk of 'w' claims .* bytes in .* compressed"


def note(data):
    return Hdf5Format().examine(BytesReader(data))[1]


COMPRESSED = "opaque bytes for 1 of 1 datasets: 1 compressed"

FILTERS = {
    "gzip-1": {"compression": "gzip", "compression_opts": 1},
    "gzip-9": {"compression": "gzip", "compression_opts": 9},
    "shuffled": {"compression": "gzip", "shuffle": True, "fletcher32": True},
    "lzf": {"compression": "lzf"},
    "szip-nn": {"compression": "szip"},
    "szip-ec": {"compression": "szip", "compression_opts": ("ec", 32)},
    "scaleoffset": {"scaleoffset": 0},
    "checked": {"fletcher32": True},
}


@pytest.mark.parametrize("name", FILTERS)
@pytest.mark.parametrize("dtype", ["u1", ">f4", "i8"])
@pytest.mark.parametrize("fill", [0, 7])
class TestEqualValues:
    """As of an optimizer that made no step yet: the most that a filter can do."""

    def test_chunks_as_h5py_chooses_them(self, name, dtype, fill):
        def make(file):
            data = np.full((1500, 1000), fill, dtype)
            file.create_dataset("w", data=data, chunks=True, **FILTERS[name])

        assert note(write(make)) == COMPRESSED

    def test_one_large_chunk(self, name, dtype, fill):
        def make(file):
            data = np.full(4 * MIB, fill, dtype)
            file.create_dataset("w", data=data, chunks=data.shape, **FILTERS[name])

        assert note(write(make, "latest")) == COMPRESSED


@pytest.mark.parametrize("libver", ["earliest", "latest"])
def test_filters_of_other_types(libver):
    def make(file):
        options = {"compression": "gzip", "chunks": (1000,), "shape": (5000,)}
        file.create_dataset("text", dtype=h5py.string_dtype(), **options)[0] = "x"
        file.create_dataset("record", dtype=[("a", "i4"), ("b", "S900")], **options)[0] = (1, b"x")
        file.create_dataset("reference", dtype=h5py.ref_dtype, **options)[0] = file.ref
        file.create_dataset("never", dtype="f4", **options)
        file.create_dataset("none", (0,), "f4", maxshape=(None,), compression="gzip")

    told = "opaque bytes for 4 of 5 datasets: 1 compressed, 3 of other types"
    assert note(write(make, libver)) == told


def packed(shape, chunk, *, filters, dtype="u1", tiles, kind=None):
    """A file with a dataset of these filters; `tiles` are places, bytes as stored and masks."""

    def make(file):
        settings = h5p.create(h5p.DATASET_CREATE)
        settings.set_chunk(chunk)
        for number in filters:
            if number == h5z.FILTER_DEFLATE:
                settings.set_deflate(9)
            elif number == h5z.FILTER_SZIP:
                settings.set_szip(h5z.SZIP_NN_OPTION_MASK, 32)
            elif number == h5z.FILTER_SCALEOFFSET:
                settings.set_scaleoffset(h5z.SO_INT, 0)
            else:
                settings.set_filter(number, h5z.FLAG_OPTIONAL, ())
        element = kind or h5t.py_create(np.dtype(dtype))
        made = h5d.create(file.id, b"w", element, h5s.create_simple(shape), settings)
        for place, stored, mask in tiles:
            made.write_direct_chunk(place, stored, mask)

    return write(make)


def filled(length, filters, stored, mask=0, **more):
    """A file of one chunk of `length` bytes that is stored as `stored` bytes."""
    tiles = [((0,), bytes(stored), mask)]
    size = np.dtype(more.get("dtype", "u1")).itemsize
    return packed((length // size,), (length // size,), filters=filters, tiles=tiles, **more)


DEFLATE, SHUFFLE, FLETCHER32, SZIP, NBIT, SCALEOFFSET, LZF = 1, 2, 3, 4, 5, 6, 32000


@pytest.mark.parametrize(
    ("filters", "most"),
    [
        ([DEFLATE], 1032),
        ([SHUFFLE, DEFLATE, FLETCHER32], 1032),
        ([DEFLATE, DEFLATE], 1032**2),
        ([LZF], 88),
        ([SHUFFLE, LZF], 88),
        ([SZIP], 8192),
        ([NBIT], 8),
        ([FLETCHER32], 1),
        ([SHUFFLE], 1),
    ],
)
def test_more_than_filters_can_hold(filters, most):
    length = 4 * MIB
    least = -(-length // most)
    assert note(filled(length, filters, least)) == COMPRESSED
    with pytest.raises(LimitExceededError, match=CLAIMS):
        note(filled(length, filters, least - 1))


def test_filters_that_were_left_out_for_a_chunk_hold_nothing():
    bits = {DEFLATE: 0b01, LZF: 0b10}
    assert note(filled(MIB, [DEFLATE, LZF], MIB // 88 + 1, bits[DEFLATE])) == COMPRESSED
    with pytest.raises(LimitExceededError, match=CLAIMS):
        note(filled(MIB, [DEFLATE, LZF], MIB // 88 - 1, bits[DEFLATE]))
    assert note(filled(MIB, [DEFLATE, LZF], MIB // 1032 + 1, bits[LZF])) == COMPRESSED
    assert note(filled(MIB, [DEFLATE, LZF], MIB, 0b11)) == COMPRESSED
    with pytest.raises(LimitExceededError, match=CLAIMS):
        note(filled(MIB, [DEFLATE, LZF], MIB - 1, 0b11))


def test_any_chunk_counts():
    good = zlib.compress(bytes(MIB))
    tiles = [((number * MIB,), good, 0) for number in range(40)]
    bad = ((40 * MIB,), good[:1000], 0)
    make = {"shape": (50 * MIB,), "chunk": (MIB,), "filters": [DEFLATE]}
    assert note(packed(**make, tiles=tiles)) == COMPRESSED
    with pytest.raises(LimitExceededError, match=CLAIMS):
        note(packed(**make, tiles=[*tiles, bad]))


@pytest.mark.parametrize("filters", [[DEFLATE], [SZIP], [SCALEOFFSET]])
@pytest.mark.parametrize("dtype", ["u1", "i8"])
def test_a_chunk_that_becomes_very_large(filters, dtype):
    limit, length = 64 * MIB, 80 * MIB
    assert note(filled(limit, filters, limit // 1000, dtype=dtype)) == COMPRESSED
    assert note(filled(length, filters, -(-length // 200), dtype=dtype)) == COMPRESSED
    with pytest.raises(LimitExceededError, match=CLAIMS):
        note(filled(length, filters, -(-length // 200) - 1, dtype=dtype))


def test_a_real_bomb():
    """256 MiB of zeros in 260 kB."""
    pack = zlib.compressobj(9)
    stored = b"".join([pack.compress(bytes(MIB)) for _ in range(256)] + [pack.flush()])
    tiles = [((0,), stored, 0)]
    bomb = packed((256 * MIB,), (256 * MIB,), filters=[DEFLATE], tiles=tiles)
    with pytest.raises(LimitExceededError, match=CLAIMS):
        note(bomb)


def test_the_index_of_the_chunks_is_damaged():
    def make(file):
        file.create_dataset("w", data=np.zeros(100), chunks=(10,), compression="gzip")

    data = write(make)
    at = data.index(b"TREE\x01")
    with pytest.raises(FormatError):
        note(data[:at] + b"XXXX" + data[at + 4 :])


@pytest.mark.parametrize("options", [{}, {"compression": "gzip"}])
def test_what_the_library_keeps_of_many_datasets_is_little(monkeypatch, tmp_path, options):
    def make(file):
        for number in range(6000):
            file.create_dataset(f"{number}", data=np.zeros((4, 4)), chunks=(2, 4), **options)

    path = tmp_path / "zygote.py"
    real = Path(hdf5_process._ZYGOTE).read_text()
    path.write_text(re.sub(r"(?m)^MEMORY = .*", "MEMORY = 48 << 20", real))
    monkeypatch.setattr(hdf5_process, "_ZYGOTE", path)
    monkeypatch.setattr(hdf5_process, "_ZYGOTES", [])
    assert Hdf5Format().layout(BytesReader(write(make))).format == "hdf5"
    hdf5_process.end_kept()
