"""Files of torch.save in a repository, against what torch itself loads of them."""

import argparse
import copyreg
import dataclasses
import random
from collections import OrderedDict, defaultdict, deque
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch_loaded import save_and_check

import mstore
from mstore.formats.base import BytesReader
from mstore.formats.detect import describe

pytestmark = [  # of what is new or old in torch itself
    pytest.mark.filterwarnings(f"ignore::{kind}")
    for kind in ("UserWarning", "DeprecationWarning", "FutureWarning")
]
GOLDEN = Path(__file__).parent / "torch_files"
DTYPES = [
    *["float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz", "float8_e8m0fnu"],
    *["float16", "bfloat16", "float32", "float64", "complex64", "complex128", "bool"],
    *["uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64"],
]


@pytest.fixture
def check(tmp_path, repo):
    """Saves a value, and compares each of its tensors with what torch loads."""
    return partial(save_and_check, repo, tmp_path / "saved.pt")


@pytest.mark.parametrize("name", ["state_dict", "training", "shared", "empty", "alone", "dtypes"])
def test_golden(name, check):
    value = torch.load(GOLDEN / f"{name}.pt", weights_only=False)
    packed = value.pop("float4_e2m1fn_x2", None) if name == "dtypes" else None
    assert (packed is not None) == (name == "dtypes")
    check(value)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("kind", ["SGD", "AdamW", "Adafactor", "LBFGS"])
def test_checkpoints(check, kind, protocol):
    """A full checkpoint: model, optimizer, scheduler, scaler and the states of generators."""
    torch.manual_seed(1)
    model = torch.nn.Sequential(
        torch.nn.Embedding(5, 4), torch.nn.LSTM(4, 3, batch_first=True, bidirectional=True)
    )
    options = {"momentum": 0.9} if kind == "SGD" else {}
    optimizer = getattr(torch.optim, kind)(model.parameters(), lr=0.1, **options)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 9)

    def closure():
        optimizer.zero_grad()
        loss = model(torch.tensor([[0, 1, 2]]))[0].square().mean()
        loss.backward()
        return loss

    for _ in range(2):
        optimizer.step(closure)
        scheduler.step()
    value = {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "scheduler": scheduler.state_dict(),
        "scaler": torch.amp.GradScaler("cpu").state_dict(),
        "generator": torch.Generator().get_state(),
        "rng": torch.get_rng_state(),
        "epoch": 2,
    }
    found = check(value, pickle_protocol=protocol)
    if kind == "AdamW":
        assert "optimizer.state.3.exp_avg" in found


@dataclasses.dataclass
class TrainingArguments:
    """In the shape of those of Hugging Face: plain values, and a few of torch's own."""

    output_dir: str = "out"
    learning_rate: float = 5e-5
    device: object = None
    dtype: object = None
    weights: object = None


def test_files_of_a_trainer(check):
    """In the shape of those of Hugging Face's Trainer: states, generators, its arguments."""
    states = random.Random(3).getstate()
    numpy_state = np.random.RandomState(4).get_state()
    check({"python": states, "numpy": numpy_state, "cpu": torch.get_rng_state(), "cuda": []})
    history = np.linspace(0, 1, 20)
    losses = {"losses": {"train": history.tolist(), "step": np.arange(4), "last": [0.5]}}
    found = check(
        losses, {"losses.train": torch.from_numpy(history), "losses.step": torch.arange(4)}
    )
    assert found["losses.train"].shape == (20,)
    check({"last_epoch": 3, "_step_count": 4, "_last_lr": [0.1], "lr_lambdas": [{}, None]})
    arguments = TrainingArguments(
        device=torch.device("cpu"), dtype=torch.bfloat16, weights=torch.ones(2)
    )
    assert set(check(arguments)) == {"weights"}
    assert set(check(TrainingArguments())) == set()


class AttributeDict(dict):
    """Lightning keeps hyper-parameters in one of its own."""


