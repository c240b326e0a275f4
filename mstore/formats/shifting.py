"""What one file holds of tensors, as part of another file: for formats that contain others."""

from collections.abc import Iterable
from dataclasses import dataclass, replace

from mstore.formats.naming import Names
from mstore.layout import Layout, Recoded, Strided, Tensor, Tiled, View, cover


@dataclass(frozen=True, slots=True)
class Contents:
    """Tensors with their offsets, the names of those that are hidden, and views: for `cover`."""

    tensors: tuple[tuple[int, Tensor], ...] = ()
    hidden: frozenset[str] = frozenset()
    views: tuple[View, ...] = ()


def shifted(layout: Layout, offset: int, prefix: str) -> Contents:
    """What `layout` describes, for a file that holds the described one from `offset` on.

    Names get `prefix` and a slash before them; a tensor without a name gets `prefix` itself. An
    empty prefix changes no name.
    """
    return Contents(
        tuple(
            (offset + segment.offset, _named(segment.tensor, _joined(prefix, segment.tensor.name)))
            for segment in layout.segments
            if segment.tensor is not None
        ),
        frozenset(
            _joined(prefix, segment.tensor.name)
            for segment in layout.segments
            if segment.tensor is not None and segment.hidden
        ),
        tuple(
            View(_named(view.tensor, _joined(prefix, view.tensor.name)), _moved(view.place, offset))
            for view in layout.views
        ),
    )


def cover_all(format: str, size: int, parts: Iterable[Contents]) -> Layout:  # noqa: A002
    """The layout of a file of `size` bytes with all these contents; the rest is opaque.

    A tensor whose name is taken by one before it gets a number after it: `#2`. Raises FormatError
    as `cover` does, LimitExceededError as `Names` does, which is before it takes the next part.
    """
    tensors: list[tuple[int, Tensor]] = []
    hidden: set[str] = set()
    views: list[View] = []
    names = Names()
    for part in parts:
        for offset, tensor in part.tensors:
            unique = _named(tensor, names.add(tensor.name))
            tensors.append((offset, unique))
            if tensor.name in part.hidden:
                hidden.add(unique.name)
        views += [
            View(_named(view.tensor, names.add(view.tensor.name)), view.place)
            for view in part.views
        ]
    return cover(format, size, tensors, hidden=hidden, views=views)


def _joined(prefix: str, name: str) -> str:
    return f"{prefix}/{name}" if prefix and name else prefix or name


def _named(tensor: Tensor, name: str) -> Tensor:
    return tensor if name == tensor.name else replace(tensor, name=name)


def _moved(place: Strided | Tiled | Recoded, offset: int) -> Strided | Tiled | Recoded:
    if isinstance(place, Tiled):
        moved = tuple(tile if tile < 0 else tile + offset for tile in place.offsets)
        return replace(place, offsets=moved)
    return replace(place, offset=place.offset + offset)
