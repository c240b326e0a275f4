"""Where in a file the arrays of its pickles lie.

The first array whose elements are certain bytes of the file is their segment. Others with the same
bytes are views of them, and so are those whose axes lie in another order than the two of numpy, and
those that are written as text or as opcodes. Of records each field is a view.
"""

from dataclasses import dataclass, field, replace
from typing import Final

from mstore.dtypes import BY_NAME
from mstore.errors import FormatError, LimitExceededError
from mstore.formats.base import check_shape, quote
from mstore.formats.naming import Names
from mstore.formats.notes import note_on
from mstore.formats.pickle_arrays import Array
from mstore.formats.pickle_dtypes import ElementType
from mstore.formats.pickle_paths import Path, join
from mstore.formats.pickle_records import record_fields
from mstore.formats.pickle_values import Chars, Floats
from mstore.formats.records import RecordField, Records
from mstore.formats.strides import dense_strides
from mstore.layout import Layout, Order, Recoded, Recoding, Strided, Tensor, View, cover

MAX_TENSORS = 500_000
"""Most arrays in a file."""

MAX_STEPS = 200_000
"""Most fields of all types of records in a file, which may be in each other very often."""

_BYTES = BY_NAME["u8"]
_MATERIAL = "storage:"  # before the name of an array: the bytes that only views see

TEXTS: Final[dict[str, tuple[Recoding, int]]] = {"utf8": ("latin1", 2), "escaped": ("escaped", 10)}
"""How bytes are written as text, by the code of it, and how many bytes one may take there."""


def arrange(
    format: str,  # noqa: A002
    size: int,
    found: list[tuple[Path | None, Array]],
) -> tuple[Layout, str | None]:
    """The layout of a file of `size` bytes with these arrays, and what to tell of those left out.

    Raises FormatError for an array that does not have as many bytes as its shape and type say;
    LimitExceededError for too many arrays or too long names.
    """
    if len(found) > MAX_TENSORS:
        raise LimitExceededError(f"it has more than {MAX_TENSORS} arrays")
    plan = _Plan()
    for path, array in found:
        plan.add(join(path), array)
    layout = cover(format, size, plan.tensors, hidden=plan.hidden, views=plan.views)
    return layout, plan.note()


@dataclass(slots=True)
class _Plan:
    tensors: list[tuple[int, Tensor]] = field(default_factory=list)
    hidden: set[str] = field(default_factory=set)
    views: list[View] = field(default_factory=list)
    left: list[tuple[str, str]] = field(default_factory=list)
    _names: Names = field(default_factory=Names)
    _taken: set[int] = field(default_factory=set)
    _steps: int = 0
    _types: dict[int, tuple[object, tuple[RecordField, ...] | str]] = field(default_factory=dict)

    def add(self, path: str, array: Array) -> None:
        """Describe an array, or leave it out."""
        if array.content is None:
            self.left.append((path, array.why))
            return
        if array.dtype is None:
            self._add_other(path, array)
            return
        check_shape(array.dtype, array.shape, f"its array {quote(path)}")
        tensor = Tensor(self._names.add(path), array.dtype, array.shape, _order(array))
        place = array.content
        if isinstance(place, Floats):
            where = Recoded("floats", place.offset, place.end - place.offset, tensor.nbytes)
            self.views.append(View(tensor, where))
        elif place.code == "raw":
            _check_size(tensor, place, 1)
            self._add_raw(tensor, place.offset, array.axes)
        else:
            code, most = TEXTS[place.code]
            _check_size(tensor, place, most)
            if array.held not in (None, tensor.nbytes):
                raise _wrong_size(tensor, array.held)
            where = Recoded(code, place.offset, place.length, tensor.nbytes)
            self.views.append(View(tensor, where))

    def _add_other(self, path: str, array: Array) -> None:
        """Describe records, or leave an array out: in silence if it is meant to be no numbers."""
        kind = array.kind
        if not kind.is_record:
            if kind.unknown:
                self.left.append((path, f"has elements of type {quote(kind.unknown)}"))
            return
        fields = self._fields(kind)
        if isinstance(fields, str):
            self.left.append((path, fields))
        elif fields:
            self._add_records(path, array, fields)

    def _fields(self, kind: ElementType) -> tuple[RecordField, ...] | str:
        """What records are made of, or why they are not understood; worked out once for a type."""
        if (known := self._types.get(id(kind.state))) is not None:
            return known[1]
        fields: list[RecordField] = []
        why = ""
        for step in record_fields(kind):
            self._steps += 1
            if self._steps > MAX_STEPS:
                raise LimitExceededError(f"its records have more than {MAX_STEPS} fields")
            if isinstance(step, str):
                why = step
                break
            if step is not None:
                fields.append(step)
        self._types[id(kind.state)] = kind.state, (found := why or tuple(fields))
        return found

    def _add_records(self, path: str, array: Array, fields: tuple[RecordField, ...]) -> None:
        place, itemsize = array.content, array.kind.itemsize or 0
        if not isinstance(place, Chars) or place.code != "raw":
            self.left.append((path, "holds records that are written as text"))
            return
        if array.axes is not None:
            self.left.append((path, "holds records whose axes lie in another order"))
            return
        whole = (*array.shape, itemsize)
        check_shape(_BYTES, whole, f"its array {quote(path)}")
        _check_size(Tensor(path, _BYTES, whole), place, 1)
        found = Records(path, array.shape, _order(array), itemsize, fields).contents(place.offset)
        if place.offset not in self._taken:
            self._taken.add(place.offset)
            ((offset, rows),) = found.tensors
            material = self._names.add(rows.name)
            self.tensors.append((offset, replace(rows, name=material)))
            self.hidden.add(material)
        for view in found.views:
            tensor = replace(view.tensor, name=self._names.add(view.tensor.name))
            self.views.append(View(tensor, view.place))

    def _add_raw(self, tensor: Tensor, offset: int, axes: tuple[int, ...] | None) -> None:
        first = offset not in self._taken
        self._taken.add(offset)
        if first and axes is None:
            self.tensors.append((offset, tensor))
            return
        strides = dense_strides(tensor.shape, tensor.dtype.itemsize, tensor.order)
        if axes is None:
            axes = tuple(range(len(strides)))
        elif first:
            material = self._names.add(_MATERIAL + tensor.name)
            self.tensors.append((offset, Tensor(material, tensor.dtype, tensor.shape)))
            self.hidden.add(material)
        shape = tuple(tensor.shape[axis] for axis in axes)
        seen = Tensor(tensor.name, tensor.dtype, shape)
        self.views.append(View(seen, Strided(offset, tuple(strides[axis] for axis in axes))))

    def note(self) -> str | None:
        """What to tell of the arrays that stay opaque, and why they do."""
        return note_on(self.left, "opaque bytes for {} of its arrays")


def _order(array: Array) -> Order:
    return "F" if array.fortran and len(array.shape) > 1 else "C"


def _check_size(tensor: Tensor, place: Chars, most: int) -> None:
    """Raise FormatError if no elements are written so, each byte of which takes `most` at most."""
    if not tensor.nbytes <= place.length <= most * tensor.nbytes:
        raise _wrong_size(tensor, place.length)


def _wrong_size(tensor: Tensor, length: int | None) -> FormatError:
    return FormatError(
        f"its array {quote(tensor.name)} of {tensor.nbytes} bytes is written in {length}"
    )
