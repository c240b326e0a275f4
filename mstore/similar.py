"""Which stored tensors are like new ones: sketches of these are compared with those that are kept.

The distance of two tensors is that of their sketches, squared, as a part of how much the values of
the new one spread, squared: 0 for the same values, far below 0.1 for a fine-tune, about 2 for
weights that have nothing to do with each other.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from math import sqrt

import numpy as np
from numpy.typing import NDArray

from mstore.codecs.words import Words, cast, word_type
from mstore.distinct import distinct
from mstore.dtypes import BY_NAME, DType
from mstore.errors import MstoreError
from mstore.ids import Id
from mstore.layout import Layout
from mstore.root import SketchRef
from mstore.sketches import (
    HEAD,
    PLACES,
    REACH,
    ROW_DTYPE,
    SAMPLES,
    Rows,
    Sketches,
    Values,
    class_of,
    spread_of,
    values_of,
)
from mstore.sources import Source
from mstore.storage.base import Storage

NEAR = 0.1
"""The distance up to which tensors count as alike: beyond it the differences save too little."""

_MOST = 4
_NEAREST = 16
_ROWS_AT_ONCE = 1 << 12
_MAX_PRODUCTS = 1 << 17
# Sums of few single-precision products are right to a few parts in a million.
_ROUNDING = 1e-5

Numbers = NDArray[np.intp]

_PARTS = {"c64": "f32", "c128": "f64"}
_SINGLE, _BRAIN = (word_type(BY_NAME[name]) for name in ("f32", "bf16"))


@dataclass(frozen=True, slots=True)
class Like:
    """A stored tensor that is like a new one, and how near it is.

    `segment` is its number in the manifest; `model` and `path` are the fingerprints of where that
    was committed first.
    """

    distance: float
    manifest: Id
    segment: int
    model: int
    path: int


def sketch(source: Source, layout: Layout, segments: Sequence[int]) -> Rows:
    """Sketches of these segments of a file that are tensors, shape (n,); `file` is 0.

    Those too short for one, or with all values the same, are left out. Raises what reading the
    source does.
    """
    keys = {}
    for number in segments:
        tensor = layout.segments[number].tensor
        if tensor is not None and (key := class_of(tensor)) is not None:
            keys[number] = key
    rows = np.zeros(len(keys), ROW_DTYPE)
    rows["segment"], rows["class"] = list(keys), list(keys.values())
    values = _sampled(source, layout, list(keys))
    rounded = cast(values.view(np.uint32).ravel(), _SINGLE, _BRAIN)
    rows["samples"] = rounded.reshape(values.shape)
    values = values_of(rows["samples"])
    rows["samples"][~np.isfinite(values)] = 0
    rows["spread"] = spread_of(values_of(rows["samples"]))
    told: Rows = rows[(rows["spread"] > 0) & np.isfinite(rows["spread"])]
    return told


def _sampled(source: Source, layout: Layout, segments: Sequence[int]) -> Values:
    """The sampled values of these segments, shape (n, SAMPLES)."""
    values = np.empty((len(segments), SAMPLES), np.float32)
    by_type: dict[DType, list[int]] = {}
    for row, number in enumerate(segments):
        tensor = layout.segments[number].tensor
        assert tensor is not None
        by_type.setdefault(tensor.dtype, []).append(row)
    scratch = memoryview(bytearray(8 * REACH))
    for dtype, rows in by_type.items():
        kind = word_type(dtype)
        words = np.empty((len(rows), SAMPLES), kind.native)
        for place, row in enumerate(rows):
            offset = layout.segments[segments[row]].offset
            view = source.view(offset, REACH * kind.size, scratch)
            words[place] = np.frombuffer(view, kind.stored)[PLACES]
        values[rows] = _as_values(words, dtype)
    return values


def _as_values(words: Words, dtype: DType) -> Values:
    """Words of elements of `dtype` as numbers; what is no number to us counts as an integer."""
    kind = word_type(dtype)
    values: Values
    if not kind.mantissa:
        values = words.view(f"{'i' if dtype.family == 'int' else 'u'}{kind.size}")
        return values.astype(np.float32)
    if kind.size == 1:
        # Where the exponents begin does not matter among numbers of one type.
        exponent, rest = np.divmod((words & 0x7F).astype(np.int32), 1 << kind.mantissa)
        significand = rest + (exponent > 0) * (1 << kind.mantissa)
        values = np.ldexp(significand.astype(np.float32), np.maximum(exponent, 1))
        return np.where(words & 0x80, -values, values)
    part = word_type(BY_NAME[_PARTS.get(kind.name, kind.name)])
    values = cast(words.ravel(), part, _SINGLE).view(np.float32).reshape(words.shape)
    return values


def nearest(storage: Storage, refs: Iterable[SketchRef], rows: Rows) -> list[list[Like]]:
    """For each sketch the stored tensors that are like it, the nearest first, one of a manifest.

    An object of sketches that is damaged, or gone, is passed over.
    """
    found: list[dict[Id, Like]] = [{} for _ in rows]
    keys = distinct(rows["class"]).tolist()
    for ref in refs if keys else ():
        with suppress(MstoreError):
            sketches = Sketches.open(storage, ref)
            for key in keys:
                numbers = np.flatnonzero(rows["class"] == key)
                for query, like in _in_class(sketches, sketches.rows_of(key), rows[numbers]):
                    likes = found[numbers[query]]
                    known = likes.get(like.manifest)
                    if known is None or like.distance < known.distance:
                        likes[like.manifest] = like
    return [sorted(likes.values(), key=lambda like: like.distance)[:_MOST] for likes in found]


def _in_class(sketches: Sketches, part: slice, queries: Rows) -> Iterator[tuple[int, Like]]:
    """The tensors among rows of one class that are like any of the queries, each with its number.

    What is done before the distances themselves are computed rules out only what cannot be near.
    """
    values = values_of(queries["samples"])
    for query, row in _candidates(sketches, part, queries, values):
        stored = np.concatenate((sketches.heads[row], sketches.tails[row]), axis=1)
        with np.errstate(all="ignore"):
            apart = (values_of(stored) - values[query]) / queries["spread"][query, None]
            distances = np.einsum("ij,ij->i", apart, apart)
        for hit in np.flatnonzero(distances < NEAR).tolist():
            file, segment = sketches.origins[row[hit]].tolist()
            if file < len(sketches.files):
                manifest, model, path = sketches.files[file]
                distance = float(distances[hit])
                like = Like(distance, manifest.tobytes(), segment, int(model), int(path))
                yield int(query[hit]), like


def _candidates(
    sketches: Sketches, part: slice, queries: Rows, values: Values
) -> Iterator[tuple[Numbers, Numbers]]:
    """Pairs of a query and a row that may be near: numbers of both, a portion of rows at a time.

    The spreads of what is near differ little, by which the rows are sorted, and the heads alone
    are no farther apart than all values are. The product gives |q - r|² less the bound at once:
    -2 q r + |r|² 1 + 1 (|q|² - bound).
    """
    spreads = queries["spread"]
    low, high = spreads * (1 - sqrt(NEAR)), spreads * (1 + sqrt(NEAR))
    # Squares of numbers such as these are normal numbers of single precision.
    unit = 1 if (abs(np.log10(spreads)) < 15).all() else np.float32(1) / spreads.max()
    heads = values[:, :HEAD] * unit
    squares = np.einsum("ij,ij->i", heads, heads)
    left = np.empty((len(queries), HEAD + 2), np.float32)
    left[:, :HEAD] = heads * -2
    left[:, HEAD] = 1
    left[:, HEAD + 1] = squares * (1 - _ROUNDING) - NEAR * (spreads * unit) ** 2
    start, stop = np.searchsorted(sketches.spreads[part], [low.min(), high.max()]) + part.start
    for at in range(start, stop, _ROWS_AT_ONCE):
        slab = slice(at, min(at + _ROWS_AT_ONCE, stop))
        least, most = sketches.spreads[slab.start], sketches.spreads[slab.stop - 1]
        near = np.flatnonzero((low <= most) & (high >= least))
        if not len(near):
            continue
        words = np.empty((slab.stop - slab.start, HEAD + 2), np.uint32)
        np.left_shift(sketches.heads[slab], 16, out=words[:, :HEAD], dtype=np.uint32)
        right = words.view(np.float32)
        with np.errstate(all="ignore"):
            if unit != 1:
                right[:, :HEAD] *= unit
            right[:, HEAD] = np.einsum("ij,ij->i", right[:, :HEAD], right[:, :HEAD])
            right[:, HEAD + 1] = 1
            query, row = _below_zero(_products(left[near], right))
        if len(query):
            yield near[query], row + at


def _products(left: Values, right: Values) -> Values:
    """left @ right.T, of (q, n) and (r, n), in blocks so small that BLAS starts no threads.

    Where other threads keep the processors busy, as they do while a file is stored, waiting for
    threads of its own takes it hundreds of times as long as the work.
    """
    rows = max(1, _MAX_PRODUCTS // left.size)
    whole = len(right) // rows * rows
    blocks = np.matmul(left, right[:whole].reshape(-1, rows, right.shape[1]).swapaxes(1, 2))
    products: Values = np.empty((len(left), len(right)), np.float32)
    products[:, :whole].reshape(len(left), -1, rows)[:] = blocks.swapaxes(0, 1)
    products[:, whole:] = left @ right[whole:].T
    return products


def _below_zero(beyond: Values) -> tuple[Numbers, Numbers]:
    """Where these (q, r) are below zero; of each q only the least few.

    More are as near only where one tensor is stored again and again.
    """
    below = beyond < 0
    if below.sum() > _NEAREST * len(below):
        few = np.argpartition(beyond, _NEAREST, axis=1)[:, :_NEAREST]
        kept = np.zeros_like(below)
        np.put_along_axis(kept, few, values=True, axis=1)
        below &= kept
    return np.divmod(np.flatnonzero(below), below.shape[1])
