"""`mstore scan`, the warning at a commit, and commits that are refused."""

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

SHELL = b"cposix\nsystem\n(S'true'\ntR."
"""A pickle that calls os.system."""


def arrays(path: str, seed: int = 1) -> None:
    """A pickle of a dictionary of arrays."""
    values = {"w": np.random.default_rng(seed).random((4, 4)), "b": np.zeros(4)}
    Path(path).write_bytes(pickle.dumps(values))


def verdicts(document: dict[str, Any]) -> dict[str, str]:
    return {file["path"]: file["verdict"] for file in document["files"]}


def scanned(mstore: Any, *args: str, code: int = 0) -> dict[str, Any]:
    ran = mstore("scan", "--json", *args)
    assert ran.code == code, ran
    found: dict[str, Any] = json.loads(ran.out)
    return found


# What it says


def test_one_line_for_each_file_and_the_findings_below(work: Path, mstore: Any) -> None:
    Path("bad.pkl").write_bytes(SHELL)
    arrays("good.pkl")
    cut = Path("model.safetensors").read_bytes()[:-5]
    Path("model.safetensors").write_bytes(cut)
    Path("config.json").write_text('{"auto_map": {"AutoModel": "modeling_x.Model"}}')
    ran = mstore("scan")
    assert ran.code == 13
    assert ran.lines == [
        "dangerous   bad.pkl  pickle",
        "            dangerous   calls posix.system, at byte 24",
        "unknown     config.json  config",
        "            unknown     has the code in 'modeling_x.py' run, where that is trusted, "
        "at auto_map.AutoModel",
        "ok          good.pkl  pickle",
        "malformed   model.safetensors  safetensors",
        "            malformed   the data_offsets of 'encoder.0.weight' are backwards or "
        "outside the file",
        "opaque      tokenizer/vocab.txt",
        "5 files: 1 dangerous, 1 malformed, 1 unknown, 1 ok, 1 opaque",
    ]
    assert ran.err == "opaque files are of no format known here, so nothing is said of them\n"


def test_what_is_allowed_is_told_only_if_asked(work: Path, mstore: Any) -> None:
    arrays("good.pkl")
    assert len(mstore.ok("scan", "good.pkl").lines) == 2
    told = mstore.ok("scan", "-v", "good.pkl").lines
    assert told[0] == "ok          good.pkl  pickle"
    assert all(line.startswith("            allowed     ") for line in told[1:-1])
    assert any("numpy" in line for line in told[1:-1])


def test_nothing_to_scan(work: Path, mstore: Any) -> None:
    Path("empty").mkdir()
    assert mstore.ok("scan", "empty").lines == ["0 files"]
    assert scanned(mstore, "empty") == {"files": [], "counts": {}}


def test_a_malformed_file_is_an_error_and_an_unknown_one_is_none(work: Path, mstore: Any) -> None:
    Path("model.safetensors").write_bytes(Path("model.safetensors").read_bytes()[:-5])
    Path("unknown.pkl").write_bytes(b"cnobody.knows\nname\n(tR.")
    assert mstore("scan", "model.safetensors").code == 13
    assert mstore("scan", "unknown.pkl").code == 0


def test_many_findings_are_cut_short(work: Path, mstore: Any) -> None:
    names = "".join(f"cnobody.knows\nname{number}\n(tR0" for number in range(1200))
    Path("many.pkl").write_bytes(names.encode() + b"N.")
    ran = mstore.ok("scan", "many.pkl")
    assert ran.lines[11:] == [
        "            unknown     … and 990 more; all of them with -v",
        "            … and 200 more findings",
        "1 file: 1 unknown",
    ]
    assert len(mstore.ok("scan", "-v", "many.pkl").lines) == 1003
    (file,) = scanned(mstore, "many.pkl")["files"]
    assert (len(file["findings"]), file["findings_left_out"]) == (1000, 200)


