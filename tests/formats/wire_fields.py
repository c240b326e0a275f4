"""Messages of Protocol Buffers, written field by field, so that they may be wrong in any way."""


def coded(number: int) -> bytes:
    """A number as a varint; of a negative one the 64 bits."""
    number %= 1 << 64
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*out, number])


def field(number: int, value: int | bytes | tuple[int, bytes], length: int | None = None) -> bytes:
    """A field: an int as a varint, bytes with their length, an (n, bytes) of wire type n.

    The length may be a lie.
    """
    if isinstance(value, int):
        return coded(number << 3) + coded(value)
    if isinstance(value, bytes):
        size = len(value) if length is None else length
        return coded(number << 3 | 2) + coded(size) + value
    wire, raw = value
    return coded(number << 3 | wire) + raw
