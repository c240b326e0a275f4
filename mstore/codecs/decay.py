"""What only decays: the step that is usual for each mantissa, and what remains beyond it.

An optimizer with weight decay (AdamW: Loshchilov and Hutter, ICLR 2019) multiplies the weights that
no gradient reaches by a little less than one. In ulps they so move towards zero by steps that their
mantissas tell, whatever their signs and exponents. Rounding in each step of training makes these
steps no smooth function of the mantissa; so they are looked up.
"""

import numpy as np
import numpy.typing as npt

from mstore.codecs.words import Words, WordType, mantissas, mirror, unzigzag, zigzag

KEYS = 256
"""Usual steps: one for each value of the upper eight bits of a mantissa."""

# Numbers by which the usual ones are judged, about.
_JUDGED = 16384
_VALUE_BITS = 24
_MOST = np.uint32((1 << _VALUE_BITS) - 1)


def usual_steps(numbers: Words, against: Words, kind: WordType) -> Words:
    """For each key what is usual among `numbers` (n,) of words `against` (n,): (KEYS,).

    Numbers stand for differences, by zigzag, and so do the steps: medians of those mirrored.
    """
    some = slice(None, None, max(1, len(numbers) // _JUDGED))
    mirrored, words = numbers[some].copy(), against[some].copy()
    scratch = np.empty_like(words)
    unzigzag(mirrored, scratch)
    mirror(mirrored, words, scratch)
    zigzag(mirrored, scratch)
    pairs = np.minimum(mirrored, _MOST).astype(np.uint32)
    pairs |= _keys(words, kind).astype(np.uint32) << np.uint32(_VALUE_BITS)
    pairs.sort()
    ends = np.searchsorted(pairs, np.arange(KEYS + 1, dtype=np.uint64) << np.uint64(_VALUE_BITS))
    middle = np.minimum((ends[1:] + ends[:-1]) // 2, len(pairs) - 1)
    steps: Words = (pairs[middle] & _MOST).astype(numbers.dtype)
    steps[ends[1:] == ends[:-1]] = 0
    return steps


def without_steps(numbers: Words, against: Words, kind: WordType, steps: Words) -> None:
    """Replace numbers by what remains of them, mirrored, beyond these steps."""
    scratch = np.empty_like(numbers)
    unzigzag(numbers, scratch)
    mirror(numbers, against, scratch)
    _look_up(against, kind, steps, scratch)
    np.subtract(numbers, scratch, out=numbers)
    zigzag(numbers, scratch)


def with_steps(numbers: Words, against: Words, kind: WordType, steps: Words) -> None:
    """The inverse of `without_steps`."""
    scratch = np.empty_like(numbers)
    unzigzag(numbers, scratch)
    _look_up(against, kind, steps, scratch)
    np.add(numbers, scratch, out=numbers)
    mirror(numbers, against, scratch)
    zigzag(numbers, scratch)


def _look_up(against: Words, kind: WordType, steps: Words, out: Words) -> None:
    """The differences that are usual for these words."""
    differences = steps.copy()
    unzigzag(differences, np.empty_like(differences))
    # No key is beyond the steps. Places of this type are taken without a copy.
    np.take(differences, _keys(against, kind).astype(np.intp), out=out, mode="wrap")


def _keys(against: Words, kind: WordType) -> npt.NDArray[np.uint8]:
    keys = np.empty(len(against), np.uint8)
    mantissas(against, kind, keys)
    return keys
