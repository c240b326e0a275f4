"""npy and npz files: every type, both byte orders, all versions of the header."""

import io
import zipfile
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

import ml_dtypes
import numpy as np
from cases import Array, Arrays, Case, numbers, with_fields
from numpy.lib import format as npy

TYPES = ["?", "u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f2", "f4", "f8", "c8", "c16"]
OTHERS = {
    "text": np.array(["ab", "c"]),
    "bytes": np.array([b"ab", b"c"]),
    "dates": np.array(["2024-02-29", "NaT"], "M8[D]"),
    "records": np.ones(3, [("a", "<i4"), ("b", ">f8", (2,))]),
    "long": np.arange(3).astype(np.longdouble),
    "bfloat16": np.arange(4).astype(ml_dtypes.bfloat16),  # which numpy saves as "|V2"
}
TOLD = {
    "other_long": "elements of type '<f16'",
    "with_others": "opaque bytes for 1 of 4 arrays: 'long.npy'",
    "objects_beside": "'objects.npy' holds Python objects",
}


def write(folder: Path) -> Iterator[Case]:
    """All of them."""
    yield from singles(folder)
    yield from archives(folder)


def load_one(path: Path) -> Arrays:
    """The array of an npy file, which has no name."""
    with path.open("rb") as file:  # so that only the first of several is read
        return with_fields({"": npy.read_array(file, allow_pickle=False)})


def load_all(path: Path) -> Arrays:
    """The arrays of an npz file, but for those of objects."""
    found: Arrays = {}
    with np.load(path) as archive:
        for name in archive.files:
            if name != "objects":
                found[name] = archive[name]
    return with_fields(found)


def singles(folder: Path) -> Iterator[Case]:
    """npy files."""
    arrays: dict[str, Array] = {
        **{f"little_{kind}": numbers(3, 5, dtype=f"<{kind}") for kind in TYPES},
        **{f"big_{kind}": numbers(4, 3, dtype=f">{kind}") for kind in TYPES if kind[1:] != "1"},
        "fortran": np.asfortranarray(numbers(4, 3, 2)),
        "fortran_big": np.asfortranarray(numbers(4, 3, dtype=">f8")),
        "scalar": np.array(2.5),
        "scalar_big": np.array(7, ">u2"),
        "none": np.zeros(0, np.float32),
        "none_of_many": np.zeros((3, 0, 2), np.int16),
        "ones": np.ones((1, 1, 1, 1), np.float16),
        "many_axes": np.zeros((1,) * 32, np.uint8),
        "part": numbers(8, 9)[::2, 1:7:3],
        **{f"other_{name}": array for name, array in OTHERS.items()},
    }
    for name, array in arrays.items():
        path = folder / f"{name}.npy"
        np.save(path, array)
        yield Case(path.name, "npy", partial(load_one, path), TOLD.get(name, ""))
    for version in ((1, 0), (2, 0), (3, 0)):
        path = folder / f"version_{version[0]}.npy"
        with path.open("wb") as file:
            npy.write_array(file, numbers(3, 2), version=version)
        yield Case(path.name, "npy", partial(load_one, path))
    path = folder / "mapped.npy"
    mapped = npy.open_memmap(path, "w+", np.float64, (5, 3), fortran_order=True)
    mapped[:] = numbers(5, 3, dtype=np.float64)
    mapped.flush()
    yield Case(path.name, "npy", partial(load_one, path))
    path = folder / "several.npy"
    with path.open("wb") as file:
        for size in (3, 4):
            np.save(file, numbers(size))
    yield Case(path.name, "npy", partial(load_one, path))


def archives(folder: Path) -> Iterator[Case]:
    """npz files, stored and deflated."""
    arrays: Mapping[str, Array] = {
        "w": numbers(4, 5),
        "turned": np.asfortranarray(numbers(3, 4, dtype=np.float64)),
        "layer/kernel:0": numbers(3, 3, dtype=">i2"),
        "scalar": np.array(2.5),
        "none": np.zeros((0, 2), np.int8),
        "ünï": np.array([True]),
    }
    large = {"zeros": np.zeros((300, 70), np.float32), "some": numbers(90, 90) * 0}
    every = {kind: numbers(2, 3, dtype=kind) for kind in TYPES}
    made = {
        "stored": (np.savez, arrays),
        "deflated": (np.savez_compressed, arrays),
        "deflated_large": (np.savez_compressed, large),
        "every_type": (np.savez, every),
        "deflated_every_type": (np.savez_compressed, every),
        "with_others": (np.savez, {"w": numbers(3), **OTHERS}),
        "nothing_but_text": (np.savez_compressed, {"text": OTHERS["text"]}),
    }
    for name, (save, values) in made.items():
        path = folder / f"{name}.npz"
        save(path, **values)
        yield Case(path.name, "npz", partial(load_all, path), TOLD.get(name, ""))
    path = folder / "positional.npz"
    np.savez(path, numbers(3), numbers(4))
    yield Case(path.name, "npz", partial(load_all, path))
    path = folder / "objects_beside.npz"
    np.savez(path, w=numbers(3), objects=np.array([None, {}]))
    yield Case(path.name, "npz", partial(load_all, path), TOLD[path.stem])
    path = folder / "streamed.npz"
    path.write_bytes(_streamed({name: numbers(size) for size, name in enumerate("abc", 1)}))
    yield Case(path.name, "npz", partial(load_all, path))


class _Pipe(io.RawIOBase):
    """A file that cannot seek, so that sizes follow the data in its zip archives."""

    def __init__(self) -> None:
        self.written = bytearray()

    def writable(self) -> bool:
        return True

    def write(self, data: object) -> int:
        self.written += memoryview(data)  # type: ignore[arg-type]
        return memoryview(data).nbytes  # type: ignore[arg-type]


def _streamed(arrays: Mapping[str, Array]) -> bytes:
    pipe = _Pipe()
    with zipfile.ZipFile(pipe, "w") as archive:
        for number, (name, array) in enumerate(arrays.items()):
            method = zipfile.ZIP_DEFLATED if number % 2 else zipfile.ZIP_STORED
            member = zipfile.ZipInfo(f"{name}.npy")
            member.compress_type = method
            with archive.open(member, "w") as opened:
                npy.write_array(opened, array)
    return bytes(pipe.written)
