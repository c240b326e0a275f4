"""What has been read of a file is read once, and forgotten with the file."""

import gc
import weakref
from contextlib import suppress

import pytest

from mstore.errors import FormatError, LimitExceededError, UnsafeInputError
from mstore.formats.base import BytesReader, WindowReader
from mstore.formats.remembered import Kept, Remembered


@pytest.fixture
def calls():
    return []


def test_each_window_of_a_file_is_read_once(calls):
    read = Remembered(lambda reader: calls.append(1) or reader.read(0, 9))
    file = BytesReader(b"0123456789")
    assert read(file) == b"012345678"
    for window in (
        WindowReader(file, 2, 5),
        WindowReader(WindowReader(file, 1, 8), 1, 5),
        WindowReader(file, 2, 5),
    ):
        assert read(window) == b"23456"
    assert read(WindowReader(file, 2, 4)) == b"2345"
    assert read(file) == b"012345678"
    assert len(calls) == 3
    assert read(BytesReader(b"0123456789")) == b"012345678"
    assert len(calls) == 4


@pytest.mark.parametrize(
    ("kind", "times"), [(FormatError, 1), (LimitExceededError, 1), (UnsafeInputError, 2)]
)
def test_errors_of_the_content_are_raised_again(calls, kind, times):
    def fail(reader):
        calls.append(1)
        raise kind("it is wrong")

    read, file = Remembered(fail), BytesReader(b"x")
    raised = []
    for _ in range(2):
        with pytest.raises(kind, match="it is wrong") as caught:
            read(file)
        raised.append(caught.value)
    assert raised[0] is not raised[1]
    assert len(calls) == times


@pytest.mark.parametrize("fails", [False, True])
def test_a_file_that_nobody_has_is_forgotten(fails):
    def look(reader):
        if fails:
            raise FormatError("it is wrong")
        return reader.size

    read, file = Remembered(look), BytesReader(b"x")
    with suppress(FormatError):
        read(WindowReader(file, 0, 1))
    gone = weakref.ref(file)
    del file
    gc.collect()
    assert gone() is None


def test_what_is_kept_of_a_window():
    kept, file = Kept(), BytesReader(b"0123456789")
    assert kept.get(file) is None
    assert kept.keep(WindowReader(file, 2, 5), ["a"]) == ["a"]
    assert kept.get(WindowReader(WindowReader(file, 1, 8), 1, 5)) == ["a"]
    assert kept.get(file) is None
    assert kept.get(BytesReader(b"0123456789")) is None
    gone = weakref.ref(file)
    del file
    gc.collect()
    assert gone() is None
