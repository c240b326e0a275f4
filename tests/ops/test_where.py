"""The language of `log --where`: what conditions mean, and what is told of wrong ones."""

import operator
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mstore.errors import InvalidInputError
from mstore.objects import Commit
from mstore.ops.where import parse_where

IDENTIFIER = bytes.fromhex("3f9a" + "00" * 30)
NOON = int(datetime(2024, 5, 31, 12, 0, tzinfo=UTC).timestamp()) * 1_000_000


def commit(metadata=None, *, author="Ana", message="first try", time=NOON, zone=0):
    return Commit(bytes(32), (), author, time, zone, message, metadata or {})


def holds(text, metadata=None, **fields):
    return parse_where(text)(commit(metadata, **fields), IDENTIFIER)


METADATA = {
    "loss": 0.25,
    "step": 100,
    "note": "run 7 (wip)",
    "done": True,
    "best": None,
    "tags": ["a"],
    "opt": {"lr": 1e-3, "name.x": "adam", "deep": {"er": 1}},
    "flat.key": 5,
    "author": "nobody",
    "bad": float("nan"),
    "text_number": "12",
    "big": float("inf"),
}


@pytest.mark.parametrize(
    "text",
    [
        "loss<0.3",
        "loss <0.3",
        " loss< 0.3 ",
        "loss<=.25",
        "loss>=2.5e-1",
        "loss>-1",
        "loss=0.25",
        "loss==.25",
        "loss!=1",
        "step=100.0",
        "step<1e30",
        "step<" + "9" * 5000,
        'step<"101" or step=100',
        'note="run 7 (wip)"',
        "note='run 7 (wip)'",
        "note~run*",
        'note~"*(wip)"',
        "note~'run [0-9]*'",
        'note>"run 6"',
        "done=true",
        "done!=false",
        "best=null",
        "opt.lr<0.01",
        "opt.name.x=adam",
        "opt.deep.er=1",
        "flat.key=5",
        "metadata.author=nobody",
        "author=Ana",
        "author!=ana",
        'message="first try"',
        r'message!="a \" quote"',
        'id="3f9a"',
        "id=3f9a",
        "id=3F9A0",
        "id~3f*",
        "big>1e308",
        "big=inf",
        "bad!=1",
        'text_number="12"',
        '"loss"<0.3',
        "not loss>0.3",
        "not not loss<0.3",
        "NOT loss>0.3 AND done=true",
        "loss>1 or loss<1",
        "loss<1 or done=false and done=false",
        "not (loss>1 or done=false)",
        "not loss>1 and done=true",
        "((loss<1))",
    ],
)
def test_true(text):
    assert holds(text, METADATA)


@pytest.mark.parametrize(
    "text",
    [
        "loss>0.3",
        "loss!=0.25",
        "(loss<1 or done=false) and done=false",
        "not loss<0.3",
        "missing<1",
        "missing!=1",
        "missing=null",
        "missing~*",
        "opt.none=1",
        "opt.lr.more=1",
        "opt=1",
        "loss.x=1",
        "tags=a",
        "tags!=a",
        "tags~a",
        "loss=text",
        "loss!=text",
        'loss="0.25"',
        "text_number=12",
        "done=1",
        "step=true",
        "done<true",
        "done>=true",
        "best<null",
        "best=0",
        "step~1*",
        "bad<1",
        "bad=1",
        "author=nobody",
        "note~RUN*",
        "id=9a",
        "id!=" + "3f9a" + "00" * 30,
    ],
)
def test_false(text):
    assert not holds(text, METADATA)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("time=2024", True),
        ("time=2024-05", True),
        ("time=2024-05-31", True),
        ("date=2024-05-31", True),
        ("time=2024-05-31T12:00", True),
        ("time='2024-05-31 12:00:00'", True),
        ("time=2024-05-31T12:00:00.5", False),
        ("time=2024-05-30", False),
        ("time!=2024-05-30", True),
        ("time<2024-05-31", False),
        ("time<=2024-05-31", True),
        ("time>2024-05-31", False),
        ("time>=2024-05-31", True),
        ("time>2024-04", True),
        ("time<2025", True),
        ("time>2024", False),
        ("time>=2024-05-31T12:00:01", False),
        ("time=2024-05-31T14:00:00+02:00", True),
        ("time=2024-05-31T12:00:00Z", True),
        ("time<2024-12", True),
        ("time>2023-12", True),
    ],
)
def test_time(text, expected):
    assert holds(text) is expected


