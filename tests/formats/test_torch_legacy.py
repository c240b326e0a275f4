"""Files that torch.save writes without a zip archive, as it did before version 1.6."""

import io
import pickle
import struct
import tarfile
from contextlib import suppress
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch_loaded import save_and_check
from torch_making import SIX, V2, Kept, Made, Named, pickled
from watched_files import Watched

from mstore.errors import FormatError, LimitExceededError, UnsafeInputError
from mstore.formats.base import BytesReader
from mstore.formats.detect import describe
from mstore.formats.hazards import find_hazards
from mstore.formats.torch_legacy import TorchLegacyFormat

pytestmark = [
    pytest.mark.filterwarnings(f"ignore::{kind}") for kind in ("UserWarning", "DeprecationWarning")
]


@pytest.fixture
def check(tmp_path, repo):
    path = tmp_path / "saved.pt"
    return partial(save_and_check, repo, path, _use_new_zipfile_serialization=False)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_checkpoints(check, protocol):
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.randn(5, 3)).sum().backward()
    optimizer.step()
    value = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 3}
    found = check(value, pickle_protocol=protocol)
    assert "optimizer.state.3.exp_avg" in found


def test_views_and_types(check):
    base = torch.randn(4, 5)
    value = {
        "base": base,
        "tied": base.detach(),
        "turned": base.t(),
        "part": base[1:, ::2],
        "alone": torch.arange(9)[3:],
        "empty": torch.zeros(0, 2),
        "half": torch.randn(3).bfloat16(),
        "complex": torch.randn(2, dtype=torch.complex128),
    }
    check(value)
    check(torch.randn(3)[1:])
    check([])


def test_a_whole_module(check):
    """The source of its class is in the file, and read by nobody."""
    model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.ReLU())
    assert set(check(model)) == {"0.weight", "0.bias"}


def test_quantised_tensors(check):
    tensor = torch.quantize_per_tensor(torch.randn(4), 0.1, 2, torch.qint8)
    found = check({"w": tensor}, {"w": tensor.int_repr()})
    assert found["w"].shape == (4,)


