"""The literal parser agrees with Python on what numpy writes, and refuses all else."""

import ast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mstore.errors import FormatError, LimitExceededError, MstoreError
from mstore.formats.literal import MAX_DEPTH, parse_literal

PLAIN_TEXT = st.text(
    st.characters(codec="ascii", exclude_characters="\\\n'\"", min_codepoint=32, max_codepoint=126)
)
LITERALS = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-(10**20), 10**20), PLAIN_TEXT),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.lists(inner, max_size=4).map(tuple),
        st.dictionaries(PLAIN_TEXT, inner, max_size=4),
    ),
    max_leaves=15,
)


@settings(deadline=None)
@given(LITERALS)
def test_agrees_with_python(value):
    text = repr(value)
    assert parse_literal(text) == value == ast.literal_eval(text)
    assert parse_literal(f" {text}\n") == value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("(1)", 1),
        ("(1,)", (1,)),
        ("(1L, 20L)", (1, 20)),
        ("[1, ]", [1]),
        ("u'a'", "a"),
        ("b'<f4'", "<f4"),
        ("'ub'", "ub"),
        ('"it\'s"', "it's"),
        (r"'\''", r"\'"),
        ("()", ()),
        ("{}", {}),
        ("-3", -3),
    ],
)
def test_forms(text, value):
    assert parse_literal(text) == value


@pytest.mark.parametrize(
    "text",
    [
        "", " ", "1 2", "1+1", "-(1)", "--1", "~1", "2**9", "1.5", "1e5", "0x10", "1_0", "01", "1j",
        "x", "True1", "Trueish", "not True", "[1", "1]", "(1,,2)", "[,]", "(,)", "{1: 2}", "{'a'}",
        "{'a': 1, 'a': 2}", "{'a' 1}", "{'a': 1 'b': 2}", "[1 2]", "'a' 'b'", "'a", "'a\nb'",
        "'''a'''", "f'a'", "r'a'", "__import__('os')", "[i for i in (1,)]", "lambda: 1", "(1).real",
        "1 if 1 else 2", "{**{}}", "[*()]", "...", "1#", "\0", "1" * 31, "{'a': open('b')}",
    ],
)  # fmt: skip
def test_refused(text):
    with pytest.raises(FormatError):
        parse_literal(text)


@pytest.mark.parametrize("opener", ["(", "[", "{'a':"])
def test_depth(opener):
    with pytest.raises(LimitExceededError):
        parse_literal(opener * 5000)
    closer = {"(": ",)", "[": "]"}.get(opener, "}")
    assert parse_literal(opener * MAX_DEPTH + "1" + closer * MAX_DEPTH)
    with pytest.raises(LimitExceededError):
        parse_literal(opener * (MAX_DEPTH + 1) + "1" + closer * (MAX_DEPTH + 1))


@settings(deadline=None)
@given(st.text(st.sampled_from("()[]{}'\",:01L-TrueFalsNon u\\\n"), max_size=40))
def test_whatever_it_accepts_python_reads_the_same(text):
    try:
        value = parse_literal(text)
    except MstoreError:
        return
    if "L" not in text and "\\" not in text and "b" not in text:
        assert ast.literal_eval(text.strip()) == value
