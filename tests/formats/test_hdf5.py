"""HDF5 files that h5py writes: every dataset is found and holds what h5py reads."""

import io

import h5py
import ml_dtypes
import numpy as np
import pytest
from h5py import h5d, h5p, h5s, h5t
from hdf5_files import write

from mstore.dtypes import BY_NAME
from mstore.errors import FormatError
from mstore.formats import hdf5_process
from mstore.formats.base import BytesReader, Finding
from mstore.formats.hdf5 import MISSING, Hdf5Format
from mstore.layout import Segment, Strided, Tensor, Tiled, opaque

LIBVERS = ["earliest", "latest"]


def examine(data):
    return Hdf5Format().examine(BytesReader(data))


def expected(data):
    """Every dataset of numbers as h5py reads it, by every path."""
    found = {}

    def visit(name, _):
        item = file.get(name)
        if (
            isinstance(item, h5py.Dataset)
            and item.dtype.kind in "biufcV"
            and item.shape is not None
        ):
            found[name] = np.asarray(item[()])

    with h5py.File(io.BytesIO(data)) as file:
        file.visititems_links(visit)
    return found


@pytest.fixture
def check(read_tensors):
    """Compares what the layout of a file gives with what h5py reads, bit for bit."""

    def compare(data, *, note=None, without=()):
        layout, told = examine(data)
        assert told == note
        found, wanted = read_tensors(data, layout), expected(data)
        assert set(found) == set(wanted) - set(without)
        for name, array in found.items():
            assert (array.shape, array.tobytes()) == (wanted[name].shape, wanted[name].tobytes())
            assert wanted[name].dtype.kind == "V" or array.dtype == wanted[name].dtype
        return layout

    return compare


def numbers(dtype, *shape):
    raw = np.random.default_rng(1).integers(0, 255, (*shape, np.dtype(dtype).itemsize), np.uint8)
    return raw.view(dtype).reshape(shape)


