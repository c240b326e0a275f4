"""Checkpoints of TensorFlow: golden files bit for bit, and tables written here that break rules.

The golden files were made by TensorFlow itself (`tensorflow_files/write_golden.py`), which also
wrote down what it reads in them; it is not needed here.
"""

import base64
import json
import struct
from contextlib import suppress
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from damage import changed_bytes, flipped
from hypothesis import given, settings
from hypothesis import strategies as st
from watched_files import Files
from wire_fields import coded, field

import mstore
from mstore.database import Database
from mstore.dtypes import BY_NAME
from mstore.errors import FormatError, LimitExceededError, MstoreError
from mstore.formats import sstable, tensorbundle
from mstore.formats.base import BytesReader
from mstore.formats.detect import describe
from mstore.formats.tensorbundle import TensorBundleCompanion, TensorflowIndexFormat
from mstore.layout import Segment, Strided, Tensor, View, opaque
from mstore.numpy_dtypes import array_from_bytes
from mstore.ops.commit import Description
from mstore.storage.local import LocalStorage
from mstore.worktree import Worktree

GOLDEN = Path(__file__).parent / "tensorflow_files"
SUFFIX = "/.ATTRIBUTES/VARIABLE_VALUE"
EXPECTED = {}
for _prefix, _key, _type, _shape, _raw in json.loads((GOLDEN / "expected.json").read_text()):
    _tensor = _type, tuple(_shape), base64.b64decode(_raw)
    EXPECTED.setdefault(_prefix, {})[_key.removesuffix(SUFFIX)] = _tensor


def described(files, name):
    return describe(BytesReader(files[name]), Files(files, name))


def tensors_of(files, name):
    """The tensors of a data file: their type, shape and bytes by name."""
    layout, note = described(files, name)
    assert (layout.format, note) == ("tensorflow-data", None)
    return {
        s.tensor.name: (s.tensor, files[name][s.offset : s.offset + s.length])
        for s in layout.segments
        if s.tensor is not None
    }


def golden_files(prefix):
    path = GOLDEN / prefix
    return {one.name: one.read_bytes() for one in path.parent.iterdir() if one.is_file()}


@pytest.mark.parametrize("prefix", EXPECTED)
def test_golden(prefix):
    """Every tensor that TensorFlow reads is there with its type, shape and bytes; no other is."""
    files, name = golden_files(prefix), Path(prefix).name
    found = {}
    for one in files:
        if one.startswith(f"{name}.data-"):
            found |= tensors_of(files, one)
    layout, note = described(files, f"{name}.index")
    assert (layout.format, layout.segments[0].tensor, note) == ("tensorflow-index", None, None)
    expected = {k: v for k, v in EXPECTED[prefix].items() if v[0] != "string"}
    sliced = {key for key in expected if key not in found}
    assert sliced == {"graph/model.ckpt-7": {"parts1/w"}, "sharded/ckpt-1": {"list/4"}}.get(
        prefix, set()
    )
    assert {key.split("/slice/")[0] for key in found} == expected.keys()
    for key in expected.keys() - sliced:
        kind, shape, raw = expected[key]
        tensor, data = found[key]
        assert (tensor.shape, data) == (shape, raw)
        # Their integers of four bits take a byte each.
        assert tensor.dtype.numpy == {"int4": "int8", "uint4": "uint8"}.get(kind, kind)


@pytest.mark.parametrize(
    ("prefix", "name", "axis"),
    [("graph/model.ckpt-7", "parts1/w", 1), ("sharded/ckpt-1", "list/4", 0)],
)
def test_slices(prefix, name, axis):
    """Slices in several files, or not along the first axis, are tensors of their own."""
    files = golden_files(prefix)
    found = {}
    for one in files:
        if ".data-" in one:
            found |= tensors_of(files, one)
    parts = {key: value for key, value in found.items() if key.startswith(f"{name}/slice/")}
    arrays = [array_from_bytes(raw, t.dtype, t.shape) for t, raw in parts.values()]
    _, shape, raw = EXPECTED[prefix][name]
    assert np.array_equal(
        np.concatenate(arrays, axis), np.frombuffer(raw, np.float32).reshape(shape)
    )
    assert (
        list(parts)
        == {
            "parts1/w": [f"parts1/w/slice/0,3:{part}" for part in ("0,44", "44,43", "87,43")],
            "list/4": ["list/4/slice/0,3:0,5", "list/4/slice/3,5:0,5"],
        }[name]
    )


