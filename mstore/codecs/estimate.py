"""How large an encoding will be, judged by a sample, before anything is encoded.

Entropies of small histograms over samples of some thousand numbers: a few per cent of the time
that encoding takes, and right to about two per cent of the size.
"""

from typing import TypeVar

import numpy as np
import numpy.typing as npt

from mstore.codecs.words import Words

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


def _bits(counts: npt.NDArray[np.integer]) -> float:
    """n times the entropy of a histogram of n."""
    counts = counts[counts > 0].astype(np.float64)
    total = counts.sum()
    return float((counts * np.log2(total / counts)).sum())
