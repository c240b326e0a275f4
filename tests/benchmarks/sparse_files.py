"""Files of 10,000 tensors and 10 GB in every format, of which the disk holds only the headers.

The libraries themselves write them where they can, to a file that passes over long runs of zeros.
"""

import io
import json
import os
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

COUNT = 10_000
SHAPE = (512, 512)
LENGTH = 4 * 512 * 512
"""Bytes of a tensor of float32: 10.5 GB are all of them."""

_PIECE = 64 << 10
"""Bytes of zeros that are passed over among others."""


class SparseFile(io.RawIOBase):
    """A file that is written from front to back; zeros are left out, and read as such."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("w+b", buffering=0)

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._file.tell()

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return self._file.seek(offset, whence)

    def flush(self) -> None:
        """Nothing is kept back."""

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        step = LENGTH if len(view) == LENGTH else _PIECE
        for at in range(0, len(view), step):
            piece = view[at : at + step]
            if len(piece) < step or np.frombuffer(piece, np.uint64).any():
                self._file.write(piece)
            else:
                self._file.seek(step, os.SEEK_CUR)
        return len(view)

    def close(self) -> None:
        if not self._file.closed:
            self._file.truncate(self._file.tell())
            self._file.close()
        super().close()


def names() -> list[str]:
    """What the tensors are called."""
    return [f"model.layers.{number // 10}.block{number % 10}.weight" for number in range(COUNT)]


def zeros() -> dict[str, np.ndarray]:
    """The tensors: each an array of its own, all in the same memory."""
    one = np.zeros(SHAPE, np.float32)
    return {name: one.view() for name in names()}


def safetensors(path: Path) -> None:
    header = {
        name: {"dtype": "F32", "shape": SHAPE, "data_offsets": (at * LENGTH, (at + 1) * LENGTH)}
        for at, name in enumerate(names())
    }
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + COUNT * LENGTH)


def npz(path: Path) -> None:
    with SparseFile(path) as file, zipfile.ZipFile(file, "w") as archive:
        for name, array in zeros().items():
            _add(archive, f"{name}.npy", array)


def skops(path: Path) -> None:
    """As skops writes a dictionary of arrays."""
    content = {
        name: {
            "__class__": "ndarray",
            "__module__": "numpy",
            "__loader__": "NdArrayNode",
            "type": "numpy",
            "file": f"{at}.npy",
        }
        for at, name in enumerate(names())
    }
    schema = {
        "__class__": "dict",
        "__module__": "builtins",
        "__loader__": "DictNode",
        "key_types": {
            "__class__": "list",
            "__module__": "builtins",
            "__loader__": "ListNode",
            "content": [],
        },
        "content": content,
        "protocol": 2,
        "_skops_version": "0.13.0",
    }
    with SparseFile(path) as file, zipfile.ZipFile(file, "w") as archive:
        for at, array in enumerate(zeros().values()):
            _add(archive, f"{at}.npy", array)
        archive.writestr("schema.json", json.dumps(schema))


def _add(archive: zipfile.ZipFile, name: str, array: np.ndarray) -> None:
    with archive.open(name, "w", force_zip64=True) as member:
        np.lib.format.write_array_header_1_0(
            member, np.lib.format.header_data_from_array_1_0(array)
        )
        member.write(array.data)


def torch(path: Path) -> None:
    import torch as library

    with library.serialization.skip_data():
        library.save({name: library.empty(SHAPE) for name in names()}, path)


def pickled(path: Path) -> None:
    with SparseFile(path) as file:
        pickle.dump(zeros(), file, 5)


def joblib(path: Path) -> None:
    import joblib as library

    with SparseFile(path) as file:
        library.dump(zeros(), file)


def hdf5(path: Path) -> None:
    import h5py as library

    wanted = library.h5p.create(library.h5p.DATASET_CREATE)
    wanted.set_alloc_time(library.h5d.ALLOC_TIME_EARLY)
    wanted.set_fill_time(library.h5d.FILL_TIME_NEVER)
    space = library.h5s.create_simple(SHAPE)
    with library.File(path, "w", libver="latest") as file:
        for name in names():
            group = file.require_group(name.replace(".", "/").rpartition("/")[0])
            library.h5d.create(group.id, b"weight", library.h5t.IEEE_F32LE, space, wanted)


def keras(path: Path) -> None:
    """The archive that Keras 3 writes, with weights of that size in it."""
    weights = path.with_suffix(".h5")
    hdf5(weights)
    size = weights.stat().st_size
    with SparseFile(path) as file, zipfile.ZipFile(file, "w") as archive:
        archive.writestr("metadata.json", '{"keras_version": "3.12.0"}')
        archive.writestr("config.json", '{"class_name": "Sequential", "config": {}}')
        with (
            archive.open("model.weights.h5", "w", force_zip64=True) as member,
            weights.open("rb") as source,
        ):
            for _ in range(0, size, LENGTH):
                member.write(source.read(LENGTH))
    weights.unlink()


def onnx(path: Path) -> None:
    """A model with its data in one file beside it, as all of that size have it."""
    from onnx import TensorProto, helper

    tensors = []
    for at, name in enumerate(names()):
        tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=SHAPE)
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in (
            ("location", f"{path.name}.data"),
            ("offset", str(at * LENGTH)),
            ("length", str(LENGTH)),
        ):
            tensor.external_data.add(key=key, value=value)
        tensors.append(tensor)
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, SHAPE)
    node = helper.make_node("Identity", [names()[0]], ["y"])
    model = helper.make_model(helper.make_graph([node], "g", [], [out], tensors))
    path.write_bytes(model.SerializeToString())
    with path.with_name(f"{path.name}.data").open("wb") as file:
        file.truncate(COUNT * LENGTH)


def gguf(path: Path) -> None:
    import gguf as library

    writer = library.GGUFWriter(path, "llama")
    for name in names():
        writer.add_tensor_info(name, SHAPE, np.dtype(np.float32), LENGTH)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for file in writer.fout or ():
        end = file.tell() + -file.tell() % 32 + COUNT * LENGTH
        file.truncate(end)
    writer.close()


def flax(path: Path) -> None:
    """As flax writes it, array after array, so that not all are in memory."""
    import msgpack as library

    packer = library.Packer()
    with SparseFile(path) as file:
        file.write(packer.pack_map_header(COUNT))
        for name in names():
            head = packer.pack_array_header(3) + packer.pack(SHAPE) + packer.pack("float32")
            head += b"\xc6" + struct.pack(">I", LENGTH)
            file.write(packer.pack(name) + struct.pack(">BIB", 0xC9, len(head) + LENGTH, 1) + head)
            file.write(bytes(LENGTH))


def tensorflow(path: Path) -> None:
    """The index of a checkpoint, one block of it, and its data."""
    pairs = [(b"", b"\x08\x01\x1a\x02\x08\x01")]
    for at, name in enumerate(sorted(names())):
        shape = b"".join(b"\x12\x03\x08" + _varint(extent) for extent in SHAPE)
        value = b"\x08\x01\x12" + _varint(len(shape)) + shape
        value += b"\x20" + _varint(at * LENGTH) + b"\x28" + _varint(LENGTH)
        pairs.append((name.encode(), value + b"\x35" + bytes(4)))
    table = bytearray()
    places = [_block(table, [pair]) for pair in pairs]
    ends = [(key, place) for (key, _), place in zip(pairs, places, strict=True)]
    meta, index = _block(table, []), _block(table, ends)
    table += (meta + index).ljust(40, b"\0") + struct.pack("<Q", 0xDB4775248B80FB57)
    path.write_bytes(table)
    with path.with_suffix(".data-00000-of-00001").open("wb") as file:
        file.truncate(COUNT * LENGTH)


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def _block(table: bytearray, pairs: list[tuple[bytes, bytes]]) -> bytes:
    """Add a block of keys and values; returns where it is."""
    start, restarts, body = len(table), [], bytearray()
    for key, value in pairs:
        restarts.append(len(body))
        body += _varint(0) + _varint(len(key)) + _varint(len(value)) + key + value
    restarts = restarts or [0]
    body += struct.pack(f"<{len(restarts)}I", *restarts) + struct.pack("<I", len(restarts))
    table += body + b"\0" + _checksum(bytes(body) + b"\0")
    return _varint(start) + _varint(len(body))


def _checksum(data: bytes) -> bytes:
    """CRC-32C, masked as in tables of LevelDB."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = CRC_TABLE[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    crc ^= 0xFFFFFFFF
    return struct.pack("<I", (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF)


def _crc_entry(value: int) -> int:
    for _ in range(8):
        value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
    return value


CRC_TABLE = [_crc_entry(value) for value in range(256)]

WRITERS: dict[str, tuple[str, Callable[[Path], None]]] = {
    "safetensors": ("large.safetensors", safetensors),
    "npz": ("large.npz", npz),
    "torch": ("large.pt", torch),
    "pickle": ("large.pkl", pickled),
    "joblib": ("large.joblib", joblib),
    "hdf5": ("large.h5", hdf5),
    "keras": ("large.keras", keras),
    "onnx": ("large.onnx", onnx),
    "gguf": ("large.gguf", gguf),
    "flax": ("large.msgpack", flax),
    "skops": ("large.skops", skops),
    "tensorflow-index": ("large.index", tensorflow),
}
"""Format -> the file, and what writes it; the data may lie in a second one beside it."""
