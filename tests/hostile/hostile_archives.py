"""Classes 1 to 17: safetensors, npy, and zip archives."""

import io
import json
import struct
import zipfile
import zlib
from pathlib import Path

import numpy as np
from table import FORMAT, LIMIT, UNSAFE, hostile


def safetensors(header: bytes | dict, data: bytes = b"", length: int | None = None) -> bytes:
    """A file of this header, whose length may be a lie."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(dtype: str = "F32", shape: object = (2,), offsets: object = (0, 8)) -> dict:
    """One tensor of a header."""
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def npy(header: str | bytes, data: bytes = b"", version: int = 1) -> bytes:
    """An npy file with this text as its header."""
    text = header if isinstance(header, bytes) else header.encode("latin-1")
    length = struct.pack("<H" if version == 1 else "<I", len(text))
    return b"\x93NUMPY" + bytes([version, 0]) + length + text + data


def archive(members: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> bytearray:
    """A zip archive, to be spoilt."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as made:
        for name, content in members.items():
            made.writestr(zipfile.ZipInfo(name), content, method)
    return bytearray(file.getvalue())


def array(*shape: int) -> bytes:
    """A good npy file."""
    file = io.BytesIO()
    np.save(file, np.arange(int(np.prod(shape)), dtype=np.float32).reshape(shape))
    return file.getvalue()


def spoil(made: bytearray, marker: bytes, at: int, new: bytes, nth: int = 0) -> bytes:
    """The bytes at `at` of the nth record that starts with `marker`, replaced."""
    start = -1
    for _ in range(nth + 1):
        start = made.index(marker, start + 1)
    made[start + at : start + at + len(new)] = new
    return bytes(made)


LOCAL, CENTRAL, END = b"PK\x03\x04", b"PK\x01\x02", b"PK\x05\x06"


@hostile(1, FORMAT)
def header_longer_than_file(folder: Path) -> None:
    """A safetensors header that ends behind the file."""
    good = safetensors({"w": entry()}, bytes(8))
    (folder / "cut.safetensors").write_bytes(good[:40])
    (folder / "lie.safetensors").write_bytes(safetensors({"w": entry()}, bytes(8), 90_000))


@hostile(2, LIMIT)
def header_over_100_mb(folder: Path) -> None:
    """A safetensors header of more than 100 MB, all of it there."""
    with (folder / "long.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", 100_000_001) + b'{"w":')
        file.truncate(100_000_100)


@hostile(3, LIMIT)
def header_of_two_to_the_64(folder: Path) -> None:
    """The largest length there is, and others that overflow."""
    for name, length in {"all": 2**64 - 1, "signed": 2**63, "wraps": 2**64 - 8}.items():
        content = struct.pack("<Q", length) + b'{"w":{}}'
        (folder / f"{name}.safetensors").write_bytes(content)


@hostile(4, FORMAT)
def header_no_json(folder: Path) -> None:
    """A header that is not UTF-8, or no JSON object."""
    (folder / "bytes.safetensors").write_bytes(safetensors(b'{"\xff\xfe":{}}'))
    (folder / "open.safetensors").write_bytes(safetensors(b'{"w":{"dtype":"F32"'))
    (folder / "after.safetensors").write_bytes(safetensors(b'{"__metadata__":{}} {}'))
    (folder / "surrogate.safetensors").write_bytes(safetensors(b'{"\\ud800":{}}'))


@hostile(5, FORMAT)
def duplicate_keys(folder: Path) -> None:
    """Two tensors of one name; two dtypes of one tensor."""
    one = json.dumps(entry()).encode()
    (folder / "names.safetensors").write_bytes(
        safetensors(b'{"w":' + one + b',"w":' + one + b"}", bytes(8))
    )
    inner = b'{"w":{"dtype":"F32","dtype":"I32","shape":[2],"data_offsets":[0,8]}}'
    (folder / "fields.safetensors").write_bytes(safetensors(inner, bytes(8)))


@hostile(6, FORMAT)
def overlap(folder: Path) -> None:
    """Two tensors that share bytes."""
    header = {"a": entry(), "b": entry(offsets=(4, 12))}
    (folder / "part.safetensors").write_bytes(safetensors(header, bytes(12)))
    header = {"a": entry(), "b": entry()}
    (folder / "same.safetensors").write_bytes(safetensors(header, bytes(8)))


@hostile(7, FORMAT)
def hole(folder: Path) -> None:
    """Bytes that belong to no tensor: between, before, and after."""
    header = {"a": entry(), "b": entry(offsets=(9, 17))}
    (folder / "between.safetensors").write_bytes(safetensors(header, bytes(17)))
    (folder / "first.safetensors").write_bytes(safetensors({"a": entry(offsets=(1, 9))}, bytes(9)))
    (folder / "after.safetensors").write_bytes(safetensors({"a": entry()}, bytes(9)))


