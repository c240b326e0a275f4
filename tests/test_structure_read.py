"""Structures that come from hostile files: only the types of the grammar, within the limits."""

import json
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mstore.errors import FormatError, LimitExceededError, MstoreError
from mstore.numpy_dtypes import array_from_bytes
from mstore.structure import MAX_STRUCTURE, STRUCTURE_KEY, flatten, restore

TENSORS = {
    "u": np.arange(16, dtype=np.uint8),
    "f": np.arange(3.0),
    "i": np.arange(4, dtype=np.int64).reshape(2, 2),
}


def restore_node(node, tensors=None):
    text = node if isinstance(node, str) else json.dumps(node)
    if tensors is None:  # only those it mentions, because an unused one is an error of its own
        tensors = {name: array for name, array in TENSORS.items() if f'"{name}"' in text}
    return restore({STRUCTURE_KEY: text}, tensors, tensors.__getitem__)


@pytest.mark.parametrize(
    "node",
    [
        [],
        ["nothing", 1],
        [1],
        [["list"]],
        ["os.system", "true"],
        ["array", "missing"],
        ["array", 1],
        ["array"],
        ["array", "u", None],
        ["array", "u", None, "X"],
        ["array", "u", "|O", "C"],
        ["array", "u", "O", "C"],
        ["array", "u", "object", "C"],
        ["array", "u", "float64", "C"],
        ["array", "u", "<f3", "C"],
        ["array", "u", "<U999999999", "C"],
        ["array", "u", "<M8[parsec]", "C"],
        ["array", "u", 5, "C"],
        ["array", "u", "<c16", "C"],
        ["array", "i", "<U4", "C"],
        ["array", "f", "<c16", "C"],
        ["array", "u", ["struct"], "C"],
        ["array", "u", ["struct", 4, False, ["a"]], "C"],
        ["array", "u", ["struct", 4, False, ["a", 0, "|O", []]], "C"],
        ["array", "u", ["struct", 4, False, ["a", 0, "<f8", []]], "C"],
        ["array", "u", ["struct", 4, False, ["a", -1, "<i2", []]], "C"],
        ["array", "u", ["struct", 4, False, ["a", 0, "|u1", [-1]]], "C"],
        ["array", "u", ["struct", 4, False, ["a", 0, "|u1", ["x"]]], "C"],
        ["array", "u", ["struct", "4", False, ["a", 0, "|u1", []]], "C"],
        ["array", "u", ["struct", 2**70, False, ["a", 0, "|u1", []]], "C"],
        ["array", "u", ["struct", 4, False, ["a", 0, "|u1", []], ["a", 1, "|u1", []]], "C"],
        ["list", ["array", "u"], ["array", "u"], ["array", "f"], ["array", "i"]],
        ["numbers", "list", "i"],
        ["numbers", "list", "u"],
        ["numbers", "set", "f"],
        ["blob", "bytes", "f"],
        ["blob", "memoryview", "u"],
        ["scalar", "<f4", "AAAA"],
        ["scalar", "<f4", "not base64!"],
        ["scalar", "|O", "AAAAAAAAAAA="],
        ["scalar", "<f4"],
        ["int", "0x1f"],
        ["int", "1_0"],
        ["int", 5],
        ["float", "nan"],
        ["float", "7ff8"],
        ["complex", "7ff8000000000000"],
        ["str", "/w=="],
        ["str", "é"],
        ["bytes", 5],
        ["bytes", "AAAA!"],
        ["str_", 5],
        ["str_"],
        ["dict", 1],
        ["dict", ["list"], 1],
        ["dict", ["tuple", ["list"]], 1],
        ["dict", {}, 1],
        ["dict", 1, 1, 1, 2],
        ["ordered", "a", 1, "a", 2],
        ["set", ["list"]],
        ["set", {}],
        ["set", 1, 1],
        ["frozenset", ["tuple", ["list"]]],
        ["objects"],
        ["objects", 3, 1, 2, 3],
        ["objects", [2], 1],
        ["objects", [-1], 1],
        ["objects", [True], 1],
        ["objects", [0, 2**62, 2**62]],
        ["objects", [1] * 100, 1],
        ["objects", ["1"], 1],
        "not json",
        '{"a": 1, "a": 2}',
        "[NaN]",
        "NaN",
        "9" * 5000,
        "",
    ],
    ids=lambda node: str(node)[:40],
)
def test_hostile_structures(node):
    with pytest.raises(FormatError):
        restore_node(node)


def test_every_tensor_must_be_used():
    with pytest.raises(FormatError, match="does not mention the tensor 'f'"):
        restore_node(["array", "u"], {"u": TENSORS["u"], "f": TENSORS["f"]})
    assert restore_node(["array", "u"]) is TENSORS["u"]


def deep_struct(depth):
    node = "|u1"
    for _ in range(depth):
        node = ["struct", 1, False, ["a", 0, node, []]]
    return node


@pytest.mark.parametrize(
    "node",
    [
        '["list",' * 201 + '["list"]' + "]" * 201,
        "[" * 100_000 + "]" * 100_000,
        " " * (MAX_STRUCTURE + 1),
        ["array", "u", deep_struct(17), "C"],
        ["scalar", ["struct", 0, False, *[[str(i), 0, "|V0", []] for i in range(10_001)]], ""],
    ],
    ids=range(5),
)
def test_structures_beyond_the_limits(node):
    with pytest.raises(LimitExceededError):
        restore_node(node)


RECORD = np.dtype([("a", "<i4"), ("b", [("c", ">f8")], (2, 2)), ("s", "S3")])


@settings(deadline=None, max_examples=200)
@given(st.data())
def test_any_change_of_a_structure_is_refused_or_harmless(data):
    file = flatten(
        {
            "a": [np.arange(3, dtype=">f4"), (1, 2.5, "x", b"b", np.float32(1))],
            "b": [1.5] * 64,
            1: np.zeros(2, RECORD),
            "s": "x" * 2000,
            "c": 1j,
        }
    )
    header = json.loads(file.header[8:])
    text = header["__metadata__"][STRUCTURE_KEY]
    tensors = {
        s.tensor.name: array_from_bytes(b, s.tensor.dtype, s.tensor.shape)
        for s, b in zip(file.layout.segments[1:], file.buffers, strict=True)
    }
    at = data.draw(st.integers(0, len(text) - 1))
    middle = data.draw(st.sampled_from(["", "[", "]", '"', ",", "1", "-", "x", "{", ":", "null"]))
    end = at + data.draw(st.sampled_from([0, 1, 5, len(text)]))
    with suppress(MstoreError):
        restore_node(text[:at] + middle + text[end:], tensors)


def test_a_mutated_structure_of_random_json_never_escapes():
    tags = ["list", "dict", "array", "numbers", "blob", "scalar", "int", "str_", "struct", "u"]
    nodes = st.recursive(
        st.one_of(st.none(), st.integers(), st.sampled_from(tags), st.text(max_size=3)),
        lambda inner: st.one_of(
            st.lists(inner, max_size=4),
            st.tuples(st.sampled_from(tags), inner, inner).map(list),
            st.dictionaries(st.text(max_size=2), inner, max_size=2),
        ),
    )

    @settings(deadline=None, max_examples=300)
    @given(nodes)
    def check(node):
        with suppress(MstoreError):
            restore_node(json.dumps(node))

    check()
