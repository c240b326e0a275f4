"""Arrays of records: elements of several fields each, as numpy's structured types have them.

    array    records of one size, one after the other, in row- or column-major order
    record   its fields, perhaps with bytes between them that mean nothing
    field    an element, an array of some, or a record in the record

All elements of one field are a tensor, which is called by the array and the field: `nodes.left`.
It is a view of the records, which are hidden rows of bytes. A tensor of fields that are arrays
themselves has their axes behind its own.
"""

from dataclasses import dataclass
from math import prod

from mstore.dtypes import BY_NAME, DType
from mstore.formats.base import check_shape, quote
from mstore.formats.shifting import Contents
from mstore.formats.strides import dense_strides
from mstore.layout import Order, Strided, Tensor, View

_BYTES = BY_NAME["u8"]
_MATERIAL = "storage:"  # before the name of an array: the records that only views see


@dataclass(frozen=True, slots=True)
class RecordField:
    """A field of numbers, of which the first lies `offset` bytes from the start of its record.

    `name` has dots where the field is in a record in the record. If the field is an array, it has a
    `shape` and, for each axis, how many bytes apart its elements are. `kind` is that of `Tensor`.
    """

    name: str
    dtype: DType
    offset: int
    shape: tuple[int, ...] = ()
    strides: tuple[int, ...] = ()
    kind: str = ""


@dataclass(frozen=True, slots=True)
class Records:
    """An array called `name` of records of `itemsize` bytes, with those fields that are numbers."""

    name: str
    shape: tuple[int, ...]
    order: Order
    itemsize: int
    fields: tuple[RecordField, ...]

    def contents(self, offset: int) -> Contents:
        """The tensors of an array that starts at `offset` of its file.

        Raises LimitExceededError for a tensor of too many dimensions.
        """
        rows = Tensor(_MATERIAL + self.name, _BYTES, (prod(self.shape), self.itemsize))
        strides = dense_strides(self.shape, self.itemsize, self.order)
        views: list[View] = []
        for field in self.fields:
            name = f"{self.name}.{field.name}" if self.name else field.name
            shape = (*self.shape, *field.shape)
            size = check_shape(field.dtype, shape, quote(name))
            start = offset + field.offset if size else offset  # without records, the file may end
            place = Strided(start, (*strides, *field.strides))
            views.append(View(Tensor(name, field.dtype, shape, kind=field.kind), place))
        return Contents(((offset, rows),), frozenset([rows.name]), tuple(views))
