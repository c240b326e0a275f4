"""Single operations, errors in words, replacing a file, sweeping."""

import errno
import fcntl
import os
import stat
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mstore.errors import DurabilityError, NotFoundError, StorageError
from mstore.storage import files as files_module
from mstore.storage.files import FILES, Files, OpenFile, is_temporary, translate_errors


class ShortWrites(Files):
    """Writes at most `step` bytes at a time, and is interrupted in front of each."""

    def __init__(self, step: int) -> None:
        self.step = step
        self.calls = 0

    def perform(self, operation, path, call, *arguments):
        if operation != "write":
            return super().perform(operation, path, call, *arguments)
        fd, buffers = arguments
        interrupted = False

        def write_some():
            nonlocal interrupted
            if not interrupted:
                interrupted = True
                raise InterruptedError(errno.EINTR, "interrupted")
            self.calls += 1
            return os.write(fd, b"".join(buffers)[: self.step])

        return super().perform(operation, path, write_some)


class Failing(Files):
    """Fails the operations named, each as often as it is listed, with the error given."""

    def __init__(self, code: int, *operations: str) -> None:
        self.code = code
        self.failing = list(operations)

    def perform(self, operation, path, call, *arguments):
        if operation in self.failing:
            self.failing.remove(operation)
            raise OSError(self.code, os.strerror(self.code))
        return super().perform(operation, path, call, *arguments)


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def is_locked(path: Path) -> bool:
    fd = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


class TestWrite:
    @given(st.lists(st.binary(max_size=9), max_size=12), st.integers(1, 20))
    def test_short_and_interrupted_writes_lose_nothing(self, parts, step):
        # A pipe stands for the file: no directory is needed for each example.
        reader, writer = os.pipe()
        try:
            files = ShortWrites(step)
            files.write(OpenFile(Path("pipe"), writer), parts)
            os.close(writer)
            assert os.read(reader, 1000) == b"".join(parts)
            assert files.calls >= len(b"".join(parts)) / step
        finally:
            os.close(reader)

    def test_more_buffers_than_one_call_takes(self, tmp_path):
        parts = [b"%d," % number for number in range(3 * os.sysconf("SC_IOV_MAX") + 1)]
        with FILES.temporary(tmp_path, parts) as path:
            assert path.read_bytes() == b"".join(parts)

    def test_a_write_that_writes_nothing_is_an_error(self, tmp_path):
        with (
            pytest.raises(StorageError, match="input/output error"),
            ShortWrites(0).temporary(tmp_path, [b"abc"]),
        ):
            pass
        assert names(tmp_path) == []


class TestErrors:
    @pytest.mark.parametrize(
        ("code", "words"),
        [
            (errno.ENOSPC, "disk full"),
            (errno.EDQUOT, "quota"),
            (errno.EROFS, "read-only"),
            (errno.EACCES, "permission denied"),
            (errno.EIO, "input/output error"),
            (errno.EMFILE, "ulimit"),
        ],
    )
    def test_words_path_and_next_step(self, code, words):
        with (
            pytest.raises(StorageError, match=words) as caught,
            translate_errors("write", Path("/some/where")),
        ):
            raise OSError(code, "technical words")
        assert "cannot write /some/where" in str(caught.value)
        assert caught.value.hint
        assert caught.value.__cause__.errno == code

    def test_an_error_without_words_of_ours(self):
        with (
            pytest.raises(StorageError, match=r"cannot write x: Stale file handle"),
            translate_errors("write", Path("x")),
        ):
            raise OSError(errno.ESTALE, "Stale file handle")

    def test_kinds(self):
        with pytest.raises(NotFoundError), translate_errors("read", Path("x")):
            raise FileNotFoundError(errno.ENOENT, "No such file or directory")
        with pytest.raises(DurabilityError), translate_errors("sync", Path("x"), DurabilityError):
            raise OSError(errno.EIO, "Input/output error")

    @pytest.mark.parametrize("operation", ["link", "rename", "unlink", "mkdir", "fsync_dir"])
    def test_every_operation_names_its_path(self, tmp_path, operation):
        target = tmp_path / "target"
        files = Failing(errno.EIO, operation)
        arguments = (tmp_path / "source", target) if operation in ("link", "rename") else (target,)
        with pytest.raises(StorageError) as caught:
            getattr(files, operation)(*arguments)
        assert str(target) in str(caught.value)
        assert isinstance(caught.value, DurabilityError) == (operation == "fsync_dir")