def test_names_from_files_cannot_move_the_cursor(work: Path, mstore: Any) -> None:
    Path("\x1b[2Jbad\n.pkl").write_bytes(b"c\x1b[31mevil\x07\nna\xc2\x9bme\n(tR.")
    ran = mstore.ok("scan", "-v", ".")
    assert ran.lines[1].startswith("unknown     \\x1b[2Jbad\\n.pkl") or "\\x1b[2Jbad" in ran.out
    for stream in (ran.out, ran.err):
        assert all(one.isprintable() or one == "\n" for one in stream)


def test_colours_are_for_terminals_that_want_them(work: Path, mstore: Any) -> None:
    Path("bad.pkl").write_bytes(SHELL)
    assert "\x1b" not in mstore.process("scan", ".").stdout


def test_the_document(work: Path, mstore: Any) -> None:
    Path("bad.pkl").write_bytes(SHELL)
    found = scanned(mstore, "bad.pkl", "config.json", code=13)
    assert found == {
        "files": [
            {
                "path": "bad.pkl",
                "commit": None,
                "bytes": len(SHELL),
                "format": "pickle",
                "verdict": "dangerous",
                "problem": None,
                "findings": [
                    {"danger": "dangerous", "what": "calls posix.system", "where": "byte 24"}
                ],
                "findings_left_out": 0,
                "error": None,
            },
            {
                "path": "config.json",
                "commit": None,
                "bytes": 13,
                "format": None,
                "verdict": "opaque",
                "problem": None,
                "findings": [],
                "findings_left_out": 0,
                "error": None,
            },
        ],
        "counts": {"dangerous": 1, "opaque": 1},
    }


# Where it looks


def test_the_name_of_a_file_does_not_count(work: Path, mstore: Any) -> None:
    for name in ("bad.safetensors", "bad.txt", "bad"):
        Path(name).write_bytes(SHELL)
        assert mstore("scan", name).code == 13