@hostile(8, FORMAT, LIMIT)
def wrong_span(folder: Path) -> None:
    """Shapes and types that do not make up the span, or overflow."""
    for name, wrong in {
        "small": entry(shape=[3]),
        "negative": entry(shape=[-1, -2]),
        "bool": entry("U8", [True, 8]),
        "float": entry(shape=[2.0]),
        "text": entry(shape="2"),
        "overflow": entry(shape=[2**32, 2**32]),
        "wraps": entry(shape=[2**62 + 1, 4], offsets=[0, 16]),
        "zero": entry(shape=[0, 2**63]),
        "backwards": entry(offsets=[8, 0]),
        "behind": entry(offsets=[0, 2**63]),
        "three": entry(offsets=[0, 4, 8]),
        "type": entry("F33"),
        "axes": entry(shape=[1] * 999 + [2]),
        "nibbles": entry("F4", [3], [0, 2]),
    }.items():
        content = safetensors({"w": wrong}, bytes(8))
        (folder / f"{name}.safetensors").write_bytes(content)


@hostile(9, FORMAT, LIMIT)
def too_deep_or_too_many(folder: Path) -> None:
    """JSON 100,000 deep, and more tensors than any model has."""
    depth = 100_000
    deep = b'{"w":' + b"[" * depth + b"]" * depth + b"}"
    (folder / "deep.safetensors").write_bytes(safetensors(deep))
    deep = b'{"__metadata__":' + b'{"a":' * depth + b"1" + b"}" * depth + b"}"
    (folder / "meta.safetensors").write_bytes(safetensors(deep))
    text = b'"%07d":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},'
    many = b"".join(text % number for number in range(600_000))
    (folder / "many.safetensors").write_bytes(safetensors(b"{" + many[:-1] + b"}"))
    claimed = safetensors(b"{" + many[:100_000], length=10_000_000 * len(text))
    (folder / "ten_million.safetensors").write_bytes(claimed)


@hostile(10, UNSAFE)
def array_of_objects(folder: Path) -> None:
    """npy files that hold a pickle."""
    np.save(folder / "objects.npy", np.array([None, {}], object))
    header = "{'descr': [('a', '<i4'), ('b', '|O')], 'fortran_order': False, 'shape': (1,), }"
    (folder / "field.npy").write_bytes(npy(header, bytes(12)))
    header = "{'descr': ('|O', (2,)), 'fortran_order': False, 'shape': (1,), }"
    (folder / "sub.npy").write_bytes(npy(header, bytes(16)))


@hostile(11, FORMAT, LIMIT)
def header_of_npy(folder: Path) -> None:
    """A header that is long, deep, or an expression."""
    good = "{'descr': '<f4', 'fortran_order': False, 'shape': (%s), }"
    (folder / "long.npy").write_bytes(npy(good % "2," + " " * 20_000, bytes(8)))
    lie = b"\x93NUMPY\x02\x00" + struct.pack("<I", 2**32 - 1) + b"{'descr'"
    (folder / "lie.npy").write_bytes(lie)
    for name, shape in {
        "call": "__import__('os').system('true'),",
        "sum": "1+1,",
        "power": "9**9**9,",
        "comprehension": "*[1 for _ in range(9)],",
        "deep": "(" * 4000 + ")" * 4000,
        "digits": "9" * 9000 + ",",
        "format": "f'{1}',",
    }.items():
        (folder / f"{name}.npy").write_bytes(npy(good % shape, bytes(8)))


@hostile(12, FORMAT)
def huge_shape(folder: Path) -> None:
    """A shape of 2^60 with a body of eight bytes."""
    header = "{'descr': '%s', 'fortran_order': False, 'shape': (%s), }"
    for name, dtype, shape in (
        ("one", "<f4", f"{2**60},"),
        ("two", "<f8", f"{2**32}, {2**32}"),
        ("zero", "<f8", f"0, {2**64}"),
        ("text", f"<U{2**30 - 1}", "1,"),
        ("negative", "<f4", "-2,"),
        ("bool", "<f4", "True,"),
    ):
        (folder / f"{name}.npy").write_bytes(npy(header % (dtype, shape), bytes(8)))