def test_a_file_of_lightning(check):
    """In the shape of Lightning's `.ckpt`."""
    model = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.BatchNorm2d(2))
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(1, 1, 5, 5)).sum().backward()
    optimizer.step()
    best = "ModelCheckpoint{'monitor': 'val_loss', 'mode': 'min'}"
    value = {
        "epoch": 1,
        "global_step": 20,
        "pytorch-lightning_version": "2.5.0",
        "state_dict": OrderedDict(
            (f"model.{key}", value) for key, value in model.state_dict().items()
        ),
        "loops": {"fit_loop": {"state_dict": {}, "epoch_progress": {"total": {"ready": 2}}}},
        "callbacks": {best: {"best_model_score": torch.tensor(0.25), "best_k_models": {}}},
        "optimizer_states": [optimizer.state_dict()],
        "lr_schedulers": [],
        "hparams_name": "hparams",
        "hyper_parameters": AttributeDict(lr=0.1, weights=torch.tensor([1.0, 2.0])),
    }
    found = check(value)
    assert "state_dict.model.1.running_mean" in found
    assert "optimizer_states.0.state.0.exp_avg_sq" in found
    assert f"callbacks.{best}.best_model_score" in found
    assert "hyper_parameters.weights" in found


class Net(torch.nn.Module):
    """One of all that a module may have in it."""

    def __init__(self):
        super().__init__()
        self.encoder = torch.nn.ModuleList([torch.nn.Linear(2, 3), torch.nn.Linear(3, 2)])
        self.scale = torch.nn.Parameter(torch.randn(2))
        self.register_buffer("steps", torch.tensor(7))
        self.table = torch.nn.ParameterDict({"a": torch.randn(1)})
        self.head = torch.nn.Linear(2, 2, bias=False)
        self.tied = torch.nn.Linear(2, 2, bias=False)
        self.tied.weight = self.head.weight
        self.again = self.encoder


def test_whole_modules(check):
    """Tensors are called as in the state dict, tied ones and modules used twice at each place."""
    found = check(Net())
    assert {"encoder.0.weight", "tied.weight", "head.weight", "again.1.bias"} <= set(found)
    check({"ema": Net(), "best": [Net().eval()]})
    check(torch.nn.Transformer(4, 2, 1, 1, 8))
    net = Net()
    net.mask = torch.ones(2, 2)
    net.register_buffer("scratch", torch.zeros(2), persistent=False)
    expected = {**net.state_dict(), "mask": net.mask, "scratch": net.scratch}
    check(net, expected)


def test_an_optimizer_as_a_whole(check):
    model = torch.nn.Linear(2, 1)
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(2)).backward()
    optimizer.step()
    one, two = model.parameters()
    expected = {
        f"state.{number}.{key}": value
        for number, state in enumerate(optimizer.state.values())
        for key, value in state.items()
    }
    expected |= {"state.0": one, "state.1": two}
    expected |= {"param_groups.0.params.0": one, "param_groups.0.params.1": two}
    check(optimizer, expected)


def test_plain_containers(check):
    one = torch.randn(2, 3)
    for value in (
        one,
        [one, one],
        (one, [one.t(), {"a": one[0]}]),
        torch.randn(3)[1:],
        deque([one, one[1]]),
        defaultdict(list, {"a": [one]}),
        argparse.Namespace(model=one, step=3),
        torch.nn.Parameter(one, requires_grad=False),
        [torch.nn.Parameter(one), torch.nn.Buffer(one)],
    ):
        check(value)


def test_tensors_with_attributes(check):
    parameter = torch.nn.Parameter(torch.randn(2))
    parameter.extra = torch.randn(1)
    marked = torch.randn(3)
    marked.note = {"inner": torch.randn(1)}
    check(
        [parameter, marked],
        {
            "0": parameter,
            "0.extra": parameter.extra,
            "1": marked,
            "1.note.inner": marked.note["inner"],
        },
    )