def test_a_saved_model_in_a_repository(tmp_path):
    """The variables are read by name and by slice, in the version of a folder."""
    tree = Worktree.create(tmp_path, Database.create(LocalStorage(tmp_path / ".mstore"), "Ada"))
    for path in [*(GOLDEN / "exported").rglob("*"), *(GOLDEN / "objects").rglob("*")]:
        if path.is_file():
            to = tmp_path / path.relative_to(GOLDEN)
            to.parent.mkdir(parents=True, exist_ok=True)
            to.write_bytes(path.read_bytes())
    tree.commit(Description("Ada", "saved"))
    files = mstore.open(tmp_path)["HEAD"].files
    for prefix in ("exported/variables/variables", "objects/ckpt-1"):
        file = files[f"{prefix}.data-00000-of-00001"]
        assert file.read() == (GOLDEN / f"{prefix}.data-00000-of-00001").read_bytes()
        expected = {k: v for k, v in EXPECTED[prefix].items() if v[0] != "string"}
        assert file.tensors.keys() == expected.keys()
        for name, (kind, shape, raw) in expected.items():
            array = file.tensors[name].numpy()
            assert (array.shape, array.tobytes()) == (shape, raw)
            if kind == "bfloat16":
                assert array.dtype == ml_dtypes.bfloat16
                assert np.array_equal(file.tensors[name][1:, ::2], array[1:, ::2])


# An independent writer of tables and of what lies in them.


HEADER = field(1, 1) + field(3, field(1, 1))


def entry(dtype=1, shape=(2,), file=0, offset=0, size=8, slices=()):
    shaped = b"".join(field(2, field(1, dim)) for dim in shape)
    numbers = field(3, file) + field(4, offset) + field(5, size)
    cut = b"".join(
        field(7, b"".join(field(1, field(1, start) + field(2, n)) for start, n in one))
        for one in slices
    )
    return field(1, dtype) + field(2, shaped) + numbers + b"\x35abcd" + cut


def crc(data):
    """CRC-32C bit by bit, masked."""
    value = 0xFFFFFFFF
    for byte in data:
        value ^= byte
        for _ in range(8):
            value = value >> 1 ^ 0x82F63B78 * (value & 1)
    value ^= 0xFFFFFFFF
    return ((value >> 15 | value << 17) + 0xA282EAD8) % (1 << 32)


def block(pairs, kind=0, share=True):
    """A block with its trailer; all keys but the first leave out what they share with the last."""
    data, last = b"", b""
    for key, value in pairs:
        shared = 0
        while share and shared < min(len(key), len(last)) and key[shared] == last[shared]:
            shared += 1
        data += coded(shared) + coded(len(key) - shared) + coded(len(value)) + key[shared:] + value
        last = key
    data += struct.pack("<II", 0, 1) + bytes([kind])
    return data + struct.pack("<I", crc(data))


def table(blocks, *, between=b"", footer=None):
    """A table of blocks that are made already."""
    data, handles = b"", []
    for number, one in enumerate(blocks):
        handles.append((b"%06d" % number, coded(len(data)) + coded(len(one) - 5)))
        data += one + between
    meta = block([])
    places = coded(len(data)) + coded(len(meta) - 5)
    data += meta
    index = block(handles)
    places += coded(len(data)) + coded(len(index) - 5)
    tail = places.ljust(40, b"\0") + bytes.fromhex("57fb808b247547db")
    return data + index + (tail if footer is None else footer)


def index(entries, header=HEADER, **options):
    return table([block([(b"", header), *sorted(entries.items())])], **options)


def parse(data):
    return TensorBundleCompanion().parse(BytesReader(data), "x.index")


