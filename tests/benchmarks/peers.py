"""The peers that are codecs rather than programs, in memory, and the list of all peers.

They are written here from what their authors published; ZipNN is its own package. Sizes are
counted to the byte: the payloads, and 8 bytes for each of them, which is less than any real file
would need to find them again. Names and shapes cost nothing. Times are those of coding alone,
without any disk; a restored version may be the base of the next one without being decoded again.
"""

import hashlib
import importlib.metadata
import importlib.util
import time
from abc import abstractmethod
from pathlib import Path
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import zstandard
from programs import PROGRAMS, Peer, Version
from tensor_files import Span, spans

ENTRY = 8
"""Bytes counted for each payload, beside the payload."""

Files = dict[str, bytes]
Coded = list


class Codec(Peer):
    """A codec in memory. A file that is stored already, byte for byte, costs nothing."""

    packages: tuple[str, ...] = ()

    def __init__(self, home: Path) -> None:
        super().__init__(home)
        self._bytes = 0
        self._coded: dict[str, tuple[str | None, Coded]] = {}
        """By the hash of the file's content; with the hash of the file it was made from."""
        self._versions: dict[int, tuple[Version, dict[str, str]]] = {}
        """Each version and the hashes of its files by name."""
        self._restored: Files = {}
        """The files of the version restored last, by hash."""

    @classmethod
    def version(cls) -> str | None:
        if any(importlib.util.find_spec(package) is None for package in cls.packages):
            return None
        used = (f"{package} {importlib.metadata.version(package)}" for package in cls.packages)
        return f"{cls.name} ({', '.join(used)})"

    @abstractmethod
    def encode(self, file: str, data: bytes, base: bytes | None) -> Coded:
        """Encode the content of `file`, made from `base`; counts what it takes."""

    @abstractmethod
    def decode(self, coded: Coded, base: bytes | None) -> bytes:
        """What `encode` was given as `data`."""

    def count(self, payload: bytes) -> bytes:
        """Count the payload as stored; returns it."""
        self._bytes += ENTRY + len(payload)
        return payload

    def size(self) -> int:
        return self._bytes

    def store(self, version: Version) -> float:
        files = {path.name: path.read_bytes() for path in sorted(version.directory.iterdir())}
        hashes = {name: hashlib.blake2b(data).hexdigest() for name, data in files.items()}
        self._versions[version.number] = (version, hashes)
        new = {name: digest for name, digest in hashes.items() if digest not in self._coded}
        bases: Files = {}
        before: dict[str, str] = {}
        if version.parent is not None:
            parent, before = self._versions[version.parent]
            bases = {name: (parent.directory / name).read_bytes() for name in before if name in new}
        start = time.perf_counter()
        for name, digest in new.items():
            if digest not in self._coded:
                coded = self.encode(name, files[name], bases.get(name))
                self._coded[digest] = (before.get(name), coded)
        return time.perf_counter() - start

    def restore(self, number: int, out: Path) -> float:
        hashes = self._versions[number][1]
        start = time.perf_counter()
        self._restored = {digest: self._decoded(digest) for digest in hashes.values()}
        took = time.perf_counter() - start
        for name, digest in hashes.items():
            (out / name).write_bytes(self._restored[digest])
        return took

    def _decoded(self, digest: str) -> bytes:
        """The content of this hash."""
        if digest in self._restored:
            return self._restored[digest]
        base, coded = self._coded[digest]
        return self.decode(coded, None if base is None else self._decoded(base))


class TensorCodec(Codec):
    """A codec of tensors: each of them, and each run of bytes between, is encoded by itself."""

    def encode(self, file: str, data: bytes, base: bytes | None) -> Coded:
        bases = {} if base is None else {span.name: span for span in spans(file, base)}
        coded = []
        for span in spans(file, data):
            like = bases.get(span.name)
            if like and (not span.name or (like.dtype, like.shape) != (span.dtype, span.shape)):
                like = None
            part = data[span.start : span.end]
            before = base[like.start : like.end] if base is not None and like else None
            payloads = [self.count(payload) for payload in self.encode_span(span, part, before)]
            coded.append((span, like, payloads))
        return coded

    def decode(self, coded: Coded, base: bytes | None) -> bytes:
        parts = []
        for span, like, payloads in coded:
            before = base[like.start : like.end] if base is not None and like else None
            parts.append(self.decode_span(span, payloads, before))
        return b"".join(parts)

    @abstractmethod
    def encode_span(self, span: Span, data: bytes, base: bytes | None) -> list[bytes]:
        """The payloads of one span; `base` is the parent's tensor if it is of the same form."""

    @abstractmethod
    def decode_span(self, span: Span, payloads: list[bytes], base: bytes | None) -> bytes:
        """What `encode_span` was given as `data`."""


