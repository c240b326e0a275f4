"""Every operation on files that writes goes through this module, and through one gate in it.

`Files.perform` runs each system call. A test substitutes a subclass that overrides it to record
the operations, to fail one of them with an OSError, or to stop the process in front of one.

A new file is always written the same way: under a temporary name, synced, and only then given its
real name. The temporary is locked (flock) while its writer lives, so that `sweep` can tell what a
dead process left behind from what is being written just now.
"""

import errno
import fcntl
import os
import re
import stat
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Literal, TypeVar, TypeVarTuple

from mstore.errors import DurabilityError, NotFoundError, StorageError
from mstore.ids import Buffer

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

OBJECT_MODE = 0o444
"""Stored objects never change, so nobody may write them, not even their owner by mistake."""

FILE_MODE = 0o666
"""Ordinary files; the user's umask takes away from this."""

READ_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
"""For opening our own files: no link is followed, and a FIFO in their place is not waited for."""

_CREATE = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW
_MAX_BUFFERS: int = os.sysconf("SC_IOV_MAX")
_TEMPORARY_NAME = re.compile(r"\.mstore-[0-9a-f]{32}\.tmp")
_ABANDONED_AFTER = 24 * 3600.0  # seconds; used only where files cannot be locked

_DISK_FULL_HINT = "free some space, then repeat; nothing stored before is harmed"
_EXPLANATIONS = {
    errno.ENOSPC: ("disk full", _DISK_FULL_HINT),
    errno.EDQUOT: ("disk full: the quota is used up", _DISK_FULL_HINT),
    errno.EROFS: ("the file system is read-only", "mount it writable, or use a copy elsewhere"),
    errno.EACCES: ("permission denied", "check who owns it and who may read and write there"),
    errno.EPERM: ("the operation is not permitted", "check who owns it and how it is mounted"),
    errno.EIO: ("input/output error", "the disk or its connection is failing; copy it elsewhere"),
    errno.EMFILE: ("too many open files", "raise the limit with `ulimit -n`"),
    errno.ENAMETOOLONG: ("the name is too long", "use a shorter path"),
}

# What link() says on file systems that cannot give one file two names (exFAT, some network ones).
_NO_HARD_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}
# What fsync() says of a directory where the file system has no such idea.
_NO_DIRECTORY_SYNC = {errno.EINVAL, errno.EOPNOTSUPP}


@dataclass(frozen=True, slots=True)
class OpenFile:
    """A file being written: its present path and its file descriptor."""

    path: Path
    fd: int


@contextmanager
def translate_errors(
    action: str, path: Path, kind: type[StorageError] = StorageError
) -> Iterator[None]:
    """Turn an OSError met while doing `action` ("read", "create", …) to `path` into our own.

    A missing file becomes NotFoundError, everything else `kind`.
    """
    try:
        yield
    except FileNotFoundError as error:
        raise NotFoundError(f"cannot {action} {path}: it does not exist") from error
    except OSError as error:
        reason, hint = _EXPLANATIONS.get(error.errno or 0, (error.strerror or str(error), None))
        raise kind(f"cannot {action} {path}: {reason}", hint=hint) from error


