"""A program of its own that lists what an HDF5 file holds, for `mstore.formats.hdf5_process`.

The HDF5 library was not made for files that nobody trusts, so this process has nothing to lose. It
opens no file and can open none, and may use little memory and time. It has one socket, on which it
says that it is ready (`h`), asks for bytes of the file (`r`: offset, length) and tells what it
found (`l`: lines of JSON, one object each; `d`: done); numbers in the frames are little-endian. It
reads no data of any dataset. It imports nothing of mstore; the folders given as arguments are where
to find h5py and numpy.
"""

import contextlib
import json
import os
import resource
import struct
import sys
from typing import Any

sys.path += sys.argv[1:]

import h5py
import numpy as np
from h5py import h5, h5a, h5d, h5f, h5fd, h5g, h5l, h5o, h5p, h5s, h5t

SOCKET = 0  # standard input
MEMORY = 192 << 20  # bytes above what Python and the libraries take
CPU_SECONDS = 120

BLOCK = 8192
BLOCKS = 512  # kept in memory: 4 MiB
BATCH = 32768  # characters of lines that are sent in one frame
TILES = 1000  # in one line
MAX_DEPTH = 200
MAX_LINKS = 1_000_000
MAX_PATHS = 64 << 20  # characters of the paths of all links together
MAX_TEXT = 16 << 20  # bytes of an attribute

FRAME = struct.Struct("<cQI")

# What comes with h5py: deflate, shuffle, fletcher32, szip, nbit, scaleoffset, lzf.
OWN_FILTERS = {1, 2, 3, 4, 5, 6, 32000}
LAYOUTS = {h5d.COMPACT: "compact", h5d.CONTIGUOUS: "contiguous", h5d.CHUNKED: "chunked"}
FLOATS = {
    (1, (7, 2, 5, 0, 2), 15): "f8_e5m2",
    (1, (7, 3, 4, 0, 3), 7): "f8_e4m3",
    (2, (15, 10, 5, 0, 10), 15): "f16",
    (2, (15, 7, 8, 0, 7), 127): "bf16",
    (4, (31, 23, 8, 0, 23), 127): "f32",
    (8, (63, 52, 11, 0, 52), 1023): "f64",
}
COMPLEX = {"f32": "c64", "f64": "c128", ">f32": ">c64", ">f64": ">c128"}
BYTE_ORDERS = {h5t.ORDER_LE: "", h5t.ORDER_BE: ">"}


class TooMuch(Exception):  # noqa: N818
    """The file has more of something than is reasonable."""


def confine() -> None:
    """Give up what a process could do harm with; a limit that the system lacks is left out."""
    pages = 0
    with contextlib.suppress(OSError), open("/proc/self/statm") as statm:  # noqa: PTH123
        pages = int(statm.read().split()[0])
    limits = [
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CPU, CPU_SECONDS),
        (resource.RLIMIT_NOFILE, 0),  # what is open stays open
        (resource.RLIMIT_NPROC, 0),
    ]
    if pages:
        limits.append((resource.RLIMIT_AS, pages * resource.getpagesize() + MEMORY))
    for what, limit in limits:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(what, (limit, limit))


def send(kind: bytes, offset: int, length: int, payload: bytes = b"") -> None:
    """Send one frame."""
    waiting = memoryview(FRAME.pack(kind, offset, length) + payload)
    while waiting:
        waiting = waiting[os.write(SOCKET, waiting) :]


