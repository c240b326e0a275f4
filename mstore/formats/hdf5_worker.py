"""What lists an HDF5 file, with the HDF5 library, in a process of its own; see `hdf5_zygote.py`.

The library was not made for files that nobody trusts, so that process has nothing to lose. It reads
no data of any dataset, and follows no link but hard ones. It imports nothing of mstore but the few
files beside it that are made for it.
"""

import sys
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
from h5py import h5, h5a, h5d, h5f, h5fd, h5g, h5l, h5o, h5p, h5s, h5t

from .hdf5_chunks import OWN_FILTERS, check_chunks
from .hdf5_links import SoftLinks
from .hdf5_refusal import TooMuch, shown

if TYPE_CHECKING:
    from mstore.formats.hdf5_zygote import File, Report

TILES = 1000  # in one line
MAX_DEPTH = 200
MAX_LINKS = 1_000_000
MAX_PATH = 1 << 15  # characters
MAX_CHARACTERS = 64 << 20  # of the paths of all links, and of where soft links lead, together
MAX_SOURCES = 100_000  # of virtual datasets, each name counted once
MAX_PATHS = 1 << 24  # by which all objects together can be reached
MAX_TEXT = 16 << 20  # bytes of an attribute
CACHE = 2 << 20  # bytes that the library keeps of headers, trees and heaps, as it counts them

LAYOUTS = {h5d.COMPACT: "compact", h5d.CONTIGUOUS: "contiguous"}
LAYOUTS |= {h5d.CHUNKED: "chunked", h5d.VIRTUAL: "virtual"}
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


class Lister:
    """Goes through all groups of a file, into each once, and reports each dataset and hazard."""

    def __init__(self, report: "Report") -> None:
        self._report = report
        self._paths: dict[int, int | None] = {}  # by addresses of groups; None while inside
        self._datasets: set[int] = set()  # addresses, as in `_paths`
        self._soft = SoftLinks()
        self._root: Any = None
        self._plain: dict[str, bool] = {}  # by names of sources of virtual datasets
        self._links = 0
        self._characters = 0
        self._error: Exception | None = None

    def root(self, group: Any) -> None:
        """Report the whole file."""
        self._root = group
        for number, name in enumerate((b"model_config", b"training_config")):
            if (config := read_text(group, name)) is not None:
                self._report.config(number, config)
        self._group(group, h5o.get_info(group).addr, "", 0)
        self._soft.check()

    def _group(self, group: Any, address: int, prefix: str, depth: int) -> int:
        """Report what is in a group and below it, and return by how many paths that is reached.

        A group that is met again is not gone through again, but its paths count.
        """
        if depth > MAX_DEPTH:
            raise TooMuch(f"its groups are nested more than {MAX_DEPTH} deep")
        paths = 0

        def visit(name: bytes, info: Any) -> bool | None:
            # The library, which calls this, can pass on no exception; True makes it stop.
            nonlocal paths
            try:
                path = prefix + name.decode("utf-8", "backslashreplace")
                paths += self._link(group, name, info, path, depth)
                if paths > MAX_PATHS:
                    raise TooMuch(f"it has more than {MAX_PATHS} paths")
            except Exception as error:
                self._error = error
                return True
            return None

        self._paths[address] = None
        self._soft.groups.add(prefix.removesuffix("/"))
        group.links.iterate(visit, info=True, order=h5.ITER_INC)
        if self._error is not None:
            raise self._error
        self._paths[address] = paths
        return paths

    def _link(self, group: Any, name: bytes, info: Any, path: str, depth: int) -> int:
        """Report what a link leads to, and return how many paths lead through it."""
        if b"/" in name or name in (b"", b"."):
            raise ValueError(f"a link cannot be called {shown(path)}")  # it is not found by that
        self._links += 1
        self._characters += len(path) + (info.u if info.type == h5l.TYPE_SOFT else 0)
        too_long = len(path) > MAX_PATH or self._characters > MAX_CHARACTERS
        if self._links > MAX_LINKS or too_long:
            raise TooMuch(f"it has more than {MAX_LINKS} links, or their paths are too long")
        if info.type == h5l.TYPE_HARD:
            return 1 + self._object(group, name, info.u, path, depth)
        if info.type == h5l.TYPE_SOFT:
            target = group.links.get_val(name).decode("utf-8", "backslashreplace")
            self._soft.add(path, target)
        elif info.type == h5l.TYPE_EXTERNAL:
            self._report.add(hazard="link", path=path)
        else:
            self._report.add(hazard="strange link", path=path)
        return 1

    def _object(self, parent: Any, name: bytes, address: int, path: str, depth: int) -> int:
        """Report an object, and return how many paths lead on from it."""
        if address in self._paths:
            paths = self._paths[address]
            if paths is None:
                raise TooMuch(f"its group {shown(path)} holds itself")
            return paths
        if address in self._datasets:
            self._report.add(path=path, same=address)
            return 0
        found = h5o.open(parent, name)
        if isinstance(found, h5g.GroupID):
            return self._group(found, address, path + "/", depth + 1)
        if isinstance(found, h5d.DatasetID):
            self._dataset(found, address, path)
        return 0

    def _dataset(self, dataset: Any, address: int, path: str) -> None:
        settings = dataset.get_create_plist()
        kind = settings.get_layout()
        if kind == h5d.VIRTUAL and (hazard := self._hazard_of_parts(settings)):
            self._report.add(hazard=hazard, path=path)
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
        elif filters:
            check_chunks(dataset, settings.get_chunk(), filters, path)

    def _hazard_of_parts(self, settings: Any) -> str | None:
        """What is wrong with the sources of a virtual dataset; None if all are plain datasets.

        A source may be the dataset itself, or a virtual one that leads back to it. The library does
        not notice, and goes round until the memory for its calls is used up.
        """
        parts = range(settings.get_virtual_count())
        if any(settings.get_virtual_filename(part) != "." for part in parts):
            return "virtual"
        for part in parts:
            name = settings.get_virtual_dsetname(part)
            if name not in self._plain:
                self._characters += len(name)
                if len(self._plain) == MAX_SOURCES or self._characters > MAX_CHARACTERS:
                    raise TooMuch(f"its virtual datasets have more than {MAX_SOURCES} sources")
                self._plain[name] = is_plain(self._root, name)
            if not self._plain[name]:
                return "nested"
        return None

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


