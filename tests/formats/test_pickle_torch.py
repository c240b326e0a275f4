"""Tensors of torch in plain pickles: they are what torch loads, and what is in them is judged."""

import io
import pickle
import struct

import numpy as np
import pytest
import torch
from pickled import by_pickle_and_joblib
from watched_files import Watched

from mstore.errors import UnsafeInputError
from mstore.formats import pickle_torch
from mstore.formats.base import BytesReader
from mstore.formats.detect import describe
from mstore.formats.hazards import find_hazards
from mstore.formats.pickles import PickleFormat
from mstore.layout import Recoded, Strided

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")

LOADS = b"ctorch.storage\n_load_from_bytes\n"


def bits(tensor):
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


@pytest.fixture
def check(described):
    """Fails unless the tensors of a pickle are these; gives its layout."""

    def check(data, expected, note=None):
        layout, found = described(data, expected, note)
        for name, tensor in expected.items():
            assert found[name].shape == tuple(tensor.shape)
            assert np.ascontiguousarray(found[name]).tobytes() == bits(torch.as_tensor(tensor))
        return layout

    return check


@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_state_dicts(check, protocol):
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    for data in by_pickle_and_joblib(model.state_dict(), protocol):
        layout = check(data, model.state_dict())
        assert sum(s.tensor is not None for s in layout.segments) == 7
        hazards = find_hazards(BytesReader(data))
        assert (hazards.verdict, hazards.unsafe) == ("ok", False)


def test_modules_and_checkpoints(check):
    """Names are those of files of torch, also of arrays beside the tensors."""
    model = torch.nn.Sequential(torch.nn.Linear(2, 3))
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.randn(4, 2)).sum().backward()
    optimizer.step()
    value = {"model": model, "optimizer": optimizer.state_dict(), "scores": np.arange(3.0)}
    expected = {f"model.{name}": one for name, one in model.state_dict().items()}
    for number, state in optimizer.state_dict()["state"].items():
        expected |= {f"optimizer.state.{number}.{key}": one for key, one in state.items()}
    for data in by_pickle_and_joblib(value):
        check(data, expected | {"scores": np.arange(3.0)})


def test_types_and_views(check):
    base = torch.randn(4, 6)
    value = {
        "half": torch.randn(3).half(),
        "brain": torch.randn(3).bfloat16(),
        "small": torch.randn(3).to(torch.float8_e4m3fn),
        "short": torch.arange(3).to(torch.uint16),
        "complex": torch.randn(3, dtype=torch.complex64),
        "bool": torch.tensor([True, False]),
        "number": torch.tensor(3),
        "none": torch.zeros(0, 2),
        "turned": base.t(),
        "part": base[1:, ::2],
        "wide": torch.randn(2, 1).expand(2, 3),
        "parameter": torch.nn.Parameter(base),
    }
    for data in by_pickle_and_joblib(value):
        layout = check(data, value)
        named = {s.tensor.name: s.tensor for s in layout.segments if s.tensor and not s.hidden}
        assert named["turned"].order == "F"
        assert named["small"].dtype.name == "f8_e4m3"
        places = {view.tensor.name: view.place for view in layout.views}
        assert isinstance(places["part"], Strided)


def test_a_storage_by_itself(check):
    value = {"s": torch.arange(4.0).untyped_storage()}
    check(pickle.dumps(value), {"s": torch.arange(4.0).view(torch.uint8)})


def test_one_tensor_in_two_places(check):
    """Which pickle stores once."""
    tied = torch.randn(3)
    layout = check(pickle.dumps([tied, {"again": tied}]), {"0": tied, "1.again": tied})
    assert sum(s.tensor is not None for s in layout.segments) == 1


@pytest.mark.parametrize("long", [False, True])
@pytest.mark.parametrize("protocol", [0, 1, 2])
def test_older_protocols_write_bytes_as_text(check, monkeypatch, protocol, long):
    """All of which is read, or only the start."""
    if long:
        monkeypatch.setattr(pickle_torch, "_MAX_TEXT", 2000)
        monkeypatch.setattr(pickle_torch, "_HEAD", 1501)
    tied = torch.randn(500, 2)
    value = {
        "w": tied,
        "a": np.arange(3.0),
        "v": torch.arange(1000).to(torch.uint16),
        "again": tied,
        "turned": torch.randn(30, 20).t(),
        "number": torch.tensor(3),
        "bits": torch.arange(256, dtype=torch.uint8),
    }
    for saved, expected in ((value, value), (tied, {"": tied})):
        data = pickle.dumps(saved, protocol)
        layout = check(data, expected)
        assert all(isinstance(view.place, Recoded) for view in layout.views)
        assert find_hazards(BytesReader(data)).verdict == "ok"


