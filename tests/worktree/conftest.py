"""Makes `trees` importable for the tests beside it, and an empty working directory for each."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from trees import Tree


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    """An empty working directory."""
    return Tree(tmp_path / "models")
