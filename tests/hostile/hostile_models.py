"""Classes 36 to 40: GGUF, ONNX, and other formats of nested records."""

import io
import struct
from pathlib import Path

import msgpack
import numpy as np
from hostile_archives import archive
from table import DESCRIBED, FORMAT, LIMIT, OPAQUE, UNSAFE, hostile


def gguf(counts: tuple[int, int], body: bytes, version: int = 3) -> bytes:
    """A GGUF file of these counts of tensors and metadata."""
    return b"GGUF" + struct.pack("<IQQ", version, *counts) + body


def string(value: bytes, length: int | None = None) -> bytes:
    """Text after its length, which may be a lie."""
    return struct.pack("<Q", len(value) if length is None else length) + value


def info(name: bytes = b"w", dims: tuple[int, ...] = (4,), kind: int = 0, offset: int = 0) -> bytes:
    """What GGUF says of a tensor."""
    sizes = struct.pack(f"<I{len(dims)}Q", len(dims), *dims)
    return string(name) + sizes + struct.pack("<IQ", kind, offset)


def padded(data: bytes, tail: int = 64) -> bytes:
    """Aligned to 32 bytes, with data behind it."""
    return data + bytes(-len(data) % 32) + bytes(tail)


@hostile(36, FORMAT, LIMIT)
def numbers_of_gguf(folder: Path) -> None:
    """Counts, strings and lists that are longer than the file, or overflow."""
    lists = struct.pack("<I", 9) + struct.pack("<IQ", 9, 1)
    for name, made in {
        "tensors": gguf((2**62, 0), b""),
        "metadata": gguf((0, 2**63), b""),
        "many": gguf((10**7, 0), info() * 1000),
        "name": gguf((1, 0), string(b"w", 2**64 - 1)),
        "key": gguf((0, 1), string(b"k", 2**40) + bytes(100)),
        "text": gguf((0, 1), string(b"k") + struct.pack("<I", 8) + string(b"v", 2**63)),
        "list": gguf((0, 1), string(b"k") + struct.pack("<IIQ", 9, 4, 2**61)),
        "list_of_text": gguf((0, 1), string(b"k") + struct.pack("<IIQ", 9, 8, 2**61)),
        "list_of_nothing": gguf((0, 1), string(b"k") + struct.pack("<IIQ", 9, 99, 5)),
        "deep": gguf((0, 1), string(b"k") + lists * 100_000),
        "type": gguf((0, 1), string(b"k") + struct.pack("<I", 77) + bytes(8)),
        "dims": padded(gguf((1, 0), info(dims=(2**32, 2**32)))),
        "zero": padded(gguf((1, 0), info(dims=(0, 2**63)))),
        "offset": padded(gguf((1, 0), info(offset=2**63))),
        "beyond": padded(gguf((1, 0), info(dims=(1000,)))),
        "block": padded(gguf((1, 0), info(dims=(5,), kind=8))),
        "version": gguf((0, 0), b"", version=99),
        "version_1": gguf((0, 0), b"", version=1),
        "cut": gguf((1, 0), info())[:-3],
    }.items():
        (folder / f"{name}.gguf").write_bytes(made)


@hostile(37, FORMAT)
def rules_of_gguf(folder: Path) -> None:
    """Alignments of no use, names that are there twice, too many axes, tensors that overlap."""
    key = string(b"general.alignment") + struct.pack("<I", 4)
    for name, made in {
        "alignment_0": padded(gguf((1, 1), key + struct.pack("<I", 0) + info())),
        "alignment_3": padded(gguf((1, 1), key + struct.pack("<I", 3) + info())),
        "alignment_huge": padded(gguf((1, 1), key + struct.pack("<I", 2**31) + info())),
        "alignment_text": padded(
            gguf((1, 1), key[:-4] + struct.pack("<I", 8) + string(b"32") + info())
        ),
        "keys": padded(gguf((1, 2), (key + struct.pack("<I", 32)) * 2 + info())),
        "names": padded(gguf((2, 0), info() + info(offset=32))),
        "axes": padded(gguf((1, 0), info(dims=(1, 1, 1, 1, 4)))),
        "overlap": padded(gguf((2, 0), info(dims=(16,)) + info(b"v", offset=32))),
        "unaligned": padded(gguf((1, 0), info(offset=4))),
    }.items():
        (folder / f"{name}.gguf").write_bytes(made)


