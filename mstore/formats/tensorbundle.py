"""Checkpoints of TensorFlow, also those inside SavedModels (`variables/`): tensor bundles.

    X.index                  a sorted table: the key "" has the header {1 number of data files,
                             2 byte order, 3 version}, the key of each tensor its entry {1 type,
                             2 shape, 3 number of the data file, 4 offset, 5 size, 7 slices}
    X.data-00000-of-00002    the tensors of the first of two data files, one after the other

What a data file holds is said by the index beside it. Keys of variables in checkpoints of objects
end in "/.ATTRIBUTES/VARIABLE_VALUE", which is left out of their names. Tensors of strings stay
opaque. A tensor that was saved in slices has an entry for each, under a key that encodes its name
and the slice; slices along the first axis that lie one after the other are the tensor itself.
Source: `tensor_bundle.proto`, `tensor_bundle.h` and `saved_tensor_slice_util.cc` of TensorFlow.
"""

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from mstore.dtypes import BY_NAME
from mstore.errors import FormatError, LimitExceededError
from mstore.formats.base import MAX_DIMS, Format, check_shape, quote
from mstore.formats.companion import Companion, Placed
from mstore.formats.naming import Names
from mstore.formats.protobuf import VARINT, Field, Wire
from mstore.formats.sstable import read_table
from mstore.formats.tensorflow_types import NO_NUMBERS, TYPES
from mstore.layout import ByteReader, Layout, Tensor, cover

MAX_TENSORS = 100_000
"""Most entries of one index; the largest published checkpoints have some ten thousand."""

MAX_FIELDS = 3_000_000
"""Most fields of an index, as `Wire` counts; 20 for each tensor are usual."""

_SUFFIX = "/.ATTRIBUTES/VARIABLE_VALUE"
_DATA_FILE = re.compile(r"(.+)\.data-[0-9]{5,}-of-[0-9]{5,}", re.DOTALL)
# The first entry of the table, whose key is empty: a header of one or more files and a version.
_HEAD = re.compile(
    rb"\0\0[\x06-\x40]\x08[\x80-\xff]{0,2}[\x01-\x7f](?:\x10[\0\1])?\x1a[\x02-\x20]\x08[\x01-\x7f]"
)
_VERSION = 1
_MAX_SLICES = 4096

_Slice = tuple[tuple[int, int], ...]
"""Start and length along each axis; 0 and -1 for all of it."""


@dataclass(frozen=True, slots=True)
class _Entry:
    """What the index says of one tensor, or of one slice of one.

    `sliced` is the place of the message if the tensor was saved in slices, which it lists.
    """

    dtype: int
    shape: tuple[int, ...]
    file: int
    offset: int
    size: int
    sliced: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True)
class _Index:
    """All of an index: the number of data files, the byte order, and the entries by their keys."""

    wire: Wire
    files: int
    big_endian: bool
    entries: dict[bytes, _Entry]


class TensorBundleCompanion(Companion):
    """The data files of checkpoints, by the index beside them."""

    name = "tensorflow-data"

    def describers(self, name: str, names: Collection[str]) -> Iterable[str]:
        """The index of the same checkpoint, if it is there."""
        match = _DATA_FILE.fullmatch(name)
        return [index] if match and (index := f"{match[1]}.index") in names else []

    def parse(self, reader: ByteReader, describer: str) -> Mapping[str, Placed]:
        """The tensors in each data file."""
        return _placed(_read_index(reader), describer.removesuffix(".index"))


class TensorflowIndexFormat(Format):
    """The index of a checkpoint: opaque, but read to see whether it is in order."""

    name = "tensorflow-index"

    def sniff(self, head: bytes, reader: ByteReader) -> bool:
        """A table whose first key is empty, and whose value is a header."""
        return _HEAD.match(head) is not None

    def layout(self, reader: ByteReader) -> Layout:
        """One opaque segment."""
        return self.examine(reader)[0]

    def examine(self, reader: ByteReader) -> tuple[Layout, str | None]:
        """The layout, and how many tensors have types that are not known."""
        index = _read_index(reader)
        _placed(index, "")
        known = TYPES.keys() | NO_NUMBERS
        count = sum(entry.dtype not in known for entry in index.entries.values())
        note = f"opaque bytes for tensors: {count} of types that are not known" if count else None
        return cover(self.name, reader.size, []), note


