"""How far apart the elements of a tensor lie."""

from collections.abc import Sequence

from mstore.layout import Order


def dense_strides(shape: Sequence[int], step: int, order: Order = "C") -> tuple[int, ...]:
    """The strides in bytes, one per axis, of elements of `step` bytes with none between them."""
    strides: list[int] = []
    for extent in shape if order == "F" else reversed(shape):
        strides.append(step)
        step *= extent
    return tuple(strides if order == "F" else reversed(strides))