def test_the_writer_of_these_tests():
    """What it writes is read, in several blocks too; and CRC-32C is that of the standard."""
    assert crc(b"123456789") == ((0xE3069283 >> 15 | 0xE3069283 << 17) + 0xA282EAD8) % (1 << 32)
    assert sstable.masked_crc32c(b"123456789") == crc(b"123456789")
    names = [b"a%d" % number for number in range(9)]
    blocks = [
        block([(b"", HEADER)]),
        *(block([(n, entry(offset=8 * k))]) for k, n in enumerate(names)),
    ]
    placed = parse(table(blocks))
    assert list(placed) == ["x.data-00000-of-00001"]
    assert placed["x.data-00000-of-00001"] == [
        (8 * k, Tensor(n.decode(), BY_NAME["f32"], (2,))) for k, n in enumerate(names)
    ]


def test_types():
    """Each type is found with the elements that it has; strings and unknown ones are left out."""
    sizes = {
        1: 4, 2: 8, 3: 4, 4: 1, 5: 2, 6: 1, 8: 8, 9: 8, 10: 1, 11: 1, 12: 1, 13: 4, 14: 2, 15: 2,
        16: 2, 17: 2, 18: 16, 19: 2, 22: 4, 23: 8, 24: 1, 25: 1, 26: 1, 27: 1, 28: 1, 29: 1, 30: 1,
    }  # fmt: skip
    entries = {b"t%02d" % t: entry(t, (3,), 0, 100 * t, 3 * size) for t, size in sizes.items()}
    others = {b"string": entry(7, (1,), 0, 0, 9), b"variant": entry(21, (1,), 0, 9, 9)}
    (placed,) = parse(index(entries | others)).values()
    assert {tensor.name for _, tensor in placed} == {key.decode() for key in entries}
    kinds = {tensor.name: tensor.kind for _, tensor in placed if tensor.kind}
    assert kinds == {
        "t11": "qint8", "t12": "quint8", "t13": "qint32", "t15": "qint16", "t16": "quint16",
        "t27": "float8_e4m3b11fnuz",
    }  # fmt: skip
    data = index(entries | others | {b"new": entry(77), b"newer": entry(78)})
    assert describe(BytesReader(data))[1] == (
        "opaque bytes for tensors: 2 of types that are not known"
    )


def test_big_endian():
    header = field(1, 1) + field(2, 1) + field(3, field(1, 1))
    (placed,) = parse(index({b"w": entry(), b"x": entry(10, (8,), offset=8)}, header)).values()
    assert [tensor.dtype.name for _, tensor in placed] == [">f32", "bool"]


def test_names():
    files = {
        "x.index": index(
            {
                b"a": entry(),
                f"a{SUFFIX}".encode(): entry(offset=8),
                "é/b\n".encode(): entry(offset=16),
            }
        ),
        "x.data-00000-of-00001": bytes(24),
    }
    assert tensors_of(files, "x.data-00000-of-00001").keys() == {"a", "a#2", "é/b\n"}


def slice_key(name, *extents):
    """The key of a slice whose numbers are below 64."""
    numbers = b"".join(bytes([0x80 ^ number % 256]) for extent in extents for number in extent)
    return b"\0" + name + b"\0\1" + bytes([1, len(extents)]) + numbers


def sliced(
    entries=(), dtype=1, shape=(4, 2), slices=(((0, 2), (0, -1)), ((2, 2), (0, -1))), header=HEADER
):
    """An index with the tensor `w` in two slices, of which the entries are given."""
    cut = field(1, dtype) + field(2, b"".join(field(2, field(1, dim)) for dim in shape))
    for one in slices:
        cut += field(
            7,
            b"".join(
                field(1, (field(1, start) if start else b"") + (field(2, n) if n >= 0 else b""))
                for start, n in one
            ),
        )
    return index({b"w": cut, **dict(entries)}, header)


FIRST, SECOND = slice_key(b"w", (0, 2), (0, -1)), slice_key(b"w", (2, 2), (0, -1))


def test_slices_one_after_the_other_are_the_tensor():
    parts = {FIRST: entry(1, (2, 2), 0, 8, 16), SECOND: entry(1, (2, 2), 0, 24, 16)}
    (placed,) = parse(sliced(parts)).values()
    assert placed == [(8, Tensor("w", BY_NAME["f32"], (4, 2)))]
    parts = {FIRST: entry(1, (2, 2), 0, 24, 16), SECOND: entry(1, (2, 2), 0, 8, 16)}
    (placed,) = parse(sliced(parts)).values()
    assert [tensor.name for _, tensor in placed] == ["w/slice/0,2:-", "w/slice/2,2:-"]


