"""Which bytes of its storages are the tensors of a file of torch.save."""

import zipfile

import numpy as np
import pytest
from torch_making import (
    FROM,
    V2,
    V3,
    Made,
    Named,
    archive,
    said,
    shapes,
    storage,
    tensor,
    tensors_of,
)

from mstore.formats.base import BytesReader
from mstore.formats.detect import describe


def test_what_covers_a_storage():
    whole = tensor()
    hidden = {"storage:v": ("f32", (6,), "hidden")}
    for view, shape, order in [
        (tensor(shape=(6,), strides=(1,)), (6,), "C"),
        (tensor(shape=(1, 6, 1), strides=(9, 1, 7)), (1, 6, 1), "C"),
        (tensor(shape=(3, 2), strides=(1, 3)), (3, 2), "F"),
        (tensor(shape=(1, 2, 3), strides=(1, 1, 2)), (1, 2, 3), "F"),
        (tensor(shape=(2, 3), strides=(1, 1)), (2, 3), "view"),
        (tensor(shape=(3,), strides=(2,)), (3,), "view"),
        (tensor(shape=(5,), strides=(1,), offset=1), (5,), "view"),
        (tensor(shape=(), strides=(), offset=5), (), "view"),
        (tensor(shape=(2**20, 6), strides=(0, 1)), (2**20, 6), "view"),
        (tensor(shape=(6, 0), strides=(2**70, 1)), (6, 0), "view"),
    ]:
        expected = {"v": ("f32", shape, order)} | (hidden if order == "view" else {})
        assert shapes({"v": view}) == expected
        if order == "view":
            assert shapes({"v": view, "w": whole}) == {
                "w": ("f32", (2, 3), "C"),
                "v": ("f32", shape, "view"),
            }
        else:
            assert shapes({"v": view, "w": whole}) == {
                "v": ("f32", shape, order),
                "w": ("f32", (2, 3), "view"),
            }


def test_a_view_has_the_elements_at_its_strides():
    for view, expected in [
        (tensor(shape=(2, 2), strides=(3, 2)), [0, 2, 3, 5]),
        (tensor(shape=(3, 2), strides=(2, 1)), [0, 1, 2, 3, 4, 5]),
        (tensor(shape=(2, 3), strides=(0, 2), offset=1), [1, 3, 5, 1, 3, 5]),
        (tensor(shape=(1,), strides=(2**90,), offset=4), [4]),
    ]:
        _, order, raw = tensors_of(archive({"w": tensor(), "v": view}))["v"]
        assert (order, np.frombuffer(raw, np.float32).tolist()) == ("view", expected)


def test_the_storage_of_several_views_is_hidden_once():
    value = [tensor(shape=(5,), strides=(1,)), tensor(shape=(2,), strides=(1,), offset=3)]
    assert shapes(value) == {
        "0": ("f32", (5,), "view"),
        "1": ("f32", (2,), "view"),
        "storage:0": ("f32", (6,), "hidden"),
    }


def test_a_view_in_another_type():
    part = Made(
        Named(V3),
        storage("0", 24, "torch.UntypedStorage"), 1, (2, 3), (6, 2), False, None,
        Named("torch.int16"),
    )  # fmt: skip
    found = tensors_of(archive([tensor(), part]))
    assert [str(found[name][0].dtype) for name in ("0", "1")] == ["f32", "i16"]
    halves = np.arange(6, dtype=np.float32).view(np.int16)
    assert found["1"][2] == halves[[[1, 3, 5], [7, 9, 11]]].tobytes()
    big = shapes([part], byteorder=b"big")
    assert big == {"0": (">i16", (2, 3), "view"), "storage:0": (">i16", (12,), "hidden")}