class Files:
    """Writing to a POSIX file system, one method per operation.

    Methods raise StorageError naming the path; DurabilityError when a sync failed, so that data
    may not be on the disk; NotFoundError when a path they need is gone.
    """

    def perform(self, operation: str, path: Path, call: Callable[[*Ts], T], *arguments: *Ts) -> T:
        """Run the system call `call(*arguments)`, which does `operation` to `path`.

        The one gate of all operations, there to be overridden by tests. `operation` is one of
        create, write, fsync, link, rename, unlink, mkdir, fsync_dir. Raises a plain OSError.
        """
        while True:
            # Python itself repeats an interrupted write or fsync, but not link, rename and others.
            with suppress(InterruptedError):
                return call(*arguments)

    # Single operations

    def write(self, file: OpenFile, parts: Sequence[Buffer]) -> None:
        """Write all bytes of `parts`, one after the other."""
        views = (memoryview(part).cast("B") for part in parts)
        waiting = deque(view for view in views if view.nbytes)
        with translate_errors("write", file.path):
            while waiting:
                batch = list(islice(waiting, _MAX_BUFFERS))
                written = self.perform("write", file.path, os.writev, file.fd, batch)
                if not written:
                    raise OSError(errno.EIO, "nothing was written")
                while waiting and written >= waiting[0].nbytes:
                    written -= waiting.popleft().nbytes
                if written:
                    waiting[0] = waiting[0][written:]

    def write_at(self, file: OpenFile, offset: int, data: memoryview) -> None:
        """Write `data` from byte `offset` of the file on. Thread safe."""
        with translate_errors("write", file.path):
            while data.nbytes:
                written = self.perform("write", file.path, os.pwrite, file.fd, data, offset)
                data, offset = data[written:], offset + written

    def fsync(self, file: OpenFile) -> None:
        """Wait until the bytes of `file` are on the disk.

        After a failure the file must be thrown away: the kernel may have dropped what it could
        not write, and would report success if asked again.
        """
        with translate_errors("sync", file.path, DurabilityError):
            self.perform("fsync", file.path, os.fsync, file.fd)

    def link(self, source: Path, target: Path) -> bool:
        """Give the file `source` the second name `target`; False if that name is taken."""
        with translate_errors("create", target):
            try:
                self.perform("link", target, os.link, source, target)
            except FileExistsError:
                # A network file system may have carried out the first of two identical requests.
                return os.path.samestat(os.lstat(source), os.lstat(target))
            except OSError as error:
                if error.errno not in _NO_HARD_LINKS:
                    raise
                raise StorageError(
                    f"cannot create {target}: the file system refuses hard links",
                    hint="keep the repository on a file system that has them, such as ext4 or xfs",
                ) from error
            return True

    def rename(self, source: Path, target: Path) -> None:
        """Give the file `source` the name `target`, replacing what had it."""
        with translate_errors("replace", target):
            self.perform("rename", target, os.replace, source, target)

    def unlink(self, path: Path) -> None:
        """Remove the name `path`; no error if it is not there."""
        with translate_errors("delete", path), suppress(FileNotFoundError):
            self.perform("unlink", path, os.unlink, path)

    def mkdir(self, path: Path) -> bool:
        """Make the directory `path`, its parent being there; False if the name is taken."""
        with translate_errors("make the directory", path):
            try:
                self.perform("mkdir", path, os.mkdir, path)
            except FileExistsError:
                return False
            return True

    def fsync_dir(self, path: Path) -> None:
        """Wait until the names in the directory `path` are on the disk."""
        with translate_errors("sync the directory", path, DurabilityError):
            self.perform("fsync_dir", path, _sync_directory, path)

    # Temporaries

    def create_temporary(self, folder: Path, mode: int = FILE_MODE) -> OpenFile:
        """A new, empty, locked file in `folder` under a random name."""
        while True:
            path = folder / f".mstore-{os.urandom(16).hex()}.tmp"
            with translate_errors("create", path):
                file = OpenFile(path, self.perform("create", path, os.open, path, _CREATE, mode))
            if _try_lock(file.fd) != "taken" and os.fstat(file.fd).st_nlink:
                return file
            # A sweep came between creating and locking, and has removed it or is about to.
            self.discard(file)

    def discard(self, file: OpenFile) -> None:
        """Remove the name under which `file` was written, and close it; raises nothing.

        What cannot be removed now is removed by a later sweep.
        """
        with suppress(StorageError):
            self.unlink(file.path)
        close(file.fd)

    @contextmanager
    def temporary(
        self, folder: Path, parts: Sequence[Buffer], mode: int = FILE_MODE
    ) -> Iterator[Path]:
        """A new file in `folder` that holds `parts`, synced; the name is gone after the block.

        In the block it is given its real name with `link` or `rename`.
        """
        try:
            file = self._write_temporary(folder, parts, mode)
        except DurabilityError:
            # That file is lost, see `fsync`, but the bytes are still here: write another one.
            file = self._write_temporary(folder, parts, mode)
        try:
            yield file.path
        finally:
            self.discard(file)

    def _write_temporary(self, folder: Path, parts: Sequence[Buffer], mode: int) -> OpenFile:
        file = self.create_temporary(folder, mode)
        try:
            self.write(file, parts)
            self.fsync(file)
        except BaseException:
            self.discard(file)
            raise
        return file

    def replace_file(self, path: Path, data: Buffer) -> None:
        """Make `path` hold `data`, durably; at every moment it holds either the old or the new."""
        with self.temporary(path.parent, [data]) as temporary:
            self.rename(temporary, path)
        self.fsync_dir(path.parent)

    def sweep(self, folder: Path) -> int:
        """Remove the temporaries in `folder` whose writers are dead; returns bytes freed.

        Only files named by `create_temporary` are ever touched. A missing folder is empty.
        """
        try:
            with translate_errors("list", folder):
                names = sorted(name for name in os.listdir(folder) if is_temporary(name))
        except NotFoundError:
            return 0
        return sum(self._sweep_file(folder / name) for name in names)

    def _sweep_file(self, path: Path) -> int:
        try:
            fd = os.open(path, READ_FLAGS)
        except OSError:
            return 0  # gone meanwhile, or somebody else's
        try:
            lock = _try_lock(fd)
            info = os.fstat(fd)
            young = time.time() - info.st_mtime < _ABANDONED_AFTER
            if lock == "taken" or (lock == "unsupported" and young):
                return 0
            if not stat.S_ISREG(info.st_mode):
                return 0
            self.unlink(path)
            # With a second name its writer died after creating the object, which stays.
            return info.st_size if info.st_nlink == 1 else 0
        finally:
            close(fd)


FILES = Files()
"""The operations as they are; what every writer uses outside tests."""


def is_temporary(name: str) -> bool:
    """Whether a file of this name is one of ours that is being written, or was left behind."""
    return _TEMPORARY_NAME.fullmatch(name) is not None


def close(fd: int) -> None:
    """Close a file; raises nothing.

    What close() could complain about was read whole, synced before, or is thrown away.
    """
    with suppress(OSError):
        os.close(fd)


def _sync_directory(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    except OSError as error:
        if error.errno not in _NO_DIRECTORY_SYNC:
            raise
    finally:
        close(fd)


def _try_lock(fd: int) -> Literal["held", "taken", "unsupported"]:
    """Take the exclusive lock of an open file without waiting; closing the file gives it back."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return "taken"
    except OSError:
        return "unsupported"
    return "held"
