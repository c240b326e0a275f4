"""Files of torch.save: those that torch wrote, and hostile ones made by hand."""

import io
import json
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest

from mstore.errors import FormatError, LimitExceededError
from mstore.formats import pickle_walk, torch_structure, torch_zip
from mstore.formats.base import BytesReader
from mstore.formats.detect import describe
from mstore.formats.npz import NpzFormat
from mstore.formats.torch_zip import TorchFormat
from mstore.numpy_dtypes import array_from_bytes, numpy_dtype

GOLDEN = Path(__file__).parent / "torch_files"
NAMES = sorted(path.stem for path in GOLDEN.glob("*.pt"))


def tensors_of(data):
    """Name -> tensor and its bytes, from the file's content as a whole."""
    layout, _ = describe(BytesReader(data))
    assert layout.format == "torch"
    return {
        s.tensor.name: (s.tensor, data[s.offset : s.offset + s.length])
        for s in layout.segments
        if s.tensor is not None
    }


def test_all_golden_files_are_there():
    assert len(NAMES) == 15
    assert {path.stem for path in GOLDEN.glob("*.json")} == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_golden(name):
    data = (GOLDEN / f"{name}.pt").read_bytes()
    expected = json.loads((GOLDEN / f"{name}.json").read_text())
    found = {
        name: {
            "dtype": (">" if tensor.dtype.big_endian else "") + tensor.dtype.numpy,
            "shape": list(tensor.shape),
            "order": tensor.order,
            "data": raw.hex(),
        }
        for name, (tensor, raw) in tensors_of(data).items()
    }
    assert found == expected


def test_what_is_not_understood_is_told():
    _, note = describe(BytesReader((GOLDEN / "unknown.pt").read_bytes()))
    assert note == (
        "opaque bytes for 3 of 6 storages: 'quantised' is made by "
        "'torch._utils._rebuild_qtensor', 'half' is of type 'torch.complex32', …"
    )
    for name in set(NAMES) - {"unknown"}:
        assert describe(BytesReader((GOLDEN / f"{name}.pt").read_bytes()))[1] is None


class Named:
    """Pickled as the name of something that need not exist."""

    def __init__(self, name):
        self.name = name


class Made:
    """Pickled as a call, with a state if there is one."""

    def __init__(self, function, *arguments, state=None):
        self.function = function
        self.arguments = arguments
        self.state = state


class Kept:
    """Pickled as a persistent id."""

    def __init__(self, *identifier):
        self.identifier = identifier


class Writer(pickle._Pickler):
    """Writes the three classes above, and everything else as Python does."""

    def persistent_id(self, value):
        return value.identifier if isinstance(value, Kept) else None

    def save(self, value, save_persistent_id=True):
        if isinstance(value, Named):
            module, _, name = value.name.rpartition(".")
            self.write(b"c" + f"{module}\n{name}\n".encode())
        elif isinstance(value, Made):
            self.save(value.function)
            self.save(value.arguments)
            self.write(b"R")
            if value.state is not None:
                self.save(value.state)
                self.write(b"b")
        else:
            super().save(value, save_persistent_id)


def pickled(value):
    file = io.BytesIO()
    Writer(file, 2).dump(value)
    return file.getvalue()


def storage(key, count, kind="torch.FloatStorage"):
    return Kept("storage", Named(kind), key, "cpu", count)


def tensor(key="0", count=6, shape=(2, 3), strides=(3, 1), offset=0, kind="torch.FloatStorage"):
    return Made(
        Named(V2),
        storage(key, count, kind), offset, shape, strides, False, Made(Named("x.Hooks")),
    )  # fmt: skip


V2 = "torch._utils._rebuild_tensor_v2"
V3 = "torch._utils._rebuild_tensor_v3"
FROM = "torch._tensor._rebuild_from_type_v2"
SIX = np.arange(6, dtype=np.float32).tobytes()