class TestLink:
    def test_a_taken_name(self, tmp_path):
        (tmp_path / "a").write_text("a")
        (tmp_path / "b").write_text("b")
        assert FILES.link(tmp_path / "a", tmp_path / "b") is False
        assert (tmp_path / "b").read_text() == "b"

    def test_carried_out_twice_by_the_network(self, tmp_path):
        (tmp_path / "a").write_text("a")
        (tmp_path / "b").hardlink_to(tmp_path / "a")
        assert FILES.link(tmp_path / "a", tmp_path / "b") is True

    def test_no_hard_links(self, tmp_path):
        with pytest.raises(StorageError, match="hard links") as caught:
            Failing(errno.EPERM, "link").link(tmp_path / "a", tmp_path / "b")
        assert "ext4" in caught.value.hint

    def test_source_gone(self, tmp_path):
        with pytest.raises(NotFoundError):
            FILES.link(tmp_path / "a", tmp_path / "b")


class TestDirectories:
    def test_mkdir_tells_whether_it_made_it(self, tmp_path):
        assert FILES.mkdir(tmp_path / "a") is True
        assert FILES.mkdir(tmp_path / "a") is False
        with pytest.raises(NotFoundError):
            FILES.mkdir(tmp_path / "b" / "c")

    def test_fsync_dir_wants_a_directory(self, tmp_path):
        FILES.fsync_dir(tmp_path)
        (tmp_path / "file").touch()
        with pytest.raises(DurabilityError):
            FILES.fsync_dir(tmp_path / "file")

    def test_a_file_system_that_cannot_sync_directories(self, tmp_path, monkeypatch):
        def refuse(code):
            def fsync(fd):
                raise OSError(code, os.strerror(code))

            return fsync

        monkeypatch.setattr(os, "fsync", refuse(errno.EINVAL))
        FILES.fsync_dir(tmp_path)
        monkeypatch.setattr(os, "fsync", refuse(errno.EIO))
        with pytest.raises(DurabilityError):
            FILES.fsync_dir(tmp_path)


class TestTemporary:
    def test_is_there_locked_and_gone_afterwards(self, tmp_path):
        with FILES.temporary(tmp_path, [b"ab", b"c"], 0o444) as path:
            assert path.read_bytes() == b"abc"
            assert is_temporary(path.name)
            assert stat.S_IMODE(path.stat().st_mode) & 0o222 == 0
            assert is_locked(path)
        assert names(tmp_path) == []

    def test_gone_after_an_error_in_the_block(self, tmp_path):
        with pytest.raises(KeyboardInterrupt), FILES.temporary(tmp_path, [b"abc"]):
            raise KeyboardInterrupt
        assert names(tmp_path) == []

    def test_what_cannot_be_removed_does_not_hide_the_error(self, tmp_path):
        files = Failing(errno.ENOSPC, "write", "unlink")
        with (
            pytest.raises(StorageError, match="disk full"),
            files.temporary(tmp_path, [b"abc"]),
        ):
            pass
        assert FILES.sweep(tmp_path) == 0
        assert names(tmp_path) == []

    def test_no_file_stays_open(self, tmp_path):
        before = len(os.listdir("/proc/self/fd"))
        for code, operation in [(errno.ENOSPC, "write"), (errno.EIO, "fsync"), (errno.EIO, "none")]:
            try:
                with Failing(code, operation, operation).temporary(tmp_path, [b"abc"]):
                    pass
            except StorageError:
                pass
        FILES.fsync_dir(tmp_path)
        FILES.sweep(tmp_path)
        assert len(os.listdir("/proc/self/fd")) == before

    def test_swept_between_creating_and_locking(self, tmp_path):
        """The writer notices, and takes another name."""

        class Swept(Files):
            created = 0

            def perform(self, operation, path, call, *arguments):
                result = super().perform(operation, path, call, *arguments)
                if operation == "create":
                    self.created += 1
                    if self.created < 3:
                        FILES.sweep(path.parent)
                return result

        files = Swept()
        with files.temporary(tmp_path, [b"abc"]) as path:
            assert path.read_bytes() == b"abc"
        assert files.created == 3

    def test_taken_by_a_sweep_that_stands_still(self, tmp_path):
        """A stopped sweeper holds the lock of a file just made: nobody waits for it."""
        held = []

        class Stopped(Files):
            def perform(self, operation, path, call, *arguments):
                result = super().perform(operation, path, call, *arguments)
                if operation == "create" and not held:
                    held.append(os.open(path, os.O_RDONLY))
                    fcntl.flock(held[0], fcntl.LOCK_EX)
                return result

        with Stopped().temporary(tmp_path, [b"abc"]) as path:
            assert path.read_bytes() == b"abc"
        assert names(tmp_path) == []
        os.close(held[0])


