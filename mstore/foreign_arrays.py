"""Arrays of other libraries as numpy arrays, and back, without those libraries being needed.

A PyTorch tensor can only exist where its program has imported torch, so torch is taken from there.
"""

import sys
from collections.abc import Callable
from importlib import import_module
from typing import Any

import numpy as np

from mstore.errors import InvalidInputError
from mstore.numpy_dtypes import ML_DTYPES, Array


def to_numpy(value: object) -> Array | None:
    """`value` as a plain numpy array with the same bits, sharing memory where it can.

    None if it is no array at all. Raises InvalidInputError for arrays that a plain one cannot
    stand for: masked arrays and other subclasses, sparse or quantized tensors, Python objects.
    """
    if isinstance(value, np.ndarray):
        # A memory map is a plain array whose memory is a file; other subclasses mean more.
        if type(value) not in (np.ndarray, np.memmap):
            raise InvalidInputError(
                f"a {type(value).__name__} is more than a plain array", hint="pass np.asarray(…)"
            )
        array: Array = np.asarray(value)
    elif _is_torch_tensor(value):
        array = _from_torch(value)
    elif isinstance(value, type):
        return None
    elif hasattr(type(value), "__array__"):
        array = _convert(np.asarray, value)
    elif hasattr(type(value), "__dlpack__"):
        array = _convert(np.from_dlpack, value)
    else:
        return None
    if array.dtype.hasobject:
        raise InvalidInputError(
            "an array of Python objects has no bytes of its own",
            hint="convert it to a numeric type or to a list",
        )
    return array


def _convert(convert: Any, value: object) -> Array:
    # Any error may come out of another library's conversion; it is the reason, not a crash.
    try:
        return np.asarray(convert(value))
    except Exception as error:
        raise InvalidInputError(
            f"a {type(value).__qualname__} does not convert to numpy: {error}",
            hint="copy it to main memory as a plain dense array first",
        ) from error


def _is_torch_tensor(value: object) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def _from_torch(tensor: Any) -> Array:
    torch: Any = sys.modules["torch"]
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.device.type == "meta":
        raise InvalidInputError(
            "a sparse, quantized or meta tensor is more, or less, than its numbers",
            hint="pass its parts, or a dense copy",
        )
    return _convert(_torch_to_numpy, tensor)


def _torch_to_numpy(tensor: Any) -> Array:
    torch: Any = sys.modules["torch"]
    plain = tensor.detach().cpu().resolve_conj().resolve_neg()
    special = ML_DTYPES.get(str(tensor.dtype).removeprefix("torch."))
    if special is None:
        array: Array = plain.numpy()
        return array
    # numpy does not know the type by torch's name: pass the bits under an integer's.
    carrier = torch.int16 if special.itemsize == 2 else torch.uint8
    return np.asarray(plain.view(carrier).numpy().view(special))


def converter(library: str) -> Callable[[Array], object]:
    """What makes arrays of `library`, "numpy" or "torch", of numpy arrays, sharing their memory.

    Raises InvalidInputError for other names, and when the library is not installed.
    """
    if library == "numpy":
        return lambda array: array
    if library != "torch":
        raise InvalidInputError(f"unknown library {library!r}", hint='use "numpy" or "torch"')
    try:
        import_module("torch")
    except ImportError as error:
        raise InvalidInputError("PyTorch is not installed", hint="pip install torch") from error
    return _to_torch


def _to_torch(array: Array) -> object:
    """The tensor with the bits of `array`; the array itself if PyTorch has no such type."""
    torch: Any = sys.modules["torch"]
    name = str(array.dtype)
    try:
        if name not in ML_DTYPES:
            return torch.from_numpy(array)
        carrier = np.dtype(np.int16 if array.itemsize == 2 else np.uint8)
        return torch.from_numpy(array.view(carrier)).view(getattr(torch, name))
    except (TypeError, ValueError, AttributeError):
        return array
