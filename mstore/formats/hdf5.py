"""HDF5, as h5py and Keras write it: datasets in a tree of groups.

    0, 512, 1024, 2048, …   superblock: `\\x89HDF\\r\\n\\x1a\\n`, version, place of the root group
    anywhere                headers of objects, B-trees, heaps, and the data of datasets

What lies where is said by the HDF5 library alone, which runs in a process of its own (see
`mstore.formats.hdf5_process`); what it says is checked here. A dataset is called by its path
without the leading slash. Its data is

- one run of the file: a segment;
- in chunks without filters: the chunks are hidden segments, those that lie end to end as one (the
  chunks at the edges are stored whole, too), and the dataset is a view of them;
- never written: a view of nothing but its fill value;
- compressed, part of its header, of a type that is no `DType`, or more than 1 GiB larger than the
  file: opaque.

A dataset with two paths (hard links) is described under both, but a group with two paths only under
the one that comes first. Soft links are not followed. Not described at all are files that send
their reader elsewhere (external links and storage, filters that are plug-ins, virtual datasets made
of anything but plain datasets of the file), and those in which a group holds itself, a soft link
never ends, or a compressed chunk claims more than it can hold.
Source: HDF5 File Format Specification 3.0, and the reference manual of the HDF5 library.
"""

from collections import Counter
from dataclasses import dataclass, field

from mstore.dtypes import DType
from mstore.errors import FormatError, LimitExceededError, UnsafeInputError
from mstore.formats import hdf5_process
from mstore.formats.base import Danger, Finding, Format, WindowReader, quote
from mstore.formats.hdf5_listing import Dataset, Listing, list_file
from mstore.formats.keras_config import config_findings
from mstore.formats.naming import Names
from mstore.formats.shifting import cover_all, shifted
from mstore.formats.strides import dense_strides
from mstore.formats.superblock import find_superblock
from mstore.layout import (
    ByteReader,
    Layout,
    Strided,
    Tensor,
    Tiled,
    View,
    check_view,
    cover,
    grid,
    opaque,
)

MISSING = "install mstore[hdf5] to see its datasets"
"""What to tell the user where h5py is not installed."""

_HAZARDS: dict[str, tuple[Danger, str]] = {
    "link": ("dangerous", "opens another file through a link"),
    "strange link": ("unknown", "follows a link of a kind that only a plug-in knows"),
    "external": ("dangerous", "reads data of a dataset from other files"),
    "virtual": ("dangerous", "puts a dataset together from other files"),
    "nested": ("dangerous", "follows virtual datasets that may go in a circle"),
    "filter": ("unknown", "needs a plug-in to read a dataset"),
}


class Hdf5Format(Format):
    """HDF5 files, with or without a user block before the superblock."""

    name = "hdf5"

    def sniff(self, head: bytes, reader: ByteReader) -> bool:
        """A superblock's signature at one of the places where the library looks for it."""
        return find_superblock(head, reader) is not None

    def layout(self, reader: ByteReader) -> Layout:
        """Every dataset of numbers that is not compressed; the rest is opaque."""
        return self.examine(reader)[0]

    def examine(self, reader: ByteReader) -> tuple[Layout, str | None]:
        """The layout, and how many datasets are not described and why."""
        if not hdf5_process.is_available():
            return opaque(reader.size), MISSING
        start, window = _without_user_block(reader)
        listing = list_file(window)
        if listing.hazards:
            first = listing.hazards[0]
            _, what = _hazard(first.kind)
            raise UnsafeInputError(f"the HDF5 library {what} to read it: {quote(first.path)}")
        parts = _describe(listing, window.size)
        layout = cover(
            self.name, window.size, parts.tensors, hidden=parts.hidden, views=parts.views
        )
        if start:
            layout = cover_all(self.name, reader.size, [shifted(layout, start, "")])
        return layout, _note(parts.left, len(listing.datasets))

    def findings(self, reader: ByteReader) -> list[Finding]:
        """Where the file sends its reader elsewhere, and what a Keras model in it would run."""
        if not hdf5_process.is_available():
            return [Finding("unknown", f"cannot be looked into; {MISSING}")]
        listing = list_file(_without_user_block(reader)[1])
        found = [Finding(*_hazard(hazard.kind), hazard.path) for hazard in listing.hazards]
        for name, config in listing.configs.items():
            found += config_findings(config, name)
        return found


def _without_user_block(reader: ByteReader) -> tuple[int, WindowReader]:
    """Where the superblock starts, and the file from there on, which is an HDF5 file as well."""
    start = find_superblock(b"", reader)
    if start is None:
        raise FormatError("it has no superblock")
    return start, WindowReader(reader, start, reader.size - start)


