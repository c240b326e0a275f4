"""Damage in the repository, met by a checkout: what can be done then."""

import numpy as np
import pytest
from trees import Tree, description

from mstore.errors import ConflictError, CorruptDataError


def noise(seed: int) -> str:
    return np.random.default_rng(seed).bytes(200_000).hex()


def damage(tree: Tree, after: int) -> None:
    """Flip a byte in every pack of chunks but the first `after`."""
    packs = sorted(
        (tree.directory / ".mstore" / "packs").glob("d*"), key=lambda p: p.stat().st_mtime_ns
    )
    for pack in packs[after:]:
        data = bytearray(pack.read_bytes())
        data[len(data) // 2] ^= 1
        pack.chmod(0o644)
        pack.write_bytes(data)


def test_damage_met_before_anything_is_written_changes_nothing(tree: Tree) -> None:
    first = tree.commit(a=noise(1), b="b")
    damage(tree, after=0)
    tree.write(a=None)
    again = tree.again()
    with pytest.raises(CorruptDataError, match=r"^a: "):
        again.checkout(first.id, "main")
    assert again.status().interrupted is None
    assert again.status().deleted == ("a",)
    assert again.commit(description()).created


def test_a_mixture_can_be_recorded_on_a_branch_of_its_own(tree: Tree) -> None:
    first = tree.commit(a="1", z="small")
    second = tree.commit(a="2", m=noise(1), z=noise(2))
    tree.tree.checkout(first.id, None)
    damage(tree, after=1)
    again = tree.again()
    again._state.begin_checkout(second.id)
    with pytest.raises(CorruptDataError):
        again.checkout(second.id, "main")
    assert again.status().interrupted == second.id
    with pytest.raises(ConflictError, match="--branch NAME"):
        again.commit(description())
    tree.write(a="mine")
    recorded = again.commit(description(), branch="rescue")
    assert again.status().interrupted is None
    assert again.status().clean
    assert recorded.created