class File:
    """The file as h5py wants it: seek, tell and readinto, in blocks that are asked for."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._at = 0
        self._blocks: dict[int, bytes] = {}  # the one used last at the end

    def seek(self, offset: int, whence: int = 0) -> int:
        """Go to a place; `whence` is 0 or 2."""
        self._at = offset + (self._size if whence == 2 else 0)
        return self._at

    def tell(self) -> int:
        """The place."""
        return self._at

    def flush(self) -> None:
        """Nothing is ever written."""

    def readinto(self, out: memoryview) -> int:
        """Fill `out` from the place on, as far as the file reaches; returns how far."""
        wanted = max(0, min(len(out), self._size - self._at))
        done = 0
        while done < wanted:
            number, start = divmod(self._at, BLOCK)
            piece = self._block(number)[start : start + wanted - done]
            out[done : done + len(piece)] = piece
            self._at += len(piece)
            done += len(piece)
        return done

    def _block(self, number: int) -> bytes:
        block = self._blocks.pop(number, None)
        if block is None:
            if len(self._blocks) == BLOCKS:
                del self._blocks[next(iter(self._blocks))]
            block = self._ask(number * BLOCK, min(BLOCK, self._size - number * BLOCK))
        self._blocks[number] = block
        return block

    def _ask(self, offset: int, length: int) -> bytes:
        send(b"r", offset, length)
        block = b""
        while len(block) < length:
            piece = os.read(SOCKET, length - len(block))
            if not piece:
                os._exit(1)  # whoever asked is gone
            block += piece
        return block


class Report:
    """Lines to the parent, some at a time."""

    def __init__(self) -> None:
        self._lines: list[str] = []
        self._length = 0

    def add(self, **line: object) -> None:
        """Report one thing."""
        text = json.dumps(line, ensure_ascii=False)
        self._lines.append(text)
        self._length += len(text)
        if self._length >= BATCH:
            self.flush()

    def flush(self) -> None:
        """Send what has not been sent."""
        payload = "\n".join(self._lines).encode("utf-8", "backslashreplace")
        self._lines.clear()
        self._length = 0
        if payload:
            send(b"l", 0, len(payload), payload)


class Lister:
    """Goes through all groups of a file, into each once, and reports each dataset and hazard."""

    def __init__(self, report: Report) -> None:
        self._report = report
        self._groups: set[int] = set()  # addresses, as in `_datasets`
        self._datasets: set[int] = set()
        self._links = 0
        self._paths = 0
        self._error: Exception | None = None

    def root(self, group: Any) -> None:
        """Report the whole file."""
        self._groups.add(h5o.get_info(group).addr)
        for name in (b"model_config", b"training_config"):
            if (config := read_text(group, name)) is not None:
                self._report.add(config=config, path=name.decode())
        self._group(group, "", 0)

    def _group(self, group: Any, prefix: str, depth: int) -> None:
        """Report what is in a group and below it."""
        if depth > MAX_DEPTH:
            raise TooMuch(f"its groups are nested more than {MAX_DEPTH} deep")

        def visit(name: bytes, info: Any) -> bool | None:
            # The library, which calls this, can pass on no exception; True makes it stop.
            try:
                path = prefix + name.decode("utf-8", "backslashreplace")
                self._link(group, name, info, path, depth)
            except Exception as error:
                self._error = error
                return True
            return None

        group.links.iterate(visit, info=True, order=h5.ITER_INC)
        if self._error is not None:
            raise self._error

    def _link(self, group: Any, name: bytes, info: Any, path: str, depth: int) -> None:
        self._links += 1
        self._paths += len(path)
        if self._links > MAX_LINKS or self._paths > MAX_PATHS:
            raise TooMuch(f"it has more than {MAX_LINKS} links, or their paths are too long")
        if info.type == h5l.TYPE_HARD:
            self._object(group, name, info.u, path, depth)
        elif info.type == h5l.TYPE_EXTERNAL:
            self._report.add(hazard="link", path=path)
        elif info.type != h5l.TYPE_SOFT:
            self._report.add(hazard="strange link", path=path)

    def _object(self, parent: Any, name: bytes, address: int, path: str, depth: int) -> None:
        if address in self._groups:
            return
        if address in self._datasets:
            self._report.add(path=path, same=address)
            return
        found = h5o.open(parent, name)
        if isinstance(found, h5g.GroupID):
            self._groups.add(address)
            self._group(found, path + "/", depth + 1)
        elif isinstance(found, h5d.DatasetID):
            self._dataset(found, address, path)

    def _dataset(self, dataset: Any, address: int, path: str) -> None:
        settings = dataset.get_create_plist()
        kind = settings.get_layout()
        if kind == h5d.VIRTUAL:
            self._report.add(hazard="virtual", path=path)
            return
        if settings.get_external_count():
            self._report.add(hazard="external", path=path)
            return
        filters = [settings.get_filter(index)[0] for index in range(settings.get_nfilters())]
        if not OWN_FILTERS.issuperset(filters):
            self._report.add(hazard="filter", path=path)
            return
        space = dataset.get_space()
        if space.get_simple_extent_type() == h5s.NULL:
            return
        dtype = element(dataset)
        self._datasets.add(address)
        tiled = kind == h5d.CHUNKED and not filters and dtype is not None
        offset = dataset.get_offset() if kind == h5d.CONTIGUOUS else None
        self._report.add(
            path=path,
            address=address,
            dtype=dtype,
            shape=space.shape or (),
            layout="filtered" if filters else LAYOUTS.get(kind, "unknown"),
            offset=offset,
            tile=settings.get_chunk() if tiled else None,
            fill=fill(dataset, settings) if dtype and offset is None else None,
        )
        if tiled:
            self._tiles(dataset)

    def _tiles(self, dataset: Any) -> None:
        """Report where the chunks of the dataset just reported lie."""

        found: list[tuple[int, ...]] = []

        def visit(chunk: Any) -> None:
            found.append((chunk.byte_offset, chunk.size, *chunk.chunk_offset))
            if len(found) == TILES:
                self._report.add(tiles=found)
                found.clear()

        dataset.chunk_iter(visit)
        self._report.add(tiles=found)


def element(dataset: Any) -> str | None:
    """The name of a dataset's element type in mstore, or None if it has none."""
    try:
        kind = dataset.get_type()
    except TypeError:  # a class of types that h5py does not know
        return None
    name = number(kind)
    # Keras marks bfloat16, which h5py writes as two opaque bytes or as a whole number.
    two_bytes = isinstance(kind, h5t.TypeOpaqueID) and kind.get_size() == 2
    if (two_bytes or name in ("u16", ">u16")) and read_text(dataset, b"dtype") == "bfloat16":
        return ">bf16" if name == ">u16" else "bf16"
    return name


