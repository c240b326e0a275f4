"""log, show and diff."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest


def test_log(first: str, second: str, mstore: Any) -> None:
    mstore.ok("tag", "v1", "HEAD~1")
    lines = mstore.ok("log").lines
    moment = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d [+-]\d{4} \(just now\)"
    assert lines[0] == f"commit {second[:12]} (HEAD -> main)"
    assert lines[1] == "author Ada <ada@example.org>"
    assert re.fullmatch(f"date   {moment}", lines[2])
    assert lines[3:8] == [
        "meta   loss=0.25",
        "",
        "    second",
        "",
        f"commit {first[:12]} (tag: v1)",
    ]


def test_log_json_has_what_log_shows_and_ids_in_full(first: str, second: str, mstore: Any) -> None:
    mstore.ok("tag", "v1", "HEAD~1")
    newest, oldest = mstore.json("log")
    assert newest["id"] == second
    assert newest["parents"] == [first]
    assert (newest["branches"], newest["tags"], newest["head"]) == (["main"], [], True)
    assert (oldest["branches"], oldest["tags"], oldest["head"]) == ([], ["v1"], False)
    assert newest["metadata"] == {"loss": 0.25}
    assert newest["message"] == "second"
    assert newest["author"] == "Ada <ada@example.org>"
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+[+-]\d\d:\d\d", newest["time"])
    assert len(newest["snapshot"]) == 64


def test_log_oneline_limit_and_verbose(first: str, second: str, mstore: Any) -> None:
    assert mstore.ok("log", "--oneline").lines == [
        f"{second[:12]} (HEAD -> main) second loss=0.25",
        f"{first[:12]} first loss=0.5",
    ]
    assert len(mstore.json("log", "-n", "1")) == 1
    assert f"parent {first}" in mstore.ok("log", "-v").lines


def test_log_from_a_revision_and_from_all(first: str, second: str, mstore: Any) -> None:
    mstore.ok("checkout", "HEAD~1")
    assert [one["id"] for one in mstore.json("log")] == [first]
    assert [one["id"] for one in mstore.json("log", "main")] == [second, first]
    assert [one["id"] for one in mstore.json("log", "--all")] == [second, first]
    assert mstore.ok("log", "--oneline").lines == [f"{first[:12]} (HEAD) first loss=0.5"]
    assert mstore("log", "main", "--all").code == 2


def test_log_where_and_sort(first: str, second: str, mstore: Any) -> None:
    assert [one["id"] for one in mstore.json("log", "--where", "loss<0.3")] == [second]
    assert [one["id"] for one in mstore.json("log", "--sort", "-loss")] == [first, second]
    assert [one["id"] for one in mstore.json("log", "--sort", "loss")] == [second, first]
    nothing = mstore.ok("log", "--where", "loss>1")
    assert (nothing.out, nothing.err) == ("", "no version matches\n")
    assert mstore.json("log", "--where", "loss>1") == []


@pytest.mark.parametrize("condition", ["loss<", "loss", "(a=1", "a=1 b=2", 'a="open'])
def test_a_malformed_condition_is_misuse(condition: str, first: str, mstore: Any) -> None:
    ran = mstore("log", "--where", condition)
    assert ran.code == 2
    assert ran.error.startswith(f"--where: the condition {condition!r} goes wrong at")
    assert ran.hint.startswith("write for example: loss<0.3")


def test_log_before_the_first_commit(work: Path, mstore: Any) -> None:
    mstore.ok("init")
    ran = mstore.ok("log")
    assert (ran.out, ran.err) == ("", "there are no commits yet\n")
    assert mstore.json("log") == []


def test_log_graph(first: str, second: str, mstore: Any) -> None:
    mstore.ok("checkout", "HEAD~1")
    Path("config.json").write_text("{}")
    side = mstore.commit("-m", "side", "--branch", "side")
    assert mstore.ok("log", "--graph", "--all", "--oneline").lines == [
        f"* {side[:12]} (HEAD -> side) side",
        f"| * {second[:12]} (main) second loss=0.25",
        "|/",
        f"* {first[:12]} first loss=0.5",
    ]
    refused = mstore("log", "--graph", "--sort", "loss")
    assert refused.code == 2


def test_a_graph_has_parents_after_all_children_whatever_their_clocks_say(
    first: str, mstore: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def history(*_: object, exact: bool, **__: object) -> list[object]:
        asked.append(exact)
        return []

    monkeypatch.setattr("mstore.cli.log.history", history)
    mstore.ok("log", "--graph")
    mstore.ok("log")
    assert asked == [True, False]


def test_the_branch_that_head_is_on_comes_first(first: str, mstore: Any) -> None:
    mstore.ok("branch", "alpha")
    assert mstore.ok("log").lines[0] == f"commit {first[:12]} (HEAD -> main, alpha)"


def test_log_of_another_model_does_not_begin_at_head(first: str, second: str, mstore: Any) -> None:
    mstore.ok("--model", "bert", "tag", "v1", first)
    assert mstore.ok("--model", "bert", "log", "--oneline").lines == [
        f"{first[:12]} (tag: v1) first loss=0.5"
    ]


def test_nothing_from_a_repository_reaches_the_terminal_as_it_is(first: str, mstore: Any) -> None:
    Path("evil\x1b]0;title\x07[red].txt").write_text("x")
    mstore.commit(
        "-m",
        "\x1b[2J[bold]gone[/bold]\n\u202elast",
        "--author",
        "\x1b[31mEve",
        "--meta",
        "k\x1b=v\x9b",
    )
    for command in ("log", "log --oneline", "show", "branch", "status", "stats", "reflog"):
        shown = mstore.ok(*command.split()).out
        assert shown.isascii()
        assert not re.search(r"[^\n -~]", shown), shown
    assert r"\x1b[2J[bold]gone[/bold]" in mstore.ok("log").out
    assert r"evil\x1b]0;title\x07[red].txt" in mstore.ok("show").out
    assert json.loads(mstore.ok("--json", "log").out)[0]["author"] == "\x1b[31mEve"


def test_show(first: str, mstore: Any) -> None:
    lines = mstore.ok("show").lines
    assert lines[0] == f"commit {first[:12]} (HEAD -> main)"
    table = lines[lines.index("    first") + 2 :]
    assert table[0].split() == ["file", "format", "tensors", "size", "stored", "share"]
    assert table[1].split()[:4] == ["config.json", "opaque", "13", "B"]
    assert table[2].split()[:5] == ["model.safetensors", "safetensors", "3", "66.8", "kB"]
    assert table[4].startswith("  3 files, 66.8 kB, stored in ")


def test_show_tensors(first: str, mstore: Any) -> None:
    lines = mstore.ok("show", "--tensors").lines
    table = [line.split() for line in lines[lines.index("") :] if "encoder" in line]
    assert [row[:3] for row in table] == [
        ["encoder.0.bias", "f32", "[256]"],
        ["encoder.0.weight", "f32", "[256,64]"],
    ]
    assert "model.safetensors" in lines[-4]


def test_show_json(first: str, work: Path, mstore: Any) -> None:
    shown = mstore.json("show", "main", "--tensors")
    assert shown["id"] == first
    files = {file["path"]: file for file in shown["files"]}
    model = files["model.safetensors"]
    assert model["bytes"] == (work / "model.safetensors").stat().st_size
    assert shown["bytes"] == sum(file["bytes"] for file in files.values())
    assert (model["format"], model["tensors"], model["executable"]) == ("safetensors", 3, False)
    tensors = {tensor["name"]: tensor for tensor in shown["tensors"]}
    weight = tensors["encoder.0.weight"]
    assert weight["shape"] == [256, 64]
    assert weight["bytes"] == 256 * 64 * 4
    assert 0 < weight["bytes_stored"] < weight["bytes"]
    header = model["bytes_stored"] - sum(tensor["bytes_stored"] for tensor in shown["tensors"])
    assert 0 < header < 400
    assert tensors["steps"]["shape"] == []


def test_stored_sizes_add_up_to_what_stats_says(first: str, mstore: Any) -> None:
    files = mstore.json("show")["files"]
    assert sum(file["bytes_stored"] for file in files) == mstore.json("stats")["bytes_encoded"]


def test_a_stored_size_counts_every_chunk(first: str, mstore: Any) -> None:
    mstore.write_model("model.safetensors", 1, big=np.zeros((3 << 20) // 4, np.float32))
    mstore.commit()
    (big,) = (one for one in mstore.json("show", "--tensors")["tensors"] if one["name"] == "big")
    stored = big["bytes_stored"]
    mstore.write_model("model.safetensors", 1, big=np.zeros((1 << 20) // 4, np.float32))
    mstore.commit()
    (big,) = (one for one in mstore.json("show", "--tensors")["tensors"] if one["name"] == "big")
    assert big["bytes_stored"] * 3 == stored


def test_diff_of_two_versions(first: str, second: str, mstore: Any) -> None:
    lines = mstore.ok("diff", "HEAD~1", "HEAD").lines
    assert lines[0] == f"{first[:12]} → {second[:12]}"
    files = [line.split() for line in lines[2:6]]
    assert files[0] == ["removed", "config.json", "13", "B"]
    assert files[1][:3] == ["modified", "model.safetensors", "66.8"]
    assert files[2] == ["added", "notes.txt", "6", "B"]
    assert files[3][:4] == ["renamed", "tokenizer/vocab.txt", "→", "tokenizer/words.txt"]
    assert lines[7].split() == [
        *("tensor", "dtype", "and", "shape", "changed", "rel.", "L2", "max", "|Δ|", "cosine")
    ]
    assert lines[8].split()[:5] == ["encoder.0.bias", "f32", "[256]", "100.0", "%"]
    assert lines[8].split()[5] == "0.5"
    assert lines[8].split()[7] == "1.000000"
    assert lines[10:12] == [
        "files    1 added, 1 removed, 1 modified, 1 renamed, 0 unchanged",
        lines[11],
    ]
    assert lines[12:14] == [
        "tensors  1 modified, 2 unchanged",
        "numbers  100.0 % of 256 elements changed",
    ]


def test_diff_json(first: str, second: str, mstore: Any) -> None:
    found = mstore.json("diff", "HEAD~1", "HEAD")
    assert (found["before"], found["after"]) == (first, second)
    assert [change["kind"] for change in found["files"]] == [
        "removed",
        "modified",
        "added",
        "renamed",
    ]
    (tensor,) = found["tensors"]
    assert tensor["name"] == "encoder.0.bias"
    assert tensor["numbers"]["relative_change"] == pytest.approx(0.5)
    assert found["totals"]["changed_elements"] == 256


def test_diff_with_the_working_directory(first: str, second: str, mstore: Any) -> None:
    clean = mstore.ok("diff")
    assert (clean.out, clean.err) == ("", "there is no difference\n")
    mstore.write_model("model.safetensors", 2)
    Path("notes.txt").unlink()
    Path("run.sh").write_text("x")
    Path("run.sh").chmod(0o755)
    found = mstore.json("diff")
    assert (found["before"], found["after"]) == (second, None)
    assert [(change["kind"], change["path"]) for change in found["files"]] == [
        ("modified", "model.safetensors"),
        ("removed", "notes.txt"),
        ("added", "run.sh"),
    ]
    assert found["files"][2]["after"]["executable"]
    assert len(found["tensors"]) == 3
    assert mstore.json("diff", "HEAD~1")["before"] == first
    assert mstore.ok("diff").lines[0] == f"{second[:12]} → the working directory"


def test_a_working_directory_is_described_as_a_commit_would_record_it(
    first: str, second: str, mstore: Any
) -> None:
    mstore.write_model("model.safetensors", 2)
    Path("more.txt").write_text("more")
    before = mstore.json("diff")
    third = mstore.commit()
    after = mstore.json("diff", "HEAD~1", "HEAD")
    assert before | {"after": third} == after


def test_diff_before_the_first_commit(work: Path, mstore: Any) -> None:
    mstore.ok("init")
    assert mstore.ok("diff").lines[0] == "nothing → the working directory"
    assert {change["kind"] for change in mstore.json("diff")["files"]} == {"added"}


def test_diff_stat_reads_no_weights(
    first: str, second: str, mstore: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mstore.ops.sides.StoredSide.read", None)
    lines = mstore.ok("diff", "--stat", "HEAD~1", "HEAD").lines
    assert not any(line.split()[:1] == ["tensor"] for line in lines)
    assert "tensors  1 modified, 2 unchanged" in lines
    assert mstore.json("diff", "--stat", "HEAD~1", "HEAD")["tensors"][0]["numbers"] is None


def test_diff_of_some_tensors(first: str, second: str, mstore: Any) -> None:
    mstore.write_model("model.safetensors", 2)
    assert [one["name"] for one in mstore.json("diff", "--tensor", "*.weight")["tensors"]] == [
        "encoder.0.weight"
    ]


def test_diff_exit_code(first: str, second: str, mstore: Any) -> None:
    assert mstore("diff", "--exit-code").code == 0
    assert mstore("diff", "HEAD~1", "HEAD").code == 0
    assert mstore("diff", "HEAD~1", "HEAD", "--exit-code").code == 1
    assert mstore("--json", "diff", "HEAD~1", "HEAD", "--exit-code").code == 1


def test_diff_shows_forty_tensors_unless_verbose(work: Path, mstore: Any) -> None:
    mstore.ok("init")
    many = {f"layer.{number}": np.zeros(8, np.float32) for number in range(50)}
    mstore.write_model("model.safetensors", 1, **many)
    mstore.commit()
    mstore.write_model("model.safetensors", 1, **{name: one + 1 for name, one in many.items()})
    short = mstore.ok("diff").lines
    assert sum("layer." in line for line in short) == 40
    assert "  … and 10 more tensors (all with -v)" in short
    assert sum("layer." in line for line in mstore.ok("diff", "-v").lines) == 50


def test_diff_of_dtypes_shapes_and_broken_numbers(first: str, mstore: Any) -> None:
    arrays = mstore.arrays(1)
    bias = arrays["encoder.0.bias"].astype(np.float16)
    weight = arrays["encoder.0.weight"].reshape(64, 256)
    mstore.write_model(
        "model.safetensors",
        1,
        **{"encoder.0.bias": bias, "encoder.0.weight": weight, "new": np.zeros(2, np.int32)},
    )
    rows = {line.split()[0]: line.split() for line in mstore.ok("diff").lines if line}
    assert rows["dtype"][1:6] == ["encoder.0.bias", "f32", "→", "f16", "[256]"]
    assert rows["reshaped"][1:6] == ["encoder.0.weight", "f32", "[256,64]", "→", "[64,256]"]
    assert rows["added"][1:4] == ["new", "i32", "[2]"]
    broken = arrays["encoder.0.bias"].copy()
    broken[3:5] = np.nan
    mstore.write_model("model.safetensors", 1, **{"encoder.0.bias": broken})
    assert (
        "  2 elements of encoder.0.bias infinite or not a number (before: 0)"
        in mstore.ok("diff").lines
    )


def test_only_the_executable_bit_changed(first: str, mstore: Any) -> None:
    Path("config.json").chmod(0o755)
    assert mstore.ok("diff").lines[2].split() == [
        *("modified", "config.json", "13", "B", "now", "executable")
    ]
