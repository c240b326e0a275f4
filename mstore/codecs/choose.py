"""Which codec a chunk gets, and decoding by the number of a codec.

The encoder takes the smallest of what is worth trying, decodes it, and compares: a payload that
does not give back the raw bytes is never returned (the bytes themselves are, as codec raw).
"""

from collections.abc import Sequence

import numpy as np
import xxhash

from mstore.codecs.base import RAW, Codec, DeltaCodec, Encoded
from mstore.codecs.constant import Constant
from mstore.codecs.general import Raw, Zstd
from mstore.codecs.planes import Planes
from mstore.codecs.scratch import Scratch
from mstore.dtypes import DType
from mstore.errors import CorruptDataError, UnsupportedVersionError

# A sample is so many runs of so many bytes.
_SAMPLE_RUNS = 4
_SAMPLE_RUN = 4 << 10

# Below so many bytes the tables of byte planes cost what they save, and the calls more than both.
_TINY = 2048


class Decoder:
    """Decodes payloads of all codecs. One per thread: it owns scratch memory."""

    def __init__(self, codecs: Sequence[Codec | DeltaCodec] | None = None) -> None:
        self._codecs = {
            codec.number: codec for codec in codecs or (Raw(), Zstd(), Constant(), Planes())
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
    ) -> None:
        self._constant = constant or Constant()
        self._planes = planes or Planes()
        self._zstd = zstd or Zstd()
        self._decoder = Decoder((self._constant, self._planes, self._zstd))
        self._payload = Scratch()
        self._decoded = Scratch()
        self.rejected = 0

    def encode(self, raw: memoryview, dtype: DType | None) -> Encoded:
        """The payload of `raw`, elements of `dtype` (None: opaque); never larger than `raw`.

        `raw` is a contiguous view of single bytes; the result holds none of its memory.
        """
        encoded = self.choose(raw, dtype)
        if encoded is None:
            return _as_raw(raw)
        if not self.restores(encoded, xxhash.xxh3_64_intdigest(raw), len(raw)):
            self.rejected += 1
            return _as_raw(raw)
        return encoded

    def choose(self, raw: memoryview, dtype: DType | None) -> Encoded | None:
        """The smallest payload found, not yet verified; None where none is smaller than `raw`."""
        constant = _attempt(self._constant, raw, dtype, len(raw))
        if constant is not None:
            return constant
        if len(raw) < _TINY:
            return _attempt(self._zstd, raw, dtype, len(raw))
        planes = _attempt(self._planes, raw, dtype, len(raw))
        limit = planes.stored if planes else len(raw)
        if self._zstd_estimate(raw) < limit:
            return _attempt(self._zstd, raw, dtype, limit) or planes
        return planes

    def restores(self, encoded: Encoded, checksum: int, length: int) -> bool:
        """Whether `encoded` decodes to `length` bytes whose XXH3-64 is `checksum`."""
        decoded = self._decoded.array(length, np.dtype(np.uint8)).data
        try:
            self._decoder.decode(encoded.codec, self._joined(encoded), decoded)
        except Exception:
            # Whatever goes wrong in there, the raw bytes are at hand and are the safe choice.
            return False
        return xxhash.xxh3_64_intdigest(decoded) == checksum

    def _joined(self, encoded: Encoded) -> memoryview:
        """The parts as one payload, in scratch."""
        payload: memoryview = self._payload.array(encoded.stored, np.dtype(np.uint8)).data
        at = 0
        for part in encoded.parts:
            payload[at : at + len(part)] = part
            at += len(part)
        return payload

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
    """What `codec` makes of `raw`, in memory of its own; None unless smaller than `limit`.

    The parts stay apart: joining them would copy what may be as large as the chunk.
    """
    parts = codec.encode(raw, dtype)
    if parts is None:
        return None
    stored = sum(len(part) for part in parts)
    if stored >= limit:
        return None
    kept = tuple(part if isinstance(part, bytes) else bytes(part) for part in parts)
    return Encoded(codec.number, kept, stored)


def _as_raw(raw: memoryview) -> Encoded:
    return Encoded(RAW, (bytes(raw),), len(raw))