def number(kind: Any) -> str | None:
    """The name in mstore of a type of numbers, or None if it has none."""
    size = kind.get_size()
    if isinstance(kind, h5t.TypeEnumID):
        names = [kind.get_member_name(index) for index in range(min(kind.get_nmembers(), 3))]
        values = [kind.get_member_value(index) for index in range(len(names))]
        is_bool = size == 1 and dict(zip(names, values, strict=True)) == {b"FALSE": 0, b"TRUE": 1}
        return "bool" if is_bool else None
    if isinstance(kind, h5t.TypeCompoundID):
        return COMPLEX.get(part(kind) or "")
    if isinstance(kind, getattr(h5t, "TypeComplexID", ())):
        return COMPLEX.get(number(kind.get_super()) or "")  # type: ignore[union-attr]
    if not isinstance(kind, h5t.TypeIntegerID | h5t.TypeFloatID):
        return None
    if kind.get_precision() != 8 * size or kind.get_offset() != 0:
        return None
    order = "" if size == 1 else BYTE_ORDERS.get(kind.get_order())
    if order is None:
        return None
    if isinstance(kind, h5t.TypeFloatID):
        name = FLOATS.get((size, kind.get_fields(), kind.get_ebias()))
        return None if name is None else f"{order}{name}"
    sign = "i" if kind.get_sign() == h5t.SGN_2 else "u"
    return f"{order}{sign}{8 * size}" if size in (1, 2, 4, 8) else None


def part(kind: Any) -> str | None:
    """The type of both halves of a compound that h5py reads as a complex number."""
    if kind.get_nmembers() != 2:
        return None
    half = kind.get_size() // 2
    members = [(kind.get_member_name(at), kind.get_member_offset(at)) for at in range(2)]
    types = {number(kind.get_member_type(at)) for at in range(2)}
    is_complex = members == [(b"r", 0), (b"i", half)] and len(types) == 1
    return types.pop() if is_complex else None


def fill(dataset: Any, settings: Any) -> str | None:
    """The bytes, in hex, that an element has where nothing was written."""
    size: int = dataset.get_type().get_size()
    if settings.fill_value_defined() != h5d.FILL_VALUE_USER_DEFINED:
        return "00" * size
    value = np.zeros((), dataset.dtype)
    try:
        settings.get_fill_value(value)
    except (TypeError, ValueError, OSError, RuntimeError):
        return None
    return value.tobytes().hex()


def read_text(owner: Any, name: bytes) -> str | None:
    """An attribute that is one string, or None."""
    if not h5a.exists(owner, name):
        return None
    attribute = h5a.open(owner, name)
    kind = attribute.get_type()
    if attribute.shape != () or not isinstance(kind, h5t.TypeStringID):
        return None
    if kind.get_size() <= MAX_TEXT:
        value = np.empty((), attribute.dtype)
        attribute.read(value)
        text: Any = value[()]
        text = text if isinstance(text, str) else bytes(text).decode("utf-8", "backslashreplace")
        if len(text) <= MAX_TEXT:
            return str(text)
    raise TooMuch(f"its attribute {name.decode()} has more than {MAX_TEXT} bytes")


def opened(size: int) -> Any:
    """The file, opened by the library through `File`."""
    access = h5p.create(h5p.FILE_ACCESS)
    access.set_fileobj_driver(h5fd.fileobj_driver, File(size))
    return h5f.open(b"file", h5f.ACC_RDONLY, access)


def rehearse() -> None:
    """Do once with a small file in memory what is to be done with the real one.

    Python and h5py load some of their parts when they are first used, and cannot do so later.
    """
    with h5py.File("rehearsal", "w", driver="core", backing_store=False) as file:
        file.attrs["model_config"], file.attrs["training_config"] = b"{}", "{}"
        file.create_dataset("group/chunked", data=np.arange(4), chunks=(3,))
        file.create_dataset("filled", (2,), "c8", fillvalue=1j)
        file["bool"], file["text"] = True, "text"
        Lister(Report()).root(file["/"].id)


def main() -> None:
    """Serve one file, whose size comes first."""
    rehearse()
    confine()
    send(b"h", 0, 0)
    (size,) = struct.unpack("<Q", os.read(SOCKET, 8))
    report = Report()
    sys.setrecursionlimit(100 * MAX_DEPTH)  # the depth of groups is what ends it
    try:
        Lister(report).root(h5g.open(opened(size), b"/"))
    except TooMuch as error:
        report.add(limit=str(error))
    except MemoryError:
        report.add(limit="it needs more memory than the HDF5 library is given")
    except Exception as error:  # whatever the library says of a file that it cannot read
        # The text of a KeyError is in quotes.
        report.add(failed=str(error.args[0] if isinstance(error, KeyError) else error)[:300])
    report.flush()
    send(b"d", 0, 0)


if __name__ == "__main__":
    main()
