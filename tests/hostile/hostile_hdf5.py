"""Classes 31 to 35: HDF5."""

import io
import struct
import zlib
from pathlib import Path

import h5py
import numpy as np
from table import DESCRIBED, FORMAT, LIMIT, UNSAFE, hostile


@hostile(31, UNSAFE)
def external_link(folder: Path) -> None:
    """HDF5 links into other files."""
    with h5py.File(folder / "absolute.h5", "w") as file:
        file["w"] = h5py.ExternalLink("/etc/passwd", "/w")
    with h5py.File(folder / "relative.h5", "w") as file:
        file["a/b"] = np.zeros(3)
        file["a/w"] = h5py.ExternalLink("../../other.h5", "/w")
    with h5py.File(folder / "by_soft_link.h5", "w", libver="latest") as file:
        file["hidden/w"] = h5py.ExternalLink("other.h5", "/")
        file["soft"] = h5py.SoftLink("/hidden/w/x")


@hostile(32, UNSAFE)
def external_storage(folder: Path) -> None:
    """HDF5 datasets whose elements are in other files, or in other datasets."""
    with h5py.File(folder / "external.h5", "w") as file:
        place = [("/etc/passwd", 0, h5py.h5f.UNLIMITED)]
        file.create_dataset("w", (16,), "u1", external=place)
    with h5py.File(folder / "relative.h5", "w") as file:
        file.create_dataset("w", (16,), "u1", external=[("../x", 0, 16)])
    layout = h5py.VirtualLayout((8,), "f4")
    layout[:] = h5py.VirtualSource("/etc/passwd", "w", (8,))
    with h5py.File(folder / "virtual.h5", "w", libver="latest") as file:
        file.create_virtual_dataset("w", layout)


@hostile(32, UNSAFE)
def virtual_cycles(folder: Path) -> None:
    """HDF5 datasets that are put together from themselves, from each other, or by soft links."""
    for name, sources in {
        "itself": {"v": "v"},
        "each_other": {"v": "u", "u": "./v"},
        "soft": {"v": "soft/v"},
        "virtual": {"v": "u", "u": "a"},
    }.items():
        for end in (None, h5py.h5s.UNLIMITED):
            with h5py.File(folder / f"{name}{'_growing' * bool(end)}.h5", "w") as file:
                file["a"] = np.arange(4.0)
                file["soft"] = h5py.SoftLink("/")
                for path, source in sources.items():
                    most = (None,) if end else None
                    layout = h5py.VirtualLayout((4,), "f8", maxshape=most)
                    part = h5py.VirtualSource(".", source, (4,), maxshape=most)
                    layout[:end] = part[:end]
                    file.create_virtual_dataset(path, layout)


@hostile(32, DESCRIBED)
def virtual_inside(folder: Path) -> None:
    """An HDF5 dataset that is put together from plain datasets of its file."""
    with h5py.File(folder / "inside.h5", "w") as file:
        layout = h5py.VirtualLayout((2, 4), "f8")
        for row, name in enumerate(("a", "g/b")):
            file[name] = np.arange(4.0)
            layout[row] = h5py.VirtualSource(".", name, (4,))
        file.create_virtual_dataset("v", layout)


@hostile(33, LIMIT)
def cycles(folder: Path) -> None:
    """HDF5 groups that hold themselves, soft links that never end, one dataset by 2^30 paths."""
    with h5py.File(folder / "self.h5", "w") as file:
        file["a/w"] = np.zeros(3)
        file["a/again"] = file["a"]
    with h5py.File(folder / "root.h5", "w", libver="latest") as file:
        file["a/b/root"] = file["/"]
    with h5py.File(folder / "soft.h5", "w") as file:
        file["a"], file["b"] = h5py.SoftLink("/b"), h5py.SoftLink("/a")
        file["w"] = np.zeros(3)
    with h5py.File(folder / "growing.h5", "w") as file:
        file["a"], file["b"] = h5py.SoftLink("/b/c"), h5py.SoftLink("/a")
    with h5py.File(folder / "many_ways.h5", "w") as file:
        group = file
        for _ in range(30):
            inner = group.create_group("a")
            group["b"] = inner
            group = inner
        group["w"] = np.zeros(3)


@hostile(33, DESCRIBED)
def no_cycles(folder: Path) -> None:
    """HDF5 groups and datasets with several paths, and soft links that lead up or nowhere."""
    with h5py.File(folder / "paths.h5", "w") as file:
        file["a/w"] = np.zeros(3)
        file["b"] = file["c/d"] = file["a"]
        file["v"] = file["a/w"]
    with h5py.File(folder / "soft.h5", "w") as file:
        file["a/w"] = np.zeros(3)
        file["a/up"], file["a/top"] = h5py.SoftLink("/a"), h5py.SoftLink("/")
        file["b"], file["nowhere"] = h5py.SoftLink("a/up/up/w"), h5py.SoftLink("/x/y")


@hostile(33, LIMIT)
def depth(folder: Path) -> None:
    """HDF5 groups 5000 deep in each other."""
    with h5py.File(folder / "deep.h5", "w", libver="latest") as file:
        group = file.id
        for _ in range(5000):
            group = h5py.h5g.create(group, b"a")


@hostile(34, LIMIT)
def chunk_bomb(folder: Path) -> None:
    """HDF5 tiles that claim to be huge, or a dataset of as many as it has bytes."""
    with h5py.File(folder / "huge.h5", "w") as file:
        file.create_dataset("w", (1 << 60,), "u1", chunks=(1 << 31,))
        file.create_dataset("unwritten", (1 << 62,), "u1")
    with h5py.File(folder / "tiny.h5", "w") as file:
        file.create_dataset("w", (1 << 40,), "u1", chunks=(1,))


