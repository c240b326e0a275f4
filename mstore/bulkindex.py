"""Many ids at once: looking them up in indexes, and merging indexes, in numpy.

Ids are given as uint8 arrays of shape (n, 32).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mstore.errors import CorruptDataError
from mstore.ids import ID_SIZE, Buffer
from mstore.index import ROW_SIZE, Index, assemble

Ids = NDArray[np.uint8]
Rows = NDArray[np.int64]

ROW_DTYPE = np.dtype(
    [
        ("tail0", "<u8"),
        ("tail1", "<u8"),
        ("tail2", "<u8"),
        ("offset", "<u8"),
        ("pack", "<u4"),
        ("stored", "<u4"),
        ("raw", "<u4"),
        ("base", "<u4"),
        ("energy", "<f4"),
        ("codec", "u1"),
        ("kind", "u1"),
        ("dtype", "u1"),
        ("depth", "u1"),
    ]
)
"""The rows of an index (see `index.ROW`), the id's last 24 bytes as three numbers."""
assert ROW_DTYPE.itemsize == ROW_SIZE

_TAILS = ("tail0", "tail1", "tail2")


@dataclass(frozen=True, slots=True)
class Located:
    """Where ids lie: `rows` (n,) of ROW_DTYPE with `pack` an index into `packs`.

    `found` (n,) tells which ids are in any of the indexes; rows of the others are zeros.
    """

    found: NDArray[np.bool_]
    rows: NDArray[np.void]
    packs: list[str]


def as_ids(joined: Buffer) -> Ids:
    """Concatenated ids as an array of shape (n, 32), without copying."""
    return np.frombuffer(joined, np.uint8).reshape(-1, ID_SIZE)


def columns(index: Index) -> tuple[NDArray[np.uint64], NDArray[np.void]]:
    """The mapped keys and rows of an index, as arrays of length n."""
    keys = np.frombuffer(index.keys, np.uint64)
    return keys, np.frombuffer(index.rows, ROW_DTYPE)


def find_rows(index: Index, ids: Ids) -> Rows:
    """The row of each id in `index`, or -1 where it is not there; shape (n,), int64.

    Sorted queries make the binary searches walk the mapped keys in order, which is several times
    faster than searching at random.
    """
    rows = np.full(len(ids), -1, np.int64)
    if not index.count or not len(ids):
        return rows
    keys, table = columns(index)
    wanted = np.ascontiguousarray(ids[:, :8]).view(">u8").ravel().astype(np.uint64)
    tails = np.ascontiguousarray(ids[:, 8:]).view("<u8")
    order = np.argsort(wanted)
    at = np.searchsorted(keys, wanted[order])
    while len(order):
        inside = at < index.count
        order, at = order[inside], at[inside]
        same_key = keys[at] == wanted[order]
        order, at = order[same_key], at[same_key]
        hit = np.ones(len(order), np.bool_)
        for column, name in enumerate(_TAILS):
            hit &= table[name][at] == tails[order, column]
        rows[order[hit]] = at[hit]
        # Two ids with the same first eight bytes: the one meant may be the next row.
        order, at = order[~hit], at[~hit] + 1
    return rows


def locate(indexes: Sequence[Index], ids: Ids) -> Located:
    """Look every id up in `indexes`, the first that has it counts.

    Raises CorruptDataError when a row found names a pack that its index does not have.
    """
    found = np.zeros(len(ids), np.bool_)
    rows = np.zeros(len(ids), ROW_DTYPE)
    packs: list[str] = []
    for index in indexes:
        open_places = np.flatnonzero(~found)
        if not len(open_places):
            break
        at = find_rows(index, ids[open_places])
        hit = at >= 0
        if not hit.any():
            continue
        places = open_places[hit]
        table = columns(index)[1]
        taken = table[at[hit]]
        if (taken["pack"] >= len(index.packs)).any():
            raise _malformed(index)
        taken["pack"] += len(packs)
        rows[places] = taken
        found[places] = True
        packs.extend(index.packs)
    return Located(found, rows, packs)


