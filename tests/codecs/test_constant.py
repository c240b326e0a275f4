import pytest
from hypothesis import given
from hypothesis import strategies as st

from mstore.codecs.constant import Constant
from mstore.dtypes import BY_NAME
from mstore.errors import CorruptDataError


def decode(payload: bytes, length: int) -> bytes:
    out = bytearray(b"\xa5" * length)
    Constant().decode(memoryview(payload), memoryview(out))
    return bytes(out)


@pytest.mark.parametrize("name", sorted(BY_NAME))
@pytest.mark.parametrize("count", [2, 3, 64, 1000])
def test_one_value_takes_one_element(name: str, count: int) -> None:
    dtype = BY_NAME[name]
    unit = bytes(range(7, 7 + dtype.itemsize))
    parts = Constant().encode(memoryview(unit * count), dtype)
    assert parts == [unit]
    assert decode(unit, len(unit) * count) == unit * count


@given(st.integers(2, 300), st.data())
def test_a_chunk_with_one_odd_byte_is_not_constant(count: int, data: st.DataObject) -> None:
    raw = bytearray(b"\x00\x00\x80\x3f" * count)
    raw[data.draw(st.integers(0, len(raw) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    assert Constant().encode(memoryview(raw), BY_NAME["f32"]) is None


@pytest.mark.parametrize("raw", [b"", b"abcd", b"abcdabcda"])
def test_less_than_two_whole_elements_are_left_alone(raw: bytes) -> None:
    assert Constant().encode(memoryview(raw), BY_NAME["f32"]) is None


def test_opaque_bytes_repeat_by_the_byte() -> None:
    assert Constant().encode(memoryview(b"aaaa"), None) == [b"a"]
    assert Constant().encode(memoryview(b"abab"), None) is None


@given(st.binary(min_size=1, max_size=20), st.integers(0, 50))
def test_any_unit_that_fits_is_read(unit: bytes, count: int) -> None:
    assert decode(unit, len(unit) * count) == unit * count


@pytest.mark.parametrize(("payload", "length"), [(b"", 0), (b"", 4), (b"abc", 4), (b"abcde", 4)])
def test_a_unit_that_does_not_fit_is_refused(payload: bytes, length: int) -> None:
    with pytest.raises(CorruptDataError):
        decode(payload, length)
