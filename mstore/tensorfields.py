"""How manifests keep tensors and views: maps of plain values.

What is read back is checked as strictly as what comes from a parser.
"""

from math import prod
from typing import Any, get_args

from mstore.canonical import checked_size, typed
from mstore.dtypes import BY_NAME
from mstore.layout import Recoded, Recoding, Strided, Tensor, Tiled, View, check_view

MAX_DIMENSIONS = 64
MAX_ELEMENTS = 1 << 58

_CODES: dict[str, Recoding] = {code: code for code in get_args(Recoding)}


def tensor_to_map(tensor: Tensor) -> dict[str, object]:
    """The fields of a tensor."""
    described: dict[str, object] = {
        "dtype": tensor.dtype.name,
        "name": tensor.name,
        "shape": list(tensor.shape),
    }
    if tensor.order != "C":
        described["order"] = tensor.order
    if tensor.kind:
        described["kind"] = tensor.kind
    return described


def tensor_from_map(fields: dict[str, Any]) -> Tensor:
    """The tensor that these fields describe.

    Raises KeyError, TypeError, ValueError or a subclass of MstoreError when they describe none.
    """
    shape = tuple(checked_size(extent) for extent in fields["shape"])
    if len(shape) > MAX_DIMENSIONS or prod(extent or 1 for extent in shape) > MAX_ELEMENTS:
        raise ValueError("a shape is out of range")
    order = fields.get("order", "C")
    if order not in ("C", "F"):
        raise ValueError("unknown element order")
    kind = typed(fields.get("kind", ""), str)
    return Tensor(typed(fields["name"], str), BY_NAME[fields["dtype"]], shape, order, kind)


def view_to_map(view: View) -> dict[str, object]:
    """The fields of a view: those of its tensor, and where it lies."""
    described, place = tensor_to_map(view.tensor), view.place
    if isinstance(place, Strided):
        return {**described, "offset": place.offset, "strides": list(place.strides)}
    if isinstance(place, Tiled):
        tiles = {"tile": list(place.tile), "offsets": list(place.offsets), "fill": place.fill}
        return {**described, **tiles}
    return {
        **described,
        "code": place.code,
        "offset": place.offset,
        "length": place.length,
        "size": place.size,
        "start": place.start,
    }


def view_from_map(fields: dict[str, Any], size: int) -> View:
    """The view of a file of `size` bytes that these fields describe; raises as tensors do."""
    view = View(tensor_from_map(fields), _place(fields))
    check_view(view, size)
    return view


def _place(fields: dict[str, Any]) -> Strided | Tiled | Recoded:
    if "strides" in fields:
        strides = tuple(checked_size(stride) for stride in fields["strides"])
        return Strided(checked_size(fields["offset"]), strides)
    if "tile" in fields:
        tile = tuple(checked_size(extent) for extent in fields["tile"])
        offsets = tuple(typed(offset, int) for offset in fields["offsets"])
        return Tiled(tile, offsets, typed(fields["fill"], bytes))
    numbers = (checked_size(fields[key]) for key in ("offset", "length", "size", "start"))
    return Recoded(_CODES[fields["code"]], *numbers)