@hostile(13, FORMAT, LIMIT)
def deflate_bomb(folder: Path) -> None:
    """Small members that claim to inflate to very much, or do."""
    header = "{'descr': '<f4', 'fortran_order': False, 'shape': (%d,), }"
    made = archive({"w.npy": npy(header % 2**40, bytes(1000))}, zipfile.ZIP_DEFLATED)
    (folder / "claims.npz").write_bytes(made)
    made = archive({"w.npy": npy(header % 250, bytes(1000))}, zipfile.ZIP_DEFLATED)
    for marker, at in ((LOCAL, 22), (CENTRAL, 24)):
        spoil(made, marker, at, struct.pack("<I", 2**32 - 2))
    (folder / "sizes.npz").write_bytes(made)
    # A member of 64 MiB that inflates to more than it says.
    made = archive({"w.npy": npy(header % 250, bytes(64 << 20))}, zipfile.ZIP_DEFLATED)
    for marker, at in ((LOCAL, 22), (CENTRAL, 24)):
        spoil(made, marker, at, struct.pack("<I", 1100))
    (folder / "more.npz").write_bytes(made)


@hostile(14, FORMAT)
def overlapping_members(folder: Path) -> None:
    """Members that share bytes, as in a bomb that quotes itself."""
    made = archive({"a.npy": array(50), "b.npy": array(50)})
    first = struct.pack("<I", 0)
    (folder / "same.npz").write_bytes(spoil(bytearray(made), CENTRAL, 42, first, nth=1))
    quoted = archive({"a.npy": array(50), "b.npy": array(50)})
    size = struct.pack("<II", len(array(50)) + 60, len(array(50)) + 60)
    spoil(quoted, LOCAL, 18, size)
    (folder / "quoted.npz").write_bytes(spoil(quoted, CENTRAL, 20, size))


@hostile(15, FORMAT)
def other_compression(folder: Path) -> None:
    """Members in bz2, LZMA and zstandard."""
    for name, method in (("bz2", zipfile.ZIP_BZIP2), ("lzma", zipfile.ZIP_LZMA)):
        (folder / f"{name}.npz").write_bytes(archive({"w.npy": array(9)}, method))
    made = archive({"w.npy": array(9)})
    spoil(made, LOCAL, 8, struct.pack("<H", 93))
    (folder / "zstd.npz").write_bytes(spoil(made, CENTRAL, 10, struct.pack("<H", 93)))


@hostile(16, FORMAT)
def names_of_members(folder: Path) -> None:
    """Names that leave the archive, or that two members have."""
    for number, name in enumerate(
        ("../w.npy", "a/../../w.npy", "/w.npy", "a\\..\\w.npy", "./w.npy")
    ):
        (folder / f"name{number}.npz").write_bytes(archive({name: array(2)}))
    made = archive({"a.npy": array(2), "b.npy": array(2)})
    (folder / "twice.npz").write_bytes(bytes(made).replace(b"b.npy", b"a.npy"))
    made = archive({"w.npy": array(2)})
    (folder / "nul.npz").write_bytes(bytes(made).replace(b"w.npy", b"\0.npy"))


@hostile(17, FORMAT)
def two_stories(folder: Path) -> None:
    """What is written twice differs: local and central records, sizes, checksums, flags."""
    good = {"a.npy": array(20), "b.npy": array(20)}
    for name, marker, at, new in (
        ("size", LOCAL, 18, struct.pack("<II", 1, 1)),
        ("crc", LOCAL, 14, b"\x12\x34\x56\x78"),
        ("method", LOCAL, 8, struct.pack("<H", 8)),
        ("name", LOCAL, 30, b"c"),
        ("encrypted", CENTRAL, 8, b"\x01\x00"),
        ("masked", CENTRAL, 8, b"\x00\x20"),
        ("offset", CENTRAL, 42, struct.pack("<I", 2**31)),
        ("count", END, 8, struct.pack("<HH", 1, 1)),
        ("start", END, 16, struct.pack("<I", 3)),
        ("disk", END, 4, struct.pack("<H", 1)),
        ("comment", END, 20, struct.pack("<H", 7)),
    ):
        (folder / f"{name}.npz").write_bytes(spoil(archive(good), marker, at, new))
    (folder / "after.npz").write_bytes(bytes(archive(good)) + b"\0")
    end = struct.pack("<4sQ2H2I4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, 2**40, 2**40, 2**60, 0)
    made = bytes(archive(good))
    at = made.index(END)
    locator = struct.pack("<4sIQI", b"PK\x06\x07", 0, at, 1)
    full = END + struct.pack("<4H2IH", 0, 0, 0xFFFF, 0xFFFF, 2**32 - 1, 2**32 - 1, 0)
    (folder / "zip64.npz").write_bytes(made[:at] + end + locator + full)
    bad = bytearray(archive({"w.npy": array(400)}, zipfile.ZIP_DEFLATED))
    body = bad.index(b"w.npy") + 5
    bad[body : body + 8] = zlib.compress(b"x")[:8]
    (folder / "deflate.npz").write_bytes(bad)
