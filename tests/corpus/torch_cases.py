"""Files of `torch.save`: what people save, and what its pickles can say of tensors."""

import io
import shutil
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cases import Array, Arrays, Case, flat, numbers
from torch import nn

from mstore.numpy_dtypes import ML_DTYPES

GOLDEN = Path(__file__).parents[1] / "formats" / "torch_files"
FLOATS = ["float16", "bfloat16", "float32", "float64", "complex32", "complex64", "complex128"]
EIGHTS = ["float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz", "float8_e8m0fnu"]
INTEGERS = ["bool", "uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64"]

Maker = Callable[[], object]
WRITERS: list[Callable[[Path], Iterator[Case]]] = []


def as_numpy(value: object) -> object:
    """A tensor as the array of its elements, bit for bit; anything else as it is."""
    if isinstance(value, nn.Module):
        return {**value._parameters, **value._buffers, **value._modules}
    if not isinstance(value, torch.Tensor):
        return value
    if value.is_sparse:
        return {"indices": as_numpy(value._indices()), "values": as_numpy(value._values())}
    if value.is_quantized:
        return value.int_repr().numpy()
    if value.is_meta or value.is_conj():
        return None
    if value.dtype == torch.complex32:
        return as_numpy(torch.view_as_real(value.contiguous()))
    name = str(value.dtype).removeprefix("torch.")
    plain = value.detach().resolve_conj().resolve_neg().contiguous()
    if plain.dim() == 0:
        plain = plain.reshape(1)
    raw: Array = plain.view(torch.uint8).numpy() if plain.numel() else np.empty(0, np.uint8)
    dtype = ML_DTYPES.get(name) or np.dtype(name)
    return np.ndarray(tuple(value.shape), dtype, buffer=np.ascontiguousarray(raw).data)


