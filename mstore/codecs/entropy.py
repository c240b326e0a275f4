"""Entropies of samples: what tells how many bits a number has, and how much knowing that saves.

Small histograms over some thousand numbers, so that asking costs a few per cent of encoding.
"""

import math
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from mstore.codecs.words import Words

Number = TypeVar("Number", bound=np.generic)

_SAMPLE = 8192
_RUNS = 64
"""So many runs, each as long as a block (`blocks.BLOCK`), so that a sample has whole blocks."""

# The size of a number, 0 to 64, takes so many bits.
_SIZE_BITS = 7

_Numbers = npt.NDArray[np.integer]

# c log2 c for the counts of samples; for larger ones it is computed.
_COUNTS = np.arange(1 << 14)
_WEIGHED = _COUNTS * np.log2(np.maximum(_COUNTS, 1))


def sample(words: npt.NDArray[Number]) -> npt.NDArray[Number]:
    """Runs of `words` from all over it, _SAMPLE in all; all of them where they are few.

    Each starts at a multiple of its own length.
    """
    if len(words) <= 2 * _SAMPLE:
        return words
    run = _SAMPLE // _RUNS
    runs = words[: len(words) // run * run].reshape(-1, run)
    return runs[np.arange(_RUNS) * (len(runs) - 1) // (_RUNS - 1)].reshape(-1)


def lengths(words: Words) -> npt.NDArray[np.uint8]:
    """The bits in each number, 0 to 64; of numbers beyond 2**53 they may be one too many."""
    return np.frexp(words)[1].astype(np.uint8)


def entropy(numbers: _Numbers) -> float:
    """Bits per number of small `numbers` (n,)."""
    return (_weigh(len(numbers)) - _weighed(np.bincount(numbers))) / len(numbers)


def entropies(sizes: npt.NDArray[np.uint8], contexts: npt.NDArray[np.uint8]) -> tuple[float, float]:
    """Bits per number of `sizes` (n,), of `lengths`; then the same given `contexts` (n,)."""
    # Contexts are some neighbouring exponents, as a rule: the table is small from the least one on.
    least = contexts.min()
    pairs = np.subtract(contexts, least, dtype=np.uint16)
    pairs <<= _SIZE_BITS
    pairs |= sizes
    counts = np.bincount(pairs, minlength=(int(contexts.max() - least) + 1) << _SIZE_BITS)
    table = counts.reshape(-1, 1 << _SIZE_BITS)
    alone = _weigh(len(sizes)) - _weighed(table.sum(0))
    known = _weighed(table.sum(1)) - _weighed(counts)
    return alone / len(sizes), known / len(sizes)


def _weighed(counts: npt.NDArray[np.integer]) -> float:
    """The sum of c log2 c over all counts c."""
    if counts.max(initial=0) < len(_WEIGHED):
        return float(_WEIGHED[counts].sum())
    large = counts[counts > 0].astype(np.float64)
    return float((large * np.log2(large)).sum())


def _weigh(count: int) -> float:
    return count * math.log2(count)
