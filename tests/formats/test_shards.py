"""Warnings about the index of a model in several files."""

import json

import pytest

from mstore.formats import shards
from mstore.formats.shards import check_shards


def index(*names):
    return json.dumps({"metadata": {}, "weight_map": {f"w{i}": n for i, n in enumerate(names)}})


def test_all_there():
    assert check_shards(index("a", "b", "a"), {"a", "b", "c"}) == []


def test_missing_shards_are_named_once():
    (warning,) = check_shards(index("b", "a", "b", "\x1b[2J"), {"a"})
    assert warning == "the shard index names files that are not here: '\\x1b[2J', 'b'"


def test_many_missing_shards_are_counted():
    (warning,) = check_shards(index(*(f"{i:02}" for i in range(30))), [])
    assert warning.endswith("'00', '01', '02', '03', '04' and 25 more")


@pytest.mark.parametrize(
    "text",
    [
        "", "[]", "1", "{}", "{", '{"weight_map": []}', '{"weight_map": {"a": 1}}',
        '{"weight_map": {"a": ["x"]}}', '{"weight_map": {"a": "x", "a": "y"}}',
        '{"weight_map": {}, "x": NaN}', "[" * 100_000, '{"a":' * 100_000, "9" * 5000,
    ],
    ids=lambda text: text[:20],
)  # fmt: skip
def test_bad_content_is_a_warning(text):
    (warning,) = check_shards(text, ["x", "y"])
    assert warning.startswith("the shard index ")


def test_length_is_bounded(monkeypatch):
    monkeypatch.setattr(shards, "MAX_INDEX", 10)
    (warning,) = check_shards(index("a"), ["a"])
    assert "too long" in warning
