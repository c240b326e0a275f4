"""gc, verify and stats."""

import re
from pathlib import Path
from typing import Any

import pytest


def test_gc_says_what_would_go_and_then_does_it(first: str, second: str, mstore: Any) -> None:
    mstore.ok("undo")
    plan = mstore.ok("gc", "--dry-run").lines
    assert plan[:2] == [
        "1 version would be deleted:",
        f"  {second[:12]}  just now  second",
    ]
    assert plan[2].split(" would be freed: ")[1].startswith("2 packs deleted, 0 rewritten")
    assert plan[-1] == "nothing has been deleted yet; do it with: mstore gc"
    assert mstore.json("show", second)["message"] == "second"
    done = mstore.ok("gc").lines
    assert done[0] == "1 version deleted:"
    assert re.fullmatch(r"\d\.\d kB freed: 2 packs deleted, 0 rewritten, .*", done[2])
    assert mstore("show", second).code == 1
    assert mstore.ok("gc").lines[0] == "no version was deleted"
    assert mstore.json("verify")["ok"]


def test_gc_json(first: str, second: str, mstore: Any) -> None:
    mstore.ok("undo")
    plan = mstore.json("gc", "--dry-run")
    assert plan["dry_run"]
    assert [one["id"] for one in plan["versions_deleted"]] == [second]
    done = mstore.json("gc")
    del plan["bytes_freed"], plan["bytes_kept"]
    assert plan | {"dry_run": False} == {key: done[key] for key in plan}
    assert done["bytes_freed"] > 0
    assert done["bytes_kept"] > 50_000
    assert done["versions_kept"] == 1


def test_gc_keeps_so_many(first: str, second: str, mstore: Any) -> None:
    assert [one["id"] for one in mstore.json("gc", "--keep-last", "1")["versions_deleted"]] == [
        first
    ]
    assert [one["id"] for one in mstore.json("log")] == [second]
    assert mstore("gc", "--keep-last", "0").code == 2


@pytest.mark.parametrize("args", [("gc",), ("gc", "--dry-run")])
def test_gc_does_not_take_what_the_directory_shows(
    args: tuple[str, ...], first: str, mstore: Any
) -> None:
    mstore.ok("undo")
    refused = mstore(*args)
    assert refused.code == 11
    assert refused.error == f"the working directory shows {first[:12]}, which gc would delete"
    mstore.ok("branch", "keep")
    mstore.ok(*args)
    mstore.ok("diff")


def test_gc_keep_last_does_not_take_it_either(first: str, second: str, mstore: Any) -> None:
    mstore.ok("checkout", "HEAD~1")
    assert mstore("gc", "--keep-last", "1").code == 11
    mstore.ok("gc", "--keep-last", "2")


def test_repack_says_what_it_would_gain_and_then_does_it(
    first: str, second: str, mstore: Any
) -> None:
    before = mstore.json("show", "--tensors")
    plan = mstore.ok("repack", "--dry-run").lines
    assert re.fullmatch(r"about \d+\.\d kB instead of \d+\.\d kB, .* (less|more)", plan[0])
    assert plan[-1] == "nothing has been changed yet; do it with: mstore repack"
    ran = mstore.ok("repack")
    assert ran.err.startswith("about ")
    assert re.fullmatch(r"\d+\.\d kB instead of \d+\.\d kB, .* (less|more)", ran.lines[0])
    assert re.fullmatch(r"\d+ chunks? encoded anew, 4 packs replaced", ran.lines[-1])
    again = mstore.ok("repack").lines
    assert again == [f"nothing to gain: {ran.lines[0].split(' instead')[0]} stay as they are"]
    assert mstore.json("show", "--tensors")["id"] == before["id"]
    assert mstore.json("verify")["ok"]
    assert mstore.json("reflog")[0]["action"] == "repack: done"


def test_repack_json(first: str, second: str, mstore: Any) -> None:
    plan = mstore.json("repack", "--dry-run", "--deep")
    assert plan["dry_run"]
    assert plan["estimated"]
    done = mstore.json("repack", "--deep")
    assert done["worthwhile"]
    assert not done["estimated"]
    assert done["newest"] == second
    assert done["newest_depth_after"] == 0
    assert done["versions"] == 2
    assert not mstore.json("repack")["worthwhile"]


