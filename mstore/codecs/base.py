"""The contract of a codec: raw bytes of one chunk to a payload and back, nothing lost.

| number | codec | module |
|---|---|---|
| 0 | raw: the bytes as they are | `general` |
| 1 | zstd: one frame | `general` |
| 2 | constant: one unit, repeated | `constant` |
| 3 | planes: byte planes of words, each coded apart | `planes` |
| 4 | delta: differences from a base chunk | `delta` |

Numbers stand in stored records and are never given a second meaning. A payload says all that is
needed to decode it, save the length of the raw bytes, which its record holds: no codec needs the
element type to decode. Codecs that need a second chunk as a base are of another type, `DeltaCodec`,
since both of their methods take more.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from mstore.dtypes import DType
from mstore.ids import Buffer

RAW, ZSTD, CONSTANT, PLANES, DELTA = range(5)
"""The numbers of codecs in stored records."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """A payload and the number of its codec.

    `base` is the place of its base among those offered, None for a codec that takes none.
    """

    codec: int
    payload: bytes
    base: int | None = None

    @property
    def stored(self) -> int:
        """Bytes of the payload."""
        return len(self.payload)


@dataclass(frozen=True, slots=True)
class Base:
    """A chunk that another may be coded against: its raw bytes, and what its record says of it."""

    raw: memoryview
    dtype: DType
    depth: int


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


class DeltaCodec(ABC):
    """One reversible encoding of a chunk against another, its base. One thread at a time.

    A base may be of any length and of another element type than the chunk.
    """

    number: ClassVar[int]
    name: ClassVar[str]

    @abstractmethod
    def encode(
        self, raw: memoryview, dtype: DType, base: memoryview, base_dtype: DType
    ) -> list[Buffer] | None:
        """The payload of `raw` given `base`, elements of these types; None if it would not pay.

        The parts hold as those of `Codec.encode` do.
        """

    @abstractmethod
    def decode(self, payload: memoryview, base: memoryview, out: memoryview) -> None:
        """Fill `out`, exactly, from the payload and the raw bytes of the base.

        Raises as `Codec.decode` does, also when `base` cannot be the one it was coded against.
        """

    def check(self, payload: memoryview, base: memoryview, out: memoryview) -> None:
        """Decode what this codec has just encoded, with this base; raises as `decode` does.

        A codec may use again what it worked out for encoding, if it can show that to be right.
        """
        self.decode(payload, base, out)
