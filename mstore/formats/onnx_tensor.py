"""One tensor of an ONNX model, a TensorProto: its type and shape, and where its data lies.

    1 dims · 2 data_type · 3 segment · 8 name · 14 data_location (1: external)
    the data, in one of: 9 raw_data (little-endian bytes) · 4 float_data · 5 int32_data ·
    6 string_data · 7 int64_data · 10 double_data · 11 uint64_data
    13 external_data {1 key, 2 value}: location, offset, length, checksum

Packed numbers of `float_data` and `double_data` are the same bytes as `raw_data`. Those of the
integers are varints, so such a tensor stays opaque. Many numbers in an attribute, such as the
thresholds of trees, are a tensor, too. Elements of less than a byte are packed from
the low bits of each byte on. Source: `onnx.in.proto` and `docs/ExternalData.md` of ONNX.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from math import prod

from mstore.dtypes import BY_NAME, DType
from mstore.errors import FormatError, LimitExceededError
from mstore.formats.base import MAX_DIMS, check_shape, quote
from mstore.formats.protobuf import BYTES, FIXED32, Field, Wire
from mstore.layout import Tensor

MAX_TEXT = 1 << 16
"""Most bytes of a name, a location or another text."""

MIN_FLOATS = 16
"""Fewest numbers of an attribute that are a tensor; fewer are mostly settings."""

_TYPES: dict[int, DType] = {
    number: BY_NAME[name]
    for number, name in [
        (1, "f32"), (2, "u8"), (3, "i8"), (4, "u16"), (5, "i16"), (6, "i32"), (7, "i64"),
        (9, "bool"), (10, "f16"), (11, "f64"), (12, "u32"), (13, "u64"), (14, "c64"),
        (15, "c128"), (16, "bf16"), (17, "f8_e4m3"), (18, "f8_e4m3fnuz"), (19, "f8_e5m2"),
        (20, "f8_e5m2fnuz"), (23, "f4"), (24, "f8_e8m0"), (27, "f6_e2m3"), (28, "f6_e3m2"),
    ]
}  # fmt: skip

# Types that are rows of bytes here: their bits, and what their own library calls them.
_PACKED = {21: (4, "uint4"), 22: (4, "int4"), 25: (2, "uint2"), 26: (2, "int2")}
_STRING = 8
_FLOAT = BY_NAME["f32"]
_APART = "with numbers apart from each other"
_UNKNOWN = "of types that are not known"

_FLOATS, _RAW, _DOUBLES = 4, 9, 10
_DATA = {_FLOATS, 5, 6, 7, _RAW, _DOUBLES, 11}
_FLOAT_TYPES = {_FLOATS: (1, 14), _DOUBLES: (11, 15)}  # float_data and double_data, of which types
_NUMBER = re.compile(r"[0-9]{1,19}")
_MAX_ENTRIES = 64


@dataclass(frozen=True, slots=True)
class External:
    """Where the data of a tensor lies in another file: what the model says, never looked up.

    `base` is the folder that `location` counts from, by the rarely used entry `basepath`.
    """

    location: str
    offset: int
    length: int | None
    base: str


@dataclass(frozen=True, slots=True)
class Described:
    """A tensor, or why it is none, and where its data lies: in the file itself, or in another.

    The elements of one that is `tagged` are fields of their own, each behind a tag of one byte.
    """

    name: str
    place: int | External = 0
    tensor: Tensor | None = None
    why: str = ""
    tagged: bool = False

    def renamed(self, name: str) -> "Described":
        """The same under another name."""
        if name == self.name:
            return self
        return replace(self, name=name, tensor=self.tensor and replace(self.tensor, name=name))


@dataclass(slots=True)
class _Fields:
    """The fields of one TensorProto; of those with data that are not empty the first of each."""

    dims: list[int] = field(default_factory=list)
    data: dict[int, Field] = field(default_factory=dict)
    several: bool = False  # data in more than one field of the same number
    external: dict[str, str] = field(default_factory=dict)
    type: int = 0
    name: str = ""
    is_external: bool = False


def read_tensor(wire: Wire, message: Field, name: str | None = None) -> Described:
    """The tensor whose message is given, called `name` or as it calls itself.

    Raises FormatError, LimitExceededError.
    """
    fields = _read_fields(wire, message)
    name = fields.name if name is None else name
    if len(fields.data) + (len(fields.external) > 0) > 1:
        raise FormatError(f"{quote(name)} has its data twice")
    outside = _read_external(name, fields.external) if fields.is_external else None
    found = _element_type(name, fields)
    if found is None:
        return Described(name, outside or 0, why="" if fields.type == _STRING else _UNKNOWN)
    tensor, size = found
    if outside is not None:
        if outside.length not in (None, size):
            raise FormatError(f"{quote(name)} does not fill its {outside.length} bytes")
        return Described(name, outside, tensor)
    if not size and not fields.data:
        return Described(name, message.end, tensor)
    return _inside(name, fields, tensor, size)


def _inside(name: str, fields: _Fields, tensor: Tensor, size: int) -> Described:
    """The tensor if its data is bytes of the file itself."""
    if not fields.data:
        return Described(name, why="without data")
    ((number, data),) = fields.data.items()
    if number == _RAW:
        if fields.several or data.wire != BYTES:
            raise FormatError(f"the data of {quote(name)} is malformed")
    elif fields.type not in _FLOAT_TYPES.get(number, ()):
        return Described(name, why="with numbers as varints")
    elif fields.several or data.wire != BYTES:
        return Described(name, why=_APART)
    if data.size != size:
        raise FormatError(f"{quote(name)} does not fill its {data.size} bytes")
    return Described(name, data.start, tensor)


def _read_fields(wire: Wire, message: Field) -> _Fields:
    found = _Fields()
    for one in wire.inside(message, "a tensor"):
        if one.number in _DATA:
            if one.size:
                found.several |= one.number in found.data
                found.data.setdefault(one.number, one)
        elif one.number == 1:
            found.dims += wire.integers(one, MAX_DIMS, "the shape of a tensor")
            if len(found.dims) > MAX_DIMS:
                raise LimitExceededError(f"a tensor has more than {MAX_DIMS} dimensions")
        elif one.number == 2:
            found.type = one.value
        elif one.number == 3:
            raise FormatError("a tensor is a segment of another")
        elif one.number == 8:
            found.name = wire.text(one, MAX_TEXT, "the name of a tensor")
        elif one.number == 13:
            _add_entry(wire, one, found.external)
        elif one.number == 14:
            found.is_external = one.value == 1
    return found


def _add_entry(wire: Wire, message: Field, entries: dict[str, str]) -> None:
    """One entry of `external_data`."""
    key = value = ""
    for one in wire.inside(message, "external_data"):
        if one.number == 1:
            key = wire.text(one, MAX_TEXT, "a key of external_data")
        elif one.number == 2:
            value = wire.text(one, MAX_TEXT, "a value of external_data")
    if key in entries:
        raise FormatError(f"external_data has {quote(key)} twice")
    if len(entries) == _MAX_ENTRIES:
        raise LimitExceededError(f"external_data has more than {_MAX_ENTRIES} entries")
    entries[key] = value


def _element_type(name: str, fields: _Fields) -> tuple[Tensor, int] | None:
    """The tensor and the bytes of its data; None for a type that is not known."""
    shape = tuple(fields.dims)
    if (dtype := _TYPES.get(fields.type)) is not None:
        count = _count(name, shape)
        if count * dtype.bits % 8 == 0:
            return Tensor(name, dtype, shape), check_shape(dtype, shape, quote(name))
        bits, kind = dtype.bits, dtype.numpy
    elif fields.type in _PACKED:
        (bits, kind), count = _PACKED[fields.type], _count(name, shape)
    else:
        return None
    size = -(-count * bits // 8)
    return Tensor(name, BY_NAME["u8"], (size,), kind=kind), size


def _count(name: str, shape: tuple[int, ...]) -> int:
    """The number of elements; raises as `check_shape` does."""
    check_shape(BY_NAME["u8"], shape, quote(name))
    return prod(shape)


def _read_external(name: str, entries: dict[str, str]) -> External:
    if not entries.get("location"):
        raise FormatError(f"{quote(name)} lies in another file, but none is named")
    numbers: list[int | None] = []
    for key in ("offset", "length"):
        text = entries.get(key)
        if text is not None and _NUMBER.fullmatch(text) is None:
            raise FormatError(f"the {key} of {quote(name)} is no number")
        numbers.append(text if text is None else int(text))
    offset, length = numbers
    return External(entries["location"], offset or 0, length, entries.get("basepath", ""))


@dataclass(slots=True)
class Floats:
    """The numbers of an attribute, which come one by one (in field 7), or packed into one field."""

    _start: int = 0
    _count: int = 0
    _tagged: bool = False
    _scattered: bool = False

    def add(self, one: Field) -> None:
        """Take a field of numbers. Raises FormatError if it is none."""
        if one.wire != FIXED32 and (one.wire != BYTES or one.size % _FLOAT.itemsize):
            raise FormatError("an attribute has malformed numbers")
        if not self._count:
            self._start, self._tagged = one.start, one.wire == FIXED32
        else:
            end = self._start + self._count * (_FLOAT.itemsize + 1)
            next_one = self._tagged and one.wire == FIXED32 and one.start == end
            self._scattered |= not next_one
        self._count += one.size // _FLOAT.itemsize

    def described(self, name: str) -> Described | None:
        """The numbers as a tensor, if they are enough."""
        if self._count < MIN_FLOATS:
            return None
        if self._scattered:
            return Described(name, why=_APART)
        return Described(
            name, self._start, Tensor(name, _FLOAT, (self._count,)), tagged=self._tagged
        )


def read_sparse(wire: Wire, message: Field, name: str | None = None) -> Iterator[Described]:
    """The two tensors of a SparseTensorProto: {1 values, 2 indices, 3 dims}.

    The values have the name of the whole. Raises as `read_tensor` does.
    """
    values = indices = None
    for one in wire.inside(message, "a sparse tensor"):
        if one.number == 1:
            values = one
        elif one.number == 2:
            indices = one
    if values is not None and name is None:
        name = read_tensor(wire, values).name
    for part, called in ((values, "values"), (indices, "indices")):
        if part is not None:
            yield read_tensor(wire, part, f"{name}/{called}")
