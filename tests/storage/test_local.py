"""What only a directory does: order of operations, failures, crashes, odd things in the way."""

import errno
import os
import signal
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from mstore.errors import CorruptDataError, DurabilityError, NotFoundError, StorageError
from mstore.storage.files import Files, is_temporary
from mstore.storage.local import LocalStorage


class Recording(Files):
    """Notes every operation as "name path", temporaries as TEMP; `hooks` run in front of them."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.log: list[str] = []
        self.hooks = {}

    def perform(self, operation, path, call, *arguments):
        name = "TEMP" if path.suffix == ".tmp" else os.path.relpath(path, self.base)
        self.log.append(f"{operation} {name}")
        if operation in self.hooks:
            self.hooks[operation](path)
        return super().perform(operation, path, call, *arguments)


class FailNth:
    """A hook that raises the error `code` at its calls number `numbers`, counted from 1."""

    def __init__(self, code: int, *numbers: int) -> None:
        self.code = code
        self.numbers = numbers
        self.calls = 0

    def __call__(self, path: Path) -> None:
        self.calls += 1
        if self.calls in self.numbers:
            raise OSError(self.code, os.strerror(self.code))


@pytest.fixture
def files(tmp_path: Path) -> Recording:
    return Recording(tmp_path)


@pytest.fixture
def storage(tmp_path: Path, files: Recording) -> LocalStorage:
    """A storage with one object; the record starts after it."""
    storage = LocalStorage(tmp_path / "repo", files)
    storage.put("data/first", [b"first"])
    files.log.clear()
    return storage


def everything(folder: Path) -> list[str]:
    """Relative paths of all that is no directory."""
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if not p.is_dir())


PUT = ["create TEMP", "write TEMP", "fsync TEMP", "link {}", "unlink TEMP", "fsync_dir repo/data"]


class TestOrder:
    def test_of_the_first_put(self, tmp_path, files):
        LocalStorage(tmp_path / "repo", files).put("data/a", [b"x"])
        assert files.log == [
            "mkdir repo",
            "fsync_dir .",
            "mkdir repo/data",
            "fsync_dir repo",
            "mkdir repo/tmp",
            "fsync_dir repo",
            *[step.format("repo/data/a") for step in PUT],
        ]

    def test_of_a_later_put(self, storage, files):
        storage.put("data/b", [b"x", b"y"])
        assert files.log == [step.format("repo/data/b") for step in PUT]

    def test_directories_another_process_made_are_synced_too(self, storage, tmp_path, files):
        LocalStorage(tmp_path / "repo", files).put("data/b", [b"x"])
        assert [step for step in files.log if step.startswith("fsync_dir")] == [
            "fsync_dir .",
            "fsync_dir repo",
            "fsync_dir repo",
            "fsync_dir repo/data",
        ]

    def test_a_parent_closed_to_us_is_passed_over_but_never_the_repository_itself(
        self, storage, tmp_path, files, monkeypatch
    ):
        monkeypatch.setattr(os, "access", lambda path, mode: False)
        LocalStorage(tmp_path / "repo", files).put("data/b", [b"x"])
        assert [step for step in files.log if step.startswith("fsync_dir")] == [
            "fsync_dir repo",
            "fsync_dir repo",
            "fsync_dir repo/data",
        ]

    def test_of_replacing_a_file(self, files, tmp_path):
        files.replace_file(tmp_path / "HEAD", b"x")
        assert files.log == [
            "create TEMP",
            "write TEMP",
            "fsync TEMP",
            "rename HEAD",
            "unlink TEMP",
            "fsync_dir .",
        ]

    def test_missing_directories_above_the_root(self, tmp_path, files):
        LocalStorage(tmp_path / "x" / "y" / "repo", files).put("a", [b"x"])
        made = [step for step in files.log if step.startswith(("mkdir", "fsync_dir"))]
        assert made == [
            "mkdir x/y/repo",
            "mkdir x/y",
            "mkdir x",
            "fsync_dir .",
            "mkdir x/y",
            "fsync_dir x",
            "mkdir x/y/repo",
            "fsync_dir x/y",
            "mkdir x/y/repo/tmp",
            "fsync_dir x/y/repo",
            "fsync_dir x/y/repo",
        ]

    def test_of_a_lost_race(self, storage, files):
        assert storage.put("data/first", [b"second"]) is False
        assert files.log == [step.format("repo/data/first") for step in PUT]

    def test_delete(self, storage, files):
        storage.delete("data/first")
        assert files.log == ["unlink repo/data/first"]

    def test_reading_writes_nothing(self, tmp_path, files):
        storage = LocalStorage(tmp_path / "repo", files)
        assert list(storage.list("data/")) == []
        assert storage.head("data/a") is None
        with pytest.raises(NotFoundError):
            storage.get("data/a")
        storage.delete("data/a")
        assert storage.sweep() == 0
        assert files.log == ["unlink repo/data/a"]
        assert not (tmp_path / "repo").exists()


class TestFailures:
    @pytest.mark.parametrize("operation", ["create", "write", "link"])
    @pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EROFS, errno.EDQUOT])
    def test_nothing_is_left(self, storage, files, tmp_path, operation, code):
        files.hooks[operation] = FailNth(code, 1)
        with pytest.raises(StorageError) as caught:
            storage.put("data/a", [b"x"])
        assert str(tmp_path / "repo") in str(caught.value)
        assert everything(tmp_path) == ["repo/data/first"]
        assert storage.put("data/a", [b"x"]) is True

    def test_a_failed_fsync_is_not_repeated_but_the_file_written_anew(self, storage, files):
        written = []
        files.hooks["create"] = written.append
        files.hooks["fsync"] = FailNth(errno.EIO, 1)
        assert storage.put("data/a", [b"abc"]) is True
        steps = ["create TEMP", "write TEMP", "fsync TEMP"]
        rest = [step.format("repo/data/a") for step in PUT[3:]]
        assert files.log == [*steps, "unlink TEMP", *steps, *rest]
        assert written[0] != written[1]
        assert storage.get("data/a") == b"abc"

    @pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC, errno.EDQUOT])
    def test_a_second_failed_fsync(self, storage, files, tmp_path, code):
        files.hooks["fsync"] = FailNth(code, 1, 2)
        with pytest.raises(DurabilityError):
            storage.put("data/a", [b"abc"])
        assert files.hooks["fsync"].calls == 2
        assert everything(tmp_path) == ["repo/data/first"]

    def test_a_failed_directory_sync(self, storage, files):
        files.hooks["fsync_dir"] = FailNth(errno.EIO, 1)
        with pytest.raises(DurabilityError, match="repo/data"):
            storage.put("data/a", [b"abc"])
        assert files.hooks["fsync_dir"].calls == 1

    def test_a_failed_sync_of_a_new_directory_is_tried_again_by_the_next_put(self, tmp_path, files):
        storage = LocalStorage(tmp_path / "repo", files)
        files.hooks["fsync_dir"] = FailNth(errno.EIO, 2)
        with pytest.raises(DurabilityError, match="repo"):
            storage.put("data/a", [b"abc"])
        files.log.clear()
        assert storage.put("data/a", [b"abc"]) is True
        assert files.log[:2] == ["mkdir repo/data", "fsync_dir repo"]

    def test_a_vanished_temporary_is_written_again(self, storage, files):
        def vanish_once(path):
            del files.hooks["link"]
            for temporary in (path.parents[1] / "tmp").iterdir():
                temporary.unlink()

        files.hooks["link"] = vanish_once
        assert storage.put("data/a", [b"abc"]) is True
        assert storage.get("data/a") == b"abc"
        assert files.log.count("write TEMP") == 2

    def test_everything_vanishes_all_the_time(self, storage, files):
        def vanish(path):
            for temporary in (path.parents[1] / "tmp").iterdir():
                temporary.unlink()

        files.hooks["link"] = vanish
        with pytest.raises(StorageError, match="vanish"):
            storage.put("data/a", [b"abc"])

    def test_the_repository_was_deleted_and_is_made_again(self, storage, tmp_path):
        (tmp_path / "repo").rename(tmp_path / "away")
        assert storage.put("data/a", [b"abc"]) is True
        assert everything(tmp_path / "repo") == ["data/a"]

    def test_a_temporary_that_cannot_be_removed_does_no_harm(self, storage, files, tmp_path):
        files.hooks["unlink"] = FailNth(errno.EIO, 1)
        assert storage.put("data/a", [b"abc"]) is True
        assert len(everything(tmp_path / "repo" / "tmp")) == 1
        assert storage.sweep() == 0  # the bytes are those of the object
        assert everything(tmp_path / "repo") == ["data/a", "data/first"]
        assert storage.get("data/a") == b"abc"

    def test_errors_while_reading(self, storage, monkeypatch):
        def fail(*arguments):
            raise OSError(errno.EIO, os.strerror(errno.EIO))

        monkeypatch.setattr(os, "pread", fail)
        with pytest.raises(StorageError, match=r"cannot read .*data/first: input/output error"):
            storage.get("data/first")

    def test_complaints_of_close_are_no_errors(self, storage, monkeypatch):
        """Nothing depends on close: what it could report was synced or read before."""
        really_close = os.close

        def close(fd):
            really_close(fd)
            raise OSError(errno.EIO, os.strerror(errno.EIO))

        monkeypatch.setattr(os, "close", close)
        assert storage.put("data/a", [b"abc"]) is True
        assert storage.get("data/a") == storage.view("data/a") == b"abc"
        assert storage.sweep() == 0

    def test_reads_that_give_less_than_asked(self, storage, monkeypatch):
        pread = os.pread
        monkeypatch.setattr(os, "pread", lambda fd, n, at: pread(fd, min(n, 2), at))
        assert storage.get("data/first") == b"first"
        assert storage.get("data/first", 1, 3) == b"irs"

    def test_a_place_that_cannot_map_files(self, storage, monkeypatch):
        def fail(*arguments, **options):
            raise OSError(errno.ENODEV, os.strerror(errno.ENODEV))

        monkeypatch.setattr("mmap.mmap", fail)
        assert storage.view("data/first") == b"first"

    def test_the_root_is_a_file(self, tmp_path):
        (tmp_path / "file").write_text("mine")
        storage = LocalStorage(tmp_path / "file")
        for action in (
            lambda: storage.put("data/a", [b"x"]),
            lambda: storage.get("data/a"),
            lambda: storage.head("data/a"),
            lambda: list(storage.list("data/")),
            storage.sweep,
        ):
            with pytest.raises(StorageError, match="file"):
                action()
        assert (tmp_path / "file").read_text() == "mine"


class TestOnDisk:
    def test_objects_are_plain_read_only_files(self, storage, tmp_path):
        path = tmp_path / "repo" / "data" / "first"
        assert path.read_bytes() == b"first"
        assert stat.S_IMODE(path.stat().st_mode) & 0o222 == 0
        assert path.stat().st_nlink == 1

    def test_list_passes_over_what_is_not_ours(self, storage, tmp_path):
        folder = tmp_path / "repo" / "data"
        (folder / "README.md").touch()
        (folder / ".hidden").touch()
        (folder / "Upper").mkdir()
        (folder / "Upper" / "a").touch()
        (folder / "link").symlink_to("first")
        (folder / "linked").symlink_to("/etc")
        os.mkfifo(folder / "fifo")
        assert [info.key for info in storage.list("data/")] == ["data/first"]

    def test_an_object_deleted_while_listing(self, storage, tmp_path, monkeypatch):
        class Entry:
            name = "ghost"

            def is_dir(self, follow_symlinks):
                return False

            def is_file(self, follow_symlinks):
                return True

            def stat(self, follow_symlinks):
                raise FileNotFoundError

        scandir = os.scandir

        class Entries:
            def __init__(self, path):
                self.real = scandir(path)

            def __enter__(self):
                return [Entry(), *self.real]

            def __exit__(self, *error):
                self.real.close()

        monkeypatch.setattr(os, "scandir", Entries)
        assert [info.key for info in storage.list("data/")] == ["data/first"]

    def test_the_root_may_be_a_symbolic_link(self, storage, tmp_path):
        (tmp_path / "link").symlink_to("repo")
        linked = LocalStorage(tmp_path / "link")
        assert linked.put("data/b", [b"x"]) is True
        assert storage.get("data/b") == b"x"


def make_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))


ODD_THINGS = {
    "directory": lambda path: path.mkdir(),
    "fifo": lambda path: os.mkfifo(path),
    "link to a file": lambda path: path.symlink_to("first"),
    "link outside": lambda path: path.symlink_to("/etc/hostname"),
    "dangling link": lambda path: path.symlink_to("nowhere"),
    "link to itself": lambda path: path.symlink_to(path.name),
    "socket": make_socket,
}


class TestOddThings:
    @pytest.mark.parametrize("make", ODD_THINGS.values(), ids=ODD_THINGS.keys())
    def test_in_the_place_of_an_object(self, storage, tmp_path, make, monkeypatch):
        monkeypatch.chdir(tmp_path)
        path = tmp_path / "repo" / "data" / "odd"
        make(path)
        for action in (
            lambda: storage.get("data/odd"),
            lambda: storage.view("data/odd"),
            lambda: storage.head("data/odd"),
            lambda: storage.put("data/odd", [b"x"]),
        ):
            with pytest.raises(CorruptDataError, match="repo/data/odd") as caught:
                action()
            assert caught.value.hint
        assert everything(tmp_path / "repo" / "tmp") == []
        assert path.lstat()

    @pytest.mark.parametrize("kind", ["link", "file"])
    def test_in_the_place_of_a_folder(self, storage, tmp_path, kind):
        """A folder that is a link would let gc delete files outside the repository."""
        outside = tmp_path / "outside"
        outside.mkdir()
        (outside / "precious").write_text("mine")
        for name in ("linked", "tmp"):
            path = tmp_path / "repo" / name
            if path.exists():
                path.rmdir()
            if kind == "link":
                path.symlink_to(outside)
            else:
                path.write_text("no folder")
        for action in (
            lambda: storage.get("linked/precious"),
            lambda: storage.view("linked/precious"),
            lambda: storage.head("linked/precious"),
            lambda: storage.put("linked/new", [b"x"]),
            lambda: storage.put("linked/deeper/new", [b"x"]),
            lambda: storage.delete("linked/precious"),
            lambda: list(storage.list("linked/")),
            storage.sweep,
        ):
            with pytest.raises(CorruptDataError, match="not a directory"):
                action()
        assert everything(outside) == ["precious"]


WRITER = """
import sys, time
from pathlib import Path
from mstore.storage.files import Files
from mstore.storage.local import LocalStorage

