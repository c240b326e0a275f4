"""What many tests begin with: a repository in memory, and a quick way to commit to it."""

from collections.abc import Callable, Mapping

import numpy as np
import pytest
from hypothesis import HealthCheck, settings

from mstore.database import Database
from mstore.repository import Repository
from mstore.storage.memory import MemoryStorage

settings.register_profile(
    "mstore", deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True
)
settings.load_profile("mstore")

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
