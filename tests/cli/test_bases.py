"""Versions coded against others: `commit --base`, and what `show` and `stats` tell of it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mstore.arrayfile import pack_arrays
from mstore.cli import tables
from mstore.ops.commit import Recorded, record
from mstore.worktree import Worktree

Arrays = dict[str, np.ndarray]


def arrays(seed: int = 0) -> Arrays:
    random = np.random.default_rng(seed)
    return {name: random.normal(0, 0.02, 8192).astype(np.float32) for name in ("a.weight", "b")}


def tuned(weights: Arrays, seed: int = 1) -> Arrays:
    random = np.random.default_rng(seed)
    return {
        name: one + random.normal(0, 1e-6, one.shape).astype(one.dtype)
        for name, one in weights.items()
    }


def write(weights: Arrays, path: str = "model.safetensors") -> None:
    packed = pack_arrays(weights, {})
    Path(path).write_bytes(packed.header + b"".join(packed.buffers))


def stored(mstore: Any, *args: str) -> int:
    told: int = mstore.json("commit", *args)["bytes_stored"]
    return told


def tensors(mstore: Any, *args: str) -> dict[str, Any]:
    shown = mstore.json("show", "--tensors", *args)["tensors"]
    return {tensor["name"]: tensor for tensor in shown}


def rows(mstore: Any, *args: str) -> dict[str, str]:
    """What stands in the columns base and depth, for each tensor of the version."""
    lines = mstore.ok("show", "--tensors", *args).lines
    (head,) = (line for line in lines if line.endswith("  depth"))
    shown = lines[lines.index(head) + 1 :]
    return {line.split()[0]: " ".join(line[head.index("base") :].split()) for line in shown}


def elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Go to a directory that is nobody's working directory."""
    Path("../elsewhere").mkdir()
    monkeypatch.chdir("../elsewhere")


@pytest.fixture
def empty(work: Path, mstore: Any) -> Path:
    """A working directory without any files, and a bare repository beside it."""
    folder = work.parent / "empty"
    mstore.ok("init", "--bare", str(work.parent / "bare"))
    mstore.ok("init", str(folder))
    return folder


@pytest.fixture
def model(empty: Path, mstore: Any, monkeypatch: pytest.MonkeyPatch) -> str:
    """The id of a first version of some weights, in the working directory."""
    monkeypatch.chdir(empty)
    write(arrays())
    return str(mstore.commit("-m", "first"))


