"""Archives with files of known formats in them, and archives in archives."""

import io
import struct
import zipfile

import numpy as np
import pytest
import safetensors.numpy
import torch
from damage import changed_bytes, judge
from hypothesis import given
from watched_files import Watched

from mstore.errors import FormatError, LimitExceededError, UnsafeInputError
from mstore.formats import nested
from mstore.formats.base import BytesReader, Finding, Format
from mstore.formats.gguf import GgufFormat
from mstore.formats.nested import ZipFormat
from mstore.formats.npy import PICKLED, NpyFormat
from mstore.formats.npz import NpzFormat
from mstore.formats.safetensors import SafetensorsFormat
from mstore.formats.torch_zip import TorchFormat
from mstore.layout import Segment, Tensor, opaque

RANDOM = np.random.default_rng(9)
W = RANDOM.normal(size=(4, 3)).astype(np.float32)
B = np.asfortranarray(RANDOM.normal(size=(3, 5)))


class Hazard(Format):
    """A format whose files all do harm."""

    name = "hazard"

    def sniff(self, head, reader):
        return head.startswith(b"HAZARD")

    def layout(self, reader):
        raise UnsafeInputError("reading it would run code")

    def findings(self, reader):
        if reader.size > 6:
            raise {7: UnsafeInputError, 8: FormatError}[reader.size]("it cannot be read")
        return [Finding("dangerous", "calls os.system", "a.b"), Finding("allowed", "calls int")]


FORMATS = [Hazard(), SafetensorsFormat(), NpyFormat(), GgufFormat(), TorchFormat()]
FORMATS += [ZipFormat(lambda: FORMATS), NpzFormat()]
ZIP = FORMATS[-2]


def written(write, *args, **kwargs):
    file = io.BytesIO()
    write(file, *args, **kwargs)
    return file.getvalue()