class ZipNN(TensorCodec):
    """The package, as it comes (on all cores); what it has no type for goes to zstd at level 3."""

    name = "ZipNN"
    packages = ("zipnn",)
    TYPES: ClassVar = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}

    def __init__(self, home: Path) -> None:
        # It imports torch, which takes seconds that are not to be measured.
        import zipnn

        super().__init__(home)
        self._package = zipnn

    def encode_span(self, span: Span, data: bytes, base: bytes | None) -> list[bytes]:
        if span.dtype not in self.TYPES:
            return [_compressed(data, 3)]
        # It works in place, so it gets a copy; it adds a header, which small tensors do not repay.
        payload = bytes(self._coder(span).compress(bytearray(data)))
        return [payload if len(payload) < len(data) else data]

    def decode_span(self, span: Span, payloads: list[bytes], base: bytes | None) -> bytes:
        (payload,) = payloads
        if len(payload) == span.end - span.start:
            return payload
        if span.dtype not in self.TYPES:
            return _decompressed(payload, span.end - span.start)
        return bytes(self._coder(span).decompress(payload))

    def _coder(self, span: Span):
        return self._package.ZipNN(bytearray_dtype=self.TYPES[span.dtype])


class Xor(ZipNN):
    """XOR against the parent's tensor, byte planes, zstd at level 1, as BitX and TensorX do.

    A tensor without a parent of the same type and shape is ZipNN-coded; one that is the same as
    before costs its entry alone.
    """

    name = "XOR"
    WIDTHS: ClassVar = {"F64": 8, "I64": 8, "F32": 4, "I32": 4, "F16": 2, "BF16": 2}

    def encode_span(self, span: Span, data: bytes, base: bytes | None) -> list[bytes]:
        if base is None:
            return super().encode_span(span, data, None)
        if data == base:
            return [b""]
        width = self.WIDTHS.get(span.dtype, 1)
        difference = np.bitwise_xor(_array(data), _array(base)).reshape(-1, width)
        return [_compressed(difference[:, at].tobytes(), 1) for at in range(width)]

    def decode_span(self, span: Span, payloads: list[bytes], base: bytes | None) -> bytes:
        if base is None:
            return super().decode_span(span, payloads, None)
        if payloads == [b""]:
            return base
        length = len(base) // len(payloads)
        difference = np.empty((length, len(payloads)), np.uint8)
        for at, payload in enumerate(payloads):
            difference[:, at] = _array(_decompressed(payload, length))
        return np.bitwise_xor(difference.reshape(-1), _array(base)).tobytes()


class Chunks(Codec):
    """Content-defined chunks of about 64 KiB, each stored once: byte groups of four, then LZ4.

    As the store of the Hugging Face hub does it. A chunk is stored grouped, plain or raw, as is
    smallest. What lists a version's chunks is not counted.
    """

    name = "chunks"
    packages = ("lz4", "pyfastcdc")
    GROUPS = 4
    RAW, PLAIN, GROUPED = range(3)

    def __init__(self, home: Path) -> None:
        super().__init__(home)
        self._chunks: dict[bytes, tuple[int, int, bytes]] = {}
        """How each is stored, its raw length, and its payload."""

    def encode(self, file: str, data: bytes, base: bytes | None) -> Coded:
        from pyfastcdc import FastCDC

        cutter = FastCDC(avg_size=64 << 10, min_size=8 << 10, max_size=128 << 10)
        return [self._add(bytes(chunk.data)) for chunk in cutter.cut_buf(data)]

    def decode(self, coded: Coded, base: bytes | None) -> bytes:
        return b"".join(self._chunk(digest) for digest in coded)

    def _add(self, data: bytes) -> bytes:
        from lz4.block import compress

        digest = hashlib.blake2b(data, digest_size=32).digest()
        if digest not in self._chunks:
            ways = {
                self.RAW: data,
                self.PLAIN: compress(data, store_size=False),
                self.GROUPED: compress(_grouped(data, self.GROUPS), store_size=False),
            }
            way = min(ways, key=lambda way: len(ways[way]))
            self._chunks[digest] = (way, len(data), self.count(ways[way]))
        return digest

    def _chunk(self, digest: bytes) -> bytes:
        from lz4.block import decompress

        way, length, payload = self._chunks[digest]
        if way == self.RAW:
            return payload
        data = decompress(payload, uncompressed_size=length)
        return _ungrouped(data, self.GROUPS) if way == self.GROUPED else data


def _array(data: bytes) -> npt.NDArray[np.uint8]:
    return np.frombuffer(data, np.uint8)


def _grouped(data: bytes, groups: int) -> bytes:
    """Every `groups`-th byte, then the next ones, …"""
    return b"".join(data[at::groups] for at in range(groups))


def _ungrouped(data: bytes, groups: int) -> bytes:
    found = bytearray(len(data))
    start = 0
    for at in range(groups):
        length = len(range(at, len(data), groups))
        found[at::groups] = data[start : start + length]
        start += length
    return bytes(found)


def _compressed(data: bytes, level: int) -> bytes:
    """Compressed by zstd, or as it is if that is not smaller."""
    payload = zstandard.ZstdCompressor(level=level).compress(data)
    return payload if len(payload) < len(data) else data


def _decompressed(payload: bytes, length: int) -> bytes:
    if len(payload) == length:
        return payload
    return zstandard.ZstdDecompressor().decompress(payload, length)


PEERS: dict[str, type[Peer]] = {peer.name.lower(): peer for peer in (*PROGRAMS, ZipNN, Xor, Chunks)}
"""All that are measured, by the names that the command line knows."""
