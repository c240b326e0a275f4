"""Files of torch.save against what torch itself loads; skipped where torch is not installed."""

import warnings
from pathlib import Path

import numpy as np
import pytest

from mstore.formats.base import BytesReader
from mstore.formats.detect import describe

torch = pytest.importorskip("torch")
GOLDEN = Path(__file__).parent / "torch_files"


def flat(value, path=()):
    """Every tensor of nested containers by its keys joined with dots."""
    if isinstance(value, torch.Tensor):
        return {".".join(path): value}
    if not isinstance(value, dict | list | tuple):
        return {}
    pairs = value.items() if isinstance(value, dict) else enumerate(value)
    return {
        name: tensor
        for key, inner in pairs
        for name, tensor in flat(inner, (*path, str(key))).items()
    }


def found_in(data):
    layout, _ = describe(BytesReader(data))
    return {
        s.tensor.name: (s.tensor, data[s.offset : s.offset + s.length])
        for s in layout.segments
        if s.tensor is not None
    }


def check(path, *, complete=True):
    """Every tensor of its own storage is found, with the name, shape and bytes that torch loads."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loaded = flat(torch.load(path, weights_only=False))
    found = found_in(path.read_bytes())
    if complete:
        assert set(found) == set(loaded)
    for name in set(found) & set(loaded):
        tensor, raw = found[name]
        expected = loaded[name].detach()
        assert tensor.shape == tuple(expected.shape)
        if tensor.order == "F":
            expected = expected.T
        expected = expected.contiguous().reshape(-1)
        assert raw == (expected.view(torch.uint8).numpy().tobytes() if raw else b"")


@pytest.mark.parametrize("name", ["state_dict", "training", "empty", "alone"])
def test_golden(name):
    check(GOLDEN / f"{name}.pt")


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("kind", ["SGD", "AdamW", "Adafactor", "LBFGS"])
def test_checkpoints(tmp_path, kind, protocol):
    torch.manual_seed(1)
    model = torch.nn.Sequential(
        torch.nn.Embedding(5, 4), torch.nn.LSTM(4, 3, batch_first=True, bidirectional=True)
    )
    options = {"momentum": 0.9} if kind == "SGD" else {}
    optimizer = getattr(torch.optim, kind)(model.parameters(), lr=0.1, **options)

    def closure():
        optimizer.zero_grad()
        loss = model(torch.tensor([[0, 1, 2]]))[0].square().mean()
        loss.backward()
        return loss

    for _ in range(2):
        optimizer.step(closure)
    value = {"state_dict": model.state_dict(), "optimizer_states": [optimizer.state_dict()]}
    path = tmp_path / "checkpoint.pt"
    torch.save(value, path, pickle_protocol=protocol)
    check(path)


def test_random_views(tmp_path):
    """Views that cover a storage are found as they are, all others only by name and storage."""
    rng = np.random.default_rng(4)
    for case in range(30):
        value = {}
        for name in "abcd":
            base = torch.from_numpy(rng.normal(size=rng.integers(0, 4, rng.integers(0, 4))))
            view = base.permute(*rng.permutation(base.dim()).tolist()) if base.dim() else base
            if view.dim() and rng.random() < 0.4:
                view = view[rng.integers(0, 2) :]
            value[name] = view
        path = tmp_path / f"{case}.pt"
        torch.save(value, path)
        found = found_in(path.read_bytes())
        assert set(found) == set(value)
        for name, (tensor, raw) in found.items():
            expected = value[name]
            stored = bytes(expected.untyped_storage())
            assert raw == stored
            if tensor.shape == tuple(expected.shape) and raw:
                read = np.frombuffer(raw).reshape(tensor.shape, order=tensor.order)
                assert np.array_equal(read, expected.numpy())
            elif len(raw) == expected.numel() * 8 and tensor.shape != tuple(expected.shape):
                assert not expected.is_contiguous()
                assert not expected.permute(*reversed(range(expected.dim()))).is_contiguous()


def test_archive_of_code_is_left_alone(tmp_path):
    path = tmp_path / "script.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.trace(torch.nn.Linear(2, 1), torch.zeros(1, 2)), path)
    layout, warning = describe(BytesReader(path.read_bytes()))
    assert (layout.format, warning) == ("opaque", None)


def test_files_from_before_zip_are_opaque(tmp_path):
    path = tmp_path / "legacy.pt"
    torch.save({"w": torch.zeros(3)}, path, _use_new_zipfile_serialization=False)
    assert describe(BytesReader(path.read_bytes()))[0].format == "opaque"
