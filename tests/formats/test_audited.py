"""That watching a piece of code notices what it does."""

import pytest
from audited import NOTHING, events


@pytest.mark.parametrize(
    ("code", "told"),
    [
        ("1 + 1", ""),
        ("open('/dev/null').close()", "'open', ('/dev/null'"),
        ("import this", "'this'"),
    ],
)
def test_what_is_noticed(code, told):
    found = events("open('/dev/null').close()", code)
    assert told in found[1]
    assert (found == NOTHING) == (told == "")


def test_what_only_looks():
    assert events("ignored = ['builtins.id']", "id(1)") == NOTHING != events("", "id(1)")
