"""Layouts of files inside other files: where their tensors are, and what they are called."""

import pytest

from mstore.dtypes import BY_NAME
from mstore.errors import FormatError
from mstore.formats.shifting import Contents, cover_all, shifted
from mstore.layout import Recoded, Segment, Strided, Tensor, Tiled, View, cover

U8 = BY_NAME["u8"]


def tensor(name, *shape):
    return Tensor(name, U8, shape)


INNER = cover(
    "inner",
    10,
    [(2, tensor("w", 3)), (6, tensor("storage", 4))],
    hidden=["storage"],
    views=[
        View(tensor("strided", 2), Strided(6, (2,))),
        View(tensor("tiled", 3), Tiled((2,), (-1, 8), b"\0")),
        View(tensor("recoded", 4), Recoded("deflate", 0, 5, 9, 2)),
    ],
)


def test_everything_moves():
    contents = shifted(INNER, 100, "a/b")
    assert contents.tensors == ((102, tensor("a/b/w", 3)), (106, tensor("a/b/storage", 4)))
    assert contents.hidden == {"a/b/storage"}
    assert [(view.tensor.name, view.place) for view in contents.views] == [
        ("a/b/strided", Strided(106, (2,))),
        ("a/b/tiled", Tiled((2,), (-1, 108), b"\0")),
        ("a/b/recoded", Recoded("deflate", 100, 5, 9, 2)),
    ]


def test_names():
    unnamed = cover("inner", 3, [(0, tensor("", 3))])
    assert shifted(unnamed, 0, "a/b").tensors == ((0, tensor("a/b", 3)),)
    assert shifted(INNER, 0, "").tensors[0] == (2, tensor("w", 3))


def test_parts_cover_the_file():
    layout = cover_all("outer", 40, [shifted(INNER, 5, "a"), shifted(INNER, 20, "b")])
    assert layout.segments[:2] == (Segment(0, 7), Segment(7, 3, tensor("a/w", 3)))
    assert {s.tensor.name for s in layout.segments if s.hidden} == {"a/storage", "b/storage"}
    assert len(layout.views) == 6
    with pytest.raises(FormatError, match="overlaps"):
        cover_all("outer", 40, [shifted(INNER, 5, "a"), shifted(INNER, 9, "b")])


def test_equal_names_are_numbered():
    parts = [shifted(INNER, 10 * i, "a") for i in range(3)]
    parts.append(Contents(((35, tensor("a/w#2", 1)),)))
    layout = cover_all("outer", 40, parts)
    names = [s.tensor.name for s in layout.segments if s.tensor and not s.hidden]
    assert names == ["a/w", "a/w#2", "a/w#3", "a/w#2#2"]
    hidden = [s.tensor.name for s in layout.segments if s.hidden]
    assert hidden == ["a/storage", "a/storage#2", "a/storage#3"]
    assert layout.views[3].tensor.name == "a/strided#2"