@hostile(34, LIMIT)
def compressed_bomb(folder: Path) -> None:
    """HDF5 tiles that inflate to 256 MiB out of 260 kB, or claim more than their filters can do."""
    pack = zlib.compressobj(9)
    zeros = b"".join([*(pack.compress(bytes(1 << 20)) for _ in range(256)), pack.flush()])
    for name, chunk, filters, stored in (
        ("inflates", 1 << 28, {"compression": "gzip"}, zeros),
        ("shuffled", 1 << 28, {"compression": "gzip", "shuffle": True}, zeros),
        ("equal", 1 << 28, {"scaleoffset": 0}, bytes(24)),
        ("deflate", 1 << 20, {"compression": "gzip"}, zeros[:1000]),
        ("lzf", 1 << 20, {"compression": "lzf"}, bytes(10_000)),
        ("checked", 1 << 20, {"fletcher32": True}, bytes(4)),
    ):
        with h5py.File(folder / f"{name}.h5", "w") as file:
            data = file.create_dataset("w", (chunk,), "u1", chunks=(chunk,), **filters)
            data.id.write_direct_chunk((0,), stored)


@hostile(34, DESCRIBED)
def compressed_zeros(folder: Path) -> None:
    """An HDF5 tile that inflates to 64 MiB, and one of tiles as h5py makes them: left as it is."""
    with h5py.File(folder / "large.h5", "w") as file:
        data = file.create_dataset("w", (1 << 26,), "u1", chunks=(1 << 26,), compression="gzip")
        data[:] = 0
    with h5py.File(folder / "small.h5", "w") as file:
        file.create_dataset("w", data=np.zeros(1 << 22), compression="gzip", compression_opts=9)


@hostile(34, UNSAFE)
def plug_in(folder: Path) -> None:
    """HDF5 tiles that only a plug-in could read, which the library would load."""
    with h5py.File(folder / "plugin.h5", "w") as file:
        wanted = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        wanted.set_chunk((4,))
        space = h5py.h5s.create_simple((8,))
        wanted.set_filter(32015, h5py.h5z.FLAG_OPTIONAL, (3,))  # zstandard
        h5py.h5d.create(file.id, b"w", h5py.h5t.IEEE_F32LE, space, wanted)
        file["plain"] = np.zeros(4)


def good_file(libver: str = "earliest") -> bytes:
    """An HDF5 file with each of the structures that are damaged below."""
    file = io.BytesIO()
    with h5py.File(file, "w", libver=libver) as made:
        made["a/w"] = np.zeros((4, 4), np.float32)
        made.create_dataset("tiles", data=np.zeros((8, 8)), chunks=(4, 4), compression="gzip")
        made["text"] = np.array(["x", "y"], object)
        made.attrs["names"] = ["a", "b"]
    return file.getvalue()


def spoilt(good: bytes, place: int, new: bytes) -> bytes:
    """A file with other bytes at one place."""
    return good[:place] + new + good[place + len(new) :]


@hostile(35, FORMAT)
def damaged_structures(folder: Path) -> None:
    """HDF5 trees, heaps and headers that mislead, or are not there: none is read without them."""
    good, tall = good_file(), b"\xff" * 8
    for name, mark, shift in (
        ("names", b"HEAP", 8),
        ("free_names", b"HEAP", 16),
        ("place_of_names", b"HEAP", 24),
        ("groups", b"TREE\0", 5),
        ("group", b"TREE\0", 32),
        ("links", b"SNOD", 4),
        ("link", b"SNOD", 8),
        ("header", b"SNOD", 16),
        ("tiles", b"TREE\1", 5),
        ("tile", b"TREE\1", 32),
        ("no_names", b"HEAP", 0),
        ("no_groups", b"TREE\0", 0),
        ("no_links", b"SNOD", 0),
        ("no_tiles", b"TREE\1", 0),
    ):
        place = good.index(mark)
        (folder / f"{name}.h5").write_bytes(spoilt(good, place + shift, tall))
        itself = struct.pack("<Q", place)
        if shift in (16, 24):
            (folder / f"{name}_itself.h5").write_bytes(spoilt(good, place + shift, itself))
    latest = good_file("latest")
    for mark in (b"OHDR", b"FADB", b"FAHD"):
        place = latest.index(mark) + 20
        changed = bytes([latest[place] ^ 1])
        (folder / f"{mark.decode()}.h5").write_bytes(spoilt(latest, place, changed))
    (folder / "cut.h5").write_bytes(good[: len(good) // 2])
    (folder / "signature.h5").write_bytes(good[:8] + b"\xff" * 88)


@hostile(35, DESCRIBED)
def damaged_data(folder: Path) -> None:
    """Texts of HDF5, which lie in a heap of their own, and packed tiles: no description reads it."""
    good = good_file()
    texts = good.index(b"GCOL")
    for shift in (0, 8, 16, 24):
        for name, new in (("tall", b"\xff" * 8), ("itself", struct.pack("<Q", texts))):
            (folder / f"texts-{shift}-{name}.h5").write_bytes(spoilt(good, texts + shift, new))
    with h5py.File(io.BytesIO(good)) as file:
        tile = file["tiles"].id.get_chunk_info(0)
    (folder / "tile.h5").write_bytes(spoilt(good, tile.byte_offset, b"\xff" * tile.size))
