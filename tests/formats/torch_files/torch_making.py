"""Files of torch.save made by hand, without torch: what it writes, and what it never would."""

import io
import pickle
import zipfile

import numpy as np
from numpy.lib.stride_tricks import as_strided

from mstore.formats.base import BytesReader
from mstore.formats.detect import describe

V2 = "torch._utils._rebuild_tensor_v2"
V3 = "torch._utils._rebuild_tensor_v3"
FROM = "torch._tensor._rebuild_from_type_v2"
SIX = np.arange(6, dtype=np.float32).tobytes()


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