def _show(key: bytes) -> str:
    return quote(key.decode("utf-8", "backslashreplace"))


def _read_index(reader: ByteReader) -> _Index:
    """All that an index says.

    Raises FormatError, LimitExceededError.
    """
    wire = Wire(reader, max_fields=MAX_FIELDS)
    table = read_table(reader)
    key, start, end = next(table, (b"?", 0, 0))
    if key:
        raise FormatError("it does not begin with a header")
    files, big_endian = _parse_header(wire, start, end)
    entries: dict[bytes, _Entry] = {}
    for key, start, end in table:
        if len(entries) == MAX_TENSORS:
            raise LimitExceededError(f"it names more than {MAX_TENSORS} tensors")
        entries[key] = entry = _parse_entry(wire, start, end)
        if entry.sliced is None and entry.file >= files:
            raise FormatError(f"{_show(key)} lies in a data file that is none")
    return _Index(wire, files, big_endian, entries)


def _number(field: Field) -> int:
    """A number that cannot be negative."""
    if field.wire != VARINT or field.value >> 63:
        raise FormatError("an entry has a bad number")
    return field.value


def _parse_header(wire: Wire, start: int, end: int) -> tuple[int, bool]:
    """The number of data files, and whether numbers are big-endian."""
    files, big_endian = 0, 0
    for field in wire.fields(start, end):
        if field.number == 1:
            files = _number(field)
        elif field.number == 2:
            big_endian = _number(field)
        elif field.number == 3:
            for inner in wire.inside(field, "the version"):
                if inner.number == 2 and _number(inner) > _VERSION:
                    raise FormatError("it is of a newer version than is known")
    if not 0 < files < 1 << 31 or big_endian > 1:
        raise FormatError("its header is malformed")
    return files, bool(big_endian)


def _parse_entry(wire: Wire, start: int, end: int) -> _Entry:
    numbers = dict.fromkeys((1, 3, 4, 5), 0)
    shape: tuple[int, ...] = ()
    sliced = None
    for field in wire.fields(start, end):
        if field.number in numbers:
            numbers[field.number] = _number(field)
        elif field.number == 2:
            shape = tuple(dim.get(1, 0) for dim in _axes(wire, field, 2, (1,)))
        elif field.number == 7:
            sliced = start, end
    return _Entry(numbers[1], shape, numbers[3], numbers[4], numbers[5], sliced)


def _parse_slices(wire: Wire, start: int, end: int) -> list[_Slice]:
    """The slices that an entry lists."""
    slices: list[_Slice] = []
    for field in wire.fields(start, end):
        if field.number == 7:
            axes = _axes(wire, field, 1, (1, 2))
            slices.append(tuple((axis.get(1, 0), axis.get(2, -1)) for axis in axes))
            if len(slices) > _MAX_SLICES:
                raise LimitExceededError(f"a tensor has more than {_MAX_SLICES} slices")
    if len(set(slices)) < len(slices):
        raise FormatError("a tensor has one slice twice")
    return slices


def _axes(wire: Wire, field: Field, number: int, wanted: tuple[int, ...]) -> list[dict[int, int]]:
    """Of each axis, which are fields of this number in a shape or a slice, the fields `wanted`."""
    axes: list[dict[int, int]] = []
    for part in wire.inside(field, "a shape"):
        if part.number == number:
            inner = wire.inside(part, "a dimension")
            axes.append({one.number: _number(one) for one in inner if one.number in wanted})
        if len(axes) > MAX_DIMS:
            raise LimitExceededError("a tensor has too many dimensions")
    return axes


def _placed(index: _Index, prefix: str) -> dict[str, Placed]:
    """The tensors in each data file of a checkpoint called `prefix`."""
    files: dict[str, list[tuple[int, Tensor]]] = {}
    names = Names()
    for name, entry in _without_slices(index):
        if (tensor := _tensor(names.add(name), entry, index.big_endian)) is not None:
            file = f"{prefix}.data-{entry.file:05}-of-{index.files:05}"
            files.setdefault(file, []).append((entry.offset, tensor))
    return dict(files)