@pytest.mark.parametrize("libver", LIBVERS)
class TestRealFiles:
    def test_types(self, libver, check):
        def make(file):
            for kind in ("u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f2", "f4", "f8"):
                file[f"little/{kind}"] = numbers(f"<{kind}", 3, 4)
                file[f"big/{kind}"] = numbers(f">{kind}", 3, 4)
            for kind in ("c8", "c16"):
                file[f"little/{kind}"] = numbers(f"<{kind}", 3)
                file[f"big/{kind}"] = numbers(f">{kind}", 3)
            file["bool"] = np.array([True, False])

        layout = check(write(make, libver=libver))
        types = {s.tensor.name: s.tensor.dtype.name for s in layout.segments if s.tensor}
        assert types["bool"] == "bool"
        assert (types["little/f2"], types["big/f2"]) == ("f16", ">f16")
        assert (types["little/c8"], types["big/c16"]) == ("c64", ">c128")
        assert (types["little/u1"], types["big/u1"]) == ("u8", "u8")
        assert len(types) == 27

    def test_shapes(self, libver, check):
        def make(file):
            file["scalar"] = 2.5
            file["none"] = np.zeros((0, 3), np.float32)
            file["nothing"] = h5py.Empty("f4")
            file["deep/er/w"] = numbers("f4", 2, 3, 4, 5)
            file["ü/k"] = numbers("f8", 3)
            file.create_group("bare")
            file["soft"] = h5py.SoftLink("/scalar")
            file["dangling"] = h5py.SoftLink("/nowhere")

        layout = check(write(make, libver=libver), without=("soft",))
        assert layout.format == "hdf5"
        assert not layout.views

    def test_chunks(self, libver, check):
        def make(file):
            file.create_dataset("even", data=numbers("f4", 8, 8), chunks=(4, 4))
            file.create_dataset("edges", data=numbers(">f4", 7, 10, 3), chunks=(3, 4, 2))
            growing = file.create_dataset(
                "growing", (2, 4), "f4", maxshape=(None, None), chunks=(2, 2)
            )
            growing.resize((7, 5))
            growing[4:] = numbers("f4", 3, 5)
            shrunk = file.create_dataset(
                "shrunk", data=numbers("f4", 9, 9), chunks=(2, 2), maxshape=(9, 9)
            )
            shrunk.resize((4, 3))
            sparse = file.create_dataset("sparse", (40, 40), ">i4", chunks=(8, 8), fillvalue=-7)
            sparse[10:14, 20:30] = 5
            file.create_dataset("never", (4, 5), "?", chunks=(2, 2), fillvalue=True)
            file.create_dataset("none", (0, 3), "f4", chunks=(4, 3), maxshape=(None, 3))
            file.create_dataset("many", data=numbers("u2", 64, 64), chunks=(2, 4))
            file.create_dataset("complex", data=numbers("c8", 5), chunks=(2,))

        layout = check(write(make, libver=libver))
        views = {view.tensor.name: view.place for view in layout.views}
        assert all(isinstance(place, Tiled) for place in views.values())
        assert set(views["never"].offsets) == {-1}
        assert -1 in views["sparse"].offsets
        hidden = {s.tensor.name: (s.tensor.shape, s.offset) for s in layout.segments if s.hidden}
        for name, place in views.items():
            runs = [run for key, run in hidden.items() if key.startswith(f"{name}[")]
            stored = [offset for offset in place.offsets if offset >= 0]
            assert sum(shape[0] for shape, _ in runs) == len(stored)
            assert {shape[1:] for shape, _ in runs} <= {place.tile}
        assert hidden["edges[0,0,0]"][1] == views["edges"].offsets[0]
        assert hidden["sparse[1,2]"][1] == views["sparse"].offsets[5 + 2]

    def test_chunks_of_whole_rows_in_a_row_are_one_segment(self, libver, check):
        def make(file):
            file.create_dataset("one", data=numbers("f4", 5, 5), chunks=(5, 5))
            file.create_dataset("long", data=numbers("f4", 3), chunks=(16,), maxshape=(None,))

            file.create_dataset("rows", data=numbers("f4", 7, 2), chunks=(3, 2))

        layout = check(write(make, libver=libver))
        whole = {s.tensor for s in layout.segments if s.tensor and not s.hidden}
        assert {tensor.name for tensor in whole} >= {"one", "long"}
        # Where the three chunks of `rows` come to lie is for the library to say.
        (offsets,) = [v.place.offsets for v in layout.views] or [None]
        together = offsets is None
        assert (Tensor("rows", BY_NAME["f32"], (7, 2)) in whole) == together
        assert together == (libver == "earliest")

    def test_never_written(self, libver, check):
        def make(file):
            file.create_dataset("plain", (3, 2), "f4")
            file.create_dataset("filled", (3, 2), ">f8", fillvalue=1.5)
            file.create_dataset("scalar", (), "i2", fillvalue=-2)
            file.create_dataset("complex", (2,), "c8", fillvalue=1 + 2j)

        layout = check(write(make, libver=libver))
        assert all(s.tensor is None for s in layout.segments)
        assert {view.tensor.name: view.place.fill for view in layout.views} == {
            "plain": bytes(4),
            "filled": np.array(1.5, ">f8").tobytes(),
            "scalar": np.array(-2, "<i2").tobytes(),
            "complex": np.array(1 + 2j, "<c8").tobytes(),
        }

    def test_hard_links(self, libver, check):
        def make(file):
            file["b/w"] = numbers("f4", 2, 3)
            file["a"] = file["z"] = file["b/w"]
            file.create_dataset("tiles", data=numbers("f4", 5, 5), chunks=(2, 2))
            file["again"] = file["tiles"]
            file["c"] = file["b"]

        layout = check(write(make, libver=libver))
        (segment,) = (s for s in layout.segments if s.tensor and not s.hidden)
        assert segment.tensor.name == "a"
        places = {view.tensor.name: view.place for view in layout.views}
        assert places["b/w"] == places["z"] == Strided(segment.offset, (12, 4))
        assert places["again"] == places["tiles"]
        assert set(places) == {"again", "tiles", "b/w", "z"}

    def test_what_stays_opaque(self, libver, check):
        def make(file):
            data = np.zeros((20, 20), np.float32)
            file.create_dataset("gzip", data=data, chunks=(7, 20), compression="gzip", shuffle=True)
            file.create_dataset("lzf", data=data, compression="lzf")
            file.create_dataset("checked", data=data, fletcher32=True)
            file["text"] = "hello"
            file["strings"] = np.array([b"ab", b"c"])
            file["records"] = np.ones(3, [("a", "<i4"), ("b", "<f8")])
            file.create_dataset("ragged", (2,), h5py.vlen_dtype(np.int32))
            file["reference"] = np.array([file.ref], h5py.ref_dtype)
            file["colour"] = np.array([0, 1], h5py.enum_dtype({"RED": 0, "BLUE": 1}, "i1"))
            file["array"] = np.zeros(2, np.dtype(("f4", (3,))))
            file["w"] = np.arange(3)

        check(
            write(make, libver=libver),
            note="opaque bytes for 9 of 11 datasets: 3 compressed, 6 of other types",
            without=("gzip", "lzf", "checked", "records", "colour"),
        )

    def test_many_links_and_attributes(self, libver, check):
        def make(file):
            group = file.create_group("many", track_order=True)
            for number in range(1000):
                group.create_dataset(f"{number:x}", data=np.full(2, number))
            for number in range(100):
                group.attrs[f"attribute {number}"] = numbers("f4", 10)

        check(write(make, libver=libver, track_order=True))

    @pytest.mark.parametrize("block", [512, 1024, 8192])
    def test_user_block(self, libver, block, check):
        def make(file):
            file["w"] = numbers("f4", 4)
            file["again"] = file["w"]
            file.create_dataset("tiles", data=numbers("f4", 5, 5), chunks=(2, 2))

        data = write(make, libver=libver, userblock_size=block)
        assert Hdf5Format().sniff(data[:4096], BytesReader(data))
        check(b"text".ljust(block, b"\0") + data[block:])

    def test_nothing_in_it(self, libver):
        data = write(lambda file: None, libver=libver)
        assert examine(data)[0].segments == (Segment(0, len(data)),)


