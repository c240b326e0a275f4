"""Decodes payloads of all codecs; written from docs/format.md alone, sharing no code with mstore.

A payload that is not as docs/format.md says raises `RefusedError`.
"""

import io
import re

import numpy as np
from independent_planes import decode_planes, read, read_planes, require, unzstd

# In the order of their codes.
NAMES = "bool u8 i8 u16 i16 u32 i32 u64 i64 f16 bf16 f32 f64 c64 c128"
NAMES += " f8_e4m3 f8_e5m2 f8_e4m3fnuz f8_e5m2fnuz f8_e8m0 f4 f6_e2m3 f6_e3m2"
NAMES = NAMES.split()
WIDE = NAMES[3:15]
BITS = {name: int((re.findall("[0-9]+", name) or [8])[0]) for name in NAMES}
BITS |= {f">{name}": BITS[name] for name in WIDE}
# Bits of exponent and mantissa.
FLOATS = {"f16": (5, 10), "bf16": (8, 7), "f32": (8, 23), "f64": (11, 52)}
MANTISSA = {name: mantissa for name, (_, mantissa) in FLOATS.items()} | {"c64": 23, "c128": 52}
MANTISSA |= {"f8_e4m3": 3, "f8_e4m3fnuz": 3, "f8_e5m2": 2, "f8_e5m2fnuz": 2}


def word_type(code):
    """Name, bytes of a word, bits of its mantissa, and how it is stored."""
    require(0 < code & 127 <= len(NAMES), "element type")
    name = NAMES[(code & 127) - 1]
    require(code < 128 or name in WIDE, "element type")
    size = BITS[name] // (16 if name[0] == "c" else 8) if name in WIDE else 1
    return name, size, MANTISSA.get(name, 0), f"{'<>'[code >> 7]}u{size}"


def cast(word, source, target):
    """A word of one float type as one of another."""
    (bits, mantissa), (to_bits, to_mantissa) = FLOATS[source], FLOATS[target]
    sign, low = word >> bits + mantissa, word & (1 << mantissa) - 1
    exponent, less = word >> mantissa & (1 << bits) - 1, mantissa - to_mantissa
    result = ((1 << to_bits) - 1) << to_mantissa
    if exponent == (1 << bits) - 1:
        result |= low >> less | (low > 0) << to_mantissa - 1 if less > 0 else low << -less
    else:
        # The number is a whole one times a power of two; so is the result, in units of `unit`.
        number, power = low, max(exponent, 1) + 1 - (1 << bits - 1) - mantissa
        number |= (exponent > 0) << mantissa
        least = 2 - (1 << to_bits - 1)
        exponent = number.bit_length() - 1 + power if number else least
        unit = max(exponent, least) - to_mantissa
        rest, odd = max(unit - power, 0), number >> max(unit - power, 0) & 1
        number += ((1 << rest) >> 1) - 1 + odd if rest else 0
        rounded = number >> rest << max(power - unit, 0)
        result = min(result, (unit + to_mantissa - least << to_mantissa) + rounded)
    return sign << to_bits + to_mantissa | result


def in_order(words):
    top = words.dtype.type(8 * words.itemsize - 1)
    return np.where(words >> top, words ^ (words.dtype.type(1) << top) - words.dtype.type(1), words)


