"""Restores versions of a repository; written from docs/format.md alone, sharing no code with mstore.

    python tests/reader/independent_reader.py REPOSITORY MODEL BRANCH_OR_TAG DIRECTORY

REPOSITORY is the directory that holds `roots/`. Anything that is not as docs/format.md says raises
`RefusedError`.
"""

import io
import re
import struct
import sys
from pathlib import Path

import msgpack
import numpy as np
import zstandard
from blake3 import blake3
from xxhash import xxh3_64_digest, xxh3_64_intdigest

KINDS = {1: "chunk", 2: "manifest", 3: "snapshot", 4: "commit"}
CHUNK, MANIFEST, SNAPSHOT, COMMIT = KINDS
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


class RefusedError(Exception):
    """The repository is not as the format says."""


def require(condition, what):
    if not condition:
        raise RefusedError(what)


def low32(data):
    return xxh3_64_intdigest(data) & 0xFFFFFFFF


def unzstd(frame, length):
    """The content of one frame, which must be `length` bytes."""
    try:
        header = zstandard.get_frame_parameters(frame)
        require(header.content_size in (length, zstandard.CONTENTSIZE_UNKNOWN), "zstd length")
        require(header.window_size <= max(8 << 20, length), "zstd window")
        decompressor = zstandard.ZstdDecompressor()
        content = decompressor.decompress(frame, max_output_size=length, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise RefusedError(f"zstd: {error}") from error
    require(len(content) == length, "zstd length")
    return content


def unpack(raw, *keys):
    """The values of these keys in a msgpack map."""
    try:
        value = msgpack.unpackb(raw, unicode_errors="surrogateescape")
        return [value[key] for key in keys]
    except (ValueError, TypeError, KeyError) as error:
        raise RefusedError(f"msgpack: {error!r}") from error


def read(file, layout):
    data = file.read(struct.calcsize(layout))
    require(len(data) == struct.calcsize(layout), "cut short")
    return struct.unpack(layout, data)


def read_planes(entries, streams, shifts, count, dtype):
    """The bitwise or of planes of `count` bytes, each shifted left."""
    words = np.zeros(count, dtype)
    for shift in shifts:
        mode, stored = read(entries, "<BI")
        data = streams.read(stored)
        require(len(data) == stored and mode in (0, 1, 2), "plane")
        require(mode == 2 or stored == (count, 1)[mode], "plane")
        data = unzstd(data, count) if mode == 2 else data * (count if mode == 1 else 1)
        words |= np.frombuffer(data, np.uint8).astype(dtype) << words.dtype.type(shift)
    return words


def decode_planes(payload, raw_length):
    file = io.BytesIO(payload)
    word, flags = read(file, "<BB")
    require(word in (1, 2, 4, 8) and flags <= (0 if word == 1 else 3), "planes header")
    require(raw_length and raw_length % word == 0, "planes lengths")
    entries = io.BytesIO(file.read(5 * word))
    count, shifts = raw_length // word, range(0, 8 * word, 8)
    words = read_planes(entries, file, shifts, count, f"<u{word}")
    require(not file.read(1), "planes lengths")
    if flags & 1:
        words = words >> words.dtype.type(1) | words << words.dtype.type(8 * word - 1)
    return words.astype(f">u{word}" if flags & 2 else f"<u{word}").tobytes()


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
    require(kind in (0, 1, 2), "kind of group")
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
        require(8 * planes <= bits, "sparse group")
        gaps = read_planes(table, streams, [0], length, "u1")
        places = np.cumsum(gaps, dtype=np.int64)[gaps < 255]
        places += np.arange(len(places))
        require(len(places) == used and (places < count).all(), "places of a sparse group")
        values = read_planes(table, streams, range(0, 8 * planes, 8), used, dtype)
        words[places] = values + dtype.type(1)
    return words


def decode_delta(payload, raw_length, base):
    file = io.BytesIO(payload)
    code, base_code, flags, zero, count, *sizes = read(file, "<BBBBIII")
    table, rest, streams = *(io.BytesIO(file.read(size)) for size in sizes), file
    name, size, mantissa, stored = word_type(code)
    base_name, *base_kind, base_stored = word_type(base_code)
    floats = {name, base_name} <= {*FLOATS}
    require(floats or [size, mantissa] == base_kind, "types that cannot be compared")
    require(flags <= 2 and not zero, "flags of differences")
    require(0 < count <= min(raw_length // size, len(base) // base_kind[0]), "length of base")
    require([len(part.getvalue()) for part in (table, rest)] == sizes, "cut short")
    against = np.frombuffer(base, base_stored, count).astype(f"<u{base_kind[0]}")
    if floats and name != base_name:
        singles = [cast(word, base_name, "f32") for word in against.tolist()]
        against = np.array([cast(word, "f32", name) for word in singles], f"<u{size}")
    numbers, dtype = np.zeros(count, against.dtype), against.dtype
    if flags:
        require(mantissa and count <= 1 << 24, "order")
        sign = dtype.type(1) << dtype.type(8 * size - 1)
        keys = (against & sign - dtype.type(1)) >> dtype.type(31 if size == 8 else 0)
        if flags == 1:
            exponent = against >> dtype.type(mantissa)
            keys = exponent & dtype.type(min(255, ~(-1 << 8 * size - 1 - mantissa)))
        places, done, last = np.argsort(keys, kind="stable"), 0, -1
        while done < count or (flags == 1 and last < 255):
            end = min(done + 16384, count)
            if flags == 1:
                previous, (last,) = last, read(table, "<B")
                end = np.count_nonzero(keys <= last)
                require(last > previous and end > done, "order of groups")
            numbers[places[done:end]] = decode_group(table, streams, end - done, dtype)
            done = end
        require(flags == 2 or last == 255, "order of groups")
    else:
        numbers = decode_group(table, streams, count, dtype)
    require(not table.read(1) and not streams.read(1), "more than the groups hold")
    differences = numbers >> dtype.type(1) ^ dtype.type(0) - (numbers & dtype.type(1))
    order = in_order if mantissa else lambda words: words
    words = order(order(against) + differences)
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


def read_index(data, listed):
    """Where records lie: id -> (depth, base, pack, offset, stored length, raw length, kind)."""
    require(len(data) >= 64 and data[:8] == b"MSTOREIX", "index magic")
    version, _, packs, count, bases = struct.unpack_from("<HHIQI", data, 8)
    checksum, check = struct.unpack_from("<QQ", data, 48)
    require(check == xxh3_64_intdigest(data[:56]) and version <= 1, "index header")
    require(checksum == xxh3_64_intdigest(data[64:]), "index checksum")
    keys = 64 + 40 * packs
    require(len(data) == keys + 64 * count + 32 * bases and count == listed, "index size")
    tables = keys + 64 * count
    names = [data[at : at + 40].rstrip(b"\0").decode() for at in range(64, keys, 40)]
    places = {}
    for number in range(count):
        row = struct.unpack_from("<24sQIIIIfBBBB", data, keys + 8 * count + 56 * number)
        at, depth = tables + 32 * (row[5] - 1), row[10]
        require(row[2] < packs and row[5] <= bases and (row[5] > 0) == (depth > 0), "row")
        base = data[at : at + 32] if row[5] else b""
        identifier = data[keys + 8 * number : keys + 8 * number + 8][::-1] + row[0]
        places[identifier] = depth, base, names[row[2]], row[1], row[3], row[4], row[8]
    return places


class Repository:
    """A repository as its newest root has it."""

    def __init__(self, directory):
        self.directory = Path(directory)
        number = max(int(path.name) for path in (self.directory / "roots").iterdir())
        data = self.get(f"roots/{number:020}")
        require(len(data) > 20 and data[:8] == b"MSTORERT", "root magic")
        require(int.from_bytes(data[8:12], "little") <= 1, "root of a newer format")
        require(data[12:20] == xxh3_64_digest(data[:12] + data[20:])[::-1], "root checksum")
        size = zstandard.get_frame_parameters(data[20:]).content_size
        require(size <= 1 << 28, "root size")
        found, self.models, chunks, metadata = unpack(
            unzstd(data[20:], size), "number", "models", "indexes", "metadata_indexes"
        )
        require(found == number, "root number")
        self.places = {}
        for name, count, _ in chunks + metadata:
            for identifier, place in read_index(self.get(f"indexes/{name}"), count).items():
                # The least depth counts, among equals what is listed last.
                if identifier not in self.places or place[0] <= self.places[identifier][0]:
                    self.places[identifier] = place

    def get(self, key):
        return (self.directory / key).read_bytes()

    def resolve(self, model, name):
        """The commit id of a branch or tag."""
        refs = self.models[model]
        return refs["branches"].get(name) or refs["tags"][name]

    def read(self, kind, identifier, below=256):
        """The raw bytes of one thing, checked against its id; its depth must be `below` that."""
        require(identifier in self.places, f"{KINDS[kind]} {identifier.hex()} is missing")
        depth, base, pack, offset, stored, raw_length, listed = self.places[identifier]
        require(listed == kind and depth < (below if kind == CHUNK else 1), "kind or depth")
        data = self.get(f"packs/{pack}")
        magic, version, metadata, check = struct.unpack_from("<8sHHI", data)
        require(magic == b"MSTOREPK" and check == low32(data[:12]), "pack header")
        require(version <= 1 and metadata == (kind != CHUNK), "pack header")
        payload = offset + 64 + len(base)
        require(len(data) >= payload + stored, "record is cut short")
        record = struct.unpack_from("<4sBBBBIIQ32sfI", data, offset)
        magic, found, codec, _, level, *lengths, checksum, found_id, _, check = record
        require(magic == b"mREC" and check == low32(data[offset : offset + 60] + base), "header")
        require(level == depth and data[offset + 64 : payload] == base, "base")
        require([found, found_id, *lengths] == [kind, identifier, stored, raw_length], "record")
        base_raw = self.read(CHUNK, base, depth) if depth else None
        raw = decode(codec, data[payload : payload + stored], raw_length, base_raw)
        require(len(raw) == raw_length and xxh3_64_intdigest(raw) == checksum, "record checksum")
        context = f"mstore v1 {KINDS[kind]}"
        require(blake3(raw, derive_key_context=context).digest() == identifier, "id")
        return raw

    def files(self, commit):
        """Path, executable bit and manifest id of every file of a commit."""
        (snapshot,) = unpack(self.read(COMMIT, commit), "snapshot")
        (rows,) = unpack(self.read(SNAPSHOT, snapshot), "files")
        require(len(rows) == len({row[0] for row in rows}), "path twice")
        for path, manifest, _, executable in rows:
            parts = path.split("/")
            require(not {"", ".", ".."} & {*parts} and parts[0] != ".mstore", "path")
            require(
                "\0" not in path and len(path.encode("utf-8", "surrogateescape")) <= 4096, "path"
            )
            yield path, executable, manifest

    def content(self, manifest):
        """The bytes of a file, chunk by chunk."""
        segments, size = unpack(self.read(MANIFEST, manifest), "segments", "size")
        done = 0
        for segment in segments:
            ids = [segment["ids"][at : at + 32] for at in range(0, len(segment["ids"]), 32)]
            for identifier, length in zip(ids, chunk_lengths(segment), strict=True):
                raw = self.read(CHUNK, identifier)
                require(len(raw) == length, "chunk length")
                done += length
                yield raw
        require(done == size, "file size")


def chunk_lengths(segment):
    if "dtype" not in segment:
        return segment["lengths"]
    require(segment["dtype"] in BITS, "element type of a newer format")
    bits = BITS[segment["dtype"]]
    for extent in segment["shape"]:
        bits *= extent
    require(bits % 8 == 0 and segment["piece"], "tensor size")
    whole, rest = divmod(bits // 8, segment["piece"])
    return [segment["piece"]] * whole + ([rest] if rest else [])


def restore(repository, model, name, directory):
    """Write every file of a branch or tag into `directory`, which must be empty."""
    repository = Repository(repository)
    for path, executable, manifest in repository.files(repository.resolve(model, name)):
        target = Path(directory) / path
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("xb") as file:
            file.writelines(repository.content(manifest))
        target.chmod(0o755 if executable else 0o644)


if __name__ == "__main__":
    restore(*sys.argv[1:])
