"""How large an encoding will be, judged by a sample, before anything is encoded.

Entropies of small histograms over samples of some thousand numbers: a few per cent of the time
that encoding takes, and right to about two per cent of the size.
"""

from typing import TypeVar

import numpy as np
import numpy.typing as npt

from mstore.codecs.words import Words, WordType, cast, exponents, to_ulps, zigzag

Number = TypeVar("Number", bound=np.generic)

_SAMPLE = 8192
_RUNS = 16
# Sorting costs a third of the time that coding differences takes, so it must save something.
_MIN_SAVED_BITS = 0.05

_Numbers = npt.NDArray[np.integer]


def sample(words: npt.NDArray[Number]) -> npt.NDArray[Number]:
    """Runs of `words` from all over it, _SAMPLE in all; all of them where they are few."""
    if len(words) <= 2 * _SAMPLE:
        return words
    run = _SAMPLE // _RUNS
    step = (len(words) - run) // (_RUNS - 1)
    return np.concatenate([words[i * step : i * step + run] for i in range(_RUNS)])


def entropy(numbers: _Numbers, contexts: _Numbers | None = None) -> float:
    """Bits per number of small `numbers` (below 256), given `contexts` (below 256) if any."""
    if contexts is None:
        return _bits(np.bincount(numbers)) / len(numbers)
    joint = np.bincount(contexts.astype(np.intp) * 256 + numbers, minlength=0)
    return (_bits(joint) - _bits(np.bincount(contexts))) / len(numbers)


def lengths(words: Words) -> npt.NDArray[np.uint8]:
    """The bits in each number, 0 to 64."""
    # Of doubles the exponent is the length; up to 2**53 exactly, which is near enough.
    bits = (words.astype(np.float64).view(np.uint64) >> np.uint64(52)).astype(np.int64) - 1022
    return np.maximum(bits, 0).astype(np.uint8)


def pays_to_order(words: Words, keys: npt.NDArray[np.uint8]) -> bool:
    """Whether the sizes of these differences depend enough on their keys."""
    sizes, contexts = lengths(sample(words)), sample(keys)
    return entropy(sizes) - entropy(sizes, contexts) > _MIN_SAVED_BITS


def own_share(raw: memoryview, kind: WordType) -> float:
    """The part of `raw`, words of this kind, that its byte planes will take.

    Each quarter is judged apart, since the coder has other tables for each 128 KiB.
    """
    words = sample(np.frombuffer(raw, kind.stored, len(raw) // kind.size)).astype(kind.native)
    if kind.mantissa:
        words = words << 1 | words >> 8 * kind.size - 1
    planes = words.view(np.uint8).reshape(-1, kind.size)
    quarter = -(-len(planes) // 4)
    parts = [planes[start : start + quarter] for start in range(0, len(planes), quarter)]
    bits = sum(len(part) * entropy(part[:, at]) for part in parts for at in range(kind.size))
    return bits / (8 * kind.size * len(planes))


def delta_share(raw: memoryview, kind: WordType, base: memoryview, base_kind: WordType) -> float:
    """The part of `raw` that its differences from `base` will take.

    Where the base is the shorter, what lies beyond it is taken to be as compressible as `raw`.
    """
    count = min(len(raw) // kind.size, len(base) // base_kind.size)
    words = sample(np.frombuffer(raw, kind.stored, count)).astype(kind.native)
    stored = sample(np.frombuffer(base, base_kind.stored, count))
    against = cast(stored.astype(base_kind.native), base_kind, kind).astype(kind.native)
    keys = np.empty(len(words), np.uint8)
    exponents(against, kind, keys)
    scratch = np.empty_like(words)
    to_ulps(words, kind, scratch)
    to_ulps(against, kind, scratch)
    words -= against
    zigzag(words, scratch)
    sizes = lengths(words)
    # Of a number of n bits the first is 1 and the others are noise.
    bits = entropy(sizes, keys if kind.mantissa else None) + np.maximum(sizes, 1).mean() - 1
    share = float(bits) / (8 * kind.size)
    covered = count * kind.size / len(raw)
    return share if covered == 1 else share * covered + own_share(raw, kind) * (1 - covered)


def _bits(counts: npt.NDArray[np.integer]) -> float:
    """n times the entropy of a histogram of n."""
    counts = counts[counts > 0].astype(np.float64)
    total = counts.sum()
    return float((counts * np.log2(total / counts)).sum())