def test_verify(first: str, second: str, mstore: Any) -> None:
    ran = mstore.ok("verify")
    assert ran.lines[0].startswith("check of operation 3: ")
    assert ran.lines[1].startswith("2 versions, 5 files, 6 tensors, ")
    assert ran.lines[-1] == "no damage found"
    quick = mstore.ok("verify", "--quick")
    assert quick.lines[0].startswith("quick check of operation 3: ")
    assert quick.err == "the weights themselves were not read; do that with: mstore verify\n"
    report = mstore.json("verify")
    assert (report["ok"], report["versions"], report["damages"]) == (True, 2, [])


def damage_weights() -> Path:
    """Flip a byte in the middle of the pack of the largest chunk."""
    pack = max(Path(".mstore/packs").rglob("*"), key=lambda p: p.is_file() and p.stat().st_size)
    stored = bytearray(pack.read_bytes())
    stored[len(stored) // 2] ^= 1
    pack.chmod(0o644)
    pack.write_bytes(stored)
    return pack


def test_verify_names_the_damage_and_ends_with_12(first: str, second: str, mstore: Any) -> None:
    pack = damage_weights()
    ran = mstore("verify")
    assert ran.code == 12
    assert pack.name in ran.out
    harmed = "tensor encoder.0.weight of model.safetensors in "
    assert any(line.strip().startswith(harmed) for line in ran.lines), ran.out
    assert first[:12] in ran.out
    assert second[:12] in ran.out
    assert ran.lines[-1] == "1 damage found"
    report = mstore.json("verify")
    assert not report["ok"]
    (damage,) = report["damages"]
    assert (damage["file"], damage["tensor"]) == ("model.safetensors", "encoder.0.weight")
    assert set(damage["versions"]) == {first, second}
    assert set(damage["reached_by"]) == {"default/main"}


def test_damage_ends_other_commands_with_12(first: str, mstore: Any) -> None:
    damage_weights()
    Path("model.safetensors").unlink()
    ran = mstore("checkout", "HEAD")
    assert ran.code == 12
    assert "model.safetensors" in ran.error
    assert not Path("model.safetensors").exists()


def test_stats(first: str, second: str, mstore: Any) -> None:
    mstore.ok("tag", "v1")
    lines = mstore.ok("stats").lines
    assert lines[0] == "1 model, 1 branch, 1 tag, 2 versions"
    rows = {line[2:18].strip(): line[18:].split() for line in lines[2:]}
    assert rows["all versions"][:2] == ["133.6", "kB"]
    assert "saves" in rows["distinct chunks"]
    assert rows["dead"] == ["0", "B"]
    versions = [line.split() for line in lines[lines.index("", 2) + 1 :]]
    assert versions[0] == ["version", "size", "alone", "message"]
    assert [row[0] for row in versions[1:]] == [second[:12], first[:12]]


def test_stats_json(first: str, second: str, mstore: Any) -> None:
    found = mstore.json("stats")
    assert [version["id"] for version in found["versions"]] == [second, first]
    disk = found["bytes_on_disk"]
    files = [path for path in Path(".mstore").rglob("*") if path.is_file()]
    stored = [path for path in files if "worktree" not in path.parts]
    assert disk["total"] == sum(path.stat().st_size for path in stored)
    assert found["bytes_unique"] < found["bytes"]
    assert 0 < found["share_saved_by_sharing"] < 1


def test_stats_of_a_model(first: str, mstore: Any) -> None:
    mstore.ok("--model", "bert", "tag", "v1", first)
    assert mstore.json("stats")["models"] == 2
    assert mstore.json("--model", "bert", "stats")["models"] == 1
    assert mstore("--model", "gpt", "stats").code == 1


def test_stats_shows_ten_versions_unless_verbose(first: str, mstore: Any) -> None:
    for number in range(11):
        mstore.commit("--meta", f"n={number}")
    assert mstore.ok("stats").lines[-1] == "  … and 2 older (all with -v)"
    assert len(mstore.ok("stats", "-v").lines) == len(mstore.ok("stats").lines) + 1


def test_reindex_mends_damaged_indexes(first: str, second: str, mstore: Any) -> None:
    for index in Path(".mstore/indexes").iterdir():
        stored = bytearray(index.read_bytes())
        stored[-1] ^= 1
        index.chmod(0o644)
        index.write_bytes(stored)
    ran = mstore("verify")
    assert ran.code == 12
    assert "mstore reindex" in ran.err
    assert "records of " in mstore.ok("reindex").out
    assert mstore.ok("verify").lines[-1] == "no damage found"
    assert mstore.json("reindex")["damaged"] == []
    damage_weights()
    assert mstore.ok("reindex").code == 0
