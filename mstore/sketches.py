"""Sketches: a few numbers of each tensor that no history leads to, so that its like can be found.

A sketch is SAMPLES of the first REACH words of a tensor, always the same ones, as values rounded
to bfloat16. So the tensor in another float type, or with rows added to it, has the same sketch, and
a fine-tune of it one that is near. The distance of two sketches tells how near two tensors are
without reading any weights.

Sketches are advice. A repository without them is whole: tensors are found less often, that is all.
They are kept in objects of columns, sorted by class (which other tensors can be compared at all)
and then by spread, so that a search maps the object and touches the rows of its classes only. Byte
by byte: `docs/format.md`.
"""

import os
import struct
from collections.abc import Sequence

import numpy as np
import xxhash
from numpy.typing import NDArray

from mstore.codecs.words import word_type
from mstore.errors import CorruptDataError, NotFoundError, UnsupportedVersionError
from mstore.ids import ID_SIZE, Buffer, Id
from mstore.layout import Tensor
from mstore.root import SketchRef
from mstore.storage.base import Storage

SAMPLES = 128
"""Values in a sketch: so many that unrelated weights are never near each other by chance."""

REACH = 1 << 14
"""Words at the start of a tensor that are sampled; a shorter tensor has no sketch."""

HEAD = 32
"""The first values of a sketch, which stand apart: they rule out all but the nearest."""

_VERSION = 1
_MAGIC = b"MSTORESK"
_HEADER = struct.Struct("<8sHHIQI20xQQ")
_SUM = 8
_CAST = "f16", "bf16", "f32", "f64"
_COLUMN_MAJOR = 1 << 55

CLASS_DTYPE = np.dtype([("key", "<u8"), ("end", "<u8")])
FILE_DTYPE = np.dtype([("manifest", "u1", ID_SIZE), ("model", "<u8"), ("path", "<u8")])
ORIGIN_DTYPE = np.dtype([("file", "<u4"), ("segment", "<u4")])
ROW_DTYPE = np.dtype(
    [
        ("class", "<u8"),
        ("file", "<u4"),
        ("segment", "<u4"),
        ("spread", "<f4"),
        ("samples", "<u2", SAMPLES),
    ]
)
"""One sketch: what can be compared with it, whose it is, how far its values spread, the values."""

Rows = NDArray[np.void]
"""Sketches, of ROW_DTYPE."""

Files = NDArray[np.void]
"""The manifests that rows are of, of FILE_DTYPE: the id, and what `fingerprint` makes of names."""

Values = NDArray[np.float32]


