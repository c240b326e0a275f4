"""Every class of hostile files: refused or told, at little cost, and kept byte for byte all the same.

The table is in `table.py`; what belongs to each class is made by the functions in `hostile_*.py`.
Each class is described by a process of its own under an audit hook, see `watched.py`.
"""

import json
import subprocess
import sys
from pathlib import Path

import bad_parsers
import hostile_archives
import hostile_hdf5
import hostile_models
import hostile_pickles
import pytest
from table import DESCRIBED, HARMFUL, OPAQUE, TABLE, Hostile

import mstore
from mstore.database import Database
from mstore.ops.commit import Description
from mstore.storage.local import LocalStorage
from mstore.worktree import Worktree

SECONDS = 5.0
MEMORY = 64 << 20
BESIDE = "beside"
MODULES = (hostile_archives, hostile_pickles, hostile_hdf5, hostile_models)

Report = dict[str, object]


def watch(folder: Path, *parser: str) -> list[Report]:
    """What comes of each file of a folder."""
    command = [sys.executable, Path(__file__).with_name("watched.py"), folder, *parser]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return [json.loads(line) for line in done.stdout.splitlines()]


def judge(report: Report, outcomes: tuple[str, ...], size: int, seconds: float = SECONDS) -> str:
    """What is wrong with what came of a file of `size` bytes; empty if nothing is."""
    wrong = []
    if report["seen"]:
        wrong.append(f"did what no parser may: {report['seen']}")
    if report["outcome"] not in outcomes:
        wrong.append(f"came to {report['outcome']}: {report['message']}")
    refused = report["outcome"] not in (OPAQUE, DESCRIBED, HARMFUL)
    if refused and not str(report["told"]).startswith(f"looks like {report['format']} but "):
        wrong.append(f"is not told as malformed: {report['told']!r}")
    if float(str(report["seconds"])) > seconds:
        wrong.append(f"took {report['seconds']} s")
    if int(str(report["memory"])) > MEMORY + size:
        wrong.append(f"took {int(str(report['memory'])) >> 20} MiB")
    return "; ".join(wrong)


@pytest.mark.parametrize("case", TABLE, ids=lambda case: f"{case.number:02}-{case.what}")
def test_class(case: Hostile, tmp_path):
    db = Database.create(LocalStorage(tmp_path / ".mstore"), "Ada")
    tree = Worktree.create(tmp_path, db)
    (tmp_path / "good.npy").write_bytes(hostile_archives.array(3, 4))
    first = tree.commit(Description("Ada", "good"))
    folder = tmp_path / "hostile"
    folder.mkdir()
    case.write(folder)

    reports = watch(folder)
    wrong = [
        f"{report['file']} {problem}"
        for report in reports
        if not str(report["file"]).startswith(BESIDE)
        and (problem := judge(report, case.outcomes, (folder / str(report["file"])).stat().st_size))
    ]
    assert reports
    if wrong:
        pytest.fail("\n".join(wrong), pytrace=False)

    tree.commit(Description("Ada", "hostile"))
    repo = mstore.Repository(db)
    for report in reports:
        path = f"hostile/{report['file']}"
        told = bool(report["told"]) or report["outcome"] == HARMFUL
        assert told == any(line.startswith(f"{path}: ") for line in tree.warnings)
        assert (
            report["outcome"] in (DESCRIBED, HARMFUL) or repo["main"].files[path].format == "opaque"
        )
    assert repo["main"].files["good.npy"].format == "npy"
    repo["main"].checkout(tmp_path / "out")
    for report in reports:
        there = (tmp_path / "out" / "hostile" / str(report["file"])).read_bytes()
        assert there == (folder / str(report["file"])).read_bytes()
    assert repo[first.id].files["good.npy"].read() == hostile_archives.array(3, 4)
    assert repo.verify().ok


def test_the_table_has_every_class():
    assert {case.number for case in TABLE} == set(range(1, 41))
    assert all(case.outcomes and case.write.__doc__ for case in TABLE)
    assert {case.write.__module__ for case in TABLE} == {module.__name__ for module in MODULES}


EVENTS = {
    "Imports": "import",
    "Executes": "compile",
    "Compiles": "compile",
    "OpensElsewhere": "open",
    "OpensByNumber": "open",
    "Writes": "open",
    "Removes": "os.remove",
    "RunsShell": "os.system",
    "RunsProcess": "subprocess.Popen",
    "Forks": "os.fork",
    "Connects": "socket.__new__",
    "CallsC": "ctypes.dlopen",
    "ReadsCode": "marshal.dumps",
    "Unpickles": "pickle.find_class",
    "HidesIt": "os.system",
}


@pytest.fixture
def any_file(tmp_path):
    (tmp_path / "any").write_bytes(b"anything")
    return tmp_path


@pytest.mark.parametrize("parser", EVENTS)
def test_the_watch_sees_what_a_bad_parser_does(any_file, parser):
    (report,) = watch(any_file, parser)
    assert report["seen"][0].startswith(EVENTS[parser] + ": ")
    assert report["outcome"] == "failed"
    assert "did what no parser may" in judge(report, ("failed",), 8)
    assert [path.name for path in any_file.iterdir()] == ["any"]


@pytest.mark.parametrize(
    ("parser", "problem"),
    [
        ("TakesMemory", " MiB"),
        ("TakesTime", " s"),
        ("FailsOtherwise", "came to failed: ValueError: not one of ours"),
        ("LeavesGaps", "came to failed: AssertionError"),
    ],
)
def test_the_watch_measures(any_file, parser, problem):
    (report,) = watch(any_file, parser)
    assert problem in judge(report, (DESCRIBED,), 8, seconds=0.02)


def test_every_bad_parser_is_tried():
    made = {name for name, value in vars(bad_parsers).items() if isinstance(value, type)}
    tried = set(EVENTS) | {"TakesMemory", "TakesTime", "FailsOtherwise", "LeavesGaps"}
    assert {name for name in made if issubclass(getattr(bad_parsers, name), bad_parsers.Bad)} == (
        tried | {"Bad"}
    )
