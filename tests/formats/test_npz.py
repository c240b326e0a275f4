"""The npz parser and the zip directory reader, against numpy's files and hostile archives."""

import gc
import io
import os
import struct
import tracemalloc
import weakref
import zipfile
import zlib
from contextlib import suppress

import numpy as np
import pytest
from watched_files import Watched

from mstore.errors import FormatError, LimitExceededError
from mstore.formats import deflated as deflated_module
from mstore.formats import npz as npz_module
from mstore.formats import zipdir
from mstore.formats.base import BytesReader, Finding
from mstore.formats.npy import PICKLED
from mstore.formats.npz import NpzFormat

ARRAYS = {
    "w": np.arange(6, dtype=np.float32).reshape(2, 3),
    "layer/kernel:0": np.asfortranarray(np.arange(6, dtype=">i2").reshape(2, 3)),
    "scalar": np.array(2.5),
    "none": np.zeros((0, 2), np.int8),
    "ünï": np.array([True]),
    "evoformer/norm//offset": np.ones(3, np.float32),
}


def npz(save=np.savez, **arrays):
    file = io.BytesIO()
    save(file, **(arrays or ARRAYS))
    return file.getvalue()


def npy(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def archive(*members, compression=zipfile.ZIP_STORED, comment=b""):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as made:
        for name, content in members:
            made.writestr(name, content)
        made.comment = comment
    return file.getvalue()


def layout(data):
    return NpzFormat().layout(BytesReader(data))


@pytest.fixture
def arrays_of(read_tensors):
    return lambda data: read_tensors(data, layout(data))


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_reads_what_numpy_wrote(arrays_of, save):
    data = npz(save)
    found = arrays_of(data)
    expected = np.load(io.BytesIO(data))
    assert set(found) == set(expected.files) == set(ARRAYS)
    for name, array in found.items():
        assert array.dtype == expected[name].dtype
        assert array.tobytes() == expected[name].tobytes()


def test_reads_archives_written_to_a_pipe(arrays_of):
    class Pipe(io.RawIOBase):
        def __init__(self):
            self.written = b""

        def writable(self):
            return True

        def write(self, data):
            self.written += bytes(data)
            return len(data)

    pipe = Pipe()
    with zipfile.ZipFile(pipe, "w") as made:
        for name in ("a", "b"):
            with made.open(f"{name}.npy", "w", force_zip64=name == "b") as member:
                member.write(npy(np.arange(3)))
    assert {name: a.tolist() for name, a in arrays_of(pipe.written).items()} == {
        "a": [0, 1, 2],
        "b": [0, 1, 2],
    }


def test_deflated_members_are_views():
    data = npz(np.savez_compressed)
    assert NpzFormat().sniff(data[:4096], BytesReader(data))
    found = layout(data)
    assert {view.tensor.name for view in found.views} == set(ARRAYS)
    assert [s.tensor for s in found.segments] == [None]


def test_large_deflated_members(arrays_of):
    """Longer than what is inflated of them: noise, constants, and many short blocks."""
    arrays = {
        "noise": np.random.default_rng(1).normal(size=40_000),
        "constant": np.zeros(1 << 22, np.int8),
        "empty": np.zeros((0, 7)),
    }
    assert all(
        (arrays_of(npz(np.savez_compressed, **arrays))[n] == arrays[n]).all() for n in arrays
    )
    compressor = zlib.compressobj(9, zlib.DEFLATED, -15)
    pieces = b"".join(
        compressor.compress(CONTENT[at : at + 1]) + compressor.flush(zlib.Z_FULL_FLUSH)
        for at in range(len(CONTENT))
    )
    data = build(deflated(content=pieces + compressor.flush()))
    assert arrays_of(data)["a"].tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.filterwarnings("ignore:Custom dtypes are saved as python objects:UserWarning")
def test_other_members_stay_opaque(arrays_of, compression):
    data = archive(
        ("meta.json", "{}"),
        ("folder/", b""),
        ("a.npy", npy(np.arange(3))),
        ("objects.npy", npy(np.array([None]))),
        ("text.npy", npy(np.array(["x"]))),
        ("record.npy", npy(np.zeros(3, "i4,g"))),
        compression=compression,
        comment=b"PK\5\6 a comment that looks like an end record",
    )
    reader = BytesReader(data)
    assert NpzFormat().sniff(data[:4096], reader)
    assert set(arrays_of(data)) == {"a"}
    _, note = NpzFormat().examine(reader)
    assert note.startswith("opaque bytes for 2 of 3 arrays: 'objects.npy' holds Python objects, ")
    (finding, *more) = NpzFormat().findings(reader)
    assert finding == Finding("allowed", PICKLED, "objects.npy")
    assert {(f.danger, f.where.split("/")[0]) for f in more} == {("allowed", "objects.npy")}


class Evil:
    def __reduce__(self):
        return os.system, ("touch harmed",)


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_what_objects_do_is_told(compression, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data = archive(("a.npy", CONTENT), ("o.npy", npy(np.array([Evil()]))), compression=compression)
    found = NpzFormat().findings(BytesReader(data))
    assert [f.what for f in found if f.danger == "dangerous"] == [f"calls {os.name}.system"]
    monkeypatch.setattr(npz_module, "MAX_PICKLE", 10)
    if compression == zipfile.ZIP_DEFLATED:
        with pytest.raises(LimitExceededError, match="holds too many objects"):
            NpzFormat().findings(BytesReader(data))
    assert list(tmp_path.iterdir()) == []


def test_good_archives_have_no_note_and_no_findings():
    for save in (np.savez, np.savez_compressed):
        data = npz(save, format=np.array(b"csr"), **ARRAYS)
        assert NpzFormat().examine(BytesReader(data))[1] is None
        assert NpzFormat().findings(BytesReader(data)) == []


def test_other_archives_are_not_claimed():
    for data in (
        archive(("model/data.pkl", b"x"), ("model/data/0", b"y")),
        archive(),
        archive(("a.txt", b"x"))[:-1],
        b"PK\x03\x04",
        b"",
    ):
        assert not NpzFormat().sniff(data[:4096], BytesReader(data))


def test_damaged_archive_is_still_recognised():
    data = npz()[:-1]
    assert NpzFormat().sniff(data[:4096], BytesReader(data))
    with pytest.raises(FormatError, match="cut short"):
        layout(data)


def test_a_bad_member_is_named():
    with pytest.raises(FormatError, match=r"'a\.npy'"):
        layout(archive(("a.npy", npy(np.arange(3))[:-1])))
    with pytest.raises(FormatError, match=r"'a\.npy'"):
        layout(archive(("a.npy", b"not an array")))
    with pytest.raises(FormatError, match=r"'a\.npy'.*at most 10000 are read"):
        layout(archive(("a.npy", b"\x93NUMPY\2\0\xff\xff\xff\xff")))


CONTENT = npy(np.arange(4, dtype=np.uint8))
TEXT = npy(np.array(["x"]))


def member(name=b"a.npy", content=CONTENT, **changes):
    """One member's local header and data, and its central record but for the offset."""
    local = {"flags": 0, "method": 0, "crc": 7, "compressed": len(content), "size": len(content)}
    central = dict(local)
    for key, value in changes.items():
        for place, fields in (("local_", local), ("central_", central)):
            if key.removeprefix(place) in fields:
                fields[key.removeprefix(place)] = value
    local_name = changes.get("local_name", name)
    extra = changes.get("extra", b"")
    head = struct.pack(
        "<4s5H3I2H", b"PK\3\4", 20, local["flags"], local["method"], 0, 0, local["crc"],
        local["compressed"], local["size"], len(local_name), len(changes.get("local_extra", b"")),
    )  # fmt: skip

    def record(offset):
        return struct.pack(
            "<4s6H3I5H2I", b"PK\1\2", 20, 20, central["flags"], central["method"], 0, 0,
            central["crc"], central["compressed"], central["size"], len(name), len(extra), 0,
            changes.get("disk", 0), 0, 0, changes.get("offset", offset),
        ) + name + extra  # fmt: skip

    return head + local_name + changes.get("local_extra", b"") + content, record


def build(*members, **end):
    """An archive of `member`s; `end` changes numbers of the end record."""
    body, records = b"", b""
    for data, record in members:
        records += record(len(body))
        body += data
    return (
        body
        + records
        + end.get("before_end", b"")
        + struct.pack(
            "<4s4H2IH",
            b"PK\5\6",
            end.get("disk", 0),
            0,
            end.get("here", len(members)),
            end.get("count", len(members)),
            end.get("size", len(records)),
            end.get("start", len(body)),
            0,
        )
        + end.get("after", b"")
    )


def end64(start, size, count, **changes):
    """A zip64 end record and its locator, which lie at start + size."""
    length = changes.get("length", 44)
    record = struct.pack("<4sQ2H2I4Q", b"PK\6\6", length, 45, 45, 0, 0, count, count, size, start)
    locator = struct.pack("<4sIQI", b"PK\6\7", 0, changes.get("at", start + size), 1)
    return record + changes.get("between", b"") + locator


def zip64(narrow=None, **changes):
    """An archive with both end records, the narrow one full but for the numbers in `narrow`."""
    data, record = member()
    place = len(data), len(record(0)), 1
    full = {"count": 0xFFFF, "here": 0xFFFF, "start": 0xFFFFFFFF, "size": 0xFFFFFFFF}
    return build((data, record), before_end=end64(*place, **changes), **(full | (narrow or {})))


NARROW = {
    "count": 1,
    "here": 1,
    "start": len(member()[0]),
    "size": len(member()[1](0)),
}


WIDE = struct.pack("<2HQQ", 1, 16, len(CONTENT), len(CONTENT))


def deflate(content):
    compressor = zlib.compressobj(9, zlib.DEFLATED, -15)
    return compressor.compress(content) + compressor.flush()


def deflated(content=None, **changes):
    """A deflated member; `size` is that of the whole array unless told otherwise."""
    return member(
        content=content or deflate(CONTENT), **{"method": 8, "size": len(CONTENT)} | changes
    )


ZEROS = {"flags": 8, "local_crc": 0, "local_size": 0, "local_compressed": 0}
_SIZE = len(CONTENT)
DESCRIPTORS = [
    mark + struct.pack(form, 7, _SIZE, _SIZE)
    for mark in (b"", b"PK\7\x08")
    for form in ("<3I", "<I2Q")
]


def described(descriptor):
    """An archive of a member whose sizes follow it, and one more."""
    data, record = member(**ZEROS)
    return build((data + descriptor, record), member(b"b.npy"))


def test_hand_made_archives_are_good_before_they_are_bad(arrays_of):
    for data in (
        build(member()),
        build(member(), member(b"b.npy")),
        build(member(flags=8)),
        *(described(descriptor) for descriptor in DESCRIPTORS),
        build(member(extra=struct.pack("<2HBI", 0x7075, 10, 1, 7) + b"a.npy")),
        build(member(local_extra=b"FB\3\0ZZZ")),
        build(deflated()),
        build(deflated(), member(b"b.npy")),
        build(member(size=0xFFFFFFFF, compressed=0xFFFFFFFF, extra=WIDE, local_extra=WIDE)),
        zip64(),
        zip64(NARROW),
        zip64({"count": 1, "here": 1}),
    ):
        assert arrays_of(data)["a"].tolist() == [0, 1, 2, 3]


_twice, _record = member()

MALFORMED = {
    "overlap": build(member(), member(b"b.npy", offset=0)),
    "same data twice": build((_twice, lambda at: _record(0)), (b"", lambda at: _record(0))),
    "overlap by quoting": build(
        member(b"a.txt", b"x" + member(b"b.npy")[0]), member(b"b.npy", offset=36)
    ),
    "duplicate": build(member(), member()),
    "duplicate that is no array": build(member(b"a.txt"), member(b"a.txt")),
    "parent": build(member(b"../a.npy")),
    "parent inside": build(member(b"a/../../b.npy")),
    "absolute": build(member(b"/a.npy")),
    "backslash": build(member(b"..\\a.npy")),
    "zero in name": build(member(b"a\0b.npy")),
    "empty name": build(member(b"")),
    "dot": build(member(b"./a.npy")),
    "name not UTF-8": build(member(b"\xff.npy", flags=0x800)),
    "local name differs": build(member(local_name=b"b.npy")),
    "local name longer": build(member(local_name=b"a.npyx")),
    "local method differs": build(member(local_method=8)),
    "central method differs": build(member(central_method=8)),
    "local flags differ": build(member(local_flags=0x800)),
    "local size differs": build(member(local_size=5, local_compressed=5)),
    "local crc differs": build(member(local_crc=8)),
    "zero sizes without descriptor": build(member(local_crc=0, local_size=0, local_compressed=0)),
    "descriptor and other sizes": build(member(flags=8, local_size=5)),
    "descriptor missing": build(member(**ZEROS)),
    "descriptor of another size": described(struct.pack("<3I", 7, _SIZE, _SIZE + 1)),
    "descriptor of another crc": described(struct.pack("<3I", 8, _SIZE, _SIZE)),
    "descriptor cut": described(DESCRIPTORS[0][:-1]),
    "another name besides": build(
        member(extra=struct.pack("<2HBI", 0x7075, 10, 1, 7) + b"b.npy")
    ),
    "stored with two sizes": build(member(size=5)),
    "stored with two sizes, no array": build(member(b"a.txt", size=5)),
    "encrypted": build(member(flags=1)),
    "strongly encrypted": build(member(flags=0x41)),
    "masked": build(member(flags=0x2000)),
    "bz2": build(member(method=12)),
    "lzma": build(member(method=14)),
    "zstd": build(member(method=93)),
    "xz": build(member(method=95)),
    "reaches into the directory": build(member(size=500, compressed=500)),
    "size 4 GB": build(member(size=0xFFFFFFFE, compressed=0xFFFFFFFE)),
    "offset beyond the file": build(member(offset=10_000)),
    "offset inside the directory": build(member(offset=len(_twice))),
    "another disk": build(member(disk=1)),
    "archive in parts": build(member(), disk=1),
    "fewer here": build(member(), here=0),
    "count too big": build(member(), count=2, here=2),
    "count too small": build(member(), member(b"b.npy"), count=1, here=1),
    "directory elsewhere": build(member(), start=5),
    "directory longer": build(member(), size=500),
    "data before": b"x" + build(member()),
    "data after": build(member(), after=b"x"),
    "data before the end": build(member(), before_end=b"x"),
    "zip64 field missing": build(member(size=0xFFFFFFFF, compressed=0xFFFFFFFF)),
    "zip64 field short": build(
        member(size=0xFFFFFFFF, compressed=0xFFFFFFFF, extra=WIDE[:2] + b"\x08\0" + WIDE[4:12])
    ),
    "zip64 field twice": build(member(extra=WIDE + WIDE)),
    "zip64 size huge": build(
        member(size=0xFFFFFFFF, compressed=0xFFFFFFFF, extra=WIDE[:4] + b"\xff" * 16)
    ),
    "extra field cut": build(member(extra=b"\1\0\x10\0")),
    "end records differ in count": zip64(NARROW | {"count": 0, "here": 0}),
    "end records differ in start": zip64(NARROW | {"start": 1}),
    "end records differ in size": zip64(NARROW | {"size": 1}),
    "zip64 record missing": build(member(), start=0xFFFFFFFF),
    "zip64 record elsewhere": zip64(at=3),
    "zip64 record away from its locator": zip64(between=b"x"),
    "zip64 record of another length": zip64(length=45),
    "end record only, zip64": struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, *[0xFFFF] * 2, 0, 0, 0),
    "deflated holds less": build(deflated(size=len(CONTENT) + 1)),
    "deflated holds more": build(deflated(size=len(CONTENT) - 1)),
    "deflated text holds less": build(deflated(deflate(TEXT), size=len(TEXT) + 1)),
    "deflated and more behind": build(deflated(deflate(CONTENT) + b"x")),
    "deflated and cut": build(deflated(deflate(CONTENT)[:-1])),
    "deflated damaged": build(deflated(b"\xff" * 90)),
    "deflated empty": build(deflated(b"\3\0", size=0)),
    "deflated array and more": build(
        deflated(deflate(CONTENT + b"x"), size=len(CONTENT) + 1)
    ),
    "deflated large array and more": build(
        deflated(deflate(npy(np.arange(9000)) + b"x"), size=128 + 72_000 + 1)
    ),
    "deflated holds less than a large array": build(
        deflated(deflate(npy(np.arange(9000))), size=72_000)
    ),
    "deflated blocks of nothing": build(deflated(bytes([0, 0, 0, 0xFF, 0xFF]) * 20_000)),
    "cut": build(member())[:-1],
    "empty file": b"",
}  # fmt: skip


@pytest.mark.parametrize("data", MALFORMED.values(), ids=MALFORMED.keys())
def test_malformed(data):
    with pytest.raises(FormatError):
        layout(data)


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_real_archives_of_other_methods(method):
    with pytest.raises(FormatError, match="method"):
        layout(archive(("a.npy", CONTENT), compression=method))


def test_too_much(monkeypatch):
    monkeypatch.setattr(zipdir, "MAX_MEMBERS", 1)
    layout(build(member()))
    with pytest.raises(LimitExceededError):
        layout(build(member(), member(b"b.npy")))
    monkeypatch.setattr(zipdir, "MAX_DIRECTORY", 10)
    with pytest.raises(LimitExceededError):
        layout(build(member()))


def test_only_the_head_is_inflated():
    data = archive(("a.npy", npy(np.zeros(1 << 26, np.uint8))), compression=zipfile.ZIP_DEFLATED)
    reader = Watched(data)
    tracemalloc.start()
    (view,) = NpzFormat().layout(reader).views
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert view.tensor.shape == (1 << 26,)
    assert reader.most < 70_000
    assert peak < 1 << 20


def huge(size):
    """A deflated array of `size` bytes, of which only the header is there."""
    header = b"{'descr': '|u1', 'fortran_order': False, 'shape': (%d,), }" % (size - 128)
    head = b"\x93NUMPY\1\0\x76\0" + header.ljust(117) + b"\n"
    assert len(head) == 128
    compressor = zlib.compressobj(9, zlib.DEFLATED, -15)
    return compressor.compress(head) + compressor.flush(zlib.Z_FULL_FLUSH)


@pytest.mark.parametrize("size", [1 << 20, (1 << 32) - 2])
def test_a_bomb_is_too_much(size):
    """No deflated bytes can hold as much as these claim to."""
    with pytest.raises(LimitExceededError, match=r"'a\.npy'.*claim"):
        layout(build(deflated(huge(size), size=size)))


def test_terabytes_are_too_much(monkeypatch):
    monkeypatch.setattr(deflated_module, "MAX_SIZE", len(CONTENT) - 1)
    with pytest.raises(LimitExceededError, match="claim"):
        layout(build(deflated()))


def test_a_directory_is_read_once():
    reader = Watched(npz())
    members = zipdir.read_members(reader)
    reads = reader.reads
    assert zipdir.read_members(reader) == members
    assert reader.reads == reads > 0


def test_a_bad_directory_is_read_once():
    reader = Watched(npz()[:-1])
    for _ in range(2):
        with pytest.raises(FormatError, match="cut short"):
            zipdir.read_members(reader)
    assert reader.reads == 1


@pytest.mark.parametrize("data", [npz(), npz()[:-1]], ids=["good", "bad"])
def test_what_is_known_of_a_directory_goes_with_its_reader(data):
    reader = BytesReader(data)
    with suppress(FormatError):
        zipdir.read_members(reader)
    gone = weakref.ref(reader)
    del reader
    gc.collect()
    assert gone() is None