class TestReplaceFile:
    def test_new_and_old(self, tmp_path):
        path = tmp_path / "HEAD"
        FILES.replace_file(path, b"one")
        FILES.replace_file(path, b"two")
        assert path.read_bytes() == b"two"
        assert names(tmp_path) == ["HEAD"]
        assert path.stat().st_mode & 0o200

    @pytest.mark.parametrize("operation", ["create", "write", "fsync", "rename"])
    def test_a_failure_leaves_the_old(self, tmp_path, operation):
        path = tmp_path / "HEAD"
        path.write_bytes(b"old")
        with pytest.raises(StorageError):
            Failing(errno.EIO, operation, operation).replace_file(path, b"new")
        assert path.read_bytes() == b"old"
        assert names(tmp_path) == ["HEAD"]

    def test_a_link_is_replaced_not_followed(self, tmp_path):
        (tmp_path / "elsewhere").write_bytes(b"mine")
        (tmp_path / "HEAD").symlink_to("elsewhere")
        FILES.replace_file(tmp_path / "HEAD", b"new")
        assert (tmp_path / "elsewhere").read_bytes() == b"mine"
        assert (tmp_path / "HEAD").read_bytes() == b"new"


class TestSweep:
    def test_only_our_own_dead_files(self, tmp_path):
        dead = tmp_path / f".mstore-{'0' * 32}.tmp"
        dead.write_bytes(b"12345")
        (tmp_path / f".mstore-{'1' * 32}.tmp").mkdir()
        (tmp_path / f".mstore-{'2' * 32}.tmp").symlink_to("precious.tmp")
        os.mkfifo(tmp_path / f".mstore-{'3' * 32}.tmp")
        (tmp_path / "precious.tmp").write_bytes(b"mine")
        with FILES.temporary(tmp_path, [b"alive"]) as alive:
            assert FILES.sweep(tmp_path) == 5
            assert alive.exists()
        assert not dead.exists()
        assert len(names(tmp_path)) == 4
        assert (tmp_path / "precious.tmp").read_bytes() == b"mine"

    def test_of_nothing(self, tmp_path):
        assert FILES.sweep(tmp_path / "missing") == 0

    def test_a_second_name_frees_nothing(self, tmp_path):
        dead = tmp_path / f".mstore-{'0' * 32}.tmp"
        dead.write_bytes(b"12345")
        (tmp_path / "object").hardlink_to(dead)
        assert FILES.sweep(tmp_path) == 0
        assert names(tmp_path) == ["object"]

    def test_without_locks_only_the_old(self, tmp_path, monkeypatch):
        def no_locks(fd, operation):
            raise OSError(errno.ENOLCK, "No locks available")

        monkeypatch.setattr(files_module.fcntl, "flock", no_locks)
        young = tmp_path / f".mstore-{'0' * 32}.tmp"
        old = tmp_path / f".mstore-{'1' * 32}.tmp"
        young.write_bytes(b"12345")
        old.write_bytes(b"123")
        day_ago = time.time() - 25 * 3600
        os.utime(old, (day_ago, day_ago))
        assert FILES.sweep(tmp_path) == 3
        assert names(tmp_path) == [young.name]
        with FILES.temporary(tmp_path, [b"works all the same"]) as path:
            assert path.exists()
