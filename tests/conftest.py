"""What many tests begin with: a repository in memory, and a quick way to commit to it."""

from collections.abc import Callable, Mapping

import numpy as np
import pytest
import xxhash
from hypothesis import HealthCheck, settings

from mstore import chunkreader
from mstore.codecs.base import DeltaCodec
from mstore.codecs.choose import Decoder
from mstore.codecs.constant import Constant
from mstore.codecs.delta import Delta
from mstore.codecs.general import Raw, Zstd
from mstore.codecs.planes import Planes
from mstore.database import Database
from mstore.dtypes import BY_NAME, DType
from mstore.ids import Buffer, Id, Kind, identify
from mstore.ops import records
from mstore.pack import Record
from mstore.repository import Repository
from mstore.storage.memory import MemoryStorage

settings.register_profile(
    "mstore", deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True
)
settings.load_profile("mstore")

BYTES = BY_NAME["u8"]

Arrays = Callable[..., dict[str, np.ndarray]]


@pytest.fixture(autouse=True)
def _author(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests do not depend on who runs them."""
    monkeypatch.setenv("MSTORE_AUTHOR", "Ada <ada@example.org>")


@pytest.fixture
def repo() -> Repository:
    """An empty repository in memory."""
    return Repository(Database.create(MemoryStorage(), "Ada"))


@pytest.fixture
def arrays() -> Arrays:
    """Makes a dict of random arrays by their shapes; the same seed gives the same arrays."""

    def make(seed: int = 0, **shapes: tuple[int, ...]) -> dict[str, np.ndarray]:
        random = np.random.default_rng(seed)
        wanted: Mapping[str, tuple[int, ...]] = shapes or {"w": (300, 40), "b": (40,)}
        return {
            name: (random.standard_normal(shape) * 0.02).astype(np.float32)
            for name, shape in wanted.items()
        }

    return make


class Xor(DeltaCodec):
    """The simplest codec with a base, of the same length as the chunk or longer."""

    number = 200
    name = "xor"

    def encode(
        self, raw: memoryview, dtype: DType, base: memoryview, base_dtype: DType
    ) -> list[Buffer]:
        return [bytes(a ^ b for a, b in zip(raw, base, strict=False))]

    def decode(self, payload: memoryview, base: memoryview, out: memoryview) -> None:
        out[:] = bytes(a ^ b for a, b in zip(payload, base, strict=False))


Coded = Callable[..., Record]


@pytest.fixture
def coded(monkeypatch: pytest.MonkeyPatch) -> Coded:
    """Makes the record of a chunk: of codec raw, or coded against a base by xor.

    `coded(raw)` or `coded(raw, base=raw of the base, depth=its own depth)`. What reads records
    can decode them during the test.
    """
    codecs = (Raw(), Zstd(), Constant(), Planes(), Delta())
    for module in (chunkreader, records):
        monkeypatch.setattr(module, "Decoder", lambda: Decoder((*codecs, Xor())))

    def make(raw: bytes, base: bytes | None = None, depth: int = 0) -> Record:
        identifier, checksum = identify(Kind.CHUNK, raw), xxhash.xxh3_64_intdigest(raw)
        if base is None:
            return Record(identifier, Kind.CHUNK, 0, len(raw), checksum, raw)
        payload = Xor().encode(memoryview(raw), BYTES, memoryview(base), BYTES)
        base_id: Id = identify(Kind.CHUNK, base)
        return Record(
            identifier,
            Kind.CHUNK,
            200,
            len(raw),
            checksum,
            b"".join(payload),
            depth=depth,
            base=base_id,
        )

    return make
