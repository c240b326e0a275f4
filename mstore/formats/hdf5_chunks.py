"""Compressed chunks of an HDF5 file that claim too much; a part of `hdf5_worker.py`."""

from math import prod
from typing import Any

from .hdf5_refusal import TooMuch, shown

# A compressed chunk is refused if it would become larger than MAX_INFLATED, and more than
# MAX_RATIO times larger than it is. Chunks of zeros, as of an optimizer that made no step yet, have
# such a ratio, but h5py chooses chunks of at most 1 MiB, and those chosen by hand rarely exceed
# what fits into a cache. Whoever reads one element has to inflate the whole chunk.
MAX_INFLATED = 64 << 20
MAX_RATIO = 200

DEFLATE, SHUFFLE, FLETCHER32, SZIP, NBIT, SCALEOFFSET, LZF = 1, 2, 3, 4, 5, 6, 32000
OWN_FILTERS = {DEFLATE, SHUFFLE, FLETCHER32, SZIP, NBIT, SCALEOFFSET, LZF}  # come with h5py
# How many times larger data may become when a filter is undone. Deflate has at least 2 bits for 258
# bytes (zlib's technical details); an LZF reference of 3 bytes stands for 264; the code of szip
# that stands for most, a run of 64 blocks of 32 samples of 4 bytes, is longer than a byte (CCSDS
# 121.0-B). Scale-offset keeps nothing of a chunk of equal values; nbit depends on the type.
BOUNDS = {DEFLATE: 1032, SHUFFLE: 1, FLETCHER32: 1, SZIP: 8192, LZF: 88}


def check_chunks(dataset: Any, shape: tuple[int, ...], filters: list[int], path: str) -> None:
    """Raise TooMuch if a compressed chunk claims more than can be, or should be, in its bytes.

    Only the index of the chunks is read; none of them is.
    """
    try:
        size = dataset.get_type().get_size()
    except TypeError:  # a class of types that h5py does not know
        return
    length = prod(shape) * size
    least: dict[int, float] = {}  # bytes that a chunk needs, by the filters that were left out
    wrong: list[int] = []

    def visit(chunk: Any) -> bool | None:
        if chunk.filter_mask not in least:
            used = [f for bit, f in enumerate(filters) if not chunk.filter_mask >> bit & 1]
            least[chunk.filter_mask] = least_bytes(length, used, size)
        if chunk.size >= least[chunk.filter_mask]:
            return None
        wrong.append(chunk.size)
        return True  # makes it stop

    dataset.chunk_iter(visit)
    if wrong:
        raise TooMuch(f"a chunk of {shown(path)} claims {length} bytes in {wrong[0]} compressed")


def least_bytes(length: int, filters: list[int], size: int) -> float:
    """The bytes that a chunk of `length` bytes, of elements of `size`, needs at least."""
    if SCALEOFFSET in filters:
        least = 0.0
    else:
        least = length / prod(8 * size if f == NBIT else BOUNDS[f] for f in filters)
    return max(least, length / MAX_RATIO) if length > MAX_INFLATED else least
