"""How large an encoding will be, judged by a sample, before anything is encoded.

Entropies of small histograms over samples of some thousand numbers: a tenth of the time that
encoding takes, and right to some per cent of the size; of what changes in few places or rows, to a
third.
"""

import numpy as np
import numpy.typing as npt

from mstore.codecs.blocks import BLOCK, busy_blocks
from mstore.codecs.decay import KEYS, usual_steps, without_steps
from mstore.codecs.entropy import entropies, entropy, lengths, sample
from mstore.codecs.order import BY_EXPONENT, DECAYED, UNORDERED
from mstore.codecs.words import (
    Words,
    WordType,
    cast,
    exponents,
    ulps,
    zigzag,
)

# Sorting costs a third of the time that coding differences takes, so it must save something.
_MIN_SAVED_BITS = 0.05

# The steps that are usual take space too.
_MIN_SAVED_BY_DECAY = 0.1


def own_share(raw: memoryview, kind: WordType) -> float:
    """The part of `raw`, words of this kind, that its byte planes will take.

    Each half is judged apart, since the coder has other tables for each 128 KiB of a plane.
    """
    words = sample(np.frombuffer(raw, kind.stored, len(raw) // kind.size)).astype(kind.native)
    if kind.mantissa:
        words = words << 1 | words >> 8 * kind.size - 1
    planes = words.view(np.uint8).reshape(-1, kind.size)
    halves = [half for half in np.array_split(planes, 2) if len(half)]
    bits = sum(len(half) * entropy(half[:, at]) for half in halves for at in range(kind.size))
    return bits / (8 * kind.size * len(planes))


def delta_share(raw: memoryview, kind: WordType, base: memoryview, base_kind: WordType) -> float:
    """The part of `raw` that its differences from `base` will take.

    Where the base is the shorter, what lies beyond it is taken to be as compressible as `raw`.
    """
    count = min(len(raw) // kind.size, len(base) // base_kind.size)
    words = sample(np.frombuffer(raw, kind.stored, count)).astype(kind.native)
    stored = sample(np.frombuffer(base, base_kind.stored, count))
    against = cast(stored.astype(base_kind.native), base_kind, kind).astype(kind.native)
    numbers = _differences(words, against, kind)
    busy = busy_blocks(numbers)
    if busy is None:
        bits = _delta_bits(numbers, against, kind)
    else:
        among = np.repeat(busy, BLOCK)
        among = np.append(among, np.ones(len(numbers) - len(among), np.bool_))
        bits = _delta_bits(numbers[among], against[among], kind)
        bits += _delta_bits(numbers[~among], against[~among], kind)
    share = bits / (8 * kind.size * len(numbers))
    covered = count * kind.size / len(raw)
    return share if covered == 1 else share * covered + own_share(raw, kind) * (1 - covered)


def best_order(numbers: Words, against: Words, kind: WordType) -> int:
    """How to order differences (n,), given the words (n,) of their base: one of the orders.

    UNORDERED where neither exponents nor mantissas tell enough of them.
    """
    return _best_order(sample(numbers), sample(against), kind)[0]


def _best_order(numbers: Words, against: Words, kind: WordType) -> tuple[int, float]:
    """The order, and the bits that a number takes."""
    sizes = lengths(numbers)
    noise = _noise(sizes)
    if not kind.mantissa:
        return UNORDERED, entropy(sizes) + noise
    keys = np.empty(len(numbers), np.uint8)
    exponents(against, kind, keys)
    alone, by_exponent = entropies(sizes, keys)
    order, known = UNORDERED, alone
    if alone - by_exponent > _MIN_SAVED_BITS:
        order, known = BY_EXPONENT, by_exponent
    elif alone + noise > _MIN_SAVED_BY_DECAY and len(numbers) >= 4 * KEYS:
        # What moves by steps that exponents tell is not what decays.
        remains = _bits_of_decay(numbers, against, kind)
        if alone + noise - remains > _MIN_SAVED_BY_DECAY:
            return DECAYED, remains
    return order, known + noise


def _bits_of_decay(numbers: Words, against: Words, kind: WordType) -> float:
    """Bits of what remains of a number beyond the step that its mantissa tells.

    Judged by numbers that had no part in these steps: among few, each would be its own step.
    """
    steps = usual_steps(numbers[::2], against[::2], kind)
    remains = numbers[1::2].copy()
    without_steps(remains, against[1::2], kind, steps)
    sizes = lengths(remains)
    return entropy(sizes) + _noise(sizes)


def _noise(sizes: npt.NDArray[np.uint8]) -> float:
    """Bits of a number beyond its size: of n bits the first is 1, and the others are noise."""
    return float(np.maximum(sizes, 1).mean()) - 1


def _delta_bits(numbers: Words, against: Words, kind: WordType) -> float:
    """Bits that these differences take, all of them in one part."""
    return _best_order(numbers, against, kind)[1] * len(numbers)


def _differences(words: Words, against: Words, kind: WordType) -> Words:
    """What a delta codes."""
    numbers, scratch = np.empty_like(words), np.empty_like(words)
    ulps(words, kind, numbers)
    ulps(against, kind, scratch)
    numbers -= scratch
    zigzag(numbers, scratch)
    return numbers