def _places() -> NDArray[np.intp]:
    """Which word each value is: one in every stretch of 128 words, at no regular distance.

    A regular one would meet the same columns of a matrix again and again. The first HEAD values
    are from all over, and so are those that follow them.
    """
    number = np.arange(SAMPLES)
    stretch = number % HEAD * (SAMPLES // HEAD) + number // HEAD
    length = REACH // SAMPLES
    return stretch * length + stretch * 73 % length


PLACES = _places()
"""Which word of a tensor each value of its sketch is; shape (SAMPLES,)."""


def class_of(tensor: Tensor) -> int | None:
    """The number that only tensors have which can be compared; None when this has no sketch.

    It says how the words are understood, the order, and how many words a row along the first axis
    (the last in column-major order) has.
    """
    kind = word_type(tensor.dtype)
    count = tensor.nbytes // kind.size
    if count < REACH:
        return None
    size, mantissa = (4, 23) if kind.name in _CAST else (kind.size, kind.mantissa)
    extents = tensor.shape if tensor.order == "C" else tensor.shape[::-1]
    row = (count // extents[0] if extents else count) % _COLUMN_MAJOR
    if tensor.order == "F":
        row |= _COLUMN_MAJOR
    return mantissa << 58 | (size.bit_length() - 1) << 56 | row


def fingerprint(name: str) -> int:
    """64 bits that stand for the name of a model or a path."""
    return xxhash.xxh3_64_intdigest(name.encode("utf-8", "surrogateescape"))


def file_row(manifest: Id, model: str, path: str) -> Files:
    """One file that sketches are of, shape (1,): its manifest, and where it was committed."""
    row = np.empty(1, FILE_DTYPE)
    row["manifest"] = np.frombuffer(manifest, np.uint8)
    row["model"], row["path"] = fingerprint(model), fingerprint(path)
    return row


def values_of(samples: NDArray[np.uint16]) -> Values:
    """The values of sketches, shape (…, n) as `samples`."""
    values: Values = (samples.astype(np.uint32) << 16).view(np.float32)
    return values


def spread_of(values: Values) -> Values:
    """How far the values (n, SAMPLES) spread: the norm of what is left without their mean."""
    wide = values.astype(np.float64)
    wide -= wide.mean(axis=1, keepdims=True)
    with np.errstate(over="ignore"):
        spread: Values = np.sqrt(np.einsum("ij,ij->i", wide, wide)).astype(np.float32)
    return spread


class Sketches:
    """One opened object of sketches; its columns are views of the mapped object."""

    def __init__(self, name: str, data: memoryview) -> None:
        """Check the header and sizes; raises CorruptDataError or UnsupportedVersionError.

        The checksum over everything is compared by `check`, which reads it all.
        """
        self.name = name
        self._data = data
        if len(data) < _HEADER.size or data[:8] != _MAGIC:
            raise CorruptDataError(f"sketches {name} do not start as sketches do")
        head = _HEADER.unpack_from(data)
        _, version, _, class_count, self.count, file_count, self._checksum, check = head
        if check != xxhash.xxh3_64_intdigest(data[: _HEADER.size - _SUM]):
            raise CorruptDataError(f"sketches {name}: the header is damaged")
        if version > _VERSION:
            raise UnsupportedVersionError(
                f"sketches {name} are of format {version}, newer than this mstore reads",
                hint="upgrade mstore",
            )
        sizes = _sizes(class_count, file_count, self.count)
        if len(data) != _HEADER.size + sum(sizes):
            raise CorruptDataError(f"sketches {name} have not the size their header says")
        parts, start = [], _HEADER.size
        for size in sizes:
            parts.append(data[start : start + size])
            start += size
        self.classes = np.frombuffer(parts[0], CLASS_DTYPE)
        self.files: Files = np.frombuffer(parts[1], FILE_DTYPE)
        self.spreads = np.frombuffer(parts[2], "<f4")
        self.origins = np.frombuffer(parts[3], ORIGIN_DTYPE)
        self.heads = np.frombuffer(parts[4], "<u2").reshape(-1, HEAD)
        self.tails = np.frombuffer(parts[5], "<u2").reshape(-1, SAMPLES - HEAD)
        ends = self.classes["end"]
        if (ends[1:] < ends[:-1]).any() or self.count != (ends[-1] if class_count else 0):
            raise self._malformed()

    @classmethod
    def open(cls, storage: Storage, ref: SketchRef) -> "Sketches":
        """Map the object `ref`; raises NotFoundError when it is gone."""
        sketches = cls(ref.name, storage.view(ref.key))
        if sketches.count != ref.count:
            raise CorruptDataError(f"sketches {ref.name} have not the number of rows listed")
        return sketches

    def check(self) -> None:
        """Read everything; raises CorruptDataError unless all of it is right."""
        if xxhash.xxh3_64_intdigest(self._data[_HEADER.size :]) != self._checksum:
            raise CorruptDataError(f"sketches {self.name} are damaged")
        keys = self.classes["key"]
        if (keys[1:] <= keys[:-1]).any() or (self.origins["file"] >= len(self.files)).any():
            raise self._malformed()

    def rows_of(self, key: int) -> slice:
        """The rows of the class `key`, by ascending spread."""
        at = int(np.searchsorted(self.classes["key"], np.uint64(key)))
        if at == len(self.classes) or int(self.classes["key"][at]) != key:
            return slice(0, 0)
        return slice(int(self.classes["end"][at - 1]) if at else 0, int(self.classes["end"][at]))

    def table(self) -> Rows:
        """All rows, read into memory."""
        ends = self.classes["end"].astype(np.int64)
        rows = np.empty(self.count, ROW_DTYPE)
        rows["class"] = np.repeat(self.classes["key"], np.diff(ends, prepend=0))
        rows["file"], rows["segment"] = self.origins["file"], self.origins["segment"]
        rows["spread"] = self.spreads
        rows["samples"] = np.concatenate((self.heads, self.tails), axis=1)
        return rows

    def _malformed(self) -> CorruptDataError:
        return CorruptDataError(f"sketches {self.name} are malformed", hint="run: mstore gc")


def store_sketches(storage: Storage, files: Files, rows: Rows) -> SketchRef:
    """Store an object with these rows; returns how the root refers to it."""
    parts = encode(files, rows)
    count = Sketches("new", memoryview(b"".join(parts))).count
    ref = SketchRef(os.urandom(16).hex(), count, sum(len(part) for part in parts))
    storage.put(ref.key, parts)
    return ref


def encode(files: Files, rows: Rows) -> list[Buffer]:
    """The parts of an object with these rows, each origin once, and the files that have some."""
    files, rows = _each_once(files, rows)
    rows = rows[np.lexsort((rows["spread"], rows["class"]))]
    keys, sizes = np.unique(rows["class"], return_counts=True)
    classes = np.empty(len(keys), CLASS_DTYPE)
    classes["key"], classes["end"] = keys, np.cumsum(sizes)
    origins = np.empty(len(rows), ORIGIN_DTYPE)
    origins["file"], origins["segment"] = rows["file"], rows["segment"]
    samples = rows["samples"]
    columns = (classes, files, rows["spread"], origins, samples[:, :HEAD], samples[:, HEAD:])
    body: list[Buffer] = [column.tobytes() for column in columns]
    hasher = xxhash.xxh3_64()
    for part in body:
        hasher.update(part)
    counts = (len(classes), len(rows), len(files))
    head = _HEADER.pack(_MAGIC, _VERSION, 0, *counts, hasher.intdigest(), 0)[:-_SUM]
    return [head + xxhash.xxh3_64_digest(head)[::-1], *body]


def merge_sketches(storage: Storage, refs: Sequence[SketchRef]) -> tuple[Files, Rows]:
    """The files and rows of these objects; what is damaged or gone is left out.

    Raises UnsupportedVersionError when one is of a newer format: its rows are not ours to drop.
    """
    parts = []
    for ref in refs:
        try:
            sketches = Sketches.open(storage, ref)
            sketches.check()
        except (CorruptDataError, NotFoundError):
            continue
        parts.append((sketches.files, sketches.table()))
    return joined(parts)


def joined(parts: Sequence[tuple[Files, Rows]]) -> tuple[Files, Rows]:
    """Several files with their rows as one; `file` of the rows given is changed."""
    all_files, all_rows = [np.empty(0, FILE_DTYPE)], [np.empty(0, ROW_DTYPE)]
    count = 0
    for files, rows in parts:
        rows["file"] += count
        count += len(files)
        all_files.append(files)
        all_rows.append(rows)
    return np.concatenate(all_files), np.concatenate(all_rows)


def _each_once(files: Files, rows: Rows) -> tuple[Files, Rows]:
    """Every manifest that has rows once, and a copy of the rows, no two of one tensor."""
    joined = files["manifest"].tobytes()
    first: dict[Id, int] = {}
    table = np.empty(len(files), np.uint32)
    for number in range(len(files)):
        manifest = joined[number * ID_SIZE : (number + 1) * ID_SIZE]
        table[number] = first.setdefault(manifest, number)
    rows = rows.copy()
    rows["file"] = table[rows["file"]]
    tensors = rows["file"].astype(np.uint64) << np.uint64(32) | rows["segment"]
    rows = rows[np.unique(tensors, return_index=True)[1]]
    used, rows["file"] = np.unique(rows["file"], return_inverse=True)
    return files[used], rows


def _sizes(classes: int, files: int, rows: int) -> tuple[int, ...]:
    """Bytes of each column."""
    return (
        classes * CLASS_DTYPE.itemsize,
        files * FILE_DTYPE.itemsize,
        rows * 4,
        rows * ORIGIN_DTYPE.itemsize,
        rows * 2 * HEAD,
        rows * 2 * (SAMPLES - HEAD),
    )