@pytest.mark.parametrize("dtype", DTYPES)
def test_views_of_all_types(check, dtype):
    numbers = torch.arange(60).reshape(3, 4, 5) % 2 if dtype == "bool" else torch.rand(3, 4, 5)
    base = numbers.to(getattr(torch, dtype))
    value = {
        "base": base,
        "tied": base,
        "detached": base.detach(),
        "row": base[1],
        "turned": base.permute(2, 0, 1),
        "part": base[::2, 1:3, ::3],
        "one": base[2, 3, 4],
        "diagonal": base.diagonal(0, 0, 1),
        "wide": base[:, :1].expand(3, 7, 5),
        "windows": base.unfold(2, 3, 1),
        "none": base[1:1],
        "flat": base.view(-1),
        "alone": base.clone()[1:, 2],
        "scalar": base[0, 0, 0].clone(),
        "empty": base.new_empty(0, 3),
    }
    check(value)
    check(value["part"])


def test_views_in_another_type(check):
    """Only types without a storage class of their own may view the same bytes as others."""
    base = torch.randint(0, 60000, (4, 6)).to(torch.uint16)
    check(
        {"base": base, "halves": base.view(torch.float8_e5m2), "wide": base.view(torch.uint32)[1:]}
    )


def test_random_views(check):
    rng = np.random.default_rng(4)
    value = {}
    for case in range(120):
        base = torch.from_numpy(rng.normal(size=rng.integers(0, 4, rng.integers(0, 4))))
        view = base.permute(*rng.permutation(base.dim()).tolist()) if base.dim() else base
        if view.dim() and rng.random() < 0.4:
            view = view[rng.integers(0, 2) :: rng.integers(1, 3)]
        value[str(case)] = view
        if rng.random() < 0.3:
            value[f"again {case}"] = base.reshape(-1)
    check(value)


def test_quantised_tensors(check):
    plain = torch.randn(3, 4)
    for kind in ("qint8", "quint8", "qint32"):
        tensor = torch.quantize_per_tensor(plain, 0.1, 2, getattr(torch, kind))
        columns = torch.quantize_per_channel(
            plain, torch.rand(4).double() + 0.1, torch.zeros(4, dtype=torch.long), 1, torch.qint8
        )
        value = {"w": tensor, "row": tensor[1], "columns": columns}
        expected = {
            "w": tensor.int_repr(),
            "row": tensor[1].int_repr(),
            "columns": columns.int_repr(),
            "columns.scales": columns.q_per_channel_scales(),
            "columns.zero_points": columns.q_per_channel_zero_points(),
        }
        check(value, expected)


def test_sparse_and_nested_tensors(check):
    dense = torch.tensor([[0.0, 2.0], [3.0, 0.0]])
    coo, rows, columns = dense.to_sparse(), dense.to_sparse_csr(), dense.to_sparse_csc()
    strided = torch.nested.nested_tensor([torch.ones(2), torch.zeros(3)])
    jagged = torch.nested.nested_tensor([torch.ones(2), torch.zeros(3)], layout=torch.jagged)
    expected = {
        "coo.indices": coo._indices(),
        "coo.values": coo._values(),
        "rows.crow_indices": rows.crow_indices(),
        "rows.col_indices": rows.col_indices(),
        "rows.values": rows.values(),
        "columns.ccol_indices": columns.ccol_indices(),
        "columns.row_indices": columns.row_indices(),
        "columns.values": columns.values(),
        "blocks.crow_indices": torch.tensor([0, 1]),
        "blocks.col_indices": torch.tensor([0]),
        "blocks.values": dense[None],
        "strided.values": strided.values(),
        "strided.sizes": strided._nested_tensor_size(),
        "strided.strides": strided._nested_tensor_strides(),
        "strided.storage_offsets": strided._nested_tensor_storage_offsets(),
        "jagged.values": jagged.values(),
        "jagged.offsets": jagged.offsets(),
        **{f"jagged._metadata_cache.{key}": size for key, size in jagged._metadata_cache.items()},
    }
    value = {"coo": coo, "rows": rows, "columns": columns, "blocks": dense.to_sparse_bsr((2, 2))}
    check({**value, "strided": strided, "jagged": jagged}, expected)


class Halves(torch.Tensor):
    """A tensor that has none of its own, as a distributed or quantised one has not."""

    @staticmethod
    def __new__(cls, left, right):
        return torch.Tensor._make_wrapper_subclass(cls, (left.numel() + right.numel(),))

    def __init__(self, left, right):
        self.left, self.right = left, right

    def __tensor_flatten__(self):
        return ["left", "right"], None

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        return function(*args, **(kwargs or {}))


