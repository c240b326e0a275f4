"""Whatever goes wrong: one clear line, the right exit code, no traceback, and nothing lost."""

import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mstore import errors
from mstore.cli import failures
from mstore.root import FORMAT_VERSION
from mstore.rootlog import RootLog, root_key
from mstore.storage.local import LocalStorage


@pytest.fixture(autouse=True)
def _signals() -> Iterator[None]:
    """An interrupted command ignores further Ctrl-C; the test run must not."""
    handler = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, handler)


def raising(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    """Let every command that lists branches end in `error`."""

    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr("mstore.cli.names._list", fail)


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (errors.NoRepositoryError("no", hint="do"), 10, "error: no\nhint: do\n"),
        (errors.ConflictError("no"), 11, "error: no\n"),
        (errors.CorruptDataError("no"), 12, "error: no\n"),
        (errors.UnsafeInputError("no"), 13, "error: no\n"),
        (errors.FormatError("no"), 13, "error: no\n"),
        (errors.LimitExceededError("no"), 13, "error: no\n"),
        (errors.InvalidInputError("no"), 1, "error: no\n"),
        (errors.NotFoundError("no"), 1, "error: no\n"),
        (errors.StorageError("no"), 1, "error: no\n"),
        (errors.DurabilityError("no"), 1, "error: no\n"),
        (errors.UnsupportedVersionError("no"), 1, "error: no\n"),
        (errors.MstoreError("a\x1b[31mb\nc"), 1, "error: a\\x1b[31mb\\x0ac\n"),
        (failures.Misuse("no"), 2, "error: no\nhint: mstore branch --help tells how it is used\n"),
        (
            PermissionError(errno.EACCES, "Permission denied", "x"),
            1,
            "error: x: Permission denied\n",
        ),
        (
            OSError(errno.ENOSPC, "No space left on device"),
            1,
            "error: cannot write the output: No space left on device\n"
            "hint: free some space, then repeat\n",
        ),
        (
            MemoryError(),
            1,
            "error: there is not enough memory for this\nhint: end other programs, then repeat\n",
        ),
        (RecursionError("deep"), 13, "error: the input is nested too deeply to be read\n"),
        (
            ZeroDivisionError("by 0"),
            1,
            "internal error: ZeroDivisionError: by 0; please report\n"
            "hint: MSTORE_DEBUG=1 shows where\n",
        ),
        (
            AssertionError(),
            1,
            "internal error: AssertionError; please report\nhint: MSTORE_DEBUG=1 shows where\n",
        ),
        (KeyboardInterrupt(), 130, "interrupted\n"),
        (failures.InterruptionError("all is well"), 130, "interrupted; all is well\n"),
        (BrokenPipeError(errno.EPIPE, "Broken pipe"), 141, ""),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)