def varint(value: int) -> bytes:
    """A number of protobuf."""
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def field(number: int, value: int | bytes, length: int | None = None) -> bytes:
    """A field of protobuf, whose length may be a lie."""
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value) if length is None else length) + value


def initializer(*, dims: tuple[int, ...] = (4,), kind: int = 1, more: bytes) -> bytes:
    """A TensorProto of ONNX, called "w"."""
    return b"".join(field(1, dim) for dim in dims) + field(2, kind) + field(8, b"w") + more


def onnx(*tensors: bytes) -> bytes:
    """A model of these initializers."""
    node = field(1, field(1, b"x") + field(2, b"y") + field(4, b"Identity"))
    graph = node + field(2, b"g") + b"".join(field(5, tensor) for tensor in tensors)
    return field(1, 9) + field(2, b"test") + field(7, graph) + field(8, field(2, 19))


def elsewhere(location: str, offset: int = 0, length: int = 16) -> bytes:
    """The fields of a TensorProto that say its data lies in another file."""
    entries = {"location": location, "offset": str(offset), "length": str(length)}
    pairs = [field(13, field(1, k.encode()) + field(2, v.encode())) for k, v in entries.items()]
    return b"".join(pairs) + field(14, 1)


@hostile(38, UNSAFE)
def external_data(folder: Path) -> None:
    """ONNX data in files outside the folder of the model."""
    for number, place in enumerate(
        (
            *(
                "/etc/passwd",
                "../x",
                "a/../../b",
                "..",
                "a/../../../etc/passwd",
                "C:\\x",
                "\\\\h\\x",
            ),
            *("./../x", "file:///etc/passwd", "..\\x", "a\0b"),
        )
    ):
        made = onnx(initializer(more=elsewhere(place)))
        (folder / f"{number:02}.onnx").write_bytes(made)


@hostile(39, UNSAFE)
def through_links(folder: Path) -> None:
    """ONNX data behind links of every kind, those that stay in the folder among them."""
    out = folder.parent / "outside"
    out.mkdir(exist_ok=True)
    (out / "weights").write_bytes(bytes(16))
    (folder / "linked").symlink_to(out)
    (folder / "by_folder.onnx").write_bytes(onnx(initializer(more=elsewhere("linked/weights"))))
    (folder / "beside_link").symlink_to(out / "weights")
    (folder / "by_file.onnx").write_bytes(onnx(initializer(more=elsewhere("beside_link"))))
    (folder / "beside_second_name").hardlink_to(out / "weights")
    (folder / "by_name.onnx").write_bytes(onnx(initializer(more=elsewhere("beside_second_name"))))
    (folder / "plain" / "deeper").mkdir(parents=True)
    (folder / "plain" / "deeper" / "out").symlink_to(out)
    deep = elsewhere("./plain//deeper/out/weights")
    (folder / "by_folder_further_in.onnx").write_bytes(onnx(initializer(more=deep)))
    (folder / "beside_weights").write_bytes(bytes(16))
    (folder / "beside_alias").symlink_to("beside_weights")
    (folder / "by_alias.onnx").write_bytes(onnx(initializer(more=elsewhere("beside_alias"))))
    (folder / "beside_nothing").symlink_to("nothing")
    (folder / "to_nothing.onnx").write_bytes(onnx(initializer(more=elsewhere("beside_nothing"))))
    (folder / "beside_model.onnx").write_bytes(onnx(initializer(more=elsewhere("beside_alias"))))
    (folder / "linked_too.onnx").symlink_to("beside_model.onnx")
    one, two = (initializer(more=elsewhere(name)) for name in ("beside_weights", "beside_alias"))
    (folder / "among_others.onnx").write_bytes(onnx(one, one, two))


@hostile(39, DESCRIBED)
def no_links(folder: Path) -> None:
    """ONNX data in files as they should be, and where nothing is."""
    (folder / "in").mkdir()
    (folder / "in" / "weights").write_bytes(bytes(16))
    (folder / "beside_weights").write_bytes(bytes(16))
    for number, place in enumerate(("beside_weights", "in/weights", "nowhere", "in")):
        (folder / f"{number}.onnx").write_bytes(onnx(initializer(more=elsewhere(place))))