def test_slices_that_are_not_the_whole_tensor():
    """Those of some rows only, or with others in between, or in two files, stay slices."""
    parts = {FIRST: entry(1, (2, 2), 0, 8, 16), SECOND: entry(1, (2, 2), 0, 28, 16)}
    third = slice_key(b"w", (1, 2), (0, -1))
    overlapping = {FIRST: entry(1, (2, 2), 0, 8, 16), third: entry(1, (2, 2), 0, 24, 16)}
    for data in (
        sliced(parts),
        sliced({**parts, SECOND: entry(1, (2, 2), 0, 24, 16)}, shape=(5, 2)),
        sliced(overlapping, slices=[[(0, 2), (0, -1)], [(1, 2), (0, -1)]]),
    ):
        (placed,) = parse(data).values()
        assert len(placed) == 2
    two = {FIRST: entry(1, (2, 2), 0, 8, 16), SECOND: entry(1, (2, 2), 1, 24, 16)}
    assert len(parse(sliced(two, header=field(1, 2) + field(3, field(1, 1))))) == 2


def test_tensors_that_share_bytes():
    files = {
        "x.index": index(
            {b"a": entry(shape=(2, 2), size=16), b"b": entry(offset=4), b"c": entry(offset=16)}
        ),
        "x.data-00000-of-00001": bytes(24),
    }
    layout, note = described(files, "x.data-00000-of-00001")
    assert note is None
    assert layout.segments == (
        Segment(0, 16, Tensor("a", BY_NAME["f32"], (2, 2))),
        Segment(16, 8, Tensor("c", BY_NAME["f32"], (2,))),
    )
    assert layout.views == (View(Tensor("b", BY_NAME["f32"], (2,)), Strided(4, (4,))),)


OVERLONG = b"\xff" * 10 + b"\1"
MALFORMED = {
    "empty": b"",
    "footer only": index({})[-48:],
    "cut": index({b"w": entry()})[:-1],
    "other magic": index({b"w": entry()})[:-1] + b"\0",
    "footer of zeros": index({}, footer=bytes(40) + sstable.MAGIC),
    "handle overlong": index({}, footer=OVERLONG.ljust(40, b"\0") + sstable.MAGIC),
    "index beyond the file": index({}, footer=b"\0\0\xff\x7f\x10".ljust(40, b"\0") + sstable.MAGIC),
    "checksum": bytes([index({b"w": entry()})[0]]) + b"\1" + index({b"w": entry()})[2:],
    "compressed": table([block([(b"", HEADER)], 1)]),
    "no header": table([block([(b"w", entry())])]),
    "no blocks": table([]),
    "keys repeated": table([block([(b"", HEADER), (b"w", entry()), (b"w", entry())])]),
    "keys out of order": table([block([(b"", HEADER), (b"w", entry()), (b"v", entry())])]),
    "keys out of order between blocks": table(
        [block([(b"", HEADER), (b"w", entry())]), block([(b"v", entry())])]
    ),
    "header without files": index({}, field(3, field(1, 1))),
    "header of 2^31 files": index({}, field(1, 1 << 31)),
    "header of a third byte order": index({}, HEADER + field(2, 2)),
    "header of a newer version": index({}, field(1, 1) + field(3, field(1, 9) + field(2, 2))),
    "header not a message": index({}, b"\xff"),
    "version not a message": index({}, field(1, 1) + field(3, 7)),
    "entry not a message": index({b"w": b"\xff\xff"}),
    "entry with a group": index({b"w": entry() + b"\x5b\x5c"}),
    "shape not a message": index({b"w": field(1, 1) + field(2, 8)}),
    "size too small": index({b"w": entry(size=7)}),
    "size too large": index({b"w": entry(size=9)}),
    "shape overflows": index({b"w": entry(shape=(1 << 32, 1 << 32), size=0)}),
    "dimension negative": index({b"w": entry(shape=(-1,))}),
    "offset negative": index({b"w": entry(offset=-1)}),
    "file negative": index({b"w": entry(file=-1)}),
    "file that is none": index({b"w": entry(file=1)}),
    "name not UTF-8": index({b"w\xff": entry()}),
    "slices missing": sliced(),
    "a slice missing": sliced({FIRST: entry(1, (2, 2), 0, 0, 16)}),
    "a slice of another type": sliced(
        {FIRST: entry(3, (2, 2), 0, 0, 16), SECOND: entry(3, (2, 2), 0, 16, 16)}
    ),
    "a slice of another shape": sliced(
        {FIRST: entry(1, (2, 2), 0, 0, 16), SECOND: entry(1, (1, 4), 0, 16, 16)}
    ),
    "a slice outside": sliced(
        {FIRST: entry(1, (2, 2), 0, 0, 16), SECOND: entry(1, (2, 2), 0, 16, 16)}, shape=(3, 2)
    ),
    "a slice of slices": sliced({FIRST: entry(slices=[[(0, 1)]]), SECOND: entry()}),
    "a slice twice": sliced(
        {FIRST: entry(1, (2, 2), 0, 0, 16)}, slices=[[(0, 2), (0, -1)], [(0, 2), (0, -1)]]
    ),
    "a slice of fewer axes": sliced({slice_key(b"w", (0, 2)): entry()}, slices=[[(0, 2)]]),
}  # fmt: skip


