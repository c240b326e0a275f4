"""Compares the tensors of a committed file with those that torch loads of it."""

import argparse
import dataclasses
from collections import deque

import numpy as np
import torch

from mstore.formats.base import BytesReader
from mstore.formats.detect import describe


def flat(value, path=()):
    """Every tensor and array in nested containers and modules by its keys joined with dots."""
    if isinstance(value, torch.Tensor):
        return {".".join(path): value}
    if isinstance(value, np.ndarray):
        return {".".join(path): torch.from_numpy(value)}
    if isinstance(value, torch.nn.Module):
        pairs = value.state_dict().items()
    elif isinstance(value, argparse.Namespace) or dataclasses.is_dataclass(value):
        pairs = vars(value).items()
    elif isinstance(value, dict):
        pairs = value.items()
    elif isinstance(value, list | tuple | deque):
        pairs = enumerate(value)
    else:
        return {}
    return {
        name: tensor
        for key, inner in pairs
        for name, tensor in flat(inner, (*path, str(key))).items()
    }


def raw(tensor):
    """The bytes of a tensor in row-major order, as a little-endian machine has them."""
    flattened = torch.empty(tensor.numel(), dtype=tensor.dtype)
    flattened[:] = tensor.detach().reshape(-1)
    return flattened.view(torch.uint8).numpy().tobytes()


def save_and_check(repo, path, value, expected=None, **options):
    """Saves a value, commits the file, and compares each tensor with what torch loads.

    `expected` are the tensors by name, where they are not those that `flat` finds. Gives the
    tensors of the version.
    """
    torch.save(value, path, **options)
    expected = expected or flat(torch.load(path, weights_only=False))
    file = repo.commit(path, "a model").files[path.name]
    assert file.format == "torch"
    assert file.read() == path.read_bytes()
    assert set(file.tensors) == set(expected)
    for name, tensor in expected.items():
        array = file.tensors[name].numpy()
        assert array.shape == tuple(tensor.shape)
        assert array.dtype.name == str(tensor.dtype).removeprefix("torch.")
        assert np.ascontiguousarray(array).tobytes() == raw(tensor), name
    assert describe(BytesReader(path.read_bytes()))[1] is None
    return file.tensors
