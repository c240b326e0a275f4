"""HDF5 files of h5py: layouts, types, filters, links, and what else such files may hold."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import h5py
import ml_dtypes
import numpy as np
from cases import Array, Arrays, Case, is_tensor, numbers

TYPES = ["u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f2", "f4", "f8"]


def write(folder: Path) -> Iterator[Case]:
    """All of them."""
    told = {filtered: "4 compressed", others: "6 of other types, 1 inside their headers"}
    for make in (types, contiguous, chunked, filtered, structure, others, large):
        for libver in ("earliest", "latest"):
            path = folder / f"{make.__name__}_{libver}.h5"
            with h5py.File(path, "w", libver=libver) as file:
                make(file)
            yield Case(path.name, "hdf5", partial(load, path), told.get(make, ""))
    path = folder / "block.hdf5"
    with h5py.File(path, "w", userblock_size=1024) as file:
        contiguous(file)
    with path.open("r+b") as raw:
        raw.write(b"some text before the file begins\n")
    yield Case(path.name, "hdf5", partial(load, path))
    path = folder / "empty.h5"
    h5py.File(path, "w").close()
    yield Case(path.name, "hdf5", partial(load, path))
    path = folder / "ordered.h5"
    with h5py.File(path, "w", track_order=True) as file:
        structure(file)
    yield Case(path.name, "hdf5", partial(load, path))


def load(path: Path) -> Arrays:
    """What h5py loads, by path in the file; a dataset with several hard links is under each."""
    found: Arrays = {}

    def visit(name: str, item: object) -> None:
        if isinstance(item, h5py.Dataset) and is_described(item):
            array = item[()] if item.shape else np.asarray(item[()])
            if item.attrs.get("dtype") == "bfloat16" and array.dtype.itemsize == 2:
                array = array.view(ml_dtypes.bfloat16)
            found[name] = array

    with h5py.File(path) as file:
        file.visititems_links(
            lambda name, link: isinstance(link, h5py.HardLink) and visit(name, file[name])
        )
    return found


def is_described(dataset: h5py.Dataset) -> bool:
    """Whether the elements lie in the file as they are; those of enumerations are no numbers."""
    layout = dataset.id.get_create_plist()
    return (
        dataset.shape is not None
        and dataset.dtype.kind != "O"
        and (dataset.dtype == bool or h5py.check_enum_dtype(dataset.dtype) is None)
        and layout.get_nfilters() == 0
        and layout.get_layout() != h5py.h5d.COMPACT
    )


def types(file: h5py.File) -> None:
    """Every type of numbers in both byte orders."""
    for kind in TYPES:
        file[f"little/{kind}"] = numbers(3, 4, dtype=f"<{kind}")
        file[f"big/{kind}"] = numbers(3, 4, dtype=f">{kind}")
    file["bool"] = np.array([True, False, True])
    file["c8"], file["c16"] = numbers(3, dtype="c8"), numbers(2, dtype="c16")


def contiguous(file: h5py.File) -> None:
    """Datasets in one piece."""
    file["w"] = numbers(50, 7)
    file["layers/0/kernel:0"] = numbers(3, 4, 5)
    file["scalar"] = np.float32(2.5)
    file["none"] = np.zeros((0, 3), np.float32)
    file.create_dataset("unwritten", (4, 4), "f4")
    file.create_dataset("filled", (4, 4), "f4", fillvalue=1.5)


def chunked(file: h5py.File) -> None:
    """Datasets in tiles: whole, cut off at the ends, and not all written."""
    file.create_dataset("even", data=numbers(8, 8), chunks=(4, 4))
    file.create_dataset("uneven", data=numbers(7, 10, 3), chunks=(3, 4, 2))
    file.create_dataset("one", data=numbers(5, 5), chunks=(5, 5))
    file.create_dataset("beyond", data=numbers(3), chunks=(16,), maxshape=(None,))
    growing = file.create_dataset("growing", (2, 4), "f8", maxshape=(None, 4), chunks=(2, 2))
    growing.resize((7, 4))
    growing[4:] = numbers(3, 4, dtype="f8")
    sparse = file.create_dataset("sparse", (40, 40), ">i4", chunks=(8, 8), fillvalue=-7)
    sparse[10:14, 20:30] = 5
    file.create_dataset("none", (0, 3), "f4", chunks=(4, 3), maxshape=(None, 3))
    many = file.create_dataset("many", (64, 64), "u2", chunks=(2, 2))
    many[:] = numbers(64, 64, dtype="u2")


def filtered(file: h5py.File) -> None:
    """Datasets whose tiles are compressed or transformed."""
    data = np.arange(400, dtype=np.float32).reshape(20, 20)
    file.create_dataset("gzip", data=data, chunks=(7, 20), compression="gzip")
    file.create_dataset("shuffled", data=data, chunks=(7, 20), compression="gzip", shuffle=True)
    file.create_dataset("checked", data=data, chunks=(10, 10), fletcher32=True)
    file.create_dataset("lzf", data=data, chunks=(10, 10), compression="lzf")
    file.create_dataset("plain", data=data)


def structure(file: h5py.File) -> None:
    """Groups, links and attributes."""
    file["a/b/c/w"] = numbers(4, 4)
    file["a/again"] = file["a/b/c/w"]
    file["soft"] = h5py.SoftLink("/a/b/c/w")
    file["dangling"] = h5py.SoftLink("/nowhere")
    file["a/loop"] = file["a"]["b"]
    for name in ("z", "y", "x"):
        file.create_group(name)[f"{name}1"] = numbers(2)
    file["ünï/k"] = numbers(3)
    file.attrs["names"] = np.array([b"one", b"two"])
    file["a"].attrs["big"] = numbers(100)
    for number in range(40):  # more than one node of a tree of names
        file[f"many/{number}"] = np.full(2, number, np.int16)


def others(file: h5py.File) -> None:
    """Types that are no tensors, beside some that are."""
    file["text"] = "hello"
    file["strings"] = np.array([b"ab", b"c"])
    file["records"] = np.ones(3, [("a", "<i4"), ("b", "<f8")])
    file.create_dataset("ragged", (2,), h5py.vlen_dtype(np.int32))
    file["empty"] = h5py.Empty("f4")
    file["reference"] = np.array([file.ref], h5py.ref_dtype)
    file["colour"] = np.array([0, 1], h5py.enum_dtype({"RED": 0, "BLUE": 1}, "i1"))
    brain = file.create_dataset("brain", data=numbers(3, 2, dtype="u2"))
    brain.attrs["dtype"] = "bfloat16"  # as Keras marks it
    file["w"] = numbers(3)
    inside = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    inside.set_layout(h5py.h5d.COMPACT)
    space = h5py.h5s.create_simple((4,))
    compact = h5py.h5d.create(file.id, b"compact", h5py.h5t.IEEE_F32LE, space, inside)
    compact.write(h5py.h5s.ALL, h5py.h5s.ALL, np.arange(4, dtype=np.float32))


def large(file: h5py.File) -> None:
    """Enough objects and tiles for trees of several levels."""
    for number in range(300):
        file[f"layers/{number:03}/kernel"] = np.full((4, 4), number, np.float32)
    tiles: Array = numbers(200, 40)
    assert is_tensor(tiles)
    file.create_dataset("tiles", data=tiles, chunks=(2, 4))
