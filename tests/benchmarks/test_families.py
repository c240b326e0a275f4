"""What the benchmark of the families compares: versions in one repository, and an endless chain."""

import importlib
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from mstore.arrayfile import pack_arrays

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def scripts():
    """The modules by name; scripts of this directory import each other by bare names."""
    sys.path.insert(0, str(HERE))
    try:
        names = ("bench_families", "bench_depth", "families")
        yield {name: importlib.import_module(name) for name in names}
    finally:
        sys.path.remove(str(HERE))


def test_versions_of_all_families_are_numbered_throughout(scripts) -> None:
    family = scripts["families"].Family
    first = family("a", "A", ("base", "one", "two"))
    second = family("b", "B", ("base", "one", "two"), unrelated=True)
    versions = scripts["bench_families"].versions_together([first, second])
    assert [version.number for version in versions] == list(range(6))
    assert [version.parent for version in versions] == [None, 0, 1, None, 3, 3]
    assert [version.family for version in versions] == ["a"] * 3 + ["b"] * 3
    assert [version.unrelated for version in versions] == [False] * 3 + [True] * 3
    assert versions[4].directory == second.directory(1)


@dataclass(frozen=True)
class Series:
    """A family somewhere else."""

    root: Path
    versions: tuple[str, ...]

    def directory(self, number: int) -> Path:
        return self.root / str(number)


def test_an_endless_chain_codes_each_version_against_the_one_before(tmp_path, scripts) -> None:
    random = np.random.default_rng(0)
    values = random.normal(0, 0.02, (600, 600)).astype(np.float32)
    # Each further from the first one, and as near to the one before it as ever.
    steps = [values * np.float32(1 + 0.0001 * number) for number in range(4)]
    for number, step in enumerate([*steps, steps[-1]]):
        directory = tmp_path / str(number)
        directory.mkdir()
        packed = pack_arrays({"w": step}, {})
        content = b"".join([packed.header, *map(bytes, packed.buffers)])
        (directory / "model.safetensors").write_bytes(content)
    sizes = [
        scripts["bench_depth"].chain_size(Series(tmp_path, ("",) * count)) for count in range(1, 6)
    ]
    added = np.diff(sizes)
    assert 0.7 * values.nbytes < sizes[0] < values.nbytes
    assert max(added[:3]) < 0.6 * sizes[0]
    assert max(added[:3]) < 1.1 * min(added[:3])
    assert added[3] == 0, "the same again"