def test_every_kind_of_error(
    error: BaseException,
    code: int,
    said: str,
    work: Path,
    mstore: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    raising(monkeypatch, error)
    ran = mstore("branch")
    assert (ran.code, ran.out, ran.err) == (code, "", said)


def test_every_error_class_is_in_the_table_or_a_plain_error() -> None:
    kinds = {
        kind
        for kind in vars(errors).values()
        if isinstance(kind, type) and issubclass(kind, errors.MstoreError)
    }
    plain = {
        errors.MstoreError,
        errors.NotFoundError,
        errors.InvalidInputError,
        errors.UnsupportedVersionError,
        errors.StorageError,
        errors.DurabilityError,
    }
    assert set(failures.EXIT_CODES) == kinds - plain


def test_a_bug_shows_where_only_when_asked(
    work: Path,
) -> None:
    script = (
        "import mstore.cli.names as names\n"
        "names._list = None\n"
        "from mstore.cli.main import run; run()"
    )
    command = [sys.executable, "-c", script, "branch"]
    for debug in ("1", "0"):
        ran = subprocess.run(
            command,
            capture_output=True,
            text=True,
            check=False,
            env=os.environ | {"MSTORE_DEBUG": debug},
        )
        assert ran.returncode == 1
        assert "internal error: TypeError" in ran.stderr
        assert ("Traceback" in ran.stderr) == (debug == "1")


def test_no_repository(work: Path, mstore: Any) -> None:
    ran = mstore("log")
    assert (ran.code, ran.hint) == (10, "make one with: mstore init")
    assert ran.error == f"there is no mstore repository in {work} or a directory above it"


def test_an_unknown_revision(first: str, mstore: Any) -> None:
    mstore.ok("tag", "v1.0")
    ran = mstore("show", "v1")
    assert (ran.code, ran.error, ran.hint) == (1, "unknown revision 'v1'", "nearest names: v1.0")


def test_a_file_that_cannot_be_read(
    first: str, mstore: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("config.json").write_text("{}")
    real = os.open

    def refuse(path: Any, *args: Any, **named: Any) -> int:
        if os.fspath(path).endswith("config.json"):
            raise PermissionError(errno.EACCES, "Permission denied", os.fspath(path))
        return real(path, *args, **named)

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", refuse)
        for command in ("commit", "diff"):
            ran = mstore(command)
            assert ran.code == 1
            assert "config.json: permission denied" in ran.error
    assert mstore.head()["commit"] == first


def test_what_is_no_file_is_passed_over(first: str, mstore: Any) -> None:
    os.mkfifo("pipe")
    assert mstore.ok("status").err == "warning: pipe is not a regular file; passed over\n"


def test_a_repository_of_a_newer_format(first: str, work: Path, mstore: Any) -> None:
    roots = work / ".mstore" / "roots"
    newest = max(roots.iterdir())
    stored = bytearray(newest.read_bytes())
    assert int.from_bytes(stored[8:12], "little") == FORMAT_VERSION
    stored[8:12] = (99).to_bytes(4, "little")
    number = RootLog(LocalStorage(work / ".mstore")).newest().number + 1
    (work / ".mstore" / root_key(number)).write_bytes(stored)
    ran = mstore("log")
    assert (ran.code, ran.hint) == (1, "upgrade mstore")
    assert "format 99" in ran.error


def test_a_conflict(first: str, mstore: Any) -> None:
    assert mstore("branch", "main").code == 11


def test_a_full_disk_is_told_and_loses_nothing(work: Path, tmp_path: Path, mstore: Any) -> None:
    disk = tmp_path / "small"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "none", str(disk)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("cannot mount a small disk here")
    try:
        mstore.ok("init", "--bare", str(disk / "store"))
        first = mstore.json("--repo", str(disk / "store"), "commit", "-m", "first")["id"]
        Path("more.bin").write_bytes(os.urandom(300_000))
        ran = mstore("--repo", str(disk / "store"), "commit", "-m", "too much")
        assert ran.code == 1
        assert "disk full" in ran.error
        assert ran.hint == "free some space, then repeat; nothing stored before is harmed"
        assert [one["id"] for one in mstore.json("--repo", str(disk / "store"), "log")] == [first]
        assert mstore.json("--repo", str(disk / "store"), "verify")["ok"]
    finally:
        # Lazily: indexes of the repository may still be mapped by this process.
        subprocess.run(["umount", "-l", str(disk)], check=True)


FULL = Path("/dev/full")


@pytest.mark.skipif(not FULL.exists(), reason="there is no /dev/full")
@pytest.mark.parametrize("args", [("--help",), ("log",), ("show",), ("--json", "log")])
def test_output_that_cannot_be_written(args: tuple[str, ...], first: str, mstore: Any) -> None:
    with FULL.open("w") as full:
        ran = mstore.process(*args, stdout=full, stderr=subprocess.PIPE, capture_output=False)
    assert ran.returncode == 1
    assert ran.stderr.startswith("error: cannot write the output: No space left on device\n")
    assert "Traceback" not in ran.stderr
    assert "Exception" not in ran.stderr


def test_a_reader_that_stops_reading(first: str, mstore: Any) -> None:
    for args in (("log",), ("show",), ("--help",)):
        reading, writing = os.pipe()
        os.close(reading)
        ran = mstore.process(*args, stdout=writing, stderr=subprocess.PIPE, capture_output=False)
        os.close(writing)
        assert (ran.returncode, ran.stderr) == (141, "")


def test_without_standard_output_or_error(first: str, mstore: Any) -> None:
    for closed in (">&-", "2>&-", ">&- 2>&-"):
        command = f'exec "$@" {closed}'
        ran = subprocess.run(
            ["sh", "-c", command, "sh", *mstore.program("log")],
            capture_output=True,
            text=True,
            check=False,
        )
        assert (ran.returncode, ran.stderr) == (0, "")


def test_an_output_that_does_not_know_every_character(first: str, second: str, mstore: Any) -> None:
    env = os.environ | {"PYTHONIOENCODING": "latin-1"}
    ran = mstore.process("diff", "HEAD~1", "HEAD", env=env)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert ran.stdout.startswith(f"{first[:12]} \\u2192 {second[:12]}")


INTERRUPTED = """
import signal, sys, time
# Whoever started the tests in the background may have had SIGINT ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)
from pathlib import Path
import mstore.ops.commit as commit
from mstore.cli.main import run
real = commit.Session.{method}
def stop_here(self, *args, **named):
    {after}
    Path({marker!r}).touch()
    time.sleep(60)
commit.Session.{method} = stop_here
run()
"""


def interrupt_commit(tmp_path: Path, after: str) -> "tuple[int, str]":
    """Ctrl-C, when all is stored and the version is about to be published, or just has been."""
    marker = tmp_path / "marker"
    script = INTERRUPTED.format(method="publish", after=after, marker=str(marker))
    command = [sys.executable, "-c", script, "commit", "-m", "second"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + 30
        while not marker.exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
    finally:
        process.kill()
    assert out == ""
    return process.returncode, err


def test_ctrl_c_during_a_commit_records_nothing(first: str, tmp_path: Path, mstore: Any) -> None:
    Path("config.json").write_text("{}")
    assert interrupt_commit(tmp_path, "pass") == (130, "interrupted; nothing was recorded\n")
    assert mstore.head()["commit"] == first
    assert mstore.json("verify")["ok"]
    assert mstore.json("status")["modified"] == ["config.json"]
    mstore.commit("-m", "second")
    assert mstore.json("status")["clean"]


def test_ctrl_c_after_publishing_says_so(first: str, tmp_path: Path, mstore: Any) -> None:
    Path("config.json").write_text("{}")
    code, err = interrupt_commit(tmp_path, "real(self, *args, **named)")
    assert (code, err) == (130, "interrupted; branch main moved meanwhile, see: mstore status\n")
    status = mstore.json("status")
    assert (status["clean"], status["moved"]) == (True, None)
    assert status["head"]["commit"] == mstore.json("log", "main")[0]["id"]


def test_no_colour_and_no_progress_without_a_terminal(first: str, mstore: Any) -> None:
    env = {key: value for key, value in os.environ.items() if key != "NO_COLOR"}
    for args in (("log",), ("nonsense",), ("diff",)):
        ran = mstore.process(*args, env=env)
        assert "\x1b" not in ran.stdout + ran.stderr


def on_a_terminal(command: list[str], env: dict[str, str]) -> bytes:
    """What the command writes on a terminal of its own."""
    master, terminal = os.openpty()
    process = subprocess.Popen(command, stdin=terminal, stdout=terminal, stderr=terminal, env=env)
    os.close(terminal)
    written = b""
    try:
        while chunk := os.read(master, 65536):
            written += chunk
    except OSError:  # the other end is closed
        pass
    finally:
        os.close(master)
        process.wait(timeout=30)
    return written


def test_colour_on_a_terminal_unless_told_otherwise(first: str, mstore: Any) -> None:
    command = mstore.program("log")
    env = {key: value for key, value in os.environ.items() if key != "NO_COLOR"}
    env["TERM"] = "xterm-256color"
    assert b"\x1b[33m" in on_a_terminal(command, env)
    assert b"\x1b" not in on_a_terminal(command, env | {"NO_COLOR": "1"})
    assert b"\x1b" not in on_a_terminal(command, env | {"TERM": "dumb"})