def raw_dataset(file, name, kind, data, *, compact=False):
    """A dataset of any type of HDF5, by the library's own calls."""
    settings = h5p.create(h5p.DATASET_CREATE)
    if compact:
        settings.set_layout(h5d.COMPACT)
    made = h5d.create(file.id, name, kind, h5s.create_simple(data.shape), settings)
    made.write(h5s.ALL, h5s.ALL, data, kind if kind.get_size() == data.itemsize else None)


def small_float(size, fields, bias, base=h5t.IEEE_F16LE):
    kind = base.copy()
    kind.set_fields(*fields)
    kind.set_ebias(bias)
    kind.set_precision(8 * size)
    kind.set_size(size)
    return kind


@pytest.mark.parametrize(
    ("name", "size", "fields", "bias"),
    [
        ("bf16", 2, (15, 7, 8, 0, 7), 127),
        ("f8_e5m2", 1, (7, 2, 5, 0, 2), 15),
        ("f8_e4m3", 1, (7, 3, 4, 0, 3), 7),
    ],
)
def test_floats_that_hdf5_calls_by_their_fields(name, size, fields, bias):
    kind = small_float(size, fields, bias)
    space = h5s.create_simple((3,))

    def make(file):
        settings = h5p.create(h5p.DATASET_CREATE)
        settings.set_alloc_time(h5d.ALLOC_TIME_EARLY)
        h5d.create(file.id, b"w", kind, space, settings)

    (tensor,) = (s.tensor for s in examine(write(make))[0].segments if s.tensor)
    assert tensor == Tensor("w", BY_NAME[name], (3,))