def archive(members, method=zipfile.ZIP_STORED):
    """An archive of contents by names; (content, method) for another method than the others'."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as made:
        for name, content in members.items():
            raw, how = content if isinstance(content, tuple) else (content, method)
            made.writestr(name, raw, how)
    return file.getvalue()


def npy(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def saved(value):
    file = io.BytesIO()
    torch.save(value, file)
    return file.getvalue()


SAFETENSORS = safetensors.numpy.save({"w": W})
NPZ = written(np.savez, w=W, b=B)
DEFLATED_NPZ = written(np.savez_compressed, w=W, b=B)
TORCH = saved({"layer": {"t": torch.from_numpy(W).T, "b": torch.from_numpy(B.copy())}})


def sniffed(data):
    return ZIP.sniff(data[:4096], BytesReader(data))


def examine(data):
    return ZIP.examine(BytesReader(data))


def findings(data):
    return ZIP.findings(BytesReader(data))


@pytest.fixture
def arrays(read_tensors):
    return lambda data: read_tensors(data, examine(data)[0])


def test_members_of_many_formats(arrays):
    data = archive(
        {
            "README.txt": b"a text",
            "folder/": b"",
            "folder/model.safetensors": SAFETENSORS,
            "arrays.npz": NPZ,
            "deflated.npz": DEFLATED_NPZ,
            "model.pt": TORCH,
            "a.npy": npy(W),
            "b.npy": (npy(B), zipfile.ZIP_DEFLATED),
            "an_npy_file": npy(W),
        }
    )
    assert sniffed(data)
    layout, note = examine(data)
    assert (layout.format, note) == ("zip", None)
    found = arrays(data)
    assert set(found) == {
        "folder/model.safetensors/w",
        *(f"{file}.npz/{name}" for file in ("arrays", "deflated") for name in "wb"),
        *("model.pt/layer.t", "model.pt/layer.b", "a", "b", "an_npy_file"),
    }
    for name, array in found.items():
        expected = W if name in ("a", "an_npy_file") or name[-1] == "w" else B
        expected = W.T if name[-1] == "t" else expected
        assert (array.dtype, array.shape) == (expected.dtype, expected.shape)
        assert np.array_equal(array, expected)
    assert {finding.where.split("/")[0] for finding in findings(data)} == {"model.pt"}
    assert "dangerous" not in {finding.danger for finding in findings(data)}


def nest(depth, content):
    for _ in range(depth):
        content = archive({"x": content})
    return content


def test_archives_in_archives(arrays):
    inner = archive({"m.safetensors": SAFETENSORS, "a.npy": npy(B)})
    middle = archive({"inner.zip": inner, "text": b"x" * 99})
    data = archive({"text": b"x" * 7, "p/middle.zip": middle, "again.zip": inner})
    found = arrays(data)
    assert set(found) == {
        f"{path}/{name}"
        for path in ("p/middle.zip/inner.zip", "again.zip")
        for name in ("m.safetensors/w", "a")
    }
    assert np.array_equal(found["p/middle.zip/inner.zip/m.safetensors/w"], W)
    assert np.array_equal(found["again.zip/a"], B)


def test_depth(arrays):
    assert set(arrays(nest(4, SAFETENSORS))) == {"x/x/x/x/w"}
    assert set(arrays(nest(4, NPZ))) == {"x/x/x/x/w", "x/x/x/x/b"}
    for data in (nest(5, SAFETENSORS), nest(5, b"text"), nest(3000, SAFETENSORS)):
        assert sniffed(data)
        with pytest.raises(LimitExceededError, match="more than 4 archives in each other"):
            examine(data)
        with pytest.raises(LimitExceededError):
            ZIP.layout(BytesReader(data))
    assert not sniffed(nest(4, b"text"))
    data = archive({"a": SAFETENSORS, "b": nest(4, SAFETENSORS)})
    assert set(arrays(data)) == {"a/w"}
    assert examine(data)[1] == "1 members are too many or too deep to be looked into"
    assert not sniffed(archive({"w.npy": npy(W), "b": nest(4, SAFETENSORS)}))  # is an npz file


def test_one_name_twice(arrays):
    data = archive({"a": SAFETENSORS, "a/w": npy(B), "a/w.npy": npy(B)})
    assert list(arrays(data)) == ["a/w", "a/w#2", "a/w#3"]


def test_what_is_not_understood_is_told():
    text = (b"text", zipfile.ZIP_DEFLATED)
    cut = safetensors.numpy.save({"w": W, "x": W})[:-1]
    data = archive({"a": SAFETENSORS, "b": text, "c": (SAFETENSORS, zipfile.ZIP_DEFLATED)})
    told = "'c' looks like safetensors but is compressed; opaque bytes for 2 compressed members"
    assert examine(data)[1] == told
    assert findings(data) == [Finding("unknown", "looks like safetensors but is compressed", "c")]
    data = archive({"a": SAFETENSORS, "bad": cut, "bad.npy": b"x", "o.npy": npy(np.array([None]))})
    layout, note = examine(data)
    assert [s.tensor.name for s in layout.segments if s.tensor] == ["a/w"]
    assert note.startswith("'bad' looks like safetensors but the data_offsets of ")
    assert note.endswith("; 'bad' looks like npy but in its member 'bad.npy', "
                         "it does not start with the magic of npy; and 1 more")  # fmt: skip


def test_compressed_files(arrays):
    packed = archive({"m": SAFETENSORS, "t.pt": TORCH, "text": b"x"}, zipfile.ZIP_DEFLATED)
    assert sniffed(packed)
    assert arrays(packed) == {}
    assert examine(packed)[1] == (
        "'m' looks like safetensors but is compressed; 't.pt' looks like torch but is compressed; "
        "and 1 more"
    )
    outer = archive({"p": packed})
    assert sniffed(outer)
    assert examine(outer)[1].startswith("'p/m' looks like safetensors but is compressed; ")
    assert SAFETENSORS not in packed


def test_findings_of_members():
    inner = archive({"b": b"HAZARD1", "c": b"HAZARD12"})
    data = archive({"a": b"HAZARD", "inner.zip": inner, "o.npy": npy(np.array([None]))})
    assert sniffed(data)
    assert examine(data)[1].startswith("'a' looks like hazard but reading it would run code; ")
    assert findings(data)[:4] == [
        Finding("dangerous", "calls os.system", "a/a.b"),
        Finding("allowed", "calls int", "a"),
        Finding("dangerous", "it cannot be read", "inner.zip/b"),
        Finding("allowed", PICKLED, "o"),
    ]


def test_a_member_that_cannot_be_judged():
    with pytest.raises(FormatError, match="in its member 'x/c', it cannot be read"):
        findings(archive({"x": archive({"c": b"HAZARD12"}), "s": SAFETENSORS}))


@pytest.mark.parametrize(
    "data",
    [
        NPZ,
        DEFLATED_NPZ,
        archive({"a.txt": b"x", "b.zip": archive({"c": b"y"})}),
        archive({"a.npy": npy(W), "b": (b"text", zipfile.ZIP_DEFLATED)}),
        archive({"a": b""}),
        archive({}),
        archive({"a": SAFETENSORS})[:-1],
        b"PK\3\4",
        b"",
        SAFETENSORS,
    ],
)
def test_other_files_are_not_claimed(data):
    assert not sniffed(data)


def test_bad_archives_inside_are_left_alone(arrays):
    bad = archive({"a": SAFETENSORS})[:-1]
    assert set(arrays(archive({"good": SAFETENSORS, "bad.zip": bad}))) == {"good/w"}
    with pytest.raises(FormatError, match="cut short"):
        examine(bad)


def test_too_much(monkeypatch, arrays):
    many = archive({str(number): b"" for number in range(50)})
    data = archive({"a": SAFETENSORS, "many.zip": many, "b": SAFETENSORS, "c.npz": NPZ})
    monkeypatch.setattr(nested, "MAX_MEMBERS", 56)
    assert set(arrays(data)) == {"a/w", "b/w", "c.npz/w", "c.npz/b"}
    monkeypatch.setattr(nested, "MAX_MEMBERS", 55)
    assert set(arrays(data)) == {"a/w", "b/w"}
    assert examine(data)[1] == "1 members are too many or too deep to be looked into"
    monkeypatch.setattr(nested, "MAX_MEMBERS", 3)
    assert not sniffed(data)
    with pytest.raises(LimitExceededError):
        examine(data)
    monkeypatch.undo()
    monkeypatch.setattr(nested, "MAX_FILES", 2)
    assert set(arrays(data)) == {"a/w", "b/w"}
    monkeypatch.setattr(nested, "_COSTS", {"npz": 3, "safetensors": 2})
    assert set(arrays(data)) == {"a/w"}
    monkeypatch.setattr(nested, "MAX_HEADS", 0)
    assert not sniffed(archive({"m": SAFETENSORS}, zipfile.ZIP_DEFLATED))


def test_a_bomb_inside(arrays):
    """An npy member that claims more than its bytes can hold is told of, and nothing else."""
    bomb = bytearray(archive({"a": SAFETENSORS, "b.npy": (npy(W), zipfile.ZIP_DEFLATED)}))
    size = struct.pack("<I", len(npy(W)))
    assert bomb.count(size) == 2
    layout, note = examine(bytes(bomb.replace(size, b"\xfe\xff\xff\xff")))
    assert [s.tensor for s in layout.segments if s.tensor] == [Tensor("a/w", layout.segments[1].tensor.dtype, (4, 3))]  # fmt: skip
    assert "'b.npy', its" in note
    assert "claim to hold 4294967294" in note


def test_depth_costs_no_power_of_it():
    """What lies deeper is not looked at again and again."""
    costs = []
    for depth in range(4):
        reader = Watched(nest(depth, archive({str(i): b"x" * 50 for i in range(100)})))
        assert not ZIP.sniff(reader.read(0, 4096), reader)
        costs.append(reader.reads)
    assert costs[3] < 2 * costs[0]


SMALL = archive({"m.zip": archive({"s": SAFETENSORS, "a.npy": npy(W)}), "b.npz": DEFLATED_NPZ})


def test_truncations():
    assert sniffed(SMALL)
    for size in range(0, len(SMALL), 5):
        judge(ZIP, SMALL[:size])


@given(changed_bytes(SMALL))
def test_changed_bytes(data):
    judge(ZIP, data)


def test_opaque_parts_stay_where_they_are():
    data = archive({"a": SAFETENSORS})
    layout, _ = examine(data)
    start = data.index(W.tobytes())
    assert layout.segments[0] == Segment(0, start)
    assert layout != opaque(len(data))
