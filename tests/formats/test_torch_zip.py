"""Files of torch.save: those that torch wrote, and hostile ones made by hand."""

import io
import json
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
from numpy.lib.stride_tricks import as_strided

from mstore.errors import FormatError, LimitExceededError, UnsafeInputError
from mstore.formats import naming, pickle_walk, torch_storages, torch_structure, torch_zip
from mstore.formats.base import BytesReader
from mstore.formats.detect import describe
from mstore.formats.npz import NpzFormat
from mstore.formats.torch_zip import TorchFormat
from mstore.numpy_dtypes import array_from_bytes, numpy_dtype

GOLDEN = Path(__file__).parent / "torch_files"
NAMES = sorted(path.stem for path in GOLDEN.glob("*.pt"))


def tensors_of(data):
    """Name -> tensor, how it lies there ("C", "F" or "view") and its bytes; hidden ones too."""
    layout, _ = describe(BytesReader(data))
    assert layout.format == "torch"
    found = {
        s.tensor.name: (
            s.tensor,
            "hidden" if s.hidden else s.tensor.order,
            data[s.offset : s.offset + s.length],
        )
        for s in layout.segments
        if s.tensor is not None
    }
    for view in layout.views:
        tensor, place = view.tensor, view.place
        if not tensor.nbytes:
            found[tensor.name] = (tensor, "view", b"")
            continue
        start = np.frombuffer(data, np.uint8)[place.offset :]
        item = tensor.dtype.itemsize
        picked = as_strided(start, (*tensor.shape, item), (*place.strides, 1))
        raw = picked.tobytes() if tensor.nbytes < 1 << 20 else b""
        found[tensor.name] = (tensor, "view", raw)
    return found


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
            "order": order,
            "data": raw.hex(),
            **({"kind": tensor.kind} if tensor.kind else {}),
        }
        for name, (tensor, order, raw) in tensors_of(data).items()
        if order != "hidden"
    }
    assert found == expected


@pytest.mark.parametrize("name", NAMES)
def test_what_is_not_understood_is_told(name):
    notes = {
        "unknown": "1 of its tensors are not listed: 'half' is of type 'torch.complex32'",
        "views": "1 of its tensors are not listed: 'conjugate' is the conjugate or the negative "
        "of what is stored",
    }
    note = describe(BytesReader((GOLDEN / f"{name}.pt").read_bytes()))[1]
    assert note == notes.get(name)


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


class Key:
    """Something else that can be the key of a dictionary."""

    def __init__(self, value):
        self.value = value


class Kept:
    """Pickled as a persistent id."""

    def __init__(self, *identifier):
        self.identifier = identifier


class Writer(pickle._Pickler):
    """Writes the three classes above, and everything else as Python does."""

    def persistent_id(self, value):
        return value.identifier if isinstance(value, Kept) else None

    def save(self, value, save_persistent_id=True):
        if isinstance(value, Key):
            self.save(value.value)
        elif isinstance(value, Named):
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
        name: (str(tensor.dtype), tensor.shape, order)
        for name, (tensor, order, _) in tensors_of(archive(value, storages, **options)).items()
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
    hidden = {"storage:v": ("f32", (6,), "hidden")}
    for view, shape, order in [
        (tensor(shape=(6,), strides=(1,)), (6,), "C"),
        (tensor(shape=(1, 6, 1), strides=(9, 1, 7)), (1, 6, 1), "C"),
        (tensor(shape=(3, 2), strides=(1, 3)), (3, 2), "F"),
        (tensor(shape=(1, 2, 3), strides=(1, 1, 2)), (1, 2, 3), "F"),
        (tensor(shape=(2, 3), strides=(1, 1)), (2, 3), "view"),
        (tensor(shape=(3,), strides=(2,)), (3,), "view"),
        (tensor(shape=(5,), strides=(1,), offset=1), (5,), "view"),
        (tensor(shape=(), strides=(), offset=5), (), "view"),
        (tensor(shape=(2**20, 6), strides=(0, 1)), (2**20, 6), "view"),
        (tensor(shape=(6, 0), strides=(2**70, 1)), (6, 0), "view"),
    ]:
        expected = {"v": ("f32", shape, order)} | (hidden if order == "view" else {})
        assert shapes({"v": view}) == expected
        if order == "view":
            assert shapes({"v": view, "w": whole}) == {
                "w": ("f32", (2, 3), "C"),
                "v": ("f32", shape, "view"),
            }
        else:
            assert shapes({"v": view, "w": whole}) == {
                "v": ("f32", shape, order),
                "w": ("f32", (2, 3), "view"),
            }


