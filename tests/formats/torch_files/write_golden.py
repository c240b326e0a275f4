"""Write the files of torch.save beside this script that are not there yet.

    python tests/formats/torch_files/write_golden.py

Needs PyTorch and nothing of mstore. Existing files are never written again. Beside each `.pt` lies
a `.json` of the tensors that a parser has to find: name, type as numpy calls it, shape, and the
bytes, as they are stored or, of a view, in row-major order. What they are is said here by hand, as
tensors that torch itself made.
"""

import json
import sys
import tempfile
from collections import OrderedDict
from pathlib import Path

import torch

HERE = Path(__file__).parent
FLOATS = ["float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz", "float8_e8m0fnu"]
FLOATS += ["float16", "bfloat16", "float32", "float64", "complex64", "complex128"]
INTEGERS = ["bool", "uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64"]


def numbers(*shape, dtype=torch.float32):
    return torch.randn(*shape, dtype=torch.float64).to(dtype)


def flat(value, path=()):
    """Every tensor of nested containers by its keys joined with dots."""
    if isinstance(value, torch.Tensor):
        return {".".join(path): value}
    pairs = value.items() if isinstance(value, dict) else enumerate(value)
    return {
        name: tensor
        for key, inner in pairs
        if isinstance(inner, dict | list | tuple | torch.Tensor)
        for name, tensor in flat(inner, (*path, str(key))).items()
    }


class View:
    """A tensor that is to be found as a view of a storage that it does not have for itself."""

    def __init__(self, tensor):
        self.tensor = tensor


class Quantised:
    """A tensor whose numbers stand for others."""

    def __init__(self, tensor):
        self.tensor = tensor


def state_dict():
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    value = model.state_dict()
    return value, flat(value)


def training():
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 1))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 2)
    for _ in range(3):
        optimizer.zero_grad()
        model(numbers(5, 3)).square().mean().backward()
        optimizer.step()
        scheduler.step()
    value = {
        "epoch": 3,
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "scheduler": scheduler.state_dict(),
        "history": [0.5, 0.25, {"best": True, "note": None}],
    }
    return value, flat(value)


def shared():
    tied = numbers(3, 2)
    model = torch.nn.Linear(2, 2)
    value = {"embedding": tied, "head": tied, "again": tied.view(6), "parameter": model.weight}
    return value, {
        "embedding": tied,
        "head": View(tied),
        "again": View(tied.view(6)),
        "parameter": model.weight.detach(),
    }


def views():
    whole, part, turned = numbers(4, 3), numbers(4, 3), numbers(2, 3)
    complex_one = numbers(2, dtype=torch.complex64)
    value = {
        "row": whole[1],
        "whole": whole,
        "part": part[1:3, ::2],
        "turned": turned.t(),
        "expanded": numbers(1, 2).expand(5, 2),
        "conjugate": torch.conj(complex_one),
    }
    return value, {
        "row": View(whole[1]),
        "whole": whole,
        "part": View(part[1:3, ::2]),
        "turned": turned.t(),
        "expanded": View(value["expanded"]),
    }


def dtypes():
    value = {name: numbers(3, 2).to(getattr(torch, name)) for name in FLOATS}
    for name in INTEGERS:
        value[name] = torch.tensor([[0, 1], [1, 0], [1, 1]]).to(getattr(torch, name))
    pairs = torch.tensor([[0x21, 0x43]], dtype=torch.uint8)
    value["float4_e2m1fn_x2"] = pairs.view(torch.float4_e2m1fn_x2)
    return value, dict(value)


def nested():
    value = {
        "list": [numbers(2), (numbers(1), [numbers(3)])],
        7: numbers(2),
        None: numbers(2),
        ("a", 1): numbers(2),
        "a": {"b": numbers(2)},
        "a.b": numbers(2),
        "ordered": OrderedDict(x=numbers(1), ü=numbers(1)),
    }
    expected = flat({key: value[key] for key in ("list", 7, None, "a", "ordered")})
    return value, expected | {"a,1": value["a", 1], "a.b#2": value["a.b"]}


def empty():
    value = [torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64), torch.tensor(2.5)]
    return value, flat(value)


def alone():
    value = numbers(2, 2)
    return value, {"": value}