def _tensor(name: str, entry: _Entry, big_endian: bool) -> Tensor | None:
    """The tensor of an entry; None if it holds no numbers of a known type."""
    known = TYPES.get(entry.dtype)
    if known is None:
        return None
    dtype, kind = known
    if big_endian and dtype.word > 1:
        dtype = BY_NAME[f">{dtype.name}"]
    if check_shape(dtype, entry.shape, quote(name)) != entry.size:
        raise FormatError(f"{quote(name)} does not fill its {entry.size} bytes")
    return Tensor(name, dtype, entry.shape, kind=kind)


def _without_slices(index: _Index) -> Iterable[tuple[str, _Entry]]:
    """The tensors by name: whole ones, and the slices of others.

    Entries of slices that no tensor has are left out, as TensorFlow never reads them.
    """
    for key, entry in index.entries.items():
        if key.startswith(b"\0"):
            continue
        try:
            name = key.decode("utf-8").removesuffix(_SUFFIX)
        except UnicodeDecodeError:
            raise FormatError(f"the name {_show(key)} is not UTF-8") from None
        if entry.sliced is None:
            yield name, entry
            continue
        slices = _parse_slices(index.wire, *entry.sliced)
        parts = [(one, _slice_entry(index.entries, key, entry, one)) for one in slices]
        if (whole := _join(entry, parts)) is not None:
            yield name, whole
            continue
        for slice_, part in parts:
            shown = ":".join(f"{start},{size}" if size >= 0 else "-" for start, size in slice_)
            yield f"{name}/slice/{shown}", part


def _slice_entry(
    entries: Mapping[bytes, _Entry], key: bytes, whole: _Entry, slice_: _Slice
) -> _Entry:
    """The entry of one slice of a tensor, which must be of the type and shape it has to be."""
    found = entries.get(_slice_key(key, slice_))
    if found is None or found.sliced is not None or found.dtype != whole.dtype:
        raise FormatError(f"a slice of {_show(key)} is missing")
    if len(slice_) == len(whole.shape) == len(found.shape):
        axes = zip(slice_, found.shape, whole.shape, strict=True)
        if all(
            start + size <= most and size == (most if length < 0 else length)
            for (start, length), size, most in axes
        ):
            return found
    raise FormatError(f"a slice of {_show(key)} has another shape")


def _join(whole: _Entry, parts: list[tuple[_Slice, _Entry]]) -> _Entry | None:
    """The whole tensor, if its slices along the first axis lie one after the other in one file."""
    parts = sorted(parts, key=lambda part: part[0][:1])
    first = parts[0][1]
    row, end = 0, first.offset
    for slice_, part in parts:
        along_first = whole.shape and part.shape[1:] == whole.shape[1:] and slice_[0][0] == row
        if not along_first or (part.file, part.offset) != (first.file, end):
            return None
        row += part.shape[0]
        end += part.size
    if row != whole.shape[0]:
        return None
    return _Entry(whole.dtype, whole.shape, first.file, first.offset, end - first.offset)


def _slice_key(name: bytes, slice_: _Slice) -> bytes:
    """The key of a slice: 0, its tensor's name, its axes, in a form that sorts as they do."""
    numbers = (number for extent in slice_ for number in extent)
    text = name.replace(b"\0", b"\0\xff") + b"\0\1"  # 0xff, escaped too, is not in UTF-8
    return b"\0" + text + _ordered(len(slice_)) + b"".join(map(_ordered_signed, numbers))


def _ordered(number: int) -> bytes:
    raw = number.to_bytes((number.bit_length() + 7) // 8, "big")
    return bytes([len(raw)]) + raw


def _ordered_signed(number: int) -> bytes:
    """As many leading ones as there are bytes, then a zero and the number; negatives inverted."""
    size = (number if number >= 0 else ~number).bit_length() // 7 + 1
    header = ((1 << size) - 1) << (7 * size)
    return (number % (1 << 8 * size) ^ header).to_bytes(size, "big")