@hostile(40, FORMAT)
def nested_records(folder: Path) -> None:
    """Protobuf: lengths that overflow or have no end, data said twice, sizes that disagree."""
    good = field(9, bytes(16))
    for name, made in {
        "length": onnx(initializer(more=field(9, bytes(16), 2**63))),
        "two_fields": onnx(initializer(more=good + field(4, bytes(16)))),
        "twice": onnx(initializer(more=good + good)),
        "small": onnx(initializer(more=field(9, bytes(12)))),
        "negative": onnx(initializer(dims=(2**64 - 4,), more=good)),
        "overflow": onnx(initializer(dims=(2**32, 2**32), more=good)),
        "group": onnx(initializer(more=good + b"\x0b" * 3)),
        "graph": field(1, 9) + field(2, b"test") + field(7, b"", 2**40),
        "varint": field(1, 9) + field(2, b"test") + b"\x3a" + b"\xff" * 20,
    }.items():
        (folder / f"{name}.onnx").write_bytes(made)


@hostile(40, FORMAT)
def nested_records_of_msgpack(folder: Path) -> None:
    """msgpack that lies about counts and lengths, and arrays of sizes that disagree."""
    array = msgpack.packb(((4,), "float32", bytes(16)))
    for name, made in {
        "lists": b"\x81\xa1w\xc7" + bytes([len(array), 1]) + array + b"\x91" * 10,
        "claims": b"\xdf\xff\xff\xff\xff\xa1w\xc7" + bytes([len(array), 1]) + array,
        "extension": b"\x81\xa1w\xc9\xff\xff\xff\xff\x01" + array,
        "size": _flax((5,), "float32", bytes(16)),
        "negative": _flax((-4,), "float32", bytes(16)),
        "overflow": _flax((2**62, 4), "float32", bytes(16)),
    }.items():
        (folder / f"{name}.msgpack").write_bytes(made)


@hostile(40, LIMIT)
def nested_records_too_deep(folder: Path) -> None:
    """Graphs, maps and archives deep in each other, and an array of too many axes."""
    deep = field(1, 9) + field(2, b"test") + field(7, deep_graph()) + field(8, field(2, 19))
    (folder / "graphs.onnx").write_bytes(deep)
    (folder / "by_nobody.onnx").write_bytes(field(1, 9) + field(7, deep_graph()))
    array = msgpack.packb(((4,), "float32", bytes(16)))
    maps = b"\x81\xa1a" * 100_000 + b"\xc7" + bytes([len(array), 1]) + array
    (folder / "maps.msgpack").write_bytes(maps)
    (folder / "axes.msgpack").write_bytes(_flax((1,) * 300, "float32", bytes(4)))
    (folder / "nested.zip").write_bytes(_matryoshka(60))


@hostile(40, OPAQUE)
def nested_records_of_nobody(folder: Path) -> None:
    """A map with a key longer than the file, and a graph longer than the file that nobody made.

    They end before there is anything that only flax or ONNX would write: what is left of them may
    be the start of any file that is no text. To say more of it would be a guess.
    """
    (folder / "text.msgpack").write_bytes(b"\x81\xdb\xff\xff\xff\xffw")
    (folder / "graph.onnx").write_bytes(field(1, 9) + field(7, b"", 2**40))


def deep_graph() -> bytes:
    """A graph in an attribute of a node of a graph, and so on."""
    deep = field(5, initializer(more=field(9, bytes(16))))
    for _ in range(2000):
        deep = field(1, field(5, field(1, b"body") + field(6, deep) + field(20, 5)))
    return deep


def _flax(shape: tuple[int, ...], dtype: str, data: bytes) -> bytes:
    inside = msgpack.packb((shape, dtype, data))
    return msgpack.packb({"params": {"w": msgpack.ExtType(1, inside)}})


def _matryoshka(depth: int) -> bytes:
    """Archives in archives, with a good array in the innermost."""
    file = io.BytesIO()
    np.save(file, np.zeros(4))
    content, name = file.getvalue(), "w.npy"
    for _ in range(depth):
        content, name = bytes(archive({name: content})), "inner.npz"
    return content
