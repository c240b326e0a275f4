"""Describe every file of a folder under watch: python watched.py FOLDER [PARSER]

Prints one JSON object for each file: which format it was taken for, what came of it, and what it
cost. While a file is described, an audit hook (PEP 578) notes and forbids everything that Python
reports but the few events that do nothing: an import, `exec`, a process, a socket, a file that is
opened elsewhere. So no list of what is dangerous has to be complete.

PARSER is one of `bad_parsers.py`, put before all others, by which the watch itself is tested.
"""

import codecs
import importlib
import json
import os
import pkgutil
import resource
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from table import HARMFUL

from mstore import formats
from mstore.errors import MstoreError
from mstore.formats import detect, hdf5_process
from mstore.formats.base import Format
from mstore.sources import FileSource, Folder, FolderOf

HARMLESS = {"builtins.id", "object.__getattr__", "sys._getframe"}
"""Events of things that only look."""

STARTS_PROCESS = str(Path(formats.__file__).with_name("hdf5_process.py"))
"""The only module that may start a process, and only one: h5py reads in forks of it, with limits."""

WORKER = str(Path(formats.__file__).with_name("hdf5_worker.py"))

OF_PROCESS = {
    *("socket.__new__", "socket.sendmsg", "array.__new__"),
    *("subprocess.Popen", "os.posix_spawn", "open"),
}
"""What starting one and asking it for forks takes; only the null device is opened."""

OF_WORKER = 96 << 20
"""Bytes that Python, numpy and h5py take in the worker of HDF5, whatever the file."""

CPU_SECONDS = 30
"""What ends the whole process, should a parser never end by itself."""


class Forbidden(BaseException):
    """What a parser did; no `except Exception` catches it."""


class Watch:
    """Notes what is done while it looks on."""

    def __init__(self, folder: Path) -> None:
        self.folder = os.path.realpath(folder)
        self.looking = False
        self.seen: list[str] = []
        sys.addaudithook(self._hear)

    @contextmanager
    def over(self) -> Iterator[list[str]]:
        """Look on, and forbid; gives what was noted."""
        self.seen = []
        self.looking = True
        try:
            yield self.seen
        finally:
            self.looking = False

    def _hear(self, event: str, arguments: tuple[object, ...]) -> None:
        if not self.looking or event in HARMLESS:
            return
        self.looking = False  # what is done here is not the parser's
        try:
            if not self._allowed(event, arguments):
                self.seen.append(f"{event}: {arguments!r:.200}")
                raise Forbidden(event)
        finally:
            self.looking = True

    def _allowed(self, event: str, arguments: tuple[object, ...]) -> bool:
        """Reading the folder of the file is allowed, and what starts the worker of HDF5."""
        if event in ("open", "os.scandir", "os.listdir"):
            if isinstance(arguments[0], int):  # a file that is open already
                return True
            path, writes = os.path.realpath(arguments[0]), False  # type: ignore[arg-type]
            if event == "open":
                _, mode, flags = arguments
                assert isinstance(flags, int)
                writes = bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)) or "w" in str(mode)
            if not writes and self.folder in (path, path.rpartition(os.sep)[0]):
                return True
        return event in OF_PROCESS and _starts_worker(event, arguments)


def _starts_worker(event: str, arguments: tuple[object, ...]) -> bool:
    """Whether this belongs to the start of the worker of HDF5."""
    if event == "socket.__new__" and arguments[1] != socket.AF_UNIX:
        return False
    if event == "subprocess.Popen":
        executable, words = arguments[:2]
        assert isinstance(words, list)
        return executable == sys.executable and WORKER in words
    if event == "open" and arguments[0] != os.devnull:
        return False
    frame = sys._getframe()
    while frame is not None:
        if frame.f_code.co_filename == STARTS_PROCESS:
            return True
        frame = frame.f_back
    return False


def main() -> None:
    """Describe each file once, in the order of their names."""
    folder = Path(sys.argv[1])
    if len(sys.argv) > 2:
        import bad_parsers

        detect.FORMATS.insert(0, getattr(bad_parsers, sys.argv[2])())
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS))
    _warm_up()
    watch = Watch(folder)
    for path in sorted(folder.iterdir()):
        if path.is_file():
            print(json.dumps(_described(path, watch)), flush=True)


def _warm_up() -> None:
    """Import all that parsers import late, so that any import while they run is the file's doing."""
    for module in pkgutil.iter_modules(formats.__path__):
        if not module.name.endswith("_worker"):  # these run in processes of their own
            importlib.import_module(f"mstore.formats.{module.name}")
    for name in ("cp437", "latin-1", "raw_unicode_escape"):  # codecs are modules, too
        codecs.lookup(name)


def _described(path: Path, watch: Watch) -> dict[str, object]:
    source = FileSource(path)
    beside = FolderOf(Folder(path.parent), path.name)
    _forget_peak()
    before, started = _peak(), _cpu_seconds()
    outcome = message = told = ""
    found: Format | None = None
    with watch.over() as seen:
        try:
            found = detect.find_format(source)
            if found is not None:
                layout = found.layout(source)
                detect.examine(found, source, beside)
                outcome = "described"
                if any(one.danger == "dangerous" for one in found.findings(source)):
                    outcome = HARMFUL
                covered = sum(segment.length for segment in layout.segments)
                assert covered == layout.size == source.size
        except MstoreError as error:
            outcome, message = type(error).__name__, str(error)
        except (Exception, Forbidden) as error:
            outcome, message = "failed", f"{type(error).__name__}: {error}"
    hdf5_process.end_kept()  # what a process took is only known when it has ended
    seconds = _cpu_seconds() - started
    memory = max(_peak() - before, _peak_of_children() - OF_WORKER)
    with watch.over() as seen_by_describe:
        try:
            layout, told = detect.describe(source, beside)
            outcome = outcome or ("described" if layout.format != "opaque" else "not recognised")
        except (Exception, Forbidden) as error:
            outcome, message = "failed", f"{type(error).__name__}: {error}"
    source.close()
    return {
        "file": path.name,
        "format": found.name if found else "",
        "outcome": outcome,
        "message": message,
        "told": told or "",
        "seconds": seconds,
        "memory": memory,
        "seen": [*seen, *seen_by_describe],
    }


def _cpu_seconds() -> float:
    """What this process and those it started have used: a busy machine does not count."""
    used = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(one.ru_utime + one.ru_stime for one in used)


def _forget_peak() -> None:
    """Let the peak of memory count from now on (proc(5), clear_refs)."""
    Path("/proc/self/clear_refs").write_text("5")


def _peak() -> int:
    """The most memory that this process has had, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) * 1024
    raise AssertionError("the kernel does not tell the peak of memory")


def _peak_of_children() -> int:
    """The most memory that a process which this one started has had, in bytes."""
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024


if __name__ == "__main__":
    main()