def test_a_view_has_the_elements_at_its_strides():
    for view, expected in [
        (tensor(shape=(2, 2), strides=(3, 2)), [0, 2, 3, 5]),
        (tensor(shape=(3, 2), strides=(2, 1)), [0, 1, 2, 3, 4, 5]),
        (tensor(shape=(2, 3), strides=(0, 2), offset=1), [1, 3, 5, 1, 3, 5]),
        (tensor(shape=(1,), strides=(2**90,), offset=4), [4]),
    ]:
        _, order, raw = tensors_of(archive({"w": tensor(), "v": view}))["v"]
        assert (order, np.frombuffer(raw, np.float32).tolist()) == ("view", expected)


def test_a_view_in_another_type():
    part = Made(
        Named(V3),
        storage("0", 24, "torch.UntypedStorage"), 1, (2, 3), (6, 2), False, None,
        Named("torch.int16"),
    )  # fmt: skip
    found = tensors_of(archive([tensor(), part]))
    assert [str(found[name][0].dtype) for name in ("0", "1")] == ["f32", "i16"]
    halves = np.arange(6, dtype=np.float32).view(np.int16)
    assert found["1"][2] == halves[[[1, 3, 5], [7, 9, 11]]].tobytes()
    big = shapes([part], byteorder=b"big")
    assert big == {"0": (">i16", (2, 3), "view"), "storage:0": (">i16", (12,), "hidden")}


def test_negative_and_packed_tensors_are_left_out():
    negative = Made(
        Named(V2),
        storage("0", 6), 0, (2, 3), (3, 1), False, None, {"neg": True},
    )  # fmt: skip
    data = archive({"v": negative})
    assert shapes({"v": negative}) == {"storage:v": ("f32", (6,), "hidden")}
    assert describe(BytesReader(data))[1] == (
        "1 of its tensors are not listed: 'v' is the conjugate or the negative of what is stored"
    )
    assert shapes({"v": negative, "w": tensor()}) == {"w": ("f32", (2, 3), "C")}
    packed = Made(
        Named(V3),
        storage("0", 24, "torch.UntypedStorage"), 0, (24,), (1,), False, None,
        Named("torch.float4_e2m1fn_x2"),
    )  # fmt: skip
    assert shapes({"v": packed}) == {"v": ("f4", (48,), "C")}
    data = archive({"v": packed, "w": packed})
    assert "1 of its tensors are not listed: 'w' is a part of elements" in describe(
        BytesReader(data)
    )[1]  # fmt: skip


def test_what_is_in_several_places_is_found_in_all():
    one, pair = tensor(), [tensor("1", 1, (), ())]
    value = {"a": one, "b": [one, pair, pair], "c": {"d": pair}}
    assert shapes(value, (SIX, SIX[:4])) == {
        "a": ("f32", (2, 3), "C"),
        "b.0": ("f32", (2, 3), "view"),
        "b.1.0": ("f32", (), "C"),
        "b.2.0": ("f32", (), "view"),
        "c.d.0": ("f32", (), "view"),
    }


def test_a_module_is_called_as_its_users_call_it():
    def module(parameters, buffers, modules, **attributes):
        state = {"training": True, "_parameters": parameters, "_buffers": buffers}
        return Made(Named("my.Module"), state={**state, "_modules": modules, **attributes})

    ones = [tensor(str(index), 1, (), ()) for index in range(4)]
    inner = module({"weight": ones[0], "bias": None}, {"mean": ones[1]}, {})
    value = module({"scale": ones[2]}, {}, {"0": inner}, mask=ones[3])
    found = shapes({"model": value, "_modules": {"x": ones[0]}}, [SIX[:4]] * 4)
    assert set(found) == {
        *("model.scale", "model.0.weight", "model.0.mean", "model.mask", "_modules.x"),
    }


def test_tensors_as_keys():
    """An optimizer that is pickled as a whole has its state by parameter."""
    weight, mean = tensor(), tensor("1", 1, (), ())
    state = {Key(weight): {"mean": mean}}
    assert set(shapes({"state": state}, (SIX, SIX[:4]))) == {"state.0", "state.0.mean"}


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
        "a.b", "a.b#2", "a.b#2#2", "3", "4", "5", "1,?", "\\ud800\x1b", "None.w", "None.slot",
        "torch.float32",
    ]  # fmt: skip


