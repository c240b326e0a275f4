"""Many ids at once: looking them up in indexes, and merging indexes, in numpy.

Ids are given as uint8 arrays of shape (n, 32).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mstore.distinct import distinct
from mstore.errors import CorruptDataError, NotFoundError
from mstore.ids import ID_SIZE, Buffer
from mstore.index import MAX_OFFSET, ROW_SIZE, Index, assemble

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

_UNKNOWN = 1 << 8
"""Greater than every depth."""

_TAILS = ("tail0", "tail1", "tail2")


NO_ROW = -1
"""In place of a row: the id is in no index, or there is no base."""


@dataclass(frozen=True, slots=True)
class Located:
    """Where ids lie: `rows` (n,) of ROW_DTYPE with `pack` an index into `packs`.

    `base` is 1 + an index into the ids `bases` (m, 32), 0 where there is none. `found` (n,) tells
    which ids are in any of the indexes; rows of the others are zeros.
    """

    found: NDArray[np.bool_]
    rows: NDArray[np.void]
    packs: list[str]
    bases: Ids


@dataclass(frozen=True, slots=True)
class Closure:
    """Where ids lie, and all that they are coded against.

    The first of `ids` (m, 32) and `rows` (m,) are those asked for, in their order; behind them
    stand their bases, then the bases of these, and so on. The same id may stand in several places.
    `base` (m,) is the number of the row of each one's base, or NO_ROW; `pack` of a row is an index
    into `packs`, where each name stands once.
    """

    ids: Ids
    rows: NDArray[np.void]
    base: NDArray[np.int64]
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


def search(indexes: Sequence[Index], ids: Ids) -> tuple[NDArray[np.int32], Rows]:
    """For each id the number of the index that has the row that counts, and that row in it.

    Of several rows of an id the one of least depth counts, among equals the first found; this is
    what keeps two chunks from becoming each other's base. Both results are of shape (n,), with
    NO_ROW where no index has the id.
    """
    numbers = np.full(len(ids), NO_ROW, np.int32)
    rows = np.full(len(ids), NO_ROW, np.int64)
    depths = np.full(len(ids), _UNKNOWN, np.uint16)
    for number, index in enumerate(indexes):
        # Nothing counts before a row of depth 0.
        places = np.flatnonzero(depths)
        if not len(places):
            break
        at = find_rows(index, ids[places])
        hit = at >= 0
        places, at = places[hit], at[hit]
        found = columns(index)[1]["depth"][at]
        less = found < depths[places]
        places = places[less]
        numbers[places] = number
        rows[places] = at[less]
        depths[places] = found[less]
    return numbers, rows


def locate(indexes: Sequence[Index], ids: Ids) -> Located:
    """Look every id up in `indexes`; which row counts, see `search`.

    Raises CorruptDataError when a row found names a pack or a base that its index does not have.
    """
    numbers, at = search(indexes, ids)
    rows = np.zeros(len(ids), ROW_DTYPE)
    packs: list[str] = []
    bases = [np.zeros((0, ID_SIZE), np.uint8)]
    base_count = 0
    for number, index in enumerate(indexes):
        places = np.flatnonzero(numbers == number)
        if not len(places):
            continue
        taken = columns(index)[1][at[places]]
        if _points_nowhere(index, taken).any():
            raise _malformed(index)
        taken["pack"] += len(packs)
        packs.extend(index.packs)
        if len(coded := np.flatnonzero(taken["base"])):
            used, place = np.unique(taken["base"][coded], return_inverse=True)
            taken["base"][coded] = place + (base_count + 1)
            bases.append(as_ids(index.bases)[used.astype(np.int64) - 1])
            base_count += len(used)
        rows[places] = taken
    return Located(numbers >= 0, rows, packs, np.concatenate(bases))


def locate_with_bases(indexes: Sequence[Index], ids: Ids) -> Closure:
    """Look up every id, its base, the base of that, and so on to those that have none.

    Raises NotFoundError when one is in no index, and CorruptDataError as `locate` does and when a
    base has not a smaller depth than what is coded against it: so every chain of bases ends.
    """
    located = _all_located(indexes, ids, "chunk")
    base = np.full(len(ids), NO_ROW, np.int64)
    if not len(located.bases):
        return Closure(ids, located.rows, base, located.packs)
    places: dict[str, int] = {}
    all_ids, all_rows, all_bases = [ids], [_renamed(located, places)], [base]
    count = len(ids)
    while len(located.bases):
        below = _all_located(indexes, located.bases, "base")
        coded = np.flatnonzero(located.rows["base"])
        numbers = located.rows["base"][coded].astype(np.int64) - 1
        if (below.rows["depth"][numbers] >= located.rows["depth"][coded]).any():
            raise CorruptDataError(
                "chunks are coded against each other in a circle", hint="run: mstore verify"
            )
        all_bases[-1][coded] = numbers + count
        all_ids.append(located.bases)
        all_rows.append(_renamed(below, places))
        all_bases.append(np.full(len(below.rows), NO_ROW, np.int64))
        count += len(below.rows)
        located = below
    joined = np.concatenate(all_rows)
    return Closure(np.concatenate(all_ids), joined, np.concatenate(all_bases), list(places))


def _all_located(indexes: Sequence[Index], ids: Ids, what: str) -> Located:
    located = locate(indexes, ids)
    if not located.found.all():
        missing = ids[int(np.argmin(located.found))].tobytes().hex()[:12]
        raise NotFoundError(f"{what} {missing} is missing from the repository")
    return located


def _renamed(located: Located, places: dict[str, int]) -> NDArray[np.void]:
    """The rows, with packs by their places in `places`, to which those not there are added."""
    table = [places.setdefault(name, len(places)) for name in located.packs]
    rows = located.rows.copy()
    rows["pack"] = np.array(table, np.uint32)[rows["pack"]]
    return rows


def check_rows(index: Index) -> None:
    """Read all of `index` and check it, before something is deleted or rewritten by what it says.

    Raises CorruptDataError when its checksum is wrong, its keys are out of order, or a row names
    a pack or a base that the index does not have, or a depth without a base.
    """
    index.check()
    keys, rows = columns(index)
    if (keys[1:] < keys[:-1]).any() or _points_nowhere(index, rows).any():
        raise _malformed(index)


def merge(indexes: Sequence[Index], keep: Sequence[NDArray[np.bool_] | None]) -> list[Buffer]:
    """The parts of one index with the records of all; of a repeated id the one that counts.

    That is the one of least depth, the first among equals, as in `search`.
    `keep[i]`, where given, is a mask of shape (len(indexes[i]),) of the rows to take. Raises
    CorruptDataError when an index is damaged: the merger would have a checksum that is right.
    """
    for index in indexes:
        check_rows(index)
    keys, rows, packs, bases = _concatenated(indexes, keep)
    # The inputs are sorted runs, which a stable sort of the keys merges in about one pass.
    order = np.argsort(keys, kind="stable")
    keys, rows = keys[order], rows[order]
    if ((keys[1:] == keys[:-1]) & ~(_same(keys, rows) & (rows["depth"][:-1] == 0))).any():
        # Different ids with the same first eight bytes make the tails matter, several records of
        # one id with a base their depths.
        tails = (rows[name].byteswap() for name in reversed(_TAILS))
        order = np.lexsort((rows["depth"], *tails, keys))
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


def _points_nowhere(index: Index, rows: NDArray[np.void]) -> NDArray[np.bool_]:
    """Which of these rows of `index` name a pack or a base that is not in its tables; shape (n,).

    So do those with a base but no depth or the other way about, or an offset no pack can have.
    """
    nowhere: NDArray[np.bool_] = rows["pack"] >= len(index.packs)
    nowhere |= rows["base"] > len(index.bases) // ID_SIZE
    nowhere |= rows["offset"] > MAX_OFFSET
    nowhere |= (rows["base"] > 0) != (rows["depth"] > 0)
    return nowhere


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
    used = distinct(numbers)
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
    used = distinct(numbers[numbers > 0])
    place: dict[bytes, int] = {}
    table = np.zeros(len(bases) // ID_SIZE + 1, np.uint32)
    for number in used:
        base = bases[(number - 1) * ID_SIZE : number * ID_SIZE]
        table[number] = place.setdefault(base, len(place) + 1)
    return b"".join(place), table[numbers]