def test_wrappers_of_tensors(check):
    left, right = torch.randn(2), torch.randn(3)
    check({"w": Halves(left, right)}, {"w.left": left, "w.right": right})


def test_what_has_no_data(check):
    """Of tensors of the meta device there are only the shapes; there is nothing to list."""
    value = {"w": torch.ones(2), "meta": torch.zeros(2, 2, device="meta"), "size": torch.Size([2])}
    check(value, {"w": value["w"]})


@pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental")
@pytest.mark.parametrize("zipped", [True, False])
def test_types_that_others_stand_for(tmp_path, zipped):
    """Halves of complex numbers are along one more axis; bits are bytes or words."""
    path = tmp_path / "saved.pt"
    pairs = torch.arange(24, dtype=torch.float16).reshape(3, 4, 2)
    half = torch.view_as_complex(pairs)
    value = {"all": half, "turned": half.t(), "part": half[1:, ::2], "one": half[2, 3]}
    words = torch.arange(6, dtype=torch.int16)
    value |= {
        "bits16": words.view(torch.bits16),
        "bits8": words.view(torch.uint8).view(torch.bits8),
    }
    torch.save(value, path, _use_new_zipfile_serialization=zipped)
    repo = mstore.init(tmp_path / "repository", author="Ada")
    repo.commit(path, "first")
    tensors = repo["main"].files["saved.pt"].tensors
    for name in ("all", "turned", "part", "one"):
        expected = torch.view_as_real(value[name]).numpy()
        np.testing.assert_array_equal(tensors[name].numpy(), expected)
        assert (tensors[name].kind, tensors[name].dtype.name) == ("complex32", "float16")
    np.testing.assert_array_equal(tensors["bits16"].numpy(), words.numpy().view(np.uint16))
    np.testing.assert_array_equal(tensors["bits8"].numpy(), words.numpy().view(np.uint8))
    assert [tensors[name].kind for name in ("bits16", "bits8")] == ["bits16", "bits8"]


def test_conjugate_and_negative_tensors_are_left_out(tmp_path):
    path = tmp_path / "saved.pt"
    one, two = torch.randn(2, 3, dtype=torch.complex64)
    negative = torch._neg_view(torch.ones(2))
    torch.save({"w": one.conj(), "n": negative, "half": two.chalf().conj()}, path)
    layout, note = describe(BytesReader(path.read_bytes()))
    assert note.startswith("3 of its tensors are not listed: 'w' is the conjugate or the negative")
    assert [s.tensor.name for s in layout.segments if s.tensor] == [
        "storage:w",
        "storage:n",
        "storage:half",
    ]
    assert not layout.views


def test_archives_of_code_are_refused(tmp_path):
    path = tmp_path / "script.pt"
    torch.jit.save(torch.jit.trace(torch.nn.Linear(2, 1), torch.zeros(1, 2)), path)
    layout, warning = describe(BytesReader(path.read_bytes()))
    assert layout.format == "opaque"
    assert warning == (
        "looks like torch but it holds TorchScript code, which loading it runs; "
        "stored as opaque bytes"
    )
    path = tmp_path / "package.pt"
    with torch.package.PackageExporter(path) as package:
        package.save_source_string("code", "print('ran')")
        package.save_pickle("model", "w.pkl", torch.ones(2))
    layout, warning = describe(BytesReader(path.read_bytes()))
    assert layout.format == "opaque"
    assert "but it holds Python code of torch.package, which loading it runs" in warning
    # A module of torch.fx is made anew from the code that is kept beside its attributes.
    torch.save(torch.fx.symbolic_trace(torch.nn.Linear(2, 2)), path)
    _, warning = describe(BytesReader(path.read_bytes()))
    assert "but would call torch.fx.graph_module.reduce_graph_module when loaded" in warning


def test_a_module_of_slots(check):
    class_ = type("Slotted", (), {"__slots__": ("w",), "__module__": __name__})
    assert copyreg  # the reducer of objects with slots is registered there
    globals()["Slotted"] = class_
    value = class_()
    value.w = torch.ones(3)
    check({"a": value}, {"a.w": value.w})