def test_a_single_file_needs_no_repository(
    work: Path, mstore: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    ran = mstore.ok("scan", "work/model.safetensors", str(work / "config.json"))
    assert ran.lines == [
        "ok          work/model.safetensors  safetensors",
        f"opaque      {work}/config.json",
        "2 files: 1 ok, 1 opaque",
    ]
    refused = mstore("scan", "main")
    assert (refused.code, refused.error) == (1, "there is no file or folder main")


def test_what_the_ignore_file_of_the_working_directory_names_is_left_out(
    first: str, mstore: Any
) -> None:
    Path("old").mkdir()
    Path("old/bad.pkl").write_bytes(SHELL)
    Path("bad.tmp").write_bytes(SHELL)
    Path(".mstoreignore").write_text("old/\n*.tmp\n")
    ran = mstore.ok("scan")
    assert ran.err.splitlines()[0] == (
        ".mstoreignore leaves out 2 files or folders; scan them by name"
    )
    assert mstore("scan", "old").code == 13
    assert mstore("scan", "bad.tmp").code == 13


def test_the_ignore_file_of_what_was_downloaded_hides_nothing(
    first: str, mstore: Any, tmp_path: Path
) -> None:
    there = tmp_path / "downloaded"
    (there / ".mstore").mkdir(parents=True)
    (there / ".mstoreignore").write_text("*.pkl\n")
    (there / "bad.pkl").write_bytes(SHELL)
    assert verdicts(scanned(mstore, str(there), code=13))[f"{there}/bad.pkl"] == "dangerous"


def test_links_are_followed_to_files_only(work: Path, mstore: Any, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "bad").write_bytes(SHELL)
    Path("link").symlink_to(tmp_path / "elsewhere" / "bad")
    Path("folder").symlink_to(tmp_path / "elsewhere")
    Path("nowhere").symlink_to("nothing")
    ran = mstore("scan")
    assert ran.code == 13
    assert [line for line in ran.lines if line.startswith("dangerous")] == [
        "dangerous   link  pickle"
    ]
    assert sorted(ran.err.splitlines())[1:] == [
        "warning: folder is a link to a folder; passed over",
        "warning: nowhere is a link to nothing; passed over",
    ]
    assert mstore("scan", "nowhere").code == 1


def test_what_is_no_file_is_not_waited_for(work: Path, mstore: Any) -> None:
    os.mkfifo("pipe")
    assert "pipe is not a regular file" in mstore.ok("scan").err
    ran = mstore("scan", "pipe", "config.json")
    assert ran.code == 13
    assert ran.lines == [
        "unreadable  pipe",
        "            unreadable  pipe is not a regular file",
        "opaque      config.json",
        "2 files: 1 unreadable, 1 opaque",
    ]


# Versions


@pytest.fixture
def versions(first: str, mstore: Any) -> None:
    """A version with a dangerous file, and a newer one without."""
    Path("sub").mkdir()
    Path("sub/bad.pkl").write_bytes(SHELL)
    arrays("good.pkl")
    mstore.commit("-m", "bad")
    Path("sub/bad.pkl").unlink()
    mstore.commit("-m", "good")


def test_a_version_is_scanned_as_its_files_are(versions: None, mstore: Any) -> None:
    mstore.ok("checkout", "HEAD~1", "-o", "out")
    stored = scanned(mstore, "HEAD~1", code=13)
    there = scanned(mstore, "out", code=13)
    assert {file["commit"] for file in stored["files"]} == {mstore.json("log")[1]["id"]}
    for file in (*stored["files"], *there["files"]):
        file["path"] = file["path"].removeprefix("out/")
        file["commit"] = None
    assert stored == there
    assert verdicts(stored)["sub/bad.pkl"] == "dangerous"


def test_a_version_says_which_it_is(versions: None, mstore: Any) -> None:
    ran = mstore("scan", "main~1")
    assert ran.code == 13
    assert ran.lines[0] == f"version {mstore.json('log')[1]['id'][:12]}"
    assert "dangerous   sub/bad.pkl  pickle" in ran.lines
    assert mstore("scan", "main").code == 0


@pytest.mark.parametrize(
    ("target", "paths"),
    [
        ("main~1:good.pkl", ["good.pkl"]),
        ("main~1:sub", ["sub/bad.pkl"]),
        ("main~1:sub/bad.pkl", ["sub/bad.pkl"]),
        ("default:main:good.pkl", ["good.pkl"]),
    ],
)
def test_files_of_a_version(target: str, paths: list[str], versions: None, mstore: Any) -> None:
    found = scanned(mstore, target, code=13 if "sub" in target else 0)
    assert [file["path"] for file in found["files"]] == paths


def test_what_is_there_as_a_path_is_no_version(versions: None, mstore: Any) -> None:
    Path("main").write_text("words")
    assert mstore.ok("scan", "main").lines == ["opaque      main", "1 file: 1 opaque"]


def test_what_is_neither(versions: None, mstore: Any) -> None:
    ran = mstore("scan", "mein")
    assert ran.code == 1
    assert ran.error == (
        "there is no file or folder mein here; as a version: unknown revision 'mein'"
    )
    assert ran.hint == "nearest names: main"


# Commits


def test_a_commit_warns_and_stores(first: str, mstore: Any) -> None:
    Path("bad.pkl").write_bytes(SHELL)
    Path("worse.pkl").write_bytes(b"cposix\nsystem\n(S'true'\ntR0cbuiltins\neval\n(S'1'\ntR.")
    ran = mstore.ok("commit", "-m", "bad")
    told = "stored as it is, nothing here runs it; `mstore scan` tells more"
    assert ran.err.splitlines() == [
        f"warning: bad.pkl: dangerous to load (calls posix.system); {told}",
        f"warning: worse.pkl: dangerous to load (calls posix.system, and 1 more); {told}",
    ]
    assert mstore.json("commit", "-m", "again", "--meta", "x=1")["warnings"] == []
    assert mstore.json("show", "HEAD")["files"]


def test_a_commit_is_refused_on_demand(first: str, mstore: Any) -> None:
    Path("bad.pkl").write_bytes(SHELL)
    before = files_of_repository()
    ran = mstore("commit", "-m", "bad", "--refuse-unsafe")
    assert ran.code == 13
    assert ran.error == ("bad.pkl: dangerous to load (calls posix.system); nothing was recorded")
    assert ran.hint.startswith("see `mstore scan`")
    assert files_of_repository() == before
    assert mstore.json("status")["added"] == ["bad.pkl"]
    assert len(mstore.json("log")) == 1


def test_what_breaks_off_in_what_could_run_code_is_refused_too(first: str, mstore: Any) -> None:
    Path("cut.pkl").write_bytes(pickle.dumps({"w": np.zeros(400)})[:-100])
    ran = mstore("commit", "--refuse-unsafe")
    assert ran.code == 13
    assert ran.error.startswith("cut.pkl: cannot be judged (looks like pickle but ")


def test_what_was_stored_already_is_not_judged_again(first: str, mstore: Any) -> None:
    Path("bad.pkl").write_bytes(SHELL)
    mstore.ok("commit", "-m", "bad")
    arrays("good.pkl")
    mstore.ok("commit", "-m", "good", "--refuse-unsafe")
    assert mstore.json("status")["clean"]


def test_the_setting_holds_for_every_commit_that_does_not_say_otherwise(
    first: str, mstore: Any
) -> None:
    Path("bad.pkl").write_bytes(SHELL)
    mstore.ok("config", "refuse-unsafe", "true")
    assert mstore("commit").code == 13
    mstore.ok("commit", "-m", "on purpose", "--no-refuse-unsafe")
    Path("bad.pkl").write_bytes(SHELL + b"x")
    assert mstore("commit").code == 13
    mstore.ok("config", "--unset", "refuse-unsafe")
    mstore.ok("commit")


def test_it_holds_for_a_directory_of_files_too(
    first: str, mstore: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = str(Path.cwd())
    mstore.ok("config", "refuse-unsafe", "true")
    (tmp_path / "run").mkdir()
    monkeypatch.chdir(tmp_path / "run")
    Path("bad.pkl").write_bytes(SHELL)
    args = ("--repo", repository, "commit", "--branch", "run")
    assert mstore(*args).code == 13
    assert "warning: bad.pkl" in mstore.ok(*args, "--no-refuse-unsafe").err


def files_of_repository() -> dict[str, bytes]:
    return {
        str(path): path.read_bytes()
        for path in Path(".mstore").rglob("*")
        if path.is_file() and "worktree" not in path.parts
    }


# What it does not do

WATCHED = """
import os, sys
from mstore.cli.main import cli
from mstore.cli import scan
from mstore.formats import detect, pickle_file

detect.load_all()
before = set(sys.modules)
mine = os.path.realpath(sys.argv[-1])
seen = []

def hear(event, args):
    if event in ("object.__getattr__", "sys._getframe", "builtins.id"):
        return
    path = args[0] if args else None
    if event == "open" and isinstance(path, str) and not args[2] & (os.O_WRONLY | os.O_RDWR):
        if os.path.realpath(path) == mine:
            return
    if event in ("os.scandir", "os.listdir"):
        return
    seen.append((event, repr(args)[:200]))

sys.addaudithook(hear)
code = cli._run(sys.argv[1:])
sys.addaudithook  # the hook stays; what follows is not the scan's
print(code, seen, sorted(set(sys.modules) - before), file=sys.stderr)
"""


@pytest.mark.parametrize(
    "content",
    [
        SHELL,
        b"cantigravity\nfly\n(tR.",
        b"ccolorsys\nrgb_to_hls\n(I1\nI1\nI1\ntR.",
        b"some words",
        b"\x80\x04\x8c\x0bantigravity\x8c\x03fly\x93)R.",
        b"(S'true'\niposix\nsystem\n.",
        b"ccolorsys\nrgb_to_hls\n(I1\nI1\nI1\ntR" + SHELL[:-1] + b"no pickle any more",
    ],
    ids=["system", "import", "unknown", "words", "stack", "instance", "broken"],
)
def test_a_scan_imports_opens_and_runs_nothing(content: bytes, work: Path, mstore: Any) -> None:
    Path("bad").write_bytes(content)
    done = subprocess.run(
        [sys.executable, "-c", WATCHED, "scan", "bad"], capture_output=True, text=True, timeout=60
    )
    code, seen = done.stderr.splitlines()[-1].split(" ", 1)
    assert code in ("0", "13"), done
    assert seen == "[] []", done