def test_a_date_without_zone_is_that_of_the_authors_clock():
    late = int(datetime(2024, 5, 31, 23, 0, tzinfo=UTC).timestamp()) * 1_000_000
    assert holds("time=2024-06-01", time=late, zone=120)
    assert holds("time=2024-05-31", time=late, zone=0)
    assert holds("time=2024-05-31T23:00:00Z", time=late, zone=120)


@pytest.mark.parametrize(
    ("text", "character", "problem"),
    [
        ("", 1, "a key is expected"),
        ("loss", 5, "one of"),
        ("loss<", 6, "a value is expected"),
        ("loss<(", 6, "a value is expected"),
        ("loss<<1", 6, "a value is expected"),
        ("loss<1 step>2", 8, "`and`, `or` or the end"),
        ("loss<1 and", 11, "a key is expected"),
        ("loss<1 and or", 12, "a key is expected"),
        ("loss<1 or and x=1", 11, "a key is expected"),
        ("loss=and x=1", 6, "a value is expected"),
        ("(loss<1", 8, "a closing bracket"),
        ("loss<1)", 7, "`and`, `or` or the end"),
        ("loss='1", 6, "quotes are not closed"),
        ("<1", 1, "a key is expected"),
        ("loss<1 and x", 13, "one of"),
        ("time<yesterday", 6, "a date such as"),
        ("time<2024-13", 6, "a date such as"),
        ("time<2024-02-30", 6, "a date such as"),
        ("time=9999", 6, "a date such as"),
        ("time=0000", 6, "a date such as"),
        ("time~2024", 6, "no patterns"),
        ("()", 2, "a key is expected"),
        ("(" * 10_000, 51, "nested too deeply"),
        ("not " * 10_000, 201, "nested too deeply"),
    ],
)
def test_errors_show_where(text, character, problem):
    with pytest.raises(InvalidInputError) as caught:
        parse_where(text)
    assert f"(character {character}): " in caught.value.message
    assert problem in caught.value.message
    assert caught.value.hint


@given(st.text(alphabet="ab<>=!~() \t'\"\\.0129eandorttime-:TZ", max_size=30))
def test_any_text_is_a_condition_or_an_error(text):
    try:
        condition = parse_where(text)
    except InvalidInputError:
        return
    assert condition(commit(METADATA), IDENTIFIER) in (True, False)


_SIGNS = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "=": operator.eq,
    "!=": operator.ne,
}


@given(
    st.sampled_from(sorted(_SIGNS)),
    st.integers(-(10**25), 10**25) | st.floats(allow_nan=False),
    st.integers(-(2**63), 2**63 - 1) | st.floats(),
)
def test_numbers_compare_as_numbers(sign, wanted, found):
    assert holds(f"x{sign}{wanted!r}", {"x": found}) is _SIGNS[sign](found, wanted)


@given(st.text(max_size=20), st.sampled_from(["'", '"']))
def test_quoted_text_is_taken_as_it_is(text, quote):
    def quoted(value):
        return quote + value.replace("\\", "\\\\").replace(quote, "\\" + quote) + quote

    assert holds(f"{quoted('metadata.' + text)}={quoted(text)}", {text: text})


@given(st.recursive(st.booleans(), lambda inner: st.lists(inner, min_size=1, max_size=3)))
def test_and_or_not_and_brackets(tree):
    """A list is an alternation of odd, a conjunction of even depth; its first one is negated."""

    def written(node, depth):
        if isinstance(node, bool):
            return "yes=true" if node else "yes=false"
        parts = [written(part, depth + 1) for part in node]
        parts[0] = f"not {parts[0]}"
        return "(" + (" or " if depth % 2 else " and ").join(parts) + ")"

    def meant(node, depth):
        if isinstance(node, bool):
            return node
        values = [meant(part, depth + 1) for part in node]
        values[0] = not values[0]
        return any(values) if depth % 2 else all(values)

    assert holds(written(tree, 0), {"yes": True}) is meant(tree, 0)


def test_a_hostile_nest_of_metadata_is_walked_without_recursion():
    nested: dict[str, object] = {"x": 1}
    for _ in range(5000):
        nested = {"a": nested}
    assert holds("a." * 5000 + "x=1", nested)