def decode_group(table, streams, count, dtype):
    (kind,) = read(table, "<B")
    require(kind in (0, 1, 2, 3), "kind of group")
    words, bits = np.zeros(count, dtype), 8 * dtype.itemsize
    if kind == 1:
        shift, planes = read(table, "<BB")
        low = -(-shift // 8)
        end = shift + 8 * (planes - low)
        require(shift < bits and low <= planes and end < bits + 8, "dense group")
        shifts = [*range(0, 8 * low, 8), *range(shift, end, 8)]
        words = read_planes(table, streams, shifts, count, dtype)
    if kind == 2:
        used, length, planes = read(table, "<IIB")
        require(used <= count and used <= length <= used + count // 255, "sparse group")
        gaps = read_planes(table, streams, [0], length, "u1")
        places = np.cumsum(gaps, dtype=np.int64)[gaps < 255]
        places += np.arange(len(places))
        require(len(places) == used and (places < count).all(), "places of a sparse group")
        if planes == 128:
            values = decode_pairs(table, streams, used, dtype)
        else:
            require(8 * planes <= bits, "sparse group")
            values = read_planes(table, streams, range(0, 8 * planes, 8), used, dtype)
        words[places] = values + dtype.type(1)
    if kind == 3:
        words = decode_pairs(table, streams, count, dtype)
    return words


def decode_pairs(table, streams, count, dtype):
    outside, planes = read(table, "<IB")
    require(outside <= count and planes <= dtype.itemsize, "pairs")
    pairs = read_planes(table, streams, [0], -(-count // 2), "u1")
    words = np.stack([pairs & 15, pairs >> 4], axis=1).reshape(-1)[:count].astype(dtype)
    large = words == 15
    require(np.count_nonzero(large) == outside, "numbers outside pairs")
    words[large] += read_planes(table, streams, range(0, 8 * planes, 8), outside, dtype)
    return words


def decode_part(order, table, streams, against, mantissa):
    """The numbers of one part, as they stand; `against` are words of the base after the cast."""
    count, dtype = len(against), against.dtype
    require(order in (0, 1, 2, 4), "order")
    if order == 0:
        return decode_group(table, streams, count, dtype)
    require(mantissa and count <= 1 << 24, "order")
    bits = 8 * dtype.itemsize
    if order == 4:
        low = against & dtype.type((1 << mantissa) - 1)
        more = dtype.type(abs(mantissa - 8))
        keys = low >> more if mantissa > 8 else low << more
        steps = unfolded(decode_group(table, streams, 256, dtype))
        differences = unfolded(decode_group(table, streams, count, dtype)) + steps[keys]
        opposite = against >> dtype.type(bits - 1) > 0
        return folded(np.where(opposite, dtype.type(0) - differences, differences))
    if order == 2:
        keys = (against & ~(dtype.type(1) << dtype.type(bits - 1))) >> dtype.type(max(0, bits - 33))
    if order == 1:
        exponent = against >> dtype.type(mantissa)
        keys = exponent & dtype.type(min(255, ~(-1 << bits - 1 - mantissa)))
    numbers = np.zeros(count, dtype)
    places, done, last = np.argsort(keys, kind="stable"), 0, -1
    while done < count or (order == 1 and last < 255):
        end = min(done + 16384, count)
        if order == 1:
            previous, (last,) = last, read(table, "<B")
            end = np.count_nonzero(keys <= last)
            require(last > previous and end > done, "order of groups")
        numbers[places[done:end]] = decode_group(table, streams, end - done, dtype)
        done = end
    require(order == 2 or last == 255, "order of groups")
    return numbers


def unfolded(numbers):
    """Differences, modulo the words, of numbers that stand for them."""
    one = numbers.dtype.type(1)
    return np.where(numbers & one, ~(numbers >> one), numbers >> one)


def folded(differences):
    """The inverse of `unfolded`."""
    one = differences.dtype.type(1)
    negative = differences >> differences.dtype.type(8 * differences.itemsize - 1) > 0
    return np.where(negative, ~(differences << one), differences << one)


def decode_parts(order, table, streams, against, mantissa):
    if order != 8:
        return decode_part(order, table, streams, against, mantissa)
    count = len(against)
    plane = read_planes(table, streams, [0], -(-(count // 128) // 8), "u1")
    bits = [byte >> at & 1 for byte in plane.tolist() for at in range(8)]
    require(0 < sum(bits[: count // 128]) < count // 128, "blocks")
    require(not any(bits[count // 128 :]), "bits beyond the last block")
    busy = np.array([*np.repeat(bits[: count // 128], 128), *[1] * (count % 128)], bool)
    numbers = np.zeros(count, against.dtype)
    for part in (~busy, busy):
        (order,) = read(table, "<B")
        numbers[part] = decode_part(order, table, streams, against[part], mantissa)
    return numbers


def decode_delta(payload, raw_length, base):
    file = io.BytesIO(payload)
    code, base_code, order, zero, count, *sizes = read(file, "<BBBBIII")
    table, rest, streams = *(io.BytesIO(file.read(size)) for size in sizes), file
    name, size, mantissa, stored = word_type(code)
    base_name, *base_kind, base_stored = word_type(base_code)
    floats = {name, base_name} <= {*FLOATS}
    require(floats or [size, mantissa] == base_kind, "types that cannot be compared")
    require(not zero, "differences")
    require(0 < count <= min(raw_length // size, len(base) // base_kind[0]), "length of base")
    require([len(part.getvalue()) for part in (table, rest)] == sizes, "cut short")
    against = np.frombuffer(base, base_stored, count).astype(f"<u{base_kind[0]}")
    if floats and name != base_name:
        singles = [cast(word, base_name, "f32") for word in against.tolist()]
        against = np.array([cast(word, "f32", name) for word in singles], f"<u{size}")
    numbers = decode_parts(order, table, streams, against, mantissa)
    require(not table.read(1) and not streams.read(1), "more than the groups hold")
    ordered = in_order if mantissa else lambda words: words
    words = ordered(ordered(against) + unfolded(numbers))
    left, rest = raw_length - count * size, rest.getvalue()
    require(bool(left) == bool(rest), "rest")
    return words.astype(stored).tobytes() + (decode_planes(rest, left) if left else b"")


# Codecs that need a base: number -> function of payload, raw length and raw bytes of the base.
WITH_BASE = {4: decode_delta}


def decode(codec, payload, raw_length, base):
    """The raw bytes of a payload; `base` is the raw bytes of the base, None without one."""
    require((base is not None) == (codec in WITH_BASE), f"codec {codec} with or without a base")
    if codec in WITH_BASE:
        return WITH_BASE[codec](payload, raw_length, base)
    if codec == 0:
        require(len(payload) == raw_length, "raw length")
        return payload
    if codec == 1:
        return unzstd(payload, raw_length)
    require(codec in (2, 3), f"codec {codec} is of a newer format")
    if codec == 3:
        return decode_planes(payload, raw_length)
    require(payload and raw_length % len(payload) == 0, "constant")
    return payload * (raw_length // len(payload))
