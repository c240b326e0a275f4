"""The open, safe files that tensors are exported to: where the data lies in each, and what around.

The tensors given here are as the file will hold them: named, row-major, little-endian.
"""

import io
import json
import os
import re
import struct
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mstore.arrayfile import place_tensors
from mstore.errors import ConflictError, InvalidInputError
from mstore.formats.base import quote
from mstore.formats.safetensors import DTYPE_NAMES, METADATA_KEY
from mstore.layout import Tensor
from mstore.numpy_dtypes import ML_DTYPES, numpy_dtype
from mstore.storage.files import translate_errors

ReadBack = Callable[[int, int], bytes]
"""Gives `length` bytes from `offset` of a file that is being written."""

_READ_SIZE = 1 << 20
_OF_A_MODEL = re.compile(r"model(-[0-9]+-of-[0-9]+)?\.safetensors")
_MAX_SHOWN = 5
_STORED, _VERSION, _ZIP64_EXTRA = 0, 45, 1
_UTF8, _UNIX = 1 << 11, 3
_EARLIEST = 1 << 5 | 1  # 1980-01-01, so that equal tensors make equal files
_BEYOND = 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class Planned:
    """A file to be written.

    `offsets` has the place of each tensor's data. `around` gives the rest of the file, as offsets
    and bytes; it is called when the data is in place, with a way to read it back.
    """

    offsets: tuple[int, ...]
    around: Callable[[ReadBack], Iterator[tuple[int, bytes]]]


def plan_safetensors(tensors: Sequence[Tensor], metadata: Mapping[str, str]) -> Planned:
    """One safetensors file; raises InvalidInputError for types and names that it cannot have.

    Raises LimitExceededError for more tensors or names than a reader would accept.
    """
    for tensor in tensors:
        if tensor.dtype not in DTYPE_NAMES:
            raise InvalidInputError(
                f"{quote(tensor.name)}: .safetensors files have no element type {tensor.dtype}",
                hint="use a .npz file, or leave the tensor out",
            )
        if tensor.name == METADATA_KEY:
            raise InvalidInputError(
                f"a tensor of a .safetensors file cannot be called {quote(METADATA_KEY)}",
                hint="use a .npz file, or leave the tensor out",
            )
    header, placed = place_tensors(tensors, metadata)
    offsets = {tensor.name: offset for offset, tensor in placed}
    return Planned(tuple(offsets[one.name] for one in tensors), lambda _: iter([(0, header)]))


def plan_npy(tensor: Tensor) -> Planned:
    """A file of one array; raises InvalidInputError for a type that numpy cannot name."""
    header = _npy_header(tensor)
    return Planned((len(header),), lambda _: iter([(0, header)]))


def plan_npz(tensors: Sequence[Tensor]) -> Planned:
    """A zip of stored npy files, as `numpy.savez` writes it; raises as `plan_npy` does.

    Sources: numpy.lib.npyio; PKWARE's APPNOTE.TXT, sections 4.3 and 4.5.3.
    """
    members: list[_Member] = []
    end = 0
    for tensor in tensors:
        member = _Member(_member_name(tensor.name), end, _npy_header(tensor), tensor.nbytes)
        members.append(member)
        end = member.data + member.nbytes

    def around(read: ReadBack) -> Iterator[tuple[int, bytes]]:
        directory = []
        for member in members:
            checksum = _checksum(member, read)
            yield member.start, member.local_header(checksum) + member.npy
            directory.append(member.directory_entry(checksum))
        yield end, b"".join(directory) + _zip_end(len(members), end, sum(map(len, directory)))

    return Planned(tuple(member.data for member in members), around)


def index_of(files: Mapping[Path, Sequence[Tensor]]) -> bytes:
    """What says which tensors are in which files of a folder, as the Hugging Face libraries do."""
    placed = {tensor.name: path.name for path, tensors in files.items() for tensor in tensors}
    size = sum(tensor.nbytes for tensors in files.values() for tensor in tensors)
    index = {"metadata": {"total_size": size}, "weight_map": placed}
    return f"{json.dumps(index, indent=2)}\n".encode()


def check_free(paths: Iterable[Path], *, force: bool) -> None:
    """Raise ConflictError if something is at one of these paths, with `force` only for a folder."""
    for path in paths:
        if path.is_dir() and not path.is_symlink():
            raise ConflictError(f"{path} is a folder", hint="choose another name")
        if not force and os.path.lexists(path):
            raise ConflictError(f"{path} is there already", hint="overwrite it with --force")


