"""What new tensors are coded against, told by what a repository shows of it afterwards."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import mstore
from mstore import basefinder, chunkencoder
from mstore.basefinder import natural_key
from mstore.bases import MAX_DEPTH, BaseReader

SHAPE = (1100, 512)
"""More than two megabytes of float32: a copy in half of that is still worth waiting for."""


def weights(seed=0, shape=SHAPE):
    return np.random.default_rng(seed).normal(0, 0.02, shape).astype(np.float32)


def trained(before, seed=1, step=1e-4):
    """Values after some steps of training."""
    noise = np.random.default_rng(seed).normal(0, step, before.shape)
    return (before + noise).astype(before.dtype)


def fail(*_):
    """For what must not be needed."""
    raise AssertionError("not by name")


@pytest.fixture
def repo(tmp_path):
    return mstore.init(tmp_path / "repository", bare=True)


def stored(snapshot, name, path="model.safetensors"):
    return snapshot.files[path].tensors[name].stored


class TestByName:
    def test_the_same_tensor_of_the_version_before(self, repo):
        first = weights()
        repo.commit({"w": first, "v": first[:7]})
        snapshot = repo.commit({"w": trained(first), "v": first[:7]})
        assert stored(snapshot, "w") < 0.62 * first.nbytes
        assert snapshot.tensors["w"].depth == 1
        assert np.array_equal(snapshot.tensors["w"].numpy(), trained(first))

    def test_a_renamed_file(self, repo):
        first = weights()
        repo.commit({"w": first}, path="a.safetensors")
        snapshot = repo.commit({"w": trained(first)}, path="b.safetensors")
        assert stored(snapshot, "w", "b.safetensors") < 0.62 * first.nbytes

    def test_a_name_as_another_format_has_it(self, repo, monkeypatch):
        first = weights()
        repo.commit({"state_dict.module.w": first}, path="a.safetensors")
        monkeypatch.setattr(basefinder, "sketch", fail)  # by name alone
        snapshot = repo.commit({"params/w:0": trained(first)}, path="b.safetensors")
        assert stored(snapshot, "params/w:0", "b.safetensors") < 0.62 * first.nbytes

    def test_its_own_name_comes_before_one_that_is_only_like_it(self, repo):
        first, other = weights(), weights(1)
        repo.commit({"model.w": first, "w": other}, path="a.safetensors")
        values = {"model.w": trained(first), "w": trained(other)}
        snapshot = repo.commit(values, path="b.safetensors")
        for name in values:
            assert stored(snapshot, name, "b.safetensors") < 0.62 * first.nbytes

    def test_depth_is_bounded_however_long_the_series(self, repo):
        values = weights(shape=(64, 512))
        for step in range(12):
            values = trained(values, step, 1e-5)
            snapshot = repo.commit({"w": values}, f"step {step}")
            assert snapshot.tensors["w"].depth <= MAX_DEPTH
        for number, version in enumerate(repo.log()):
            assert version.tensors["w"].numpy().shape == values.shape, number

    def test_no_chunk_needs_more_than_four_others(self, repo):
        """Also where each version lies much nearer to the one before than to all others."""
        random = np.random.default_rng(1)
        values, deepest = weights(shape=(64, 512)), 0
        for step in range(16):
            values = values.copy()
            values.reshape(-1)[random.integers(0, values.size, values.size // 50)] *= 1.5
            deepest = max(deepest, repo.commit({"w": values}, f"step {step}").tensors["w"].depth)
        assert deepest == 4

    def test_rows_added(self, repo):
        first = weights(shape=(300, 512))
        repo.commit({"w": first})
        longer = np.concatenate((first, weights(9, (20, 512))))
        snapshot = repo.commit({"w": longer})
        assert stored(snapshot, "w") < 1.3 * 20 * 512 * 4
        assert np.array_equal(snapshot.tensors["w"].numpy(), longer)
        shorter = repo.commit({"w": longer[:50]})
        assert stored(shorter, "w") < 1000
        assert np.array_equal(shorter.tensors["w"].numpy(), longer[:50])

    def test_another_row_length_is_no_base(self, repo):
        repo.commit({"w": weights()})
        snapshot = repo.commit({"w": weights(0, (1100, 511))})
        assert snapshot.tensors["w"].depth == 0


class TestWithinOneCommit:
    """Files of one commit may come from each other."""

    @staticmethod
    def commit(repo, directory, files):
        for path, arrays in files.items():
            (directory / path).parent.mkdir(parents=True, exist_ok=True)
            np.savez(directory / path, **arrays)
        return repo.commit(directory)

    def test_a_copy_of_another_type_costs_next_to_nothing(self, repo, tmp_path):
        first = weights()
        files = {"a.npz": {"w": first}, "half.npz": {"w": first.astype(np.float16)}}
        snapshot = self.commit(repo, tmp_path / "model", files)
        assert stored(snapshot, "w", "half.npz") < 0.005 * first.nbytes
        back = snapshot.files["half.npz"].tensors["w"].numpy()
        assert np.array_equal(back, first.astype(np.float16))

    def test_checkpoints_side_by_side_in_the_order_of_their_numbers(self, repo, tmp_path):
        values = [weights()]
        for seed in range(3):
            values.append(trained(values[-1], seed))
        # By name alone 1000 would come before 50.
        names = ("step-0.npz", "step-50.npz", "step-100.npz", "step-1000.npz")
        files = {name: {"w": one} for name, one in zip(names, values, strict=True)}
        snapshot = self.commit(repo, tmp_path / "steps", files)
        for name, one in zip(names, values, strict=True):
            assert np.array_equal(snapshot.files[name].tensors["w"].numpy(), one)
        own = stored(snapshot, "w", "step-0.npz")
        assert all(stored(snapshot, "w", name) < 0.75 * own for name in names[1:])

    def test_both_what_was_and_what_is_new_are_tried(self, repo, tmp_path):
        """A new cast of new weights is nearer to these than to the cast before."""
        later = trained(weights(), step=1e-3)
        copies = {"a.npz": {"w": later}, "h.npz": {"w": later.astype(np.float16)}}
        self.commit(repo, tmp_path / "model", copies)
        newest = trained(later, 5, 1e-3)
        copies = {"a.npz": {"w": newest}, "h.npz": {"w": newest.astype(np.float16)}}
        snapshot = self.commit(repo, tmp_path / "model", copies)
        assert stored(snapshot, "w", "h.npz") < 0.01 * newest.nbytes

    def test_few_bases_are_held_at_once(self, repo, tmp_path, monkeypatch):
        """Where there are several to choose from, they are read for fewer chunks at a time."""
        monkeypatch.setattr(chunkencoder, "_BASES_BYTES", 1 << 20)
        read, counts = BaseReader.read, []
        monkeypatch.setattr(
            BaseReader, "read", lambda *words: counts.append(len(words[1])) or read(*words)
        )
        for step in range(2):
            now = trained(weights(), step)
            files = {"a.npz": {"w": now}, "h.npz": {"w": now.astype(np.float16)}}
            snapshot = self.commit(repo, tmp_path / "model", files)
        assert stored(snapshot, "w", "h.npz") < 0.01 * now.nbytes
        # Chunks of half a mebibyte with two bases each: two for one, and not four for two.
        assert max(counts) == 2

    def test_small_tensors_wait_for_nothing(self, repo, tmp_path):
        files = {f"{n}.npz": {"w": trained(weights(shape=(8, 8)), n)} for n in range(5)}
        snapshot = self.commit(repo, tmp_path / "many", files)
        assert all(snapshot.files[path].tensors["w"].depth == 0 for path in files)


@given(st.lists(st.text("abc019./-", min_size=1), max_size=20))
def test_any_names_can_be_put_in_order(names):
    ordered = sorted(names, key=natural_key)
    assert all(natural_key(a) <= natural_key(b) for a, b in pairwise(ordered))


def test_numbers_in_names_count_as_numbers():
    names = ["step-100", "step-50", "step-1000", "step", "a10b2", "a10b10", "a9"]
    expected = ["a9", "a10b2", "a10b10", "step", "step-50", "step-100", "step-1000"]
    assert sorted(names, key=natural_key) == expected


def test_of_several_types_each_is_tried(repo, tmp_path):
    """An upcast comes from the half-precision copy, though the original stands before it."""
    first = weights()
    half = first.astype(np.float16)
    for name, array in {"a.npz": first, "half.npz": half}.items():
        (tmp_path / "model").mkdir(exist_ok=True)
        np.savez(tmp_path / "model" / name, w=array)
        repo.commit(tmp_path / "model")
    np.savez(tmp_path / "model" / "upcast.npz", w=half.astype(np.float32))
    snapshot = repo.commit(tmp_path / "model")
    assert stored(snapshot, "w", "upcast.npz") < 0.005 * first.nbytes