def test_cycles_and_bombs():
    loop = b"}q\0X\1\0\0\0ah\0s."
    assert describe(BytesReader(archive(loop, ())))[0].format == "torch"
    doubling = b")" + b"2\x86" * 200 + b"."
    assert describe(BytesReader(archive(doubling, ())))[0].format == "torch"
    deep = b")" + b"\x85" * 1100 + b"."
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
    for value, reason, hidden in [
        (Made(Named("my.build"), storage("0", 6), 1), "'w.0' is made by 'my.build'", "w.0"),
        (tensor(kind="torch.QUInt4x2Storage"), "'w' is of type 'torch.QUInt4x2Storage'", None),
        (tensor(kind="my.Storage"), "'w' is of type 'my.Storage'", None),
        (storage("0", 6, "my.Storage"), "'w' is of type 'my.Storage'", None),
        (
            Made(
                Named(V3),
                storage("0", 24, "torch.UntypedStorage"),
                *(0, (2,), (1,), False, None, Named("torch.float128")),
            ),
            "'w' is of type 'torch.float128'",
            None,
        ),
        (
            Made(Named(FROM), Named(FROM), 0, (Named(V2), 0, (storage("0", 6),), None), None),
            "'w.2.0' is made by '_rebuild_from_type_v2'",
            "w.2.0",
        ),
    ]:
        data = archive({"w": value})
        assert describe(BytesReader(data))[1] == f"1 of its tensors are not listed: {reason}"
        expected = {f"storage:{hidden}": ("f32", (6,), "hidden")} if hidden else {}
        assert shapes({"w": value}) == expected


def test_a_storage_by_itself_is_a_tensor_of_one_axis():
    assert shapes([storage("0", 6)]) == {"0": ("f32", (6,), "C")}
    assert shapes([storage("0", 24, "torch.storage.UntypedStorage"), tensor()]) == {
        "0": ("u8", (24,), "C"),
        "1": ("f32", (2, 3), "view"),
    }
    odd = Made(
        Named(V3),
        storage("0", 5, "torch.UntypedStorage"), 0, (1,), (1,), False, None, Named("torch.uint16"),
    )  # fmt: skip
    assert shapes({"w": odd}, [b"12345"]) == {
        "w": ("u16", (1,), "view"),
        "storage:w": ("u8", (5,), "hidden"),
    }


def test_deflated_storages_stay_opaque():
    data = archive({"w": tensor()}, compression=zipfile.ZIP_DEFLATED)
    assert said(data) == "1 of its tensors are not listed: 'w' is compressed"


HOSTILE = {
    "stride 0 with very many elements": archive(
        {"w": tensor("0", 1, (2**40,), (0,))}, [SIX[:4]]
    ),
    "storage of an absolute path": archive({"w": tensor("/etc/passwd")}),
    "storage with a NUL": archive({"w": tensor("0\0")}),
    "a storage by itself in the parent folder": archive({"w": storage("../data/0", 6)}),
    "code of TorchScript": archive({"w": tensor()}, **{"code/__torch__.py": b"op"}),
    "constants of TorchScript": archive({"w": tensor()}, **{"constants.pkl": b")."}),
    "torch.package": archive({"w": tensor()}, **{".data/extern_modules": b"os"}),
    "part of a storage beyond it": archive(
        {"w": Made(Named(V2), Kept("storage", Named("torch.FloatStorage"), "0", "cpu", 6, ("1", 6, 1)),
                   0, (1,), (1,))}
    ),
    "part of a storage is a list": archive(
        {"w": Kept("storage", Named("torch.FloatStorage"), "0", "cpu", 6, ["1", 0, 1])}
    ),
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
    with pytest.raises((FormatError, LimitExceededError, UnsafeInputError)):
        TorchFormat().layout(BytesReader(data))


def test_good_before_bad():
    """What the hostile files are made from is understood."""
    assert shapes({"w": tensor()}) == {"w": ("f32", (2, 3), "C")}
    assert shapes({"w": tensor()}, byteorder=b"big") == {"w": (">f32", (2, 3), "C")}
    assert shapes({"w": tensor()}, version=None, **{".data/version": b"3\n"}) == {
        "w": ("f32", (2, 3), "C")
    }
    data = archive({"w": tensor()})
    found, _, raw = tensors_of(data)["w"]
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
        patch.setattr(naming, "MAX_NAMES", 0)
        assert "names of its tensors" in said(data)
    with monkeypatch.context() as patch:
        patch.setattr(torch_storages, "MAX_TENSORS", 0)
        assert "more than 0 tensors" in said(data)
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