def load(path: Path) -> Arrays:
    """What torch loads, by path in the structure."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return flat(torch.load(path, weights_only=False), as_numpy)


def tensor(*shape: int, dtype: str = "float32", seed: int = 0) -> torch.Tensor:
    """Random bits as elements of a type of torch."""
    kind = getattr(torch, dtype)
    raw = numbers(*shape[:-1], shape[-1] * kind.itemsize, dtype=np.uint8, seed=seed)
    raw = raw & 1 if dtype == "bool" else raw
    return torch.from_numpy(raw.copy()).view(kind)


def write(folder: Path) -> Iterator[Case]:
    """All of them."""
    torch.manual_seed(1)
    for made, suffix in (*plain(), *checkpoints(), *views(), *others()):
        path = folder / f"{made.__name__}{suffix}"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.save(made(), path)
        yield Case(path.name, "torch", partial(load, path))
    for dtype in (*FLOATS, *EIGHTS, *INTEGERS):
        path = folder / f"dtype_{dtype}.pt"
        value = {"w": tensor(3, 8, dtype=dtype), "t": tensor(4, 6, dtype=dtype).t()}
        torch.save(value, path)
        yield Case(path.name, "torch", partial(load, path))
    for protocol in (2, 3, 4, 5):
        path = folder / f"protocol_{protocol}.pth"
        torch.save({"w": tensor(2, 3), "more": [tensor(4)] * 2}, path, pickle_protocol=protocol)
        yield Case(path.name, "torch", partial(load, path))
    yield from by_other_ways(folder)


def plain() -> list[tuple[Maker, str]]:
    """Weights as they are usually saved."""

    def state_dict() -> object:
        return nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 5)
        ).state_dict()

    def transformer() -> object:
        return nn.TransformerEncoderLayer(16, 2, 32, batch_first=True).state_dict()

    def recurrent() -> object:
        return nn.LSTM(4, 6, num_layers=2, bidirectional=True).state_dict()

    def whole_module() -> object:
        return nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Embedding(5, 3))

    def one_tensor() -> object:
        return tensor(5, 2)

    def one_parameter() -> object:
        return nn.Parameter(tensor(5))

    def list_of_tensors() -> object:
        return [tensor(2), (tensor(1), [tensor(3)]), {"x": tensor(4)}]

    def none_at_all() -> object:
        return {"epoch": 3, "names": ["a", "b"], "loss": 0.5}

    return [
        *[(state_dict, ".bin"), (transformer, ".bin"), (recurrent, ".pth"), (whole_module, ".pt")],
        *[(one_tensor, ".pt"), (one_parameter, ".pt"), (list_of_tensors, ".pt")],
        *[(none_at_all, ".pt")],
    ]


def _trained(optimizer: str, **options: Any) -> tuple[nn.Module, torch.optim.Optimizer]:
    """A small model after three steps."""
    model = nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.Linear(6, 2))
    chosen = getattr(torch.optim, optimizer)(model.parameters(), lr=0.01, **options)

    def closure() -> torch.Tensor:
        chosen.zero_grad()
        loss = model(torch.ones(3, 4)).square().mean()
        loss.backward()
        return loss

    for _ in range(3):
        chosen.step(closure)
    return model, chosen


def checkpoints() -> list[tuple[Maker, str]]:
    """Training states, in the shapes that the usual trainers give them."""

    def training() -> object:
        model, optimizer = _trained("Adam", amsgrad=True)
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10)
        return {
            "epoch": 3,
            "model": model.state_dict(),
            "optimizer": optimizer.state_dict(),
            "scheduler": scheduler.state_dict(),
            "rng": torch.get_rng_state(),
            "history": [0.5, 0.25],
        }

    def momentum() -> object:
        return _trained("SGD", momentum=0.9, nesterov=True)[1].state_dict()

    def quasi_newton() -> object:
        return _trained("LBFGS")[1].state_dict()

    def factored() -> object:
        return _trained("Adafactor")[1].state_dict()

    def lightning() -> object:
        model, optimizer = _trained("AdamW")
        return {
            "epoch": 1,
            "global_step": 30,
            "pytorch-lightning_version": "2.5.0",
            "state_dict": model.state_dict(),
            "loops": {"fit_loop": {"state_dict": {}, "epoch_progress": {"total": {"ready": 2}}}},
            "callbacks": {"ModelCheckpoint{'monitor': 'loss'}": {"best_model_score": tensor(1)}},
            "optimizer_states": [optimizer.state_dict()],
            "lr_schedulers": [],
            "hparams_name": "kwargs",
            "hyper_parameters": OrderedDict(width=6, rate=0.01),
        }

    def trainer_rng_state() -> object:
        random = np.random.RandomState(3)
        return {
            "python": (3, tuple(range(625)), None),
            "numpy": random.get_state(),
            "cpu": torch.get_rng_state(),
        }

    def ema() -> object:
        model, _ = _trained("RMSprop", momentum=0.5, centered=True)
        return torch.optim.swa_utils.AveragedModel(model).state_dict()

    names = (training, momentum, quasi_newton, factored, lightning, trainer_rng_state, ema)
    return [(made, ".ckpt" if made is lightning else ".pt") for made in names]


def views() -> list[tuple[Maker, str]]:
    """Tensors that are part of a storage, or share one."""

    def tied() -> object:
        model = nn.ModuleDict({"embed": nn.Embedding(6, 4), "head": nn.Linear(4, 6, bias=False)})
        model["head"].weight = model["embed"].weight
        return model.state_dict()

    def slices() -> object:
        whole = tensor(6, 8)
        return {"row": whole[2], "column": whole[:, 3], "block": whole[1:5:2, 2:7:3], "all": whole}

    def only_a_part() -> object:
        return {"part": tensor(6, 8)[1:4, ::2], "tail": tensor(30)[7:]}

    def turned() -> object:
        return {
            "t": tensor(3, 5).t(),
            "p": tensor(2, 3, 4).permute(1, 2, 0),
            "v": tensor(6).view(3, 2),
        }

    def channels_last() -> object:
        return {"w": tensor(2, 3, 4, 5).to(memory_format=torch.channels_last)}

    def expanded() -> object:
        return {"e": tensor(1, 4).expand(5, 4), "one": tensor(1).expand(3, 2)}

    def overlapping() -> object:
        base = tensor(10)
        return {"windows": base.unfold(0, 4, 2), "diagonal": tensor(4, 4).diagonal()}

    def empty_and_single() -> object:
        return {
            "none": torch.zeros(0, 3),
            "i": torch.tensor(7),
            "f": torch.tensor(2.5),
            "z": torch.zeros(2, 0),
        }

    names = (tied, slices, only_a_part, turned, channels_last, expanded, overlapping)
    return [(made, ".pt") for made in (*names, empty_and_single)]


def others() -> list[tuple[Maker, str]]:
    """Tensors with more to them."""

    def attributes() -> object:
        parameter = nn.Parameter(tensor(2))
        parameter.extra = tensor(3)
        return {"p": parameter, "frozen": nn.Parameter(tensor(2), requires_grad=False)}

    def buffers() -> object:
        return {"b": nn.Buffer(tensor(3)), "after": "text"}

    def keys() -> object:
        return {
            1: tensor(1),
            None: tensor(2),
            ("a", 1): tensor(3),
            "a": {"b": tensor(4)},
            "a.b": tensor(5),
        }

    def sparse() -> object:
        return {"s": torch.eye(3).to_sparse()}

    def arrays_of_numpy() -> object:
        return {"t": tensor(4), "n": numbers(3, 2, dtype=np.float64)}

    return [(made, ".pt") for made in (attributes, buffers, keys, sparse, arrays_of_numpy)]


def by_other_ways(folder: Path) -> Iterator[Case]:
    """Files that other calls of torch write, or other machines."""
    for name in ("big-endian.pt", "classes.pt"):
        shutil.copy(GOLDEN / name, folder / name)
        yield Case(name, "torch", partial(load, folder / name))
    buffer = io.BytesIO()
    torch.save({"w": tensor(4)}, buffer)  # to memory, so that the archive is called "archive"
    (folder / "archive.pt").write_bytes(buffer.getvalue())
    yield Case("archive.pt", "torch", partial(load, folder / "archive.pt"))
    legacy = folder / "before_1.6.pt"
    torch.save({"w": tensor(4)}, legacy, _use_new_zipfile_serialization=False)
    yield Case(legacy.name, "torch", partial(load, legacy))
    script = folder / "script.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.trace(nn.Linear(2, 1), torch.zeros(1, 2)), script)
    yield Case(script.name, "opaque", dict, told="holds TorchScript code")
    yield from exported(folder)
    left = folder / "not_understood.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quantised = torch.quantize_per_tensor(torch.rand(4), 0.1, 0, torch.qint8)
        torch.save(
            {"plain": tensor(2), "q": quantised, "h": tensor(4, dtype="complex64").conj()}, left
        )
    yield Case(left.name, "torch", partial(load, left), told="'h' is the conjugate or the negative")


def exported(folder: Path) -> Iterator[Case]:
    """Archives of torch.export: weights of all kinds, sizes that are known later, and objects."""
    base = tensor(6, 8)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 5))
    tied = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    tied[2].weight = tied[0].weight
    turned = nn.Linear(6, 3).bfloat16()
    turned.weight = nn.Parameter(torch.randn(6, 3, dtype=torch.bfloat16).t())
    turned.bias = nn.Parameter(torch.randn(9).bfloat16()[2:8:2])
    some = torch.export.Dim("some", min=2, max=64)
    programs = {
        "exported": (model, torch.ones(2, 3, 4, 4), None),
        "exported_tied": (tied, base[:, ::2], None),
        "exported_views": (turned, torch.ones(4, 6).bfloat16(), {0: some}),
    }
    for name, (module, inputs, dynamic) in programs.items():
        path = folder / f"{name}.pt2"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.export.export(
                module.eval(), (inputs,), dynamic_shapes=dynamic and [dynamic]
            )
            torch.export.save(program, path)
        yield Case(path.name, "torch-export", partial(load_exported, path))


def load_exported(path: Path) -> Arrays:
    """What torch loads of an archive of torch.export, by the names that its program has for it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.load(path)
    arguments, _ = program.example_inputs
    inputs = {f"data/sample_inputs/model.pt/0.{n}": one for n, one in enumerate(arguments)}
    everything = {**program.state_dict, **program.constants, **inputs}
    return {
        name: array
        for name, one in everything.items()
        for array in flat({name: one}, as_numpy).values()
    }