def check_others(folder: Path, files: Collection[Path]) -> None:
    """Raise ConflictError if a folder has safetensors files of a model besides these.

    They would stay, since nothing of a user's is deleted, and loaders would take them: many load
    all such files, and `model.safetensors` comes before any index.
    """
    if not folder.is_dir():
        return
    names = {path.name for path in files}
    with translate_errors("list", folder):
        there = [path.name for path in folder.iterdir() if _OF_A_MODEL.fullmatch(path.name)]
    if others := sorted(set(there) - names):
        shown = ", ".join(others[:_MAX_SHOWN])
        more = f" and {len(others) - _MAX_SHOWN} more" if len(others) > _MAX_SHOWN else ""
        raise ConflictError(
            f"{folder} has files of another model, which would be loaded, too: {shown}{more}",
            hint="remove these, or export to another folder; --force overwrites only files of the "
            "same names",
        )


def _npy_header(tensor: Tensor) -> bytes:
    dtype = numpy_dtype(tensor.dtype)
    if dtype in ML_DTYPES.values():
        raise InvalidInputError(
            f"{quote(tensor.name)}: .npy and .npz files have no element type {dtype}",
            hint="use a .safetensors file",
        )
    header = io.BytesIO()
    described = {"descr": dtype.str, "fortran_order": False, "shape": tensor.shape}
    np.lib.format.write_array_header_1_0(header, described)
    return header.getvalue()


def _member_name(name: str) -> bytes:
    """The name of a tensor's file in the zip: one that no program would unpack elsewhere."""
    parts = name.replace("\\", "/").split("/")
    try:
        encoded = f"{name}.npy".encode()
    except UnicodeEncodeError:
        encoded = b"\0"
    if b"\0" in encoded or len(encoded) > 0xFFFF or ".." in parts or not all(parts[:-1]):
        raise InvalidInputError(
            f"an array of a .npz file cannot be called {quote(name)}",
            hint="use a .safetensors file, or leave the tensor out",
        )
    return encoded


@dataclass(frozen=True, slots=True)
class _Member:
    """A stored file of a zip: where its header starts, the header of the array, its data."""

    name: bytes
    start: int
    npy: bytes
    nbytes: int

    @property
    def data(self) -> int:
        """Where the data of the array starts."""
        return self.start + 30 + len(self.name) + 20 + len(self.npy)

    @property
    def size(self) -> int:
        """Bytes of the npy file."""
        return len(self.npy) + self.nbytes

    def local_header(self, checksum: int) -> bytes:
        """What stands before the member; sizes are in the extra field, however large they are."""
        return (
            struct.pack("<IHHHHHIIIHH", 0x04034B50, *self._common(checksum), len(self.name), 20)
            + self.name
            + struct.pack("<HHQQ", _ZIP64_EXTRA, 16, self.size, self.size)
        )

    def directory_entry(self, checksum: int) -> bytes:
        """The member in the directory of the zip."""
        head = struct.pack("<IBB", 0x02014B50, _VERSION, _UNIX)
        lengths = struct.pack("<HHHHHII", len(self.name), 28, 0, 0, 0, 0o600 << 16, _BEYOND)
        extra = struct.pack("<HHQQQ", _ZIP64_EXTRA, 24, self.size, self.size, self.start)
        common = struct.pack("<HHHHHIII", *self._common(checksum))
        return head + common + lengths + self.name + extra

    def _common(self, checksum: int) -> tuple[int, ...]:
        flags = 0 if self.name.isascii() else _UTF8
        return (_VERSION, flags, _STORED, 0, _EARLIEST, checksum, _BEYOND, _BEYOND)


def _checksum(member: _Member, read: ReadBack) -> int:
    checksum = zlib.crc32(member.npy)
    for start in range(0, member.nbytes, _READ_SIZE):
        length = min(_READ_SIZE, member.nbytes - start)
        checksum = zlib.crc32(read(member.data + start, length), checksum)
    return checksum


def _zip_end(count: int, offset: int, size: int) -> bytes:
    """What ends a zip whose directory of `size` bytes is at `offset`."""
    record = struct.pack(
        *("<IQBBHIIQQQQ", 0x06064B50, 44, _VERSION, _UNIX, _VERSION),
        *(0, 0, count, count, size, offset),
    )
    locator = struct.pack("<IIQI", 0x07064B50, 0, offset + size, 1)
    few = min(count, 0xFFFF)
    tail = struct.pack(
        "<IHHHHIIH", 0x06054B50, 0, 0, few, few, min(size, _BEYOND), min(offset, _BEYOND), 0
    )
    return record + locator + tail