def test_numbers_with_bits_to_spare_are_of_other_types():
    narrow, odd = h5t.STD_I16LE.copy(), small_float(2, (15, 9, 6, 0, 9), 31)
    narrow.set_precision(12)

    def make(file):
        for name, kind in ((b"narrow", narrow), (b"odd", odd), (b"long", h5t.NATIVE_LDOUBLE)):
            h5d.create(file.id, name, kind, h5s.create_simple((3,)))

    layout, note = examine(write(make))
    assert not layout.views
    assert note == "opaque bytes for 3 of 3 datasets: 3 of other types"


def test_compact_datasets_are_counted():
    data = write(
        lambda file: raw_dataset(file, b"c", h5t.IEEE_F32LE, np.zeros(4, "f4"), compact=True)
    )
    assert examine(data)[1] == "opaque bytes for 1 of 1 datasets: 1 inside their headers"


def test_datasets_much_larger_than_their_file():
    """They alone are opaque, for none but who made them wants to have them."""

    def make(file):
        file["w"] = np.arange(3.0)
        file.create_dataset("never", (2**29,), "f4")
        file.create_dataset("tiles", (2**29,), "f4", chunks=(2**20,))[0] = 1
        file.create_dataset("few", (2**20,), "f4")

    layout, told = examine(write(make))
    assert told == "opaque bytes for 2 of 4 datasets: 2 much larger than the file"
    named = [s.tensor.name for s in layout.segments if s.tensor]
    assert (named, [view.tensor.name for view in layout.views]) == (["w"], ["few"])


def test_complex_numbers_of_hdf5_2():
    def make(file):
        raw_dataset(file, b"w", h5t.COMPLEX_IEEE_F32LE, np.array([1 + 2j], "c8"))

    (tensor,) = (s.tensor for s in examine(write(make, libver="latest"))[0].segments if s.tensor)
    assert tensor.dtype.name == "c64"


@pytest.mark.parametrize(
    ("stored", "name"), [("V2", "bf16"), ("<u2", "bf16"), (">u2", ">bf16"), ("<i2", "i16")]
)
def test_bfloat16_as_keras_marks_it(stored, name, read_tensors):
    values = np.array([1.5, -2, 3e38], ml_dtypes.bfloat16)
    raw = values.view("u2").astype(stored) if stored != "V2" else values.view("V2")

    def make(file):
        file["w"] = raw
        file["w"].attrs["dtype"] = "bfloat16"
        file["plain"] = values.view("<u2")

    data = write(make)
    layout, note = examine(data)
    assert note is None
    (tensor,) = (s.tensor for s in layout.segments if s.tensor and s.tensor.name == "w")
    assert tensor.dtype.name == name
    if "bf16" in name:
        assert read_tensors(data, layout)["w"].tolist() == values.tolist()
    assert read_tensors(data, layout)["plain"].dtype == np.uint16


def test_other_files_are_not_hdf5():
    sniff = Hdf5Format().sniff
    for data in (b"", b"\x89HDF\r\n\x1a", b"x" * 5000, bytes(511) + write(lambda file: None)):
        assert not sniff(data[:4096], BytesReader(data))
    assert sniff(b"\x89HDF\r\n\x1a\n", BytesReader(b"\x89HDF\r\n\x1a\n"))


def test_without_h5py(monkeypatch):
    monkeypatch.setattr(hdf5_process, "is_available", lambda: False)
    data = write(lambda file: file.create_dataset("w", data=1))
    assert examine(data) == (opaque(len(data)), MISSING)
    assert Hdf5Format().findings(BytesReader(data)) == [
        Finding("unknown", "cannot be looked into; install mstore[hdf5] to see its datasets")
    ]


def test_what_is_cut_off_is_told():
    data = write(lambda file: file.create_dataset("w", data=np.zeros(100)))
    with pytest.raises(FormatError, match=r"cannot read it.*truncated"):
        examine(data[:-1])
