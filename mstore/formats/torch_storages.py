"""Which bytes of a file of `torch.save` are which tensor, from what its pickle says of storages.

A storage that a tensor covers whole, row- or column-major, is that tensor's segment, the first
one's where there are several. All other tensors are views of the storage: tied weights, slices,
expanded ones. A storage that no tensor covers is a segment all the same, a hidden one of one axis
called `storage:` and the name of the first tensor in it. Of a storage that is written as text only
those tensors are seen that cover it whole.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from mstore.dtypes import BY_NAME, DType
from mstore.errors import FormatError, LimitExceededError
from mstore.formats.base import check_shape, quote
from mstore.formats.naming import Names
from mstore.formats.notes import note_on
from mstore.formats.pickle_paths import join
from mstore.formats.shifting import Contents
from mstore.formats.torch_tensors import Use
from mstore.layout import Order, Recoded, Strided, Tensor, View

MAX_TENSORS = 200_000
"""Most tensors in a file."""

_MATERIAL = "storage:"  # before the name of a tensor: the storage that only views see


@dataclass(frozen=True, slots=True)
class Place:
    """Where in the file the bytes of a storage are, or `why` they are not there as they are.

    The `offset` of bytes that are `coded` is not one of the file: they are from there on in these.
    """

    offset: int
    size: int
    why: str = ""
    coded: Recoded | None = None


def arrange(
    uses: Sequence[Use], places: Mapping[str, Place], *, big_endian: bool
) -> tuple[Contents, str | None]:
    """What a file with these tensors holds, and what to tell of those left out.

    `places` are those of the storages by their keys.

    Raises FormatError if a storage is missing or has another size than a tensor says, or if a
    tensor leaves its storage; LimitExceededError for too many tensors or too long names.
    """
    if len(uses) > MAX_TENSORS:
        raise LimitExceededError(f"it has more than {MAX_TENSORS} tensors")
    for use in uses:
        _check(use, _place(use, places))
    whole = _wholes(uses, places)
    plan = _Plan(big_endian)
    for number, use in enumerate(uses):
        plan.add(use, _place(use, places), whole=whole.get(use.storage.key) == number)
    for use in uses:
        if use.storage.key not in whole:
            plan.add_hidden(use, _place(use, places))
    return Contents(tuple(plan.tensors), frozenset(plan.hidden), tuple(plan.views)), plan.note()


def _place(use: Use, places: Mapping[str, Place]) -> Place:
    if (place := places.get(use.storage.key)) is None:
        raise FormatError(f"its storage {quote(use.storage.key)} is missing")
    return place


def _check(use: Use, place: Place) -> None:
    """Raise FormatError if a storage has another size than is said, or a tensor leaves it."""
    storage = use.storage
    if storage.nbytes not in (None, place.size):
        raise FormatError(
            f"its storage {quote(storage.key)} has {place.size} bytes, "
            f"but should have {storage.nbytes}"
        )
    if use.dtype is not None:
        what = f"its tensor {quote(join(use.path))}"
        check_shape(use.dtype, _packed(use.dtype, use.shape), what)
        known = storage.nbytes is not None or not place.why
        if known and storage.start + use.reach * use.dtype.itemsize > place.size:
            raise FormatError(f"{what} leaves its storage")


def _wholes(uses: Sequence[Use], places: Mapping[str, Place]) -> dict[str, int]:
    """For each storage that a tensor covers whole, by its key, the number of the first such use."""
    found: dict[str, int] = {}
    for number, use in enumerate(uses):
        place = places[use.storage.key]
        covers = use.exact and not place.why and _order_there(use, place) is not None
        if covers and use.storage.key not in found:
            found[use.storage.key] = number
    return found


def _order_there(use: Use, place: Place) -> Order | None:
    """The order in which a tensor covers a storage; None if it does not.

    Numbers that share a byte are neighbours along the last axis, whatever the order of the bytes.
    """
    if use.dtype is None or place.size % use.dtype.itemsize:
        return None
    order = use.order_of_all(place.size // use.dtype.itemsize)
    return None if order == "F" and use.dtype.bits < 8 else order


def _why_left_out(use: Use, place: Place, *, whole: bool) -> str | None:
    """Why a tensor cannot be described; None if it can."""
    if use.storage.nbytes is None and place.why:
        return place.why
    if use.dtype is None:
        return f"is of type {quote(use.kind)}"
    if not use.exact:
        return "is the conjugate or the negative of what is stored"
    if use.dtype.bits < 8 and not whole:
        return f"has elements of {use.dtype.bits} bits, and is no whole storage in row-major order"
    if place.coded and _order_there(use, place) is None:
        return "is a part of what is written as text"
    return place.why or None


def _packed(dtype: DType, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of single numbers, of which torch counts as one those that share a byte."""
    per_byte = dtype.itemsize * 8 // dtype.bits
    if per_byte == 1:
        return shape
    return (*shape[:-1], per_byte * shape[-1]) if shape else (per_byte,)


@dataclass(slots=True)
class _Plan:
    """What is known of the file's tensors so far."""

    big_endian: bool
    tensors: list[tuple[int, Tensor]] = field(default_factory=list)
    views: list[View] = field(default_factory=list)
    hidden: set[str] = field(default_factory=set)
    left: list[tuple[str, str]] = field(default_factory=list)
    _names: Names = field(default_factory=Names)
    _stored: set[str] = field(default_factory=set)

    def add(self, use: Use, place: Place, *, whole: bool) -> None:
        """A tensor: a segment if it is the `whole` storage, else a view; or none of both."""
        if why := _why_left_out(use, place, whole=whole):
            self.left.append((join(use.path), why))
        elif use.dtype is not None:
            name, order = self._names.add(join(use.path)), _order_there(use, place)
            dtype, shape = self._as_stored(use.dtype), _packed(use.dtype, use.shape)
            seen_whole = whole or place.coded
            tensor = Tensor(
                name, dtype, shape, order if seen_whole and order else "C", use.stands_for
            )
            if place.coded:
                self.views.append(View(tensor, place.coded))
            elif whole:
                self.tensors.append((place.offset, tensor))
            else:
                self.views.append(View(tensor, _strided(use, use.dtype, place)))

    def add_hidden(self, use: Use, place: Place) -> None:
        """The storage of a tensor, if it is not there yet and the type of its elements is known."""
        key, dtype = use.storage.key, use.dtype
        if place.why or place.coded or not place.size or dtype is None or key in self._stored:
            return
        self._stored.add(key)
        if dtype.bits < 8 or place.size % dtype.itemsize:
            dtype = BY_NAME["u8"]
        name = self._names.add(_MATERIAL + join(use.path))
        count = place.size // dtype.itemsize
        self.tensors.append((place.offset, Tensor(name, self._as_stored(dtype), (count,))))
        self.hidden.add(name)

    def _as_stored(self, dtype: DType) -> DType:
        return BY_NAME.get(f">{dtype.name}", dtype) if self.big_endian else dtype

    def note(self) -> str | None:
        """What to tell of the tensors that are left out, and why they are."""
        return note_on(self.left, "{} of its tensors are not listed")


def _strided(use: Use, dtype: DType, place: Place) -> Strided:
    """Where the elements of a view are; strides that are never taken count as 0."""
    if 0 in use.shape:
        return Strided(place.offset, (0,) * len(use.shape))
    offset = place.offset + use.storage.start + use.offset * dtype.itemsize
    steps = zip(use.shape, use.strides, strict=True)
    return Strided(offset, tuple(stride * dtype.itemsize * (size > 1) for size, stride in steps))