def test_a_version_by_hand_for_a_new_model(
    empty: Path, mstore: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fine-tune committed as another model, from a directory of its own."""
    monkeypatch.chdir(empty)
    bare = ("--repo", "../bare")
    write(arrays())
    whole = stored(mstore, *bare, "--model", "bert")
    write(tuned(arrays()))
    assert stored(mstore, *bare, "--model", "told", "--base", "bert:main") < 0.6 * whole
    for tensor in tensors(mstore, *bare, "--model", "told").values():
        assert tensor["depth"] == 1


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The bases that each commit was told of."""
    told: list[list[str]] = []

    def recorded(*args: Any, bases: Sequence[bytes], **more: Any) -> Recorded:
        told.append([base.hex() for base in bases])
        return record(*args, bases=bases, **more)

    monkeypatch.setattr("mstore.worktree.record", recorded)
    monkeypatch.setattr("mstore.cli.commit.record", recorded)
    return told


@pytest.mark.parametrize("place", [(), ("--repo", "../empty")])
def test_several_bases_in_their_order(
    place: tuple[str, ...],
    model: str,
    mstore: Any,
    asked: list[list[str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    write(arrays(7))
    side = mstore.commit("--branch", "side")
    if place:
        elsewhere(monkeypatch)
    write(arrays(8))
    mstore.commit(*place, "--base", model[:6], "--base", "side", "--base", "main")
    assert asked == [[], [model, side, model]]


def test_the_version_named_is_looked_at_before_the_parent(model: str, mstore: Any) -> None:
    near, far = arrays(7), arrays()
    write({"a.weight": near["b"], "b": near["b"]})
    mstore.commit("--branch", "side")
    mstore.ok("checkout", "main")
    write(far | {"b": tuned(near)["b"]})
    mstore.commit("--base", "side")
    assert rows(mstore) == {"a.weight": "- 0", "b": "side 1"}
    mstore.ok("verify")


def test_a_useless_base_costs_nothing(model: str, mstore: Any) -> None:
    bare = ("--repo", "../bare")
    write({"x": arrays(5)["b"]})
    mstore.commit(*bare, "--model", "useless")
    write({"x": arrays(6)["b"]})
    alone = stored(mstore, *bare, "--model", "one")
    mstore.ok(*bare, "--model", "one", "branch", "--delete", "main")
    mstore.ok(*bare, "gc")
    again = stored(mstore, *bare, "--model", "one", "--base", "useless:main")
    assert again == pytest.approx(alone, abs=8)
    assert tensors(mstore, *bare, "--model", "one")["x"]["bases"] == []


@pytest.mark.parametrize("place", [(), ("--repo", "../bare")])
def test_an_unknown_base_is_an_unknown_revision(
    place: tuple[str, ...], model: str, mstore: Any
) -> None:
    mstore.commit("--repo", "../bare")
    write(arrays(3))
    ran = mstore(*place, "commit", "--base", "mian")
    assert (ran.code, ran.error, ran.hint) == (1, "unknown revision 'mian'", "nearest names: main")
    ran = mstore(*place, "commit", "--base", "bert:main")
    assert (ran.error, ran.hint) == ("there is no model 'bert'", "models here: default")
    assert len(mstore.json(*place, "log")) == 1


def test_show_tells_what_tensors_are_coded_against(model: str, mstore: Any) -> None:
    assert rows(mstore) == {"a.weight": "- 0", "b": "- 0"}
    weights = arrays()
    weights["b"] = tuned(weights)["b"]
    write(weights)
    second = mstore.commit()
    assert rows(mstore) == {"a.weight": "- 0", "b": "HEAD~1 1"}
    write(arrays(2))
    mstore.commit()
    shown = {revision: rows(mstore, revision)["b"] for revision in ("HEAD~1", "main^", second[:6])}
    assert shown == {"HEAD~1": "HEAD~2 1", "main^": "main~2 1", second[:6]: f"{second[:6]}~1 1"}
    assert rows(mstore, second)["b"] == f"{second[:12]}~1 1"


def test_show_names_files_and_tensors_that_are_called_otherwise(model: str, mstore: Any) -> None:
    Path("model.safetensors").unlink()
    write({"b": tuned(arrays())["b"]}, "other.safetensors")
    mstore.commit()
    assert rows(mstore)["b"] == "HEAD~1 model.safetensors 1"
    (tensor,) = (one for one in tensors(mstore).values() if one["depth"])
    assert tensor["chunks"] == 1
    assert tensor["bases"] == [
        {"commit": model, "path": "model.safetensors", "name": "b", "chunks": 1}
    ]


def test_show_makes_names_of_bases_visible(model: str, mstore: Any) -> None:
    Path("model.safetensors").unlink()
    write({"b": arrays(9)["b"]}, "x\x1b.safetensors")
    mstore.commit()
    Path("x\x1b.safetensors").unlink()
    write({"b": tuned(arrays(9))["b"]}, "y.safetensors")
    mstore.commit()
    assert rows(mstore)["b"] == r"HEAD~1 x\x1b.safetensors 1"


def test_show_names_other_models(model: str, mstore: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    write(arrays(2))
    mstore.commit()
    elsewhere(monkeypatch)
    write(tuned(arrays()))
    there = ("--repo", "../empty")
    mstore.commit(*there, "--model", "tuned", "--base", "default:main~1")
    assert rows(mstore, *there, "--model", "tuned")["b"] == "default:main~1 1"
    assert rows(mstore, *there, "tuned:main")["b"] == "main~1 1"


def test_show_of_a_base_that_only_the_chunk_is_left_of(model: str, mstore: Any) -> None:
    write(tuned(arrays()))
    mstore.commit()
    mstore.ok("gc", "--keep-last", "1")
    assert rows(mstore)["b"] == "a version no longer kept 1"
    assert tensors(mstore)["b"]["bases"] == [
        {"commit": None, "path": None, "name": None, "chunks": 1}
    ]


@pytest.fixture
def large(empty: Path, mstore: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three versions of a tensor of three chunks; in the last they are of several kinds."""
    monkeypatch.chdir(empty)
    monkeypatch.setitem(Worktree.commit.__kwdefaults__, "chunk_size", 8192)
    weights = arrays()
    for changed in (slice(0), slice(4096, 6144), slice(0, 2048)):
        weights["b"][changed] += np.float32(1e-6)
        write(weights)
        mstore.commit()


def test_show_of_chunks_that_differ(large: None, mstore: Any) -> None:
    assert rows(mstore) == {"a.weight": "- 0", "b": "HEAD~1 1/4 +1 1"}
    assert [base["chunks"] for base in tensors(mstore)["b"]["bases"]] == [1, 1]
    assert tensors(mstore)["b"]["chunks"] == 4


def test_show_leaves_bases_out_where_the_line_is_too_narrow(
    model: str, mstore: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tuned(arrays()))
    mstore.commit()
    for width, last in (
        (75, ["base", "depth"]),
        (68, ["share", "base"]),
        (67, ["stored", "share"]),
    ):
        monkeypatch.setattr(tables, "_line_width", lambda width=width: width)
        head = mstore.ok("show", "--tensors").lines[-3]
        assert head.split()[-2:] == last


def test_show_without_tensors_looks_for_no_bases(
    model: str, mstore: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mstore.ops.coded._find_places", None)
    mstore.ok("show")


def test_stats_tell_of_deltas(model: str, mstore: Any) -> None:
    assert not any("deltas" in line for line in mstore.ok("stats").lines)
    assert mstore.json("stats")["deltas"] == {
        "chunks": 0, "bytes_unique": 0, "bytes_encoded": 0, "depth": 0,
    }  # fmt: skip
    write(tuned(arrays()))
    mstore.commit()
    told = mstore.json("stats")["deltas"]
    assert (told["chunks"], told["bytes_unique"], told["depth"]) == (2, 2 * 8192 * 4, 1)
    assert told["bytes_encoded"] == sum(one["bytes_stored"] for one in tensors(mstore).values())
    (line,) = (line for line in mstore.ok("stats").lines if "deltas" in line)
    assert line.split(maxsplit=5)[5] == "2 chunks, of 65.5 kB, coded against others"
