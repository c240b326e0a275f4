"""Restores versions of a repository; written from docs/format.md alone, sharing no code with mstore.

    python tests/reader/independent_reader.py REPOSITORY MODEL BRANCH_OR_TAG DIRECTORY

REPOSITORY is the directory that holds `roots/`. Anything that is not as docs/format.md says raises
`RefusedError`.
"""

import struct
import sys
from pathlib import Path

import msgpack
import zstandard
from blake3 import blake3
from independent_codecs import BITS, decode
from independent_planes import RefusedError, require, unzstd
from xxhash import xxh3_64_digest, xxh3_64_intdigest

KINDS = {1: "chunk", 2: "manifest", 3: "snapshot", 4: "commit"}
CHUNK, MANIFEST, SNAPSHOT, COMMIT = KINDS


def low32(data):
    return xxh3_64_intdigest(data) & 0xFFFFFFFF


def unpack(raw, *keys):
    """The values of these keys in a msgpack map."""
    try:
        value = msgpack.unpackb(raw, unicode_errors="surrogateescape")
        return [value[key] for key in keys]
    except (ValueError, TypeError, KeyError) as error:
        raise RefusedError(f"msgpack: {error!r}") from error


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
        require(row[1] <= 1 << 62, "offset")
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
