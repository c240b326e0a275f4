"""Files of torch.save: those that torch wrote, and hostile ones made by hand."""

import io
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch_making import (
    SIX,
    V2,
    V3,
    Kept,
    Made,
    Named,
    archive,
    pickled,
    said,
    shapes,
    storage,
    tensor,
    tensors_of,
)
from watched_files import Watched

from mstore.errors import FormatError, LimitExceededError, UnsafeInputError
from mstore.formats import naming, pickle_paths, torch_storages
from mstore.formats.base import BytesReader, Finding
from mstore.formats.detect import describe
from mstore.formats.hazards import find_hazards
from mstore.formats.npz import NpzFormat
from mstore.formats.torch_zip import TorchFormat
from mstore.numpy_dtypes import array_from_bytes, numpy_dtype

GOLDEN = Path(__file__).parent / "torch_files"
NAMES = sorted(path.stem for path in GOLDEN.glob("*.pt"))


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
        "views": "1 of its tensors are not listed: 'conjugate' is the conjugate or the negative "
        "of what is stored",
    }
    note = describe(BytesReader((GOLDEN / f"{name}.pt").read_bytes()))[1]
    assert note == notes.get(name)


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


@pytest.mark.parametrize(
    "function", ["os.system", "builtins.exec", "builtins.open", "runpy.run_path"]
)
def test_a_file_that_would_do_harm_is_refused(tmp_path, function):
    marker = tmp_path / "ran"
    value = {"evil": Made(Named(function), f"touch {marker}"), "w": tensor()}
    for data in (archive(value), archive(pickled(value)[:-1] + b"\xff.")):
        warning = said(data)
        assert warning == (
            f"looks like torch but would call {function} when loaded; stored as opaque bytes"
        )
        found = TorchFormat().findings(BytesReader(data))
        assert ("dangerous", f"calls {function}") in [(one.danger, one.what) for one in found]
    assert not marker.exists()


def test_members_that_differ_in_case_only():
    """PyTorch finds members without regard to case, and may load the pickle that is not seen."""
    for member in ("DATA.PKL", "Data.pkl", "DATA/0"):
        data = archive({"w": tensor()}, **{member: b"cos\nsystem\n(S'true'\ntR."})
        reader = BytesReader(data)
        assert find_hazards(reader).verdict == "dangerous"
        assert "two members of which PyTorch may read either" in describe(reader)[1]


def test_findings():
    value = {"w": tensor(), "net": Made(Named("my.Net"))}
    found = {one.what: one for one in TorchFormat().findings(BytesReader(archive(value)))}
    assert found["calls torch._utils._rebuild_tensor_v2"].danger == "allowed"
    unknown = {one.what for one in found.values() if one.danger != "allowed"}
    assert unknown == {"calls my.Net", "calls x.Hooks"}
    assert found["calls my.Net"].danger == "unknown"
    assert found["calls my.Net"].where.startswith("x/data.pkl, byte ")
    script = archive({"w": tensor()}, **{"code/__torch__.py": b"op"})
    assert TorchFormat().findings(BytesReader(script)) == [
        Finding("dangerous", "holds TorchScript code, which loading it runs", "x")
    ]
    with pytest.raises(FormatError):
        TorchFormat().findings(BytesReader(archive(b"\xff.")))


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
        patch.setattr(naming, "MAX_NAMES", 0)
        assert "names of its tensors" in said(data)
    with monkeypatch.context() as patch:
        patch.setattr(torch_storages, "MAX_TENSORS", 0)
        assert "more than 0 tensors" in said(data)
    with monkeypatch.context() as patch:
        patch.setattr(pickle_paths, "MAX_DEPTH", 1)
        assert "nested deeper" in said(data)
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

    reader = Watched(data)
    assert TorchFormat().layout(reader).segments[1].length == 4 << 20
    assert reader.most < 70_000


@given(st.sampled_from(NAMES), st.integers(0, 1 << 16), st.integers(0, 255))
def test_damaged_files_raise_only_errors_of_mstore(name, place, byte):
    whole = (GOLDEN / f"{name}.pt").read_bytes()
    place %= len(whole)
    for data in (whole[:place], whole[:place] + bytes([byte]) + whole[place + 1 :]):
        try:
            layout, _ = TorchFormat().examine(BytesReader(data))
            assert layout.size == len(data)
        except (FormatError, LimitExceededError, UnsafeInputError):
            pass
