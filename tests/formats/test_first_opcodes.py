"""What cannot be the first byte of a pickle is not looked into: no unpickler gets past it."""

import io
import pickle
from itertools import product

import pytest

from mstore.formats.base import BytesReader
from mstore.formats.hazards import _FIRST_OPCODES, judge

CALL = b"cposix\nsystem\n(S'true'\ntR."
FILLINGS = [b"", b"\0", b"\n", b"0\n", b"1\n2\n", b"\0" * 4, b"\0" * 8, b"0", b"(", b"](K\0"]


class MetError(Exception):
    """A name was looked up."""


def looks_up(kind, data):
    """Whether this kind of unpickler comes to look up a name in `data`."""

    class Unpickler(kind):
        def find_class(self, module, name):
            raise MetError

        def persistent_load(self, key):
            return None

    try:
        Unpickler(io.BytesIO(data)).load()
    except MetError:
        return True
    except Exception:
        return False
    return False


@pytest.mark.parametrize("kind", [pickle.Unpickler, pickle._Unpickler])
def test_no_unpickler_gets_past_other_bytes(kind):
    others = sorted(set(range(256)) - _FIRST_OPCODES)
    assert len(others) > 200
    for first, filling in product(others, FILLINGS):
        assert not looks_up(kind, bytes([first]) + filling + CALL)


def test_what_a_pickle_can_begin_with_is_judged():
    for first in [b"", b"(", b"]", b"}", b")", b"N", b"K\0", b"\x80\x02", b"X\0\0\0\0"]:
        assert looks_up(pickle.Unpickler, first + CALL)
        assert judge(BytesReader(first + CALL), None).dangerous
