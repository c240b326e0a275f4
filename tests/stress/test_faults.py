"""Any one operation on files fails, or all from one on: nothing is lost, and the next try works."""

import errno
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from harness import Arrays, arrays, check_no_garbage, check_whole, commit, one_thread, small_packs

from mstore.database import Database
from mstore.errors import DurabilityError, MstoreError, StorageError
from mstore.repository import Repository
from mstore.storage.files import Files
from mstore.storage.local import LocalStorage

CODES = (errno.ENOSPC, errno.EIO, errno.EROFS, errno.EDQUOT)


class FailingFiles(Files):
    """Fails operation number `at`: only that, or that and all later ones (`lasting`).

    With `late`, the operation is carried out nevertheless, and only then reported as failed.
    """

    def __init__(self, at: int, *, lasting: bool = False, late: bool = False) -> None:
        self.at = at
        self.lasting = lasting
        self.late = late
        self.count = 0

    def perform(self, operation, path, call, *arguments):  # type: ignore[no-untyped-def]
        number, self.count = self.count, self.count + 1
        if number != self.at and not (self.lasting and number > self.at):
            if operation in ("fsync", "fsync_dir"):
                return None
            return super().perform(operation, path, call, *arguments)
        if self.late:
            result = super().perform(operation, path, call, *arguments)
            if operation == "create":
                os.close(result)
        if operation == "fsync":
            # The kernel drops what it could not write, and says so only this once.
            os.truncate(arguments[0], 0)
        code = CODES[number % len(CODES)]
        raise OSError(code, os.strerror(code))


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    small_packs(monkeypatch)
    one_thread(monkeypatch)


class Scene:
    """A repository with some history, some of it garbage."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.acknowledged: dict[str, Arrays] = {}
        Database.create(LocalStorage(folder, FailingFiles(-1)), "ada")
        self.commit(self.open(), 1, 2)
        self.commit(self.open(), 10, 11, 12, 13, branch="gone")
        gone = self.open().delete_branch("gone")
        del self.acknowledged[gone]
        self.commit(self.open(), 1, 10)

    def open(self, files: Files | None = None) -> Repository:
        return Repository(Database.open(LocalStorage(self.folder, files or FailingFiles(-1))))

    def commit(self, repo: Repository, *seeds: int, branch: str = "main") -> None:
        content = arrays(*seeds)
        self.acknowledged[commit(repo, content, branch=branch)] = content

    def check(self) -> None:
        repo = check_whole(LocalStorage(self.folder, FailingFiles(-1)), self.acknowledged)
        self.commit(repo, 1, 99)
        check_no_garbage(repo)
        check_whole(LocalStorage(self.folder, FailingFiles(-1)), self.acknowledged)


MODES = [
    pytest.param({}, id="once"),
    pytest.param({"lasting": True}, id="from then on"),
    pytest.param({"late": True}, id="carried out all the same"),
]


def each_failure(tmp_path: Path, mode: dict[str, bool]) -> Iterator[tuple[Scene, FailingFiles]]:
    """A new scene and one more operation that works, until none fails any more."""
    for at in range(1000):
        scene = Scene(tmp_path / str(at))
        files = FailingFiles(at, **mode)
        yield scene, files
        if files.count <= at:
            assert at > 20
            return


def attempt(act: Callable[[], object]) -> MstoreError | None:
    """The error that `act` ends with, if it does; anything but a MstoreError is passed on."""
    try:
        act()
    except MstoreError as error:
        return error
    return None


@pytest.mark.parametrize("mode", MODES)
def test_a_commit(tmp_path: Path, mode: dict[str, bool]) -> None:
    failed = 0
    for scene, files in each_failure(tmp_path, mode):
        problem = attempt(lambda: scene.commit(scene.open(files), 1, 5, 11))  # noqa: B023
        if problem is not None:
            assert isinstance(problem, StorageError)
            assert str(tmp_path) in problem.message
            failed += 1
        scene.check()
    assert failed > 10


@pytest.mark.parametrize("mode", MODES[:2])
def test_a_gc(tmp_path: Path, mode: dict[str, bool]) -> None:
    failed = 0
    for scene, files in each_failure(tmp_path, mode):
        problem = attempt(lambda: scene.open(files).gc())  # noqa: B023
        if problem is not None:
            assert isinstance(problem, StorageError)
            failed += 1
        scene.check()
    assert failed > 10


def test_a_failed_sync_of_the_log_is_not_called_success(tmp_path: Path) -> None:
    """The root may be there or not; the user must be told, whatever other syncs succeed."""

    class Unsynced(Files):
        def perform(self, operation, path, call, *arguments):  # type: ignore[no-untyped-def]
            if operation == "fsync_dir" and path.name == "roots" and list(path.iterdir()):
                raise OSError(errno.EIO, "Input/output error")
            return super().perform(operation, path, call, *arguments)

    scene = Scene(tmp_path / "repo")
    with pytest.raises(DurabilityError):
        scene.commit(scene.open(Unsynced()), 5)
    scene.check()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 512 KiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", str(disk)]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("mounting is not allowed here")
    yield disk
    # Indexes may still be mapped.
    subprocess.run(["umount", "--lazy", str(disk)], check=True)


def test_a_disk_that_is_really_full(small_disk: Path) -> None:
    """At every free size in steps of 4 KiB; and with room again, all goes on."""
    repo = Repository(Database.create(LocalStorage(small_disk / "repo"), "ada"))
    content = arrays(1, 2)
    acknowledged = {commit(repo, content): content}
    ballast = small_disk / "ballast"
    refused = 0
    for free in range(0, 64 << 10, 4 << 10):
        fill(ballast, free)
        content = arrays(1, 100 + free)
        problem = attempt(lambda: acknowledged.update({commit(repo, content): content}))  # noqa: B023
        if problem is not None:
            refused += 1
            assert isinstance(problem, StorageError)
            assert "disk full" in problem.message
            assert "free some space" in str(problem.hint)
        check_whole(LocalStorage(small_disk / "repo"), acknowledged)
        problem = attempt(repo.gc)
        assert problem is None or "disk full" in problem.message
        check_whole(LocalStorage(small_disk / "repo"), acknowledged)
        ballast.unlink()
    assert refused > 2
    assert len(acknowledged) > 2
    repo = check_whole(LocalStorage(small_disk / "repo"), acknowledged)
    content = arrays(7)
    acknowledged[commit(repo, content)] = content
    check_no_garbage(repo)
    check_whole(LocalStorage(small_disk / "repo"), acknowledged)


def fill(ballast: Path, free: int) -> None:
    """Make a file so large that about `free` bytes are left."""
    with ballast.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            file.truncate(max(0, file.tell() - free))