def archive(value, storages=(SIX,), compression=zipfile.ZIP_STORED, folder="x", **members):
    """A file of torch.save as it was in version 1.6: no byte order, no alignment."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as made:
        content = value if isinstance(value, bytes) else pickled(value)
        made.writestr(f"{folder}/data.pkl", content)
        for key, raw in enumerate(storages):
            made.writestr(f"{folder}/data/{key}", raw, compression)
        for name, raw in {"version": b"3\n", **members}.items():
            if raw is not None:
                made.writestr(f"{folder}/{name}", raw)
    return file.getvalue()


def shapes(value, storages=(SIX,), **options):
    return {
        name: (str(tensor.dtype), tensor.shape, tensor.order)
        for name, (tensor, _) in tensors_of(archive(value, storages, **options)).items()
    }


def said(data):
    layout, warning = describe(BytesReader(data))
    assert [s.tensor for s in layout.segments] == [None]
    return warning


def test_files_of_old_versions():
    v1 = Made(Named("torch._utils._rebuild_tensor"), storage("0", 6), 0, (2, 3), (3, 1))
    assert shapes({"w": v1}) == {"w": ("f32", (2, 3), "C")}
    parameter = Made(Named("torch._utils._rebuild_parameter"), tensor(), True, Made(Named("x.H")))
    assert shapes({"w": parameter}) == {"w": ("f32", (2, 3), "C")}
    typed = Made(
        Named("torch.tensor._rebuild_from_type"),
        Named(V2),
        Named("my.Tensor"),
        (storage("0", 6), 0, Made(Named("torch.Size"), (6,)), (1,), False, None),
        {"extra": tensor("1", 1, (), ())},
    )
    assert shapes({"w": typed}, (SIX, SIX[:4])) == {
        "w": ("f32", (6,), "C"),
        "w.extra": ("f32", (), "C"),
    }
    untyped = Made(
        Named(V3),
        storage("0", 24, "torch.storage._UntypedStorage"),
        0, (3, 4), (4, 1), False, None, Named("torch.uint16"),
    )  # fmt: skip
    assert shapes({"w": untyped}) == {"w": ("u16", (3, 4), "C")}


def test_what_covers_a_storage():
    whole = tensor()
    for view, expected in [
        (tensor(shape=(6,), strides=(1,)), ((6,), "C")),
        (tensor(shape=(1, 6, 1), strides=(9, 1, 7)), ((1, 6, 1), "C")),
        (tensor(shape=(3, 2), strides=(1, 3)), ((3, 2), "F")),
        (tensor(shape=(1, 2, 3), strides=(1, 1, 2)), ((1, 2, 3), "F")),
        (tensor(shape=(2, 3), strides=(1, 1)), ((6,), "C")),
        (tensor(shape=(3,), strides=(2,)), ((6,), "C")),
        (tensor(shape=(5,), strides=(1,), offset=1), ((6,), "C")),
        (tensor(shape=(), strides=(), offset=5), ((6,), "C")),
        (tensor(shape=(2**40, 6), strides=(0, 1)), ((6,), "C")),
        (tensor(shape=(6, 0), strides=(2**70, 1)), ((6,), "C")),
    ]:
        assert shapes({"v": view}) == {"v": ("f32", *expected)}
        assert shapes({"v": view, "w": whole}) in (
            {"w": ("f32", (2, 3), "C")},
            {"v": ("f32", *expected)},
        )
    negative = Made(
        Named(V2),
        storage("0", 6), 0, (2, 3), (3, 1), False, None, {"neg": True},
    )  # fmt: skip
    assert shapes({"v": negative}) == {"v": ("f32", (6,), "C")}
    assert shapes({"v": negative, "w": whole}) == {"w": ("f32", (2, 3), "C")}


def test_names():
    one = [tensor(str(index), 1, (), ()) for index in range(11)]
    value = {
        "a": {"b": one[0]},
        "a.b": one[1],
        "a.b#2": one[2],
        b"": one[3],
        b"1": one[4],
        b"2": one[5],
        (1, (2,)): one[6],
        "\ud800\x1b": one[7],
        None: Made(Named("my.Module"), state=({"w": one[8]}, {"slot": one[9]})),
        Named("torch.float32"): one[10],
    }
    assert list(shapes(value, [SIX[:4]] * 11)) == [
        "a.b", "a.b#2", "a.b#2#2", "?", "?#2", "?#3", "1,?", "\\ud800\x1b", "None.w", "None.slot",
        "torch.float32",
    ]  # fmt: skip


def test_cycles_and_bombs():
    loop = b"}q\0X\1\0\0\0ah\0s."
    assert describe(BytesReader(archive(loop, ())))[0].format == "torch"
    doubling = b")" + b"2\x86" * 200 + b"."
    assert describe(BytesReader(archive(doubling, ())))[0].format == "torch"
    deep = b")" + b"\x85" * 300 + b"."
    assert "nested deeper" in said(archive(deep, ()))
    long_key = {"k" * 4000: {"k" * 4000: tensor()}}
    assert "a name of more than 4096" in said(archive(long_key))


def test_shared_arguments_are_followed_once():
    """Work grows with what is written, not with the ways to reach it: else these take hours."""
    many = b"(" + b"N" * 30_000 + b"tq\0"
    calls = b"0(" + b"cm\nC\nh\0R" * 30_000 + b"l."
    assert describe(BytesReader(archive(many + calls, ())))[0].format == "torch"
    rebuild = b"ctorch._utils\n_rebuild_tensor_v2\nq\x01"
    view = b"(X\7\0\0\0storagectorch\nFloatStorage\nX\1\0\0\0" + b"0NK\6tQq\2"
    calls = b"000(" + b"h\1(h\2K\0h\0h\0tR" * 3_000 + b"l."
    assert "30000 dimensions" in said(archive(many + rebuild + view + calls))
    chain = b"ctorch._tensor\n_rebuild_from_type_v2\nq\0cm\nC\nq\1"
    chain += b")" + b"q\2(h\0h\1h\2Nt" * 250 + b"q\2"
    calls = b"(" + b"h\0h\2R" * 10_000 + b"l."
    assert describe(BytesReader(archive(chain + calls, ())))[0].format == "torch"


def test_code_is_described_and_not_run(tmp_path):
    marker = tmp_path / "ran"
    for function, argument in [
        ("os.system", f"touch {marker}"),
        ("builtins.exec", f"open({str(marker)!r}, 'w')"),
        ("builtins.open", str(marker)),
    ]:
        value = {"evil": Made(Named(function), argument), "w": tensor()}
        assert shapes(value) == {"w": ("f32", (2, 3), "C")}
    assert not marker.exists()


def test_storages_of_unknown_makers_are_told():
    for value, reason in [
        (Made(Named("my.build"), storage("0", 6), 1), "'w' is made by 'my.build'"),
        (storage("0", 6), "'w' is a storage by itself"),
        (tensor(kind="torch.QInt8Storage"), "'w' is of type 'torch.QInt8Storage'"),
        (tensor(kind="my.Storage"), "'w' is of type 'my.Storage'"),
        (
            Made(
                Named(V3),
                storage("0", 24, "torch.UntypedStorage"),
                *(0, (2,), (1,), False, None, Named("torch.float128")),
            ),
            "'w' is of type 'torch.float128'",
        ),
        (
            Made(Named(FROM), Named(FROM), 0, (Named(V2), 0, (storage("0", 6),), None), None),
            f"'w.2.0' is made by '{FROM}'",
        ),
    ]:
        assert said(archive({"w": value})) == f"opaque bytes for 1 of 1 storages: {reason}"
    odd = Made(
        Named(V3),
        storage("0", 5, "torch.UntypedStorage"), 0, (1,), (1,), False, None, Named("torch.uint16"),
    )  # fmt: skip
    assert "a part of an element too many" in said(archive({"w": odd}, [b"12345"]))


def test_deflated_storages_stay_opaque():
    data = archive({"w": tensor()}, compression=zipfile.ZIP_DEFLATED)
    assert said(data) == "opaque bytes for 1 of 1 storages: 'w' is compressed"


HOSTILE = {
    "storage missing": archive({"w": tensor("7")}),
    "storage outside the archive": archive({"w": tensor("../../x")}),
    "storage too short": archive({"w": tensor()}, [SIX[:-1]]),
    "storage too long": archive({"w": tensor()}, [SIX + b"x"]),
    "two sizes of one storage": archive([tensor(), tensor(count=5, shape=(5,), strides=(1,))]),
    "offset outside": archive({"w": tensor(offset=1)}),
    "stride outside": archive({"w": tensor(shape=(2, 3), strides=(4, 1))}),
    "huge stride": archive({"w": tensor(shape=(2,), strides=(2**2000,))}),
    "huge shape": archive({"w": tensor(shape=(2**60,), strides=(1,))}),
    "huge shape of nothing": archive(
        {"w": tensor("0", 0, (0, 2**70), (1, 1))}, [b""]
    ),
    "negative offset": archive({"w": tensor(offset=-1)}),
    "negative stride": archive({"w": tensor(strides=(-3, 1))}),
    "negative size": archive({"w": tensor(shape=(-2, -3))}),
    "bool as a size": archive({"w": tensor(shape=(True, 3), strides=(1, 1))}),
    "strides missing": archive({"w": tensor(strides=(1,))}),
    "shape is no tuple": archive({"w": tensor(shape=[2, 3])}),
    "too many dimensions": archive({"w": tensor(shape=(1,) * 100, strides=(1,) * 100)}),
    "no arguments": archive({"w": Made(Named(V2))}),
    "storage is a number": archive({"w": Made(Named(V2), 0, 0, (2, 3), (3, 1))}),
    "another persistent id": archive({"w": Made(Named(V2), Kept("x"), 0, (2, 3), (3, 1))}),
    "key is a number": archive({"w": tensor(key=0)}),
    "count is negative": archive({"w": tensor(count=-6)}),
    "kind is text": archive({"w": Kept("storage", "torch.FloatStorage", "0", "cpu", 6)}),
    "persistent id cut": archive({"w": Kept("storage", Named("torch.FloatStorage"), "0")}),
    "pickle cut": archive(pickled({"w": tensor()})[:-1]),
    "pickle is none": archive(b"\x93NUMPY"),
    "pickle is empty": archive(b""),
    "byte order": archive({"w": tensor()}, byteorder=b"middle"),
    "long byte order": archive({"w": tensor()}, byteorder=b"little" * 9),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile(name):
    data = HOSTILE[name]
    assert said(data).startswith("looks like torch but ")
    with pytest.raises((FormatError, LimitExceededError)):
        TorchFormat().layout(BytesReader(data))


def test_good_before_bad():
    """What the hostile files are made from is understood."""
    assert shapes({"w": tensor()}) == {"w": ("f32", (2, 3), "C")}
    assert shapes({"w": tensor()}, byteorder=b"big") == {"w": (">f32", (2, 3), "C")}
    assert shapes({"w": tensor()}, version=None, **{".data/version": b"3\n"}) == {
        "w": ("f32", (2, 3), "C")
    }
    data = archive({"w": tensor()})
    found, raw = tensors_of(data)["w"]
    array = array_from_bytes(raw, found.dtype, found.shape)
    assert array.dtype == numpy_dtype(found.dtype)
    assert array.tolist() == [[0, 1, 2], [3, 4, 5]]


def test_overlapping_storages():
    """Two records of the directory that name the same bytes."""
    data = bytearray(archive([tensor(), tensor("1")], (SIX, SIX)))
    second = data.rindex(b"x/data/1") - 46
    first = data.rindex(b"x/data/0") - 46
    data[second + 42 : second + 46] = data[first + 42 : first + 46]
    assert "overlaps" in said(bytes(data)) or "differs" in said(bytes(data))


def test_limits(monkeypatch):
    data = archive({"w": tensor()})
    with monkeypatch.context() as patch:
        patch.setattr(torch_zip, "MAX_PICKLE", 10)
        assert "at most 10 are read" in said(data)
    with monkeypatch.context() as patch:
        patch.setattr(torch_zip, "MAX_NAMES", 0)
        assert "names of its tensors" in said(data)
    with monkeypatch.context() as patch:
        patch.setattr(torch_structure, "MAX_DEPTH", 1)
        assert "nested deeper" in said(data)
    with monkeypatch.context() as patch:
        patch.setattr(pickle_walk, "MAX_MEMORY", 100)
        assert "more than 100 bytes" in said(data)
    assert describe(BytesReader(data))[1] is None


def test_a_compressed_pickle_is_not_inflated():
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as made:
        made.writestr("x/data.pkl", bytes(1 << 20))
        made.writestr("x/version", b"3\n")
    assert "'x/data.pkl' is compressed" in said(file.getvalue())


def test_other_archives_are_not_claimed():
    good = archive({"w": tensor()})
    assert TorchFormat().sniff(good[:4096], BytesReader(good))
    for data in (
        archive({"w": tensor()}, version=None),
        archive({"w": tensor()}, folder="x/y"),
        archive({"w": tensor()}, **{"constants.pkl": b")."}),
        archive({"w": tensor()})[4:],
        good[:20],
        b"PK\x03\x04" + bytes(40),
        b"",
    ):
        assert not TorchFormat().sniff(data[:4096], BytesReader(data))
    file = io.BytesIO()
    np.savez(file, **{"a/data.pkl": np.arange(3)})
    assert not TorchFormat().sniff(file.getvalue(), BytesReader(file.getvalue()))
    assert NpzFormat().sniff(file.getvalue(), BytesReader(file.getvalue()))


def test_a_damaged_archive_is_still_recognised():
    assert said(archive({"w": tensor()})[:-1]).startswith("looks like torch but it has no end")


def test_the_order_of_members_does_not_matter():
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as made:
        made.writestr("x/version", b"3\n")
        made.writestr("x/data/0", SIX)
        made.writestr("x/data.pkl", pickled({"w": tensor()}))
    assert set(tensors_of(file.getvalue())) == {"w"}


def test_tensor_data_is_never_read():
    data = archive({"w": tensor(count=1 << 20, shape=(1 << 20,), strides=(1,))}, [bytes(4 << 20)])

    class Watched(BytesReader):
        most = 0

        def read(self, offset, length):
            self.most = max(self.most, length)
            return super().read(offset, length)

    reader = Watched(data)
    assert TorchFormat().layout(reader).segments[1].length == 4 << 20
    assert reader.most < 70_000