def check_rows(index: Index) -> None:
    """Read all of `index` and check it, before something is deleted or rewritten by what it says.

    Raises CorruptDataError when its checksum is wrong, its keys are out of order, or a row names
    a pack or a base that the index does not have.
    """
    index.check()
    keys, rows = columns(index)
    if (
        (keys[1:] < keys[:-1]).any()
        or (rows["pack"] >= len(index.packs)).any()
        or (rows["base"] > len(index.bases) // ID_SIZE).any()
    ):
        raise _malformed(index)


def merge(indexes: Sequence[Index], keep: Sequence[NDArray[np.bool_] | None]) -> list[Buffer]:
    """The parts of one index with the records of all, the first of a repeated id.

    `keep[i]`, where given, is a mask of shape (len(indexes[i]),) of the rows to take. Raises
    CorruptDataError when an index is damaged: the merger would have a checksum that is right.
    """
    for index in indexes:
        check_rows(index)
    keys, rows, packs, bases = _concatenated(indexes, keep)
    # The inputs are sorted runs, which a stable sort of the keys merges in about one pass.
    order = np.argsort(keys, kind="stable")
    keys, rows = keys[order], rows[order]
    if ((keys[1:] == keys[:-1]) & ~_same(keys, rows)).any():
        # Different ids with the same first eight bytes: only these make the tails matter.
        order = np.lexsort((*(rows[name].byteswap() for name in reversed(_TAILS)), keys))
        keys, rows = keys[order], rows[order]
    first = np.concatenate((np.ones(min(1, len(keys)), np.bool_), ~_same(keys, rows)))
    keys, rows = keys[first], rows[first]
    names, rows["pack"] = _renumbered(rows["pack"], packs)
    bases, rows["base"] = _renumbered_bases(rows["base"], bases)
    return assemble(names, len(keys), keys.data.cast("B"), rows.view(np.uint8).data, bases)


def _same(keys: NDArray[np.uint64], rows: NDArray[np.void]) -> NDArray[np.bool_]:
    """Which ids equal the one before them; shape (n - 1,)."""
    same: NDArray[np.bool_] = keys[1:] == keys[:-1]
    for name in _TAILS:
        same &= rows[name][1:] == rows[name][:-1]
    return same


def _malformed(index: Index) -> CorruptDataError:
    return CorruptDataError(f"index {index.name} is malformed", hint="run: mstore verify")


def _concatenated(
    indexes: Sequence[Index], keep: Sequence[NDArray[np.bool_] | None]
) -> tuple[NDArray[np.uint64], NDArray[np.void], list[str], bytes]:
    all_keys, all_rows = [], []
    packs: list[str] = []
    bases = bytearray()
    for index, mask in zip(indexes, keep, strict=True):
        keys, rows = columns(index)
        rows = rows.copy() if mask is None else rows[mask]
        rows["pack"] += len(packs)
        rows["base"][rows["base"] > 0] += len(bases) // ID_SIZE
        all_keys.append(keys if mask is None else keys[mask])
        all_rows.append(rows)
        packs.extend(index.packs)
        bases += index.bases
    return np.concatenate(all_keys), np.concatenate(all_rows), packs, bytes(bases)


def _renumbered(
    numbers: NDArray[np.uint32], names: Sequence[str]
) -> tuple[list[str], NDArray[np.uint32]]:
    """The names in use, each once, and `numbers` as places in that shorter list."""
    used = np.unique(numbers)
    unique = sorted({names[number] for number in used})
    place = {name: at for at, name in enumerate(unique)}
    table = np.zeros(len(names) + 1, np.uint32)
    for number in used:
        table[number] = place[names[number]]
    return unique, table[numbers]


def _renumbered_bases(
    numbers: NDArray[np.uint32], bases: bytes
) -> tuple[bytes, NDArray[np.uint32]]:
    """The base ids in use, each once, and `numbers` (0: none, else 1 + place) as places there."""
    used = np.unique(numbers[numbers > 0])
    place: dict[bytes, int] = {}
    table = np.zeros(len(bases) // ID_SIZE + 1, np.uint32)
    for number in used:
        base = bases[(number - 1) * ID_SIZE : number * ID_SIZE]
        table[number] = place.setdefault(base, len(place) + 1)
    return b"".join(place), table[numbers]
