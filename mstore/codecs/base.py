"""The contract of a codec: raw bytes of one chunk to a payload and back, nothing lost.

| number | codec | module |
|---|---|---|
| 0 | raw: the bytes as they are | `general` |
| 1 | zstd: one frame | `general` |
| 2 | constant: one unit, repeated | `constant` |
| 3 | planes: byte planes of words, each coded apart | `planes` |

Numbers stand in stored records and are never given a second meaning. A payload says all that is
needed to decode it, save the length of the raw bytes, which its record holds: no codec needs the
element type to decode. Codecs that need a second chunk as a base are of another type, since both
of their methods take one argument more.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from mstore.dtypes import DType
from mstore.ids import Buffer

RAW, ZSTD, CONSTANT, PLANES = range(4)
"""The numbers of codecs in stored records."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """A payload: the number of its codec, its bytes in order, and how many they are.

    The parts own their memory; nothing that the encoder does later changes them.
    """

    codec: int
    parts: tuple[Buffer, ...]
    stored: int


class Codec(ABC):
    """One reversible encoding. An instance may own scratch memory: one thread at a time.

    Every memoryview passed in is one-dimensional, contiguous and of single bytes (format "B").
    """

    number: ClassVar[int]
    name: ClassVar[str]

    @abstractmethod
    def encode(self, raw: memoryview, dtype: DType | None) -> list[Buffer] | None:
        """The payload of `raw`, elements of `dtype` (None: opaque), or None if it would not pay.

        The parts may lie in `raw` or in scratch: they hold until the next call of this codec.
        Their total may exceed `raw`; the caller compares.
        """

    @abstractmethod
    def decode(self, payload: memoryview, out: memoryview) -> None:
        """Fill `out`, exactly, with the raw bytes of `payload`.

        Raises CorruptDataError when the payload cannot be that of `len(out)` bytes, and
        LimitExceededError when decoding it would take unreasonable memory; `out` then holds
        anything. A damaged payload may also decode to wrong bytes: the record's checksum tells.
        """