def _hazard(kind: str) -> tuple[Danger, str]:
    return _HAZARDS.get(kind, ("unknown", "does something that is not known"))


@dataclass(frozen=True, slots=True)
class _Parts:
    """What `cover` takes, and how many datasets stay opaque by the reason."""

    tensors: list[tuple[int, Tensor]] = field(default_factory=list)
    hidden: set[str] = field(default_factory=set)
    views: list[View] = field(default_factory=list)
    left: Counter[str] = field(default_factory=Counter)


def _describe(listing: Listing, size: int) -> _Parts:
    """The datasets as tensors, in a file of `size` bytes."""
    parts = _Parts()
    names = Names()
    # All datasets are named before any chunk is, so that none of them gets a number for it.
    named = [(names.add(dataset.path), dataset) for dataset in listing.datasets]
    known: set[int] = set()  # addresses of those whose data has a place in the layout
    for name, dataset in named:
        dtype = dataset.dtype
        if dtype is None:
            parts.left["of other types"] += 1
            continue
        start = _run(dataset, dtype)
        if start is None and (reason := _why_opaque(dataset, dtype)):
            parts.left[reason] += 1
            continue
        tensor = Tensor(name, dtype, dataset.shape)
        if start is None:
            # One that was never written, and is in no chunks, is one tile that is not stored.
            tile, offsets = dataset.tile or dataset.shape, tuple(dataset.offsets) or (-1,)
            view = View(tensor, Tiled(tile, offsets, dataset.fill))
            if _is_too_large(view, size):
                parts.left["much larger than the file"] += 1
                continue
            parts.views.append(view)
            if dataset.offsets and dataset.address not in known:
                _add_tiles(parts, names, tensor, dataset)
        elif dataset.address in known:
            parts.views.append(
                View(tensor, Strided(start, dense_strides(tensor.shape, tensor.dtype.itemsize)))
            )
        else:
            parts.tensors.append((start, tensor))
        known.add(dataset.address)
    return parts


def _run(dataset: Dataset, dtype: DType) -> int | None:
    """Where the file has all data of a dataset in row-major order, or None if it has not so."""
    if not dtype.nbytes(dataset.shape):
        return 0
    if dataset.layout == "contiguous":
        return dataset.offset
    if dataset.tile[1:] != dataset.shape[1:] or not dataset.offsets or dataset.offsets[0] < 0:
        return None
    # Chunks of whole rows, one after the other; the rows too many of the last one come at the end.
    first, length = dataset.offsets[0], dtype.nbytes(dataset.tile)
    follow = all(at == first + i * length for i, at in enumerate(dataset.offsets))
    return first if follow else None


def _why_opaque(dataset: Dataset, dtype: DType) -> str:
    """What keeps a dataset that is not one run from being described, or an empty string."""
    if dataset.layout == "filtered":
        return "compressed"
    if dataset.layout == "compact":
        return "inside their headers"
    if dataset.layout == "virtual":
        return "put together from others"
    if dataset.layout not in ("contiguous", "chunked"):
        return "in layouts unknown"
    return "" if len(dataset.fill) == dtype.itemsize else "with fill values unknown"


def _is_too_large(view: View, size: int) -> bool:
    """Whether a dataset is by far larger than its file, since most of it was never written."""
    try:
        check_view(view, size)
    except LimitExceededError:
        return True
    return False


def _add_tiles(parts: _Parts, names: Names, tensor: Tensor, dataset: Dataset) -> None:
    """The stored chunks of a dataset as hidden tensors, those that lie end to end as one.

    Such a run of n chunks is one tensor of n times their shape, called after the first.
    """
    stored = sorted((at, number) for number, at in enumerate(dataset.offsets) if at >= 0)
    length = tensor.dtype.nbytes(dataset.tile)
    counts = grid(dataset.shape, dataset.tile)
    first = 0
    for end in range(1, len(stored) + 1):
        if end < len(stored) and stored[end][0] == stored[end - 1][0] + length:
            continue
        offset, number = stored[first]
        name = names.add(f"{tensor.name}[{','.join(map(str, _place(number, counts)))}]")
        parts.hidden.add(name)
        parts.tensors.append((offset, Tensor(name, tensor.dtype, (end - first, *dataset.tile))))
        first = end


def _place(number: int, counts: tuple[int, ...]) -> tuple[int, ...]:
    """The indices in a grid of what has this number in row-major order."""
    place = []
    for count in reversed(counts):
        number, at = divmod(number, count)
        place.append(at)
    return tuple(reversed(place))


def _note(left: Counter[str], count: int) -> str | None:
    """What to tell of the datasets that stay opaque."""
    if not left:
        return None
    reasons = ", ".join(f"{number} {reason}" for reason, number in left.items())
    return f"opaque bytes for {left.total()} of {count} datasets: {reasons}"