@pytest.mark.parametrize("data", MALFORMED.values(), ids=MALFORMED)
def test_malformed(data):
    with pytest.raises(FormatError):
        parse(data)
    with pytest.raises(FormatError):
        TensorflowIndexFormat().layout(BytesReader(data))


def place(start, made):
    """The handle of a block."""
    return coded(start) + coded(len(made) - 5)


def hand_made(handles, first, last=b""):
    """A table whose index has the given handles; its blocks are `first`, and `last` behind it."""
    meta, made = block([]), block(handles)
    places = place(len(first), meta) + place(len(first + meta), made)
    return first + meta + made + last + places.ljust(40, b"\0") + sstable.MAGIC


def test_blocks_in_wrong_places():
    one, meta = block([(b"", HEADER)]), block([])
    assert parse(hand_made([(b"1", place(0, one))], one)) == {}
    for start in (0, len(one) - 5):
        handles = [(b"1", place(0, one)), (b"2", place(start, meta))]
        with pytest.raises(FormatError, match="overlap"):
            parse(hand_made(handles, one))
    with pytest.raises(FormatError, match="out of order"):
        parse(hand_made([(b"1", place(0, one) + b"\0")], one))
    behind = block([(b"w", entry())])
    start = len(hand_made([(b"1", place(0, one)), (b"2", place(200, behind))], one)) - 48
    handles = [(b"1", place(0, one)), (b"2", place(start, behind))]
    with pytest.raises(FormatError, match="beyond its part"):
        parse(hand_made(handles, one, behind))


def test_entries_outside_of_a_block():
    for bad in (b"\0\x7f\0key", b"\1\1\0k", b"\0\1\x7fk", b"\0\1", b"\xff"):
        data = b"\0\0" + bytes([len(HEADER)]) + HEADER + bad + struct.pack("<II", 0, 1) + b"\0"
        with pytest.raises(FormatError):
            parse(table([data + struct.pack("<I", crc(data))]))
    for restarts in (99, 2**32 - 1):
        data = struct.pack("<I", restarts) + b"\0"
        with pytest.raises(FormatError, match="too short"):
            parse(table([data + struct.pack("<I", crc(data))]))


