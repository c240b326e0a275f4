"""Pickles of plain structures with arrays of numpy, in all protocols."""

import pickle
import pickletools
import warnings
from collections import OrderedDict, defaultdict
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import ml_dtypes
import numpy as np
from cases import Arrays, Case, flat, numbers

PROTOCOLS = range(6)


def write(folder: Path) -> Iterator[Case]:
    """All of them."""
    for name, value in values().items():
        for protocol in PROTOCOLS:
            path = folder / f"{name}_{protocol}.pkl"
            path.write_bytes(pickle.dumps(value, protocol))
            yield Case(path.name, "pickle", partial(load, path))
    for name, protocol in (("old_numpy_2", 2), ("old_numpy_4", 4)):
        path = folder / f"{name}.pickle"
        path.write_bytes(_of_old_numpy(pickle.dumps(values()["arrays"], protocol)))
        yield Case(path.name, "pickle", partial(load, path))
    path = folder / "optimised.pkl"
    path.write_bytes(pickletools.optimize(pickle.dumps(values()["arrays"], 4)))
    yield Case(path.name, "pickle", partial(load, path))
    path = folder / "large.pkl"  # in frames of its own, as protocol 4 writes what is large
    path.write_bytes(pickle.dumps({"w": numbers(300, 300), "b": b"x" * 70_000}, 4))
    yield Case(path.name, "pickle", partial(load, path))


def load(path: Path) -> Arrays:
    """What Python loads, by path in the structure."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return flat(pickle.loads(path.read_bytes()))


def values() -> dict[str, object]:
    """What is pickled in every protocol."""
    shared = numbers(3, 2)
    return {
        "arrays": {
            "w": numbers(4, 5),
            "turned": np.asfortranarray(numbers(3, 4, dtype=np.float64)),
            "part": numbers(6, 6)[::2, 1:4],
            "scalar": np.array(2.5),
            "none": np.zeros((0, 2), np.int8),
            "all_bytes": np.arange(256, dtype=np.uint8),
            "big": numbers(3, 3, dtype=">f4"),
        },
        "types": {
            kind: numbers(2, 3, dtype=kind)
            for kind in (
                *("?", "u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8"),
                *("f2", "f4", "f8", "c8", "c16", ">u2", ">i8", ">f8"),
                *(ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn),
            )
        },
        "nested": {
            "layers": [{"w": numbers(2, 2, seed=n), "b": numbers(2, seed=n)} for n in range(3)],
            "state": (numbers(3), OrderedDict(x=numbers(1)), defaultdict(list, y=[numbers(2)])),
            "note": "text",
            7: numbers(2, seed=7),
            "nothing": None,
        },
        "shared": {"a": shared, "b": shared, "again": [shared]},
        "object": SimpleNamespace(w=numbers(3, 3), inner=SimpleNamespace(b=numbers(3)), count=4),
        "alone": numbers(7, 3),
        "lists": {
            "floats": [0.5, -0.0, float("inf"), 1e-320] * 20,
            "layers": [[0.1 * n for n in range(40)], [float(n) for n in range(1200)]],
            "integers": list(range(50)),
            "few": [0.5, 1.5],
        },
    }


def _of_old_numpy(data: bytes) -> bytes:
    """A pickle as numpy 1 wrote it, when its modules had other names."""
    if b"cnumpy._core" in data:
        return data.replace(b"cnumpy._core", b"cnumpy.core")
    out, frame = bytearray(), b"\x95"
    assert data[2:3] == frame
    body = data[11:]
    for name in (b"numpy._core.multiarray", b"numpy._core.numeric"):
        old = name.replace(b"_core", b"core")
        body = body.replace(bytes([len(name)]) + name, bytes([len(old)]) + old)
    out += data[:3] + len(body).to_bytes(8, "little") + body
    return bytes(out)
