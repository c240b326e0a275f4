"""Which codec a chunk gets, and decoding by the number of a codec.

The encoder takes the smallest of what is worth trying, decodes it, and compares: a payload that
does not give back the raw bytes is never returned (the bytes themselves are, as codec raw).
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import xxhash

from mstore.codecs.base import RAW, Base, Codec, DeltaCodec, Encoded
from mstore.codecs.constant import Constant
from mstore.codecs.delta import Delta
from mstore.codecs.estimate import delta_share, own_share
from mstore.codecs.general import Raw, Zstd
from mstore.codecs.planes import Planes
from mstore.codecs.scratch import Scratch
from mstore.codecs.words import comparable, word_type
from mstore.dtypes import DType
from mstore.errors import CorruptDataError, UnsupportedVersionError
from mstore.ids import Buffer

# A sample is so many runs of so many bytes.
_SAMPLE_RUNS = 4
_SAMPLE_RUN = 4 << 10

_DEEP_LEVEL = 19

# What a record with a base takes besides its payload: the base's id, there and in the index.
_BASE_BYTES = 64

# To be worth decoding one more record, a base one deeper must save the part
#     min(_DEEPER_SAVES + _DEEPER_SAVES_OF_TAKEN * share, _DEEPER_SAVES_AT_MOST * bytes of a word)
# of the raw bytes, where `share` is taken with the one that is less deep. So a series stays near
# the size of an endless chain: every so often a version that is coded against the first one
# becomes the base of those that follow.
_DEEPER_SAVES = 0.003
_DEEPER_SAVES_OF_TAKEN = 0.3
_DEEPER_SAVES_AT_MOST = 0.021

# Differences that are judged to take this much more than a chunk on its own are not tried.
_SURE = 0.9

# Differences that take less than this part of what a chunk is judged to take on its own are taken
# without trying that; but not where it is judged to shrink to this part of its bytes or less. Such
# chunks are zeros in the main, or sorted, and may take half of what a sample tells; weights do not.
_FAR, _UNSURE = 0.75, 0.4

# Below so many bytes the tables of byte planes cost what they save, and the calls more than both.
_TINY = 2048


class Decoder:
    """Decodes payloads of all codecs. One per thread: it owns scratch memory."""

    def __init__(self, codecs: Sequence[Codec | DeltaCodec] | None = None) -> None:
        self._codecs = {
            codec.number: codec
            for codec in codecs or (Raw(), Zstd(), Constant(), Planes(), Delta())
        }

    def decode(
        self, codec: int, payload: memoryview, out: memoryview, base: memoryview | None = None
    ) -> None:
        """Fill `out` with the raw bytes of `payload`; all are contiguous views of single bytes.

        `base` is the raw bytes of the record's base, None if it has none. Raises CorruptDataError
        or LimitExceededError as `Codec.decode` does, CorruptDataError also when there is a base
        and the codec takes none or the other way about, and UnsupportedVersionError when no codec
        has this number.
        """
        found = self._codecs.get(codec)
        if found is None:
            raise UnsupportedVersionError(
                f"a chunk is stored with codec {codec}, which this version cannot read",
                hint="upgrade mstore",
            )
        if isinstance(found, Codec):
            if base is not None:
                raise CorruptDataError(f"a chunk of codec {found.name} is said to have a base")
            found.decode(payload, out)
        else:
            if base is None:
                raise CorruptDataError(f"a chunk of codec {found.name} has no base")
            found.decode(payload, base, out)


class Encoder:
    """Encodes chunks. One per thread: it owns scratch memory.

    `rejected` counts the payloads that did not decode to what was encoded: a defect of a codec
    or of the machine's memory.
    """

    def __init__(
        self,
        *,
        constant: Codec | None = None,
        planes: Codec | None = None,
        zstd: Codec | None = None,
        delta: DeltaCodec | None = None,
    ) -> None:
        self._constant = constant or Constant()
        self._planes = planes or Planes()
        self._zstd = zstd or Zstd()
        self._delta = delta or Delta()
        self._decoder = Decoder((self._constant, self._planes, self._zstd))
        self._decoded = Scratch()
        self.rejected = 0

    @classmethod
    def deep(cls) -> "Encoder":
        """One that takes more than ten times as long, for payloads some per cent smaller."""
        return cls(planes=Planes(deep=True), zstd=Zstd(_DEEP_LEVEL), delta=Delta(deep=True))

    def encode(
        self,
        raw: memoryview,
        dtype: DType | None,
        bases: Sequence[Base] = (),
        checksum: int | None = None,
    ) -> Encoded:
        """The payload of `raw`, elements of `dtype` (None: opaque); never larger than `raw`.

        It may be coded against one of `bases`. `raw` is a contiguous view of single bytes; the
        result holds none of its memory. `checksum` is the XXH3-64 of `raw`, if it was taken before;
        raises CorruptDataError if `raw` is not what it was then.
        """
        if checksum is None:
            checksum = xxhash.xxh3_64_intdigest(raw)
        encoded = self.choose(raw, dtype, bases)
        if encoded is not None:
            base = None if encoded.base is None else bases[encoded.base].raw
            if self.restores(encoded, checksum, len(raw), base):
                return encoded
            self.rejected += 1
        whole = bytes(raw)
        if xxhash.xxh3_64_intdigest(whole) != checksum:
            raise CorruptDataError(
                "what was to be stored changed in memory meanwhile",
                hint="repeat; if that happens again, test the memory of this machine",
            )
        return Encoded(RAW, whole)

    def choose(
        self, raw: memoryview, dtype: DType | None, bases: Sequence[Base] = ()
    ) -> Encoded | None:
        """The smallest payload found, not yet verified; None where none is smaller than `raw`.

        A chunk is coded against a base only if that is smaller than its own encoding.
        """
        constant = _attempt(self._constant, raw, dtype, len(raw))
        if constant is not None or dtype is None or not bases or not raw:
            return constant or self._choose_own(raw, dtype)
        number, share = self.choose_base(raw, dtype, bases)
        if number is None:
            return self._choose_own(raw, dtype)
        own_share = self._own_share(raw, dtype)
        if own_share and share > own_share / _SURE:
            return self._choose_own(raw, dtype)
        delta = self._encode_delta(raw, dtype, bases, number)
        taken = delta.stored + _BASE_BYTES if delta else len(raw)
        if taken < _FAR * own_share * len(raw):
            return delta
        own = self._choose_own(raw, dtype)
        return own if (own.stored if own else len(raw)) <= taken else delta

    def _choose_own(self, raw: memoryview, dtype: DType | None) -> Encoded | None:
        """The smallest payload that needs no base, of those worth trying."""
        if len(raw) < _TINY:
            return _attempt(self._zstd, raw, dtype, len(raw))
        planes = _attempt(self._planes, raw, dtype, len(raw))
        limit = planes.stored if planes else len(raw)
        if self._zstd_estimate(raw) < limit:
            return _attempt(self._zstd, raw, dtype, limit) or planes
        return planes

    def choose_base(
        self, raw: memoryview, dtype: DType, bases: Sequence[Base]
    ) -> tuple[int | None, float]:
        """The base to try, None if there is none, and the part of `raw` that differences will take.

        By a sample: about a tenth of the time that encoding takes.
        """
        kind = word_type(dtype)
        best, best_share, best_depth = None, 1.0, 0
        for number in sorted(range(len(bases)), key=lambda at: bases[at].depth):
            base = bases[number]
            base_kind = word_type(base.dtype)
            if not comparable(kind, base_kind) or len(raw) % kind.size:
                continue
            if len(base.raw) < base_kind.size:
                continue
            share = delta_share(raw, kind, base.raw, base_kind)
            least = _DEEPER_SAVES + _DEEPER_SAVES_OF_TAKEN * best_share
            least = min(least, _DEEPER_SAVES_AT_MOST * kind.size)
            if best is None or best_share - share > least * (base.depth - best_depth):
                best, best_share, best_depth = number, share, base.depth
        return best, best_share

    def _own_share(self, raw: memoryview, dtype: DType) -> float:
        """The part of `raw` that an encoding without a base will take, 0 where no sample tells.

        That is where `raw` is short, where it shrinks to little, and where it repeats: a period
        that the sample holds a few times over, `raw` may hold a hundred times.
        """
        share = own_share(raw, word_type(dtype))
        return share if self._zstd_estimate(raw) >= share * len(raw) > _UNSURE * len(raw) else 0

    def _encode_delta(
        self, raw: memoryview, dtype: DType, bases: Sequence[Base], number: int
    ) -> Encoded | None:
        base = bases[number]
        parts = self._delta.encode(raw, dtype, base.raw, base.dtype)
        encoded = _kept(self._delta.number, parts, len(raw)) if parts else None
        return replace(encoded, base=number) if encoded else None

    def restores(
        self, encoded: Encoded, checksum: int, length: int, base: memoryview | None = None
    ) -> bool:
        """Whether `encoded` decodes to `length` bytes whose XXH3-64 is `checksum`."""
        decoded = self._decoded.array(length, np.dtype(np.uint8)).data
        try:
            if base is not None:
                self._delta.check(memoryview(encoded.payload), base, decoded)
            else:
                self._decoder.decode(encoded.codec, memoryview(encoded.payload), decoded)
        except Exception:
            # Whatever goes wrong in there, the raw bytes are at hand and are the safe choice.
            return False
        return xxhash.xxh3_64_intdigest(decoded) == checksum

    def _zstd_estimate(self, raw: memoryview) -> int:
        """Bytes that zstd would make of `raw`, judged by runs from all over it.

        Costs 3 % of the time to encode a chunk of float32, and finds the tensors that matches
        suit better than byte planes: repeated rows, token ids, masks, text.
        """
        size = _SAMPLE_RUNS * _SAMPLE_RUN
        if len(raw) <= 2 * size:
            return 0
        step = (len(raw) - _SAMPLE_RUN) // (_SAMPLE_RUNS - 1)
        sample = b"".join(raw[i * step : i * step + _SAMPLE_RUN] for i in range(_SAMPLE_RUNS))
        encoded = _attempt(self._zstd, memoryview(sample), None, size)
        return encoded.stored * len(raw) // size if encoded else len(raw)


def _attempt(codec: Codec, raw: memoryview, dtype: DType | None, limit: int) -> Encoded | None:
    """What `codec` makes of `raw`, in memory of its own; None unless smaller than `limit`."""
    parts = codec.encode(raw, dtype)
    return _kept(codec.number, parts, limit) if parts is not None else None


def _kept(codec: int, parts: Sequence[Buffer], limit: int) -> Encoded | None:
    """A payload in memory of its own; None unless smaller than `limit`."""
    if sum(len(part) for part in parts) >= limit:
        return None
    return Encoded(codec, b"".join(parts))