class Stops(Files):
    def perform(self, operation, path, call, *arguments):
        if operation == sys.argv[2]:
            print("here", flush=True)
            time.sleep(60)
        return super().perform(operation, path, call, *arguments)

LocalStorage(Path(sys.argv[1]), Stops()).put("data/killed", [b"x" * 1000])
"""


class TestKill:
    @pytest.mark.parametrize(
        ("operation", "freed"), [("write", 0), ("fsync", 1000), ("link", 1000)]
    )
    def test_a_dead_writers_file_is_swept_a_live_ones_stays(
        self, storage, tmp_path, operation, freed
    ):
        root = tmp_path / "repo"
        child = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(root), operation], stdout=subprocess.PIPE
        )
        try:
            assert child.stdout.readline() == b"here\n"
            assert storage.sweep() == 0
            assert len(everything(root / "tmp")) == 1, "the file of a live writer was taken"
        finally:
            child.send_signal(signal.SIGKILL)
            child.wait()
            child.stdout.close()
        first, temporary = everything(root)
        assert (first, is_temporary(Path(temporary).name)) == ("data/first", True)
        assert storage.head("data/killed") is None
        assert [info.key for info in storage.list("data/")] == ["data/first"]
        assert storage.sweep() == freed
        assert everything(root) == ["data/first"]
        assert storage.put("data/killed", [b"again"]) is True

    def test_killed_after_the_link(self, storage, tmp_path):
        """The object is there, whole; the second name goes."""
        root = tmp_path / "repo"
        child = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(root), "unlink"], stdout=subprocess.PIPE
        )
        try:
            assert child.stdout.readline() == b"here\n"
        finally:
            child.send_signal(signal.SIGKILL)
            child.wait()
            child.stdout.close()
        assert storage.get("data/killed") == b"x" * 1000
        assert storage.sweep() == 0
        assert everything(root) == ["data/first", "data/killed"]


class TestRealDisks:
    @pytest.fixture
    def tiny(self, tmp_path):
        """A file system of 64 KiB."""
        place = tmp_path / "tiny"
        place.mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(place)]
        if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
            pytest.skip("mounting needs root")
        yield place
        subprocess.run(["umount", "-l", str(place)], check=True)

    def test_full(self, tiny):
        storage = LocalStorage(tiny / "repo")
        storage.put("data/small", [b"x" * 5000])
        with pytest.raises(StorageError, match="disk full") as caught:
            storage.put("data/large", [b"x" * 30_000] * 3)
        assert "free some space" in caught.value.hint
        assert everything(tiny / "repo") == ["data/small"]
        assert storage.put("data/middle", [b"x" * 30_000]) is True

    def test_read_only(self, tiny):
        storage = LocalStorage(tiny / "repo")
        storage.put("data/a", [b"abc"])
        subprocess.run(["mount", "-o", "remount,ro", str(tiny)], check=True)
        reopened = LocalStorage(tiny / "repo")
        assert reopened.get("data/a") == b"abc"
        assert reopened.view("data/a") == b"abc"
        assert [info.key for info in reopened.list("data/")] == ["data/a"]
        assert reopened.sweep() == 0
        for action in (
            lambda: reopened.put("data/b", [b"x"]),
            lambda: reopened.put("other/b", [b"x"]),
            lambda: reopened.delete("data/a"),
        ):
            with pytest.raises(StorageError, match="read-only"):
                action()
        with pytest.raises(StorageError, match="read-only"):
            LocalStorage(tiny / "new").put("data/a", [b"x"])