def test_limits(monkeypatch):
    """Of tensors, bytes, keys that expand, axes and slices: refused before much is held."""
    entries = {b"a%d" % number: entry() for number in range(4)}
    assert len(parse(index(entries))["x.data-00000-of-00001"]) == 4
    deep = entry(shape=(1,) * 65, size=4)
    slices = index({b"w": entry(slices=[[(k, 1)] for k in range(5000)])})
    for data in (index({b"w": deep}), slices):
        with pytest.raises(LimitExceededError):
            parse(data)
    monkeypatch.setattr(sstable, "MAX_KEYS", 100_000)
    key = b"k" * 6000
    expanding = [(b"", HEADER), *((key + b"%04d" % number, entry()) for number in range(20))]
    data = table([block(expanding)])
    assert len(data) < 10_000
    with pytest.raises(LimitExceededError, match="keys take more than"):
        parse(data)
    with pytest.raises(LimitExceededError, match="at most"):
        parse(bytes(sstable.MAX_SIZE + 1))
    monkeypatch.setattr(tensorbundle, "MAX_TENSORS", 3)
    with pytest.raises(LimitExceededError, match="more than 3 tensors"):
        parse(index(entries))


def test_a_data_file_that_is_not_what_the_index_says():
    """It stays opaque, and the user is told; so does one whose index is broken or gone."""
    name = "x.data-00000-of-00001"
    files = {"x.index": index({b"w": entry(offset=8)}), name: bytes(15)}
    layout, note = described(files, name)
    assert layout == opaque(15)
    assert note.startswith("is not what 'x.index' says: tensor 'w' ")
    assert note.endswith("; stored as opaque bytes")
    for other in ({"x.index": files["x.index"][:-1]}, {"y.index": files["x.index"]}, {}):
        assert described({**other, name: files[name]}, name) == (opaque(15), None)
    two = {**files, "x.data-00001-of-00002": bytes(16)}  # of another number of files
    assert described(two, "x.data-00001-of-00002") == (opaque(16), None)


def test_nothing_but_the_index_is_opened_and_that_once():
    files = {
        "x.index": index({b"w": entry(file=1), b"v": entry()}, field(1, 2) + field(3, field(1, 1))),
        "x.data-00000-of-00002": bytes(8),
        "x.data-00001-of-00002": bytes(8),
        "other.txt": b"",
    }
    beside = Files(files, "x.data-00000-of-00002")
    for name in files:
        beside.name = name
        describe(BytesReader(files[name]), beside)
    assert beside.opened == ["x.index"]


@pytest.mark.parametrize(
    "data",
    [
        b"\0\0\x06\x08\1\x1a\2\x08",  # cut in the first entry
        bytes(5000),
        # A table of LevelDB itself, whose keys end in eight bytes of its own.
        table([block([(b"\0" * 8, HEADER), (b"key" + bytes(8), b"value")])]),
        table([block([(b"", b"value")])]),
    ],
)
def test_other_files_are_no_index(data):
    assert describe(BytesReader(data)) == (opaque(len(data)), None)


def test_a_damaged_index_is_told():
    data = golden_files("objects/ckpt-1")["ckpt-1.index"]
    layout, note = describe(BytesReader(data[:-1]))
    assert layout == opaque(len(data) - 1)
    assert note == (
        "looks like tensorflow-index but it has no footer; the file may be cut short;"
        " stored as opaque bytes"
    )


INDEX = golden_files("graph/model.ckpt-7")["model.ckpt-7.index"]


def test_truncation_at_every_length():
    for size in range(len(INDEX)):
        with pytest.raises(MstoreError):
            parse(INDEX[:size])


def test_flipped_bits():
    """Every flipped bit is seen by the checksums, but for those of the unused parts."""
    whole = parse(INDEX)
    for at, changed in flipped(INDEX, (0, 4, 7)):
        with suppress(MstoreError):
            assert parse(changed) == whole
            assert at >= len(INDEX) - 100  # the metadata block, padding of the footer


@settings(max_examples=300)
@given(data=st.data())
def test_changed_bytes_behind_good_checksums(data):
    """Whatever stands in an index, only this package's errors come out."""
    content = HEADER + b"".join(sorted([entry(), entry(14, (2, 2), 0, 8, 8), FIRST]))
    pairs = {b"w": entry(slices=[[(0, 1)]]), FIRST: entry(), b"x": content}
    changed = {key: data.draw(changed_bytes(value, 2, least=0)) for key, value in pairs.items()}
    files = {
        "x.index": index(changed),
        "x.data-00000-of-00001": bytes(99),
    }
    for name in files:
        assert described(files, name)[0].size == len(files[name])