def is_plain(root: Any, source: str) -> bool:
    """Whether the library, asked for a source, comes to a dataset that is not virtual itself.

    It must come there by hard links alone: where a soft link leads depends on more than one name.
    Names start at the root, with or without a slash; `%b` in one would stand for many.
    """
    found = root
    for name in source.encode("utf-8", "surrogateescape").split(b"/"):
        if name in (b"", b"."):
            continue
        if not isinstance(found, h5g.GroupID) or not found.links.exists(name):
            return False
        if found.links.get_info(name).type != h5l.TYPE_HARD:
            return False
        found = h5o.open(found, name)
    is_dataset = isinstance(found, h5d.DatasetID) and "%" not in source
    return is_dataset and found.get_create_plist().get_layout() != h5d.VIRTUAL


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
        if len(text.encode("utf-8", "backslashreplace")) <= MAX_TEXT:
            return str(text)
    raise TooMuch(f"its attribute {name.decode()} has more than {MAX_TEXT} bytes")


def opened(file: "File") -> Any:
    """The file, opened by the library."""
    access = h5p.create(h5p.FILE_ACCESS)
    access.set_fileobj_driver(h5fd.fileobj_driver, file)
    # By default the library keeps so much of what it has read that 20,000 datasets take 200 MiB.
    cache = access.get_mdc_config()
    cache.set_initial_size = True
    cache.initial_size = cache.min_size = cache.max_size = CACHE
    access.set_mdc_config(cache)
    return h5f.open(b"file", h5f.ACC_RDONLY, access)


def rehearse(report: "Report") -> None:
    """Do once with a small file in memory what is to be done with the real one.

    Python and h5py load some of their parts when they are first used, and cannot do so later.
    """
    with h5py.File("rehearsal", "w", driver="core", backing_store=False) as file:
        file.attrs["model_config"], file.attrs["training_config"] = b"{}", "{}"
        file.create_dataset("group/chunked", data=np.arange(4), chunks=(3,))
        file.create_dataset("deflated", data=np.arange(4), chunks=(3,), compression="gzip")
        file.create_dataset("filled", (2,), "c8", fillvalue=1j)
        file["bool"], file["text"] = True, "text"
        file["soft"] = h5py.SoftLink("/group")
        parts = h5py.VirtualLayout((4,), int)
        parts[:] = h5py.VirtualSource(".", "group/chunked", (4,))
        file.create_virtual_dataset("virtual", parts)
        Lister(report).root(file["/"].id)


def list_file(file: "File", report: "Report") -> None:
    """Report what is in a file, or why that is not reported."""
    sys.setrecursionlimit(100 * MAX_DEPTH)  # the depth of groups is what ends it
    try:
        Lister(report).root(h5g.open(opened(file), b"/"))
    except TooMuch as error:
        report.add(limit=str(error))
    except MemoryError:
        report.add(limit="it needs more memory than the HDF5 library is given")
    except Exception as error:  # whatever the library says of a file that it cannot read
        # The text of a KeyError is in quotes.
        report.add(failed=str(error.args[0] if isinstance(error, KeyError) else error)[:300])