def classes():
    """Objects, parameters and tensors with attributes, and a whole module."""
    parameter = torch.nn.Parameter(numbers(2))
    parameter.extra = numbers(1)
    marked = numbers(3)
    marked.note = {"inner": numbers(1)}
    module = torch.nn.Linear(2, 1)
    value = {"parameter": parameter, "marked": marked, "module": module}
    return value, {
        "parameter": parameter.detach(),
        "parameter.extra": parameter.extra,
        "marked": marked,
        "marked.note.inner": marked.note["inner"],
        "module.weight": module.weight.detach(),
        "module.bias": module.bias.detach(),
    }


def unknown():
    value = {
        "plain": numbers(2),
        "quantised": torch.quantize_per_tensor(numbers(4), 0.1, 0, torch.qint8),
        "half": numbers(2, dtype=torch.complex32),
        "storage": numbers(3).untyped_storage(),
        "sparse": torch.eye(2).to_sparse(),
        "meta": torch.zeros(2, device="meta"),
    }
    sparse = value["sparse"]
    return value, {
        "plain": value["plain"],
        "quantised": Quantised(value["quantised"]),
        "half": value["half"],
        "storage": torch.tensor(value["storage"].tolist(), dtype=torch.uint8),
        "sparse.indices": sparse._indices(),
        "sparse.values": sparse._values(),
    }


def protocol():
    value = {"w": numbers(2, 2), "more": [numbers(1)] * 2, "long": "x" * 300, "big": 2**70}
    return value, {"w": value["w"], "more.0": value["more"][0], "more.1": View(value["more"][1])}


def raw(tensor):
    tensor = tensor.resolve_conj()
    if tensor.numel() == 0:
        return b""
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def describe(tensor):
    """What is to be found of a tensor; bytes in the order in which they are stored."""
    if isinstance(tensor, View):
        found = describe(tensor.tensor.contiguous())
        return found | {"order": "view"}
    if isinstance(tensor, Quantised):
        kind = str(tensor.tensor.dtype).removeprefix("torch.")
        return describe(tensor.tensor.int_repr()) | {"kind": kind}
    if tensor.dtype == torch.complex32:
        return describe(torch.view_as_real(tensor)) | {"kind": "complex32"}
    turned = tensor.dim() > 1 and not tensor.is_contiguous()
    kind, shape = str(tensor.dtype).removeprefix("torch."), list(tensor.shape)
    if kind == "float4_e2m1fn_x2":
        kind, shape[-1] = "float4_e2m1fn", 2 * shape[-1]
    return {
        "dtype": kind,
        "shape": shape,
        "order": "F" if turned else "C",
        "data": raw(tensor.t() if turned else tensor).hex(),
    }


def write(name, value, expected, **options):
    path = HERE / f"{name}.pt"
    if path.exists():
        return
    torch.save(value, path, **options)
    found = {key: describe(tensor) for key, tensor in expected.items()}
    path.with_suffix(".json").write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n")
    print(f"wrote {path.name}, {path.stat().st_size} bytes")


def write_big_endian():
    """A file as a big-endian machine writes it; torch swaps the bytes when it loads it."""
    path = HERE / "big-endian.pt"
    if path.exists():
        return
    value = {"w": numbers(2, 2), "b": numbers(2).to(torch.bfloat16), "u": torch.arange(3).byte()}
    with tempfile.TemporaryDirectory() as folder:
        plain = Path(folder) / "plain.pt"
        torch.save(value, plain)
        swapped = torch.load(plain, weights_only=True)
    for tensor in swapped.values():
        tensor.untyped_storage().byteswap(tensor.dtype)
    sys.byteorder, kept = "big", sys.byteorder
    try:
        torch.save(swapped, path)
    finally:
        sys.byteorder = kept
    found = {key: describe(tensor) for key, tensor in swapped.items()}
    for key in ("w", "b"):
        found[key]["dtype"] = ">" + found[key]["dtype"]
    path.with_suffix(".json").write_text(json.dumps(found, indent=1) + "\n")
    loaded = torch.load(path, weights_only=True)
    assert all(torch.equal(loaded[key], value[key]) for key in value)


def main():
    torch.manual_seed(20)
    for case in (state_dict, training, shared, views, dtypes, nested, empty, alone, classes):
        write(case.__name__, *case())
    write("unknown", *unknown())
    for version in (2, 3, 4, 5):
        write(f"protocol-{version}", *protocol(), pickle_protocol=version)
    write_big_endian()


if __name__ == "__main__":
    main()