def legacy(value, storages=(SIX,), keys=None, version=1001, magic=0x1950A86A20F9469CFC6C):
    """A file as torch writes it, with storages of floats."""
    keys = [str(number) for number in range(len(storages))] if keys is None else keys
    parts = [pickle.dumps(part, 2) for part in (magic, version, {"little_endian": True})]
    parts += [pickled(value), pickled(keys)]
    parts += [struct.pack("<q", len(raw) // 4) + raw for raw in storages]
    return b"".join(parts)


def storage(key="0", count=6, part=None, kind="torch.FloatStorage"):
    return Kept("storage", Named(kind), key, "cpu", count, part)


def tensor(shape=(6,), strides=(1,), offset=0, **options):
    return Made(Named(V2), storage(**options), offset, shape, strides, False, {})


def test_parts_of_storages():
    """Old versions wrote which part of a storage is meant, from which the offset counts."""
    value = {"part": tensor((2,), (1,), 1, part=("9", 3, 3)), "whole": tensor()}
    data = legacy(value)
    layout, note = describe(BytesReader(data))
    assert (layout.format, note) == ("torch", None)
    (view,) = layout.views
    assert view.tensor.name == "part"
    start = view.place.offset
    assert np.frombuffer(data[start : start + 8], np.float32).tolist() == [4, 5]
    with pytest.raises(FormatError, match="leaves its storage"):
        TorchLegacyFormat().layout(BytesReader(legacy(tensor((3,), offset=1, part=("9", 3, 3)))))


def test_a_module_is_called_by_what_is_kept_for_it():
    class_ = Kept("module", Named("my.Net"), "net.py", "class Net:")
    made = Made(class_, state={"_parameters": {"w": tensor()}, "_buffers": {}, "_modules": {}})
    layout, _ = describe(BytesReader(legacy([made])))
    assert [s.tensor.name for s in layout.segments if s.tensor] == ["0.w"]


GOOD = legacy({"w": tensor()})
HOSTILE = {
    "another version": legacy(tensor(), version=1002),
    "a version that is long": legacy(tensor(), version="x" * 3000),
    "no list of keys": legacy(tensor(), keys="0"),
    "keys that are no text": legacy(tensor(), keys=[0]),
    "a key twice": legacy(tensor(), [SIX, SIX], keys=["0", "0"]),
    "a key that is not used": legacy(tensor(), keys=["1"]),
    "a key that is missing": legacy(tensor(), keys=[]),
    "a storage of unknown type": legacy(tensor(kind="my.Storage")),
    "a storage of another size": legacy(tensor(), [SIX[4:]]),
    "a negative size": GOOD[:-32] + struct.pack("<q", -6) + GOOD[-24:],
    "a tensor that leaves its storage": legacy(tensor(offset=1)),
    "a storage that is cut": GOOD[:-1],
    "a size that is cut": GOOD[:-25],
    "a pickle that is cut": GOOD[:60],
    "a part that is none": legacy(tensor(part=5)),
    "a part before the start": legacy(tensor(part=("9", -1, 3))),
    "a huge storage": legacy(tensor((2**50,), count=2**50), [b""]),
}


def test_what_the_hostile_files_are_made_from_is_good():
    layout, note = describe(BytesReader(GOOD))
    assert (layout.format, note) == ("torch", None)
    assert [s.tensor.shape for s in layout.segments if s.tensor] == [(6,)]


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile(name):
    data = HOSTILE[name]
    layout, warning = describe(BytesReader(data))
    assert layout.format == "opaque"
    assert warning.startswith("looks like torch but ")
    with pytest.raises((FormatError, LimitExceededError)):
        TorchLegacyFormat().layout(BytesReader(data))


def test_another_number_is_refused():
    with pytest.raises(FormatError, match="torch's number"):
        TorchLegacyFormat().layout(BytesReader(legacy(tensor(), magic=2**70)))


@pytest.mark.parametrize("broken", [b"", b"\xff", b"."])
def test_a_file_that_would_do_harm_is_refused(broken):
    """Also where the file is broken after that."""
    value = {"evil": Made(Named("os.system"), "true"), "w": tensor()}
    data = legacy(value) if not broken else legacy(value)[:150] + broken
    layout, warning = describe(BytesReader(data))
    assert layout.format == "opaque"
    assert warning.startswith("looks like torch but would call os.system when loaded")
    dangers = {one.what: one.danger for one in TorchLegacyFormat().findings(BytesReader(data))}
    assert dangers["calls os.system"] == "dangerous"


def test_findings():
    value = {"w": tensor(), "net": Made(Named("my.Net"))}
    found = TorchLegacyFormat().findings(BytesReader(legacy(value)))
    assert {one.what: one.danger for one in found} == {
        "calls torch._utils._rebuild_tensor_v2": "allowed",
        "calls my.Net": "unknown",
        "imports torch.FloatStorage": "allowed",
    }
    archive = tar("pickle", "tensors", "storages")
    (one,) = TorchLegacyFormat().findings(BytesReader(archive))
    assert one.danger == "dangerous"
    with pytest.raises(FormatError):
        TorchLegacyFormat().findings(BytesReader(GOOD[:60]))


def tar(*names):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as made:
        for name in names:
            info = tarfile.TarInfo(name)
            info.size = 700
            made.addfile(info, io.BytesIO(bytes(700)))
    return file.getvalue()


def test_tar_archives_are_refused():
    data = tar("sys_info", "pickle", "tensors", "storages")
    layout, warning = describe(BytesReader(data))
    assert layout.format == "opaque"
    assert warning.startswith("looks like torch but it is an archive of a PyTorch before 0.2")
    with pytest.raises(UnsafeInputError):
        TorchLegacyFormat().layout(BytesReader(data))
    for other in (tar("pickle", "tensors"), tar(*map(str, range(30)), "storages"), data[:300]):
        assert not TorchLegacyFormat().sniff(other[:4096], BytesReader(other))


def test_tar_archives_as_they_were_before_posix_are_refused_too():
    """Without `ustar` in their headers, which no reader asks for."""
    data = bytearray(tar("pickle", "tensors", "storages"))
    for start in range(0, 3 * 1536, 1536):
        data[start + 257 : start + 512] = bytes(255)
        data[start + 148 : start + 156] = b" " * 8
        data[start + 148 : start + 156] = b"%06o\0 " % sum(data[start : start + 512])
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        assert archive.getnames() == ["pickle", "tensors", "storages"]
    _, warning = describe(BytesReader(data))
    assert warning.startswith("looks like torch but it is an archive of a PyTorch before 0.2")


def both(start, end):
    """An archive whose first header starts a pickle in which the rest of the archive is a text."""
    rest = tar("storages", "tensors", "pickle")
    size = 512 + len(rest) - len(start) - 5
    block = bytearray((start + b"T" + struct.pack("<i", size)).ljust(512, b"\0"))
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block) + rest + end


def test_pickles_that_are_archives_too_are_refused():
    """PyTorch takes them for archives, whose pickles nobody has looked at."""
    started = pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(1001, 2) + b"\x80\2"
    torch_too = both(started, b"." + pickle.dumps({}, 2) + pickle.dumps([], 2))
    plain = both(b"(lp0\n", b"0.")
    for data in (torch_too, plain):
        with tarfile.open(fileobj=io.BytesIO(data)) as archive:
            assert archive.getnames()[1:] == ["storages", "tensors", "pickle"]
        assert describe(BytesReader(data))[0].format == "opaque"
        assert find_hazards(BytesReader(data)).verdict == "dangerous"


def test_names_of_archives_in_their_extensions():
    """A name that is said in a header before, and one with the current folder before it."""
    data = tar("./pickle", "tensors", "storages")
    assert find_hazards(BytesReader(data)).verdict == "dangerous"
    named = tar("sys_info", "x", "tensors", "storages").replace(b"x" + bytes(99), b"y" + bytes(99))
    assert find_hazards(BytesReader(named)).verdict == "opaque"
    long = io.BytesIO()
    with tarfile.open(fileobj=long, mode="w", format=tarfile.PAX_FORMAT) as made:
        for name in ("pickle", "tensors", "storages"):
            info = tarfile.TarInfo("other")
            info.pax_headers = {"path": name}
            made.addfile(info)
    assert find_hazards(BytesReader(long.getvalue())).verdict == "dangerous"


def test_other_files_are_not_claimed():
    for other in (pickle.dumps(0x1950A86A20F9469CFC6D, 2), pickle.dumps([1], 2), b"", GOOD[1:]):
        assert not TorchLegacyFormat().sniff(other[:4096], BytesReader(other))


@given(st.integers(0, len(GOOD) - 1), st.integers(0, 255))
def test_damaged_files_raise_only_errors_of_mstore(place, byte):
    for data in (GOOD[:place], GOOD[:place] + bytes([byte]) + GOOD[place + 1 :]):
        with suppress(FormatError, LimitExceededError, UnsafeInputError):
            assert TorchLegacyFormat().layout(BytesReader(data)).size == len(data)


def test_tensor_data_is_never_read():
    data = legacy(tensor((1 << 20,), count=1 << 20), [bytes(4 << 20)])

    reader = Watched(data)
    TorchLegacyFormat().layout(reader)
    assert reader.read_bytes < 50_000