def test_parts_of_what_is_written_as_text(check):
    value = {"w": torch.arange(6.0)[2:4], "v": torch.ones(2), "c": torch.ones(2) * 1j}
    value["c"] = value["c"].conj()
    note = (
        "2 of its tensors are not listed: 'w' is a part of what is written as text,"
        " 'c' is the conjugate or the negative of what is stored"
    )
    check(pickle.dumps(value, 2), {"v": torch.ones(2)}, note)


def test_long_text_is_not_read():
    """Of which hardly anything is read, and which is no reason to refuse a file."""
    data = pickle.dumps({"w": torch.ones(5_000_000)}, 2)
    assert len(data) > 16 << 20
    reader = Watched(data)
    layout, note = describe(reader)
    assert note is None
    assert [view.tensor.name for view in layout.views] == ["w"]
    assert reader.read_bytes < 200_000


def test_long_text_that_is_something_else(monkeypatch, check):
    """What is not seen may do harm, unless the start says all."""
    monkeypatch.setattr(pickle_torch, "_MAX_TEXT", 100)
    monkeypatch.setattr(pickle_torch, "_HEAD", 600)
    junk = pickle.dumps(b"x" * 5000, 4)
    for data in (outer(as_text(START + EVIL + bytes(5000))), outer(as_text(START + junk + EVIL))):
        found = find_hazards(BytesReader(data))
        assert found.verdict == "dangerous"
        with pytest.raises(UnsafeInputError):
            PickleFormat().layout(BytesReader(data))
    good = pickle.dumps({"w": torch.zeros(100)}, 2)
    longer = good.replace(struct.pack("<q", 100), struct.pack("<q", 99))
    note = (
        "1 of its tensors are not listed: 'w' is a file of torch of its own that is not understood"
    )
    check(longer, {}, note)


def test_elements_are_not_read():
    reader = Watched(pickle.dumps({"w": torch.zeros(1_000_000)}, 4))
    assert describe(reader)[1] is None
    assert reader.read_bytes < 100_000


def test_what_is_not_understood_stays_opaque(check):
    """A file inside that holds something else than one storage, or of another length."""
    good = pickle.dumps({"w": torch.arange(5.0), "v": torch.ones(3)}, 4)
    cut = good.replace(struct.pack("<q5f", 5, *range(5)), struct.pack("<q5f", 4, *range(5)))
    note = (
        "1 of its tensors are not listed: 'w' is a file of torch of its own that is not understood"
    )
    check(cut, {"v": torch.ones(3)}, note)
    assert find_hazards(BytesReader(cut)).verdict == "unknown"


def outer(content):
    return b"\x80\x02" + LOADS + content + b"\x85R."


def held(data):
    return b"B" + struct.pack("<I", len(data)) + data


def as_text(data):
    """As in protocol 2: a call that makes bytes of text."""
    text = data.decode("latin-1").encode()
    return b"c_codecs\nencode\nX" + struct.pack("<I", len(text)) + text + b"X\6\0\0\0latin1\x86R"


START = pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(1001, 2) + pickle.dumps({}, 2)
EVIL = b"\x80\x04cos\nsystem\n(S'true'\ntR."


@pytest.mark.parametrize(
    "data",
    [
        outer(held(START + EVIL)),
        outer(as_text(START + EVIL)),
        outer(held(START + outer(held(START + EVIL)))),
        # What is in text is elsewhere than in the file: other bytes lie at the same place there.
        outer(as_text(START + outer(held(START + EVIL)))),
        outer(as_text(START + outer(as_text(START + EVIL)))),
    ],
)
def test_harm_inside(data):
    found = find_hazards(BytesReader(data))
    assert [one.what for one in found.of("dangerous")] == ["calls os.system"]
    with pytest.raises(UnsafeInputError, match=r"would call os\.system when loaded"):
        PickleFormat().layout(BytesReader(data))


@pytest.mark.parametrize("most", [100_000, 100])
@pytest.mark.parametrize("write", [held, as_text])
def test_more_in_a_file_than_its_storage(check, monkeypatch, write, most):
    monkeypatch.setattr(pickle_torch, "_MAX_TEXT", most)
    monkeypatch.setattr(pickle_torch, "_HEAD", 400)
    stream = io.BytesIO()
    torch.save(torch.ones(200).untyped_storage(), stream, _use_new_zipfile_serialization=False)
    ones = stream.getvalue()
    check(outer(write(ones)), {"": torch.ones(200).view(torch.uint8)})
    note = (
        "1 of its tensors are not listed: it is a file of torch of its own that is not understood"
    )
    check(outer(write(ones + bytes(3000))), {}, note)


def test_harm_inside_of_files_of_torch():
    evil = outer(held(START + EVIL))
    legacy = START + evil + pickle.dumps([], 2)
    assert find_hazards(BytesReader(legacy)).verdict == "dangerous"


def test_very_many_texts_in_each_other():
    data = outer(held(START + EVIL))
    for _ in range(8):
        data = outer(as_text(START + data))
    found = find_hazards(BytesReader(data))
    assert found.verdict == "dangerous"