def test_negative_tensors_are_left_out():
    negative = Made(
        Named(V2),
        storage("0", 6), 0, (2, 3), (3, 1), False, None, {"neg": True},
    )  # fmt: skip
    data = archive({"v": negative})
    assert shapes({"v": negative}) == {"storage:v": ("f32", (6,), "hidden")}
    assert describe(BytesReader(data))[1] == (
        "1 of its tensors are not listed: 'v' is the conjugate or the negative of what is stored"
    )
    assert shapes({"v": negative, "w": tensor()}) == {"w": ("f32", (2, 3), "C")}
    typed = Made(
        Named(V3),
        storage("0", 24, "torch.UntypedStorage"), 0, (2, 3), (3, 1), False, None,
        Named("torch.float32"), {"conj": True},
    )  # fmt: skip
    assert shapes({"v": typed}) == {"storage:v": ("f32", (6,), "hidden")}


def fours(shape, strides):
    """A tensor of pairs of numbers of 4 bits, in a storage of 24 bytes."""
    return Made(
        Named(V3),
        storage("0", 24, "torch.UntypedStorage"), 0, shape, strides, False, None,
        Named("torch.float4_e2m1fn_x2"),
    )  # fmt: skip


def test_packed_tensors_are_seen_where_they_are_a_storage():
    whole, turned = fours((24,), (1,)), fours((6, 4), (1, 6))
    assert shapes({"v": whole}) == {"v": ("f4", (48,), "C")}
    assert shapes({"v": fours((4, 6), (6, 1))}) == {"v": ("f4", (4, 12), "C")}
    why = "has elements of 4 bits, and is no whole storage in row-major order"
    for other in (whole, fours((12,), (2,)), turned):  # no array of single numbers has that order
        data = archive({"v": whole, "w": other})
        assert describe(BytesReader(data))[1] == f"1 of its tensors are not listed: 'w' {why}"
    assert shapes({"w": turned, "v": whole}) == {"v": ("f4", (48,), "C")}
    assert shapes({"w": turned}) == {"storage:w": ("u8", (24,), "hidden")}


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (tensor(count=24, kind="torch.QUInt4x2Storage"), "quint4x2"),
        (tensor(kind="my.Storage"), "my.Storage"),
        (storage("0", 6, "my.Storage"), "my.Storage"),
        (
            Made(
                Named(V3),
                storage("0", 24, "torch.UntypedStorage"),
                *(0, (2,), (1,), False, None, Named("torch.float128")),
            ),
            "torch.float128",
        ),
    ],
)
def test_unknown_types_are_told(value, kind):
    data = archive({"w": value})
    assert said(data) == f"1 of its tensors are not listed: 'w' is of type '{kind}'"


def test_what_is_made_of_a_storage_in_an_unknown_way_is_listed_as_the_storage():
    value = Made(Named("my.build"), storage("0", 6), 1)
    assert shapes({"w": value}) == {"w.0": ("f32", (6,), "C")}
    twice = Made(Named(FROM), Named(FROM), 0, (Named(V2), 0, (storage("0", 6),), None), None)
    assert shapes({"w": twice}) == {"w.2.0": ("f32", (6,), "C")}


def test_a_storage_by_itself_is_a_tensor_of_one_axis():
    assert shapes([storage("0", 6)]) == {"0": ("f32", (6,), "C")}
    assert shapes([storage("0", 24, "torch.storage.UntypedStorage"), tensor()]) == {
        "0": ("u8", (24,), "C"),
        "1": ("f32", (2, 3), "view"),
    }
    odd = Made(
        Named(V3),
        storage("0", 5, "torch.UntypedStorage"), 0, (1,), (1,), False, None, Named("torch.uint16"),
    )  # fmt: skip
    assert shapes({"w": odd}, [b"12345"]) == {
        "w": ("u16", (1,), "view"),
        "storage:w": ("u8", (5,), "hidden"),
    }


def test_deflated_storages_stay_opaque():
    data = archive({"w": tensor()}, compression=zipfile.ZIP_DEFLATED)
    assert said(data) == "1 of its tensors are not listed: 'w' is compressed"
